"""The server end of a WebSocket (RFC 6455): text both ways, on Hypercorn, with the bounds it lacks.

`ServerSocket` is what a handler sees of one ASGI WebSocket. `BoundedStream` takes the place of Hypercorn's
own stream (0.17, 0.18), in which

* a compressed message of 64 kB grows to 64 MB before its size is looked at (so none is negotiated here),
* a message that is too large goes on growing after it was refused,
* the peer's close code is lost,
* a handler that ends while its queue is full leaves the connection's tasks behind for ever.
"""

from __future__ import annotations

from collections.abc import Awaitable, Callable, Mapping
from dataclasses import replace
from typing import Any, Final

import trio
from hypercorn.protocol import h2, h11, ws_stream
from hypercorn.protocol.events import Request as StreamRequest
from hypercorn.protocol.events import StreamClosed
from hypercorn.protocol.ws_stream import ASGIWebsocketState, WSStream
from wsproto.connection import ConnectionState
from wsproto.events import BytesMessage, CloseConnection, Ping, TextMessage
from wsproto.utilities import LocalProtocolError

CLOSE_SECONDS: Final = 2.0
"""How long the peer's close frame is waited for; closing the socket at once could overtake ours."""

NORMAL: Final = 1000
GOING_AWAY: Final = 1001
UNSUPPORTED: Final = 1003
LOST: Final = 1006
TOO_BIG: Final = 1009
INTERNAL_ERROR: Final = 1011
TRY_AGAIN_LATER: Final = 1013
"""Close codes of RFC 6455 section 7.4.1 and of the IANA registry."""


class SocketClosed(Exception):
    """The peer is gone, or was told to go; `code` is its close code, or 1006 when it gave none."""

    def __init__(self, code: int) -> None:
        super().__init__(f"WebSocket code {code}")
        self.code = code


class ServerSocket:
    """One WebSocket: `accept` or `refuse` it first.

    Messages are text of at most `websocket_max_message_size` (see `voicegate.net.http`). `send` waits until
    the peer's socket has taken the message, so that a slow reader slows its writer.
    """

    def __init__(self, scope: Mapping[str, Any], receive: Callable[[], Awaitable[Any]], send: Any) -> None:
        self.path: str = scope["path"]
        self.query: str = scope["query_string"].decode("latin1")
        self.headers: Mapping[str, str] = {
            name.decode("latin1").lower(): value.decode("latin1") for name, value in scope["headers"]
        }
        self.subprotocols: tuple[str, ...] = tuple(scope["subprotocols"])
        self.peer: str = (scope.get("client") or ("", 0))[0]
        self._receive = receive
        self._send = send
        self._closed: int | None = None

    async def accept(self, subprotocol: str | None = None) -> None:
        await self._send({"type": "websocket.accept", "subprotocol": subprotocol, "headers": []})

    async def refuse(self, status: int, body: bytes, headers: Mapping[str, str] | None = None) -> None:
        """Answer with an HTTP error instead of the upgrade; `body` is JSON."""
        fields = {"content-type": "application/json", "content-length": str(len(body)), **(headers or {})}
        encoded = [(name.lower().encode(), value.encode()) for name, value in fields.items()]
        await self._send({"type": "websocket.http.response.start", "status": status, "headers": encoded})
        await self._send({"type": "websocket.http.response.body", "body": body})

    async def receive(self) -> str:
        """The next message. Raises SocketClosed; a binary message closes the socket with 1003."""
        while self._closed is None:
            message = await self._receive()
            if message["type"] == "websocket.disconnect":
                self._closed = message.get("code") or LOST
            elif message["type"] == "websocket.receive":
                text = message.get("text")
                if isinstance(text, str):
                    return text
                await self.close(UNSUPPORTED, "text messages only")
        raise SocketClosed(self._closed)

    async def send(self, text: str) -> None:
        """Raises SocketClosed once the peer is known to be gone."""
        if self._closed is not None:
            raise SocketClosed(self._closed)
        await self._send({"type": "websocket.send", "text": text, "bytes": None})

    async def close(self, code: int = NORMAL, reason: str = "") -> None:
        """Say goodbye and wait `CLOSE_SECONDS` for the peer to do the same. Nothing when it already has."""
        if self._closed is not None:
            return
        self._closed = code
        with trio.move_on_after(CLOSE_SECONDS, shield=True):
            await self._send(
                {
                    "type": "websocket.close",
                    "code": sendable(code),
                    "reason": reason.encode()[:120].decode("utf-8", "ignore"),
                }
            )
            while (await self._receive())["type"] != "websocket.disconnect":
                pass


