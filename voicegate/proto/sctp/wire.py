"""SCTP packets and chunks: bytes to fields and back (RFC 9260 section 3, RFC 3758, RFC 6525, RFC 8261).

Two rules hold for everything that comes in:

1. **The whole packet is checked before a word of it is used**: checksum, and every chunk's length, which is
   at least its header and ends inside the packet. A zero length cannot stop the walk.
2. **A chunk is a quadruple of integers** (type, flags, start, stop), the value being `data[start:stop]`:
   what arrives a thousand times a second is sliced once.

What ends in `_untrusted` raises `BadPacket` only.
"""

from __future__ import annotations

import struct
from enum import IntEnum, IntFlag
from typing import Final, NamedTuple, TypeAlias

import google_crc32c

from voicegate.proto.errors import BadPacket


class ChunkType(IntEnum):
    """The chunks read or written here, of the IANA registry "Chunk Types"."""

    DATA = 0x00
    INIT = 0x01
    INIT_ACK = 0x02
    SACK = 0x03
    HEARTBEAT = 0x04
    HEARTBEAT_ACK = 0x05
    ABORT = 0x06
    SHUTDOWN = 0x07
    SHUTDOWN_ACK = 0x08
    ERROR = 0x09
    COOKIE_ECHO = 0x0A
    COOKIE_ACK = 0x0B
    SHUTDOWN_COMPLETE = 0x0E
    RE_CONFIG = 0x82
    FORWARD_TSN = 0xC0


class DataFlag(IntFlag):
    """Flags of DATA (RFC 9260 section 3.3.1)."""

    END = 0x01
    BEGIN = 0x02
    UNORDERED = 0x04
    IMMEDIATE = 0x08


class ErrorCause(IntEnum):
    """Causes in ERROR and ABORT (RFC 9260 section 3.3.10), those that are sent or read here."""

    INVALID_STREAM = 0x0001
    STALE_COOKIE = 0x0003
    UNRECOGNIZED_CHUNK = 0x0006
    NO_USER_DATA = 0x0009
    COOKIE_WHILE_SHUTTING_DOWN = 0x000A
    RESTART_WITH_NEW_ADDRESSES = 0x000B
    USER_ABORT = 0x000C
    PROTOCOL_VIOLATION = 0x000D


COMMON_HEADER: Final = 12
CHUNK_HEADER: Final = 4
DATA_HEADER: Final = 16
MAX_PACKET: Final = 1_132
"""Bytes of a packet sent: what one DTLS record under the call's MTU carries (`dtls.MAX_DATA`), in whole
words."""
MAX_RECEIVED: Final = 2_048
"""Bytes of a packet received: more than any path to a browser carries in one datagram. It bounds what one
packet can make us do."""
MAX_GAPS: Final = 64
"""Gap blocks written in a SACK: a quarter of a packet, so that DATA fits beside it. More gaps are told when
the first are filled."""
FLAG_T: Final = 0x01
"""Of ABORT and SHUTDOWN COMPLETE: the verification tag is the receiver's own word for its peer, because the
sender has no association (RFC 9260 section 8.5.1)."""

Chunk: TypeAlias = tuple[int, int, int, int]
"""Type, flags, and where in the packet the value starts and stops."""

MASK: Final = 0xFFFF_FFFF
_HALF: Final = 0x8000_0000
_PORTS = struct.Struct(">HHI")
_CHUNK = struct.Struct(">BBH")
_DATA_CHUNK = struct.Struct(">BBHIHHI")
_DATA = struct.Struct(">IHHI")
_SACK = struct.Struct(">IIHH")
_SACK_CHUNK = struct.Struct(">BBHIIHH")
_U32 = struct.Struct(">I")
_STREAM_SSN = struct.Struct(">HH")
_NO_CHECKSUM = bytes(4)
_PADDING = (b"", b"\0\0\0", b"\0\0", b"\0")  # by length modulo 4


class Packet(NamedTuple):
    source: int
    destination: int
    tag: int
    """The verification tag, as sent."""
    chunks: list[Chunk]


class Sack(NamedTuple):
    cumulative: int
    window: int
    """The receiver's free buffer in bytes (a_rwnd)."""
    gaps: tuple[int, ...]
    """Start and end of each block, in turns, as offsets from `cumulative`."""


def unwrap(value: int, reference: int) -> int:
    """The plain integer that is `value` modulo 2^32 and nearest to `reference`, which is such an integer."""
    return reference + ((value - reference + _HALF) & MASK) - _HALF


def crc32c(data: bytes) -> int:
    """CRC32c (RFC 9260 appendix A); it goes into the packet in little-endian order."""
    checksum: int = google_crc32c.value(data)
    return checksum


def parse_packet_untrusted(data: bytes) -> Packet:
    """Raises BadPacket: sctp_short, sctp_long, sctp_checksum, sctp_empty, sctp_chunk_length."""
    end = len(data)
    if end < COMMON_HEADER:
        raise BadPacket("sctp_short")
    if end > MAX_RECEIVED:
        raise BadPacket("sctp_long")
    checksum = google_crc32c.extend(google_crc32c.value(data[:8] + _NO_CHECKSUM), data[COMMON_HEADER:])
    if int.from_bytes(data[8:12], "little") != checksum:
        raise BadPacket("sctp_checksum")
    source, destination, tag = _PORTS.unpack_from(data)
    chunks: list[Chunk] = []
    offset = COMMON_HEADER
    while offset < end:
        if end - offset < CHUNK_HEADER:
            raise BadPacket("sctp_chunk_length")
        kind, flags, length = _CHUNK.unpack_from(data, offset)
        stop = offset + length
        if length < CHUNK_HEADER or stop > end:
            raise BadPacket("sctp_chunk_length")
        chunks.append((kind, flags, offset + CHUNK_HEADER, stop))
        offset = (stop + 3) & ~3  # the padding is not counted, and may be missing at the end of the packet
    if not chunks:
        raise BadPacket("sctp_empty")
    return Packet(source, destination, tag, chunks)


