"""How many syllables a sound has so far: peaks of its level, with a dip between each and the next."""

from __future__ import annotations

import math
from typing import Final

_DIP: Final = 3.0
"""dB, of the mean of two frames: the level falls and rises by more between two syllables."""
_WEAK: Final = 15.0
"""dB below the loudest frame so far: a peak that is lower is breath, or a room's echo."""
_RANGE: Final = 30.0
"""dB below the loudest frame so far is as good as silence."""


class Syllables:
    """Of one sound, from its first voiced frame on."""

    __slots__ = ("_before", "_counted", "_extreme", "_loudest", "_rising")

    def __init__(self) -> None:
        self._counted = 0
        self._rising = True
        self._extreme = -math.inf  # the highest since it rises, or the lowest since it falls
        self._loudest = -math.inf
        self._before: float | None = None

    def hear(self, level: float) -> None:
        """A frame, dBFS; -inf without a voice. The first has one."""
        self._loudest = max(self._loudest, level)
        silent = self._loudest - _RANGE
        level = max(level, silent)
        smooth = (level + (level if self._before is None else max(self._before, silent))) / 2
        self._before = level
        if self._rising:
            if smooth >= self._extreme:
                self._extreme = smooth
            elif smooth < self._extreme - _DIP:
                self._counted = self.count
                self._rising, self._extreme = False, smooth
        elif smooth < self._extreme:
            self._extreme = smooth
        elif smooth > self._extreme + _DIP:
            self._rising, self._extreme = True, smooth

    @property
    def count(self) -> int:
        return self._counted + (self._rising and self._extreme > self._loudest - _WEAK)
