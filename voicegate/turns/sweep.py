"""A judge's operating points, and what it reaches at its best for a budget.

The definitions are those of eot-bench. *False cut-ins*: the share of turns that the machine ends before their
true end. *Mean wait*: over all turns, from the true end to the machine's end. *False cut-ins at 300 ms*: of
the operating points whose mean wait is at most 300 ms, the least share. *Wait at 5 %*: of the operating
points with at most 5 % false cut-ins, the least mean wait.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from math import ceil, sqrt
from typing import Final

from voicegate.turns.evaluate import Outcome

WAIT_BUDGETS: Final = (0.3, 0.6)
CUT_IN_BUDGET: Final = 0.05
_LEAST, _MOST = 0.15, 10.0
"""Of patience: a fixed silence of half a second becomes 75 ms, less than any pause, to 4.5 s, more than
any."""
_STEP: Final = 1.45
_HALVINGS: Final = 5
"""Of a step: to less than a hundredth of the wait."""


@dataclass(frozen=True, slots=True)
class Point:
    """What a judge does at one operating point. Seconds; shares are 0 to 1."""

    patience: float
    """What was asked of the judge (`TurnSettings.patience`); 1 is the judge as it is."""
    cut_ins: float
    mean_wait: float
    p50: float
    p95: float
    unended: int
    """Turns that the machine had not ended when their recording was over."""


@dataclass(frozen=True, slots=True)
class Sweep:
    """All points, from hasty to patient."""

    default: Point
    points: tuple[Point, ...]

    def cut_ins_at(self, wait: float) -> float | None:
        """The least share of false cut-ins with at most this mean wait; None where no point waits so
        little."""
        return min((point.cut_ins for point in self.points if point.mean_wait <= wait), default=None)

    def wait_at(self, cut_ins: float) -> float | None:
        """The least mean wait with at most this share of false cut-ins; None where no point has so few."""
        return min((point.mean_wait for point in self.points if point.cut_ins <= cut_ins), default=None)

    def frontier(self) -> list[Point]:
        """The points that no other beats in both, by rising wait."""
        best: list[Point] = []
        for point in sorted(self.points, key=lambda point: (point.mean_wait, point.cut_ins)):
            if not best or point.cut_ins < best[-1].cut_ins:
                best.append(point)
        return best


def sweep(run: Callable[[float], Sequence[Outcome]]) -> Sweep:
    """`run` gives the outcomes at a patience. A coarse grid, then finer where a budget is crossed."""
    points: dict[float, Point] = {}

    def at(patience: float) -> Point:
        if patience not in points:
            points[patience] = _point(patience, run(patience))
        return points[patience]

    default = at(1.0)
    patience = _LEAST
    while patience <= _MOST:
        if at(patience).cut_ins == 0:
            break  # more patience only costs
        patience *= _STEP
    for wait in WAIT_BUDGETS:
        _close_in(points, at, lambda point, wait=wait: point.mean_wait <= wait)  # type: ignore[misc]
    _close_in(points, at, lambda point: point.cut_ins > CUT_IN_BUDGET)
    return Sweep(default, tuple(points[patience] for patience in sorted(points)))


def _close_in(
    points: dict[float, Point], at: Callable[[float], Point], below: Callable[[Point], bool]
) -> None:
    """Look closer between the last point of the grid that is `below` the budget and the next."""
    tried = sorted(points)
    low = max((patience for patience in tried if below(points[patience])), default=None)
    if low is None or low == tried[-1]:
        return
    high = tried[tried.index(low) + 1]
    for _ in range(_HALVINGS):
        middle = sqrt(low * high)
        if below(at(middle)):
            low = middle
        else:
            high = middle


def _point(patience: float, outcomes: Sequence[Outcome]) -> Point:
    waits = sorted(outcome.wait for outcome in outcomes)
    return Point(
        patience,
        sum(outcome.cut_in for outcome in outcomes) / len(outcomes),
        sum(waits) / len(waits),
        percentile(waits, 0.5),
        percentile(waits, 0.95),
        sum(not outcome.ended for outcome in outcomes),
    )


def percentile(rising: Sequence[float], share: float) -> float:
    """The value that `share` of all do not exceed: the nearest rank."""
    return rising[max(1, ceil(share * len(rising))) - 1]
