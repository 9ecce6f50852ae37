"""Packets on a TCP connection (RFC 4571): each behind its length, two bytes in network order.

ICE over TCP frames all it carries so, STUN as well (RFC 6544 section 3). A stream whose lengths make no sense
cannot be found into again, so what is no frame ends the connection.
"""

from __future__ import annotations

import struct

from voicegate.proto.errors import BadPacket
from voicegate.proto.link import MAX_PAYLOAD

LENGTH_BYTES = 2
_LENGTH = struct.Struct("!H")


def frame(payload: bytes | memoryview) -> bytes:
    """A packet as it stands in the stream. It has 1 to 65,535 bytes."""
    return _LENGTH.pack(len(payload)) + payload


class Deframer:
    """One direction of a connection: whatever pieces it comes in, whole packets out."""

    __slots__ = ("_rest",)

    def __init__(self) -> None:
        self._rest = b""

    def receive_untrusted(self, data: bytes) -> list[bytes]:
        """The packets that these bytes complete, in order; each has 1 to MAX_PAYLOAD bytes.

        BadPacket(`tcp_frame`) when a longer one is announced, now and at every call from then on. Null
        packets (section 2: a length of 0) are legal and nothing to anybody; they are left out.
        """
        data = self._rest + data
        packets = []
        position, end = 0, len(data)
        while end - position >= LENGTH_BYTES:
            (length,) = _LENGTH.unpack_from(data, position)
            if length > MAX_PAYLOAD:
                self._rest = data[position : position + LENGTH_BYTES]
                raise BadPacket("tcp_frame")
            stop = position + LENGTH_BYTES + length
            if stop > end:
                break
            if length:
                packets.append(data[position + LENGTH_BYTES : stop])
            position = stop
        self._rest = data[position:]
        return packets

    def inside_frame(self) -> bool:
        """Whether the rest of a packet is still to come."""
        return bool(self._rest)
