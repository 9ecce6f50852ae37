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

`score` adds up how the voice ended (see `prosody`): a fall, and one to the bottom of the speaker's range,
speak for an end, as does the high rise of a question; a pitch that stays level or rises a little, and a last
sound that does not change ("um"), speak against it.

How long the turn has lasted is no cue. Among turns that are all alike it would be the best of all; among
turns as people's, from one word to half a minute, it makes a judge worse than silence.

The weights were fitted (logistic regression, rounded) on the tuning halves of the two synthetic sets in
tests/turns: one in which tones are what espeak-ng makes of commas and full stops, and one in which they are
drawn as people use them, which is much harder. They have the signs that the literature gives. They are few,
and each cue is cut off where it has said what it can say, so that none decides alone. What is learned within
a call starts from a prior that counts as some pauses. docs/turns-evaluation.md has the figures.
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
DEMAND: Final = 0.8
"""What a cut-in costs, in the logarithm: it sets the default between haste and patience."""
DEMAND_PATIENCE: Final = 2.0
"""And by how much it grows with the logarithm of the patience: who is twice as patient waits about twice as
long for all turns together, longer than that for ends that sound like one, and less for those that do not."""

PRIOR: Final = -1.5
"""Log odds of the end when no cue says anything: the pitch is in the middle of the range, and has not
fallen."""
LOW: Final = 1.35
"""For a final pitch at the bottom of the speaker's range, ..."""
LOW_HEIGHTS: Final = (-0.5, 1.0)
"""... that is so many semitones from the speaker's lowest; above the second it is in the middle."""
FALL: Final = 1.4
"""For a pitch that has just fallen, ..."""
FALLS: Final = (-2.0, 0.0)
"""... by so many semitones."""
QUESTION: Final = 1.2
"""For a high rise, ..."""
QUESTIONS: Final = (4.0, 7.0)
"""... by so many semitones: who goes on rises by less."""
FILLED: Final = -2.0
"""For a filled pause, ..."""
CHANGES: Final = (1.4, 2.4)
"""... in which the voice changes by so many dB: "um" and "uh" by less than the first, most words by more than
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
        self._pauses = _UsualPause()
        self._score = 0.0  # of this pause

    def listen(self, frame: bytes, hop: Hop) -> None:
        self._frames.append(frame)

    def judge(self, pause: Pause) -> Verdict:
        if pause.asked == 0:
            self._score = score(self._prosody.cues(self._voice_before(pause)))
        hold = self._pauses.worth_waiting(self._demand - self._score)
        # Of the pauses within turns only the longer ones are still silent.
        odds = exp(self._score) / self._pauses.longer(pause.silence)
        done = odds / (1 + odds)
        reason = "finished" if self._score > PRIOR + LOW / 2 else "unfinished"
        return Verdict(pause.id, done, max(FLOOR, min(self._ceiling, hold)), reason, done >= EAGER)

    def resumed(self, pause: Pause) -> None:
        if pause.silence >= FLOOR:
            self._pauses.learn(min(pause.silence, LONGEST_PAUSE))

    def ended(self, pause: Pause) -> None:
        pass

    def _voice_before(self, pause: Pause) -> bytes:
        frames = list(self._frames)
        return b"".join(frames[: max(0, len(frames) - round(pause.silence / FRAME_SECONDS))])


def score(cues: Cues) -> float:
    """The log odds that the turn is over."""
    return (
        PRIOR
        + LOW * (1 - _passed(cues.height, LOW_HEIGHTS))
        + FALL * (1 - _passed(cues.rise, FALLS))
        + QUESTION * _passed(cues.rise, QUESTIONS)
        + FILLED * (1 - _passed(cues.change, CHANGES))
    )


def _passed(value: float, limits: tuple[float, float]) -> float:
    """How much of the way from the first limit to the second: 0 to 1."""
    return max(0.0, min(1.0, (value - limits[0]) / (limits[1] - limits[0])))


class _UsualPause:
    """The log-normal length of this speaker's pauses within turns, learned from a prior on."""

    _SURE: Final = 1e-6

    def __init__(self) -> None:
        self._mean, deviation = USUAL_PAUSE
        self._variance = deviation**2
        self._weight, self._most = PAUSE_WEIGHT

    def learn(self, seconds: float) -> None:
        away = log(seconds) - self._mean
        self._weight = min(self._most, self._weight + 1)
        self._mean += away / self._weight
        self._variance += (away * away - self._variance) / self._weight

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
