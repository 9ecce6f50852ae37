"""Keys of a telephone's keypad, out of the packets that tell of them again and again (RFC 4733). Pure.

While a key is down its event is sent every 20 to 50 ms, always with the timestamp of its beginning, and its
last packet three times (section 2.5.1.4). So a press is known by its timestamp, and told when the first
packet of it comes: none of the others is needed, whichever were lost. Rules:

* Another timestamp is another press, and ends the one before; that nobody said so does not matter.
* A timestamp that was told lately is a repetition, whatever else the packet says.
* What is longer than the 16 bits of its duration goes on as another segment, with another timestamp but
  without the marker (section 2.5.1.3). It is the same press when the same key, not ended, is taken up where a
  full segment was left. The RFC begins it exactly there; libwebrtc in its next packet.
* Another SSRC is another keypad.

Nothing here waits, so there is no timer. What a client may press in a second is up to the caller.
"""

from __future__ import annotations

from collections import deque
from dataclasses import dataclass
from typing import Final

from voicegate.proto.errors import BadPacket
from voicegate.proto.rtp import RtpPacket, timestamp_delta
from voicegate.proto.telephone_event import (
    KEYS,
    MAX_DURATION,
    TelephoneEvent,
    parse_telephone_events_untrusted,
)

MAX_KEYS: Final = 64
"""Presses waiting for `poll_key`; one packet makes at most 16, and the caller drains after each."""
RECENT: Final = 16
"""Presses whose repetitions are known: as many as one packet can hold, and a second of the fastest typing."""
SLACK_SECONDS: Final = 0.2
"""How far from the end of the last packet of a segment the next may begin: several lost packets."""


@dataclass(slots=True)
class DtmfCounts:
    """Counters since the start."""

    presses: int = 0
    repetitions: int = 0
    """Events in further packets of a press."""
    segments: int = 0
    """Times a press went on beyond the longest duration."""
    other_events: int = 0
    """Events that are not keys: flash, fax and modem tones."""
    malformed: int = 0
    """Payloads that hold no events."""
    dropped: int = 0
    """Presses that nobody polled."""


@dataclass(slots=True)
class _Segment:
    """The event, or the part of it, that was told of last."""

    code: int
    timestamp: int
    duration: int
    ended: bool


class Keypad:
    """One client's keys.

    `clock_rate` is that of the RTP timestamps; `event_clock_rate` that of the durations, which is another
    only where a client offers no events at its codec's rate.
    """

    def __init__(self, clock_rate: int, event_clock_rate: int) -> None:
        self.counts = DtmfCounts()
        self._scale = clock_rate / event_clock_rate
        self._slack = round(SLACK_SECONDS * event_clock_rate)
        self._ssrc: int | None = None
        self._recent: deque[int] = deque(maxlen=RECENT)
        self._last: _Segment | None = None
        self._keys: deque[str] = deque()

    def push(self, packet: RtpPacket) -> None:
        """Take one authenticated packet of telephone events, in any order. Never raises. Then `poll_key`."""
        try:
            events = parse_telephone_events_untrusted(packet.payload)
        except BadPacket:
            self.counts.malformed += 1
            return
        if packet.ssrc != self._ssrc:
            self._ssrc = packet.ssrc
            self._recent.clear()
            self._last = None
        timestamp, marker = packet.timestamp, packet.marker
        for event in events:
            self._take(event, timestamp, marker)
            # Section 2.5.1.5: the next one begins where this one ends.
            timestamp = (timestamp + round(event.duration * self._scale)) & 0xFFFFFFFF
            marker = False

    def poll_key(self) -> str | None:
        """The next key that was pressed, one of KEYS, or None."""
        return self._keys.popleft() if self._keys else None

    def statistics(self) -> DtmfCounts:
        return self.counts

    def _take(self, event: TelephoneEvent, timestamp: int, marker: bool) -> None:
        last = self._last
        if timestamp in self._recent:
            self.counts.repetitions += 1
            if last is not None and last.timestamp == timestamp:
                last.duration = max(last.duration, event.duration)
                last.ended |= event.end
            return
        self._recent.append(timestamp)
        self._last = _Segment(event.code, timestamp, event.duration, event.end)
        if last is not None and not marker and self._goes_on(last, event.code, timestamp):
            self.counts.segments += 1
        elif event.code >= len(KEYS):
            self.counts.other_events += 1
        elif len(self._keys) >= MAX_KEYS:
            self.counts.dropped += 1
        else:
            self.counts.presses += 1
            self._keys.append(KEYS[event.code])

    def _goes_on(self, last: _Segment, code: int, timestamp: int) -> bool:
        elapsed = timestamp_delta(timestamp, last.timestamp) / self._scale
        return (
            code == last.code
            and not last.ended
            and MAX_DURATION <= elapsed <= MAX_DURATION + self._slack
            and elapsed - last.duration <= self._slack
        )
