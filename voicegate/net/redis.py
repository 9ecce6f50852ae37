"""The registry in Redis: leases that each process renews, and tables that everybody keeps in memory.

    voicegate:<cluster>:transceivers        set of ids: where to look
    voicegate:<cluster>:transceiver:<id>    a sealed lease, with a time to live
    voicegate:<cluster>:changed             pub/sub: the same sealed lease whenever its record changes

and the same for `voicegate:relays` and `voicegate:signalings`, which are of all clusters. Redis is a notice
board, not an authority: `voicegate.net.leases` says what of it is believed. The last good tables are kept in
a file as well (`voicegate.net.snapshot`), so that a relay starts while Redis is down.
"""

from __future__ import annotations

import time
from collections import Counter
from collections.abc import Awaitable, Callable, Collection, Mapping
from contextlib import suppress
from functools import partial
from typing import Any, NoReturn

import trio

from voicegate import logs
from voicegate.config import RegistryConfig
from voicegate.net.board import COMMAND_SECONDS, FAILURES, Board
from voicegate.net.holding import Holding, bury
from voicegate.net.leases import LeaseTable, all_relays, all_signalings, transceivers_of
from voicegate.net.registry import (
    R,
    Record,
    Registry,
    RegistryError,
    TransceiverRecord,
)
from voicegate.net.snapshot import Snapshot, open_snapshot
from voicegate.proto.keys import ClusterKeys

POLL_SECONDS = 0.5
"""Pub/sub loses messages when a connection breaks; reading everything again this often makes up for it, and
finds out who has died."""
START_SECONDS = 5.0
"""How long a starting process waits for Redis: they are often started together."""
PROMPT_SECONDS = 0.1
"""How long it waits where there is a snapshot to start with: a Redis that is well answers in a few
milliseconds, and then nobody is taken for alive who has died long ago."""
BACKOFF_SECONDS = (0.1, 0.5)
"""Between attempts at a Redis that fails. The last one is less than a relay's record may be missing."""
TELL_SECONDS = 30.0
"""How often an outage, or a wrong key, that goes on is put into the log."""
SNAPSHOT_SECONDS = 1.0
"""The least time between two writings of the snapshot."""

_log = logs.get_logger(__name__)


