"""The transceiver's internal HTTP: signaling allocates, asks after and ends calls here.

    POST   /calls                    see `AllocateRequest`; 201 {"call_id", "sdp", "calls", "capacity"}
                                     | 4xx | 503
    GET    /calls/{call_id}          200 the call's status, also for a minute after its end | 404
    DELETE /calls/{call_id}          200 | 404
    WebSocket /calls/{call_id}/events?owner=...
                                     a sideband: Realtime events as text, both ways | 404

All carry the cluster's control token, which `InternalApp` checks. Errors have the public API's body, so that
signaling can pass them on as they are.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from urllib.parse import parse_qs

import msgspec
import trio

from voicegate.net.http import Handler, Request, Response, SocketHandler, error_body, error_response
from voicegate.net.websocket import NORMAL, ServerSocket, SocketClosed
from voicegate.proto.address import split_public
from voicegate.proto.allocate import AllocateReply, AllocateRequest
from voicegate.proto.errors import BadOffer
from voicegate.roles.transceiver.core import Overloaded


@dataclass(slots=True)
class SidebandPort:
    """A call's end of one sideband. Both channels are bounded.

    The socket ends when the call closes `to_sideband`'s sending end, with `code`; the call learns the
    sideband's end from both channels closing.
    """

    from_sideband: trio.MemorySendChannel[str]
    """What the sideband says; a call that does not take it stops the reading from the socket."""
    to_sideband: trio.MemoryReceiveChannel[str]
    """Events for the sideband."""
    code: int = NORMAL
    reason: str = "the call has ended"


def routes(
    *,
    allocate: Callable[[AllocateRequest], AllocateReply],
    status: Callable[[str], dict[str, object] | None],
    hang_up: Callable[[str], bool],
) -> dict[tuple[str, str], Handler]:
    """The control routes, by (method, path prefix)."""

    async def post(request: Request) -> Response:
        try:
            wanted = msgspec.json.decode(request.body, type=AllocateRequest)
        except msgspec.DecodeError as error:  # ValidationError is one of these
            return error_response(400, "invalid_request", str(error))
        if (problem := _candidates_problem(wanted.candidates)) is not None:
            return error_response(400, "invalid_candidates", problem, "candidates")
        try:
            return Response(201, msgspec.json.encode(allocate(wanted)))
        except BadOffer as error:
            return error_response(error.status, error.code, error.message, error.param)
        except Overloaded:
            return error_response(503, "overloaded", "This transceiver has no room for another call.")

    async def get(request: Request) -> Response:
        found = status(request.tail)
        return _not_found() if found is None else Response(200, msgspec.json.encode(found))

    async def delete(request: Request) -> Response:
        return Response(200, b"{}") if hang_up(request.tail) else _not_found()

    return {("POST", "/calls"): post, ("GET", "/calls/"): get, ("DELETE", "/calls/"): delete}


def sockets(attach: Callable[[str, str], SidebandPort | None]) -> dict[str, SocketHandler]:
    """The WebSocket routes. `attach(call_id, owner)` opens a sideband of a call that lives, or None; an
    `owner` other than "" must be the `key_id` that the call was allocated with."""

    async def events(request: Request, socket: ServerSocket) -> None:
        owner = parse_qs(request.query).get("owner", [""])[0]
        port = attach(request.tail, owner)
        if port is None:
            await socket.refuse(404, _NOT_FOUND)
            return
        with port.from_sideband, port.to_sideband:
            await socket.accept()
            await _carry(socket, port)

    return {"/calls/{}/events": events}


async def _carry(socket: ServerSocket, port: SidebandPort) -> None:
    """Both ways until either end closes; then close the other."""
    async with trio.open_nursery() as nursery:

        async def read() -> None:
            try:
                while True:
                    await port.from_sideband.send(await socket.receive())
            except SocketClosed:
                nursery.cancel_scope.cancel()
            except trio.BrokenResourceError:
                pass  # the call takes nothing more; it closes the other channel with what it has to say

        nursery.start_soon(read)
        try:
            async for text in port.to_sideband:
                await socket.send(text)
        except SocketClosed:
            pass
        nursery.cancel_scope.cancel()
    await socket.close(port.code, port.reason)


def _candidates_problem(candidates: Sequence[str]) -> str | None:
    """What is wrong with the public addresses that signaling wants in an answer."""
    if not candidates:
        return "There is no candidate; an answer without one can be reached by nobody."
    for candidate in candidates:
        try:
            split_public(candidate)
        except ValueError as error:
            return f"A candidate is host:port, or host:port/tcp: {error}."
    return None


_NOT_FOUND = error_body(404, "call_not_found", "There is no such call here; it may have ended.", "call_id")


def _not_found() -> Response:
    return Response(404, _NOT_FOUND)
