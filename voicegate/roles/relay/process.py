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

import structlog
import trio

from voicegate import logs
from voicegate.config import Config, ConfigError
from voicegate.net.registry import Registry, RegistryError, open_registry
from voicegate.net.zygote import name_process
from voicegate.proto.keys import ClusterKeys
from voicegate.roles.relay.messages import (
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
from voicegate.roles.relay.sockets import adopt_sockets
from voicegate.roles.relay.worker import Identity, Worker

FIRST_REPORTS = (0.05, 0.2)
"""Between the first ones: the thread of packets has just begun, and knows its transceivers in a moment."""

_log = logs.get_logger(__name__)


def worker_process(config: Config) -> Callable[[socket.socket], int]:
    """For `start_zygote`: what a worker runs, with all that it needs loaded by now."""
    if config.registry.redis:
        import voicegate.net.redis
        import voicegate.roles.relay.notes  # noqa: F401 - so that no worker has to
    return partial(_serve, config)


def _serve(config: Config, control: socket.socket) -> int:
    """The whole life of a worker; its exit status."""
    name_process("vg-relay-spare")
    try:
        return trio.run(_run, config, worker_end(control))
    except Exception as error:
        _log.error("a worker failed", exc_info=error)
        return 1


async def _run(config: Config, channel: Channel[ToWorker]) -> int:
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
            await _obey(config, channel, keys, registry, nursery)
            nursery.cancel_scope.cancel()
    except* ConfigError as group:
        channel.send_nowait(Failed(str(logs.first_error(group))))
        status = 1
    except* RegistryError as group:
        _log.error("a worker cannot start", reason=str(logs.first_error(group)))
        status = 1
    return status


async def _obey(
    config: Config, channel: Channel[ToWorker], keys: ClusterKeys, registry: Registry, nursery: trio.Nursery
) -> None:
    """Do what the supervisor says until it wants us to end, or has ended."""
    while (received := await channel.receive()) is not None:
        message, descriptors = received
        match message:
            case Keys():
                keys.replace(message.secrets)
            case Serve():
                structlog.contextvars.bind_contextvars(worker=message.slot)
                name_process(f"vg-relay-{message.slot}")
                identity = Identity(message.ingress, message.boot)
                sockets = adopt_sockets(descriptors)
                worker = Worker(config, keys, registry, sockets, identity, message.slot, message.cpu)
                nursery.start_soon(_forward, worker, channel)
            case Stop():
                return


async def _forward(worker: Worker, channel: Channel[ToWorker]) -> None:
    try:
        async with trio.open_nursery() as nursery:
            await nursery.start(worker.run)
            for pause in itertools.chain(FIRST_REPORTS, itertools.repeat(REPORT_SECONDS)):
                # One that the supervisor does not read is no loss: the next says more.
                channel.send_nowait(
                    Report(worker.progress(), worker.flows(), worker.samples(), worker.unready())
                )
                await trio.sleep(pause)
    finally:
        worker.close()
