"""The default judge: how the last words sounded, and what this speaker's pauses have been like.

When to stop waiting? One more moment of silence costs that moment where the turn is over, and saves a false
cut-in where the person would go on in it. With `score` the log odds that the turn is over, known when the
pause begins, and f(t) the density of the lengths of this speaker's pauses within turns, waiting pays for as
long as f(t) is greater than exp(score) at the price that a cut-in has. Lengths of pauses are about log-normal
(Campione and Veronis 2002), and for these the last such t is

    hold = usual * exp(-s ** 2 + s * sqrt(s ** 2 + 2 * (demand - score)))

where `usual` is the (geometric) mean of the pauses, s the deviation of their logarithm, and `demand` the
logarithm of that price. So the more patient the judge, the less an end that sounds like one is answered
before others: who may cut off nobody has to wait for nearly all, whatever they sound like.

The odds follow from how final the voice sounds (see `prosody`): it falls, to the bottom of the speaker's
range, or rises far, as in a question; or it stays level or rises a little, as of one who goes on. How much
that tells differs from speaker to speaker: there are some whose every other pause sounds like an end. So it
is learned, too, how final the pauses of this speaker sound from which they went on, and it counts for as much
as ends sound more final than that. A last sound that does not change ("um") speaks against an end, however it
moves.

How long the turn has lasted is no cue. Among turns that are all alike it would be the best of all; among
turns as people's, from one word to half a minute, it makes a judge worse than silence.

The constants were fitted on synthetic speech (tests/turns), with tones as they are written and as people use
them, by voices of which others were left out. They have the signs that the literature gives, are few, and
each cue is cut off where it has said what it can say. docs/turns-evaluation.md has the figures.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Sequence
from math import erfc, exp, log, sqrt
from typing import Final

from voicegate.media.codec import FRAME_SECONDS
from voicegate.media.turns.plugins import Hop, Pause, Verdict
from voicegate.media.turns.prosody import SPAN, Cues, Prosody

FLOOR: Final = 0.16
"""Seconds. Stop consonants, and what voice activity misses of a voice, are mostly shorter."""
SCHEDULE: Final = (FLOOR, 0.2, 0.3, 0.5, 0.8, 1.2)
"""Seconds of silence. The sound is looked at once; after that only the probability rises with the silence."""
CEILING: Final = 4.0
EAGER: Final = 0.6
"""Probability of the end from which on the reply is worth asking for."""
DEMAND: Final = 0.4
"""What a cut-in costs, in the logarithm: it sets the default between haste and patience."""
DEMAND_PATIENCE: Final = 2.0
"""And by how much it grows with the logarithm of the patience: who is twice as patient waits about twice as
long for all turns together, longer than that for ends that sound like one, and less for those that do not."""

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
"""Semitones of a rise that sounds final again. Of the high rises that Gravano and Hirschberg counted three in
four were ends. espeak-ng has none."""
FINAL_ENDS: Final = 0.7
"""How final ends sound, in the mean, ..."""
FINAL_PAUSES: Final = (0.2, 4.0)
"""... and pauses within turns: before anything is known of the speaker, and as if so many had been heard."""
FINAL_MOST: Final = 0.6
"""Whoever sounds more final than this before going on is not to be understood."""
FILLED: Final = -1.0
"""Log odds for a filled pause, ..."""
CHANGES: Final = (2.4, 1.4)
"""... in which the voice changes by so many dB: most words by more than the first, "um" and "uh" by less than
the second."""

USUAL_PAUSE: Final = (log(0.33), 0.7)
"""Log of seconds, mean and deviation, of pauses within turns, before anything is known of the speaker."""
LONGEST_PAUSE: Final = 2.0
"""Seconds. Who was silent for longer before going on had been waiting for an answer."""
PAUSE_WEIGHT: Final = (24.0, 48.0)
"""As if so many such pauses had been heard; and the most that all before the newest weigh. Pauses differ by
about 0.8 within a speaker and by 0.3 between speakers (0.8 ** 2 / 0.3 ** 2 is 7). It is more since who waits
longer for all ends because a few pauses were long has the longer waits for sure, and the fewer cut-ins only
where the next pause is long."""


class AdaptivePause:
    """`patience`: about by what the waits are multiplied. 1 is the default, a sweep moves it. `ceiling`: no
    pause is waited out for longer, in seconds."""

    inline = True
    schedule: Sequence[float] = SCHEDULE

    def __init__(self, patience: float = 1.0, *, ceiling: float = CEILING) -> None:
        self._demand = DEMAND + DEMAND_PATIENCE * log(patience)
        self._ceiling = ceiling
        self._prosody = Prosody()
        self._frames: deque[bytes] = deque(maxlen=round((SPAN + SCHEDULE[1]) / FRAME_SECONDS))
        self._pauses = _Pauses()
        self._final = self._score = 0.0  # of this pause

    def listen(self, frame: bytes, hop: Hop) -> None:
        self._frames.append(frame)

    def judge(self, pause: Pause) -> Verdict:
        if pause.asked == 0:
            cues = self._prosody.cues(self._voice_before(pause))
            self._final = final(cues)
            self._score = PRIOR + self._pauses.evidence(self._final) + FILLED * filled(cues)
        hold = self._pauses.worth_waiting(self._demand - self._score)
        # Of the pauses within turns only the longer ones are still silent.
        odds = exp(self._score) / self._pauses.longer(pause.silence)
        done = odds / (1 + odds)
        reason = "finished" if self._score > PRIOR else "unfinished"
        return Verdict(pause.id, done, max(FLOOR, min(self._ceiling, hold)), reason, done >= EAGER)

    def resumed(self, pause: Pause) -> None:
        if pause.silence >= FLOOR:
            self._pauses.learn(min(pause.silence, LONGEST_PAUSE), self._final)

    def ended(self, pause: Pause) -> None:
        pass

    def _voice_before(self, pause: Pause) -> bytes:
        frames = list(self._frames)
        return b"".join(frames[: max(0, len(frames) - round(pause.silence / FRAME_SECONDS))])


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


class _Pauses:
    """This speaker's pauses within turns, learned from a prior on: their length, log-normal, and how final
    they sound."""

    _SURE: Final = 1e-6

    def __init__(self) -> None:
        self._mean, deviation = USUAL_PAUSE
        self._variance = deviation**2
        self._weight, self._most = PAUSE_WEIGHT
        self._final, self._final_weight = FINAL_PAUSES

    def learn(self, seconds: float, final: float) -> None:
        away = log(seconds) - self._mean
        self._weight = min(self._most, self._weight + 1)
        self._mean += away / self._weight
        self._variance += (away * away - self._variance) / self._weight
        self._final_weight = min(self._most, self._final_weight + 1)
        self._final += (final - self._final) / self._final_weight

    def evidence(self, final: float) -> float:
        """What it adds to the log odds of an end that the voice sounds so final."""
        pauses = min(FINAL_MOST, self._final)
        return final * log(FINAL_ENDS / pauses) + (1 - final) * log((1 - FINAL_ENDS) / (1 - pauses))

    def worth_waiting(self, demand: float) -> float:
        """Seconds; 0 where not even the most likely length of a pause is worth the wait."""
        square = self._variance + 2 * demand
        return exp(self._mean - self._variance + sqrt(self._variance * square)) if square > 0 else 0.0

    def longer(self, seconds: float) -> float:
        """The share that is longer than this; never 0."""
        if seconds <= 0:
            return 1.0
        away = (log(seconds) - self._mean) / sqrt(self._variance)
        return max(self._SURE, 0.5 * erfc(away / sqrt(2)))
