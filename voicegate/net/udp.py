"""UDP sockets that move datagrams by the batch: how they are bound, and which kind there is.

On Linux they stand on recvmmsg and sendmmsg (`mmsg`). With `batching="off"`, and on every other system, the
same interface (`datagrams.UdpSocket`) stands on recvfrom_into and sendto. A socket that is opened with
`errors` learns from ICMP that nobody is at an address: `take_refused` (Linux).

Only here and in `streams` are sockets of clients and of the link opened.
"""

from __future__ import annotations

import errno
import socket
import struct
import sys
from collections.abc import Sequence
from typing import Literal

from voicegate.net.datagrams import (
    BATCH,
    ENTRY_FIELDS,
    FAMILY4,
    FAMILY6,
    HEADROOM,
    LENGTHS,
    SLOT,
    Arena,
    UdpSocket,
)
from voicegate.net.mmsg import HAS_MMSG, SO_TIMESTAMPNS, MmsgSocket
from voicegate.net.names import NAME_LENGTH, name_sockaddr, socket_name

__all__ = [
    "BATCH",
    "FAMILY4",
    "FAMILY6",
    "HAS_MMSG",
    "HEADROOM",
    "SLOT",
    "Arena",
    "Batching",
    "MmsgSocket",
    "PlainSocket",
    "UdpSocket",
    "bind_udp",
    "open_udp",
    "uses_mmsg",
    "wrap_udp",
]

SOCKET_BUFFER = 4 << 20
"""Bytes asked for each way: 200 ms of 20,000 packets per second at the kernel's 768 bytes of truesize and
more each. Without CAP_NET_ADMIN the kernel grants what net.core.rmem_max allows."""

_NAME4_WHOLE = struct.Struct("@H2s4s20x")
_NAME6_WHOLE = struct.Struct("@H2s4x16s4x")
_IP_MTU_DISCOVER, _IPV6_MTU_DISCOVER, _PMTUDISC_PROBE = 10, 23, 3
_IP_RECVERR = 11
_IPV6_RECVERR = 25
_SO_SNDBUFFORCE, _SO_RCVBUFFORCE = 32, 33

Batching = Literal["auto", "off"]


class PlainSocket(UdpSocket):
    """recvfrom_into and sendto, one datagram per call: every system, and the tests' second path."""

    def receive(self) -> int:
        view, offsets = self.arena.view, self.arena.offsets
        count = 0
        while count < BATCH:
            offset = offsets[count]
            try:
                length, address = self.sock.recvfrom_into(view[offset:], SLOT - HEADROOM)
            except (BlockingIOError, InterruptedError):
                break
            except OSError as error:
                self.drops[f"receive_{errno.errorcode.get(error.errno or 0, 'error').lower()}"] += 1
                break
            start = count * NAME_LENGTH
            self.name_view[start : start + NAME_LENGTH] = socket_name(*address)
            LENGTHS.pack_into(self._length_view, count * LENGTHS.size, length)
            count += 1
        return count

    def send_each(self, entries: Sequence[bytes | int]) -> int:
        return self._send_each_from(self.arena, entries)

    def send_gathered(self, datagrams: Sequence[tuple[bytes, list[int]]]) -> int:
        view = self.arena.view
        sent = 0
        for name, spans in datagrams:
            pieces = zip(spans[::2], spans[1::2], strict=True)
            sent += self._send_one(name, b"".join([view[spot : spot + length] for spot, length in pieces]))
        return sent

    def _send_each_from(self, arena: Arena, entries: Sequence[bytes | int]) -> int:
        sent = 0
        view = arena.view
        form = _NAME6_WHOLE if self.is_ipv6 else _NAME4_WHOLE
        for position in range(0, len(entries), ENTRY_FIELDS):
            family, port, ip, spot, length = entries[position : position + ENTRY_FIELDS]
            assert isinstance(spot, int) and isinstance(length, int), "the order"
            sent += self._send_one(form.pack(family, port, ip), view[spot : spot + length])
        return sent

    def _send_one(self, name: bytes, payload: bytes | memoryview) -> int:
        try:
            self.sock.sendto(payload, name_sockaddr(name))
        except (BlockingIOError, InterruptedError):
            self.drops["send_full"] += 1
            return 0
        except OSError as error:
            self.drops[f"send_{errno.errorcode.get(error.errno or 0, 'error').lower()}"] += 1
            return 0
        return 1


