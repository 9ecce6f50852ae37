"""A client's side of ICE-TCP for clients that know UDP only: datagrams here, RFC 4571 over TCP there.

Every client address gets a TCP connection of its own, opened by its first datagram, as a browser opens one
when it begins its checks. A connection that the server closes is opened again by the next datagram.

    with TcpPipe(("127.0.0.1", 8443)) as pipe:
        ...  # talk UDP to pipe.address
"""

from __future__ import annotations

import contextlib
import selectors
import socket
import threading
from dataclasses import dataclass, field
from typing import Self

from voicegate.proto.rfc4571 import Deframer, frame

Address = tuple[str, int]


@dataclass
class _Connection:
    sock: socket.socket
    client: Address
    deframer: Deframer = field(default_factory=Deframer)


@dataclass
class TcpPipe:
    """A context manager around the pipe's thread."""

    target: Address
    address: Address = ("", 0)
    opened: int = 0
    """TCP connections so far."""

    def __enter__(self) -> Self:
        self._udp = socket.socket(socket.AF_INET, socket.SOCK_DGRAM)
        self._udp.bind(("127.0.0.1", 0))
        self.address = self._udp.getsockname()
        self._connections: dict[Address, _Connection] = {}
        self._selector = selectors.DefaultSelector()
        self._selector.register(self._udp, selectors.EVENT_READ)
        self._running = True
        self._cutting = threading.Event()
        self._thread = threading.Thread(target=self._run, name="tcp-pipe", daemon=True)
        self._thread.start()
        return self

    def __exit__(self, *_: object) -> None:
        self._running = False
        self._thread.join(10)
        for connection in list(self._connections.values()):
            self._drop(connection)
        self._selector.close()
        self._udp.close()

    def cut(self) -> None:
        """Break every connection that is open now, as a NAT does that has forgotten them."""
        self._cutting.set()

    def _run(self) -> None:
        while self._running:
            if self._cutting.is_set():
                self._cutting.clear()
                for connection in list(self._connections.values()):
                    self._drop(connection)
            for key, _ in self._selector.select(0.1):
                if key.data is None:
                    self._upstream(*self._udp.recvfrom(4096))
                else:
                    self._downstream(key.data)

    def _upstream(self, datagram: bytes, client: Address) -> None:
        connection = self._connections.get(client)
        try:
            if connection is None:
                sock = socket.create_connection(self.target, timeout=2)
                sock.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
                self.opened += 1
                connection = self._connections[client] = _Connection(sock, client)
                self._selector.register(sock, selectors.EVENT_READ, connection)
            connection.sock.sendall(frame(datagram))
        except OSError:
            if connection is not None:
                self._drop(connection)

    def _downstream(self, connection: _Connection) -> None:
        try:
            data = connection.sock.recv(65536)
        except OSError:
            data = b""
        if not data:
            self._drop(connection)
            return
        for packet in connection.deframer.receive_untrusted(data):
            with contextlib.suppress(ConnectionRefusedError):
                self._udp.sendto(packet, connection.client)

    def _drop(self, connection: _Connection) -> None:
        if self._connections.pop(connection.client, None) is not None:
            self._selector.unregister(connection.sock)
            connection.sock.close()
