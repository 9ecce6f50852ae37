"""Which worker serves which slot, and when another is started. Pure; `supervisor` has the processes.

Theory of operation. A role has a fixed number of *slots*, each with its own addresses. A *worker* is started
without a slot, gets *warm* (everything loaded, the registry read), and is given the first slot that is empty.
One worker more than there are slots is kept warm: the *spare*.

* A worker that ends leaves its slot empty, and the spare gets it at once.
* One that makes no progress for HANG_SECONDS is taken for dead. When nobody made any while this process was
  not run either, the machine stood still and nobody is to blame.
* A slot whose workers end soon after they got it, again and again, gets the next after ever longer pauses,
  and so it is with workers that never get warm: something is wrong that a restart does not mend.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import NamedTuple

FIRST_PAUSE = 0.1
LONGEST_PAUSE = 5.0
"""Before another try in a crash loop: 5 s of pause let its 0.1 s of work take a fiftieth of a CPU."""
LOOP_SECONDS = 10.0
"""Who lived longer did not die of its start; twice LONGEST_PAUSE, so that a loop stays one."""
HANG_SECONDS = 5.0
"""Without a sign of progress; one is due every second. A stalled virtual machine or a full disk under the log
is over in less."""
WARM_SECONDS = 30.0
"""To load the registry: its own time-outs are shorter."""
LATE_SECONDS = 1.0
"""Between two calls of `poll`, which are due ten times a second: beyond it the machine stood still."""


class Start(NamedTuple):
    """Start a worker of this serial number."""

    worker: int


class Give(NamedTuple):
    """Give this warm worker the slot."""

    slot: int
    worker: int


class Kill(NamedTuple):
    """It hangs; it was replaced by now, so its end need not be reported."""

    worker: int
    slot: int | None


Action = Start | Give | Kill


class Death(NamedTuple):
    """What the end of a worker means; `slot` None: it was a spare."""

    slot: int | None
    deaths: int
    """In a row, each within LOOP_SECONDS of a start."""
    pause: float
    """Seconds until the next is started."""


@dataclass
class Restarts:
    """When the next try is due."""

    deaths: int = 0
    due: float = float("-inf")

    def died(self, lived: float, now: float) -> float:
        """The pause. The first death of a row has none: it is no row yet."""
        if lived >= LOOP_SECONDS:
            self.deaths = 0
            return 0.0
        self.deaths += 1
        pause = 0.0
        if self.deaths > 1:
            pause = min(LONGEST_PAUSE, FIRST_PAUSE * 2 ** min(self.deaths - 2, 16))
        self.due = now + pause
        return pause


@dataclass
class Slot:
    """A worker's place; `worker` None: empty."""

    worker: int | None = None
    since: float = 0.0
    progress: int = -1
    progressed_at: float = 0.0
    serving: bool = False
    """It has reported since it got the slot."""
    restarts: Restarts = field(default_factory=Restarts)


class Slots:
    """All slots, the spare, and the workers that get warm."""

    def __init__(self, count: int, start_seconds: float = HANG_SECONDS) -> None:
        """`start_seconds`: from getting a slot to the first sign of progress."""
        self._start_seconds = start_seconds
        self.slots = tuple(Slot() for _ in range(count))
        self._starting: dict[int, float] = {}
        """Worker to when it was started."""
        self._warm: dict[int, float] = {}
        """The same of those that wait for a slot, in order."""
        self._starts = Restarts()
        self._last_worker = 0
        self._polled_at: float | None = None

    def poll(self, now: float) -> list[Action]:
        """What is to be done; call it after every report and ten times a second."""
        self._forgive_standstill(now)
        return [*self._hung(now), *self._gifts(now), *self._new(now)]

    def warm(self, worker: int) -> None:
        """It waits for a slot."""
        if worker in self._starting:
            self._warm[worker] = self._starting.pop(worker)

    def progressed(self, worker: int, progress: int, now: float) -> None:
        """Its count of anything that grows while it works."""
        for slot in self.slots:
            if slot.worker == worker:
                slot.serving = True
                if progress != slot.progress:
                    slot.progress, slot.progressed_at = progress, now

    def ended(self, worker: int, now: float) -> Death | None:
        """It is no more; None when that was expected."""
        started = self._starting.pop(worker, self._warm.pop(worker, None))
        if started is not None:
            pause = self._starts.died(now - started, now)
            return Death(None, self._starts.deaths, pause)
        for index, slot in enumerate(self.slots):
            if slot.worker == worker:
                slot.worker, slot.serving = None, False
                pause = slot.restarts.died(now - slot.since, now)
                return Death(index, slot.restarts.deaths, pause)
        return None

    def serving(self) -> int:
        """How many slots are served."""
        return sum(slot.serving for slot in self.slots)

    def _forgive_standstill(self, now: float) -> None:
        stood = now - self._polled_at if self._polled_at is not None else 0.0
        self._polled_at = now
        if stood > LATE_SECONDS:
            for slot in self.slots:
                slot.progressed_at += stood
            self._starting = {worker: since + stood for worker, since in self._starting.items()}

    def _hung(self, now: float) -> list[Kill]:
        hung = [
            Kill(slot.worker, index)
            for index, slot in enumerate(self.slots)
            if slot.worker is not None
            and now - slot.progressed_at >= (HANG_SECONDS if slot.serving else self._start_seconds)
        ]
        hung += [Kill(worker, None) for worker, at in self._starting.items() if now - at >= WARM_SECONDS]
        for kill in hung:
            self.ended(kill.worker, now)
        return hung

    def _gifts(self, now: float) -> list[Give]:
        gifts = []
        for index, slot in enumerate(self.slots):
            if slot.worker is None and slot.restarts.due <= now and self._warm:
                slot.worker = next(iter(self._warm))
                del self._warm[slot.worker]
                self._starts.deaths = 0
                slot.since = slot.progressed_at = now
                slot.progress = -1
                gifts.append(Give(index, slot.worker))
        return gifts

    def _new(self, now: float) -> list[Start]:
        if self._starts.due > now:
            return []
        wanted = 1 + sum(slot.worker is None and slot.restarts.due <= now for slot in self.slots)
        new = []
        for _ in range(wanted - len(self._starting) - len(self._warm)):
            self._last_worker += 1
            self._starting[self._last_worker] = now
            new.append(Start(self._last_worker))
        return new
