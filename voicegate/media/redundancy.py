"""Redundant audio on the way out (RFC 2198): each packet carries its frame and the one before.

0                   1                   2                   3
|1|   block PT  |     timestamp offset      |   block length    |   the frame before
|0|   block PT  |                                                   this frame
| payload of the frame before ... | payload of this frame ...
"""

from __future__ import annotations

import struct
from typing import Final

_MAX_OFFSET: Final = (1 << 14) - 1
_MAX_LENGTH: Final = (1 << 10) - 1
"""Section 3: the fields of a redundant block's header."""
_MORE: Final = 0x80
_HEADER = struct.Struct("!I")


class RedSender:
    """The payloads of one stream. `payload_type`: that of the frames inside."""

    __slots__ = ("_last", "_last_timestamp", "_payload_type")

    def __init__(self, payload_type: int) -> None:
        self._payload_type = payload_type
        self._last = b""
        self._last_timestamp = 0

    def wrap(self, payload: bytes, timestamp: int) -> bytes:
        """The RED payload of the packet at `timestamp`. A frame before that lies too far back, or is longer
        than a block may be, stays away."""
        last, offset = self._last, (timestamp - self._last_timestamp) & 0xFFFFFFFF
        self._last, self._last_timestamp = payload, timestamp
        primary = bytes((self._payload_type,))
        if not last or offset > _MAX_OFFSET or len(last) > _MAX_LENGTH:
            return primary + payload
        header = (_MORE | self._payload_type) << 24 | offset << 10 | len(last)
        return _HEADER.pack(header) + primary + last + payload
