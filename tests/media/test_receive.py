"""voicegate.media.receive: order, the sample-true line, gaps, jumps, floods."""

from __future__ import annotations

import random
from collections.abc import Iterable
from itertools import count

import pytest
from hypothesis import given
from hypothesis import strategies as st

from tests.media.signals import best_match, frames, voice_like
from voicegate.media import receive
from voicegate.media.opus import Application, OpusDecoder, OpusEncoder
from voicegate.media.receive import ReceiveBuffer
from voicegate.media.sound import PCM
from voicegate.proto.errors import BadPacket
from voicegate.proto.rtp import RtpPacket

PT = 111
START = 500.0


class CountingDecoder:
    """A codec whose payload is its own sample value, so that a test sees each packet in the line."""

    clock_rate = 48_000
    sound = PCM
    dtx_bytes = 1

    def __init__(self) -> None:
        self.closed = False

    def decode(self, payload: bytes) -> bytes:
        if payload == b"bad":
            raise BadPacket("opus_corrupt")
        return payload[:2].ljust(2, b"\0") * 480

    def duration(self, payload: bytes) -> int:
        return 480 if payload else 0

    def conceal(self, samples: int) -> bytes:
        return b"\xff\xff" * samples

    def fec_samples(self, payload: bytes) -> int:
        return 480 if payload.endswith(b"fec") else 0

    def decode_fec(self, payload: bytes, samples: int) -> bytes:
        if payload.endswith(b"badfec"):
            raise BadPacket("opus_corrupt")
        return b"\xfe\xff" * samples

    def close(self) -> None:
        self.closed = True


CONCEALED, RECOVERED, SILENT = -1, -2, 0


def packet(
    index: int, *, ssrc: int = 1, base: int = 0, time_base: int = 0, payload: bytes | None = None
) -> RtpPacket:
    """The index-th 20-ms packet of a stream; its samples all are index + 1."""
    body = (index + 1).to_bytes(2, "little") if payload is None else payload
    return RtpPacket(False, PT, (base + index) & 0xFFFF, (time_base + 960 * index) & 0xFFFFFFFF, ssrc, body)


def line(buffer: ReceiveBuffer) -> list[int]:
    """What is there to poll, as one value for each 20 ms."""
    pcm = b"".join(iter(buffer.poll_pcm, None))
    assert len(pcm) % 960 == 0
    values = []
    for frame in frames(pcm):
        assert frame == frame[:2] * 480
        values.append(int.from_bytes(frame[:2], "little", signed=True))
    return values


def waits(buffer: ReceiveBuffer, now: float) -> bool:
    """Whether packets are held behind a gap: a pause of the client has a deadline too, but a later one."""
    deadline = buffer.next_deadline()
    return deadline is not None and deadline < now + 0.4


def new() -> ReceiveBuffer:
    return ReceiveBuffer(CountingDecoder(), PT)


def feed(buffer: ReceiveBuffer, indices: Iterable[int], start: int = 0, **kind: int) -> None:
    for step, index in enumerate(indices, start):
        buffer.push(packet(index, **kind), START + 0.02 * step)


def test_in_order_means_at_once() -> None:
    buffer = new()
    for index in range(100):
        buffer.push(packet(index), START + 0.02 * index)
        assert line(buffer) == [index + 1]
        assert not waits(buffer, START + 0.02 * index)
    assert buffer.statistics().played == 100


@pytest.mark.parametrize(("base", "time_base"), [(0xFFF0, 0), (0, 0xFFFFFF00), (0xFFFE, 0xFFFFFFFF)])
def test_wrap_around(base: int, time_base: int) -> None:
    buffer = new()
    feed(buffer, [0, 1, 3, 2, 4, 6, 5, *range(7, 40)], base=base, time_base=time_base)
    assert line(buffer) == list(range(1, 41))
    assert buffer.counts.clock_jumps == buffer.counts.resyncs == buffer.counts.lost == 0


def test_swapped_packets_are_put_in_order() -> None:
    buffer = new()
    buffer.push(packet(0), START)
    buffer.push(packet(2), START + 0.02)
    assert line(buffer) == [1]
    buffer.push(packet(1), START + 0.025)
    assert line(buffer) == [2, 3]
    assert buffer.counts.reordered == 1
    assert not waits(buffer, START + 0.025)


