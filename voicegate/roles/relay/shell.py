"""The relay as a role: its sockets, who forwards on them, and what it tells of itself.

By itself it has worker processes (`supervisor`); in a process with other roles, and where there is no Linux,
one thread of this process forwards (`worker`).
"""

from __future__ import annotations

import os
import time
from collections.abc import Iterable, Sequence
from contextlib import ExitStack
from typing import Protocol

import trio

from voicegate import metrics
from voicegate.config import Config, ConfigError, worker_count
from voicegate.logs import get_logger
from voicegate.net.ops import serve_ops
from voicegate.net.udp import uses_mmsg
from voicegate.processes.supervisor import Supervisor
from voicegate.roles.context import RoleContext
from voicegate.roles.relay.presence import Presence
from voicegate.roles.relay.process import places
from voicegate.roles.relay.sockets import Sockets, open_sockets
from voicegate.roles.relay.worker import Identity, Worker

_log = get_logger(__name__)


async def run(
    config: Config,
    context: RoleContext,
    *,
    task_status: trio.TaskStatus[list[str]] = trio.TASK_STATUS_IGNORED,
) -> None:
    """Relay until cancelled. Started with the public addresses really bound: `ip:port`, then `ip:port/tcp`.

    ConfigError, with a sentence for a person, when an address cannot be bound or a network cannot be read.
    """
    with ExitStack() as stack:
        slots = open_sockets(config.relay, worker_count(config.relay.workers) if context.zygote else 1)
        for sockets in slots:
            stack.callback(sockets.close)
        addresses = slots[0].addresses()
        identity = Identity(config.relay.ingress or addresses[0], int(time.time() * 1000))
        presence = Presence(config, context.registry, identity, slots)
        forwarder = _forwarder(config, context, slots, identity, stack)
        stack.callback(metrics.expose(forwarder.samples))
        failure: ConfigError | None = None
        async with trio.open_nursery() as nursery:
            try:
                if config.relay.ops_listen:
                    await nursery.start(serve_ops, "relay", config.relay.ops_listen, forwarder.unready)
                await nursery.start(forwarder.run)
                nursery.start_soon(presence.run, lambda: _flows(forwarder))
                _log.info(
                    "relay is up",
                    listen=addresses,
                    link=[sockets.link_address() for sockets in slots],
                    workers=len(slots) if context.zygote else 0,
                    batching="recvmmsg" if uses_mmsg(config.net.batching) else "plain",
                )
                task_status.started(addresses)
                await trio.sleep_forever()
            except ConfigError as error:
                failure = error  # told on its own, not in the nursery's group
            finally:
                # Before anything stops, and while all is forwarded still, should Redis be slow.
                await presence.withdraw()
                nursery.cancel_scope.cancel()
        if failure is not None:
            raise failure


class _Forwarder(Protocol):
    """Who forwards: the worker of this process, or the supervisor of others."""

    async def run(self, *, task_status: trio.TaskStatus[None] = ...) -> None: ...
    def samples(self) -> Iterable[metrics.Sample]: ...
    def unready(self) -> str | None: ...


def _forwarder(
    config: Config, context: RoleContext, slots: Sequence[Sockets], identity: Identity, stack: ExitStack
) -> _Forwarder:
    if context.zygote is not None:
        given = places(slots, identity, pinned=config.relay.pin_cpu != -2)
        return Supervisor("relay", context.keys, context.zygote, given)
    worker = Worker(config, context.keys, context.registry, slots[0], identity, 0, _cpu(config.relay.pin_cpu))
    stack.callback(worker.close)
    return worker


def _flows(forwarder: _Forwarder) -> int:
    samples = forwarder.samples()
    return int(sum(sample.value for sample in samples if sample.name == "voicegate_relay_flows"))


def _cpu(setting: int) -> int | None:
    """The CPU to pin to, by `[relay] pin_cpu`; None on one-CPU machines and systems without pinning."""
    if setting == -2 or not hasattr(os, "sched_getaffinity"):
        return None
    usable = sorted(os.sched_getaffinity(0))
    if setting == -1:
        return usable[-1] if len(usable) > 1 else None
    if setting not in usable:
        raise ConfigError(f"[relay] pin_cpu: CPU {setting} is not among those this process may use: {usable}")
    return setting
