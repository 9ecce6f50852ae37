"""Two ends of SCTP, or of data channels over it, on a network of virtual time: delay, loss, reordering,
duplication."""

from __future__ import annotations

import heapq
import random
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any, Protocol

from voicegate.proto.errors import BadPacket
from voicegate.proto.sctp import Association, Disconnected, Message


class Peer(Protocol):
    """What the network needs of an end."""

    def receive_datagram(self, data: bytes, now: float) -> None: ...
    def handle_timeout(self, now: float) -> None: ...
    def poll_transmit(self) -> bytes | None: ...
    def poll_event(self) -> Any: ...
    def next_deadline(self) -> float | None: ...


def entropy(seed: int) -> bytes:
    return random.Random(seed).randbytes(40)


def association(seed: int = 1, now: float = 0.0) -> Association:
    return Association(entropy(seed), now)


@dataclass
class Path:
    """One direction is half of `rtt`; the seeded misfortunes are per packet."""

    rtt: float = 0.04
    loss: float = 0.0
    duplicate: float = 0.0
    jitter: float = 0.0
    seed: int = 0


TERRIBLE = Path(rtt=0.04, loss=0.05, duplicate=0.05, jitter=0.02, seed=7)


@dataclass
class World:
    """Runs two ends until nothing is left to happen or `limit` seconds of virtual time have passed."""

    left: Peer
    right: Peer
    path: Path = field(default_factory=Path)
    lost: Callable[[int, bytes], bool] | None = None
    """(0 = to the left, 1 = to the right; packet): True drops it, in place of chance."""
    busy: Callable[[float], None] | None = None
    """Called after every step, to send more."""
    now: float = 0.0
    events: tuple[list[Any], list[Any]] = field(default_factory=lambda: ([], []))
    dropped: tuple[list[str], list[str]] = field(default_factory=lambda: ([], []))
    packets: list[int] = field(default_factory=lambda: [0, 0])
    """Sent by each side."""
    listening: tuple[bool, bool] = (True, True)
    """Which side's owner takes its events."""
    queue: list[tuple[float, int, int, bytes]] = field(default_factory=list)
    order: int = 0

    def __post_init__(self) -> None:
        self.chance = random.Random(self.path.seed)

    def inject(self, to: int, data: bytes, at: float) -> None:
        self.order += 1
        heapq.heappush(self.queue, (at, self.order, to, data))

    def run(self, limit: float = 60.0, until: Callable[[], bool] | None = None) -> World:
        sides = (self.left, self.right)
        while True:
            if self.busy:
                self.busy(self.now)
            for side in (0, 1):
                self._drain(side)
            if until and until():
                return self
            deadlines = [d for peer in sides if (d := peer.next_deadline()) is not None]
            upcoming = [*deadlines, *(entry[0] for entry in self.queue[:1])]
            if not upcoming or min(upcoming) > limit:
                self.now = max(self.now, limit) if upcoming else self.now
                return self
            self.now = max(self.now, min(upcoming))
            if self.queue and self.queue[0][0] <= self.now:
                _, _, to, data = heapq.heappop(self.queue)
                try:
                    sides[to].receive_datagram(data, self.now)
                except BadPacket as error:
                    self.dropped[to].append(error.reason)
            else:
                for peer in sides:
                    deadline = peer.next_deadline()
                    if deadline is not None and deadline <= self.now:
                        peer.handle_timeout(self.now)

    def messages(self, side: int) -> list[Message]:
        return [event for event in self.events[side] if isinstance(event, Message)]

    def ends(self) -> tuple[list[str], list[str]]:
        left, right = ([e.reason for e in seen if isinstance(e, Disconnected)] for seen in self.events)
        return left, right

    def _drain(self, side: int) -> None:
        peer: Peer = (self.left, self.right)[side]
        while self.listening[side] and (event := peer.poll_event()) is not None:
            self.events[side].append(event)
        while (data := peer.poll_transmit()) is not None:
            self.packets[side] += 1
            for _ in range(2 if self.chance.random() < self.path.duplicate else 1):
                if self.lost(1 - side, data) if self.lost else self.chance.random() < self.path.loss:
                    continue
                delay = self.path.rtt / 2 + self.chance.random() * self.path.jitter
                self.inject(1 - side, data, self.now + delay)


def pair(path: Path | None = None) -> World:
    """Two associations that have met, on a good path; then `path` holds."""
    left, right = association(1), association(2)
    left.connect(0.0)
    world = World(left, right, Path())
    world.run(1.0)
    assert not any(world.dropped)
    world.path = path or Path()
    world.chance = random.Random(world.path.seed)
    for events in world.events:
        events.clear()
    world.packets[:] = [0, 0]
    return world


def outgoing(peer: Peer) -> list[bytes]:
    found = []
    while (data := peer.poll_transmit()) is not None:
        found.append(data)
    return found


def incoming(peer: Peer) -> list[Any]:
    found = []
    while (event := peer.poll_event()) is not None:
        found.append(event)
    return found
