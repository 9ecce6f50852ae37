"""Both sides of a recording on one axis, to the sample; and the file that is made of them."""

from __future__ import annotations

import errno
import io
import struct

import av
import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from tests.media.signals import lag, noise
from voicegate.media.codec import FRAME_SAMPLES, PCM_RATE
from voicegate.media.ogg import OggOpus
from voicegate.media.recording import (
    AHEAD_SECONDS,
    BLOCK_SAMPLES,
    HOLD_SECONDS,
    MAX_AHEAD,
    QUIET,
    Block,
    StereoLine,
)

ORIGIN = 1000.0
FRAME = FRAME_SAMPLES / PCM_RATE


def pcm(value: int, samples: int = FRAME_SAMPLES) -> bytes:
    return struct.pack("<h", value) * samples


def whole(line: StereoLine, now: float) -> tuple[np.ndarray, np.ndarray]:
    """Everything up to `now`, as the file gets it."""
    blocks: list[Block] = []
    while (block := line.take(now)) is not None:
        assert len(block.user) == len(block.agent) == 2 * BLOCK_SAMPLES
        blocks.append(block)
    while (block := line.finish(now)) is not None:
        assert len(block.user) == len(block.agent) > 0
        blocks.append(block)
    assert line.finish(now) is None
    user, agent = (np.frombuffer(b"".join(side), "<i2") for side in zip(*blocks, strict=True))
    return user, agent


def first(side: np.ndarray, value: int) -> int:
    """Where that value stands first."""
    return int(np.argmax(side == value))


class TestAgent:
    def test_stands_where_it_was_due_and_not_where_a_late_tick_sent_it(self) -> None:
        line = StereoLine(ORIGIN, 48_000)
        start = 0xFFFFFF00  # wraps at once
        lateness = (0.0, 0.004, 0.0, 0.19, 0.18)
        for number, late in enumerate(lateness):
            stamp = (start + number * 960) & 0xFFFFFFFF
            line.put_agent(pcm(1000 + number), stamp, ORIGIN + 1.5 + number * FRAME + late)
        # A second answer 2.345 s after the first, as the playout counts it (48 kHz).
        line.put_agent(pcm(2000), (start + 112_560) & 0xFFFFFFFF, ORIGIN + 1.5 + 2.345)
        user, agent = whole(line, ORIGIN + 5.0)
        assert len(user) == len(agent) == 5 * PCM_RATE and not user.any()
        expected = np.zeros(5 * PCM_RATE, np.int16)
        for number in range(len(lateness)):
            at = 36_000 + number * 480
            expected[at : at + 480] = 1000 + number
        expected[36_000 + 56_280 : 36_000 + 56_760] = 2000
        assert (agent == expected).all()

    def test_g711_clock(self) -> None:
        line = StereoLine(ORIGIN, 8_000)
        line.put_agent(pcm(1), 5, ORIGIN + 1)
        line.put_agent(pcm(2), 5 + 8_000, ORIGIN + 2.01)
        assert first(whole(line, ORIGIN + 3)[1], 2) == 2 * PCM_RATE

    def test_a_timestamp_that_lies_is_not_followed(self) -> None:
        line = StereoLine(ORIGIN, 48_000)
        line.put_agent(pcm(1), 5, ORIGIN + 1)
        line.put_agent(pcm(2), 5 + (1 << 30), ORIGIN + 2)
        line.put_agent(pcm(3), 5 + (1 << 30) + 960, ORIGIN + 2.03)
        agent = whole(line, ORIGIN + 3)[1]
        assert first(agent, 2) == 2 * PCM_RATE and first(agent, 3) == 2 * PCM_RATE + 480


