"""The names of peers as the batched sockets take them: 28 bytes laid out as Linux's sockaddr_in6.

For IPv4 it is sockaddr_in and zeros. Where names are never handed to the kernel the layout is the same. The
caches hold the peers of a busy process; a peer that is not in them costs two microseconds.
"""

from __future__ import annotations

import ipaddress
import struct
import sys
from functools import lru_cache

NAME_LENGTH = 28

Address = tuple[str, int]
"""Numeric host and port."""

_FAMILY4 = 2
_FAMILY6 = 10
_NAME4 = struct.Struct("!2xH4s20x")
_NAME6 = struct.Struct("!2xH4x16s4s")


@lru_cache(maxsize=16384)
def socket_name(host: str, port: int, flow_info: int = 0, scope: int = 0) -> bytes:
    """The 28-byte name of a numeric address; takes the tuples of both socket families as they are."""
    address = ipaddress.ip_address(host.partition("%")[0])
    if address.version == 4:
        return _FAMILY4.to_bytes(2, sys.byteorder) + _NAME4.pack(port, address.packed)[2:]
    return (
        _FAMILY6.to_bytes(2, sys.byteorder)
        + _NAME6.pack(port, address.packed, scope.to_bytes(4, sys.byteorder))[2:]
    )


@lru_cache(maxsize=16384)
def name_address(name: bytes) -> Address:
    """The numeric host and port of a name."""
    host, port = name_sockaddr(name)[:2]
    return host, port


@lru_cache(maxsize=16384)
def name_sockaddr(name: bytes) -> tuple[str, int] | tuple[str, int, int, int]:
    """The tuple that `socket.sendto` takes: host and port, for IPv6 also flow information and scope."""
    if int.from_bytes(name[:2], sys.byteorder) == _FAMILY4:
        port, packed = _NAME4.unpack(name)
        return str(ipaddress.IPv4Address(packed)), port
    port, packed, scope = _NAME6.unpack(name)
    return str(ipaddress.IPv6Address(packed)), port, 0, int.from_bytes(scope, sys.byteorder)
