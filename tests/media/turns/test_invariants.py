"""voicegate.media.turns.machine: any sequence of speech, verdicts, timers and agent events keeps its word.

Whoever carries the decisions out is modelled here by what a decision allows: a turn is open or not, its pause
too, and the output is silent, speaking or held.
"""

from __future__ import annotations

import math
from dataclasses import replace

from hypothesis import settings as hypothesis_settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, initialize, invariant, precondition, rule

from tests.media.turns.calls import QUIET, START, VOICE, MarkedActivity, ScriptedJudge
from voicegate.media.codec import FRAME_SAMPLES
from voicegate.media.turns.agent import HELD_MOST
from voicegate.media.turns.decisions import (
    Decision,
    EagerEnd,
    IdleTimeout,
    JudgeAsked,
    Judged,
    OutputPaused,
    OutputResumed,
    OutputStopped,
    PauseBegan,
    Resumed,
    SpeechStarted,
    TurnEnded,
    UserIdle,
    VerdictDropped,
)
from voicegate.media.turns.interruption import DefaultPolicy
from voicegate.media.turns.machine import TurnMachine
from voicegate.media.turns.plugins import Action, InterruptionPolicy, Overlap, Verdict
from voicegate.media.turns.settings import TurnSettings

HOLDS = st.sampled_from([0.0, 0.1, 0.5, 1.5, 9.0, math.inf, math.nan])


class Whimsical:
    """A policy that says anything at all."""

    def __init__(self) -> None:
        self.next = Action.IGNORE
        self.told = 0

    def decide(self, overlap: Overlap) -> tuple[Action, str]:
        assert overlap.seconds >= overlap.voiced - 1e-6 >= 0
        assert overlap.silence >= 0 and 0 <= overlap.echo <= 1
        return self.next, "whim"

    def over(self, overlap: Overlap, stopped: bool) -> None:
        self.told += 1


