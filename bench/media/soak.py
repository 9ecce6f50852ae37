"""Calls that come and go for as long as you like: memory, tasks and descriptors must not come and stay.

    python -m bench.media.soak --minutes 60 --calls 50

Calls last 20 to 120 s and end in every way there is: hung up, closed by the client, or their client vanishes
without a word. Some have a bad network, some interrupt over their data channel, and the agent interrupts all
of them. A line a minute, and the figures so far in bench/results/soak.json, so that a run that is cut short
still tells.

The transceiver's memory is sampled all the time; its slope is a linear regression over what came after the
warm-up (a sixth of the run, ten minutes at most). Tasks and descriptors are compared without calls: after a
minute of them, and after the last.
"""

from __future__ import annotations

import argparse
import gc
import heapq
import os
import random
import tempfile
import time
from collections import Counter
from collections.abc import Callable
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import asdict, dataclass, field
from pathlib import Path

import numpy as np

from bench.media.contenders import Contender, Cpus, ahead, voicegate
from bench.report import save
from tests.support.light_channel import Wanted
from tests.support.light_client import Fleet, LightCall
from tests.support.servers import wait_until
from voicegate.load.client import LightClient
from voicegate.load.driver import Driver
from voicegate.load.impairment import Impairment, Quality
from voicegate.load.talk import make_talk, synthetic_speech

IDLE_SECONDS = 4.0
"""After which the transceiver gives a vanished client up; all others send 50 packets a second."""
SAMPLE_SECONDS = 10.0
WARM_UP_SHARE, WARM_UP_MOST = 1 / 6, 600.0
FIRST_MOST = 150.0
"""Seconds of the same before it counts, else as long as the run: the heap grows to what the most calls at
once take, and to what of it lies between things that stay."""
BAD_NETWORK = Quality(loss=0.05, burst=2.0, jitter=0.03)
BAD_SHARE, CHANNEL_SHARE = 0.2, 0.25
INTERRUPT = '{"type":"output_audio_buffer.clear"}'
POSTS = 4


@dataclass(slots=True)
class Idle:
    """What the transceiver has when it has no call."""

    rss_mb: float
    tasks: int
    descriptors: int


@dataclass(slots=True)
class Soak:
    """What came of it."""

    seconds: float = 0.0
    started: int = 0
    connected: int = 0
    ends: Counter[str] = field(default_factory=Counter)
    """Calls that had their time, by how they were ended."""
    failures: Counter[str] = field(default_factory=Counter)
    """Calls that did not come up, or were over before their time, by reason."""
    most_up: int = 0
    rss: list[tuple[float, float]] = field(default_factory=list)
    """(seconds since the start, MB)."""
    before: Idle | None = None
    after: Idle | None = None

    def slope_mb_per_hour(self) -> float | None:
        """None before there are four samples after the warm-up."""
        warm_up = min(WARM_UP_MOST, self.seconds * WARM_UP_SHARE)
        warm = [(at, mb) for at, mb in self.rss if at >= warm_up]
        if len(warm) < 4:
            return None
        return float(np.polyfit(*zip(*warm, strict=True), 1)[0]) * 3600

    def kept_mb(self) -> float:
        """What the process has grown by, without calls before and after."""
        assert self.before is not None and self.after is not None
        return self.after.rss_mb - self.before.rss_mb

    def data(self) -> dict[str, object]:
        return {
            "seconds": self.seconds,
            "started": self.started,
            "connected": self.connected,
            "ends": dict(self.ends),
            "failures": dict(self.failures),
            "most_up": self.most_up,
            "rss_mb": self.rss,
            "slope_mb_per_hour": self.slope_mb_per_hour(),
            "before": None if self.before is None else asdict(self.before),
            "after": None if self.after is None else asdict(self.after),
        }


