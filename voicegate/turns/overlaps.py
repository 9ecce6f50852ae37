"""Overlaps played to a turn machine while an agent speaks: what it pauses and stops for, and how soon.

The agent's sound is under the machine's control here as in a call: while it is held nothing of it is sent,
and so nothing of it comes back as echo.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import lru_cache
from itertools import zip_longest
from pathlib import Path
from typing import Final

import numpy as np
from numpy.typing import NDArray

from voicegate.media.codec import FRAME_SAMPLES, FRAME_SECONDS, PCM_RATE
from voicegate.media.turns.decisions import OutputPaused, OutputResumed, OutputStopped
from voicegate.media.turns.fixed import Upstream
from voicegate.media.turns.machine import TurnMachine
from voicegate.media.turns.plugins import InterruptionPolicy, VoiceActivity
from voicegate.media.turns.settings import TurnSettings
from voicegate.turns.manifest import Overlap
from voicegate.turns.sound import read_frames
from voicegate.turns.sweep import percentile

MakePlugins = Callable[[], tuple[VoiceActivity, InterruptionPolicy]]

_MISSING: Final = math.inf


@dataclass(frozen=True, slots=True)
class Reaction:
    """What the machine did in one overlap. Seconds from the beginning of the recording."""

    overlap: Overlap
    pauses: tuple[float, ...]
    stopped: float | None
    gaps: tuple[float, ...]
    """How long each pause was that the agent's sound went on after."""
    seconds: float
    """Of the recording."""

    @property
    def stopped_before(self) -> bool:
        """Stopped for something else: what the person then did could stop nothing."""
        return self.stopped is not None and self.stopped < (self.overlap.onset or 0.0)

    @property
    def interrupted(self) -> bool:
        """Stopped, and a barge-in by itself."""
        return self.stopped is not None and not (self.overlap.barge_in and self.stopped_before)

    def held_at(self, at: float) -> bool:
        """Whether the agent's sound was held at this moment."""
        ends = [pause + gap for pause, gap in zip(self.pauses, self.gaps, strict=False)]
        return any(begin < at < end for begin, end in zip_longest(self.pauses, ends, fillvalue=math.inf))


@dataclass(frozen=True, slots=True)
class KindFigures:
    """All overlaps of one kind. Seconds; None where there is nothing to count."""

    kind: str
    barge_in: bool
    count: int
    paused: float
    """Share in which the agent's sound was held or stopped at all."""
    idle: float
    """Pauses a minute for nothing: before the onset, or anywhere where the person makes no sound."""
    stopped: float
    """Share: false stops, or of a barge-in: what was not missed."""
    pause: tuple[float, float] | None
    """p50 and p95 from the onset to the decision to pause (or to stop, without a pause); `inf` where so many
    were not. Without those that were stopped before the onset."""
    stop: tuple[float, float] | None
    gap: tuple[float, float] | None
    """p50 and p95 of the silence that a pause put into the agent's sound when it went on."""


def run_overlaps(
    overlaps: Sequence[Overlap],
    folder: Path,
    settings: TurnSettings,
    make_plugins: MakePlugins,
    transcript_after: float | None = None,
) -> list[Reaction]:
    """Play each to a machine of its own. `transcript_after`: the agent tells what was said so many seconds
    after the end of it; None: it has no transcript of what is said while it speaks."""
    return [_run(overlap, folder, settings, make_plugins, transcript_after) for overlap in overlaps]


def figures(reactions: Sequence[Reaction]) -> list[KindFigures]:
    """By kind, in the order in which the kinds appear."""
    kinds: dict[str, list[Reaction]] = {}
    for reaction in reactions:
        kinds.setdefault(reaction.overlap.kind, []).append(reaction)
    return [_of_kind(kind, of_kind) for kind, of_kind in kinds.items()]


def all_barge_ins(reactions: Sequence[Reaction]) -> KindFigures | None:
    """All that are meant to interrupt, whatever their kind."""
    barge_ins = [reaction for reaction in reactions if reaction.overlap.barge_in]
    return _of_kind("all barge-ins", barge_ins) if barge_ins else None


def _of_kind(kind: str, reactions: Sequence[Reaction]) -> KindFigures:
    barge_in = reactions[0].overlap.barge_in
    told = [reaction for reaction in reactions if not reaction.stopped_before]
    gaps = [gap for reaction in reactions for gap in reaction.gaps]
    return KindFigures(
        kind,
        barge_in,
        len(reactions),
        _share(reactions, lambda reaction: bool(reaction.pauses) or reaction.stopped is not None),
        _idle_pauses(reactions),
        _share(reactions, lambda reaction: reaction.interrupted),
        _middle_and_late([_to_pause(reaction) for reaction in told if reaction.overlap.onset is not None]),
        _middle_and_late([_to_stop(reaction) for reaction in told if barge_in]),
        _middle_and_late(gaps),
    )


