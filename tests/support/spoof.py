"""UDP over IPv4 with somebody else's source address, for attacks on loopback. Needs CAP_NET_RAW."""

from __future__ import annotations

import contextlib
import socket
import struct
from typing import Self

_IPV4 = struct.Struct("!BBHHHBBH4s4s")
_UDP = struct.Struct("!HHHH")


class Spoofer:
    """A context manager around a raw socket. PermissionError when this process may not have one."""

    def __init__(self) -> None:
        self._sock = socket.socket(socket.AF_INET, socket.SOCK_RAW, socket.IPPROTO_RAW)

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self._sock.close()

    def send(self, payload: bytes, source: tuple[str, int], target: tuple[str, int]) -> None:
        """One datagram. The kernel fills in the header's checksum; UDP's 0 means none (RFC 768)."""
        udp = _UDP.pack(source[1], target[1], _UDP.size + len(payload), 0)
        addresses = socket.inet_aton(source[0]), socket.inet_aton(target[0])
        length = _IPV4.size + len(udp) + len(payload)
        header = _IPV4.pack(0x45, 0, length, 0, 0, 64, socket.IPPROTO_UDP, 0, *addresses)
        self._sock.sendto(header + udp + payload, (target[0], 0))


def may_spoof() -> bool:
    """Whether this process may send from any address."""
    with contextlib.suppress(PermissionError), Spoofer():
        return True
    return False
