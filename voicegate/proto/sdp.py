"""An SDP offer, read once and reduced to what a call needs (RFC 8866, RFC 3264, JSEP RFC 9429).

Theory of operation. `parse_offer_untrusted` works in three passes, each of which can refuse:

1. **Grammar** (`sdp_lines`): a session block and one block per `m=` line. What is not SDP, or larger than a
   limit, is `BadOffer` with status 400.
2. **Choice.** The first audio section that can be answered is the call's; the best codec in it that we have
   is the call's codec. The answer names only that one, so a client has nothing to switch to, and what goes
   with it: RED, comfort noise, telephone events.
3. **Transport.** ICE credentials, certificate fingerprints and the DTLS role of that section, which may stand
   in the section, in the one that heads its BUNDLE group, or at session level.

What is SDP but lacks something is `BadOffer` with status 422: `param` names the line, `message` says what to
do. Attributes that no part of voicegate uses (candidates among them: ICE-lite learns addresses from checks)
are not interpreted at all, so nothing wrong in them can hurt. Messages never repeat the client's text.
"""

from __future__ import annotations

import re
from dataclasses import dataclass
from enum import Enum
from typing import NamedTuple

from voicegate.proto.errors import BadOffer
from voicegate.proto.sdp_lines import TOKEN, Block, malformed, number, split_untrusted, unanswerable
from voicegate.proto.sdp_transport import Transport, read_transport

MAX_FORMATS = 128
"""Formats of an `m=` line: there are 128 RTP payload types."""
MAX_SSRCS = 8
"""SSRCs of the audio section that are noted; a microphone has one, with retransmission or FEC two or
three."""

AUDIO_LEVEL_URI = "urn:ietf:params:rtp-hdrext:ssrc-audio-level"  # RFC 6464
TRANSPORT_CC_URI = "http://www.ietf.org/id/draft-holmer-rmcat-transport-wide-cc-extensions-01"
MID_URI = "urn:ietf:params:rtp-hdrext:sdes:mid"  # RFC 9143 section 15


class Codec(Enum):
    """The codecs we have, best first; the value is the encoding name of `a=rtpmap`."""

    OPUS = "opus"
    PCMU = "PCMU"
    PCMA = "PCMA"


class Direction(Enum):
    """Who sends, as the offerer says it (RFC 8866 section 6.7)."""

    SENDRECV = "sendrecv"
    SENDONLY = "sendonly"
    RECVONLY = "recvonly"
    INACTIVE = "inactive"


@dataclass(frozen=True, slots=True)
class Section:
    """An `m=` line as offered, enough to refuse it: the answer has one for each, in order (RFC 3264 section
    6)."""

    kind: str
    port: int
    protocol: str
    formats: tuple[str, ...]
    mid: str | None


@dataclass(frozen=True, slots=True)
class AudioFormat:
    """The codec of the call."""

    payload_type: int
    codec: Codec
    clock_rate: int
    """Hz of the RTP timestamp."""
    channels: int


class TelephoneEventFormat(NamedTuple):
    """How telephone events come."""

    payload_type: int
    clock_rate: int
    """Hz of their durations."""


@dataclass(frozen=True, slots=True)
class Audio:
    """The audio section that is answered."""

    index: int
    """Which of `Offer.sections`."""
    mid: str | None
    format: AudioFormat
    red_payload_type: int | None
    """RED over that format (RFC 2198), which goes first where it was offered."""
    cn_payload_type: int | None
    """Comfort noise (RFC 3389)."""
    telephone_event: TelephoneEventFormat | None
    """Keys of the client's keypad (RFC 4733)."""
    direction: Direction
    """The client's: RECVONLY means that it sends nothing."""
    extensions: tuple[tuple[int, str], ...]
    """RTP header extensions offered both ways, as (id, URI), also those that are not answered."""
    audio_level_id: int | None
    mid_id: int | None
    transport_cc_id: int | None
    """Extension ids, 1 to 14, that the answer accepts; None: not in use. Transport-wide numbers are in use
    only together with the feedback that reads them."""
    nack: bool
    """The client sends lost packets again, and asks for ours (RFC 4585 section 6.2.1)."""
    rtcp_rsize: bool
    """Reduced-size RTCP is offered (RFC 5506)."""
    rtcp_xr: bool
    """A receiver that does not send may measure the round trip (RFC 3611 section 5.1, rcvr-rtt=all)."""
    ssrcs: tuple[int, ...]
    """The client's, where it names them; it may send from others."""


