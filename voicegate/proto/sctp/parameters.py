"""INIT and INIT ACK and the parameters in them (RFC 9260 sections 3.2.1, 3.3.2, 3.3.3; RFC 5061 section
4.2.7; RFC 3758 section 3.1).

What a parameter's two highest bits say about one that nobody here knows is done (RFC 9260 section 3.2.1):
stop or go on, report or be silent. Addresses are skipped without a look: over DTLS there are none (RFC 8261
section 5).
"""

from __future__ import annotations

import struct
from collections.abc import Iterator
from enum import IntEnum
from typing import Final, NamedTuple

from voicegate.proto.errors import BadPacket
from voicegate.proto.sctp.wire import ChunkType, build_chunk


class ParameterType(IntEnum):
    """The parameters read or written here, of the IANA registry "Chunk Parameter Types"."""

    IPV4_ADDRESS = 0x0005
    IPV6_ADDRESS = 0x0006
    STATE_COOKIE = 0x0007
    UNRECOGNIZED = 0x0008
    COOKIE_PRESERVATIVE = 0x0009
    SUPPORTED_ADDRESS_TYPES = 0x000C
    OUTGOING_RESET = 0x000D
    INCOMING_RESET = 0x000E
    TSN_RESET = 0x000F
    RECONFIG_RESPONSE = 0x0010
    ADD_OUTGOING_STREAMS = 0x0011
    ADD_INCOMING_STREAMS = 0x0012
    SUPPORTED_EXTENSIONS = 0x8008
    FORWARD_TSN_SUPPORTED = 0xC000


MAX_STREAMS: Final = 65_535
"""Streams each way: RFC 8831 section 6.2."""
MAX_UNRECOGNIZED: Final = 256
"""Bytes of unknown parameters repeated in an INIT ACK, so that it stays one small packet; the rest is not
reported."""
_SKIPPED = frozenset(
    (
        ParameterType.IPV4_ADDRESS,
        ParameterType.IPV6_ADDRESS,
        ParameterType.COOKIE_PRESERVATIVE,
        ParameterType.SUPPORTED_ADDRESS_TYPES,
        ParameterType.UNRECOGNIZED,
    )
)
_STOP: Final = 0x8000  # clear: do not go on after this one
_REPORT: Final = 0x4000  # set: tell the sender
_FIXED = struct.Struct(">IIHHI")
_PARAMETER = struct.Struct(">HH")
_EXTENSIONS = bytes((ChunkType.RE_CONFIG, ChunkType.FORWARD_TSN))


class Init(NamedTuple):
    """INIT and INIT ACK alike."""

    tag: int
    window: int
    """Bytes: the sender's receive buffer."""
    outbound: int
    """Streams the sender wants to send on."""
    inbound: int
    """Streams the sender can receive on."""
    tsn: int
    """The TSN of its first DATA."""
    forward_tsn: bool = True
    reconfig: bool = True
    cookie: bytes = b""
    """INIT ACK only."""
    unrecognized: bytes = b""
    """Unknown parameters, whole, that want to be reported."""


def build_init(kind: ChunkType, init: Init) -> bytes:
    """An INIT or INIT ACK chunk that offers all we can."""
    parts = [
        _FIXED.pack(init.tag, init.window, init.outbound, init.inbound, init.tsn),
        build_parameter(ParameterType.FORWARD_TSN_SUPPORTED, b""),
        build_parameter(ParameterType.SUPPORTED_EXTENSIONS, _EXTENSIONS),
    ]
    if init.cookie:
        parts.append(build_parameter(ParameterType.STATE_COOKIE, init.cookie))
    if init.unrecognized:
        parts.append(build_parameter(ParameterType.UNRECOGNIZED, init.unrecognized))
    return build_chunk(kind, 0, b"".join(parts))


def parse_init_untrusted(value: bytes) -> Init:
    """The value of an INIT or INIT ACK chunk. BadPacket: sctp_init (too short, a tag of 0, no streams: RFC
    9260 section 3.3.2), sctp_parameter."""
    if len(value) < _FIXED.size:
        raise BadPacket("sctp_init")
    tag, window, outbound, inbound, tsn = _FIXED.unpack_from(value)
    if not (tag and outbound and inbound):
        raise BadPacket("sctp_init")
    forward_tsn = reconfig = False
    cookie = unrecognized = b""
    for kind, content in parameters_untrusted(value[_FIXED.size :]):
        if kind == ParameterType.FORWARD_TSN_SUPPORTED:
            forward_tsn = True
        elif kind == ParameterType.SUPPORTED_EXTENSIONS:
            reconfig = ChunkType.RE_CONFIG in content
            forward_tsn = forward_tsn or ChunkType.FORWARD_TSN in content
        elif kind == ParameterType.STATE_COOKIE:
            cookie = content
        elif kind not in _SKIPPED:
            if kind & _REPORT and len(unrecognized) + len(content) + 8 <= MAX_UNRECOGNIZED:
                unrecognized += build_parameter(kind, content)
            if not kind & _STOP:
                break
    return Init(tag, window, outbound, inbound, tsn, forward_tsn, reconfig, cookie, unrecognized)


def build_parameter(kind: int, content: bytes) -> bytes:
    """A parameter, padded."""
    return _PARAMETER.pack(kind, 4 + len(content)) + content + b"\0" * (-len(content) & 3)


def parameters_untrusted(data: bytes) -> Iterator[tuple[int, bytes]]:
    """(type, content) of each parameter. BadPacket: sctp_parameter, when the walk comes to a length that is
    wrong."""
    offset = 0
    while offset < len(data):
        if len(data) - offset < 4:
            raise BadPacket("sctp_parameter")
        kind, length = _PARAMETER.unpack_from(data, offset)
        if length < 4 or offset + length > len(data):
            raise BadPacket("sctp_parameter")
        yield kind, data[offset + 4 : offset + length]
        offset += (length + 3) & ~3
