"""What clients say: turns of speech and silence, from a recording or made up."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest

from tests.support import speech
from voicegate.load.talk import OPUS_SILENCE, SpeechError, make_talk, read_speech, synthetic_speech
from voicegate.media.codec import PCM_RATE
from voicegate.media.opus import OpusDecoder
from voicegate.media.vad import SpeechDetector


def test_the_built_in_utterance_is_speech_to_a_detector() -> None:
    talk = make_talk(synthetic_speech())
    assert talk.spoken * 0.02 == pytest.approx(1.6) and len(talk.frames) * 0.02 == pytest.approx(1.6 + 3.6)
    decoder, line = OpusDecoder(), SpeechDetector()
    changes = [change for frame in talk.frames for change in line.push(decoder.decode(frame))]
    assert [change.started for change in changes] == [True, False]
    spoken = (changes[1].sample - changes[0].sample) / PCM_RATE
    assert 1.5 < spoken < 2.5, "one turn, without a break between the syllables"


def test_turns() -> None:
    talk = make_talk(bytes(9600), speech=0.1, pause=0.06)
    assert talk.spoken == 5 and talk.frames[5:] == (OPUS_SILENCE,) * 3
    assert [talk.payload(place) for place in range(8, 16)] == list(talk.frames)
    assert [place for place in range(20) if talk.ends_at(place)] == [4, 12]


def test_talking_all_the_time_has_no_turns() -> None:
    talk = make_talk(bytes(960 * 3), speech=0.1, pause=0)
    assert len(talk.frames) == 5 and not any(talk.ends_at(place) for place in range(20))


@pytest.mark.parametrize("rate", [8_000, 24_000, 44_100])
def test_a_recording_of_any_rate(tmp_path: Path, rate: int) -> None:
    tone = (0.3 * np.sin(2 * np.pi * 440 * np.arange(rate) / rate)).astype(np.float32)
    path = speech.write_wav(tmp_path / "a.wav", tone, rate)
    sound = speech.from_pcm(read_speech(str(path)))
    assert len(sound) / PCM_RATE == pytest.approx(1.0, abs=0.01)
    assert np.argmax(np.abs(np.fft.rfft(sound[:PCM_RATE]))) == pytest.approx(440, abs=2)
    assert speech.rms(sound) == pytest.approx(0.3 / 2**0.5, rel=0.05)


def test_recordings_that_cannot_be_used(tmp_path: Path) -> None:
    with pytest.raises(SpeechError, match="No such file"):
        read_speech(str(tmp_path / "missing.wav"))
    (tmp_path / "text.wav").write_text("this is not sound\n" * 50)
    with pytest.raises(SpeechError, match="cannot be read"):
        read_speech(str(tmp_path / "text.wav"))
    speech.write_wav(tmp_path / "empty.wav", speech.silence(0), 24_000)
    with pytest.raises(SpeechError, match="no sound in it"):
        read_speech(str(tmp_path / "empty.wav"))
