"""What a DTLS endpoint sends: records packed into datagrams, and the last flight kept for repetition."""

from __future__ import annotations

from collections import deque
from typing import Final

from voicegate.proto.dtls_openssl import MTU
from voicegate.proto.dtls_wire import Record

# A flight is 1 to 3 datagrams and a candidate hello brings one flight; the owner drains after every datagram.
MAX_QUEUE: Final = 64


class Outbox:
    """Datagrams to send. Every plaintext record that leaves has a number of its own, also when it is
    repeated."""

    __slots__ = ("_flight", "_flight_at", "_queue", "_sequence", "dropped", "sent")

    def __init__(self) -> None:
        self._queue: deque[bytes] = deque()
        self._flight: list[Record] = []
        self._flight_at = 0.0
        self._sequence = 0
        self.sent = 0
        self.dropped = 0

    def flight(self, records: list[Record], now: float) -> None:
        """Send a new flight and keep it."""
        self._flight = records
        self._flight_at = now
        self.send(records)

    def replace_flight(self, records: list[Record]) -> None:
        """Keep a flight, to be sent by the next `repeat`."""
        self._flight = records

    @property
    def has_flight(self) -> bool:
        """Whether there is anything to repeat."""
        return bool(self._flight)

    def repeat(self, now: float, flight: list[Record] | None = None, at_least_after: float = 0.0) -> bool:
        """Send the last flight again, or an older one that takes its place, unless it left a moment ago."""
        if flight is not None:
            self._flight = flight
        if not self._flight or now < self._flight_at + at_least_after:
            return False
        self._flight_at = now
        self.send(self._flight)
        return True

    def send(self, records: list[Record]) -> None:
        """Pack records into as few datagrams as the MTU allows (RFC 6347 section 4.1.1)."""
        datagram = b""
        for record in records:
            raw = record.raw if record.epoch else self._numbered(record.raw)
            if datagram and len(datagram) + len(raw) > MTU:
                self._push(datagram)
                datagram = b""
            datagram += raw
        if datagram:
            self._push(datagram)

    def poll(self) -> bytes | None:
        """The next datagram."""
        return self._queue.popleft() if self._queue else None

    def forget(self) -> None:
        """Keep no flight any more; what is queued still goes."""
        self._flight = []

    def _numbered(self, raw: bytes) -> bytes:
        # RFC 6347 section 4.1.2.6: a receiver drops a record number it has seen.
        sequence = self._sequence
        self._sequence += 1
        return raw[:5] + sequence.to_bytes(6, "big") + raw[11:]

    def _push(self, datagram: bytes) -> None:
        if len(self._queue) >= MAX_QUEUE:
            self._queue.popleft()
            self.dropped += 1
        self._queue.append(datagram)
        self.sent += 1
