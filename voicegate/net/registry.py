"""Who is there: transceivers, relays and signaling processes, as every role sees them.

A process *registers* what it is (which gives it an id that nobody else of its kind holds), then *publishes*
its state whenever that changes. Everybody reads `records`, `clusters`, `relays` and `signalings`: immutable
mappings that are replaced whole when something changed, so that any thread may read them without a lock.
Three kinds of registry, one interface:

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
from typing import Any, Generic, TypeVar

import msgspec
import trio

from voicegate.config import Config, RegistryConfig, StaticRelay, parse_location
from voicegate.proto.keys import ClusterKeys

MAX_ID = 2**20 - 1
"""The ticket has 20 bits for the transceiver; 0 means "give me one"."""
STATIC_BOOT = "static"
"""The boot id of what stands in a static table, where nobody could announce a real one."""


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
R = TypeVar("R", bound=Record)
Records = Mapping[int, TransceiverRecord]
NO_RECORDS: Records = MappingProxyType({})


class RegistryError(Exception):
    """The registry refuses or cannot be reached; the message is a sentence for a person."""


class Table(Generic[R]):
    """The records of one kind by id: an immutable mapping, replaced whole, and only when it changes."""

    def __init__(self) -> None:
        self.records: Mapping[int, R] = MappingProxyType({})

    def put(self, record: R) -> None:
        if self.records.get(record.id) != record:
            self.records = MappingProxyType({**self.records, record.id: record})

    def drop(self, id: int) -> None:
        if id in self.records:
            self.records = MappingProxyType({key: value for key, value in self.records.items() if key != id})


class Registry(abc.ABC):
    """See the module. `lost` is set when another process took our transceiver's id."""

    def __init__(
        self,
        cluster: int,
        keys: ClusterKeys | None,
        transceivers: Mapping[int, Table[TransceiverRecord]],
        relays: Table[RelayRecord],
        signalings: Table[SignalingRecord],
    ) -> None:
        """`transceivers` by cluster, the own one among them. `keys` mark what we publish; None: it has no
        marks."""
        self._cluster = cluster
        self._keys = keys
        self._transceivers = transceivers
        self._relays = relays
        self._signalings = signalings
        self.unreadable = 0
        """How many more transceivers there are that do not open with our keys."""
        self.lost = trio.Event()

    @property
    def records(self) -> Records:
        """The transceivers of our own cluster."""
        return self._transceivers[self._cluster].records

    @property
    def clusters(self) -> Mapping[int, Records]:
        """The transceivers of our own cluster and of those that are watched, by cluster. The outer mapping
        is made anew for each caller, the inner ones are as `records` is."""
        return MappingProxyType({cluster: table.records for cluster, table in self._transceivers.items()})

    @property
    def relays(self) -> Mapping[int, RelayRecord]:
        """The relays of all clusters, our own among them."""
        return self._relays.records

    @property
    def signalings(self) -> Mapping[int, SignalingRecord]:
        """The signaling processes of all clusters."""
        return self._signalings.records

    @abc.abstractmethod
    async def register(self, record: R) -> R:
        """Take the record's id, or a free one when it is 0, and publish it; one of each kind per process.

        Returns the record as others see it: `id`, `boot` and `keys` may differ from what was asked. A
        transceiver's id is in its tickets, so RegistryError is raised when it is somebody else's or the
        registry cannot be reached. A relay or a signaling process never waits, and may get another id later.
        """

    @abc.abstractmethod
    def publish_nowait(self, record: Record) -> None:
        """Let others see this state of a registered record. Never waits; a burst becomes one announcement."""

    @abc.abstractmethod
    async def withdraw(self) -> None:
        """Take all that this process registered away, at once. For the end; bounded in time, never raises."""

    async def bury(self, boot: str) -> None:
        """Take away the record of a transceiver that is known to have died, by its boot id; where records
        have leases, before its own runs out. Bounded in time, never raises."""
        await trio.lowlevel.checkpoint()

    def observe_load_nowait(self, id: int, calls: int, capacity: int, cluster: int | None = None) -> None:
        """What a transceiver (of our cluster, unless another is named) just said of its load: fresher than
        its last announcement, seen by this process only."""
        table = self._transceivers.get(self._cluster if cluster is None else cluster)
        if table is not None and (known := table.records.get(id)) is not None:
            table.put(msgspec.structs.replace(known, calls=calls, capacity=capacity))

    async def run(self, *, task_status: trio.TaskStatus[None] = trio.TASK_STATUS_IGNORED) -> None:
        """Keep the tables and our leases fresh until cancelled; started when the tables can be used."""
        task_status.started()
        await trio.sleep_forever()

    def healthy(self) -> bool:
        """False while the tables may be out of date."""
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
            "relays": float(len(self.relays)),
            "signalings": float(len(self.signalings)),
            "unreadable": float(self.unreadable),
            "healthy": float(self.healthy()),
        }

    def _table(self, record: Record) -> Table[Any]:
        """Where a record belongs. KeyError: it is a transceiver of a cluster that is not watched."""
        match record:
            case TransceiverRecord():
                return self._transceivers[record.cluster]
            case RelayRecord():
                return self._relays
            case SignalingRecord():
                return self._signalings

    def _marked(self, record: R) -> R:
        return record if self._keys is None else msgspec.structs.replace(record, keys=self._keys.marks)


