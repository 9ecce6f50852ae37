"""RTP packets: RFC 3550 section 5.1, with header extensions of RFC 8285.

Only what one call needs: no mixing, so CSRCs are stepped over, and extensions are kept raw until somebody
asks for one with `extension_value`, because most packets are never asked.
"""

from __future__ import annotations

import struct
from typing import Final, NamedTuple

from voicegate.proto.errors import BadPacket

HEADER_LENGTH: Final = 12
"""The fixed header, RFC 3550 section 5.1."""

_HEADER = struct.Struct("!BBHII")
_WORD = struct.Struct("!HH")

_VERSION_2 = 0x80
_VERSION_MASK = 0xC0
_PADDING = 0x20
_EXTENSION = 0x10
_CSRC_COUNT = 0x0F
_MARKER = 0x80
_PAYLOAD_TYPE = 0x7F

_ONE_BYTE_PROFILE = 0xBEDE
"""RFC 8285 section 4.2."""
_TWO_BYTE_PROFILE = 0x100
"""RFC 8285 section 4.3: the upper 12 bits; the lower four are for the application."""
_RESERVED_ONE_BYTE_ID = 15


class RtpPacket(NamedTuple):
    """One parsed packet. `timestamp` counts the payload's RTP clock, `payload` has no padding."""

    marker: bool
    payload_type: int
    sequence: int
    timestamp: int
    ssrc: int
    payload: bytes
    extensions: bytes = b""
    """The extension block from its 16-bit profile on, or empty: ask `extension_value`."""


class AudioLevel(NamedTuple):
    """RFC 6464: `level` is 0 (loudest) to 127 (silence), in -dBov."""

    voice: bool
    level: int


def parse_rtp_untrusted(data: bytes) -> RtpPacket:
    """Parse one decrypted RTP packet (RFC 3550 section 5.1 and appendix A.1). Raises BadPacket only."""
    if len(data) < HEADER_LENGTH:
        raise BadPacket("rtp_short")
    first, second, sequence, timestamp, ssrc = _HEADER.unpack_from(data)
    if first & _VERSION_MASK != _VERSION_2:
        raise BadPacket("rtp_version")
    extensions = b""
    if first == _VERSION_2:  # the common packet: no padding, no extension, no CSRC
        payload = data[HEADER_LENGTH:]
    else:
        start = HEADER_LENGTH + 4 * (first & _CSRC_COUNT)
        end = len(data)
        if start > end:
            raise BadPacket("rtp_csrc")
        if first & _EXTENSION:
            begin = start
            if begin + 4 > end:
                raise BadPacket("rtp_extension")
            start = begin + 4 + 4 * _WORD.unpack_from(data, begin)[1]
            if start > end:
                raise BadPacket("rtp_extension")
            extensions = data[begin:start]
        if first & _PADDING:
            # The last octet counts itself, so zero is a lie as well as anything that reaches into the header.
            if start == end or not 1 <= data[-1] <= end - start:
                raise BadPacket("rtp_padding")
            end -= data[-1]
        payload = data[start:end]
    return RtpPacket(
        second >= _MARKER, second & _PAYLOAD_TYPE, sequence, timestamp, ssrc, bytes(payload), extensions
    )


def build_rtp(
    payload_type: int, marker: bool, sequence: int, timestamp: int, ssrc: int, payload: bytes
) -> bytes:
    """One packet without CSRC, extension or padding. The integers are already within their fields."""
    return (
        _HEADER.pack(
            _VERSION_2, payload_type | _MARKER if marker else payload_type, sequence, timestamp, ssrc
        )
        + payload
    )


def extension_value(packet: RtpPacket, extension_id: int) -> bytes | None:
    """The first element with this negotiated id, or None when it is not there or the block lies.

    RFC 8285: an extension may always be ignored, so a malformed block costs the extension, not the packet.
    """
    block = packet.extensions
    if not block:
        return None
    profile = _WORD.unpack_from(block)[0]
    if profile == _ONE_BYTE_PROFILE:
        return _find_one_byte(block, extension_id)
    if profile >> 4 == _TWO_BYTE_PROFILE:
        return _find_two_byte(block, extension_id)
    return None


def audio_level(packet: RtpPacket, extension_id: int) -> AudioLevel | None:
    """The client's own voice flag and level for this frame (RFC 6464 section 3), if it sent one."""
    value = extension_value(packet, extension_id)
    if not value:
        return None
    return AudioLevel(bool(value[0] & 0x80), value[0] & 0x7F)


def mid(packet: RtpPacket, extension_id: int) -> str | None:
    """The SDES MID (RFC 8843 section 15): which m-line this packet belongs to, if the client says."""
    value = extension_value(packet, extension_id)
    if not value or not value.isascii():
        return None
    return value.decode("ascii")


def sequence_delta(sequence: int, reference: int) -> int:
    """How far `sequence` is ahead of `reference` across the 16-bit wrap: -32768 to 32767."""
    return ((sequence - reference + 0x8000) & 0xFFFF) - 0x8000


def timestamp_delta(timestamp: int, reference: int) -> int:
    """How far `timestamp` is ahead of `reference` across the 32-bit wrap."""
    return ((timestamp - reference + 0x80000000) & 0xFFFFFFFF) - 0x80000000


def _find_one_byte(block: bytes, extension_id: int) -> bytes | None:
    at, end = 4, len(block)
    while at < end:
        head = block[at]
        at += 1
        if head == 0:  # padding, section 4.2
            continue
        found, length = head >> 4, (head & 0x0F) + 1
        if found == _RESERVED_ONE_BYTE_ID:  # "processing of the entire extension MUST terminate", section 4.2
            return None
        if at + length > end:
            return None
        if found == extension_id:
            return block[at : at + length]
        at += length
    return None


def _find_two_byte(block: bytes, extension_id: int) -> bytes | None:
    at, end = 4, len(block)
    while at < end:
        found = block[at]
        at += 1
        if found == 0:  # padding, section 4.3
            continue
        if at >= end:
            return None
        length = block[at]
        at += 1
        if at + length > end:
            return None
        if found == extension_id:
            return block[at : at + length]
        at += length
    return None
