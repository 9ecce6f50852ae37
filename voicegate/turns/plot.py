"""False cut-ins over the mean wait, a line a judge, as an SVG."""

from __future__ import annotations

from collections.abc import Mapping
from html import escape
from typing import Final

from voicegate.turns.sweep import Sweep

_WIDTH, _HEIGHT = 640, 400
_LEFT, _RIGHT, _TOP, _BOTTOM = 60, 20, 20, 50
_MAX_WAIT: Final = 2.0
"""Seconds. Nobody waits longer for an answer."""
_COLOURS: Final = ("#1b6ca8", "#c1440e", "#2e7d32", "#7b3fa0", "#8a6d00", "#555555")


def svg(sweeps: Mapping[str, Sweep]) -> str:
    """The best points of each judge; a ring marks the judge as it is."""
    most = max((point.cut_ins for sweep in sweeps.values() for point in sweep.points), default=1.0) or 1.0
    parts = [
        f'<svg xmlns="http://www.w3.org/2000/svg" viewBox="0 0 {_WIDTH} {_HEIGHT}" font-family="sans-serif"'
        ' font-size="12">',
        f'<rect width="{_WIDTH}" height="{_HEIGHT}" fill="white"/>',
        *_axes(most),
    ]
    for place, (name, sweep) in enumerate(sweeps.items()):
        colour = _COLOURS[place % len(_COLOURS)]
        shown = [point for point in sweep.frontier() if point.mean_wait <= _MAX_WAIT]
        line = " ".join(f"{_x(point.mean_wait):.1f},{_y(point.cut_ins, most):.1f}" for point in shown)
        parts.append(f'<polyline points="{line}" fill="none" stroke="{colour}" stroke-width="2"/>')
        if sweep.default.mean_wait <= _MAX_WAIT:
            x, y = _x(sweep.default.mean_wait), _y(sweep.default.cut_ins, most)
            parts.append(f'<circle cx="{x:.1f}" cy="{y:.1f}" r="5" fill="white" stroke="{colour}"/>')
        x, y = _WIDTH - _RIGHT - 8, _TOP + 16 + 18 * place
        parts.append(f'<text x="{x}" y="{y}" fill="{colour}" text-anchor="end">{escape(name)}</text>')
    return "\n".join([*parts, "</svg>", ""])


def _axes(most: float) -> list[str]:
    x0, y0, x1 = _x(0), _y(0, most), _x(_MAX_WAIT)
    parts = [f'<path d="M{x0} {_TOP} V{y0} H{x1}" fill="none" stroke="black"/>']
    for tenth in range(0, round(10 * _MAX_WAIT) + 1, 2):
        x = _x(tenth / 10)
        parts.append(f'<text x="{x:.1f}" y="{y0 + 16:.0f}" text-anchor="middle">{100 * tenth}</text>')
    for percent in range(0, round(100 * most) + 1, 10):
        y = _y(percent / 100, most)
        parts.append(f'<path d="M{x0} {y:.1f} H{x1}" stroke="#dddddd"/>')
        parts.append(f'<text x="{x0 - 6}" y="{y + 4:.1f}" text-anchor="end">{percent} %</text>')
    middle = (x0 + x1) / 2
    parts.append(f'<text x="{middle:.0f}" y="{_HEIGHT - 12}" text-anchor="middle">mean wait, ms</text>')
    parts.append(f'<text x="{x0 + 6}" y="{_TOP + 4}">turns cut into</text>')
    return parts


def _x(wait: float) -> float:
    return _LEFT + wait / _MAX_WAIT * (_WIDTH - _LEFT - _RIGHT)


def _y(share: float, most: float) -> float:
    return _HEIGHT - _BOTTOM - share / most * (_HEIGHT - _TOP - _BOTTOM - 10)
