"""Test signals and how alike two of them are."""

from __future__ import annotations

from typing import Any

import numpy as np
from numpy.typing import NDArray

from voicegate.media.codec import PCM_RATE


def voice_like(seconds: float, *, seed: int = 1, rate: int = PCM_RATE) -> bytes:
    """A gliding harmonic tone with syllables and some breath: s16le mono."""
    rng = np.random.default_rng(seed)
    t = np.arange(int(seconds * rate)) / rate
    phase = 2 * np.pi * np.cumsum(140 + 40 * np.sin(2 * np.pi * 0.7 * t)) / rate
    tone = sum(np.sin(n * phase) / n for n in range(1, 12))
    syllables = 0.15 + 0.85 * np.clip(np.sin(2 * np.pi * 3.1 * t), 0, 1)
    signal = 6000 * syllables * tone + 60 * rng.standard_normal(len(t))
    return signal.clip(-32768, 32767).astype("<i2").tobytes()


def tone(frequency: float, seconds: float, *, amplitude: float = 9000.0, rate: int = PCM_RATE) -> bytes:
    t = np.arange(int(seconds * rate)) / rate
    return (amplitude * np.sin(2 * np.pi * frequency * t)).astype("<i2").tobytes()


def samples(pcm: bytes) -> NDArray[np.float64]:
    return np.frombuffer(pcm, "<i2").astype(np.float64)


def best_match(sent: bytes, heard: bytes, *, longest_delay: int = 1200) -> tuple[int, float]:
    """The delay in samples at which `heard` is most like `sent`, and the correlation there, 0 to 1."""
    a, b = samples(sent), samples(heard)
    size = min(len(a), len(b)) - longest_delay
    a = a[:size]
    scores = [
        float(np.dot(a, b[d : d + size]) / (np.linalg.norm(a) * np.linalg.norm(b[d : d + size]) + 1e-9))
        for d in range(longest_delay)
    ]
    best = int(np.argmax(scores))
    return best, scores[best]


def noise(seed: int, samples: int) -> NDArray[Any]:
    """Noise of the band that speech has, which Opus keeps in time: 300 to 3,000 Hz."""
    spectrum = np.fft.rfft(np.random.default_rng(seed).normal(0, 6000, samples))
    hertz = np.fft.rfftfreq(samples, 1 / PCM_RATE)
    spectrum[(hertz < 300) | (hertz > 3000)] = 0
    return np.fft.irfft(spectrum, samples).astype(np.int16)


def lag(heard: NDArray[Any], said: NDArray[Any]) -> tuple[int, float]:
    """By how many samples `heard` is behind `said`, and how alike they are then."""
    size = len(heard) + len(said)
    product = np.fft.irfft(
        np.fft.rfft(heard.astype(float), size) * np.conj(np.fft.rfft(said.astype(float), size))
    )
    best = int(np.argmax(product))
    likeness = float(product[best] / np.linalg.norm(heard) / np.linalg.norm(said))
    return best if best < size // 2 else best - size, likeness


def level(pcm: bytes) -> float:
    """Root mean square."""
    return float(np.sqrt(np.mean(samples(pcm) ** 2))) if pcm else 0.0


def frames(pcm: bytes, size: int = 960) -> list[bytes]:
    return [pcm[at : at + size] for at in range(0, len(pcm) - size + 1, size)]