def build_packet(source: int, destination: int, tag: int, chunks: list[bytes]) -> bytes:
    """A packet of whole, padded chunks."""
    header = _PORTS.pack(source, destination, tag)
    body = b"".join(chunks)
    checksum: int = google_crc32c.extend(google_crc32c.value(header + _NO_CHECKSUM), body)
    return b"%b%b%b" % (header, checksum.to_bytes(4, "little"), body)


def build_chunk(kind: int, flags: int, value: bytes) -> bytes:
    length = CHUNK_HEADER + len(value)
    return _CHUNK.pack(kind, flags, length) + value + _PADDING[length & 3]


# --- DATA ------------------------------------------------------------------------------------------------


def build_data(flags: int, tsn: int, stream: int, ssn: int, ppid: int, payload: bytes) -> bytes:
    """A padded DATA chunk; `tsn` is taken modulo 2^32."""
    length = DATA_HEADER + len(payload)
    header = _DATA_CHUNK.pack(ChunkType.DATA, flags, length, tsn & MASK, stream, ssn, ppid)
    return b"%b%b%b" % (header, payload, _PADDING[length & 3])


def parse_data_untrusted(data: bytes, start: int, stop: int) -> tuple[int, int, int, int, bytes]:
    """(TSN, stream, SSN, payload protocol, payload); the payload may be empty, which is an error for the
    caller to answer. BadPacket: sctp_data."""
    if stop - start < 12:
        raise BadPacket("sctp_data")
    tsn, stream, ssn, ppid = _DATA.unpack_from(data, start)
    return tsn, stream, ssn, ppid, data[start + 12 : stop]


# --- SACK ------------------------------------------------------------------------------------------------


def build_sack(cumulative: int, window: int, gaps: list[int], duplicates: list[int]) -> bytes:
    """A SACK chunk; `gaps` as in `Sack`, `duplicates` are TSNs modulo 2^32."""
    length = DATA_HEADER + 2 * len(gaps) + 4 * len(duplicates)
    header = _SACK_CHUNK.pack(
        ChunkType.SACK, 0, length, cumulative & MASK, window, len(gaps) // 2, len(duplicates)
    )
    if not gaps and not duplicates:
        return header
    return header + struct.pack(f">{len(gaps)}H{len(duplicates)}I", *gaps, *duplicates)


def parse_sack_untrusted(data: bytes, start: int, stop: int) -> Sack:
    """A SACK whose blocks are in order and apart, as RFC 9260 section 3.3.4 describes them; the
    duplicates are not read. BadPacket: sctp_sack, sctp_sack_gaps."""
    if stop - start < 12:
        raise BadPacket("sctp_sack")
    cumulative, window, blocks, duplicates = _SACK.unpack_from(data, start)
    if stop - start != 12 + 4 * (blocks + duplicates):
        raise BadPacket("sctp_sack")
    if not blocks:
        return Sack(cumulative, window, ())
    gaps = struct.unpack_from(f">{2 * blocks}H", data, start + 12)
    previous = 0
    for index in range(0, 2 * blocks, 2):
        first, last = gaps[index], gaps[index + 1]
        if first <= previous or last < first:
            raise BadPacket("sctp_sack_gaps")
        previous = last
    return Sack(cumulative, window, gaps)


# --- FORWARD TSN (RFC 3758 section 3.2) --------------------------------------------------------------------


def build_forward_tsn(cumulative: int, skipped: dict[int, int]) -> bytes:
    """`skipped` maps each ordered stream to the largest SSN that is skipped."""
    value = b"".join((_U32.pack(cumulative & MASK), *(_STREAM_SSN.pack(*pair) for pair in skipped.items())))
    return build_chunk(ChunkType.FORWARD_TSN, 0, value)


def parse_forward_tsn_untrusted(value: bytes) -> tuple[int, list[tuple[int, int]]]:
    """(new cumulative TSN, [(stream, SSN), ...]). BadPacket: sctp_forward_tsn."""
    if len(value) < 4 or len(value) % 4:
        raise BadPacket("sctp_forward_tsn")
    return _U32.unpack_from(value)[0], list(_STREAM_SSN.iter_unpack(value[4:]))


# --- SHUTDOWN and error causes -----------------------------------------------------------------------------


def build_shutdown(cumulative: int) -> bytes:
    return build_chunk(ChunkType.SHUTDOWN, 0, _U32.pack(cumulative & MASK))


def parse_shutdown_untrusted(value: bytes) -> int:
    """The cumulative TSN. BadPacket: sctp_shutdown."""
    if len(value) != 4:
        raise BadPacket("sctp_shutdown")
    return int.from_bytes(value, "big")


def build_cause(cause: ErrorCause, detail: bytes = b"") -> bytes:
    """An error cause, padded."""
    length = 4 + len(detail)
    return struct.pack(">HH", cause, length) + detail + _PADDING[length & 3]
