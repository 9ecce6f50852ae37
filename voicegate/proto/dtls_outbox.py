"""What a DTLS endpoint sends: records packed into datagrams, and the last flight repeated on a timer of its
own."""

from __future__ import annotations

from collections import deque
from typing import Final

from voicegate.proto.dtls_openssl import MTU
from voicegate.proto.dtls_wire import Record

FIRST_TIMEOUT: Final = 0.05  # libwebrtc's; the one second of RFC 6347 section 4.2.4.1 can be heard
LAST_TIMEOUT: Final = 1.0  # doubling stops here: a call that waits longer is given up by its user

# A flight is 1 to 3 datagrams and a candidate hello brings one flight; the owner drains after every datagram.
MAX_QUEUE: Final = 64


class Outbox:
    """Datagrams to send. Every plaintext record that leaves has a number of its own, also when it is
    repeated."""

    __slots__ = ("_flight", "_queue", "_sent_at", "_sequence", "_timeout", "dropped", "repeated", "sent")

    def __init__(self) -> None:
        self._queue: deque[bytes] = deque()
        self._flight: list[Record] = []
        self._sent_at = 0.0
        self._timeout = FIRST_TIMEOUT
        self._sequence = 0
        self.sent = 0
        self.repeated = 0
        self.dropped = 0

    def flight(self, records: list[Record], now: float) -> None:
        """Send a new flight, keep it and start its timer."""
        self._flight = records
        self._sent_at = now
        self._timeout = FIRST_TIMEOUT
        self.send(records)

    def keep(self, records: list[Record]) -> None:
        """Let this be the flight that the next repetition sends."""
        self._flight = records

    def deadline(self) -> float:
        """When the flight is due again; infinity without one."""
        return self._sent_at + self._timeout if self._flight else float("inf")

    def repeat(self, now: float) -> None:
        """Send the flight again, and wait twice as long for the next time (RFC 6347 section 4.2.4.1)."""
        self._sent_at = now
        self._timeout = min(2 * self._timeout, LAST_TIMEOUT)
        self.repeated += 1
        self.send(self._flight)

    def may_echo(self, now: float) -> bool:
        """Whether to repeat the flight because the peer repeats its own, so lacks ours (RFC 6347 section
        4.2.4).

        Half of the timer must have passed: a peer that doubles its timer too is always answered, and
        neither a network that doubles packets nor a forger makes an amplifier of us.
        """
        return bool(self._flight) and now >= self._sent_at + self._timeout / 2

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