class TestUser:
    def test_begins_with_the_first_packet_and_has_no_seam_whatever_the_jitter(self) -> None:
        line = StereoLine(ORIGIN, 48_000)
        jitter = (0.0, 0.03, 0.055, 0.01, 0.0, 0.09, 0.075)
        for number, late in enumerate(jitter):
            line.put_user(pcm(1000 + number), ORIGIN + 0.25 + number * FRAME + late)
        user, agent = whole(line, ORIGIN + 1.0)
        assert (user[6_000 : 6_000 + 480 * 7] == np.repeat(np.arange(1000, 1007), 480)).all()
        assert not user[:6_000].any() and not user[6_000 + 480 * 7 :].any() and not agent.any()
        assert line.counts.skipped == line.counts.dropped == 0

    def test_silence_of_discontinuous_transmission_comes_with_the_packet_after_it(self) -> None:
        line = StereoLine(ORIGIN, 48_000)
        at = ORIGIN + 1.0
        line.put_user(pcm(1), at)
        for number in range(2, 40):
            at += 0.4
            line.put_user(bytes(2 * 9_120), at)
            line.put_user(pcm(number), at)
            while line.take(at) is not None:
                pass
        assert line.counts.padded == line.counts.skipped == 0

    def test_a_muted_minute_is_a_minute(self) -> None:
        line = StereoLine(ORIGIN, 48_000)
        line.put_user(pcm(1), ORIGIN + 1)
        blocks = []
        for tick in range(600):
            while (block := line.take(ORIGIN + 1 + tick / 10)) is not None:
                blocks.append(block.user)
        back = ORIGIN + 61.0
        line.put_user(bytes(2 * 5 * PCM_RATE), back)  # all the silence that media.receive makes of a leap
        line.put_user(pcm(2), back)
        user = np.frombuffer(b"".join(blocks) + whole(line, back + 1)[0].tobytes(), "<i2")
        assert first(user, 2) == 61 * PCM_RATE, "where it came"

    def test_a_stall_that_is_made_up_for_costs_no_speech_and_levels_off_in_quiet(self) -> None:
        line = StereoLine(ORIGIN, 48_000)
        at = ORIGIN
        said = 0

        def speak(value: int, when: float) -> None:
            line.put_user(pcm(value), when)
            while (block := line.take(when)) is not None:
                taken.append(block.user)

        taken: list[bytes] = []
        for _ in range(50):
            speak(5000, at)
            at, said = at + FRAME, said + 1
        at += 3.0  # nothing comes for three seconds, but the file goes on
        while (block := line.take(at)) is not None:
            taken.append(block.user)
        for _ in range(150):
            speak(5000, at)
            said += 1
        for _ in range(200):
            speak(QUIET, at)
            at += FRAME
        speak(7000, at)
        user = np.frombuffer(b"".join(taken) + whole(line, at + 1)[0].tobytes(), "<i2")
        assert int((user == 5000).sum()) == said * 480, "every sample of speech"
        assert abs(first(user, 7000) / PCM_RATE - (at - ORIGIN)) <= AHEAD_SECONDS
        assert line.counts.skipped > 2 * PCM_RATE and line.counts.dropped == 0

    def test_a_restarted_clock_is_noticed_within_a_second(self) -> None:
        line = StereoLine(ORIGIN, 48_000)
        for number in range(50):
            line.put_user(pcm(1), ORIGIN + number * FRAME)
        behind = ORIGIN + 50 * FRAME + 0.4  # 400 ms that nobody accounts for
        for number in range(100):
            line.put_user(pcm(2 + number), behind + number * FRAME)
        user, _ = whole(line, ORIGIN + 6)
        assert first(user, 101) / PCM_RATE == pytest.approx(1.4 + 99 * FRAME, abs=0.001)

    def test_what_got_lost_on_the_way_here_is_silence(self) -> None:
        line = StereoLine(ORIGIN, 48_000)
        line.put_user(pcm(1), ORIGIN)
        line.put_user(pcm(2), ORIGIN + 5 * FRAME, missed=4 * FRAME_SAMPLES)
        assert first(whole(line, ORIGIN + 1)[0], 2) == 5 * FRAME_SAMPLES
        assert line.counts.missed == 4 * FRAME_SAMPLES

    def test_hours_at_once_are_bounded(self) -> None:
        line = StereoLine(ORIGIN, 48_000)
        for _ in range(200):
            line.put_user(pcm(5000, PCM_RATE), ORIGIN)
        assert len(whole(line, ORIGIN)[0]) <= MAX_AHEAD
        assert line.counts.dropped == 190 * PCM_RATE


