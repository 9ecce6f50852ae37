"""Mono PCM from one rate to another, between 24 kHz and what a G.711 line or an agent speaks.

libswresample through PyAV's AudioResampler: a polyphase filter of 32 taps at the lower rate, which holds back
16 of its samples: 2 ms at 8 kHz, 1 ms at 16 kHz. It is primed with silence, so every call gives exactly its
share of samples; the next call evens out what the ratio rounds. Measured: 8 us for 20 ms between 24 kHz and
16 or 8, 0.35 ms for a second at once, 0.5 ms to make one. Importing this module brings PyAV in: 20 MB and
0.15 s, once in a process.
"""

from __future__ import annotations

from typing import Final

import av
from av.audio.resampler import AudioResampler

DELAY: Final = 16
"""What the filter holds back, in samples at the lower rate."""


class Resampler:
    """One stream, s16le mono. Any whole number of samples in, its share of samples out, `DELAY` late."""

    __slots__ = ("_from", "_resampler", "_silence")

    def __init__(self, from_rate: int, to_rate: int) -> None:
        self._from = from_rate
        self._resampler = AudioResampler("s16", "mono", to_rate)
        low = min(from_rate, to_rate)
        self._silence = bytes(2 * 2 * DELAY * from_rate // low)  # as long as the filter
        # Fill the filter, and one frame more: a very short first input would not come out in step.
        primed = self.convert(self._silence + bytes(2 * (from_rate // 50)))
        held = to_rate // 50 + DELAY * to_rate // low
        assert len(primed) == 2 * held, "libswresample holds back what its filter needs"

    def convert(self, pcm: bytes) -> bytes:
        if not pcm:
            return b""
        frame = av.AudioFrame("s16", "mono", len(pcm) // 2)
        frame.sample_rate = self._from
        frame.planes[0].update(pcm)
        return b"".join(
            bytes(memoryview(out.planes[0])[: 2 * out.samples]) for out in self._resampler.resample(frame)
        )

    def begin(self) -> None:
        """What follows is something else: forget what the filter holds back of what came before."""
        self.convert(self._silence)
