"""Recordings as a machine is given them: 24 kHz, mono, s16le, in 20-ms frames."""

from __future__ import annotations

from pathlib import Path
from typing import Final

from voicegate.media.codec import FRAME_BYTES
from voicegate.media.sound_file import BadSound, decode_sound

MAX_SECONDS: Final = 600
"""A turn is seconds long. What is longer is not a turn, and would fill the memory."""


class RecordingError(Exception):
    """The message is a sentence that names the file and the problem."""


def read_frames(path: Path) -> list[bytes]:
    """A WAV file of any rate (or whatever else PyAV reads); the last frame is filled with silence.

    Raises RecordingError.
    """
    try:
        pcm = decode_sound(path.read_bytes(), MAX_SECONDS)
    except OSError as error:
        raise RecordingError(f"{path} cannot be read: {error.strerror}") from None
    except BadSound as error:
        raise RecordingError(f"{path} {error}") from None
    pcm += bytes(-len(pcm) % FRAME_BYTES)
    return [pcm[at : at + FRAME_BYTES] for at in range(0, len(pcm), FRAME_BYTES)]
