"""A transceiver on every CPU: workers that are transceivers of their own, and who keeps them going.

Each has its own id, link socket and control port: a ticket names its transceiver, so it is tickets that
spread calls, and nothing is shared between workers. One that dies takes its own calls along; the next in its
place is another transceiver to everybody, by its boot id: nothing that is meant for the dead one's calls is
given to it. The supervisor takes its record out of the registry, so that it is not asked for calls, and a
given id is free, before its lease has run out.

Worker n has the configured ports plus n (0 stays: any free one), and the configured id plus n (0 stays: a
random one). Health, readiness and metrics of a worker are at its control port, as without workers; those of
all are at `transceiver.ops_listen`, in the supervisor's process, from before their start to after their end.
"""

from __future__ import annotations

import os
import socket
from collections.abc import Callable

import msgspec
import trio

from voicegate import metrics
from voicegate.config import Config, parse_listen, worker_count
from voicegate.metrics import Sample
from voicegate.net.ops import serve_ops
from voicegate.processes.slots import HANG_SECONDS
from voicegate.processes.supervisor import STOP_SECONDS, Place, Supervisor, cpus
from voicegate.processes.worker import Start, worker_process
from voicegate.proto.address import join_host_port
from voicegate.roles.context import RoleContext
from voicegate.roles.transceiver.life import CLOSE_SECONDS
from voicegate.roles.transceiver.shell import Transceiver


def transceiver_process(config: Config) -> Callable[[socket.socket], int]:
    """For `start_zygote`: what a worker runs, with all that it needs loaded by now."""
    if config.recording.directory:
        import voicegate.roles.transceiver.recorder  # noqa: F401 - so that no worker has to
    return worker_process(config, "transceiver", _Part)


async def run(
    config: Config, context: RoleContext, *, task_status: trio.TaskStatus[None] = trio.TASK_STATUS_IGNORED
) -> None:
    """Be a transceiver, or keep one running in each worker, until cancelled; started when calls are taken.

    Raises what `shell.Transceiver` does, and RuntimeError when no worker can be started any more.
    """
    if context.zygote is None:
        await Transceiver(config, context).run(task_status=task_status)
        return
    settings = config.transceiver
    count = worker_count(settings.workers)
    # The embedded parrot's address is not in the configuration that the workers were forked with.
    given = config.agent.url.encode()
    pinned: list[int | None] = [*cpus(count)] if settings.pin_cpus else [None] * count
    supervisor = Supervisor(
        "transceiver",
        context.keys,
        context.zygote,
        [Place(cpu, given) for cpu in pinned],
        # An id that somebody holds is waited for, and then there are words for a person: not killed before.
        start_seconds=HANG_SECONDS + 2 * config.registry.lease_seconds,
        stop_seconds=settings.drain_seconds + 2 * CLOSE_SECONDS + STOP_SECONDS,
        lost=context.registry.bury,
    )
    forget_metrics = metrics.expose(supervisor.samples)
    page = trio.CancelScope()

    async def show(*, task_status: trio.TaskStatus[list[str]]) -> None:
        with page:
            await serve_ops("transceiver", settings.ops_listen, supervisor.unready, task_status=task_status)

    async with trio.open_nursery() as nursery:
        if settings.ops_listen:
            await nursery.start(show)
            page.shield = True  # it tells how the calls drain when this is cancelled
        try:
            await supervisor.run(task_status=task_status)
        finally:
            page.cancel()
            forget_metrics()


class _Part:
    """One worker's transceiver (`processes.worker.Part`)."""

    def __init__(self, start: Start) -> None:
        if start.cpu is not None:
            os.sched_setaffinity(0, {start.cpu})
        config = worker_config(start.config, start.slot, start.given.decode())
        self._transceiver = Transceiver(config, RoleContext(start.keys, start.registry), start.boot)
        self._slot = str(start.slot)
        self._shown = bool(start.config.transceiver.ops_listen)
        self._looks = 0

    async def run(self, *, task_status: trio.TaskStatus[None] = trio.TASK_STATUS_IGNORED) -> None:
        await self._transceiver.run(task_status=task_status)

    def progress(self) -> int:
        """Packets and reports are of the same thread: who can say this makes progress."""
        self._looks += 1
        return self._looks

    def samples(self) -> list[Sample]:
        """All that the worker's own page has, but for what is the process's own; nothing where nobody shows
        it: 350 samples a second are 1.1 ms of the media loop."""
        return metrics.samples(worker=self._slot) if self._shown else []

    def unready(self) -> str | None:
        why = self._transceiver.unready()
        return None if why is None else f"worker {self._slot}: {why}"

    def close(self) -> None:
        """Nothing is left when `run` has ended."""


def worker_config(config: Config, slot: int, agent_url: str) -> Config:
    """The configuration of the worker in a slot."""
    settings = config.transceiver
    own = msgspec.structs.replace(
        settings,
        id=settings.id and settings.id + slot,
        link_listen=_moved(settings.link_listen, slot),
        control_listen=_moved(settings.control_listen, slot),
        ops_listen="",
        workers=1,
    )
    agent = msgspec.structs.replace(config.agent, url=agent_url)
    return msgspec.structs.replace(config, transceiver=own, agent=agent)


def _moved(listen: str, slot: int) -> str:
    host, port = parse_listen(listen)
    return join_host_port(host, port and port + slot)
