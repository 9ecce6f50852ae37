"""The default interruption policy: by duration, by words where there are some, and by whose sound it is.

Pausing is cheap: the person hears 100 ms less of an answer that then goes on. Stopping is not: the answer is
lost. So a frame or two of voice pause, and only what goes on for longer than an acknowledgement stops. A
cough has no pitch; an acknowledgement has one syllable or two, and is seldom louder than its speaker usually
is. By all of that "stop" is still a "yes": a single word interrupts where the agent transcribes while it
speaks.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Final

from voicegate.media.turns.plugins import Action, Overlap

_WORDS = """
    mm mh mhm mmhm hm hmm uh huh uhhuh ah aha oh ok okay yeah yes yep yup right sure good great cool fine nice
    exactly absolutely definitely i see got it alright all true indeed wow really
    ja jaja genau gut stimmt klar achso ach so oui d'accord voilà bien sí si claro vale
"""
_ACKNOWLEDGEMENTS: Final = frozenset(_WORDS.split())
"""Words that go with listening. What has no other word does not interrupt."""


@dataclass(frozen=True, slots=True)
class InterruptionSettings:
    """Seconds, unless a field says otherwise."""

    pause_after: float = 0.04
    """Of voice. A third frame would save few pauses, and 1 in 20 came later than 150 ms after speech
    begins."""
    loud: float = -3.0
    """Half so much does, where it is as loud as so many dB beside what is usual of this person: what begins
    with a consonant that is lost in the noise is late already."""
    pause_after_soft: float = 0.3
    """Of a voice that is softer than `soft`."""
    soft: float = -10.0
    """dB beside what is usual of this person: an echo, or other people, far more often than they."""
    stop_after: float = 0.72
    """Of voice as loud as this person's usually is, in two syllables ..."""
    per_decibel: float = 0.04
    """... for each dB that it is louder so much less, and so much more for each that it is softer ..."""
    per_syllable: float = 0.1
    """... and so much less for each syllable beyond, up to four; more for a single one."""
    stop_pitched: float = 0.16
    """Of it strong and with a pitch: a cough has less, and so have a click and what others say beside it."""
    stop_after_acknowledgements: float = 1.5
    """Of voice, when the transcript has only words that go with listening so far."""
    resume_after: float = 0.4
    """Of silence behind a sound that did not stop: longer than within a word, shorter than a wait."""
    density: float = 0.5
    """Of voice in what stops, from its first to its last: less is noise that voice activity errs on."""
    flat: float = 0.92
    """Share of strong voice from which on it is no person at the microphone: their level falls by more than
    that in one frame of ten at least. Other people's talk, and typing, keep it. What is as loud as this
    person usually is stops all the same: a microphone with gain control keeps a level too."""
    grace: float = 0.25
    """At an answer's first words nothing pauses: a person may be finishing a word, and synthetic speech
    begins with silence."""
    grace_echo: float = 0.6
    """Nor so long, unless it is loud: it may be the answer's echo, which takes as long to be known in a
    call's first answer."""
    boundary: float = 1.0
    """What begins in so much of an answer's end is the next turn rather than an interruption."""


_SOFTEST: Final = -10.0
_LOUDEST: Final = 6.0
"""dB beside the usual loudness, beyond which nothing changes."""
_SYLLABLES: Final = 4
"""More of them are no clearer."""


class DefaultPolicy:
    """One call's."""

    def __init__(self, settings: InterruptionSettings | None = None) -> None:
        self.settings = settings or InterruptionSettings()

    def decide(self, overlap: Overlap) -> tuple[Action, str]:
        settings = self.settings
        grace = settings.grace if self._is_loud(overlap) else max(settings.grace, settings.grace_echo)
        if overlap.agent < grace:
            return Action.IGNORE, "grace"
        if overlap.remaining is not None and overlap.remaining < settings.boundary and not overlap.paused:
            return Action.IGNORE, "ending"
        acknowledgement = _acknowledges(overlap.said)
        if acknowledgement is False:
            return Action.STOP, "words"
        if self._goes_on(overlap, acknowledgement=acknowledgement is True):
            moves = overlap.strong < settings.flat * overlap.voiced
            if moves or overlap.voiced < settings.stop_after or self._is_loud(overlap):
                return Action.STOP, "duration"
            return (Action.RESUME if overlap.paused else Action.IGNORE), "background"
        if overlap.paused:
            if overlap.silence >= settings.resume_after:
                return Action.RESUME, "acknowledgement" if acknowledgement else "short"
            return Action.IGNORE, "waiting"
        if overlap.voiced >= settings.stop_after:  # it was let go of before
            return Action.IGNORE, "background"
        if overlap.silence == 0.0 and overlap.voiced >= self._pause_after(overlap):
            return Action.PAUSE, "voice"
        return Action.IGNORE, "short"

    def over(self, overlap: Overlap, stopped: bool) -> None:
        """Nothing is learned."""

    def _pause_after(self, overlap: Overlap) -> float:
        settings = self.settings
        if self._is_loud(overlap):
            return settings.pause_after / 2
        soft = overlap.loudness is not None and overlap.loudness < settings.soft
        return max(settings.pause_after, settings.pause_after_soft) if soft else settings.pause_after

    def _is_loud(self, overlap: Overlap) -> bool:
        return overlap.loudness is not None and overlap.loudness >= self.settings.loud

    def _goes_on(self, overlap: Overlap, *, acknowledgement: bool) -> bool:
        """Whether it has lasted too long for a listener's sound."""
        settings = self.settings
        enough = settings.stop_after_acknowledgements if acknowledgement else settings.stop_after
        louder = max(_SOFTEST, min(_LOUDEST, overlap.loudness or 0.0))
        more = min(overlap.syllables, _SYLLABLES) - 2
        return (
            overlap.voiced >= enough - settings.per_decibel * louder - settings.per_syllable * more
            and overlap.pitched >= settings.stop_pitched
            and overlap.density >= settings.density
        )


def _acknowledges(said: str | None) -> bool | None:
    """Whether this has only words that go with listening; None where nothing was said yet."""
    words = "".join(c if c.isalnum() or c == "'" else " " for c in said.lower()).split() if said else []
    return all(word in _ACKNOWLEDGEMENTS for word in words) if words else None
