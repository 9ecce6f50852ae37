"""The registry in Redis: leases that a transceiver renews, and a table that everybody else keeps in memory.

    voicegate:<cluster>:transceivers        set of ids: where to look
    voicegate:<cluster>:transceiver:<id>    a sealed lease, with a time to live
    voicegate:<cluster>:changed             pub/sub: the same sealed lease whenever one changes

Redis is a notice board, not an authority. Every lease is sealed with a key of the cluster, names its own
id and carries when its transceiver started and a serial number: what is forged, moved to another id or
replayed is counted and ignored, so that writing to Redis cannot redirect a call. While Redis is down the
table stays as it is; a record goes when its transceiver says so, or when it was missing from every
reading for half a lease (by then a live transceiver has put it back, after an emptied Redis too).

Between two starts of a transceiver the later one counts, by its wall clock. A clock may have been set back,
so a start takes a time after that of any it knows of under its id, and where it could know of none, the lease
that stands in the key for half a lease wins: a live transceiver would have taken its place back by then.

redis-py has no Trio client, so each command runs in a thread, under time limits. Nothing here is per
packet or per call.
"""

from __future__ import annotations

import math
import time
from collections import Counter
from collections.abc import Callable
from functools import partial
from types import MappingProxyType
from typing import Any, NoReturn, TypeVar

import msgspec
import redis
import trio
from redis.backoff import NoBackoff
from redis.retry import Retry

from voicegate import logs
from voicegate.config import RegistryConfig
from voicegate.net.registry import (
    MAX_ID,
    Registry,
    RegistryError,
    TransceiverRecord,
    free_id,
)
from voicegate.proto.errors import BadPacket
from voicegate.proto.keys import ClusterKeys

COMMAND_SECONDS = 1.0
"""A round trip takes 0.14 ms; a Redis that needs a second for one is down."""
POLL_SECONDS = 1.0
"""Pub/sub loses messages when a connection breaks; reading everything again this often makes up for it."""
ANNOUNCE_SECONDS = 0.05
"""The least time between two announcements of one transceiver: 20 a second, whatever its calls do."""
START_SECONDS = 5.0
"""How long a starting process waits for Redis: they are often started together."""
BACKOFF_SECONDS = (0.1, 2.0)
TELL_SECONDS = 30.0
"""How often an outage, or a wrong key, that goes on is put into the log."""
MAX_TRANSCEIVERS = 4096
"""More ids than this in the set are somebody's mistake; 4096 of 200 calls are 800,000."""

_SEAL_LABEL = b"registry"
_TAKE = """
local held = redis.pcall('GET', KEYS[1])
if type(held) == 'table' then redis.call('DEL', KEYS[1]) held = false end
for i = 3, #ARGV do if held == ARGV[i] then held = false end end
if held then return held end
redis.call('SET', KEYS[1], ARGV[1], 'PX', ARGV[2])
return false
"""
"""Write ARGV[1] for ARGV[2] ms unless the key holds something that is not among ARGV[3..]: then return
that."""

_T = TypeVar("_T")
_Failure = (redis.RedisError, OSError)
_log = logs.get_logger(__name__)


class _Lease(msgspec.Struct, frozen=True, array_like=True):
    """What is sealed: `started` is the wall clock (ms) of its transceiver's start, `serial` counts its
    leases."""

    record: TransceiverRecord
    started: int
    serial: int
    gone: bool = False

    def newer_than(self, other: _Lease) -> bool:
        if self.record.boot == other.record.boot:
            return self.serial > other.serial
        return self.started > other.started