@dataclass(frozen=True, slots=True)
class Application:
    """The data-channel section (RFC 8841)."""

    index: int
    mid: str | None
    sctp_port: int
    max_message_size: int
    """Bytes the client takes in one message; 0: any (RFC 8841 section 6.1)."""


@dataclass(frozen=True, slots=True)
class Offer:
    sections: tuple[Section, ...]
    bundle: tuple[str, ...]
    """The mids of the BUNDLE group that the audio section is in; empty: in none."""
    audio: Audio
    transport: Transport
    application: Application | None

    @property
    def channel_accepted(self) -> bool:
        """Data channels are offered on the transport of the audio, the only one there is."""
        return self.application is not None and self.application.mid in self.bundle


def parse_offer_untrusted(text: str) -> Offer:
    """Read an offer. Raises `BadOffer` only."""
    session, blocks = split_untrusted(text)
    sections = tuple(_section(block) for block in blocks)
    mids = [section.mid for section in sections if section.mid is not None]
    if len(set(mids)) != len(mids):
        raise malformed("Two sections have the same a=mid.", "a=mid")
    if "ice-lite" in session.attributes:
        raise unanswerable(
            "ice_lite", "The offer says a=ice-lite and so does voicegate; offer full ICE.", "a=ice-lite"
        )
    audio = _choose_audio(session, blocks, sections)
    bundle = _bundle_of(session, audio.mid)
    holders = [blocks[audio.index]]
    if bundle:
        # RFC 9143 section 7.1.3: a bundle-only section leaves the transport to the section that heads the
        # group.
        holders += [blocks[i] for i, section in enumerate(sections) if section.mid == bundle[0]]
    return Offer(sections, bundle, audio, read_transport([*holders, session]), _application(blocks, sections))


# ---- Sections

_PROTOCOL = re.compile(r"[!#$%&'*+\-.0-9A-Z^_`a-z{|}~/]{1,64}")


def _section(block: Block) -> Section:
    """`m=<media> <port>[/<n>] <proto> <fmt> ...` (RFC 8866 section 5.14)."""
    words = block.media.split(" ")
    if len(words) < 4 or len(words) > 3 + MAX_FORMATS:
        raise malformed("An m= line has too few or too many words.", "m=")
    kind, port, protocol, *formats = words
    if not all(TOKEN.fullmatch(word) for word in (kind, *formats)) or not _PROTOCOL.fullmatch(protocol):
        raise malformed("An m= line has a word that is not allowed there.", "m=")
    mid = block.first("mid")
    if mid is not None and not TOKEN.fullmatch(mid):
        raise malformed("An a=mid is not a token.", "a=mid")
    return Section(kind, number(port.partition("/")[0], 65_535, "m="), protocol, tuple(formats), mid)


def _bundle_of(session: Block, mid: str | None) -> tuple[str, ...]:
    for group in session.all("group"):
        semantics, *mids = group.split(" ")
        if semantics == "BUNDLE" and mid in mids:
            return tuple(mids)
    return ()


# ---- Choice

