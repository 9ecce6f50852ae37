"""The client of the internal HTTP: it keeps connections, and knows a broken one."""

from __future__ import annotations

from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import asynccontextmanager
from functools import partial

import pytest
import trio
import trio.testing

from voicegate.net.http_client import MAX_CONTENT, MAX_IDLE, HttpClient, HttpError

pytestmark = pytest.mark.anyio
OK = b"HTTP/1.1 200 OK\r\nContent-Length: 2\r\n\r\nok"
Script = Callable[[trio.SocketStream], Awaitable[None]]


class Server:
    """Runs `script` for each connection; `connections` counts them."""

    def __init__(self, script: Script) -> None:
        self.address = ""
        self.connections = 0
        self._script = script

    async def serve(self, stream: trio.SocketStream) -> None:
        self.connections += 1
        await self._script(stream)


@asynccontextmanager
async def serving(script: Script, keep_seconds: float = 10.0) -> AsyncIterator[tuple[Server, HttpClient]]:
    """A server and a client of it."""
    server, client = Server(script), new_client(keep_seconds)
    async with trio.open_nursery() as nursery:
        (listener,) = await nursery.start(partial(trio.serve_tcp, server.serve, 0, host="127.0.0.1"))
        host, port = listener.socket.getsockname()
        server.address = f"{host}:{port}"
        yield server, client
        nursery.cancel_scope.cancel()
    client.close()


def answering(*answers: bytes) -> Script:
    """One answer to each request, each in one piece; then it hangs up."""

    async def script(stream: trio.SocketStream) -> None:
        for answer in answers:
            if not await stream.receive_some():
                return
            await stream.send_all(answer)

    return script


def new_client(keep_seconds: float = 10.0) -> HttpClient:
    return HttpClient(connect_seconds=1.0, keep_seconds=keep_seconds)


async def test_a_connection_serves_many_requests() -> None:
    async with serving(answering(OK, OK, b"HTTP/1.1 404 Not Found\r\nContent-Length: 0\r\n\r\n")) as (
        server,
        client,
    ):
        for _ in range(2):
            assert await client.request("POST", server.address, "/calls", [("A", "b")], b"{}") == (200, b"ok")
        assert (await client.request("GET", server.address, "/", [])).status == 404
        assert server.connections == 1


async def test_a_request_goes_out_whole() -> None:
    seen: list[bytes] = []

    async def script(stream: trio.SocketStream) -> None:
        seen.append(bytes(await stream.receive_some()))
        await stream.send_all(OK)

    async with serving(script) as (server, client):
        await client.request("POST", server.address, "/calls?x=1", [("Authorization", "Bearer t")], b"body")
        head, _, body = seen[0].partition(b"\r\n\r\n")
        assert head.split(b"\r\n") == [
            b"POST /calls?x=1 HTTP/1.1",
            b"Host: " + server.address.encode(),
            b"Authorization: Bearer t",
            b"Content-Length: 4",
        ]
        assert body == b"body"


async def test_one_that_the_server_closed_is_not_used_again() -> None:
    async with serving(answering(OK)) as (server, client):
        await client.request("GET", server.address, "/", [])
        await trio.testing.wait_all_tasks_blocked(0.01)  # it hangs up
        assert (await client.request("GET", server.address, "/", [])).status == 200
        assert server.connections == 2


async def test_one_that_is_to_be_closed_is_not_kept() -> None:
    async with serving(answering(OK.replace(b"OK\r\n", b"OK\r\nConnection: close\r\n"), OK)) as (
        server,
        client,
    ):
        for _ in range(2):
            assert (await client.request("GET", server.address, "/", [])).content == b"ok"
        assert server.connections == 2


async def test_idle_ones_are_not_kept_for_ever() -> None:
    async with serving(answering(OK, OK), keep_seconds=0.0) as (server, client):
        for _ in range(2):
            await client.request("GET", server.address, "/", [])
        assert server.connections == 2


async def test_only_so_many_are_kept() -> None:
    async with serving(answering(OK, OK)) as (server, client):

        async def burst() -> None:
            async with trio.open_nursery() as requests:
                for _ in range(MAX_IDLE + 8):
                    requests.start_soon(client.request, "GET", server.address, "/", [])

        await burst()
        before = server.connections
        assert before >= MAX_IDLE
        await burst()
        assert server.connections - before >= before - MAX_IDLE


@pytest.mark.parametrize(
    "answer",
    [
        b"",
        b"HTTP/1.1 200 OK\r\nContent-Length: 9\r\n\r\nok",
        b"SSH-2.0-OpenSSH_9.2\r\n\r\n",
        b"HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\nzz\r\n",
        b"HTTP/1.1 200 OK\r\nContent-Length: %d\r\n\r\n" % (MAX_CONTENT + 1) + bytes(MAX_CONTENT + 1),
        b"X" * 200_000,
    ],
    ids=["end", "cut", "not HTTP", "bad chunk", "too long", "endless head"],
)
async def test_a_broken_answer_is_an_error(answer: bytes) -> None:
    async with serving(answering(answer)) as (server, client):
        with pytest.raises(HttpError):
            await client.request("GET", server.address, "/", [])


async def test_nobody_there_and_no_address() -> None:
    client = new_client()
    for address in ("127.0.0.1:1", "nonsense"):
        with pytest.raises(HttpError):
            await client.request("GET", address, "/", [])


async def test_a_cancelled_request_leaves_no_half_read_answer() -> None:
    async def script(stream: trio.SocketStream) -> None:
        await stream.receive_some()
        await stream.send_all(OK[:-1])
        await trio.sleep_forever()

    async with serving(script) as (server, client):
        for _ in range(2):
            with trio.move_on_after(0.05) as scope:
                await client.request("GET", server.address, "/", [])
            assert scope.cancelled_caught
        assert server.connections == 2
