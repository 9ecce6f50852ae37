"""One thread, one UDP socket a client, one wheel: what moves the datagrams of all clients.

Every client needs an address of its own, so there is nothing to batch: recvmmsg and sendmmsg take one socket
each, and on one client's socket there is one packet at a time. What can be saved is the rest: one epoll for
all, one timer for all, no task switch. Arrivals are timed by the kernel (Linux), so that a busy driver does
not make the gateway look uneven; how late its own timers are is in `lateness`.
"""

from __future__ import annotations

import heapq
import os
import selectors
import socket
import struct
import sys
import time
from collections import Counter, deque
from collections.abc import Callable
from dataclasses import dataclass
from typing import Final

from voicegate.load.client import LightClient
from voicegate.load.figures import Histogram
from voicegate.load.impairment import Impairment
from voicegate.load.offer import Address
from voicegate.load.wheel import Wheel
from voicegate.net.udp import bind_udp

MAX_DATAGRAM: Final = 2048
MAX_HELD: Final = 200_000
"""Datagrams on the impaired paths: 200 ms of 10,000 calls."""
_STAMP = struct.Struct("@QQ")
_ANCILLARY = socket.CMSG_SPACE(_STAMP.size) if hasattr(socket, "CMSG_SPACE") else 0


@dataclass(slots=True, eq=False)
class Leg:
    """One client with its socket."""

    client: LightClient
    sock: socket.socket
    up: Impairment | None
    down: Impairment | None
    slot: int = 0
    connected: bool = False
    gone: bool = False


