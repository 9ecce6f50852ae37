"""RTCP as one end of one call keeps it: what we hear, what we say of it, and when.

`ReceiveStatistics` counts one sender's packets as RFC 3550 appendix A does. `RtcpReporter` sends a report
about every five seconds and reads the other side's. The same verbs as every protocol object: one mutation,
drain `poll_transmit`, read `next_deadline`.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Callable
from typing import Final, NamedTuple

from voicegate.proto.rtcp import (
    ReceiverReport,
    ReportBlock,
    RtcpPacket,
    SenderReport,
    build_bye,
    build_cname,
    build_receiver_report,
    build_sender_report,
    parse_rtcp_untrusted,
)
from voicegate.proto.rtp import timestamp_delta

MIN_INTERVAL: Final = 5.0
"""RFC 3550 section 6.2, in seconds. It always decides here: 5 % of a voice call would carry the two members'
reports every second."""
MAX_SOURCES: Final = 4
"""SSRCs counted at once: a client has one, and one more after it restarts its sender."""
_COMPENSATION = 1.21828
"""e - 3/2, RFC 3550 section 6.3.1."""
_MAX_DROPOUT = 3000
_MAX_MISORDER = 100
"""RFC 3550 appendix A.1."""
_NTP_EPOCH = 2_208_988_800
"""Seconds from 1900 to 1970, RFC 5905 section 6."""
_REMEMBERED_REPORTS = 8
"""Sender reports a round trip may still refer to: half a minute of them."""


class Quality(NamedTuple):
    """What both sides know of the call's network. Losses are fractions of 1, times are seconds."""

    round_trip: float | None
    """From the last report about us."""
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


