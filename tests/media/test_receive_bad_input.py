"""voicegate.media.receive and what no honest client sends: counted, bounded, and the call goes on."""

from __future__ import annotations

import random

import pytest

from tests.media.signals import frames, voice_like
from tests.media.streams import PT, RED, START
from voicegate.media.opus import OpusDecoder, OpusEncoder
from voicegate.media.receive import ReceiveBuffer
from voicegate.proto.errors import BadPacket
from voicegate.proto.rtp import RtpPacket, build_rtp, parse_rtp_untrusted

GOOD = [OpusEncoder().encode(frame) for frame in frames(voice_like(0.1))]
RNG = random.Random(9)


def heard(buffer: ReceiveBuffer) -> int:
    return sum(map(len, iter(buffer.poll_pcm, None))) // 2


def survives(payloads: list[bytes], *, payload_type: int = PT) -> ReceiveBuffer:
    """Good packets, these for 20 ms each, and good ones again, which are heard.

    Garbage may decode to as much as 120 ms; otherwise the line has its length.
    """
    buffer = ReceiveBuffer(OpusDecoder(), PT, red_payload_type=RED)
    total = 0
    stream = [(PT, good) for good in GOOD]
    stream += [(payload_type, payload) for payload in payloads] + stream
    for index, (kind, payload) in enumerate(stream):
        now = START + 0.02 * index
        buffer.handle_timeout(now)
        buffer.push(RtpPacket(False, kind, index, 960 * index, 1, payload), now)
        total += heard(buffer)
    assert -5 * 480 <= total - 480 * len(stream) <= 2400 * len(payloads)
    assert buffer.counts.played >= 2 * len(GOOD)
    assert buffer.counts.received == len(stream)
    return buffer


@pytest.mark.parametrize("size", [0, 1, 2, 3, 100, 1275, 1276, 1500, 1501, 9000])
def test_opus_garbage_of_any_size(size: int) -> None:
    survives([RNG.randbytes(size) for _ in range(40)])


@pytest.mark.parametrize("toc", range(0, 256, 4))
def test_every_kind_of_opus_frame_with_garbage_inside(toc: int) -> None:
    """All configurations, mono and stereo (RFC 6716 section 3.1)."""
    survives([bytes((toc,)) + RNG.randbytes(60) for _ in range(3)])


@pytest.mark.parametrize("stereo", [0, 4])
def test_120_ms_frames(stereo: int) -> None:
    """Six 20-ms CELT frames in a packet (code 3, constant size), all of them and one more than may be."""
    buffer = ReceiveBuffer(OpusDecoder(), PT)
    for index in range(5):
        payload = bytes((0xFB | stereo, 6)) + RNG.randbytes(6 * 50)
        buffer.push(RtpPacket(False, PT, index, 5760 * index, 1, payload), START + 0.12 * index)
        assert heard(buffer) == 2880
    too_long = bytes((0xFB | stereo, 7)) + RNG.randbytes(7 * 50)
    buffer.push(RtpPacket(False, PT, 5, 5760 * 5, 1, too_long), START + 0.6)
    assert buffer.counts.corrupt == 1


@pytest.mark.parametrize("payload_type", [0, 8, 13, 96, 126, RED])
def test_wrong_payload_types(payload_type: int) -> None:
    buffer = survives([RNG.randbytes(80) for _ in range(20)], payload_type=payload_type)
    assert buffer.counts.played <= 2 * len(GOOD) + 20


def test_absurd_timestamps_and_jumps_cannot_make_hours() -> None:
    buffer = ReceiveBuffer(OpusDecoder(), PT)
    total = 0
    for index in range(3000):
        sequence = index if RNG.random() < 0.7 else RNG.randrange(0x10000)
        packet = RtpPacket(
            False, PT, sequence & 0xFFFF, RNG.randrange(1 << 32), RNG.choice((1, 1, 1, 2)), GOOD[0]
        )
        now = START + 0.02 * index
        buffer.handle_timeout(now)
        buffer.push(packet, now)
        total += heard(buffer)
    assert total <= (10 + 1.05 * 60) * 24_000 + 2880
    for index in range(10):  # an honest stream is heard again
        buffer.push(RtpPacket(False, PT, index, 960 * index, 7, GOOD[0]), START + 61 + 0.02 * index)
    assert heard(buffer) >= 10 * 480


def test_padding_and_extension_lies() -> None:
    buffer = ReceiveBuffer(OpusDecoder(), PT)
    refused = 0
    for index in range(2000):
        data = bytearray(build_rtp(PT, False, index, 960 * index, 1, GOOD[index % len(GOOD)]))
        data[0] |= RNG.choice((0, 0x10, 0x20, 0x30, 0x0F))
        data[-1] = RNG.randrange(256)
        try:
            packet = parse_rtp_untrusted(bytes(data))
        except BadPacket:
            refused += 1
            continue
        buffer.handle_timeout(START + 0.02 * index)
        buffer.push(packet, START + 0.02 * index)
        heard(buffer)
    assert refused > 100
    assert buffer.counts.received == 2000 - refused
    assert buffer.counts.played > 300
