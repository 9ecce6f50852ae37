"""How long a silence is worth waiting out: what a speaker's pauses have been like, and the odds of an end.

One more moment of silence costs that moment where the turn is over, and saves a false cut-in where the person
would go on in it. With `score` the log odds that the turn is over, known when the pause begins, and f(t) the
density of the lengths of this speaker's pauses within turns, waiting pays for as long as f(t) is greater than
exp(score) at the price that a cut-in has. Lengths of pauses are about log-normal (Campione and Veronis 2002),
and for these the last such t is

    hold = usual * exp(-s ** 2 + s * sqrt(s ** 2 + 2 * (demand - score)))

where `usual` is the (geometric) mean of the pauses, s the deviation of their logarithm, and `demand` grows
with the logarithm of that price, taken in usual pauses: who pauses for longer is waited for longer
altogether. So the more patient the judge, the less do the odds count: who may cut off nobody has to wait for
nearly all, whatever they sound like.

Where f is only just reached not to wait at all would cost a little less. Only pauses that were waited out are
learned: of a slow speaker who is cut off and answered nothing is.
"""

from __future__ import annotations

from math import erfc, exp, log, sqrt
from typing import Final

FLOOR: Final = 0.16
"""Seconds. Stop consonants, and what voice activity misses of a voice, are mostly shorter: they are not
learned, and not taken for an end."""
CEILING: Final = 4.0
"""Seconds for which a judge waits at most where it is told of no other: `eagerness` auto."""
DEMAND: Final = 0.4
"""What a cut-in costs, in the logarithm: it sets the default between haste and patience."""
DEMAND_PATIENCE: Final = 2.0
"""And by how much it grows with the logarithm of the patience: who is twice as patient waits about twice as
long for all turns together, longer than that for ends that sound like one, and less for those that do not."""
USUAL: Final = (log(0.33), 0.7)
"""Log of seconds, mean and deviation, before anything is known of the speaker."""
LONGEST: Final = 2.0
"""Seconds. Who was silent for longer before going on had been waiting for an answer."""
LEAST_DEVIATION: Final = 0.35
"""Of the logarithm. Nobody's pauses are all alike: a few that were tell little of the next."""
WEIGHT: Final = (24.0, 48.0)
"""As if so many such pauses had been heard; and the most that all before the newest weigh. Pauses differ by
about 0.8 within a speaker and by 0.3 between speakers (0.8 ** 2 / 0.3 ** 2 is 7). It is more since who waits
longer for all ends because a few pauses were long has the longer waits for sure, and the fewer cut-ins only
where the next pause is long."""
_SURE: Final = 1e-6


class Pauses:
    """Of one speaker, within turns; learned from a prior on.

    `patience`: about by what the waits are multiplied; 1 is the default.
    """

    def __init__(self, patience: float = 1.0) -> None:
        self._demand = DEMAND + DEMAND_PATIENCE * log(patience)
        self._mean, deviation = USUAL
        self._variance = deviation**2
        self._weight, self._most = WEIGHT

    def learn(self, seconds: float) -> None:
        """One more, from which the speaker went on."""
        if seconds < FLOOR:
            return
        away = log(min(seconds, LONGEST)) - self._mean
        self._weight = min(self._most, self._weight + 1)
        self._mean += away / self._weight
        variance = self._variance + (away * away - self._variance) / self._weight
        self._variance = max(LEAST_DEVIATION**2, variance)

    def worth_waiting(self, score: float) -> float:
        """Seconds of silence, at these log odds of an end. FLOOR where not even the most likely length of a
        pause is worth the wait."""
        square = self._variance + 2 * (self._demand - score)
        if square <= 0:
            return FLOOR
        return max(FLOOR, exp(self._mean - self._variance + sqrt(self._variance * square)))

    def longer(self, seconds: float) -> float:
        """The share that is longer than this; never 0."""
        if seconds <= 0:
            return 1.0
        away = (log(seconds) - self._mean) / sqrt(self._variance)
        return max(_SURE, 0.5 * erfc(away / sqrt(2)))
