"""What the clients say: a recording or a built-in utterance, encoded once, and the silence after it."""

from __future__ import annotations

import math
from array import array
from collections.abc import Sequence
from pathlib import Path
from typing import Final, NamedTuple

from voicegate.media.codec import FRAME_BYTES, FRAME_SAMPLES, FRAME_SECONDS, PCM_RATE
from voicegate.media.sound_file import BadSound, decode_sound

OPUS_SILENCE: Final = b"\xf8\xff\xfe"
"""20 ms of CELT silence, as libopus makes them."""
MAX_SPEECH_SECONDS: Final = 600.0
"""29 MB of PCM while it is encoded."""
_LOUDNESS = 5000.0
"""Root of the mean square: -16 dBFS, a voice close to its microphone."""
_VOWELS = ((730, 1090, 2440), (270, 2290, 3010), (570, 840, 2410), (530, 1840, 2480), (300, 870, 2240))
"""Formants in Hz: Peterson and Barney 1952, a man's /ɑ i ɔ ɛ u/."""
_SYLLABLE_SECONDS = 0.24


class SpeechError(Exception):
    """The recording cannot be used; the message is a sentence for a person."""


class TurnTalk(NamedTuple):
    """Packets of speech, then silence, over and over. The same object serves every client."""

    frames: Sequence[bytes]
    spoken: int
    """How many of them are speech: the first ones."""

    def payload(self, place: int) -> bytes:
        return self.frames[place % len(self.frames)]

    def ends_at(self, place: int) -> bool:
        return place % len(self.frames) == self.spoken - 1 and self.spoken < len(self.frames)


def make_talk(pcm: bytes, speech: float | None = None, pause: float | None = None) -> TurnTalk:
    """Turns of `speech` seconds of this 24 kHz s16le mono (default: all of it; more: it is repeated), and
    `pause` seconds of silence (default: for an answer as long as the speech, and 2 s)."""
    from voicegate.media.opus import Application, OpusEncoder

    encoder = OpusEncoder(application=Application.AUDIO)
    whole = [
        encoder.encode(pcm[at : at + FRAME_BYTES].ljust(FRAME_BYTES, b"\0"))
        for at in range(0, len(pcm), FRAME_BYTES)
    ]
    encoder.close()
    seconds = len(whole) * FRAME_SECONDS if speech is None else speech
    spoken = max(1, round(seconds / FRAME_SECONDS))
    frames = [whole[place % len(whole)] for place in range(spoken)]
    silent = round((seconds + 2.0 if pause is None else pause) / FRAME_SECONDS)
    return TurnTalk((*frames, *[OPUS_SILENCE] * silent), spoken)


def read_speech(path: str) -> bytes:
    """24 kHz s16le mono of whatever PyAV can read. Raises SpeechError."""
    try:
        return decode_sound(Path(path).read_bytes(), MAX_SPEECH_SECONDS)
    except OSError as error:
        raise SpeechError(f"{path} cannot be read: {error.strerror}") from None
    except BadSound as error:
        raise SpeechError(f"{path} {error}") from None


def synthetic_speech(seconds: float = 1.6) -> bytes:
    """Syllables of a voice, 24 kHz s16le mono: enough for a voice activity detector, without words.

    A pulse train with a falling pitch goes through three resonators at the formants of a vowel. All syllables
    are equally loud: a detector takes what is far below a speaker's usual level for the room.
    """
    samples = array("h")
    total = round(seconds * PCM_RATE / FRAME_SAMPLES) * FRAME_SAMPLES
    length = int(_SYLLABLE_SECONDS * PCM_RATE)
    phase = 0.0
    memory = [[0.0, 0.0] for _ in range(3)]
    for start in range(0, total, length):
        vowel = _VOWELS[start // length % len(_VOWELS)]
        filters = [_resonator(formant, 60 + 20 * number) for number, formant in enumerate(vowel)]
        syllable = []
        for place in range(min(length, total - start)):
            at = start + place
            pitch = 140 - 25 * at / (seconds * PCM_RATE) + 6 * math.sin(2 * math.pi * at / PCM_RATE * 4)
            phase += pitch / PCM_RATE
            value = 0.0
            if phase >= 1:
                phase -= 1
                value = 1.0
            for (gain, first, second), state in zip(filters, memory, strict=True):
                value = gain * value + first * state[0] + second * state[1]
                state[1], state[0] = state[0], value
            syllable.append(value * min(1.0, 6 * math.sin(math.pi * place / length) ** 2))
        power = sum(value * value for value in syllable) / len(syllable)
        scale = _LOUDNESS / math.sqrt(power) if power else 0.0
        samples.extend(max(-32_767, min(32_767, int(value * scale))) for value in syllable)
    return samples.tobytes()


def _resonator(frequency: float, bandwidth: float) -> tuple[float, float, float]:
    """Klatt 1980's digital resonator: gain 1 at 0 Hz."""
    radius = math.exp(-math.pi * bandwidth / PCM_RATE)
    first = 2 * radius * math.cos(2 * math.pi * frequency / PCM_RATE)
    second = -radius * radius
    return 1 - first - second, first, second
