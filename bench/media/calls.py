"""The calls of one measurement: brought up, kept up, and everything noted that was sent and heard."""

from __future__ import annotations

import contextlib
import random
import socket
import time
from collections.abc import Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from typing import Any

from bench.media.contenders import Contender, busy_seconds
from tests.support.light_client import Fleet, LightCall
from voicegate.load.client import LightClient
from voicegate.load.driver import Driver
from voicegate.load.impairment import Impairment, Quality
from voicegate.load.offer import Address

POSTS = 8
"""Offers at once while calls are brought up."""
SETTLE_SECONDS = 2.0
"""Buffers, allocators and learned cushions reach their size."""


class TimedDriver(Driver):
    """A driver that notes when each RTP packet went to its socket, and whose network turns bad on demand."""

    def __init__(self) -> None:
        super().__init__()
        self.left: dict[LightClient, list[tuple[float, int]]] = {}
        """(monotonic seconds, RTP timestamp) of what was not lost on purpose."""
        self._notes: dict[socket.socket, list[tuple[float, int]]] = {}

    def add(
        self,
        client: LightClient,
        sock: socket.socket,
        up: Impairment | None = None,
        down: Impairment | None = None,
    ) -> None:
        self._notes[sock] = self.left[client] = []
        super().add(client, sock, up, down)

    def impair(self, quality: Quality, seed: int) -> None:
        """From now on, for all calls that are up, both ways. In the driver's thread."""
        source = random.Random(seed)
        for leg in self._legs.values():
            leg.up = Impairment(quality, random.Random(source.getrandbits(64)))
            leg.down = Impairment(quality, random.Random(source.getrandbits(64)))

    def _send(self, sock: socket.socket, data: bytes, address: Address) -> None:
        # RFC 5761 section 4: 192 to 223 in the second byte is RTCP. The RTP header is not encrypted.
        if 128 <= data[0] < 192 and not 192 <= data[1] < 224:
            self._notes[sock].append((time.monotonic(), int.from_bytes(data[4:8], "big")))
        super()._send(sock, data, address)


@dataclass(slots=True)
class Sample:
    """A stretch of time in which all calls were up."""

    begun: float
    ended: float
    cpu: float
    """Seconds of what is measured."""
    others: dict[str, float]
    """CPU seconds of the other processes of the gateway, by name."""
    foreign: float
    """Seconds that somebody else had the CPU of what is measured: it was not alone."""
    lateness_p99: float
    """How late the generator itself was, p99 since its start, seconds."""

    @property
    def seconds(self) -> float:
        return self.ended - self.begun


@dataclass(slots=True)
class Calls:
    """Calls that are up, by the names that the agent knows them by."""

    contender: Contender
    fleet: Fleet
    driver: TimedDriver
    by_name: dict[str, LightCall]

    def sample(self, seconds: float) -> Sample:
        """Let this much time pass."""
        if self.contender.agent is not None:
            self.contender.agent.command(forget=True)
        cpu, others = self.contender.cpu_seconds(), self.contender.others_seconds()
        busy = busy_seconds(self.contender.cpu)
        begun = time.monotonic()
        time.sleep(seconds)
        ended = time.monotonic()
        after = self.contender.others_seconds()
        cpu = self.contender.cpu_seconds() - cpu
        return Sample(
            begun,
            ended,
            cpu,
            {name: after[name] - before for name, before in others.items()},
            max(0.0, busy_seconds(self.contender.cpu) - busy - cpu),
            self.driver.lateness.percentile(0.99) or 0.0,
        )

    def sent(self, name: str) -> list[tuple[float, int]]:
        """(when, number of the frame) of one call's packets that reached the network."""
        call = self.by_name[name]
        first = call.sent[0][1]
        return [
            (at, ((stamp - first) & 0xFFFFFFFF) // call.voice.frame_samples)
            for at, stamp in list(self.driver.left[call])
        ]

    def impair(self, quality: Quality) -> None:
        self.driver.call_soon(lambda: self.driver.impair(quality, seed=1))


@contextlib.contextmanager
def calls_up(
    contender: Contender,
    count: int,
    frames: Sequence[bytes],
    *,
    listen: bool = False,
    **options: Any,
) -> Iterator[Calls]:
    """So many calls that say `frames` over and over. `listen`: aiortc's application takes the frames."""
    driver = TimedDriver()
    with Fleet(make_driver=lambda: driver) as fleet:
        options.setdefault("loop", True)

        def start(number: int) -> tuple[str, LightCall]:
            name = f"c{number}"
            query = f"?listen={name}" if listen else ""
            if contender.gate is not None:
                query = f"?model={name}"
            wanted = dict(options, candidate_in_offer=contender.gate is None)
            return name, fleet.call(contender.url + query, frames, **wanted)

        with ThreadPoolExecutor(POSTS) as pool:
            calls = dict(pool.map(start, range(count)))
        for call in calls.values():
            call.wait_for("connected", 30)
        time.sleep(SETTLE_SECONDS)
        yield Calls(contender, fleet, driver, calls)
        for call in calls.values():
            if contender.gate is not None and not call.closed:
                fleet.hang_up(call)
