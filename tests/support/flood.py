"""Junk at a steady rate, from many and ever other source addresses of 127.0.0.0/8, in a process of its own.

    with Flood(target, payloads, rate=50_000) as flood:
        time.sleep(5)
    flood.sent, flood.seconds, flood.answers

Every source is a real socket: what was sent back to any of them is counted in `answers`.
"""

from __future__ import annotations

import json
import random
import socket
import sys
import time
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, Self

from tests.support.child import Child, tell, when_over
from voicegate.net.names import socket_name
from voicegate.net.udp import Arena, UdpSocket, open_udp

SOURCES = 64
"""Open at once."""
RENEW_SECONDS = 0.05
"""Between two closings of the oldest source; a new address takes its place."""
BATCH = 64
"""Datagrams a system call; at 50,000 a second one call each 1.3 ms."""


@dataclass
class Flood:
    """A context manager around the flood's process."""

    target: tuple[str, int]
    payloads: Sequence[bytes]
    rate: float = 50_000.0
    sent: int = 0
    """Datagrams that the kernel took; filled by the end of the block, as all below."""
    seconds: float = 0.0
    sources: int = 0
    answers: int = 0
    """Datagrams that came to any source."""
    _child: Child | None = None

    def __enter__(self) -> Self:
        settings = {"target": self.target, "rate": self.rate, "payloads": [p.hex() for p in self.payloads]}
        self._child = Child("tests.support.flood")
        self._child.ask(json.dumps(settings))  # longer than an argument may be
        return self

    def __exit__(self, *_: object) -> None:
        assert self._child is not None, "a context manager"
        self.sent, self.seconds, self.sources, self.answers = self._child.stop()


class _Flooder:
    def __init__(self, settings: dict[str, Any]) -> None:
        self.rate = settings["rate"]
        payloads = [bytes.fromhex(text) for text in settings["payloads"]]
        self.arena = Arena(slots=max(BATCH, len(payloads)), addresses=True)
        target = socket_name(*settings["target"])
        self.batches: list[list[tuple[bytes, list[int]]]] = []
        datagrams: list[tuple[bytes, list[int]]] = []
        for offset, payload in zip(self.arena.offsets, payloads, strict=False):
            self.arena.view[offset : offset + len(payload)] = payload
            datagrams.append((target, [self.arena.base + offset, len(payload)]))
            if len(datagrams) == BATCH:
                self.batches.append(datagrams)
                datagrams = []
        assert self.batches, f"at least {BATCH} payloads are needed"
        self.random = random.Random(5)
        self.sources: list[UdpSocket] = [self.source() for _ in range(SOURCES)]
        self.opened = SOURCES
        self.sent = 0
        self.answers = 0

    def source(self) -> UdpSocket:
        host = "127." + ".".join(str(self.random.randrange(1, 255)) for _ in range(3))
        return open_udp(host, 0, arena=self.arena)

    def run(self) -> None:
        tell("begun")
        over = when_over()
        begun = time.monotonic()
        renew = begun + RENEW_SECONDS
        turn = 0
        while not over.is_set():
            due = begun + turn * BATCH / self.rate
            now = time.monotonic()
            if due > now:
                time.sleep(due - now)
            if now >= renew:
                renew = now + RENEW_SECONDS
                self.close(self.sources.pop(0))
                self.sources.append(self.source())
                self.opened += 1
            source = self.sources[turn % SOURCES]
            self.sent += source.send_gathered(self.batches[turn % len(self.batches)])
            turn += 1
        seconds = time.monotonic() - begun
        time.sleep(0.2)  # for the answers that must not come
        for source in self.sources:
            self.close(source)
        tell([self.sent, seconds, self.opened, self.answers])

    def close(self, source: UdpSocket) -> None:
        plain: socket.socket = source.sock
        while True:
            try:
                plain.recv(2048)
            except BlockingIOError:
                break
            self.answers += 1
        source.close()


if __name__ == "__main__":
    tell("up")
    _Flooder(json.loads(sys.stdin.readline())).run()