def test_a_lost_packet_is_concealed_after_20_ms_on_a_quiet_network() -> None:
    buffer = new()
    feed(buffer, [0, 1, 2])
    buffer.push(packet(4), START + 0.08)
    assert buffer.next_deadline() == pytest.approx(START + 0.1)
    buffer.handle_timeout(START + 0.0999)
    assert line(buffer) == [1, 2, 3]
    buffer.handle_timeout(START + 0.1)
    assert line(buffer) == [CONCEALED, 5]
    buffer.push(packet(3), START + 0.11)
    assert line(buffer) == []
    assert buffer.counts.late == 1
    assert buffer.counts.lost == 1
    assert buffer.counts.concealed_samples == 480


def test_flush_gives_out_what_waits_behind_gaps() -> None:
    buffer = new()
    feed(buffer, [0, 2, 4, 5])
    assert line(buffer) == [1]
    buffer.flush(START + 0.07)
    assert line(buffer) == [CONCEALED, 3, CONCEALED, 5, 6]
    assert not waits(buffer, START + 0.07)
    buffer.push(packet(6), START + 0.08)
    assert line(buffer) == [7]


def test_drop_forgets_it_and_the_line_goes_on() -> None:
    buffer = new()
    feed(buffer, [0, 2])
    buffer.drop(START + 0.03)
    assert line(buffer) == []
    buffer.push(packet(1), START + 0.04)
    buffer.push(packet(3), START + 0.06)
    assert line(buffer) == [4]
    assert buffer.counts.late == 1


def test_jitter_lengthens_the_wait_within_its_bound() -> None:
    rng = random.Random(3)
    buffer = new()
    for index in range(50):
        buffer.push(packet(index), START + 0.02 * index + rng.uniform(0, 0.015))
    line(buffer)
    buffer.push(packet(51), START + 1.03)
    deadline = buffer.next_deadline()
    assert deadline is not None
    assert deadline == pytest.approx(START + 1.03 + receive.MIN_WAIT)
    wild = new()
    for index in range(50):
        wild.push(packet(index), START + 0.02 * index + rng.choice([0.0, 0.5]))
    wild.push(packet(51), START + 2)
    assert wild.next_deadline() == pytest.approx(START + 2 + receive.MAX_WAIT)
    middle = new()
    for index in range(50):
        middle.push(packet(index), START + 0.02 * index + 0.035 * (index % 2))
    middle.push(packet(51), START + 1.055)
    deadline = middle.next_deadline()
    assert deadline is not None
    assert START + 1.055 + 0.03 < deadline < START + 1.055 + 0.04


def test_redundancy_restores_the_last_lost_frame() -> None:
    buffer = new()
    feed(buffer, [0])
    buffer.push(packet(3, payload=b"\x04\x00fec"), START + 0.06)
    buffer.handle_timeout(START + 0.3)
    assert line(buffer) == [1, CONCEALED, RECOVERED, 4]
    assert buffer.counts.recovered_fec_samples == 480


def test_redundancy_that_cannot_be_decoded_is_concealed() -> None:
    buffer = new()
    feed(buffer, [0])
    buffer.push(packet(2, payload=b"\x03\x00badfec"), START + 0.04)
    buffer.handle_timeout(START + 0.3)
    assert line(buffer) == [1, CONCEALED, 3]


def test_redundancy_longer_than_the_gap_is_not_used() -> None:
    buffer = new()
    feed(buffer, [0])
    short = packet(2, payload=b"\x03\x00fec")._replace(timestamp=960 + 480)
    buffer.push(short, START + 0.03)
    buffer.handle_timeout(START + 0.3)
    assert b"".join(iter(buffer.poll_pcm, None)) == b"\x01\x00" * 480 + b"\xff\xff" * 240 + b"\x03\x00" * 480


def test_a_long_loss_is_concealed_for_120_ms_and_then_silent() -> None:
    buffer = new()
    feed(buffer, [0])
    buffer.push(packet(11), START + 0.22)
    buffer.handle_timeout(START + 0.3)
    assert line(buffer) == [1, *[CONCEALED] * 6, *[SILENT] * 4, 12]


def test_two_gaps_have_their_own_deadlines() -> None:
    buffer = new()
    feed(buffer, [0])
    buffer.push(packet(2), START + 0.04)
    buffer.push(packet(4), START + 0.055)
    buffer.handle_timeout(START + 0.065)  # 25 ms: the last packet was that much early
    assert line(buffer) == [1, CONCEALED, 3]
    assert buffer.next_deadline() == pytest.approx(START + 0.08)
    buffer.handle_timeout(START + 0.08)
    assert line(buffer) == [CONCEALED, 5]