class RedisRegistry(Registry):
    """See `Registry` and the module. One per process; `run` must run for anything to be current."""

    def __init__(self, config: RegistryConfig, keys: ClusterKeys) -> None:
        super().__init__()
        self._config = config
        self._seal = keys.seal
        self._board = _Board(config.redis, f"voicegate:{config.cluster}:")
        self._leases: dict[int, _Lease] = {}
        self._tombs: dict[int, _Lease] = {}
        self._missing: dict[int, float] = {}
        self._own: _Lease | None = None
        self._own_tokens: tuple[str, ...] = ()
        self._changed = trio.Event()
        self._writing = trio.Lock()
        self._read_at = -math.inf
        self._told_unreadable_at = -math.inf
        self._counts: Counter[str] = Counter()

    async def register(self, record: TransceiverRecord) -> TransceiverRecord:
        wanted = record.id
        deadline = trio.current_time() + max(START_SECONDS, 1.5 * self._config.lease_seconds)
        failures_until = trio.current_time() + START_SECONDS
        while True:
            if wanted == 0:
                record = msgspec.structs.replace(record, id=free_id(self._leases))
            lease = _Lease(record, self._start_time(record.id), 0)
            try:
                if await self._write(lease):
                    self._own = lease
                    return record
            except _Failure as error:
                if trio.current_time() > failures_until:
                    self._unreachable(error)
            if wanted != 0 and trio.current_time() > deadline:
                raise RegistryError(f"transceiver id {wanted} is held by another process: choose another")
            await trio.sleep(BACKOFF_SECONDS[0])

    def _start_time(self, id: int) -> int:
        """The wall clock in ms, or more: later than every start we know of with this id."""
        known = self._leases.get(id) or self._tombs.get(id)
        now = time.time_ns() // 1_000_000
        return now if known is None else max(now, known.started + 1)

    def publish_nowait(self, record: TransceiverRecord) -> None:
        own = self._own
        if own is not None and own.record.id == record.id and own.record != record:
            self._own = _Lease(record, own.started, own.serial + 1)
            self._changed.set()

    async def withdraw(self) -> None:
        own, self._own = self._own, None
        if own is None or self.lost.is_set():
            return
        gone = _Lease(own.record, own.started, own.serial + 1, gone=True)
        self._apply(gone)
        remove = partial(self._board.remove, own.record.id, self._token(gone), self._own_tokens)
        with trio.move_on_after(3 * COMMAND_SECONDS, shield=True):
            try:
                async with self._writing:
                    await self._board.call(remove)
            except _Failure as error:
                _log.warning("could not withdraw from Redis; the lease runs out", error=str(error))

    async def run(self, *, task_status: trio.TaskStatus[None] = trio.TASK_STATUS_IGNORED) -> None:
        deadline = trio.current_time() + START_SECONDS
        while True:
            try:
                await self._read()
                break
            except _Failure as error:
                if trio.current_time() > deadline:
                    self._unreachable(error)
            await trio.sleep(BACKOFF_SECONDS[0])
        async with trio.open_nursery() as nursery:
            nursery.start_soon(self._repeat, "read", self._keep_reading)
            nursery.start_soon(self._repeat, "subscribe", self._keep_listening)
            nursery.start_soon(self._repeat, "renew", self._keep_renewing)
            task_status.started()

    def healthy(self) -> bool:
        return time.monotonic() - self._read_at <= max(3 * POLL_SECONDS, self._config.lease_seconds)

    def statistics(self) -> dict[str, float]:
        return {**super().statistics(), **{name: float(n) for name, n in self._counts.items()}}

    async def _repeat(self, what: str, loop: Callable[[], Any]) -> None:
        """Run one of the loops for ever: a failure of Redis is counted, told once, and tried again, ever
        later."""
        pause, told_at = BACKOFF_SECONDS[0], -math.inf
        while True:
            began = time.monotonic()
            try:
                await loop()
                return
            except _Failure as error:
                self._counts[f"{what}_failures"] += 1
                if time.monotonic() - told_at > TELL_SECONDS:
                    _log.warning("Redis fails; the last good table stays", doing=what, error=str(error))
                    told_at = time.monotonic()
            lasted = time.monotonic() - began
            pause = BACKOFF_SECONDS[0] if lasted > 2 * COMMAND_SECONDS else min(2 * pause, BACKOFF_SECONDS[1])
            await trio.sleep(pause)

    async def _keep_reading(self) -> None:
        while True:
            await self._read()
            await trio.sleep(POLL_SECONDS)

    async def _read(self) -> None:
        tokens = await self._board.call(self._board.read)
        now = time.monotonic()
        if now - self._read_at > 3 * POLL_SECONDS:
            self._missing.clear()  # nobody could renew while nobody could read: start counting anew
        self._read_at = now
        seen: set[int] = set()
        forged_before = self._counts["forged"]
        heirs: dict[int, _Lease] = {}
        for id, token in tokens.items():
            lease = self._open_untrusted(token)
            if lease is None or lease.record.id != id or lease.gone:
                continue
            self._apply(lease)
            known = self._leases.get(id) or self._tombs.get(id)
            if known is None or known.record.boot == lease.record.boot:
                seen.add(id)
            else:
                heirs[id] = lease  # of another start, and not a later one by its own account
        self._note_unreadable(self._counts["forged"] - forged_before, now)
        absent = {*self._leases, *heirs} - seen
        for id in absent:
            since = self._missing.setdefault(id, now)
            if now - since > self._config.lease_seconds / 2 and not self._is_own(id):
                self._replace_missing(id, heirs.get(id))
        for id in self._missing.keys() - absent:
            del self._missing[id]

    def _note_unreadable(self, unreadable: int, now: float) -> None:
        self.unreadable = unreadable
        if unreadable and now - self._told_unreadable_at > TELL_SECONDS:
            self._told_unreadable_at = now
            _log.warning(
                f"{unreadable} registry records do not open with our keys.secrets;"
                " does every role have the same?"
            )

    def _replace_missing(self, id: int, heir: _Lease | None) -> None:
        """Forget who has not held its lease for long, for the sake of who does hold it, if anybody."""
        if id in self._leases:
            self._counts["expired"] += 1
            self._forget(id)
        if heir is not None:
            self._tombs.pop(id, None)
            self._apply(heir)

    async def _keep_listening(self) -> None:
        await self._board.call(self._board.subscribe)
        while True:
            message = await self._board.call(self._board.next_message)
            if message is not None and (lease := self._open_untrusted(message)) is not None:
                self._apply(lease)

    async def _keep_renewing(self) -> None:
        while not self.lost.is_set():
            self._changed = trio.Event()
            async with self._writing:
                if self._own is not None and not await self._renew(self._own):
                    _log.error("another process holds our transceiver id")
                    self.lost.set()
            await trio.sleep(ANNOUNCE_SECONDS)
            with trio.move_on_after(self._config.lease_seconds / 3):
                await self._changed.wait()

    async def _renew(self, own: _Lease) -> bool:
        self._own = _Lease(own.record, own.started, own.serial + 1)
        return await self._write(self._own)

    async def _write(self, lease: _Lease) -> bool:
        """Take or renew the lease on `lease.record.id`; False when another live transceiver holds it."""
        token = self._token(lease)
        # An earlier write may have been made although its answer never came, so each that was tried is ours.
        self._own_tokens = (*self._own_tokens[-7:], token)
        milliseconds = int(self._config.lease_seconds * 1000)
        replaced: tuple[str | bytes, ...] = self._own_tokens
        boot = lease.record.boot
        for _ in range(3):
            held = await self._board.call(
                partial(self._board.take, lease.record.id, token, milliseconds, replaced)
            )
            if held is None:
                self._apply(lease)
                return True
            other = self._open_untrusted(held.decode("ascii", "replace"))
            theirs = other is not None and other.record.id == lease.record.id and other.record.boot != boot
            if other is not None and theirs and (self._own is None or other.newer_than(lease)):
                return False
            replaced = (*replaced, held)  # not a lease, or an old one put back: nobody's
        raise redis.RedisError("somebody keeps writing over the lease")

    def _apply(self, lease: _Lease) -> None:
        id = lease.record.id
        known = self._leases.get(id) or self._tombs.get(id)
        if known is not None and not lease.newer_than(known):
            return
        if lease.gone:
            self._forget(id)
            self._tombs[id] = lease
            if len(self._tombs) > MAX_TRANSCEIVERS:
                del self._tombs[next(iter(self._tombs))]
        elif id in self._leases or len(self._leases) < MAX_TRANSCEIVERS:
            self._tombs.pop(id, None)
            self._leases[id] = lease
            self._replace(lease.record)

    def _forget(self, id: int) -> None:
        if self._leases.pop(id, None) is not None:
            self.records = MappingProxyType({key: value for key, value in self.records.items() if key != id})

    def _is_own(self, id: int) -> bool:
        return self._own is not None and self._own.record.id == id

    def _token(self, lease: _Lease) -> str:
        return self._seal.seal(_SEAL_LABEL, msgspec.msgpack.encode(lease))

    def _open_untrusted(self, token: str) -> _Lease | None:
        """The lease in a token, or None (counted) for anything that this cluster did not write."""
        try:
            lease = msgspec.msgpack.decode(self._seal.open_untrusted(_SEAL_LABEL, token), type=_Lease)
        except (BadPacket, msgspec.DecodeError):
            self._counts["forged"] += 1
            return None
        if lease.record.cluster != self._config.cluster or not 1 <= lease.record.id <= MAX_ID:
            self._counts["foreign"] += 1
            return None
        return lease

    def _unreachable(self, error: Exception) -> NoReturn:
        raise RegistryError(f"cannot use Redis at {self._board.name}: {error}") from error


