"""SDP: real offers, golden answers, what is refused and in which words, and mutated offers."""

from __future__ import annotations

import asyncio
import time
from pathlib import Path

import aiortc
import pytest
from aiortc.mediastreams import AudioStreamTrack
from hypothesis import given
from hypothesis import strategies as st

from voicegate.proto import sdp_lines
from voicegate.proto.errors import BadOffer
from voicegate.proto.sdp import (
    Application,
    AudioFormat,
    Codec,
    Direction,
    Offer,
    parse_offer_untrusted,
)
from voicegate.proto.sdp_answer import AnswerParameters, build_answer

DATA = Path(__file__).parent.parent / "data"
OFFERS = {path.stem: path.read_bytes().decode() for path in sorted(DATA.glob("*.sdp"))}
ANSWERABLE = [name for name in OFFERS if name not in ("chromium-data-only", "chromium-video-only")]

PARAMETERS = AnswerParameters(
    ufrag="RsyneX9nYRgVbgDJNgLsu3g",
    password="a+password/of+24+letters",
    fingerprint="sha-256 " + ":".join(["AB"] * 32),
    candidates=("203.0.113.10:3478", "[2001:db8::10]:3479"),
    ssrc=1234567890,
    cname="voicegate",
    session_id=4611686018427387904,
    stream_id="agent",
    track_id="agent-audio",
)

OPUS_111 = AudioFormat(111, Codec.OPUS, 48_000, 2)


def test_the_offer_of_the_agents_sdk() -> None:
    offer = parse("chromium-agents-sdk")
    assert [(s.kind, s.port, s.mid) for s in offer.sections] == [("audio", 9, "0"), ("application", 9, "1")]
    assert offer.bundle == ("0", "1")
    assert offer.audio.index == 0
    assert offer.audio.format == OPUS_111
    assert offer.audio.direction is Direction.SENDRECV
    assert (offer.audio.audio_level_id, offer.audio.mid_id) == (1, 4)
    assert [number for number, _ in offer.audio.extensions] == [1, 2, 3, 4]
    assert offer.audio.rtcp_rsize
    assert offer.audio.ssrcs == (2789469658,)
    assert offer.transport.ufrag == "4nZO"
    ((name, digest),) = offer.transport.fingerprints
    assert (name, digest[:2], len(digest)) == ("sha-256", b"\x37\x1c", 32)
    assert offer.transport.dtls_active
    assert offer.application == Application(1, "1", 5000, 262_144)


def test_the_offer_of_firefox_has_its_fingerprint_at_session_level() -> None:
    offer = parse("firefox-audio-data")
    assert offer.audio.format == AudioFormat(109, Codec.OPUS, 48_000, 2)
    assert (offer.audio.audio_level_id, offer.audio.mid_id) == (1, 3)
    assert offer.transport.ufrag == "3f9a71c4"
    assert offer.transport.fingerprints[0][1][:2] == b"\x0b\x8e"


def test_the_offer_of_aiortc_has_three_fingerprints() -> None:
    offer = parse("aiortc-audio")
    assert [(name, len(digest)) for name, digest in offer.transport.fingerprints] == [
        ("sha-256", 32),
        ("sha-384", 48),
        ("sha-512", 64),
    ]
    assert not offer.audio.rtcp_rsize


@pytest.mark.parametrize(
    ("name", "direction", "answered", "msid"),
    [
        ("chromium-audio", Direction.SENDRECV, "a=sendrecv", True),
        ("chromium-sendonly", Direction.SENDONLY, "a=recvonly", False),
        ("chromium-recvonly", Direction.RECVONLY, "a=sendonly", True),
    ],
)
def test_directions_are_mirrored(name: str, direction: Direction, answered: str, msid: bool) -> None:
    offer = parse(name)
    assert offer.audio.direction is direction
    lines = answer_lines(offer)
    assert answered in lines
    assert ("a=msid:agent agent-audio" in lines) is msid


def test_inactive_is_answered_inactive() -> None:
    offer = parse_offer_untrusted(edit("chromium-audio", "a=sendrecv", "a=inactive"))
    assert "a=inactive" in answer_lines(offer)


