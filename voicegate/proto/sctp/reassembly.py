"""Fragments to messages, messages into order (RFC 9260 sections 6.5, 6.6, 6.9).

Theory of operation. The fragments of a message have consecutive TSNs, so what is incomplete is a set of
**runs** of neighbours, found by their first and last TSN: adding a fragment is a look-up on both sides,
whatever the size of the message. A whole message leaves at once when it is unordered or its turn has come;
else it waits for the SSNs before it.

Bounds. Everything held costs its bytes plus `CHUNK_COST`; `held` is their sum, and the caller stops accepting
when it is too large. A message that grows beyond `MAX_MESSAGE` loses its bytes and keeps its place: it ends
as a `Message` without data. Neighbours that contradict each other break the protocol: `PeerViolation`.
"""

from __future__ import annotations

from collections import deque
from typing import Final

from voicegate.proto.sctp.events import Message, StreamsReset
from voicegate.proto.sctp.wire import DataFlag, ErrorCause

MAX_MESSAGE: Final = 262_144
"""Bytes of a message received: the `a=max-message-size` of browsers, and ours."""
CHUNK_COST: Final = 256
"""Bytes that a chunk or message costs beyond its payload: the objects around it, measured at 200 to 250."""
MAX_ORDERED_STREAMS: Final = 1_024
"""Streams with an SSN to remember. Channels are far fewer, and a closed one's is forgotten."""

_END: Final = int(DataFlag.END)
_BEGIN: Final = int(DataFlag.BEGIN)
_UNORDERED: Final = int(DataFlag.UNORDERED)
_WHOLE: Final = _BEGIN | _END


class PeerViolation(Exception):
    """The peer broke a rule whose breach RFC 9260 answers with ABORT. `reason` is a metrics label."""

    def __init__(self, reason: str, cause: ErrorCause) -> None:
        super().__init__(reason)
        self.reason = reason
        self.cause = cause


class _Run:
    """Neighbouring fragments of one message."""

    __slots__ = ("begins", "cost", "ends", "first", "key", "last", "oversize", "parts", "ppid", "size")

    def __init__(self, tsn: int, flags: int, key: tuple[int, int, int], ppid: int, payload: bytes) -> None:
        self.first = self.last = tsn
        self.begins = bool(flags & _BEGIN)
        self.ends = bool(flags & _END)
        self.key = key
        self.ppid = ppid
        self.parts = [payload]
        self.size = len(payload)
        self.cost = self.size + CHUNK_COST
        self.oversize = False

    def join(self, other: _Run) -> None:
        """Take the run that begins where this one ends."""
        self.last = other.last
        self.ends = other.ends
        self.parts += other.parts
        self.size += other.size
        self.cost += other.cost
        self.oversize = self.oversize or other.oversize or self.size > MAX_MESSAGE
        if self.oversize:
            self.parts.clear()
            self.cost = CHUNK_COST


