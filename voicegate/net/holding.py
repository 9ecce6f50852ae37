"""A record of ours in Redis: takes a lease, renews it, and tells when it is somebody else's."""

from __future__ import annotations

import time
from functools import partial
from typing import Generic

import msgspec
import redis
import trio

from voicegate.net.board import Board
from voicegate.net.leases import RENEWALS, Lease, LeaseTable
from voicegate.net.registry import R, TransceiverRecord, free_id
from voicegate.proto.keys import ClusterKeys

ANNOUNCE_SECONDS = 0.05
"""The least time between two announcements of one record: 20 a second, whatever its calls do."""
LAST_SERIAL = 1 << 62
"""Of a holder that is dead: after all it may have written that has not been read."""
_TOKENS = 8
"""A write may have been made although its answer never came, so each of the last few is known as ours."""


class Holding(Generic[R]):
    """One record that this process registered. `keep` must run for it to be seen by others."""

    def __init__(self, record: R, table: LeaseTable[R], board: Board, keys: ClusterKeys) -> None:
        """`record.id` 0: a free one, chosen here."""
        self._table = table
        self._board = board
        self._keys = keys
        self._movable = not isinstance(record, TransceiverRecord)
        """A transceiver's id is in its tickets: it stays with it or ends. Others take another."""
        self._lease = self._first_lease(record)
        self._tokens: tuple[str, ...] = ()
        self._held = False
        self._fresh = False
        """Just taken: not to be renewed at once."""
        self._gone = False
        self._announced: R | None = None
        self._changed = trio.Event()
        self._writing = trio.Lock()

    @property
    def record(self) -> R:
        """As others see it, or will."""
        return self._lease.record

    def show(self) -> None:
        """Put it into our own table before anybody else has it."""
        self._table.own_id = self.record.id
        self._table.apply(self._lease, self._table.seal(self._lease))

    def publish(self, record: R) -> None:
        """A new state of the record, for everybody as soon as may be."""
        record = msgspec.structs.replace(record, id=self.record.id, keys=self.record.keys)
        if record != self.record and not self._gone:
            self._lease = Lease(record, self._lease.started, self._lease.serial + 1)
            self._changed.set()

    async def take(self) -> bool:
        """Ask for the lease for the first time; False when another live process holds it.

        Raises what is in `FAILURES` when Redis cannot be used.
        """
        async with self._writing:
            self._held = self._fresh = await self._write(self._lease)
            if self._held:
                self._table.own_id = self.record.id
            return self._held

    async def keep(self) -> bool:
        """Renew until withdrawn (True) or until the id is somebody else's for good (False). Raises as
        `take`."""
        while True:
            if not self._fresh:
                self._changed = trio.Event()
                async with self._writing:
                    if self._gone:
                        return True
                    if not await self._renew():
                        return False
            self._fresh = False
            await trio.sleep(ANNOUNCE_SECONDS)
            with trio.move_on_after(self._table.kind.lease_seconds / RENEWALS):
                await self._changed.wait()

    async def withdraw(self) -> None:
        """Take the record away here, then in Redis. Raises as `take`."""
        self._gone = True
        gone = Lease(self.record, self._lease.started, self._lease.serial + 1, gone=True)
        token = self._table.seal(gone)
        self._table.own_id = 0
        self._table.apply(gone, token)
        async with self._writing:
            remove = partial(self._board.remove, self._table.kind, self.record.id, token, self._tokens)
            await self._board.call(remove)

    async def _renew(self) -> bool:
        record = msgspec.structs.replace(self.record, keys=self._keys.marks)
        self._lease = Lease(record, self._lease.started, self._lease.serial + 1)
        while not await self._write(self._lease):
            if not self._movable:
                return False
            self._held = False
            self._table.forget(self.record.id)
            self._lease = self._first_lease(msgspec.structs.replace(self.record, id=0))
            self.show()
        self._held = True
        return True

    def _first_lease(self, record: R) -> Lease[R]:
        id = record.id or free_id(self._table.records)
        record = msgspec.structs.replace(record, id=id, keys=self._keys.marks)
        return Lease(record, self._table.start_time(id, time.time_ns() // 1_000_000), 0)

    async def _write(self, lease: Lease[R]) -> bool:
        """Take or renew the lease on `lease.record.id`; False when another live process holds it."""
        token = self._table.seal(lease)
        self._tokens = (*self._tokens[1 - _TOKENS :], token)
        replaced: tuple[str | bytes, ...] = self._tokens
        id, boot = lease.record.id, lease.record.boot
        announce = lease.record != self._announced
        for _ in range(3):
            take = partial(self._board.take, self._table.kind, id, token, replaced, announce=announce)
            held = await self._board.call(take)
            if held is None:
                self._announced = lease.record
                self._table.apply(lease, token)
                return True
            other = self._table.open_untrusted(held.decode("ascii", "replace"))
            theirs = other is not None and other.record.id == id and other.record.boot != boot
            if other is not None and theirs and (not self._held or other.newer_than(lease)):
                return False
            replaced = (*replaced, held)  # not a lease, or an old one put back: nobody's
        raise redis.RedisError("somebody keeps writing over the lease")


async def bury(boot: str, table: LeaseTable[R], board: Board) -> None:
    """Withdraw for a holder that is known to be dead. Raises what is in `FAILURES`."""
    known = table.lease_of(boot)
    if known is None:
        return
    gone = Lease(known.record, known.started, LAST_SERIAL, gone=True)
    token = table.seal(gone)
    table.apply(gone, token)
    held = await board.call(partial(board.held, table.kind, known.record.id))
    standing = None if held is None else table.open_untrusted(held)
    # Its successor may have the id already.
    ours = [held] if held is not None and standing is not None and standing.record.boot == boot else []
    await board.call(partial(board.remove, table.kind, known.record.id, token, ours))
