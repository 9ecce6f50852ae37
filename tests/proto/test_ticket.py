"""Tickets: the vector, forgery, the one spelling, expiry over the wrap, passwords."""

from __future__ import annotations

import random
import string

import pytest
from hypothesis import example, given
from hypothesis import strategies as st

from voicegate.proto.errors import BadPacket
from voicegate.proto.ticket import (
    EXPIRY_UNIT,
    MAX_CLUSTER,
    MAX_TRANSCEIVER,
    PASSWORD_LENGTH,
    TICKET_LENGTH,
    Ticket,
    TicketKeys,
    expired,
)

ALPHABET = (string.ascii_uppercase + string.ascii_lowercase + string.digits + "+/").encode()
KEYS = TicketKeys({2: (bytes(range(16)), b"p" * 32), 5: (b"5" * 16, b"q" * 32)}, 2)
VECTOR = b"RsyneX9nYRgVbgDJNgLsu3g"


def test_the_vector() -> None:
    nonce = 0x123456789.to_bytes(5, "big")
    assert KEYS.mint(5, 1234, 1000 * EXPIRY_UNIT, nonce).encode() == VECTOR
    assert KEYS.open_untrusted(VECTOR) == Ticket(2, 5, 1234, 1000, 0x123456789)
    assert KEYS.clone().open_untrusted(VECTOR) == KEYS.open_untrusted(VECTOR)


@given(
    st.integers(0, MAX_CLUSTER),
    st.integers(0, MAX_TRANSCEIVER),
    st.floats(0, 2**33),
    st.binary(min_size=5, max_size=5),
)
def test_what_is_minted_opens(cluster: int, transceiver: int, wall: float, nonce: bytes) -> None:
    text = KEYS.mint(cluster, transceiver, wall, nonce).encode()
    assert len(text) == TICKET_LENGTH and set(text) <= set(ALPHABET)
    ticket = KEYS.open_untrusted(text)
    assert (ticket.cluster, ticket.transceiver) == (cluster, transceiver)
    assert ticket.nonce == int.from_bytes(nonce, "big") % 2**36
    assert not expired(ticket, wall)
    assert expired(ticket, wall + 2 * EXPIRY_UNIT)


def test_every_other_spelling_of_a_ticket_is_refused() -> None:
    last = ALPHABET.index(VECTOR[-1])
    assert last % 16 == 0
    for spare in range(1, 16):
        with pytest.raises(BadPacket, match="ticket_form"):
            KEYS.open_untrusted(VECTOR[:-1] + ALPHABET[last + spare : last + spare + 1])


@pytest.mark.parametrize(
    "ufrag",
    [
        b"",
        VECTOR[:-1],
        VECTOR + b"A",
        VECTOR + b"==",
        VECTOR[:5] + b"-" + VECTOR[6:],  # base64url
        VECTOR[:5] + b"=" + VECTOR[6:],
        VECTOR[:5] + b"\n" + VECTOR[6:],
        VECTOR[:5] + b"\xff" + VECTOR[6:],
        b"-" + VECTOR[1:],
        b"Q" + VECTOR[1:],  # format 0
        b"S" + VECTOR[1:],  # format 2
    ],
)
def test_what_is_not_a_ticket_is_refused(ufrag: bytes) -> None:
    with pytest.raises(BadPacket, match="ticket_form"):
        KEYS.open_untrusted(ufrag)


def test_key_ids_that_are_not_ours_are_refused() -> None:
    for key_id in (0, 1, 3, 4, 6, 7):
        ufrag = ALPHABET[key_id << 3 | 1 : (key_id << 3 | 1) + 1] + VECTOR[1:]
        with pytest.raises(BadPacket, match="ticket_key"):
            KEYS.open_untrusted(ufrag)
        with pytest.raises(BadPacket, match="ticket_key"):
            KEYS.password(ufrag)
    with pytest.raises(BadPacket, match="ticket_key"):
        KEYS.password(b"")


def test_one_wrong_character_anywhere_is_noticed() -> None:
    for position in range(1, TICKET_LENGTH - 1):
        for other in ALPHABET:
            if other != VECTOR[position]:
                with pytest.raises(BadPacket, match="ticket_forged"):
                    KEYS.open_untrusted(VECTOR[:position] + bytes([other]) + VECTOR[position + 1 :])


def test_random_forgeries_fail() -> None:
    draw = random.Random(2)
    for _ in range(5000):
        ufrag = b"R" + bytes(draw.choices(ALPHABET, k=21)) + bytes(draw.choices(ALPHABET[::16]))
        with pytest.raises(BadPacket, match="ticket_forged"):
            KEYS.open_untrusted(ufrag)


def test_a_ticket_of_another_key_is_a_forgery() -> None:
    with pytest.raises(BadPacket, match="ticket_forged"):
        KEYS.open_untrusted(b"p" + VECTOR[1:])  # key id 5


@given(st.one_of(st.binary(max_size=40), st.text(alphabet=ALPHABET.decode(), max_size=30).map(str.encode)))
@example(b"R" + b"A" * 22)
def test_anything_else_raises_the_declared_error_only(ufrag: bytes) -> None:
    with pytest.raises(BadPacket):
        KEYS.open_untrusted(ufrag)


@pytest.mark.parametrize("units", [0, 1000, 2**20 - 1, 2**20, 2**20 + 5, 5 * 2**20 - 3])
def test_expiry_is_serial_arithmetic(units: int) -> None:
    # RFC 1982 with 20 bits: right across the wrap, for 97 days either way.
    wall = units * float(EXPIRY_UNIT)
    ticket = KEYS.open_untrusted(KEYS.mint(1, 1, wall, bytes(5)).encode())
    half = 2**19 * EXPIRY_UNIT
    for earlier in (0.0, 1.0, 3600.0, half - EXPIRY_UNIT):
        assert not expired(ticket, wall - earlier)
    for later in (EXPIRY_UNIT, 3600.0, half):
        assert expired(ticket, wall + later)


def test_passwords_belong_to_one_ticket_and_one_key() -> None:
    password = KEYS.password(VECTOR)
    assert len(password) == PASSWORD_LENGTH and set(password) <= set(ALPHABET)
    others = {KEYS.password(VECTOR[:-1] + b"w"), KEYS.password(b"p" + VECTOR[1:])}
    assert len(others | {password}) == 3
    again = TicketKeys({2: (bytes(16), b"p" * 32)}, 2)
    assert again.password(VECTOR) == password  # of the second key only


def test_nothing_of_a_key_is_printed() -> None:
    assert b"p" * 8 not in repr(KEYS).encode()
