"""Keys come from configured secrets, each purpose has its own, and nothing prints them."""

from __future__ import annotations

import pytest

from voicegate.proto.errors import BadPacket
from voicegate.proto.keys import ClusterKeys, derive

OLD = "0:" + "o" * 32
NEW = "1:" + "n" * 32


def test_hkdf_is_that_of_rfc_5869() -> None:
    # RFC 5869 appendix A.3: SHA-256, no salt, no info.
    expected = "8da4e775a563c18f715f802a063c5a31b8a11f5c5ee1879ec3454e5f3c738d2d9d201395faa4b61a96c8"
    assert derive(b"\x0b" * 22, "", 42).hex() == expected


def test_every_purpose_has_its_own_key() -> None:
    labels = [
        "voicegate ticket",
        "voicegate password",
        "voicegate link",
        "voicegate seal",
        "voicegate control",
    ]
    keys = {derive(b"secret", label, 16) for label in labels}
    assert len(keys) == len(labels)


def test_the_same_secrets_give_the_same_keys() -> None:
    one, two = ClusterKeys.parse([NEW]), ClusterKeys.parse([NEW])
    assert one.link == two.link and one.control_token == two.control_token
    ticket = one.tickets.mint(1, 2, 1000.0, bytes(5)).encode()
    assert two.tickets.open_untrusted(ticket).transceiver == 2
    assert one.tickets.password(ticket) == two.tickets.password(ticket)
    assert two.seal.open_untrusted(b"x", one.seal.seal(b"x", b"payload")) == b"payload"


def test_the_first_mints_and_all_open() -> None:
    before, during, after = (ClusterKeys.parse(s) for s in ([OLD], [NEW, OLD], [NEW]))
    assert during.link_id == 1 and set(during.link) == {0, 1}
    old_ticket = before.tickets.mint(1, 2, 1000.0, bytes(5)).encode()
    new_ticket = during.tickets.mint(1, 2, 1000.0, bytes(5)).encode()
    assert during.tickets.open_untrusted(old_ticket).config_id == 0
    assert after.tickets.open_untrusted(new_ticket).config_id == 1
    with pytest.raises(BadPacket, match="ticket_key"):
        after.tickets.open_untrusted(old_ticket)
    assert during.seal.open_untrusted(b"x", before.seal.seal(b"x", b"old")) == b"old"
    assert during.control_token == after.control_token != before.control_token
    assert during.accepts_control_token(before.control_token)
    assert not after.accepts_control_token(before.control_token)
    assert not after.accepts_control_token("")
    assert not after.accepts_control_token("\udc80")


@pytest.mark.parametrize(
    ("secrets", "words"),
    [
        ([], "no secret"),
        (["n" * 40], "ID:SECRET"),
        (["7:" + "n" * 32], "0 to 6"),
        (["10:" + "n" * 32], "0 to 6"),
        ([":" + "n" * 32], "0 to 6"),
        (["\u0663:" + "n" * 32], "0 to 6"),
        (["1:" + "n" * 31], "31 characters.*at least 32"),
        ([NEW, NEW], "twice"),
    ],
)
def test_a_bad_secret_is_explained_without_telling_it(secrets: list[str], words: str) -> None:
    with pytest.raises(ValueError, match=words) as caught:
        ClusterKeys.parse(secrets)
    assert "nnn" not in str(caught.value)


def test_printing_keys_shows_no_secret() -> None:
    keys = ClusterKeys.parse([NEW, OLD])
    assert repr(keys) == f"ClusterKeys({', '.join(keys.marks)})"
    assert keys.control_token not in f"{keys} {keys.tickets} {keys.seal}"
