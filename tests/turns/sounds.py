"""What else a microphone hears: rooms, noise, coughs, keys, a codec. Float arrays, mono, 24 kHz."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Final

import numpy as np

from tests.support.speech import Sound, at_level, from_pcm, to_pcm
from tests.turns.espeak import RATE, Speaker, say
from voicegate.media.codec import FRAME_SAMPLES
from voicegate.media.opus import OpusDecoder, OpusEncoder

_BED_SECONDS = 30
_LOOK_AHEAD: Final = 60
"""Samples by which Opus with low delay is late: 2.5 ms."""


@dataclass(frozen=True, slots=True)
class Place:
    """Where a call is made: the same in all its turns."""

    noise: str
    """"room", "pink" or "babble"."""
    snr: float
    """Decibels between the voice and the noise."""
    level: float
    """RMS of the voice, full scale 1."""
    reverberation: float
    """Seconds until the room is 60 dB down; 0: the microphone is at the mouth."""
    opus: int
    """Bits a second of an Opus round trip; 0: none."""


def draw_place(rng: np.random.Generator) -> Place:
    """Six in ten are in noise at 10 to 20 dB; half are in a room that is heard; four in ten are coded."""
    noise = str(rng.choice(["room", "pink", "babble"], p=[0.4, 0.3, 0.3]))
    return Place(
        noise,
        float(rng.uniform(30, 45) if noise == "room" else rng.uniform(10, 20)),
        float(10 ** (rng.uniform(-34, -20) / 20)),
        float(rng.uniform(0.15, 0.35)) if rng.random() < 0.5 else 0.0,
        int(rng.choice([16_000, 24_000, 32_000])) if rng.random() < 0.4 else 0,
    )


class Beds:
    """Half a minute of each noise, to take pieces from anywhere."""

    def __init__(self, talkers: list[Speaker], rng: np.random.Generator) -> None:
        samples = _BED_SECONDS * RATE
        self._beds = {
            "pink": _coloured(samples, 0.5, rng),
            "room": _coloured(samples, 0.8, rng),
            "babble": _babble(samples, talkers, rng),
        }

    def cut(self, noise: str, samples: int, level: float, rng: np.random.Generator) -> Sound:
        """From a place of the rng's choice, drifting slowly by a decibel or two, at an RMS of `level`."""
        bed = np.roll(self._beds[noise], -int(rng.integers(_BED_SECONDS * RATE)))[:samples]
        drift = np.interp(np.arange(samples), np.arange(0, samples + RATE, RATE), _walk(samples, rng))
        return (bed * level * 10 ** (drift / 20)).astype(np.float32)


def in_place(dry: Sound, place: Place, beds: Beds, rng: np.random.Generator, *, gain: float = 1.0) -> Sound:
    """What the microphone of `place` gives of `dry`, whose voice has an RMS of 0.1."""
    wet = _in_room(dry, place.reverberation, rng) * (place.level * gain / 0.1)
    noise = beds.cut(place.noise, len(wet), place.level * 10 ** (-place.snr / 20), rng)
    heard = np.clip(wet + noise, -0.99, 0.99).astype(np.float32)
    return _coded(heard, place.opus) if place.opus else heard


def cough(rng: np.random.Generator) -> Sound:
    """One to three bursts of shaped noise: a sharp onset, a decay of 0.1 to 0.25 s, sometimes a voiced
    end."""
    bursts = []
    for _ in range(int(rng.integers(1, 4))):
        length = round(rng.uniform(0.16, 0.34) * RATE)
        t = np.arange(length) / RATE
        envelope = np.minimum(1, t / 0.008) * np.exp(-t / rng.uniform(0.05, 0.11))
        burst = _band(rng.standard_normal(length), rng.uniform(300, 500), rng.uniform(2500, 5000))
        burst += 0.4 * _band(rng.standard_normal(length), 500, 1100)
        if rng.random() < 0.4:
            pitch = rng.uniform(110, 230) * (1 - 0.2 * t / t[-1])
            voice = np.sign(np.sin(2 * np.pi * np.cumsum(pitch) / RATE)) * (t > 0.5 * t[-1])
            burst += 0.5 * _band(voice, 150, 1500)
        bursts += [burst * envelope * rng.uniform(0.6, 1.0), np.zeros(round(rng.uniform(0.03, 0.18) * RATE))]
    return at_level(np.concatenate(bursts[:-1]).astype(np.float32), 0.1)


