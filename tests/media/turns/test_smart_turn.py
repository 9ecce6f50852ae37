"""voicegate.media.turns.smart_turn and log_mel: what the network is given, and what is made of its answer.

The network itself is not ours; a file of the same shape, whose answer can be computed, is run by the real
onnxruntime.
"""

from __future__ import annotations

import sys
from math import exp, log
from pathlib import Path
from typing import Any

import numpy as np
import onnxruntime
import pytest

from tests.media.signals import tone, voice_like
from tests.support.onnx_file import mean_network
from voicegate.media.turns import smart_turn
from voicegate.media.turns.log_mel import log_mel
from voicegate.media.turns.plugins import Pause
from voicegate.media.turns.smart_turn import SmartTurn, load

SHAPE = ("batch", 80, 800)


def line() -> np.ndarray:
    """2.5 s of silence, then a glide and a steady tone."""
    t = np.arange(128_000) / 16_000
    sound = 0.3 * np.sin(2 * np.pi * (200 + 150 * t) * t) + 0.1 * np.sin(2 * np.pi * 3000 * t)
    sound[:40_000] = 0
    return sound.astype(np.float32)


def test_the_spectrogram_is_whispers() -> None:
    """Every value by the definition, without an FFT, in double precision."""
    sound = line().astype(np.float64)
    even = (sound - sound.mean()) / np.sqrt(sound.var() + 1e-7)
    mirrored = np.concatenate([even[200:0:-1], even, even[-2:-202:-1]])
    window = 0.5 - 0.5 * np.cos(2 * np.pi * np.arange(400) / 400)
    wave = np.exp(-2j * np.pi * np.outer(np.arange(400), np.arange(201)) / 400)
    spectra = np.stack([mirrored[at : at + 400] * window for at in range(0, 800 * 160, 160)]) @ wave
    bands = np.array([[slaney(bin * 40.0, band) for band in range(80)] for bin in range(201)])
    mel = np.log10(np.maximum(np.abs(spectra) ** 2 @ bands, 1e-10))
    wanted = (np.maximum(mel, mel.max() - 8) + 4) / 4
    assert np.abs(log_mel(line()) - wanted.T).max() < 1e-4


def slaney(hertz: float, band: int) -> float:
    """One of 80 triangles of area 1 between 0 and 8 kHz."""
    step = mel_of(8000.0) / 81
    place = [hertz_of(step * (band + corner)) for corner in range(3)]
    if not place[0] < hertz < place[2]:
        return 0.0
    up = (hertz - place[0]) / (place[1] - place[0])
    down = (place[2] - hertz) / (place[2] - place[1])
    return min(up, down) * 2 / (place[2] - place[0])


def mel_of(hertz: float) -> float:
    return 3 * hertz / 200 if hertz < 1000 else 15 + 27 * log(hertz / 1000) / log(6.4)


def hertz_of(mel: float) -> float:
    return 200 * mel / 3 if mel < 15 else 1000 * exp((mel - 15) * log(6.4) / 27)


def test_the_spectrogram_is_that_of_transformers() -> None:
    """What WhisperFeatureExtractor(chunk_length=8), do_normalize=True, of transformers 5 makes of it."""
    mel = log_mel(line())
    assert mel.shape == (80, 800)
    assert mel.dtype == np.float32
    for band, frame, value in KNOWN:
        assert mel[band, frame] == pytest.approx(value, abs=1e-3)


KNOWN = (
    (0, 0, -0.3052),
    (22, 394, -0.2236),
    (38, 388, 0.1003),
    (39, 799, 0.3363),
    (46, 638, 1.5576),
    (54, 296, 1.3305),
    (55, 301, 1.3069),
    (55, 323, 1.3069),
    (55, 584, 1.3069),
    (55, 639, 1.3069),
)
"""Band, frame, value; the first is the floor that silence has."""


@pytest.fixture
def weights(tmp_path: Path) -> str:
    path = tmp_path / "weights.onnx"
    path.write_bytes(mean_network(SHAPE))
    return str(path)


def pause(pcm: bytes, silence: float = 0.2) -> Pause:
    return Pause(7, silence, 1.0, 0, lambda: pcm)


