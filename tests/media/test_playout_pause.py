"""voicegate.media.playout: pause and resume from the same sample, and silence that keeps a path warm."""

from __future__ import annotations

import itertools
import random

import pytest
from hypothesis import given
from hypothesis import strategies as st

from tests.media.playouts import START, run
from voicegate.media.codec import FRAME_BYTES, FRAME_SAMPLES
from voicegate.media.playout import CATCH_UP_FRAMES, SILENCE_SECONDS, Frame, Playout

SILENCE = bytes(FRAME_BYTES)


def numbered(first: int, count: int) -> bytes:
    """Samples that say which they are; none is zero."""
    return b"".join((1 + (first + n) % 30_000).to_bytes(2, "little") for n in range(count))


def test_it_goes_on_with_the_next_sample_after_the_time_that_has_passed() -> None:
    playout = Playout(0, 48_000)
    playout.push(numbered(0, 480 * 10), START)
    assert playout.poll_frame() is not None
    run(playout, START + 0.04)
    playout.pause(START + 0.05)
    assert playout.paused
    assert playout.next_deadline() is None
    assert run(playout, START + 3) == []
    assert (playout.played_samples, playout.queued_samples) == (480 * 3, 480 * 7)
    assert playout.heard_until() == pytest.approx(START + 0.06)
    playout.resume(START + 3)
    assert playout.poll_frame() == Frame(numbered(480 * 3, 480), 3 * 48_000, True)
    rest = run(playout, START + 9)
    assert [at for at, _ in rest] == [pytest.approx(START + 3 + 0.02 * n) for n in range(1, 7)]
    assert b"".join(frame.pcm for _, frame in rest) == numbered(480 * 4, 480 * 6)
    assert not any(frame.marker for _, frame in rest)
    assert playout.played_samples == 4800


def test_a_pause_within_a_frame_is_not_heard() -> None:
    playout = Playout(0, 48_000)
    playout.push(numbered(0, 960), START)
    assert playout.poll_frame() is not None
    playout.pause(START + 0.002)
    playout.resume(START + 0.015)
    assert playout.poll_frame() is None
    assert run(playout, START + 1) == [(START + 0.02, Frame(numbered(480, 480), 960, False))]


def test_a_frame_that_nobody_fetched_is_sent_after_the_pause() -> None:
    playout = Playout(0, 48_000)
    playout.push(numbered(0, 960), START)
    playout.pause(START)
    playout.pause(START)
    assert playout.poll_frame() is None
    assert (playout.played_samples, playout.queued_samples) == (0, 960)
    assert playout.heard_until() is None
    playout.resume(START + 1)
    playout.resume(START + 1)
    assert playout.poll_frame() == Frame(numbered(0, 480), 48_000, True)
    assert playout.counts.pauses == 1


def test_what_comes_during_a_pause_waits_behind() -> None:
    playout = Playout(0, 48_000)
    playout.pause(START)
    playout.push(numbered(0, 500), START)
    playout.end_of_audio(START + 0.1)
    playout.push(numbered(500, 480), START + 0.2)
    assert playout.poll_frame() is None
    playout.resume(START + 1)
    first = playout.poll_frame()
    assert first is not None and first.marker
    sent = [first, *(frame for _, frame in run(playout, START + 2))]
    assert b"".join(frame.pcm for frame in sent) == numbered(0, 500) + bytes(920) + numbered(500, 480)
    assert playout.played_samples == 980


def test_clear_during_a_pause_drops_all_and_the_pause_stays() -> None:
    playout = Playout(0, 48_000)
    playout.push(numbered(0, 4800), START)
    assert playout.poll_frame() is not None
    playout.pause(START + 0.01)
    assert playout.clear(START + 0.5) == (480, 4320)
    playout.push(numbered(0, 480), START + 0.6)
    assert playout.poll_frame() is None and playout.paused
    playout.resume(START + 0.7)
    assert playout.poll_frame() == Frame(numbered(0, 480), round(0.7 * 48_000), True)


def test_resuming_with_nothing_there_waits_for_more() -> None:
    playout = Playout(0, 48_000)
    playout.pause(START)
    playout.push(numbered(0, 100), START)
    playout.resume(START + 0.01)
    assert playout.poll_frame() is None
    playout.push(numbered(100, 380), START + 0.02)
    assert playout.poll_frame() == Frame(numbered(0, 480), 0, True)


