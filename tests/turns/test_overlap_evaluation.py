"""Overlaps through the machine of a call, with a policy that is told what to do and when."""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path

import msgspec
import numpy as np
import pytest

from tests.support.speech import from_pcm, write_wav
from voicegate.media.codec import FRAME_SAMPLES, PCM_RATE
from voicegate.media.turns.plugins import Action, Hop, Overlap
from voicegate.media.turns.settings import TurnSettings
from voicegate.turns import manifest
from voicegate.turns.overlaps import Reaction, all_barge_ins, figures, run_overlaps


class Listening:
    """Loud is voice; keeps what it heard."""

    def __init__(self) -> None:
        self.frames: list[bytes] = []

    def push(self, frame: bytes) -> Hop:
        self.frames.append(frame)
        peak = int(np.max(np.abs(np.frombuffer(frame, "<i2").astype(int))))
        return Hop(peak > 5_000, -20.0 if peak > 5_000 else -60.0)

    def reset(self) -> None:
        pass


class Scripted:
    """An action at a place of the overlap, in frames of its voice or after it."""

    def __init__(self, script: Mapping[int, Action]) -> None:
        self._script = script
        self.seen: list[Overlap] = []

    def decide(self, overlap: Overlap) -> tuple[Action, str]:
        self.seen.append(overlap)
        return self._script.get(round(overlap.seconds / 0.02), Action.IGNORE), "scripted"

    def over(self, overlap: Overlap, stopped: bool) -> None:
        pass


def row(
    folder: Path, *, onset: float = 1.0, voice: float = 0.6, barge_in: bool = True, echo: bool = False
) -> manifest.Overlap:
    """A microphone with a loud tone, an agent of 3 s of 0.25, its echo of 0.02."""
    sound = np.full(round(3 * PCM_RATE), 0.001, np.float32)
    sound[round(onset * PCM_RATE) : round((onset + voice) * PCM_RATE)] = 0.5
    write_wav(folder / "mic.wav", sound, PCM_RATE)
    write_wav(folder / "agent.wav", np.full(3 * PCM_RATE, 0.25, np.float32), PCM_RATE)
    write_wav(folder / "echo.wav", np.full(3 * PCM_RATE, 0.02, np.float32), PCM_RATE)
    return manifest.Overlap(
        "mic.wav",
        "agent.wav",
        "made",
        barge_in,
        onset,
        onset + voice,
        "echo.wav" if echo else "",
        0.11 if echo else 0.0,
        "wait a moment",
    )


def react(
    folder: Path,
    overlap: manifest.Overlap,
    script: Mapping[int, Action],
    transcript_after: float | None = None,
) -> tuple[Reaction, Listening, Scripted]:
    activity, policy = Listening(), Scripted(script)
    settings = TurnSettings(judge="upstream")
    (reaction,) = run_overlaps([overlap], folder, settings, lambda: (activity, policy), transcript_after)
    return reaction, activity, policy


def test_a_pause_and_a_stop_are_timed_from_the_onset(tmp_path: Path) -> None:
    reaction, _, _ = react(tmp_path, row(tmp_path), {3: Action.PAUSE, 20: Action.STOP})
    assert reaction.pauses == pytest.approx((1.06,))
    assert reaction.stopped == pytest.approx(1.4)
    (of_kind,) = figures([reaction])
    assert of_kind.pause == pytest.approx((0.06, 0.06))
    assert of_kind.stop == pytest.approx((0.4, 0.4))
    assert of_kind.stopped == 1.0
    assert of_kind.gap is None
    assert all_barge_ins([reaction]).stopped == 1.0  # type: ignore[union-attr]


def test_a_pause_that_comes_to_nothing_leaves_a_gap(tmp_path: Path) -> None:
    overlap = row(tmp_path, barge_in=False)
    reaction, _, _ = react(tmp_path, overlap, {3: Action.PAUSE, 40: Action.RESUME})
    assert reaction.stopped is None
    assert reaction.gaps == pytest.approx((0.74,))
    (of_kind,) = figures([reaction])
    assert (of_kind.paused, of_kind.stopped, of_kind.stop) == (1.0, 0.0, None)
    assert of_kind.gap == pytest.approx((0.74, 0.74))
    assert all_barge_ins([reaction]) is None


def test_a_barge_in_that_nothing_answers_is_missed(tmp_path: Path) -> None:
    reaction, _, _ = react(tmp_path, row(tmp_path), {})
    (of_kind,) = figures([reaction])
    assert of_kind.stopped == 0.0
    assert of_kind.pause == (math.inf, math.inf)


