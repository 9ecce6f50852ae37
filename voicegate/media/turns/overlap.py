"""What the microphone hears while the agent speaks, from its first voiced frame until it is decided."""

from __future__ import annotations

import math
from collections import deque
from operator import and_
from typing import Final

from voicegate.media.codec import FRAME_SECONDS, PCM_RATE
from voicegate.media.turns.pitch import has_pitch
from voicegate.media.turns.plugins import OVERLAP_WINDOW, Hop
from voicegate.media.turns.syllables import Syllables

STRONG: Final = 12.0
"""dB below its loudest frame. A cough falls by 10 dB in 0.1 s from its beginning; speech stays and comes back
there with every syllable."""
_UNVOICED: Final = -math.inf


class OpenOverlap:
    """Not decided yet. Its figures look back for OVERLAP_WINDOW."""

    __slots__ = ("_echoes", "_levels", "_pitches", "_syllables", "last_voice", "likely", "onset", "said")

    def __init__(self, onset: int) -> None:
        self.onset = onset
        """Sample of its first voice."""
        self.last_voice = onset
        """Sample at which its last voice ended."""
        self.likely = False
        """Whether its voice ever went on for longer than a click."""
        self.said: str | None = None
        frames = round(OVERLAP_WINDOW / FRAME_SECONDS)
        self._levels: deque[float] = deque(maxlen=frames)  # of each frame, dBFS
        self._echoes: deque[bool] = deque(maxlen=frames)
        self._pitches: deque[bool] = deque(maxlen=frames)
        self._syllables = Syllables()

    def hear(self, hop: Hop, echo: bool, position: int, likely: bool, pcm: bytes) -> None:
        """A frame that ends at `position`. `echo`: there was voice in it, but the agent's own. `pcm`: it, and
        the frame before."""
        self._echoes.append(echo)
        self._pitches.append(hop.voiced and has_pitch(pcm))
        level = hop.level if hop.voiced else _UNVOICED
        self._levels.append(level)
        self._syllables.hear(level)
        self.likely = self.likely or likely
        if hop.voiced:
            self.last_voice = position

    def seconds(self, position: int) -> float:
        """Since its first voice, at this sample."""
        return (position - self.onset) / PCM_RATE

    @property
    def voiced(self) -> float:
        """Seconds."""
        return (len(self._levels) - self._levels.count(_UNVOICED)) * FRAME_SECONDS

    def strong(self) -> tuple[float, float]:
        """Seconds of voice that are nearly as loud as its loudest, and seconds of those that have a pitch."""
        least = max(self._levels, default=_UNVOICED) - STRONG
        strong = [level >= least > _UNVOICED for level in self._levels]
        return sum(strong) * FRAME_SECONDS, sum(map(and_, strong, self._pitches)) * FRAME_SECONDS

    @property
    def syllables(self) -> int:
        """Since its first voice."""
        return self._syllables.count

    @property
    def echo(self) -> float:
        """How much of all voice in it was the agent's own."""
        echoes = self._echoes.count(True)
        return echoes / (echoes + self.voiced / FRAME_SECONDS) if echoes else 0.0

    @property
    def level(self) -> float:
        """Mean of the voiced frames, dBFS."""
        voiced = [level for level in self._levels if level != _UNVOICED]
        power = sum(10 ** (level / 10) for level in voiced)
        return 10 * math.log10(power / len(voiced)) if power else -100.0
