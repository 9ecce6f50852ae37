"""Two DTLS endpoints on a network of virtual time: delay, loss, reordering, duplication, and a forger."""

from __future__ import annotations

import heapq
import random
from collections.abc import Callable, Iterable
from dataclasses import dataclass, field
from typing import Protocol

from voicegate.proto.dtls import DtlsCertificate, DtlsConnected, DtlsEndpoint, DtlsEvent
from voicegate.proto.errors import BadPacket

WALL = 1_760_000_000.0
OURS = DtlsCertificate.generate(WALL)
THEIRS = DtlsCertificate.generate(WALL)


class Peer(Protocol):
    """What the network needs of an endpoint; foreign implementations are wrapped to look like this."""

    def receive_datagram(self, data: bytes, now: float) -> None: ...
    def handle_timeout(self, now: float) -> None: ...
    def poll_transmit(self) -> bytes | None: ...
    def poll_event(self) -> DtlsEvent | None: ...
    def next_deadline(self) -> float | None: ...


def endpoint(
    *,
    active: bool,
    mine: DtlsCertificate = OURS,
    peer: DtlsCertificate = THEIRS,
    fingerprints: tuple[tuple[str, bytes], ...] | None = None,
    now: float = 0.0,
) -> DtlsEndpoint:
    trusted = fingerprints or (("sha-256", peer.fingerprint),)
    return DtlsEndpoint(mine, active=active, remote_fingerprints=trusted, now=now)


def pair() -> tuple[DtlsEndpoint, DtlsEndpoint]:
    """(client, server) that trust each other."""
    return endpoint(active=True), endpoint(active=False, mine=THEIRS, peer=OURS)


@dataclass
class Path:
    """One direction is half of `rtt`; the seeded misfortunes are per datagram."""

    rtt: float = 0.0
    loss: float = 0.0
    duplicate: float = 0.0
    jitter: float = 0.0
    seed: int = 0


@dataclass
class World:
    """Runs two peers until nothing is left to happen or `limit` seconds have passed."""

    left: Peer
    right: Peer
    path: Path = field(default_factory=Path)
    lost: Callable[[int, bytes], bool] | None = None
    """(0 = to the left, 1 = to the right; datagram): True drops it, in place of chance."""
    now: float = 0.0
    events: tuple[list[DtlsEvent], list[DtlsEvent]] = field(default_factory=lambda: ([], []))
    times: tuple[list[float], list[float]] = field(default_factory=lambda: ([], []))
    dropped: tuple[list[str], list[str]] = field(default_factory=lambda: ([], []))
    datagrams: list[tuple[float, int, bytes]] = field(default_factory=list)
    queue: list[tuple[float, int, int, bytes]] = field(default_factory=list)
    order: int = 0

    def __post_init__(self) -> None:
        self.chance = random.Random(self.path.seed)

    def inject(self, to: int, data: bytes, at: float) -> None:
        self.order += 1
        heapq.heappush(self.queue, (at, self.order, to, data))

    def run(self, limit: float = 60.0) -> World:
        sides = (self.left, self.right)
        while True:
            for side in (0, 1):
                self._drain(side)
            deadlines = [d for peer in sides if (d := peer.next_deadline()) is not None]
            upcoming = [*deadlines, *(entry[0] for entry in self.queue[:1])]
            if not upcoming or min(upcoming) > limit:
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

    def connected(self) -> bool:
        """Both have keys, the same ones."""
        keys = [[e.key_material for e in events if isinstance(e, DtlsConnected)] for events in self.events]
        return len(keys[0]) == 1 and keys[0] == keys[1]

    def connected_at(self, side: int) -> float:
        return next(
            t
            for t, e in zip(self.times[side], self.events[side], strict=True)
            if isinstance(e, DtlsConnected)
        )

    def _drain(self, side: int) -> None:
        peer: Peer = (self.left, self.right)[side]
        while (event := peer.poll_event()) is not None:
            self.events[side].append(event)
            self.times[side].append(self.now)
        while (data := peer.poll_transmit()) is not None:
            self.datagrams.append((self.now, side, data))
            for _ in range(2 if self.chance.random() < self.path.duplicate else 1):
                if self.lost(1 - side, data) if self.lost else self.chance.random() < self.path.loss:
                    continue
                delay = self.path.rtt / 2 + self.chance.random() * self.path.jitter
                self.inject(1 - side, data, self.now + delay)


def deliver(datagrams: Iterable[bytes], to: Peer, now: float = 0.0) -> list[str]:
    """Hand datagrams over by hand; the reasons of those that were dropped."""
    reasons = []
    for data in datagrams:
        try:
            to.receive_datagram(data, now)
        except BadPacket as error:
            reasons.append(error.reason)
    return reasons


def outgoing(peer: Peer) -> list[bytes]:
    found = []
    while (data := peer.poll_transmit()) is not None:
        found.append(data)
    return found


def incoming(peer: Peer) -> list[DtlsEvent]:
    found = []
    while (event := peer.poll_event()) is not None:
        found.append(event)
    return found
