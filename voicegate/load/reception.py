"""How one call hears: gaps, evenness, how long a reply takes, how fast an interruption works. Pure.

A *talk spurt* is a run of packets whose media timestamps have no pause of SPURT_PAUSE or more; a shorter
pause is a gap that a listener hears. Within a spurt the packets should come on a grid of their timestamps,
and how far each is from it is its deviation. The grid begins with a packet, and anew every GRID_SECONDS, so
that the drift of two machines' clocks does not add up.
"""

from __future__ import annotations

from typing import Final

from voicegate.load.figures import Figures
from voicegate.proto.rtp import sequence_delta, timestamp_delta

CLOCK_RATE: Final = 48_000
"""RFC 7587 section 4.1."""
FRAME_SECONDS: Final = 0.02
SPURT_PAUSE: Final = 0.5
"""Seconds: longer than any pause inside a sentence, shorter than the silence that ends a turn by default."""
GRID_SECONDS: Final = 10.0
"""At 50 ppm, which is a poor oscillator, this is half a millisecond of drift."""
QUIET_AFTER: Final = 0.3
"""Seconds without a packet: the speaker has stopped. A burst of loss or a stall may be 0.2."""
MAX_FRAME_SECONDS: Final = 0.06
"""The longest packet that a call without ptime is likely to get: what a lost one is taken to be at most."""


class Reception:
    """What came to one client. `interrupt_after`: seconds into a reply at which the client interrupts it."""

    def __init__(self, figures: Figures, interrupt_after: float | None = None) -> None:
        self.longest_gap: float | None = None
        """Seconds between two packets of one spurt, the longest so far."""
        self._figures = figures
        self._interrupt_after = interrupt_after
        self._interrupt_at: float | None = None
        self._interrupted_at: float | None = None
        self._spoke_until: float | None = None  # when our speech ended, until it is answered
        self._newest: tuple[int, int] | None = None  # sequence and timestamp
        self._last_at = float("-inf")
        self._anchor: tuple[int, float] = (0, 0.0)  # timestamp and arrival of where the grid begins
        self._played_until = 0.0

    def packet(self, sequence: int, timestamp: int, at: float) -> None:
        """One packet of the far end, on the RTP clock of Opus, came at `at`."""
        newest = self._newest
        if newest is None:
            self._newest = sequence, timestamp
            self._begin(timestamp, at)
        else:
            ahead = sequence_delta(sequence, newest[0])
            if ahead > 0:
                self._newest = sequence, timestamp
                pause = timestamp_delta(timestamp, newest[1]) / CLOCK_RATE
                if pause - (ahead - 1) * MAX_FRAME_SECONDS >= SPURT_PAUSE:
                    self._begin(timestamp, at)
                    return
            gap = at - self._last_at
            if self.longest_gap is None or gap > self.longest_gap:
                self.longest_gap = gap
            stamp, arrival = self._anchor
            media = timestamp_delta(timestamp, stamp) / CLOCK_RATE
            self._figures.deviation.add(abs(at - arrival - media))
            if media >= GRID_SECONDS:
                self._anchor = timestamp, at
            self._played_until = max(self._played_until, at) + FRAME_SECONDS
            self._last_at = at

    def speech_ended(self, now: float) -> None:
        """Our turn is over; the next spurt is the reply."""
        self._figures.counts["turns"] += 1
        if self._spoke_until is not None:
            self._figures.counts["unanswered"] += 1
        self._spoke_until = None
        if now - self._last_at < QUIET_AFTER:
            self._figures.counts["overlapped"] += 1  # it speaks already, so nothing would begin
        else:
            self._spoke_until = now

    def should_interrupt(self, now: float) -> bool:
        """Whether it is time to interrupt the reply; call about every frame. True once for a reply."""
        if self._interrupted_at is not None and now - max(self._interrupted_at, self._last_at) >= QUIET_AFTER:
            self._settle()
        if self._interrupt_at is None or now < self._interrupt_at:
            return False
        self._interrupt_at = None
        return now - self._last_at < QUIET_AFTER  # else it ended by itself

    def interrupted(self, now: float) -> None:
        """The interruption has been sent."""
        self._figures.counts["interruptions"] += 1
        self._interrupted_at = now

    def _begin(self, timestamp: int, at: float) -> None:
        if self._interrupted_at is not None:
            self._settle()
        self._figures.counts["spurts"] += 1
        self._anchor = timestamp, at
        self._last_at = at
        self._played_until = at + FRAME_SECONDS
        if self._spoke_until is None:
            return
        self._figures.reply.add(at - self._spoke_until)
        self._spoke_until = None
        if self._interrupt_after is not None:
            self._interrupt_at = at + self._interrupt_after

    def _settle(self) -> None:
        """The interrupted spurt has ended."""
        assert self._interrupted_at is not None
        self._figures.stop.add(self._last_at - self._interrupted_at)
        self._figures.silence.add(self._played_until - self._interrupted_at)
        self._interrupted_at = None
