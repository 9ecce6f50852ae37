"""Clients of ICE-TCP (RFC 6544): all TCP connections of one relay worker, behind one descriptor.

Theory of operation. The data plane's thread owns a `Streams` and watches `fileno()`, an epoll of its own.
When that is ready it calls `poll`, gives each packet to the relay's rules, and calls `admit` for a client
whose packet they let through. That is what a connection lives on:

    accepted ──► stranger ── a packet is admitted ──► admitted ──┐ each admitted packet: `idle_seconds` more
                    │ 5 s, or 2 KiB                     ▲   │    │
                    └──► closed ◄───────────────────────│───┘    │
                           half a frame or a full queue └────────┘
                           for 10 s, nothing admitted, broken

Nothing is ever sent to a stranger. One that is in the way when the table is full is closed first: who is
genuine brings a check along with the connection, and is a stranger for a moment only.

A TCP connection holds on to what is late, and late audio is worth nothing. So the kernel is given little
room, a connection has a short queue behind it, and what does not fit is dropped whole and counted, as UDP
would. Nothing here waits, and the errors of a connection end that connection only. Connections are closed by
a reset: no half-dead socket keeps memory, and a client that is still there notices at once.
"""

from __future__ import annotations

import contextlib
import selectors
import socket
import struct
from collections import Counter, OrderedDict, deque
from collections.abc import Sequence

from voicegate.proto.address import (
    IPV4_LENGTH,
    ClientAddress,
    over_tcp,
    pack_address,
    parse_ip,
    without_transport,
)
from voicegate.proto.errors import BadPacket
from voicegate.proto.rfc4571 import Deframer, frame

STRANGER_SECONDS = 5.0
"""How long a connection may take to bring a packet that is admitted: three retransmissions of its first
segment (RFC 6298 section 2: 1 s, then doubled)."""
STRANGER_BYTES = 2048
"""What it may bring until then: a check has 100 to 200 bytes, and up to 1,400 are looked at."""
STALL_SECONDS = 10.0
"""How long a frame may take once it has begun, either way. Beyond it the call has been silent so long that
people have hung up; the client's ICE says "disconnected" after 5 s or less and dials again."""
MAX_QUEUED = 16
"""Frames per connection that wait for the kernel: SCTP's first burst is 10, and there is sound beside it;
of sound alone it is 0.3 s."""
SOCKET_BUFFER = 16 << 10
"""Bytes asked for each way; Linux doubles it, so a connection can hold 64 KiB of the kernel's memory.
Measured with a client that reads nothing: of packets of 150 bytes it took 17 kB, and 2.8 MB by default."""
UNSENT_BYTES = 2048
"""How much the kernel takes beyond what the path takes. Measured so: 4 kB, 0.6 s of sound and not 2.2 s."""
BACKLOG = 256
"""Connections that wait to be accepted: 16 turns of the data plane; beyond it the client's SYN is repeated
after a second."""
TABLE_SHARE = 10
"""At most a tenth of the connections are of one source (an IPv4 address, an IPv6 /64), as of the relay's
flows."""
MIN_SHARE = 8
"""And never less than a few: a household."""
ACCEPTS_PER_POLL = 16
PACKETS_PER_POLL = 64
"""As many as a batch of UDP brings: the two take turns."""
PACKETS_PER_READ = 32
READ_BYTES = 2048
"""Of one connection in one poll: 20 packets of sound. More than 32 packets in it are no call's."""
SWEEP_SHARE = 16
"""`expire` looks at this fraction of the connections per call, so that a large table makes no pause."""

_NEVER = float("inf")
_RESET = struct.pack("ii", 1, 0)


def open_listener(host: str, port: int, *, reuse_port: bool) -> socket.socket:
    """A listening socket for `Streams` on a numeric address; port 0: a free one. OSError when it cannot be
    had.

    `reuse_port`: several processes listen on the same address, each with a queue of its own. What waits in
    the queue of one that ends is lost; clients try again. SO_REUSEADDR gives a restarted relay its port at
    once.
    """
    address = parse_ip(host)
    sock = socket.socket(socket.AF_INET if address.version == 4 else socket.AF_INET6, socket.SOCK_STREAM)
    try:
        sock.setblocking(False)
        sock.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        if reuse_port:
            sock.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEPORT, 1)
        if address.version == 6:
            sock.setsockopt(socket.IPPROTO_IPV6, socket.IPV6_V6ONLY, 1)
        # Connections inherit these. The receive buffer has to be known before the handshake anyway.
        sock.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, SOCKET_BUFFER)
        sock.setsockopt(socket.SOL_SOCKET, socket.SO_SNDBUF, SOCKET_BUFFER)
        sock.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
        if hasattr(socket, "TCP_NOTSENT_LOWAT"):
            sock.setsockopt(socket.IPPROTO_TCP, socket.TCP_NOTSENT_LOWAT, UNSENT_BYTES)
        if hasattr(socket, "TCP_DEFER_ACCEPT"):
            # Who connects and says nothing stays in the kernel, where it costs least.
            sock.setsockopt(socket.IPPROTO_TCP, socket.TCP_DEFER_ACCEPT, int(STRANGER_SECONDS))
        sock.bind((str(address), port))
        sock.listen(BACKLOG)
    except BaseException:
        sock.close()
        raise
    return sock


