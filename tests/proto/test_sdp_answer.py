"""SDP answers: golden, mirrored, and as aiortc takes them."""

from __future__ import annotations

import asyncio
from dataclasses import replace

import aiortc
import pytest
from aiortc.mediastreams import AudioStreamTrack

from tests.proto.sdp_offers import ANSWERABLE, OFFERS, PARAMETERS, answer_lines, edit, parse
from voicegate.proto.sdp import Direction, parse_offer_untrusted
from voicegate.proto.sdp_answer import build_answer


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
            "a=group:BUNDLE 0 1",
            "m=audio 3478 UDP/TLS/RTP/SAVPF 63 111 110",
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
            "a=rtcp-xr:rcvr-rtt=all",
            "a=rtpmap:63 red/48000/2",
            "a=fmtp:63 111/111",
            "a=rtpmap:111 opus/48000/2",
            "a=fmtp:111 minptime=10;useinbandfec=1",
            "a=rtcp-fb:111 transport-cc",
            "a=rtpmap:110 telephone-event/48000",
            "a=fmtp:110 0-15",
            "a=extmap:1 urn:ietf:params:rtp-hdrext:ssrc-audio-level",
            "a=extmap:3 http://www.ietf.org/id/draft-holmer-rmcat-transport-wide-cc-extensions-01",
            "a=extmap:4 urn:ietf:params:rtp-hdrext:sdes:mid",
            "a=msid:agent agent-audio",
            "a=ssrc:1234567890 cname:voicegate",
            "m=application 3478 UDP/DTLS/SCTP webrtc-datachannel",
            "c=IN IP4 203.0.113.10",
            "a=mid:1",
            "a=ice-ufrag:RsyneX9nYRgVbgDJNgLsu3g",
            "a=ice-pwd:a+password/of+24+letters",
            "a=setup:active",
            f"a=fingerprint:{PARAMETERS.fingerprint}",
            "a=sctp-port:5000",
            "a=max-message-size:262144",
            "",
        ]
    )


def test_firefox_offers_keys_at_8_khz_beside_opus() -> None:
    lines = answer_lines(parse("firefox-audio-data"))
    assert "m=audio 3478 UDP/TLS/RTP/SAVPF 109 101" in lines
    assert "a=rtpmap:101 telephone-event/8000" in lines and "a=fmtp:101 0-15" in lines


@pytest.mark.parametrize("name", ANSWERABLE)
def test_every_answer_matches_its_offer(name: str) -> None:
    """RFC 3264 section 6: the same m= lines in the same order; audio and the channels bundled with it
    accepted, the others with port 0."""
    offer = parse(name)
    lines = answer_lines(offer)
    media = [line.split(" ") for line in lines if line.startswith("m=")]
    assert [(words[0][2:], words[2]) for words in media] == [(s.kind, s.protocol) for s in offer.sections]
    accepted = {offer.audio.index: offer.audio.mid}
    if offer.application is not None and offer.channel_accepted:
        accepted[offer.application.index] = offer.application.mid
    assert [words[1] for words in media] == [
        "3478" if index in accepted else "0" for index in range(len(media))
    ]
    assert f"a=group:BUNDLE {' '.join(str(mid) for mid in accepted.values())}" in lines
    assert lines.count("a=rtcp-mux") == sum("RTP" in s.protocol for s in offer.sections)
    assert not any(line.startswith("a=msid:-") for line in lines)
    assert sum(line.startswith("a=candidate:") for line in lines) == 2


def test_channels_on_a_transport_of_their_own_are_refused() -> None:
    offer = parse_offer_untrusted(edit("chromium-agents-sdk", "a=group:BUNDLE 0 1", "a=group:BUNDLE 0"))
    assert offer.application is not None and not offer.channel_accepted
    lines = answer_lines(offer)
    assert "m=application 0 UDP/DTLS/SCTP webrtc-datachannel" in lines and "a=group:BUNDLE 0" in lines


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


def test_without_a_bundle_group_the_answer_has_none() -> None:
    offer = parse_offer_untrusted(edit("chromium-audio", "a=group:BUNDLE 0\r\n", ""))
    assert offer.bundle == ()
    assert not any("BUNDLE" in line for line in answer_lines(offer))


