"""The relay's part of a worker process: the sockets of a slot, which came from the supervisor's process."""

from __future__ import annotations

import socket
from collections.abc import Callable, Sequence

import msgspec

from voicegate.config import Config
from voicegate.processes.supervisor import Place, cpus
from voicegate.processes.worker import Start, worker_process
from voicegate.roles.relay.sockets import Sockets, adopt_sockets
from voicegate.roles.relay.worker import Identity, Worker


def relay_process(config: Config) -> Callable[[socket.socket], int]:
    """For `start_zygote`: what a worker runs, with all that it needs loaded by now."""
    if config.registry.redis:
        import voicegate.roles.relay.notes  # noqa: F401 - so that no worker has to
    return worker_process(config, "relay", _make)


def places(slots: Sequence[Sockets], identity: Identity, *, pinned: bool) -> list[Place]:
    """What the workers are given."""
    given = msgspec.msgpack.encode(identity)
    found: list[int | None] = [*cpus(len(slots))] if pinned else [None] * len(slots)
    return [Place(cpu, given, slot.descriptors()) for cpu, slot in zip(found, slots, strict=True)]


def _make(start: Start) -> Worker:
    identity = msgspec.msgpack.decode(start.given, type=Identity)
    sockets = adopt_sockets(start.descriptors)
    return Worker(start.config, start.keys, start.registry, sockets, identity, start.slot, start.cpu)
