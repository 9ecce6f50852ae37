"""Redundant audio on the way in (RFC 2198): what one payload holds. Pure.

0                   1                   2                   3
|1|   block PT  |     timestamp offset      |   block length    |   a redundant block, any number of them
|0|   block PT  |                                                   the primary
| redundant payloads, in the same order ... | the primary's payload, to the end
"""

from __future__ import annotations

import struct
from typing import Final, NamedTuple

from voicegate.proto.errors import BadPacket

MAX_BLOCKS: Final = 32
"""Redundant blocks in a packet: what libwebrtc takes (kMaxRedBlocks). A helpful client sends one or two."""
_HEADER = struct.Struct("!I")
_MORE = 0x80


class RedBlock(NamedTuple):
    """A frame sent again: `offset` units of the RTP clock before its packet's timestamp, 0 to 16,383."""

    payload_type: int
    offset: int
    payload: bytes


class RedPayload(NamedTuple):
    """The frame of the packet itself, and older ones as they stand in it: the oldest first by custom."""

    payload_type: int
    payload: bytes
    blocks: tuple[RedBlock, ...]


def parse_red_untrusted(data: bytes) -> RedPayload:
    """Parse one payload of RFC 2198 section 3. Raises BadPacket only.

    The payload types inside are whatever the sender wrote, RED itself included: the caller looks.
    """
    headers: list[tuple[int, int, int]] = []
    at, end = 0, len(data)
    while at < end and data[at] & _MORE:
        if at + 4 > end:
            raise BadPacket("red_header")
        if len(headers) == MAX_BLOCKS:
            raise BadPacket("red_blocks")
        header = _HEADER.unpack_from(data, at)[0]
        headers.append((header >> 24 & 0x7F, header >> 10 & 0x3FFF, header & 0x3FF))
        at += 4
    if at >= end:
        raise BadPacket("red_header")
    payload_type = data[at]
    at += 1
    blocks = []
    for block_type, offset, length in headers:
        if at + length > end:
            raise BadPacket("red_length")
        blocks.append(RedBlock(block_type, offset, data[at : at + length]))
        at += length
    return RedPayload(payload_type, data[at:], tuple(blocks))
