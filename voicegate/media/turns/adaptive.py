"""The default judge: how final the last words sounded, and what this speaker's pauses have been like.

The voice sounds final when it falls, to the bottom of the speaker's range, or rises far, as in a question
(see `prosody`); it does not when it stays level or rises a little, as of one who goes on. How much that tells
differs from speaker to speaker: there are some whose every other pause sounds like an end. So it is learned
how final the pauses of this speaker sound from which they go on, and it counts for as much as ends sound more
final than that. A last sound that does not change ("um") speaks against an end, however it moves. What odds
are worth how long a wait is said in `pauses`.

How long the turn has lasted is no cue. Among turns that are all alike it would be the best of all; among
turns as people's, from one word to half a minute, it makes a judge worse than silence.

The constants were fitted on synthetic speech (tests/turns), with tones as they are written and as people use
them, by voices of which others were left out. They have the signs that the literature gives, are few, and
each cue is cut off where it has said what it can say. docs/turns-evaluation.md has the figures.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Sequence
from math import exp, log
from typing import Final, NamedTuple

from voicegate.media.codec import FRAME_SECONDS
from voicegate.media.turns.pauses import CEILING, FLOOR, Pauses
from voicegate.media.turns.plugins import Hop, Pause, Verdict
from voicegate.media.turns.prosody import SPAN, Cues, Prosody

SCHEDULE: Final = (FLOOR, 0.2, 0.3, 0.5, 0.8, 1.2)
"""Seconds of silence. The sound is looked at once; after that only the probability rises with the silence."""
EAGER: Final = 0.6
"""Probability of the end from which on the reply is worth asking for."""
PRIOR: Final = -0.5
"""Log odds of the end before the voice is looked at."""
LOW: Final = (1.0, -0.5)
"""Semitones above the speaker's lowest pitch: from the first on down a voice sounds final, below the second
wholly so, ..."""
LOW_SHARE: Final = 0.55
"""... as far as this goes; the rest is whether it has just fallen, ..."""
FALL: Final = (0.0, -3.0)
"""... by so many semitones."""
QUESTION: Final = (2.5, 5.0)
"""Semitones of a rise that sounds final again: 22 % of the ends that Gravano and Hirschberg counted rise
high, and 9 % of the pauses. espeak-ng has no such rise."""
FINAL_ENDS: Final = 0.7
"""How final ends sound, in the mean, ..."""
FINAL_PAUSES: Final = (0.2, 4.0)
"""... and pauses within turns, before anything is known of the speaker; and that counts as so many of
them."""
FINAL_WEIGHT: Final = 48.0
"""The most that all before the newest weigh."""
FINAL_LIMITS: Final = (0.1, 0.6)
"""Whoever never sounds final before going on may do so once: the least that a pause is taken to sound. And
whoever sounds more final than the second is not to be understood."""
FILLED: Final = -2.0
"""Log odds for a filled pause, ..."""
CHANGES: Final = (2.8, 1.8)
"""... in which the voice changes by so many dB: most words by more than the first, "um" and "uh" by less than
the second."""


class AdaptivePause:
    """`patience`: about by what the waits are multiplied. 1 is the default, a sweep moves it. `ceiling`: no
    pause is waited out for longer, in seconds."""

    inline = True
    schedule: Sequence[float] = SCHEDULE

    def __init__(self, patience: float = 1.0, *, ceiling: float = CEILING) -> None:
        self._ceiling = ceiling
        self._prosody = Prosody()
        self._frames: deque[bytes] = deque(maxlen=round((SPAN + SCHEDULE[1]) / FRAME_SECONDS))
        self._pauses = Pauses(patience)
        self._usual = _Usual()
        self._heard = _Heard(0, None, PRIOR)

    def listen(self, frame: bytes, hop: Hop) -> None:
        self._frames.append(frame)

    def judge(self, pause: Pause) -> Verdict:
        if self._heard.pause_id != pause.id:
            self._heard = self._hear(pause)
        score = self._heard.score
        hold = self._pauses.worth_waiting(score)
        # Of the pauses within turns only the longer ones are still silent.
        odds = exp(score) / self._pauses.longer(pause.silence)
        done = odds / (1 + odds)
        reason = "finished" if score > PRIOR else "unfinished"
        return Verdict(pause.id, done, min(self._ceiling, hold), reason, done >= EAGER)

    def resumed(self, pause: Pause) -> None:
        self._pauses.learn(pause.silence)
        if self._heard.pause_id == pause.id and self._heard.final is not None and pause.silence >= FLOOR:
            self._usual.learn(self._heard.final)

    def ended(self, pause: Pause) -> None:
        pass

    def _hear(self, pause: Pause) -> _Heard:
        cues = self._prosody.cues(self._voice_before(pause))
        if cues is None:
            return _Heard(pause.id, None, PRIOR)
        sounds = final(cues)
        return _Heard(pause.id, sounds, PRIOR + self._usual.evidence(sounds) + FILLED * filled(cues))

    def _voice_before(self, pause: Pause) -> bytes:
        frames = list(self._frames)
        silent = round((pause.silence - pause.missing) / FRAME_SECONDS)
        return b"".join(frames[: max(0, len(frames) - silent)])


class _Heard(NamedTuple):
    """What was made of the voice before a pause."""

    pause_id: int
    final: float | None
    """None where nothing could be told."""
    score: float
    """Log odds of the end."""


def final(cues: Cues) -> float:
    """How final the voice sounds, 0 to 1."""
    falling = LOW_SHARE * _passed(cues.height, LOW) + (1 - LOW_SHARE) * _passed(cues.rise, FALL)
    return max(falling, _passed(cues.rise, QUESTION))


def filled(cues: Cues) -> float:
    """How much of a filled pause the last sound is, 0 to 1."""
    return _passed(cues.change, CHANGES)


def _passed(value: float, limits: tuple[float, float]) -> float:
    """How much of the way from the first limit to the second: 0 to 1."""
    return max(0.0, min(1.0, (value - limits[0]) / (limits[1] - limits[0])))


class _Usual:
    """How final this speaker's pauses within turns sound, learned from a prior on."""

    def __init__(self) -> None:
        self._final, self._weight = FINAL_PAUSES

    def learn(self, final: float) -> None:
        self._weight = min(FINAL_WEIGHT, self._weight + 1)
        self._final += (final - self._final) / self._weight

    def evidence(self, final: float) -> float:
        """What it adds to the log odds of an end that the voice sounds so final."""
        least, most = FINAL_LIMITS
        pauses = max(least, min(most, self._final))
        return final * log(FINAL_ENDS / pauses) + (1 - final) * log((1 - FINAL_ENDS) / (1 - pauses))
