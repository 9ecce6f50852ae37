"""WebSockets of the internal server: routes and token, both ways, and the bounds."""

from __future__ import annotations

import json
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import asynccontextmanager
from functools import partial

import pytest
import trio
import trio_websocket
import wsproto
from hypothesis import given
from hypothesis import strategies as st
from trio_websocket import ConnectionClosed, ConnectionRejected, open_websocket_url
from wsproto.extensions import PerMessageDeflate

from tests.net.test_http import client, settles, socket_count, task_count
from voicegate.config import parse_listen
from voicegate.net import http
from voicegate.net.http import InternalApp, Request, serve_http
from voicegate.net.websocket import GOING_AWAY, TOO_BIG, ServerSocket, SocketClosed, sendable

pytestmark = pytest.mark.anyio
TOKEN = "t" * 32
BEARER = [(b"authorization", f"Bearer {TOKEN}".encode())]


class Seen:
    """What the handler saw, for the test to look at."""

    def __init__(self) -> None:
        self.requests: list[Request] = []
        self.codes: list[int] = []
        self.received = 0
        self.hold: trio.Event | None = None

    async def echo(self, request: Request, socket: ServerSocket) -> None:
        self.requests.append(request)
        await socket.accept("realtime" if "realtime" in socket.subprotocols else None)
        try:
            while True:
                if self.hold is not None:
                    await self.hold.wait()
                text = await socket.receive()
                self.received += 1
                if text == "boom":
                    raise ZeroDivisionError
                if text.startswith("close "):
                    await socket.close(int(text[6:]), "as asked")
                    return
                await socket.send(text)
        except SocketClosed as closed:
            self.codes.append(closed.code)
            raise


async def test_a_route_with_a_tail_and_a_subprotocol() -> None:
    async with serving() as (address, seen):
        url = f"ws://{address}/calls/rtc_1/events?owner=a"
        async with open_websocket_url(url, extra_headers=BEARER, subprotocols=["x", "realtime"]) as ws:
            assert ws.subprotocol == "realtime"
            for text in ("", "ünïcode", "x" * 300_000):
                await ws.send_message(text)
                assert await ws.get_message() == text
        assert (seen.requests[0].tail, seen.requests[0].query) == ("rtc_1", "owner=a")
        await settles(lambda: seen.codes == [1000])


@pytest.mark.parametrize(
    ("path", "token", "status", "code"),
    [
        ("/calls/rtc_1/events", "", 401, "invalid_token"),
        ("/calls/rtc_1/events", "wrong", 401, "invalid_token"),
        ("/calls/rtc_1/other", TOKEN, 404, "not_found"),
        ("/calls//events", TOKEN, 404, "not_found"),
        ("/calls/a/b/events", TOKEN, 404, "not_found"),
        ("/calls/events", TOKEN, 404, "not_found"),
    ],
)
async def test_refused_before_the_upgrade(path: str, token: str, status: int, code: str) -> None:
    async with serving() as (address, seen):
        headers = [(b"authorization", f"Bearer {token}".encode())] if token else []
        with pytest.raises(ConnectionRejected) as caught:
            async with open_websocket_url(f"ws://{address}{path}", extra_headers=headers):
                pass
        assert caught.value.status_code == status
        assert json.loads(caught.value.body or b"")["error"]["code"] == code
        assert seen.requests == []


async def test_close_codes_go_both_ways() -> None:
    async with serving() as (address, seen):
        async with connected(address) as ws:
            await ws.send_message("close 4321")
            with pytest.raises(ConnectionClosed) as caught:
                await ws.get_message()
            assert (caught.value.reason.code, caught.value.reason.reason) == (4321, "as asked")
        async with connected(address) as ws:
            await ws.aclose(3210, "bye")
        await settles(lambda: seen.codes == [3210])


async def test_a_peer_that_vanishes_and_one_that_breaks_the_protocol() -> None:
    async with serving() as (address, seen):
        for tail in (b"", b"\xff" * 50, b"\x81\x05hello", b"\xc1\x80abcd", b"\x81\x82\0\0\0\0\xff\xfe"):
            stream = await shaken(address)
            await stream.send_all(tail)
            await stream.aclose()
        await settles(lambda: len(seen.codes) == 5)
        assert set(seen.codes) <= {1002, 1006, 1007}
        async with connected(address) as ws:
            await ws.send_message("still there")
            assert await ws.get_message() == "still there"


async def test_a_binary_message_is_refused() -> None:
    async with serving() as (address, _), connected(address) as ws:
        await ws.send_message(b"\0\1")
        assert await end_of(ws) == 1003


async def test_a_failing_handler_is_1011() -> None:
    async with serving() as (address, _):
        for _ in range(2):
            async with connected(address) as ws:
                await ws.send_message("boom")
                assert await end_of(ws) == 1011


