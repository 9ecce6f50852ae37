"""Turns played to a turn machine: where it ends them, and where they ended."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass

from voicegate.media.codec import FRAME_SECONDS
from voicegate.media.turns.decisions import JudgeAsked, SpeechStarted, TurnEnded
from voicegate.media.turns.interruption import DefaultPolicy
from voicegate.media.turns.machine import TurnMachine
from voicegate.media.turns.plugins import TurnJudge
from voicegate.media.turns.settings import TurnSettings
from voicegate.turns.recording import Recording, Replay


@dataclass(frozen=True, slots=True)
class Outcome:
    """What became of one turn."""

    cut_in: bool
    """The machine ended it before its true end: the agent would have begun to speak."""
    wait: float
    """Seconds from the true end to the machine's; of a turn that the machine never ended, what is left of the
    recording."""
    ended: bool


def run_calls(
    calls: Sequence[Sequence[Recording]], settings: TurnSettings, make_judge: Callable[[], TurnJudge]
) -> list[Outcome]:
    """What becomes of all turns; each call has a judge of its own."""
    return [outcome for call in calls for outcome in _run_call(call, settings, make_judge())]


def _run_call(call: Sequence[Recording], settings: TurnSettings, judge: TurnJudge) -> list[Outcome]:
    activity = Replay()
    machine = TurnMachine(settings, activity, judge, DefaultPolicy())
    now = 0.0
    outcomes = []
    for recording in call:
        activity.begin(recording)
        outcome, now = _run_turn(recording, machine, judge, now)
        outcomes.append(outcome)
        _answer(machine, now)
    return outcomes


def _run_turn(
    recording: Recording, machine: TurnMachine, judge: TurnJudge, now: float
) -> tuple[Outcome, float]:
    """Until the machine ends it for good: then the agent answers. Also the time at which it does."""
    ends: list[float] = []
    speaking = False
    for place, frame in enumerate(recording.frames, 1):
        now += FRAME_SECONDS
        machine.push(frame, now)
        while (decision := machine.poll_decision()) is not None:
            if isinstance(decision, TurnEnded):
                ends.append(place * FRAME_SECONDS)
                speaking = False
            elif isinstance(decision, SpeechStarted):
                speaking = True
            elif isinstance(decision, JudgeAsked):
                # A judge in a thread answers some time later; how long it takes is not of its judgement.
                machine.take_verdict(judge.judge(decision.pause), now)
        if ends and ends[-1] >= recording.turn.end:
            break
    return _outcome(recording, ends, speaking), now


def _outcome(recording: Recording, ends: Sequence[float], speaking: bool) -> Outcome:
    end = recording.turn.end
    cut_in = any(at < end for at in ends)
    after = [at - end for at in ends if at >= end]
    if after:
        return Outcome(cut_in, after[0], True)
    if ends and not speaking:
        return Outcome(cut_in, 0.0, True)  # cut off within its last words: the agent speaks already
    return Outcome(cut_in, recording.seconds - end, False)


def _answer(machine: TurnMachine, now: float) -> None:
    """The agent says something between two turns of a call. It is over before the next recording begins."""
    machine.output_began(now)
    machine.output_over(now)
    while machine.poll_decision() is not None:
        pass
