"""Turns of known pauses through the machine of a call: which are cut into, and how long each waits."""

from __future__ import annotations

from collections.abc import Sequence

import pytest

from voicegate.media.codec import FRAME_BYTES
from voicegate.media.turns.fixed import FixedSilence
from voicegate.media.turns.plugins import Hop, Pause, TurnJudge, Verdict
from voicegate.media.turns.settings import TurnSettings
from voicegate.turns.evaluate import Outcome, run_calls
from voicegate.turns.manifest import Turn
from voicegate.turns.recording import Recording
from voicegate.turns.sweep import Point, Sweep, percentile, sweep

FRAME = bytes(FRAME_BYTES)
QUIET, VOICE = Hop(False, -60.0), Hop(True, -20.0)


def recording(*lengths: float, tail: float = 3.0) -> Recording:
    """Silence, voice, silence, ... in seconds; a tail of silence behind it."""
    hops: list[Hop] = []
    edges = []
    for place, length in enumerate(lengths):
        hops += [VOICE if place % 2 else QUIET] * round(length / 0.02)
        edges.append(round(len(hops) * 0.02, 2))
    hops += [QUIET] * round(tail / 0.02)
    pauses = tuple(zip(edges[1:-1:2], edges[2::2], strict=True))
    return Recording(Turn("made", edges[-1], pauses), [FRAME] * len(hops), hops)


def fixed(silence: float, *calls: Sequence[Recording]) -> list[Outcome]:
    return run_calls(calls, TurnSettings(judge="fixed"), lambda: FixedSilence(silence))


def test_a_pause_that_is_shorter_than_the_silence_is_waited_out() -> None:
    (outcome,) = fixed(0.5, [recording(0.4, 1.0, 0.4, 1.0)])
    assert not outcome.cut_in
    assert outcome.ended
    assert outcome.wait == pytest.approx(0.5, abs=0.021)


def test_a_longer_one_is_cut_into_and_the_wait_is_still_that_of_the_end() -> None:
    (outcome,) = fixed(0.5, [recording(0.4, 1.0, 0.7, 1.0)])
    assert outcome.cut_in
    assert outcome.wait == pytest.approx(0.5, abs=0.021)


def test_cut_off_in_its_last_word_a_turn_has_no_wait() -> None:
    """The last word is too short to be taken for another turn."""
    (outcome,) = fixed(0.3, [recording(0.4, 1.0, 0.6, 0.04)])
    assert outcome == Outcome(cut_in=True, wait=0.0, ended=True)


def test_a_turn_that_is_never_ended_waits_as_long_as_it_was_listened_to() -> None:
    first, second = fixed(2.0, [recording(0.4, 1.0, tail=1.0), recording(0.4, 1.0, tail=2.5)])
    assert not first.ended
    assert first.wait == pytest.approx(1.0)
    assert second.ended  # and nothing of the first one is left over
    assert second.wait == pytest.approx(2.0, abs=0.021)


class Listening:
    """Notes what it is told of; asked outside the media loop."""

    inline = False
    schedule = (0.2,)

    def __init__(self) -> None:
        self.told: list[tuple[str, float]] = []

    def listen(self, frame: bytes, hop: Hop) -> None:
        pass

    def judge(self, pause: Pause) -> Verdict:
        return Verdict(pause.id, 0.5, 0.4, "made up")

    def resumed(self, pause: Pause) -> None:
        self.told.append(("resumed", round(pause.silence, 1)))

    def ended(self, pause: Pause) -> None:
        self.told.append(("ended", round(pause.silence, 1)))


def test_one_judge_hears_a_call_and_answers_between_its_turns() -> None:
    """What it learns in one turn it may use in the next; another call has a judge of its own."""
    judges: list[Listening] = []

    def make() -> TurnJudge:
        judges.append(Listening())
        return judges[-1]

    calls = [[recording(0.4, 1.0, 0.3, 0.5), recording(0.4, 1.0)], [recording(0.4, 1.0)]]
    outcomes = run_calls(calls, TurnSettings(), make)
    assert [outcome.wait for outcome in outcomes] == pytest.approx([0.4] * 3, abs=0.021)
    assert [judge.told for judge in judges] == [
        [("resumed", 0.3), ("ended", 0.4), ("ended", 0.4)],
        [("ended", 0.4)],
    ]


def test_a_sweep_finds_what_a_judge_reaches_within_a_budget() -> None:
    """Pauses of 0.1 to 1.0 s, one in each turn: of a fixed silence the figures are plain to see."""
    calls = [[recording(0.4, 1.0, 0.1 * tenth + 0.05, 1.0)] for tenth in range(1, 11)]
    found = sweep(lambda patience: fixed(0.5 * patience, *calls))
    assert found.default.patience == 1.0
    assert found.default.mean_wait == pytest.approx(0.5, abs=0.021)
    assert found.cut_ins_at(0.3) == pytest.approx(0.8, abs=0.11)
    assert found.cut_ins_at(0.6) == pytest.approx(0.5, abs=0.11)
    wait = found.wait_at(0.05)
    assert wait == pytest.approx(1.05, abs=0.06)
    assert found.cut_ins_at(0.01) is None
    waits = [point.mean_wait for point in found.frontier()]
    assert waits == sorted(waits)
    assert [point.cut_ins for point in found.frontier()] == sorted(
        (point.cut_ins for point in found.frontier()), reverse=True
    )


def test_a_budget_that_no_point_keeps() -> None:
    point = Point(1.0, cut_ins=0.4, mean_wait=0.5, p50=0.5, p95=0.5, unended=0)
    assert Sweep(point, (point,)).wait_at(0.05) is None


def test_percentiles_are_those_of_the_nearest_rank() -> None:
    assert [percentile([1.0, 2.0, 3.0, 4.0], share) for share in (0.0, 0.25, 0.5, 0.95, 1.0)] == [
        1,
        1,
        2,
        4,
        4,
    ]
