"""The few things we say to Redis about leases, and how we connect to it.

redis-py has no Trio client, so each command runs in a thread, under time limits. Nothing here is per packet
or per call.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import Any, TypeVar

import redis
import trio
from redis.backoff import NoBackoff
from redis.retry import Retry

from voicegate.net.leases import MAX_RECORDS, Kind
from voicegate.net.registry import RegistryError

COMMAND_SECONDS = 1.0
"""A round trip takes 0.14 ms; a Redis that needs a second for one is down."""
FAILURES = (redis.RedisError, OSError)
"""What `ask` raises when Redis is not there, does not answer in time, refuses, or cannot be understood."""
_UNREADABLE = (ValueError, TypeError, AttributeError, LookupError, RecursionError)
"""What redis-py raises when an answer is no RESP (a length that is no number), and we when it is of another
kind than the command has (a number for a list)."""

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


def open_client(url: str) -> tuple[Any, str]:
    """A client of the Redis at a URL, not connected yet, and the place as it may be told to a person.

    RegistryError when the URL cannot be used.
    """
    # redis-py types its blocking and its asynchronous answers as one.
    try:
        client: Any = redis.Redis.from_url(
            url,
            socket_timeout=COMMAND_SECONDS,
            socket_connect_timeout=COMMAND_SECONDS,
            # Once, for a pooled connection from before a restart. What was not answered in time is not asked
            # again: that would only make an outage last longer.
            retry=Retry(NoBackoff(), 1, supported_errors=(redis.ConnectionError,)),
            protocol=2,
        )
        where: Mapping[str, Any] = client.connection_pool.connection_kwargs
        client.connection_pool.connection_class(**where)  # takes what is in the URL, or raises
    except (ValueError, TypeError, redis.RedisError) as error:
        raise RegistryError(f"registry.redis cannot be used: {error}") from None
    return client, f"{where.get('host', where.get('path', '?'))}:{where.get('port', '')}".rstrip(":")


async def ask(function: Callable[[], _T], limiter: trio.CapacityLimiter) -> _T:
    """Say something to Redis in a thread: `function` sends commands and takes their answers apart. Raises
    what is in `FAILURES`."""
    # Abandoning is safe: each command ends by its own time limit, and none holds anything of ours.
    return await trio.to_thread.run_sync(_understand, function, abandon_on_cancel=True, limiter=limiter)


def _understand(function: Callable[[], _T]) -> _T:
    try:
        return function()
    except _UNREADABLE as error:
        raise redis.InvalidResponse(f"cannot read an answer: {type(error).__name__}: {error}") from error


class Board:
    """Redis as a notice board. Every method but `call` blocks, and runs in a thread by `call`."""

    def __init__(self, url: str) -> None:
        self._client, self.name = open_client(url)
        self._subscription: Any = None
        # Read, subscribe, renew three kinds of record, and a register or withdraw.
        self._limiter = trio.CapacityLimiter(8)

    async def call(self, function: Callable[[], _T]) -> _T:
        return await ask(function, self._limiter)

    def read(self, kinds: Sequence[Kind[Any]]) -> list[dict[int, str]]:
        """For each kind, the tokens of all ids in its set; ids without a lease leave the set."""
        indexes = [kind.index for kind in kinds]
        answers = self._pipeline([("SRANDMEMBER", index, MAX_RECORDS) for index in indexes])
        misplaced = [index for index, answer in zip(indexes, answers, strict=True) if _wrong_type(answer)]
        members = [[] if isinstance(answer, Exception) else list(answer) for answer in answers]
        ids = [{int(member): member for member in found if _is_id(member)} for found in members]
        gets = [
            ("MGET", *(f"{kind.lease_prefix}{id}" for id in known))
            for kind, known in zip(kinds, ids, strict=True)
            if known
        ]
        values = iter(self._pipeline(gets))
        tables = []
        removals: list[tuple[Any, ...]] = [("DEL", index) for index in misplaced]
        for index, found, known in zip(indexes, members, ids, strict=True):
            rows = next(values) if known else []
            held = {id: value for id, value in zip(known, rows, strict=True) if value is not None}
            kept = {known[id] for id in held}
            # One that is taken just now is lost from the set, until its holder renews and adds itself again.
            if strays := [member for member in found if member not in kept]:
                removals.append(("SREM", index, *strays))
            tables.append({id: value.decode("ascii", "replace") for id, value in held.items()})
        self._pipeline(removals)
        return tables

    def take(
        self, kind: Kind[Any], id: int, token: str, ours: Sequence[str | bytes], *, announce: bool
    ) -> bytes | None:
        """Write a lease unless a stranger holds it; None, or what the stranger wrote. `ours`: what we wrote
        before."""
        milliseconds = int(kind.lease_seconds * 1000)
        held = self._client.eval(_TAKE, 1, f"{kind.lease_prefix}{id}", token, milliseconds, *ours)
        if isinstance(held, bytes):
            return held
        if held is not None:
            raise TypeError(f"a lease is no {type(held).__name__}")
        commands: list[tuple[Any, ...]] = [("SADD", kind.index, id)]
        if announce:
            commands.append(("PUBLISH", kind.channel, token))
        if _wrong_type(self._pipeline(commands)[0]):
            self._pipeline([("DEL", kind.index), ("SADD", kind.index, id)])
        return None

    def held(self, kind: Kind[Any], id: int) -> str | None:
        """The token of a lease."""
        held = self._client.get(f"{kind.lease_prefix}{id}")
        return None if held is None else str(held.decode("ascii", "replace"))

    def remove(self, kind: Kind[Any], id: int, farewell: str, ours: Sequence[str]) -> None:
        """Take our lease away, if it is still ours, and tell everybody."""
        commands: list[tuple[Any, ...]] = [("PUBLISH", kind.channel, farewell)]
        if self.held(kind, id) in ours:
            commands += [("DEL", f"{kind.lease_prefix}{id}"), ("SREM", kind.index, id)]
        self._pipeline(commands)

    def subscribe(self, kinds: Sequence[Kind[Any]]) -> None:
        if self._subscription is not None:
            self._subscription.close()
        self._subscription = self._client.pubsub(ignore_subscribe_messages=True)
        self._subscription.subscribe(*(kind.channel for kind in kinds))

    def next_message(self) -> tuple[str, str] | None:
        """The next announcement: its channel and its token; None when there is none for a while."""
        message = self._subscription.get_message(timeout=COMMAND_SECONDS)
        if message is None or not isinstance(message["data"], bytes):
            return None
        return message["channel"].decode("utf-8", "replace"), message["data"].decode("ascii", "replace")

    def _pipeline(self, commands: Sequence[tuple[Any, ...]]) -> list[Any]:
        """The answers to several commands in one round trip. What stands in the place of a set and is none
        gives an exception as its answer; every other failure is raised."""
        if not commands:
            return []
        pipeline = self._client.pipeline(transaction=False)
        for command in commands:
            pipeline.execute_command(*command)
        answers = pipeline.execute(raise_on_error=False)
        for answer in answers:
            if isinstance(answer, Exception) and not _wrong_type(answer):
                raise answer
        return list(answers)


def _wrong_type(answer: Any) -> bool:
    return isinstance(answer, redis.ResponseError) and str(answer).startswith("WRONGTYPE")


def _is_id(member: bytes) -> bool:
    return len(member) <= 7 and member.isdigit()
