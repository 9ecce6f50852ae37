"""Which of the agent's words are in the air: the output audio buffer of one call. Pure.

The call's playout knows samples only. Here each stretch of samples belongs to an item of a response, so that
three things can be said truly: when a response began to be heard (`started`), when its last sample has been
spoken (`stopped`), and, when it is cut short (`cleared`), how much of each of its items was heard.

A voice is one response's audio. Its life: queued → started → stopped | cleared. One that is cut before its
first frame leaves none of these events: nobody heard it.

Positions are samples since the call's start: played + queued is the position of the next sample queued, and
`clear` gives the places of what it drops to what comes after.
"""

from __future__ import annotations

import math
from collections import deque
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Final, Literal, NamedTuple, Protocol

from voicegate.media.codec import FRAME_SAMPLES, FRAME_SECONDS, PCM_RATE
from voicegate.media.sound import Line

CLIENT_DELAY: Final = 0.08
"""Seconds from our sending a sample to its sound: a path of about 25 ms, 40 ms of jitter buffer and 15 ms of
sound card, the middle of what is published for browsers. What was sent more recently has not been heard."""

MAX_VOICES: Final = 64
"""Responses queued behind each other. An agent makes one at a time, faster than it is heard."""

MAX_PIECES: Final = 64
"""Audio parts of one response: models make one or two."""

_TOLERANCE: Final = 1e-6


class CallMedia(Protocol):
    """What a conversation needs of its call."""

    @property
    def listening(self) -> bool:
        """The client takes audio."""

    @property
    def line(self) -> Line:
        """How sound is written."""

    @property
    def played_samples(self) -> int:
        """Samples (24 kHz) of the agent's audio sent since the start, without the silence that fills a
        frame."""

    @property
    def queued_samples(self) -> int:
        """Samples neither sent nor dropped."""

    def heard_until(self) -> float | None:
        """When the last frame sent has been spoken to its end, seen from here; None before the first."""

    def play(self, pcm: bytes, now: float) -> None:
        """Queue audio, as `line.said`."""

    def end_of_audio(self, now: float) -> None:
        """A last partial frame may go."""

    def stop_playing(self, now: float) -> bool:
        """Drop what is queued, at once, and a pause with it. True when there was something."""

    def pause_playing(self, now: float) -> None:
        """Send no more of it; nothing is lost."""

    def resume_playing(self, now: float) -> None:
        """Go on from the next sample."""

    def listen_to_output(self, listener: Callable[[bytes, float], None] | None) -> None:
        """Give each frame that is sent, 24 kHz s16le mono, and the time to this one; None: to nobody."""

    def poll_audio(self) -> bytes | None:
        """The next stretch of the microphone: 24 kHz s16le mono, any whole number of samples."""

    def flush_microphone(self, now: float) -> None:
        """Give out what the receive buffer holds; gaps in it are given up."""

    def drop_microphone(self, now: float) -> None:
        """Forget what the receive buffer holds."""


class Heard(NamedTuple):
    """An audio part that was cut short: this much of it was heard."""

    response_id: str
    item_id: str
    content_index: int
    milliseconds: int


class BufferEvent(NamedTuple):
    """`output_audio_buffer.<kind>`."""

    kind: Literal["started", "stopped", "cleared"]
    response_id: str


