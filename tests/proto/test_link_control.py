"""Hellos and their answers: what is said comes out again, and nothing else is taken for it."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from voicegate.proto.address import ClientAddress, over_tcp, pack_address
from voicegate.proto.errors import BadPacket
from voicegate.proto.link import CONTROL, LINK_HEADER_LENGTH, MAX_DATAGRAM, link_header
from voicegate.proto.link_control import (
    MAX_INGRESS,
    Clients,
    Hello,
    answer_hello,
    encode_control,
    parse_control_untrusted,
)
from voicegate.proto.ticket import TICKET_LENGTH

HEADER = link_header(b"k" * 32, 0, "10.0.0.1:1", "10.0.0.2:2#b", 1, version=CONTROL)
TICKET = b"t" * TICKET_LENGTH
HELLO = Hello("frankfurt", 1_700_000_000_000, 7)


def test_a_hello_comes_out_as_it_was_said() -> None:
    assert parse_control_untrusted(HEADER + encode_control(HELLO)) == HELLO


@pytest.mark.parametrize("count", [0, 1, 27, 28, 200])
def test_an_answer_is_whole_in_as_many_datagrams_as_it_takes(count: int) -> None:
    six = [pack_address(f"2001:db8::{n:x}", 4000) for n in range(count)]
    clients = [(over_tcp(address) if n % 2 else address, TICKET) for n, address in enumerate(six)]
    datagrams = [HEADER + body for body in answer_hello(7, clients)]
    assert all(len(datagram) <= MAX_DATAGRAM for datagram in datagrams)
    messages = [parse_control_untrusted(datagram) for datagram in datagrams]
    assert all(isinstance(message, Clients) and message.number == 7 for message in messages)
    assert [message.part for message in messages if isinstance(message, Clients)] == list(
        range(len(datagrams))
    )
    assert [row for message in messages if isinstance(message, Clients) for row in message.clients] == clients


@pytest.mark.parametrize(
    "message",
    [
        Hello("x" * (MAX_INGRESS + 1), 1, 1),
        Hello("x", 1, -1),
        Clients(1, 1, 1, ()),
        Clients(1, -1, 1, ()),
        Clients(1, 0, 1, ((b"12345", TICKET),)),
        Clients(1, 0, 1, ((pack_address("192.0.2.1", 1), b"short"),)),
    ],
)
def test_what_is_out_of_bounds_is_refused(message: Hello | Clients) -> None:
    with pytest.raises(BadPacket, match="link_control"):
        parse_control_untrusted(HEADER + encode_control(message))


@given(st.binary(max_size=200))
def test_any_bytes_are_a_message_or_a_bad_packet(body: bytes) -> None:
    try:
        message = parse_control_untrusted(HEADER + body)
    except BadPacket as error:
        assert error.reason == "link_control"
    else:
        assert isinstance(message, Hello | Clients)


@given(st.integers(0, 200), st.integers(0, 255))
def test_one_wrong_byte_never_does_more_than_change_the_message(at: int, value: int) -> None:
    body = bytearray(answer_hello(3, [(ClientAddress(b"123456"), TICKET)] * 4)[0])
    body[at % len(body)] = value
    try:
        parse_control_untrusted(HEADER + bytes(body))
    except BadPacket as error:
        assert error.reason == "link_control"
    assert len(HEADER) == LINK_HEADER_LENGTH
