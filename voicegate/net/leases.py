"""A table of sealed leases: what of a notice board that anybody may write to is believed, and how long.

A `Lease` is a record that names its own id, when its holder started and a serial number, sealed with a key of
the cluster under a label of its kind: what is forged, moved to another id or replayed is counted and ignored,
so that writing to the board cannot redirect a call. While the board cannot be read the table stays as it is;
a record goes when its holder says so, or when it was missing from every reading for `Kind.absent_seconds`
(by then a live holder has put it back, on an emptied board too).

Between two starts of a holder the later one counts, by its wall clock. A clock may have been set back, so a
start takes a time after that of any it knows of under its id, and where it could know of none, the lease that
stands on the board for `absent_seconds` wins: a live holder would have taken its place back by then.
"""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from typing import Generic

import msgspec

from voicegate.net.registry import (
    MAX_ID,
    R,
    RegistryError,
    RelayRecord,
    SignalingRecord,
    Table,
    TransceiverRecord,
)
from voicegate.proto.errors import BadPacket
from voicegate.proto.keys import ClusterKeys
from voicegate.proto.seal import MAX_PAYLOAD

RELAY_LEASE_SECONDS = 1.5
"""A killed relay is to be gone from all tables within 3 s: its lease runs out, a reading notices (0.5 s), and
again one that comes after `absent_seconds` (1 s). It costs a relay two commands a second."""
RENEWALS = 3
"""How often a lease is renewed in its time: one attempt may fail and the next one come late."""
GAP_SECONDS = 3.0
"""After so long without a reading nothing is known of who was missing."""
MAX_RECORDS = 4096
"""More ids than this in a table are somebody's mistake; 4096 transceivers of 200 calls are 800,000."""
_GROWTH = 256
"""Bytes that a record may still grow by after it was registered: counters, and the marks of seven keys."""


@dataclass(frozen=True, slots=True)
class Kind(Generic[R]):
    """One of the tables, and where it stands on the board."""

    record: type[R]
    index: str
    """The key of the set of ids, and the table's name in a snapshot."""
    lease_prefix: str
    """Before the id: the key of a lease."""
    channel: str
    """Where a lease that changed is announced."""
    label: bytes
    """What its leases are sealed under."""
    lease_seconds: float
    cluster: int | None = None
    """Transceivers: their cluster. No table holds those of another."""

    @property
    def absent_seconds(self) -> float:
        """How long a record may be missing: more than a renewal, and than the pauses of a failing one."""
        return self.lease_seconds / 2


def transceivers_of(cluster: int, lease_seconds: float) -> Kind[TransceiverRecord]:
    prefix = f"voicegate:{cluster}:"
    return Kind(
        TransceiverRecord,
        prefix + "transceivers",
        prefix + "transceiver:",
        prefix + "changed",
        b"registry",
        lease_seconds,
        cluster,
    )


def all_relays() -> Kind[RelayRecord]:
    return Kind(
        RelayRecord,
        "voicegate:relays",
        "voicegate:relay:",
        "voicegate:relays:changed",
        b"registry relay",
        RELAY_LEASE_SECONDS,
    )


def all_signalings(lease_seconds: float) -> Kind[SignalingRecord]:
    return Kind(
        SignalingRecord,
        "voicegate:signalings",
        "voicegate:signaling:",
        "voicegate:signalings:changed",
        b"registry signaling",
        lease_seconds,
    )


class Lease(msgspec.Struct, Generic[R], frozen=True, array_like=True):
    """What is sealed: `started` is the wall clock (ms) of its holder's start, `serial` counts its leases."""

    record: R
    started: int
    serial: int
    gone: bool = False

    def newer_than(self, other: Lease[R]) -> bool:
        if self.record.boot == other.record.boot:
            return self.serial > other.serial
        return self.started > other.started


