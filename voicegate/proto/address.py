"""A client's transport address as a value: packed, comparable, and hard to log by accident.

`ClientAddress` is the IP address (4 or 16 bytes) followed by the UDP port (2 bytes), all in network order:
the form in which it stands in a link frame and in XOR-MAPPED-ADDRESS. A client that comes over TCP has one
byte more at its end, TCP's protocol number: it is another than the UDP client of the same address and port.
An address has one form only:
IPv4-mapped IPv6 (`::ffff:192.0.2.1`) is packed as IPv4, so that no check can be passed by writing it
differently.
"""

from __future__ import annotations

import ipaddress
from typing import NewType

ClientAddress = NewType("ClientAddress", bytes)
"""6 bytes for IPv4, 18 bytes for IPv6; over TCP 7 and 19."""

IPV4_LENGTH = 6
IPV6_LENGTH = 18
TCP_SUFFIX = b"\x06"
"""IANA's protocol number of TCP, behind the port."""


def pack_address(host: str, port: int) -> ClientAddress:
    """Pack a numeric host (no names; an IPv6 zone is dropped) and a port; ValueError for anything else."""
    if not 0 <= port <= 0xFFFF:
        raise ValueError(f"{port} is not a UDP port")
    return ClientAddress(parse_ip(host).packed + port.to_bytes(2, "big"))


def over_tcp(address: ClientAddress) -> ClientAddress:
    """The TCP client at a packed address."""
    return ClientAddress(address + TCP_SUFFIX)


def is_tcp(address: ClientAddress) -> bool:
    """Whether this client comes over TCP."""
    return len(address) & 1 == 1


def without_transport(address: ClientAddress) -> ClientAddress:
    """IP address and port alone."""
    return ClientAddress(address[:-1]) if len(address) & 1 else address


def unpack_address(address: ClientAddress) -> tuple[str, int]:
    """The numeric host and the port."""
    address = without_transport(address)
    if len(address) not in (IPV4_LENGTH, IPV6_LENGTH):
        raise ValueError("a packed address has 6 or 18 bytes, over TCP one more")
    return str(ipaddress.ip_address(address[:-2])), int.from_bytes(address[-2:], "big")


def format_address(address: ClientAddress) -> str:
    """`192.0.2.1:5000` or `[2001:db8::1]:5000`."""
    return join_host_port(*unpack_address(address))


def redact_address(address: ClientAddress) -> str:
    """The network part only, for logs: `192.0.2.x` or `2001:db8:0::x` (a /24 or a /48)."""
    if len(without_transport(address)) == IPV4_LENGTH:
        return "{}.{}.{}.x".format(*address[:3])
    groups = [f"{int.from_bytes(address[i : i + 2], 'big'):x}" for i in (0, 2, 4)]
    return ":".join(groups) + "::x"


def split_host_port(text: str) -> tuple[str, int]:
    """`host:port` or `[host]:port` as written in the configuration and the registry; ValueError when it is
    not."""
    host, colon, port = text.rpartition(":")
    bracketed = host.startswith("[") and host.endswith("]")
    if bracketed:
        host = host[1:-1]
    digits = port.isascii() and port.isdecimal()
    if not colon or not host or not digits or int(port) > 0xFFFF or (":" in host and not bracketed):
        raise ValueError(f"{text!r} is not host:port (an IPv6 host stands in brackets)")
    return host, int(port)


def split_public(text: str) -> tuple[str, int, bool]:
    """(numeric host, port, whether it is TCP) of a public address: `host:port`, with `/tcp` behind it for
    ICE-TCP. ValueError says what is wrong with it."""
    address, is_tcp = split_transport(text)
    host, port = split_host_port(address)
    try:
        return str(parse_ip(host)), port, is_tcp
    except ValueError:
        raise ValueError(f"{text!r}: {host!r} is not an IP address; names are not looked up") from None


def split_transport(text: str) -> tuple[str, bool]:
    """What stands before `/udp`, `/tcp` or nothing, and whether that is TCP; ValueError for another word."""
    address, slash, transport = text.partition("/")
    if slash and transport not in ("udp", "tcp"):
        raise ValueError(f"{text!r}: behind the / there is udp or tcp")
    return address, transport == "tcp"


def join_host_port(host: str, port: int) -> str:
    """The reverse of `split_host_port`."""
    return f"[{host}]:{port}" if ":" in host else f"{host}:{port}"


def parse_ip(host: str) -> ipaddress.IPv4Address | ipaddress.IPv6Address:
    """A numeric address in its one form: no zone, and IPv4-mapped IPv6 as IPv4. ValueError when not
    numeric."""
    address = ipaddress.ip_address(host.partition("%")[0])
    if isinstance(address, ipaddress.IPv6Address) and address.ipv4_mapped is not None:
        return address.ipv4_mapped
    return address