class Streams:
    """The TCP connections of one thread; `drops`, `closed` and `statistics` may be read by others."""

    def __init__(
        self, listeners: Sequence[socket.socket], *, max_connections: int, idle_seconds: float
    ) -> None:
        """`listeners` are of `open_listener`, and the owner's to close."""
        self.drops: Counter[str] = Counter()
        """Packets not given on, by reason."""
        self.closed: Counter[str] = Counter()
        """Connections that ended or were refused, by reason."""
        self._selector = selectors.DefaultSelector()
        self._max_connections = max_connections
        self._share = max(MIN_SHARE, max_connections // TABLE_SHARE)
        self._idle_seconds = idle_seconds
        # Strangers by age; the admitted by when `expire` last looked.
        self._strangers: OrderedDict[ClientAddress, _Connection] = OrderedDict()
        self._admitted: OrderedDict[ClientAddress, _Connection] = OrderedDict()
        self._sources: Counter[bytes] = Counter()
        self._ready: deque[tuple[selectors.SelectorKey, int]] = deque()
        """What the last look found and no poll had room for: it has its turn before the next look, so that
        nobody is always last."""
        self._paused: list[socket.socket] = list(listeners)
        """Listeners that are not watched: an accept failed."""
        self._now = 0.0
        self._counts = dict.fromkeys(("accepted", "packets_in", "packets_out", "bytes_in", "bytes_out"), 0)
        self._resume()

    def fileno(self) -> int:
        """Readable when `poll` has something to do."""
        return self._selector.fileno()

    def poll(self, now: float) -> list[tuple[ClientAddress, bytes]]:
        """Whole packets of clients, at most 64; the descriptor stays ready when there are more. Accepts, and
        goes on with writes that were blocked, as well."""
        self._now = now
        packets: list[tuple[ClientAddress, bytes]] = []
        if not self._ready:
            self._ready.extend(self._selector.select(0))
        while self._ready and len(packets) + PACKETS_PER_READ <= PACKETS_PER_POLL:
            key, events = self._ready.popleft()
            connection = key.data
            if connection is None:
                assert isinstance(key.fileobj, socket.socket), "it was registered as one"
                self._accept(key.fileobj, now)
                continue
            if events & selectors.EVENT_WRITE and connection.sock.fileno() >= 0:
                self._flush(connection, now)
            if events & selectors.EVENT_READ and connection.sock.fileno() >= 0:
                packets += [(connection.client, packet) for packet in self._receive(connection, now)]
        self._counts["packets_in"] += len(packets)
        return packets

    def admit(self, client: ClientAddress) -> None:
        """The relay let a packet of this client through that the last `poll` gave."""
        connection = self._admitted.get(client)
        if connection is None:
            connection = self._strangers.pop(client, None)
            if connection is None:
                return
            self._admitted[client] = connection
        connection.deadline = self._now + self._idle_seconds

    def send(self, client: ClientAddress, payload: bytes | memoryview, now: float) -> bool:
        """Send a packet, or keep it for a moment; False: dropped and counted. Never waits or raises."""
        connection = self._admitted.get(client)
        if connection is None:
            self.drops["no_connection"] += 1
            return False
        if len(connection.out) >= MAX_QUEUED:
            self.drops["late"] += 1
            return False
        data = frame(payload)
        connection.out.append(data)
        if len(connection.out) == 1:
            connection.blocked = now
            if not self._flush(connection, now):
                self.drops["no_connection"] += 1
                return False
            if connection.out:
                self._watch(connection, selectors.EVENT_READ | selectors.EVENT_WRITE)
        self._counts["packets_out"] += 1
        self._counts["bytes_out"] += len(data)
        return True

    def expire(self, now: float) -> None:
        """Close connections whose time is over, some of them at a time; call it a few times a second."""
        self._now = now
        self._resume()
        while self._strangers:
            connection = next(iter(self._strangers.values()))
            if now < connection.deadline:
                break
            self._end(connection, "stranger")
        for _ in range(min(len(self._admitted), 256 + len(self._admitted) // SWEEP_SHARE)):
            client, connection = next(iter(self._admitted.items()))
            if now >= connection.deadline:
                self._end(connection, "idle")
            elif now - min(connection.begun, connection.blocked) >= STALL_SECONDS:
                self._end(connection, "stalled")
            else:
                self._admitted.move_to_end(client)

    def close(self) -> None:
        """End every connection and stop watching the listeners."""
        for connection in (*self._strangers.values(), *self._admitted.values()):
            self._end(connection, "shutdown")
        self._ready.clear()
        self._selector.close()

    def statistics(self) -> dict[str, int]:
        """Connections now, and counts since the start; bytes with the frames' lengths."""
        return {"admitted": len(self._admitted), "strangers": len(self._strangers), **self._counts}

    def _accept(self, listener: socket.socket, now: float) -> None:
        for _ in range(ACCEPTS_PER_POLL):
            try:
                sock, address = listener.accept()
            except (BlockingIOError, ConnectionAbortedError):
                return
            except OSError:
                # No descriptor is free, as a rule. The listener stays ready, and would keep the thread busy.
                self.drops["accept"] += 1
                self._selector.unregister(listener)
                self._paused.append(listener)
                return
            self._counts["accepted"] += 1
            self._take(sock, over_tcp(pack_address(*address[:2])), now)

    def _take(self, sock: socket.socket, client: ClientAddress, now: float) -> None:
        source = _source(client)
        refusal = ""
        if self._sources[source] >= self._share:
            refusal = "source_connections"
        elif client in self._strangers or client in self._admitted:
            refusal = "address_in_use"  # by way of another listener
        elif len(self._strangers) + len(self._admitted) >= self._max_connections:
            if self._strangers:
                self._end(next(iter(self._strangers.values())), "displaced")
            else:
                refusal = "table_full"
        if refusal:
            self.closed[refusal] += 1
            _reset(sock)
            return
        sock.setblocking(False)
        connection = _Connection(sock, client, now + STRANGER_SECONDS)
        self._strangers[client] = connection
        self._sources[source] += 1
        self._selector.register(sock, selectors.EVENT_READ, connection)

    def _receive(self, connection: _Connection, now: float) -> list[bytes]:
        limit = READ_BYTES
        if connection.client in self._strangers:
            limit = min(limit, STRANGER_BYTES - connection.received)
            if not limit:
                self._end(connection, "stranger")
                return []
        try:
            data = connection.sock.recv(limit)
            packets = connection.deframer.receive_untrusted(data)
        except BlockingIOError:
            return []
        except OSError:
            self._end(connection, "broken")
            return []
        except BadPacket as error:
            self._end(connection, error.reason)
            return []
        if not data:
            self._end(connection, "peer")
            return []
        connection.received += len(data)
        self._counts["bytes_in"] += len(data)
        if not connection.deframer.inside_frame():
            connection.begun = _NEVER
        elif packets or connection.begun == _NEVER:
            connection.begun = now
        if len(packets) > PACKETS_PER_READ:
            self.drops["burst"] += len(packets) - PACKETS_PER_READ
            del packets[PACKETS_PER_READ:]
        return packets

    def _flush(self, connection: _Connection, now: float) -> bool:
        """Write what the kernel takes; False: the connection broke and is closed."""
        out = connection.out
        while out:
            try:
                sent = connection.sock.send(out[0])
            except BlockingIOError:
                return True
            except OSError:
                self._end(connection, "broken")
                return False
            if sent < len(out[0]):
                out[0] = out[0][sent:]
                return True
            out.popleft()
            connection.blocked = now
        connection.blocked = _NEVER
        if connection.watched & selectors.EVENT_WRITE:
            self._watch(connection, selectors.EVENT_READ)
        return True

    def _watch(self, connection: _Connection, events: int) -> None:
        connection.watched = events
        self._selector.modify(connection.sock, events, connection)

    def _resume(self) -> None:
        for listener in self._paused:
            self._selector.register(listener, selectors.EVENT_READ, None)
        self._paused.clear()

    def _end(self, connection: _Connection, reason: str) -> None:
        self.closed[reason] += 1
        if self._strangers.pop(connection.client, None) is None:
            del self._admitted[connection.client]
        source = _source(connection.client)
        self._sources[source] -= 1
        if not self._sources[source]:
            del self._sources[source]
        self._selector.unregister(connection.sock)
        _reset(connection.sock)


class _Connection:
    """One TCP connection."""

    __slots__ = ("begun", "blocked", "client", "deadline", "deframer", "out", "received", "sock", "watched")

    def __init__(self, sock: socket.socket, client: ClientAddress, deadline: float) -> None:
        self.sock = sock
        self.client = client
        self.deadline = deadline
        """When it is closed unless a packet is admitted."""
        self.deframer = Deframer()
        self.received = 0
        """Bytes."""
        self.begun = _NEVER
        """Since when the rest of a frame is waited for."""
        self.out: deque[bytes] = deque()
        """Frames that wait for the kernel; the first may be the rest of one."""
        self.blocked = _NEVER
        """Since when the first of them waits."""
        self.watched: int = selectors.EVENT_READ


def _source(client: ClientAddress) -> bytes:
    """Whom the share counts as one."""
    address = without_transport(client)
    return address[:4] if len(address) == IPV4_LENGTH else address[:8]


def _reset(sock: socket.socket) -> None:
    with contextlib.suppress(OSError):
        sock.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, _RESET)
    sock.close()