def test_duplicates_are_dropped_before_and_after_playing() -> None:
    buffer = new()
    feed(buffer, [0, 1, 1, 0, 3, 3])
    assert line(buffer) == [1, 2]
    assert buffer.counts.duplicate == 3
    assert buffer.counts.late == 0


def test_dtx_becomes_silence_of_the_same_length() -> None:
    buffer = new()
    feed(buffer, [0])
    later = packet(1)._replace(timestamp=960 * 21)
    buffer.push(later, START + 0.42)
    assert line(buffer) == [1, *[SILENT] * 20, 2]
    assert buffer.counts.silence_samples == 20 * 480
    assert buffer.counts.concealed_samples == 0


def test_a_long_mute_is_bounded_and_the_rest_counted() -> None:
    buffer = new()
    feed(buffer, [0])
    buffer.push(packet(1)._replace(timestamp=960 + 48_000 * 60), START + 60)
    assert len(line(buffer)) == 1 + 250 + 1
    assert buffer.counts.omitted_samples == 24_000 * 55


@pytest.mark.parametrize("leap", [48_000 * 3, 2**31 - 1, -960, -48_000 * 100, 2**30])
def test_a_restarted_clock_inserts_nothing(leap: int) -> None:
    buffer = new()
    feed(buffer, [0])
    for index in range(1, 5):
        moved = packet(index)._replace(timestamp=(960 * index + leap) & 0xFFFFFFFF)
        buffer.push(moved, START + 0.02 * index)
    assert line(buffer) == [1, 2, 3, 4, 5]
    assert buffer.counts.clock_jumps == 1


def test_a_sequence_jump_is_believed_when_a_second_packet_follows() -> None:
    buffer = new()
    feed(buffer, range(5))
    feed(buffer, [20_000, 20_001, 20_002], start=5, time_base=0)
    assert line(buffer) == [1, 2, 3, 4, 5, 20_001, 20_002, 20_003]
    assert buffer.counts.resyncs == 1
    assert buffer.counts.received == 8


def test_a_single_wild_packet_is_dropped() -> None:
    buffer = new()
    feed(buffer, [0, 1, 20_000, 2, 3, 40_000, 4])
    assert line(buffer) == [1, 2, 3, 4, 5]
    assert buffer.counts.stray == 1


def test_another_ssrc_takes_over() -> None:
    buffer = new()
    feed(buffer, range(3))
    buffer.push(packet(4), START + 0.08)  # held behind a gap: played before the change
    feed(buffer, [7, 8, 9], start=5, ssrc=2)
    assert line(buffer) == [1, 2, 3, CONCEALED, 5, 8, 9, 10]
    assert not waits(buffer, START + 0.14)


def test_ten_thousand_ssrcs_do_nothing() -> None:
    buffer = new()
    for index in range(10_000):
        buffer.push(packet(index, ssrc=index + 5), START + 0.001 * index)
    assert line(buffer) == [1]
    assert buffer.counts.stray == 9_998


def test_other_payload_types_and_padding_only_use_their_sequence_number() -> None:
    buffer = new()
    feed(buffer, [0])
    buffer.push(packet(1)._replace(payload_type=126, timestamp=960), START + 0.02)
    buffer.push(packet(2, payload=b"")._replace(timestamp=960), START + 0.03)
    buffer.push(packet(3)._replace(timestamp=960), START + 0.04)
    assert line(buffer) == [1, 4]
    assert buffer.counts.skipped == 2
    assert buffer.counts.lost == 0


def test_a_payload_that_does_not_decode_is_concealed() -> None:
    buffer = new()
    feed(buffer, [0])
    buffer.push(packet(1, payload=b"bad"), START + 0.02)
    buffer.push(packet(2), START + 0.04)
    assert line(buffer) == [1, CONCEALED, 3]
    assert buffer.counts.corrupt == 1


def test_the_reorder_buffer_is_bounded() -> None:
    buffer = new()
    feed(buffer, [0])
    for index in range(2, 2 + receive.MAX_HELD + 1):
        buffer.push(packet(index), START + 0.021)
    assert buffer.counts.held_overflow == 1
    assert buffer.counts.lost == 1
    assert line(buffer) == [1, CONCEALED, *range(3, receive.MAX_HELD + 4)]
    assert not waits(buffer, START + 0.021)


def test_a_flood_is_bounded_by_real_time() -> None:
    buffer = new()
    for index in range(20_000):
        buffer.push(packet(index), START + 0.0001 * index)  # 400 s of audio in 2 s
    heard = len(line(buffer))
    assert heard <= (10 + 2 * 1.05 + 0.2) * 50
    assert buffer.counts.flooded > 0
    feed(buffer, [20_000, 20_001], start=2_000)
    assert line(buffer)[-1] == 20_002