def test_a_direction_at_session_level_counts_where_the_section_has_none() -> None:
    text = edit("chromium-audio", "a=sendrecv\r\n", "").replace("t=0 0", "t=0 0\r\na=recvonly")
    assert parse_offer_untrusted(text).audio.direction is Direction.RECVONLY
    assert parse_offer_untrusted(text.replace("a=recvonly\r\n", "")).audio.direction is Direction.SENDRECV


def test_golden_answer() -> None:
    """Every line, for the offer of the agents SDK."""
    assert build_answer(parse("chromium-agents-sdk"), PARAMETERS) == "\r\n".join(
        [
            "v=0",
            "o=- 4611686018427387904 1 IN IP4 0.0.0.0",
            "s=-",
            "t=0 0",
            "a=ice-lite",
            "a=ice-options:ice2",
            "a=group:BUNDLE 0",
            "m=audio 3478 UDP/TLS/RTP/SAVPF 111",
            "c=IN IP4 203.0.113.10",
            "a=mid:0",
            "a=ice-ufrag:RsyneX9nYRgVbgDJNgLsu3g",
            "a=ice-pwd:a+password/of+24+letters",
            "a=setup:active",
            f"a=fingerprint:{PARAMETERS.fingerprint}",
            "a=candidate:1 1 udp 2130706431 203.0.113.10 3478 typ host",
            "a=candidate:2 1 udp 2130706175 2001:db8::10 3479 typ host",
            "a=end-of-candidates",
            "a=sendrecv",
            "a=rtcp-mux",
            "a=rtcp-rsize",
            "a=rtpmap:111 opus/48000/2",
            "a=fmtp:111 minptime=10;useinbandfec=1",
            "a=extmap:1 urn:ietf:params:rtp-hdrext:ssrc-audio-level",
            "a=extmap:4 urn:ietf:params:rtp-hdrext:sdes:mid",
            "a=msid:agent agent-audio",
            "a=ssrc:1234567890 cname:voicegate",
            "m=application 0 UDP/DTLS/SCTP webrtc-datachannel",
            "c=IN IP4 0.0.0.0",
            "a=mid:1",
            "a=ice-ufrag:RsyneX9nYRgVbgDJNgLsu3g",
            "a=ice-pwd:a+password/of+24+letters",
            "a=setup:active",
            "a=inactive",
            "",
        ]
    )


def test_an_ipv6_address_may_be_the_first() -> None:
    parameters = AnswerParameters(**(as_dict(PARAMETERS) | {"candidates": ("[::1]:3478",)}))
    lines = build_answer(parse("chromium-audio"), parameters).split("\r\n")
    assert "c=IN IP6 ::1" in lines
    assert "a=candidate:1 1 udp 2130706431 ::1 3478 typ host" in lines


def test_the_password_does_not_show_in_a_log() -> None:
    assert PARAMETERS.password not in repr(PARAMETERS)


@pytest.mark.parametrize("name", ANSWERABLE)
def test_every_answer_matches_its_offer(name: str) -> None:
    """RFC 3264 section 6: the same m= lines in the same order; one accepted, the others with port 0."""
    offer = parse(name)
    lines = answer_lines(offer)
    media = [line.split(" ") for line in lines if line.startswith("m=")]
    assert [(words[0][2:], words[2]) for words in media] == [(s.kind, s.protocol) for s in offer.sections]
    assert [words[1] for words in media] == [
        "3478" if index == offer.audio.index else "0" for index in range(len(media))
    ]
    assert f"a=group:BUNDLE {offer.audio.mid}" in lines
    assert lines.count("a=rtcp-mux") == sum("RTP" in s.protocol for s in offer.sections)
    assert not any(line.startswith("a=msid:-") for line in lines)
    assert sum(line.startswith("a=candidate:") for line in lines) == 2


def test_of_two_audio_sections_the_first_usable_one_is_answered() -> None:
    assert parse("chromium-two-audio").audio.index == 0
    first_unusable = edit("chromium-two-audio", "opus/48000/2", "opus/16000", 1).replace(
        "m=audio 9 UDP/TLS/RTP/SAVPF 111 63 9 0 8 13 110 126", "m=audio 9 UDP/TLS/RTP/SAVPF 111", 1
    )
    offer = parse_offer_untrusted(first_unusable)
    assert (offer.audio.index, offer.audio.mid, offer.audio.format) == (1, "1", OPUS_111)
    assert "a=group:BUNDLE 1" in answer_lines(offer)
    disabled = edit("chromium-two-audio", "m=audio 9 ", "m=audio 0 ", 1)
    assert parse_offer_untrusted(disabled).audio.index == 1


