"""Transport-wide feedback: when each packet of the client arrived, for its own congestion control
(draft-holmer-rmcat-transport-wide-cc-extensions-01).

The client numbers its packets in a header extension. `received` only notes number and time; everything else
is done once per feedback, about every INTERVAL seconds while packets come.
"""

from __future__ import annotations

import struct
from collections import deque
from operator import sub
from typing import Final

from voicegate.proto.rtcp import FeedbackFormat, build_feedback
from voicegate.proto.rtp import RtpPacket, extension_value, sequence_delta

INTERVAL: Final = 0.1
"""Seconds between feedbacks. libwebrtc's receiver takes 50 to 250 ms, 100 to begin with."""
TAIL: Final = 0.2
"""Seconds after which the last packets before a silence are reported. Longer than INTERVAL, so that a client
that speaks never needs a timer: its own next packet is what makes the feedback."""
MAX_PENDING: Final = 128
"""Packets noted for one feedback, and remembered after it: 10-ms audio brings 10. With MAX_SPAN it keeps a
feedback below 1,200 bytes."""
MAX_SPAN: Final = 1024
"""Numbers that one feedback is about. A greater leap is a sender that began again."""

_HEADER = struct.Struct("!HHI")
_CHUNK = struct.Struct("!H")
_LARGE_DELTA = struct.Struct("!h")

_TICKS_PER_SECOND = 4000  # a delta counts 250 us, section 3.1.5
_TICKS_PER_REFERENCE = 256  # the reference time counts 64 ms, section 3.1

_LOST, _SMALL, _LARGE = 0, 1, 2  # symbols, section 3.1.1
_MAX_RUN = 0x1FFF
_VECTOR_SYMBOLS = 7
_TWO_BIT_VECTOR = 0xC000


class TransportFeedback:
    """One client's transport-wide numbers. `extension_id` is the one negotiated."""

    __slots__ = ("_count", "_due", "_extension_id", "_next", "_pending", "_told", "dropped")

    def __init__(self, extension_id: int) -> None:
        self.dropped = 0
        """Packets that no feedback tells of, because MAX_PENDING were noted already."""
        self._extension_id = extension_id
        self._pending: list[tuple[int, float]] = []
        self._due = 0.0
        self._next: int | None = None
        """The number that the next feedback begins with."""
        self._told: deque[tuple[int, float]] = deque(maxlen=MAX_PENDING)
        """Arrivals that were told, for a feedback that goes back behind them."""
        self._count = 0
        """Feedbacks made, modulo 256."""

    def received(self, packet: RtpPacket, now: float) -> bool:
        """Note one packet. True when a feedback is due with it."""
        value = extension_value(packet, self._extension_id)
        if value is None or len(value) < 2:
            return False
        pending = self._pending
        if not pending:
            self._due = now + INTERVAL
        elif len(pending) >= MAX_PENDING:
            self.dropped += 1
            return now >= self._due
        pending.append((value[0] << 8 | value[1], now))
        return now >= self._due

    def next_deadline(self) -> float | None:
        return self._due + (TAIL - INTERVAL) if self._pending else None

    def build(self, ssrc: int, media_ssrc: int) -> list[bytes]:
        """The feedback for what was noted: one packet, or more where the times are too far apart for one."""
        pending, self._pending = self._pending, []
        if not pending:
            return []
        if self._next is None or abs(sequence_delta(pending[0][0], self._next)) > MAX_SPAN:
            self._next = pending[0][0]
            self._told.clear()
        marks = self._in_order(pending, self._next) or self._in_any_order(pending, self._next)
        return [
            build_feedback(FeedbackFormat.TRANSPORT_CC, ssrc, media_ssrc, information)
            for information in marks
        ]

    def _in_order(self, pending: list[tuple[int, float]], first: int) -> list[bytes] | None:
        """The usual case: every packet came, one after the other and none of them late. Else None."""
        count = len(pending)
        numbers, times = zip(*pending, strict=True)
        if numbers != tuple(range(first, first + count)):
            return None
        ticks = [round(at * _TICKS_PER_SECOND) for at in times]
        reference, delta = divmod(ticks[0], _TICKS_PER_REFERENCE)
        try:
            deltas = bytes([delta, *map(sub, ticks[1:], ticks)])
        except ValueError:  # not 0 to 255
            return None
        self._told.extend(pending)
        self._next = (first + count) & 0xFFFF
        return [self._head(first, count, reference) + _CHUNK.pack(_SMALL << 13 | count) + deltas]

    def _in_any_order(self, pending: list[tuple[int, float]], next: int) -> list[bytes]:
        """What arrived, by how far its number is from the next expected: of each the first arrival; from the
        earliest new one on also what was told before, lest it seem lost now."""
        told = {sequence_delta(number, next): at for number, at in self._told}
        fresh: dict[int, float] = {}
        for number, at in pending:
            ahead = sequence_delta(number, next)
            if abs(ahead) <= MAX_SPAN and ahead not in told and ahead not in fresh:
                fresh[ahead] = at
                self._told.append((number, at))
        if not fresh:
            return []
        first, end = min(fresh), max(fresh) + 1
        self._next = (next + max(0, end)) & 0xFFFF
        arrivals = sorted(
            (ahead, round(at * _TICKS_PER_SECOND)) for ahead, at in (told | fresh).items() if ahead >= first
        )
        marks = []
        base = min(0, first)  # what is missing before the first new one is told as lost
        while arrivals:
            information, taken = self._encode(arrivals, base, next)
            marks.append(information)
            base, arrivals = arrivals[taken - 1][0] + 1, arrivals[taken:]
        return marks

    def _encode(self, arrivals: list[tuple[int, int]], base: int, next: int) -> tuple[bytes, int]:
        """Feedback control information for as many of these as fit, at least the first, and how many."""
        reference = arrivals[0][1] // _TICKS_PER_REFERENCE
        before = reference * _TICKS_PER_REFERENCE
        symbols: list[int] = []
        deltas: list[bytes] = []
        for ahead, ticks in arrivals:
            delta = ticks - before
            if not -0x8000 <= delta <= 0x7FFF:
                break
            symbols += [_LOST] * (ahead - base - len(symbols))
            small = 0 <= delta <= 0xFF
            symbols.append(_SMALL if small else _LARGE)
            deltas.append(bytes([delta]) if small else _LARGE_DELTA.pack(delta))
            before = ticks
        head = self._head((next + base) & 0xFFFF, len(symbols), reference)
        return head + _chunks(symbols) + b"".join(deltas), len(deltas)

    def _head(self, base: int, count: int, reference: int) -> bytes:
        head = _HEADER.pack(base, count, (reference & 0xFFFFFF) << 8 | self._count)
        self._count = (self._count + 1) & 0xFF
        return head


def _chunks(symbols: list[int]) -> bytes:
    """Packet status chunks, section 3.1.2: a run where one is long enough to pay, else seven in a vector."""
    chunks = []
    at, count = 0, len(symbols)
    while at < count:
        symbol, end = symbols[at], at + 1
        while end < count and symbols[end] == symbol and end - at < _MAX_RUN:
            end += 1
        if end - at >= _VECTOR_SYMBOLS or end == count:
            chunks.append(_CHUNK.pack(symbol << 13 | end - at))
            at = end
            continue
        vector = 0
        for index in range(_VECTOR_SYMBOLS):
            vector = vector << 2 | (symbols[at + index] if at + index < count else _LOST)
        chunks.append(_CHUNK.pack(_TWO_BIT_VECTOR | vector))
        at += _VECTOR_SYMBOLS
    return b"".join(chunks)
