"""The parent: it keeps worker processes on the slots of a role, and touches no packet.

`Slots` decides who serves what; here are the processes. A worker's end is seen at once, by its socket, and
the spare has the slot some milliseconds later. What arrived meanwhile in sockets that the supervisor's
process opened waits in them, for they are never closed before the supervisor itself ends.
"""

from __future__ import annotations

import os
import secrets
from collections import Counter
from collections.abc import Awaitable, Callable, Sequence
from dataclasses import dataclass
from typing import NamedTuple

import trio

from voicegate.config import ConfigError
from voicegate.logs import get_logger
from voicegate.metrics import Sample
from voicegate.processes.messages import (
    Channel,
    Failed,
    FromWorker,
    Keys,
    Report,
    Serve,
    Stop,
    Warm,
    supervisor_end,
)
from voicegate.processes.slots import HANG_SECONDS, Death, Give, Kill, Slots, Start
from voicegate.processes.zygote import NO_FORK, Zygote
from voicegate.proto.keys import ClusterKeys

POLL_SECONDS = 0.1
"""As `Slots.poll` wants it: how exact the pauses of a crash loop are."""
STATUS_SECONDS = 1.0
"""How long the exit status of an ended worker is waited for: for the log only."""
STOP_SECONDS = 1.0
"""For workers to send their last packets and end; a few milliseconds is usual."""

_log = get_logger(__name__)


class Place(NamedTuple):
    """What comes with a slot."""

    cpu: int | None
    given: bytes
    """See `Serve`."""
    descriptors: Sequence[int] = ()
    """Of sockets, which stay open here."""


@dataclass(slots=True)
class _Worker:
    """A process, from its start to its end."""

    channel: Channel[FromWorker]
    boot: str = ""
    """Empty: it has no slot."""


