"""Who is there: the transceivers of a cluster, as every role of it sees them.

A transceiver *registers* (which gives it an id that nobody else holds), then *publishes* its load whenever
that changes. Signaling and relay read `registry.records`: an immutable mapping that is replaced whole, so
that any thread may read it without a lock. Three kinds, one interface:

* `MemoryRegistry`: all roles in one process.
* `StaticRegistry`: the table in the configuration file; nothing is shared, so loads are what signaling was
  told.
* `RedisRegistry` (`voicegate.net.redis`): leases in Redis.
"""

from __future__ import annotations

import abc
import random
from collections.abc import Mapping
from types import MappingProxyType

import msgspec
import trio

from voicegate.config import Config, StaticTransceiver
from voicegate.proto.keys import ClusterKeys

MAX_ID = 2**20 - 1
"""The ticket has 20 bits for the transceiver; 0 means "give me one"."""
STATIC_BOOT = "static"
"""The boot id of a transceiver in a static table, where nobody could announce a real one."""


class TransceiverRecord(msgspec.Struct, frozen=True, kw_only=True):
    """One transceiver. `link` and `control` are `ip:port` or `[ipv6]:port`; `boot` is random for each start.

    `capacity` is how many calls it takes at most, `calls` how many it has; `draining`: give it no new ones.
    """

    id: int
    cluster: int
    link: str
    control: str
    boot: str
    calls: int = 0
    capacity: int = 0
    draining: bool = False
    keys: tuple[str, ...] = ()
    """See `ClusterKeys.marks`."""


class RelayRecord(msgspec.Struct, frozen=True, kw_only=True):
    """One relay, of any cluster.

    `links`: the link sockets of its workers, `ip:port` each, all for the same flows; `addresses`: its public
    ones, `ip:port` or `ip:port/tcp`, in order of preference; `location`: latitude and longitude in degrees.
    """

    id: int
    cluster: int
    ingress: str
    """The name of its public addresses; relays that share them share it."""
    boot: str
    links: tuple[str, ...]
    addresses: tuple[str, ...]
    location: tuple[float, float] | None = None
    flows: int = 0
    capacity: int = 0
    draining: bool = False
    keys: tuple[str, ...] = ()


class SignalingRecord(msgspec.Struct, frozen=True, kw_only=True):
    """One signaling process; here for its keys alone."""

    id: int
    boot: str
    keys: tuple[str, ...] = ()


Record = TransceiverRecord | RelayRecord | SignalingRecord
Records = Mapping[int, TransceiverRecord]
NO_RECORDS: Records = MappingProxyType({})


class RegistryError(Exception):
    """The registry refuses or cannot be reached; the message is a sentence for a person."""


class Registry(abc.ABC):
    """`records` is by transceiver id, of this cluster only. `lost` is set when another process took our
    id."""

    def __init__(self) -> None:
        self.records: Records = NO_RECORDS
        self.clusters: Mapping[int, Records] = MappingProxyType({})
        self.relays: Mapping[int, RelayRecord] = MappingProxyType({})
        self.signalings: Mapping[int, SignalingRecord] = MappingProxyType({})
        self.unreadable = 0
        """How many more there are that do not open with our keys."""
        self.lost = trio.Event()

    @abc.abstractmethod
    async def register(self, record: TransceiverRecord) -> TransceiverRecord:
        """Take the record's id, or a free one when it is 0, and publish it.

        Returns the record as others see it (`id` and `boot` may differ from what was asked). Raises
        RegistryError when the id is somebody else's or the registry cannot be reached.
        """

    @abc.abstractmethod
    def publish_nowait(self, record: TransceiverRecord) -> None:
        """Let others see this state of a registered record. Never waits; a burst becomes one announcement."""

    @abc.abstractmethod
    async def withdraw(self) -> None:
        """Take what this process registered away, at once. For the end; bounded in time, never raises."""

    def observe_load_nowait(self, id: int, calls: int, capacity: int) -> None:
        """What a transceiver just said of its load: fresher than its last announcement, seen by this process
        only."""
        known = self.records.get(id)
        if known is not None:
            self._replace(msgspec.structs.replace(known, calls=calls, capacity=capacity))

    async def run(self, *, task_status: trio.TaskStatus[None] = trio.TASK_STATUS_IGNORED) -> None:
        """Keep `records` and our lease fresh until cancelled; started when `records` was loaded once."""
        task_status.started()
        await trio.sleep_forever()

    def healthy(self) -> bool:
        """False while `records` may be out of date."""
        return True

    def absence(self) -> str:
        """Why `records` is empty, for a person."""
        if self.unreadable:
            return f"no transceiver is registered with our keys.secrets, {self.unreadable} with others"
        return "no transceiver is registered"

    def statistics(self) -> dict[str, float]:
        """Numbers for the metrics page, by name."""
        return {
            "transceivers": float(len(self.records)),
            "unreadable": float(self.unreadable),
            "healthy": float(self.healthy()),
        }

    def _replace(self, record: TransceiverRecord) -> None:
        self.records = MappingProxyType({**self.records, record.id: record})


