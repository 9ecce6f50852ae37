"""When the client says nothing: its silence, given out while it lasts. Pure.

A client in DTX, or muted, sends no packets, and a turn detector behind us would hear neither sound nor
silence. So silence runs on in real time, in STEPs:

* After a packet that announces a pause (an Opus frame of 0 to 2 bytes, comfort noise) it follows real time at
  the distance of the gap's wait: a packet that jitter delays still finds its place.
* Without that, MUTE_AFTER goes by first, and what is due by then comes at once.

A packet may come later than that, with sound for time that silence was given out for. Its sound is not cut.
The line is then longer than the RTP time, so as much is owed and is taken from the next silence. It is owed
only as far as the packets behind it catch up with real time; a client whose RTP clock stands still in a pause
sends the same timestamps, never catches up, and owes nothing.
"""

from __future__ import annotations

import math
from typing import Final

from voicegate.media.codec import PCM_RATE
from voicegate.proto.rtp import timestamp_delta

STEP: Final = PCM_RATE * 40 // 1000
"""Samples at a time: half the wake-ups of speech, and fine enough for detectors that wait 200 ms and more."""
MUTE_AFTER: Final = 0.5
"""Seconds without a packet, none announced: longer than a roaming client's radio is usually silent, since
silence in the middle of a word makes a turn detector answer; a muted user waits for nothing that fast."""
_STEP_SECONDS = STEP / PCM_RATE
_TOLERANCE = 1e-6


class Pause:
    """The stretch behind the last packet. Times are the buffer's `now`; what is counted is samples of PCM."""

    __slots__ = (
        "_announced",
        "_clock_rate",
        "_due",
        "_late",
        "_late_due",
        "_late_timestamp",
        "_owed",
        "_unit",
        "given",
    )

    def __init__(self, clock_rate: int) -> None:
        self._clock_rate = clock_rate
        self._unit = max(1, PCM_RATE // clock_rate)  # samples that a slower clock cannot divide
        self._due = (
            math.inf
        )  # when a packet that begins at the line's end comes, were it as quick as the last
        self._announced = False
        self.given = 0
        """Samples of time that this pause has moved the line on, so far."""
        self._owed = 0
        self._late = 0  # samples given out twice that later packets have not confirmed yet ...
        self._late_due = 0.0  # ... since this pair of real and RTP time
        self._late_timestamp = 0

    def heard(self, due: float, announced: bool) -> None:
        """A packet was played; the one behind it comes at `due` unless a pause follows."""
        self._due = due
        self._announced = announced
        self.given = 0

    def announce(self) -> None:
        """The client says that a pause begins, in a packet without a place in time."""
        self._announced = True

    def next_deadline(self, wait: float) -> float:
        """When the next silence is due; infinite before the first packet. `wait` as in `due`."""
        behind = _STEP_SECONDS + wait
        return self._due + (behind if self._announced or behind > MUTE_AFTER else MUTE_AFTER)

    def due(self, now: float, wait: float) -> int:
        """Samples of silence that are due: whole STEPs, up to `wait` seconds behind real time."""
        if now < self.next_deadline(wait) - _TOLERANCE:
            return 0
        return int((now - wait - self._due + _TOLERANCE) * PCM_RATE) // STEP * STEP

    def give(self, samples: int) -> None:
        """The line has moved on by so much time without a packet."""
        self._due += samples / PCM_RATE
        self._announced = True
        self.given += samples

    def seconds_since(self, now: float) -> float:
        """Real time since the line's end."""
        return now - self._due

    def doubled(self, samples: int, arrival: float, timestamp: int, line_end: int) -> None:
        """A packet with this timestamp comes so much behind the line's end and is played nonetheless."""
        self._settle(line_end)
        self._late, self._late_due, self._late_timestamp = samples, arrival, timestamp

    def repay(self, samples: int, line_end: int) -> int:
        """How much to leave out of a silence of `samples` that begins where the line ends."""
        if not self._owed and not self._late:
            return 0
        self._settle(line_end)
        repaid = min(samples, self._owed) // self._unit * self._unit
        self._owed -= repaid
        return repaid

    def restart(self, now: float) -> None:
        """Another stream begins."""
        self.heard(now, False)
        self.forget_late()

    def forget_late(self) -> None:
        """Another RTP clock: whether packets catch up with the old one cannot be told any more."""
        self._late = 0

    def _settle(self, line_end: int) -> None:
        """Owe what the packets since have caught up with real time, as far as it was given out twice."""
        if self._late:
            elapsed = timestamp_delta(line_end, self._late_timestamp) / self._clock_rate
            caught_up = round((elapsed - (self._due - self._late_due)) * PCM_RATE)
            settled = min(self._late, max(0, caught_up))
            self._owed += settled
            self._late -= settled
            self._late_due, self._late_timestamp = self._due, line_end