class Driver:
    """Belongs to the thread that calls `turn`; only `call_soon` may be called from others."""

    def __init__(self) -> None:
        self.drops: Counter[str] = Counter()
        """Datagrams that were not sent or held, by reason; "impaired" ones are lost on purpose."""
        self.lateness = Histogram()
        """How much later than it should each client's turn came, in seconds."""
        self.on_closed: Callable[[LightClient], None] = lambda client: None
        """Called when a client is over by itself, after its socket was closed."""
        self.on_connected: Callable[[LightClient], None] = lambda client: None
        self._legs: dict[LightClient, Leg] = {}
        self._wheel: Wheel[Leg] = Wheel(time.monotonic())
        self._selector = selectors.DefaultSelector()
        self._wake_read, self._wake_write = os.pipe()
        os.set_blocking(self._wake_read, False)
        os.set_blocking(self._wake_write, False)
        self._selector.register(self._wake_read, selectors.EVENT_READ)
        self._inbox: deque[Callable[[], None]] = deque()
        self._held: list[tuple[float, int, Leg, bytes, Address, bool]] = []
        self._order = 0

    def add(
        self,
        client: LightClient,
        sock: socket.socket,
        up: Impairment | None = None,
        down: Impairment | None = None,
    ) -> None:
        """Drive this client, which has its answer; the socket is the driver's from here on."""
        sock.setblocking(False)
        now = time.monotonic()
        leg = Leg(client, sock, up, down)
        leg.slot = self._wheel.add(leg, now)
        self._legs[client] = leg
        self._selector.register(sock, selectors.EVENT_READ, leg)
        client.handle_timeout(now)
        self._flush(leg, now)

    def remove(self, client: LightClient) -> None:
        """Close the client and its socket; what it says at its end is not impaired."""
        leg = self._legs.get(client)
        if leg is None:
            return
        client.close(time.monotonic())
        leg.up = None
        leg.gone = True
        self._flush(leg, time.monotonic())
        self._drop(leg)

    def flush(self, client: LightClient) -> None:
        """Send what the client has, after somebody has used it from outside, in this thread."""
        leg = self._legs.get(client)
        if leg is not None:
            self._flush(leg, time.monotonic())

    def call_soon(self, action: Callable[[], None]) -> None:
        """Have it called in the next turn. From any thread."""
        self._inbox.append(action)
        try:
            os.write(self._wake_write, b"x")
        except OSError:
            pass  # a full pipe wakes as well; a closed driver has no use for it

    def turn(self, until: float) -> None:
        """Wait for something to do, at most until then, and do it."""
        due = self._wheel.next_deadline()
        deadline = until if due is None else min(until, due)
        if self._held:
            deadline = min(deadline, self._held[0][0])
        ready = self._selector.select(max(0.0, deadline - time.monotonic()))
        if ready:
            now = time.monotonic()
            shift = now - time.time()
            for key, _ in ready:
                if key.data is None:
                    self._take_inbox()
                elif not key.data.gone:
                    self._receive(key.data, now, shift)
        now = time.monotonic()
        while self._held and self._held[0][0] <= now:
            self._deliver(*heapq.heappop(self._held), now)
        for leg, at in self._wheel.due(now):
            self.lateness.add(now - at)
            leg.client.handle_timeout(now)
            self._flush(leg, now)

    def close(self) -> None:
        """Close every client and everything else."""
        for client in list(self._legs):
            self.remove(client)
        self._selector.close()
        os.close(self._wake_read)
        os.close(self._wake_write)

    def _take_inbox(self) -> None:
        try:
            os.read(self._wake_read, 4096)
        except BlockingIOError:
            pass
        while self._inbox:
            self._inbox.popleft()()

    def _receive(self, leg: Leg, now: float, shift: float) -> None:
        """`shift`: monotonic less calendar time, for the kernel's stamps."""
        # One a turn: the next read would nearly always find nothing, and what is left makes epoll come back.
        try:
            data, ancillary, _, address = leg.sock.recvmsg(MAX_DATAGRAM, _ANCILLARY)
        except BlockingIOError:
            return
        except OSError:  # an ICMP error about what was sent: the next read has the next datagram
            self.drops["unreachable"] += 1
            return
        at = now
        if ancillary:
            seconds, nanoseconds = _STAMP.unpack_from(ancillary[0][2])
            at = min(now, seconds + nanoseconds * 1e-9 + shift)
        if leg.down is None:
            leg.client.receive_datagram(data, address[:2], at)
            self._flush(leg, now)
        else:
            self._hold(leg, leg.down, data, address[:2], at, False)

    def _flush(self, leg: Leg, now: float) -> None:
        client = leg.client
        while (out := client.poll_transmit()) is not None:
            if leg.up is None:
                self._send(leg.sock, *out)
            else:
                self._hold(leg, leg.up, *out, now, True)
        if client.next_frame != float("inf") and not leg.connected:
            leg.connected = True
            self._wheel.remove(leg, leg.slot)
            leg.slot = self._wheel.add(leg, client.next_frame)
            self.on_connected(client)
            client.handle_timeout(now)
            self._flush(leg, now)
        if client.closed and not leg.gone:
            leg.gone = True
            self._drop(leg)
            self.on_closed(client)

    def _hold(
        self, leg: Leg, path: Impairment, data: bytes, address: Address, now: float, outward: bool
    ) -> None:
        at = path.deliver_at(now)
        if at is None:
            self.drops["impaired"] += 1
        elif at <= now:
            self._deliver(at, 0, leg, data, address, outward, now)
        elif len(self._held) >= MAX_HELD:
            self.drops["held"] += 1
        else:
            self._order += 1
            heapq.heappush(self._held, (at, self._order, leg, data, address, outward))

    def _deliver(
        self, at: float, _order: int, leg: Leg, data: bytes, address: Address, outward: bool, now: float
    ) -> None:
        """The fields of a held datagram, in their order."""
        if leg.gone:
            return
        if outward:
            self._send(leg.sock, data, address)
        else:
            leg.client.receive_datagram(data, address, at)
            self._flush(leg, now)

    def _send(self, sock: socket.socket, data: bytes, address: Address) -> None:
        try:
            sock.sendto(data, address)
        except BlockingIOError:
            self.drops["send_full"] += 1
        except OSError:  # no route, or an ICMP error of an earlier datagram
            self.drops["send_failed"] += 1

    def _drop(self, leg: Leg) -> None:
        self._wheel.remove(leg, leg.slot)
        self._selector.unregister(leg.sock)
        leg.sock.close()
        del self._legs[leg.client]


def open_socket(remote: str) -> socket.socket:
    """A socket for a client whose far end has this numeric address; the kernel times what comes. OSError."""
    return bind_udp("::" if ":" in remote else "0.0.0.0", 0, stamps=sys.platform == "linux")
