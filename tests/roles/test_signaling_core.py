"""What signaling decides: placement, offers, keys, origins."""

from __future__ import annotations

import json
import random
from collections import Counter

import pytest
from hypothesis import given
from hypothesis import strategies as st

from voicegate.net.registry import TransceiverRecord
from voicegate.proto.errors import BadOffer
from voicegate.roles.signaling import core


def record(
    id: int, calls: int = 0, capacity: int = 10, draining: bool = False, cluster: int = 1
) -> TransceiverRecord:
    return TransceiverRecord(
        id=id,
        cluster=cluster,
        link="",
        control="",
        boot="",
        calls=calls,
        capacity=capacity,
        draining=draining,
    )


def test_those_with_room_are_asked_first_and_the_full_only_when_all_seem_full() -> None:
    full, draining, foreign, none = (
        record(1, 10),
        record(2, draining=True),
        record(3, cluster=2),
        record(4, 0, 0),
    )
    assert core.place([draining, foreign], 1, 5, 7) == ()
    assert set(core.place([full, draining, foreign, none], 1, 5, 7)) == {full, none}
    assert core.place([full, draining, foreign, none, record(5, 9)], 1, 5, 7) == (record(5, 9),)


@given(st.lists(st.integers(0, 9), min_size=2, max_size=8), st.integers(0, 2**32), st.integers(0, 2**32))
def test_two_different_ones_the_better_first(loads: list[int], first: int, second: int) -> None:
    better, other = core.place([record(i, n, 10 + i) for i, n in enumerate(loads)], 1, first, second)
    assert better.id != other.id
    assert better.calls / better.capacity <= other.calls / other.capacity


def test_ratio_not_number_decides() -> None:
    assert core.place([record(1, 5, 10), record(2, 20, 100)], 1, 0, 0)[0].id == 2


def test_the_choice_spreads() -> None:
    rng = random.Random(7)
    calls: Counter[int] = Counter()
    for _ in range(3000):
        records = [record(i, calls[i], 1000) for i in range(5)]
        calls[core.place(records, 1, rng.getrandbits(32), rng.getrandbits(32))[0].id] += 1
    assert max(calls.values()) - min(calls.values()) <= 5


@pytest.mark.parametrize("content_type", ["application/sdp", "Application/SDP; charset=utf-8"])
def test_an_offer_is_read(content_type: str) -> None:
    assert core.read_offer_untrusted(content_type, "v=0\r\ns=ü".encode()) == ("v=0\r\ns=ü", None)


@pytest.mark.parametrize(
    ("content_type", "body", "status", "code"),
    [
        ("", b"v=0", 415, "unsupported_content_type"),
        ("text/plain", b"v=0", 415, "unsupported_content_type"),
        ("application/sdp", b" \r\n", 400, "empty_offer"),
        ("application/sdp", b"v=0\xff", 400, "invalid_sdp"),
    ],
)
def test_what_is_not_an_offer(content_type: str, body: bytes, status: int, code: str) -> None:
    with pytest.raises(BadOffer) as caught:
        core.read_offer_untrusted(content_type, body)
    assert (caught.value.status, caught.value.code) == (status, code)


@given(st.text(), st.binary())
def test_any_request_is_an_offer_or_a_bad_one(content_type: str, body: bytes) -> None:
    for kind in (content_type, "application/sdp"):
        try:
            assert core.read_offer_untrusted(kind, body).sdp.encode() == body
        except BadOffer as error:
            assert error.status in (400, 415)


@given(st.text(max_size=8), st.binary(max_size=60))
def test_any_number_and_any_request_for_a_secret_is_read_or_refused(text: str, body: bytes) -> None:
    try:
        stream = core.read_stream_id_untrusted(text)
        assert stream is not None and 0 <= stream <= 65_534
    except BadOffer as error:
        assert error.status == 400
    try:
        assert 10 <= core.read_secret_request_untrusted(body).seconds <= 7200
    except BadOffer as error:
        assert error.status == 400


@given(
    st.fixed_dictionaries(
        {},
        optional={
            "session": st.none() | st.dictionaries(st.sampled_from(["type", "model", "x"]), st.text()),
            "expires_after": st.none()
            | st.dictionaries(
                st.sampled_from(["anchor", "seconds"]),
                st.just("created_at") | st.integers(-5, 9000) | st.floats() | st.booleans(),
            ),
            "more": st.integers(-5, 5),
        },
    )
)
def test_requests_for_a_secret(wanted: dict[str, object]) -> None:
    try:
        seconds, session = core.read_secret_request_untrusted(json.dumps(wanted).encode())
        assert 10 <= seconds <= 7200 and session == (wanted.get("session") or {})
    except BadOffer as error:
        assert error.code in ("invalid_expires_after", "invalid_json")


@pytest.mark.parametrize(
    ("host", "ours"),
    [("localhost:8080", True), ("127.0.0.1", True), ("127.9.9.9:1", True), ("[::1]:8080", True),
     ("LOCALHOST.", True), ("a.localhost", True), ("[::ffff:127.0.0.1]", True), ("evil.example", False),
     ("127.0.0.1.evil.example", False), ("localhost.evil.example:80", False), ("192.168.1.1", False),
     ("", False), ("[", False), ("0.0.0.0", False)],
)  # fmt: skip
def test_loopback_names(host: str, ours: bool) -> None:
    assert core.host_is_loopback(host) is ours
    assert core.origin_is_allowed(f"http://{host}", ("*",), has_keys=False) is ours


def test_origins() -> None:
    page = "https://pages.example"
    assert core.origin_is_allowed(page, ("*",), has_keys=True)
    assert not core.origin_is_allowed(page, ("*",), has_keys=False)
    assert core.origin_is_allowed(page, (page,), has_keys=False)
    assert not core.origin_is_allowed("null", ("*",), has_keys=False)
    assert core.origin_is_allowed("", (), has_keys=False)
    assert core.cors_headers(page, ("*",), True)["Access-Control-Allow-Origin"] == "*"
    assert core.cors_headers(page, (page,), True)["Access-Control-Allow-Origin"] == page
    assert "Access-Control-Allow-Origin" not in core.cors_headers("https://x.example", (page,), True)


def test_preflight_grants_what_the_clients_send_and_nothing_else() -> None:
    asked = "authorization,content-type, x-openai-agents-sdk, X-Stainless-Lang, x-evil, x-stainless-\r\nx: y"
    granted = core.preflight_headers(asked)["Access-Control-Allow-Headers"].split(", ")
    assert {"authorization", "content-type", "x-openai-agents-sdk", "x-stainless-lang"} <= set(granted)
    assert {"openai-safety-identifier", "openai-beta", "accept"} <= set(granted)
    assert set(granted) - core.ALLOWED_HEADERS == {"x-stainless-lang"}
    flood = core.preflight_headers(",".join(f"x-stainless-{i}" for i in range(10_000)))
    assert len(flood["Access-Control-Allow-Headers"]) < 2000
