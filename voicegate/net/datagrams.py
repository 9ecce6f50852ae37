"""Batches of UDP datagrams: what they lie in, and what a socket that moves them looks like.

All payloads of a batch lie in one `Arena`: slots of 2 KiB, each with headroom before the payload, so that a
link frame header can be written right in front of it and nothing is ever copied. A place in the arena is an
integer, a *spot*: where the kernel reads by address (`mmsg`), the memory address, else the offset;
`Arena.base` is the difference, and callers compute `arena.base + offset` without caring which.

A peer is a *name*: 28 bytes laid out as Linux's sockaddr_in6 (sockaddr_in and zeros for IPv4), made by
`socket_name`, or its port and address as they were read with a packet. A socket carries one family only
(IPV6_V6ONLY), so one client has one name.

A datagram that cannot be sent is counted and skipped; sending never raises and never waits.
"""

from __future__ import annotations

import ctypes
import socket
import struct
from collections import Counter
from collections.abc import Iterable, Iterator, Sequence

from voicegate.net.names import NAME_LENGTH, Address, name_address, socket_name

BATCH = 256
"""Datagrams per receiving call. Measured on the relay with ten transceivers: 3 % less for a packet than with
64, for link datagrams are fuller; with 8 a quarter more."""
SLOT = 2048
FAMILY4, FAMILY6 = int(socket.AF_INET), int(socket.AF_INET6)
"""What an entry of `send_each` begins with."""
HEADROOM = 32
"""A link header and an IPv6 frame header (10 + 21 bytes) fit before the payload."""
SEND_SLOTS = 256
"""Datagrams per sending call: a batch of bundles fans out to several times its number."""
ENTRY_FIELDS = 5
"""Of one datagram in the list for `send_each`."""
LENGTHS = struct.Struct("@56xI4x")
"""Where the length of a received datagram stands: struct mmsghdr of 64-bit Linux."""

_NAMES4 = struct.Struct("2x2s4s20x")
_NAMES6 = struct.Struct("2x2s4x16s4x")


class Arena:
    """The memory in which the datagrams of one thread lie, shared by all of its sockets."""

    __slots__ = ("_memory", "base", "offsets", "view")

    def __init__(self, *, slots: int = BATCH, addresses: bool) -> None:
        """`addresses`: spots are memory addresses (for recvmmsg and sendmmsg), not offsets."""
        self._memory = ctypes.create_string_buffer((slots + 1) * SLOT)
        self.view = memoryview(self._memory).cast("B")
        self.base = ctypes.addressof(self._memory) if addresses else 0
        self.offsets = tuple(index * SLOT + HEADROOM for index in range(slots))
        """Where the payload of each slot begins, relative to `view`."""


