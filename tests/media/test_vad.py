"""voicegate.media.vad: where speech starts and stops, to the frame."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from tests.media.signals import frames, tone, voice_like
from voicegate.media.vad import SpeechDetector, VoiceTransition

RATE = 24_000
FRAME = 480


def silence(seconds: float) -> bytes:
    return bytes(2 * int(seconds * RATE))


def noise(seconds: float, amplitude: float) -> bytes:
    rng = np.random.default_rng(9)
    return (amplitude * rng.standard_normal(int(seconds * RATE))).astype("<i2").tobytes()


def test_one_utterance() -> None:
    activity = SpeechDetector()
    start, stop = activity.push(silence(1) + voice_like(2) + silence(1))
    assert start.started
    assert not stop.started
    # 300 ms of padding before the onset at 1 s; 500 ms of silence after the end at 3 s.
    assert abs(start.sample - 0.7 * RATE) <= 2 * FRAME
    assert abs(stop.sample - 3.5 * RATE) <= 5 * FRAME
    assert not activity.speaking
    assert activity.position == 4 * RATE


def test_the_start_is_known_after_100_ms() -> None:
    activity = SpeechDetector()
    activity.push(silence(1))
    for frame in frames(voice_like(1)):
        if activity.push(frame):
            break
    assert activity.speaking
    assert activity.position <= 1.14 * RATE


def test_two_utterances_do_not_overlap() -> None:
    activity = SpeechDetector(silence_ms=200, prefix_padding_ms=500)
    transitions = activity.push(silence(1) + voice_like(1) + silence(0.4) + voice_like(1) + silence(1))
    assert [transition.started for transition in transitions] == [True, False, True, False]
    places = [transition.sample for transition in transitions]
    assert places == sorted(places)
    assert places[2] == places[1]  # the padding ends where the turn before was closed


def test_a_pause_within_speech_is_no_end() -> None:
    activity = SpeechDetector(silence_ms=500)
    assert len(activity.push(voice_like(1) + silence(0.3) + voice_like(1))) == 1


@pytest.mark.parametrize("amplitude", [10, 100, 1000])
def test_steady_noise_is_no_voice(amplitude: float) -> None:
    assert SpeechDetector().push(noise(5, amplitude)) == []


def test_voice_in_noise() -> None:
    quiet = np.frombuffer(noise(4, 60), "<i2").astype(np.int32)
    quiet[RATE : 3 * RATE] += np.frombuffer(voice_like(2), "<i2")
    transitions = SpeechDetector().push(quiet.clip(-32768, 32767).astype("<i2").tobytes())
    assert [transition.started for transition in transitions] == [True, False]


def test_below_the_floor_nothing_is_voice() -> None:
    whisper = (np.frombuffer(voice_like(2), "<i2") // 300).astype("<i2").tobytes()
    assert SpeechDetector().push(silence(0.5) + whisper) == []
    assert SpeechDetector(0).push(silence(0.5) + whisper) != []


def test_a_click_is_no_voice() -> None:
    click = bytearray(silence(1))
    click[24_000:24_200] = tone(1000, 0.1)[:200]
    assert SpeechDetector().push(bytes(click)) == []


def test_above_4_khz_the_detector_hears_nothing_but_the_onset() -> None:
    """After the decimation there is an alias of it below 4 kHz."""
    transitions = SpeechDetector(silence_ms=100).push(silence(1) + tone(9000, 3))
    assert sum(1 for transition in transitions if transition.started) <= 1
    assert not transitions or not transitions[-1].started


@given(st.lists(st.integers(0, 5000), max_size=30))
def test_how_the_line_is_cut_makes_no_difference(cuts: list[int]) -> None:
    line = silence(0.3) + voice_like(0.6) + silence(0.8)
    whole = SpeechDetector().push(line)
    activity = SpeechDetector()
    pieces: list[VoiceTransition] = []
    at = 0
    for cut in cuts:
        pieces += activity.push(line[at : at + cut])
        at += cut
    pieces += activity.push(line[at:])
    assert pieces == whole


@given(st.binary(max_size=20_000))
def test_any_bytes_give_alternating_transitions_in_order(pcm: bytes) -> None:
    activity = SpeechDetector(0, silence_ms=20, prefix_padding_ms=0)
    transitions = activity.push(pcm)
    assert [transition.started for transition in transitions] == [
        index % 2 == 0 for index in range(len(transitions))
    ]
    assert [transition.sample for transition in transitions] == sorted(
        transition.sample for transition in transitions
    )
    assert activity.position == len(pcm) // 960 * 480
