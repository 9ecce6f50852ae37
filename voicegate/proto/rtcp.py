"""RTCP on the wire: RFC 3550 section 6, compound or reduced size (RFC 5506); of the feedback messages NACK
(RFC 4585), of the extended reports those that measure a round trip (RFC 3611).

Parsing gives one value for each packet of a datagram. What is none of these comes out as `Unknown`, to be
skipped: RFC 3550 section 6.1 wants unknown types ignored.
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
    RTPFB = 0xCD
    """Transport-layer feedback, RFC 4585 section 6.2."""
    XR = 0xCF
    """Extended reports, RFC 3611."""


class FeedbackFormat(IntEnum):
    """IANA "FMT Values for RTPFB Payload Types"."""

    NACK = 1
    TRANSPORT_CC = 15


class XrBlock(IntEnum):
    """IANA "RTCP XR Block Type"."""

    RECEIVER_REFERENCE_TIME = 4
    DLRR = 5


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
_FEEDBACK = struct.Struct("!BBHII")
_LOST = struct.Struct("!HH")
_XR_BLOCK = struct.Struct("!BxH")
_REFERENCE_TIME = struct.Struct("!BxHQ")
_DELAY = struct.Struct("!III")


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
class Nack:
    """RFC 4585 section 6.2.1: what the sender of this lacks, to be sent again."""

    ssrc: int
    media_ssrc: int
    """Whose packets they are."""
    sequences: tuple[int, ...]


class Delay(NamedTuple):
    """RFC 3611 section 4.5, the answer to a receiver's reference time. Units as in a `ReportBlock`."""

    ssrc: int
    """Who is answered."""
    last_rr: int
    delay_since_last_rr: int


@dataclass(frozen=True, slots=True)
class ExtendedReport:
    ssrc: int
    reference_ntp: int | None = None
    """The sender's clock, 64 bits, for us to answer (RFC 3611 section 4.4)."""
    delays: tuple[Delay, ...] = ()


@dataclass(frozen=True, slots=True)
class Unknown:
    packet_type: int
    count: int
    """The five bits that are a count or a format."""
    body: bytes


RtcpPacket = SenderReport | ReceiverReport | SourceDescription | Bye | Nack | ExtendedReport | Unknown


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


def build_feedback(format: FeedbackFormat, ssrc: int, media_ssrc: int, information: bytes) -> bytes:
    """A transport-layer feedback message, RFC 4585 section 6.1; `information` is filled up to a word as RFC
    3550 section 6.4.1 pads."""
    padding = -len(information) % 4
    words = 2 + (len(information) + padding) // 4
    if not padding:
        return _FEEDBACK.pack(_VERSION_2 | format, PacketType.RTPFB, words, ssrc, media_ssrc) + information
    head = _FEEDBACK.pack(_VERSION_2 | _PADDING | format, PacketType.RTPFB, words, ssrc, media_ssrc)
    return head + information + bytes(padding - 1) + bytes([padding])


def build_nack(nack: Nack) -> bytes:
    """RFC 4585 section 6.2.1: each entry a sequence number and a mask of the 16 that follow it."""
    information = b""
    left = list(nack.sequences)
    while left:
        first, mask = left[0], 0
        for sequence in left:
            after = (sequence - first) & 0xFFFF
            if 1 <= after <= 16:
                mask |= 1 << after - 1
        information += _LOST.pack(first, mask)
        left = [sequence for sequence in left if (sequence - first) & 0xFFFF > 16]
    return build_feedback(FeedbackFormat.NACK, nack.ssrc, nack.media_ssrc, information)


def build_extended_report(report: ExtendedReport) -> bytes:
    """RFC 3611 section 3, with the blocks that there is something for."""
    body = _SSRC.pack(report.ssrc)
    if report.reference_ntp is not None:
        body += _REFERENCE_TIME.pack(XrBlock.RECEIVER_REFERENCE_TIME, 2, report.reference_ntp)
    if report.delays:
        body += _XR_BLOCK.pack(XrBlock.DLRR, 3 * len(report.delays))
        body += b"".join(_DELAY.pack(*delay) for delay in report.delays)
    return _header(PacketType.XR, 0, len(body)) + body


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
    if packet_type == PacketType.RTPFB and count == FeedbackFormat.NACK:
        return _parse_nack(body)
    if packet_type == PacketType.XR:
        return _parse_extended(body)
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


def _parse_nack(body: bytes) -> Nack:
    if len(body) < 12 or len(body) % 4:
        raise BadPacket("rtcp_nack")
    sequences: dict[int, None] = {}  # in order, each once
    for at in range(8, len(body), 4):
        first, mask = _LOST.unpack_from(body, at)
        sequences[first] = None
        for bit in range(16):
            if mask >> bit & 1:
                sequences[(first + 1 + bit) & 0xFFFF] = None
    return Nack(_SSRC.unpack_from(body)[0], _SSRC.unpack_from(body, 4)[0], tuple(sequences))


def _parse_extended(body: bytes) -> ExtendedReport:
    """RFC 3611 section 3: "Any block types that are not recognized MUST be ignored"."""
    if len(body) < 4:
        raise BadPacket("rtcp_xr")
    reference: int | None = None
    delays: list[Delay] = []
    at = 4
    while at < len(body):
        if at + 4 > len(body):
            raise BadPacket("rtcp_xr")
        block_type, words = _XR_BLOCK.unpack_from(body, at)
        end = at + 4 + 4 * words
        if end > len(body):
            raise BadPacket("rtcp_xr")
        if block_type == XrBlock.RECEIVER_REFERENCE_TIME:
            if words != 2:
                raise BadPacket("rtcp_xr")
            reference = _REFERENCE_TIME.unpack_from(body, at)[2]
        elif block_type == XrBlock.DLRR:
            if words % 3:
                raise BadPacket("rtcp_xr")
            delays += [Delay(*_DELAY.unpack_from(body, each)) for each in range(at + 4, end, 12)]
        at = end
    return ExtendedReport(_SSRC.unpack_from(body)[0], reference, tuple(delays))


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
