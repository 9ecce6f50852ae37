"""Speech to say and the ears to judge what came back.

Sounds are float32 arrays, mono, -1 to 1. Times are seconds.
"""

from __future__ import annotations

import hashlib
import subprocess
import tempfile
import wave
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

RATE = 48_000
Sound = NDArray[np.float32]

SENTENCE = "The quick brown fox jumps over the lazy dog near the river bank."
LONG_SENTENCE = (
    "When the sunlight strikes raindrops in the air, they act as a prism and form a rainbow. "
    "The rainbow is a division of white light into many beautiful colors."
)


def say(text: str = SENTENCE, rate: int = RATE, *, level: float = 0.08) -> Sound:
    """What espeak-ng makes of `text`, without silence around it, at an RMS of `level`.

    The WAV is kept in the temporary directory: the same words cost nothing the second time.
    """
    name = hashlib.blake2s(text.encode(), digest_size=8).hexdigest()
    path = Path(tempfile.gettempdir()) / "voicegate-speech" / f"{name}.wav"
    if not path.exists():
        path.parent.mkdir(exist_ok=True)
        made = path.with_suffix(f".{id(path)}")
        subprocess.run(["espeak-ng", "-v", "en", "-s", "150", "-w", str(made), text], check=True, timeout=60)
        made.replace(path)  # two test runs at once never read half a file
    sound, made_rate = read_wav(path)
    return at_level(trim(resample(sound, made_rate, rate)), level)


def silence(seconds: float, rate: int = RATE) -> Sound:
    return np.zeros(round(seconds * rate), dtype=np.float32)


def conversation(*parts: Sound | float, rate: int = RATE) -> Sound:
    """Sounds, and silences given as seconds, one after the other."""
    return np.concatenate([silence(part, rate) if isinstance(part, float) else part for part in parts])


def write_wav(path: Path, sound: Sound, rate: int = RATE) -> Path:
    with wave.open(str(path), "wb") as out:
        out.setnchannels(1)
        out.setsampwidth(2)
        out.setframerate(rate)
        out.writeframes(to_pcm(sound))
    return path


def read_wav(path: Path) -> tuple[Sound, int]:
    """The first channel and its rate."""
    with wave.open(str(path), "rb") as source:
        assert source.getsampwidth() == 2
        frames = np.frombuffer(source.readframes(source.getnframes()), dtype="<i2")
        return from_pcm(frames.reshape(-1, source.getnchannels())[:, 0].tobytes()), source.getframerate()


def to_pcm(sound: Sound) -> bytes:
    return (np.clip(sound, -1, 1) * 32767).astype("<i2").tobytes()


def from_pcm(pcm: bytes) -> Sound:
    return np.frombuffer(pcm, dtype="<i2").astype(np.float32) / 32768


def resample(sound: Sound, rate: int, new_rate: int) -> Sound:
    """The whole sound at another rate, by its spectrum (exact for what both rates can hold)."""
    if rate == new_rate or not len(sound):
        return sound
    wanted = round(len(sound) * new_rate / rate)
    spectrum = np.fft.rfft(sound)
    bins = wanted // 2 + 1
    resized = np.zeros(bins, dtype=spectrum.dtype)
    kept = min(bins, len(spectrum))
    resized[:kept] = spectrum[:kept]
    return (np.fft.irfft(resized, wanted) * (wanted / len(sound))).astype(np.float32)


def rms(sound: Sound) -> float:
    return float(np.sqrt(np.mean(np.square(sound, dtype=np.float64)))) if len(sound) else 0.0


def at_level(sound: Sound, level: float) -> Sound:
    return (sound * (level / max(rms(sound), 1e-9))).astype(np.float32)


def decibels(ratio: float) -> float:
    return 20 * float(np.log10(max(ratio, 1e-9)))