def sendable(code: int) -> int:
    """A close code that may be sent: those that only describe an end (RFC 6455 7.4.1) become one that may."""
    if code == 1005:
        return NORMAL
    if 3000 <= code <= 4999 or (1000 <= code <= 1014 and code not in (1004, 1006)):
        return code
    return INTERNAL_ERROR


class BoundedStream(WSStream):
    """Hypercorn's stream between one connection and one ASGI application, bounded."""

    def __init__(self, *arguments: Any, **keywords: Any) -> None:
        super().__init__(*arguments, **keywords)
        self._partial = bytearray()
        self._peer_code = LOST
        self._failed = False
        self._ended = trio.Event()
        self._app_gone = False
        self._putting: set[trio.CancelScope] = set()

    async def handle(self, event: Any) -> None:
        if isinstance(event, StreamRequest):
            kept = [(n, v) for n, v in event.headers if n.lower() != b"sec-websocket-extensions"]
            await super().handle(replace(event, headers=kept))
        elif isinstance(event, StreamClosed):
            if not self.closed:
                self.closed = True
                self._ended.set()
                await self._put({"type": "websocket.disconnect", "code": self._peer_code})
        else:
            try:
                await super().handle(event)
            except LocalProtocolError:
                pass  # bytes behind the end of the conversation

    async def app_send(self, message: Any) -> None:
        if message is None:
            self._app_gone = True
            for scope in self._putting:
                scope.cancel()
            if self._failed:
                with trio.move_on_after(CLOSE_SECONDS):
                    await self._ended.wait()
        await super().app_send(message)

    async def _put(self, message: Any) -> None:
        """Give a message to the application, for as long as there is one."""
        if self.app_put is None or self._app_gone:
            return
        with trio.CancelScope() as scope:
            self._putting.add(scope)
            try:
                await self.app_put(message)
            finally:
                self._putting.discard(scope)

    async def _handle_events(self) -> None:
        for event in self.connection.events():
            if isinstance(event, TextMessage | BytesMessage):
                await self._on_message(event)
            elif isinstance(event, Ping):
                await self._send_wsproto_event(event.response())
            elif isinstance(event, CloseConnection):
                await self._on_close(event)
                return

    async def _on_message(self, event: TextMessage | BytesMessage) -> None:
        if self._failed or self.state is not ASGIWebsocketState.CONNECTED:
            return
        is_text = isinstance(event, TextMessage)
        data = event.data.encode() if isinstance(event.data, str) else bytes(event.data)
        if len(self._partial) + len(data) > self.config.websocket_max_message_size:
            self._partial = bytearray()
            await self._fail(TOO_BIG, "message too big")
            return
        self._partial += data
        if event.message_finished:
            whole, self._partial = bytes(self._partial), bytearray()
            await self._put(
                {
                    "type": "websocket.receive",
                    "bytes": None if is_text else whole,
                    "text": whole.decode() if is_text else None,
                }
            )

    async def _on_close(self, event: CloseConnection) -> None:
        if self.connection.state is ConnectionState.REMOTE_CLOSING:
            await self._send_wsproto_event(event.response())
        elif self.connection.state is ConnectionState.OPEN:  # what came could not be parsed (7.1.7)
            await self._fail(int(event.code), str(event.reason or ""))
            return
        self._peer_code = int(event.code)
        await self.send(StreamClosed(stream_id=self.stream_id))

    async def _fail(self, code: int, reason: str) -> None:
        """End the conversation because of what the peer sent; more of it is read and thrown away."""
        self._failed = True
        self._peer_code = code
        await self._send_wsproto_event(CloseConnection(code=code, reason=reason[:120]))
        await self._put({"type": "websocket.disconnect", "code": code})

    async def _send_pings(self) -> None:
        # Not at once, as Hypercorn does: that ping crosses with the end of a short conversation.
        while not self.closed:
            with trio.move_on_after(self.config.websocket_ping_interval or 20.0):
                await self._ended.wait()
                return
            await self._send_wsproto_event(Ping())


def install() -> None:
    """Have Hypercorn use `BoundedStream`; it offers no other way to say so."""
    for module in (ws_stream, h11, h2):
        module.WSStream = BoundedStream  # type: ignore[attr-defined]
