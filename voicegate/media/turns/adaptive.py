"""The default judge: how the last words sounded, and what this speaker's pauses and turns have been like.

The longer a pause lasts, the surer is the end; how fast that goes depends on what was said before it. The
lengths of pauses within turns are about log-normal (Campione and Veronis 2002), so when `score` are the log
odds that the turn is over, known when the pause begins, the silence that makes the end so sure that waiting
no longer pays is about

    hold = patience * usual * exp(SPREAD * (BOUND - score))

where `usual` is the (geometric) mean of this speaker's pauses within turns. `score` adds up

* the voice's end: a fall to the bottom of the speaker's range or a clear rise speak for an end, a word that
  is drawn out at a level pitch against it (see `prosody`),
* how long the speaker had gone on since the last pause: few ends come after a word or two (Gravano and
  Hirschberg 2011),
* how long the turn has lasted, against this speaker's turns so far: the hazard of a log-normal length.

The weights were fitted (logistic regression, rounded) on the tuning half of the synthetic set in tests/turns
and on its sentences said by forty other voices of espeak-ng. That they have the signs that the literature
gives is what they have to do with people. They are few, and each cue is cut off where it has said what it can
say, so that none decides alone. On that set more than half of what is gained over silence comes from the
lengths: they are more alike there than in life. What is learned within a call starts from a prior that counts
as some pauses or turns.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Sequence
from math import erfc, exp, log, pi, sqrt
from typing import Final

from voicegate.media.codec import FRAME_SAMPLES, PCM_RATE
from voicegate.media.turns.plugins import Hop, Pause, Verdict
from voicegate.media.turns.prosody import SPAN, Cues, Prosody

SCHEDULE: Final = (0.14, 0.2, 0.3, 0.5, 0.8, 1.2)
"""Seconds of silence. The sound is looked at once, when a pause is longer than those around stop consonants;
after that only the probability rises with the silence."""
FLOOR: Final = 0.16
CEILING: Final = 4.0
EAGER: Final = 0.6
"""Probability of the end from which on the reply is worth asking for."""
SPREAD: Final = 0.5
"""How much of a silence a unit of log odds is worth: an end that is e times as likely is waited for 0.6 times
as long. About the deviation of a speaker's log pauses (0.7), less since such a distribution's tail falls
fast."""
BOUND: Final = 0.8
"""Log odds at which the usual pause is waited for. It sets the default between haste and patience: a mean
wait of half a second on the tuning half, as long as a fixed silence of 500 ms."""

PRIOR: Final = -1.0
"""Log odds of the end when no cue says anything."""
LOW: Final = 0.62
"""For each semitone that the final pitch is less than 0.7 above the speaker's lowest, up to 2.3."""
FALL: Final = 0.27
"""For each semitone of fall beyond 0.7, up to 4."""
RISE: Final = 0.23
"""For each semitone of rise at the very end beyond 1.4, up to 4: a rise of less is also that of one who goes
on."""
DRAWN: Final = -5.8
"""For each second of unchanging voice beyond 0.06, up to 0.2."""
FADE: Final = 0.056
"""For each dB by which the end is softer, from -3.5 to 6.5."""
CHUNK: Final = 1.2
"""For each second of speech since the last pause beyond 0.3, up to 2.2."""
LENGTH_LIMITS: Final = (-2.0, 0.5)
"""Of the log hazard of the turn's length. Twice as much of it does better on the set, and worse than a fixed
silence where turns differ as much as people's do."""

SHORT_ANSWER: Final = 0.7
SHORT_HAZARD: Final = -0.6
"""Answers of a word are a kind of their own: of turns so short the log hazard is no less."""

USUAL_PAUSE: Final = (log(0.4), 0.7)
"""Log of seconds, mean and deviation, of pauses within turns, before anything is known of the speaker."""
PAUSE_WEIGHT: Final = (12.0, 24.0)
"""As if so many such pauses had been heard; and the most that all before the newest weigh. (Pauses differ by
about 0.7 within a speaker and by 0.3 between speakers: 0.7 ** 2 / 0.3 ** 2 is 5. It is more since of long
pauses only those come to be known in which nobody cut in.)"""
USUAL_TURN: Final = (log(2.5), 0.5)
TURN_WEIGHT: Final = (4.0, 8.0)
"""The same for turns. What people say to an agent differs between tasks far more than their pauses do."""
_FRAME_SECONDS = FRAME_SAMPLES / PCM_RATE