class RedisRegistry(Registry):
    """See `Registry` and the module. One per process; `run` must run for anything to be current."""

    def __init__(self, config: RegistryConfig, keys: ClusterKeys, watched: Collection[int] = ()) -> None:
        lease = config.lease_seconds
        clusters = dict.fromkeys((config.cluster, *watched))
        transceivers = {id: LeaseTable(transceivers_of(id, lease), keys) for id in clusters}
        relays = LeaseTable(all_relays(), keys)
        signalings = LeaseTable(all_signalings(lease), keys)
        super().__init__(config.cluster, keys, transceivers, relays, signalings)
        self._tables: list[LeaseTable[Any]] = [*transceivers.values(), relays, signalings]
        self._lease_seconds = lease
        self._board = Board(config.redis)
        self._snapshot = open_snapshot(config.snapshot, config.redis, clusters)
        self._holdings: dict[type, Holding[Any]] = {}
        self._nursery: trio.Nursery | None = None
        self._told_unreadable_at = -float("inf")
        self._counts: Counter[str] = Counter()

    async def register(self, record: R) -> R:
        assert type(record) not in self._holdings, "one of each kind per process"
        assert self._keys is not None
        table: LeaseTable[R] = self._lease_table(record)
        if isinstance(record, TransceiverRecord):
            holding = await self._take(record, table)
        else:
            await trio.lowlevel.checkpoint()
            holding = Holding(record, table, self._board, self._keys)
            holding.show()
        self._holdings[type(record)] = holding
        if self._nursery is not None:
            self._nursery.start_soon(self._keep, holding)
        return holding.record

    def publish_nowait(self, record: Record) -> None:
        holding = self._holdings.get(type(record))
        if holding is not None and holding.record.boot == record.boot:
            holding.publish(record)

    async def withdraw(self) -> None:
        holdings, self._holdings = self._holdings, {}
        with trio.move_on_after(3 * COMMAND_SECONDS, shield=True):
            async with trio.open_nursery() as nursery:
                for kind, holding in holdings.items():
                    if not (kind is TransceiverRecord and self.lost.is_set()):
                        nursery.start_soon(self._withdraw, holding)

    async def run(self, *, task_status: trio.TaskStatus[None] = trio.TASK_STATUS_IGNORED) -> None:
        with trio.move_on_after(PROMPT_SECONDS), suppress(*FAILURES):
            await self._read()
        if not self.records:
            self._load_snapshot()
        if not self.records and not self.relays:
            await self._first_reading()
        async with trio.open_nursery() as nursery:
            nursery.start_soon(self._repeat, "read", self._keep_reading)
            nursery.start_soon(self._repeat, "subscribe", self._keep_listening)
            if self._snapshot is not None:
                nursery.start_soon(self._keep_snapshot, self._snapshot)
            for holding in self._holdings.values():
                nursery.start_soon(self._keep, holding)
            self._nursery = nursery
            task_status.started()

    async def bury(self, boot: str) -> None:
        try:
            await bury(boot, self._lease_table_of_ours(), self._board)
        except FAILURES as error:
            _log.warning("could not take a dead transceiver's lease; it runs out", error=str(error))

    def healthy(self) -> bool:
        age = time.monotonic() - self._lease_table_of_ours().read_at
        return age <= max(3 * COMMAND_SECONDS, self._lease_seconds)

    def statistics(self) -> dict[str, float]:
        counts = sum((table.counts for table in self._tables), self._counts)
        return {**super().statistics(), **{name: float(n) for name, n in counts.items()}}

    def _lease_table(self, record: Record) -> LeaseTable[Any]:
        table = self._table(record)
        assert isinstance(table, LeaseTable), "all tables here are"
        return table

    def _lease_table_of_ours(self) -> LeaseTable[TransceiverRecord]:
        return self._tables[0]

    # What this process registered

    async def _take(self, record: R, table: LeaseTable[R]) -> Holding[R]:
        """Wait for the lease: for a Redis that starts just now, and for a predecessor's to run out."""
        assert self._keys is not None
        deadline = trio.current_time() + max(START_SECONDS, 1.5 * self._lease_seconds)
        failures_until = trio.current_time() + START_SECONDS
        while True:
            holding = Holding(record, table, self._board, self._keys)
            try:
                if await holding.take():
                    return holding
            except FAILURES as error:
                if trio.current_time() > failures_until:
                    self._unreachable(error)
            if record.id != 0 and trio.current_time() > deadline:
                raise RegistryError(f"transceiver id {record.id} is held by another process: choose another")
            await trio.sleep(BACKOFF_SECONDS[0])

    async def _keep(self, holding: Holding[Any]) -> None:
        async def keep() -> None:
            if not await holding.keep():
                _log.error("another process holds our transceiver id")
                self.lost.set()

        await self._repeat("renew", keep)

    async def _withdraw(self, holding: Holding[Any]) -> None:
        try:
            await holding.withdraw()
        except FAILURES as error:
            _log.warning("could not withdraw from Redis; the lease runs out", error=str(error))

    # What others registered

    async def _first_reading(self) -> None:
        deadline = trio.current_time() + START_SECONDS
        while True:
            try:
                return await self._read()
            except FAILURES as error:
                if trio.current_time() > deadline:
                    self._unreachable(error)
            await trio.sleep(BACKOFF_SECONDS[0])

    async def _keep_reading(self) -> None:
        while True:
            await self._read()
            await trio.sleep(POLL_SECONDS)

    async def _read(self) -> None:
        readings = await self._board.call(partial(self._board.read, [table.kind for table in self._tables]))
        now = time.monotonic()
        for table, tokens in zip(self._tables, readings, strict=True):
            table.read_untrusted(tokens, now)
        self.unreadable = self._lease_table_of_ours().unreadable
        unreadable = sum(table.unreadable for table in self._tables)
        if unreadable and now - self._told_unreadable_at > TELL_SECONDS:
            self._told_unreadable_at = now
            _log.warning(
                f"{unreadable} registry records do not open with our keys.secrets;"
                " does every role have the same?"
            )

    async def _keep_listening(self) -> None:
        tables = {table.kind.channel: table for table in self._tables}
        await self._board.call(partial(self._board.subscribe, [table.kind for table in self._tables]))
        while True:
            message = await self._board.call(self._board.next_message)
            if message is not None and message[0] in tables:
                tables[message[0]].receive_untrusted(message[1])

    # The snapshot

    def _load_snapshot(self) -> None:
        if self._snapshot is None:
            return
        kept = self._snapshot.load()
        for table in self._tables:
            table.load_untrusted(kept.get(table.kind.index, ()))
        refused = sum(table.counts["forged"] + table.counts["foreign"] for table in self._tables)
        if refused:
            _log.warning(
                "the registry's snapshot has records that do not open with our secrets, as after a change of"
                " secrets; they are not used, and the file is written anew when Redis has been read",
                file=str(self._snapshot.path),
                records=refused,
            )

    async def _keep_snapshot(self, snapshot: Snapshot) -> None:
        """Write what is known of the tables whenever it has changed, once Redis has been read."""
        limiter = trio.CapacityLimiter(1)
        written: list[Mapping[int, Any]] = []
        failed = False
        while True:
            await trio.sleep(SNAPSHOT_SECONDS)
            records = [table.records for table in self._tables]
            unchanged = len(written) == len(records) and all(map(_same, written, records))
            if unchanged or not self.healthy():
                continue
            tokens = {table.kind.index: table.tokens() for table in self._tables}
            try:
                await trio.to_thread.run_sync(partial(snapshot.save, tokens), limiter=limiter)
                written, failed = records, False
            except OSError as error:
                self._counts["snapshot_failures"] += 1
                if not failed:
                    _log.warning("the registry's snapshot cannot be written", error=str(error))
                failed = True

    async def _repeat(self, what: str, loop: Callable[[], Awaitable[None]]) -> None:
        """Run one of the loops until it is done: a failure of Redis is counted, told now and then, and tried
        again, ever later."""
        pause, told_at = BACKOFF_SECONDS[0], -float("inf")
        while True:
            began = time.monotonic()
            try:
                return await loop()
            except FAILURES as error:
                self._counts[f"{what}_failures"] += 1
                if time.monotonic() - told_at > TELL_SECONDS:
                    _log.warning("Redis fails; the last good table stays", doing=what, error=str(error))
                    told_at = time.monotonic()
            lasted = time.monotonic() - began
            pause = BACKOFF_SECONDS[0] if lasted > 2 * COMMAND_SECONDS else min(2 * pause, BACKOFF_SECONDS[1])
            await trio.sleep(pause)

    def _unreachable(self, error: Exception) -> NoReturn:
        raise RegistryError(f"cannot use Redis at {self._board.name}: {error} (registry.redis)") from error


def _same(one: object, other: object) -> bool:
    return one is other