class Supervisor:
    """The workers of one role; `run` until cancelled."""

    def __init__(
        self,
        role: str,
        keys: ClusterKeys,
        zygote: Zygote,
        places: Sequence[Place],
        *,
        start_seconds: float = HANG_SECONDS,
        stop_seconds: float = STOP_SECONDS,
        lost: Callable[[str], Awaitable[None]] | None = None,
    ) -> None:
        """`start_seconds`: how long a worker may take to serve the slot it got; `stop_seconds`: and to end.
        `lost` is called with the boot id of each worker that ended untold."""
        self._role = role
        self._keys = keys
        self._keys_version = keys.version
        """What the workers have."""
        self._zygote = zygote
        self._places = places
        self._stop_seconds = stop_seconds
        self._lost = lost
        self._slots = Slots(len(places), start_seconds)
        self._workers: dict[int, _Worker] = {}
        self._statuses: dict[int, int] = {}
        self._reports: dict[int, Report] = {}
        """The last one of each slot that is served."""
        self._deaths: Counter[str] = Counter()
        """By slot, or "spare"."""
        self._changed = trio.Event()
        """Something was told that `Slots` may act on."""
        self._started = False
        """Every slot was served once: the configuration can be used."""
        self._problem = ""
        self._stopping = False

    async def run(self, *, task_status: trio.TaskStatus[None] = trio.TASK_STATUS_IGNORED) -> None:
        """Started when every slot is served. ConfigError when the workers find until then that the
        configuration or the registry cannot be used, RuntimeError when a slot is empty and no worker can be
        started any more."""
        self._nursery: trio.Nursery
        failure: Exception | None = None
        try:
            async with trio.open_nursery() as self._nursery:
                self._nursery.start_soon(self._follow_zygote)
                try:
                    await self._keep(task_status)
                except (ConfigError, RuntimeError) as error:
                    failure = error  # told on its own, not in the nursery's group
                self._nursery.cancel_scope.cancel()
        finally:
            with trio.CancelScope(shield=True):
                await self._stop()
        if failure is not None:
            raise failure

    def unready(self) -> str | None:
        """Why not every call gets through, for a person."""
        if self._stopping:
            return "draining"
        now, count = trio.current_time(), len(self._places)
        for index, slot in enumerate(self._slots.slots):
            if not slot.serving:
                why = f"worker {index} of {count} is down"
                if slot.restarts.deaths:
                    why += f": it died {slot.restarts.deaths} times in a row, each soon after its start"
                if slot.restarts.due > now:
                    why += f"; the next start is in {slot.restarts.due - now:.1f} s"
                return why
        return next((report.unready for report in self._reports.values() if report.unready), None)

    def samples(self) -> list[Sample]:
        """Those of the workers, as they told them, and the supervisor's own."""
        samples = [sample for report in self._reports.values() for sample in report.samples]
        help = "Slots that a worker serves."
        samples.append(Sample(f"voicegate_{self._role}_workers", "gauge", help, {}, self._slots.serving()))
        help = "Worker processes that ended unasked, by slot."
        for worker in (*map(str, range(len(self._places))), "spare"):
            labels, deaths = {"worker": worker}, self._deaths[worker]
            samples.append(
                Sample(f"voicegate_{self._role}_worker_deaths_total", "counter", help, labels, deaths)
            )
        return samples

    async def _keep(self, task_status: trio.TaskStatus[None]) -> None:
        while not self._problem:
            self._forward_keys()
            self._act()
            if not self._started and self._slots.serving() == len(self._places):
                self._started = True
                task_status.started()
            with trio.move_on_after(POLL_SECONDS):
                await self._changed.wait()
            self._changed = trio.Event()
        raise ConfigError(self._problem)

    def _forward_keys(self) -> None:
        """The workers open what others mint as soon as this process does."""
        if self._keys.version != self._keys_version:
            self._keys_version = self._keys.version
            for worker in self._workers.values():
                worker.channel.send_nowait(Keys(self._keys.entries))

    def _act(self) -> None:
        for action in self._slots.poll(trio.current_time()):
            match action:
                case Start(worker):
                    self._start(worker)
                case Give(slot, worker):
                    self._give(slot, worker)
                case Kill(worker, slot):
                    _log.error("a worker makes no progress: it is killed and replaced", **_whom(slot))
                    self._deaths[_label(slot)] += 1
                    self._forget_report(slot)
                    self._zygote.kill(worker)

    def _start(self, worker: int) -> None:
        try:
            channel = supervisor_end(self._zygote.fork(worker))
        except OSError:
            if any(slot.worker is None for slot in self._slots.slots):
                what = f"the {self._role} has lost a worker, and the process that starts them"
                raise RuntimeError(what) from None
            self._slots.ended(worker, trio.current_time())
            return
        channel.send_nowait(Keys(self._keys.entries))
        self._workers[worker] = _Worker(channel)
        self._nursery.start_soon(self._listen, worker, channel)

    def _give(self, slot: int, worker: int) -> None:
        place, given = self._places[slot], self._workers[worker]
        given.boot = secrets.token_hex(8)
        # If it is gone already its channel says so next.
        given.channel.send_nowait(Serve(slot, place.cpu, given.boot, place.given), place.descriptors)

    async def _listen(self, worker: int, channel: Channel[FromWorker]) -> None:
        """Follow a worker until it ends."""
        while (received := await channel.receive()) is not None:
            match received[0]:
                case Warm(pid):
                    self._slots.warm(worker)
                    self._zygote.watch(worker, pid)
                case Report() as report:
                    self._reported(worker, report)
                case Failed(problem) if self._started:
                    # One that hung may still have the port that its successor wants, for a moment. The other
                    # workers need not end for that.
                    _log.error("a worker cannot serve its slot", reason=problem)
                case Failed(problem):
                    self._problem = problem
            self._changed.set()
        boot = self._workers.pop(worker).boot
        channel.close()
        death = self._slots.ended(worker, trio.current_time())
        self._changed.set()
        self._zygote.kill(worker)  # one that only lost its socket must not read on beside its successor
        if boot and self._lost is not None:
            self._nursery.start_soon(self._lost, boot)
        if death is not None:
            self._deaths[_label(death.slot)] += 1
            self._forget_report(death.slot)
            await self._tell(worker, death)
        self._statuses.pop(worker, None)

    def _reported(self, worker: int, report: Report) -> None:
        self._slots.progressed(worker, report.progress, trio.current_time())
        for index, slot in enumerate(self._slots.slots):
            if slot.worker == worker:
                self._reports[index] = report

    def _forget_report(self, slot: int | None) -> None:
        if slot is not None:
            self._reports.pop(slot, None)

    async def _follow_zygote(self) -> None:
        await self._zygote.run(self._statuses.__setitem__)
        _log.error(
            "the process that starts workers has ended: restart before two of them end", role=self._role
        )

    async def _tell(self, worker: int, death: Death) -> None:
        with trio.move_on_after(STATUS_SECONDS):
            while worker not in self._statuses:  # noqa: ASYNC110 - a second at most, for the log
                await trio.sleep(0.01)
        status = self._statuses.get(worker)
        _log.error(
            "a worker ended",
            status="not forked" if status == NO_FORK else "unknown" if status is None else status,
            deaths=death.deaths,
            pause=round(death.pause, 1),
            **_whom(death.slot),
        )

    async def _stop(self) -> None:
        """Let every worker end, and show what it reports until then; whoever does not is killed with the
        zygote."""
        self._stopping = True
        for worker in self._workers.values():
            worker.channel.send_nowait(Stop())
        with trio.move_on_after(self._stop_seconds):
            async with trio.open_nursery() as nursery:
                for serial, worker in self._workers.items():
                    nursery.start_soon(self._see_off, serial, worker.channel)
        for worker in self._workers.values():
            worker.channel.close()

    async def _see_off(self, worker: int, channel: Channel[FromWorker]) -> None:
        while (received := await channel.receive()) is not None:
            if isinstance(received[0], Report):
                self._reported(worker, received[0])
        death = self._slots.ended(worker, trio.current_time())
        if death is not None:
            self._forget_report(death.slot)


def cpus(workers: int) -> list[int]:
    """A CPU for each worker, of those that this process may use."""
    usable = sorted(os.sched_getaffinity(0))
    return [usable[index % len(usable)] for index in range(workers)]


def _whom(slot: int | None) -> dict[str, str]:
    return {"worker": _label(slot)}


def _label(slot: int | None) -> str:
    return "spare" if slot is None else str(slot)
