"""How the last words before a pause were said, from the audio alone: where the pitch went, and whether the
sound moved.

What people do with their voices at the end of a turn, and where they mean to go on, is known from studies of
human talk (Duncan 1972; Koiso et al. 1998; Gravano and Hirschberg 2011; Raux and Eskenazi 2008): the pitch of
an end falls to the bottom of the speaker's range or, in a question, rises far; the pitch of one who goes on
stays level in the middle or rises a little. A filled pause ("um") is drawn out, level and unchanging (Goto,
Itou and Hayamizu 1999 know filled pauses by that).

The last 0.5 s of voice are looked at, once a pause: at 4 kHz, in windows of 40 ms every 20 ms. Pitch is the
highest peak of the autocorrelation, corrected for the window (Boersma 1993), between 70 and 550 Hz. All of it
is two FFTs over all windows at once.
"""

from __future__ import annotations

from math import log2, pi
from typing import Any, Final, NamedTuple

import numpy as np
from numpy.typing import NDArray

from voicegate.media.codec import PCM_RATE
from voicegate.media.turns.pitch import RATE, Floats, narrowed

SPAN: Final = 0.5
"""Seconds looked at: two or three syllables. 0.7 s tells no more, and costs a third more."""
_WINDOW = 160
_HOP = 80
_FFT = 256
_FINE = 2
"""Lags are looked at in steps of 1/8000 s: at 4 kHz a narrow peak falls between two of them, and the one an
octave below does not."""
_LAGS = slice(7 * _FINE, 58 * _FINE + 1)
"""571 to 69 Hz, one more on either side than is used: a peak has neighbours."""
_HANN = (0.5 - 0.5 * np.cos(2 * pi * (np.arange(_WINDOW) + 0.5) / _WINDOW)).astype(np.float32)
_HARMONIC = 0.6
"""Of the autocorrelation at its peak: below, a window has no pitch."""
_OCTAVE_COST = 0.06
"""Of the peak, for each octave that the pitch is lower: of two peaks as high the shorter lag is the pitch."""
_AUDIBLE_DB = 18.0
"""A window softer than the loudest by more has no pitch worth knowing: breath, room, people in the
background, the consonant behind the last vowel."""
_LEAST = 5
"""Windows with a pitch, without which nothing is told: a tenth of a second."""
_LAST = 2
"""Pitched windows at the end that are the final pitch."""
_LOW_TENTH = 10
"""The lowest tenth of the track is the speaker's lowest pitch: less than that may be creak."""
_OCTAVE = 0.6
"""Of an octave from the median: further away is an error of the pitch, or a creak."""
_STEADY_WINDOWS = 16
"""A third of a second at the end, in which a filled pause does not change; most words do."""
_STEADY_LAG = 2
"""Windows between two that are compared: by then a diphthong or a syllable has moved."""
_BANDS = np.array([6, 22, 42, 61, 83, 106])
"""First bins of the envelope's bands, some 300 Hz each, from 90 Hz on: wide, or harmonics that move make a
change of their own."""
_BAND_RANGE_DB = 30.0
"""A band softer than the loudest by more is noise."""
_LOWER, _HIGHER = 0.4, 0.1
"""The weight of the newest stretch of voice in the speaker's lowest pitch, when it was lower or higher: not
every one goes to the bottom of the range."""
_UNKNOWN_CHANGE: Final = 10.0


class Cues(NamedTuple):
    """Of the last half second of voice."""

    height: float
    """Semitones of the final pitch above the speaker's lowest: about 0 at the end of a fall."""
    rise: float
    """Semitones of the final pitch above the middle of the last half second: below 0 after a fall."""
    change: float
    """dB by which the spectral envelope of the last voice changes within 40 ms: 0.5 to 3 in an "um" or "uh",
    2 to 6 in most words."""


