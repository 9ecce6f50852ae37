"""The SDP answer to an `Offer` (RFC 3264 section 6, JSEP RFC 9429 section 5.3).

One rule for sections: the audio section the offer was reduced to is accepted, and the data channels that are
bundled with it; every other one is refused with port 0 and stays out of BUNDLE. Candidates stand as
configured; nothing is gathered and nothing trickles.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field

from voicegate.proto.address import split_public
from voicegate.proto.sctp.reassembly import MAX_MESSAGE
from voicegate.proto.sdp import (
    AUDIO_LEVEL_URI,
    MID_URI,
    TRANSPORT_CC_URI,
    Audio,
    Codec,
    Direction,
    Offer,
    Section,
)

_MIRRORED = {
    Direction.SENDRECV: Direction.SENDRECV,
    Direction.SENDONLY: Direction.RECVONLY,
    Direction.RECVONLY: Direction.SENDONLY,
    Direction.INACTIVE: Direction.INACTIVE,
}
_OPUS_PARAMETERS = "minptime=10;useinbandfec=1"
"""What we take (RFC 7587 section 6.1): frames down to 10 ms, and in-band FEC, which conceals the packet
before."""
_KEYPAD = "0-15"
"""The events we take, whatever the client takes (RFC 4733 section 2.5.2.1): the keys, and no flash."""
_HOST_PREFERENCE = 126  # RFC 8445 section 5.1.2.2
_TCP_HOST_PREFERENCE = 99
"""One below what RFC 8445 recommends for a server-reflexive candidate: no TCP pair ranks above one of UDP."""
_PASSIVE = 4 << 13
"""The direction's share of a TCP host candidate's local preference (RFC 6544 section 4.2)."""
_MAX_OTHER_PREFERENCE = 8191
_COMPONENT = 1


@dataclass(frozen=True, slots=True)
class AnswerParameters:
    """What an answer needs beyond the offer. Text goes into lines as it is: it is ours, never a client's."""

    ufrag: str
    password: str = field(repr=False)
    fingerprint: str
    """As in the line: `sha-256 AA:BB:...`."""
    candidates: tuple[str, ...]
    """`host:port` or `[host]:port`, behind it `/tcp` for ICE-TCP, at least one, best first. The first of UDP
    is also the default of `m=` and `c=`."""
    ssrc: int
    cname: str
    session_id: int
    """Of the `o=` line, below 2^63."""
    stream_id: str
    """Of `a=msid`. Never `-`: a client would get a track without a stream, and play nothing."""
    track_id: str


def build_answer(offer: Offer, parameters: AnswerParameters) -> str:
    """The answer, lines ended by CRLF. ValueError when a candidate is not a public address."""
    assert parameters.candidates, "an answer without a candidate can be reached by nobody"
    assert parameters.stream_id not in ("", "-"), "a stream id is what gives the client something to play"
    lines = [
        "v=0",
        f"o=- {parameters.session_id} 1 IN IP4 0.0.0.0",
        "s=-",
        "t=0 0",
        "a=ice-lite",
        "a=ice-options:ice2",  # RFC 8445 section 10
    ]
    if offer.bundle:
        mids = [offer.audio.mid]
        if offer.application is not None and offer.channel_accepted:
            mids.append(offer.application.mid)
        lines.append(f"a=group:BUNDLE {' '.join(mid for mid in mids if mid is not None)}")
    for index, section in enumerate(offer.sections):
        if index == offer.audio.index:
            lines += _accepted_audio(offer, section, parameters)
        elif offer.application is not None and index == offer.application.index and offer.channel_accepted:
            lines += _accepted_channel(offer, section, parameters)
        else:
            lines += _refused(offer, section, parameters)
    return "\r\n".join(lines) + "\r\n"


def _accepted_audio(offer: Offer, section: Section, parameters: AnswerParameters) -> list[str]:
    audio = offer.audio
    direction = _MIRRORED[audio.direction]
    port, connection = _default(parameters.candidates)
    lines = [
        f"m=audio {port} {section.protocol} {' '.join(map(str, _payload_types(audio)))}",
        connection,
        *_transport(offer, section, parameters),
        f"a=fingerprint:{parameters.fingerprint}",
        *_candidates(parameters.candidates),
        "a=end-of-candidates",
        f"a={direction.value}",
        "a=rtcp-mux",
    ]
    if audio.rtcp_rsize:
        lines.append("a=rtcp-rsize")
    if audio.rtcp_xr:
        lines.append("a=rtcp-xr:rcvr-rtt=all")
    lines += _format(audio)
    lines += [
        f"a=extmap:{number} {uri}"
        for number, uri in (
            (audio.audio_level_id, AUDIO_LEVEL_URI),
            (audio.transport_cc_id, TRANSPORT_CC_URI),
            (audio.mid_id, MID_URI),
        )
        if number is not None
    ]
    if direction in (Direction.SENDRECV, Direction.SENDONLY):
        lines.append(f"a=msid:{parameters.stream_id} {parameters.track_id}")
        lines.append(f"a=ssrc:{parameters.ssrc} cname:{parameters.cname}")
    return lines