_SECURE_PROTOCOLS = frozenset(
    # RFC 9429 section 5.1.2: all of these MUST be accepted and mean DTLS-SRTP when a fingerprint is there.
    (
        "UDP/TLS/RTP/SAVPF",
        "UDP/TLS/RTP/SAVP",
        "TCP/DTLS/RTP/SAVPF",
        "TCP/DTLS/RTP/SAVP",
        "RTP/SAVPF",
        "RTP/SAVP",
    )
)
_RTPMAP = re.compile(r"([0-9]{1,3}) +([^/ ]{1,64})/([0-9]{1,6})(?:/([0-9]{1,2}))?(?: .*)?")
_EXTMAP = re.compile(r"([0-9]{1,5})(?:/(sendrecv|sendonly|recvonly|inactive))? +([^ ]{1,256})(?: .*)?")
_SHAPES = {
    # RFC 7587 section 7: always 48000 and 2. RFC 3551 section 4.5.14.
    ("opus", 48_000, 2): Codec.OPUS,
    ("pcmu", 8_000, 1): Codec.PCMU,
    ("pcma", 8_000, 1): Codec.PCMA,
}
# RFC 3551 section 6: no rtpmap needed
_STATIC = {0: ("pcmu", 8_000, 1), 8: ("pcma", 8_000, 1), 13: ("cn", 8_000, 1)}
_MUX_CONFLICT = range(64, 96)  # RFC 5761 section 4: these payload types look like RTCP
_LAST_ONE_BYTE_ID = 14  # RFC 8285 section 4.2


def _choose_audio(session: Block, blocks: list[Block], sections: tuple[Section, ...]) -> Audio:
    """The first audio section that can be answered; when there is none, why not the first one."""
    refusal: BadOffer | None = None
    for index, section in enumerate(sections):
        if section.kind != "audio" or (section.port == 0 and "bundle-only" not in blocks[index].attributes):
            continue  # RFC 3264 section 5.1: port 0 is a section that is not wanted
        try:
            return _audio(index, section, blocks[index], session)
        except BadOffer as error:
            if error.status != 422:
                raise
            refusal = refusal or error
    raise refusal or unanswerable(
        "no_audio",
        "The offer has no m=audio section; add a microphone track or an audio transceiver.",
        "m=audio",
    )


def _audio(index: int, section: Section, block: Block, session: Block) -> Audio:
    if section.protocol not in _SECURE_PROTOCOLS:
        raise unanswerable(
            "unsupported_transport",
            "The audio section must be DTLS-SRTP: offer UDP/TLS/RTP/SAVPF.",
            "m=audio",
        )
    if "rtcp-mux" not in block.attributes:
        raise unanswerable(
            "no_rtcp_mux",
            "The audio section lacks a=rtcp-mux; RTP and RTCP have to share a port.",
            "a=rtcp-mux",
        )
    extensions = _extensions(block, session)
    named = _named_formats(section, block)
    format = _best_format(named)
    feedback = _rtcp_feedback(block, format.payload_type)
    return Audio(
        index=index,
        mid=section.mid,
        format=format,
        red_payload_type=_redundancy(named, block, format),
        cn_payload_type=_comfort_noise(named, format),
        telephone_event=_telephone_event(named, format),
        direction=_direction(block) or _direction(session) or Direction.SENDRECV,
        extensions=extensions,
        audio_level_id=_extension_id(extensions, AUDIO_LEVEL_URI),
        mid_id=_extension_id(extensions, MID_URI),
        transport_cc_id=_extension_id(extensions, TRANSPORT_CC_URI) if "transport-cc" in feedback else None,
        nack="nack" in feedback,
        rtcp_rsize="rtcp-rsize" in block.attributes,
        rtcp_xr="rcvr-rtt=all" in (block.first("rtcp-xr") or session.first("rtcp-xr") or "").split(" "),
        ssrcs=_ssrcs(block),
    )


def _named_formats(section: Section, block: Block) -> dict[int, tuple[str, int, int]]:
    """Name in lower case, clock rate and channels of each usable payload type, in the order offered."""
    named = dict(_STATIC)
    for value in block.all("rtpmap"):
        match = _RTPMAP.fullmatch(value)
        if match is None:
            raise malformed("An a=rtpmap is not <payload type> <name>/<clock>[/<channels>].", "a=rtpmap")
        named[int(match[1])] = (match[2].lower(), int(match[3]), int(match[4] or 1))
    offered = {number(text, 127, "m=audio"): None for text in section.formats}  # each once
    return {each: named[each] for each in offered if each in named and each not in _MUX_CONFLICT}


def _best_format(named: dict[int, tuple[str, int, int]]) -> AudioFormat:
    found: dict[Codec, AudioFormat] = {}
    for payload_type, shape in named.items():
        codec = _SHAPES.get(shape)
        if codec is not None:
            found.setdefault(codec, AudioFormat(payload_type, codec, *shape[1:]))
    for codec in Codec:
        if codec in found:
            return found[codec]
    raise unanswerable(
        "no_usable_codec", "The audio section offers none of opus/48000/2, PCMU/8000, PCMA/8000.", "a=rtpmap"
    )


