"""voicegate.media.resample: exact lengths, no clicks where the pieces meet, nothing of the item before."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from tests.media.signals import best_match, level, samples, tone
from voicegate.media.resample import DELAY, Resampler

PAIRS = [(24_000, 16_000), (24_000, 8_000), (16_000, 24_000), (8_000, 24_000)]


@pytest.mark.parametrize(("from_rate", "to_rate"), PAIRS)
@pytest.mark.parametrize("piece", [2, 34, 962, 48_000])
def test_a_tone_in_pieces_is_the_tone(from_rate: int, to_rate: int, piece: int) -> None:
    sent = tone(700, 1.0, rate=from_rate)
    resampler = Resampler(from_rate, to_rate)
    heard = b"".join(resampler.convert(sent[at : at + piece]) for at in range(0, len(sent), piece))
    assert len(heard) == 2 * to_rate
    want = tone(700, 1.0, rate=to_rate)
    delay = DELAY * to_rate // min(from_rate, to_rate)
    assert best_match(want, heard, longest_delay=60) == (delay, pytest.approx(1, abs=1e-4))
    difference = samples(heard[2 * delay + 400 :]) - samples(want[400 : len(want) - 2 * delay])
    assert abs(difference).max() < 0.02 * 9000  # a click would stand out


@given(st.lists(st.integers(0, 3000), max_size=30), st.sampled_from(PAIRS))
def test_no_sample_is_won_or_lost(sizes: list[int], pair: tuple[int, int]) -> None:
    from_rate, to_rate = pair
    resampler = Resampler(from_rate, to_rate)
    came = went = 0
    for size in sizes:
        came += size
        went += len(resampler.convert(bytes(2 * size))) // 2
        assert abs(went * from_rate - came * to_rate) < from_rate


@pytest.mark.parametrize(("from_rate", "to_rate"), PAIRS)
def test_the_next_item_hears_nothing_of_the_one_before(from_rate: int, to_rate: int) -> None:
    resampler = Resampler(from_rate, to_rate)
    resampler.convert(tone(700, 0.1, rate=from_rate))
    resampler.begin()
    assert level(resampler.convert(bytes(from_rate // 10))) == 0