def test_a_bundle_only_section_takes_its_transport_from_the_head_of_the_group() -> None:
    """RFC 9143 section 7.1.3."""
    text = edit("chromium-two-audio", "m=audio 9 ", "m=audio 0 ", 1)  # not wanted, but it heads the group
    head, separator, tail = text.rpartition("m=audio 9")
    for name in ("ice-ufrag", "ice-pwd", "fingerprint", "setup"):
        tail = drop(tail, name)
    text = head + "m=audio 0" + tail + "a=bundle-only\r\n"
    assert separator
    offer = parse_offer_untrusted(text)
    assert offer.audio.index == 1
    assert offer.transport.ufrag == "HSnJ"
    assert offer.transport.dtls_active


def test_without_a_bundle_group_the_answer_has_none() -> None:
    offer = parse_offer_untrusted(edit("chromium-audio", "a=group:BUNDLE 0\r\n", ""))
    assert offer.bundle == ()
    assert not any("BUNDLE" in line for line in answer_lines(offer))


def test_without_a_mid_there_is_no_bundle() -> None:
    offer = parse_offer_untrusted(edit("chromium-audio", "a=mid:0\r\n", ""))
    assert offer.bundle == ()
    assert not any(line.startswith("a=mid") for line in answer_lines(offer))


@pytest.mark.parametrize(
    ("setup", "active", "answered"),
    [
        ("a=setup:actpass\r\n", True, "a=setup:active"),
        ("a=setup:passive\r\n", True, "a=setup:active"),
        ("a=setup:active\r\n", False, "a=setup:passive"),
        ("", False, "a=setup:passive"),
    ],
)
def test_we_are_the_dtls_client_unless_the_offer_insists(setup: str, active: bool, answered: str) -> None:
    offer = parse_offer_untrusted(OFFERS["chromium-audio"].replace("a=setup:actpass\r\n", setup))
    assert offer.transport.dtls_active is active
    assert answered in answer_lines(offer)


def test_codecs_are_taken_best_first_whatever_the_order_offered() -> None:
    formats = "m=audio 9 UDP/TLS/RTP/SAVPF 111 63 9 0 8 13 110 126"
    for offered, expected in {
        "8 0 111": OPUS_111,
        "8 0": AudioFormat(0, Codec.PCMU, 8_000, 1),
        "8 9": AudioFormat(8, Codec.PCMA, 8_000, 1),
        "111 111 0": OPUS_111,
    }.items():
        offer = parse_offer_untrusted(
            edit("chromium-audio", formats, f"m=audio 9 UDP/TLS/RTP/SAVPF {offered}")
        )
        assert offer.audio.format == expected
        assert f"m=audio 3478 UDP/TLS/RTP/SAVPF {expected.payload_type}" in answer_lines(offer)


def test_pcmu_needs_no_rtpmap_but_a_rtpmap_can_take_its_number_away() -> None:
    text = edit("chromium-pcmu", "a=rtpmap:0 PCMU/8000\r\n", "")
    assert parse_offer_untrusted(text).audio.format.codec is Codec.PCMU
    assert "a=rtpmap:0 PCMU/8000" in answer_lines(parse_offer_untrusted(text))
    with pytest.raises(BadOffer) as caught:
        parse_offer_untrusted(
            edit("chromium-pcmu", "a=rtpmap:0 PCMU/8000", "a=rtpmap:0 telephone-event/8000")
        )
    assert caught.value.code == "no_usable_codec"


def test_encoding_names_are_case_insensitive() -> None:
    offer = parse_offer_untrusted(edit("chromium-audio", "opus/48000/2", "OPUS/48000/2"))
    assert offer.audio.format == OPUS_111


def test_payload_types_that_look_like_rtcp_are_not_taken() -> None:
    """RFC 5761 section 4."""
    text = OFFERS["chromium-audio"].replace("SAVPF 111", "SAVPF 72").replace("a=rtpmap:111", "a=rtpmap:72")
    assert parse_offer_untrusted(text).audio.format.codec is Codec.PCMU


