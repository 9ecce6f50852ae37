"""The client end of one WebSocket (RFC 6455), made for many small messages: the wire of the Realtime client.

Theory of operation. A call sends 50 small messages a second and receives 10 large ones, so what costs is
not framing but waking tasks. `send_text_nowait` therefore frames, masks, encrypts and writes to the
non-blocking socket in the caller's own turn, and no task runs. Only what the socket refuses waits in
`_backlog`, for `keep_moving`, which also pings. wsproto does the handshake and reads the frames; TLS runs
over memory buffers so that it, too, needs no await.

Every way this can fail is an `AgentLost`, in bounded time: `open` under the caller's deadline, the rest by
`keep_moving`. `receive` may be cancelled at any time and loses nothing.
"""

from __future__ import annotations

import re
import socket
import ssl
from collections.abc import Callable, Sequence
from functools import cache
from typing import Final
from urllib.parse import urlsplit

import trio
import wsproto
from wsproto.connection import ConnectionState
from wsproto.events import (
    AcceptConnection,
    BytesMessage,
    CloseConnection,
    Event,
    Ping,
    RejectConnection,
    Request,
    TextMessage,
)
from wsproto.utilities import LocalProtocolError, RemoteProtocolError

from voicegate.agents.frames import FrameReader, text_frame

_READ_BYTES: Final = 65_536
_MAX_PONG_BACKLOG: Final = 65_536
"""Pongs beyond this much unsent data are left out: a peer that floods pings and reads nothing is its own
problem."""
_SEND_BUFFER: Final = 262_144
"""SO_SNDBUF: about 4 s of microphone audio. Linux would grow it to megabytes, and audio that is late by a
minute."""

_BLANK_LINE: Final = re.compile(rb"\n\r?\n")
"""The end of an HTTP head, as h11 sees it."""

_MAX_DETAIL: Final = 200
"""A library's message may quote what the peer sent."""


class AgentLost(Exception):
    """The agent cannot be used any more.

    `reason`, a metrics label: agent_unreachable, agent_timeout, agent_refused, agent_closed, agent_protocol,
    agent_stalled. `detail` is for the log and never holds a key. `status` is the HTTP status of a refusal,
    `code` the peer's WebSocket close code with its `text`; 0 for every other end.
    """

    def __init__(
        self, reason: str, detail: str = "", *, status: int = 0, code: int = 0, text: str = ""
    ) -> None:
        super().__init__(f"{reason}: {detail}" if detail else reason)
        self.reason = reason
        self.detail = detail
        self.status = status
        self.code = code
        self.text = text