class AnyCall(RuleBasedStateMachine):
    turn_open = False
    pause: int | None = None
    last_pause = 0
    eager = False
    output = "silent"
    held_at = 0.0
    last_sample = 0

    @initialize(
        inline=st.booleans(),
        whimsical=st.booleans(),
        hold=HOLDS,
        settings=st.builds(
            TurnSettings,
            max_silence=st.sampled_from([0.3, 2.0]),
            max_turn=st.sampled_from([None, 1.0]),
            eager=st.booleans(),
            interrupts=st.sampled_from([True, True, False]),
            idle_timeout=st.sampled_from([None, 1.0]),
            user_idle=st.sampled_from([None, 3.0]),
        ),
    )
    def begin(self, inline: bool, whimsical: bool, hold: float, settings: TurnSettings) -> None:
        self.now = START
        self.settings = settings
        self.judge = ScriptedJudge(hold, schedule=(0.1, 0.2, 0.6), inline=inline, eager=True)
        self.whims = Whimsical()
        policy: InterruptionPolicy = self.whims if whimsical else DefaultPolicy()
        self.machine = TurnMachine(settings, MarkedActivity(), self.judge, policy)
        self.pushed = 0

    @rule(frames=st.lists(st.booleans(), max_size=30), burst=st.booleans())
    def hear(self, frames: list[bool], burst: bool) -> None:
        for voiced in frames:
            self.now += 0.0 if burst else 0.02
            self.machine.push(VOICE if voiced else QUIET, self.now)
            self.pushed += 1
            self.carry_out()

    @rule(frames=st.integers(1, 60), voiced=st.booleans())
    def hear_on(self, frames: int, voiced: bool) -> None:
        self.hear([voiced] * frames, False)

    @rule(voice=st.integers(5, 60), quiet=st.integers(0, 60), voice_again=st.integers(0, 10))
    def speak(self, voice: int, quiet: int, voice_again: int) -> None:
        self.hear([True] * voice + [False] * quiet + [True] * voice_again, False)

    @rule(quiet=st.integers(0, 30), voice=st.integers(0, 60))
    def speak_over_an_answer(self, quiet: int, voice: int) -> None:
        if self.output == "silent":
            self.output_begins()
        self.hear([False] * quiet + [True] * voice, False)

    @precondition(lambda self: self.pause is not None)
    @rule(hold=HOLDS, eager=st.booleans())
    def verdict_on_this_pause(self, hold: float, eager: bool) -> None:
        self.verdict(0, hold, eager)

    @rule(seconds=st.sampled_from([0.0, 0.05, 0.4, 0.6, 3.0]))
    def time_passes(self, seconds: float) -> None:
        """Each deadline is met as the caller meets it, and each brings the next one further on."""
        until = self.now + seconds
        for _ in range(30):
            due = self.machine.next_deadline()
            if due is None or due > until:
                break
            self.now = max(self.now, due)
            self.machine.handle_timeout(self.now)
            self.carry_out()
        else:
            raise AssertionError("deadlines in a loop")
        self.now = until
        assert self.output != "held" or self.now - self.held_at < HELD_MOST

    @rule(seconds=st.sampled_from([0.3, 2.0, 20.0]))
    def everything_stands_still(self, seconds: float) -> None:
        self.now += seconds
        self.machine.handle_timeout(self.now)
        self.carry_out()

    @rule(offset=st.integers(0, 2), hold=HOLDS, eager=st.booleans())
    def verdict(self, offset: int, hold: float, eager: bool) -> None:
        verdict = Verdict(max(0, self.last_pause - offset), 0.5, hold, "outside", eager)
        current = verdict.pause_id == self.pause
        self.machine.take_verdict(verdict, self.now)
        first = self.machine.poll_decision()
        assert isinstance(first, Judged if current else VerdictDropped)
        self.carry_out()

    @rule()
    def output_begins(self) -> None:
        self.machine.output_began(self.now)
        self.carry_out()
        if self.output == "silent":
            self.output = "speaking"

    @precondition(lambda self: self.output != "silent")
    @rule()
    def output_is_over(self) -> None:
        self.output = "silent"
        self.machine.output_over(self.now)
        self.carry_out()

    @rule(remaining=st.floats(0, 3))
    def output_ends(self, remaining: float) -> None:
        self.machine.output_ending(remaining, self.now)
        self.carry_out()

    @rule(frame=st.sampled_from([VOICE, QUIET]))
    def output_frame(self, frame: bytes) -> None:
        self.machine.push_output(frame, self.now)

    @rule(action=st.sampled_from(Action))
    def whim(self, action: Action) -> None:
        self.whims.next = action

    @rule(on=st.booleans())
    def protect(self, on: bool) -> None:
        self.machine.protect(on, self.now)
        self.carry_out()

    @rule(text=st.sampled_from(["", "mm-hm", "no, wait"]))
    def transcript(self, text: str) -> None:
        self.machine.take_transcript(text, self.now)
        self.carry_out()

    @rule()
    def commit(self) -> None:
        self.machine.commit(self.now)
        self.carry_out()
        assert not self.turn_open

    @rule()
    def clear(self) -> None:
        self.machine.clear(self.now)
        self.carry_out()
        assert not self.eager
        self.turn_open, self.pause = False, None

    @rule(interrupts=st.booleans(), hold=HOLDS)
    def configure(self, interrupts: bool, hold: float) -> None:
        self.settings = replace(self.settings, interrupts=interrupts)
        self.judge = ScriptedJudge(hold, schedule=(0.15,), inline=self.judge.inline)
        self.machine.configure(self.settings, self.judge, self.now)
        self.carry_out()

    @invariant()
    def deadline_is_a_time(self) -> None:
        due = self.machine.next_deadline()
        assert due is None or math.isfinite(due)

    def carry_out(self) -> None:
        while (decision := self.machine.poll_decision()) is not None:
            self.check(decision)

    def check(self, decision: Decision) -> None:
        self.check_sample(decision)
        match decision:
            case SpeechStarted():
                assert not self.turn_open and (self.output == "silent" or not self.settings.interrupts)
                self.turn_open = True
            case PauseBegan(pause_id=pause):
                assert self.turn_open and self.pause is None and pause == self.last_pause + 1
                self.pause = self.last_pause = pause
            case JudgeAsked(pause=asked):
                assert asked.id == self.pause and asked.speech >= 0 and not self.judge.inline
                assert len(asked.audio()) <= self.pushed * FRAME_SAMPLES * 2
            case Judged(verdict=verdict):
                assert verdict.pause_id == self.pause
            case VerdictDropped(verdict=verdict):
                assert verdict.pause_id != self.pause
            case EagerEnd(pause_id=pause):
                assert self.settings.eager and pause == self.pause and not self.eager
                self.eager = True
            case Resumed(pause_id=pause, silence=silence, eager=eager):
                assert pause == self.pause and silence >= 0 and eager == self.eager
                self.pause, self.eager = None, False
            case TurnEnded(pause_id=pause, silence=silence, eager=eager):
                assert self.turn_open and pause == self.pause and silence >= 0 and eager == self.eager
                self.turn_open, self.pause, self.eager = False, None, False
            case OutputPaused():
                assert self.output == "speaking" and not self.turn_open and self.settings.interrupts
                self.output, self.held_at = "held", self.now
            case OutputResumed():
                assert self.output == "held"
                self.output = "speaking"
            case OutputStopped():
                assert self.output in ("speaking", "held") and self.settings.interrupts
                self.output = "silent"
            case IdleTimeout(start=start, end=end):
                assert start <= end and not self.turn_open and self.output == "silent"
            case UserIdle():
                assert not self.turn_open and self.output == "silent"

    def check_sample(self, decision: Decision) -> None:
        """No turn reaches into another, and nothing is said of samples to come."""
        if isinstance(decision, SpeechStarted | TurnEnded):
            assert self.last_sample <= decision.at <= self.pushed * FRAME_SAMPLES
            self.last_sample = decision.at


AnyCall.TestCase.settings = hypothesis_settings(max_examples=250, stateful_step_count=30, deadline=None)
TestAnyCall = AnyCall.TestCase
