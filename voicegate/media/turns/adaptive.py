"""The default judge: what this speaker's pauses have been like, and how the last words sounded.

Pauses within a turn are short mostly; the longer one lasts, the surer is the end. Their lengths fall off
about exponentially (Raux and Eskenazi 2008), so with a mean of `m` seconds the odds that the turn is over
grow by a factor of e for every `m` seconds of silence:

    log odds (over) = score + silence / m

`score` is what is known when the pause begins, from the words before it. The turn is ended when the log odds
reach a bound, `caution`, which makes the silence that is waited for

    hold = patience * m * (caution - score)

between a floor and a ceiling. `m` begins at what is usual and moves to this speaker's own mean with each
pause after which they went on, false ends among them: who is cut off makes longer pauses than we thought, and
gets more time.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Sequence
from math import exp
from typing import Final

from voicegate.media.codec import FRAME_SAMPLES, PCM_RATE
from voicegate.media.turns.plugins import Hop, Pause, Verdict
from voicegate.media.turns.prosody import NO_CUES, SPAN, Cues, Prosody

FIRST_ASKED: Final = 0.14
"""Seconds of silence. The pauses before and after stop consonants are shorter."""
USUAL_PAUSE: Final = 0.45
"""Seconds, the mean of pauses within turns, before anything is known of the speaker."""
USUAL_WEIGHT: Final = 4.0
"""As if so many pauses of the usual length had been heard."""
MEMORY: Final = 12.0
"""Pauses after which an old one counts 1/e: a speaker who warms up is followed."""
CAUTION: Final = 2.0
FLOOR: Final = 0.16
CEILING: Final = 4.0
EAGER: Final = 0.6
"""Probability of the end at which the reply is worth asking for."""
_FRAME_SECONDS = FRAME_SAMPLES / PCM_RATE


class AdaptivePause:
    """`patience` multiplies what is waited for: 1 is the default, a sweep moves it. `ceiling`: no pause is
    waited out for longer, in seconds."""

    inline = True
    schedule: Sequence[float] = (FIRST_ASKED, 0.2, 0.3, 0.5, 0.8, 1.2)

    def __init__(self, patience: float = 1.0, *, ceiling: float = CEILING) -> None:
        self._patience = patience
        self._ceiling = ceiling
        self._prosody = Prosody()
        self._frames: deque[bytes] = deque(maxlen=round((SPAN + 0.3) / _FRAME_SECONDS))
        self._mean = USUAL_PAUSE
        self._weight = USUAL_WEIGHT
        self._cues = NO_CUES
        self._score = 0.0

    def listen(self, frame: bytes, hop: Hop) -> None:
        self._frames.append(frame)

    def judge(self, pause: Pause) -> Verdict:
        if pause.asked == 0:
            self._cues = self._prosody.cues(self._before(pause.silence))
            self._score = score(self._cues, pause.speech)
        need = self._patience * (CAUTION - self._score)
        hold = min(self._ceiling, max(FLOOR, self._mean * need))
        done = 1 / (1 + exp(-max(-30.0, min(30.0, self._score + pause.silence / self._mean))))
        return Verdict(pause.id, done, hold, "pause", done >= EAGER)

    def resumed(self, pause: Pause) -> None:
        self._weight = min(MEMORY, self._weight + 1.0)
        self._mean += (pause.silence - self._mean) / self._weight

    def ended(self, pause: Pause) -> None:
        pass

    def _before(self, silence: float) -> bytes:
        """The sound up to the last voice."""
        frames = list(self._frames)
        return b"".join(frames[: max(0, len(frames) - round(silence / _FRAME_SECONDS))])


def score(cues: Cues, speech: float) -> float:
    return 0.0
