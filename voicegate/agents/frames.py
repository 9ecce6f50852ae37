"""WebSocket frames (RFC 6455 section 5) at the price of a media path: the common text frame, no other. Pure.

An agent's deltas are whole, unmasked text frames of ASCII. Those are cut out here, for a fraction of what a
general parser takes; all else, from a ping to a fragmented message, goes to that parser as it came and in its
place, so that the rules of the protocol are kept in one place.
"""

from __future__ import annotations

import os
from typing import Final

MAX_WAITED: Final = 131_072
"""A frame that has not come whole is waited for up to this size, two reads of the socket; a longer one goes
to the parser as it comes, for putting it together here would copy it at each read."""

_TEXT: Final = 0x81
"""FIN and opcode 1, no reserved bit."""
_FIN: Final = 0x80
_MASKED: Final = 0x80
_CONTROL: Final = 0x08
_FOR_GOOD: Final = 1 << 64


class FrameReader:
    """Splits the bytes of a peer, who does not mask: a client's side."""

    __slots__ = ("_fragmented", "_tail", "_through")

    def __init__(self) -> None:
        self._tail = b""
        """Of a frame that is not whole."""
        self._through = 0
        """Bytes to come of a frame that the parser has begun to read."""
        self._fragmented = False
        """The parser has the beginning of a message."""

    def split_untrusted(self, data: bytes) -> list[str | memoryview]:
        """Messages (str) and stretches for the parser (views of `data`, to be fed at once), in order."""
        parts: list[str | memoryview] = []
        if self._tail:
            data = self._tail + data
        view = memoryview(data)
        position, end = 0, len(data)
        while position < end:
            if self._through:
                stop = min(end, position + self._through)
                self._through -= stop - position
                parts.append(view[position:stop])
                position = stop
                continue
            if end - position < 2:
                break
            if data[position + 1] >= _MASKED or (data[position] & _CONTROL and data[position + 1] > 125):
                self._through = _FOR_GOOD  # sections 5.1, 5.5: the parser ends the connection
                continue
            head = _head(data, position, end)
            if head is None:
                break
            start, stop = head
            plain = data[position] == _TEXT and not self._fragmented
            if plain and stop - position <= MAX_WAITED:
                if stop > end:
                    break
                try:
                    parts.append(str(view[start:stop], "ascii"))
                    position = stop
                    continue
                except UnicodeDecodeError:
                    pass  # whether it is UTF-8 (section 8.1) is the parser's to say
            if not data[position] & _CONTROL:
                self._fragmented = data[position] < _FIN
            self._through = stop - position
        self._tail = data[position:]
        return parts


def _head(data: bytes, position: int, end: int) -> tuple[int, int] | None:
    """Where the payload of the frame at `position` begins and ends; None when its header is not whole."""
    size = data[position + 1]
    start = position + (2 if size < 126 else 4 if size == 126 else 10)
    if start > end:
        return None
    if size >= 126:
        size = int.from_bytes(data[position + 2 : position + (4 if size == 126 else 10)])
    return start, start + size


def text_frame(payload: bytes) -> bytes:
    """One final, masked text frame of a client (RFC 6455 5.2, 5.3).

    wsproto makes the same bytes in five times the time: four translated slices against one wide XOR.
    """
    size = len(payload)
    key = os.urandom(4)  # RFC 6455 10.3: not to be guessed by what chooses the payload
    if size < 126:
        head = bytes((0x81, 0x80 | size))
    elif size < 65_536:
        head = b"\x81\xfe" + size.to_bytes(2)
    else:
        head = b"\x81\xff" + size.to_bytes(8)
    mask = int.from_bytes((key * (size // 4 + 1))[:size], "little")
    return head + key + (int.from_bytes(payload, "little") ^ mask).to_bytes(size, "little")