class WebSocket:
    """An open connection. Made by `WebSocket.open`."""

    __slots__ = (
        "_backlog",
        "_blocked",
        "_closed",
        "_early",
        "_ending",
        "_frames",
        "_max_message",
        "_partial",
        "_received_at",
        "_skipping",
        "_socket",
        "_tls",
        "_ws",
        "is_open",
        "oversized",
    )

    def __init__(self, sock: socket.socket, tls: _Tls | None, max_message: int) -> None:
        self._socket = sock
        self._tls = tls
        self._ws = wsproto.WSConnection(wsproto.ConnectionType.CLIENT)
        self._frames = FrameReader()
        self._max_message = max_message
        self._partial = bytearray()
        self._skipping = False
        self._early: list[str | bytes] = []
        self._ending: AgentLost | None = None
        self._backlog = bytearray()
        self._blocked = trio.Event()
        self._received_at = trio.current_time()
        self._closed = False
        self.is_open = False
        """Messages can be sent: no close frame has come or gone. Asked for each of them."""
        self.oversized = 0
        """Messages that were larger than the limit and were skipped."""

    @classmethod
    async def open(
        cls,
        url: str,
        headers: Sequence[tuple[str, str]],
        *,
        max_message: int,
        ssl_context: ssl.SSLContext | None = None,
    ) -> WebSocket:
        """Connect and shake hands. No deadline of its own. Raises AgentLost."""
        parts = urlsplit(url)
        secure = parts.scheme == "wss"
        host, port = parts.hostname or "", parts.port or (443 if secure else 80)
        try:
            stream = await trio.open_tcp_stream(host, port)
        except (OSError, ValueError) as error:  # ValueError: a name that IDNA cannot write
            raise AgentLost("agent_unreachable", _why(error)) from error
        # From here on the plain socket: Trio's object offers no way to write without an await.
        sock = socket.socket(fileno=stream.socket.detach())
        try:
            sock.setblocking(False)
            sock.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
            sock.setsockopt(socket.SOL_SOCKET, socket.SO_SNDBUF, _SEND_BUFFER)
            tls = None
            if secure:
                tls = _Tls(ssl_context or _default_tls(), host)
                await tls.shake_hands(sock)
            self = cls(sock, tls, max_message)
            target = (parts.path or "/") + (f"?{parts.query}" if parts.query else "")
            await self._shake_hands(parts.netloc.rpartition("@")[2], target, headers)
        except (OSError, ValueError) as error:  # ssl.SSLError; a name that TLS cannot check
            sock.close()
            raise AgentLost("agent_unreachable", _why(error)) from error
        except BaseException:
            sock.close()
            raise
        return self

    @property
    def clear(self) -> bool:
        """Nothing waits for the socket: what is sent now goes out now."""
        return not self._backlog

    def send_text_nowait(self, payload: bytes) -> None:
        """Send one text message (UTF-8). What the socket does not take is kept; look at `clear` first."""
        if not self.is_open:
            return
        frame = text_frame(payload)
        if self._tls is not None or self._backlog:
            self._write(frame)
        elif (sent := _send(self._socket, frame)) < len(frame):
            self._keep(frame[sent:])

    async def receive(self) -> list[str | bytes]:
        """Wait for bytes; return the messages that they complete, perhaps none. Raises AgentLost."""
        if not self._early and self._ending is None:
            await trio.lowlevel.wait_readable(self._socket)
        return self.receive_nowait()

    @property
    def unread(self) -> bool:
        """Whether `receive` has something that was read already."""
        return bool(self._early) or self._ending is not None

    def fileno(self) -> int:
        """Of the socket, whose readiness to be read is what `receive_nowait` may be called on."""
        return self._socket.fileno()

    def receive_nowait(self) -> list[str | bytes]:
        """As `receive`, with one read of what is there and no waiting."""
        if self._early:
            messages, self._early = self._early, []
            return messages
        if self._ending is not None:
            raise self._ending
        try:
            data = self._socket.recv(_READ_BYTES)
            if self._tls is not None and data:
                data = self._tls.decrypt(data)
                self._write_raw(self._tls.take())  # key updates and alerts
                if not data and not self._tls.ended:
                    return []
        except (BlockingIOError, InterruptedError):
            return []
        except OSError as error:
            raise AgentLost("agent_closed", _why(error)) from error
        if not data:
            raise AgentLost("agent_closed", "the connection ended without a close frame")
        self._received_at = trio.current_time()
        messages = []
        self._feed_frames(data, messages)
        return messages

    async def keep_moving(self, stall_seconds: float, on_clear: Callable[[], None]) -> None:
        """Send the backlog as the socket takes it, calling `on_clear` when it is gone; ping when it is quiet.

        Never returns. Raises AgentLost agent_stalled when for `stall_seconds` nothing is taken, or nothing at
        all is heard in spite of a ping.
        """
        pinged_at = -1.0
        while True:
            with trio.move_on_after(stall_seconds / 2):
                await self._blocked.wait()
            now = trio.current_time()
            if self._backlog:
                with trio.move_on_after(stall_seconds) as scope:
                    await trio.lowlevel.wait_writable(self._socket)
                if scope.cancelled_caught:
                    raise AgentLost("agent_stalled", "it takes nothing")
                self._flush()
                if not self._backlog:
                    on_clear()
            elif self._received_at >= pinged_at:
                pinged_at = now
                if self.is_open:
                    self._write(self._ws.send(Ping()))
            elif pinged_at <= now - stall_seconds:
                raise AgentLost("agent_stalled", "it does not answer a ping")
            if not self._backlog and self._blocked.is_set():
                self._blocked = trio.Event()

    def begin_close(self, code: int = 1000, text: str = "") -> None:
        """Send the close frame; the peer's own then ends `receive` with agent_closed."""
        if self.is_open:
            self._write(self._ws.send(CloseConnection(code=code, reason=text or None)))
            self._look_at_state()

    def close(self) -> None:
        """Say goodbye if that goes at once, and free the socket. Idempotent; no task may wait on it."""
        if not self._closed:
            if not self._backlog:
                self.begin_close(1001)  # RFC 6455 7.4.1: going away
            self._closed = True
            self._look_at_state()
            self._socket.close()

    async def _shake_hands(self, host: str, target: str, headers: Sequence[tuple[str, str]]) -> None:
        lines = [(name.encode("latin-1"), value.encode("latin-1")) for name, value in headers]
        self._write(self._ws.send(Request(host=host, target=target, extra_headers=lines)))
        seen, fed = b"", 0
        while self._ws.state is ConnectionState.CONNECTING:
            data = await _read(self._socket)
            if self._tls is not None and data:
                data = self._tls.decrypt(data)
                if not data and not self._tls.ended:
                    continue
            if not data:
                raise AgentLost("agent_closed", "the connection ended during the WebSocket handshake")
            seen += data
            # A server may speak at once, so what is behind the response's head is frames already. h11, under
            # wsproto, bounds the head at 16 KiB.
            while fed < len(seen) and self._ws.state is ConnectionState.CONNECTING:
                heads = (blank.end() for blank in _BLANK_LINE.finditer(seen) if blank.end() > fed)
                stop = next(heads, len(seen))
                self._feed(seen[fed:stop], self._early)
                fed = stop
        self._feed_frames(seen[fed:], self._early)

    def _feed_frames(self, data: bytes, messages: list[str | bytes]) -> None:
        for part in self._frames.split_untrusted(data):
            if isinstance(part, memoryview):
                self._feed(bytes(part), messages)
            elif self._ending is None:  # RFC 6455 5.5.1: nothing is said after a close frame
                if len(part) <= self._max_message:
                    messages.append(part)
                else:
                    self.oversized += 1

    def _feed(self, data: bytes, messages: list[str | bytes]) -> None:
        try:
            self._ws.receive_data(data)
            for event in self._ws.events():
                self._look_at_state()
                self._on_event(event, messages)
        except (RemoteProtocolError, LocalProtocolError) as error:
            raise AgentLost("agent_protocol", _why(error)) from error
        finally:
            self._look_at_state()

    def _look_at_state(self) -> None:
        self.is_open = not self._closed and self._ws.state is ConnectionState.OPEN

    def _on_event(self, event: Event, messages: list[str | bytes]) -> None:
        match event:
            case TextMessage() | BytesMessage():
                self._on_message(event, messages)
            case Ping():
                if self.is_open and len(self._backlog) < _MAX_PONG_BACKLOG:
                    self._write(self._ws.send(event.response()))
            case CloseConnection() if self._ws.state is ConnectionState.OPEN:
                # wsproto could not parse what came; RFC 6455 7.1.7: fail the connection.
                self.begin_close(event.code)
                raise AgentLost("agent_protocol", f"WebSocket error {int(event.code)}")
            case CloseConnection():
                if self._ws.state is ConnectionState.REMOTE_CLOSING:
                    self._write(self._ws.send(event.response()))
                # Messages before it in the same read are delivered first.
                code = int(event.code)
                self._ending = AgentLost(
                    "agent_closed", f"WebSocket code {code}", code=code, text=event.reason or ""
                )
            case RejectConnection():
                status = event.status_code
                raise AgentLost("agent_refused", f"HTTP status {status}", status=status)
            case AcceptConnection():
                pass
            case _:
                pass  # pongs

    def _on_message(self, event: TextMessage | BytesMessage, messages: list[str | bytes]) -> None:
        whole = event.message_finished and not self._partial and not self._skipping
        if whole and len(event.data) <= self._max_message:
            messages.append(event.data if isinstance(event.data, str) else bytes(event.data))
            return
        if len(self._partial) + len(event.data) > self._max_message:
            self._skipping = True
            self._partial.clear()
        elif not self._skipping:
            self._partial += event.data.encode() if isinstance(event.data, str) else event.data
        if event.message_finished:
            if self._skipping:
                self.oversized += 1
            else:
                messages.append(bytes(self._partial))
            self._skipping = False
            self._partial = bytearray()

    def _write(self, frame: bytes) -> None:
        self._write_raw(frame if self._tls is None else self._tls.encrypt(frame))

    def _write_raw(self, data: bytes) -> None:
        if self._backlog:
            self._backlog += data
        elif data:
            sent = _send(self._socket, data)
            if sent < len(data):
                self._keep(data[sent:])

    def _keep(self, data: bytes) -> None:
        self._backlog += data
        self._blocked.set()

    def _flush(self) -> None:
        del self._backlog[: _send(self._socket, self._backlog)]


