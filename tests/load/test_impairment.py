"""A bad network: what is asked for is what comes, and the same seed does the same again."""

from __future__ import annotations

import itertools
import random

import pytest

from voicegate.load.impairment import REORDER_SECONDS, Impairment, Quality

PACKETS = 40_000


def send(quality: Quality, seed: int = 1) -> list[float | None]:
    path = Impairment(quality, random.Random(seed))
    return [path.deliver_at(place * 0.02) for place in range(PACKETS)]


@pytest.mark.parametrize(("loss", "burst"), [(0.05, 1.0), (0.05, 5.0), (0.3, 2.0)])
def test_loss_and_its_bursts(loss: float, burst: float) -> None:
    arrivals = send(Quality(loss=loss, burst=burst))
    lost = [arrival is None for arrival in arrivals]
    assert sum(lost) / PACKETS == pytest.approx(loss, rel=0.15)
    runs = sum(now and not before for before, now in zip([False, *lost], lost, strict=False))
    assert sum(lost) / runs == pytest.approx(max(burst, 1 / (1 - loss)), rel=0.15)


def test_everything_or_nothing() -> None:
    assert send(Quality(loss=1.0)) == [None] * PACKETS
    assert Quality().perfect and not Quality(jitter=0.01).perfect
    assert send(Quality()) == [place * 0.02 for place in range(PACKETS)]


def test_jitter_is_late_and_in_order() -> None:
    arrivals = send(Quality(jitter=0.04))
    late = [at - place * 0.02 for place, at in enumerate(arrivals) if at is not None]
    assert len(late) == PACKETS and min(late) >= 0 and 0.035 < max(late) <= 0.04
    assert arrivals == sorted(at for at in arrivals if at is not None)


def test_reordered_packets_are_passed_by_one() -> None:
    arrivals = [at for at in send(Quality(reorder=0.1)) if at is not None]
    passed = sum(after < before for before, after in itertools.pairwise(arrivals))
    # One that is held beside one that is held is not overtaken.
    assert passed / PACKETS == pytest.approx(0.1 * 0.9, rel=0.1)
    assert max(at - place * 0.02 for place, at in enumerate(arrivals)) == pytest.approx(REORDER_SECONDS)


def test_the_same_seed_does_the_same() -> None:
    quality = Quality(loss=0.1, burst=3, jitter=0.02, reorder=0.1)
    assert send(quality) == send(quality) != send(quality, seed=2)
