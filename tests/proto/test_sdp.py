"""SDP offers: what is read in real ones, and what is refused in which words."""

from __future__ import annotations

import pytest

from tests.proto.sdp_offers import OFFERS, answer_lines, drop, edit, parse
from voicegate.proto.errors import BadOffer
from voicegate.proto.sdp import Application, AudioFormat, Codec, Direction, parse_offer_untrusted

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


def test_a_direction_at_session_level_counts_where_the_section_has_none() -> None:
    text = edit("chromium-audio", "a=sendrecv\r\n", "").replace("t=0 0", "t=0 0\r\na=recvonly")
    assert parse_offer_untrusted(text).audio.direction is Direction.RECVONLY
    assert parse_offer_untrusted(text.replace("a=recvonly\r\n", "")).audio.direction is Direction.SENDRECV


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


def test_what_goes_with_the_codec_is_answered_with_it() -> None:
    formats = "SAVPF 111 63 9 0 8 13 110 126"
    for offered, (red, noise, keys, answered) in {
        "111 63 9 0 8 13 110 126": (63, None, (110, 48_000), "63 111 110"),
        "111 13 126": (None, None, (126, 8_000), "111 126"),
        "63 0 8 13 110 126": (None, 13, (126, 8_000), "0 13 126"),
        "0 110": (None, None, None, "0"),
        "8": (None, None, None, "8"),
    }.items():
        offer = parse_offer_untrusted(OFFERS["chromium-audio"].replace(formats, f"SAVPF {offered}"))
        audio = offer.audio
        assert (audio.red_payload_type, audio.cn_payload_type, audio.telephone_event) == (red, noise, keys)
        assert f"m=audio 3478 UDP/TLS/RTP/SAVPF {answered}" in answer_lines(offer)
    for other in ("a=fmtp:63 111/0", "a=fmtp:63 0/0", "a=fmtp:62 111/111", "a=fmtp:63"):
        text = edit("chromium-audio", "a=fmtp:63 111/111", other)
        assert parse_offer_untrusted(text).audio.red_payload_type is None


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
    text = text.replace("a=extmap:3 ", "a=extmap:16 ")
    offer = parse_offer_untrusted(text)
    assert (offer.audio.audio_level_id, offer.audio.mid_id) == (None, None)
    assert offer.audio.transport_cc_id is None
    assert not any(line.startswith("a=extmap") for line in answer_lines(offer))


def test_of_two_extensions_with_one_id_the_first_counts_and_one_way_ones_do_not() -> None:
    text = edit("chromium-audio", "a=extmap:4 urn", "a=extmap:1 urn")
    assert parse_offer_untrusted(text).audio.mid_id is None
    text = edit("chromium-audio", "a=extmap:1 urn", "a=extmap:1/sendonly urn")
    assert parse_offer_untrusted(text).audio.audio_level_id is None


def test_transport_feedback_needs_both_the_numbers_and_the_message() -> None:
    feedback = "a=rtcp-fb:111 transport-cc\r\n"
    assert parse("chromium-audio").audio.transport_cc_id == 3
    for other in ("", "a=rtcp-fb:63 transport-cc\r\n", "a=rtcp-fb:111 transport-cc x\r\n"):
        assert parse_offer_untrusted(edit("chromium-audio", feedback, other)).audio.transport_cc_id is None
    text = edit("chromium-audio", feedback, "a=rtcp-fb:* transport-cc\r\n")
    assert parse_offer_untrusted(text).audio.transport_cc_id == 3
    assert parse_offer_untrusted(drop(text, "extmap")).audio.transport_cc_id is None
    assert parse("chromium-pcmu").audio.transport_cc_id is None


def test_nack_and_extended_reports_are_answered_where_offered() -> None:
    lines = answer_lines(parse("chromium-audio"))
    assert "a=rtcp-xr:rcvr-rtt=all" in lines and "a=rtcp-fb:111 nack" not in lines
    for wanted, agreed in {"111 nack": True, "* nack": True, "111 nack pli": False, "8 nack": False}.items():
        offer = parse_offer_untrusted(
            edit("chromium-audio", "a=rtcp-fb:111 ", f"a=rtcp-fb:{wanted}\r\na=rtcp-fb:111 ")
        )
        assert offer.audio.nack is agreed
        assert ("a=rtcp-fb:111 nack" in answer_lines(offer)) is agreed
    text = drop(OFFERS["chromium-audio"], "rtcp-xr")
    assert not parse_offer_untrusted(text).audio.rtcp_xr
    assert not any(line.startswith("a=rtcp-xr") for line in answer_lines(parse_offer_untrusted(text)))
    assert parse_offer_untrusted(text + "a=rtcp-xr:stat-summary rcvr-rtt=all\r\n").audio.rtcp_xr
    assert not parse_offer_untrusted(text + "a=rtcp-xr:rcvr-rtt=sender\r\n").audio.rtcp_xr
    assert not any("rtcp-fb" in line for line in answer_lines(parse("firefox-audio-data")))


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
