"""The default interruption policy: by duration, by words where there are some, and by whose sound it is.

Pausing is cheap: the person hears 100 ms less of an answer that then goes on. Stopping is not: the answer is
lost. So two frames of voice pause, and only what goes on for longer than an acknowledgement stops. By sound
alone "stop" is no longer than "yeah": a single word interrupts where the agent transcribes while it speaks.
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
    stop_after: float = 0.95
    """Of voice ..."""
    stop_strong: float = 0.46
    """... and so much of it strong: "yeah" and "mm-hm" have less of the one, a cough of the other."""
    stop_after_acknowledgements: float = 1.5
    """Of voice, when the transcript has only words that go with listening so far."""
    resume_after: float = 0.4
    """Of silence behind a sound that did not stop: longer than within a word, shorter than a wait."""
    density: float = 0.5
    """Of voice in what stops, from its first to its last: less is noise that voice activity errs on."""
    flat: float = 0.92
    """Share of strong voice from which on it is no person at the microphone: their level falls by more than
    that in one frame of ten at least. Other people's talk, and typing, keep it."""
    grace: float = 0.25
    """At an answer's first words nothing pauses: a person may be finishing a word, and synthetic speech
    begins with silence."""
    grace_together: float = 0.4
    """Nor so long, where a sound began within the grace: it may be the answer's echo, which takes
    as long to be known in a call's first answer."""
    boundary: float = 1.0
    """What begins in so much of an answer's end is the next turn rather than an interruption."""


class DefaultPolicy:
    """One call's."""

    def __init__(self, settings: InterruptionSettings | None = None) -> None:
        self._settings = settings or InterruptionSettings()

    def decide(self, overlap: Overlap) -> tuple[Action, str]:
        settings = self._settings
        together = overlap.agent - overlap.seconds < settings.grace
        if overlap.agent < (settings.grace_together if together else settings.grace):
            return Action.IGNORE, "grace"
        if overlap.remaining is not None and overlap.remaining < settings.boundary and not overlap.paused:
            return Action.IGNORE, "ending"
        acknowledgement = _acknowledges(overlap.said)
        if acknowledgement is False:
            return Action.STOP, "words"
        background = self._is_background(overlap)
        if not background and self._goes_on(overlap, acknowledgement=acknowledgement is True):
            return Action.STOP, "duration"
        if overlap.paused:
            if overlap.silence >= settings.resume_after:
                return Action.RESUME, "acknowledgement" if acknowledgement else "short"
            return (Action.RESUME, "background") if background else (Action.IGNORE, "waiting")
        if overlap.voiced >= settings.stop_after:  # it was let go of before
            return Action.IGNORE, "background"
        if overlap.silence == 0.0 and overlap.voiced >= settings.pause_after:
            return Action.PAUSE, "voice"
        return Action.IGNORE, "short"

    def over(self, overlap: Overlap, stopped: bool) -> None:
        """Nothing is learned."""

    def _is_background(self, overlap: Overlap) -> bool:
        settings = self._settings
        return overlap.voiced >= settings.stop_after and overlap.strong >= settings.flat * overlap.voiced

    def _goes_on(self, overlap: Overlap, *, acknowledgement: bool) -> bool:
        """Whether it has lasted too long for a listener's sound."""
        settings = self._settings
        enough = settings.stop_after_acknowledgements if acknowledgement else settings.stop_after
        return (
            overlap.voiced >= enough
            and overlap.strong >= settings.stop_strong
            and overlap.density >= settings.density
        )


def _acknowledges(said: str | None) -> bool | None:
    """Whether this has only words that go with listening; None where nothing was said yet."""
    words = "".join(c if c.isalnum() or c == "'" else " " for c in said.lower()).split() if said else []
    return all(word in _ACKNOWLEDGEMENTS for word in words) if words else None
