from __future__ import annotations

import wave
from pathlib import Path

import numpy as np
import pytest

from tests.support.speech import from_pcm, resample, write_wav
from voicegate.media.codec import FRAME_BYTES, PCM_RATE
from voicegate.turns.sound import RecordingError, read_frames


def tone(rate: int, seconds: float = 0.5) -> np.ndarray:
    return (0.5 * np.sin(2 * np.pi * 440 * np.arange(round(seconds * rate)) / rate)).astype(np.float32)


@pytest.mark.parametrize("rate", [8_000, 11_025, 16_000, 22_050, 24_000, 44_100, 48_000])
def test_every_rate_becomes_24_khz(tmp_path: Path, rate: int) -> None:
    frames = read_frames(write_wav(tmp_path / "a.wav", tone(rate), rate))
    assert {len(frame) for frame in frames} == {FRAME_BYTES}
    heard = from_pcm(b"".join(frames))
    assert abs(len(heard) - PCM_RATE // 2) <= 480
    wanted = resample(tone(rate), rate, PCM_RATE)
    middle = slice(2400, 9600)
    spectrum = np.abs(np.fft.rfft(heard[middle]))
    assert np.argmax(spectrum) == np.argmax(np.abs(np.fft.rfft(wanted[middle])))
    assert np.std(heard[middle]) == pytest.approx(np.std(wanted[middle]), rel=0.02)


def test_two_channels_are_mixed(tmp_path: Path) -> None:
    path = tmp_path / "a.wav"
    with wave.open(str(path), "wb") as out:
        out.setnchannels(2)
        out.setsampwidth(2)
        out.setframerate(PCM_RATE)
        out.writeframes(np.column_stack([np.full(960, 700), np.full(960, 900)]).astype("<i2").tobytes())
    assert set(np.frombuffer(b"".join(read_frames(path)), "<i2")) == {800}


def test_the_last_frame_is_filled_with_silence(tmp_path: Path) -> None:
    frames = read_frames(write_wav(tmp_path / "a.wav", tone(PCM_RATE)[:500], PCM_RATE))
    assert len(frames) == 2
    assert frames[1][40:] == bytes(FRAME_BYTES - 40)


def test_what_cannot_be_used_is_said_in_a_sentence(tmp_path: Path) -> None:
    path = write_wav(tmp_path / "a.wav", np.zeros(8_000 * 601, np.float32), 8_000)
    with pytest.raises(RecordingError, match=r"a\.wav is longer than 600 s"):
        read_frames(path)
    with pytest.raises(RecordingError, match="has more than 192000 samples a second"):
        read_frames(write_wav(tmp_path / "a.wav", tone(8_000), 2_000_000_000))
    with pytest.raises(RecordingError, match="has no sound in it"):
        read_frames(write_wav(tmp_path / "a.wav", tone(8_000, 0), 8_000))
    with pytest.raises(RecordingError, match="cannot be read: No such file"):
        read_frames(tmp_path / "none.wav")
    for data in (b"", b"RIFF", b"not a WAV at all"):
        (tmp_path / "b.wav").write_bytes(data)
        with pytest.raises(RecordingError, match=r"b\.wav cannot be read as sound"):
            read_frames(tmp_path / "b.wav")
