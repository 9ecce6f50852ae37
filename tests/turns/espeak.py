"""Speech from espeak-ng, sentence by sentence, cut where the script says.

The library behind the command is called: only it tells where in the sound a mark of the text fell, and so
lets a sentence be broken off in the middle with the pitch of a voice that is going on.
"""

from __future__ import annotations

import ctypes
import functools
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Final

import numpy as np

from tests.support.speech import Sound, resample

RATE: Final = 24_000
_SYNCHRONOUS = 2  # AUDIO_OUTPUT_SYNCHRONOUS of speak_lib.h
_TEXT_FLAGS = 1 | 0x10 | 0x100  # espeakCHARS_UTF8 | espeakSSML | espeakPHONEMES
_MARK = 3  # espeakEVENT_MARK
_RATE, _PITCH, _RANGE = 1, 3, 4  # espeakRATE, espeakPITCH, espeakRANGE


@dataclass(frozen=True, slots=True)
class Speaker:
    """A voice of espeak-ng and how it speaks."""

    language: str
    voice: str
    rate: int
    """Words a minute, 140 to 200: 175 is espeak-ng's own."""
    pitch: int
    """0 to 99; 50 is the voice's own."""
    range: int
    """How much the pitch moves, 0 to 99; 50 is the voice's own."""


class _Event(ctypes.Structure):
    """espeak_EVENT of speak_lib.h."""

    _fields_ = (
        ("type", ctypes.c_int),
        ("unique_identifier", ctypes.c_uint),
        ("text_position", ctypes.c_int),
        ("length", ctypes.c_int),
        ("audio_position", ctypes.c_int),
        ("sample", ctypes.c_int),
        ("user_data", ctypes.c_void_p),
        ("id", ctypes.c_int64),
    )


_Callback = ctypes.CFUNCTYPE(
    ctypes.c_int, ctypes.POINTER(ctypes.c_short), ctypes.c_int, ctypes.POINTER(_Event)
)


class _Engine:
    """The library, once in a process: it keeps its state in globals."""

    def __init__(self) -> None:
        self._lib = ctypes.CDLL("libespeak-ng.so.1")
        self.rate = self._lib.espeak_Initialize(_SYNCHRONOUS, 0, None, 0)
        assert self.rate > 0, "espeak-ng cannot find its data"
        self._chunks: list[Any] = []
        self._marks: list[float] = []
        self._callback: Callable[..., int] = _Callback(self._take)  # kept: C holds only its address
        self._lib.espeak_SetSynthCallback(self._callback)

    def _take(self, samples: Any, count: int, events: Any) -> int:
        if count > 0 and samples:
            self._chunks.append(np.ctypeslib.as_array(samples, (count,)).copy())
        place = 0
        while events[place].type:
            if events[place].type == _MARK:
                self._marks.append(events[place].audio_position / 1000)
            place += 1
        return 0

    def data(self) -> Path:
        """The directory with its voices."""
        place = ctypes.c_char_p()
        self._lib.espeak_Info.restype = ctypes.c_char_p
        self._lib.espeak_Info(ctypes.byref(place))
        assert place.value is not None
        return Path(place.value.decode())

    def say(self, ssml: str, speaker: Speaker) -> tuple[Sound, list[float]]:
        self._chunks.clear()
        self._marks.clear()
        assert self._lib.espeak_SetVoiceByName(speaker.voice.encode()) == 0, f"no voice {speaker.voice}"
        for parameter, value in ((_RATE, speaker.rate), (_PITCH, speaker.pitch), (_RANGE, speaker.range)):
            self._lib.espeak_SetParameter(parameter, value, 0)
        text = f"<speak>{ssml}</speak>".encode()
        self._lib.espeak_Synth(text, ctypes.c_size_t(len(text) + 1), 0, 1, 0, _TEXT_FLAGS, None, None)
        return (np.concatenate(self._chunks) / 32768).astype(np.float32), list(self._marks)


@functools.cache
def engine() -> _Engine:
    return _Engine()


def say(text: str, speaker: Speaker) -> Sound:
    """A sentence as it is punctuated, at RATE; no silence cut off. Phonemes of espeak-ng stand in [[ ]]."""
    sound, _ = engine().say(text, speaker)
    return _at_rate(sound)


def say_until(text: str, following: str, speaker: Speaker) -> Sound:
    """`text` as the beginning of a sentence that goes on with `following`, cut off between the two."""
    sound, marks = engine().say(f'{text}<mark name="cut"/> {following}.', speaker)
    return _at_rate(sound[: round(marks[0] * engine().rate)])


def _at_rate(sound: Sound) -> Sound:
    """Filled up with silence to a length of small factors: a spectrum of it is quick."""
    pieces = next(size for size in _SMOOTH if size * _PIECE >= len(sound))
    filled = np.zeros(pieces * _PIECE, np.float32)
    filled[: len(sound)] = sound
    return resample(filled, engine().rate, RATE)


_PIECE: Final = 147
"""Samples at 22,050 Hz are 160 at 24,000 Hz: lengths that both rates can have."""
_SMOOTH: Final = sorted(2**a * 3**b for a in range(4, 15) for b in range(6) if 2**a * 3**b < 2**15)
