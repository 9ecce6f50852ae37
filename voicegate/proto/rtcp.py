"""RTCP on the wire: RFC 3550 section 6, compound or reduced size (RFC 5506).

Parsing gives one value for each packet of a datagram. What is not SR, RR, SDES or BYE comes out as `Unknown`,
to be skipped: RFC 3550 section 6.1 wants unknown types ignored.
"""

from __future__ import annotations

import struct
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from enum import IntEnum
from typing import Final, NamedTuple

from voicegate.proto.errors import BadPacket


class PacketType(IntEnum):
    """IANA "RTCP Control Packet Types"."""

    SR = 0xC8
    RR = 0xC9
    SDES = 0xCA
    BYE = 0xCB


class SdesItem(IntEnum):
    """IANA "RTP SDES Item Types", RFC 3550 section 6.5: those we use."""

    END = 0x00
    CNAME = 0x01


MAX_BLOCKS: Final = 31
"""What the five-bit count of one report can say."""
_MAX_TEXT = 255
_COUNT = 0x1F
_PADDING = 0x20
_VERSION_2 = 0x80
_VERSION_MASK = 0xC0

_HEADER = struct.Struct("!BBH")
_SENDER = struct.Struct("!IQIII")
_BLOCK = struct.Struct("!IIIIII")
_SSRC = struct.Struct("!I")


class ReportBlock(NamedTuple):
    """RFC 3550 section 6.4.1: what a receiver says of one sender. Times in the units of the wire."""

    ssrc: int
    fraction_lost: int
    """Of the packets since the report before, in 1/256."""
    cumulative_lost: int
    """Signed: duplicates make it negative."""
    highest_sequence: int
    """Extended: cycles in the upper 16 bits."""
    jitter: int
    """On the RTP clock."""
    last_sr: int
    """The middle 32 bits of the NTP time of the last SR, or 0."""
    delay_since_last_sr: int
    """In 1/65536 s."""


@dataclass(frozen=True, slots=True)
class SenderReport:
    ssrc: int
    ntp: int
    """64 bits: seconds since 1900, and their fraction."""
    rtp_timestamp: int
    packets: int
    octets: int
    blocks: tuple[ReportBlock, ...] = ()


@dataclass(frozen=True, slots=True)
class ReceiverReport:
    ssrc: int
    blocks: tuple[ReportBlock, ...] = ()


@dataclass(frozen=True, slots=True)
class SourceDescription:
    chunks: tuple[tuple[int, tuple[tuple[int, bytes], ...]], ...]
    """For each SSRC its items: type and text."""


@dataclass(frozen=True, slots=True)
class Bye:
    ssrcs: tuple[int, ...]
    reason: bytes = b""


@dataclass(frozen=True, slots=True)
class Unknown:
    packet_type: int
    count: int
    """The five bits that are a count or a format."""
    body: bytes


RtcpPacket = SenderReport | ReceiverReport | SourceDescription | Bye | Unknown


def parse_rtcp_untrusted(data: bytes) -> list[RtcpPacket]:
    """Parse one decrypted datagram. Raises BadPacket only, and then nothing of it is believed."""
    if len(data) < 4:
        raise BadPacket("rtcp_short")
    packets: list[RtcpPacket] = []
    at = 0
    while at < len(data):
        if at + 4 > len(data):
            raise BadPacket("rtcp_length")
        first, packet_type, words = _HEADER.unpack_from(data, at)
        if first & _VERSION_MASK != _VERSION_2:
            raise BadPacket("rtcp_version")
        end = at + 4 + 4 * words
        if end > len(data):
            raise BadPacket("rtcp_length")
        body = data[at + 4 : end]
        if first & _PADDING:
            # "padding MUST only be added to the last individual packet", RFC 3550 section 6.4.1
            if end != len(data) or not body or not 1 <= body[-1] <= len(body):
                raise BadPacket("rtcp_padding")
            body = body[: -body[-1]]
        packets.append(_parse_one(packet_type, first & _COUNT, body))
        at = end
    return packets


def build_sender_report(report: SenderReport) -> bytes:
    return (
        _header(PacketType.SR, len(report.blocks), 24 + 24 * len(report.blocks))
        + _SENDER.pack(report.ssrc, report.ntp, report.rtp_timestamp, report.packets, report.octets)
        + _build_blocks(report.blocks)
    )


def build_receiver_report(report: ReceiverReport) -> bytes:
    return (
        _header(PacketType.RR, len(report.blocks), 4 + 24 * len(report.blocks))
        + _SSRC.pack(report.ssrc)
        + _build_blocks(report.blocks)
    )


