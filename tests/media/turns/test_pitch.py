"""voicegate.media.turns.pitch: what has a pitch and what has none."""

from __future__ import annotations

import numpy as np
import pytest

from tests.support.speech import Sound, to_pcm
from voicegate.media.codec import PCM_RATE
from voicegate.media.turns.pitch import has_pitch

TIME = np.arange(PCM_RATE // 25) / PCM_RATE


def buzz(hertz: float) -> Sound:
    return np.asarray(sum(np.sin(2 * np.pi * n * hertz * TIME) / n for n in range(1, 12)) * 0.1, np.float32)


@pytest.mark.parametrize("hertz", [75, 100, 160, 250, 400])
def test_a_vowel_has_one_in_noise_too(hertz: float) -> None:
    noise = np.random.default_rng(hertz).standard_normal(len(TIME)).astype(np.float32)
    voice = buzz(hertz)
    loud = float(np.sqrt(np.mean(voice**2)))
    assert has_pitch(to_pcm(voice))
    assert has_pitch(to_pcm(voice + 0.3 * loud * noise))  # 10 dB


def test_breath_and_silence_have_none() -> None:
    noise = np.random.default_rng(1).standard_normal((100, len(TIME))).astype(np.float32) * 0.1
    assert sum(has_pitch(to_pcm(piece)) for piece in noise) <= 2
    assert not has_pitch(bytes(2 * len(TIME)))
    assert not has_pitch(to_pcm(np.full(len(TIME), 0.3, np.float32)))