def test_nobody_polls() -> None:
    buffer = new()
    feed(buffer, range(receive.MAX_UNREAD + 10))
    assert buffer.counts.unread_samples == 4800
    assert len(line(buffer)) == receive.MAX_UNREAD


def test_close_frees_the_decoder() -> None:
    decoder = CountingDecoder()
    buffer = ReceiveBuffer(decoder, PT)
    feed(buffer, [0, 2])
    buffer.close()
    assert decoder.closed
    assert buffer.poll_pcm() is None
    assert buffer.next_deadline() is None


@given(
    st.randoms(use_true_random=False),
    st.integers(0, 0xFFFF),
    st.integers(0, 0xFFFFFFFF),
    st.sampled_from([0.0, 0.05, 0.3]),
    st.sampled_from([0.0, 0.01, 0.04]),
)
def test_over_a_bad_network_the_line_is_in_order_and_as_long_as_the_rtp_time(
    rng: random.Random, base: int, time_base: int, loss: float, jitter: float
) -> None:
    arrivals = [
        (START + 0.02 * index + rng.uniform(0, jitter if index else 0), next(_tie), index)
        for index in range(150)
        if index == 0 or rng.random() >= loss
        for _copy in range(rng.choice([1, 1, 1, 1, 2]))
    ]
    buffer = new()
    for at, _, index in sorted(arrivals):
        while (deadline := buffer.next_deadline()) is not None and deadline < at:
            buffer.handle_timeout(deadline)
        buffer.push(packet(index, base=base, time_base=time_base), at)
    last = max(index for _, _, index in arrivals)
    buffer.flush(max(arrivals)[0])
    values = line(buffer)
    assert len(values) == last + 1
    assert all(value in (place + 1, CONCEALED, SILENT) for place, value in enumerate(values))
    counts = buffer.counts
    assert counts.received == len(arrivals)
    assert counts.received == counts.played + counts.late + counts.duplicate
    assert counts.lost == last + 1 - counts.played


_tie = count()


@given(
    st.lists(
        st.tuples(
            st.integers(0, 0xFFFF),
            st.integers(0, 0xFFFFFFFF),
            st.integers(0, 2),
            st.sampled_from([PT, 0]),
            st.binary(max_size=40),
            st.floats(0, 0.2),
        ),
        max_size=60,
    )
)
def test_any_packets_at_any_time(stream: list[tuple[int, int, int, int, bytes, float]]) -> None:
    buffer = ReceiveBuffer(OpusDecoder(), PT)
    now, heard = START, 0
    for sequence, timestamp, ssrc, payload_type, payload, pause in stream:
        now += pause
        buffer.handle_timeout(now)
        buffer.push(RtpPacket(False, payload_type, sequence, timestamp, ssrc, payload), now)
        while (pcm := buffer.poll_pcm()) is not None:
            assert len(pcm) % 2 == 0
            heard += len(pcm) // 2
    buffer.flush(now)
    assert heard <= (10 + 1.05 * (now - START)) * 24_000 + 2880


def test_real_opus_over_five_percent_loss_is_still_the_same_speech() -> None:
    rng = random.Random(11)
    sent = voice_like(6.0)
    encoder = OpusEncoder(application=Application.VOIP)
    encoder.expect_loss(10)
    payloads = [encoder.encode(frame) for frame in frames(sent)]
    clean, lossy = ReceiveBuffer(OpusDecoder(), PT), ReceiveBuffer(OpusDecoder(), PT)
    heard: dict[ReceiveBuffer, list[bytes]] = {clean: [], lossy: []}
    for index, payload in enumerate(payloads):
        now = START + 0.02 * index
        for buffer in (clean, lossy):
            buffer.handle_timeout(now)
            if buffer is clean or index in (0, len(payloads) - 1) or rng.random() > 0.05:
                buffer.push(packet(index, payload=payload), now)
            heard[buffer].extend(iter(buffer.poll_pcm, None))
    for buffer in (clean, lossy):
        buffer.flush(START + 6.1)
        heard[buffer].extend(iter(buffer.poll_pcm, None))
        assert sum(map(len, heard[buffer])) == len(sent)
    delay, likeness = best_match(b"".join(heard[clean]), b"".join(heard[lossy]), longest_delay=3)
    assert delay == 0
    assert likeness > 0.97
    assert lossy.counts.lost > 5
    assert lossy.counts.recovered_fec_samples >= 0.4 * 480 * lossy.counts.lost  # none in pauses
