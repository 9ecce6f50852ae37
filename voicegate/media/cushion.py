"""How long the first frame of an answer is held back, learned from how late this call's agent was before.

An agent that keeps ahead of the listener is never held back: its answers start at once. One that delivers in
fits lets the queue run dry, and a gap is heard. So each stretch of audio is compared with the moment at which
it would have been due if the answer had started with its first frame and never paused: what it is late by is
the cushion that the answer needed. A new worst is believed at once. An answer that needed less takes a
quarter of the difference off: after one bad answer of 60 ms, eight good ones start at once again.

A pause longer than MAX_HOLD is not learned from. It would be heard whatever is held back, so holding back
would only add to it.
"""

from __future__ import annotations

from typing import Final

from voicegate.media.codec import FRAME_SECONDS

MAX_HOLD: Final = 0.1
"""Five frames: what is left of the 150 ms one way that most people do not mind (ITU-T G.114), after a path of
about 50 ms."""
MARGIN: Final = 0.005
"""On top of the worst seen: the next one may be a little worse."""
_NOISE: Final = 0.002
"""Lateness that is nobody's fault, and a hold that is not worth having."""
_DECAY: Final = 0.25


class Cushion:
    """One call's. Seconds throughout."""

    __slots__ = ("_began", "_frames", "_worst", "hold")

    def __init__(self) -> None:
        self.hold = 0.0
        """By how much the next answer starts later than it could."""
        self._began: float | None = None
        """When the answer could have started; None between answers."""
        self._frames = 0
        self._worst = 0.0

    def frames_came(self, count: int, now: float) -> float:
        """So many more frames of the answer are there. Returns when the first of them should be sent."""
        if self._began is None:
            self._begin(now)
        assert self._began is not None, "just begun"
        at_the_latest = self._began + self._frames * FRAME_SECONDS
        late = now - at_the_latest
        if late > MAX_HOLD:
            self._begin(at_the_latest := now)
        elif late > self._worst:
            self._worst = late
            if late > _NOISE:
                self.hold = max(self.hold, min(MAX_HOLD, late + MARGIN))
        self._frames += count
        return at_the_latest + self.hold

    def answer_over(self) -> None:
        """All of the answer has come: what it did not need is unlearned."""
        if self._began is None:
            return
        self._began = None
        needed = self._worst + MARGIN if self._worst > _NOISE else 0.0
        if needed < self.hold:
            self.hold -= (self.hold - needed) * _DECAY
            if self.hold < MARGIN + _NOISE:
                self.hold = 0.0

    def answer_cut(self) -> None:
        """The rest of the answer will not come, or nobody wants it: it says nothing about the agent."""
        self._began = None

    def _begin(self, now: float) -> None:
        self._began = now
        self._frames = 0
        self._worst = 0.0
