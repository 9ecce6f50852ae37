"""The sound in a file, whatever its format, as all PCM in `voicegate.media` is."""

from __future__ import annotations

import io
from typing import Final

from voicegate.media.codec import PCM_RATE

MAX_RATE: Final = 192_000
"""Samples a second. No sound card has more, and a header that claims more would fill the memory."""
_PROBED: Final = "32768"
"""Bytes by which FFmpeg knows a format. Of a WAV file it would look at 5 MB, all of a short one: 5 ms instead
of 1.4."""


class BadSound(Exception):
    """The message goes on from the file's name: "is longer than ..."."""


def decode_sound(data: bytes, max_seconds: float) -> bytes:
    """24 kHz s16le mono of whatever PyAV can read; channels are mixed. Raises BadSound."""
    import av  # 20 MB and 0.15 s: only for a file
    from av.audio.resampler import AudioResampler

    pcm = bytearray()
    resampler = AudioResampler(format="s16", layout="mono", rate=PCM_RATE)
    try:
        with av.open(io.BytesIO(data), mode="r", options={"probesize": _PROBED}) as container:
            if not container.streams.audio:
                raise BadSound("has no sound in it")
            if container.streams.audio[0].codec_context.sample_rate > MAX_RATE:
                raise BadSound(f"has more than {MAX_RATE} samples a second")
            for frame in container.decode(audio=0):
                for piece in resampler.resample(frame):
                    pcm += piece.to_ndarray().tobytes()
                if len(pcm) > 2 * PCM_RATE * max_seconds:
                    raise BadSound(f"is longer than {max_seconds:.0f} s: cut it")
            for piece in resampler.resample(None):
                pcm += piece.to_ndarray().tobytes()
    except (OSError, ValueError) as error:  # what FFmpeg says of damaged data
        raise BadSound(f"cannot be read as sound: {error}") from None
    if not pcm:
        raise BadSound("has no sound in it")
    return bytes(pcm)
