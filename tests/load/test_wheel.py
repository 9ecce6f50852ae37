"""The wheel: everything is due once a turn, at its phase, and nothing before its time."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from voicegate.load.wheel import TURN, Wheel


def test_each_at_its_phase() -> None:
    wheel: Wheel[str] = Wheel(100.0)
    wheel.add("a", 100.0031)
    wheel.add("b", 100.0159)
    assert wheel.next_deadline() == pytest.approx(100.004)
    assert [item for item, _ in wheel.due(100.0039)] == []
    assert [item for item, _ in wheel.due(100.0045)] == ["a"]
    assert wheel.next_deadline() == pytest.approx(100.016)
    assert [item for item, _ in wheel.due(100.0301)] == ["b", "a"]


def test_empty() -> None:
    wheel: Wheel[str] = Wheel(5.0)
    assert wheel.next_deadline() is None and list(wheel.due(6.0)) == []
    slot = wheel.add("a", 6.0)
    wheel.remove("a", slot)
    assert wheel.next_deadline() is None and wheel.size == 0


def test_after_a_stall_everything_is_due_once() -> None:
    wheel: Wheel[int] = Wheel(100.0)
    for number in range(40):
        wheel.add(number, 100 + number / 1000)
    assert sorted(item for item, _ in wheel.due(107.0)) == list(range(40))
    assert list(wheel.due(107.0)) == []


@given(st.floats(100.0, 100.02), st.lists(st.floats(0.0002, 0.03), min_size=20, max_size=100))
def test_a_deadline_of_twenty_milliseconds_has_always_come(begin: float, waits: list[float]) -> None:
    """What is added at its deadline and moves it on by 20 ms is never called too early, and once for each
    deadline as long as turns are not missed."""
    wheel: Wheel[str] = Wheel(begin)
    wheel.add("a", begin)
    deadline = now = begin
    for wait in waits:
        now += min(wait, 0.019)
        for _, at in wheel.due(now):
            assert deadline <= at <= now + 1e-9
            assert at - deadline < 0.0021
            deadline += TURN
    assert deadline > now - TURN
