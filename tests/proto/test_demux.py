"""The first byte decides, as RFC 7983 section 7 draws it."""

from __future__ import annotations

from voicegate.proto.demux import Kind, is_rtcp, kind


def test_every_first_byte() -> None:
    expected = {
        Kind.STUN: range(4),
        Kind.DTLS: range(20, 64),
        Kind.RTP: range(128, 192),
    }
    for first in range(256):
        kinds = [name for name, span in expected.items() if first in span]
        assert kind(first) is (kinds[0] if kinds else Kind.UNKNOWN)


def test_rtcp_is_told_from_rtp_by_the_packet_type() -> None:
    # RFC 5761 section 4: RTP payload types 64 to 95 would, with the marker, look like RTCP and are not used.
    assert [second for second in range(256) if is_rtcp(bytes([0x80, second]))] == list(range(192, 224))
    assert not is_rtcp(b"\x80")
    assert not is_rtcp(b"")
