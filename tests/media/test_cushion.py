"""voicegate.media.cushion: what is learned from a late agent, and what a listener hears of it."""

from __future__ import annotations

import random

import pytest
from hypothesis import given
from hypothesis import strategies as st

from tests.media.playouts import START, run
from voicegate.media.codec import FRAME_SECONDS
from voicegate.media.cushion import MARGIN, MAX_HOLD, Cushion
from voicegate.media.playout import Playout


def test_an_agent_that_keeps_ahead_is_never_held_back() -> None:
    cushion = Cushion()
    for answer in range(5):
        for n in range(20):
            now = START + 10 * answer + 0.02 * n
            assert cushion.frames_came(10, now) == pytest.approx(START + 10 * answer + 0.2 * n)
        cushion.answer_over()
    assert cushion.hold == 0.0


def test_the_worst_is_believed_at_once_and_slowly_forgotten() -> None:
    cushion = Cushion()
    cushion.frames_came(5, START)
    assert cushion.frames_came(5, START + 0.16) == pytest.approx(START + 0.16 + MARGIN)
    assert cushion.hold == pytest.approx(0.06 + MARGIN)
    cushion.answer_over()
    cushion.answer_over()
    assert cushion.hold == pytest.approx(0.06 + MARGIN)
    good = 0
    while cushion.hold:
        assert cushion.frames_came(5, START + good) == pytest.approx(START + good + cushion.hold)
        cushion.answer_over()
        good += 1
    assert good == 8


def test_an_answer_that_is_cut_says_nothing() -> None:
    cushion = Cushion()
    cushion.frames_came(5, START)
    cushion.answer_cut()
    cushion.frames_came(5, START + 5)
    cushion.answer_over()
    assert cushion.hold == 0.0


def test_a_pause_that_would_be_heard_anyway_is_not_learned() -> None:
    cushion = Cushion()
    cushion.frames_came(5, START)
    assert cushion.frames_came(5, START + 0.1 + MAX_HOLD + 0.001) == pytest.approx(START + 0.201)
    assert cushion.hold == 0.0


@given(st.lists(st.tuples(st.integers(1, 50), st.floats(0, 1), st.sampled_from("  oc")), max_size=100))
def test_a_hold_is_bounded(events: list[tuple[int, float, str]]) -> None:
    cushion, now = Cushion(), START
    for count, wait, then in events:
        now += wait
        cushion.frames_came(count, now)
        assert 0.0 <= cushion.hold <= MAX_HOLD
        match then:
            case "o":
                cushion.answer_over()
            case "c":
                cushion.answer_cut()


class Listener:
    """Plays an agent's deltas through a Playout on virtual time and counts what is heard of it."""

    def __init__(self) -> None:
        self.playout = Playout(0, 48_000)
        self.sent: list[float] = []

    def answer(self, deltas: list[tuple[float, float]], start: float) -> tuple[float, int]:
        """`deltas`: (when it comes, seconds of audio). Returns (start latency, gaps heard)."""
        self.sent = []
        for at, seconds in deltas:
            now = start + at
            self.sent += [due for due, _ in run(self.playout, now)]
            self.playout.push(bytes(2 * int(seconds * 24_000)), now)
            if self.playout.poll_frame() is not None:
                self.sent.append(now)
        self.playout.end_of_audio(start + deltas[-1][0])
        if self.playout.poll_frame() is not None:
            self.sent.append(start + deltas[-1][0])
        self.sent += [due for due, _ in run(self.playout, start + 60)]
        gaps = sum(b - a > FRAME_SECONDS + 1e-6 for a, b in zip(self.sent, self.sent[1:], strict=False))
        return self.sent[0] - start, gaps


def test_bursts_at_ten_times_real_time_are_smooth_and_start_at_once() -> None:
    listener = Listener()
    for answer in range(5):
        deltas = [(0.02 * n, 0.2) for n in range(50)]
        assert listener.answer(deltas, START + 100 * answer) == (0.0, 0)
    assert listener.playout.counts.held_back == 0


def test_an_agent_in_fits_is_smooth_from_its_second_answer_on() -> None:
    """In real time, each 100-ms delta up to 60 ms late."""
    rng = random.Random(5)
    listener = Listener()
    results = []
    for answer in range(20):
        late = [0.0, *(rng.uniform(0, 0.06) for _ in range(49))]
        results.append(listener.answer([(0.1 * n + late[n], 0.1) for n in range(50)], START + 100 * answer))
    assert results[0][0] == 0.0
    assert results[0][1] > 0
    assert sum(gaps for _, gaps in results[1:]) <= 2
    assert max(latency for latency, _ in results) <= 0.06 + MARGIN + 1e-6


def test_a_whole_short_answer_is_not_held_back() -> None:
    listener = Listener()
    listener.answer([(0.0, 0.1), (0.18, 0.1)], START)
    assert listener.playout.counts.held_back == 1
    latency, gaps = listener.answer([(0.0, 0.1)], START + 100)
    assert (latency, gaps) == (0.0, 0)