class ReceiveStatistics:
    """One sender as RFC 3550 appendices A.1, A.3 and A.8 count it.

    There is no probation: SRTP has authenticated every packet before it comes here.
    """

    __slots__ = (
        "_arrival_of_sr",
        "_bad_sequence",
        "_base",
        "_clock_rate",
        "_cycles",
        "_expected_before",
        "_highest",
        "_last_sr",
        "_previous",
        "_received_before",
        "heard_at",
        "jitter",
        "received",
    )

    received: int
    """Packets counted."""
    jitter: float
    """On the RTP clock."""
    _expected_before: int
    _received_before: int

    def __init__(self, clock_rate: int) -> None:
        self._clock_rate = clock_rate
        self._last_sr = 0
        self._arrival_of_sr = 0.0
        self.heard_at = 0.0
        self._start(None)

    def update(self, sequence: int, timestamp: int, now: float) -> bool:
        """Count one packet; False when its sequence number makes no sense (yet)."""
        if self._highest is None:
            self._start(sequence)
        elif not self._update_sequence(sequence, self._highest):
            return False
        self.received += 1
        self.heard_at = now
        self._update_jitter(timestamp, now)
        return True

    def receive_sender_report(self, ntp: int, now: float) -> None:
        """Remember the sender's clock, for the LSR and DLSR of our next report (section 6.4.1)."""
        self._last_sr = ntp >> 16 & 0xFFFFFFFF
        self._arrival_of_sr = now

    @property
    def expected(self) -> int:
        """Packets the sender has sent, by its sequence numbers."""
        return 0 if self._highest is None else self._cycles + self._highest - self._base + 1

    @property
    def lost(self) -> int:
        """Negative when there were more duplicates than losses."""
        return self.expected - self.received

    def report(self, ssrc: int, now: float) -> ReportBlock:
        """What we say of this sender; fraction lost counts from the last call of this method (A.3)."""
        expected, received = self.expected, self.received
        expected_interval = expected - self._expected_before
        lost_interval = expected_interval - (received - self._received_before)
        self._expected_before, self._received_before = expected, received
        fraction = 0
        if expected_interval > 0 and lost_interval > 0:
            fraction = min(255, (lost_interval << 8) // expected_interval)  # all lost would be 256
        delay = min(0xFFFFFFFF, max(0, int((now - self._arrival_of_sr) * 65536))) if self._last_sr else 0
        return ReportBlock(
            ssrc,
            fraction,
            max(-0x800000, min(0x7FFFFF, self.lost)),
            (self._cycles + (self._highest or 0)) & 0xFFFFFFFF,
            min(0xFFFFFFFF, int(self.jitter)),
            self._last_sr,
            delay,
        )

    def _start(self, sequence: int | None) -> None:
        """init_seq of appendix A.1."""
        self._base = sequence or 0
        self._highest: int | None = sequence
        self._bad_sequence = -1
        self._cycles = 0
        self.received = 0
        self._received_before = 0
        self._expected_before = 0
        self._previous: tuple[int, float] | None = None  # timestamp and arrival
        self.jitter = 0.0

    def _update_sequence(self, sequence: int, highest: int) -> bool:
        """update_seq of appendix A.1."""
        ahead = (sequence - highest) & 0xFFFF
        if ahead < _MAX_DROPOUT:  # in order, with permissible gap
            if sequence < highest:
                self._cycles += 0x10000
            self._highest = sequence
        elif ahead <= 0x10000 - _MAX_MISORDER:  # a very large jump
            if sequence != self._bad_sequence:
                self._bad_sequence = (sequence + 1) & 0xFFFF
                return False
            # Two in a row: the other side restarted without telling.
            self._start(sequence)
        return True  # and else: duplicate or reordered

    def _update_jitter(self, timestamp: int, now: float) -> None:
        """Appendix A.8, from differences only, so that neither clock's wrap or start matters."""
        if self._previous is not None:
            before, then = self._previous
            spread = abs((now - then) * self._clock_rate - timestamp_delta(timestamp, before))
            self.jitter += (spread - self.jitter) / 16
        self._previous = (timestamp, now)


class RtcpReporter:
    """Reports of one RTP session. `random` gives floats in [0, 1); `cname` is this call's canonical name."""

    def __init__(
        self, ssrc: int, cname: str, clock_rate: int, random: Callable[[], float], now: float
    ) -> None:
        self._ssrc = ssrc
        self._cname = cname.encode()
        self._clock_rate = clock_rate
        self._random = random
        self._sources: dict[int, ReceiveStatistics] = {}
        self._reported_at = now
        self._packets = 0
        self._octets = 0
        self._packets_at_reports = (0, 0)
        self._last_sent: tuple[int, float] = (0, now)
        self._sent_reports: deque[tuple[int, float]] = deque(maxlen=_REMEMBERED_REPORTS)
        self._about_us: ReportBlock | None = None
        self._round_trip: float | None = None
        self._outgoing: deque[bytes] = deque(maxlen=2)  # a report and a BYE at most
        self._deadline: float | None = now + self._interval(MIN_INTERVAL / 2)  # the first, section 6.2

    def sent(self, timestamp: int, octets: int, now: float) -> None:
        """One RTP packet of ours left, with `octets` of payload."""
        self._packets += 1
        self._octets += octets
        self._last_sent = (timestamp, now)

    def received(self, ssrc: int, sequence: int, timestamp: int, now: float) -> None:
        """One authenticated RTP packet of theirs came."""
        source = self._sources.get(ssrc)
        if source is None:
            source = self._add_source(ssrc)
        source.update(sequence, timestamp, now)

    def receive_untrusted(self, data: bytes, now: float) -> list[RtcpPacket]:
        """Take one decrypted RTCP datagram and give back what was in it. Raises BadPacket."""
        packets = parse_rtcp_untrusted(data)
        for packet in packets:
            if isinstance(packet, SenderReport):
                source = self._sources.get(packet.ssrc)
                if source is not None:
                    source.receive_sender_report(packet.ntp, now)
            if isinstance(packet, SenderReport | ReceiverReport):
                for block in packet.blocks:
                    if block.ssrc == self._ssrc:
                        self._receive_report_about_us(block, now)
        return packets

    def handle_timeout(self, now: float, wall: float) -> None:
        """Make the report that is due. `wall` is Unix time in seconds: a sender report says it."""
        if self._deadline is None or now < self._deadline:
            return
        self._outgoing.append(self._report(now, wall))
        self._deadline = now + self._interval(MIN_INTERVAL)

    def poll_transmit(self) -> bytes | None:
        """The next datagram to protect and send."""
        return self._outgoing.popleft() if self._outgoing else None

    def next_deadline(self) -> float | None:
        return self._deadline

    def close(self, now: float, wall: float, reason: str = "") -> None:
        """Say BYE, in a compound packet as RFC 3550 section 6.1 wants it. Nothing is sent after that."""
        if self._deadline is None:
            return
        self._deadline = None
        self._outgoing.append(self._report(now, wall) + build_bye([self._ssrc], reason.encode()))

    def statistics(self) -> Quality:
        about_us = self._about_us
        last = max(self._sources.values(), key=lambda source: source.heard_at, default=None)
        return Quality(
            round_trip=self._round_trip,
            sent_packets=self._packets,
            sent_octets=self._octets,
            sent_lost=about_us.cumulative_lost if about_us else 0,
            sent_fraction_lost=about_us.fraction_lost / 256 if about_us else 0.0,
            sent_jitter=about_us.jitter / self._clock_rate if about_us else 0.0,
            received_packets=sum(source.received for source in self._sources.values()),
            received_lost=sum(source.lost for source in self._sources.values()),
            received_jitter=last.jitter / self._clock_rate if last else 0.0,
        )

    def _interval(self, minimum: float) -> float:
        """RFC 3550 section 6.3.1: half to one and a half times, so that two ends do not fall into step."""
        return minimum * (self._random() + 0.5) / _COMPENSATION

    def _report(self, now: float, wall: float) -> bytes:
        """SR if we sent since the last report or the one before it, else RR (section 6.4); and the CNAME."""
        blocks = tuple(
            source.report(ssrc, now)
            for ssrc, source in self._sources.items()
            if source.heard_at > self._reported_at
        )
        self._reported_at = now
        sending = self._packets > self._packets_at_reports[0]
        self._packets_at_reports = (self._packets_at_reports[1], self._packets)
        if sending:
            report = build_sender_report(self._sender_report(blocks, now, wall))
        else:
            report = build_receiver_report(ReceiverReport(self._ssrc, blocks))
        return report + build_cname(self._ssrc, self._cname)

    def _sender_report(self, blocks: tuple[ReportBlock, ...], now: float, wall: float) -> SenderReport:
        """Section 6.4.1: the RTP timestamp is the same instant as the NTP time, not that of a packet."""
        ntp = int((wall + _NTP_EPOCH) * 0x1_0000_0000) & 0xFFFF_FFFF_FFFF_FFFF
        timestamp, sent_at = self._last_sent
        self._sent_reports.append((ntp >> 16 & 0xFFFFFFFF, now))
        return SenderReport(
            self._ssrc,
            ntp,
            (timestamp + round((now - sent_at) * self._clock_rate)) & 0xFFFFFFFF,
            self._packets & 0xFFFFFFFF,
            self._octets & 0xFFFFFFFF,
            blocks,
        )

    def _add_source(self, ssrc: int) -> ReceiveStatistics:
        if len(self._sources) >= MAX_SOURCES:
            quietest = min(self._sources, key=lambda known: self._sources[known].heard_at)
            del self._sources[quietest]
        source = self._sources[ssrc] = ReceiveStatistics(self._clock_rate)
        return source

    def _receive_report_about_us(self, block: ReportBlock, now: float) -> None:
        """Section 6.4.1, figure 2: A - LSR - DLSR, with A and LSR on our own monotonic clock."""
        self._about_us = block
        for middle, sent_at in self._sent_reports:
            if middle == block.last_sr:
                # Their clock may run a little faster than ours; a round trip is not negative.
                self._round_trip = max(0.0, now - sent_at - block.delay_since_last_sr / 65536)
