"""voicegate.media.dtmf: one press out of many packets, whichever of them come, and in whichever order."""

from __future__ import annotations

import random

import pytest
from hypothesis import given
from hypothesis import strategies as st

from voicegate.media.dtmf import MAX_KEYS, RECENT, Keypad
from voicegate.proto.rtp import RtpPacket
from voicegate.proto.telephone_event import KEYS, MAX_DURATION, TelephoneEvent, build_telephone_event

EVENT_TYPE = 110
RATE = 8_000
FRAME = RATE // 50


def packet(
    key: str | int, timestamp: int, duration: int, *, end: bool = False, marker: bool = False, ssrc: int = 1
) -> RtpPacket:
    code = key if isinstance(key, int) else KEYS.index(key)
    payload = build_telephone_event(TelephoneEvent(code, end, 10, duration))
    return RtpPacket(marker, EVENT_TYPE, 0, timestamp & 0xFFFFFFFF, ssrc, payload)


def press(key: str, timestamp: int, frames: int = 5) -> list[RtpPacket]:
    """As RFC 4733 section 2.5.1 says: an update each 20 ms, the last packet three times."""
    updates = [packet(key, timestamp, FRAME * n, marker=n == 1) for n in range(1, frames)]
    return updates + 3 * [packet(key, timestamp, FRAME * frames, end=True)]


def typed(packets: list[RtpPacket], keypad: Keypad | None = None) -> str:
    keypad = keypad or Keypad(RATE, RATE)
    for each in packets:
        keypad.push(each)
    return "".join(iter(keypad.poll_key, None))


def test_a_press_is_told_once_with_its_first_packet() -> None:
    keypad = Keypad(RATE, RATE)
    first, *others = press("5", 1000)
    assert typed([first], keypad) == "5"
    assert typed(others, keypad) == ""
    assert keypad.counts.presses == 1
    assert keypad.counts.repetitions == 6


def test_every_key() -> None:
    assert typed([p for n, key in enumerate(KEYS) for p in press(key, 1600 * n)]) == KEYS


def test_the_same_key_twice_is_twice() -> None:
    assert typed(press("1", 0) + press("1", 1600)) == "11"


def test_lost_ends_are_not_needed() -> None:
    assert typed(press("1", 0)[:-3] + press("1", 1600)[:-3] + press("2", 3200)[:-3]) == "112"


def test_lost_beginnings_are_not_needed() -> None:
    assert typed(press("1", 0)[1:] + press("1", 1600)[3:] + press("2", 3200)[-1:]) == "112"


@given(
    st.text(KEYS, min_size=1, max_size=8),
    st.integers(0, 0xFFFFFFFF),
    st.integers(0, 2**32),
    st.floats(0, 0.9),
)
def test_whatever_is_lost_doubled_and_swapped(keys: str, start: int, seed: int, loss: float) -> None:
    """Each press of which one packet comes is told once, in order, unless the network swaps whole presses."""
    rng = random.Random(seed)
    expected, arriving = "", []
    for n, key in enumerate(keys):
        came = [(p, rng.random()) for p in press(key, start + 1600 * n) if rng.random() >= loss]
        came += [(p, rng.random()) for p, _ in came if rng.random() < 0.2]
        arriving += [p for p, _ in sorted(came, key=lambda pair: pair[1])]
        expected += key if came else ""
    assert typed(arriving) == expected


def test_packets_that_come_after_the_next_press_are_repetitions() -> None:
    first, second = press("1", 0), press("2", 1600)
    assert typed([*first[:3], *second[:2], *first[3:], *second[2:]]) == "12"


@pytest.mark.parametrize("late", [0, 1, 705, 1600], ids=["as the RFC says", "1", "as libwebrtc", "two lost"])
def test_a_key_held_beyond_the_longest_duration_is_one_press(late: int) -> None:
    keypad = Keypad(48_000, 48_000)
    packets: list[RtpPacket] = []
    start = 7
    for segment in range(4):
        packets += [packet("9", start, n, marker=not segment and n == 960) for n in range(960, 65_000, 960)]
        packets += [packet("9", start, MAX_DURATION)]
        start += MAX_DURATION + late
    packets += 3 * [packet("9", start, 960, end=True)]
    assert typed(packets, keypad) == "9"
    assert keypad.counts.segments == 4


def test_what_does_not_go_on_is_another_press() -> None:
    full = packet("9", 0, MAX_DURATION, marker=True)
    ended = packet("9", 0, MAX_DURATION, end=True)
    assert typed([full, packet("9", MAX_DURATION, 160, marker=True)]) == "99"
    assert typed([full, packet("8", MAX_DURATION, 160)]) == "98"
    assert typed([full, ended, packet("9", MAX_DURATION, 160)]) == "99"
    assert typed([full, packet("9", MAX_DURATION + RATE, 160)]) == "99"
    assert typed([packet("9", 0, 800, marker=True), packet("9", MAX_DURATION, 160)]) == "99"


def test_durations_of_another_clock_than_the_timestamps() -> None:
    keypad = Keypad(48_000, 8_000)
    held = [packet("3", 0, MAX_DURATION, marker=True), packet("3", 6 * MAX_DURATION, 160, end=True)]
    assert typed(held, keypad) == "3"


def test_several_events_in_a_packet() -> None:
    """RFC 4733 section 2.5.1.5: what was told is told again with what is new."""
    one, two, three = (build_telephone_event(TelephoneEvent(n, n < 3, 10, 400)) for n in (1, 2, 3))
    keypad = Keypad(RATE, RATE)
    assert typed([RtpPacket(True, EVENT_TYPE, 0, 0, 1, one + two)], keypad) == "12"
    assert typed([RtpPacket(False, EVENT_TYPE, 1, 0, 1, one + two + three)], keypad) == "3"
    assert keypad.counts.repetitions == 2


def test_flash_and_modem_tones_are_no_keys() -> None:
    keypad = Keypad(RATE, RATE)
    assert typed([packet(code, 1600 * code, 160) for code in (16, 32, 255)], keypad) == ""
    assert keypad.counts.other_events == 3


def test_another_stream_is_another_keypad() -> None:
    assert typed([*press("1", 0), packet("1", 0, 160, ssrc=2)]) == "11"


def test_garbage_is_counted_and_the_next_press_is_told() -> None:
    keypad = Keypad(RATE, RATE)
    garbage = [RtpPacket(False, EVENT_TYPE, 0, 0, 1, payload) for payload in (b"", b"\1", bytes(1400))]
    assert typed(garbage + press("#", 0), keypad) == "#"
    assert keypad.counts.malformed == 3


@given(
    st.lists(
        st.builds(
            RtpPacket,
            st.booleans(),
            st.just(EVENT_TYPE),
            st.integers(0, 0xFFFF),
            st.integers(0, 0xFFFFFFFF),
            st.integers(0, 3),
            st.binary(max_size=68),
        ),
        max_size=60,
    )
)
def test_whatever_comes_memory_is_bounded(packets: list[RtpPacket]) -> None:
    keypad = Keypad(RATE, RATE)
    for each in packets:
        keypad.push(each)
    counts = keypad.statistics()
    assert len(keypad._keys) == min(counts.presses, MAX_KEYS)
    assert len(keypad._recent) <= RECENT
    assert set(iter(keypad.poll_key, None)) <= set(KEYS)


def test_presses_that_nobody_polls_are_dropped() -> None:
    keypad = Keypad(RATE, RATE)
    assert len(typed([packet("1", 1600 * n, 160) for n in range(MAX_KEYS + 5)], keypad)) == MAX_KEYS
    assert keypad.counts.dropped == 5
