"""What a judge could reach on the labelled set that knew every tone before a pause or an end, and no more.

It waits so long after each tone, as is best for the very turns it is measured on. No judge that goes by tones
alone does better; what does has learned the speaker, or the words.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np

_HOLDS = np.arange(0.1, 2.15, 0.05)
_PRICES = np.geomspace(0.02, 3, 30)
"""Of a second of waiting, in false cut-ins."""


class Oracle:
    """Of the rows of a `drawn.jsonl`."""

    def __init__(self, rows: Sequence[dict[str, Any]]) -> None:
        tones = sorted({tone for row in rows for tone in row["tones"]})
        pauses = [
            (place, end - begin, tones.index(tone))
            for place, row in enumerate(rows)
            for (begin, end), tone in zip(row["pauses"], row["tones"], strict=False)
        ]
        self._turns = len(rows)
        self._turn, self._length, self._tone = map(np.array, zip(*pauses, strict=True))
        ends = [tones.index(row["tones"][-1]) for row in rows]
        self._ends = np.bincount(ends, minlength=len(tones)) / len(rows)
        self._best = {price: self._best_holds(price) for price in _PRICES.tolist()}

    def cut_ins_at(self, wait: float) -> float:
        """No holds with at most this mean wait cut into fewer turns.

        For every price, cut-ins + price * wait is at its least in the holds that are best at this price.
        """
        return max(
            self._cut_ins(holds) + price * (self._wait(holds) - wait) for price, holds in self._best.items()
        )

    def wait_at(self, cut_ins: float) -> float:
        """No holds with at most so many cut-ins wait for less."""
        return max(
            self._wait(holds) + (self._cut_ins(holds) - cut_ins) / price
            for price, holds in self._best.items()
        )

    def silence_at(self, cut_ins: float) -> float:
        """The wait of one silence for all."""
        everywhere = np.ones(len(self._ends))
        return next(hold for hold in _HOLDS.tolist() if self._cut_ins(hold * everywhere) <= cut_ins)

    def silence_cut_ins_at(self, wait: float) -> float:
        return self._cut_ins(np.full(len(self._ends), wait))

    def _best_holds(self, price: float) -> np.ndarray:
        holds = np.full(len(self._ends), 0.6)
        for _ in range(4):
            for tone in range(len(holds)):
                tried = np.repeat(holds[None], len(_HOLDS), axis=0)
                tried[:, tone] = _HOLDS
                costs = [self._cut_ins(each) + price * self._wait(each) for each in tried]
                holds = tried[int(np.argmin(costs))]
        return holds

    def _cut_ins(self, holds: np.ndarray) -> float:
        return len(np.unique(self._turn[self._length > holds[self._tone]])) / self._turns

    def _wait(self, holds: np.ndarray) -> float:
        return float(self._ends @ holds)
