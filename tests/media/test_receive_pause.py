"""voicegate.media.receive while the client says nothing: silence in real time, and none of it twice."""

from __future__ import annotations

import pytest

from tests.media.streams import CN, PT, START
from tests.media.test_receive import CountingDecoder, packet
from voicegate.media import pause
from voicegate.media.receive import ReceiveBuffer
from voicegate.proto.rtp import RtpPacket

DTX = b"\x08"  # to the counting decoder a frame that announces a pause


def new() -> ReceiveBuffer:
    return ReceiveBuffer(CountingDecoder(), PT, cn_payload_type=CN)


def run(buffer: ReceiveBuffer, until: float) -> int:
    """Let time pass; the samples that come."""
    samples = 0
    while (deadline := buffer.next_deadline()) is not None and deadline <= until:
        buffer.handle_timeout(deadline)
        samples += heard(buffer)
    return samples


def heard(buffer: ReceiveBuffer) -> int:
    return sum(map(len, iter(buffer.poll_pcm, None))) // 2


def announced() -> ReceiveBuffer:
    """A client that has just said that it pauses; the line ends at 40 ms of RTP time."""
    buffer = new()
    buffer.push(packet(0), START)
    buffer.push(packet(1, payload=DTX)._replace(timestamp=960), START + 0.02)
    heard(buffer)
    return buffer


@pytest.mark.parametrize("seconds", [0.1, 0.4, 3.0, 60.0])
def test_the_silence_of_dtx_comes_while_it_lasts(seconds: float) -> None:
    buffer = announced()
    silence = run(buffer, START + 0.04 + seconds)
    behind = seconds - silence / 24_000
    assert 0 <= behind <= pause.STEP / 24_000 + 0.02 + 1e-6
    buffer.push(packet(2)._replace(timestamp=1920 + int(48_000 * seconds)), START + 0.04 + seconds)
    assert silence + heard(buffer) == seconds * 24_000 + 480  # to the sample, and none of it twice
    assert buffer.counts.live_silence_samples == silence


@pytest.mark.parametrize("size", [0, 1, 2, 3])
def test_real_opus_announces_with_up_to_two_bytes(size: int) -> None:
    from voicegate.media.opus import OpusDecoder

    buffer = ReceiveBuffer(OpusDecoder(), PT)
    buffer.push(RtpPacket(False, PT, 0, 0, 1, b"\xf8" + bytes(30)), START)
    buffer.push(RtpPacket(False, PT, 1, 960, 1, b"\xf8\x00\x00"[:size]), START + 0.02)
    heard(buffer)
    assert (run(buffer, START + 0.4) > 0) == (size <= 2)


def test_comfort_noise_announces_too_and_has_no_length_of_its_own() -> None:
    buffer = new()
    buffer.push(packet(0), START)
    buffer.push(RtpPacket(False, CN, 1, 960, 1, b"\x40"), START + 0.02)
    total = heard(buffer) + run(buffer, START + 1.0)
    assert buffer.counts.comfort_noise == 1
    buffer.push(packet(2)._replace(timestamp=48_000), START + 1.0)
    assert total + heard(buffer) == 24_000 + 480
    assert buffer.counts.live_silence_samples > 0.9 * 24_000


def test_a_late_packet_is_not_taken_for_a_pause() -> None:
    buffer = new()
    for index in range(10):
        buffer.push(packet(index), START + 0.02 * index)
    heard(buffer)
    assert run(buffer, START + 0.18 + pause.MUTE_AFTER) == 0
    for index in range(10, 36):
        buffer.push(packet(index), START + 0.7)
    assert heard(buffer) == 26 * 480


def test_a_mute_without_a_word_is_heard_after_half_a_second() -> None:
    buffer = new()
    buffer.push(packet(0), START)
    heard(buffer)
    assert run(buffer, START + 0.019 + pause.MUTE_AFTER) == 0
    assert run(buffer, START + 0.021 + pause.MUTE_AFTER) == 0.48 * 24_000
    assert run(buffer, START + 2.02) == pytest.approx(1.5 * 24_000, abs=pause.STEP)


