"""A timer wheel for many things that each want to be called every 20 ms, at their own phase. Pure."""

from __future__ import annotations

import math
from collections.abc import Iterator
from typing import Final, Generic, TypeVar

T = TypeVar("T")

TURN: Final = 0.02
SLOTS: Final = 20
"""A millisecond each: what epoll can wait to."""
_SLOT = TURN / SLOTS
_MARGIN = 0.01
"""Of a slot: a deadline that is a sum of many 0.02 has an error, and must not be missed by it."""


class Wheel(Generic[T]):
    """Deadlines are absolute: slot number n, counted from time 0, is due at n milliseconds."""

    def __init__(self, now: float) -> None:
        self._slots: list[list[T]] = [[] for _ in range(SLOTS)]
        self._next = math.ceil(now / _SLOT)
        self.size = 0

    def add(self, item: T, phase: float) -> int:
        """Let it be due at `phase`, to the next millisecond, and at every 20 ms from there; its slot."""
        slot = math.ceil(phase / _SLOT + _MARGIN) % SLOTS
        self._slots[slot].append(item)
        self.size += 1
        return slot

    def remove(self, item: T, slot: int) -> None:
        self._slots[slot].remove(item)
        self.size -= 1

    def due(self, now: float) -> Iterator[tuple[T, float]]:
        """Everything that has become due since the last call, each once, and when that was."""
        last = math.floor(now / _SLOT)
        first = max(self._next, last - SLOTS + 1)  # after a stall of more than a turn each is due once
        self._next = max(self._next, last + 1)
        for number in range(first, last + 1):
            slot = self._slots[number % SLOTS]
            if slot:
                for item in tuple(slot):
                    yield item, number * _SLOT

    def next_deadline(self) -> float | None:
        """When the next slot with something in it is due."""
        for number in range(self._next, self._next + SLOTS):
            if self._slots[number % SLOTS]:
                return number * _SLOT
        return None