def test_extension_ids_outside_of_the_one_byte_form_are_not_answered() -> None:
    text = edit("chromium-audio", "a=extmap:1 urn", "a=extmap:15 urn").replace("a=extmap:4 ", "a=extmap:0 ")
    offer = parse_offer_untrusted(text)
    assert (offer.audio.audio_level_id, offer.audio.mid_id) == (None, None)
    assert not any(line.startswith("a=extmap") for line in answer_lines(offer))


def test_of_two_extensions_with_one_id_the_first_counts_and_one_way_ones_do_not() -> None:
    text = edit("chromium-audio", "a=extmap:4 urn", "a=extmap:1 urn")
    assert parse_offer_untrusted(text).audio.mid_id is None
    text = edit("chromium-audio", "a=extmap:1 urn", "a=extmap:1/sendonly urn")
    assert parse_offer_untrusted(text).audio.audio_level_id is None


def test_weak_fingerprints_are_left_out_beside_a_strong_one() -> None:
    weak = (
        "a=fingerprint:sha-1 "
        + ":".join(["00"] * 20)
        + "\r\na=fingerprint:new-hash 00:11\r\na=fingerprint:sha-256"
    )
    offer = parse_offer_untrusted(edit("chromium-audio", "a=fingerprint:sha-256", weak))
    assert [name for name, _ in offer.transport.fingerprints] == ["sha-256"]


def test_hash_names_and_digits_are_case_insensitive() -> None:
    text = OFFERS["chromium-audio"]
    line = next(line for line in text.split("\r\n") if line.startswith("a=fingerprint"))
    changed = "a=fingerprint:" + line.removeprefix("a=fingerprint:").swapcase()
    assert parse_offer_untrusted(text.replace(line, changed)) == parse_offer_untrusted(text)


@pytest.mark.parametrize("name", ANSWERABLE)
def test_lines_may_end_with_lf_alone(name: str) -> None:
    text = OFFERS[name]
    assert parse_offer_untrusted(text.replace("\r\n", "\n")) == parse(name)
    assert parse_offer_untrusted(text.removesuffix("\r\n")) == parse(name)


REFUSED = {
    "no_audio": (lambda: OFFERS["chromium-data-only"], "no_audio", "m=audio"),
    "only_video": (lambda: OFFERS["chromium-video-only"], "no_audio", "m=audio"),
    "no_sections": (lambda: "v=0\r\no=- 1 1 IN IP4 0.0.0.0\r\ns=-\r\nt=0 0\r\n", "no_audio", "m=audio"),
    "audio_not_wanted": (lambda: edit("chromium-audio", "m=audio 9", "m=audio 0"), "no_audio", "m=audio"),
    "plain_rtp": (
        lambda: edit("chromium-audio", "UDP/TLS/RTP/SAVPF", "RTP/AVP"),
        "unsupported_transport",
        "m=audio",
    ),
    "no_codec": (
        lambda: edit("chromium-audio", "SAVPF 111 63 9 0 8 13 110 126", "SAVPF 63 9 13"),
        "no_usable_codec",
        "a=rtpmap",
    ),
    "opus_mono": (
        lambda: edit("chromium-audio", "SAVPF 111 63 9 0 8 13 110 126", "SAVPF 111").replace(
            "48000/2", "48000"
        ),
        "no_usable_codec",
        "a=rtpmap",
    ),
    "no_rtcp_mux": (lambda: drop(OFFERS["chromium-audio"], "rtcp-mux"), "no_rtcp_mux", "a=rtcp-mux"),
    "no_ufrag": (lambda: drop(OFFERS["chromium-audio"], "ice-ufrag"), "no_ice_credentials", "a=ice-ufrag"),
    "no_password": (lambda: drop(OFFERS["chromium-audio"], "ice-pwd"), "no_ice_credentials", "a=ice-pwd"),
    "no_fingerprint": (
        lambda: drop(OFFERS["chromium-audio"], "fingerprint"),
        "no_fingerprint",
        "a=fingerprint",
    ),
    "sha1_only": (
        lambda: (
            drop(OFFERS["chromium-audio"], "fingerprint") + f"a=fingerprint:sha-1 {':'.join(['0A'] * 20)}\r\n"
        ),
        "weak_fingerprint",
        "a=fingerprint",
    ),
    "holdconn": (lambda: edit("chromium-audio", "actpass", "holdconn"), "unsupported_setup", "a=setup"),
    "ice_lite": (lambda: edit("chromium-audio", "t=0 0", "t=0 0\r\na=ice-lite"), "ice_lite", "a=ice-lite"),
}


