"""Datagrams by the batch: the only code that reads from or writes to UDP sockets.

Theory of operation. All payloads of a batch lie in one `Arena`: slots of 2 KiB, each with headroom before the
payload, so that a link frame header can be written right in front of it and nothing is ever copied. A place
in the arena is an integer, a *spot*: on Linux the memory address that the kernel is given, elsewhere the
offset; `Arena.base` is the difference, and callers compute `arena.base + offset` without caring which. On
Linux a `UdpSocket` moves up to 256 datagrams per system call (recvmmsg, sendmmsg) over mmsghdr and iovec
arrays that are packed with `struct`, because ctypes attribute access would cost more than the system call.
With `batching="off"`, and on every other system, the same class interface stands on recvfrom_into and sendto.

A peer is a *name*: 28 bytes laid out as Linux's sockaddr_in6 (sockaddr_in and zeros for IPv4), made by
`socket_name`, or its port and address as they were read with a packet. A socket carries one family only
(IPV6_V6ONLY), so one client has one name.

A datagram that cannot be sent is counted and skipped; sending never raises and never waits. A socket that is
opened with `errors` learns from ICMP that nobody is at an address: `take_refused` (Linux).
"""

from __future__ import annotations

import ctypes
import errno
import socket
import struct
import sys
from collections import Counter
from collections.abc import Iterable, Iterator, Sequence
from functools import lru_cache
from typing import Literal

from voicegate.net.names import NAME_LENGTH, Address, name_address, name_sockaddr, socket_name

BATCH = 256
"""Datagrams per receiving call. Measured on the relay with ten transceivers: 3 % less for a packet than with
64, for link datagrams are fuller; with 8 a quarter more."""
SLOT = 2048
FAMILY4, FAMILY6 = int(socket.AF_INET), int(socket.AF_INET6)
"""What an entry of `send_each` begins with."""
HEADROOM = 32
"""A link header and an IPv6 frame header (10 + 21 bytes) fit before the payload."""
MAX_SPANS = BATCH
"""Pieces per gathered datagram: a bundle holds a batch at most."""
SOCKET_BUFFER = 4 << 20
"""Bytes asked for each way: 200 ms of 20,000 packets per second at the kernel's 768 bytes of truesize and
more each. The kernel grants what net.core.rmem_max allows."""

_SEND_SLOTS = 256
"""Datagrams per sending call: a batch of bundles fans out to several times its number."""
_NAMES4 = struct.Struct("2x2s4s20x")
_NAMES6 = struct.Struct("2x2s4x16s4x")
_NAME4_WHOLE = struct.Struct("@H2s4s20x")
_NAME6_WHOLE = struct.Struct("@H2s4x16s4x")
_IP_MTU_DISCOVER, _IPV6_MTU_DISCOVER, _PMTUDISC_PROBE = 10, 23, 3
_IP_RECVERR = 11
_IPV6_RECVERR = 25
# struct mmsghdr on 64-bit Linux: name, name length, iovec, iovec count, control, control length, flags;
# length.
_MESSAGE = struct.Struct("@QI4xQQQQi4xI4x")
_CONTROL = struct.Struct("@QQ")
_CONTROL_OFFSET = 32
_LENGTHS = struct.Struct("@56xI4x")
_IOVEC = struct.Struct("@QQ")
# One fan-out entry: the peer's name (family, port, address), then the single iovec of its datagram.
_ENTRY4 = "@H2s4s24xQQ"
_ENTRY6 = "@H2s4x16s8xQQ"
_ENTRY_SIZE = struct.calcsize(_ENTRY4)
_ENTRY_IOVEC = 32
_ENTRY_FIELDS = 5
# struct cmsghdr and the struct timespec that SO_TIMESTAMPNS puts behind it.
_STAMP = struct.Struct("@QiiQQ")
_SO_TIMESTAMPNS = 35
_CONTROL_SIZE = 64
# struct sock_extended_err, then the sockaddr of who sent the error; IP_RECVERR and IPV6_RECVERR.
_ERROR_ORIGINS = (2, 3)  # SO_EE_ORIGIN_ICMP, SO_EE_ORIGIN_ICMP6
_MAX_ERRORS = 64

