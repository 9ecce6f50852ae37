"""What every codec looks like from outside, and how to open one by its SDP name.

Outside, audio is 24 kHz, mono, signed 16-bit little-endian PCM: what a Realtime agent speaks, unless it
speaks the client's own G.711 (`sound.Line`). What is on the wire, and at which RTP clock, is the codec's own
business. Samples are counted at 24 kHz in any case.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Final, Protocol

from voicegate.media.companding import Law

if TYPE_CHECKING:
    from voicegate.media.sound import Sound

PCM_RATE: Final = 24_000
"""Samples a second of all PCM in `voicegate.media`: `audio/pcm` of the Realtime API."""
FRAME_SECONDS: Final = 0.02
"""One frame: the default ptime of RFC 3551 section 4.2 and RFC 7587 section 6.1."""
FRAME_SAMPLES: Final = 480
FRAME_BYTES: Final = 960

CLOCK_RATES: Final = {"opus": 48_000, "PCMU": 8_000, "PCMA": 8_000}
"""RTP clock by codec name as in SDP: RFC 7587 section 4.1, RFC 3551 section 4.5.14."""


class Decoder(Protocol):
    """Payloads of one RTP stream to PCM. Keeps the codec's state, so one per stream and in order."""

    clock_rate: int
    sound: Sound
    """What it gives out; "PCM" below."""
    dtx_bytes: int
    """A payload of at most so many bytes announces a pause; 0: the codec has no such."""

    def decode(self, payload: bytes) -> bytes:
        """PCM of one payload, any whole number of samples up to 120 ms. Raises BadPacket."""

    def duration(self, payload: bytes) -> int:
        """How many samples `decode` makes of this payload; 0 when it is not one."""

    def conceal(self, samples: int) -> bytes:
        """Exactly `samples` samples that continue what was decoded last, fading out."""

    def fec_samples(self, payload: bytes) -> int:
        """How many samples *before* this payload it can restore; 0 when it carries no redundancy."""

    def decode_fec(self, payload: bytes, samples: int) -> bytes:
        """The `samples` samples before this payload, from its redundancy. Raises BadPacket."""

    def close(self) -> None:
        """Free the codec's memory. The decoder is not used afterwards."""


class Encoder(Protocol):
    """One 20-ms frame of PCM at a time to payloads of one RTP stream."""

    clock_rate: int

    def encode(self, pcm: bytes) -> bytes:
        """The payload for exactly a frame: FRAME_BYTES of PCM."""

    def adapt(self, bitrate: int, expected_loss: int) -> None:
        """From the next frame on, about this many bits a second, and ready for this much loss, in percent.

        A codec without such a choice ignores it.
        """

    def close(self) -> None:
        """Free the codec's memory. The encoder is not used afterwards."""


def open_decoder(name: str, *, passes: bool = False) -> Decoder:
    """A fresh decoder for an SDP codec name of CLOCK_RATES; KeyError for any other.

    `passes`: G.711 that stays what it is (`media.passthrough`).
    """
    if name == "opus":
        from voicegate.media.opus import OpusDecoder

        return OpusDecoder()
    if passes:
        from voicegate.media.passthrough import PassingDecoder

        return PassingDecoder(Law[name])
    # Only on demand: its resampler brings PyAV in, and hardly any call needs it.
    from voicegate.media.g711 import G711Decoder

    return G711Decoder(Law[name])


def open_encoder(name: str, *, bitrate: int = 32_000, passes: bool = False) -> Encoder:
    """A fresh encoder for an SDP codec name of CLOCK_RATES; KeyError otherwise. G.711 has one bit rate.

    `passes`: as for a decoder.
    """
    if name == "opus":
        from voicegate.media.opus import OpusEncoder

        return OpusEncoder(bitrate=bitrate)
    if passes:
        from voicegate.media.passthrough import PassingEncoder

        return PassingEncoder()
    from voicegate.media.g711 import G711Encoder

    return G711Encoder(Law[name])
