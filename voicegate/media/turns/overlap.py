"""What the microphone hears while the agent speaks, from its first voiced frame until it is decided."""

from __future__ import annotations

import math
from typing import Final

from voicegate.media.codec import FRAME_SECONDS, PCM_RATE
from voicegate.media.turns.plugins import Hop

STRONG: Final = 12.0
"""dB below its loudest frame. A cough falls by 10 dB in 0.1 s from its beginning; speech stays and comes back
there with every syllable."""


class OpenOverlap:
    """Not decided yet."""

    __slots__ = ("_echoes", "_levels", "_voiced", "last_voice", "likely", "onset", "said")

    def __init__(self, onset: int) -> None:
        self.onset = onset
        """Sample of its first voice."""
        self.last_voice = onset
        """Sample at which its last voice ended."""
        self.likely = False
        """Whether its voice ever went on for longer than a click."""
        self.said: str | None = None
        self._echoes = 0
        self._levels: list[float] = []  # of its voiced frames, dBFS

    def hear(self, hop: Hop, echo: bool, position: int, likely: bool) -> None:
        """A frame that ends at `position`. `echo`: there was voice in it, but the agent's own."""
        self._echoes += echo
        self.likely = self.likely or likely
        if hop.voiced:
            self.last_voice = position
            self._levels.append(hop.level)

    def seconds(self, position: int) -> float:
        """Since its first voice, at this sample."""
        return (position - self.onset) / PCM_RATE

    @property
    def voiced(self) -> float:
        """Seconds."""
        return len(self._levels) * FRAME_SECONDS

    @property
    def strong(self) -> float:
        """Seconds of it that are nearly as loud as its loudest."""
        least = max(self._levels, default=0.0) - STRONG
        return sum(level >= least for level in self._levels) * FRAME_SECONDS

    @property
    def echo(self) -> float:
        """How much of all voice in it was the agent's own."""
        return self._echoes / (self._echoes + len(self._levels)) if self._echoes else 0.0

    @property
    def level(self) -> float:
        """Mean of the voiced frames, dBFS."""
        power = sum(10 ** (level / 10) for level in self._levels)
        return 10 * math.log10(power / len(self._levels)) if power else -100.0
