"""Packets and chunks: vectors, round trips, and nothing but BadPacket from the network's bytes."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from voicegate.proto.errors import BadPacket
from voicegate.proto.sctp import wire
from voicegate.proto.sctp.cookie import Cookie, open_cookie_untrusted, seal_cookie
from voicegate.proto.sctp.parameters import (
    Init,
    ParameterType,
    build_init,
    build_parameter,
    parameters_untrusted,
    parse_init_untrusted,
)
from voicegate.proto.sctp.wire import ChunkType

U16 = st.integers(0, 0xFFFF)
U32 = st.integers(0, 0xFFFF_FFFF)
SMALL = st.binary(max_size=64)


@pytest.mark.parametrize(
    ("data", "checksum"),
    [
        (bytes(32), 0x8A9136AA),
        (b"\xff" * 32, 0x62A8AB43),
        (bytes(range(32)), 0x46DD794E),
        (bytes(range(31, -1, -1)), 0x113FDB5C),
        (b"123456789", 0xE3069283),
    ],
)
def test_crc32c_vectors(data: bytes, checksum: int) -> None:
    """RFC 3720 appendix B.4, which RFC 9260 appendix A's polynomial is that of; and the usual check value."""
    assert wire.crc32c(data) == checksum


def test_the_checksum_is_in_the_order_of_the_wire() -> None:
    """The octets of the CRC go out lowest first (RFC 9260 appendix A)."""
    packet = wire.build_packet(5000, 5000, 1, [wire.build_chunk(ChunkType.COOKIE_ACK, 0, b"")])
    zeroed = packet[:8] + bytes(4) + packet[12:]
    assert packet[8:12] == wire.crc32c(zeroed).to_bytes(4, "little")
    assert packet.hex() == "1388138800000001" + packet[8:12].hex() + "0b000004"


@given(
    U16,
    U16,
    U32,
    st.lists(st.tuples(st.integers(0, 255), st.integers(0, 255), SMALL), min_size=1, max_size=25),
)
def test_packets_round_trip(
    source: int, destination: int, tag: int, chunks: list[tuple[int, int, bytes]]
) -> None:
    built = [wire.build_chunk(*chunk) for chunk in chunks]
    assert all(len(chunk) % 4 == 0 for chunk in built)
    data = wire.build_packet(source, destination, tag, built)
    packet = wire.parse_packet_untrusted(data)
    assert packet[:3] == (source, destination, tag)
    assert [(k, f, data[start:stop]) for k, f, start, stop in packet.chunks] == chunks


@given(st.binary(max_size=200))
def test_any_bytes_behind_a_right_checksum(body: bytes) -> None:
    """They parse into chunks that lie inside, or are BadPacket."""
    data = wire.build_packet(1, 2, 3, [body])
    try:
        packet = wire.parse_packet_untrusted(data)
    except BadPacket as error:
        assert error.reason in {"sctp_empty", "sctp_chunk_length"}
    else:
        assert all(12 < start <= stop <= len(data) for _, _, start, stop in packet.chunks)


@pytest.mark.parametrize(
    ("data", "reason"),
    [
        (b"", "sctp_short"),
        (bytes(11), "sctp_short"),
        (bytes(2049), "sctp_long"),
        (b"\x01" * 20, "sctp_checksum"),
        (wire.build_packet(1, 1, 1, []), "sctp_empty"),
        (wire.build_packet(1, 1, 1, [b"\0\0\0\0"]), "sctp_chunk_length"),  # zero length: no endless walk
        (wire.build_packet(1, 1, 1, [b"\0\0\0\x03"]), "sctp_chunk_length"),
        (wire.build_packet(1, 1, 1, [b"\0\0\0\x05"]), "sctp_chunk_length"),  # overruns the packet
        (wire.build_packet(1, 1, 1, [b"\0\0\0\x04\0\0"]), "sctp_chunk_length"),  # half a header
    ],
)
def test_malformed_packets(data: bytes, reason: str) -> None:
    with pytest.raises(BadPacket) as caught:
        wire.parse_packet_untrusted(data)
    assert caught.value.reason == reason