class ChurnDriver(Driver):
    """A driver whose clients can vanish, and have networks of their own."""

    def vanish(self, client: LightClient) -> None:
        """Not a word to the far end."""
        leg = self._legs.get(client)
        if leg is not None:
            leg.gone = True
            self._drop(leg)

    def impair(self, client: LightClient, quality: Quality, seed: int) -> None:
        leg = self._legs.get(client)
        if leg is not None:
            leg.up, leg.down = (Impairment(quality, random.Random(seed + way)) for way in range(2))


class Churn:
    """Keeps so many calls up, each for a time of its own."""

    def __init__(
        self, gate: Contender, fleet: Fleet, driver: ChurnDriver, lengths: tuple[float, float], seed: int
    ) -> None:
        self.result = Soak()
        self._gate = gate
        self._fleet = fleet
        self._driver = driver
        self._lengths = lengths
        self._random = random.Random(seed)
        self._frames = make_talk(synthetic_speech(), speech=4.0, pause=2.0).frames
        self._pool = ThreadPoolExecutor(POSTS)
        self._coming: set[Future[LightCall]] = set()
        self._due: list[tuple[float, int, LightCall]] = []
        self._talking: list[tuple[float, int, LightCall]] = []
        """Those that will interrupt, and when."""

    def run(self, calls: int, seconds: float, every_second: Callable[[float], None]) -> None:
        begun = time.monotonic()
        tick = begun
        while (now := time.monotonic()) < begun + seconds:
            while len(self._due) + len(self._coming) < calls and len(self._coming) < POSTS:
                self.result.started += 1
                self._coming.add(self._pool.submit(self._start, self.result.started))
            self._welcome(now)
            self._act(now)
            if now >= tick:
                tick += 1.0
                self.result.seconds = now - begun
                every_second(now - begun)
            time.sleep(0.02)
        self._finish()

    def _finish(self) -> None:
        """End all that is up, each in its way."""
        while self._coming:
            self._welcome(time.monotonic())
            time.sleep(0.02)
        while self._due:
            self._end(heapq.heappop(self._due)[2])
        self._pool.shutdown()

    def _start(self, number: int) -> LightCall:
        channel = Wanted() if self._random.random() < CHANNEL_SHARE else None
        call = self._fleet.call(f"{self._gate.url}?model=s{number}", self._frames, loop=True, channel=channel)
        call.wait_for("connected", 20)
        return call

    def _welcome(self, now: float) -> None:
        for future in [future for future in self._coming if future.done()]:
            self._coming.remove(future)
            if (error := future.exception()) is not None:
                self.result.failures[f"{type(error).__name__}: {error}"[:160]] += 1
                continue
            call = future.result()
            self.result.connected += 1
            seed = self._random.getrandbits(32)
            if self._random.random() < BAD_SHARE:
                self._driver.call_soon(
                    lambda call=call, seed=seed: self._driver.impair(call, BAD_NETWORK, seed)
                )  # type: ignore[misc]
            length = self._random.uniform(*self._lengths)
            heapq.heappush(self._due, (now + length, seed, call))
            if call.wanted is not None:
                heapq.heappush(self._talking, (now + length * self._random.random(), seed, call))
        self.result.most_up = max(self.result.most_up, len(self._due))

    def _act(self, now: float) -> None:
        while self._talking and self._talking[0][0] <= now:
            call = heapq.heappop(self._talking)[2]
            if not call.closed and call.channel is not None and call.channel.opened:
                self._fleet.send_event(call, INTERRUPT)
                self.result.ends["interrupted"] += 1
        while self._due and self._due[0][0] <= now:
            self._end(heapq.heappop(self._due)[2])

    def _end(self, call: LightCall) -> None:
        if call.closed:
            self.result.failures[f"over before its time: {call.closed}"] += 1
        else:
            way = self._random.choice(("hung up", "closed", "vanished"))
            self.result.ends[way] += 1
            if way == "hung up":
                self._fleet.hang_up(call)
            if way == "vanished":
                self._driver.call_soon(lambda: self._driver.vanish(call))
            else:
                self._fleet.close(call)
        self._fleet.calls.remove(call)
        del self._fleet.locations[id(call)]


