"""The agent's side: its output, and whether what is said over it is an interruption."""

from __future__ import annotations

import math
from typing import Final, NamedTuple

from voicegate.media.codec import FRAME_SAMPLES, PCM_RATE
from voicegate.media.turns.decisions import OutputPaused, OutputResumed, OutputStopped
from voicegate.media.turns.echo import EchoGuard
from voicegate.media.turns.ledger import Ledger
from voicegate.media.turns.loudness import Loudness
from voicegate.media.turns.microphone import EPSILON, STALL, Microphone
from voicegate.media.turns.output import AgentOutput
from voicegate.media.turns.overlap import OpenOverlap
from voicegate.media.turns.plugins import Action, Hop, InterruptionPolicy, Overlap

OVERLAP_OVER: Final = 0.5
"""Seconds of silence after which the next sound over the output is another one."""
STILL_SPEAKING: Final = 0.1
"""Seconds of silence within a word."""
HELD_MOST: Final = 2.0
"""Seconds for which a policy may hold the output undecided; a person takes longer silence for a lost call."""
WORDS_LATE: Final = 3.0
"""Seconds after a sound within which its transcript still counts, be the output held or not any more."""
ECHO_TAIL: Final = 0.5
"""Seconds after the output within which a sound may still be its echo."""
LAST_WORDS: Final = 1.0
"""Seconds before the output's end within which speech is meant for the time after it."""


class Speech(NamedTuple):
    """What was said over the output and is a turn of its own."""

    onset: int
    """Sample of its first voice."""
    said: str | None
    """Its transcript so far."""


