"""voicegate.proto.rtcp and rtcp_session: RFC 3550 section 6 and appendix A."""

from __future__ import annotations

import random
from collections import deque
from collections.abc import Callable
from functools import partial

import pytest
from hypothesis import given
from hypothesis import strategies as st

from voicegate.proto.errors import BadPacket
from voicegate.proto.rtcp import (
    Bye,
    ReceiverReport,
    ReportBlock,
    SenderReport,
    SourceDescription,
    Unknown,
    build_bye,
    build_cname,
    build_receiver_report,
    build_sender_report,
    parse_rtcp_untrusted,
)
from voicegate.proto.rtcp_reception import ReceiveStatistics
from voicegate.proto.rtcp_session import MAX_SOURCES, MIN_INTERVAL, RtcpReporter
from voicegate.proto.rtp import RtpPacket

NOW = 100.0
WALL = 1_800_000_000.25

block_values = st.builds(
    ReportBlock,
    st.integers(0, 2**32 - 1),
    st.integers(0, 255),
    st.integers(-(2**23), 2**23 - 1),
    *[st.integers(0, 2**32 - 1)] * 4,
)
blocks = st.lists(block_values, max_size=31).map(tuple)
words = st.integers(0, 2**32 - 1)


def test_a_sender_report_by_hand() -> None:
    data = bytes.fromhex(
        "81c8000c 11223344 e8d5a1b4 40000000 00bbccdd 00000010 00000a00"
        "deadbeef 40fffffe 00010005 00000020 a1b44000 00018000".replace(" ", "")
    )
    report = SenderReport(
        0x11223344,
        0xE8D5A1B440000000,
        0x00BBCCDD,
        16,
        2560,
        (ReportBlock(0xDEADBEEF, 64, -2, 0x10005, 32, 0xA1B44000, 0x18000),),
    )
    assert parse_rtcp_untrusted(data) == [report]
    assert build_sender_report(report) == data


def test_a_compound_packet_and_reduced_size_ones() -> None:
    compound = build_receiver_report(ReceiverReport(1)) + build_cname(1, b"ab") + build_bye([1, 2], b"tired")
    assert parse_rtcp_untrusted(compound) == [
        ReceiverReport(1),
        SourceDescription(((1, ((1, b"ab"),)),)),
        Bye((1, 2), b"tired"),
    ]
    # RFC 5506: a feedback packet alone.
    assert parse_rtcp_untrusted(bytes.fromhex("81ce00020000000100000002")) == [
        Unknown(206, 1, bytes.fromhex("0000000100000002"))
    ]
    assert parse_rtcp_untrusted(b"\x80\xcb\x00\x00") == [Bye(())]


def test_sdes_with_two_chunks_and_other_items() -> None:
    data = bytes.fromhex("82ca00050000000101026162000000000000000208000000")
    assert parse_rtcp_untrusted(data) == [SourceDescription(((1, ((1, b"ab"),)), (2, ((8, b""),))))]


def test_padding_is_taken_off_the_last_packet() -> None:
    data = (
        build_receiver_report(ReceiverReport(1)) + b"\xa0\xc9\x00\x02" + b"\x00\x00\x00\x07" + b"\0\0\0\x04"
    )
    assert parse_rtcp_untrusted(data) == [ReceiverReport(1), ReceiverReport(7)]


@pytest.mark.parametrize(
    ("data", "reason"),
    [
        ("", "rtcp_short"),
        ("80c900", "rtcp_short"),
        ("40c9000100000001", "rtcp_version"),
        ("80c9000200000001", "rtcp_length"),
        ("80c900010000000180", "rtcp_length"),
        ("80c9ffff00000001", "rtcp_length"),
        ("80c90000", "rtcp_report"),
        ("81c9000100000001", "rtcp_report"),
        ("80c8000100000001", "rtcp_report"),
        ("9fc80006" + "00" * 24, "rtcp_report"),
        ("81ca0000", "rtcp_sdes"),
        ("81ca000100000001", "rtcp_sdes"),
        ("81ca00020000000101030000", "rtcp_sdes"),
        ("81ca00020000000101016101", "rtcp_sdes"),
        ("82cb000100000001", "rtcp_bye"),
        ("81cb00020000000104616263", "rtcp_bye"),
        ("81cd00020000000100000002", "rtcp_nack"),  # no entry
        ("81cd000100000001", "rtcp_nack"),
        ("80cf0000", "rtcp_xr"),
        ("80cf00020000000104000001", "rtcp_xr"),  # a block longer than the packet
        ("80cf0003000000010400000100000000", "rtcp_xr"),  # half a time
        ("80cf0003000000010500000100000000", "rtcp_xr"),  # a third of a DLRR
        ("a0c9000100000000", "rtcp_padding"),
        ("a0c9000100000005", "rtcp_padding"),
        ("a0cb0000", "rtcp_padding"),
        ("a0c90002000000010000000480c9000100000001", "rtcp_padding"),
    ],
)
def test_lies(data: str, reason: str) -> None:
    with pytest.raises(BadPacket) as caught:
        parse_rtcp_untrusted(bytes.fromhex(data))
    assert caught.value.reason == reason


