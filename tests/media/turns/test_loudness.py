"""voicegate.media.turns.loudness: how loud a person usually is."""

from __future__ import annotations

import math

import pytest

from voicegate.media.turns.loudness import Loudness


def after(*stretches: tuple[float, float]) -> float | None:
    """Seconds of voice, and its level."""
    loudness = Loudness()
    for seconds, level in stretches:
        for _ in range(round(seconds * 50)):
            loudness.hear(level)
    return loudness.usual


def test_half_a_second_is_needed() -> None:
    assert after() is None
    assert after((0.48, -30.0)) is None
    assert after((0.5, -30.0)) == pytest.approx(-30.0)


def test_it_is_the_mean_power() -> None:
    assert after((1.0, -20.0), (1.0, -100.0)) == pytest.approx(-23.0, abs=0.1)


def test_who_moves_closer_or_away_is_followed() -> None:
    assert after((60.0, -40.0), (10.0, -20.0)) == pytest.approx(-20.0, abs=1.0)
    assert after((60.0, -20.0), (15.0, -40.0)) == pytest.approx(-32.0, abs=2.0)


def test_voices_without_power_tell_nothing() -> None:
    """Voice activity of somebody else's may call digital silence a voice."""
    assert after((1.0, -math.inf)) is None
    assert after((1.0, -math.inf), (1.0, -30.0)) is not None
