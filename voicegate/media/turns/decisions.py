"""What a turn machine decides. `at`: samples of the microphone, 24 kHz, since the start of the call."""

from __future__ import annotations

from typing import NamedTuple

from voicegate.media.turns.plugins import Pause, Verdict


class SpeechStarted(NamedTuple):
    """A turn has begun, `prefix_padding_ms` before its first voice. Told when it is known to be one: in an
    overlap when the interruption is confirmed."""

    at: int


class PauseBegan(NamedTuple):
    """The person fell silent within a turn; `at` is where the last voice ended."""

    pause_id: int
    at: int


class JudgeAsked(NamedTuple):
    """For a judge that is not `inline`: ask it, and give the verdict to the machine."""

    pause: Pause


class Judged(NamedTuple):
    """A verdict was taken."""

    verdict: Verdict
    silence: float


class VerdictDropped(NamedTuple):
    """A verdict on a pause that is over."""

    verdict: Verdict


class EagerEnd(NamedTuple):
    """Ask for the reply, hold it: it may be the end."""

    pause_id: int


class Resumed(NamedTuple):
    """The person went on. `eager`: a reply was asked for in this pause and is to be cancelled unheard."""

    pause_id: int
    silence: float
    eager: bool


class TurnEnded(NamedTuple):
    """The turn is over. `at` is where the silence that proves it has got to; `eager`: the reply is asked for
    already."""

    pause_id: int | None
    at: int
    silence: float
    reason: str
    """The verdict's, or "max_silence", "max_turn"."""
    eager: bool


class OutputPaused(NamedTuple):
    """Hold the agent's audio at once; tell nobody."""

    reason: str
    after: float
    """Seconds since the first voice of what is said over it."""


class OutputResumed(NamedTuple):
    """Let it go on from the same sample."""

    reason: str
    after: float
    """Seconds since the first voice of what is said over it."""


class OutputStopped(NamedTuple):
    """Drop it, cancel the response and truncate it at what was heard."""

    reason: str
    after: float
    """Seconds since the first voice of what is said over it."""


class IdleTimeout(NamedTuple):
    """`idle_timeout_ms` after the agent's last sound nobody has spoken: the agent is to speak again
    (`input_audio_buffer.timeout_triggered`). `start`, `end`: the silent stretch, in samples."""

    start: int
    end: int


class UserIdle(NamedTuple):
    """Nobody has spoken for this long."""

    seconds: float


Decision = (
    SpeechStarted
    | PauseBegan
    | JudgeAsked
    | Judged
    | VerdictDropped
    | EagerEnd
    | Resumed
    | TurnEnded
    | OutputPaused
    | OutputResumed
    | OutputStopped
    | IdleTimeout
    | UserIdle
)
