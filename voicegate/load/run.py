"""One run: calls are started at a rate, kept up, and ended; what was lost is counted by reason."""

from __future__ import annotations

import gc
import queue
import random
import threading
import time
from collections import Counter
from collections.abc import Callable
from dataclasses import dataclass, field
from functools import partial

from voicegate.load.channel import Wanted
from voicegate.load.client import LightClient
from voicegate.load.driver import Driver, open_socket
from voicegate.load.exchange import Answered, Endpoint, NotAnswered, post_offer
from voicegate.load.figures import Figures, Histogram
from voicegate.load.impairment import PERFECT, Impairment, Quality
from voicegate.load.offer import OPUS_TYPE
from voicegate.load.talk import TurnTalk
from voicegate.proto.dtls import DtlsCertificate
from voicegate.proto.errors import BadPacket

POSTS = 32
"""Offers that wait for their answer at once: at 100 ms each, 320 set-ups a second."""
PROGRESS_SECONDS = 1.0


@dataclass(frozen=True, slots=True)
class Plan:
    """What to do. Times are seconds."""

    endpoint: Endpoint
    calls: int
    ramp: float
    """Calls started a second."""
    seconds: float
    """How long all of them are kept up after the last was started."""
    network: Quality = PERFECT
    """Of each direction."""
    interrupt_after: float | None = None
    seed: int = 1


@dataclass(slots=True)
class Traffic:
    """Packets of all calls, summed."""

    sent: int = 0
    reported_lost: int = 0
    """Of ours, by the far end's reports."""
    unreported: int = 0
    """Calls whose far end has sent no report about us."""
    received: int = 0
    lost: int = 0
    """Of theirs, by their sequence numbers."""
    jitter: Histogram = field(default_factory=Histogram)
    """RFC 3550, one value a call, at its end; theirs as we hear it."""
    gaps: Histogram = field(default_factory=Histogram)
    """The longest of each call."""


@dataclass(slots=True)
class Result:
    """What came of it."""

    figures: Figures
    lateness: Histogram
    drops: Counter[str]
    started: int = 0
    answered: int = 0
    connected: int = 0
    most_up: int = 0
    failures: Counter[str] = field(default_factory=Counter)
    """Calls that did not come up, by reason."""
    location: str = ""
    """Of the latest call that was answered: its server may tell what became of it."""
    ends: Counter[str] = field(default_factory=Counter)
    """Calls that ended before their time, by reason."""
    traffic: Traffic = field(default_factory=Traffic)
    events: Counter[str] = field(default_factory=Counter)
    """What came over data channels, by type."""
    seconds: float = 0.0
    cpu: float = 0.0
    """Of this process, seconds."""
    call_seconds: float = 0.0
    stopped: bool = False
    """By Ctrl-C."""

    @property
    def lost_calls(self) -> int:
        return self.failures.total() + self.ends.total()


