"""The media floor on virtual time: playout, codec, RTP, a bad network, receive buffer, and PCM again."""

from __future__ import annotations

import heapq
import random

import numpy as np
import pytest

from tests.media.signals import best_match, frames, level, samples, voice_like
from voicegate.media.codec import CLOCK_RATES, PCM_RATE, open_decoder, open_encoder
from voicegate.media.playout import Playout
from voicegate.media.receive import ReceiveBuffer, ReceiveCounts
from voicegate.proto.rtp import build_rtp, parse_rtp_untrusted

START = 50.0
PT = 96


class Network:
    """Delays, drops, doubles and so reorders datagrams; ordered by arrival."""

    def __init__(self, seed: int, *, loss: float, jitter: float, copies: float) -> None:
        self._rng = random.Random(seed)
        self._loss, self._jitter, self._copies = loss, jitter, copies
        self._queue: list[tuple[float, int, bytes]] = []
        self._sent = 0

    def send(self, data: bytes, now: float) -> None:
        self._sent += 1
        first = self._sent == 1
        for copy in range(2 if self._rng.random() < self._copies else 1):
            if first or self._rng.random() >= self._loss:
                delay = 0.03 + (0 if first else self._rng.uniform(0, self._jitter))
                heapq.heappush(self._queue, (now + delay, 2 * self._sent + copy, data))

    def next_arrival(self) -> float | None:
        return self._queue[0][0] if self._queue else None

    def receive(self) -> bytes:
        return heapq.heappop(self._queue)[2]


def waiting(buffer: ReceiveBuffer, now: float) -> bool:
    """Packets are held behind a gap, so that the next deadline is sooner than that of a pause."""
    deadline = buffer.next_deadline()
    return deadline is not None and deadline < now + 0.4


def carry(name: str, pushes: list[tuple[float, bytes]], network: Network) -> tuple[bytes, ReceiveCounts]:
    """Say `pushes` (each an answer of its own) through one call and give back the line at the other end."""
    encoder, decoder = open_encoder(name), open_decoder(name)
    playout = Playout(0xFFFF0000, CLOCK_RATES[name])
    buffer = ReceiveBuffer(decoder, PT)
    heard: list[bytes] = []
    sequence = 65_500
    todo = list(pushes)
    now = START
    while True:
        times = [
            todo[0][0] if todo else None,
            playout.next_deadline(),
            network.next_arrival(),
            buffer.next_deadline(),
        ]
        coming = [at for at in times if at is not None]
        if not any(at is not None for at in times[:3]) and not waiting(buffer, now):
            break  # what is left is the silence behind the end
        now = min(coming)
        if todo and todo[0][0] <= now:
            playout.push(todo.pop(0)[1], now)
            playout.end_of_audio(now)
        playout.handle_timeout(now)
        while (frame := playout.poll_frame()) is not None:
            payload = encoder.encode(frame.pcm)
            network.send(build_rtp(PT, frame.marker, sequence & 0xFFFF, frame.timestamp, 5, payload), now)
            sequence += 1
        buffer.handle_timeout(now)
        while (arrival := network.next_arrival()) is not None and arrival <= now:
            buffer.push(parse_rtp_untrusted(network.receive()), now)
        heard.extend(iter(buffer.poll_pcm, None))
    return b"".join(heard), buffer.statistics()


@pytest.mark.parametrize("name", list(CLOCK_RATES))
def test_two_answers_are_as_far_apart_as_they_were_said(name: str) -> None:
    first, second = voice_like(1.0, seed=1), voice_like(1.0, seed=2)
    pushes = [(START, first), (START + 2.5, second)]
    heard, counts = carry(name, pushes, Network(1, loss=0, jitter=0, copies=0))
    said = first + bytes(2 * PCM_RATE * 3 // 2) + second
    assert len(heard) == len(said)
    delay, likeness = best_match(said, heard, longest_delay=200)
    assert likeness > 0.9
    assert delay <= 100
    assert counts.silence_samples == PCM_RATE * 3 // 2
    assert counts.clock_jumps == counts.lost == counts.concealed_samples == 0


@pytest.mark.parametrize("name", list(CLOCK_RATES))
def test_over_a_bad_network_the_line_keeps_its_length_and_its_sound(name: str) -> None:
    first, second = voice_like(2.0, seed=3), voice_like(3.0, seed=4)
    pushes = [(START, first), (START + 4.0, second)]
    clean, _ = carry(name, pushes, Network(2, loss=0, jitter=0, copies=0))
    heard, counts = carry(name, pushes, Network(2, loss=0.05, jitter=0.03, copies=0.1))
    assert counts.lost > 3
    assert counts.reordered > 5
    assert counts.duplicate > 5
    assert abs(len(heard) - len(clean)) <= 3 * 960  # at most the last packets are missing
    size = min(len(heard), len(clean))
    delay, likeness = best_match(clean[:size], heard[:size], longest_delay=200)
    assert delay == 0
    assert likeness > 0.9
    assert level(heard) == pytest.approx(level(clean), rel=0.1)
    intact = np.mean(
        [
            float(np.abs(samples(a) - samples(b)).max()) < 2000
            for a, b in zip(frames(clean[:size]), frames(heard[:size]), strict=True)
        ]
    )
    assert intact > 0.85


def test_an_interruption_is_silence_within_a_frame() -> None:
    playout = Playout(0, 48_000)
    playout.push(voice_like(10.0), START)
    now = START
    for _ in range(100):
        assert playout.poll_frame() is not None
        deadline = playout.next_deadline()
        assert deadline is not None
        now = deadline
        playout.handle_timeout(now)
    cleared = playout.clear(now)
    assert cleared.played_samples == 100 * 480
    assert cleared.dropped_samples == 400 * 480
    assert playout.poll_frame() is None
    assert playout.next_deadline() is None