@given(words, st.integers(0, 2**64 - 1), words, words, words, blocks, st.binary(max_size=255))
def test_round_trip(
    ssrc: int, ntp: int, stamp: int, packets: int, octets: int, reports: tuple[ReportBlock, ...], text: bytes
) -> None:
    sender = SenderReport(ssrc, ntp, stamp, packets, octets, reports)
    receiver = ReceiverReport(ssrc, reports)
    data = (
        build_sender_report(sender)
        + build_receiver_report(receiver)
        + build_cname(ssrc, text)
        + build_bye([ssrc], text)
    )
    assert len(data) % 4 == 0
    assert parse_rtcp_untrusted(data) == [
        sender,
        receiver,
        SourceDescription(((ssrc, ((1, text),)),)),
        Bye((ssrc,), text),
    ]


@given(st.binary(max_size=1500), st.integers(0, 255), st.integers(198, 208))
def test_any_bytes_parse_or_are_bad(data: bytes, first: int, packet_type: int) -> None:
    for body in (data, bytes([first, packet_type]) + (len(data) // 4).to_bytes(2, "big") + data):
        try:
            parse_rtcp_untrusted(body)
        except BadPacket as error:
            assert error.reason.startswith("rtcp_")


@given(st.data())
def test_bit_flips_of_a_real_report(data: st.DataObject) -> None:
    good = bytearray(
        build_receiver_report(ReceiverReport(1, (ReportBlock(2, 3, 4, 5, 6, 7, 8),)))
        + build_cname(1, b"name")
    )
    for _ in range(data.draw(st.integers(1, 5))):
        bit = data.draw(st.integers(0, 8 * len(good) - 1))
        good[bit // 8] ^= 1 << bit % 8
    try:
        parse_rtcp_untrusted(bytes(good[: data.draw(st.integers(0, len(good)))]))
    except BadPacket:
        pass


def test_loss_is_counted_as_appendix_a3_does() -> None:
    heard = ReceiveStatistics(48_000)
    for index in range(100):
        if index % 4 != 3:
            assert heard.update((65_500 + index) & 0xFFFF, 960 * index, NOW + 0.02 * index)
    block = heard.report(9, NOW + 2)
    # The last packet, 99, is one of the lost, so 99 were expected and 75 came.
    assert block.cumulative_lost == 24
    assert block.fraction_lost == (24 << 8) // 99
    assert block.highest_sequence == 65_536 + (65_500 + 98) % 65_536
    assert (block.ssrc, block.last_sr, block.delay_since_last_sr) == (9, 0, 0)
    for index in range(99, 199):
        heard.update((65_500 + index) & 0xFFFF, 960 * index, NOW + 0.02 * index)
    assert heard.report(9, NOW + 4).fraction_lost == 0


def test_nothing_but_loss_is_255_and_duplicates_are_negative() -> None:
    heard = ReceiveStatistics(48_000)
    heard.update(10, 0, NOW)
    heard.report(1, NOW)
    heard.update(10, 0, NOW)
    block = heard.report(1, NOW)
    assert block.cumulative_lost == -1
    assert block.fraction_lost == 0
    heard.update(1010, 0, NOW)
    for _ in range(3):
        heard.received -= 1
    assert heard.report(1, NOW).fraction_lost == 255


def test_reordered_packets_are_no_loss() -> None:
    heard = ReceiveStatistics(48_000)
    for sequence in [5, 7, 6, 8, 10, 9]:
        assert heard.update(sequence, 960 * sequence, NOW)
    assert heard.lost == 0
    assert heard.expected == 6


def test_a_jump_is_believed_the_second_time() -> None:
    heard = ReceiveStatistics(48_000)
    heard.update(100, 0, NOW)
    assert not heard.update(30_000, 0, NOW)
    assert heard.update(101, 0, NOW)
    assert not heard.update(30_000, 0, NOW)
    assert heard.update(30_001, 0, NOW)
    assert (heard.received, heard.expected, heard.lost) == (1, 1, 0)


def test_jitter_of_appendix_a8() -> None:
    heard = ReceiveStatistics(8_000)
    expected = 0.0
    arrivals = [0.0, 0.021, 0.045, 0.060]
    for index, at in enumerate(arrivals):
        heard.update(index, (2**32 - 200 + 160 * index) % 2**32, NOW + at)
        if index:
            spread = abs((at - arrivals[index - 1]) * 8_000 - 160)
            expected += (spread - expected) / 16
    assert heard.jitter == pytest.approx(expected)
    assert heard.report(1, NOW + 1).jitter == int(expected)


def fixed(value: float) -> Callable[[], float]:
    return lambda: value


def reporter(ssrc: int = 1, *, value: float = 0.5) -> RtcpReporter:
    return RtcpReporter(ssrc, "c", 48_000, fixed(value), NOW)


def test_the_schedule_of_section_6_3_1() -> None:
    for value, factor in ((0.0, 0.5), (0.5, 1.0), (0.999, 1.499)):
        ours = reporter(value=value)
        first = ours.next_deadline()
        assert first == pytest.approx(NOW + MIN_INTERVAL / 2 * factor / 1.21828)
        assert first is not None
        ours.handle_timeout(first - 0.001, WALL)
        assert ours.poll_transmit() is None
        ours.handle_timeout(first, WALL)
        assert ours.poll_transmit() is not None
        assert ours.poll_transmit() is None
        assert ours.next_deadline() == pytest.approx(first + MIN_INTERVAL * factor / 1.21828)


def packet(ssrc: int, sequence: int, timestamp: int) -> RtpPacket:
    return RtpPacket(False, 111, sequence, timestamp, ssrc, b"")


def due(ours: RtcpReporter, wall: float = WALL) -> list[object]:
    deadline = ours.next_deadline()
    assert deadline is not None
    ours.handle_timeout(deadline, wall)
    data = ours.poll_transmit()
    assert data is not None
    return list(parse_rtcp_untrusted(data))


def test_sr_for_two_reports_after_sending_and_rr_otherwise() -> None:
    ours = reporter()
    assert isinstance(due(ours)[0], ReceiverReport)
    ours.sent(5000, 80, NOW + 3)
    kinds = [type(due(ours)[0]) for _ in range(4)]
    assert kinds == [SenderReport, SenderReport, ReceiverReport, ReceiverReport]


def test_every_report_carries_the_cname() -> None:
    assert due(reporter())[1] == SourceDescription(((1, ((1, b"c"),)),))


def test_a_sender_report_says_one_instant_on_two_clocks() -> None:
    ours = reporter()
    ours.sent(0xFFFFFF00, 80, NOW)
    deadline = ours.next_deadline()
    assert deadline is not None
    report = due(ours)[0]
    assert isinstance(report, SenderReport)
    assert report.ntp >> 32 == 1_800_000_000 + 2_208_988_800
    assert report.ntp & 0xFFFFFFFF == 0x40000000
    assert report.rtp_timestamp == (0xFFFFFF00 + round((deadline - NOW) * 48_000)) % 2**32
    assert (report.packets, report.octets) == (1, 80)


def test_blocks_only_for_those_heard_since_the_last_report() -> None:
    ours = reporter()
    ours.received(packet(7, 1, 0), NOW + 0.5)
    report = due(ours)[0]
    assert isinstance(report, ReceiverReport)
    assert [block.ssrc for block in report.blocks] == [7]
    report = due(ours)[0]
    assert isinstance(report, ReceiverReport)
    assert report.blocks == ()


def test_sources_are_bounded() -> None:
    ours = reporter()
    for ssrc in range(10_000):
        ours.received(packet(ssrc, 1, 0), NOW + 0.0001 * ssrc)
    report = due(ours)[0]
    assert isinstance(report, ReceiverReport)
    assert [block.ssrc for block in report.blocks] == list(range(10_000 - MAX_SOURCES, 10_000))


def test_lsr_dlsr_and_round_trip_between_two_ends() -> None:
    """A pair with 80 ms one way and 30 ms back, on clocks that know nothing of each other."""
    ours, theirs = reporter(1), RtcpReporter(2, "t", 48_000, fixed(0.9), NOW)
    ours.sent(0, 80, NOW)
    theirs.received(packet(1, 4, 0), NOW + 0.08)
    at = ours.next_deadline()
    assert at is not None
    ours.handle_timeout(at, WALL)
    data = ours.poll_transmit()
    assert data is not None
    theirs.receive_untrusted(data, at + 0.08)
    back = theirs.next_deadline()
    assert back is not None
    assert back > at + 0.08
    theirs.handle_timeout(back, WALL - 5_000_000)
    answer = theirs.poll_transmit()
    assert answer is not None
    report = parse_rtcp_untrusted(answer)[0]
    assert isinstance(report, ReceiverReport)
    assert report.blocks[0].delay_since_last_sr == pytest.approx((back - at - 0.08) * 65536, abs=1)
    ours.receive_untrusted(answer, back + 0.03)
    quality = ours.statistics()
    assert quality.round_trip == pytest.approx(0.11, abs=1e-3)
    assert quality.sent_packets == 1
    assert theirs.statistics().received_packets == 1
    assert theirs.statistics().round_trip is None


def test_reports_that_lie_about_us_do_no_harm() -> None:
    ours = reporter()
    ours.sent(0, 80, NOW)
    sent = due(ours)[0]
    assert isinstance(sent, SenderReport)
    middle = sent.ntp >> 16 & 0xFFFFFFFF
    lie = ReportBlock(1, 255, -1, 0, 0xFFFFFFFF, middle, 0xFFFFFFFF)
    other = ReportBlock(99, 255, 5, 0, 0, middle, 0)
    unknown = ReportBlock(1, 128, 3, 0, 48_000, 12345, 0)
    ours.receive_untrusted(build_receiver_report(ReceiverReport(2, (lie, other))), NOW + 10)
    assert ours.statistics().round_trip == 0.0
    ours.receive_untrusted(build_receiver_report(ReceiverReport(2, (unknown,))), NOW + 11)
    quality = ours.statistics()
    assert (quality.round_trip, quality.sent_lost, quality.sent_fraction_lost) == (0.0, 3, 0.5)
    assert quality.sent_jitter == 1.0
    with pytest.raises(BadPacket):
        ours.receive_untrusted(b"garbage!", NOW)


def test_bye_is_the_last_word() -> None:
    ours = reporter()
    ours.close(NOW + 1, WALL, "hung up")
    ours.close(NOW + 1, WALL, "again")
    assert ours.next_deadline() is None
    ours.handle_timeout(NOW + 60, WALL)
    data = ours.poll_transmit()
    assert data is not None
    assert ours.poll_transmit() is None
    kinds = parse_rtcp_untrusted(data)
    assert isinstance(kinds[0], ReceiverReport)
    assert isinstance(kinds[1], SourceDescription)
    assert kinds[2] == Bye((1,), b"hung up")
    assert reporter(2).receive_untrusted(data, NOW)[2] == Bye((1,), b"hung up")


def test_an_hour_of_calls_over_a_bad_network() -> None:
    """Two ends, lost and duplicated reports, wraps: what each says of the other is what happened."""
    rng = random.Random(5)
    ends = [RtcpReporter(ssrc, f"e{ssrc}", 48_000, rng.random, NOW) for ssrc in (1, 2)]
    sent, came = [0, 0], [0, 0]
    on_the_way: deque[tuple[float, Callable[[float], object]]] = deque()
    for step in range(180_010):
        now = NOW + 0.02 * step
        while on_the_way and on_the_way[0][0] <= now + 1e-9:
            at, deliver = on_the_way.popleft()
            deliver(at)
        if step >= 180_000:
            continue
        for side, end in enumerate(ends):
            end.sent(960 * step % 2**32, 80, now)
            sent[side] += 1
            if step in (0, 179_999) or rng.random() > 0.02:
                came[side] += 1
                heard = (side + 1, (40_000 + step) & 0xFFFF, 960 * step % 2**32)
                on_the_way.append((now + 0.06, partial(ends[1 - side].received, packet(*heard))))
            deadline = end.next_deadline()
            assert deadline is not None
            if deadline <= now:
                end.handle_timeout(now, WALL + now)
                data = end.poll_transmit()
                assert data is not None
                if rng.random() > 0.1:
                    on_the_way.append((now + 0.06, partial(ends[1 - side].receive_untrusted, data)))
    for side, end in enumerate(ends):
        quality = end.statistics()
        assert quality.received_lost == sent[1 - side] - came[1 - side]
        assert quality.received_packets == came[1 - side]
        assert quality.received_jitter < 1e-6
        assert quality.round_trip == pytest.approx(0.12, abs=0.001)
        assert quality.sent_fraction_lost < 0.1
        assert abs(quality.sent_lost - (sent[side] - came[side])) < 30
