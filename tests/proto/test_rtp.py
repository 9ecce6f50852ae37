"""voicegate.proto.rtp: RFC 3550 section 5.1 and RFC 8285."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from voicegate.proto.errors import BadPacket
from voicegate.proto.rtp import (
    RtpPacket,
    audio_level,
    build_rtp,
    extension_value,
    mid,
    parse_rtp_untrusted,
    sequence_delta,
    timestamp_delta,
)

PLAIN = bytes.fromhex("80ef1234 00010203 deadbeef".replace(" ", "")) + b"payload"


def test_a_packet_by_hand() -> None:
    assert parse_rtp_untrusted(PLAIN) == RtpPacket(True, 111, 0x1234, 0x00010203, 0xDEADBEEF, b"payload")


def test_csrcs_are_stepped_over() -> None:
    data = b"\x82" + PLAIN[1:12] + b"\x01" * 8 + b"payload"
    assert parse_rtp_untrusted(data).payload == b"payload"


def test_one_byte_extensions_of_rfc_8285_section_4_2() -> None:
    # The RFC's figure: an element of one byte, one of two, padding, one of four.
    block = bytes.fromhex("bede000310aa21bbcc000033ddddddee")
    packet = parse_rtp_untrusted(b"\x90" + PLAIN[1:12] + block + b"payload")
    assert packet.payload == b"payload"
    assert extension_value(packet, 1) == b"\xaa"
    assert extension_value(packet, 2) == b"\xbb\xcc"
    assert extension_value(packet, 3) == b"\xdd\xdd\xdd\xee"
    assert extension_value(packet, 4) is None


def test_two_byte_extensions_of_rfc_8285_section_4_3() -> None:
    block = bytes.fromhex("1000000301000201bb000304cccccccc")
    packet = parse_rtp_untrusted(b"\x90" + PLAIN[1:12] + block + b"payload")
    assert extension_value(packet, 1) == b""
    assert extension_value(packet, 2) == b"\xbb"
    assert extension_value(packet, 3) == b"\xcc" * 4
    assert extension_value(packet, 9) is None


def test_one_byte_id_15_ends_the_block() -> None:
    packet = RtpPacket(False, 0, 0, 0, 0, b"", bytes.fromhex("bede0002f0aa10bb00000000"))
    assert extension_value(packet, 1) is None


@pytest.mark.parametrize(
    "block", ["bede000113aa0000", "1000000101ff0000", "1000000100000001", "abcd000110aa0000"]
)
def test_an_extension_block_that_lies_costs_only_the_extension(block: str) -> None:
    packet = RtpPacket(False, 0, 0, 0, 0, b"", bytes.fromhex(block))
    assert extension_value(packet, 1) is None


def test_audio_level_of_rfc_6464() -> None:
    packet = RtpPacket(False, 0, 0, 0, 0, b"", bytes.fromhex("bede000110b20000"))
    level = audio_level(packet, 1)
    assert level is not None
    assert level.voice
    assert level.level == 0x32
    assert audio_level(packet, 2) is None


def test_no_extensions_at_all() -> None:
    assert extension_value(parse_rtp_untrusted(PLAIN), 1) is None


def test_mid() -> None:
    packet = RtpPacket(False, 0, 0, 0, 0, b"", b"\xbe\xde\x00\x02\x30a\x41\xff\x30\x00\x00\x00")
    assert mid(packet, 3) == "a"
    assert mid(packet, 4) is None  # not ASCII
    assert mid(packet, 5) is None


@pytest.mark.parametrize(
    ("data", "reason"),
    [
        (b"", "rtp_short"),
        (PLAIN[:11], "rtp_short"),
        (b"\x40" + PLAIN[1:], "rtp_version"),
        (b"\x8f" + PLAIN[1:], "rtp_csrc"),
        (b"\x90" + PLAIN[1:12], "rtp_extension"),
        (b"\x90" + PLAIN[1:12] + b"\xbe\xde\xff\xff", "rtp_extension"),
        (b"\xa0" + PLAIN[1:12], "rtp_padding"),
        (b"\xa0" + PLAIN[1:12] + b"abc\x00", "rtp_padding"),
        (b"\xa0" + PLAIN[1:12] + b"abc\x05", "rtp_padding"),
        (b"\xa0" + PLAIN[1:12] + b"abc\xff", "rtp_padding"),
    ],
)
def test_lies_about_lengths(data: bytes, reason: str) -> None:
    with pytest.raises(BadPacket) as caught:
        parse_rtp_untrusted(data)
    assert caught.value.reason == reason


@pytest.mark.parametrize(("tail", "payload"), [(b"abc\x01", b"abc"), (b"abc\x04", b""), (b"\x01", b"")])
def test_padding_is_taken_off(tail: bytes, payload: bytes) -> None:
    assert parse_rtp_untrusted(b"\xa0" + PLAIN[1:12] + tail).payload == payload


@given(
    st.integers(0, 127),
    st.booleans(),
    st.integers(0, 0xFFFF),
    st.integers(0, 0xFFFFFFFF),
    st.integers(0, 0xFFFFFFFF),
    st.binary(max_size=1400),
)
def test_round_trip(
    payload_type: int, marker: bool, sequence: int, timestamp: int, ssrc: int, payload: bytes
) -> None:
    data = build_rtp(payload_type, marker, sequence, timestamp, ssrc, payload)
    assert parse_rtp_untrusted(data) == (marker, payload_type, sequence, timestamp, ssrc, payload, b"")


@given(st.binary(max_size=1500) | st.binary(max_size=120).map(lambda tail: b"\xb3" + tail))
def test_any_bytes_parse_or_are_bad(data: bytes) -> None:
    try:
        packet = parse_rtp_untrusted(data)
    except BadPacket:
        return
    assert len(packet.payload) + len(packet.extensions) + 12 <= len(data)
    for extension_id in (0, 1, 14, 15, 255):
        extension_value(packet, extension_id)
    audio_level(packet, 1)
    mid(packet, 1)


@given(st.integers(0, 0xFFFF), st.integers(-0x8000, 0x7FFF))
def test_sequence_delta_wraps(reference: int, delta: int) -> None:
    assert sequence_delta((reference + delta) & 0xFFFF, reference) == delta


@given(st.integers(0, 0xFFFFFFFF), st.integers(-0x80000000, 0x7FFFFFFF))
def test_timestamp_delta_wraps(reference: int, delta: int) -> None:
    assert timestamp_delta((reference + delta) & 0xFFFFFFFF, reference) == delta
