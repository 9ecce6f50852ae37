"""What RTCP does between reports (NACK, transport-wide feedback) and without senders (extended reports)."""

from __future__ import annotations

from collections.abc import Sequence

import pytest
from hypothesis import given
from hypothesis import strategies as st

from voicegate.proto.errors import BadPacket
from voicegate.proto.rtcp import (
    MAX_BLOCKS,
    Delay,
    ExtendedReport,
    Nack,
    ReceiverReport,
    ReportBlock,
    RtcpPacket,
    SenderReport,
    SourceDescription,
    Unknown,
    build_extended_report,
    build_nack,
    build_receiver_report,
    parse_rtcp_untrusted,
)
from voicegate.proto.rtcp_session import (
    MAX_ANSWER_ROUND_TRIP,
    MAX_NACK_ROUND_TRIP,
    MAX_NACKED,
    MAX_SOURCES,
    PLAIN,
    RtcpOptions,
    RtcpReporter,
)
from voicegate.proto.rtp import RtpPacket
from voicegate.proto.twcc import TAIL

NOW = 1000.0
WALL = 1_800_000_000.25
words = st.integers(0, 0xFFFFFFFF)
ALL = RtcpOptions(reduced_size=True, nack=True, transport_cc_id=3, extended_reports=True)


def reporter(ssrc: int = 1, options: RtcpOptions = ALL) -> RtcpReporter:
    return RtcpReporter(ssrc, "c", 48_000, lambda: 0.5, NOW, options)


def packet(sequence: int, ssrc: int = 2) -> RtpPacket:
    block = bytes.fromhex("bede000131") + sequence.to_bytes(2, "big") + b"\0"
    return RtpPacket(False, 111, sequence, sequence * 960, ssrc, b"", block)


def drained(ours: RtcpReporter) -> list[list[RtcpPacket]]:
    found = []
    while (data := ours.poll_transmit()) is not None:
        found.append(parse_rtcp_untrusted(data))
    return found


def report_due(ours: RtcpReporter) -> tuple[float, bytes]:
    at = ours.next_deadline()
    assert at is not None
    ours.handle_timeout(at, WALL + at)
    data = ours.poll_transmit()
    assert data is not None
    return at, data


def with_round_trip(ours: RtcpReporter, seconds: float) -> None:
    """The reporter has measured this round trip, by a sender report and its answer."""
    ours.sent(0, 80, NOW)
    at, data = report_due(ours)
    report = parse_rtcp_untrusted(data)[0]
    assert isinstance(report, SenderReport)
    block = ReportBlock(1, 0, 0, 0, 0, report.ntp >> 16 & 0xFFFFFFFF, 0)
    ours.receive_untrusted(build_receiver_report(ReceiverReport(2, (block,))), at + seconds)
    assert ours.round_trip == pytest.approx(seconds)


def test_golden_messages() -> None:
    """By hand from RFC 4585 section 6.2.1 and RFC 3611 sections 4.4 and 4.5."""
    nack = Nack(1, 2, (0xFFFF, 0, 3, 0x10, 0x1F))
    data = bytes.fromhex("81cd0004 00000001 00000002 ffff0009 00104000")
    assert build_nack(nack) == data
    assert parse_rtcp_untrusted(data) == [nack]
    report = ExtendedReport(1, 0x0123456789ABCDEF, (Delay(2, 3, 4), Delay(5, 6, 7)))
    data = bytes.fromhex(
        "80cf000b 00000001 04000002 0123456789abcdef"
        "05000006 000000020000000300000004 000000050000000600000007"
    )
    assert build_extended_report(report) == data
    assert parse_rtcp_untrusted(data) == [report]
    unknown_block_first = bytes.fromhex("80cf0006 00000001 09ff0001 ffffffff 04000002 0123456789abcdef")
    assert parse_rtcp_untrusted(unknown_block_first) == [ExtendedReport(1, 0x0123456789ABCDEF)]


@given(words, words, st.lists(st.integers(0, 0xFFFF), min_size=1, max_size=60, unique=True))
def test_a_nack_names_what_it_was_given(ssrc: int, media: int, sequences: list[int]) -> None:
    (nack,) = parse_rtcp_untrusted(build_nack(Nack(ssrc, media, tuple(sequences))))
    assert isinstance(nack, Nack)
    assert (nack.ssrc, nack.media_ssrc) == (ssrc, media)
    assert set(nack.sequences) == set(sequences) and len(nack.sequences) == len(sequences)


