"""Which protocol a datagram belongs to, by its first byte (RFC 7983 section 7, RFC 5761 section 4)."""

from __future__ import annotations

from enum import IntEnum


class Kind(IntEnum):
    """The protocols that share one port, in the order of their ranges. Anything else is `UNKNOWN`:
    dropped."""

    UNKNOWN = 0
    STUN = 1
    DTLS = 2
    RTP = 3
    """SRTP and SRTCP; `is_rtcp` tells them apart."""


def kind(first_byte: int) -> Kind:
    """The protocol of a datagram. ZRTP and TURN channels, which we never use, are UNKNOWN."""
    return _KINDS[first_byte]


def is_rtcp(datagram: bytes) -> bool:
    """Whether a datagram of kind RTP is RTCP: packet types 192 to 223 (RFC 5761 section 4, rtcp-mux)."""
    return len(datagram) >= 2 and 192 <= datagram[1] <= 223


def _range_of(first_byte: int) -> Kind:
    if first_byte <= 3:
        return Kind.STUN
    if 20 <= first_byte <= 63:
        return Kind.DTLS
    if 128 <= first_byte <= 191:
        return Kind.RTP
    return Kind.UNKNOWN


_KINDS = tuple(_range_of(first_byte) for first_byte in range(256))
