"""voicegate.media.turns.pauses: which silence is worth waiting out, and what is learned of a speaker."""

from __future__ import annotations

from math import erfc, exp, log, sqrt

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from voicegate.media.turns.pauses import DEMAND, FLOOR, LONGEST, USUAL, WEIGHT, Pauses


@pytest.mark.parametrize("score", [-4.0, -2.0, -0.5, 0.0])
def test_no_other_wait_costs_less(score: float) -> None:
    """Against the definition: the price of the cut-ins and of the seconds waited, for every wait there is."""
    mean, deviation = USUAL
    # `demand` is the logarithm of the price times the density's own factors, at the usual length.
    price = exp(DEMAND + mean) * deviation * sqrt(2 * np.pi)
    waits = np.arange(FLOOR, 8, 0.002)
    longer = np.array([0.5 * erfc((log(wait) - mean) / deviation / sqrt(2)) for wait in waits])
    costs = price * longer + exp(score) * waits
    best = float(waits[int(np.argmin(costs))])
    assert Pauses().worth_waiting(score) == pytest.approx(best, abs=0.005)


def test_an_end_for_sure_is_not_waited_for() -> None:
    assert Pauses().worth_waiting(5.0) == FLOOR


@given(st.lists(st.floats(0, 100), max_size=60), st.floats(-20, 20), st.floats(0.01, 100))
def test_any_pauses_any_odds(lengths: list[float], score: float, patience: float) -> None:
    pauses = Pauses(patience)
    for length in lengths:
        pauses.learn(length)
    wait = pauses.worth_waiting(score)
    assert FLOOR <= wait < float("inf")
    assert pauses.worth_waiting(score + 1) <= wait
    assert Pauses(2 * patience).worth_waiting(score) >= Pauses(patience).worth_waiting(score)
    shares = [pauses.longer(seconds) for seconds in (0.0, 0.1, 0.5, 2.0, 50.0)]
    assert shares == sorted(shares, reverse=True)
    assert 0 < shares[-1] <= shares[0] == 1


def test_after_many_pauses_it_waits_as_for_those() -> None:
    """The prior is forgotten: as one who had known nothing else."""
    slow, usual = Pauses(), Pauses()
    for _ in range(10 * int(WEIGHT[1])):
        for away in (-0.5, 0.5):
            slow.learn(exp(log(0.8) + away))
            usual.learn(exp(log(0.4) + away))
    assert slow.worth_waiting(-1) == pytest.approx(2 * usual.worth_waiting(-1), rel=0.1)


def test_uneven_pauses_are_waited_for_longer() -> None:
    even, uneven = Pauses(), Pauses()
    for _ in range(40):
        for away in (-1.0, 1.0):
            even.learn(0.4)
            uneven.learn(0.4 * exp(0.9 * away))
    assert uneven.worth_waiting(-1) > 1.5 * even.worth_waiting(-1)


def test_pauses_that_were_all_alike_make_nobody_sure() -> None:
    pauses = Pauses()
    for _ in range(1000):
        pauses.learn(0.4)
    assert pauses.worth_waiting(-3) > 1.5 * 0.4
    assert pauses.longer(0.45) > 0.2


def test_what_was_long_ago_is_forgotten() -> None:
    pauses, young = Pauses(), Pauses()
    for _ in range(1000):
        pauses.learn(1.5)
    for _ in range(200):
        pauses.learn(0.2)
        young.learn(0.2)
    assert pauses.worth_waiting(-1) == pytest.approx(young.worth_waiting(-1), rel=0.1)


def test_who_was_kept_waiting_for_an_answer_has_made_no_pause() -> None:
    patient, other = Pauses(), Pauses()
    patient.learn(10.0)
    other.learn(LONGEST)
    assert patient.worth_waiting(-1) == other.worth_waiting(-1)


def test_stops_within_words_are_no_pauses() -> None:
    pauses = Pauses()
    pauses.learn(0.1)
    assert pauses.worth_waiting(-1) == Pauses().worth_waiting(-1)
