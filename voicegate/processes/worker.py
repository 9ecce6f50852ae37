"""A worker process: forked with everything loaded, it gets warm, waits for a slot, and serves it.

It ends when it is told to, when its supervisor ends (its socket closes), and when its own part fails: the
supervisor then gives the slot to the next.
"""

from __future__ import annotations

import itertools
import os
import socket
from collections.abc import Callable
from functools import partial
from typing import NamedTuple, Protocol

import msgspec
import structlog
import trio

from voicegate import logs
from voicegate.config import Config, ConfigError
from voicegate.metrics import Sample
from voicegate.net.registry import Registry, RegistryError, open_registry
from voicegate.processes.messages import (
    REPORT_SECONDS,
    Channel,
    Failed,
    Keys,
    Report,
    Serve,
    Stop,
    ToWorker,
    Warm,
    worker_end,
)
from voicegate.processes.zygote import name_process
from voicegate.proto.keys import ClusterKeys

FIRST_REPORTS = (0.05, 0.2)
"""Between the first ones: a part that has just begun knows more in a moment."""

_log = logs.get_logger(__name__)


class Reporting(Protocol):
    """What a worker tells of its part."""

    def progress(self) -> int:
        """Grows as long as work is done."""

    def samples(self) -> list[Sample]:
        """Numbers that the supervisor's process shows for this one."""

    def unready(self) -> str | None:
        """Why no call would get through, for a person."""


class Part(Reporting, Protocol):
    """What a worker does in its slot."""

    async def run(self, *, task_status: trio.TaskStatus[None] = ...) -> None:
        """Serve until cancelled; started when it does. ConfigError when the configuration cannot be used."""

    def close(self) -> None: ...


class Start(NamedTuple):
    """What a part is made from."""

    config: Config
    keys: ClusterKeys
    registry: Registry
    slot: int
    cpu: int | None
    boot: str
    given: bytes
    descriptors: list[int]
    """The part's to close."""


def worker_process(
    config: Config, role: str, make: Callable[[Start], Part]
) -> Callable[[socket.socket], int]:
    """For `start_zygote`: what a worker runs, with all that it needs loaded by now."""
    if config.registry.redis:
        import voicegate.net.redis  # noqa: F401 - so that no worker has to
    return partial(_serve, config, role, make)


def _serve(config: Config, role: str, make: Callable[[Start], Part], control: socket.socket) -> int:
    """The whole life of a worker; its exit status."""
    name_process(f"vg-{role[:5]}-spare")
    try:
        return trio.run(_run, config, role, make, worker_end(control))
    except Exception as error:
        _log.error("a worker failed", exc_info=error)
        return 1


async def _run(config: Config, role: str, make: Callable[[Start], Part], channel: Channel[ToWorker]) -> int:
    first = await channel.receive()
    if first is None or not isinstance(first[0], Keys):
        return 0  # the supervisor ended meanwhile
    keys = ClusterKeys.parse(first[0].secrets)
    registry = open_registry(config, keys)
    status = 0
    try:
        async with trio.open_nursery() as nursery:
            await nursery.start(registry.run)
            channel.send_nowait(Warm(os.getpid()))
            async with trio.open_nursery() as parts:  # they end first: what they take back is in the registry
                await _obey(channel, role, make, Start(config, keys, registry, 0, None, "", b"", []), parts)
                parts.cancel_scope.cancel()
            nursery.cancel_scope.cancel()
    except* (ConfigError, RegistryError) as group:
        channel.send_nowait(Failed(str(logs.first_error(group))))
        status = 1
    return status


async def _obey(
    channel: Channel[ToWorker], role: str, make: Callable[[Start], Part], start: Start, nursery: trio.Nursery
) -> None:
    """Do what the supervisor says until it wants us to end, or has ended."""
    while (received := await channel.receive()) is not None:
        message, descriptors = received
        match message:
            case Keys():
                start.keys.replace(message.secrets)
            case Serve(slot, cpu, boot, given):
                structlog.contextvars.bind_contextvars(worker=slot)
                name_process(f"vg-{role[:5]}-{slot}")
                own = start._replace(slot=slot, cpu=cpu, boot=boot, given=given, descriptors=descriptors)
                part = make(own)
                nursery.start_soon(_forward, part, channel)
            case Stop():
                return


async def _forward(part: Part, channel: Channel[ToWorker]) -> None:
    reporting = trio.CancelScope(shield=True)

    async def serve(*, task_status: trio.TaskStatus[None]) -> None:
        try:
            await part.run(task_status=task_status)
        finally:
            reporting.cancel()

    try:
        async with trio.open_nursery() as nursery:
            await nursery.start(serve)
            with reporting:  # until the part has ended, which takes its time where calls are drained
                for pause in itertools.chain(FIRST_REPORTS, itertools.repeat(REPORT_SECONDS)):
                    report(part, channel)
                    await trio.sleep(pause)
    finally:
        part.close()


def report(part: Reporting, channel: Channel[ToWorker]) -> None:
    """Tell the supervisor how a part is. What it does not read is no loss: the next says more."""
    told = Report(part.progress(), part.samples(), part.unready())
    if not channel.send_nowait(told):
        # Should there ever be more samples than a message holds, it is alive all the same.
        channel.send_nowait(msgspec.structs.replace(told, samples=[]))