class Prosody:
    """Of one speaker: their lowest pitch is learned from pause to pause."""

    def __init__(self) -> None:
        self._lowest: float | None = None  # semitones above 1 Hz

    def cues(self, pcm: bytes) -> Cues | None:
        """Of the voice up to a pause: `pcm` (24 kHz s16le mono) ends where the voice did, and may be any
        length. None where there is too little with a pitch."""
        windows = _windows(pcm)
        if windows is None:
            return None
        power = _spectrum(windows)
        loudness = 10 * np.log10(power.sum(1) + 1.0)
        pitch = _pitch(power)
        places = np.flatnonzero((pitch > 0) & (loudness > loudness.max() - _AUDIBLE_DB))
        if len(places):
            places = places[np.abs(pitch[places] - _median(pitch[places])) < _OCTAVE]
        if len(places) < _LEAST:
            return None
        track = 12 * pitch[places]
        lowest = self._learn(float(np.sort(track)[len(track) // _LOW_TENTH]))
        final = float(track[-_LAST:].mean())
        return Cues(final - lowest, final - _median(track), _change(power, places))

    def _learn(self, low: float) -> float:
        """From one more stretch of voice, the speaker's lowest pitch."""
        if self._lowest is None:
            self._lowest = low
        else:
            self._lowest += (low - self._lowest) * (_LOWER if low < self._lowest else _HIGHER)
        return self._lowest


def _median(values: Floats) -> float:
    """As np.median, which takes ten times as long for a few values."""
    return float(np.sort(values)[len(values) // 2])


def _windows(pcm: bytes) -> NDArray[Any] | None:
    """The last `SPAN` seconds at 4 kHz, cut into overlapping windows, one a row."""
    narrow = narrowed(pcm[-int(SPAN * PCM_RATE) * 2 :])
    count = (len(narrow) - _WINDOW) // _HOP + 1
    if count < 1:
        return None
    narrow = np.ascontiguousarray(narrow[len(narrow) - _WINDOW - (count - 1) * _HOP :])
    step = narrow.strides[0]
    return np.lib.stride_tricks.as_strided(narrow, (count, _WINDOW), (step * _HOP, step), writeable=False)


def _spectrum(windows: NDArray[Any]) -> Floats:
    """The power of each window, a bin a column."""
    spectrum = np.fft.rfft(windows * _HANN, _FFT)
    power = (spectrum.real**2 + spectrum.imag**2).astype(np.float32)
    power[:, :2] = 0  # below 30 Hz is no voice
    return power


def _change(power: Floats, places: NDArray[np.intp]) -> float:
    """Of the envelope, in the last windows of those at `places`."""
    places = places[places > places[-1] - _STEADY_WINDOWS]
    places = places[places >= _STEADY_LAG]
    if len(places) < _LEAST:
        return _UNKNOWN_CHANGE
    bands = 10 * np.log10(np.add.reduceat(power, _BANDS, axis=1) + 1e-3)
    bands = np.maximum(bands, bands.max(1, keepdims=True) - _BAND_RANGE_DB)
    bands -= bands.mean(1, keepdims=True)
    moved = bands[places] - bands[places - _STEADY_LAG]
    return _median(np.sqrt((moved * moved).mean(1)))


def _pitch(power: Floats) -> Floats:
    """log2 of each window's pitch in hertz, 0 where it has none."""
    likeness = np.fft.irfft(power, _FINE * _FFT)[:, : _LAGS.stop]
    likeness = (likeness[:, _LAGS] / (likeness[:, :1] + 1.0)) * _CORRECTION
    inner = likeness[:, 1:-1]
    peaks = (inner >= likeness[:, :-2]) & (inner >= likeness[:, 2:]) & (inner > _HARMONIC)
    scores = np.where(peaks, inner - _LAG_COST, 0.0)
    best = scores.argmax(1)
    rows = np.arange(len(best))
    left, middle, right = (likeness[rows, best + shift] for shift in (0, 1, 2))
    bend = left - 2 * middle + right
    lag = best + 1 + _LAGS.start + np.where(bend < -1e-6, 0.5 * (left - right) / np.minimum(bend, -1e-6), 0.0)
    pitch = np.where(scores[rows, best] > 0, np.log2(_FINE * RATE / np.maximum(lag, 1.0)), 0.0)
    return pitch.astype(np.float32)


def _window_correction() -> Floats:
    """One over the autocorrelation of the window itself, which falls with the lag."""
    own = np.fft.irfft(np.abs(np.fft.rfft(_HANN, 2 * _FFT)) ** 2, 2 * _FINE * _FFT)
    correction: Floats = (own[0] / own[_LAGS]).astype(np.float32)
    return correction


_CORRECTION = _window_correction()
_LAG_COST = np.array(
    [_OCTAVE_COST * log2(lag / _LAGS.start) for lag in range(_LAGS.start + 1, _LAGS.stop - 1)], np.float32
)