def test_echo_comes_back_late_and_only_of_what_was_sent(tmp_path: Path) -> None:
    overlap = row(tmp_path, echo=True)
    _, activity, _ = react(tmp_path, overlap, {3: Action.PAUSE, 40: Action.RESUME})
    heard = from_pcm(b"".join(activity.frames))
    quiet, echo = 0.001, 0.021
    delay = round(0.11 * PCM_RATE)
    assert heard[delay - 1] == pytest.approx(quiet, abs=1e-4)
    assert heard[delay] == pytest.approx(echo, abs=1e-4)
    held = round(1.06 * PCM_RATE) + delay
    assert heard[held - 1] == pytest.approx(0.52, abs=1e-3)
    assert heard[held] == pytest.approx(0.5, abs=1e-3)
    went_on = round(1.8 * PCM_RATE) + delay
    assert heard[went_on - 1] == pytest.approx(quiet, abs=1e-4)
    assert heard[went_on + FRAME_SAMPLES] == pytest.approx(echo, abs=1e-4)


def test_a_transcript_is_told_when_it_would_have_come(tmp_path: Path) -> None:
    _, _, policy = react(tmp_path, row(tmp_path, voice=0.3), {}, transcript_after=0.1)
    told = [overlap for overlap in policy.seen if overlap.said is not None]
    assert told[0].said == "wait a moment"
    assert told[0].words == 3
    assert told[0].seconds == pytest.approx(0.4, abs=0.021)
    _, _, policy = react(tmp_path, row(tmp_path, voice=0.3), {})
    assert not [overlap for overlap in policy.seen if overlap.said is not None]


def test_what_was_said_before_the_answer_is_heard_and_is_no_overlap(tmp_path: Path) -> None:
    overlap = msgspec.structs.replace(row(tmp_path, echo=True), agent_onset=0.9)
    reaction, activity, policy = react(tmp_path, overlap, {3: Action.PAUSE, 40: Action.RESUME})
    assert len(activity.frames) == 150
    assert reaction.pauses == pytest.approx((1.06,))
    assert policy.seen[0].agent == pytest.approx(1.02 - 0.9)
    heard = from_pcm(b"".join(activity.frames))
    assert heard[round(1.005 * PCM_RATE)] == pytest.approx(0.5, abs=1e-3)  # the echo comes with the answer
    assert heard[round(1.015 * PCM_RATE)] == pytest.approx(0.52, abs=1e-3)
    (of_kind,) = figures([reaction])
    assert of_kind.idle == 0.0
    early = msgspec.structs.replace(overlap, onset=1.4)
    assert figures([replace(reaction, overlap=early)])[0].idle == pytest.approx(60 / 0.5)


def reaction(**changes: object) -> Reaction:
    overlap = manifest.Overlap("a", "b", "made", True, 1.0, 2.0)
    fields = {"overlap": overlap, "pauses": (), "stopped": None, "gaps": (), "seconds": 3.0} | changes
    return Reaction(**fields)  # type: ignore[arg-type]


def test_a_stop_before_the_barge_in_is_no_answer_to_it() -> None:
    early = reaction(pauses=(0.4,), stopped=0.9)
    assert early.stopped_before
    assert not early.interrupted
    (of_kind,) = figures([early])
    assert of_kind.stopped == 0.0
    assert of_kind.pause is None  # there was nothing left to pause


def test_output_that_is_held_already_needs_no_pause() -> None:
    assert figures([reaction(pauses=(0.8,), gaps=(0.5,))])[0].pause == (0.0, 0.0)
    assert figures([reaction(pauses=(0.8,))])[0].pause == (0.0, 0.0)
    assert figures([reaction(pauses=(0.5, 1.1), gaps=(0.3,))])[0].pause == pytest.approx((0.1, 0.1))


def test_pauses_for_nothing_are_counted_by_the_minute() -> None:
    """Over the time in which the person makes no sound yet: one second here."""
    assert figures([reaction(pauses=(0.2, 0.6, 1.1), gaps=(0.1, 0.1))])[0].idle == pytest.approx(120)
    echo = manifest.Overlap("a", "b", "echo", False)
    assert figures([reaction(overlap=echo, pauses=(0.2, 2.9), gaps=(0.1,))])[0].idle == pytest.approx(40)