class MemoryRegistry(Registry):
    """For roles that share a process."""

    def __init__(self) -> None:
        super().__init__()
        self._own: set[int] = set()

    async def register(self, record: TransceiverRecord) -> TransceiverRecord:
        await trio.lowlevel.checkpoint()
        if record.id == 0:
            record = msgspec.structs.replace(record, id=free_id(self.records))
        elif record.id in self.records:
            raise RegistryError(f"transceiver id {record.id} is in use already")
        self._own.add(record.id)
        self._replace(record)
        return record

    def publish_nowait(self, record: TransceiverRecord) -> None:
        if record.id in self._own:
            self._replace(record)

    async def withdraw(self) -> None:
        await trio.lowlevel.checkpoint()
        kept = {id: record for id, record in self.records.items() if id not in self._own}
        self._own.clear()
        self.records = MappingProxyType(kept)


class StaticRegistry(Registry):
    """For a handful of fixed machines without Redis: what the configuration says is there."""

    def __init__(self, cluster: int, transceivers: tuple[StaticTransceiver, ...]) -> None:
        super().__init__()
        self.records = MappingProxyType(
            {
                entry.id: TransceiverRecord(
                    id=entry.id,
                    cluster=cluster,
                    link=entry.link,
                    control=entry.control,
                    boot=STATIC_BOOT,
                    capacity=entry.capacity,
                )
                for entry in transceivers
            }
        )

    async def register(self, record: TransceiverRecord) -> TransceiverRecord:
        await trio.lowlevel.checkpoint()
        known = self.records.get(record.id)
        if known is None:
            raise RegistryError(
                f"transceiver.id {record.id} is not in registry.transceivers: add it there, or set"
                " registry.redis"
            )
        if (known.link, known.control) != (record.link, record.control):
            raise RegistryError(
                f"registry.transceivers says that transceiver {record.id} has link {known.link} and control"
                f" {known.control}, but it listens on {record.link} and {record.control}"
            )
        record = msgspec.structs.replace(record, boot=STATIC_BOOT)
        self._replace(record)
        return record

    def publish_nowait(self, record: TransceiverRecord) -> None:
        if record.id in self.records:
            self._replace(record)

    async def withdraw(self) -> None:
        await trio.lowlevel.checkpoint()


def open_registry(config: Config, keys: ClusterKeys) -> Registry:
    """The registry that the configuration names."""
    if config.registry.redis:
        from voicegate.net.redis import RedisRegistry  # redis-py is loaded only where it is used

        return RedisRegistry(config.registry, keys)
    if config.registry.transceivers:
        return StaticRegistry(config.registry.cluster, config.registry.transceivers)
    return MemoryRegistry()


def free_id(taken: Mapping[int, object]) -> int:
    while (id := random.SystemRandom().randint(1, MAX_ID)) in taken:
        pass
    return id
