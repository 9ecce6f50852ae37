"""DATA sent: in flight, acknowledged, lost, abandoned (RFC 9260 sections 6.1 to 6.3 and 7, RFC 3758
section 3.5).

Theory of operation. Messages are cut when there is room to send (`sendqueue`), so a fragment is built once
and kept as bytes until the cumulative acknowledgement passes it. `_sent` holds those by TSN; TSNs are
consecutive, so it is walked by counting. What is lost has its TSN in the heap `_lost` and leaves before
anything new. A message with a limit that is exceeded is **abandoned** whole: its fragments stay in `_sent` as
markers until a FORWARD TSN has told the peer.

A SACK is checked whole before it changes anything. Blocks of the last one are remembered, so that a
block that has only grown costs what it grew.
"""

from __future__ import annotations

from heapq import heappop, heappush
from typing import Final, NamedTuple

from voicegate.proto.errors import BadPacket
from voicegate.proto.sctp import wire
from voicegate.proto.sctp.congestion import Congestion
from voicegate.proto.sctp.rto import RetransmissionTimeout
from voicegate.proto.sctp.sendqueue import Outgoing, SendQueue, Sent, Status
from voicegate.proto.sctp.wire import DATA_HEADER, MAX_PACKET, Sack, unwrap

MISSES: Final = 3
"""Reports of a gap before its chunk is taken for lost: RFC 9260 section 7.2.4."""
MAX_SKIPPED_STREAMS: Final = 64
"""Streams named in one FORWARD TSN: a quarter of a packet; the rest follow in the next."""
SMALLEST_FRAGMENT: Final = 256
"""A packet with less room than this is not filled up with a part of a message: a full one follows more
cheaply."""


class OutboundStatistics(NamedTuple):
    buffered: int
    """Bytes, with the cost of each message, that are queued or unacknowledged."""
    in_flight: int
    congestion_window: int
    peer_window: int
    retransmitted: int
    """Chunks sent again."""
    timeouts: int
    abandoned: int
    """Messages given up."""


