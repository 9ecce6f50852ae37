"""A bad network for one client, one direction: what is lost, late, and overtaken. Pure and seeded."""

from __future__ import annotations

from typing import Final, NamedTuple, Protocol

REORDER_SECONDS: Final = 0.03
"""How long an overtaken packet is held: the next one of a 20-ms stream passes it, no other does."""


class Chance(Protocol):
    """`random.Random` has it."""

    def random(self) -> float: ...


class Quality(NamedTuple):
    """Shares are of 1, times are seconds."""

    loss: float = 0.0
    burst: float = 1.0
    """Packets lost in a row, on average; 1: each by itself."""
    jitter: float = 0.0
    """Each packet is late by 0 to this, evenly; the order stays."""
    reorder: float = 0.0
    """The share of packets that the next one overtakes."""

    @property
    def perfect(self) -> bool:
        return not (self.loss or self.jitter or self.reorder)


PERFECT: Final = Quality()


class Impairment:
    """One direction of one path. Loss is Gilbert's model: in the bad state everything is lost."""

    def __init__(self, quality: Quality, chance: Chance) -> None:
        self._quality = quality
        self._random = chance.random
        self._bad = False
        # Independent losses come in bursts of 1 / (1 - loss) on average; shorter ones would not be random.
        self._recover = min(1 / quality.burst, 1 - quality.loss)
        # The states' mean lengths b and g give the share lost, b / (b + g); so g follows from both.
        self._fail = quality.loss * self._recover / (1 - quality.loss) if quality.loss < 1 else 1.0
        self._latest = float("-inf")

    def deliver_at(self, now: float) -> float | None:
        """When a packet that is sent now arrives; None: never."""
        quality = self._quality
        if quality.loss:
            self._bad = self._random() >= self._recover if self._bad else self._random() < self._fail
            if self._bad:
                return None
        if quality.reorder and self._random() < quality.reorder:
            return max(now, self._latest) + REORDER_SECONDS
        at = now + self._random() * quality.jitter if quality.jitter else now
        self._latest = max(self._latest, at)
        return self._latest