Batching = Literal["auto", "off"]


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
    """One non-blocking UDP socket. `open_udp` makes the right kind.

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
        self._length_view = memoryview(bytearray(BATCH * _LENGTHS.size))
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
        return _LENGTHS.iter_unpack(self._length_view[: count * _LENGTHS.size])

    def stamp(self) -> float | None:
        """When the kernel received the first datagram of the last batch, calendar seconds; None when it does
        not say (`open_udp(stamps=True)`, Linux)."""
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
            self._scratch = Arena(slots=_SEND_SLOTS, addresses=self.arena.base != 0)
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
            if used == _SEND_SLOTS:
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


class MmsgSocket(UdpSocket):
    """recvmmsg and sendmmsg on Linux. The arena's spots must be addresses."""

    def __init__(self, sock: socket.socket, arena: Arena) -> None:
        super().__init__(sock, arena)
        assert arena.base, "the kernel needs addresses"
        assert len(arena.offsets) >= BATCH, "recvmmsg fills BATCH slots"
        self._name_length = NAME_LENGTH if self.is_ipv6 else 16
        names = ctypes.create_string_buffer(BATCH * NAME_LENGTH)
        iovecs = ctypes.create_string_buffer(BATCH * _IOVEC.size)
        for index, offset in enumerate(arena.offsets[:BATCH]):
            _IOVEC.pack_into(iovecs, index * _IOVEC.size, arena.base + offset, SLOT - HEADROOM)
        # The kernel writes name lengths back; for one family they are always the same: set once, they stay.
        received = self._messages(BATCH, names, NAME_LENGTH, iovecs, 0, _IOVEC.size)
        self._received = received
        self._control = ctypes.create_string_buffer(_CONTROL_SIZE) if _has_stamps(sock) else None
        self.name_view = memoryview(names).cast("B")
        self._length_view = memoryview(received).cast("B")

        self._entries = ctypes.create_string_buffer(_SEND_SLOTS * _ENTRY_SIZE)
        each = self._messages(
            _SEND_SLOTS, self._entries, _ENTRY_SIZE, self._entries, _ENTRY_IOVEC, _ENTRY_SIZE
        )

        gather_names = ctypes.create_string_buffer(_SEND_SLOTS * NAME_LENGTH)
        self._gather_names = memoryview(gather_names).cast("B")
        self._gather_iovecs = ctypes.create_string_buffer(_SEND_SLOTS * MAX_SPANS * _IOVEC.size)
        self._gather_messages = ctypes.create_string_buffer(_SEND_SLOTS * _MESSAGE.size)
        memories = (received, each, self._gather_messages, gather_names, self._gather_iovecs)
        self._pointers = tuple(ctypes.addressof(memory) for memory in memories)
        self._kept = (names, iovecs, each)  # what only the kernel reads must live as long

    def receive(self) -> int:
        if self._control is not None:
            # The kernel wrote the length of the last stamp here, or 0. The first datagram's is enough: it
            # has waited longest.
            _CONTROL.pack_into(
                self._received, _CONTROL_OFFSET, ctypes.addressof(self._control), _CONTROL_SIZE
            )
        count = int(_recvmmsg(self.sock.fileno(), self._pointers[0], BATCH, _MSG_DONTWAIT, None))
        if count < 0:
            code = ctypes.get_errno()
            if code not in (errno.EAGAIN, errno.EINTR):
                # A pending ICMP error is reported once instead of a packet; the next call goes on.
                self.drops[f"receive_{errno.errorcode.get(code, 'error').lower()}"] += 1
            return 0
        return count

    def stamp(self) -> float | None:
        if self._control is None:
            return None
        length, level, kind, seconds, nanoseconds = _STAMP.unpack_from(self._control, 0)
        if (level, kind) != (socket.SOL_SOCKET, _SO_TIMESTAMPNS) or length < _STAMP.size:
            return None
        return float(seconds) + float(nanoseconds) * 1e-9

    def take_refused(self) -> list[Address]:
        refused: list[Address] = []
        for _ in range(_MAX_ERRORS):
            try:
                _, control, _, address = self.sock.recvmsg(0, 512, socket.MSG_ERRQUEUE | _MSG_DONTWAIT)
            except OSError:
                break
            # The address is that which the datagram was sent to.
            if address and any(len(data) > 4 and data[4] in _ERROR_ORIGINS for _, _, data in control):
                refused.append((address[0], address[1]))
        return refused

    def send_each(self, entries: Sequence[bytes | int]) -> int:
        sent = 0
        form = _ENTRY6 if self.is_ipv6 else _ENTRY4
        for start in range(0, len(entries), _ENTRY_FIELDS * _SEND_SLOTS):
            part = entries[start : start + _ENTRY_FIELDS * _SEND_SLOTS]
            count = len(part) // _ENTRY_FIELDS
            _entries(form, count).pack_into(self._entries, 0, *part)
            sent += self._send(self._pointers[1], count)
        return sent

    def send_gathered(self, datagrams: Sequence[tuple[bytes, list[int]]]) -> int:
        sent = 0
        names, iovecs = self._pointers[3:]
        for start in range(0, len(datagrams), _SEND_SLOTS):
            part = datagrams[start : start + _SEND_SLOTS]
            used = 0
            for index, (name, spans) in enumerate(part):
                self._gather_names[index * NAME_LENGTH : (index + 1) * NAME_LENGTH] = name
                pieces = len(spans) // 2
                _spans(pieces).pack_into(self._gather_iovecs, used, *spans)
                _MESSAGE.pack_into(
                    self._gather_messages,
                    index * _MESSAGE.size,
                    *(names + index * NAME_LENGTH, self._name_length, iovecs + used, pieces, 0, 0, 0, 0),
                )
                used += pieces * _IOVEC.size
            sent += self._send(self._pointers[2], len(part))
        return sent

    def _send_each_from(self, arena: Arena, entries: Sequence[bytes | int]) -> int:
        return self.send_each(entries)  # a spot is an address: the kernel does not ask whose

    def _messages(
        self,
        count: int,
        names: ctypes.Array[ctypes.c_char],
        name_stride: int,
        iovecs: ctypes.Array[ctypes.c_char],
        iovec_offset: int,
        iovec_stride: int,
    ) -> ctypes.Array[ctypes.c_char]:
        """An array of mmsghdr, each with a name and one iovec at fixed distances."""
        messages = ctypes.create_string_buffer(count * _MESSAGE.size)
        name, iovec = ctypes.addressof(names), ctypes.addressof(iovecs) + iovec_offset
        for index in range(count):
            fields = (name + index * name_stride, self._name_length, iovec + index * iovec_stride, 1)
            _MESSAGE.pack_into(messages, index * _MESSAGE.size, *fields, 0, 0, 0, 0)
        return messages

    def _send(self, messages: int, count: int) -> int:
        descriptor = self.sock.fileno()
        sent = done = 0
        refused = False
        while done < count:
            result = int(_sendmmsg(descriptor, messages + done * _MESSAGE.size, count - done, _MSG_DONTWAIT))
            if result > 0:
                sent += result
                done += result
                continue
            code = ctypes.get_errno()
            if code == errno.EAGAIN or code == errno.ENOBUFS:
                # The socket buffer is full: what is late is worth nothing, so the rest of the batch is
                # dropped.
                self.drops["send_full"] += count - done
                break
            if code == errno.ECONNREFUSED and not refused:
                refused = True  # an ICMP error of an earlier datagram, told once: this one was not tried
                continue
            if code != errno.EINTR:
                # sendmmsg stops at the first datagram that fails: step over it and go on.
                self.drops[f"send_{errno.errorcode.get(code, 'error').lower()}"] += 1
                done += 1
        return sent


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
            _LENGTHS.pack_into(self._length_view, count * _LENGTHS.size, length)
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
        for position in range(0, len(entries), _ENTRY_FIELDS):
            family, port, ip, spot, length = entries[position : position + _ENTRY_FIELDS]
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
        for option in (socket.SO_RCVBUF, socket.SO_SNDBUF):
            sock.setsockopt(socket.SOL_SOCKET, option, SOCKET_BUFFER)
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
            sock.setsockopt(socket.SOL_SOCKET, _SO_TIMESTAMPNS, 1)
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


