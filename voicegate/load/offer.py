"""The SDP of a light client: an offer as Chromium makes it, and what it needs of the answer. Pure."""

from __future__ import annotations

from dataclasses import dataclass

from voicegate.proto.address import pack_address
from voicegate.proto.errors import BadPacket

Address = tuple[str, int]

OPUS_TYPE = 111
"""Our payload type of Opus: Chromium's."""
RED_TYPE = 63
"""Of redundant audio (RFC 2198): Chromium's as well."""
MAX_TOKEN = 256
"""Characters of a ufrag or password, RFC 8839 section 5.4."""
MAX_CANDIDATES = 16
"""Relays of one answer; each is checked until one of them answers."""


@dataclass(slots=True)
class Answer:
    """What of the SDP answer a client uses."""

    ufrag: str
    password: str
    fingerprints: tuple[tuple[str, bytes], ...]
    """(hash name, digest)."""
    setup: str
    candidates: list[Address]
    """UDP, in the answer's order."""
    payload_type: int
    """The first of the audio line; 0 without one."""


def build_offer(
    *,
    session: int,
    ufrag: str,
    password: str,
    fingerprint: str,
    ssrc: int,
    setup: str = "actpass",
    candidate: Address | None = None,
    max_message_size: int | None = None,
    red: bool = False,
) -> str:
    """An offer of Opus or G.711 audio, and of data channels when `max_message_size` is given.

    `red`: redundant audio over Opus as well.
    `fingerprint` is the SHA-256 in SDP's spelling; `candidate` a UDP address that the other side may check.
    """
    transport = [
        f"a=ice-ufrag:{ufrag}",
        f"a=ice-pwd:{password}",
        "a=ice-options:trickle",
        f"a=fingerprint:sha-256 {fingerprint}",
        f"a=setup:{setup}",
    ]
    lines = [
        "v=0",
        f"o=- {session} 2 IN IP4 127.0.0.1",
        "s=-",
        "t=0 0",
        "a=group:BUNDLE 0" + (" 1" if max_message_size is not None else ""),
        "a=extmap-allow-mixed",
        "a=msid-semantic: WMS stream",
        f"m=audio 9 UDP/TLS/RTP/SAVPF {OPUS_TYPE}{f' {RED_TYPE}' if red else ''} 0 8",
        "c=IN IP4 0.0.0.0",
        "a=rtcp:9 IN IP4 0.0.0.0",
        *transport,
        "a=mid:0",
        "a=extmap:1 urn:ietf:params:rtp-hdrext:ssrc-audio-level",
        "a=extmap:4 urn:ietf:params:rtp-hdrext:sdes:mid",
        "a=sendrecv",
        "a=msid:stream track",
        "a=rtcp-mux",
        "a=rtcp-rsize",
        f"a=rtpmap:{OPUS_TYPE} opus/48000/2",
        f"a=rtcp-fb:{OPUS_TYPE} transport-cc",
        f"a=fmtp:{OPUS_TYPE} minptime=10;useinbandfec=1",
        "a=rtpmap:0 PCMU/8000",
        "a=rtpmap:8 PCMA/8000",
        f"a=ssrc:{ssrc} cname:light",
        f"a=ssrc:{ssrc} msid:stream track",
    ]
    if red:
        lines += [f"a=rtpmap:{RED_TYPE} red/48000/2", f"a=fmtp:{RED_TYPE} {OPUS_TYPE}/{OPUS_TYPE}"]
    if candidate is not None:
        host, port = candidate
        lines += [f"a=candidate:1 1 udp 2130706431 {host} {port} typ host", "a=end-of-candidates"]
    if max_message_size is not None:
        lines += [
            "m=application 9 UDP/DTLS/SCTP webrtc-datachannel",
            "c=IN IP4 0.0.0.0",
            *transport,
            "a=mid:1",
            "a=sctp-port:5000",
            f"a=max-message-size:{max_message_size}",
        ]
    return "\r\n".join(lines) + "\r\n"


def parse_answer_untrusted(text: str) -> Answer:
    """Raises BadPacket: answer_rejected (no media line is accepted), answer_malformed."""
    values: dict[str, list[str]] = {}
    media: list[str] = []
    for line in text.splitlines():
        if line.startswith("m=audio ") or (line.startswith("m=application ") and not media):
            media = line.split()
        elif line.startswith("a="):
            name, _, value = line[2:].partition(":")
            values.setdefault(name, []).append(value)
    if len(media) < 4 or media[1] == "0":
        raise BadPacket("answer_rejected")
    try:
        fingerprints = []
        for value in values["fingerprint"]:
            algorithm, digest = value.split()
            fingerprints.append((algorithm.lower(), bytes.fromhex(digest.replace(":", ""))))
        answer = Answer(
            ufrag=values["ice-ufrag"][0],
            password=values["ice-pwd"][0],
            fingerprints=tuple(fingerprints),
            setup=values["setup"][0],
            candidates=_candidates(values.get("candidate", [])),
            payload_type=int(media[3]) if media[0] == "m=audio" else 0,
        )
    except (KeyError, ValueError, IndexError):
        raise BadPacket("answer_malformed") from None
    if max(len(answer.ufrag), len(answer.password)) > MAX_TOKEN or not 0 <= answer.payload_type <= 127:
        raise BadPacket("answer_malformed")
    return answer


def _candidates(values: list[str]) -> list[Address]:
    """Those that packets can be sent to. The others are skipped: TCP, and names, which nobody resolves."""
    found = []
    for value in values:
        fields = value.split()
        if len(fields) < 6 or fields[2].lower() != "udp" or not fields[5].isdecimal():
            continue
        host, port = fields[4], int(fields[5])
        try:
            pack_address(host, port)
        except ValueError:
            continue
        found.append((host, port))
    return found[:MAX_CANDIDATES]
