"""The answer: what is of use, and everything else is refused by one exception."""

from __future__ import annotations

import random

import pytest
from hypothesis import given
from hypothesis import strategies as st

from tests.support.rig import CLIENT_CERTIFICATE, Rig
from voicegate.load.client import LightClient
from voicegate.load.offer import build_offer, parse_answer_untrusted
from voicegate.load.talk import TurnTalk
from voicegate.proto.errors import BadPacket
from voicegate.roles.transceiver.allocation import ENTROPY_LENGTH, Wishes

OFFER = build_offer(
    session=1, ufrag="abcd", password="p" * 24, fingerprint=CLIENT_CERTIFICATE.fingerprint.hex(":"), ssrc=7
)


def answer(*candidates: str) -> str:
    return Rig().core.allocate(Wishes(OFFER, candidates), now=1000.0, entropy=bytes(ENTROPY_LENGTH))[1]


ANSWER = answer("192.0.2.1:3478", "[2001:db8::1]:3478", "192.0.2.1:443/tcp")


def client() -> LightClient:
    return LightClient(CLIENT_CERTIFICATE, random.Random(1), TurnTalk((b"x",), 1))


def test_an_answer_of_ours() -> None:
    parsed = parse_answer_untrusted(ANSWER)
    assert parsed.candidates == [("192.0.2.1", 3478), ("2001:db8::1", 3478)], "UDP only"
    assert parsed.payload_type == 111 and parsed.setup == "active"
    assert [name for name, _ in parsed.fingerprints] == ["sha-256"]


def test_only_what_the_socket_reaches_is_checked() -> None:
    one, other = client(), client()
    one.accept_answer(ANSWER, 1.0)
    other.accept_answer(ANSWER, 1.0, ipv6=True)
    for each, host in ((one, "192.0.2.1"), (other, "2001:db8::1")):
        each.handle_timeout(1.0)
        sent = each.poll_transmit()
        assert sent is not None and sent[1] == (host, 3478) and each.poll_transmit() is None


@pytest.mark.parametrize(
    ("text", "reason"),
    [
        ("", "answer_rejected"),
        (ANSWER.replace("m=audio 3478", "m=audio 0"), "answer_rejected"),
        (ANSWER.replace("a=ice-pwd", "a=ice"), "answer_malformed"),
        (ANSWER.replace("a=fingerprint:sha-256 ", "a=fingerprint:"), "answer_malformed"),
        (ANSWER.replace("a=fingerprint:sha-256 ", "a=fingerprint:rot-13 "), "answer_fingerprint"),
        (ANSWER.replace("a=candidate", "a=candid"), "answer_without_candidates"),
        (ANSWER.replace(" 3478 ", " many "), "answer_without_candidates"),
        (ANSWER.replace(" 3478 ", " 70000 "), "answer_without_candidates"),
        (answer("192.0.2.1:3478").replace(" 192.0.2.1 ", " relay.example "), "answer_without_candidates"),
        (ANSWER.replace("a=ice-ufrag:", "a=ice-ufrag:" + "x" * 300), "answer_malformed"),
    ],
)
def test_an_answer_that_is_of_no_use(text: str, reason: str) -> None:
    with pytest.raises(BadPacket) as caught:
        client().accept_answer(text, 1.0)
    assert caught.value.reason == reason


@given(st.lists(st.sampled_from([*ANSWER.splitlines(), "a=candidate:1", "m=audio", "a=", "\0"]), max_size=20))
def test_lines_in_any_order_raise_nothing_else(lines: list[str]) -> None:
    try:
        parse_answer_untrusted("\r\n".join(lines))
    except BadPacket:
        pass