def open_udp(
    host: str,
    port: int,
    *,
    batching: Batching = "auto",
    arena: Arena | None = None,
    errors: bool = False,
    stamps: bool = False,
) -> UdpSocket:
    """Bind a UDP socket to a numeric host and wrap it. OSError as from `bind`. `arena`: shared with other
    sockets; `errors`, `stamps`: for `take_refused` and `stamp`."""
    return wrap_udp(bind_udp(host, port, errors=errors, stamps=stamps), batching=batching, arena=arena)


def bind_udp(
    host: str, port: int, *, reuse_port: bool = False, errors: bool = False, stamps: bool = False
) -> socket.socket:
    """A bound UDP socket that `wrap_udp` can take, also in another process. `reuse_port`: one of several
    sockets of this address, among which the kernel spreads the clients."""
    family = socket.AF_INET6 if ":" in host else socket.AF_INET
    sock = socket.socket(family, socket.SOCK_DGRAM)
    try:
        if family == socket.AF_INET6:
            # The same client must not arrive under two spellings, and "::" must leave IPv4 to its own socket.
            sock.setsockopt(socket.IPPROTO_IPV6, socket.IPV6_V6ONLY, 1)
        _set_buffers(sock)
        if reuse_port:
            sock.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEPORT, 1)
        if sys.platform == "linux":
            # Nothing here is larger than a path takes. A datagram that may not be split needs no number of
            # its own, which saves 4 % of a forwarded packet, and PROBE believes no forged ICMP about the MTU.
            if family == socket.AF_INET6:
                sock.setsockopt(socket.IPPROTO_IPV6, _IPV6_MTU_DISCOVER, _PMTUDISC_PROBE)
            else:
                sock.setsockopt(socket.IPPROTO_IP, _IP_MTU_DISCOVER, _PMTUDISC_PROBE)
        if sys.platform == "linux" and errors:
            if family == socket.AF_INET6:
                sock.setsockopt(socket.IPPROTO_IPV6, _IPV6_RECVERR, 1)
            else:
                sock.setsockopt(socket.IPPROTO_IP, _IP_RECVERR, 1)
        if sys.platform == "linux" and stamps:
            sock.setsockopt(socket.SOL_SOCKET, SO_TIMESTAMPNS, 1)
        sock.bind((host, port))
    except OSError:
        sock.close()
        raise
    return sock


def wrap_udp(sock: socket.socket, *, batching: Batching = "auto", arena: Arena | None = None) -> UdpSocket:
    """A bound socket of somebody else's (an inherited one) as a `UdpSocket`, which then owns it."""
    batched = uses_mmsg(batching)
    if arena is None:
        arena = Arena(addresses=batched)
    return MmsgSocket(sock, arena) if batched else PlainSocket(sock, arena)


def uses_mmsg(batching: Batching) -> bool:
    """Whether sockets opened with this setting work by recvmmsg and sendmmsg here."""
    return batching == "auto" and HAS_MMSG


def _set_buffers(sock: socket.socket) -> None:
    for option, force in ((socket.SO_RCVBUF, _SO_RCVBUFFORCE), (socket.SO_SNDBUF, _SO_SNDBUFFORCE)):
        if sys.platform == "linux":
            try:
                sock.setsockopt(socket.SOL_SOCKET, force, SOCKET_BUFFER)
                continue
            except PermissionError:
                pass  # only CAP_NET_ADMIN goes beyond what net.core allows to all
        sock.setsockopt(socket.SOL_SOCKET, option, SOCKET_BUFFER)