def open_client(url: str) -> tuple[Any, str]:
    """A blocking client under our time limits, not connected yet, and Redis's name for messages."""
    # redis-py types its blocking and its asynchronous answers as one.
    try:
        client: Any = redis.Redis.from_url(
            url,
            socket_timeout=COMMAND_SECONDS,
            socket_connect_timeout=COMMAND_SECONDS,
            retry=Retry(NoBackoff(), 1),  # once: a pooled connection from before a restart
            protocol=2,
        )
        where = client.connection_pool.connection_kwargs
        client.connection_pool.connection_class(**where)  # takes what is in the URL, or raises
    except (ValueError, TypeError, redis.RedisError) as error:
        raise RegistryError(f"registry.redis cannot be used: {error}") from None
    return client, f"{where.get('host', where.get('path', '?'))}:{where.get('port', '')}".rstrip(":")


class _Board:
    """The few things we say to Redis. Every method but `call` blocks, and runs in a thread by `call`."""

    def __init__(self, url: str, prefix: str) -> None:
        self._client, self.name = open_client(url)
        self._prefix = prefix
        self._subscription: Any = None
        self._limiter = trio.CapacityLimiter(4)  # read, subscribe, renew, and a register or withdraw

    async def call(self, function: Callable[[], _T]) -> _T:
        # Abandoning is safe: each command ends by its own time limit, and none holds anything of ours.
        return await trio.to_thread.run_sync(function, abandon_on_cancel=True, limiter=self._limiter)

    def read(self) -> dict[int, str]:
        """The tokens of all ids in the set; ids without a lease leave the set."""
        members = self._client.srandmember(self._prefix + "transceivers", MAX_TRANSCEIVERS)
        ids = {int(member): member for member in members if len(member) <= 7 and member.isdigit()}
        values = self._client.mget([self._lease_key(id) for id in ids]) if ids else []
        found = {id: value for id, value in zip(ids, values, strict=True) if value is not None}
        kept = {ids[id] for id in found}
        strays = [member for member in members if member not in kept]
        if strays:
            # One that is taken just now is lost from the set, until its transceiver renews and adds
            # itself again.
            self._client.srem(self._prefix + "transceivers", *strays)
        return {id: value.decode("ascii", "replace") for id, value in found.items()}

    def take(self, id: int, token: str, milliseconds: int, ours: tuple[str | bytes, ...]) -> bytes | None:
        """Write a lease unless a stranger holds it; None, or what the stranger wrote."""
        held = self._client.eval(_TAKE, 1, self._lease_key(id), token, milliseconds, *ours)
        if held is not None:
            return bytes(held)
        try:
            self._client.sadd(self._prefix + "transceivers", id)
        except redis.ResponseError:
            # Something of another type is in the place of the set.
            self._client.delete(self._prefix + "transceivers")
            self._client.sadd(self._prefix + "transceivers", id)
        self._client.publish(self._prefix + "changed", token)
        return None

    def remove(self, id: int, farewell: str, ours: tuple[str, ...]) -> None:
        """Take our lease away, if it is still ours, and tell everybody."""
        held = self._client.get(self._lease_key(id))
        if held is not None and held.decode("ascii", "replace") in ours:
            self._client.delete(self._lease_key(id))
            self._client.srem(self._prefix + "transceivers", id)
        self._client.publish(self._prefix + "changed", farewell)

    def subscribe(self) -> None:
        if self._subscription is not None:
            self._subscription.close()
        self._subscription = self._client.pubsub(ignore_subscribe_messages=True)
        self._subscription.subscribe(self._prefix + "changed")

    def next_message(self) -> str | None:
        """The next announcement; None when there is none for a while."""
        message = self._subscription.get_message(timeout=COMMAND_SECONDS)
        if message is None or not isinstance(message["data"], bytes):
            return None
        return message["data"].decode("ascii", "replace")

    def _lease_key(self, id: int) -> str:
        return f"{self._prefix}transceiver:{id}"