class _Tls:
    """TLS over memory buffers, so that writing needs no await."""

    __slots__ = ("_incoming", "_object", "_outgoing", "ended")

    def __init__(self, context: ssl.SSLContext, host: str) -> None:
        self._incoming = ssl.MemoryBIO()
        self._outgoing = ssl.MemoryBIO()
        self._object = context.wrap_bio(self._incoming, self._outgoing, server_hostname=host)
        self.ended = False
        """The peer said close_notify."""

    async def shake_hands(self, sock: socket.socket) -> None:
        """Raises OSError (ssl.SSLError is one)."""
        done = False
        while not done:
            try:
                self._object.do_handshake()
                done = True
            except ssl.SSLWantReadError:
                pass
            out = self.take()
            while out:  # at most a few KiB, on an empty socket buffer
                await trio.lowlevel.wait_writable(sock)
                out = out[_send(sock, out) :]
            if not done:
                data = await _read(sock)
                if not data:
                    raise ConnectionResetError("the connection ended during the TLS handshake")
                self._incoming.write(data)

    def encrypt(self, data: bytes) -> bytes:
        try:
            self._object.write(data)
        except ssl.SSLError:
            return b""  # the peer ended TLS, which `receive` is told as well
        return self._outgoing.read()

    def decrypt(self, data: bytes) -> bytes:
        """Raises ssl.SSLError."""
        self._incoming.write(data)
        plain = []
        try:
            while piece := self._object.read(_READ_BYTES):
                plain.append(piece)
            self.ended = True
        except ssl.SSLWantReadError:
            pass
        except ssl.SSLZeroReturnError:
            self.ended = True
        return b"".join(plain)

    def take(self) -> bytes:
        """What TLS itself wants to send."""
        return self._outgoing.read()


@cache
def _default_tls() -> ssl.SSLContext:
    return ssl.create_default_context()  # reads the system's certificates: tens of milliseconds


async def _read(sock: socket.socket) -> bytes:
    while True:
        await trio.lowlevel.wait_readable(sock)
        try:
            return sock.recv(_READ_BYTES)
        except (BlockingIOError, InterruptedError):
            continue


def _send(sock: socket.socket, data: bytes | bytearray) -> int:
    try:
        return sock.send(data)
    except (BlockingIOError, InterruptedError):
        return 0
    except OSError:
        return len(data)  # the connection is gone, which `receive` is told as well


def _why(error: BaseException) -> str:
    return (str(error) or type(error).__name__)[:_MAX_DETAIL]
