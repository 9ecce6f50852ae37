"""Whether a sound has a pitch, as vowels have and breath, coughs and clicks have not."""

from __future__ import annotations

from typing import Final

import numpy as np
from numpy.typing import NDArray

from voicegate.media.codec import PCM_RATE

Floats = NDArray[np.float32]

RATE: Final = 4_000
"""Hz. Enough for the harmonics by which a pitch is found."""
_DECIMATION: Final = PCM_RATE // RATE
_SIXTH: Final = np.full(_DECIMATION, 1 / _DECIMATION, np.float32)
_LAGS: Final = slice(8, 58)
"""500 to 70 Hz."""
_PITCHED: Final = 0.6
"""Of the signal's power, at the peak of its autocorrelation: the vowels of the labelled set are above it at
10 dB of noise, its coughs seldom."""
_SILENT: Final = 1.0
"""Mean power: nothing but rounding."""


def has_pitch(pcm: bytes) -> bool:
    """Of 40 ms or so, 24 kHz s16le mono: two periods of the lowest voice. Takes 15 us."""
    samples = narrowed(pcm)
    samples -= samples.mean()
    likeness = np.correlate(samples, samples, "full")[len(samples) - 1 :]
    if likeness[0] < _SILENT * len(samples):
        return False
    parts = likeness[_LAGS] / np.arange(len(samples) - _LAGS.start, len(samples) - _LAGS.stop, -1)
    inner = parts[1:-1]
    peaks = inner[(inner >= parts[:-2]) & (inner >= parts[2:])]
    return bool(len(peaks)) and float(peaks.max()) * len(samples) > _PITCHED * float(likeness[0])


def narrowed(pcm: bytes) -> Floats:
    """24 kHz s16le mono at RATE, without the first few samples where they do not go into one."""
    samples = np.frombuffer(pcm, "<i2")
    whole = samples[len(samples) % _DECIMATION :].astype(np.float32)
    narrow: Floats = whole.reshape(-1, _DECIMATION).dot(_SIXTH)
    return narrow
