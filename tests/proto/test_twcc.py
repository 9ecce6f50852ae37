"""voicegate.proto.twcc, against a decoder written from the draft alone."""

from __future__ import annotations

import random
import struct
from collections.abc import Iterable

import pytest
from hypothesis import given
from hypothesis import strategies as st

from voicegate.proto.rtcp import Unknown, parse_rtcp_untrusted
from voicegate.proto.rtp import RtpPacket
from voicegate.proto.srtp import MAX_PLAIN_PACKET
from voicegate.proto.twcc import INTERVAL, MAX_PENDING, MAX_SPAN, TAIL, TransportFeedback

NOW = 5000.0
TICK = 0.00025
ID = 3


def numbered(number: int, *, extension_id: int = ID) -> RtpPacket:
    """As libwebrtc sends it: audio level, transport number, MID."""
    block = bytes.fromhex("bede 0003 10ff") + bytes([extension_id << 4 | 1]) + struct.pack("!H", number)
    return RtpPacket(False, 111, 0, 0, 1, b"", block + bytes.fromhex("4030 0000"))


def decode(data: bytes) -> tuple[int, list[float | None], int]:
    """(base, arrival in seconds or None for each number from it, feedback count), draft section 3.1."""
    (feedback,) = parse_rtcp_untrusted(data)
    assert isinstance(feedback, Unknown)
    assert (feedback.packet_type, feedback.count) == (205, 15)
    body = feedback.body
    assert body[:8] == bytes.fromhex("0000000a0000000b")
    base, count, time = struct.unpack_from("!HHI", body, 8)
    assert count > 0
    at = 16
    symbols: list[int] = []
    while len(symbols) < count:
        (chunk,) = struct.unpack_from("!H", body, at)
        at += 2
        if not chunk >> 15:
            symbols += [chunk >> 13 & 3] * (chunk & 0x1FFF)
        elif chunk >> 14 & 1:
            symbols += [chunk >> shift & 3 for shift in range(12, -1, -2)]
        else:
            symbols += [chunk >> shift & 1 for shift in range(13, -1, -1)]
    ticks = (time >> 8) * 256
    arrivals: list[float | None] = []
    for symbol in symbols[:count]:
        if symbol == 0:
            arrivals.append(None)
            continue
        assert symbol in (1, 2)
        if symbol == 1:
            ticks += body[at]
        else:
            ticks += struct.unpack_from("!h", body, at)[0]
        at += symbol
        arrivals.append(ticks * TICK)
    assert at == len(body), "nothing but what was announced"
    return base, arrivals, time & 0xFF


def told(feedbacks: Iterable[bytes]) -> dict[int, float | None]:
    found: dict[int, float | None] = {}
    for data in feedbacks:
        assert len(data) <= MAX_PLAIN_PACKET and len(data) % 4 == 0
        base, arrivals, _ = decode(data)
        for index, arrival in enumerate(arrivals):
            number = (base + index) & 0xFFFF
            if arrival is not None or number not in found:
                found[number] = arrival
    return found


def build(feedback: TransportFeedback) -> list[bytes]:
    return feedback.build(10, 11)


@pytest.mark.parametrize(
    ("numbers", "expected"),
    [
        # 64 s are 1000 times 64 ms; 20 ms are 80 ticks; one vector of seven symbols.
        ("0124568", "afcd0007 0000000a 0000000b 0100 0009 0003e800 d515 c400 0050 50a0 5050 a001"),
        ("012456", "8fcd0006 0000000a 0000000b 0100 0007 0003e800 d515 0050 50a0 5050"),
        ("01245", "afcd0006 0000000a 0000000b 0100 0006 0003e800 d514 0050 50a0 50 01"),
        ("01234567", "afcd0007 0000000a 0000000b 0100 0008 0003e800 2008 0050 5050 5050 5050 0002"),
    ],
)
def test_golden(numbers: str, expected: str) -> None:
    """By hand from section 3.1."""
    feedback = TransportFeedback(ID)
    for index in map(int, numbers):
        feedback.received(numbered(0x100 + index), 64.0 + 0.02 * index)
    assert build(feedback) == [bytes.fromhex(expected)]