def test_without_a_mid_there_is_no_bundle() -> None:
    offer = parse_offer_untrusted(edit("chromium-audio", "a=mid:0\r\n", ""))
    assert offer.bundle == ()
    assert not any(line.startswith("a=mid") for line in answer_lines(offer))


def test_an_ipv6_address_may_be_the_first() -> None:
    parameters = replace(PARAMETERS, candidates=("[::1]:3478",))
    lines = build_answer(parse("chromium-audio"), parameters).split("\r\n")
    assert "c=IN IP6 ::1" in lines
    assert "a=candidate:1 1 udp 2130706431 ::1 3478 typ host" in lines


def tcp_lines(*candidates: str) -> list[str]:
    return build_answer(parse("chromium-audio"), replace(PARAMETERS, candidates=candidates)).split("\r\n")


def test_tcp_candidates_are_passive_and_rank_below_udp() -> None:
    lines = tcp_lines("203.0.113.10:443/tcp", "203.0.113.10:3478/udp", "[2001:db8::10]:443/tcp")
    assert "m=audio 3478 UDP/TLS/RTP/SAVPF 63 111 110" in lines and "c=IN IP4 203.0.113.10" in lines
    assert [line for line in lines if line.startswith("a=candidate")] == [
        # The first priority is that of the candidate in OpenAI's own answer.
        "a=candidate:1 1 tcp 1671430143 203.0.113.10 443 typ host tcptype passive",
        "a=candidate:2 1 udp 2130706431 203.0.113.10 3478 typ host",
        "a=candidate:3 1 tcp 1671429887 2001:db8::10 443 typ host tcptype passive",
    ]


def test_no_tcp_candidate_ranks_above_one_of_udp() -> None:
    many = [f"192.0.2.1:{port}{transport}" for port in range(1, 33) for transport in ("/tcp", "")]
    ranks: dict[str, list[int]] = {"udp": [], "tcp": []}
    for line in tcp_lines(*many):
        if line.startswith("a=candidate"):
            ranks[line.split()[2]].append(int(line.split()[3]))
    assert len(set(ranks["udp"])) == len(set(ranks["tcp"])) == 32
    assert min(ranks["udp"]) > 100 << 24 > max(ranks["tcp"])


def test_without_udp_the_default_names_no_candidate() -> None:
    lines = tcp_lines("203.0.113.10:443/tcp")
    assert "m=audio 9 UDP/TLS/RTP/SAVPF 63 111 110" in lines and "c=IN IP4 0.0.0.0" in lines


@pytest.mark.parametrize(
    "bad", ["", "203.0.113.10", "203.0.113.10:x", "203.0.113.10:443/sctp", "host:1", "1.2.3.4:1\r\na=x"]
)
def test_what_is_no_public_address_gets_into_no_answer(bad: str) -> None:
    with pytest.raises(ValueError):
        tcp_lines("203.0.113.10:3478", bad)


def test_the_tcp_candidates_of_an_offer_are_stepped_over() -> None:
    """As Chromium and Firefox write them: active, with the discard port (RFC 6544 section 4.5)."""
    active = (
        "a=candidate:1 1 {} 1518280447 192.0.2.1 9 typ host tcptype active generation 0 network-cost 999\r\n"
    )
    mids = active.format("tcp") + active.format("TCP") + "a=candidate:2 1 tcp 1 x 9 typ host tcptype\r\n"
    offer = parse_offer_untrusted(OFFERS["chromium-audio"] + mids)
    assert build_answer(offer, PARAMETERS) == build_answer(parse("chromium-audio"), PARAMETERS)


def test_the_password_does_not_show_in_a_log() -> None:
    assert PARAMETERS.password not in repr(PARAMETERS)


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

    loopback = replace(PARAMETERS, candidates=("127.0.0.1:9", "127.0.0.1:9/tcp", "[::1]:9"))
    assert asyncio.run(exchange()) == ("stable", name if name.endswith("only") else "sendrecv")
