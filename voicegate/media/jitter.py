"""Two measures of the way in: how long a gap may wait, and how much sound real time allows. Pure."""

from __future__ import annotations

from typing import Final

from voicegate.media.codec import PCM_RATE
from voicegate.proto.rtp import timestamp_delta

MIN_WAIT: Final = 0.02
"""One frame: a pair of swapped packets is always put right."""
MAX_WAIT: Final = 0.06
"""What later packets may be held back: three frames, beyond which the wait hurts more than the loss."""
_ALLOWANCE_CAP = 10.0 * PCM_RATE
"""Samples that may be given out in one burst: twice the longest silence inserted at once."""
_ALLOWANCE_RATE = 1.05 * PCM_RATE
"""Samples a second: real time, and more than any clock is wrong."""


class Jitter:
    """How far packets stray from their timestamps: the largest recent deviation, halving in 34 packets."""

    __slots__ = ("_at", "_clock_rate", "_deviation", "_timestamp", "wait")

    def __init__(self, clock_rate: int) -> None:
        self.wait = MIN_WAIT
        """Seconds after which a packet is not merely late: MIN_WAIT to MAX_WAIT."""
        self._clock_rate = clock_rate
        self._deviation = 0.0
        self._timestamp = 0
        self._at: float | None = None

    def update(self, timestamp: int, now: float) -> None:
        """RFC 3550 section 6.4.1: D(i-1,i), here in seconds and as a decaying peak instead of a mean."""
        if self._at is not None:
            spread = abs(now - self._at - timestamp_delta(timestamp, self._timestamp) / self._clock_rate)
            deviation = self._deviation * 0.98
            if spread > deviation:
                deviation = spread if spread < MAX_WAIT else MAX_WAIT
            self._deviation = deviation
            self.wait = deviation if deviation > MIN_WAIT else MIN_WAIT
        self._timestamp = timestamp
        self._at = now

    def forget(self) -> None:
        """The next packet is of another clock."""
        self._at = None


class Allowance:
    """A bucket of samples that fills in real time: what may still be given out."""

    __slots__ = ("_at", "_samples")

    def __init__(self) -> None:
        self._samples = _ALLOWANCE_CAP
        self._at: float | None = None

    def refill(self, now: float) -> bool:
        """Add the time that has passed; whether anything may be given out."""
        if self._at is not None:
            self._samples = min(_ALLOWANCE_CAP, self._samples + (now - self._at) * _ALLOWANCE_RATE)
        self._at = now
        return self._samples > 0

    def samples(self) -> int:
        return max(0, int(self._samples))

    def spend(self, samples: int) -> None:
        self._samples -= samples
