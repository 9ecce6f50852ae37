"""DCEP: the two messages that open a data channel (RFC 8832 section 5)."""

from __future__ import annotations

import struct
from enum import IntEnum
from typing import Final, NamedTuple

from voicegate.proto.errors import BadPacket


class DcepType(IntEnum):
    """RFC 8832 section 8.2.1."""

    ACK = 0x02
    OPEN = 0x03


class ChannelType(IntEnum):
    """RFC 8832 section 5.1."""

    RELIABLE = 0x00
    MAX_RETRANSMITS = 0x01
    LIFETIME = 0x02
    RELIABLE_UNORDERED = 0x80
    MAX_RETRANSMITS_UNORDERED = 0x81
    LIFETIME_UNORDERED = 0x82


MAX_NAME: Final = 65_535
"""Bytes of a label, and of a protocol: their length fields."""
ACK: Final = bytes((DcepType.ACK,))
_UNORDERED: Final = 0x80
_OPEN = struct.Struct(">BBHIHH")


class Open(NamedTuple):
    """DATA_CHANNEL_OPEN."""

    label: str
    protocol: str = ""
    ordered: bool = True
    max_retransmits: int | None = None
    lifetime: float | None = None
    """Seconds; at most one of this and `max_retransmits`."""
    priority: int = 256
    """RFC 8831 section 6.4: 256 is "normal"."""


def build_open(message: Open) -> bytes:
    """ValueError for what cannot be written."""
    label, protocol = message.label.encode(), message.protocol.encode()
    if len(label) > MAX_NAME or len(protocol) > MAX_NAME:
        raise ValueError("a data channel's label and protocol have at most 65535 bytes each")
    kind, reliability = ChannelType.RELIABLE, 0
    if message.max_retransmits is not None and message.lifetime is not None:
        raise ValueError("a data channel has at most one of max_retransmits and lifetime")
    if message.max_retransmits is not None:
        kind, reliability = ChannelType.MAX_RETRANSMITS, message.max_retransmits
    elif message.lifetime is not None:
        kind, reliability = ChannelType.LIFETIME, round(message.lifetime * 1000)
    if not 0 <= reliability < 1 << 32:
        raise ValueError("a data channel's limit has 32 bits")
    header = _OPEN.pack(
        DcepType.OPEN,
        kind if message.ordered else kind | _UNORDERED,
        message.priority,
        reliability,
        len(label),
        len(protocol),
    )
    return header + label + protocol


def parse_dcep_untrusted(data: bytes) -> Open | None:
    """The OPEN; None for an ACK. BadPacket: dcep_type, dcep_length, dcep_channel_type, dcep_text."""
    if not data:
        raise BadPacket("dcep_length")
    if data[0] == DcepType.ACK:
        if len(data) != 1:
            raise BadPacket("dcep_length")
        return None
    if data[0] != DcepType.OPEN:
        raise BadPacket("dcep_type")
    if len(data) < _OPEN.size:
        raise BadPacket("dcep_length")
    _, kind, priority, reliability, label_size, protocol_size = _OPEN.unpack_from(data)
    if len(data) != _OPEN.size + label_size + protocol_size:
        raise BadPacket("dcep_length")
    limit = kind & ~_UNORDERED
    if limit not in (ChannelType.RELIABLE, ChannelType.MAX_RETRANSMITS, ChannelType.LIFETIME):
        raise BadPacket("dcep_channel_type")
    end = _OPEN.size + label_size
    try:
        label, protocol = data[_OPEN.size : end].decode(), data[end:].decode()
    except UnicodeDecodeError:
        raise BadPacket("dcep_text") from None
    return Open(
        label,
        protocol,
        not kind & _UNORDERED,
        reliability if limit == ChannelType.MAX_RETRANSMITS else None,
        reliability / 1000 if limit == ChannelType.LIFETIME else None,
        priority,
    )