class AdaptivePause:
    """`patience` multiplies what is waited for: 1 is the default, a sweep moves it. `ceiling`: no pause is
    waited out for longer, in seconds."""

    inline = True
    schedule: Sequence[float] = SCHEDULE

    def __init__(self, patience: float = 1.0, *, ceiling: float = CEILING) -> None:
        self._patience = patience
        self._ceiling = ceiling
        self._prosody = Prosody()
        self._frames: deque[bytes] = deque(maxlen=round((SPAN + SCHEDULE[1]) / _FRAME_SECONDS))
        self._pauses = _Usual(USUAL_PAUSE, PAUSE_WEIGHT)
        self._turns = _Usual(USUAL_TURN, TURN_WEIGHT)
        self._score = 0.0  # of this pause
        self._before = 0.0  # seconds of this turn before what the machine takes for it, after a false end
        self._chunk_at = 0.0  # second of the turn at which the last pause ended
        self._ended: float | None = None  # length of the turn just ended, until it is known to be one

    def listen(self, frame: bytes, hop: Hop) -> None:
        self._frames.append(frame)

    def judge(self, pause: Pause) -> Verdict:
        if pause.asked == 0:
            if self._ended is not None:
                self._turns.learn(self._ended)
                self._begin_turn()
            self._score = self._judge_onset(pause)
        hold = self._patience * exp(self._pauses.mean + SPREAD * (BOUND - self._score))
        # Of the pauses within turns only the longer ones are still silent.
        odds = exp(self._score) / self._pauses.longer(pause.silence)
        done = odds / (1 + odds)
        reason = "finished" if self._score > 0 else "unfinished"
        return Verdict(pause.id, done, max(FLOOR, min(self._ceiling, hold)), reason, done >= EAGER)

    def resumed(self, pause: Pause) -> None:
        went_on = self._before + pause.speech + pause.silence
        self._chunk_at = went_on
        if self._ended is not None:
            # The end was false: what the machine takes for a new turn is more of this one.
            self._before = went_on
            self._ended = None
        if pause.silence >= SCHEDULE[0]:
            self._pauses.learn(pause.silence)

    def ended(self, pause: Pause) -> None:
        self._ended = self._before + pause.speech

    def _begin_turn(self) -> None:
        self._ended = None
        self._before = self._chunk_at = 0.0

    def _judge_onset(self, pause: Pause) -> float:
        spoken = self._before + pause.speech
        frames = list(self._frames)
        voice = frames[: max(0, len(frames) - round(pause.silence / _FRAME_SECONDS))]
        hazard = self._turns.log_hazard(spoken)
        if spoken < SHORT_ANSWER:
            hazard = max(hazard, SHORT_HAZARD)
        return score(self._prosody.cues(b"".join(voice)), spoken - self._chunk_at, hazard)


def score(cues: Cues, chunk: float, hazard: float) -> float:
    """The log odds that the turn is over. `chunk`: seconds of speech since the last pause. `hazard`: log of
    how likely a turn that has lasted so long is to end within a second."""
    return (
        PRIOR
        + LOW * _within(0.7 - cues.height, 2.3)
        + FALL * _within(-0.7 - cues.glide, 4.0)
        + RISE * _within(cues.rise - 1.4, 4.0)
        + DRAWN * _within(cues.drawn - 0.06, 0.2)
        + FADE * _within(cues.fade + 3.5, 10.0)
        + CHUNK * _within(chunk - 0.3, 2.2)
        + max(LENGTH_LIMITS[0], min(LENGTH_LIMITS[1], hazard))
    )


def _within(value: float, most: float) -> float:
    return max(0.0, min(most, value))


class _Usual:
    """A log-normal length, learned from a prior on."""

    _LEAST: Final = 0.1
    """Seconds: shorter is measured as this."""
    _SURE: Final = 1e-6

    def __init__(self, prior: tuple[float, float], weights: tuple[float, float]) -> None:
        self.mean, deviation = prior
        self._variance = deviation**2
        self._weight, self._most = weights

    def learn(self, seconds: float) -> None:
        away = log(max(self._LEAST, seconds)) - self.mean
        self._weight = min(self._most, self._weight + 1)
        self.mean += away / self._weight
        self._variance += (away * away - self._variance) / self._weight

    def longer(self, seconds: float) -> float:
        """The share that is longer than this; never 0."""
        return max(self._SURE, 0.5 * erfc(self._away(seconds) / sqrt(2)))

    def log_hazard(self, seconds: float) -> float:
        """Log of how likely the end is now, of those that have lasted so long: 0 is once a second."""
        away = self._away(seconds)
        density = exp(-away * away / 2) / (max(self._LEAST, seconds) * sqrt(2 * pi * self._variance))
        return log(max(self._SURE, density) / self.longer(seconds))

    def _away(self, seconds: float) -> float:
        return (log(max(self._LEAST, seconds)) - self.mean) / sqrt(self._variance)
