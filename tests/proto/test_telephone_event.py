"""voicegate.proto.telephone_event: the bytes of RFC 4733, and whatever else may come instead."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from voicegate.proto.errors import BadPacket
from voicegate.proto.telephone_event import (
    KEYS,
    MAX_EVENTS,
    TelephoneEvent,
    build_telephone_event,
    parse_telephone_events_untrusted,
)

EVENTS = st.builds(
    TelephoneEvent, st.integers(0, 255), st.booleans(), st.integers(0, 63), st.integers(0, 0xFFFF)
)


def test_each_field_is_where_the_rfc_has_it() -> None:
    """RFC 4733 section 2.3, figure 1: "1" at -7 dBm0, 3200 units, ended."""
    (event,) = parse_telephone_events_untrusted(bytes.fromhex("01 87 0c80"))
    assert event == TelephoneEvent(1, True, 7, 3200)
    assert KEYS[event.code] == "1"


def test_the_reserved_bit_means_nothing() -> None:
    assert parse_telephone_events_untrusted(b"\x0b\x4a\0\xa0") == (TelephoneEvent(11, False, 10, 160),)


@given(st.lists(EVENTS, min_size=1, max_size=MAX_EVENTS))
def test_what_is_built_is_parsed(events: list[TelephoneEvent]) -> None:
    assert parse_telephone_events_untrusted(b"".join(map(build_telephone_event, events))) == tuple(events)


@given(st.binary(max_size=4 * MAX_EVENTS + 8))
def test_anything_is_events_or_a_bad_packet(payload: bytes) -> None:
    try:
        events = parse_telephone_events_untrusted(payload)
    except BadPacket as bad:
        assert bad.reason in ("telephone_event_length", "telephone_event_count")
    else:
        assert 1 <= len(events) <= MAX_EVENTS and 4 * len(events) == len(payload)


@pytest.mark.parametrize("size", [0, 1, 3, 5, 4 * MAX_EVENTS + 4])
def test_sizes_that_are_no_events(size: int) -> None:
    with pytest.raises(BadPacket):
        parse_telephone_events_untrusted(bytes(size))
