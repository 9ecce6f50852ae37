"""The way out: PCM from the agent, queued, and given out one 20-ms frame at a time on absolute deadlines.

An agent sends a whole answer faster than it can be heard. It waits here as PCM, so that an interruption is
dropping a queue, and is encoded only when it is due. (Where agent and client both speak G.711 it is that, and
nothing is encoded; samples are counted at 24 kHz all the same.) Rules:

* The first frame leaves at once when 20 ms are there. From then on frame n is due at origin + n * 20 ms, an
  absolute grid that does not drift.
* Underrun: the grid ends with the last frame. Audio that comes while that frame is still being heard goes on
  along the grid. Audio that comes later starts a new grid at once: marker bit (RFC 3551 section 4.1), and a
  timestamp moved on by the time that has really passed (RFC 3550 section 5.1), so that the silence is right.
* A late tick sends what is due, one frame a call, and the grid stays: up to CATCH_UP_FRAMES frames follow
  each other closely. A tick later than that does not burst: a new grid begins as after an underrun. Nothing
  is lost.
* What is less than a frame waits for more; `end_of_audio` or PARTIAL_GRACE sends it, filled with silence.
* An agent that let the queue run dry in this call is given a `Cushion`: its next grid begins that much later.
* `pause` stops within a frame and keeps everything; `resume` goes on with the next sample, with a timestamp
  moved on by the time that has passed. Audio may be pushed, ended and cleared meanwhile.
* After `keep_warm` a frame of silence is sent every SILENCE_SECONDS without another. It has a place on the
  grid and is nobody's audio: not counted as played, and nothing to be heard until.

After each of `push`, `end_of_audio`, `resume` and `handle_timeout` at most one frame is ready: take it with
`poll_frame`, then read `next_deadline`, which may already have passed.
"""

from __future__ import annotations

import math
from collections import deque
from dataclasses import dataclass
from typing import Final, NamedTuple

from voicegate.media.codec import FRAME_SAMPLES, FRAME_SECONDS, PCM_RATE
from voicegate.media.cushion import Cushion
from voicegate.media.sound import PCM, Sound

DEFAULT_LIMIT_SECONDS: Final = 600.0
"""The longest answer that is kept: ten minutes, several times what a model says in one turn; 29 MB."""
CATCH_UP_FRAMES: Final = 10
"""How many frames may follow each other closely: 200 ms. A client's jitter buffer plays late frames a little
faster until it is level again; a new grid instead would put a pause into the answer at each stall."""
PARTIAL_GRACE: Final = 0.1
"""How long less than a frame waits for the rest: longer than a live agent pauses between deltas."""
SILENCE_SECONDS: Final = 0.4
"""From one frame of silence to the next: as often as libopus sends one in DTX (RFC 7587 section 3.1.3)."""
_TOLERANCE = 1e-6
"""A timer that fires a rounding error early is on time."""


class Frame(NamedTuple):
    """One frame to encode and send now. `pcm` is always whole; `timestamp` is on the RTP clock."""

    pcm: bytes
    timestamp: int
    marker: bool


class Cleared(NamedTuple):
    """What `clear` found: samples sent since the start, and samples that will now never be heard."""

    played_samples: int
    dropped_samples: int


@dataclass(slots=True)
class PlayoutCounts:
    """Counters since the start."""

    frames: int = 0
    talk_spurts: int = 0
    late_ticks: int = 0
    """Frames sent a whole frame or more behind their deadline."""
    restarts: int = 0
    """Times the grid was left because a tick came too late to catch up."""
    overflow_samples: int = 0
    """Samples not taken because the queue was full."""
    dropped_samples: int = 0
    """Samples dropped by `clear`."""
    odd_bytes: int = 0
    """Half samples at the end of a push, cut off."""
    held_back: int = 0
    """Talk spurts that began later than they could, for an agent that delivers in fits."""
    pauses: int = 0
    silence_frames: int = 0
    """Sent to keep a silent client's path warm."""