def test_silence_keeps_the_path_warm_and_counts_as_nobodys_audio() -> None:
    playout = Playout(0, 48_000)
    playout.keep_warm(START)
    silent = run(playout, START + 2.01)
    assert [at for at, _ in silent] == [pytest.approx(START + SILENCE_SECONDS * n) for n in range(1, 6)]
    assert {frame.pcm for _, frame in silent} == {SILENCE}
    assert not any(frame.marker for _, frame in silent)
    assert playout.heard_until() is None
    assert playout.played_samples == playout.queued_samples == 0
    assert not playout.speaking
    # The frame of silence has its place: speech that comes meanwhile goes on behind it, with its marker.
    playout.push(numbered(0, 480), START + 2.005)
    assert playout.poll_frame() is None
    sent = run(playout, START + 2.3)
    assert [at for at, _ in sent] == [pytest.approx(START + 2.02)]
    assert sent[0][1] == Frame(numbered(0, 480), silent[-1][1].timestamp + 960, True)
    assert playout.heard_until() == pytest.approx(START + 2.04)
    assert [at for at, _ in run(playout, START + 2.5)] == [pytest.approx(START + 2.42)]
    assert playout.heard_until() == pytest.approx(START + 2.04)


def test_silence_is_sent_during_a_pause_and_a_clear_leaves_it_alone() -> None:
    playout = Playout(0, 48_000)
    playout.keep_warm(START)
    playout.push(numbered(0, 4800), START)
    assert playout.poll_frame() is not None
    playout.pause(START + 0.01)
    playout.handle_timeout(START + 0.4)
    playout.clear(START + 0.4)
    playout.pause(START + 0.4)
    assert playout.poll_frame() == Frame(SILENCE, round(0.4 * 48_000), False)


@given(st.randoms(use_true_random=False), st.sampled_from([48_000, 8_000]), st.booleans())
def test_any_sequence(rng: random.Random, clock_rate: int, warm: bool) -> None:
    """Frames on the grid, a true and monotone RTP clock, every sample once, in order and accounted for."""
    playout = Playout(rng.getrandbits(32), clock_rate, limit_seconds=5)
    now, pushed, dropped = START, 0, 0
    if warm:
        playout.keep_warm(now)
    sent: list[tuple[float, Frame]] = []
    actions = ["push", "push", "push", "end", "clear", "pause", "resume", "wait", "wait", "stall"]
    for action in rng.choices(actions, k=60):
        match action:
            case "push":
                count = rng.choice([0, 1, 100, 479, 480, 481, 2400, 12_000])
                playout.push(numbered(pushed, count), now)
                pushed += count
            case "end":
                playout.end_of_audio(now)
            case "clear":
                dropped += playout.clear(now).dropped_samples
            case "pause":
                playout.pause(now)
            case "resume":
                playout.resume(now)
        if (frame := playout.poll_frame()) is not None:
            assert frame.pcm == SILENCE or action != "clear"
            sent.append((now, frame))
        until = now + (rng.uniform(0, 0.2) if action == "wait" else 0.0)
        played = playout.played_samples
        sent += run(playout, until)
        assert played == playout.played_samples or not playout.paused
        now = until + (rng.uniform(0, 0.6) if action == "stall" else 0.0)
        lost = dropped + playout.counts.overflow_samples
        assert playout.played_samples + playout.queued_samples + lost == pushed
    check_clock(sent, clock_rate)
    heard = [int.from_bytes(frame.pcm[:2], "little") for _, frame in sent if frame.pcm != SILENCE]
    # Ascending but for what the numbers wrap at: nothing is sent twice, nothing overtakes.
    assert sum(after <= before for before, after in itertools.pairwise(heard)) <= pushed // 30_000
    playout.resume(now)
    playout.poll_frame()
    run(playout, now + 10)
    assert playout.queued_samples == 0


def check_clock(sent: list[tuple[float, Frame]], clock_rate: int) -> None:
    frame_units = clock_rate * FRAME_SAMPLES // 24_000
    for (_, before), (_, after) in itertools.pairwise(sent):
        assert len(after.pcm) == FRAME_BYTES
        units = (after.timestamp - before.timestamp) % 2**32
        assert frame_units <= units < 2**31
        if after.pcm != SILENCE and not after.marker:
            assert units == frame_units and before.pcm != SILENCE
    if sent:
        (first_at, first), (last_at, last) = sent[0], sent[-1]
        elapsed = (last.timestamp - first.timestamp) % 2**32 / clock_rate
        assert elapsed <= last_at - first_at + 1e-3
        assert elapsed >= last_at - first_at - 0.02 * (CATCH_UP_FRAMES + 1) - 1e-3
