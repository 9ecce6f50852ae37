"""How the last words before a pause were said: pitch, length and loudness, from the audio alone.

What people do with their voices at the end of a turn, and where they mean to go on, is known from studies of
human talk (Duncan 1972; Koiso et al. 1998; Gravano and Hirschberg 2011; Raux and Eskenazi 2008): the pitch of
an end falls to the bottom of the speaker's range or, in a question, rises far; the pitch of one who goes on
stays level in the middle or rises a little. A filled pause ("um") and the last word before a hesitation are
drawn out: long, level, unchanging. An end grows softer.

The last 0.7 s of voice are looked at, once a pause: at 4 kHz, in windows of 40 ms every 10 ms. Pitch is the
highest peak of the autocorrelation, corrected for the window (Boersma 1993), between 70 and 550 Hz. All of it
is two FFTs over all windows at once.
"""

from __future__ import annotations

from math import log2, pi
from typing import Any, Final, NamedTuple

import numpy as np
from numpy.typing import NDArray

from voicegate.media.codec import PCM_RATE

Floats = NDArray[np.float32]

SPAN: Final = 0.7
"""Seconds looked at: two or three syllables, and the longest "um" that is not beyond doubt."""
_RATE = 4_000
_DECIMATION = PCM_RATE // _RATE
_SIXTH = np.full(_DECIMATION, 1 / _DECIMATION, np.float32)
_WINDOW = 160
_HOP = 40
_HOP_SECONDS = _HOP / _RATE
_FFT = 256
_FINE = 2
"""Lags are looked at in steps of 1/8000 s: at 4 kHz a narrow peak falls between two of them, and the one an
octave below does not."""
_LAGS = slice(7 * _FINE, 58 * _FINE + 1)
"""571 to 69 Hz, one more on either side than is used: a peak has neighbours."""
_HANN = (0.5 - 0.5 * np.cos(2 * pi * (np.arange(_WINDOW) + 0.5) / _WINDOW)).astype(np.float32)
_BANDS = (9, 14)
"""For the shape of a spectrum: 9 bands of 14 bins, 219 Hz each, from 31 Hz to 2 kHz."""
_HARMONIC = 0.5
"""Of the autocorrelation at its peak: below, a window has no pitch."""
_OCTAVE_COST = 0.06
"""Of the peak, for each octave that the pitch is lower: of two peaks as high the shorter lag is the pitch."""
_AUDIBLE_DB = 25.0
"""A window softer than the loudest by more has no pitch worth knowing: breath and room."""
_STEADY_DB = 2.5
"""Mean change of nine bands over 30 ms. In fluent speech it is 3 to 8 dB."""
_STEADY_SEMITONES = 1.0
_LAST = 6
"""Pitched windows at the end that are the final pitch: 60 ms."""
_GLIDE = slice(-26, -16)
"""And those that it is compared with for the glide: 0.16 to 0.26 s before the end."""
_TURN = slice(-22, -12)
"""The last 30 ms are compared with the lowest of these for the rise: a question turns up late."""
_LOW_TENTH = 10
"""The lowest tenth of the track is the speaker's lowest pitch: less than that may be creak."""
_OCTAVE = 0.7
"""Of an octave from the median: further away is an error of the pitch, or a creak."""
_FORGET = 0.2
"""The weight of the newest stretch of voice in the speaker's lowest pitch."""


class Cues(NamedTuple):
    """All zero where nothing could be told."""

    height: float
    """Semitones of the final pitch above the speaker's lowest: about 0 at the end of a fall."""
    glide: float
    """Semitones between the final pitch and that of 0.2 s before: negative is a fall."""
    rise: float
    """Semitones by which the pitch turned up at the very end."""
    drawn: float
    """Seconds of the last piece of voice in which neither sound nor pitch changed."""
    fade: float
    """dB by which the last 0.2 s of voice are softer than the voice before."""


NO_CUES: Final = Cues(0.0, 0.0, 0.0, 0.0, 0.0)