def _has_stamps(sock: socket.socket) -> bool:
    return bool(sock.getsockopt(socket.SOL_SOCKET, _SO_TIMESTAMPNS))


@lru_cache(maxsize=2 * _SEND_SLOTS)
def _entries(form: str, count: int) -> struct.Struct:
    return struct.Struct("@" + form[1:] * count)


@lru_cache(maxsize=MAX_SPANS)
def _spans(count: int) -> struct.Struct:
    return struct.Struct(f"@{2 * count}Q")


_MSG_DONTWAIT = getattr(socket, "MSG_DONTWAIT", 0)
# The layouts above are those of 64-bit Linux; anything else takes the plain path.
HAS_MMSG = sys.platform == "linux" and struct.calcsize("P") == 8
if HAS_MMSG:
    _libc = ctypes.CDLL(None, use_errno=True)
    _recvmmsg = _libc.recvmmsg
    _recvmmsg.argtypes = (ctypes.c_int, ctypes.c_void_p, ctypes.c_uint, ctypes.c_int, ctypes.c_void_p)
    _recvmmsg.restype = ctypes.c_int
    _sendmmsg = _libc.sendmmsg
    _sendmmsg.argtypes = (ctypes.c_int, ctypes.c_void_p, ctypes.c_uint, ctypes.c_int)
    _sendmmsg.restype = ctypes.c_int
