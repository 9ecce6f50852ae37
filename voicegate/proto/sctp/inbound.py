"""DATA received: taken or refused, acknowledged in time (RFC 9260 section 6.2, RFC 3758 section 3.6)."""

from __future__ import annotations

from typing import Final

from voicegate.proto.errors import BadPacket
from voicegate.proto.sctp import wire
from voicegate.proto.sctp.events import Message, StreamsReset
from voicegate.proto.sctp.reassembly import CHUNK_COST, MAX_MESSAGE, PeerViolation, Reassembly
from voicegate.proto.sctp.received import MAX_AHEAD, Received
from voicegate.proto.sctp.wire import MAX_PACKET, DataFlag, ErrorCause, unwrap

RECEIVE_BUFFER: Final = 2 * MAX_MESSAGE
"""Bytes, our a_rwnd: one message of the largest size in parts, with the cost of its chunks, and what comes
meanwhile."""
HARD_LIMIT: Final = RECEIVE_BUFFER + MAX_MESSAGE + MAX_MESSAGE // 1024 * CHUNK_COST
"""Beyond the buffer only the next TSN in turn is taken, and only if the owner has nothing to take: then it is
what lets a blocked message through. A peer for whom this is not enough has broken the rules of ordering and
is stuck by its own doing."""
SACK_DELAY: Final = 0.02
"""Seconds. RFC 9260 section 6.2 allows 0.2; a peer's RTO and its closing of a message wait for this, so it is
one audio frame."""
WINDOW_OPENS: Final = RECEIVE_BUFFER // 2
"""A closed window is announced as open when this much is free (RFC 9260 section 6.2: no silly windows)."""

_IMMEDIATE: Final = int(DataFlag.IMMEDIATE)


class Inbound:
    """All that arrives on the streams of an association."""

    __slots__ = (
        "_announced",
        "_packets",
        "_received",
        "_streams",
        "reassembly",
        "refused",
        "sack_at",
        "sack_due",
    )

    def __init__(self, cumulative: int, streams: int) -> None:
        self.reassembly = Reassembly()
        self.sack_at: float | None = None
        """When a SACK is to leave that waits for company."""
        self.sack_due = False
        """A SACK has to leave now."""
        self.refused = 0
        """Chunks dropped because the buffer was full or the TSN too far ahead; the peer sends them again."""
        self._received = Received(cumulative)
        self._streams = streams
        self._announced = RECEIVE_BUFFER
        self._packets = 0

    @property
    def cumulative(self) -> int:
        return self._received.cumulative

    def receive_data_untrusted(self, data: bytes, flags: int, start: int, stop: int) -> int | None:
        """Take a DATA chunk; the stream number, if it is not one of ours to receive. BadPacket: sctp_data,
        sctp_tsn_far_ahead, sctp_buffer_full. PeerViolation."""
        number, stream, ssn, ppid, payload = wire.parse_data_untrusted(data, start, stop)
        if not payload:  # RFC 9260 section 6.2
            raise PeerViolation("sctp_no_user_data", ErrorCause.NO_USER_DATA)
        received, reassembly = self._received, self.reassembly
        cumulative = received.cumulative
        tsn = unwrap(number, cumulative)
        if flags & _IMMEDIATE or not received.complete:
            self.sack_due = True  # RFC 9260 sections 6.2, 6.7; RFC 7053
        if tsn - cumulative > MAX_AHEAD:
            self._refuse("sctp_tsn_far_ahead")
        if reassembly.held > RECEIVE_BUFFER and tsn > cumulative:
            unblocks = tsn == cumulative + 1 and not reassembly.delivered
            if not unblocks or reassembly.held > HARD_LIMIT:
                self._refuse("sctp_buffer_full")
        if not received.record(tsn):
            self.sack_due = True
            return None
        if not received.complete:
            self.sack_due = True
        if stream >= self._streams:  # RFC 9260 section 6.5: acknowledged, reported, not delivered
            return stream
        reassembly.add(tsn, cumulative, flags, stream, ssn, ppid, payload)
        return None

    def receive_forward_tsn_untrusted(self, value: bytes) -> None:
        """BadPacket: sctp_forward_tsn, sctp_forward_tsn_far_ahead."""
        number, skipped = wire.parse_forward_tsn_untrusted(value)
        cumulative = self._received.cumulative
        tsn = unwrap(number, cumulative)
        if tsn - cumulative > MAX_AHEAD:
            raise BadPacket("sctp_forward_tsn_far_ahead")
        self.sack_due = True
        if tsn > cumulative:  # else it is old news, and so are its streams
            self._received.skip_to(tsn)
            self.reassembly.skip_to(tsn, cumulative, skipped)

    def end_packet(self, now: float) -> None:
        """A packet with DATA is through: every second one is acknowledged at once, the others soon."""
        self._packets += 1
        if self._packets >= 2:
            self.sack_due = True
        elif self.sack_at is None:
            self.sack_at = now + SACK_DELAY

    def handle_timeout(self, now: float) -> None:
        if self.sack_at is not None and now >= self.sack_at:
            self.sack_due = True

    @property
    def sack_pending(self) -> bool:
        """A SACK is welcome in a packet that leaves anyway."""
        return self.sack_due or self.sack_at is not None

    def build_sack(self) -> bytes:
        window = max(RECEIVE_BUFFER - self.reassembly.held, 0)
        self._announced = window if window >= MAX_PACKET else 0
        received = self._received
        return wire.build_sack(received.cumulative, self._announced, received.gaps(), received.duplicates)

    def sack_sent(self) -> None:
        self.sack_due = False
        self.sack_at = None
        self._packets = 0
        self._received.duplicates.clear()

    def take(self) -> Message | StreamsReset | None:
        """The next event for the owner."""
        event = self.reassembly.take()
        if event is not None and self._announced < MAX_PACKET:
            self.sack_due = self.sack_due or RECEIVE_BUFFER - self.reassembly.held >= WINDOW_OPENS
        return event

    def acknowledge(self) -> None:
        """Let a SACK leave at once."""
        self.sack_due = True

    def _refuse(self, reason: str) -> None:
        self.refused += 1
        self.sack_due = True
        raise BadPacket(reason)