class Outbound:
    """All that is sent on the streams of an association. `tsn` is the first TSN."""

    def __init__(self, tsn: int, timeout: RetransmissionTimeout) -> None:
        self.queue = SendQueue()
        self.timer: float | None = None
        """When T3 runs out."""
        self._timeout = timeout
        self._congestion = Congestion()
        self._sent: dict[int, Sent] = {}
        self._lost: list[int] = []
        self._next = tsn
        self._acked = self._advanced = tsn - 1
        self._blocks: dict[int, int] = {}
        self._flight = self._flight_payload = 0
        self._peer_window = 0
        self._may_abandon = True
        self._forward_due = self._urgent = False
        self._timed: tuple[int, float] | None = None
        self._last_sent = 0.0
        self._retransmitted = self._timeouts = self._abandoned = 0

    def open(self, peer_window: int, forward_tsn: bool) -> None:
        """The peer is known: its receive buffer, and whether it understands FORWARD TSN."""
        self._peer_window = peer_window
        self._may_abandon = forward_tsn

    @property
    def idle(self) -> bool:
        """Nothing is queued, nothing unacknowledged."""
        return not self.queue.messages and not self._sent

    @property
    def has_work(self) -> bool:
        """Whether `fill` might send something."""
        return bool(self.queue.messages or self._lost or self._forward_due)

    @property
    def last_tsn(self) -> int:
        """The last TSN used."""
        return self._next - 1

    def statistics(self) -> OutboundStatistics:
        return OutboundStatistics(
            self.queue.buffered,
            self._flight,
            self._congestion.window,
            self._peer_window,
            self._retransmitted,
            self._timeouts,
            self._abandoned,
        )

    # --- sending ----------------------------------------------------------------------------------

    def fill(self, chunks: list[bytes], room: int, now: float) -> None:
        """Append the chunks that may leave now and fit into `room` bytes."""
        messages = self.queue.messages
        if messages and not self._sent and now - self._last_sent > self._timeout.value:
            self._congestion.idle()
        if self._forward_due:
            room = self._add_forward_tsn(chunks, room, now)
        if self._lost:
            room = self._repeat(chunks, room, now)
        if messages and not self._lost:
            self._send_new(chunks, room, now)
        if chunks:
            self._last_sent = now

    def _repeat(self, chunks: list[bytes], room: int, now: float) -> int:
        """Lost chunks, earliest first (RFC 9260 sections 6.3.3 and 7.2.4); the room that is left."""
        lost = self._lost
        while lost:
            sent = self._sent.get(lost[0])
            if sent is None or sent.status is not Status.LOST:
                heappop(lost)
                continue
            if not self._urgent and self._flight and self._flight >= self._congestion.window:
                break
            if self._expired(sent.message, now):
                self._abandon(sent.message)
                continue
            if len(sent.chunk) > room:
                break
            heappop(lost)
            self._urgent = False
            sent.status = Status.FLYING
            sent.misses = 0
            sent.repeats += 1
            self._retransmitted += 1
            if self._timed is not None and self._timed[0] == sent.tsn:
                self._timed = None  # Karn's rule
            room = self._fly(sent, chunks, room)
            if self.timer is None or sent.tsn == self._acked + 1:  # section 7.2.4, rule 4
                self.timer = now + self._timeout.value
        return room

    def _send_new(self, chunks: list[bytes], room: int, now: float) -> None:
        queue = self.queue
        messages = queue.messages
        while messages and self._flight < self._congestion.window and room > DATA_HEADER:
            message = messages[0]
            if self._expired(message, now):
                self._abandon(message)
                continue
            left = len(message.payload) - message.offset
            size = min(left, (room & ~3) - DATA_HEADER)
            if size < left and size < SMALLEST_FRAGMENT:
                return
            # Section 6.1, rule A: a closed window gets one chunk that asks whether it is still closed.
            if self._flight and self._flight_payload + size > self._peer_window:
                return
            tsn = self._next
            self._next = tsn + 1
            self._sent[tsn] = sent = queue.cut(size, tsn)
            room = self._fly(sent, chunks, room)
            if self._timed is None:
                self._timed = (tsn, now)
            if self.timer is None:
                self.timer = now + self._timeout.value

    def _fly(self, sent: Sent, chunks: list[bytes], room: int) -> int:
        chunks.append(sent.chunk)
        self._flight += len(sent.chunk)
        self._flight_payload += sent.payload
        return room - len(sent.chunk)

    # --- acknowledgement --------------------------------------------------------------------------

    def acknowledge(self, sack: Sack, now: float) -> bool:
        """Take a SACK; whether anything new is acknowledged, or the peer is alive with a closed window.
        BadPacket: sctp_sack_unsent."""
        cumulative = unwrap(sack.cumulative, self._acked)
        gaps = sack.gaps
        if cumulative >= self._next or (gaps and cumulative + gaps[-1] >= self._next):
            raise BadPacket("sctp_sack_unsent")
        if cumulative < self._acked:  # RFC 9260 section 6.2.1, rule D i: it was overtaken
            return False
        flight = self._flight
        limited = flight + MAX_PACKET > self._congestion.window
        advanced = cumulative > self._acked
        self._settle_to(cumulative, now)
        newest = self._take_blocks(cumulative, gaps, now) if gaps else 0
        if not gaps:
            self._blocks.clear()
        self._peer_window = sack.window
        if advanced:
            self._congestion.acknowledged(cumulative, flight - self._flight, limited)
            self.timer = now + self._timeout.value if self._sent else None  # rules R2, R3
        if gaps and (newest or (advanced and self._congestion.recovering)):
            # Section 7.2.4: only below the newest acknowledged; in recovery, below all acknowledged.
            recovering = advanced and self._congestion.recovering
            self._count_misses(cumulative, gaps, cumulative + gaps[-1] if recovering else newest, now)
        self._advance()
        if self._sent and self.timer is None:
            self.timer = now + self._timeout.value
        return advanced or newest > 0 or sack.window < MAX_PACKET

    def acknowledge_cumulative(self, number: int, now: float) -> None:
        """What SHUTDOWN says (RFC 9260 section 9.2). BadPacket: sctp_sack_unsent."""
        cumulative = unwrap(number, self._acked)
        if cumulative >= self._next:
            raise BadPacket("sctp_sack_unsent")
        if cumulative > self._acked:
            self._settle_to(cumulative, now)
            self.timer = now + self._timeout.value if self._sent else None
            self._advance()

    def _settle_to(self, cumulative: int, now: float) -> None:
        for tsn in range(self._acked + 1, cumulative + 1):
            sent = self._sent.pop(tsn)
            if sent.status is Status.FLYING:
                self._land(sent, now)
            if sent.last and not sent.message.abandoned:
                self.queue.buffered -= sent.message.cost
        self._acked = cumulative
        self._advanced = max(self._advanced, cumulative)

    def _take_blocks(self, cumulative: int, gaps: tuple[int, ...], now: float) -> int:
        """Mark what gap blocks acknowledge; the highest TSN that is newly so, 0 if none."""
        newest = 0
        known, self._blocks = self._blocks, {}
        for index in range(0, len(gaps), 2):
            first, last = cumulative + gaps[index], cumulative + gaps[index + 1]
            self._blocks[first] = last
            for tsn in range(known.get(first, first - 1) + 1, last + 1):
                sent = self._sent[tsn]
                if sent.status is Status.FLYING:
                    self._land(sent, now)
                elif sent.status is not Status.LOST:
                    continue
                sent.status = Status.ACKED
                newest = tsn
        return newest

    def _count_misses(self, cumulative: int, gaps: tuple[int, ...], limit: int, now: float) -> None:
        low = cumulative + 1
        lost = False
        for index in range(0, len(gaps), 2):
            for tsn in range(low, min(cumulative + gaps[index], limit)):
                sent = self._sent[tsn]
                if sent.status is not Status.FLYING or sent.hasty:
                    continue
                sent.misses += 1
                if sent.misses >= MISSES:
                    sent.hasty = True
                    lost = True
                    self._lose(sent, now)
            low = cumulative + gaps[index + 1] + 1
            if low >= limit:
                break
        if lost and not self._congestion.recovering:
            self._congestion.lost(self._next - 1)
            self._urgent = True  # section 7.2.4, rule 3: one packet leaves whatever the window says

    def _land(self, sent: Sent, now: float) -> None:
        """A chunk leaves the flight."""
        self._flight -= len(sent.chunk)
        self._flight_payload -= sent.payload
        if self._timed is not None and self._timed[0] <= sent.tsn:
            if self._timed[0] == sent.tsn:
                self._timeout.measured(now - self._timed[1])
            self._timed = None

    # --- loss -------------------------------------------------------------------------------------

    def handle_timeout(self, now: float) -> bool:
        """Whether T3 has run out (RFC 9260 section 6.3.3); then everything in flight counts as lost."""
        if self.timer is None or now < self.timer:
            return False
        self._timeouts += 1
        self.timer = None
        self._timed = None
        self._timeout.back_off()
        if self._flight_payload <= self._peer_window or self._flight > MAX_PACKET:
            self._congestion.timed_out()  # a question at a closed window says nothing of the path
        first = self._sent.get(self._acked + 1)
        reneged = first is not None and first.status is Status.ACKED  # section 6.2.1: a gap came back
        if reneged:
            self._blocks.clear()
        for sent in list(self._sent.values()):
            if sent.status is Status.FLYING:
                self._lose(sent, now)
            elif reneged and sent.status is Status.ACKED:
                sent.status = Status.LOST
                heappush(self._lost, sent.tsn)
        self._advance()
        self._forward_due = self._advanced > self._acked  # RFC 3758 section 3.5, rule F2
        if self._sent and not self._lost:
            self.timer = now + self._timeout.value
        return True

    def _lose(self, sent: Sent, now: float) -> None:
        self._flight -= len(sent.chunk)
        self._flight_payload -= sent.payload
        message = sent.message
        exhausted = message.repeats is not None and sent.repeats >= message.repeats and self._may_abandon
        sent.status = Status.LOST
        if exhausted or self._expired(message, now):
            self._abandon(message)
        else:
            heappush(self._lost, sent.tsn)

    def _expired(self, message: Outgoing, now: float) -> bool:
        return message.expiry is not None and now >= message.expiry and self._may_abandon

    def _abandon(self, message: Outgoing) -> None:
        """Give the message up, sent or not (RFC 3758 section 3.5, rule A3)."""
        self._abandoned += 1
        self.queue.buffered -= message.cost
        message.abandoned = True
        for sent in message.fragments:
            if sent.tsn > self._acked:
                if sent.status is Status.FLYING:
                    self._flight -= len(sent.chunk)
                    self._flight_payload -= sent.payload
                sent.status = Status.ABANDONED
        if self.queue.drop(message) and message.offset:
            # The peer may have all that was sent and wait for the rest: a TSN of its own, never sent, stands
            # for the rest, so that there is something to forward over.
            end = Sent(self._next, b"", 0, message)
            end.status = Status.ABANDONED
            self._sent[self._next] = end
            self._next += 1
        self._advance()

    def _advance(self) -> None:
        """Move the Advanced.Peer.Ack.Point (RFC 3758 section 3.5, rules C1 to C3)."""
        while (sent := self._sent.get(self._advanced + 1)) is not None and sent.status is Status.ABANDONED:
            self._advanced += 1
        self._forward_due = self._advanced > self._acked

    def _add_forward_tsn(self, chunks: list[bytes], room: int, now: float) -> int:
        skipped: dict[int, int] = {}
        advanced = self._acked
        for tsn in range(self._acked + 1, self._advanced + 1):
            message = self._sent[tsn].message
            if message.ssn >= 0:
                if message.stream not in skipped and len(skipped) >= MAX_SKIPPED_STREAMS:
                    break
                skipped[message.stream] = message.ssn
            advanced = tsn
        chunk = wire.build_forward_tsn(advanced, skipped)
        if len(chunk) > room:
            return room
        chunks.append(chunk)
        self._forward_due = False
        if self.timer is None:
            self.timer = now + self._timeout.value
        return room - len(chunk)