class Agent:
    """One call's. `interruptible` is the client's wish, for all answers."""

    def __init__(
        self, policy: InterruptionPolicy, microphone: Microphone, ledger: Ledger, *, interruptible: bool
    ) -> None:
        self._policy = policy
        self._microphone = microphone
        self._ledger = ledger
        self._interruptible = interruptible
        self._protected = False
        self._echo = EchoGuard()
        self._output = AgentOutput()
        self._loudness = Loudness()
        self._overlap: OpenOverlap | None = None
        self._settled: OpenOverlap | None = None  # the last one, whose words may still come

    @property
    def speaking(self) -> bool:
        """Whether an answer is under way, held or not."""
        return self._output.speaking

    def send(self, frame: bytes, now: float) -> None:
        self._echo.send(frame, now)

    def begin(self) -> None:
        if not self._output.speaking:
            self._echo.forget()
        self._output.begin(self._microphone.position)
        self._settled = None

    def go_on(self, now: float) -> None:
        """Somebody else has decided that what was held, or taken for stopped, goes on."""
        self._output.release(now)
        self.begin()

    def ending(self, remaining: float, now: float) -> None:
        self._output.ending(remaining, now)

    def over(self, now: float) -> Speech | None:
        """All was heard, or dropped. Returns speech that goes on, or was meant for the time after."""
        overlap, seen = self._overlap, self._seen(now)
        self._overlap = None
        self._output.over(self._microphone.position)
        if overlap is None or seen is None:
            return None
        self._policy.over(seen, False)
        late = seen.silence < STILL_SPEAKING or seen.seconds <= LAST_WORDS
        return Speech(overlap.onset, overlap.said) if overlap.likely and late else None

    def is_echo(self, hop: Hop, now: float) -> bool:
        """Whether the voice in the next frame of the microphone is the agent's own."""
        output, position = self._output, self._microphone.position
        if not output.speaking and (output.ended is None or position - output.ended > ECHO_TAIL * PCM_RATE):
            return False
        return self._echo.is_echo(hop, position / PCM_RATE, now)

    def hear_turn(self, hop: Hop) -> None:
        """A frame of a turn of the person's own."""
        if hop.voiced:
            self._loudness.hear(hop.level)

    def hear(self, hop: Hop, echo: bool, now: float) -> Speech | None:
        """A frame of the microphone while the agent speaks, its echo taken out. Returns an interruption."""
        microphone, overlap = self._microphone, self._overlap
        if overlap is None:
            if not hop.voiced:
                return None
            overlap = self._overlap = OpenOverlap(microphone.position - FRAME_SAMPLES)
        overlap.hear(hop, echo, microphone.position, microphone.likely, microphone.last(2))
        if not self._output.held:
            silent = microphone.position - overlap.last_voice >= OVERLAP_OVER * PCM_RATE
            if silent if overlap.likely else microphone.evidence == 0:
                self._settle(overlap, "over", now)
                return None
        return self._ask(overlap, now)

    def take_transcript(self, text: str, now: float) -> Speech | None:
        if self._overlap is not None:
            self._overlap.said = text
            return self._ask(self._overlap, now)
        overlap = self._settled
        if overlap is None or not self._interruptible_now or not self._output.speaking:
            return None
        if self._microphone.position - overlap.last_voice > WORDS_LATE * PCM_RATE:
            return None
        overlap.said = text
        seen = self._see(overlap, now)
        action, reason = self._policy.decide(seen)
        return self._stop(overlap, seen, reason) if action is Action.STOP else None

    def protect(self, on: bool, now: float) -> None:
        self._protected = on
        self._let_go_if_protected(now)

    def configure(self, interruptible: bool, now: float) -> None:
        self._interruptible = interruptible
        if self._overlap is not None and not interruptible:
            self._settle(self._overlap, "protected", now)  # from here on what is said is a turn

    def clear(self, now: float) -> None:
        """What was said over the output is void."""
        if self._overlap is not None:
            self._settle(self._overlap, "cleared", now)
        self._settled = None

    def deadline(self) -> float:
        """When something is due should no frame come."""
        heard_at = self._microphone.heard_at
        return heard_at + STALL if heard_at is not None and self._output.held else math.inf

    def held_until(self) -> float:
        """When no policy may hold the output any longer, frames or none."""
        since = self._output.held_since
        return math.inf if since is None else since + HELD_MOST

    def held_for_long(self, now: float) -> Speech | None:
        """That time has come. Returns an interruption."""
        assert self._overlap is not None  # the output is held
        return self._ask(self._overlap, now)

    def without_frames(self, now: float) -> Speech | None:
        """`deadline` has come: no frames are silence, and silence holds nothing."""
        overlap = self._overlap
        assert overlap is not None  # the output is held
        speech = self._ask(overlap, now)
        if self._output.held:
            self._settle(overlap, "held", now)
        return speech

    def _ask(self, overlap: OpenOverlap, now: float) -> Speech | None:
        output = self._output
        if not self._interruptible_now:
            return None
        seen = self._see(overlap, now)
        action, reason = self._policy.decide(seen)
        undecided = action is Action.IGNORE or action is Action.PAUSE
        if undecided and output.held_since is not None and now - output.held_since >= HELD_MOST - EPSILON:
            going_on = seen.silence < STILL_SPEAKING and seen.density >= 0.5
            action, reason = Action.STOP if going_on else Action.RESUME, "held"
        if action is Action.STOP:
            return self._stop(overlap, seen, reason)
        if action is Action.PAUSE and not output.held:
            output.hold(now)
            self._ledger.decide(OutputPaused(reason, seen.seconds))
        elif action is Action.RESUME and output.held:
            if seen.silence >= STILL_SPEAKING:
                self._settle(overlap, reason, now)
            else:  # not for what was said so far, which goes on
                self._let_go(overlap, reason, now)
        return None

    @property
    def _interruptible_now(self) -> bool:
        return self._interruptible and not self._protected

    def _stop(self, overlap: OpenOverlap, seen: Overlap, reason: str) -> Speech:
        self._overlap = self._settled = None
        self._output.over(self._microphone.position)
        self._ledger.decide(OutputStopped(reason, seen.seconds))
        self._policy.over(seen, True)
        return Speech(overlap.onset, overlap.said)

    def _settle(self, overlap: OpenOverlap, reason: str, now: float) -> None:
        """It was no interruption."""
        seen = self._see(overlap, now)
        if self._output.held:
            self._let_go(overlap, reason, now)
        self._overlap, self._settled = None, overlap
        self._policy.over(seen, False)

    def _let_go_if_protected(self, now: float) -> None:
        if self._output.held and self._overlap is not None and not self._interruptible_now:
            self._let_go(self._overlap, "protected", now)

    def _let_go(self, overlap: OpenOverlap, reason: str, now: float) -> None:
        self._output.release(now)
        self._ledger.decide(OutputResumed(reason, overlap.seconds(self._microphone.position)))

    def _seen(self, now: float) -> Overlap | None:
        return None if self._overlap is None else self._see(self._overlap, now)

    def _see(self, overlap: OpenOverlap, now: float) -> Overlap:
        """The overlap as the policy is told of it."""
        output, position = self._output, self._microphone.position
        level, usual = overlap.level, self._loudness.usual
        strong, pitched = overlap.strong()
        return Overlap(
            seconds=overlap.seconds(position),
            voiced=overlap.voiced,
            strong=strong,
            pitched=pitched,
            syllables=overlap.syllables,
            silence=(position - overlap.last_voice) / PCM_RATE + self._microphone.missing(now),
            level=level,
            loudness=None if usual is None else level - usual,
            echo=overlap.echo,
            agent=output.spoken(position),
            remaining=output.remaining(now),
            paused=output.held,
            words=None if overlap.said is None else len(overlap.said.split()),
            said=overlap.said,
        )
