"""Distributions that may be fed for hours: what a run has measured, in bounded memory."""

from __future__ import annotations

from collections import Counter
from typing import Final

STEP: Final = 1e-4
"""Seconds. A tenth of a millisecond is below what a user-space receiver can tell."""
LIMIT: Final = 60.0
"""Seconds; with STEP it bounds the memory. Nothing that is measured here is of use when it is longer."""


class Histogram:
    """Times, in seconds, kept to a tenth of a millisecond; the largest exactly."""

    __slots__ = ("_counts", "count", "largest")

    def __init__(self) -> None:
        self._counts: dict[int, int] = {}
        self.count = 0
        self.largest = 0.0

    def add(self, seconds: float) -> None:
        """Count one value; what is negative is 0, what is above LIMIT is LIMIT."""
        place = int(min(max(seconds, 0.0), LIMIT) / STEP + 0.5)
        self._counts[place] = self._counts.get(place, 0) + 1
        self.count += 1
        if seconds > self.largest:
            self.largest = seconds

    def percentile(self, share: float) -> float | None:
        """The value that `share` (0 to 1) of all do not exceed: the nearest rank. None of nothing."""
        if not self.count:
            return None
        rank = max(1, -int(-share * self.count // 1))  # rounded up
        seen = 0
        for place in sorted(self._counts):
            seen += self._counts[place]
            if seen >= rank:
                return place * STEP
        raise AssertionError("the counts add up to `count`")


class Figures:
    """What all calls of a run share. Times are seconds."""

    def __init__(self) -> None:
        self.answer = Histogram()
        """From the start of the POST to the answer."""
        self.connect = Histogram()
        """From the answer to the end of the DTLS handshake."""
        self.deviation = Histogram()
        """Of each packet from its talk spurt's grid."""
        self.reply = Histogram()
        """From the last packet of our speech to the first packet of the reply."""
        self.stop = Histogram()
        """From an interruption to the last packet of what was interrupted."""
        self.silence = Histogram()
        """From an interruption until what had come was played."""
        self.counts: Counter[str] = Counter()
        """spurts; turns, of which unanswered or overlapped; interruptions."""
