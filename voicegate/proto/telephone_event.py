"""Telephone events in RTP (RFC 4733): what one payload says of the keys of a keypad. Pure.

 0                   1                   2                   3
 0 1 2 3 4 5 6 7 8 9 0 1 2 3 4 5 6 7 8 9 0 1 2 3 4 5 6 7 8 9 0 1
|     event     |E|R| volume    |          duration             |     one event, or several in a row
"""

from __future__ import annotations

import struct
from typing import Final, NamedTuple

from voicegate.proto.errors import BadPacket

KEYS: Final = "0123456789*#ABCD"
"""The DTMF events, by code (RFC 4733 section 3.2, table 3)."""
MAX_DURATION: Final = 0xFFFF
"""Units of the timestamp; a longer event goes on in another segment (section 2.5.1.3)."""
MAX_EVENTS: Final = 16
"""In a packet. The shortest keys are 40 ms and 40 ms apart, so this is more than a second of them; the RFC
leaves it at what is useful (section 2.5.1.5)."""
_EVENT = struct.Struct("!BBH")
_END = 0x80
_VOLUME = 0x3F


class TelephoneEvent(NamedTuple):
    """One event as it stands so far."""

    code: int
    """0 to 15: `KEYS`. Others are not keys."""
    end: bool
    """It is over, and `duration` is all of it."""
    volume: int
    """In dBm0 with the sign dropped, 0 to 63."""
    duration: int
    """Since the packet's timestamp, in its units; 0 to MAX_DURATION."""


def parse_telephone_events_untrusted(payload: bytes) -> tuple[TelephoneEvent, ...]:
    """Parse one payload of RFC 4733 section 2.3: at least one event; each begins where the one before ends.

    The reserved bit is ignored, as section 2.3.3 asks. Raises BadPacket only.
    """
    if not payload or len(payload) % _EVENT.size:
        raise BadPacket("telephone_event_length")
    if len(payload) > MAX_EVENTS * _EVENT.size:
        raise BadPacket("telephone_event_count")
    return tuple(
        TelephoneEvent(code, bool(flags & _END), flags & _VOLUME, duration)
        for code, flags, duration in _EVENT.iter_unpack(payload)
    )


def build_telephone_event(event: TelephoneEvent) -> bytes:
    """The payload of one event."""
    return _EVENT.pack(event.code, _END * event.end | event.volume, event.duration)