class Prosody:
    """Of one speaker: their lowest pitch is learned from pause to pause."""

    def __init__(self) -> None:
        self._lowest: float | None = None  # semitones above 1 Hz

    def cues(self, pcm: bytes) -> Cues:
        """Of the voice up to a pause: `pcm` (24 kHz s16le mono) ends where the voice did, and may be any
        length."""
        windows = _windows(pcm)
        if windows is None:
            return NO_CUES
        power, pitch = _analyse(windows)
        loudness = 10 * np.log10(power.sum(1) + 1.0)
        places = np.flatnonzero((pitch > 0) & (loudness > loudness.max() - _AUDIBLE_DB))
        if len(places):
            places = places[np.abs(pitch[places] - _median(pitch[places])) < _OCTAVE]
        if len(places) < 2 * _LAST:
            return NO_CUES
        track = 12 * pitch[places]
        final = _median(track[-_LAST:])
        before = track[_GLIDE] if len(track) > 20 else track[:-_LAST]
        valley = track[_TURN] if len(track) > 16 else track[:-3]
        return Cues(
            final - self._learn(float(np.sort(track)[len(track) // _LOW_TENTH])),
            final - _median(before),
            float(track[-3:].mean() - valley.min()),
            _drawn(power, pitch, places),
            _fade(loudness[places]),
        )

    def _learn(self, low: float) -> float:
        """The speaker's lowest pitch, after one more stretch of voice."""
        if self._lowest is None:
            self._lowest = low
        else:
            self._lowest += (low - self._lowest) * _FORGET
        return self._lowest


def _median(values: Floats) -> float:
    """As np.median, which takes ten times as long for a few values."""
    return float(np.sort(values)[len(values) // 2])


def _fade(voice: Floats) -> float:
    end = max(3, min(20, len(voice) // 2))
    return float(voice[:-end].mean() - voice[-end:].mean())


def _windows(pcm: bytes) -> NDArray[Any] | None:
    """The last `SPAN` seconds at 4 kHz, cut into overlapping windows, one a row."""
    samples = np.frombuffer(pcm[-int(SPAN * PCM_RATE) * 2 :], "<i2")
    samples = samples[len(samples) % _DECIMATION :]
    narrow = samples.astype(np.float32).reshape(-1, _DECIMATION).dot(_SIXTH)
    count = (len(narrow) - _WINDOW) // _HOP + 1
    if count < 1:
        return None
    narrow = np.ascontiguousarray(narrow[len(narrow) - _WINDOW - (count - 1) * _HOP :])
    step = narrow.strides[0]
    return np.lib.stride_tricks.as_strided(narrow, (count, _WINDOW), (step * _HOP, step), writeable=False)


def _analyse(windows: NDArray[Any]) -> tuple[Floats, Floats]:
    """The power spectrum of each window, and log2 of its pitch in hertz, 0 where it has none."""
    spectrum = np.fft.rfft(windows * _HANN, _FFT)
    power = (spectrum.real**2 + spectrum.imag**2).astype(np.float32)
    power[:, :2] = 0  # below 30 Hz is no voice
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
    pitch = np.where(scores[rows, best] > 0, np.log2(_FINE * _RATE / np.maximum(lag, 1.0)), 0.0)
    return power, pitch.astype(np.float32)


def _window_correction() -> Floats:
    """One over the autocorrelation of the window itself, which falls with the lag."""
    own = np.fft.irfft(np.abs(np.fft.rfft(_HANN, 2 * _FFT)) ** 2, 2 * _FINE * _FFT)
    correction: Floats = (own[0] / own[_LAGS]).astype(np.float32)
    return correction


_CORRECTION = _window_correction()
_LAG_COST = np.array(
    [_OCTAVE_COST * log2(lag / _LAGS.start) for lag in range(_LAGS.start + 1, _LAGS.stop - 1)], np.float32
)


def _drawn(power: Floats, pitch: Floats, places: NDArray[np.intp]) -> float:
    """Seconds of unchanging voice in the piece of voice that ends with the last of `places`."""
    last = int(places[-1])
    breaks = np.flatnonzero(places[1:] - places[:-1] > 2)
    first = int(places[breaks[-1] + 1] if len(breaks) else places[0])
    if last - first < 4:
        return 0.0
    count, width = _BANDS
    bands = np.log10(power[first : last + 1, 2 : 2 + count * width].reshape(-1, count, width).sum(2) + 1.0)
    bands -= bands.mean(1, keepdims=True)
    change = 10 * np.abs(bands[3:] - bands[:-3]).mean(1)
    track = pitch[first : last + 1]
    still = (change < _STEADY_DB) & (12 * np.abs(track[3:] - track[:-3]) < _STEADY_SEMITONES)
    return float(np.count_nonzero(still)) * _HOP_SECONDS
