"""DCEP: a vector, round trips, and nothing but BadPacket."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from voicegate.proto.dcep import ACK, Open, build_open, parse_dcep_untrusted
from voicegate.proto.errors import BadPacket

TEXT = st.text(max_size=20)
LIMITS = st.one_of(
    st.just((None, None)),
    st.integers(0, 0xFFFF_FFFF).map(lambda n: (n, None)),
    st.integers(0, 0xFFFF_FFFF).map(lambda n: (None, n / 1000)),
)

OAI_EVENTS = bytes.fromhex("03000100000000000" + "00a0000") + b"oai-events"
"""What RFC 8832 section 5.1 makes of createDataChannel("oai-events"): type, reliable, priority 256."""


def test_the_channel_of_a_realtime_client() -> None:
    assert parse_dcep_untrusted(OAI_EVENTS) == Open("oai-events")
    assert build_open(Open("oai-events")) == OAI_EVENTS


def test_ack() -> None:
    assert ACK == b"\x02"
    assert parse_dcep_untrusted(ACK) is None


@given(TEXT, TEXT, st.booleans(), LIMITS, st.integers(0, 0xFFFF))
def test_round_trip(
    label: str, protocol: str, ordered: bool, limits: tuple[int | None, float | None], priority: int
) -> None:
    message = Open(label, protocol, ordered, *limits, priority)
    assert parse_dcep_untrusted(build_open(message)) == message


@pytest.mark.parametrize(
    ("data", "reason"),
    [
        (b"", "dcep_length"),
        (b"\x02\0", "dcep_length"),
        (b"\x03", "dcep_length"),
        (OAI_EVENTS[:-1], "dcep_length"),
        (OAI_EVENTS + b"x", "dcep_length"),
        (b"\x01" + OAI_EVENTS[1:], "dcep_type"),
        (b"\x03\x03" + OAI_EVENTS[2:], "dcep_channel_type"),
        (b"\x03\x40" + OAI_EVENTS[2:], "dcep_channel_type"),
        (OAI_EVENTS[:-1] + b"\xff", "dcep_text"),
    ],
)
def test_malformed(data: bytes, reason: str) -> None:
    with pytest.raises(BadPacket) as caught:
        parse_dcep_untrusted(data)
    assert caught.value.reason == reason


@given(st.binary(max_size=40) | st.binary(max_size=40).map(lambda data: b"\x03\x80" + data))
def test_any_bytes(data: bytes) -> None:
    try:
        parse_dcep_untrusted(data)
    except BadPacket as error:
        assert error.reason.startswith("dcep_")


@pytest.mark.parametrize(
    "message",
    [
        Open("x" * 65_536),
        Open("x", "y" * 65_536),
        Open("x", max_retransmits=1, lifetime=1.0),
        Open("x", max_retransmits=-1),
        Open("x", max_retransmits=1 << 32),
        Open("x", lifetime=5e6),
    ],
)
def test_what_cannot_be_written(message: Open) -> None:
    with pytest.raises(ValueError, match="data channel"):
        build_open(message)
