"""voicegate.roles.transceiver.audio: what the agent says before the client is there, loss, silence."""

from __future__ import annotations

from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from tests.media.streams import red
from voicegate.proto.rtcp import ReceiverReport, ReportBlock, build_receiver_report
from voicegate.proto.rtp import RtpPacket, build_rtp, parse_rtp_untrusted
from voicegate.proto.sdp import AudioFormat, Codec
from voicegate.roles.transceiver.audio import MAX_EARLY_BYTES, CallAudio

NOW = 1000.0
PCMU = AudioFormat(0, Codec.PCMU, 8000, 1)


def call_audio(format: AudioFormat = PCMU, *, listening: bool = True, **options: Any) -> CallAudio:
    return CallAudio(
        format,
        listening=listening,
        ssrc=77,
        cname="c",
        first_sequence=0,
        first_timestamp=0,
        random=lambda: 0.5,
        wall_offset=0.0,
        now=NOW,
        **options,
    )


def counts(audio: CallAudio) -> dict[str, int]:
    playout = audio.statistics()["playout"]
    assert isinstance(playout, dict)
    return playout


def test_early_audio_is_played_from_the_start() -> None:
    audio = call_audio()
    audio.play(bytes(960), NOW)
    audio.play(bytes(500), NOW)
    audio.end_of_audio(NOW)
    assert audio.poll_packet() is None
    audio.start(NOW + 1)
    assert audio.poll_packet() is not None
    audio.handle_timeout(NOW + 1.02)
    assert audio.poll_packet() is not None
    assert counts(audio)["frames"] == 2
    assert counts(audio)["overflow_samples"] == counts(audio)["odd_bytes"] == 0
    audio.close()


@pytest.mark.parametrize("size", [2, 960, 100_000, 2 * MAX_EARLY_BYTES])
def test_early_audio_beyond_its_bound_is_counted(size: int) -> None:
    audio = call_audio()
    pushed = 0
    while pushed < MAX_EARLY_BYTES + 10 * 960:
        audio.play(bytes(size if pushed else MAX_EARLY_BYTES - 960), NOW)
        pushed += size if pushed else MAX_EARLY_BYTES - 960
    assert counts(audio)["overflow_samples"] == (pushed - MAX_EARLY_BYTES) // 2
    audio.start(NOW)
    assert counts(audio)["overflow_samples"] == (pushed - MAX_EARLY_BYTES) // 2
    audio.close()


@given(st.lists(st.integers(0, 2000), max_size=20))
def test_half_samples_are_refused_and_shift_nothing(sizes: list[int]) -> None:
    audio = call_audio()
    for size in sizes:
        audio.play(b"\1\2" * (size // 2) + b"\3" * (size % 2), NOW)
    assert bytes(audio._early or b"") == b"\1\2" * sum(size // 2 for size in sizes)
    assert counts(audio)["odd_bytes"] == sum(size % 2 for size in sizes)
    audio.close()


def test_a_client_that_does_not_listen_keeps_nothing() -> None:
    audio = call_audio(listening=False)
    audio.play(bytes(MAX_EARLY_BYTES), NOW)
    assert not audio.stop_playing(NOW)
    audio.close()


def opus_audio(**options: Any) -> CallAudio:
    audio = call_audio(AudioFormat(111, Codec.OPUS, 48_000, 2), **options)
    audio.start(NOW)
    return audio


def sent(audio: CallAudio) -> list[RtpPacket]:
    packets = []
    while (packet := audio.poll_packet()) is not None:
        if not packet[0]:
            packets.append(parse_rtp_untrusted(packet[1]))
    return packets


def receiver_report(about: int, fraction: int) -> bytes:
    block = ReportBlock(about, fraction, 0, 0, 0, 0, 0)
    return build_receiver_report(ReceiverReport(9, (block,)))


def test_a_report_of_loss_brings_redundancy_where_negotiated() -> None:
    audio = opus_audio(red_payload_type=63)
    audio.play(bytes(960 * 4), NOW)
    assert [packet.payload_type for packet in sent(audio)] == [111]
    assert not audio.receive_rtcp(receiver_report(78, 128), NOW)
    audio.handle_timeout(NOW + 0.02)
    assert [packet.payload_type for packet in sent(audio)] == [111]
    assert not audio.receive_rtcp(receiver_report(77, 13), NOW + 0.03)
    for n in (2, 3):
        audio.handle_timeout(NOW + 0.02 * n)
    assert [packet.payload_type for packet in sent(audio)] == [63, 63]
    assert audio.statistics()["sending"] == {
        "redundant": True,
        "expected_loss": 0,
        "changes": 1,
    }
    audio.close()


@pytest.mark.parametrize(("keep_warm", "listening"), [(True, True), (False, True), (True, False)])
def test_silence_is_sent_where_asked_for(keep_warm: bool, listening: bool) -> None:
    audio = opus_audio(keep_warm=keep_warm, listening=listening)
    packets = []
    for n in range(100):
        audio.handle_timeout(NOW + 0.02 * n)
        packets += sent(audio)
    assert len(packets) == (4 if keep_warm and listening else 0)
    assert audio.played_samples == 0
    audio.close()


def test_a_pause_of_the_client_is_given_out_on_the_timer() -> None:
    audio = call_audio(cn_payload_type=13)
    for index in range(3):
        audio.receive_rtp(build_rtp(0, False, index, 160 * index, 9, bytes(160)), NOW + 0.02 * index)
    audio.receive_rtp(build_rtp(13, False, 3, 480, 9, b"\x40"), NOW + 0.06)
    samples = 0
    while (deadline := audio.next_deadline()) is not None and deadline <= NOW + 1.06:
        audio.handle_timeout(deadline)
        samples += sum(map(len, iter(audio.poll_audio, None))) // 2
    assert 0.9 * 24_000 < samples - 3 * 480 <= 24_000
    audio.close()


def test_red_of_the_client_fills_a_gap_at_once() -> None:
    audio = call_audio(red_payload_type=100)
    audio.receive_rtp(build_rtp(0, False, 0, 0, 9, bytes(160)), NOW)
    redundant = red(bytes(160), (160, bytes(160)), payload_type=0)
    audio.receive_rtp(build_rtp(100, False, 2, 320, 9, redundant), NOW + 0.04)
    assert sum(map(len, iter(audio.poll_audio, None))) // 2 == 3 * 480
    receive = audio.statistics()["receive"]
    assert isinstance(receive, dict)
    assert receive["recovered_red"] == 1
    audio.close()
