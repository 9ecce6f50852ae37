"""Who may ask, and how much."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from voicegate.proto.client_secret import ClientSecret, mint_client_secret
from voicegate.proto.seal import SealKeys
from voicegate.roles.signaling.keys import (
    LOOPBACK,
    SWEEP_SECONDS,
    Caller,
    Denied,
    Key,
    KeyLimits,
    KeyRing,
    full_key,
    token_of,
)

SEAL = SealKeys({1: bytes(range(64))}, 1)
FULL = full_key("full-key-of-the-test")
SHOP = Key("shop", "key-of-the-shop-1", models=("small", "large"), client_events=("response.*",))
RING = KeyRing([FULL, SHOP], SEAL)


def secret(issuer: str = "shop", expires: int = 100, **session: object) -> str:
    return mint_client_secret(SEAL, ClientSecret("sess_1", issuer, expires, session, "user-7"))


def test_keys_are_told_apart() -> None:
    assert RING.admit("full-key-of-the-test", 0, "u" * 500) == Caller(FULL, safety_identifier="u" * 128)
    assert RING.admit("key-of-the-shop-1", 0).key is SHOP
    assert (FULL.owner, SHOP.owner) == ("", "shop")
    assert FULL.secret not in repr(FULL) and FULL.secret not in FULL.id and FULL.id != full_key("other").id


@pytest.mark.parametrize(
    "token", ["", "full-key-of-the-tes", "full-key-of-the-test2", "\udcff", "ek_", "ek_x"]
)
def test_other_tokens_are_refused_alike(token: str) -> None:
    for wrong in (token, secret("nobody"), secret("loopback")):
        with pytest.raises(Denied) as caught:
            RING.admit(wrong, 0)
        assert (caught.value.status, caught.value.code) == (401, "invalid_api_key")
        assert caught.value.headers() == {"WWW-Authenticate": "Bearer"}


def test_a_client_secret_lives_until_it_expires() -> None:
    caller = RING.admit(secret(model="small"), 99.9)
    assert caller.key is SHOP and caller.safety_identifier == "user-7"
    with pytest.raises(Denied, match="expired"):
        RING.admit(secret(), 100.0)
    with pytest.raises(Denied, match="cannot open a sideband"):
        caller.standard_key("open a sideband")
    assert RING.admit(SHOP.secret, 0).standard_key("x") is SHOP


def test_without_keys_everybody_is_loopback_but_a_wrong_secret_is_wrong() -> None:
    ring = KeyRing([], SEAL)
    assert not ring and RING
    assert ring.admit("", 0).key is ring.admit("whatever", 0).key is LOOPBACK
    assert ring.admit(secret("loopback"), 0).client_secret is not None
    for wrong in (secret("shop"), secret("loopback", 0), "ek_forged"):
        with pytest.raises(Denied):
            ring.admit(wrong, 1)


@pytest.mark.parametrize(
    ("caller", "asked", "model"),
    [
        (Caller(FULL), "", ""), (Caller(FULL), "any", "any"), (Caller(SHOP), "", "small"),
        (Caller(SHOP), "large", "large"), (Caller(SHOP), "huge", None),
        (RING.admit(secret(model="large"), 0), "", "large"),
        (RING.admit(secret(model="large"), 0), "large", "large"),
        (RING.admit(secret(model="large"), 0), "small", None),
        (RING.admit(secret(model="huge"), 0), "", None), (RING.admit(secret(), 0), "", "small"),
    ],
)  # fmt: skip
def test_models(caller: Caller, asked: str, model: str | None) -> None:
    if model is not None:
        assert caller.model(asked) == model
    else:
        with pytest.raises(Denied) as caught:
            caller.model(asked)
        assert (caught.value.status, caught.value.code) == (403, "model_not_allowed")


def test_whose_session_counts() -> None:
    asked = {"instructions": "mine"}
    assert Caller(SHOP).session(asked) is asked
    assert RING.admit(secret(instructions="ours"), 0).session(asked) == {"instructions": "ours"}
    assert RING.admit(secret(), 0).session(asked) is None, "no session.update, so not by the offer either"
    assert RING.admit(secret(FULL.id), 0).session(asked) is asked


@pytest.mark.parametrize(
    ("key", "asked", "recorded"),
    [
        (SHOP, False, False), (SHOP, True, None),
        (Key("k", "", record="allowed"), False, False), (Key("k", "", record="allowed"), True, True),
        (Key("k", "", record="always"), False, True), (Key("k", "", record="always"), True, True),
        (FULL, False, False), (FULL, True, True), (LOOPBACK, False, False), (LOOPBACK, True, True),
    ],
)  # fmt: skip
def test_who_is_recorded(key: Key, asked: bool, recorded: bool | None) -> None:
    browser = Caller(key, ClientSecret("sess_1", key.id, 100, {}, ""))
    for caller in (Caller(key), browser):
        if recorded is not None:
            assert caller.record(asked) is recorded
        else:
            with pytest.raises(Denied) as caught:
                caller.record(asked)
            assert (caught.value.status, caught.value.code) == (403, "recording_not_allowed")


def test_the_limit_of_calls() -> None:
    key, limits = Key("k", "", max_calls=2), KeyLimits()
    limits.begin(key, 0)
    limits.end(key, "rtc_1")
    limits.begin(key, 0)
    assert limits.is_full(key), "a set-up under way counts"
    with pytest.raises(Denied) as caught:
        limits.begin(key, 0)
    assert (caught.value.status, caught.value.headers()) == (429, {"Retry-After": "5"})
    limits.end(key)
    limits.begin(key, 0)
    limits.end(key, "rtc_2")
    assert set(limits.calls_to_ask_after(key, 10)) == {"rtc_1", "rtc_2"}
    assert limits.calls_to_ask_after(key, 10 + SWEEP_SECONDS / 2) == ()
    limits.forget("rtc_1")
    limits.begin(key, 0)
    limits.begin(Key("other", "", max_calls=1), 0)


def test_the_rate() -> None:
    key, limits = Key("k", "", calls_per_minute=6), KeyLimits()
    for _ in range(6):
        limits.begin(key, 100)
    with pytest.raises(Denied) as caught:
        limits.begin(key, 100)
    assert caught.value.retry_after == 11
    with pytest.raises(Denied):
        limits.begin(key, 109)
    limits.begin(key, 111)
    for _ in range(6):
        limits.begin(key, 1e6)
    with pytest.raises(Denied):
        limits.begin(key, 1e6)
    assert not limits.is_full(key)


@given(st.lists(st.tuples(st.floats(0, 30), st.booleans()), max_size=80))
def test_no_minute_has_more_than_twice_the_rate(steps: list[tuple[float, bool]]) -> None:
    key, limits, now = Key("k", "", calls_per_minute=5), KeyLimits(), 0.0
    granted: list[float] = []
    for wait, _ in steps:
        now += wait
        try:
            limits.begin(key, now)
            granted.append(now)
        except Denied as denied:
            assert denied.retry_after > 0
    for at in granted:
        assert sum(at <= other < at + 60 for other in granted) <= 10


@pytest.mark.parametrize(
    ("header", "protocols", "token"),
    [("Bearer one", [], "one"), ("bearer  two ", [], "two"), ("Basic one", [], ""), ("", [], ""),
     ("Bearer", [], ""),
     ("", ["realtime", "openai-insecure-api-key.ek_x", "openai-agents-sdk.0.20.0"], "ek_x"),
     ("Bearer one", ["openai-insecure-api-key.two"], "one"), ("", ["openai-insecure-api-key"], "")],
)  # fmt: skip
def test_where_the_token_is(header: str, protocols: list[str], token: str) -> None:
    assert token_of(header, protocols) == token