class Reassembly:
    """What has arrived and cannot be delivered yet, and `delivered`, which the owner drains."""

    __slots__ = ("_by_first", "_by_last", "_expected", "_waiting", "delivered", "dropped", "held")

    def __init__(self) -> None:
        self.delivered: deque[Message | StreamsReset] = deque()
        self.held = 0
        """Cost of all that is held, `delivered` included."""
        self.dropped = 0
        """Fragments and messages that had to be thrown away."""
        self._by_first: dict[int, _Run] = {}
        self._by_last: dict[int, _Run] = {}
        self._expected: dict[int, int] = {}
        self._waiting: dict[int, dict[int, Message]] = {}

    def add(
        self, tsn: int, cumulative: int, flags: int, stream: int, ssn: int, ppid: int, payload: bytes
    ) -> None:
        """A fragment whose TSN is new; `cumulative` is the cumulative TSN before it."""
        runs = self._by_first
        if flags & _WHOLE == _WHOLE and not runs:
            self.held += len(payload) + CHUNK_COST
            self._deliver(stream, ssn, flags & _UNORDERED, ppid, payload)
            return
        before, after = self._by_last.get(tsn - 1), runs.get(tsn + 1)
        if before is None and not flags & _BEGIN and tsn - 1 <= cumulative:
            # Its head was abandoned by the peer (RFC 3758 section 3.6).
            self.dropped += 1
            if after is not None and not flags & _END and not after.begins:
                self._discard(after)
            return
        run = _Run(tsn, flags, (stream, ssn, flags & _UNORDERED), ppid, payload)
        self.held += run.cost
        if before is not None and _adjoin(before, run):
            del self._by_last[before.last]
            run = self._merge(before, run)
        else:
            runs[tsn] = run
        if after is not None and _adjoin(run, after):
            del runs[after.first]
            run = self._merge(run, after)
        self._by_last[run.last] = run
        if run.begins and run.ends:
            self._finish(run)

    def skip_to(self, tsn: int, cumulative: int, skipped: list[tuple[int, int]]) -> None:
        """The peer has abandoned what is incomplete up to this TSN; `cumulative` is the cumulative TSN before
        it, `skipped` are (stream, SSN) up to which no ordered message is to be waited for (RFC 3758 section
        3.6)."""
        runs = self._by_first
        if (begun := self._by_last.get(cumulative)) is not None:
            self._discard(begun)
        # Many small steps must not look at all runs each time, nor a large one at all TSNs.
        steps = range(cumulative + 1, tsn + 1) if tsn - cumulative < len(runs) else list(runs)
        for first in steps:
            if first <= tsn and (run := runs.get(first)) is not None:
                self._discard(run)
        rest = runs.get(tsn + 1)
        if rest is not None and not rest.begins:
            self._discard(rest)
        for stream, ssn in skipped:
            expected = self._expected.get(stream, 0)
            if (ssn - expected) & 0xFFFF >= 0x8000 or not self._remembers(stream):
                continue
            waiting = self._waiting.get(stream, {})
            passed = [held for held in waiting if (held - expected) & 0xFFFF <= (ssn - expected) & 0xFFFF]
            for held in sorted(passed, key=lambda held: (held - expected) & 0xFFFF):
                self.delivered.append(waiting.pop(held))
            self._expected[stream] = (ssn + 1) & 0xFFFF
            self._drain(stream)

    def reset(self, streams: tuple[int, ...]) -> None:
        """These streams (none: all) begin again at SSN 0 (RFC 6525 section 5.2.2); the owner hears of it
        after their messages."""
        for stream in streams or tuple(self._expected.keys() | self._waiting.keys()):
            self._expected.pop(stream, None)
            self._drain(stream)
        event = StreamsReset(streams)
        self.delivered.append(event)
        self.held += _cost(event)

    def take(self) -> Message | StreamsReset | None:
        """The next message or reset; what it cost is free."""
        if not self.delivered:
            return None
        event = self.delivered.popleft()
        self.held -= _cost(event)
        return event

    # --- runs -------------------------------------------------------------------------------------

    def _merge(self, run: _Run, other: _Run) -> _Run:
        self.held -= run.cost + other.cost
        run.join(other)
        self.held += run.cost
        return run

    def _discard(self, run: _Run) -> None:
        del self._by_first[run.first], self._by_last[run.last]
        self.held -= run.cost
        self.dropped += 1

    def _finish(self, run: _Run) -> None:
        del self._by_first[run.first], self._by_last[run.last]
        self.held -= run.cost
        data = None if run.oversize else b"".join(run.parts)
        self.held += (len(data) if data else 0) + CHUNK_COST
        stream, ssn, unordered = run.key
        self._deliver(stream, ssn, unordered, run.ppid, data)

    # --- order ------------------------------------------------------------------------------------

    def _deliver(self, stream: int, ssn: int, unordered: int, ppid: int, data: bytes | None) -> None:
        message = Message(stream, ppid, data)
        if unordered:
            self.delivered.append(message)
        elif ssn == self._expected.get(stream, 0) and self._remembers(stream):
            self.delivered.append(message)
            self._expected[stream] = (ssn + 1) & 0xFFFF
            if self._waiting:
                self._drain(stream)
        elif not self._remembers(stream):
            self._drop(message)
        else:
            self._expected.setdefault(stream, 0)
            waiting = self._waiting.setdefault(stream, {})
            if ssn in waiting:
                raise PeerViolation("sctp_repeated_ssn", ErrorCause.PROTOCOL_VIOLATION)
            waiting[ssn] = message

    def _drain(self, stream: int) -> None:
        """Deliver what waits and has its turn."""
        waiting = self._waiting.get(stream)
        if waiting is None:
            return
        expected = self._expected.get(stream, 0)
        while (message := waiting.pop(expected, None)) is not None:
            self.delivered.append(message)
            expected = (expected + 1) & 0xFFFF
            self._expected[stream] = expected
        if not waiting:
            del self._waiting[stream]

    def _remembers(self, stream: int) -> bool:
        return stream in self._expected or len(self._expected) < MAX_ORDERED_STREAMS

    def _drop(self, message: Message) -> None:
        self.held -= _cost(message)
        self.dropped += 1


def _cost(event: Message | StreamsReset) -> int:
    if isinstance(event, StreamsReset):
        return 8 * len(event.streams) + CHUNK_COST
    return (len(event.data) if event.data else 0) + CHUNK_COST


def _adjoin(left: _Run, right: _Run) -> bool:
    """Whether two neighbouring runs are of one message. PeerViolation if they cannot be neighbours:
    fragments of a message are sent one after the other (RFC 9260 section 6.9)."""
    if left.ends != right.begins or (not left.ends and left.key != right.key):
        raise PeerViolation("sctp_fragments", ErrorCause.PROTOCOL_VIOLATION)
    return not left.ends
