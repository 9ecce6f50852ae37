"""RTCP as one end of one call keeps it: what we hear, what we say of it, and when.

`RtcpReporter` sends a report about every five seconds and reads the other side's, which give the round trip;
between them it sends what was negotiated for faster feedback (`RtcpOptions`): transport-wide arrival times
about every 100 ms, and a NACK for a gap where the round trip lets a second copy come in time. The same verbs
as every protocol object: one mutation, drain the polls, read `next_deadline`.
"""

from __future__ import annotations

from collections import Counter, deque
from collections.abc import Callable, Iterable, Mapping
from typing import Final, NamedTuple

from voicegate.proto.rtcp import (
    Delay,
    ExtendedReport,
    Nack,
    ReceiverReport,
    ReportBlock,
    RtcpPacket,
    SenderReport,
    build_bye,
    build_cname,
    build_extended_report,
    build_nack,
    build_receiver_report,
    build_sender_report,
    parse_rtcp_untrusted,
)
from voicegate.proto.rtcp_reception import ReceiveStatistics
from voicegate.proto.rtcp_sending import Feedback, SendStatistics, middle_of, ntp_time
from voicegate.proto.rtp import RtpPacket
from voicegate.proto.twcc import TransportFeedback

MIN_INTERVAL: Final = 5.0
"""RFC 3550 section 6.2, in seconds. It always decides here: 5 % of a voice call would carry the two members'
reports every second."""
MAX_SOURCES: Final = 4
"""SSRCs counted at once: a client has one, and one more after it restarts its sender."""
MAX_NACK_ROUND_TRIP: Final = 0.06
"""Seconds: as long as the receive buffer lets a gap wait at most. A copy that takes longer comes too late."""
MAX_ANSWER_ROUND_TRIP: Final = 0.08
"""Seconds within which the client's request is answered: 4 frames, what the usual jitter buffer holds."""
MAX_NACKED: Final = 17
"""Packets asked for, or sent again, at once: what one entry of a NACK can name (RFC 4585 section 6.2.1). Who
loses more has no use for more traffic."""
_REMEMBERED_REQUESTS = 64
"""Sequence numbers that are not asked for twice: more than a second of gaps at any loss worth a NACK."""
_COMPENSATION = 1.21828
"""e - 3/2, RFC 3550 section 6.3.1."""
_MAX_OUTGOING = 16
"""Datagrams waiting to be taken; one mutation makes two or three."""


class RtcpOptions(NamedTuple):
    """What was negotiated beyond plain reports."""

    reduced_size: bool = False
    """Feedback may go without a report in front of it (RFC 5506)."""
    nack: bool = False
    transport_cc_id: int | None = None
    """The header extension with transport-wide numbers; None: no transport-wide feedback."""
    extended_reports: bool = False
    """A client that hears nothing of ours answers our reference time (RFC 3611 section 5.1, rcvr-rtt)."""


PLAIN: Final = RtcpOptions()
"""Reports only."""


class Quality(NamedTuple):
    """What both sides know of the call's network. Losses are fractions of 1, times are seconds."""

    round_trip: float | None
    """From the last report about us, or the last answer to our reference time."""
    sent_packets: int
    sent_octets: int
    sent_lost: int
    sent_fraction_lost: float
    """Of our packets, as the other side says, in its last report."""
    sent_jitter: float
    received_packets: int
    received_lost: int
    received_jitter: float
    """Of the source heard last."""
    feedback: Mapping[str, int]
    """`RtcpReporter.counts`."""


