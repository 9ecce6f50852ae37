"""Link datagrams: what is bundled comes apart again, and only who has the key is let in."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from voicegate.proto.address import ClientAddress, pack_address
from voicegate.proto.errors import BadPacket
from voicegate.proto.link import (
    LINK_HEADER_LENGTH,
    MAX_DATAGRAM,
    LinkGuard,
    encode_frame,
    frame_header,
    link_header,
    pack_frames,
    parse_frames_untrusted,
)

FOUR = pack_address("192.0.2.1", 0x1234)
SIX = pack_address("2001:db8::1", 0x1234)
KEY = b"k" * 32
RELAY, TRANSCEIVER = "10.0.0.1:4000", "10.0.0.2:5000#boot"
HEADER = link_header(KEY, 3, RELAY, TRANSCEIVER, 500_000)

addresses = st.one_of(st.binary(min_size=6, max_size=6), st.binary(min_size=18, max_size=18)).map(
    ClientAddress
)
frames = st.lists(st.tuples(addresses, st.binary(min_size=1, max_size=1500)), max_size=30)


def test_the_layout() -> None:
    assert HEADER[:2] == b"\x10\x03" and len(HEADER) == LINK_HEADER_LENGTH
    assert link_header(KEY, 3, RELAY, TRANSCEIVER, 500_000, hops=2) == b"\x12" + HEADER[1:]
    assert frame_header(FOUR) == b"\x04" + bytes([192, 0, 2, 1, 0x12, 0x34])
    assert frame_header(SIX) == b"\x06" + SIX
    assert encode_frame(FOUR, b"abc") == frame_header(FOUR) + b"\0\3abc"
    assert pack_frames(HEADER, [(FOUR, b"abc"), (SIX, b"d")]) == [
        HEADER + frame_header(FOUR) + b"\0\3abc" + frame_header(SIX) + b"\0\1d"
    ]


@given(frames)
def test_bundles_come_apart_into_the_same_frames(sent: list[tuple[ClientAddress, bytes]]) -> None:
    datagrams = pack_frames(HEADER, sent)
    received = [frame for datagram in datagrams for frame in parse_frames_untrusted(datagram)]
    assert received == sent
    for datagram in datagrams:
        assert datagram[:LINK_HEADER_LENGTH] == HEADER
        assert len(datagram) <= MAX_DATAGRAM or len(parse_frames_untrusted(datagram)) == 1


def test_a_bundle_is_as_full_as_it_can_be() -> None:
    datagrams = pack_frames(HEADER, [(FOUR, bytes(160))] * 20)
    assert [len(parse_frames_untrusted(datagram)) for datagram in datagrams] == [8, 8, 4]
    assert pack_frames(HEADER, []) == []
    assert len(pack_frames(HEADER, [(FOUR, bytes(160))] * 3, limit=200)) == 3


@pytest.mark.parametrize(
    "body",
    [
        b"",
        b"\x05" + FOUR + b"\0\1a",
        b"\x04" + FOUR,
        b"\x04" + FOUR + b"\0",
        b"\x04" + FOUR + b"\0\2a",
        b"\x04" + FOUR + b"\xff\xffa",
        b"\x06" + FOUR + b"\0\1a",
        encode_frame(FOUR, b"good") + b"\x04",
    ],
)
def test_what_is_not_whole_is_refused(body: bytes) -> None:
    with pytest.raises(BadPacket, match="link_frame"):
        parse_frames_untrusted(HEADER + body)


@given(st.binary(max_size=200), st.booleans())
def test_anything_raises_the_declared_error_only(body: bytes, prefixed: bool) -> None:
    datagram = (HEADER if prefixed else b"") + body
    try:
        parsed = parse_frames_untrusted(datagram)
    except BadPacket as error:
        assert error.reason == "link_frame"
    else:
        assert b"".join(encode_frame(*frame) for frame in parsed) == datagram[LINK_HEADER_LENGTH:]


def test_the_guard_accepts_the_hour_and_its_neighbours() -> None:
    guard = LinkGuard({3: KEY}, TRANSCEIVER)
    for _ in range(2):  # the second time from the cache
        for hour, right in (
            (499_998, False),
            (499_999, True),
            (500_000, True),
            (500_001, True),
            (500_002, False),
        ):
            assert guard.accepts(RELAY, HEADER, hour) is right


@pytest.mark.parametrize(
    "header",
    [
        link_header(b"x" * 32, 3, RELAY, TRANSCEIVER, 500_000),
        link_header(KEY, 4, RELAY, TRANSCEIVER, 500_000),
        link_header(KEY, 3, "10.0.0.9:4000", TRANSCEIVER, 500_000),
        link_header(KEY, 3, RELAY, "10.0.0.2:5000#another boot", 500_000),
        link_header(KEY, 3, RELAY, "10.0.0.2:5000", 500_000),
        b"\x30" + HEADER[1:],
        HEADER[:-1],
        b"",
    ],
)
def test_the_guard_refuses_all_else(header: bytes) -> None:
    guard = LinkGuard({3: KEY}, TRANSCEIVER)
    assert guard.accepts(RELAY, HEADER, 500_000)
    assert not guard.accepts(RELAY, header, 500_000)


def test_a_right_header_from_another_sender_is_refused() -> None:
    guard = LinkGuard({3: KEY}, TRANSCEIVER)
    assert guard.accepts(RELAY, HEADER, 500_000)
    assert not guard.accepts("10.0.0.9:4000", HEADER, 500_000)


def test_the_guard_knows_every_key_during_a_rotation() -> None:
    guard = LinkGuard({3: KEY, 4: b"n" * 32}, TRANSCEIVER)
    for key_id, key in ((3, KEY), (4, b"n" * 32), (3, KEY)):
        assert guard.accepts(RELAY, link_header(key, key_id, RELAY, TRANSCEIVER, 7), 7)


def test_many_senders_do_not_grow_the_guard_without_bound() -> None:
    guard = LinkGuard({3: KEY}, TRANSCEIVER)
    for number in range(5000):
        sender = f"10.0.0.1:{number}"
        assert guard.accepts(sender, link_header(KEY, 3, sender, TRANSCEIVER, 7), 7)
    assert guard.accepts(RELAY, link_header(KEY, 3, RELAY, TRANSCEIVER, 7), 7)


@given(st.binary(max_size=20))
def test_the_guard_never_raises(header: bytes) -> None:
    assert not LinkGuard({3: KEY}, TRANSCEIVER).accepts(RELAY, header, 500_000)
