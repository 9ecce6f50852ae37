"""The transceiver's internal HTTP: signaling allocates, asks after and ends calls here.

    POST   /calls             {"sdp", "candidates", "model", "session"}
                              201 {"call_id", "sdp", "calls", "capacity"}
    GET    /calls/{call_id}   200 the call's status, also for a minute after its end | 404
    DELETE /calls/{call_id}   200 | 404

All carry the cluster's control token, which `InternalApp` checks. Errors have the public API's body, so that
signaling can pass them on as they are.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import msgspec

from voicegate.net.http import Handler, Request, Response, error_response
from voicegate.proto.errors import BadOffer
from voicegate.roles.transceiver.core import Overloaded


class AllocateRequest(msgspec.Struct, frozen=True):
    sdp: str
    candidates: tuple[str, ...]
    model: str = ""
    session: dict[str, Any] | None = None


class AllocateReply(msgspec.Struct, frozen=True):
    call_id: str
    sdp: str
    calls: int
    capacity: int


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


def _not_found() -> Response:
    return error_response(404, "call_not_found", "There is no such call here; it may have ended.", "call_id")