def _share(reactions: Sequence[Reaction], what: Callable[[Reaction], bool]) -> float:
    return sum(map(what, reactions)) / len(reactions)


def _idle_pauses(reactions: Sequence[Reaction]) -> float:
    until = [
        reaction.seconds if reaction.overlap.onset is None else reaction.overlap.onset
        for reaction in reactions
    ]
    count = sum(
        sum(at < end for at in reaction.pauses) for reaction, end in zip(reactions, until, strict=True)
    )
    spoken = sum(until) - sum(reaction.overlap.agent_onset for reaction in reactions)
    return 60 * count / max(spoken, FRAME_SECONDS)


def _to_pause(reaction: Reaction) -> float:
    """From the onset. A pause that something else began and that lasts at the onset counts as 0."""
    onset = reaction.overlap.onset or 0.0
    if reaction.held_at(onset):
        return 0.0
    return min((at - onset for at in reaction.pauses if at >= onset), default=_to_stop(reaction))


def _to_stop(reaction: Reaction) -> float:
    return _MISSING if reaction.stopped is None else reaction.stopped - (reaction.overlap.onset or 0.0)


def _middle_and_late(values: Sequence[float]) -> tuple[float, float] | None:
    rising = sorted(values)
    return (percentile(rising, 0.5), percentile(rising, 0.95)) if rising else None


def _run(
    overlap: Overlap,
    folder: Path,
    settings: TurnSettings,
    make_plugins: MakePlugins,
    transcript_after: float | None,
) -> Reaction:
    activity, policy = make_plugins()
    machine = TurnMachine(settings, activity, Upstream(), policy)
    agent = _Agent(
        _frames(folder / overlap.agent),
        _frames(folder / overlap.echo) if overlap.echo else None,
        overlap.echo_delay,
    )
    told_at = None
    if transcript_after is not None and overlap.said and overlap.end is not None:
        told_at = overlap.end + transcript_after
    now = 0.0
    frames = read_frames(folder / overlap.file)
    before = round(overlap.agent_onset / FRAME_SECONDS)
    for frame in frames[:before]:
        now += FRAME_SECONDS
        machine.push(frame, now)
    machine.output_began(now)
    for frame in frames[before:]:
        sent = agent.send()
        if sent is not None:
            machine.push_output(sent, now)
        now += FRAME_SECONDS
        machine.push(agent.heard_with(frame), now)
        if told_at is not None and now >= told_at:
            machine.take_transcript(overlap.said, now)
            told_at = None
        _obey(machine, agent, now)
    return Reaction(overlap, tuple(agent.pauses), agent.stopped, tuple(agent.gaps), now)


def _obey(machine: TurnMachine, agent: _Agent, now: float) -> None:
    while (decision := machine.poll_decision()) is not None:
        if isinstance(decision, OutputPaused):
            agent.hold(now)
        elif isinstance(decision, OutputResumed):
            agent.go_on(now)
        elif isinstance(decision, OutputStopped):
            agent.stop(now)


class _Agent:
    """Its sound, as far as it is sent, and its echo. Sound that is at an end goes on in silence."""

    def __init__(self, frames: Sequence[bytes], echo: Sequence[bytes] | None, delay: float) -> None:
        self.pauses: list[float] = []
        self.gaps: list[float] = []
        self.stopped: float | None = None
        self._frames = frames
        self._echo = echo
        self._delay = round(delay * PCM_RATE)
        self._air: NDArray[np.int32] = np.zeros(self._delay + FRAME_SAMPLES, np.int32)
        self._next = 0
        self._held = False

    def send(self) -> bytes | None:
        """The frame that leaves now; None where none does. Its echo is on its way."""
        place = self._next
        if self._held or self.stopped is not None or place >= len(self._frames):
            return None
        self._next += 1
        if self._echo is not None and place < len(self._echo):
            self._air[self._delay :] = np.frombuffer(self._echo[place], "<i2")
        return self._frames[place]

    def heard_with(self, frame: bytes) -> bytes:
        """The microphone's frame with the echo that reaches it now."""
        if self._echo is None:
            return frame
        mixed = np.frombuffer(frame, "<i2") + self._air[:FRAME_SAMPLES]
        self._air = np.concatenate([self._air[FRAME_SAMPLES:], np.zeros(FRAME_SAMPLES, np.int32)])
        return np.clip(mixed, -32768, 32767).astype("<i2").tobytes()

    def hold(self, now: float) -> None:
        self._held = True
        self.pauses.append(now)

    def go_on(self, now: float) -> None:
        self._held = False
        self.gaps.append(now - self.pauses[-1])

    def stop(self, now: float) -> None:
        self.stopped = now


@lru_cache(maxsize=64)
def _frames(path: Path) -> list[bytes]:
    """Many overlaps share what the agent says."""
    return read_frames(path)
