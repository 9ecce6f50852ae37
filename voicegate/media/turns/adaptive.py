"""The default judge: how the last words sounded, and what this speaker's pauses have been like.

The longer a pause lasts, the surer is the end; how fast that goes depends on how the voice stopped. When
`score` are the log odds that the turn is over, known when the pause begins, the silence to wait for is

    hold = max(patience * usual * exp(SPREAD * (BOUND - score)), FILLED * filled)

where `usual` is the (geometric) mean of this speaker's pauses within turns: their lengths are about
log-normal (Campione and Veronis 2002). `score` adds up how the voice ended (see `prosody`): a fall to the
bottom of the speaker's range, a clear rise and a soft end speak for an end, a pitch that stays level against
it. `filled`, 0 to 1, is how little the last sound changed: who says "um" asks for some time to think.

How long the turn has lasted is no cue. Among turns that are all alike it would be the best of all; among
turns as people's, from one word to half a minute, it makes a judge worse than silence.

The weights were fitted (logistic regression, rounded) on the tuning half of the synthetic set in tests/turns,
with other draws of its sentences, tones and pauses, and tried on voices that were left out. That they have
the signs that the literature gives is what they have to do with people. They are few, and each cue is cut off
where it has said what it can say, so that none decides alone. What is learned within a call starts from a
prior that counts as some pauses. What all of it gains over silence is little: docs/turns-evaluation.md has
the figures.
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
SPREAD: Final = 0.35
"""How much of a silence a unit of log odds is worth: an end that is e times as likely is waited for 0.7 times
as long. More does better where waits are to be short, less where few may be cut off."""
BOUND: Final = 0.45
"""Log odds at which the usual pause is waited for. It sets the default between haste and patience: a mean
wait of half a second on the tuning half, as long as a fixed silence of 500 ms."""

PRIOR: Final = -1.4
"""Log odds of the end when no cue says anything."""
LOW: Final = 0.45
"""For each semitone that the final pitch is less than 1.5 above the speaker's lowest, up to 3."""
RISE: Final = 0.15
"""For each semitone of rise at the very end beyond 1.4, up to 4: a rise of less is also that of one who goes
on."""
LEVEL: Final = -6.0
"""For each second of level pitch at the end beyond 0.06, up to 0.2."""
SOFT: Final = 0.15
"""For each dB by which the last voice is softer than usual, from -4 to 5: one that breaks off at full
strength is in the middle of something."""

CHANGES: Final = (1.4, 2.8)
"""dB by which the last voice changes: so little is all "um" or "uh", so much a word."""
FILLED: Final = 1.2
"""Seconds that a filled pause is waited out for at least, whatever the patience."""
FILLED_ODDS: Final = -2.0
"""Log odds of the end behind one."""

USUAL_PAUSE: Final = (log(0.33), 0.6)
"""Log of seconds, mean and deviation, of pauses within turns, before anything is known of the speaker."""
PAUSE_WEIGHT: Final = (24.0, 48.0)
"""As if so many such pauses had been heard; and the most that all before the newest weigh. Pauses differ by
about 0.8 within a speaker and by 0.3 between speakers (0.8 ** 2 / 0.3 ** 2 is 7). It is more since who waits
longer for all ends because a few pauses were long has the longer waits for sure, and the fewer cut-ins only
where the next pause is long."""


class AdaptivePause:
    """`patience` multiplies what is waited for: 1 is the default, a sweep moves it. `ceiling`: no pause is
    waited out for longer, in seconds."""

    inline = True
    schedule: Sequence[float] = SCHEDULE

    def __init__(self, patience: float = 1.0, *, ceiling: float = CEILING) -> None:
        self._patience = patience
        self._ceiling = ceiling
        self._prosody = Prosody()
        self._frames: deque[bytes] = deque(maxlen=round((SPAN + SCHEDULE[1]) / FRAME_SECONDS))
        self._pauses = _UsualPause()
        self._score = self._filled = 0.0  # of this pause

    def listen(self, frame: bytes, hop: Hop) -> None:
        self._frames.append(frame)

    def judge(self, pause: Pause) -> Verdict:
        if pause.asked == 0:
            cues = self._prosody.cues(self._voice_before(pause))
            self._score, self._filled = score(cues), filled(cues)
        hold = self._patience * exp(self._pauses.mean + SPREAD * (BOUND - self._score))
        hold = max(hold, FILLED * self._filled)
        likely = self._score + FILLED_ODDS * self._filled
        # Of the pauses within turns only the longer ones are still silent.
        odds = exp(likely) / self._pauses.longer(pause.silence)
        done = odds / (1 + odds)
        reason = "finished" if likely > PRIOR else "unfinished"
        return Verdict(pause.id, done, max(FLOOR, min(self._ceiling, hold)), reason, done >= EAGER)

    def resumed(self, pause: Pause) -> None:
        if pause.silence >= FLOOR:
            self._pauses.learn(pause.silence)

    def ended(self, pause: Pause) -> None:
        pass

    def _voice_before(self, pause: Pause) -> bytes:
        frames = list(self._frames)
        return b"".join(frames[: max(0, len(frames) - round(pause.silence / FRAME_SECONDS))])


def score(cues: Cues) -> float:
    """The log odds that the turn is over, for a voice that ended in a word."""
    return (
        PRIOR
        + LOW * _within(1.5 - cues.height, 0.0, 3.0)
        + RISE * _within(cues.rise - 1.4, 0.0, 4.0)
        + LEVEL * _within(cues.level - 0.06, 0.0, 0.2)
        + SOFT * _within(cues.soft, -4.0, 5.0)
    )


def filled(cues: Cues) -> float:
    """How much of a filled pause the last sound was, 0 to 1."""
    steady, word = CHANGES
    return _within((word - cues.change) / (word - steady), 0.0, 1.0)


def _within(value: float, least: float, most: float) -> float:
    return max(least, min(most, value))


class _UsualPause:
    """The log-normal length of this speaker's pauses within turns, learned from a prior on."""

    _SURE: Final = 1e-6

    def __init__(self) -> None:
        self.mean, deviation = USUAL_PAUSE
        self._variance = deviation**2
        self._weight, self._most = PAUSE_WEIGHT

    def learn(self, seconds: float) -> None:
        away = log(seconds) - self.mean
        self._weight = min(self._most, self._weight + 1)
        self.mean += away / self._weight
        self._variance += (away * away - self._variance) / self._weight

    def longer(self, seconds: float) -> float:
        """The share that is longer than this; never 0."""
        if seconds <= 0:
            return 1.0
        away = (log(seconds) - self.mean) / sqrt(self._variance)
        return max(self._SURE, 0.5 * erfc(away / sqrt(2)))