def envelope(sound: Sound, rate: int = RATE, window: float = 0.01) -> NDArray[np.float64]:
    """RMS per window."""
    step = round(rate * window)
    whole = sound[: len(sound) // step * step].astype(np.float64).reshape(-1, step)
    return np.sqrt(np.mean(np.square(whole), axis=1))


def trim(sound: Sound, rate: int = RATE, threshold: float = 0.003) -> Sound:
    """Without the silence before and after."""
    loud = np.nonzero(envelope(sound, rate) > threshold)[0]
    step = round(rate * 0.01)
    return sound[loud[0] * step : (loud[-1] + 1) * step] if len(loud) else sound[:0]


@dataclass(frozen=True, slots=True)
class Match:
    """Where `said` was found in `heard`."""

    lag: float
    """Seconds into `heard` at which `said` begins."""
    correlation: float
    """Of the waveforms, normalised: 1.0 is the same sound at any level."""
    envelope: float
    """Of the loudness over time in 10-ms steps: what stays after a codec and a voice processor."""
    gain: float
    """Level of what was heard to what was said, in decibels."""


def find(said: Sound, heard: Sound, rate: int = RATE) -> Match:
    """The best place of `said` in `heard` by normalised cross-correlation of the waveforms."""
    # The recording may end with the last audible sample, before the end of `said`.
    heard = np.concatenate([heard, np.zeros(len(said) // 4, dtype=np.float32)])
    if len(heard) < len(said):
        heard = np.concatenate([heard, np.zeros(len(said) - len(heard), dtype=np.float32)])
    size = 1 << (len(heard) + len(said)).bit_length()
    product = np.fft.rfft(heard, size) * np.conj(np.fft.rfft(said, size))
    places = len(heard) - len(said) + 1
    scores = np.fft.irfft(product, size)[:places]
    total = np.concatenate([[0.0], np.cumsum(np.square(heard, dtype=np.float64))])
    energy = np.maximum(total[len(said) :][:places] - total[:places], 1e-6)
    quality = scores / np.sqrt(energy * max(float(np.sum(np.square(said, dtype=np.float64))), 1e-9))
    best = int(np.argmax(quality))
    there = heard[best : best + len(said)]
    return Match(
        lag=best / rate,
        correlation=float(quality[best]),
        envelope=_pearson(envelope(said, rate), envelope(there, rate)),
        gain=decibels(rms(there) / max(rms(said), 1e-9)),
    )


def understood(said: Sound, heard: Sound, rate: int = RATE, *, piece: float = 0.4) -> float:
    """The share of `said`, in pieces, that is found in `heard` (waveform correlation above 0.7).

    A server that waits for a busy machine leaves pauses between the pieces; each piece stays what it was.
    """
    step = round(piece * rate)
    pieces = [said[place : place + step] for place in range(0, len(said) - step + 1, step)]
    return sum(find(part, heard, rate).correlation > 0.7 for part in pieces) / len(pieces)


def find_by_envelope(said: Sound, heard: Sound, rate: int = RATE) -> Match:
    """As `find`, by loudness alone: for a voice that a browser's processing has changed."""
    a, b = envelope(said, rate), envelope(heard, rate)
    if len(b) < len(a):
        b = np.concatenate([b, np.zeros(len(a) - len(b))])
    scores = [_pearson(a, b[lag : lag + len(a)]) for lag in range(len(b) - len(a) + 1)]
    best = int(np.argmax(scores))
    start = best * round(rate * 0.01)
    there = heard[start : start + len(said)]
    return Match(best * 0.01, 0.0, scores[best], decibels(rms(there) / max(rms(said), 1e-9)))


def gaps(said: Sound, heard: Sound, rate: int = RATE, *, shortest: float = 0.03) -> list[tuple[float, float]]:
    """(start, length) of the stretches in which `said` has sound and the aligned `heard` has next to none."""
    a, b = envelope(said, rate), envelope(heard[: len(said)], rate)
    count = min(len(a), len(b))
    loud = a[:count] > 0.15 * float(np.sqrt(np.mean(np.square(a))))
    dead = loud & (b[:count] < 0.05 * a[:count])
    found: list[tuple[float, float]] = []
    start = None
    for place, quiet in enumerate([*dead.tolist(), False]):
        if quiet and start is None:
            start = place
        elif not quiet and start is not None:
            if (place - start) * 0.01 >= shortest:
                found.append((start * 0.01, (place - start) * 0.01))
            start = None
    return found


def voiced(
    sound: Sound, rate: int = RATE, *, threshold: float = 0.01, pause: float = 0.4
) -> list[tuple[float, float]]:
    """(start, end) of each stretch of sound; a silence of `pause` parts two stretches."""
    loud = np.nonzero(envelope(sound, rate) > threshold)[0]
    parts: list[list[float]] = []
    for place in (loud * 0.01).tolist():
        if parts and place - parts[-1][1] < pause:
            parts[-1][1] = place + 0.01
        else:
            parts.append([place, place + 0.01])
    return [(start, end) for start, end in parts]


def _pearson(a: NDArray[Any], b: NDArray[Any]) -> float:
    a, b = a - a.mean(), b - b.mean()
    norm = float(np.sqrt(np.sum(a * a) * np.sum(b * b)))
    return float(np.sum(a * b)) / norm if norm > 1e-12 else 0.0
