"""Histograms against sequences that are counted by hand."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from voicegate.load.figures import LIMIT, STEP, Histogram


def test_nothing_has_no_percentile() -> None:
    assert Histogram().percentile(0.5) is None


def test_nearest_ranks_of_one_to_ten() -> None:
    values = Histogram()
    for number in (7, 1, 10, 3, 2, 9, 5, 6, 8, 4):
        values.add(number / 1000)
    # Rank 5 of ten is the median, rank 10 (9.5 rounded up) the 95th percentile.
    assert values.percentile(0.5) == pytest.approx(0.005)
    assert values.percentile(0.95) == pytest.approx(0.010)
    assert values.percentile(0.1) == pytest.approx(0.001)
    assert values.percentile(1.0) == pytest.approx(0.010)
    assert (values.count, values.largest) == (10, 0.010)


def test_what_is_out_of_range_is_put_at_its_end() -> None:
    values = Histogram()
    values.add(-1.0)
    values.add(10 * LIMIT)
    assert values.percentile(0.5) == 0.0
    assert values.percentile(1.0) == pytest.approx(LIMIT)
    assert values.largest == 10 * LIMIT


@given(st.lists(st.floats(0, LIMIT), min_size=1, max_size=200), st.floats(0.01, 1.0))
def test_a_percentile_is_the_value_of_its_rank(numbers: list[float], share: float) -> None:
    values = Histogram()
    for number in numbers:
        values.add(number)
    rank = sum(1 for _ in numbers if True)
    ordered = sorted(numbers)
    found = values.percentile(share)
    assert found is not None
    not_above = sum(number <= found + STEP for number in ordered)
    below = sum(number < found - STEP for number in ordered)
    assert not_above >= share * rank - 1e-6, "this share does not exceed it"
    assert below < share * rank + 1e-6, "and it is the smallest such value"
