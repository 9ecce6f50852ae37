"""A call's sound on one time axis: the user on the left, the agent on the right, aligned to the sample. Pure.

Zero of the axis is the moment the call was allocated; all times are of that clock. Samples are 24 kHz.

* The agent's frames stand where they were due: the RTP timestamp says it to the sample, as it counts real
  time through silence (`media.playout`). What was dropped before it was sent is not there.
* The user's line is what the agent hears, concealment and silence included. It begins when the first packet
  came, and goes on from there without a seam, for it is sample-true in itself (`media.receive`).
* Where that line and real time part, silence gives way and never speech. A line that is behind for longer
  than BEHIND_SECONDS, or by more than HOLD_SECONDS, is filled with silence up to now: its client was muted,
  or has restarted its clock. A line that is ahead by more than AHEAD_SECONDS (a stall that was made up for
  all at once) loses quiet samples until it is level again.
* `take` gives out blocks that are HOLD_SECONDS old, so that what comes a little late still finds its place.
"""

from __future__ import annotations

from array import array
from dataclasses import dataclass
from typing import Final, NamedTuple, Protocol

from voicegate.media.codec import PCM_RATE
from voicegate.proto.rtp import timestamp_delta

BLOCK_SAMPLES: Final = PCM_RATE // 5
"""What `take` gives at a time: 200 ms, ten codec frames."""
HOLD_SECONDS: Final = 0.6
"""A client with discontinuous transmission sends something every 400 ms (libopus), and the playout catches up
on 200 ms; the two do not come together."""
BEHIND_SECONDS: Final = 1.0
"""How long a line may be behind: the longest stall that `media.receive` expects to be made up for."""
BEHIND_SLACK: Final = 0.1
"""And by how much for as long as it likes: packets of an ordinary network stray by less."""
AHEAD_SECONDS: Final = 0.25
"""The longest packet (120 ms, RFC 6716 section 2), and the same slack."""
MAX_AHEAD: Final = 10 * PCM_RATE
"""Samples kept ahead of time: what `media.receive` may give out in one burst."""
QUIET: Final = 100
"""The largest sample of what may be left out: -50 dB of full scale, below the noise of a quiet room."""
AGENT_SLACK: Final = 0.5
"""How far a frame's timestamp may be from the time it was sent: more than the playout catches up on."""


class Tap(Protocol):
    """Where a call leaves what is to be recorded. Costs next to nothing and never raises."""

    def hear(self, pcm: bytes, at: float) -> None:
        """The next piece of the user's line, as it goes to the agent at `at`: 24 kHz s16le mono."""

    def say(self, pcm: bytes, timestamp: int, at: float) -> None:
        """A frame of the agent's that leaves for the client at `at`, with its RTP timestamp."""

    def note(self, source: str, event: bytes) -> None:
        """An event, JSON, that `source` (client, sideband, agent or voicegate) brought into the call now."""


class Block(NamedTuple):
    """A stretch of both sides, of the same length: s16le mono each."""

    user: bytes
    agent: bytes


@dataclass(slots=True)
class RecordingCounts:
    """Samples since the start."""

    padded: int = 0
    """Silence in the user's line for what did not come."""
    skipped: int = 0
    """Quiet samples left out because the user's line was ahead of time."""
    dropped: int = 0
    """The user's samples beyond MAX_AHEAD."""
    missed: int = 0
    """The user's samples that the recorder had no room for; silence is in their place."""


class StereoLine:
    """Both sides of one call. `origin` is zero of the axis; `clock_rate` the clock of the agent's RTP."""

    def __init__(self, origin: float, clock_rate: int) -> None:
        self.counts = RecordingCounts()
        self._origin = origin
        self._clock_rate = clock_rate
        self._user = _Side()
        self._agent = _Side()
        self._user_began = False
        self._behind_since: float | None = None
        self._agent_mark: tuple[int, int] | None = None
        """A timestamp of the agent's, and its place on the axis in samples."""

    @property
    def seconds(self) -> float:
        """What was given out so far."""
        return self._user.start / PCM_RATE

    def put_user(self, pcm: bytes, at: float, missed: int = 0) -> None:
        """The next of the user's line. `missed`: samples before it that got lost on their way here."""
        place, user = self._place(at), self._user
        if not self._user_began:
            self._user_began = True
            user.pad_to(place)
        if missed:
            self.counts.missed += missed
            user.pad_to(user.end + min(missed, MAX_AHEAD))
        self._catch_up(place, at)
        ahead = user.end + len(pcm) // 2 - place
        if ahead > AHEAD_SECONDS * PCM_RATE and _is_quiet(pcm):
            kept = max(0, len(pcm) // 2 - ahead)
            self.counts.skipped += len(pcm) // 2 - kept
            pcm = pcm[: 2 * kept]
        elif ahead > MAX_AHEAD:
            self.counts.dropped += len(pcm) // 2
            return
        user.put(pcm)

    def put_agent(self, pcm: bytes, timestamp: int, at: float) -> None:
        """A frame of the agent's at its place."""
        sent = self._place(at)
        place = sent
        if self._agent_mark is not None:
            known, known_place = self._agent_mark
            place = known_place + timestamp_delta(timestamp, known) * PCM_RATE // self._clock_rate
            if abs(place - sent) > AGENT_SLACK * PCM_RATE:
                place = sent  # another clock
        self._agent_mark = (timestamp, place)
        self._agent.pad_to(place)
        self._agent.put(pcm)

    def take(self, now: float) -> Block | None:
        """The next BLOCK_SAMPLES of both sides, once they are old enough."""
        until = self._user.start + BLOCK_SAMPLES
        if until > self._place(now - HOLD_SECONDS):
            return None
        return self._cut(until)

    def finish(self, now: float) -> Block | None:
        """What is left, a block of at most BLOCK_SAMPLES at a time, until None: nothing comes any more."""
        end = max(self._place(now), self._user.end, self._agent.end)
        until = min(end, self._user.start + BLOCK_SAMPLES)
        return self._cut(until) if until > self._user.start else None

    def _cut(self, until: int) -> Block:
        if self._user_began:
            self.counts.padded += max(0, until - self._user.end)
        return Block(self._user.cut(until), self._agent.cut(until))

    def _catch_up(self, place: int, at: float) -> None:
        """Fill the user's line up to `place` when it has been behind for too long."""
        if place - self._user.end <= BEHIND_SLACK * PCM_RATE:
            self._behind_since = None
        elif self._behind_since is None:
            self._behind_since = at
        elif at - self._behind_since > BEHIND_SECONDS:
            self._behind_since = None
            self.counts.padded += place - self._user.end
            self._user.pad_to(place)

    def _place(self, at: float) -> int:
        return round((at - self._origin) * PCM_RATE)


class _Side:
    """One side from `start`, which is given out up to there, to `end`. In samples on the axis."""

    __slots__ = ("_data", "start")

    def __init__(self) -> None:
        self.start = 0
        self._data = bytearray()

    @property
    def end(self) -> int:
        return self.start + len(self._data) // 2

    def pad_to(self, place: int) -> None:
        if place > self.end:
            self._data += bytes(2 * (place - self.end))

    def put(self, pcm: bytes) -> None:
        self._data += pcm

    def cut(self, until: int) -> bytes:
        size = 2 * (until - self.start)
        piece = bytes(self._data[:size]).ljust(size, b"\0")
        del self._data[:size]
        self.start = until
        return piece


def _is_quiet(pcm: bytes) -> bool:
    samples = array("h", pcm)  # s16le, on the little-endian machines that this runs on
    return not samples or (max(samples) <= QUIET and min(samples) >= -QUIET)