class RtcpReporter:
    """Reports of one RTP session. `random` gives floats in [0, 1); `cname` is this call's canonical name."""

    def __init__(
        self,
        ssrc: int,
        cname: str,
        clock_rate: int,
        random: Callable[[], float],
        now: float,
        options: RtcpOptions = PLAIN,
    ) -> None:
        self.counts: Counter[str] = Counter(
            nacked=0,  # packets of ours the client asked for again
            resent=0,  # of these sent again
            requested=0,  # packets of the client we asked for again
            transport_feedback=0,  # packets of transport-wide feedback
            extended_round_trips=0,  # round trips measured by extended reports
        )
        self._ssrc = ssrc
        self._clock_rate = clock_rate
        self._random = random
        self._options = options
        self._description = build_cname(ssrc, cname.encode())
        self._sending = SendStatistics(clock_rate, now)
        self.sent = self._sending.sent
        """One RTP packet of ours left."""
        self._sources: dict[int, ReceiveStatistics] = {}
        self._references: dict[int, tuple[int, float]] = {}
        """Of clients that sent their clock: its middle and the arrival, until we answer."""
        self._transport = (
            None if options.transport_cc_id is None else TransportFeedback(options.transport_cc_id)
        )
        self._requested: deque[int] = deque(maxlen=_REMEMBERED_REQUESTS)
        self._nacked: tuple[int, ...] | None = None
        self._media_ssrc = 0
        """The source heard last."""
        self._reported_at = now
        self.outgoing: deque[bytes] = deque(maxlen=_MAX_OUTGOING)
        """To be looked at; taken with `poll_transmit`."""
        self._deadline: float | None = now + self._interval(MIN_INTERVAL / 2)  # the first, section 6.2

    @property
    def round_trip(self) -> float | None:
        """Seconds, as measured last."""
        return self._sending.round_trip

    def received(self, packet: RtpPacket, now: float) -> None:
        """One authenticated RTP packet of theirs came."""
        ssrc = self._media_ssrc = packet.ssrc
        source = self._sources.get(ssrc)
        if source is None:
            source = self._add_source(ssrc)
        source.update(packet.sequence, packet.timestamp, now)
        if source.missed and self._options.nack:
            before = packet.sequence
            self.request([(before - ago) & 0xFFFF for ago in range(source.missed, 0, -1)], now)
        if self._transport is not None and self._transport.received(packet, now):
            self._send_transport_feedback()

    def request(self, sequences: Iterable[int], now: float) -> bool:
        """Ask for lost packets of the client again, where that can help. True when a NACK is on its way."""
        round_trip = self._sending.round_trip
        if not self._options.nack or round_trip is None or round_trip > MAX_NACK_ROUND_TRIP:
            return False
        wanted = [sequence for sequence in sequences if sequence not in self._requested]
        if not 0 < len(wanted) <= MAX_NACKED or self._deadline is None:
            return False
        self._requested.extend(wanted)
        self.counts["requested"] += len(wanted)
        self._send_feedback(build_nack(Nack(self._ssrc, self._media_ssrc, tuple(wanted))))
        return True

    def receive_untrusted(self, data: bytes, now: float) -> list[RtcpPacket]:
        """Take one decrypted RTCP datagram and give back what was in it. Raises BadPacket."""
        packets = parse_rtcp_untrusted(data)
        for packet in packets:
            match packet:
                case SenderReport():
                    source = self._sources.get(packet.ssrc)
                    if source is not None:
                        source.receive_sender_report(packet.ntp, now)
                    self._receive_blocks(packet.blocks, now)
                case ReceiverReport():
                    self._receive_blocks(packet.blocks, now)
                case Nack():
                    self._receive_nack(packet)
                case ExtendedReport():
                    self._receive_extended(packet, now)
        return packets

    def poll_feedback(self) -> Feedback | None:
        """The next report about our stream. Of those nobody polls, the last few are kept."""
        return self._sending.poll_feedback()

    def poll_nacked(self) -> tuple[int, ...] | None:
        """Sequence numbers to be sent again, if they still are at hand; then `resent`."""
        nacked, self._nacked = self._nacked, None
        return nacked

    def resent(self) -> None:
        """One packet that `poll_nacked` named has left again."""
        self.counts["resent"] += 1

    def handle_timeout(self, now: float, wall: float) -> None:
        """Make the report that is due. `wall` is Unix time in seconds: a sender report says it."""
        if self._deadline is None:
            return
        if self._transport is not None:
            tail = self._transport.next_deadline()
            if tail is not None and tail <= now:
                self._send_transport_feedback()
        if now >= self._deadline:
            self.outgoing.append(self._report(now, wall))
            self._deadline = now + self._interval(MIN_INTERVAL)

    def poll_transmit(self) -> bytes | None:
        """The next datagram to protect and send."""
        return self.outgoing.popleft() if self.outgoing else None

    def next_deadline(self) -> float | None:
        if self._transport is None or self._deadline is None:
            return self._deadline
        tail = self._transport.next_deadline()
        return self._deadline if tail is None else min(tail, self._deadline)

    def close(self, now: float, wall: float, reason: str = "") -> None:
        """Say BYE, in a compound packet as RFC 3550 section 6.1 wants it. Nothing is sent after that."""
        if self._deadline is None:
            return
        self._deadline = None
        self.outgoing.append(self._report(now, wall) + build_bye([self._ssrc], reason.encode()))

    def statistics(self) -> Quality:
        sending, about_us = self._sending, self._sending.about_us
        last = max(self._sources.values(), key=lambda source: source.heard_at, default=None)
        return Quality(
            round_trip=sending.round_trip,
            sent_packets=sending.packets,
            sent_octets=sending.octets,
            sent_lost=about_us.cumulative_lost if about_us else 0,
            sent_fraction_lost=about_us.fraction_lost / 256 if about_us else 0.0,
            sent_jitter=about_us.jitter / self._clock_rate if about_us else 0.0,
            received_packets=sum(source.received for source in self._sources.values()),
            received_lost=sum(source.lost for source in self._sources.values()),
            received_jitter=last.jitter / self._clock_rate if last else 0.0,
            feedback=dict(self.counts),
        )

    # Reports

    def _interval(self, minimum: float) -> float:
        """RFC 3550 section 6.3.1: half to one and a half times, so that two ends do not fall into step."""
        return minimum * (self._random() + 0.5) / _COMPENSATION

    def _report(self, now: float, wall: float) -> bytes:
        """SR if we sent since the last report or the one before it, else RR (section 6.4); the CNAME; and
        extended reports where there is something for them."""
        blocks = tuple(
            source.report(ssrc, now)
            for ssrc, source in self._sources.items()
            if source.heard_at > self._reported_at
        )
        self._reported_at = now
        sending = self._sending.is_sender()
        if sending:
            report = build_sender_report(self._sending.report(self._ssrc, blocks, now, wall))
        else:
            report = build_receiver_report(ReceiverReport(self._ssrc, blocks))
        return report + self._description + self._extended_report(sending, now, wall)

    def _extended_report(self, sending: bool, now: float, wall: float) -> bytes:
        """Our clock while no sender report says it, and the answers to theirs (RFC 3611)."""
        reference = None
        if self._options.extended_reports and not sending:
            reference = ntp_time(wall)
            self._sending.said(reference, now)
        delays = tuple(
            Delay(ssrc, middle, min(0xFFFFFFFF, max(0, int((now - arrival) * 65536))))
            for ssrc, (middle, arrival) in self._references.items()
        )
        self._references.clear()
        if reference is None and not delays:
            return b""
        return build_extended_report(ExtendedReport(self._ssrc, reference, delays))

    def _receive_blocks(self, blocks: Iterable[ReportBlock], now: float) -> None:
        for block in blocks:
            if block.ssrc == self._ssrc:
                self._sending.receive_report(block, now)

    def _receive_extended(self, report: ExtendedReport, now: float) -> None:
        if report.reference_ntp is not None and (
            report.ssrc in self._references or len(self._references) < MAX_SOURCES
        ):
            self._references[report.ssrc] = (middle_of(report.reference_ntp), now)
        for delay in report.delays:
            if delay.ssrc == self._ssrc and self._sending.answered(
                delay.last_rr, delay.delay_since_last_rr, now
            ):
                self.counts["extended_round_trips"] += 1

    def _add_source(self, ssrc: int) -> ReceiveStatistics:
        if len(self._sources) >= MAX_SOURCES:
            quietest = min(self._sources, key=lambda known: self._sources[known].heard_at)
            del self._sources[quietest]
        source = self._sources[ssrc] = ReceiveStatistics(self._clock_rate)
        return source

    # Feedback between reports

    def _receive_nack(self, nack: Nack) -> None:
        if nack.media_ssrc != self._ssrc or not self._options.nack:
            return
        self.counts["nacked"] += len(nack.sequences)
        round_trip = self._sending.round_trip
        if round_trip is None or round_trip <= MAX_ANSWER_ROUND_TRIP:
            self._nacked = ((self._nacked or ()) + nack.sequences)[:MAX_NACKED]

    def _send_transport_feedback(self) -> None:
        if self._transport is not None and self._deadline is not None:
            for feedback in self._transport.build(self._ssrc, self._media_ssrc):
                self.counts["transport_feedback"] += 1
                self._send_feedback(feedback)

    def _send_feedback(self, feedback: bytes) -> None:
        """At once: of two members nobody else would say the same (RFC 4585 section 3.5.1). A report comes
        first unless reduced size was agreed (section 3.1); it has no blocks: the regular one has them."""
        if not self._options.reduced_size:
            feedback = build_receiver_report(ReceiverReport(self._ssrc)) + self._description + feedback
        self.outgoing.append(feedback)
