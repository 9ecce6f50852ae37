"""Messages that wait to be sent, and the cutting of them into DATA chunks (RFC 9260 sections 6.5, 6.6, 6.9).

One queue for all streams, first come first served: without I-DATA (RFC 8260), which browsers do not offer, a
message that is begun has to be finished before another one.
"""

from __future__ import annotations

from collections import deque
from enum import Enum
from typing import Final

from voicegate.proto.sctp import wire
from voicegate.proto.sctp.wire import DataFlag

SEND_BUFFER: Final = 1 << 20
"""Bytes queued or in flight: four messages of the size browsers accept (262,144). `MESSAGE_COST` is added for
each."""
MESSAGE_COST: Final = 256
"""Bytes that a message costs beyond its payload, as on the other side (`reassembly.CHUNK_COST`)."""

_END: Final = int(DataFlag.END)
_BEGIN: Final = int(DataFlag.BEGIN)
_UNORDERED: Final = int(DataFlag.UNORDERED)
_IMMEDIATE: Final = int(DataFlag.IMMEDIATE)


class Status(Enum):
    """Of a chunk that has a TSN."""

    FLYING = "sent, and nothing heard of it"
    LOST = "to be sent again"
    ACKED = "acknowledged by a gap block, not yet cumulatively"
    ABANDONED = "given up; the peer is to be told"


class Outgoing:
    """A message of the owner's, and how far it is sent."""

    __slots__ = (
        "abandoned",
        "cost",
        "expiry",
        "fragments",
        "offset",
        "payload",
        "ppid",
        "repeats",
        "ssn",
        "stream",
    )

    def __init__(
        self, stream: int, ppid: int, payload: bytes, ordered: bool, repeats: int | None, expiry: float | None
    ) -> None:
        self.stream = stream
        self.ppid = ppid
        self.payload = payload
        self.ssn = 0 if ordered else -1  # of an ordered one it is set when the first fragment leaves
        self.repeats = repeats
        self.expiry = expiry
        self.offset = 0
        """Bytes that have been sent."""
        self.fragments: list[Sent] = []
        """All fragments that have a TSN, if the message may be abandoned."""
        self.abandoned = False
        self.cost = len(payload) + MESSAGE_COST


class Sent:
    """A DATA chunk that has a TSN."""

    __slots__ = ("chunk", "hasty", "last", "message", "misses", "payload", "repeats", "status", "tsn")

    def __init__(self, tsn: int, chunk: bytes, payload: int, message: Outgoing) -> None:
        self.tsn = tsn
        self.chunk = chunk
        self.payload = payload
        self.message = message
        self.last = message.offset == len(message.payload)
        self.status = Status.FLYING
        self.misses = 0
        self.repeats = 0
        self.hasty = False
        """It was repeated by fast retransmit, which happens once (RFC 9260 section 7.2.4)."""


class SendQueue:
    """The queue, and what of it the owner has to know."""

    __slots__ = ("_ssns", "_waiting", "buffered", "messages")

    def __init__(self) -> None:
        self.buffered = 0
        """Cost of all messages not yet acknowledged or abandoned, sent ones included."""
        self.messages: deque[Outgoing] = deque()
        """Those that are not sent to their end."""
        self._waiting: dict[int, int] = {}
        self._ssns: dict[int, int] = {}

    def add(self, message: Outgoing) -> bool:
        """False if the buffer has no room."""
        if self.buffered + message.cost > SEND_BUFFER:
            return False
        self.buffered += message.cost
        self.messages.append(message)
        self._waiting[message.stream] = self._waiting.get(message.stream, 0) + len(message.payload)
        return True

    def cut(self, size: int, tsn: int) -> Sent:
        """The next `size` bytes of the head as a chunk with this TSN."""
        message = self.messages[0]
        stream, start, payload = message.stream, message.offset, message.payload
        flags = 0
        if not start:
            flags = _BEGIN
            if message.ssn >= 0:
                message.ssn = self._ssns.get(stream, 0)
                self._ssns[stream] = (message.ssn + 1) & 0xFFFF
        if message.ssn < 0:
            flags |= _UNORDERED
        message.offset = start + size
        self._count_down(stream, size)
        if message.offset == len(payload):
            flags |= _END
            self.messages.popleft()
            if not self.messages:
                flags |= _IMMEDIATE  # nothing follows that would bring the SACK about (RFC 7053 section 4.1)
        part = payload if size == len(payload) else payload[start : start + size]
        chunk = wire.build_data(flags, tsn, stream, max(message.ssn, 0), message.ppid, part)
        sent = Sent(tsn, chunk, size, message)
        if message.repeats is not None or message.expiry is not None:
            message.fragments.append(sent)
        return sent

    def drop(self, message: Outgoing) -> bool:
        """Forget the rest of a message that is being abandoned; whether there was a rest."""
        unsent = len(message.payload) - message.offset
        if not unsent:
            return False
        assert self.messages[0] is message, "only the head is cut, and only what is looked at expires"
        self.messages.popleft()
        self._count_down(message.stream, unsent)
        return True

    def waiting(self, stream: int) -> int:
        """Bytes of this stream that were never sent."""
        return self._waiting.get(stream, 0)

    def restart_streams(self, streams: tuple[int, ...]) -> None:
        """These streams begin again at SSN 0 (RFC 6525 section 5.2.7)."""
        for stream in streams:
            self._ssns.pop(stream, None)

    def _count_down(self, stream: int, size: int) -> None:
        waiting = self._waiting[stream] - size
        if waiting:
            self._waiting[stream] = waiting
        else:
            del self._waiting[stream]
