"""Which TSNs have arrived (RFC 9260 sections 3.3.4, 6.2, 6.7): a cumulative point and ranges above it."""

from __future__ import annotations

from bisect import bisect_left
from typing import Final

from voicegate.proto.sctp.wire import MAX_GAPS

MAX_AHEAD: Final = 0xFFFF
"""How far a TSN may be ahead of the cumulative one: the 16-bit offsets of a SACK cannot tell of more."""
MAX_DUPLICATES: Final = 16
"""Duplicates reported in one SACK; they are of use to statistics only."""


class Received:
    """A bisected list of ranges: linear in the number of gaps, not in that of chunks."""

    __slots__ = ("_ends", "_starts", "cumulative", "duplicates")

    def __init__(self, cumulative: int) -> None:
        self.cumulative = cumulative
        """The last TSN up to which all have arrived."""
        self.duplicates: list[int] = []
        """TSNs, modulo 2^32, that came again since `report`."""
        self._starts: list[int] = []
        self._ends: list[int] = []

    @property
    def complete(self) -> bool:
        """There are no gaps."""
        return not self._ends

    def record(self, tsn: int) -> bool:
        """Whether this TSN is new."""
        starts, ends = self._starts, self._ends
        if tsn <= self.cumulative:
            return self._duplicate(tsn)
        if not ends or tsn > ends[-1]:
            if not ends and tsn == self.cumulative + 1:
                self.cumulative = tsn
            elif ends and tsn == ends[-1] + 1:
                ends[-1] = tsn
            else:
                starts.append(tsn)
                ends.append(tsn)
            return True
        index = bisect_left(ends, tsn)
        if starts[index] <= tsn:
            return self._duplicate(tsn)
        self._fill(index, tsn)
        return True

    def skip_to(self, tsn: int) -> None:
        """Take everything up to this TSN as arrived (RFC 3758 section 3.6)."""
        if tsn <= self.cumulative:
            return
        self.cumulative = tsn
        passed = bisect_left(self._ends, tsn)
        del self._starts[:passed], self._ends[:passed]
        if self._starts and self._starts[0] <= tsn + 1:
            self.cumulative = self._ends[0]
            del self._starts[0], self._ends[0]

    def gaps(self) -> list[int]:
        """Blocks for a SACK: start and end in turns, as offsets from the cumulative TSN; the first few."""
        if not self._ends:
            return []
        cumulative = self.cumulative
        blocks: list[int] = []
        for start, end in zip(self._starts[:MAX_GAPS], self._ends[:MAX_GAPS], strict=True):
            blocks += (start - cumulative, end - cumulative)
        return blocks

    def _fill(self, index: int, tsn: int) -> None:
        """Add a TSN that lies before range `index` and after the one before it."""
        starts, ends = self._starts, self._ends
        before = ends[index - 1] if index else self.cumulative
        joins_before, joins_after = before == tsn - 1, starts[index] == tsn + 1
        if joins_before and joins_after:
            if index:
                ends[index - 1] = ends[index]
            else:
                self.cumulative = ends[0]
            del starts[index], ends[index]
        elif joins_before:
            if index:
                ends[index - 1] = tsn
            else:
                self.cumulative = tsn
        elif joins_after:
            starts[index] = tsn
        else:
            starts.insert(index, tsn)
            ends.insert(index, tsn)

    def _duplicate(self, tsn: int) -> bool:
        if len(self.duplicates) < MAX_DUPLICATES:
            self.duplicates.append(tsn & 0xFFFF_FFFF)
        return False