def test_speech_after_a_stall_is_whole_and_the_next_pause_is_shorter() -> None:
    buffer = new()
    for index in range(10):
        buffer.push(packet(index), START + 0.02 * index)
    total = heard(buffer) + run(buffer, START + 1.2)
    doubled = total - 10 * 480
    assert doubled > 0.9 * 24_000
    for index in range(10, 60):  # a second of speech at once: the network had stalled
        buffer.push(packet(index), START + 1.2)
    total += heard(buffer)
    assert total == 60 * 480 + doubled
    buffer.push(packet(60, payload=DTX), START + 1.22)
    total += heard(buffer) + run(buffer, START + 5.22)
    buffer.push(packet(61)._replace(timestamp=960 * 261), START + 5.22)
    total += heard(buffer)
    assert total == 262 * 480  # the RTP time, to the sample
    assert buffer.counts.repaid_samples == doubled
    assert buffer.counts.clock_jumps == 0


def test_a_clock_that_stands_still_in_a_pause_owes_nothing() -> None:
    buffer = announced()
    silence = run(buffer, START + 3)
    for index in range(2, 20):
        buffer.push(packet(index), START + 3 + 0.02 * index)
    assert heard(buffer) == 18 * 480
    buffer.push(packet(20, payload=DTX), START + 3.4)
    after = run(buffer, START + 6.42)
    assert silence > 2.8 * 24_000
    assert after == pytest.approx(3 * 24_000, abs=pause.STEP + 1500)
    assert buffer.counts.repaid_samples <= 480


def test_packets_lost_in_a_pause_conceal_nothing() -> None:
    buffer = announced()
    silence = run(buffer, START + 1.0)
    buffer.push(packet(5)._replace(timestamp=48_000), START + 1.0)
    silence += run(buffer, START + 1.1)
    assert silence == 24_000 - 960 + 480
    assert buffer.counts.concealed_samples == 0


@pytest.mark.parametrize("drift", [0.999, 1.001])
def test_an_hour_on_a_clock_that_is_wrong_by_a_thousandth(drift: float) -> None:
    """The line is the client's clock: nothing dropped, nothing inserted, each packet at once."""
    buffer = new()
    frames = 180_000
    for index in range(frames):
        now = START + 0.02 * index * drift
        buffer.handle_timeout(now)
        buffer.push(
            packet(index % 30_000)._replace(sequence=index & 0xFFFF, timestamp=960 * index & 0xFFFFFFFF), now
        )
        assert buffer.poll_pcm() is not None
        assert buffer.poll_pcm() is None
    counts = buffer.counts
    assert counts.played == frames
    assert counts.flooded == counts.lost == counts.silence_samples == counts.clock_jumps == 0


@pytest.mark.parametrize("drift", [0.999, 1.001])
def test_an_hour_of_talk_and_dtx_on_a_wrong_clock_is_sample_true(drift: float) -> None:
    buffer, sequence, end, total = new(), 0, 0, 0
    while end < 3600 * 48_000:
        for index in range(25):  # half a second of speech, announced end, 0.4 s of nothing
            payload = DTX if index == 24 else b"\x01\x00"
            now = START + end / 48_000 * drift
            total += run(buffer, now)
            buffer.push(RtpPacket(False, PT, sequence & 0xFFFF, end & 0xFFFFFFFF, 1, payload), now)
            total += heard(buffer)
            sequence, end = sequence + 1, end + 960
        end += 19_200
    owed = buffer.counts.silence_samples + buffer.counts.decoded_samples - (end - 19_200) // 2
    assert abs(owed) <= 480
    assert total == buffer.counts.silence_samples + buffer.counts.decoded_samples
    assert buffer.counts.flooded == buffer.counts.clock_jumps == buffer.counts.omitted_samples == 0