@pytest.mark.parametrize("name", REFUSED)
def test_what_an_offer_lacks_is_said(name: str) -> None:
    make, code, param = REFUSED[name]
    with pytest.raises(BadOffer) as caught:
        parse_offer_untrusted(make())
    assert (caught.value.status, caught.value.code, caught.value.param) == (422, code, param)
    assert caught.value.message.endswith(".")


MALFORMED = {
    "empty": lambda: "",
    "blank_lines": lambda: "\r\n\r\n",
    "json": lambda: '{"sdp": "v=0"}',
    "version_1": lambda: edit("chromium-audio", "v=0", "v=1"),
    "leading_space": lambda: " " + OFFERS["chromium-audio"],
    "blank_line_inside": lambda: edit("chromium-audio", "t=0 0", "t=0 0\r\n"),
    "no_equals": lambda: edit("chromium-audio", "a=sendrecv", "sendrecv"),
    "long_kind": lambda: edit("chromium-audio", "a=sendrecv", "aa=sendrecv"),
    "upper_case_kind": lambda: edit("chromium-audio", "a=sendrecv", "A=sendrecv"),
    "nul": lambda: edit("chromium-audio", "a=sendrecv", "a=send\x00recv"),
    "lone_cr": lambda: edit("chromium-audio", "a=mid:0", "a=mid:0\ra=ice-lite"),
    "no_origin": lambda: edit("chromium-data-only", "o=", "i="),
    "no_name": lambda: edit("chromium-audio", "s=-\r\n", ""),
    "no_time": lambda: edit("chromium-audio", "t=0 0\r\n", ""),
    "m_too_short": lambda: edit("chromium-audio", " UDP/TLS/RTP/SAVPF 111 63 9 0 8 13 110 126", ""),
    "m_no_formats": lambda: edit("chromium-audio", "SAVPF 111 63 9 0 8 13 110 126", "SAVPF"),
    "m_two_spaces": lambda: edit("chromium-audio", "m=audio 9", "m=audio  9"),
    "m_port": lambda: edit("chromium-audio", "m=audio 9", "m=audio 65536"),
    "m_port_negative": lambda: edit("chromium-audio", "m=audio 9", "m=audio -9"),
    "m_port_arabic_digits": lambda: edit("chromium-audio", "m=audio 9", "m=audio ٩"),
    "m_port_huge": lambda: edit("chromium-audio", "m=audio 9", "m=audio " + "9" * 5000),
    "m_kind": lambda: edit("chromium-audio", "m=audio 9", "m=au;dio 9"),
    "m_protocol": lambda: edit("chromium-audio", "UDP/TLS/RTP/SAVPF", "UDP,TLS"),
    "payload_type_128": lambda: edit("chromium-audio", "SAVPF 111", "SAVPF 128"),
    "payload_type_word": lambda: edit("chromium-audio", "SAVPF 111", "SAVPF opus"),
    "many_formats": lambda: edit("chromium-audio", "SAVPF 111", "SAVPF" + " 111" * 130),
    "mid_with_space": lambda: edit("chromium-audio", "a=mid:0", "a=mid:0 1"),
    "mid_empty": lambda: edit("chromium-audio", "a=mid:0", "a=mid:"),
    "mid_long": lambda: edit("chromium-audio", "a=mid:0", "a=mid:" + "0" * 257),
    "mid_twice": lambda: edit("chromium-two-audio", "a=mid:1", "a=mid:0"),
    "rtpmap": lambda: edit("chromium-audio", "a=rtpmap:111 opus/48000/2", "a=rtpmap:111 opus"),
    "rtpmap_clock": lambda: edit("chromium-audio", "opus/48000/2", "opus/4800000000000000/2"),
    "extmap": lambda: edit("chromium-audio", "a=extmap:1 ", "a=extmap:one "),
    "extmap_huge": lambda: edit("chromium-audio", "a=extmap:1 ", "a=extmap:999999 "),
    "two_directions": lambda: edit("chromium-audio", "a=sendrecv", "a=sendrecv\r\na=sendonly"),
    "ssrc": lambda: edit("chromium-audio", "a=ssrc:", "a=ssrc:9999999999"),
    "ufrag_short": lambda: edit("chromium-audio", "a=ice-ufrag:", "a=ice-ufrag:abc\r\na=x:"),
    "ufrag_characters": lambda: edit("chromium-audio", "a=ice-ufrag:", "a=ice-ufrag:a:b:"),
    "ufrag_long": lambda: edit("chromium-audio", "a=ice-ufrag:", "a=ice-ufrag:" + "a" * 256),
    "password_short": lambda: edit("chromium-audio", "a=ice-pwd:", "a=ice-pwd:" + "a" * 21 + "\r\na=x:"),
    "fingerprint_hex": lambda: edit("chromium-audio", "sha-256 ", "sha-256 XX:"),
    "fingerprint_long": lambda: edit("chromium-audio", "sha-256 ", "sha-256 00:"),
    "fingerprint_no_digest": lambda: edit("chromium-audio", "sha-256 ", "sha-256\r\na=x:"),
    "sctp_port": lambda: edit("chromium-agents-sdk", "a=sctp-port:5000", "a=sctp-port:65536"),
    "max_message_size": lambda: edit("chromium-agents-sdk", ":262144", ":" + "9" * 30),
}


