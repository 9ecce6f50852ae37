"""Speech over the four bad networks of the goal: what is concealed, restored and kept waiting.

`pytest --log-cli-level=info` shows the table.
"""

from __future__ import annotations

import functools
import logging
import random

import pytest

from tests.media import streams
from tests.media.streams import Heard, carry, segmental_snr, spectral_distance, stream
from tests.support.speech import LONG_SENTENCE, SENTENCE, say, to_pcm

SEED = 5


@functools.cache
def speech() -> bytes:
    sentences = to_pcm(say(LONG_SENTENCE, 24_000)) + to_pcm(say(SENTENCE, 24_000))
    return (sentences * 3)[: 30 * 48_000]


@functools.cache
def clean(redundancy: str) -> Heard:
    packets = stream(speech(), redundancy=redundancy)
    return carry(packets, [0.0] * len(packets))


def over(profile: str, redundancy: str) -> Heard:
    packets = stream(speech(), redundancy=redundancy)
    rng, count = random.Random(SEED), len(packets)
    delays = {
        "loss": lambda: streams.random_loss(count, 0.05, rng),
        "bursts": lambda: streams.burst_loss(count, rng),
        "jitter": lambda: streams.jittered(count, 0.04, rng),
        "reorder": lambda: streams.reordered(count, 0.25, rng),
    }[profile]()
    heard = carry(packets, delays)
    counts, fec = heard.counts, heard.counts.recovered_fec_samples / 480
    logging.getLogger(__name__).info(
        f"{profile:8} {redundancy:4} of {count}: lost {counts.lost}, concealed {heard.concealed:.2%}, "
        f"by FEC {fec / count:.2%}, by RED {counts.recovered_red / count:.2%}, "
        f"wait p50 {1000 * heard.wait(0.5):.1f} p99 {1000 * heard.wait(0.99):.1f} ms, "
        f"segmental SNR {segmental_snr(clean(redundancy).pcm, heard.pcm):.1f} dB, "
        f"spectral distance {spectral_distance(clean(redundancy).pcm, heard.pcm):.2f} dB"
    )
    return heard


@pytest.mark.parametrize("redundancy", ["none", "fec", "red"])
@pytest.mark.parametrize("profile", ["loss", "bursts", "jitter", "reorder"])
def test_the_line_keeps_its_length_and_waits_at_most_65_ms(profile: str, redundancy: str) -> None:
    heard = over(profile, redundancy)
    assert len(heard.pcm) == len(clean(redundancy).pcm)
    assert heard.wait(0.5) == 0
    assert heard.wait(0.99) <= 0.065
    if profile in ("jitter", "reorder"):
        assert heard.concealed <= 0.01
    if (profile, redundancy) == ("loss", "red"):
        assert heard.concealed <= 0.01
        assert heard.wait(0.95) == 0
        assert segmental_snr(clean("red").pcm, heard.pcm) > 25
