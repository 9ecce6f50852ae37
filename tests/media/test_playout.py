"""voicegate.media.playout: the grid, the RTP clock, underruns, interruption."""

from __future__ import annotations

import itertools
import random

import pytest
from hypothesis import given
from hypothesis import strategies as st

from tests.media.playouts import START, run
from voicegate.media.codec import FRAME_BYTES
from voicegate.media.playout import CATCH_UP_FRAMES, PARTIAL_GRACE, Frame, Playout

FIRST = 0xFFFFFFF0  # wraps with the first frame


def pcm(count: int, value: int = 1) -> bytes:
    return value.to_bytes(2, "little", signed=True) * count


def test_nothing_happens_without_audio() -> None:
    playout = Playout(FIRST, 48_000)
    playout.handle_timeout(START)
    playout.end_of_audio(START)
    playout.push(b"", START)
    assert playout.poll_frame() is None
    assert playout.next_deadline() is None
    assert playout.heard_until() is None
    assert not playout.speaking


def test_the_first_frame_leaves_at_once_and_the_rest_on_the_grid() -> None:
    playout = Playout(FIRST, 48_000)
    playout.push(pcm(480 * 5), START)
    first = playout.poll_frame()
    assert first == Frame(pcm(480), FIRST, True)
    assert playout.poll_frame() is None
    rest = run(playout, START + 10)
    assert [at for at, _ in rest] == [pytest.approx(START + 0.02 * n, abs=1e-9) for n in range(1, 5)]
    assert [frame.timestamp for _, frame in rest] == [(FIRST + 960 * n) % 2**32 for n in range(1, 5)]
    assert not any(frame.marker for _, frame in rest)
    assert playout.played_samples == 480 * 5
    assert not playout.speaking


def test_the_grid_does_not_drift_in_an_hour() -> None:
    playout = Playout(0, 48_000)
    playout.push(pcm(480 * 20), START)
    assert playout.poll_frame() is not None
    for index in range(1, 180_000):
        deadline = playout.next_deadline()
        assert deadline is not None
        late = deadline + 0.003  # every single tick is late
        playout.handle_timeout(late)
        frame = playout.poll_frame()
        assert frame is not None
        assert frame.timestamp == 960 * index % 2**32
        if index % 10 == 0:
            playout.push(pcm(4800), late)
    assert deadline == pytest.approx(START + 179_999 * 0.02, abs=1e-6)


def test_g711_counts_8_khz() -> None:
    playout = Playout(7, 8_000)
    playout.push(pcm(960), START)
    assert playout.poll_frame() == Frame(pcm(480), 7, True)
    assert [frame.timestamp for _, frame in run(playout, START + 1)] == [167]


def test_audio_that_comes_while_the_last_frame_is_heard_goes_on_along_the_grid() -> None:
    playout = Playout(0, 48_000)
    playout.push(pcm(480), START)
    assert playout.poll_frame() is not None
    playout.push(pcm(480), START + 0.019)
    assert playout.poll_frame() is None
    assert run(playout, START + 1) == [(START + 0.02, Frame(pcm(480), 960, False))]


def test_an_underrun_starts_a_new_grid_with_marker_and_true_timestamp() -> None:
    playout = Playout(0, 48_000)
    playout.push(pcm(960), START)
    assert playout.poll_frame() is not None
    run(playout, START + 1)
    assert playout.next_deadline() is None
    playout.push(pcm(960), START + 7.5)
    assert playout.poll_frame() == Frame(pcm(480), 360_000, True)
    assert run(playout, START + 9) == [(pytest.approx(START + 7.52), Frame(pcm(480), 360_960, False))]
    assert playout.counts.talk_spurts == 2


def test_end_of_audio_fills_the_last_frame_up() -> None:
    playout = Playout(0, 48_000)
    playout.push(pcm(500), START)
    assert playout.poll_frame() is not None
    playout.end_of_audio(START + 0.001)
    assert playout.poll_frame() is None
    assert run(playout, START + 1) == [(START + 0.02, Frame(pcm(20) + bytes(920), 960, False))]
    assert playout.played_samples == 500


def test_end_of_audio_after_the_grid_has_ended_sends_at_once() -> None:
    playout = Playout(0, 48_000)
    playout.push(pcm(500), START)
    assert playout.poll_frame() is not None
    playout.end_of_audio(START + 0.05)
    assert playout.poll_frame() == Frame(pcm(20) + bytes(920), 2400, True)


def test_a_short_answer_is_heard() -> None:
    playout = Playout(0, 48_000)
    playout.push(pcm(3), START)
    assert playout.poll_frame() is None
    assert playout.speaking
    playout.end_of_audio(START + 0.01)
    assert playout.poll_frame() == Frame(pcm(3) + bytes(954), 0, True)