class LeaseTable(Table[R]):
    """The leases of one kind that are believed. See the module."""

    def __init__(self, kind: Kind[R], keys: ClusterKeys) -> None:
        super().__init__()
        self.kind = kind
        self.own_id = 0
        """The id that this process holds, whatever the board says."""
        self.unreadable = 0
        """How many tokens of the last reading were not sealed with our keys."""
        self.read_at = -math.inf
        self.counts: Counter[str] = Counter()
        self._keys = keys
        self._decoder: msgspec.msgpack.Decoder[Lease[R]] = msgspec.msgpack.Decoder(
            Lease[kind.record]  # type: ignore[name-defined]
        )
        self._leases: dict[int, Lease[R]] = {}
        self._tokens: dict[int, str] = {}
        self._tombs: dict[int, Lease[R]] = {}
        self._missing: dict[int, float] = {}

    def seal(self, lease: Lease[R]) -> str:
        """The token of a lease; RegistryError when its record has grown beyond all measure."""
        payload = msgspec.msgpack.encode(lease)
        if len(payload) > MAX_PAYLOAD - (0 if lease.serial else _GROWTH):
            raise RegistryError(
                f"a {self.kind.record.__name__} of {len(payload)} bytes is more than the registry takes: are"
                " there too many addresses in it?"
            )
        return self._keys.seal.seal(self.kind.label, payload)

    def open_untrusted(self, token: str) -> Lease[R] | None:
        """The lease in a token, or None (counted) for anything that is not of this table."""
        try:
            lease = self._decoder.decode(self._keys.seal.open_untrusted(self.kind.label, token))
        except (BadPacket, msgspec.DecodeError):
            self.counts["forged"] += 1
            return None
        foreign = isinstance(lease.record, TransceiverRecord) and lease.record.cluster != self.kind.cluster
        if foreign or not 1 <= lease.record.id <= MAX_ID:
            self.counts["foreign"] += 1
            return None
        return lease

    def start_time(self, id: int, wall_ms: int) -> int:
        """`wall_ms`, or more: later than every start we know of with this id."""
        known = self._leases.get(id) or self._tombs.get(id)
        return wall_ms if known is None else max(wall_ms, known.started + 1)

    def receive_untrusted(self, token: str) -> None:
        """Take over an announcement."""
        if (lease := self.open_untrusted(token)) is not None:
            self.apply(lease, token)

    def load_untrusted(self, tokens: Iterable[str]) -> None:
        """Take over a table that was kept; what is in it counts as there until readings tell otherwise."""
        for token in tokens:
            if (lease := self.open_untrusted(token)) is not None and not lease.gone:
                self.apply(lease, token)

    def read_untrusted(self, tokens: Mapping[int, str], now: float) -> None:
        """Take over a reading of the whole board: a token by each id that has a lease."""
        if now - self.read_at > GAP_SECONDS:
            self._missing.clear()  # nobody could renew while nobody could read: start counting anew
        self.read_at = now
        seen: set[int] = set()
        forged_before = self.counts["forged"]
        heirs: dict[int, Lease[R]] = {}
        for id, token in tokens.items():
            if self._tokens.get(id) == token:
                seen.add(id)
                continue  # read before
            lease = self.open_untrusted(token)
            if lease is None or lease.record.id != id or lease.gone:
                continue
            self.apply(lease, token)
            known = self._leases.get(id) or self._tombs.get(id)
            if known is None or known.record.boot == lease.record.boot:
                seen.add(id)
            else:
                heirs[id] = lease  # of another start, and not a later one by its own account
        self.unreadable = self.counts["forged"] - forged_before
        absent = {*self._leases, *heirs} - seen
        for id in absent:
            since = self._missing.setdefault(id, now)
            if now - since > self.kind.absent_seconds and id != self.own_id:
                self._replace_missing(id, heirs.get(id), tokens)
        for id in self._missing.keys() - absent:
            del self._missing[id]

    def apply(self, lease: Lease[R], token: str) -> None:
        """Take over a lease that was opened, unless a newer one is known."""
        id = lease.record.id
        known = self._leases.get(id) or self._tombs.get(id)
        if known is not None and not lease.newer_than(known):
            return
        if lease.gone:
            self.forget(id)
            self._tombs[id] = lease
            if len(self._tombs) > MAX_RECORDS:
                del self._tombs[next(iter(self._tombs))]
        elif id in self._leases or len(self._leases) < MAX_RECORDS:
            self._tombs.pop(id, None)
            self._leases[id] = lease
            self._tokens[id] = token
            self.put(lease.record)

    def lease_of(self, boot: str) -> Lease[R] | None:
        """The newest lease of this start of a holder."""
        return next((lease for lease in self._leases.values() if lease.record.boot == boot), None)

    def forget(self, id: int) -> None:
        """Take a record away without a tomb: whoever comes with this id next is believed."""
        self._leases.pop(id, None)
        self._tokens.pop(id, None)
        self.drop(id)

    def tokens(self) -> list[str]:
        """The table as it can be kept."""
        return list(self._tokens.values())

    def _replace_missing(self, id: int, heir: Lease[R] | None, tokens: Mapping[int, str]) -> None:
        """Forget who has not held its lease for long, for the sake of who does hold it, if anybody."""
        if id in self._leases:
            self.counts["expired"] += 1
            self.forget(id)
        if heir is not None:
            self._tombs.pop(id, None)
            self.apply(heir, tokens[id])
