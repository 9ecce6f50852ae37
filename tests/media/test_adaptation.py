"""voicegate.media.adaptation, redundancy and sending: what reported loss changes, and what it looks like."""

from __future__ import annotations

import random
import struct

import pytest
from hypothesis import given
from hypothesis import strategies as st

from tests.media.signals import best_match, frames, level, tone, voice_like
from voicegate.media.adaptation import OFF_LOSS, ON_LOSS, PLAIN, REDUNDANT, Adaptation, Sending
from voicegate.media.codec import FRAME_SAMPLES
from voicegate.media.opus import OpusDecoder, OpusEncoder
from voicegate.media.playout import Frame
from voicegate.media.redundancy import RedSender
from voicegate.media.sending import PayloadTypes, RtpSender
from voicegate.proto.rtp import RtpPacket, parse_rtp_untrusted


def test_red_comes_with_loss_and_goes_after_it() -> None:
    adaptation = Adaptation(red=True)
    assert adaptation.receive(0.01) is PLAIN
    assert adaptation.receive(ON_LOSS) is REDUNDANT
    reports = 0
    while adaptation.receive(0.0) is REDUNDANT:
        reports += 1
    assert reports == 2
    assert adaptation.receive(ON_LOSS / 2) is PLAIN


def test_without_red_fec_follows_the_loss_in_steps() -> None:
    adaptation = Adaptation(red=False)
    assert adaptation.receive(0.03) == Sending(32_000, expected_loss=5)
    assert adaptation.receive(0.08) == Sending(32_000, expected_loss=10)
    assert adaptation.receive(0.9) == Sending(32_000, expected_loss=20)
    assert adaptation.receive(0.0).expected_loss == 20
    for _ in range(20):
        last = adaptation.receive(0.0)
    assert last is PLAIN


@given(st.lists(st.floats(0, 1), max_size=50), st.booleans())
def test_any_reports(losses: list[float], red: bool) -> None:
    adaptation = Adaptation(red=red)
    for loss in losses:
        sending = adaptation.receive(loss)
        assert sending.redundant <= red and sending.expected_loss in (0, 5, 10, 15, 20)
        assert not (sending.redundant and sending.expected_loss)
        if loss >= ON_LOSS:
            assert sending != PLAIN
    for _ in range(20):
        adaptation.receive(OFF_LOSS / 2)
    assert adaptation.sending is PLAIN


def read_red(payload: bytes) -> list[tuple[int, int, bytes]]:
    """RFC 2198 section 3, read independently: (payload type, timestamp offset, block)."""
    heads, at = [], 0
    while payload[at] & 0x80:
        (word,) = struct.unpack_from("!I", payload, at)
        heads.append((word >> 24 & 0x7F, word >> 10 & 0x3FFF, word & 0x3FF))
        at += 4
    primary, at = payload[at], at + 1
    blocks = []
    for payload_type, offset, length in heads:
        blocks.append((payload_type, offset, payload[at : at + length]))
        at += length
    return [*blocks, (primary, 0, payload[at:])]


def test_red_carries_the_frame_before() -> None:
    red = RedSender(111)
    assert read_red(red.wrap(b"one", 0xFFFFFFFF - 959)) == [(111, 0, b"one")]
    assert read_red(red.wrap(b"two", 0)) == [(111, 960, b"one"), (111, 0, b"two")]
    assert read_red(red.wrap(b"three", 960)) == [(111, 960, b"two"), (111, 0, b"three")]


def test_red_leaves_out_what_its_header_cannot_say() -> None:
    red = RedSender(111)
    red.wrap(b"one", 0)
    assert read_red(red.wrap(b"after a silence", 1 << 14)) == [(111, 0, b"after a silence")]
    assert read_red(red.wrap(bytes(1024), (1 << 14) + 16383)) == [
        (111, 16383, b"after a silence"),
        (111, 0, bytes(1024)),
    ]
    assert read_red(red.wrap(b"x", (1 << 14) + 16384)) == [(111, 0, b"x")]


def test_red_restores_what_is_lost() -> None:
    """5 % random loss: only a frame whose successor is lost as well stays lost."""
    sent = frames(voice_like(4.0))
    sender = RtpSender("opus", PayloadTypes(111, 63), ssrc=5, first_sequence=65_500)
    sender.receive_loss(0.05)
    packets = send(sender, sent)
    assert {packet.payload_type for packet in packets} == {63}
    rng = random.Random(3)
    got: dict[int, bytes] = {}
    lost = {n for n in range(1, len(packets) - 1) if rng.random() < 0.05}
    for n, packet in enumerate(packets):
        if n not in lost:
            for _, offset, block in read_red(packet.payload):
                got.setdefault(packet.timestamp - offset, block)
    assert len(lost) > 5
    assert len(sent) - len(got) == sum(n + 1 in lost for n in lost)
    decoder = OpusDecoder()
    heard = b"".join(
        decoder.decode(got[t * 960]) if t * 960 in got else decoder.conceal(480) for t in range(len(sent))
    )
    assert best_match(b"".join(sent), heard, longest_delay=200)[1] > 0.9


def test_fec_restores_what_is_lost_where_there_is_no_red() -> None:
    sent = frames(voice_like(2.0))
    sender = RtpSender("opus", PayloadTypes(111), ssrc=5, first_sequence=0)
    sender.receive_loss(0.1)
    packets = send(sender, sent)
    assert {packet.payload_type for packet in packets} == {111}
    decoder = OpusDecoder()
    assert sum(decoder.fec_samples(packet.payload) == FRAME_SAMPLES for packet in packets) > len(packets) / 3
    assert sender.statistics() == {"redundant": False, "expected_loss": 10, "changes": 1}


def test_a_quiet_line_is_sent_plainly() -> None:
    sender = RtpSender("opus", PayloadTypes(111, 63), ssrc=5, first_sequence=65_535)
    packets = send(sender, frames(voice_like(0.06)))
    assert [packet.sequence for packet in packets] == [65_535, 0, 1]
    assert {(packet.payload_type, packet.ssrc) for packet in packets} == {(111, 5)}
    sender.close()


def test_g711_has_nothing_to_adapt() -> None:
    sender = RtpSender("PCMU", PayloadTypes(0), ssrc=5, first_sequence=0)
    sender.receive_loss(0.5)
    assert {len(packet.payload) for packet in send(sender, frames(tone(300, 0.2)))} == {160}
    sender.close()


@pytest.mark.parametrize("expected_loss", [5, 20])
def test_changing_the_mode_and_back_leaves_no_hole(expected_loss: int) -> None:
    sent = frames(tone(400, 1.5))
    encoder, decoder = OpusEncoder(), OpusDecoder()
    heard = []
    for n, frame in enumerate(sent):
        if n == 25:
            encoder.adapt(32_000, expected_loss)
        if n == 50:
            encoder.adapt(32_000, 0)
        heard.append(decoder.decode(encoder.encode(frame)))
    levels = [level(frame) for frame in heard[5:]]
    assert min(levels) > 0.7 * level(sent[30])
    assert max(levels) < 1.3 * level(sent[30])


def send(sender: RtpSender, sent: list[bytes]) -> list[RtpPacket]:
    packets = []
    for n, pcm in enumerate(sent):
        packet, octets = sender.packet(Frame(pcm, 960 * n, n == 0))
        parsed = parse_rtp_untrusted(packet)
        assert len(parsed.payload) == octets
        packets.append(parsed)
    return packets