def keys(rng: np.random.Generator) -> Sound:
    """A second or two of typing: clicks of some milliseconds, a press and a weaker release."""
    sound = np.zeros(round(rng.uniform(0.8, 2.2) * RATE))
    at = 0.0
    while at < len(sound) / RATE - 0.2:
        for offset, gain in ((0.0, 1.0), (rng.uniform(0.06, 0.11), 0.4)):
            length = round(rng.uniform(0.004, 0.015) * RATE)
            click = _band(rng.standard_normal(length), 800, 9000) * np.exp(
                -np.arange(length) / (0.25 * length)
            )
            begin = round((at + offset) * RATE)
            sound[begin : begin + length] += gain * rng.uniform(0.5, 1.0) * click
        at += rng.uniform(0.09, 0.32)
    return (sound / np.max(np.abs(sound)) * 0.5).astype(np.float32)


def through_loudspeaker(sound: Sound, rng: np.random.Generator) -> Sound:
    """As a laptop plays it into its own microphone: no bass, a little overdriven, with the room; same
    level."""
    level = float(np.sqrt(np.mean(np.square(sound))))
    driven = np.tanh(_band(sound, 250, 6500) / (4 * level)) * 4 * level
    return at_level(_in_room(driven.astype(np.float32), float(rng.uniform(0.15, 0.3)), rng), level)


def _in_room(dry: Sound, reverberation: float, rng: np.random.Generator) -> Sound:
    if not reverberation:
        return dry
    length = round(reverberation * RATE)
    tail = rng.standard_normal(length) * 10 ** (-3 * np.arange(length) / length)
    tail[: RATE // 250] = 0
    tail *= 10 ** (-rng.uniform(8, 14) / 20) / np.sqrt(np.sum(tail**2))  # direct to reverberant: 8 to 14 dB
    tail[0] = 1
    size = 1 << (len(dry) + length).bit_length()
    return np.fft.irfft(np.fft.rfft(dry, size) * np.fft.rfft(tail, size), size)[: len(dry)].astype(np.float32)


def _coded(sound: Sound, bitrate: int) -> Sound:
    """Through an Opus encoder and decoder, in step with what went in."""
    encoder, decoder = OpusEncoder(bitrate=bitrate), OpusDecoder()
    padded = np.concatenate([sound, np.zeros(-len(sound) % FRAME_SAMPLES + FRAME_SAMPLES, np.float32)])
    pcm = to_pcm(padded)
    frames = [pcm[at : at + 2 * FRAME_SAMPLES] for at in range(0, len(pcm), 2 * FRAME_SAMPLES)]
    out = from_pcm(b"".join(decoder.decode(encoder.encode(frame)) for frame in frames))
    return out[_LOOK_AHEAD : _LOOK_AHEAD + len(sound)]


def _coloured(samples: int, slope: float, rng: np.random.Generator) -> Sound:
    """Noise whose amplitude falls with the frequency to the power of `slope` (0.5 is pink), from 60 Hz up."""
    spectrum = np.fft.rfft(rng.standard_normal(samples))
    frequency = np.fft.rfftfreq(samples, 1 / RATE)
    spectrum *= np.maximum(frequency, 60) ** -slope * (frequency > 30)
    return at_level(np.fft.irfft(spectrum, samples).astype(np.float32), 1.0)


def _babble(samples: int, talkers: list[Speaker], rng: np.random.Generator) -> Sound:
    """Ten people in another corner of the room, all talking at once."""
    mix = np.zeros(samples, np.float32)
    for talker in talkers[:10]:
        words = " ".join(rng.permutation(_CHATTER).tolist())
        sound = np.roll(np.resize(say(words, talker), samples), int(rng.integers(samples)))
        mix += at_level(sound, float(rng.uniform(0.6, 1.0)))
    return at_level(_in_room(_band(mix, 100, 5000).astype(np.float32), 0.4, rng), 1.0)


def _band(sound: np.ndarray, low: float, high: float) -> np.ndarray:
    size = 1 << len(sound).bit_length()
    spectrum = np.fft.rfft(sound, size)
    frequency = np.fft.rfftfreq(size, 1 / RATE)
    spectrum *= 1 / np.sqrt(1 + (low / np.maximum(frequency, 1)) ** 6) / np.sqrt(1 + (frequency / high) ** 6)
    return np.fft.irfft(spectrum, size)[: len(sound)]


def _walk(samples: int, rng: np.random.Generator) -> np.ndarray:
    """A level in decibels at every second, never far from 0."""
    return np.clip(np.cumsum(rng.normal(0, 0.5, samples // RATE + 2)), -2, 2)[
        : len(range(0, samples + RATE, RATE))
    ]


_CHATTER = (
    "people were coming in all the time and nobody knew who they were",
    "she said it would be ready by the weekend but you never know",
    "there is a new bakery round the corner with very good bread",
    "he has been working on that old boat for nearly three years",
    "the weather up there was terrible and we stayed inside",
    "they want to sell the house and move closer to the sea",
    "it rained on the second day so we played cards",
    "most of the trains were late because of the snow",
)