def build_cname(ssrc: int, cname: bytes) -> bytes:
    """SDES with the one item that is mandatory, RFC 3550 section 6.5.1."""
    assert len(cname) <= _MAX_TEXT, "a CNAME has one octet of length"
    chunk = _SSRC.pack(ssrc) + bytes([SdesItem.CNAME, len(cname)]) + cname
    # The list ends with at least one zero octet and goes on to the next word, section 6.5.
    chunk += bytes(4 - len(chunk) % 4)
    return _header(PacketType.SDES, 1, len(chunk)) + chunk


def build_bye(ssrcs: Sequence[int], reason: bytes = b"") -> bytes:
    """RFC 3550 section 6.6."""
    body = b"".join(map(_SSRC.pack, ssrcs))
    if reason:
        text = bytes([len(reason[:_MAX_TEXT])]) + reason[:_MAX_TEXT]
        body += text + bytes(-len(text) % 4)
    return _header(PacketType.BYE, len(ssrcs), len(body)) + body


def _parse_one(packet_type: int, count: int, body: bytes) -> RtcpPacket:
    if packet_type == PacketType.SR:
        if len(body) < 24 + 24 * count:
            raise BadPacket("rtcp_report")
        ssrc, ntp, rtp_timestamp, packets, octets = _SENDER.unpack_from(body)
        return SenderReport(ssrc, ntp, rtp_timestamp, packets, octets, _parse_blocks(body, 24, count))
    if packet_type == PacketType.RR:
        if len(body) < 4 + 24 * count:
            raise BadPacket("rtcp_report")
        return ReceiverReport(_SSRC.unpack_from(body)[0], _parse_blocks(body, 4, count))
    if packet_type == PacketType.SDES:
        return _parse_sdes(count, body)
    if packet_type == PacketType.BYE:
        return _parse_bye(count, body)
    return Unknown(packet_type, count, body)


def _parse_blocks(body: bytes, start: int, count: int) -> tuple[ReportBlock, ...]:
    blocks = []
    for at in range(start, start + 24 * count, 24):
        ssrc, lost, highest, jitter, last_sr, delay = _BLOCK.unpack_from(body, at)
        cumulative = lost & 0xFFFFFF
        if cumulative & 0x800000:
            cumulative -= 0x1000000
        blocks.append(ReportBlock(ssrc, lost >> 24, cumulative, highest, jitter, last_sr, delay))
    return tuple(blocks)


def _parse_sdes(count: int, body: bytes) -> SourceDescription:
    """RFC 3550 section 6.5: each chunk is an SSRC, items, a zero octet, and fills up its last word."""
    chunks = []
    at = 0
    for _ in range(count):
        if at + 4 > len(body):
            raise BadPacket("rtcp_sdes")
        (ssrc,) = _SSRC.unpack_from(body, at)
        at += 4
        items = []
        while True:
            if at >= len(body):
                raise BadPacket("rtcp_sdes")
            item = body[at]
            if item == SdesItem.END:
                at += 4 - at % 4
                break
            if at + 2 > len(body) or at + 2 + body[at + 1] > len(body):
                raise BadPacket("rtcp_sdes")
            items.append((item, body[at + 2 : at + 2 + body[at + 1]]))
            at += 2 + body[at + 1]
        chunks.append((ssrc, tuple(items)))
    return SourceDescription(tuple(chunks))


def _parse_bye(count: int, body: bytes) -> Bye:
    if len(body) < 4 * count:
        raise BadPacket("rtcp_bye")
    ssrcs = tuple(_SSRC.unpack_from(body, at)[0] for at in range(0, 4 * count, 4))
    reason = body[4 * count :]
    if not reason:
        return Bye(ssrcs)
    if 1 + reason[0] > len(reason):
        raise BadPacket("rtcp_bye")
    return Bye(ssrcs, reason[1 : 1 + reason[0]])


def _build_blocks(blocks: Iterable[ReportBlock]) -> bytes:
    return b"".join(
        _BLOCK.pack(
            block.ssrc,
            block.fraction_lost << 24 | block.cumulative_lost & 0xFFFFFF,
            block.highest_sequence,
            block.jitter,
            block.last_sr,
            block.delay_since_last_sr,
        )
        for block in blocks
    )


def _header(packet_type: PacketType, count: int, body_length: int) -> bytes:
    """The length is in words and does not count the header's own, section 6.4.1."""
    return _HEADER.pack(_VERSION_2 | count, packet_type, body_length // 4)
