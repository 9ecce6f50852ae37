"""What is done to the relay and its Redis while calls go on: one story for the tests and for the measurement.

`tell` goes through all of it once, with one cluster and the same calls throughout, and gives back for each
chapter when it was and what every call had of it.
"""

from __future__ import annotations

import os
import signal
import time
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from dataclasses import dataclass, field
from pathlib import Path

import redis

from tests.support.gaps import Arrivals, Callers, Gap, describe
from tests.support.light_client import request
from tests.support.relay_probe import Delays, RelayProbe
from tests.support.servers import Gate, cluster, wait_until, with_children
from tests.support.talking_agent import TalkingAgent

SECRET = "0:" + "5ec2e7" * 8
WORKERS = 2
SETTLING_SECONDS = 1.5
"""After the set-up of all calls, which takes both cores: what was late is caught up by then."""
PAUSE_SECONDS = 5.0
"""How long Redis is stopped."""
TOGETHER_SECONDS = 0.2
"""Before and after a chapter, so that a gap which begins at its first moment is whole in it."""
READY_SECONDS = 10.0
LATE = 0.005
"""Seconds that a packet of a live flow may be later than on a quiet relay."""
QUIET, NOTHING = "quiet", "nothing"
"""What the others are judged beside: the probe's flows, and the calls, while nothing is done."""
TROUBLES = ("Redis paused", "Redis emptied", "wrong types in Redis", "Redis killed", "Redis back")
WORKER_KILLED, RELAY_KILLED = "a worker killed", "the relay killed"
REDIS_KILLED, BOTH_KILLED = "Redis killed beside calls", "the relay killed without Redis"
KILLS = (WORKER_KILLED, RELAY_KILLED, REDIS_KILLED, BOTH_KILLED)


@dataclass(slots=True)
class Chapters:
    """By name the first and last moment, in monotonic seconds."""

    times: dict[str, tuple[float, float]] = field(default_factory=dict)

    @contextmanager
    def chapter(self, name: str, seconds: float) -> Iterator[None]:
        """What is done within begins the chapter, which ends `seconds` later, or when that is done."""
        start = time.monotonic()
        yield
        time.sleep(max(0.0, start + seconds - time.monotonic()))
        self.times[name] = (start, time.monotonic())


@dataclass(slots=True)
class Story:
    """What came of it."""

    calls: int
    delays: dict[str, Delays] = field(default_factory=dict)
    """Of the probe's packets, by chapter: QUIET and TROUBLES."""
    chapters: Chapters = field(default_factory=Chapters)
    """Of the calls: NOTHING and KILLS."""
    arrivals: Arrivals | None = None
    on_worker: int = 0
    """How many calls went by the worker that was killed."""
    taken_up: dict[str, float] = field(default_factory=dict)
    """Seconds from a kill until the relay was ready again, by chapter."""
    unclean: str = ""
    """What was wrong at the end: a process that did not end, or a traceback in a log."""

    def gaps(self, name: str) -> list[Gap]:
        """Of each call in that chapter, the longest first."""
        assert self.arrivals is not None
        start, end = self.chapters.times[name]
        return self.arrivals.gaps(start - TOGETHER_SECONDS, end)

    def table(self) -> str:
        """All of it for people."""
        lines = [f"{name}: {delays}" for name, delays in self.delays.items()]
        lines.append(f"{self.calls} calls, {self.on_worker} of them by the killed worker; longest gaps:")
        for name in self.chapters.times:
            gaps = self.gaps(name)
            lines.append(f"{name}: {describe(gaps)}")
            if name == WORKER_KILLED:
                lines.append(f"  its own: {describe(gaps[: self.on_worker])}")
                lines.append(f"  others: {describe(gaps[self.on_worker :])}")
            if name in self.taken_up:
                lines.append(f"  ready after {self.taken_up[name]:.2f} s")
        lost = self.arrivals.lost if self.arrivals is not None else {}
        return "\n".join([*lines, f"calls lost: {lost or 'none'}"])


def tell(directory: Path, calls: int, seconds: float) -> Story:
    """Run it all; each chapter takes at least `seconds`."""
    story = Story(calls)
    settings = {"keys_secrets": SECRET, "relay_workers": str(WORKERS)}
    with (
        TalkingAgent() as agent,
        cluster(directory, check_end=False, agent_url=agent.url, **settings) as gate,
    ):
        story.delays = trouble_redis(gate, seconds)
        if any(is_late(delays, story.delays[QUIET]) for delays in story.delays.values()):
            # Another program on this machine delays packets as well, but not in the same chapter twice.
            again = trouble_redis(gate, seconds)
            story.delays = {
                name: min(once, again[name], key=lambda delays: delays.worst)
                for name, once in story.delays.items()
            }
        with Callers(gate.calls_url, calls) as callers:
            kill_relays(story, gate, seconds)
        story.arrivals = callers.result(agent)
        try:
            gate.stop()
        except AssertionError as error:
            story.unclean = str(error)[:2000]
    return story


