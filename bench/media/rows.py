"""One line of the table: what was measured, and what was asked for."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

Figures = dict[str, Any]


@dataclass(frozen=True, slots=True)
class Row:
    """`goal` None: shown, not judged. `at_least`: more is better."""

    what: str
    measured: float
    unit: str
    goal: float | None = None
    at_least: bool = False

    @property
    def reached(self) -> bool | None:
        if self.goal is None:
            return None
        return self.measured >= self.goal if self.at_least else self.measured <= self.goal

    def cells(self) -> list[str]:
        sign = ">=" if self.at_least else "<="
        goal = "" if self.goal is None else f"{sign} {_number(self.goal)}{self.unit}"
        verdict = {None: "", True: "reached", False: "missed"}[self.reached]
        return [self.what, f"{_number(self.measured)}{self.unit}", goal, verdict]

    def data(self) -> dict[str, object]:
        return {
            "what": self.what,
            "measured": self.measured,
            "unit": self.unit.strip(),
            "goal": self.goal,
            "at_least": self.at_least,
            "reached": self.reached,
        }


Rows = tuple[list[Row], Figures]
"""What a section adds to the table, and all that it measured."""


def _number(value: float) -> str:
    return f"{value:.0f}" if abs(value) >= 100 else f"{value:.1f}" if abs(value) >= 10 else f"{value:.2f}"
