"""Which Realtime events may pass: an allow-list of event types.

An entry is a type (`response.create`), a prefix that ends in `*` (`input_audio_buffer.*`), or `*` for
everything. `error` always passes: a client that is not told what failed waits for ever.
"""

from __future__ import annotations

from collections.abc import Iterable

EVERYTHING = ("*",)


class EventFilter:
    """Answers whether a type is on the list. Immutable."""

    __slots__ = ("_exact", "_prefixes", "is_open")

    def __init__(self, allowed: Iterable[str] = EVERYTHING) -> None:
        entries = tuple(allowed)
        self._exact = frozenset(entry for entry in entries if not entry.endswith("*")) | {"error"}
        self._prefixes = tuple(entry[:-1] for entry in entries if entry.endswith("*"))
        self.is_open = "" in self._prefixes
        """Everything passes: no event needs to be opened for it."""

    def allows(self, kind: str) -> bool:
        return self.is_open or kind in self._exact or kind.startswith(self._prefixes)
