"""How much may be in flight (RFC 9260 section 7.2), in bytes of chunks as sent."""

from __future__ import annotations

from typing import Final

from voicegate.proto.sctp.wire import MAX_PACKET

INITIAL_WINDOW: Final = 10 * MAX_PACKET
"""RFC 9260 section 7.2.1 starts at 4,404 bytes; RFC 6928 (TCP) and libwebrtc's SCTP at ten packets, so that a
session's first events need one round trip."""
MINIMUM_THRESHOLD: Final = 4 * MAX_PACKET
"""RFC 9260 section 7.2.3."""
MAXIMUM_WINDOW: Final = 1 << 20
"""A hundred times what a voice call's events need; no peer's buffer is expected to be larger."""


class Congestion:
    """Slow start, congestion avoidance, one halving per loss episode (fast recovery)."""

    __slots__ = ("_exit", "_partial", "_threshold", "window")

    def __init__(self) -> None:
        self.window = INITIAL_WINDOW
        self._threshold = MAXIMUM_WINDOW
        self._partial = 0
        self._exit: int | None = None

    @property
    def recovering(self) -> bool:
        return self._exit is not None

    def acknowledged(self, cumulative: int, size: int, limited: bool) -> None:
        """The cumulative point moved to this TSN and `size` bytes left the flight; `limited`: the window
        had been full."""
        if self._exit is not None:
            if cumulative < self._exit:
                return  # section 7.2.4: no growth in fast recovery
            self._exit = None
        if not limited:  # section 7.2.1: a window that is not used has not been shown to fit
            return
        if self.window <= self._threshold:
            self.window += min(size, MAX_PACKET)
        else:  # section 7.2.2
            self._partial += size
            if self._partial >= self.window:
                self._partial -= self.window
                self.window += MAX_PACKET
        self.window = min(self.window, MAXIMUM_WINDOW)

    def lost(self, highest: int) -> None:
        """Something below TSN `highest`, the last one sent, is missing (section 7.2.4)."""
        if self._exit is None:
            self._threshold = self.window = max(self.window // 2, MINIMUM_THRESHOLD)
            self._partial = 0
            self._exit = highest

    def timed_out(self) -> None:
        """T3 ran out (section 7.2.3)."""
        self._threshold = max(self.window // 2, MINIMUM_THRESHOLD)
        self.window = MAX_PACKET
        self._partial = 0
        self._exit = None

    def idle(self) -> None:
        """Nothing was sent for an RTO (section 7.2.1): what was known of the path fades."""
        self.window = max(self.window // 2, min(self.window, INITIAL_WINDOW))
