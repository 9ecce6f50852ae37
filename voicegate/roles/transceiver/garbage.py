"""Python's cyclic garbage collection, kept out of the way of frames.

A full collection looks at every object of the process, in one piece: 34 ms with the modules loaded and no
call yet (measured). What is there at the start is therefore taken out of its sight (`gc.freeze`), and full
collections happen when there are no calls, or when so many have ended that what they left must go.
"""

from __future__ import annotations

import gc
from typing import Final

YOUNG: Final = 10_000
"""New objects between two collections of the young: frames make none that stay, set-ups do."""
MIDDLE: Final = 20
"""Collections of the young before one of the middle-aged."""
NEVER: Final = 1_000_000
"""Collections of the middle-aged before a full one by itself."""
MAX_ENDED: Final = 2_000
"""Ended calls before a full collection while others go on. Had each left 0.1 MB in a cycle, 200 MB."""


class Garbage:
    """In force from its making to `close`, for the whole process."""

    def __init__(self) -> None:
        self._before = gc.get_threshold()
        self._ended = 0
        gc.collect()
        gc.freeze()
        gc.set_threshold(YOUNG, MIDDLE, NEVER)

    def call_ended(self) -> None:
        self._ended += 1

    def look(self, calls: int) -> None:
        """Collect if it is time to; `calls` are here now."""
        if self._ended > (MAX_ENDED if calls else 0):
            self._ended = 0
            gc.collect()

    def close(self) -> None:
        gc.set_threshold(*self._before)
        gc.unfreeze()
