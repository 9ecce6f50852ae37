"""One sender's packets, counted as RFC 3550 appendix A does: for our reports about it."""

from __future__ import annotations

from voicegate.proto.rtcp import ReportBlock
from voicegate.proto.rtp import timestamp_delta

_MAX_DROPOUT = 3000
_MAX_MISORDER = 100
"""RFC 3550 appendix A.1."""


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
        "missed",
        "received",
    )

    received: int
    """Packets counted."""
    jitter: float
    """On the RTP clock."""
    missed: int
    """Packets that are missing right before the last one; they may yet come."""
    _highest: int | None
    _expected_before: int
    _received_before: int

    def __init__(self, clock_rate: int) -> None:
        self._clock_rate = clock_rate
        self._last_sr = 0
        self._arrival_of_sr = 0.0
        self.heard_at = 0.0
        self._highest: int | None = None
        self._start(None)

    def update(self, sequence: int, timestamp: int, now: float) -> bool:
        """Count one packet; False when its sequence number makes no sense (yet)."""
        highest = self._highest
        if highest is None:
            self._start(sequence)
        elif sequence == highest + 1:  # nearly always
            self._highest = sequence
            self.missed = 0
        elif not self._update_sequence(sequence, highest):
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
        self._highest = sequence
        self._bad_sequence = -1
        self._cycles = 0
        self.received = 0
        self._received_before = 0
        self._expected_before = 0
        self._previous: tuple[int, float] | None = None  # timestamp and arrival
        self.jitter = 0.0
        self.missed = 0

    def _update_sequence(self, sequence: int, highest: int) -> bool:
        """update_seq of appendix A.1."""
        ahead = (sequence - highest) & 0xFFFF
        self.missed = 0
        if ahead < _MAX_DROPOUT:  # in order, with permissible gap
            if sequence < highest:
                self._cycles += 0x10000
            self._highest = sequence
            if ahead > 1:
                self.missed = ahead - 1
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