@pytest.mark.parametrize("fragment", [1, 50_000])
async def test_oversized_messages_end_the_socket_not_the_memory(
    fragment: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(http, "SOCKET_MESSAGE_LIMIT", 100_000)
    async with serving() as (address, seen):
        async with connected(address) as ws:
            await ws.send_message("x" * 100_000)
            assert len(await ws.get_message()) == 100_000
        seen.codes.clear()
        stream = await shaken(address)
        peer = wsproto.connection.Connection(wsproto.ConnectionType.CLIENT)
        sent = 0
        with pytest.raises((trio.BrokenResourceError, trio.ClosedResourceError)):
            while sent < 60_000_000:
                frames = b"".join(
                    peer.send(wsproto.events.TextMessage("x" * fragment, message_finished=False))
                    for _ in range(1 if fragment > 1 else 5000)
                )
                sent += len(frames)
                await stream.send_all(frames)
                if sent > 3_000_000:
                    await trio.sleep(0.01)
        await stream.aclose()
        assert seen.codes == [TOO_BIG]


async def test_nothing_is_compressed() -> None:
    """64 kB of it would be 64 MB before anything could look at the size."""
    async with serving() as (address, _):
        stream = await trio.open_tcp_stream(*parse_listen(address))
        peer = wsproto.WSConnection(wsproto.ConnectionType.CLIENT)
        request = wsproto.events.Request(
            host="x", target="/calls/a/events", extra_headers=BEARER, extensions=[PerMessageDeflate()]
        )
        await stream.send_all(peer.send(request))
        peer.receive_data(await stream.receive_some())
        accepted = next(iter(peer.events()))
        assert isinstance(accepted, wsproto.events.AcceptConnection) and not accepted.extensions
        await stream.aclose()


async def test_a_handler_that_reads_nothing_stops_the_peer() -> None:
    async with serving() as (address, seen), connected(address) as ws:
        seen.hold = trio.Event()
        sent = 0
        with trio.move_on_after(0.5):
            while True:
                await ws.send_message("x" * 1_000_000)
                sent += 1
        assert sent < 40, "what is not read must stay with the sender"
        seen.hold.set()


async def test_a_handler_that_ends_with_a_full_queue_leaves_nothing_behind() -> None:
    async def leave(request: Request, socket: ServerSocket) -> None:
        await socket.accept()
        await trio.sleep(0.05)

    async with serving(leave) as (address, _):
        before = task_count(), socket_count()
        for _ in range(5):
            stream = await shaken(address)
            peer = wsproto.connection.Connection(wsproto.ConnectionType.CLIENT)
            frames = b"".join(peer.send(wsproto.events.TextMessage("x" * 1000)) for _ in range(2000))
            with trio.move_on_after(1):
                try:
                    await stream.send_all(frames)
                    while await stream.receive_some():
                        pass
                except trio.BrokenResourceError:
                    pass
            await stream.aclose()
        await settles(lambda: (task_count(), socket_count()) == before)


async def test_closed_sockets_leave_no_tasks() -> None:
    async with serving() as (address, _):
        before = task_count(), socket_count()
        for _ in range(5):
            async with connected(address) as ws:
                await ws.send_message("a")
                await ws.get_message()
        await settles(lambda: (task_count(), socket_count()) == before)


async def test_http_goes_on_beside_sockets() -> None:
    async with serving() as (address, _), connected(address), client() as ask:
        assert (await ask("GET", address, "/healthz")).status == 200


async def test_a_stopped_server_says_going_away(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(http, "GRACE_SECONDS", 0.2)
    codes: list[int] = []
    async with trio.open_nursery() as nursery:

        async def watch(address: str) -> None:
            async with connected(address) as ws:
                up.set()
                codes.append(await end_of(ws))

        up = trio.Event()
        async with serving() as (address, _):
            nursery.start_soon(watch, address)
            await up.wait()
    assert codes == [GOING_AWAY]


@given(st.integers(-5, 6000))
def test_what_may_be_sent_as_a_close_code(code: int) -> None:
    allowed = {*range(1000, 1004), *range(1007, 1015), *range(3000, 5000)}
    assert sendable(code) in allowed
    assert sendable(code) == code or code not in allowed


@asynccontextmanager
async def serving(
    handler: Callable[[Request, ServerSocket], Awaitable[None]] | None = None,
) -> AsyncIterator[tuple[str, Seen]]:
    seen = Seen()
    app = InternalApp(
        ready=lambda: None,
        sockets={"/calls/{}/events": handler or seen.echo},
        accepts_token=TOKEN.__eq__,
    )
    async with trio.open_nursery() as nursery:
        address = (await nursery.start(partial(serve_http, app, "127.0.0.1:0")))[0]
        yield address, seen
        nursery.cancel_scope.cancel()


@asynccontextmanager
async def connected(address: str) -> AsyncIterator[trio_websocket.WebSocketConnection]:
    url = f"ws://{address}/calls/rtc_1/events"
    with trio.fail_after(10):
        async with open_websocket_url(url, extra_headers=BEARER, max_message_size=2**25) as ws:
            yield ws


async def end_of(ws: trio_websocket.WebSocketConnection) -> int:
    with pytest.raises(ConnectionClosed) as caught:
        while True:
            await ws.get_message()
    return int(caught.value.reason.code)


async def shaken(address: str) -> trio.SocketStream:
    """A bare connection behind its handshake."""
    stream = await trio.open_tcp_stream(*parse_listen(address))
    peer = wsproto.WSConnection(wsproto.ConnectionType.CLIENT)
    await stream.send_all(
        peer.send(wsproto.events.Request(host="x", target="/calls/a/events", extra_headers=BEARER))
    )
    assert b" 101 " in await stream.receive_some()
    return stream
