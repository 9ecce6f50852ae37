"""The client of the cluster's internal HTTP: HTTP/1.1 on h11, over connections that are kept.

A set-up asks a transceiver once, and a general client's pool, tracing and streams cost as much as all else
that signaling does for it. This knows what is needed: one request, one answer of bounded length.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Sequence
from typing import Final, NamedTuple

import h11
import trio

from voicegate.proto.address import split_host_port

MAX_CONTENT: Final = 1 << 20
"""Bytes of an answer: SDP, a call's status. Those have a few thousand."""
MAX_IDLE: Final = 64
"""Connections kept: a burst of set-ups to a few dozen transceivers."""
_READ_BYTES: Final = 65_536


class HttpError(Exception):
    """No answer: the connection, or what came over it, is broken."""


class HttpResponse(NamedTuple):
    status: int
    content: bytes


class HttpClient:
    """Asks `http://ip:port` servers. One Trio thread; a request may be cancelled at any time."""

    def __init__(self, *, connect_seconds: float, keep_seconds: float) -> None:
        """`keep_seconds`: how long an idle connection is kept; less than the server does, so that it is us
        who close it."""
        self._connect_seconds = connect_seconds
        self._keep_seconds = keep_seconds
        self._idle: deque[tuple[float, str, _Connection]] = deque()
        """Since when, to where; the longest idle first."""

    async def request(
        self, method: str, address: str, path: str, headers: Sequence[tuple[str, str]], body: bytes = b""
    ) -> HttpResponse:
        """One request and its whole answer, which is waited for without a limit. Raises HttpError, also for
        an answer above MAX_CONTENT.

        It is not tried again: the server may have done what was asked when the answer was lost.
        """
        connection = self._take(address)
        try:
            if connection is None:
                connection = await self._connect(address)
            response = await connection.exchange(method, path, [("Host", address), *headers], body)
            if connection.reusable():
                self._keep(address, connection)
                connection = None
        except (OSError, ValueError, trio.BrokenResourceError, trio.TooSlowError, h11.ProtocolError) as error:
            raise HttpError(f"{type(error).__name__}: {error}") from error
        finally:
            if connection is not None:
                connection.close()
        return response

    async def _connect(self, address: str) -> _Connection:
        with trio.fail_after(self._connect_seconds):
            return _Connection(await trio.open_tcp_stream(*split_host_port(address)))

    def close(self) -> None:
        """Close what is idle."""
        while self._idle:
            self._idle.popleft()[2].close()

    def _take(self, address: str) -> _Connection | None:
        self._expire()
        for place in range(len(self._idle) - 1, -1, -1):
            _, where, connection = self._idle[place]
            if where == address:
                del self._idle[place]
                if connection.is_idle():
                    return connection
                connection.close()  # by the server, which has restarted or thought it was time
        return None

    def _keep(self, address: str, connection: _Connection) -> None:
        self._idle.append((trio.current_time(), address, connection))
        self._expire()

    def _expire(self) -> None:
        oldest = trio.current_time() - self._keep_seconds
        while self._idle and (self._idle[0][0] <= oldest or len(self._idle) > MAX_IDLE):
            self._idle.popleft()[2].close()


class _Connection:
    """One connection to a server; one exchange at a time."""

    def __init__(self, stream: trio.SocketStream) -> None:
        self._stream = stream
        self._http = h11.Connection(h11.CLIENT)

    async def exchange(
        self, method: str, path: str, headers: list[tuple[str, str]], body: bytes
    ) -> HttpResponse:
        """Raises OSError, trio.BrokenResourceError or h11.ProtocolError."""
        http = self._http
        request = h11.Request(
            method=method, target=path, headers=[*headers, ("Content-Length", str(len(body)))]
        )
        # Of h11's three pieces one segment: the server reads it in one go.
        pieces = (
            http.send(request),
            http.send(h11.Data(body)) if body else b"",
            http.send(h11.EndOfMessage()),
        )
        await self._stream.send_all(b"".join(piece for piece in pieces if piece))
        status, content = 0, bytearray()
        while True:
            event = http.next_event()
            if event is h11.NEED_DATA:
                http.receive_data(await self._stream.receive_some(_READ_BYTES))
            elif isinstance(event, h11.Response):
                status = event.status_code
            elif isinstance(event, h11.Data):
                content += event.data
                if len(content) > MAX_CONTENT:
                    raise h11.RemoteProtocolError(f"an answer of more than {MAX_CONTENT} bytes")
            elif isinstance(event, h11.EndOfMessage):
                return HttpResponse(status, bytes(content))

    def reusable(self) -> bool:
        """Whether both sides are through with the exchange and keep the connection."""
        if self._http.our_state is not h11.DONE or self._http.their_state is not h11.DONE:
            return False
        self._http.start_next_cycle()
        return True

    def is_idle(self) -> bool:
        """Whether nothing came since, in particular no end."""
        return not self._stream.socket.is_readable()

    def close(self) -> None:
        self._stream.socket.close()