def test_a_flipped_bit_anywhere_is_noticed() -> None:
    data = wire.build_packet(5000, 5000, 7, [wire.build_data(3, 1, 2, 3, 4, b"hello")])
    for index in range(len(data) * 8):
        flipped = bytearray(data)
        flipped[index // 8] ^= 1 << index % 8
        with pytest.raises(BadPacket, match="sctp_checksum"):
            wire.parse_packet_untrusted(bytes(flipped))


@given(st.integers(0, 15), U32, U16, U16, U32, SMALL)
def test_data_round_trips(flags: int, tsn: int, stream: int, ssn: int, ppid: int, payload: bytes) -> None:
    chunk = wire.build_data(flags, tsn, stream, ssn, ppid, payload)
    data = wire.build_packet(1, 1, 1, [chunk])
    [(kind, parsed_flags, start, stop)] = wire.parse_packet_untrusted(data).chunks
    assert (kind, parsed_flags) == (ChunkType.DATA, flags)
    assert wire.parse_data_untrusted(data, start, stop) == (tsn, stream, ssn, ppid, payload)


@given(U32, U32, st.lists(st.integers(1, 0xFFFF), unique=True, max_size=40), st.lists(U32, max_size=5))
def test_sack_round_trips(cumulative: int, window: int, edges: list[int], duplicates: list[int]) -> None:
    gaps = sorted(edges)[: len(edges) & ~1]
    chunk = wire.build_sack(cumulative, window, gaps, duplicates)
    assert wire.parse_sack_untrusted(chunk, 4, len(chunk)) == (cumulative, window, tuple(gaps))


@pytest.mark.parametrize("gaps", [[2, 1], [0, 1], [3, 4, 4, 5], [5, 6, 2, 3]])
def test_gap_blocks_out_of_order_are_refused(gaps: list[int]) -> None:
    """Blocks that overlap would make the work of a SACK unbounded."""
    chunk = wire.build_sack(1, 1, gaps, [])
    with pytest.raises(BadPacket, match="sctp_sack_gaps"):
        wire.parse_sack_untrusted(chunk, 4, len(chunk))


@given(U32, st.dictionaries(U16, U16, max_size=10))
def test_forward_tsn_round_trips(cumulative: int, skipped: dict[int, int]) -> None:
    chunk = wire.build_forward_tsn(cumulative, skipped)
    assert wire.parse_forward_tsn_untrusted(chunk[4:]) == (cumulative, list(skipped.items()))


@given(st.integers(-(1 << 40), 1 << 40), st.integers(-(1 << 31), (1 << 31) - 1))
def test_unwrap_finds_the_nearest(reference: int, distance: int) -> None:
    value = reference + distance
    assert wire.unwrap(value & 0xFFFF_FFFF, reference) == value


@given(
    st.builds(
        Init,
        st.integers(1, 0xFFFF_FFFF),
        U32,
        st.integers(1, 0xFFFF),
        st.integers(1, 0xFFFF),
        U32,
        forward_tsn=st.just(True),
        reconfig=st.just(True),
        cookie=SMALL,
        unrecognized=st.just(b""),
    )
)
def test_init_round_trips(init: Init) -> None:
    chunk = build_init(ChunkType.INIT_ACK, init)
    length = int.from_bytes(chunk[2:4], "big")
    assert parse_init_untrusted(chunk[4:length]) == init


def test_unknown_parameters_are_treated_as_their_bits_say() -> None:
    """RFC 9260 section 3.2.1: 00 stop, 01 stop and report, 10 skip, 11 skip and report."""
    fixed = build_init(ChunkType.INIT, Init(1, 2, 3, 4, 5))[4:20]
    supported = build_parameter(ParameterType.FORWARD_TSN_SUPPORTED, b"")

    def parse(kind: int) -> Init:
        return parse_init_untrusted(fixed + build_parameter(kind, b"abc") + supported)

    assert [parse(kind).forward_tsn for kind in (0x3F00, 0x7F00, 0xBF00, 0xFF00)] == [
        False,
        False,
        True,
        True,
    ]
    assert [bool(parse(kind).unrecognized) for kind in (0x3F00, 0x7F00, 0xBF00, 0xFF00)] == [
        False,
        True,
        False,
        True,
    ]
    assert parse(0xFF00).unrecognized == build_parameter(0xFF00, b"abc")


def test_the_report_of_unknown_parameters_is_bounded() -> None:
    fixed = build_init(ChunkType.INIT, Init(1, 2, 3, 4, 5))[4:20]
    init = parse_init_untrusted(fixed + build_parameter(0xFF00, bytes(60)) * 200)
    assert 0 < len(init.unrecognized) <= 256


PARSERS = [
    parse_init_untrusted,
    wire.parse_forward_tsn_untrusted,
    wire.parse_shutdown_untrusted,
    lambda data: wire.parse_sack_untrusted(data, 0, len(data)),
    lambda data: wire.parse_data_untrusted(data, 0, len(data)),
    lambda data: list(parameters_untrusted(data)),
    lambda data: open_cookie_untrusted(b"key", data),
]


@pytest.mark.parametrize("parser", PARSERS)
@given(data=st.binary(max_size=80))
def test_parsers_raise_bad_packet_only(parser: object, data: bytes) -> None:
    try:
        parser(data)  # type: ignore[operator]
    except BadPacket as error:
        assert error.reason.startswith("sctp_")


def test_a_cookie_opens_with_its_key_only() -> None:
    cookie = Cookie(1, 2, 3, 4, 5, 3, 6, 7, 8, 9, 10)
    sealed = seal_cookie(b"k" * 32, cookie)
    assert open_cookie_untrusted(b"k" * 32, sealed) == cookie
    for index in range(len(sealed)):
        changed = bytearray(sealed)
        changed[index] ^= 1
        with pytest.raises(BadPacket, match="sctp_cookie"):
            open_cookie_untrusted(b"k" * 32, bytes(changed))
    with pytest.raises(BadPacket, match="sctp_cookie"):
        open_cookie_untrusted(b"l" * 32, sealed)
