"""Our stream as RTCP sees it: what we sent, what our sender reports say of it, and what the other side
answers, which is also how the round trip is measured."""

from __future__ import annotations

from collections import deque
from typing import NamedTuple

from voicegate.proto.rtcp import ReportBlock, SenderReport

_NTP_EPOCH = 2_208_988_800
"""Seconds from 1900 to 1970, RFC 5905 section 6."""
_REMEMBERED_REPORTS = 8
"""Reports of ours that a round trip may still refer to: half a minute of them."""
_MAX_FEEDBACK = 4
"""Reports about us that wait to be polled: 20 seconds of them."""


class Feedback(NamedTuple):
    """One report about our stream, as `fraction_lost` of 1 since the report before; times in seconds."""

    fraction_lost: float
    jitter: float
    round_trip: float | None
    """The newest measurement, not necessarily of this report."""
    at: float
    """When the report came, on the clock of `now`."""


class SendStatistics:
    """One stream of ours."""

    def __init__(self, clock_rate: int, now: float) -> None:
        self.packets = 0
        self.octets = 0
        self.about_us: ReportBlock | None = None
        """The last report about this stream."""
        self.round_trip: float | None = None
        self._clock_rate = clock_rate
        self._last_sent: tuple[int, float] = (0, now)
        self._packets_at_reports = (0, 0)
        self._said: deque[tuple[int, float]] = deque(maxlen=_REMEMBERED_REPORTS)
        self._feedback: deque[Feedback] = deque(maxlen=_MAX_FEEDBACK)

    def sent(self, timestamp: int, octets: int, now: float) -> None:
        """One RTP packet left, with `octets` of payload."""
        self.packets += 1
        self.octets += octets
        self._last_sent = (timestamp, now)

    def is_sender(self) -> bool:
        """Ask once for each report: whether we sent since the one before the last (RFC 3550 section 6.4)."""
        sending = self.packets > self._packets_at_reports[0]
        self._packets_at_reports = (self._packets_at_reports[1], self.packets)
        return sending

    def report(self, ssrc: int, blocks: tuple[ReportBlock, ...], now: float, wall: float) -> SenderReport:
        """Section 6.4.1: the RTP timestamp is the same instant as the NTP time, not that of a packet."""
        ntp = ntp_time(wall)
        self.said(ntp, now)
        timestamp, sent_at = self._last_sent
        return SenderReport(
            ssrc,
            ntp,
            (timestamp + round((now - sent_at) * self._clock_rate)) & 0xFFFFFFFF,
            self.packets & 0xFFFFFFFF,
            self.octets & 0xFFFFFFFF,
            blocks,
        )

    def said(self, ntp: int, now: float) -> None:
        """We sent our clock, in a sender report or as a receiver's reference time: an answer may come."""
        self._said.append((middle_of(ntp), now))

    def answered(self, middle: int, delay: int, now: float) -> bool:
        """The other side names the clock we sent and how long it kept it, in 1/65536 s. False when we never
        sent that. Section 6.4.1, figure 2: A - LSR - DLSR, with A and LSR on our own monotonic clock."""
        for said, sent_at in self._said:
            if said == middle:
                # Their clock may run a little faster than ours; a round trip is not negative.
                self.round_trip = max(0.0, now - sent_at - delay / 65536)
                return True
        return False

    def receive_report(self, block: ReportBlock, now: float) -> None:
        """What the other side says of this stream."""
        self.about_us = block
        self.answered(block.last_sr, block.delay_since_last_sr, now)
        self._feedback.append(
            Feedback(block.fraction_lost / 256, block.jitter / self._clock_rate, self.round_trip, now)
        )

    def poll_feedback(self) -> Feedback | None:
        return self._feedback.popleft() if self._feedback else None


def ntp_time(wall: float) -> int:
    """Unix time in seconds as the 64 bits of RFC 3550 section 4."""
    return int((wall + _NTP_EPOCH) * 0x1_0000_0000) & 0xFFFF_FFFF_FFFF_FFFF


def middle_of(ntp: int) -> int:
    """The 32 bits that reports answer with."""
    return ntp >> 16 & 0xFFFFFFFF
