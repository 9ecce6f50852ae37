"""The log-mel spectrogram that Whisper hears (Radford et al. 2022, section 2.2), of exactly eight seconds.

16 kHz; windows of 25 ms (Hann) every 10 ms, centred, the ends mirrored; 80 triangular bands between 0 and 8
kHz on Slaney's mel scale (linear below 1 kHz, logarithmic above), each of the same area; log10, no more than
8 below the greatest; then (x + 4) / 4. The waveform is first brought to mean 0 and variance 1, as Smart
Turn's own programs do.
"""

from __future__ import annotations

from typing import Any, Final

import numpy as np
from numpy.typing import NDArray

Floats = NDArray[np.float32]

RATE: Final = 16_000
SECONDS: Final = 8
BANDS: Final = 80
FRAMES: Final = SECONDS * 100
_WINDOW = 400
_HOP = 160
_LEAST_POWER = 1e-10
_LEAST_VARIANCE = 1e-7
_RANGE = 8.0
"""80 dB."""


def log_mel(waveform: Floats) -> Floats:
    """Of 128,000 samples: 80 bands by 800 frames."""
    assert waveform.shape == (SECONDS * RATE,)
    even = (waveform - waveform.mean()) / np.sqrt(waveform.var() + _LEAST_VARIANCE)
    mirrored = np.pad(even, _WINDOW // 2, mode="reflect")
    windows = np.lib.stride_tricks.sliding_window_view(mirrored, _WINDOW)[: FRAMES * _HOP : _HOP]
    spectrum = np.fft.rfft(windows * _HANN)
    power = spectrum.real**2 + spectrum.imag**2
    mel = np.log10(np.maximum(power @ _FILTERS, _LEAST_POWER))
    result: Floats = ((np.maximum(mel, mel.max() - _RANGE) + 4) / 4).T.astype(np.float32)
    return result


def _hertz(mel: NDArray[Any]) -> NDArray[Any]:
    """Slaney's scale: 15 mel to 1 kHz, then 27 mel for each factor of 6.4."""
    return np.where(mel < 15, mel * 200 / 3, 1000 * 6.4 ** ((mel - 15) / 27))


def _filters() -> Floats:
    """Bins of the power spectrum by bands."""
    top = 15 + 27 * np.log(RATE / 2 / 1000) / np.log(6.4)
    corners = _hertz(np.linspace(0, top, BANDS + 2))
    low, middle, high = corners[:-2], corners[1:-1], corners[2:]
    bins = np.linspace(0, RATE / 2, _WINDOW // 2 + 1)[:, None]
    triangles = np.minimum((bins - low) / (middle - low), (high - bins) / (high - middle))
    filters: Floats = (np.maximum(0, triangles) * 2 / (high - low)).astype(np.float32)
    return filters


_FILTERS = _filters()
_HANN = np.hanning(_WINDOW + 1)[:-1].astype(np.float32)