class MemoryRegistry(Registry):
    """For roles that share a process; of other clusters it knows the relays in the configuration."""

    def __init__(self, config: RegistryConfig | None = None, keys: ClusterKeys | None = None) -> None:
        config = RegistryConfig() if config is None else config
        super().__init__(config.cluster, keys, {config.cluster: Table()}, Table(), Table())
        self._own: list[tuple[Table[Any], int]] = []
        for id, relay in enumerate(config.relays, start=1):
            self._relays.put(_static_relay(id, relay))

    async def register(self, record: R) -> R:
        await trio.lowlevel.checkpoint()
        if isinstance(record, TransceiverRecord) and record.cluster not in self._transceivers:
            # Replaced, not added to: another thread may be going through it.
            self._transceivers = {**self._transceivers, record.cluster: Table()}
        table = self._table(record)
        if record.id == 0:
            record = msgspec.structs.replace(record, id=_listed_id(table, record) or free_id(table.records))
        elif record.id in table.records:
            raise RegistryError(f"transceiver id {record.id} is in use already")
        self._own.append((table, record.id))
        record = self._marked(record)
        table.put(record)
        return record

    def publish_nowait(self, record: Record) -> None:
        if any(owned[1] == record.id and owned[0] is self._table(record) for owned in self._own):
            self._table(record).put(self._marked(record))

    async def withdraw(self) -> None:
        await trio.lowlevel.checkpoint()
        while self._own:
            table, id = self._own.pop()
            table.drop(id)


class StaticRegistry(MemoryRegistry):
    """For a handful of fixed machines without Redis: what the configuration says is there."""

    def __init__(self, config: RegistryConfig, keys: ClusterKeys | None = None) -> None:
        super().__init__(config, keys)
        for entry in config.transceivers:
            self._transceivers[config.cluster].put(
                TransceiverRecord(
                    id=entry.id,
                    cluster=config.cluster,
                    link=entry.link,
                    control=entry.control,
                    boot=STATIC_BOOT,
                    capacity=entry.capacity,
                )
            )

    async def register(self, record: R) -> R:
        if not isinstance(record, TransceiverRecord):
            return await super().register(record)
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
        record = self._marked(msgspec.structs.replace(record, boot=STATIC_BOOT))
        self._table(record).put(record)
        return record

    def publish_nowait(self, record: Record) -> None:
        if not isinstance(record, TransceiverRecord):
            super().publish_nowait(record)
        elif record.id in self.records:
            self._table(record).put(self._marked(record))


def open_registry(config: Config, keys: ClusterKeys) -> Registry:
    """The registry that the configuration names, with the clusters that signaling may place calls in."""
    if config.registry.redis:
        from voicegate.net.redis import RedisRegistry  # redis-py is loaded only where it is used

        return RedisRegistry(config.registry, keys, watched=config.signaling.clusters)
    if config.registry.transceivers:
        return StaticRegistry(config.registry, keys)
    return MemoryRegistry(config.registry, keys)


def free_id(taken: Mapping[int, object]) -> int:
    while (id := random.SystemRandom().randint(1, MAX_ID)) in taken:
        pass
    return id


def _static_relay(id: int, entry: StaticRelay) -> RelayRecord:
    return RelayRecord(
        id=id,
        cluster=entry.cluster,
        ingress=entry.ingress or next(iter(entry.addresses), entry.links[0]),
        boot=STATIC_BOOT,
        links=entry.links,
        addresses=entry.addresses,
        location=parse_location(entry.location),
    )


def _listed_id(table: Table[Any], record: Record) -> int:
    """The id under which the configuration lists a relay that registers itself; 0: it does not."""
    if not isinstance(record, RelayRecord):
        return 0
    listed = (other.id for other in table.records.values() if not {*other.links}.isdisjoint(record.links))
    return next(listed, 0)
