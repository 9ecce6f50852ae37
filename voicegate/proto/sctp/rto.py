"""How long to wait for an acknowledgement (RFC 9260 section 6.3)."""

from __future__ import annotations

from typing import Final

RTO_INITIAL: Final = 0.5
"""Seconds. RFC 9260 section 16 says 1; libwebrtc takes 0.5, for ICE and DTLS have shown the path."""
RTO_MIN: Final = 0.2
"""Seconds. RFC 9260 section 16 says 1, libwebrtc takes 0.4; Linux's TCP takes 0.2 for the reason that holds
here: a peer may delay an acknowledgement by 0.2 s (RFC 9260 section 6.2). The I bit on the last chunk of what
there is to send (RFC 7053) spares us that delay, and 0.2 s is what a lost event costs a conversation."""
RTO_MAX: Final = 4.0
"""Seconds. RFC 9260 section 16 says 60; a call without a sign of life ends after about 30 s, and a path that
comes back has to be noticed before."""
ALPHA: Final = 1 / 8
BETA: Final = 1 / 4
GRANULARITY: Final = 0.01
"""Seconds: what a timer of ours may be late. RFC 9260 section 6.3.1, rule C3: a variance of zero counts as
this."""


class RetransmissionTimeout:
    """SRTT, RTTVAR and the RTO that follows from them, in seconds."""

    __slots__ = ("_variance", "round_trip", "value")

    def __init__(self) -> None:
        self.value = RTO_INITIAL
        self.round_trip: float | None = None
        """SRTT, None before the first measurement."""
        self._variance = 0.0

    def measured(self, seconds: float) -> None:
        """A round trip of a chunk that was sent once (rule C5: Karn's)."""
        if self.round_trip is None:  # C2
            self.round_trip = seconds
            self._variance = seconds / 2
        else:  # C3
            self._variance += BETA * (abs(self.round_trip - seconds) - self._variance)
            self.round_trip += ALPHA * (seconds - self.round_trip)
        timeout = self.round_trip + 4 * max(self._variance, GRANULARITY / 4)
        self.value = min(max(timeout, RTO_MIN), RTO_MAX)  # C6, C7

    def back_off(self) -> None:
        """The timer ran out (section 6.3.3, rule E2)."""
        self.value = min(self.value * 2, RTO_MAX)
