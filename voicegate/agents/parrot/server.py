"""The parrot on a socket: one task per session drives a pure `ParrotSession` over trio-websocket."""

from __future__ import annotations

import hmac
import secrets
import time
from functools import partial
from typing import Final

import trio
from trio_websocket import (
    ConnectionClosed,
    HandshakeError,
    WebSocketConnection,
    WebSocketRequest,
    WebSocketServer,
    serve_websocket,
)

from voicegate.agents.parrot.core import ParrotSession
from voicegate.logs import get_logger
from voicegate.proto.realtime import MAX_EVENT_BYTES, encode_event

PATH: Final = "/v1/realtime"
MAX_SESSIONS: Final = 256
"""At worst a turn of 6 MB, 16 MB of conversation and a message of 16 MB each: about 10 GB; in use some 5 MB
each."""
SEND_SECONDS: Final = 20.0
"""A client that reads nothing for this long is let go; voicegate's own `agent.stall_seconds`."""
_READ_BYTES: Final = 65_536


async def serve_parrot(
    listen: str = "127.0.0.1:0",
    *,
    api_key: str = "",
    turn_detection: bool = True,
    max_sessions: int = MAX_SESSIONS,
    task_status: trio.TaskStatus[str] = trio.TASK_STATUS_IGNORED,
) -> None:
    """Serve until cancelled; starts with its `ws://` URL. `listen` is `host:port`, an IPv6 host in brackets.

    Raises OSError when the address cannot be had, ValueError when it is not one.
    """
    host, port = _host_and_port(listen)
    gate = _Gate(api_key, turn_detection, max_sessions)
    async with trio.open_nursery() as nursery:
        server: WebSocketServer = await nursery.start(
            partial(
                serve_websocket,
                gate.on_request,
                host,
                port,
                None,
                max_message_size=MAX_EVENT_BYTES,
                receive_buffer_size=_READ_BYTES,
            )
        )
        endpoint = server.listeners[0]
        assert not isinstance(endpoint, str), "a TCP listener has an address and a port"
        shown = f"[{host}]" if ":" in host else host
        url = f"ws://{shown}:{endpoint.port}{PATH}"
        get_logger(__name__).info("parrot listens", url=url)
        task_status.started(url)


class _Gate:
    """Who may come in, and how many."""

    def __init__(self, api_key: str, turn_detection: bool, max_sessions: int) -> None:
        self._authorization = f"Bearer {api_key}".encode() if api_key else b""
        self._turn_detection = turn_detection
        self._max_sessions = max_sessions
        self._sessions = 0

    async def on_request(self, request: WebSocketRequest) -> None:
        try:
            await self._on_request(request)
        except (ConnectionClosed, HandshakeError, trio.BrokenResourceError):
            pass  # the client went

    async def _on_request(self, request: WebSocketRequest) -> None:
        path, _, query = request.path.partition("?")
        given = dict(request.headers).get(b"authorization", b"")
        if path != PATH:
            await _refuse(request, 404, "not_found", f"Connect to {PATH}.")
        elif self._authorization and not hmac.compare_digest(given, self._authorization):
            await _refuse(request, 401, "invalid_api_key", "Incorrect API key provided.")
        elif self._sessions >= self._max_sessions:
            await _refuse(request, 503, "server_busy", "Too many sessions.")
        else:
            self._sessions += 1
            try:
                await self._run(request, query)
            finally:
                self._sessions -= 1

    async def _run(self, request: WebSocketRequest, query: str) -> None:
        # `realtime` is what browsers ask for, beside a protocol that carries their key.
        wanted = request.proposed_subprotocols
        connection = await request.accept(subprotocol="realtime" if "realtime" in wanted else None)
        model = next((v for k, _, v in (p.partition("=") for p in query.split("&")) if k == "model"), "")
        session = ParrotSession(
            _new_id,
            trio.current_time(),
            time.time(),
            model=model[:128],
            turn_detection=self._turn_detection,
        )
        await _drive(connection, session)


async def _drive(connection: WebSocketConnection, session: ParrotSession) -> None:
    """One input, drain the output, re-arm the one deadline."""
    while await _send_all(connection, session) and not session.closed:
        with trio.move_on_at(session.next_deadline()):
            message = await connection.get_message()
            session.receive_event_untrusted(message, trio.current_time())
        session.handle_timeout(trio.current_time())


async def _send_all(connection: WebSocketConnection, session: ParrotSession) -> bool:
    """False: the client reads nothing."""
    while (event := session.poll_transmit()) is not None:
        with trio.move_on_after(SEND_SECONDS) as sending:
            await connection.send_message(event.decode())
        if sending.cancelled_caught:
            return False
    return True


async def _refuse(request: WebSocketRequest, status: int, code: str, message: str) -> None:
    error = {"type": "invalid_request_error", "code": code, "message": message, "param": None}
    await request.reject(
        status,
        extra_headers=[(b"content-type", b"application/json")],
        body=encode_event({"error": error}),
    )


def _new_id(prefix: str) -> str:
    return f"{prefix}_{secrets.token_hex(10)}"


def _host_and_port(listen: str) -> tuple[str, int]:
    host, _, port = listen.rpartition(":")
    host = host.removeprefix("[").removesuffix("]")
    if not host or not port.isdecimal() or int(port) > 65_535:
        raise ValueError(f"not host:port: {listen!r}")
    return host, int(port)
