"""WAV files as the media floor wants sound: 24 kHz, mono, s16le, in whole frames."""

from __future__ import annotations

import wave
from pathlib import Path
from typing import Final

import numpy as np

from voicegate.media.codec import FRAME_BYTES, PCM_RATE
from voicegate.media.resample import Resampler

MAX_SECONDS: Final = 600
"""A turn is seconds long. What is longer is not a turn, and would fill the memory."""


class WavError(Exception):
    """The message is a sentence that names the file and the problem."""


def read_frames(path: Path) -> list[bytes]:
    """The first channel of a 16-bit PCM WAV of 8 to 48 kHz, in 20-ms frames; the last is filled with silence.

    Raises WavError.
    """
    try:
        with wave.open(str(path), "rb") as source:
            width, rate, channels = source.getsampwidth(), source.getframerate(), source.getnchannels()
            samples = source.getnframes()
            if width != 2:
                raise WavError(f"{path} has {8 * width}-bit samples; it has to be 16-bit PCM")
            if not 8_000 <= rate <= 48_000:
                raise WavError(f"{path} has {rate} samples a second; 8000 to 48000 can be used")
            if samples > MAX_SECONDS * rate:
                raise WavError(f"{path} is longer than {MAX_SECONDS} seconds")
            pcm = source.readframes(samples)
    except OSError as error:
        raise WavError(f"{path} cannot be read: {error.strerror}") from None
    except (wave.Error, EOFError) as error:
        raise WavError(f"{path} is not a WAV file of PCM samples: {error or 'it ends too soon'}") from None
    if channels > 1:
        whole = len(pcm) // (2 * channels) * 2 * channels
        pcm = np.frombuffer(pcm[:whole], "<i2").reshape(-1, channels)[:, 0].tobytes()
    if rate != PCM_RATE:
        pcm = Resampler(rate, PCM_RATE).convert(pcm)
    pcm += bytes(-len(pcm) % FRAME_BYTES)
    return [pcm[at : at + FRAME_BYTES] for at in range(0, len(pcm), FRAME_BYTES)]