def soak(
    directory: Path,
    *,
    seconds: float,
    calls: int,
    lengths: tuple[float, float],
    every_second: Callable[[Contender, Soak, float], None] = lambda gate, result, at: None,
) -> Soak:
    """Blocks for that long, and until the last vanished client was given up."""
    driver = ChurnDriver()
    cpus = Cpus.of_machine()
    with (
        voicegate(directory, cpus, transceiver_idle_seconds=str(IDLE_SECONDS)) as gate,
        Fleet(make_driver=lambda: driver) as fleet,
    ):
        assert gate.agent is not None
        gate.agent.command(behave="interrupted")
        churn = Churn(gate, fleet, driver, lengths, seed=1)
        churn.run(calls, min(FIRST_MOST, seconds), lambda at: None)
        before = _idle(gate)
        churn = Churn(gate, fleet, driver, lengths, seed=2)
        result = churn.result
        result.before = before
        sampled = 0.0

        def look(at: float) -> None:
            nonlocal sampled
            if at >= sampled:
                sampled += min(SAMPLE_SECONDS, seconds / 30)
                result.rss.append((at, gate.rss() / 1e6))
            every_second(gate, result, at)

        churn.run(calls, seconds, look)
        result.seconds = seconds
        result.after = _idle(gate)
        return result


def descriptors(gate: Contender) -> int:
    return sum(len(os.listdir(f"/proc/{pid}/fd")) for pid in gate.pids)


def tasks(gate: Contender) -> int:
    return int(gate.metrics().total("voicegate_transceiver_tasks"))


def _idle(gate: Contender) -> Idle:
    """When the last call is over, its agent has said goodbye and the heap has been collected."""
    wait_until(
        lambda: gate.metrics().total("voicegate_transceiver_calls") == 0,
        IDLE_SECONDS + 20,
        "the transceiver to be empty",
        every=0.5,
    )
    time.sleep(2.0)
    return Idle(gate.rss() / 1e6, tasks(gate), descriptors(gate))


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--minutes", type=float, default=60.0)
    parser.add_argument("--calls", type=int, default=50)
    parser.add_argument("--lengths", type=float, nargs=2, default=[20.0, 120.0], metavar="SECONDS")
    parser.add_argument("--name", default="soak", help="of the file in bench/results")
    args = parser.parse_args()
    told = 0.0

    def tell(gate: Contender, result: Soak, at: float) -> None:
        nonlocal told
        if at < told:
            return
        told += 60.0
        slope = result.slope_mb_per_hour()
        print(
            f"{at / 60:4.0f} min  {result.connected} set-ups, {result.failures.total()} failures, "
            f"RSS {result.rss[-1][1]:.1f} MB{'' if slope is None else f' ({slope:+.1f} MB/h)'}, "
            f"{tasks(gate)} tasks, {descriptors(gate)} descriptors",
            flush=True,
        )
        save(args.name, {"complete": False, **result.data()})
        gc.collect()

    gc.disable()
    with ahead(), tempfile.TemporaryDirectory(prefix="voicegate-soak-") as place:
        result = soak(
            Path(place),
            seconds=args.minutes * 60,
            calls=args.calls,
            lengths=(args.lengths[0], args.lengths[1]),
            every_second=tell,
        )
    print(f"\nended: {dict(result.ends)}; failures: {dict(result.failures)}")
    print(f"without calls, before: {result.before}\nand after:             {result.after}")
    slope = result.slope_mb_per_hour()
    print(f"slope after the warm-up: {'unknown' if slope is None else f'{slope:.2f} MB/h'} (goal: <= 1 MB/h)")
    print(f"All figures: {save(args.name, {'complete': True, **result.data()})}")


if __name__ == "__main__":
    main()