class Playout:
    """One call's way out. `first_timestamp` is 32 random bits; `clock_rate` is the RTP clock."""

    def __init__(
        self,
        first_timestamp: int,
        clock_rate: int,
        *,
        sound: Sound = PCM,
        limit_seconds: float = DEFAULT_LIMIT_SECONDS,
    ) -> None:
        self.counts = PlayoutCounts()
        self._played = 0
        self._clock_rate = clock_rate
        self._frame_units = clock_rate * FRAME_SAMPLES // PCM_RATE
        self._limit = int(limit_seconds * PCM_RATE / FRAME_SAMPLES)
        self._sound = sound
        self._frame_bytes = sound.frame_bytes
        self._samples_per_byte = sound.samples_per_byte
        self._silence = sound.silent(FRAME_SAMPLES)
        # Each `_frame_bytes`; a shorter one is the end of an answer. With `_partial`, never more than
        # `_limit`, and one that `pause` took back.
        self._frames: deque[bytes] = deque()
        self._partial = b""
        self._partial_since = 0.0
        self._queued = 0  # bytes in _frames and _partial
        self._ready: bytes | None = None
        self._cushion = Cushion()
        self.paused = False
        self._first_timestamp = first_timestamp
        self._started: float | None = None  # when the first frame of all was due: zero of the RTP clock
        self._origin = -math.inf  # of the grid in force
        self._index = 0  # the next free place on it
        self._marker = False  # the next frame of the agent's audio comes after a silence
        self._heard_until: float | None = None
        self._silence_due = math.inf

    def push(self, pcm: bytes, now: float) -> None:
        """Queue PCM of any length. More than the limit, and half a sample at the end, is cut and counted."""
        if len(pcm) % self._sound.sample_bytes:
            self.counts.odd_bytes += 1
            pcm = pcm[:-1]
        if not pcm:
            return
        data, size = self._partial + pcm if self._partial else pcm, self._frame_bytes
        # What is less than a frame takes the place of one: so there is room for it whenever it is flushed.
        room = (self._limit - len(self._frames)) * size
        if len(data) > room:
            self.counts.overflow_samples += self._sound.samples(data[room:])
            data = data[:room]
        whole = len(data) // size
        self._queued += len(data) - len(self._partial)
        empty = not self._frames
        start = self._cushion.frames_came(whole, now) if whole else now
        self._frames.extend([data[at : at + size] for at in range(0, whole * size, size)])
        self._partial = data[whole * size :]
        self._partial_since = now
        if empty and self._frames:
            self._go_on(now, start)
        self._advance(now)

    def end_of_audio(self, now: float) -> None:
        """No more belongs to this answer: its last frame goes out in its turn, filled up with silence."""
        self._flush_partial(now)
        self._cushion.answer_over()
        if self._index == 0 and self._frames and now < self._origin:
            self._origin = now  # held back for what has come
        self._advance(now)

    def clear(self, now: float) -> Cleared:
        """Forget everything that is not sent, at once: the next `poll_frame` has nothing."""
        dropped = self.queued_samples
        self._take_back()
        self._cushion.answer_cut()
        self._frames.clear()
        self._partial = b""
        self._queued = 0
        self.counts.dropped_samples += dropped
        return Cleared(self._played, dropped)

    def pause(self, now: float) -> None:
        """Send no more of the agent's audio: the next `poll_frame` has none. Nothing is lost."""
        if not self.paused:
            self.paused = True
            self.counts.pauses += 1
            self._take_back()

    def resume(self, now: float) -> None:
        """Go on from the sample where `pause` stopped."""
        if self.paused:
            self.paused = False
            if self._frames:
                self._go_on(now, now)
            self._advance(now)

    def keep_warm(self, now: float) -> None:
        """From now on send a frame of silence whenever SILENCE_SECONDS pass without a frame."""
        self._silence_due = now + SILENCE_SECONDS

    def handle_timeout(self, now: float) -> None:
        """Call when `next_deadline` has come; earlier or later does no harm."""
        self._advance(now)

    def poll_frame(self) -> Frame | None:
        """The frame that is due, once. It counts as played from here on."""
        pcm = self._ready
        if pcm is None:
            return None
        self._ready = None
        timestamp = self._timestamp(self._index - 1)
        end = self._due()
        if self._silence_due != math.inf:
            self._silence_due = end - FRAME_SECONDS + SILENCE_SECONDS
        if pcm is self._silence:
            self.counts.silence_frames += 1
            return Frame(pcm, timestamp, False)
        self._heard_until = end
        self._played += int(len(pcm) * self._samples_per_byte)
        self.counts.frames += 1
        marker, self._marker = self._marker, False
        if len(pcm) != self._frame_bytes:
            pcm += self._silence[len(pcm) :]
        return Frame(pcm, timestamp, marker)

    def next_deadline(self) -> float | None:
        """When the next frame is due, or None while there is nothing to send."""
        if self._frames and not self.paused:
            return self._origin + self._index * FRAME_SECONDS  # as `_due`, for each frame
        deadline = self._silence_due
        if self._partial and not self.paused:
            deadline = min(deadline, self._partial_deadline())
        return None if deadline == math.inf else deadline

    @property
    def speaking(self) -> bool:
        """Whether any of the agent's audio is still to be sent."""
        return self.queued_samples > 0

    @property
    def played_samples(self) -> int:
        """Samples of the agent's audio given out so far, without the silence that fills a frame up."""
        return self._played

    @property
    def queued_samples(self) -> int:
        """Samples pushed and neither given out nor dropped."""
        ready = self._ready
        size = self._queued + (0 if ready is None or ready is self._silence else len(ready))
        return int(size * self._samples_per_byte)

    def heard_until(self) -> float | None:
        """When the agent's last frame given out has been spoken to its end here; None before the first."""
        return self._heard_until

    def statistics(self) -> PlayoutCounts:
        return self.counts

    def _advance(self, now: float) -> None:
        """Make at most one frame ready, if its time has come."""
        if self._ready is not None:
            return
        if self.paused:
            self._advance_silence(now)
            return
        if not self._frames and self._partial and now + _TOLERANCE >= self._partial_deadline():
            self._flush_partial(now)
        if not self._frames:
            self._advance_silence(now)
            return
        late = now - self._due()
        if late < -_TOLERANCE:
            return
        if late > CATCH_UP_FRAMES * FRAME_SECONDS + _TOLERANCE:
            self.counts.restarts += 1
            self._new_grid(now)
        elif late >= FRAME_SECONDS:
            self.counts.late_ticks += 1
        self._ready = self._frames.popleft()
        self._queued -= len(self._ready)
        self._take_place()

    def _advance_silence(self, now: float) -> None:
        if now + _TOLERANCE >= self._silence_due:
            self._origin, self._index, self._marker = now, 0, True
            self._ready = self._silence
            self._take_place()

    def _take_place(self) -> None:
        if self._started is None:
            self._started = self._origin
        self._index += 1

    def _take_back(self) -> None:
        """A frame that nobody fetched never left: its place on the grid and the RTP clock is free again."""
        ready = self._ready
        if ready is not None and ready is not self._silence:
            self._ready = None
            self._index -= 1
            self._frames.appendleft(ready)
            self._queued += len(ready)

    def _flush_partial(self, now: float) -> None:
        """Make less than a frame the next frame of the queue; `poll_frame` fills it up."""
        if not self._partial:
            return
        empty = not self._frames
        self._frames.append(self._partial)
        self._partial = b""
        if empty:
            self._go_on(now, now)

    def _go_on(self, now: float, start: float) -> None:
        """There is something to send again: along the grid if its next place is still to come, else from
        `start` on, or from now."""
        if not self.paused and now > self._due() + _TOLERANCE:
            if start > now:
                self.counts.held_back += 1
            self._new_grid(max(now, start))

    def _new_grid(self, origin: float) -> None:
        self._origin = origin
        self._index = 0
        self._marker = True
        self.counts.talk_spurts += 1

    def _due(self) -> float:
        """When the next place on the grid is, whether there is a frame for it or not."""
        return self._origin + self._index * FRAME_SECONDS

    def _partial_deadline(self) -> float:
        return max(self._partial_since, self._due()) + PARTIAL_GRACE

    def _timestamp(self, place: int) -> int:
        """RFC 3550 section 5.1: it counts on through silence, from a start nobody can guess."""
        assert self._started is not None, "only a frame on a grid has a timestamp"
        elapsed = round((self._origin - self._started) * self._clock_rate)
        return (self._first_timestamp + elapsed + place * self._frame_units) & 0xFFFFFFFF
