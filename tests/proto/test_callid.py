"""Call ids name a transceiver to us and nothing to anybody else."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from voicegate.proto.callid import mint_call_id, open_call_id_untrusted
from voicegate.proto.errors import BadPacket
from voicegate.proto.seal import SealKeys

KEYS = SealKeys({1: bytes(range(64))}, 1)


@given(st.integers(0, 2**16 - 1), st.integers(0, 2**32 - 1), st.binary(min_size=8, max_size=8))
def test_ids_open_to_what_they_were_made_of(cluster: int, transceiver: int, nonce: bytes) -> None:
    text = mint_call_id(KEYS, cluster, transceiver, nonce)
    assert text.startswith("rtc_") and len(text) == 46
    assert open_call_id_untrusted(KEYS, text) == (cluster, transceiver)


def test_two_calls_have_two_ids() -> None:
    assert mint_call_id(KEYS, 1, 1, b"nonce--1") != mint_call_id(KEYS, 1, 1, b"nonce--2")


def test_tokens_of_another_purpose_or_shape_are_no_call_ids() -> None:
    for token in (KEYS.seal(b"key", bytes(14)), KEYS.seal(b"call", bytes(13)), KEYS.seal(b"call", bytes(15))):
        with pytest.raises(BadPacket, match="call_id"):
            open_call_id_untrusted(KEYS, "rtc_" + token)


@given(st.text(max_size=60), st.sampled_from(["", "rtc_", "RTC_"]))
def test_anything_else_raises_the_declared_error_only(text: str, prefix: str) -> None:
    with pytest.raises(BadPacket, match="call_id"):
        open_call_id_untrusted(KEYS, prefix + text)