class UdpSocket:
    """One non-blocking UDP socket. `udp.open_udp` makes the right kind.

    Two ways to use it. By the batch of bytes: `recv_batch`, `send_batch`. Over the arena, for a forwarder:
    `receive` fills the arena's slots, `names` and `lengths` tell what is there, `send_each` and
    `send_gathered` take spots. What lies in the arena is good until the next `receive` of any socket that
    shares it.
    """

    def __init__(self, sock: socket.socket, arena: Arena) -> None:
        sock.setblocking(False)
        self.sock = sock
        self.arena = arena
        self.is_ipv6 = sock.family == socket.AF_INET6
        self.drops: Counter[str] = Counter()
        """Datagrams that were not sent and receive calls that failed, by reason."""
        self.name_view = memoryview(bytearray(BATCH * NAME_LENGTH))
        """The senders of the last batch: NAME_LENGTH bytes per slot."""
        self._length_view = memoryview(bytearray(BATCH * LENGTHS.size))
        self._names = _NAMES6 if self.is_ipv6 else _NAMES4
        self._scratch: Arena | None = None

    def fileno(self) -> int:
        return self.sock.fileno()

    def address(self) -> Address:
        """The bound address."""
        host, port = self.sock.getsockname()[:2]
        return host, port

    def close(self) -> None:
        self.sock.close()

    def receive(self) -> int:
        """Fill the slots with what is ready; how many datagrams that are (at most BATCH). Never waits or
        raises."""
        raise NotImplementedError

    def names(self, count: int) -> Iterator[tuple[bytes, bytes]]:
        """(port, IP address) of each sender in the batch, in network order."""
        return self._names.iter_unpack(self.name_view[: count * NAME_LENGTH])

    def lengths(self, count: int) -> Iterator[tuple[int]]:
        """Payload length of each datagram; one that was cut off fills its slot: SLOT - HEADROOM."""
        return LENGTHS.iter_unpack(self._length_view[: count * LENGTHS.size])

    def stamp(self) -> float | None:
        """When the kernel received the first datagram of the last batch, calendar seconds; None when it does
        not say (`udp.open_udp(stamps=True)`, Linux)."""
        return None

    def take_refused(self) -> list[Address]:
        """Addresses at which nobody took what was sent, by ICMP, since the last call."""
        return []

    def send_each(self, entries: Sequence[bytes | int]) -> int:
        """Send datagrams that lie whole in the arena: a flat list of FAMILY4 or FAMILY6, port, address (both
        in network order, as `names` gives them), spot, length, family, ...

        How many the kernel took; the others are counted in `drops`.
        """
        raise NotImplementedError

    def send_gathered(self, datagrams: Sequence[tuple[bytes, list[int]]]) -> int:
        """Send datagrams gathered from pieces of the arena: (name, flat list of spot, length, spot, ...)."""
        raise NotImplementedError

    def recv_batch(self) -> list[tuple[Address, bytes]]:
        """What is ready, at most BATCH datagrams, as (sender, payload); cut-off ones are dropped and
        counted."""
        count = self.receive()
        if not count:
            return []
        view = self.arena.view
        names = self.name_view
        batch = []
        for index, (offset, (length,)) in enumerate(
            zip(self.arena.offsets, self.lengths(count), strict=False)
        ):
            if length >= SLOT - HEADROOM:
                self.drops["oversize"] += 1
                continue
            name = bytes(names[index * NAME_LENGTH : (index + 1) * NAME_LENGTH])
            batch.append((name_address(name), bytes(view[offset : offset + length])))
        return batch

    def send_batch(self, datagrams: Iterable[tuple[Address | bytes, bytes]]) -> int:
        """Send (receiver's address or name, payload) pairs in order; how many the kernel took. Others are
        counted in `drops`."""
        if self._scratch is None:
            # The received batch must survive an answer to its first packet, so sending has memory of its own.
            self._scratch = Arena(slots=SEND_SLOTS, addresses=self.arena.base != 0)
        view, base, offsets = self._scratch.view, self._scratch.base, self._scratch.offsets
        part_of = self._names.unpack_from
        family = FAMILY6 if self.is_ipv6 else FAMILY4
        entries: list[bytes | int] = []
        sent = 0
        used = 0
        for address, payload in datagrams:
            length = len(payload)
            if length > SLOT - HEADROOM:
                self.drops["oversize"] += 1
                continue
            if used == SEND_SLOTS:
                sent += self._send_each_from(self._scratch, entries)
                entries.clear()
                used = 0
            try:
                name = address if isinstance(address, bytes) else socket_name(*address)
            except (ValueError, struct.error):
                self.drops["address"] += 1
                continue
            offset = offsets[used]
            view[offset : offset + length] = payload
            entries += (family, *part_of(name), base + offset, length)
            used += 1
        return sent + self._send_each_from(self._scratch, entries)

    def statistics(self) -> dict[str, int]:
        """Drops by reason."""
        return dict(self.drops)

    def _send_each_from(self, arena: Arena, entries: Sequence[bytes | int]) -> int:
        raise NotImplementedError