def test_its_answer_is_the_networks(weights: str) -> None:
    pcm = voice_like(3) + bytes(9600)
    verdict = SmartTurn(weights).judge(pause(pcm))
    filled = np.zeros(8 * 24_000)
    filled[-len(pcm) // 2 :] = np.frombuffer(pcm, "<i2") / 32768
    spectrum = np.fft.rfft(filled)[:64_001]
    narrow = (np.fft.irfft(spectrum, 128_000) / 1.5).astype(np.float32)
    assert verdict.done == pytest.approx(1 / (1 + exp(-log_mel(narrow).mean())), abs=0.01)
    assert verdict.pause_id == 7


def test_only_the_last_eight_seconds_count(weights: str) -> None:
    judge = SmartTurn(weights)
    tail = voice_like(8)
    assert judge.judge(pause(tone(900, 5) + tail)).done == pytest.approx(
        judge.judge(pause(tail)).done, abs=1e-3
    )


def test_nothing_said_yet_is_no_error(weights: str) -> None:
    assert 0 <= SmartTurn(weights).judge(pause(b"")).done <= 1


def test_a_finished_turn_is_ended_sooner_than_another(weights: str) -> None:
    """The mean of a spectrogram is negative for little noise and positive for much."""
    judge, patient = SmartTurn(weights), SmartTurn(weights, patience=2.0)
    quiet, loud = judge.judge(pause(white(0.5))), judge.judge(pause(white(8)))
    assert quiet.done < 0.5 < loud.done
    assert (quiet.reason, quiet.eager) == ("unfinished", False)
    assert (loud.reason, loud.eager) == ("finished", True)
    assert quiet.hold > loud.hold
    assert patient.judge(pause(white(8))).hold > 1.3 * loud.hold
    assert SmartTurn(weights, ceiling=0.3).judge(pause(white(0.5))).hold == 0.3
    assert not judge.inline


def test_it_learns_the_speakers_pauses(weights: str) -> None:
    judge = SmartTurn(weights)
    usual = judge.judge(pause(white(8))).hold
    for _ in range(8):
        judge.resumed(pause(white(8), silence=1.5))
    assert judge.judge(pause(white(8))).hold > 1.2 * usual


def white(seconds: float) -> bytes:
    return (3000 * np.random.default_rng(2).standard_normal(int(seconds * 24_000))).astype("<i2").tobytes()


def test_the_networks_odds_count_for_a_third_of_themselves(
    weights: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Ends and pauses that it is sure of differ in what they are waited for by a factor of four, not of
    fifteen."""
    holds = {}
    for done in (0.0, 0.5, 1.0, float("nan")):
        monkeypatch.setattr(smart_turn, "load", lambda path, done=done: lambda spectrogram: done)
        verdict = SmartTurn(weights).judge(pause(white(1)))
        assert 0 <= verdict.done <= 1
        holds[done] = verdict.hold
    sure, unsure, middle, nothing = holds[1.0], holds[0.0], holds[0.5], list(holds.values())[3]
    assert sure < middle < unsure
    assert 2.5 < unsure / sure < 6
    assert nothing == middle


def test_the_same_sound_is_asked_about_once(weights: str, monkeypatch: pytest.MonkeyPatch) -> None:
    asked = []
    run = onnxruntime.InferenceSession.run

    def counting(self: onnxruntime.InferenceSession, *arguments: Any) -> Any:
        asked.append(1)
        return run(self, *arguments)

    monkeypatch.setattr(onnxruntime.InferenceSession, "run", counting)
    monkeypatch.setattr(smart_turn, "_REMEMBERED", 2)
    judge = SmartTurn(weights)
    asked.clear()
    for seconds in (1.0, 1.0, 2.0, 2.0, 3.0, 3.0, 1.0):
        judge.judge(pause(white(seconds)))
    assert len(asked) == 4  # the first one was forgotten by the last time


def test_all_calls_share_one_network(weights: str) -> None:
    assert load(weights) is load(weights)


def test_without_a_file_a_sentence() -> None:
    with pytest.raises(ValueError, match="there is no file /no/such: name one with the weights"):
        SmartTurn("/no/such")


def test_without_onnxruntime_a_sentence(weights: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "onnxruntime", None)
    with pytest.raises(ValueError, match="needs onnxruntime: pip install 'voicegate\\[smart-turn\\]'"):
        SmartTurn(weights)


def test_another_file_is_told_from_it(tmp_path: Path) -> None:
    for content, sentence in (
        (b"not a network", "no ONNX file"),
        (mean_network(("batch", 80, 3000)), "it takes input_features tensor.float. .'batch', 80, 3000.,"),
        (mean_network(("batch", 80, 800, 1)), "it takes"),
        (mean_network(SHAPE, sigmoid=False), "no probability"),
    ):
        path = tmp_path / f"{len(content)}.onnx"
        path.write_bytes(content)
        with pytest.raises(ValueError, match=sentence):
            SmartTurn(str(path))