@given(
    st.lists(
        st.tuples(
            st.booleans(),
            st.floats(0, 2),
            st.integers(0, 6000),
            st.sampled_from([0, QUIET, 9000]),
            st.integers(0, (1 << 32) - 1),
        ),
        max_size=60,
    )
)
def test_whatever_comes_both_sides_stay_together_and_time_goes_on(
    steps: list[tuple[bool, float, int, int, int]],
) -> None:
    line, now, total = StereoLine(ORIGIN, 48_000), ORIGIN, 0
    for is_user, wait, samples, value, stamp in steps:
        now += wait
        if is_user:
            line.put_user(pcm(value, samples), now, missed=stamp % 1000)
        else:
            line.put_agent(pcm(value, samples), stamp, now)
        while (block := line.take(now)) is not None:
            assert len(block.user) == len(block.agent) == 2 * BLOCK_SAMPLES
            total += BLOCK_SAMPLES
        assert total <= (now - ORIGIN - HOLD_SECONDS) * PCM_RATE + 1 or total == 0
        assert total > (now - ORIGIN - HOLD_SECONDS) * PCM_RATE - BLOCK_SAMPLES - 1
    while (block := line.finish(now)) is not None:
        total += len(block.user) // 2
    assert total >= round((now - ORIGIN) * PCM_RATE)


class Disk:
    def __init__(self, room: int = 1 << 30) -> None:
        self.data = bytearray()
        self.room = room

    def write(self, data: bytes) -> int:
        if len(self.data) + len(data) > self.room:
            raise OSError(errno.ENOSPC, "no room")
        self.data += data
        return len(data)


def decoded(data: bytes) -> np.ndarray:
    """(2, samples) at 48 kHz, as any player has it."""
    with av.open(io.BytesIO(data)) as container:
        frames = [frame.to_ndarray() for frame in container.decode(audio=0)]
    return np.concatenate(frames, axis=1)


def test_the_file_has_each_side_on_its_channel_at_its_sample() -> None:
    disk = Disk()
    user, agent = noise(1, 3 * PCM_RATE), noise(2, 3 * PCM_RATE)
    agent[: PCM_RATE // 3] = 0
    ogg = OggOpus(disk, title="rtc_x")
    for at in range(0, len(user), 4_801):  # blocks of odd sizes
        ogg.write(user[at : at + 4_801].tobytes(), agent[at : at + 4_801].tobytes())
    ogg.close()
    sound = decoded(bytes(disk.data))
    assert sound.shape == (2, 2 * len(user))
    for heard, said in zip(sound, (user, agent), strict=True):
        behind, likeness = lag(heard[::2], said)
        assert behind == 0 and likeness > 0.9, (behind, likeness)
    assert max(abs(lag(sound[0][::2], agent)[1]), abs(lag(sound[1][::2], user)[1])) < 0.1


def test_a_file_that_was_cut_anywhere_is_played_to_its_last_page() -> None:
    disk = Disk()
    ogg = OggOpus(disk, title="rtc_x")
    sound = noise(3, 5 * PCM_RATE)
    written: list[tuple[int, float]] = []
    for at in range(0, len(sound), BLOCK_SAMPLES):
        ogg.write(sound[at : at + BLOCK_SAMPLES].tobytes(), bytes(2 * BLOCK_SAMPLES))
        written.append((len(disk.data), (at + BLOCK_SAMPLES) / PCM_RATE))
    for size, seconds in written[2:]:
        assert decoded(bytes(disk.data[:size])).shape[1] / 48_000 > seconds - 0.5
    cut = decoded(bytes(disk.data[: written[-1][0] - 100]))
    assert cut.shape[1] / 48_000 > 4.0 and lag(cut[0][::2], sound)[0] == 0
    ogg.close()


def test_a_full_disk_says_so_and_what_is_there_is_played() -> None:
    disk = Disk(room=20_000)
    ogg = OggOpus(disk, title="rtc_x")
    with pytest.raises(OSError, match="no room"):
        for seed in range(100):
            ogg.write(noise(seed, BLOCK_SAMPLES).tobytes(), noise(-seed - 1 & 0xFF, BLOCK_SAMPLES).tobytes())
    ogg.abandon()
    assert decoded(bytes(disk.data)).shape[1] / 48_000 > 1.0
