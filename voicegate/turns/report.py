"""What an evaluation found, as tables for a person and as JSON."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import asdict
from typing import Any

from voicegate.turns.overlaps import KindFigures
from voicegate.turns.sweep import CUT_IN_BUDGET, WAIT_BUDGETS, Sweep


def turns_table(sweeps: Mapping[str, Sweep], turns: int, pauses: int) -> list[str]:
    """A row a judge: at its best for a budget, and as it is."""
    head = ["judge", "cut-ins@300ms", "cut-ins@600ms", "wait@5%", "cut-ins", "wait", "p50", "p95", "unended"]
    rows = [
        [
            name,
            *(_percent(sweep.cut_ins_at(wait)) for wait in WAIT_BUDGETS),
            _milliseconds(sweep.wait_at(CUT_IN_BUDGET)),
            _percent(sweep.default.cut_ins),
            *map(_milliseconds, (sweep.default.mean_wait, sweep.default.p50, sweep.default.p95)),
            str(sweep.default.unended),
        ]
        for name, sweep in sweeps.items()
    ]
    return [
        f"{turns} turns with {pauses} pauses. The last five columns: the judge as it is.",
        *_aligned([head, *rows]),
    ]


def overlaps_table(kinds: Sequence[KindFigures], every: KindFigures | None) -> list[str]:
    """A row a kind; all barge-ins together at the end."""
    head = [
        "kind",
        "count",
        "paused",
        "idle/min",
        "stopped",
        "pause p50",
        "p95",
        "stop p50",
        "p95",
        "gap p50",
        "p95",
    ]
    rows = [
        [
            each.kind,
            str(each.count),
            _percent(each.paused),
            f"{each.idle:.1f}",
            _percent(each.stopped),
            *(
                _milliseconds(value)
                for pair in (each.pause, each.stop, each.gap)
                for value in pair or (None,) * 2
            ),
        ]
        for each in [*kinds, *([every] if every else [])]
    ]
    false = [each for each in kinds if not each.barge_in]
    lines = _aligned([head, *rows])
    if false:
        lines.append(
            "False stops: " + ", ".join(f"{each.kind} {_percent(each.stopped)}" for each in false) + "."
        )
    if every:
        lines.append(f"Missed barge-ins: {_percent(1 - every.stopped)}.")
    return lines


def turns_json(sweeps: Mapping[str, Sweep]) -> dict[str, Any]:
    """Seconds and shares; null where no operating point keeps the budget."""
    return {
        name: {
            "cut_ins_at_300_ms": sweep.cut_ins_at(0.3),
            "cut_ins_at_600_ms": sweep.cut_ins_at(0.6),
            "wait_at_5_percent": sweep.wait_at(CUT_IN_BUDGET),
            "default": asdict(sweep.default),
            "points": [asdict(point) for point in sweep.points],
        }
        for name, sweep in sweeps.items()
    }


def overlaps_json(kinds: Sequence[KindFigures], every: KindFigures | None) -> dict[str, Any]:
    """Seconds and shares; null where that many were not decided."""
    return {each.kind: _finite(asdict(each)) for each in [*kinds, *([every] if every else [])]}


def _finite(value: Any) -> Any:
    if isinstance(value, dict):
        return {key: _finite(each) for key, each in value.items()}
    if isinstance(value, tuple):
        return [_finite(each) for each in value]
    return None if isinstance(value, float) and not math.isfinite(value) else value


def _percent(share: float | None) -> str:
    return "-" if share is None else f"{100 * share:.1f} %"


def _milliseconds(seconds: float | None) -> str:
    if seconds is None:
        return "-"
    return "never" if math.isinf(seconds) else f"{1000 * seconds:.0f} ms"


def _aligned(rows: Sequence[Sequence[str]]) -> list[str]:
    widths = [max(map(len, column)) for column in zip(*rows, strict=True)]
    return [
        "  ".join(
            [row[0].ljust(widths[0]), *(cell.rjust(w) for cell, w in zip(row[1:], widths[1:], strict=True))]
        )
        for row in rows
    ]