class Run:
    """`run` once. `progress` is called about each second, with the run."""

    def __init__(self, plan: Plan, talk: TurnTalk, progress: Callable[[Run], None]) -> None:
        self.plan = plan
        self.figures = Figures()
        self.clients: set[LightClient] = set()
        """Those that have an answer and are not over."""
        self.up = 0
        """How many of them are connected."""
        self.begun = time.monotonic()
        self._talk = talk
        self._progress = progress
        self._random = random.Random(plan.seed)
        self._certificate = DtlsCertificate.generate(time.time())
        self._driver = Driver()
        self._driver.on_connected = self._connected
        self._driver.on_closed = self._closed
        self.result = Result(self.figures, self._driver.lateness, self._driver.drops)
        self._in_exchange = 0
        self._offers: queue.SimpleQueue[tuple[LightClient, str]] = queue.SimpleQueue()

    def run(self) -> Result:
        """Block until all calls have had their time, none is left, or `stop`."""
        cpu = time.process_time()
        for _ in range(min(POSTS, self.plan.calls)):
            # Daemons: the end of the run does not wait for a server that does not answer.
            threading.Thread(target=self._exchange, name="offer", daemon=True).start()
        # A full collection walks over every client: with 200 it held up all sending for 17 ms (measured),
        # and the gateway's echo of that looks like a gap. What a packet makes is freed by counting.
        gc.disable()
        self._drive()
        gc.enable()
        for client in list(self.clients):
            if "connected" not in client.times and not self.result.stopped:
                self.result.failures["not connected when the run ended"] += 1
            self._over(client)
        self._driver.close()
        self.result.seconds = time.monotonic() - self.begun
        self.result.cpu = time.process_time() - cpu
        return self.result

    def stop(self) -> None:
        """End the run now. From any thread or signal handler."""
        self.result.stopped = True
        self._driver.call_soon(lambda: None)

    def _drive(self) -> None:
        plan, result = self.plan, self.result
        tick = self.begun + PROGRESS_SECONDS
        until = float("inf")
        while not self.result.stopped:
            now = time.monotonic()
            while result.started < plan.calls and now >= self.begun + result.started / plan.ramp:
                self._start()
            if result.started < plan.calls:
                next_at = self.begun + result.started / plan.ramp
            else:
                if until == float("inf"):
                    until = now + plan.seconds
                next_at = until
                if now >= until or not (self.clients or self._in_exchange):
                    return
            if self._hopeless():
                return
            if now >= tick:
                tick += PROGRESS_SECONDS
                self._progress(self)
            self._driver.turn(min(next_at, tick))

    def _hopeless(self) -> bool:
        """As many failures as may wait at once, and nothing else: the rest would fail as well."""
        failed = self.result.failures.total()
        return not self.result.connected and failed >= min(POSTS, self.plan.calls) and not self.clients

    def _start(self) -> None:
        plan = self.plan
        self.result.started += 1
        self._in_exchange += 1
        client = LightClient(
            self._certificate,
            random.Random(self._random.getrandbits(64)),
            self._talk,
            figures=self.figures,
            channel=Wanted() if plan.interrupt_after is not None else None,
            interrupt_after=plan.interrupt_after,
            setup_seconds=plan.endpoint.timeout,
            wall_offset=time.time() - time.monotonic(),
        )
        self._offers.put((client, client.offer()))

    def _exchange(self) -> None:
        """One thread that posts offers."""
        while True:
            client, offer = self._offers.get()
            outcome: Answered | str
            try:
                outcome = post_offer(self.plan.endpoint, offer)
            except NotAnswered as error:
                outcome = str(error)
            self._driver.call_soon(partial(self._exchanged, client, outcome))

    def _exchanged(self, client: LightClient, outcome: Answered | str) -> None:
        self._in_exchange -= 1
        if isinstance(outcome, str):
            self.result.failures[outcome] += 1
            return
        self.result.answered += 1
        self.result.location = outcome.location
        self.figures.answer.add(outcome.seconds)
        try:
            client.accept_answer(outcome.sdp, time.monotonic())
            if client.answer is None or client.answer.payload_type != OPUS_TYPE:
                raise BadPacket("answer_without_opus")
            assert client.remote is not None, "an accepted answer has a candidate"
            sock = open_socket(client.remote[0])
        except BadPacket as bad:
            self.result.failures[f"the answer is of no use: {bad.reason}"] += 1
            return
        except OSError as error:
            self.result.failures[f"no socket: {error.strerror or error}"] += 1
            return
        self.clients.add(client)
        self._driver.add(client, sock, *self._paths())

    def _paths(self) -> tuple[Impairment | None, Impairment | None]:
        if self.plan.network.perfect:
            return None, None
        up, down = (
            Impairment(self.plan.network, random.Random(self._random.getrandbits(64))) for _ in range(2)
        )
        return up, down

    def _connected(self, client: LightClient) -> None:
        self.result.connected += 1
        self.up += 1
        self.result.most_up = max(self.result.most_up, self.up)
        self.figures.connect.add(client.times["connected"] - client.times["answered"])

    def _closed(self, client: LightClient) -> None:
        """A client is over without our doing."""
        if "connected" in client.times:
            self.result.ends[client.closed] += 1
        else:
            self.result.failures[_failure(client)] += 1
        self._over(client)

    def _over(self, client: LightClient) -> None:
        """Add up what the call came to; it is not looked at again."""
        self.clients.remove(client)
        quality = client.statistics()
        if quality is None:
            return
        self.up -= 1
        traffic, result = self.result.traffic, self.result
        result.call_seconds += client.times.get("closed", time.monotonic()) - client.times["connected"]
        traffic.sent += quality.sent_packets
        traffic.reported_lost += quality.sent_lost
        traffic.unreported += not client.counts["reports_about_us"]
        traffic.received += quality.received_packets
        traffic.lost += quality.received_lost
        if quality.received_packets:
            traffic.jitter.add(quality.received_jitter)
        if client.reception.longest_gap is not None:
            traffic.gaps.add(client.reception.longest_gap)
        if client.channel is not None:
            result.events += client.channel.kinds


def _failure(client: LightClient) -> str:
    """Why a call that got an answer did not come up."""
    if client.counts["checks_answered"] or client.remote is None:
        return client.closed
    host, port = client.remote
    return f"{client.closed}, at udp {host}:{port}"