def is_late(delays: Delays, quiet: Delays) -> bool:
    """Whether any packet was lost, or LATE seconds later than on a quiet relay."""
    return delays.lost > 0 or delays.worst > quiet.worst + LATE


def trouble_redis(gate: Gate, seconds: float) -> dict[str, Delays]:
    """Every trouble of Redis beside the probe's flows; nothing else goes on."""
    server = gate.servers["redis"]
    paused, emptied, spoiled, killed, back = TROUBLES
    told = Chapters()
    with RelayProbe(gate.media[0], f"redis://127.0.0.1:{gate.redis_port}/0", SECRET) as probe:
        with told.chapter(QUIET, seconds):
            pass
        with told.chapter(paused, PAUSE_SECONDS + 0.5):
            server.process.send_signal(signal.SIGSTOP)
            time.sleep(PAUSE_SECONDS)
            server.process.send_signal(signal.SIGCONT)
        with told.chapter(emptied, seconds):
            redis.Redis(port=gate.redis_port).flushall()
        with told.chapter(spoiled, seconds):
            spoil_redis(gate.redis_port)
        with told.chapter(killed, seconds):
            server.kill()
        with told.chapter(back, seconds):
            server.start()
    wait_until(lambda: ready(gate), READY_SECONDS, "all roles to be ready after Redis came back")
    return {name: probe.delays(*times) for name, times in told.times.items()}


def kill_relays(story: Story, gate: Gate, seconds: float) -> None:
    """Kill a worker, the relay, and the relay without Redis, while calls go on."""
    time.sleep(SETTLING_SECONDS)
    with story.chapters.chapter(NOTHING, seconds):
        pass
    worker = max(range(WORKERS), key=lambda number: flows_of(gate, number))
    story.on_worker = flows_of(gate, worker)
    with story.chapters.chapter(WORKER_KILLED, seconds), suppress(Exception):
        os.kill(worker_pids(gate)[worker], signal.SIGKILL)
    with story.chapters.chapter(RELAY_KILLED, seconds):
        story.taken_up[RELAY_KILLED] = restart(gate)
    with story.chapters.chapter(REDIS_KILLED, seconds):
        gate.servers["redis"].kill()
    with story.chapters.chapter(BOTH_KILLED, seconds):
        story.taken_up[BOTH_KILLED] = restart(gate)


def restart(gate: Gate) -> float:
    """Kill supervisor and workers and start the relay at once, as a process manager would; seconds until it
    is ready, infinite when that takes more than READY_SECONDS."""
    relay = gate.servers["relay"]
    begun = time.monotonic()
    relay.kill()
    relay.start()
    while not _answers(relay.ops):
        if time.monotonic() - begun > READY_SECONDS:
            return float("inf")
        time.sleep(0.02)
    return time.monotonic() - begun


def flows_of(gate: Gate, worker: int) -> int:
    return int(gate.metrics("relay").total("voicegate_relay_flows", worker=str(worker)))


def worker_pids(gate: Gate) -> list[int]:
    """The process that serves each worker's sockets, in order: found by its link socket, which the supervisor
    has open as well and other workers have not."""
    relay = gate.servers["relay"]
    first = int(relay.environment["VOICEGATE_RELAY_LINK_LISTEN"].rpartition(":")[2])
    rows = [line.split() for line in Path("/proc/net/udp").read_text().splitlines()[1:]]
    inodes = {int(row[1].rpartition(":")[2], 16): row[9] for row in rows}
    found = []
    for port in range(first, first + WORKERS):
        target = f"socket:[{inodes[port]}]"
        holders = [pid for pid in with_children(relay.process.pid)[1:] if target in _descriptors(pid)]
        assert len(holders) == 1, f"link port {port} is held by the processes {holders}"
        found += holders
    return found


def spoil_redis(port: int) -> None:
    """Put a value of another type under each key there is."""
    client = redis.Redis(port=port)
    for key in client.scan_iter():
        kind = client.type(key)
        client.delete(key)
        if kind == b"string":
            client.rpush(key, "wrong")
        else:
            client.set(key, "wrong")


def ready(gate: Gate) -> bool:
    """Whether every role says so."""
    return all(_answers(server.ops) for server in gate.servers.values() if server.ops and not server.killed)


def _answers(ops: str) -> bool:
    with suppress(OSError):
        return request("GET", f"{ops}/readyz", timeout=2).status == 200
    return False


def _descriptors(pid: int) -> set[str]:
    links = set()
    with suppress(OSError):
        for entry in Path(f"/proc/{pid}/fd").iterdir():
            with suppress(OSError):
                links.add(os.readlink(entry))
    return links