def _redundancy(named: dict[int, tuple[str, int, int]], block: Block, format: AudioFormat) -> int | None:
    """RED that carries nothing but the call's Opus, `a=fmtp:63 111/111` (RFC 2198 section 5)."""
    if format.codec is not Codec.OPUS:
        return None
    for payload_type, shape in named.items():
        if shape == ("red", format.clock_rate, format.channels):
            for value in block.all("fmtp"):
                which, _, primary = value.partition(" ")
                if which == str(payload_type) and set(primary.split("/")) == {str(format.payload_type)}:
                    return payload_type
    return None


def _comfort_noise(named: dict[int, tuple[str, int, int]], format: AudioFormat) -> int | None:
    """RFC 3389, for the codecs that have no discontinuous transmission of their own."""
    if format.codec is Codec.OPUS:
        return None
    return next((each for each, shape in named.items() if shape == ("cn", format.clock_rate, 1)), None)


def _telephone_event(
    named: dict[int, tuple[str, int, int]], format: AudioFormat
) -> TelephoneEventFormat | None:
    """At the codec's clock rate, which is the clock of their timestamps (RFC 4733 section 2.2.1).

    Firefox offers them at 8000 Hz only, beside Opus, so that is taken where there is nothing better.
    """
    for clock_rate in (format.clock_rate, 8_000):
        for payload_type, shape in named.items():
            if shape == ("telephone-event", clock_rate, 1):
                return TelephoneEventFormat(payload_type, clock_rate)
    return None


def _extensions(block: Block, session: Block) -> tuple[tuple[int, str], ...]:
    """`a=extmap:<id>[/<direction>] <URI> ...` (RFC 8285 section 8); of two with one id the first counts."""
    found: dict[int, str] = {}
    for value in (block.all("extmap") or session.all("extmap"))[:256]:  # ids have one byte
        match = _EXTMAP.fullmatch(value)
        if match is None:
            raise malformed("An a=extmap is not <id> <URI>.", "a=extmap")
        if match[2] in (None, "sendrecv"):  # one-way extensions are not worth a rule of their own
            found.setdefault(int(match[1]), match[3])
    return tuple(found.items())


def _extension_id(extensions: tuple[tuple[int, str], ...], uri: str) -> int | None:
    # Only ids of the one-byte form: the answer does not take up extmap-allow-mixed.
    return next((i for i, offered in extensions if offered == uri and 1 <= i <= _LAST_ONE_BYTE_ID), None)


def _rtcp_feedback(block: Block, payload_type: int) -> frozenset[str]:
    """What is offered for this format or for all (RFC 4585 section 4.2), with its parameters in one text."""
    return frozenset(
        wanted
        for value in block.all("rtcp-fb")
        for which, _, wanted in [value.partition(" ")]
        if which in ("*", str(payload_type))
    )


def _direction(block: Block) -> Direction | None:
    found = [direction for direction in Direction if direction.value in block.attributes]
    if len(found) > 1:
        raise malformed("A section has more than one direction.", f"a={found[1].value}")
    return found[0] if found else None


def _ssrcs(block: Block) -> tuple[int, ...]:
    found: dict[int, None] = {}
    for value in block.all("ssrc"):
        found[number(value.partition(" ")[0], 0xFFFF_FFFF, "a=ssrc")] = None
    return tuple(found)[:MAX_SSRCS]


# ---- Data channels


def _application(blocks: list[Block], sections: tuple[Section, ...]) -> Application | None:
    for index, section in enumerate(sections):
        if section.kind != "application" or "webrtc-datachannel" not in section.formats:
            continue
        block = blocks[index]
        port = number(block.first("sctp-port") or "5000", 65_535, "a=sctp-port")  # RFC 8841 section 5.2
        size = number(block.first("max-message-size") or "65536", 2**64 - 1, "a=max-message-size")
        return Application(index, section.mid, port, size)
    return None
