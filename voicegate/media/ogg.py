"""Stereo PCM to an Ogg/Opus file (RFC 7845), by FFmpeg through PyAV. Pure but for the sink it is given.

Ogg pages stand for themselves: a file that ends anywhere behind its first two pages is played up to its last
whole page. So a page is written every PAGE_SECONDS, and a crash costs no more than two of them.
"""

from __future__ import annotations

import contextlib
from fractions import Fraction
from typing import Final, Protocol

import av

from voicegate.media.codec import PCM_RATE

PAGE_SECONDS: Final = 0.2
BITRATE: Final = 48_000
"""Two voices that seldom speak at once; 22 MB an hour, and 28 measured when both talk all the time."""
_TIME_BASE = Fraction(1, PCM_RATE)


class Sink(Protocol):
    """Where the file goes. What `write` raises comes out of `OggOpus.write`."""

    def write(self, data: bytes) -> int: ...


class OggOpus:
    """One file. Left and right are 24 kHz s16le, of one length."""

    def __init__(self, sink: Sink, *, title: str) -> None:
        options = {"page_duration": str(round(PAGE_SECONDS * 1e6)), "flush_packets": "1"}
        self._container = av.open(sink, "w", format="ogg", options=options)
        # `audio` as in media.opus: the CELT modes cost a third of the speech modes.
        codec = {"application": "audio", "frame_duration": "20", "compression_level": "5"}
        self._stream = self._container.add_stream("libopus", rate=PCM_RATE, options=codec)
        self._stream.layout = "stereo"
        self._stream.bit_rate = BITRATE
        self._stream.metadata["title"] = title
        self._samples = 0

    def write(self, left: bytes, right: bytes) -> None:
        frame = av.AudioFrame(format="s16p", layout="stereo", samples=len(left) // 2)
        frame.sample_rate = PCM_RATE
        frame.time_base = _TIME_BASE
        frame.pts = self._samples
        frame.planes[0].update(left)
        frame.planes[1].update(right)
        self._samples += frame.samples
        self._container.mux(self._stream.encode(frame))

    def close(self) -> None:
        """Write what the encoder still has, and the end of the stream."""
        try:
            self._container.mux(self._stream.encode(None))
        except BaseException:
            self.abandon()
            raise
        self._container.close()

    def abandon(self) -> None:
        """Free it; the sink takes nothing more."""
        with contextlib.suppress(av.FFmpegError, OSError):
            self._container.close()