@pytest.mark.parametrize("name", MALFORMED)
def test_what_is_not_sdp_is_a_bad_request(name: str) -> None:
    with pytest.raises(BadOffer) as caught:
        parse_offer_untrusted(MALFORMED[name]())
    assert (caught.value.status, caught.value.code) == (400, "invalid_sdp")
    assert len(caught.value.message) < 120


TOO_LARGE = {
    "text": lambda: OFFERS["chromium-audio"] + "a=x:" + "y" * sdp_lines.MAX_TEXT,
    "lines": lambda: OFFERS["chromium-audio"] + "a=x\r\n" * sdp_lines.MAX_LINES,
    "sections": lambda: OFFERS["chromium-audio"] + "m=video 0 RTP/SAVPF 0\r\n" * sdp_lines.MAX_SECTIONS,
}


@pytest.mark.parametrize("name", TOO_LARGE)
def test_limits(name: str) -> None:
    with pytest.raises(BadOffer) as caught:
        parse_offer_untrusted(TOO_LARGE[name]())
    assert (caught.value.status, caught.value.code) == (400, "sdp_too_large")


def test_what_nobody_uses_is_not_read() -> None:
    """Candidates, ptime, rtcp, rtcp-fb and fmtp can be as wrong as they like."""
    text = (
        OFFERS["chromium-audio"] + "a=candidate:\r\na=ptime:99999999999999999999\r\na=rtcp:x\r\na=fmtp:\r\n"
    )
    assert parse_offer_untrusted(text) == parse("chromium-audio")


@pytest.mark.parametrize("name", ["audio", "audio-data", "recvonly", "sendonly"])
def test_aiortc_takes_the_answer(name: str) -> None:
    """Not with a video section: aiortc looks for codecs in refused sections too."""

    async def exchange() -> tuple[str, str | None]:
        client = aiortc.RTCPeerConnection(aiortc.RTCConfiguration([]))
        try:
            if name.endswith("only"):
                client.addTransceiver("audio", direction=name)
            else:
                client.addTrack(AudioStreamTrack())
            if name == "audio-data":
                client.createDataChannel("events")
            await client.setLocalDescription(await client.createOffer())
            answer = build_answer(parse_offer_untrusted(client.localDescription.sdp), loopback)
            await client.setRemoteDescription(aiortc.RTCSessionDescription(answer, "answer"))
            return client.signalingState, client.getTransceivers()[0].currentDirection
        finally:
            await client.close()

    loopback = AnswerParameters(**(as_dict(PARAMETERS) | {"candidates": ("127.0.0.1:9", "[::1]:9")}))
    assert asyncio.run(exchange()) == ("stable", name if name.endswith("only") else "sendrecv")