def test_the_next_answer_begins_behind_the_filled_frame() -> None:
    playout = Playout(0, 48_000)
    playout.push(pcm(490), START)
    playout.end_of_audio(START)
    playout.push(pcm(480, 2), START)
    assert playout.poll_frame() is not None
    sent = [frame.pcm for _, frame in run(playout, START + 1)]
    assert sent == [pcm(10) + bytes(940), pcm(480, 2)]
    assert playout.played_samples == 970


def test_less_than_a_frame_waits_but_not_for_ever() -> None:
    playout = Playout(0, 48_000)
    playout.push(pcm(100), START)
    assert playout.next_deadline() == START + PARTIAL_GRACE
    playout.handle_timeout(START + 0.05)
    assert playout.poll_frame() is None
    assert run(playout, START + 1) == [(START + PARTIAL_GRACE, Frame(pcm(100) + bytes(760), 0, True))]


def test_a_rest_at_the_end_of_the_grid_waits_from_there() -> None:
    playout = Playout(0, 48_000)
    playout.push(pcm(500), START)
    assert playout.poll_frame() is not None
    assert playout.next_deadline() == pytest.approx(START + 0.02 + PARTIAL_GRACE)
    playout.push(pcm(460), START + 0.03)
    assert run(playout, START + 1) == [(pytest.approx(START + 0.035), Frame(pcm(480), 1680, True))]


def test_clear_is_immediate_and_counts() -> None:
    playout = Playout(0, 48_000)
    playout.push(pcm(480 * 50 + 7), START)
    assert playout.poll_frame() is not None
    run(playout, START + 0.1)
    cleared = playout.clear(START + 0.105)
    assert cleared == (480 * 6, 480 * 44 + 7)
    assert playout.poll_frame() is None
    assert playout.next_deadline() is None
    assert not playout.speaking
    assert playout.clear(START + 0.106) == (480 * 6, 0)


def test_clear_takes_back_a_frame_that_nobody_fetched() -> None:
    playout = Playout(0, 48_000)
    playout.push(pcm(960), START)
    assert playout.clear(START) == (0, 960)
    assert playout.poll_frame() is None
    playout.push(pcm(480, 3), START)
    assert playout.poll_frame() == Frame(pcm(480, 3), 0, True)


def test_the_next_answer_waits_for_the_end_of_the_cut_one() -> None:
    playout = Playout(0, 48_000)
    playout.push(pcm(4800), START)
    assert playout.poll_frame() is not None
    playout.clear(START + 0.005)
    playout.push(pcm(480, 3), START + 0.01)
    assert playout.poll_frame() is None
    assert run(playout, START + 1) == [(START + 0.02, Frame(pcm(480, 3), 960, False))]


def test_a_late_tick_catches_up_one_frame_a_call() -> None:
    playout = Playout(0, 48_000)
    playout.push(pcm(4800), START)
    assert playout.poll_frame() is not None
    late = START + 0.07
    got = []
    while True:
        playout.handle_timeout(late)
        frame = playout.poll_frame()
        if frame is None:
            break
        assert playout.poll_frame() is None
        got.append(frame)
    assert [frame.timestamp for frame in got] == [960, 1920, 2880]
    assert not any(frame.marker for frame in got)
    assert playout.next_deadline() == pytest.approx(START + 0.08)
    assert playout.counts.late_ticks == 2


def test_a_tick_later_than_that_does_not_burst() -> None:
    playout = Playout(0, 48_000)
    playout.push(pcm(4800), START)
    assert playout.poll_frame() is not None
    late = START + 0.02 + 0.02 * CATCH_UP_FRAMES + 0.5
    playout.handle_timeout(late)
    assert playout.poll_frame() == Frame(pcm(480), round((late - START) * 48_000), True)
    playout.handle_timeout(late)
    assert playout.poll_frame() is None
    assert playout.next_deadline() == pytest.approx(late + 0.02)
    assert playout.counts.restarts == 1


def test_an_early_tick_does_nothing() -> None:
    playout = Playout(0, 48_000)
    playout.push(pcm(960), START)
    assert playout.poll_frame() is not None
    playout.handle_timeout(START + 0.0199)
    assert playout.poll_frame() is None


def test_ten_minutes_at_once_are_kept_and_more_is_cut() -> None:
    playout = Playout(0, 48_000)
    playout.push(pcm(24_000 * 601), START)
    assert playout.queued_samples == 24_000 * 600
    assert playout.counts.overflow_samples == 24_000
    playout.push(pcm(480), START)
    assert playout.counts.overflow_samples == 24_000  # one frame had become due: there was room
    playout.push(pcm(481), START)
    assert playout.counts.overflow_samples == 24_481
    assert playout.clear(START).dropped_samples == 24_000 * 600 + 480


