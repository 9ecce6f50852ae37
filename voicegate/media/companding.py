"""ITU-T G.711: the 256 codes of each law, and 16-bit PCM of the same rate. Table look-up; pure."""

from __future__ import annotations

from enum import IntEnum
from functools import cache
from itertools import pairwise


class Law(IntEnum):
    """The static payload types of RFC 3551 table 4."""

    PCMU = 0
    PCMA = 8


def expand(law: Law, codes: bytes) -> bytes:
    """s16le of each code."""
    low, high = _decode_tables(law)
    pcm = bytearray(2 * len(codes))
    pcm[0::2] = codes.translate(low)
    pcm[1::2] = codes.translate(high)
    return bytes(pcm)


def compress(law: Law, pcm: bytes) -> bytes:
    """The nearest code of each s16le sample."""
    return bytes(map(_encode_table(law).__getitem__, memoryview(pcm).cast("H")))


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


@cache
def _decode_tables(law: Law) -> tuple[bytes, bytes]:
    """The low and the high byte of the 16-bit value of each code, for `bytes.translate`."""
    values = [_VALUE[law](code) for code in range(256)]
    return bytes(value & 0xFF for value in values), bytes(value >> 8 & 0xFF for value in values)


@cache
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
