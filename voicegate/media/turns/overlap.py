"""What the microphone hears while the agent speaks, from its first voiced frame until it is decided."""

from __future__ import annotations

import math

from voicegate.media.codec import FRAME_SAMPLES, PCM_RATE
from voicegate.media.turns.plugins import Hop


class OpenOverlap:
    """Not decided yet."""

    __slots__ = ("_power", "_voiced", "last_voice", "likely", "onset", "said")

    def __init__(self, onset: int) -> None:
        self.onset = onset
        """Sample of its first voice."""
        self.last_voice = onset
        """Sample at which its last voice ended."""
        self.likely = False
        """Whether its voice ever went on for longer than a click."""
        self.said: str | None = None
        self._voiced = 0
        self._power = 0.0

    def hear(self, hop: Hop, position: int, likely: bool) -> None:
        """A frame that ends at `position`."""
        self.likely = self.likely or likely
        if hop.voiced:
            self.last_voice = position
            self._voiced += 1
            self._power += 10 ** (hop.level / 10)

    def seconds(self, position: int) -> float:
        """Since its first voice, at this sample."""
        return (position - self.onset) / PCM_RATE

    @property
    def voiced(self) -> float:
        """Seconds."""
        return self._voiced * FRAME_SAMPLES / PCM_RATE

    @property
    def level(self) -> float:
        """Mean of the voiced frames, dBFS."""
        return 10 * math.log10(self._power / self._voiced) if self._power else -100.0
