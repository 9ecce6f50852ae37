"""voicegate.media.red: RFC 2198 payloads, true and lying."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from tests.media.streams import red
from voicegate.media.red import MAX_BLOCKS, RedBlock, RedPayload, parse_red_untrusted
from voicegate.proto.errors import BadPacket


@given(
    st.binary(max_size=200),
    st.lists(st.tuples(st.integers(0, 0x3FFF), st.binary(max_size=300)), max_size=MAX_BLOCKS),
    st.integers(0, 127),
)
def test_what_is_built_is_parsed(primary: bytes, copies: list[tuple[int, bytes]], payload_type: int) -> None:
    blocks = tuple(RedBlock(payload_type, *copy) for copy in copies)
    built = red(primary, *copies, payload_type=payload_type)
    assert parse_red_untrusted(built) == RedPayload(payload_type, primary, blocks)


@given(st.binary(max_size=300))
def test_any_bytes_are_refused_or_bounded(data: bytes) -> None:
    try:
        parsed = parse_red_untrusted(data)
    except BadPacket:
        return
    assert len(parsed.blocks) <= MAX_BLOCKS
    assert len(parsed.payload) + sum(len(block.payload) for block in parsed.blocks) < len(data)


@pytest.mark.parametrize(
    ("data", "reason"),
    [
        (b"", "red_header"),
        (b"\xef", "red_header"),
        (b"\xef\x00\x00\x00", "red_header"),  # no primary
        (b"\xef\x0f\x00", "red_header"),
        (b"\xef\x0f\x00\x05\x6fabcd", "red_length"),
        (b"\xef\x0f\x03\xff\x6fabcd", "red_length"),
        (b"\xef\x00\x00\x00" * (MAX_BLOCKS + 1) + b"\x6f", "red_blocks"),
    ],
)
def test_lies(data: bytes, reason: str) -> None:
    with pytest.raises(BadPacket, match=reason):
        parse_red_untrusted(data)
