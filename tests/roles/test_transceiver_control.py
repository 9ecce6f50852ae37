"""The transceiver's control routes: what an allocation carries, and sidebands on a call's port."""

from __future__ import annotations

import json
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from functools import partial

import msgspec
import pytest
import trio
from trio_websocket import ConnectionClosed, ConnectionRejected, open_websocket_url

from voicegate.net.http import InternalApp, Request, serve_http
from voicegate.proto.allocate import AllocateReply, AllocateRequest
from voicegate.roles.transceiver.control import SidebandPort, routes, sockets

pytestmark = pytest.mark.anyio
TOKEN = "t" * 32
BEARER = [(b"authorization", f"Bearer {TOKEN}".encode())]


class Calls:
    """Calls with one sideband each: `said` is what it sent, `tell` sends to it."""

    def __init__(self, *call_ids: str, owner: str = "shop", room: int = 4) -> None:
        self.call_ids = call_ids
        self.owner = owner
        self.to_call, self.said = trio.open_memory_channel[str](room)
        self.tell, self.to_sideband = trio.open_memory_channel[str](room)
        self.port = SidebandPort(self.to_call, self.to_sideband)

    def attach(self, call_id: str, owner: str) -> SidebandPort | None:
        return self.port if call_id in self.call_ids and owner in ("", self.owner) else None


def test_signaling_asks_for_what_a_transceiver_understands() -> None:
    asked = AllocateRequest(
        sdp="v=0", candidates=("a",), dcid=3, client_events=("x",), key_id="k", session={"a": [1]}
    )
    read = msgspec.json.decode(msgspec.json.encode(asked), type=AllocateRequest)
    assert msgspec.structs.asdict(read) == msgspec.structs.asdict(asked)
    plain = msgspec.json.decode(b'{"sdp": "v=0", "candidates": []}', type=AllocateRequest)
    assert (plain.dcid, plain.client_events, plain.server_events) == (None, ("*",), ("*",))


@pytest.mark.parametrize(
    ("candidates", "word"),
    [
        ((), "no candidate"),
        (("203.0.113.1:443/sctp",), "udp or tcp"),
        (("203.0.113.1:3478", "203.0.113.1"), "not host:port"),
        (("relay.example:3478",), "not an IP address"),
    ],
)
async def test_candidates_that_cannot_be_are_refused_in_words(candidates: tuple[str, ...], word: str) -> None:
    def unreachable(request: AllocateRequest) -> AllocateReply:
        raise AssertionError(request)

    post = routes(allocate=unreachable, status=lambda call_id: None, hang_up=lambda call_id: False)[
        "POST", "/calls"
    ]
    body = msgspec.json.encode({"sdp": "v=0", "candidates": candidates})
    response = await post(Request("POST", "/calls", "", "", {}, body))
    error = json.loads(response.body)["error"]
    assert response.status == 400 and (error["code"], error["param"]) == ("invalid_candidates", "candidates")
    assert word in error["message"]


async def test_events_both_ways_until_the_call_ends() -> None:
    calls = Calls("rtc_1")
    async with serving(calls) as address:
        async with open_websocket_url(f"ws://{address}/calls/rtc_1/events", extra_headers=BEARER) as ws:
            await ws.send_message('{"type":"response.create"}')
            assert await calls.said.receive() == '{"type":"response.create"}'
            for number in range(100):
                await calls.tell.send(f"event {number}")
                assert await ws.get_message() == f"event {number}"
            calls.port.code, calls.port.reason = 4000, "enough"
            calls.tell.close()
            with pytest.raises(ConnectionClosed) as caught:
                await ws.get_message()
            assert (caught.value.reason.code, caught.value.reason.reason) == (4000, "enough")
        with pytest.raises(trio.EndOfChannel):
            await calls.said.receive()


async def test_the_call_learns_that_a_sideband_went() -> None:
    calls = Calls("rtc_1")
    async with serving(calls) as address:
        async with open_websocket_url(f"ws://{address}/calls/rtc_1/events", extra_headers=BEARER):
            pass
        with pytest.raises(trio.EndOfChannel):
            await calls.said.receive()
        with pytest.raises(trio.BrokenResourceError):
            await calls.tell.send("late")


async def test_a_call_that_takes_nothing_stops_the_reading() -> None:
    calls = Calls("rtc_1", room=1)
    async with (
        serving(calls) as address,
        open_websocket_url(f"ws://{address}/calls/rtc_1/events", extra_headers=BEARER) as ws,
    ):
        sent = 0
        with trio.move_on_after(0.3):
            while True:
                await ws.send_message("x" * 1_000_000)
                sent += 1
        assert sent < 40
        assert len(await calls.said.receive()) == 1_000_000
        calls.tell.close()


@pytest.mark.parametrize("path", ["rtc_2/events", "rtc_1/events?owner=stranger", "rtc_2/events?owner=shop"])
async def test_no_such_call_of_that_owner(path: str) -> None:
    async with serving(Calls("rtc_1")) as address:
        with pytest.raises(ConnectionRejected) as caught:
            async with open_websocket_url(f"ws://{address}/calls/{path}", extra_headers=BEARER):
                pass
        assert caught.value.status_code == 404
        assert json.loads(caught.value.body or b"")["error"]["code"] == "call_not_found"


@asynccontextmanager
async def serving(calls: Calls) -> AsyncIterator[str]:
    app = InternalApp(ready=lambda: None, sockets=sockets(calls.attach), accepts_token=TOKEN.__eq__)
    async with trio.open_nursery() as nursery:
        with trio.fail_after(10):
            yield (await nursery.start(partial(serve_http, app, "127.0.0.1:0")))[0]
        nursery.cancel_scope.cancel()
