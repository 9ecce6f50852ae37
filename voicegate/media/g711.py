"""G.711 (PCMU and PCMA of RFC 3551 section 4.5.14): 8 kHz on the wire, 24 kHz PCM outside.

The companding is table look-up. The resampling is `voicegate.media.resample`: 2 ms of delay in each
direction, and a payload of n samples gives exactly 3 n. Measured, per 20-ms frame: decode 19 us, encode 29.

Concealment is repeat-and-fade: the last 20 ms again and again, down to silence in 60 ms.
"""

from __future__ import annotations

from array import array
from enum import IntEnum
from itertools import cycle, islice, pairwise
from typing import Final

from voicegate.media.codec import CLOCK_RATES, FRAME_BYTES, PCM_RATE
from voicegate.media.resample import Resampler
from voicegate.proto.errors import BadPacket

MAX_PAYLOAD: Final = 960
"""120 ms, like the longest Opus packet."""
_RATE = 8_000
_RATIO = PCM_RATE // _RATE
_FRAME = 160
"""One frame at 8 kHz."""
_FADE_STEPS = 480
"""Samples at 8 kHz until concealment is silent."""


class Law(IntEnum):
    """The static payload types of RFC 3551 table 4."""

    PCMU = 0
    PCMA = 8


class G711Decoder:
    """One G.711 stream to 24 kHz PCM."""

    clock_rate = CLOCK_RATES["PCMU"]
    dtx_bytes = 0
    """Pauses are announced by comfort noise (RFC 3389), a payload type of its own."""

    def __init__(self, law: Law) -> None:
        self._low, self._high = _DECODE[law]
        self._resampler = Resampler(_RATE, PCM_RATE)
        self._last = array("h", bytes(2 * _FRAME))
        self._faded = 0  # samples concealed in a row

    def decode(self, payload: bytes) -> bytes:
        """PCM of one payload, up to 120 ms. Raises BadPacket; within the length every byte is a sample."""
        if not payload:
            raise BadPacket("g711_empty")
        if len(payload) > MAX_PAYLOAD:
            raise BadPacket("g711_oversized")
        pcm = bytearray(2 * len(payload))
        pcm[0::2] = payload.translate(self._low)
        pcm[1::2] = payload.translate(self._high)
        self._last = (self._last + array("h", bytes(pcm)))[-_FRAME:]
        self._faded = 0
        return self._resampler.convert(bytes(pcm))

    def duration(self, payload: bytes) -> int:
        """How many samples `decode` makes of this payload; 0 when it is too long."""
        return len(payload) * _RATIO if len(payload) <= MAX_PAYLOAD else 0

    def conceal(self, samples: int) -> bytes:
        """Exactly `samples` samples at 24 kHz: the last 20 ms repeated, fading to silence."""
        count = -(-samples // _RATIO)
        start = self._faded
        self._faded += count
        audible = min(count, max(0, _FADE_STEPS - start))
        source = islice(cycle(self._last), start % _FRAME, None)
        faded = array(
            "h",
            [
                value * (_FADE_STEPS - step) // _FADE_STEPS
                for step, value in zip(range(start, start + audible), source, strict=False)
            ],
        )
        pcm = self._resampler.convert(faded.tobytes() + bytes(2 * (count - audible)))
        return pcm[: 2 * samples]

    def fec_samples(self, payload: bytes) -> int:
        """G.711 carries no redundancy."""
        return 0

    def decode_fec(self, payload: bytes, samples: int) -> bytes:
        """Never right to call: `fec_samples` is always 0."""
        raise BadPacket("g711_fec")

    def close(self) -> None:
        del self._resampler


class G711Encoder:
    """20-ms frames of 24 kHz PCM to one G.711 stream."""

    clock_rate = CLOCK_RATES["PCMU"]

    def __init__(self, law: Law) -> None:
        self._table = _ENCODE[law]
        self._resampler = Resampler(PCM_RATE, _RATE)

    def encode(self, pcm: bytes) -> bytes:
        """The 160 bytes for exactly FRAME_BYTES of PCM."""
        assert len(pcm) == FRAME_BYTES, "the resampler gives a whole payload only for a whole frame"
        narrow = self._resampler.convert(pcm)
        return bytes(map(self._table.__getitem__, memoryview(narrow).cast("H")))

    def adapt(self, bitrate: int, expected_loss: int) -> None:
        """G.711 has one bit rate and no redundancy."""

    def close(self) -> None:
        del self._resampler


def _decode_mu_law(code: int) -> int:
    """ITU-T G.711 table 2a: inverted bits, 3-bit segment, 4-bit step, bias 33, scaled to 16 bits."""
    code = ~code & 0xFF
    magnitude = ((((code & 0x0F) << 1) + 33) << (code >> 4 & 7)) - 33
    return -4 * magnitude if code & 0x80 else 4 * magnitude


def _decode_a_law(code: int) -> int:
    """ITU-T G.711 table 1a: even bits inverted, 3-bit segment, 4-bit step, scaled to 16 bits."""
    code ^= 0x55
    segment, step = code >> 4 & 7, code & 0x0F
    magnitude = (step << 1) + 1 if segment == 0 else ((step << 1) + 33) << (segment - 1)
    return 8 * magnitude if code & 0x80 else -8 * magnitude


def _decode_tables(law: Law) -> tuple[bytes, bytes]:
    """The low and the high byte of the 16-bit value of each code, for `bytes.translate`."""
    values = [_VALUE[law](code) for code in range(256)]
    return bytes(value & 0xFF for value in values), bytes(value >> 8 & 0xFF for value in values)


def _encode_table(law: Law) -> bytes:
    """The code of each 16-bit value, taken as unsigned: the nearest, as G.711's decision values are."""
    codes = sorted(range(256), key=lambda code: (_VALUE[law](code), code))
    values = [_VALUE[law](code) for code in codes]
    edges = [-32768, *(-(-(low + high) // 2) for low, high in pairwise(values)), 32768]
    signed = b"".join(
        bytes([code]) * (end - start) for code, (start, end) in zip(codes, pairwise(edges), strict=True)
    )
    return signed[32768:] + signed[:32768]


_VALUE = {Law.PCMU: _decode_mu_law, Law.PCMA: _decode_a_law}
_DECODE = {law: _decode_tables(law) for law in Law}
_ENCODE = {law: _encode_table(law) for law in Law}
