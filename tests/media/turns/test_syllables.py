"""voicegate.media.turns.syllables: peaks of a level, counted while it is heard."""

from __future__ import annotations

import math

import pytest
from hypothesis import given
from hypothesis import strategies as st

from voicegate.media.turns.syllables import Syllables

NONE = -math.inf


def counted(levels: list[float]) -> list[int]:
    syllables = Syllables()
    counts = []
    for level in levels:
        syllables.hear(level)
        counts.append(syllables.count)
    return counts


@pytest.mark.parametrize(
    "levels, count",
    [
        ([-20.0], 1),
        ([-20.0] * 30, 1),
        ([-30, -26, -22, -20, -20, -23, -27, -31], 1),
        ([-20, -20, -28, -30, -22, -20, -20, NONE], 2),
        ([-20, -20, NONE, NONE, -22, -20], 2),
        ([-20, -20, -22, -21, -20, -20], 1),  # within a vowel
        ([-20, -20, -45, -45, -38, -38, -45, -45], 1),  # a breath behind it
        ([-40, -40, -50, -50, -20, -20], 2),  # it was loud when it came
        ([-20, -20, -30, -30] * 4, 4),
    ],
)
def test_a_sound(levels: list[float], count: int) -> None:
    assert counted([float(level) for level in levels])[-1] == count


@given(st.lists(st.one_of(st.just(NONE), st.floats(-100, 0)), max_size=200))
def test_any_sound_has_no_more_than_a_syllable_in_two_frames(levels: list[float]) -> None:
    counts = counted([-30.0, *levels])
    assert all(0 <= count <= 1 + place / 2 for place, count in enumerate(counts))