def test_it_is_due_with_a_packet_or_after_the_tail() -> None:
    feedback = TransportFeedback(ID)
    assert feedback.next_deadline() is None
    due = [feedback.received(numbered(index), NOW + 0.02 * index) for index in range(6)]
    assert due == [False] * 5 + [True]
    assert feedback.next_deadline() == pytest.approx(NOW + TAIL)
    assert TAIL > INTERVAL
    (data,) = build(feedback)
    assert decode(data)[2] == 0
    assert feedback.next_deadline() is None
    assert build(feedback) == []
    feedback.received(numbered(6), NOW + 1)
    assert decode(build(feedback)[0])[2] == 1


def test_packets_without_a_number_are_none_of_its_business() -> None:
    feedback = TransportFeedback(ID)
    short = RtpPacket(False, 111, 0, 0, 1, b"", bytes.fromhex("bede000130ff0000"))
    for packet in (numbered(1, extension_id=5), RtpPacket(False, 111, 0, 0, 1, b""), short):
        assert not feedback.received(packet, NOW)
    assert feedback.next_deadline() is None


def test_what_is_missing_between_two_feedbacks_is_told_as_lost() -> None:
    feedback = TransportFeedback(ID)
    feedback.received(numbered(65_534), NOW)
    build(feedback)
    feedback.received(numbered(2), NOW + 0.1)
    assert told(build(feedback)) == {65_535: None, 0: None, 1: None, 2: pytest.approx(NOW + 0.1, abs=TICK)}


def test_a_late_packet_is_told_without_taking_back_what_was() -> None:
    feedback = TransportFeedback(ID)
    for number in (1, 2, 4):
        feedback.received(numbered(number), NOW + 0.02 * number)
    build(feedback)
    feedback.received(numbered(3), NOW + 0.15)
    feedback.received(numbered(3), NOW + 0.16)
    found = told(build(feedback))
    assert found == {
        3: pytest.approx(NOW + 0.15, abs=TICK),
        4: pytest.approx(NOW + 0.08, abs=TICK),
    }


def test_times_too_far_apart_for_one_feedback_make_two() -> None:
    feedback = TransportFeedback(ID)
    feedback.received(numbered(1), NOW)
    feedback.received(numbered(2), NOW + 9)
    first, second = build(feedback)
    assert (decode(first)[0], decode(second)[0]) == (1, 2)
    assert (decode(first)[2], decode(second)[2]) == (0, 1)


def test_a_flood_is_bounded() -> None:
    feedback = TransportFeedback(ID)
    rng = random.Random(1)
    for _ in range(20):
        for _ in range(1000):
            feedback.received(numbered(rng.randrange(0x10000)), NOW)
        assert sum(map(len, build(feedback))) < 2 * MAX_PLAIN_PACKET
    assert feedback.dropped == 20 * (1000 - MAX_PENDING)


@given(
    start=st.integers(0, 0xFFFF),
    steps=st.lists(
        st.tuples(st.integers(-20, 60), st.floats(0, 0.3), st.booleans()), min_size=1, max_size=150
    ),
)
def test_every_arrival_is_told_once_and_right(start: int, steps: list[tuple[int, float, bool]]) -> None:
    """Loss, reordering, duplicates, bursts and pauses, with a feedback after any packet."""
    feedback = TransportFeedback(ID)
    came: dict[int, float] = {}
    found: dict[int, float | None] = {}
    now, number = NOW, start
    for step, wait, due in steps:
        number, now = (number + step) & 0xFFFF, now + wait
        feedback.received(numbered(number), now)
        came.setdefault(number, now)
        if due:
            for seen, arrival in told(build(feedback)).items():
                if arrival is not None or seen not in found:
                    found[seen] = arrival
    for seen, arrival in told(build(feedback)).items():
        if arrival is not None or seen not in found:
            found[seen] = arrival
    arrivals = {seen: arrival for seen, arrival in found.items() if arrival is not None}
    assert arrivals.keys() == came.keys()
    for seen, arrival in arrivals.items():
        assert -2 * TICK < came[seen] - arrival < 2 * TICK


@given(
    st.lists(
        st.tuples(st.integers(0, 0xFFFF), st.floats(0, 100_000), st.booleans()), min_size=1, max_size=300
    )
)
def test_whatever_the_numbers_every_feedback_can_be_read(steps: list[tuple[int, float, bool]]) -> None:
    feedback = TransportFeedback(ID)
    now = NOW
    for number, wait, due in steps:
        now += wait
        feedback.received(numbered(number), now)
        if due:
            assert len(told(build(feedback))) <= 3 * MAX_SPAN
    told(build(feedback))
