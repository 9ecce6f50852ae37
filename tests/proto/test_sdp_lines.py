"""SDP's lines: what is no SDP, what is too large, and text made to be slow."""

from __future__ import annotations

import time

import pytest
from hypothesis import given
from hypothesis import strategies as st

from tests.proto.sdp_offers import ANSWERABLE, HEAD, OFFERS, answer_or_refuse, edit, parse
from voicegate.proto import sdp_lines
from voicegate.proto.errors import BadOffer
from voicegate.proto.sdp import parse_offer_untrusted

LINE = st.sampled_from(
    sorted({line for text in OFFERS.values() for line in text.split("\r\n") if len(line) < 120})
)


@pytest.mark.parametrize("name", ANSWERABLE)
def test_lines_may_end_with_lf_alone(name: str) -> None:
    text = OFFERS[name]
    assert parse_offer_untrusted(text.replace("\r\n", "\n")) == parse(name)
    assert parse_offer_untrusted(text.removesuffix("\r\n")) == parse(name)


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
