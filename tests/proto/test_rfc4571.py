"""Framing is reversible whatever pieces it arrives in, and nothing but BadPacket comes of garbage."""

from __future__ import annotations

from itertools import pairwise

import pytest
from hypothesis import given
from hypothesis import strategies as st

from voicegate.proto.errors import BadPacket
from voicegate.proto.link import MAX_PAYLOAD
from voicegate.proto.rfc4571 import Deframer, frame

PACKETS = st.lists(
    st.one_of(st.binary(max_size=40), st.binary(min_size=1300, max_size=MAX_PAYLOAD)), max_size=8
)


def test_a_packet_stands_behind_its_length_in_network_order() -> None:
    assert frame(b"x" * 0x102) == b"\x01\x02" + b"x" * 0x102
    assert frame(memoryview(b"abc")) == b"\0\3abc"


@given(PACKETS, st.lists(st.integers(0, 12_000), max_size=12))
def test_any_pieces_give_the_same_packets(packets: list[bytes], cuts: list[int]) -> None:
    stream = b"".join(frame(packet) for packet in packets)
    deframer = Deframer()
    received = []
    places = [0, *sorted(min(cut, len(stream)) for cut in cuts), len(stream)]
    for start, stop in pairwise(places):
        received += deframer.receive_untrusted(stream[start:stop])
    assert received == [packet for packet in packets if packet]
    assert not deframer.inside_frame()


@given(st.lists(st.binary(max_size=3000), max_size=6))
def test_garbage_is_packets_or_a_bad_packet_for_ever(pieces: list[bytes]) -> None:
    deframer = Deframer()
    broken = False
    for piece in pieces:
        try:
            packets = deframer.receive_untrusted(piece)
        except BadPacket as error:
            assert error.reason == "tcp_frame"
            broken = True
        else:
            assert not broken, "a stream that lost its place was believed again"
            assert all(0 < len(packet) <= MAX_PAYLOAD for packet in packets)


def test_byte_by_byte_tells_when_a_frame_is_open() -> None:
    deframer = Deframer()
    assert not deframer.inside_frame()
    for byte in b"\0\2a":
        assert deframer.receive_untrusted(bytes((byte,))) == []
        assert deframer.inside_frame()
    assert deframer.receive_untrusted(b"b\0\0") == [b"ab"]
    assert not deframer.inside_frame(), "a null packet is whole"


def test_the_length_alone_tells_that_it_is_too_long() -> None:
    deframer = Deframer()
    with pytest.raises(BadPacket):
        deframer.receive_untrusted((MAX_PAYLOAD + 1).to_bytes(2, "big"))
    assert Deframer().receive_untrusted(frame(b"x" * MAX_PAYLOAD)) == [b"x" * MAX_PAYLOAD]
