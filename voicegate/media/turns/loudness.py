"""How loudly a person usually speaks: what is said over the agent is compared with it.

Who interrupts is as loud as ever or louder; an echo, and other people in the room, are mostly softer.
"""

from __future__ import annotations

import math
from typing import Final

_LEAST: Final = 25
"""Frames of voice, half a second, without which nothing is known."""
_MOST: Final = 250
"""Frames of voice that count, the last ones most: five seconds, so that who moves closer is followed."""


class Loudness:
    """One person's, over their turns."""

    __slots__ = ("_frames", "_power")

    def __init__(self) -> None:
        self._frames = 0
        self._power = 0.0

    def hear(self, level: float) -> None:
        """A frame of their voice, dBFS."""
        if self._frames < _MOST:
            self._frames += 1
        self._power += (10 ** (level / 10) - self._power) / self._frames

    @property
    def usual(self) -> float | None:
        """Mean power, dBFS; None while too little was heard, or nothing but a plug-in's voices without
        power."""
        return 10 * math.log10(self._power) if self._frames >= _LEAST and self._power else None
