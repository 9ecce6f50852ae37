"""voicegate.media.turns.prosody: how the pitch and the sound of the last words move, on voices of known
pitch."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from numpy.typing import NDArray

from voicegate.media.turns.prosody import SPAN, Cues, Prosody

RATE = 24_000
Track = NDArray[np.float64]


def vowel(
    hertz: Track | float, seconds: float, *, gain: Track | float = 1.0, formant: Track | float = 700.0
) -> bytes:
    """A buzz with that pitch, strongest about `formant`, s16le."""
    count = int(seconds * RATE)

    def over_time(track: Track | float) -> Track:
        return np.interp(np.linspace(0, 1, count), np.linspace(0, 1, np.size(track)), np.atleast_1d(track))

    pitch, centre = over_time(hertz), over_time(formant)
    phase = 2 * np.pi * np.cumsum(pitch) / RATE
    sound = sum(
        np.sin(n * phase) * np.exp(-((n * pitch.mean() - centre) ** 2) / 2 / 500**2) for n in range(1, 15)
    )
    return (2500 * over_time(gain) * sound).clip(-32768, 32767).astype("<i2").tobytes()


def cues(pcm: bytes, speaker: Prosody | None = None) -> Cues:
    found = (speaker or Prosody()).cues(pcm)
    assert found is not None
    return found


SPEECH = np.array([400.0, 1500.0, 500.0, 1300.0, 350.0])
"""A formant that moves as in syllables, for a third of a second."""


def semitones(*steps: float, base: float = 150.0) -> Track:
    return base * 2 ** (np.array(steps) / 12)


def noise(seconds: float, amplitude: float) -> Track:
    return amplitude * np.random.default_rng(3).standard_normal(int(seconds * RATE))


@pytest.mark.parametrize("base", [85.0, 120.0, 180.0, 260.0, 400.0])
def test_a_fall_a_level_and_a_rise(base: float) -> None:
    fall = cues(vowel(semitones(4, 4, 4, 2, -1, base=base), 0.8))
    level = cues(vowel(semitones(0, 0, base=base), 0.8))
    rise = cues(vowel(semitones(0, 0, 0, 0, 5, base=base), 0.8))
    assert fall.height < 0.5
    assert fall.rise < -1.5
    assert level.rise == pytest.approx(0, abs=0.1)
    assert rise.rise > 3
    assert rise.height > 3


def test_in_noise_too() -> None:
    fall = np.frombuffer(vowel(semitones(4, 4, 4, 2, -1), 0.8), "<i2").astype(float)
    loud = (fall + noise(0.8, np.sqrt(np.mean(fall**2)) / 3)).astype("<i2").tobytes()  # 10 dB
    assert cues(loud).height < 0.5
    assert cues(loud).rise < -1.5


@pytest.mark.parametrize("base", [90.0, 130.0, 200.0, 280.0])
def test_the_sound_of_a_filled_pause_does_not_change(base: float) -> None:
    """Whatever the pitch does, and in noise of 15 dB less."""
    falling = semitones(2, 1, 0, -1, base=base)
    um = vowel(falling, 0.35)
    words = vowel(falling, 0.35, formant=SPEECH)
    for steady, moving in ((um, words), (noisy(um, 15), noisy(words, 15))):
        assert cues(bytes(9600) + steady).change < 1.7
        assert cues(bytes(9600) + moving).change > 2.6


def noisy(pcm: bytes, decibels: float) -> bytes:
    samples = np.frombuffer(pcm, "<i2").astype(float)
    level = np.sqrt(np.mean(samples**2)) * 10 ** (-decibels / 20)
    return (
        (samples + noise(len(samples) / RATE, level)[: len(samples)])
        .clip(-32768, 32767)
        .astype("<i2")
        .tobytes()
    )


def test_height_is_above_the_speakers_own_lowest() -> None:
    """The same level word is high for one who has been lower before."""
    speaker = Prosody()
    for _ in range(8):
        speaker.cues(vowel(semitones(0, 0, -2, -6), 0.7))
    assert cues(vowel(150, 0.7), speaker).height > 2
    assert cues(vowel(150, 0.7)).height < 0.5


def test_only_the_end_counts() -> None:
    end = vowel(semitones(2, 0, -3), SPAN)
    assert Prosody().cues(vowel(300, 2) + end) == Prosody().cues(end)


@pytest.mark.parametrize(
    "pcm",
    [b"", bytes(2), bytes(960), bytes(48_000), noise(1, 3000).astype("<i2").tobytes(), vowel(150, 0.03)],
)
def test_where_nothing_can_be_told_nothing_is(pcm: bytes) -> None:
    assert Prosody().cues(pcm) is None


@given(st.binary(max_size=6_000).map(lambda data: data[: len(data) // 2 * 2]), st.integers(1, 8))
def test_any_samples_give_finite_cues(data: bytes, times: int) -> None:
    found = Prosody().cues(data * times)
    assert found is None or np.isfinite(found).all()