def test_a_full_queue_takes_no_rests_either() -> None:
    playout = Playout(0, 48_000, limit_seconds=1)
    playout.push(pcm(24_000), START)
    assert playout.poll_frame() is not None  # 49 wait
    for _ in range(1000):
        playout.push(pcm(1), START)
        playout.end_of_audio(START)
    assert playout.queued_samples == 480 * 49 + 1
    assert playout.counts.overflow_samples == 999
    assert len(run(playout, START + 60)) == 50
    assert playout.played_samples == 24_001


@given(
    st.lists(
        st.sampled_from([0, 1, 2, 959, 960, 961, 1440, 9600, 96_000])
        | st.sampled_from(["end", "tick", "clear"]),
        max_size=200,
    ),
    st.integers(1, 20),
)
def test_the_queue_is_bounded_in_frames(actions: list[int | str], limit: int) -> None:
    """Whatever is pushed and ended, no more frames wait than the limit, and every sample is accounted for."""
    playout = Playout(0, 48_000, limit_seconds=limit * 0.02)
    now, pushed, dropped = START, 0, 0
    for action in actions:
        match action:
            case "end":
                playout.end_of_audio(now)
            case "clear":
                dropped += playout.clear(now).dropped_samples
            case "tick":
                now += 0.02
                playout.handle_timeout(now)
            case int(size):
                playout.push(bytes(size), now)
                pushed += size // 2
        assert len(playout._frames) + bool(playout._partial) <= limit
        overflow = playout.counts.overflow_samples
        assert playout.played_samples + playout.queued_samples + dropped + overflow == pushed
        playout.poll_frame()
    waiting = playout.queued_samples
    assert sum(len(frame.pcm) for _, frame in run(playout, now + 60)) <= limit * FRAME_BYTES
    assert playout.queued_samples == 0
    assert waiting * 2 <= limit * FRAME_BYTES


def test_half_a_sample_is_cut() -> None:
    playout = Playout(0, 48_000)
    playout.push(pcm(480) + b"\x01", START)
    playout.push(b"\x01", START)
    assert playout.poll_frame() == Frame(pcm(480), 0, True)
    assert playout.statistics().odd_bytes == 2
    assert not playout.speaking


@given(st.randoms(use_true_random=False), st.sampled_from([48_000, 8_000]))
def test_whatever_the_agent_does(rng: random.Random, clock_rate: int) -> None:
    """Never two frames closer than the catch-up allows, every sample once and in order, a true RTP clock."""
    playout = Playout(rng.getrandbits(32), clock_rate, limit_seconds=5)
    now, pushed, value = START, 0, 0
    sent: list[tuple[float, Frame]] = []
    dropped = 0
    for _ in range(60):
        action = rng.choice(["push", "push", "push", "end", "clear", "wait", "wait", "stall"])
        if action == "push":
            count = rng.choice([0, 1, 100, 479, 480, 481, 2400, 12_000])
            playout.push(b"".join(((value + n) % 30_000).to_bytes(2, "little") for n in range(count)), now)
            value += count
            pushed += count
        elif action == "end":
            playout.end_of_audio(now)
        elif action == "clear":
            dropped += playout.clear(now).dropped_samples
            assert playout.poll_frame() is None
        frame = playout.poll_frame()
        if frame is not None:
            sent.append((now, frame))
        until = now + (rng.uniform(0, 0.2) if action == "wait" else 0.0)
        for at, due in run(playout, until):
            sent.append((at, due))
        now = max(until, now) + (rng.uniform(0, 0.4) if action == "stall" else 0.0)
        assert (
            playout.played_samples + playout.queued_samples + dropped + playout.counts.overflow_samples
            == pushed
        )
    for (at, before), (then, after) in itertools.pairwise(sent):
        assert len(after.pcm) == FRAME_BYTES
        units = (after.timestamp - before.timestamp) % 2**32
        assert units >= clock_rate // 50
        if after.marker:
            assert then - at > 0.02 - 1e-6 or units > clock_rate // 50
        else:
            assert units == clock_rate // 50
    if sent:
        (first_at, first), (last_at, last) = sent[0], sent[-1]
        elapsed = (last.timestamp - first.timestamp) % 2**32 / clock_rate
        assert elapsed <= last_at - first_at + 1e-3
        assert elapsed >= last_at - first_at - 0.02 * (CATCH_UP_FRAMES + 1) - 1e-3
        assert first.marker
