"""Addresses have one packed form, and logs see only their network part."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from voicegate.proto.address import (
    ClientAddress,
    format_address,
    is_tcp,
    join_host_port,
    over_tcp,
    pack_address,
    redact_address,
    split_host_port,
    split_public,
    unpack_address,
    without_transport,
)


def test_packed_form_is_address_then_port_in_network_order() -> None:
    assert pack_address("192.0.2.1", 0x1234) == bytes([192, 0, 2, 1, 0x12, 0x34])
    assert pack_address("2001:db8::1", 1) == bytes.fromhex("20010db8000000000000000000000001") + b"\0\1"


@pytest.mark.parametrize("spelling", ["::ffff:192.0.2.1", "::FFFF:c000:201", "192.0.2.1"])
def test_mapped_ipv4_is_ipv4(spelling: str) -> None:
    assert pack_address(spelling, 9) == pack_address("192.0.2.1", 9)


def test_a_zone_is_no_part_of_the_address() -> None:
    assert pack_address("fe80::1%eth0", 9) == pack_address("fe80::1", 9)


@pytest.mark.parametrize("host", ["example.com", "", "1.2.3", "192.0.2.256", "::g"])
def test_names_and_nonsense_are_refused(host: str) -> None:
    with pytest.raises(ValueError):
        pack_address(host, 1)


@pytest.mark.parametrize("port", [-1, 65536])
def test_ports_have_sixteen_bits(port: int) -> None:
    with pytest.raises(ValueError, match="port"):
        pack_address("192.0.2.1", port)


def test_a_tcp_client_is_another_than_the_udp_client_of_its_address() -> None:
    for host in ("192.0.2.1", "2001:db8::1"):
        udp = pack_address(host, 5000)
        tcp = over_tcp(udp)
        assert tcp != udp and is_tcp(tcp) and not is_tcp(udp)
        assert without_transport(tcp) == without_transport(udp) == udp
        assert unpack_address(tcp) == (host, 5000) and redact_address(tcp) == redact_address(udp)


@pytest.mark.parametrize("length", [0, 5, 8, 17, 20])
def test_unpacking_needs_a_packed_address(length: int) -> None:
    with pytest.raises(ValueError, match="6 or 18"):
        unpack_address(ClientAddress(bytes(length)))


def test_formats() -> None:
    four, six = pack_address("192.0.2.77", 5000), pack_address("2001:db8:5:6::77", 5000)
    assert format_address(four) == "192.0.2.77:5000"
    assert format_address(six) == "[2001:db8:5:6::77]:5000"
    assert redact_address(four) == "192.0.2.x"
    assert redact_address(six) == "2001:db8:5::x"


@given(st.ip_addresses(), st.integers(0, 65535))
def test_packing_and_text_round_trip(ip: object, port: int) -> None:
    packed = pack_address(str(ip), port)
    host, same_port = unpack_address(packed)
    assert same_port == port and pack_address(host, port) == packed
    assert split_host_port(format_address(packed)) == (host, port)
    assert split_host_port(join_host_port(host, port)) == (host, port)


@pytest.mark.parametrize(
    "text",
    ["", ":1", "host", "host:", "host:x", "host:65536", "::1:80", "[::1]", "host:-1", "host:\u0663", "[]:1"],
)
def test_what_is_not_host_and_port_is_refused(text: str) -> None:
    with pytest.raises(ValueError, match="host:port"):
        split_host_port(text)


def test_a_public_address_says_its_transport() -> None:
    assert (
        split_public("203.0.113.1:3478")
        == split_public("203.0.113.1:3478/udp")
        == ("203.0.113.1", 3478, False)
    )
    assert split_public("[2001:db8::1]:443/tcp") == ("2001:db8::1", 443, True)
    assert split_public("[::ffff:203.0.113.1]:443/tcp") == ("203.0.113.1", 443, True)


@pytest.mark.parametrize("text", ["203.0.113.1:443/", "203.0.113.1/tcp", "a.example:1", "1.2.3.4:1/tcp/tcp"])
def test_what_is_no_public_address_is_refused(text: str) -> None:
    with pytest.raises(ValueError):
        split_public(text)


@given(st.text(max_size=40))
def test_any_text_is_a_public_address_or_refused(text: str) -> None:
    try:
        host, port, _ = split_public(text)
    except ValueError:
        return
    assert pack_address(host, port)
