"""What the turn machine decides, for those who want to know: counts, events, the shell's log and histograms.
Pure.

A decision is an event `voicegate.turn.<what>` with its reason, for each party that has asked by sending
`{"type": "voicegate.turns.watch"}`, and for a recording. docs/turns.md names them all.
"""

from __future__ import annotations

from collections import Counter, deque
from typing import Any, Final, NamedTuple

from voicegate.media.turns import decisions as d
from voicegate.media.turns.plugins import Pause, TurnJudge
from voicegate.proto.realtime import SAMPLE_RATE
from voicegate.roles.transceiver.outbox import EVERYONE, Audience, Outbox

WATCH: Final = "voicegate.turns.watch"
"""The client event that asks for decisions; it is not for the agent."""

MAX_TOLD: Final = 64
"""Decisions that the shell has not taken: it takes them after each input, which makes a few."""

MAX_KINDS: Final = 128
"""Decisions and reasons that are counted apart; a plug-in may have reasons of its own."""


class Told(NamedTuple):
    """A decision, for the log and the histograms."""

    what: str
    reason: str
    fields: dict[str, Any]


class Question(NamedTuple):
    """For a judge that is to be asked in a thread."""

    judge: TurnJudge
    pause: Pause


class TurnEvents:
    """One call's."""

    def __init__(self, outbox: Outbox) -> None:
        self.counts: Counter[tuple[str, str]] = Counter()
        """By decision and reason, since the start."""
        self._outbox = outbox
        self._watchers = Audience(0)
        self._news: deque[Told | Question] = deque(maxlen=MAX_TOLD)

    def watch(self, audience: Audience) -> None:
        """This party wants to see decisions."""
        self._watchers |= audience

    def decided(self, decision: d.Decision, base: int) -> None:
        """`base`: samples of the call before those that the machine counts."""
        what, reason, fields = _describe(decision, base)
        self.tell(what, reason, fields)

    def tell(self, what: str, reason: str, fields: dict[str, Any]) -> None:
        """Something happened to a turn that a decision of the machine does not say."""
        counted = (what, reason)
        if counted not in self.counts and len(self.counts) >= MAX_KINDS:
            counted = (what, "other")
        self.counts[counted] += 1
        self._news.append(Told(what, reason, fields))
        # That a person is idle is for whoever has `turns.user_idle_seconds` set.
        to = EVERYONE if what == "user_idle" else self._watchers
        if to or self._outbox.tap is not None:
            more = {"reason": reason} if reason else {}
            self._outbox.make(f"voicegate.turn.{what}", to, **more, **fields)

    def ask(self, question: Question) -> None:
        self._news.append(question)

    def poll(self) -> Told | Question | None:
        """The next thing for the shell."""
        return self._news.popleft() if self._news else None


def _describe(decision: d.Decision, base: int) -> tuple[str, str, dict[str, Any]]:
    match decision:
        case d.SpeechStarted(at):
            return "speech_started", "", {"audio_start_ms": _ms(at, base)}
        case d.PauseBegan(pause_id, at):
            return "pause_began", "", {"pause_id": pause_id, "audio_end_ms": _ms(at, base)}
        case d.JudgeAsked(pause):
            return "judge_asked", "", {"pause_id": pause.id, "silence_ms": _whole(pause.silence)}
        case d.Judged(verdict, silence):
            numbers = {"done": round(verdict.done, 3), "hold_ms": _whole(verdict.hold)}
            return (
                "judged",
                verdict.reason,
                {"pause_id": verdict.pause_id, "silence_ms": _whole(silence), **numbers},
            )
        case d.VerdictDropped(verdict):
            return "verdict_dropped", verdict.reason, {"pause_id": verdict.pause_id}
        case d.EagerEnd(pause_id):
            return "eager", "", {"pause_id": pause_id}
        case d.Resumed(pause_id, silence, eager):
            return (
                "resumed",
                "eager" if eager else "",
                {"pause_id": pause_id, "silence_ms": _whole(silence), "eager": eager},
            )
        case d.TurnEnded():
            fields = {"audio_end_ms": _ms(decision.at, base), "silence_ms": _whole(decision.silence)}
            return (
                "ended",
                decision.reason,
                {"pause_id": decision.pause_id, "eager": decision.eager, **fields},
            )
        case d.OutputPaused(reason, after):
            return "output_paused", reason, {"after_ms": _whole(after)}
        case d.OutputResumed(reason, after):
            return "output_resumed", reason, {"after_ms": _whole(after)}
        case d.OutputStopped(reason, after):
            return "output_stopped", reason, {"after_ms": _whole(after)}
        case d.IdleTimeout(start, end):
            return "idle_timeout", "", {"audio_start_ms": _ms(start, base), "audio_end_ms": _ms(end, base)}
        case d.UserIdle(seconds):
            return "user_idle", "", {"seconds": seconds}


def _ms(place: int, base: int) -> int:
    return (base + place) * 1000 // SAMPLE_RATE


def _whole(seconds: float) -> int:
    """Milliseconds; a day where there is no end."""
    return round(min(seconds, 86_400.0) * 1000)