class Playback:
    """One call's output audio buffer, by response and item."""

    def __init__(self, media: CallMedia, *, client_delay: float = CLIENT_DELAY) -> None:
        self.dropped_deltas = 0
        """Deltas beyond MAX_VOICES or MAX_PIECES."""
        self.overflowing = ""
        """The last response of which there was too much to keep."""
        self._media = media
        self._delay = client_delay
        self._voices: dict[str, _Voice] = {}
        self._events: deque[BufferEvent] = deque()
        self._deadline: float | None = None

    def play(self, response_id: str, item_id: str, content_index: int, pcm: bytes, now: float) -> None:
        """Queue a delta. The caller keeps out what was interrupted or is over."""
        if not self._media.listening:
            return
        voice = self._voices.get(response_id)
        start = self._position()
        if voice is None:
            if len(self._voices) >= MAX_VOICES:
                self.dropped_deltas += 1
                return
            voice = self._voices[response_id] = _Voice(response_id, start)
        piece = voice.pieces.get((item_id, content_index))
        if piece is None:
            if len(voice.pieces) >= MAX_PIECES:
                self.dropped_deltas += 1
                return
            piece = voice.pieces[item_id, content_index] = _Piece()
        self._media.play(pcm, now)
        voice.end = self._position()
        samples = self._media.line.said.samples(pcm)
        if voice.end - start < samples:
            self.overflowing = response_id
        piece.add(start, voice.end, samples)
        self.advance(now)

    def audio_done(self, response_id: str, item_id: str, now: float) -> None:
        """The last delta of an item has come."""
        voice = self._voices.get(response_id)
        if voice is None:
            return
        for (piece_item, _), piece in voice.pieces.items():
            piece.complete |= piece_item == item_id or not item_id
        self._media.end_of_audio(now)
        self.advance(now)

    def response_done(self, response_id: str, now: float) -> None:
        """No more audio is forthcoming."""
        voice = self._voices.get(response_id)
        if voice is not None:
            if not voice.over:
                voice.over = True
                self._media.end_of_audio(now)
            self.advance(now)

    def interrupt(self, now: float) -> list[Heard]:
        """Drop everything that is queued, of all responses. Returns what was cut short, in order."""
        heard = self._heard_position(now)
        cut = [
            Heard(voice.response_id, item_id, index, milliseconds)
            for voice in self._voices.values()
            for (item_id, index), piece in voice.pieces.items()
            if (milliseconds := piece.cut_at(heard)) is not None
        ]
        self._media.stop_playing(now)
        for voice in self._voices.values():
            if voice.started:
                self._events.append(BufferEvent("cleared", voice.response_id))
        self._voices.clear()
        self._deadline = None
        return cut

    def advance(self, now: float) -> None:
        """See what has been sent meanwhile."""
        played, until = self._media.played_samples, self._media.heard_until()
        for voice in list(self._voices.values()):
            if not voice.started and played > voice.start and voice.end > voice.start:
                voice.started = True
                self._events.append(BufferEvent("started", voice.response_id))
            spoken = until is None or now >= until - _TOLERANCE or played > voice.end
            if voice.over and played >= voice.end and spoken:
                if voice.started:
                    self._events.append(BufferEvent("stopped", voice.response_id))
                del self._voices[voice.response_id]
        self._deadline = self._predict(played, until, now)

    def poll_event(self) -> BufferEvent | None:
        return self._events.popleft() if self._events else None

    def next_deadline(self) -> float | None:
        """When `advance` is expected to see something."""
        return self._deadline

    def holds(self, response_id: str) -> bool:
        """Whether audio of this response is queued or in the air."""
        return response_id in self._voices

    @property
    def audible(self) -> bool:
        """Whether a response has begun to be heard and is not over, also while it is paused."""
        return any(voice.started for voice in self._voices.values())

    @property
    def responses(self) -> list[str]:
        """Whose audio is queued or in the air."""
        return list(self._voices)

    def _position(self) -> int:
        return self._media.played_samples + self._media.queued_samples

    def _heard_position(self, now: float) -> int:
        """The sample being heard at the client now. Underruns younger than the delay make it a little low."""
        until = self._media.heard_until()
        if until is None:
            return 0
        unheard = max(0.0, until + self._delay - now)
        return max(0, self._media.played_samples - math.ceil(unheard * PCM_RATE))

    def _predict(self, played: int, until: float | None, now: float) -> float | None:
        if until is None:
            return None  # nothing is sent before the client is connected; `advance` is called then
        at: float | None = None
        for voice in self._voices.values():
            if not voice.started and voice.end > voice.start:
                # The frame with its first sample is due when the frames before it have been spoken.
                due = until + (max(0, voice.start - played) // FRAME_SAMPLES) * FRAME_SECONDS
            elif voice.over:
                due = until + math.ceil(max(0, voice.end - played) / FRAME_SAMPLES) * FRAME_SECONDS
            else:
                continue
            at = due if at is None else min(at, due)
        # Playout may be late, or wait for the rest of a frame: look again once a frame, never at once.
        return at if at is None or at > now + _TOLERANCE else now + FRAME_SECONDS


@dataclass(slots=True)
class _Piece:
    """One audio part of an item."""

    received: int = 0
    """Samples that the agent sent."""
    complete: bool = False
    segments: list[tuple[int, int]] = field(default_factory=list)
    """Where its samples lie, start to end; one unless parts are interleaved."""

    def add(self, start: int, end: int, samples: int) -> None:
        self.received += samples
        if self.segments and self.segments[-1][1] == start:
            self.segments[-1] = (self.segments[-1][0], end)
        elif end > start:
            self.segments.append((start, end))

    def cut_at(self, heard_position: int) -> int | None:
        """Whole milliseconds heard, never more than came; None when all of it was."""
        heard = sum(max(0, min(heard_position, end) - start) for start, end in self.segments)
        if self.complete and heard >= self.received:
            return None
        return min(heard, self.received) * 1000 // PCM_RATE


@dataclass(slots=True)
class _Voice:
    response_id: str
    start: int
    end: int = 0
    started: bool = False
    over: bool = False
    """`response.done` has come."""
    pieces: dict[tuple[str, int], _Piece] = field(default_factory=dict)
