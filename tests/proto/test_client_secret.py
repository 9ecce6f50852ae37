"""Client secrets: what goes in comes out, and nothing else opens."""

from __future__ import annotations

import random

import pytest
from hypothesis import given
from hypothesis import strategies as st

from voicegate.proto.callid import mint_call_id
from voicegate.proto.client_secret import (
    PREFIX,
    ClientSecret,
    mint_client_secret,
    open_client_secret_untrusted,
)
from voicegate.proto.errors import BadPacket
from voicegate.proto.seal import MAX_TOKEN_CHARACTERS, SealKeys

KEYS = SealKeys({1: bytes(range(64)), 2: b"2" * 64}, 1)
JSON = st.recursive(
    st.none() | st.booleans() | st.integers(-(2**53), 2**53) | st.text(max_size=20),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(max_size=8), inner, max_size=3),
    max_leaves=12,
)


@given(st.dictionaries(st.text(max_size=10), JSON, max_size=5), st.integers(0, 2**40), st.text(max_size=40))
def test_what_is_minted_opens(session: dict[str, object], expires: int, user: str) -> None:
    secret = ClientSecret("sess_1", "shop", expires, session, user)
    token = mint_client_secret(KEYS, secret)
    assert token.startswith(PREFIX) and len(token) <= MAX_TOKEN_CHARACTERS + len(PREFIX)
    assert open_client_secret_untrusted(KEYS, token) == secret


def test_the_model_it_is_for() -> None:
    assert ClientSecret("", "", 0, {"model": "m"}).model == "m"
    assert ClientSecret("", "", 0, {"model": 3}).model == ClientSecret("", "", 0).model == ""


def test_long_instructions_fit_and_too_long_ones_are_told() -> None:
    words = random.Random(1)
    text = " ".join(words.choice(["please", "answer", "the", "customer", "kindly"]) for _ in range(3000))
    mint_client_secret(KEYS, ClientSecret("", "", 0, {"instructions": text}))
    noise = "".join(chr(words.randrange(33, 126)) for _ in range(8000))
    with pytest.raises(ValueError, match="bytes when compressed"):
        mint_client_secret(KEYS, ClientSecret("", "", 0, {"instructions": noise}))


def test_foreign_and_changed_ones_do_not_open() -> None:
    token = mint_client_secret(KEYS, ClientSecret("sess_1", "shop", 5))
    other = mint_client_secret(SealKeys({1: b"o" * 64}, 1), ClientSecret("sess_1", "shop", 5))
    call_id = mint_call_id(KEYS, 1, 2, b"12345678").replace("rtc_", PREFIX)
    changed = [token[:i] + ("A" if token[i] != "A" else "B") + token[i + 1 :] for i in range(3, len(token))]
    sealed_junk = [PREFIX + KEYS.seal(b"client secret", junk) for junk in (b"x", b"[]", bytes(100))]
    for wrong in (other, call_id, "", PREFIX, token[3:], token + "A", token + "=", *changed, *sealed_junk):
        with pytest.raises(BadPacket, match="client_secret"):
            open_client_secret_untrusted(KEYS, wrong)


@given(st.text(max_size=100))
def test_anything_else_raises_the_declared_error_only(text: str) -> None:
    for wrong in (text, PREFIX + text):
        with pytest.raises(BadPacket, match="client_secret"):
            open_client_secret_untrusted(KEYS, wrong)
