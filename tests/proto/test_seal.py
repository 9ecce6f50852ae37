"""Sealed tokens open with our keys, under their label, in their one spelling."""

from __future__ import annotations

import string

import pytest
from hypothesis import given
from hypothesis import strategies as st

from voicegate.proto.errors import BadPacket
from voicegate.proto.seal import MAX_PAYLOAD, MAX_TOKEN_CHARACTERS, SealKeys

KEYS = SealKeys({1: bytes(range(64)), 3: b"3" * 64}, 1)
URL_SAFE = string.ascii_uppercase + string.ascii_lowercase + string.digits + "-_"


@given(st.binary(min_size=1, max_size=MAX_PAYLOAD))
def test_what_is_sealed_opens_and_is_always_the_same(payload: bytes) -> None:
    token = KEYS.seal(b"label", payload)
    assert token == KEYS.seal(b"label", payload)
    assert set(token) <= set(URL_SAFE) and len(token) <= MAX_TOKEN_CHARACTERS
    assert KEYS.open_untrusted(b"label", token) == payload


def test_a_label_is_not_another() -> None:
    with pytest.raises(BadPacket, match="seal"):
        KEYS.open_untrusted(b"other", KEYS.seal(b"label", b"payload"))


def test_every_changed_character_is_noticed() -> None:
    token = KEYS.seal(b"label", b"payload")
    for position in range(len(token)):
        for other in URL_SAFE:
            if other != token[position]:
                with pytest.raises(BadPacket, match="seal"):
                    KEYS.open_untrusted(b"label", token[:position] + other + token[position + 1 :])


def test_another_key_does_not_open() -> None:
    other = SealKeys({1: b"o" * 64}, 1)
    with pytest.raises(BadPacket, match="seal"):
        other.open_untrusted(b"label", KEYS.seal(b"label", b"payload"))


@pytest.mark.parametrize("change", ["{}=", " {}", "{}\n", "{}!", "\u00e9{}", "{}\udc80", "{}A"])
def test_other_spellings_are_refused(change: str) -> None:
    with pytest.raises(BadPacket, match="seal"):
        KEYS.open_untrusted(b"label", change.format(KEYS.seal(b"label", b"payload")))


@given(st.one_of(st.text(max_size=80), st.text(alphabet=URL_SAFE, max_size=80)))
def test_anything_else_raises_the_declared_error_only(token: str) -> None:
    with pytest.raises(BadPacket, match="seal"):
        KEYS.open_untrusted(b"label", token)


def test_length_is_bounded_before_decoding() -> None:
    with pytest.raises(BadPacket, match="seal"):
        KEYS.open_untrusted(b"label", "A" * (MAX_TOKEN_CHARACTERS + 1))
