"""voicegate.media.turns.activity: what is voice and what is only loud."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from numpy.typing import NDArray

from tests.media.signals import frames, samples, tone, voice_like
from voicegate.media.turns.activity import WebrtcActivity

RATE = 24_000
Line = NDArray[np.float64]


def level(decibels: float) -> float:
    return float(32768 * 10 ** (decibels / 20))


def voice(seconds: float, decibels: float) -> Line:
    sound = samples(voice_like(seconds))
    return sound * level(decibels) / np.sqrt(np.mean(sound**2))


def noise(seconds: float, decibels: float, colour: float = 0.5) -> Line:
    """1/f to the power of twice `colour`: 0 is white, 0.5 pink."""
    count = int(seconds * RATE)
    spectrum = np.fft.rfft(np.random.default_rng(5).standard_normal(count))
    spectrum /= np.maximum(np.arange(len(spectrum)), seconds * 20) ** colour
    sound = np.fft.irfft(spectrum, count)
    return sound * level(decibels) / np.sqrt(np.mean(sound**2))


def hum(seconds: float, decibels: float) -> Line:
    t = np.arange(int(seconds * RATE)) / RATE
    sound = sum(np.sin(2 * np.pi * 50 * n * t + n) / n for n in (1, 2, 3, 4, 6))
    return np.asarray(sound * level(decibels) / np.sqrt(np.mean(np.square(sound))))


def nothing(seconds: float) -> Line:
    return np.zeros(int(seconds * RATE))


def voiced(line: Line, activity: WebrtcActivity | None = None) -> list[bool]:
    activity = activity or WebrtcActivity()
    pcm = line.clip(-32768, 32767).astype("<i2").tobytes()
    return [activity.push(frame).voiced for frame in frames(pcm)]


def longest(run: list[bool]) -> int:
    return max((len(piece) for piece in "".join("x" if each else " " for each in run).split()), default=0)


@pytest.mark.parametrize("background", [noise(8, -50, 0), noise(8, -50), noise(8, -50, 1), hum(8, -50)])
@pytest.mark.parametrize("above", [20, 10])
def test_a_voice_in_steady_noise_and_nothing_but_the_voice(background: Line, above: int) -> None:
    line = background.copy()
    line[2 * RATE : 5 * RATE] += voice(3, -50 + above)
    heard = voiced(line)
    assert longest(heard[:100]) < 5  # less than is taken for speech
    assert np.mean(heard[100:250]) > (0.65 if above == 20 else 0.45)  # what is louder than the noise of it
    assert np.mean(heard[255:]) < 0.01


def test_noise_after_nothing_is_voice_for_less_than_speech() -> None:
    assert longest(voiced(np.concatenate([nothing(1), noise(3, -40)]))) <= 4


@pytest.mark.parametrize("begins", [noise(4, -35, 0), noise(4, -35), hum(4, -35)])
def test_noise_that_begins_is_the_room_before_long(begins: Line) -> None:
    """The detector alone takes pink noise that is 35 dB louder than the room for voice for seconds."""
    heard = voiced(np.concatenate([noise(2, -70), begins]))
    assert np.mean(heard[100 + 85 :]) < 0.2
    assert np.mean(heard[100 + 165 :]) < 0.1  # by then it is the quietest there was, too


def test_a_quiet_voice_is_one() -> None:
    heard = voiced(np.concatenate([noise(1, -75), voice(2, -45) + noise(2, -75)]))
    assert np.mean(heard[50:]) > 0.75


def test_it_ends_with_the_voice() -> None:
    """The detector alone holds on for 100 ms."""
    heard = voiced(np.concatenate([noise(1, -70), voice(2, -25) + noise(2, -70), noise(1, -70)]))
    assert heard[145:150].count(True) >= 3
    assert not any(heard[152:])


def test_talk_in_the_background_is_none_once_the_speaker_is_known() -> None:
    one = samples(voice_like(12))[::-1]
    talk = sum(np.roll(one, shift) for shift in (0, 31_000, 97_000, 150_500))  # four people
    line = talk * level(-42) / np.sqrt(np.mean(np.square(talk))) + noise(12, -60)
    line[1 * RATE : 4 * RATE] += voice(3, -25)
    line[5 * RATE : 8 * RATE] += voice(3, -25)
    heard = voiced(line)
    assert np.mean(heard[250:400]) > 0.6
    assert np.mean(heard[405:]) < 0.05


def test_a_click_is_none() -> None:
    line = noise(2, -70)
    line[RATE : RATE + 120] += level(-10)
    assert longest(voiced(line)) <= 3


def test_digital_silence_tells_nothing_of_the_room() -> None:
    activity = WebrtcActivity()
    voiced(np.concatenate([noise(4, -50), nothing(10)]), activity)
    assert longest(voiced(noise(3, -50), activity)) < 5


def test_a_higher_threshold_asks_for_more() -> None:
    line = noise(6, -50)
    line[2 * RATE : 5 * RATE] += voice(3, -44)
    shares = [np.mean(voiced(line, WebrtcActivity(threshold))[100:250]) for threshold in (0.1, 0.5, 0.9)]
    assert shares[0] > shares[1] > shares[2]


def test_after_a_reset_it_is_as_new() -> None:
    activity = WebrtcActivity()
    line = np.concatenate([noise(1, -60), voice(1, -30)])
    voiced(voice(3, -10), activity)
    activity.reset()
    assert voiced(line, activity) == voiced(line)


def test_levels_are_dbfs() -> None:
    activity = WebrtcActivity()
    assert activity.push(bytes(960)).level == -100
    assert activity.push(tone(1000, 0.02, amplitude=3276.8)).level == pytest.approx(-23, abs=0.1)
    assert activity.push(b"\x00\x80" * 480).level == pytest.approx(0, abs=0.01)


@given(st.lists(st.binary(min_size=960, max_size=960), max_size=20), st.floats(0, 1))
def test_any_frames_have_a_level(line: list[bytes], threshold: float) -> None:
    activity = WebrtcActivity(threshold)
    for frame in line:
        hop = activity.push(frame)
        assert -100 <= hop.level <= 0.01
        assert isinstance(hop.voiced, bool)
