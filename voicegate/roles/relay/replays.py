"""Which connectivity checks have been let through lately: a check repeated from another address makes no
flow.

Two Bloom filters of fixed size, the older of which is forgotten. With 100,000 calls a table of exact
transactions would be the larger part of the relay's memory. What a filter gets wrong is one way only: a check
that is new is taken for a repetition (at most one in two hundred), and its client sends another 50 ms later.
"""

from __future__ import annotations

BITS = 1 << 23
"""Of one filter: 1 MiB."""
CAPACITY = 1 << 18
"""Checks in one filter; with six bits for each of them 0.5 % of all others seem to be in it."""
GENERATION_SECONDS = 90.0
"""A check is remembered for one to two of these: longer than a set-up takes, and than who watches a check go
by has any use for it. 100,000 calls with a check every 2.5 s fill a filter sooner, in 7 s."""

_MASK = BITS - 1


class SeenChecks:
    """The checks of the last minutes, by ticket and transaction, and with the address that each came from."""

    __slots__ = ("_began", "_count", "_new", "_old")

    def __init__(self) -> None:
        self._new = bytearray(BITS >> 3)
        self._old = bytearray(BITS >> 3)
        self._count = 0
        self._began = float("-inf")

    def note(self, ufrag: bytes, transaction: bytes, client: bytes, now: float) -> None:
        """Remember a check that was let through."""
        if self._count >= CAPACITY or now - self._began >= GENERATION_SECONDS:
            self._old, self._new = self._new, bytearray(BITS >> 3)
            self._count, self._began = 0, now
        check = transaction + ufrag
        self._set(check)
        self._set(check + client)
        self._count += 1

    def has(self, ufrag: bytes, transaction: bytes) -> bool:
        """Whether this check was let through before."""
        return self._is_set(transaction + ufrag)

    def is_replay(self, ufrag: bytes, transaction: bytes, client: bytes) -> bool:
        """Whether it came from another address before, and not from this one: a client sends each transaction
        from one, and repeats it there (RFC 8489 section 6.2.1)."""
        check = transaction + ufrag
        return self._is_set(check) and not self._is_set(check + client)

    def _set(self, key: bytes) -> None:
        first, second, third = _positions(key)
        seen = self._new
        seen[first >> 3] |= 1 << (first & 7)
        seen[second >> 3] |= 1 << (second & 7)
        seen[third >> 3] |= 1 << (third & 7)

    def _is_set(self, key: bytes) -> bool:
        first, second, third = _positions(key)
        for seen in (self._new, self._old):
            if (
                seen[first >> 3] >> (first & 7)
                & seen[second >> 3] >> (second & 7)
                & seen[third >> 3] >> (third & 7)
                & 1
            ):
                return True
        return False


def _positions(key: bytes) -> tuple[int, int, int]:
    # bytes hash by SipHash under a key of this process, so nobody aims at another's bits.
    mixed = hash(key)
    return mixed & _MASK, mixed >> 20 & _MASK, mixed >> 40 & _MASK