def _accepted_channel(offer: Offer, section: Section, parameters: AnswerParameters) -> list[str]:
    port, connection = _default(parameters.candidates)
    return [
        f"m=application {port} {section.protocol} {' '.join(section.formats)}",
        connection,
        *_transport(offer, section, parameters),
        f"a=fingerprint:{parameters.fingerprint}",
        "a=sctp-port:5000",
        f"a=max-message-size:{MAX_MESSAGE}",
    ]


def _refused(offer: Offer, section: Section, parameters: AnswerParameters) -> list[str]:
    # A section of port 0 needs no more than its m= line; aiortc insists on the rest, and all others ignore
    # it.
    return [
        f"m={section.kind} 0 {section.protocol} {' '.join(section.formats)}",
        "c=IN IP4 0.0.0.0",
        *_transport(offer, section, parameters),
        "a=inactive",
        *(["a=rtcp-mux"] if "RTP" in section.protocol else []),
    ]


def _transport(offer: Offer, section: Section, parameters: AnswerParameters) -> list[str]:
    return [
        *([f"a=mid:{section.mid}"] if section.mid is not None else []),
        f"a=ice-ufrag:{parameters.ufrag}",
        f"a=ice-pwd:{parameters.password}",
        f"a=setup:{'active' if offer.transport.dtls_active else 'passive'}",
    ]


def _default(candidates: Sequence[str]) -> tuple[int, str]:
    """The port of `m=` and the `c=` line: the first candidate of UDP, as RFC 6544 section 4.3 recommends for
    media in real time. Without one what stands for no candidate (RFC 9429 section 5.2.1): the `m=` line has
    the offer's protocol, and a default of TCP would contradict it."""
    for host, port, tcp in map(split_public, candidates):
        if not tcp:
            return port, f"c=IN {'IP6' if ':' in host else 'IP4'} {host}"
    return 9, "c=IN IP4 0.0.0.0"


def _candidates(addresses: Sequence[str]) -> list[str]:
    """`a=candidate` (RFC 8839 section 5.1, RFC 6544 section 4.5), in the order given. Priorities by RFC 8445
    section 5.1.2.1, for TCP by RFC 6544 section 4.2."""
    lines: list[str] = []
    ranks = {"udp": 0, "tcp": 0}
    for address in addresses:
        host, port, tcp = split_public(address)
        if tcp:
            transport, kind = "tcp", "host tcptype passive"
            preferences = _TCP_HOST_PREFERENCE << 24 | (_PASSIVE + _MAX_OTHER_PREFERENCE - ranks["tcp"]) << 8
        else:
            transport, kind = "udp", "host"
            preferences = _HOST_PREFERENCE << 24 | 65_535 - ranks["udp"] << 8
        ranks[transport] += 1
        foundation, priority = len(lines) + 1, preferences | 256 - _COMPONENT
        lines.append(f"a=candidate:{foundation} {_COMPONENT} {transport} {priority} {host} {port} typ {kind}")
    return lines


def _payload_types(audio: Audio) -> list[int]:
    """RED before what it carries: a client sends the first (RFC 3264 section 6.1)."""
    accepted = [audio.red_payload_type, audio.format.payload_type, audio.cn_payload_type]
    if audio.telephone_event is not None:
        accepted.append(audio.telephone_event.payload_type)
    return [each for each in accepted if each is not None]


def _format(audio: Audio) -> list[str]:
    chosen = audio.format
    lines = []
    channels = f"/{chosen.channels}" if chosen.channels != 1 else ""
    if audio.red_payload_type is not None:
        lines.append(f"a=rtpmap:{audio.red_payload_type} red/{chosen.clock_rate}{channels}")
        lines.append(f"a=fmtp:{audio.red_payload_type} {chosen.payload_type}/{chosen.payload_type}")
    lines.append(f"a=rtpmap:{chosen.payload_type} {chosen.codec.value}/{chosen.clock_rate}{channels}")
    if chosen.codec is Codec.OPUS:
        lines.append(f"a=fmtp:{chosen.payload_type} {_OPUS_PARAMETERS}")
    if audio.transport_cc_id is not None:
        lines.append(f"a=rtcp-fb:{chosen.payload_type} transport-cc")
    if audio.nack:
        lines.append(f"a=rtcp-fb:{chosen.payload_type} nack")
    if audio.cn_payload_type is not None:
        lines.append(f"a=rtpmap:{audio.cn_payload_type} CN/{chosen.clock_rate}")
    if audio.telephone_event is not None:
        payload_type, clock_rate = audio.telephone_event
        lines.append(f"a=rtpmap:{payload_type} telephone-event/{clock_rate}")
        lines.append(f"a=fmtp:{payload_type} {_KEYPAD}")
    return lines