@given(
    words,
    st.none() | st.integers(0, 2**64 - 1),
    st.lists(st.builds(Delay, words, words, words), max_size=MAX_BLOCKS),
)
def test_extended_reports_round_trip(ssrc: int, reference: int | None, delays: list[Delay]) -> None:
    report = ExtendedReport(ssrc, reference, tuple(delays))
    assert parse_rtcp_untrusted(build_extended_report(report)) == [report]


@given(st.binary(max_size=200), st.sampled_from([(1, 205), (15, 205), (0, 207), (31, 207)]))
def test_any_body_is_read_or_bad(body: bytes, kind: tuple[int, int]) -> None:
    body = body[: len(body) & ~3]
    data = bytes([0x80 | kind[0], kind[1]]) + (len(body) // 4).to_bytes(2, "big") + body
    ours = reporter()
    try:
        ours.receive_untrusted(data, NOW)
    except BadPacket as error:
        assert error.reason in ("rtcp_nack", "rtcp_xr")
    assert len(ours.poll_nacked() or ()) <= MAX_NACKED


# ---- NACK


def test_a_gap_is_asked_for_once() -> None:
    ours = reporter()
    with_round_trip(ours, 0.03)
    for sequence in (65_534, 65_535, 3, 4, 2):
        ours.received(packet(sequence), NOW + 3)
    assert drained(ours) == [[Nack(1, 2, (0, 1, 2))]]
    assert not ours.request([1, 2], NOW + 3)
    assert ours.counts["requested"] == 3
    assert ours.request([9], NOW + 3)
    assert drained(ours) == [[Nack(1, 2, (9,))]]


@pytest.mark.parametrize(
    ("options", "round_trip", "sequences"),
    [
        (ALL._replace(nack=False), 0.03, (1, 3)),
        (ALL, None, (1, 3)),  # not measured yet
        (ALL, MAX_NACK_ROUND_TRIP + 0.01, (1, 3)),  # too late to help
        (ALL, 0.03, (1, 3 + MAX_NACKED)),  # too many
        (ALL, 0.03, (1, 2)),
        (ALL, 0.03, (1, 40_000)),  # no loss, but another numbering
    ],
)
def test_where_nothing_is_asked_for(
    options: RtcpOptions, round_trip: float | None, sequences: Sequence[int]
) -> None:
    ours = reporter(options=options._replace(transport_cc_id=None))
    if round_trip is not None:
        with_round_trip(ours, round_trip)
    for sequence in sequences:
        ours.received(packet(sequence), NOW + 3)
    assert drained(ours) == []


def test_without_reduced_size_a_report_goes_before_the_nack() -> None:
    ours = reporter(options=RtcpOptions(nack=True))
    with_round_trip(ours, 0.03)
    ours.received(packet(1), NOW + 3)
    ours.received(packet(3), NOW + 3)
    assert drained(ours) == [[ReceiverReport(1), SourceDescription(((1, ((1, b"c"),)),)), Nack(1, 2, (2,))]]


def test_what_the_client_lacks_is_given_out_while_it_can_help() -> None:
    ours = reporter()
    lacking = build_nack(Nack(2, 1, (7, 9)))
    ours.receive_untrusted(lacking, NOW)
    assert ours.poll_nacked() == (7, 9)
    assert ours.poll_nacked() is None
    with_round_trip(ours, MAX_ANSWER_ROUND_TRIP - 0.001)
    ours.receive_untrusted(lacking + build_nack(Nack(2, 1, tuple(range(500, 900)))), NOW)
    assert ours.poll_nacked() == (7, 9, *range(500, 500 + MAX_NACKED - 2))
    ours.receive_untrusted(build_nack(Nack(2, 77, (7,))), NOW)
    assert ours.poll_nacked() is None, "of another stream"
    slow = reporter()
    with_round_trip(slow, MAX_ANSWER_ROUND_TRIP + 0.001)
    slow.receive_untrusted(lacking, NOW)
    assert slow.poll_nacked() is None
    assert slow.counts["nacked"] == 2
    plain = reporter(options=PLAIN)
    plain.receive_untrusted(lacking, NOW)
    assert plain.poll_nacked() is None, "not agreed"


# ---- Transport-wide feedback


def test_transport_feedback_comes_with_packets_and_after_the_last() -> None:
    ours = reporter()
    count = 0
    for index in range(51):
        ours.received(packet(index), NOW + 0.02 * index)
        for (feedback,) in drained(ours):
            assert isinstance(feedback, Unknown) and (feedback.packet_type, feedback.count) == (205, 15)
            count += 1
    assert count == 8  # with every sixth packet: 100 ms after the first
    deadline = ours.next_deadline()
    assert deadline == pytest.approx(NOW + 0.02 * 48 + TAIL)
    assert deadline is not None
    ours.handle_timeout(deadline, WALL)
    assert len(drained(ours)) == 1
    assert ours.counts["transport_feedback"] == 9
    ours.received(packet(51), NOW + 3)
    ours.close(NOW + 3, WALL)
    drained(ours)
    ours.received(packet(60), NOW + 4)
    assert ours.next_deadline() is None and drained(ours) == []


# ---- Extended reports


def test_the_round_trip_without_sending() -> None:
    """Neither end sends media: 80 ms one way and 30 ms back."""
    ours, theirs = reporter(1), reporter(2)
    at, data = report_due(ours)
    assert [type(one) for one in parse_rtcp_untrusted(data)] == [
        ReceiverReport,
        SourceDescription,
        ExtendedReport,
    ]
    theirs.receive_untrusted(data, at + 0.08)
    theirs._deadline = at + 2  # their own report, at another time than ours
    back, answer = report_due(theirs)
    assert back == at + 2
    ours.receive_untrusted(answer, back + 0.03)
    assert ours.round_trip == pytest.approx(0.11, abs=1e-3)
    assert ours.counts["extended_round_trips"] == 1
    assert theirs.round_trip is None
    again = parse_rtcp_untrusted(report_due(theirs)[1])
    assert again[-1] == ExtendedReport(2, again[-1].reference_ntp), "each reference is answered once"  # type: ignore[union-attr]


def test_a_sender_says_its_clock_once() -> None:
    ours = reporter()
    ours.sent(0, 80, NOW)
    kinds = [type(one) for one in parse_rtcp_untrusted(report_due(ours)[1])]
    assert kinds == [SenderReport, SourceDescription]
    plain = parse_rtcp_untrusted(report_due(reporter(options=PLAIN))[1])
    assert [type(one) for one in plain] == [ReceiverReport, SourceDescription]


def test_lies_about_references_are_bounded() -> None:
    ours = reporter()
    for ssrc in range(10_000):
        ours.receive_untrusted(build_extended_report(ExtendedReport(ssrc, 2**64 - 1)), NOW)
    extended = parse_rtcp_untrusted(report_due(ours)[1])[-1]
    assert isinstance(extended, ExtendedReport)
    assert len(extended.delays) == MAX_SOURCES
    lies = (Delay(1, 12345, 0), Delay(99, 1, 1))
    ours.receive_untrusted(build_extended_report(ExtendedReport(2, None, lies)), NOW + 10)
    assert ours.round_trip is None
    assert ours.counts["extended_round_trips"] == 0


# ---- For the encoder


def test_feedback_is_given_out_once_and_bounded() -> None:
    ours = reporter()
    with_round_trip(ours, 0.05)
    feedback = ours.poll_feedback()
    assert feedback is not None
    assert (feedback.fraction_lost, feedback.jitter) == (0.0, 0.0)
    assert feedback.round_trip == pytest.approx(0.05)
    assert ours.poll_feedback() is None
    for lost in range(100):
        block = ReportBlock(1, lost, 0, 0, 480, 0, 0)
        ours.receive_untrusted(build_receiver_report(ReceiverReport(2, (block,))), NOW + lost)
    found = []
    while (feedback := ours.poll_feedback()) is not None:
        found.append(feedback)
    assert [one.fraction_lost * 256 for one in found] == [96, 97, 98, 99]
    assert (found[-1].jitter, found[-1].at) == (0.01, NOW + 99)
