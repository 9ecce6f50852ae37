"""Notes of flows in Redis: which ticket a client came with, for a relay that has never seen the client.

    voicegate:flow:<client address in hex>    the ticket and the address, sealed, with a time to live

A note that was forged, or moved to the key of another client, is counted and ignored. Notes are a help, not
a truth: a lost one is made good by the client's next connectivity check, so nothing here is tried again or
waits for its turn. Each command runs in a thread, under a time limit, on connections of its own.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Iterator, Sequence
from functools import partial
from typing import TypeVar

import trio

from voicegate.config import Config
from voicegate.net.board import FAILURES, ask, open_client
from voicegate.proto.address import IPV4_LENGTH, IPV6_LENGTH, ClientAddress
from voicegate.proto.errors import BadPacket
from voicegate.proto.keys import ClusterKeys
from voicegate.proto.ticket import TICKET_LENGTH

BATCH = 500
"""Notes in one round trip: 60 kB, which Redis answers in a few milliseconds."""
MAX_CALLS = 4
"""Commands at once; more are refused rather than queued. A relay's worker writes, asks and forgets."""
PAUSE_SECONDS = 0.3
"""After a failure nothing is asked for so long: three times a second shows soon enough that Redis is back."""

_LABEL = b"flow"
_SET = "for i = 1, #KEYS do redis.call('SET', KEYS[i], ARGV[i], 'PX', ARGV[#ARGV]) end"
"""One command instead of a pipeline of hundreds: a third of redis-py's time (2.0 ms for 500, measured), which
is taken from the data plane's thread."""
_CLIENT_LENGTHS = (IPV4_LENGTH, IPV4_LENGTH + 1, IPV6_LENGTH, IPV6_LENGTH + 1)
_T = TypeVar("_T")


class StoreDown(Exception):
    """Redis failed, did so a moment ago, or has not answered yet what it was asked; nothing can be done."""


class FlowStore:
    """See the module. One per worker; used from one Trio task or several."""

    def __init__(self, url: str, keys: ClusterKeys, *, ttl_seconds: float) -> None:
        """`ttl_seconds`: how long a note stays unless it is written again. RegistryError: the URL is none."""
        self.ttl_seconds = ttl_seconds
        self._client, self._name = open_client(url)
        self._keys = keys
        self._limiter = trio.CapacityLimiter(MAX_CALLS)
        self._rests_until = -float("inf")
        self._counts: Counter[str] = Counter()

    async def write(self, notes: Sequence[tuple[ClientAddress, bytes]]) -> None:
        """Note the ticket (a ufrag of 23 bytes) of each client, or again, which renews its time.

        StoreDown: not all of them were written.
        """
        for batch in _batches(notes):
            await self._call(partial(self._set, batch))
            self._counts["written"] += len(batch)

    async def forget(self, clients: Sequence[ClientAddress]) -> None:
        """Take notes away. StoreDown: not all of them; the rest runs out."""
        for batch in _batches(clients):
            await self._call(partial(self._client.delete, *map(_key, batch)))
            self._counts["forgotten"] += len(batch)

    async def read(self, clients: Sequence[ClientAddress]) -> dict[ClientAddress, bytes]:
        """The tickets of those clients that are known and whose notes are genuine. StoreDown: nobody can
        tell."""
        found: dict[ClientAddress, bytes] = {}
        for batch in _batches(clients):
            tokens = await self._call(partial(self._get, batch))
            self._counts["asked"] += len(batch)
            for client, token in zip(batch, tokens, strict=True):
                if token is not None and (ticket := self._open_untrusted(client, token)) is not None:
                    found[client] = ticket
        self._counts["found"] += len(found)
        return found

    def statistics(self) -> dict[str, int]:
        """Clients written, forgotten, asked after and found; forged notes; calls that failed or were not
        made."""
        names = ("written", "forgotten", "asked", "found", "forged", "failures", "skipped")
        return {name: self._counts[name] for name in names}

    def close(self) -> None:
        """Drop the connections; a call that is under way fails."""
        self._client.close()

    async def _call(self, function: Callable[[], _T]) -> _T:
        await trio.lowlevel.checkpoint()
        if trio.current_time() < self._rests_until:
            self._counts["skipped"] += 1
            raise StoreDown(f"Redis at {self._name} failed a moment ago")
        if self._limiter.available_tokens < 1:
            self._counts["skipped"] += 1
            raise StoreDown(f"Redis at {self._name} has not answered yet what it was asked")
        try:
            return await ask(function, self._limiter)
        except FAILURES as error:
            self._counts["failures"] += 1
            self._rests_until = trio.current_time() + PAUSE_SECONDS
            raise StoreDown(f"cannot use Redis at {self._name}: {error}") from error

    def _set(self, notes: Sequence[tuple[ClientAddress, bytes]]) -> None:
        assert all(len(ticket) == TICKET_LENGTH for _, ticket in notes), "a ticket is what a flow has"
        tokens = (self._keys.seal.seal(_LABEL, ticket + client) for client, ticket in notes)
        clients = (_key(client) for client, _ in notes)
        self._client.eval(_SET, len(notes), *clients, *tokens, int(self.ttl_seconds * 1000))

    def _get(self, clients: Sequence[ClientAddress]) -> list[bytes | None]:
        tokens: list[bytes | None] = self._client.mget(list(map(_key, clients)))
        if len(tokens) != len(clients) or not all(isinstance(token, bytes | None) for token in tokens):
            raise TypeError("MGET answers with a string, or nothing, for each key")
        return tokens

    def _open_untrusted(self, client: ClientAddress, token: bytes) -> bytes | None:
        """The ticket in a token that was made for this client; None (counted) for anything else."""
        try:
            payload = self._keys.seal.open_untrusted(_LABEL, token.decode("ascii", "replace"))
        except BadPacket:
            payload = b""
        if payload[TICKET_LENGTH:] == client:
            return payload[:TICKET_LENGTH]
        self._counts["forged"] += 1
        return None


def open_flow_store(config: Config, keys: ClusterKeys) -> FlowStore | None:
    """The store of the Redis that the configuration names; None when it names none.

    A note stays for twice the time after which an idle flow ends, so a relay that writes its live flows again
    once in `relay.flow_idle_seconds` loses none.
    """
    if not config.registry.redis:
        return None
    return FlowStore(config.registry.redis, keys, ttl_seconds=2 * config.relay.flow_idle_seconds)


def _key(client: ClientAddress) -> str:
    assert len(client) in _CLIENT_LENGTHS, "packed by proto.address"
    return f"voicegate:flow:{client.hex()}"


def _batches(items: Sequence[_T]) -> Iterator[Sequence[_T]]:
    return (items[start : start + BATCH] for start in range(0, len(items), BATCH))
