"""What a turn machine asks of its three plug-ins, and what it tells them.

One instance of each serves one call, from its first frame to its last. All of them run in the media loop and
may take some microseconds a frame; a judge that needs longer says so (`inline`) and is asked elsewhere.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from enum import Enum
from typing import Final, NamedTuple, Protocol


class Hop(NamedTuple):
    """What 20 ms of the microphone hold."""

    voiced: bool
    level: float
    """dBFS; -100 for digital silence."""


class VoiceActivity(Protocol):
    """Whether there is a voice in each 20 ms. Smoothing over frames is the machine's business."""

    def push(self, frame: bytes) -> Hop:
        """Judge the next 480 samples, 24 kHz s16le mono."""

    def reset(self) -> None:
        """What comes next has nothing to do with what came before."""


@dataclass(frozen=True, slots=True)
class Pause:
    """Silence within a turn, as a judge is asked about it."""

    id: int
    """Rises within a call; a verdict names it, and one that comes after its pause has ended is dropped."""
    silence: float
    """Seconds since the last voice."""
    speech: float
    """Seconds of the turn before the pause, from its first voice to its last."""
    asked: int
    """How often a judge was asked about this pause before: 0 the first time."""
    audio: Callable[[], bytes]
    """The turn's last eight seconds, the pause included: 24 kHz s16le mono. Costs a copy."""
    transcript: str | None = None
    """What the agent has made of this turn so far, when it transcribes as it listens."""
    missing: float = 0.0
    """Seconds of the silence for which no frame came."""


class Verdict(NamedTuple):
    """What a judge makes of a pause."""

    pause_id: int
    done: float
    """The probability that the turn is over, 0 to 1."""
    hold: float
    """The turn is over when the silence has lasted this long, counted from its beginning, in seconds, unless
    a later verdict says otherwise."""
    reason: str
    """For the log and the metrics: a word or two, from a fixed set."""
    eager: bool = False
    """Sure enough to ask for the reply already, where that is wanted."""


class TurnJudge(Protocol):
    """When is a person who has fallen silent finished?"""

    schedule: Sequence[float]
    """Asked when the silence has lasted so long, in seconds, rising."""
    inline: bool
    """Answers within some 0.2 ms, so may be asked in the media loop. Else it is asked in a thread, and gets
    no other call meanwhile but `listen` and, when the person goes on, `resumed`."""

    def listen(self, frame: bytes, hop: Hop) -> None:
        """Every frame of the microphone, in order, silence too: what runs along is kept here."""

    def judge(self, pause: Pause) -> Verdict: ...

    def resumed(self, pause: Pause) -> None:
        """The person went on after this pause (`silence`: how long it was): it was not the end.

        Told also when the turn had been ended there and the person went on at once, before hearing an answer.
        """

    def ended(self, pause: Pause) -> None:
        """The turn was ended in this pause, for whatever reason."""


class Action(Enum):
    """What to do about sound from the microphone while the agent speaks."""

    IGNORE = "ignore"
    """Nothing, or not yet; where the output is paused it stays paused."""
    PAUSE = "pause"
    """Hold the output; tell nobody."""
    STOP = "stop"
    """It is an interruption: cancel and truncate."""
    RESUME = "resume"
    """It was none: go on from the same sample."""


OVERLAP_WINDOW: Final = 3.0
"""Seconds. What is said of an overlap's sound is of its last three: longer than anything takes to decide."""


@dataclass(frozen=True, slots=True)
class Overlap:
    """Sound from the microphone while the agent speaks or is paused, brought up to date every 20 ms.

    `voiced`, `strong`, `pitched`, `level`, `loudness` and `echo` look back for OVERLAP_WINDOW at most.
    """

    seconds: float
    """Since its first voiced frame."""
    voiced: float
    """Seconds of voice in it, the agent's own taken out."""
    strong: float
    """Seconds of that voice that are nearly as loud as its loudest: little of a cough, much of speech ..."""
    pitched: float
    """... and of these, the ones that have a pitch: next to none of a cough, most of speech."""
    syllables: int
    """In it so far, about: acknowledgements have one or two."""
    silence: float
    """Seconds since the last such voice."""
    level: float
    """Of its voiced frames, dBFS, mean power."""
    loudness: float | None
    """dB by which that is above the level at which this person usually speaks; None while that is not
    known."""
    echo: float
    """How much of all voice in it was our own output come back, 0 (none) to 1 (all)."""
    agent: float
    """Seconds since the agent's first sound of this answer."""
    remaining: float | None
    """Seconds that the answer still lasts; None while the agent has not ended it."""
    paused: bool
    words: int | None = None
    """In the agent's transcript of it; None where there is none."""
    said: str | None = None
    """That transcript."""

    @property
    def density(self) -> float:
        """How much of it is voice, from its first to its last."""
        span = min(self.seconds, OVERLAP_WINDOW) - self.silence
        return self.voiced / span if span > self.voiced else 1.0


class InterruptionPolicy(Protocol):
    """Does a person who makes a sound while the agent speaks mean to interrupt?"""

    def decide(self, overlap: Overlap) -> tuple[Action, str]:
        """What to do now, and why: a word or two, from a fixed set. Asked every 20 ms of an overlap."""

    def over(self, overlap: Overlap, stopped: bool) -> None:
        """How it ended, for a policy that learns."""
