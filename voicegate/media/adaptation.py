"""How our audio is sent, as the client's receiver reports say it arrives.

    no loss worth speaking of    one copy of each frame, 32 kbit/s
    loss, RED negotiated         each packet carries the frame before as well (RFC 2198): 2 x 24 kbit/s
    loss, no RED                 Opus' in-band FEC inside 32 kbit/s, for as much loss as is reported

RED goes first. Its copy is as good as the frame, where FEC's is a coarse one, and it leaves the encoder in
its cheap modes, which have no FEC. Both restore a frame whose successor arrives.

Redundancy comes with the first report of ON_LOSS or more, and goes when the smoothed loss has fallen below
OFF_LOSS: at one report every 5 s that is a quarter of a minute after a single bad one, so that the two do not
alternate. Loss decides alone: 32 kbit/s of voice is rarely what fills a path, and to a client whose jitter or
round trip grows a lower bit rate would give a worse voice and no better path.
"""

from __future__ import annotations

from typing import Final, NamedTuple

ON_LOSS: Final = 0.02
"""One frame of each second of speech: more often than that, concealment is heard."""
OFF_LOSS: Final = 0.005
_FALL: Final = 0.6
"""How much of the old loss is left after one report with less."""
_LOSS_STEP: Final = 5
"""Percent. FEC's own bit rate follows it, so it does not follow each report."""
_MAX_EXPECTED: Final = 20
"""Percent. Beyond it one copy, in the next packet, is lost too often itself to spend more bits on."""


class Sending(NamedTuple):
    """How the next frames are sent."""

    bitrate: int
    """Of one copy, in bits a second."""
    redundant: bool = False
    """Each packet carries the frame before as well."""
    expected_loss: int = 0
    """Percent that in-band FEC is for; 0: no FEC."""


PLAIN: Final = Sending(32_000)
REDUNDANT: Final = Sending(24_000, redundant=True)


class Adaptation:
    """One call's. `red`: the client takes RED."""

    __slots__ = ("_loss", "_red", "sending")

    def __init__(self, *, red: bool) -> None:
        self.sending = PLAIN
        self._red = red
        self._loss = 0.0

    def receive(self, fraction_lost: float) -> Sending:
        """Take one receiver report's loss since the one before, 0 to 1. Returns how to send from now on."""
        self._loss = max(fraction_lost, fraction_lost + (self._loss - fraction_lost) * _FALL)
        lossy = self._loss >= (ON_LOSS if self.sending is PLAIN else OFF_LOSS)
        if not lossy:
            self.sending = PLAIN
        elif self._red:
            self.sending = REDUNDANT
        else:
            self.sending = Sending(PLAIN.bitrate, expected_loss=self._expected_loss())
        return self.sending

    def _expected_loss(self) -> int:
        steps = max(1, -(-self._loss * 100 // _LOSS_STEP))
        return min(_MAX_EXPECTED, int(steps) * _LOSS_STEP)