@pytest.mark.parametrize("name", ANSWERABLE)
def test_an_answer_is_itself_readable(name: str) -> None:
    """Turned into an offer (ours would be refused for being lite) it has what was agreed."""
    offer = parse(name)
    turned = build_answer(offer, PARAMETERS).replace("a=ice-lite\r\n", "")
    again = parse_offer_untrusted(turned)
    assert again.audio.format == offer.audio.format
    assert again.audio.mid == offer.audio.mid
    assert again.audio.index == offer.audio.index
    assert (again.audio.audio_level_id, again.audio.mid_id) == (
        offer.audio.audio_level_id,
        offer.audio.mid_id,
    )
    assert again.transport.ufrag == PARAMETERS.ufrag
    assert again.transport.fingerprints == (("sha-256", b"\xab" * 32),)


HEAD = "v=0\r\no=- 1 1 IN IP4 0.0.0.0\r\ns=-\r\nt=0 0\r\n"
LINE = st.sampled_from(
    sorted({line for text in OFFERS.values() for line in text.split("\r\n") if len(line) < 120})
)


@given(
    st.text(max_size=300), st.sampled_from(["", "v=0\r\n", HEAD, HEAD + "m=audio 9 UDP/TLS/RTP/SAVPF 0\r\n"])
)
def test_arbitrary_text_raises_only_bad_offer(text: str, head: str) -> None:
    answer_or_refuse(head + text)


@given(st.lists(LINE, max_size=40))
def test_real_lines_in_any_order_raise_only_bad_offer(lines: list[str]) -> None:
    answer_or_refuse(HEAD + "\r\n".join(lines))


@given(
    st.sampled_from(sorted(OFFERS)),
    st.lists(
        st.tuples(st.integers(0, 6000), st.integers(0, 12), st.text(max_size=8)), min_size=1, max_size=6
    ),
)
def test_mutated_offers_raise_only_bad_offer(name: str, edits: list[tuple[int, int, str]]) -> None:
    text = OFFERS[name]
    for start, length, replacement in edits:
        start %= len(text)
        text = text[:start] + replacement + text[start + length :]
    answer_or_refuse(text)


SLOW = {
    "spaces": "a=rtpmap:1" + " " * 65_000,
    "digits": "a=ssrc:" + "9" * 65_000,
    "extmap": "a=extmap:1 " + " x" * 30_000,
    "fingerprint": "a=fingerprint:sha-256 " + "AB:" * 20_000,
    "equals": "=" * 65_000,
    "rtpmaps": "a=rtpmap:0 x/8000\r\n" * 1_900,
    "extmaps": "a=extmap:1 x\r\n" * 1_900,
    "ssrcs": "\r\n".join(f"a=ssrc:{number}" for number in range(1_900)),
}


@pytest.mark.parametrize("name", SLOW)
def test_no_offer_within_the_limits_is_slow(name: str) -> None:
    """A hundred times what an offer costs; the worst found takes 4 ms."""
    text = HEAD + "m=audio 9 UDP/TLS/RTP/SAVPF 0\r\na=rtcp-mux\r\n" + SLOW[name]
    started = time.process_time()
    answer_or_refuse(text)
    assert time.process_time() - started < 0.1


def parse(name: str) -> Offer:
    return parse_offer_untrusted(OFFERS[name])


def edit(name: str, old: str, new: str, count: int = -1) -> str:
    """An offer with a replacement that must have changed something."""
    text = OFFERS[name].replace(old, new, count)
    assert text != OFFERS[name]
    return text


def drop(text: str, attribute: str) -> str:
    """Without every line of an attribute."""
    return "".join(
        line + "\r\n"
        for line in text.splitlines()
        if not line.startswith((f"a={attribute}:", f"a={attribute}\r")) and line != f"a={attribute}"
    )


def answer_lines(offer: Offer) -> list[str]:
    return build_answer(offer, PARAMETERS).split("\r\n")


def as_dict(parameters: AnswerParameters) -> dict[str, object]:
    return {name: getattr(parameters, name) for name in AnswerParameters.__slots__}


def answer_or_refuse(text: str) -> None:
    """Whatever the text: an answer whose lines are all well-formed, or `BadOffer`."""
    try:
        offer = parse_offer_untrusted(text)
    except BadOffer as error:
        assert error.status in (400, 422)
        return
    for line in build_answer(offer, PARAMETERS).split("\r\n")[:-1]:
        assert line[1] == "=" and line.isprintable() and line.isascii(), line
