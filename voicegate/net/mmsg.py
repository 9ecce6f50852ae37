"""recvmmsg and sendmmsg: up to 256 datagrams per system call. Linux, 64 bits.

The mmsghdr and iovec arrays are packed with `struct`, because ctypes attribute access would cost more than
the system call.
"""

from __future__ import annotations

import ctypes
import errno
import socket
import struct
import sys
from collections.abc import Sequence
from functools import lru_cache

from voicegate.net.datagrams import (
    BATCH,
    ENTRY_FIELDS,
    HEADROOM,
    SEND_SLOTS,
    SLOT,
    Arena,
    UdpSocket,
)
from voicegate.net.names import NAME_LENGTH, Address

MAX_SPANS = BATCH
"""Pieces per gathered datagram: a bundle holds a batch at most."""
SO_TIMESTAMPNS = 35
"""Of asm-generic/socket.h; the socket module does not know it."""

# struct mmsghdr: name, name length, iovec, iovec count, control, control length, flags; length.
_MESSAGE = struct.Struct("@QI4xQQQQi4xI4x")
_CONTROL = struct.Struct("@QQ")
_CONTROL_OFFSET = 32
_IOVEC = struct.Struct("@QQ")
# One fan-out entry: the peer's name (family, port, address), then the single iovec of its datagram.
_ENTRY4 = "@H2s4s24xQQ"
_ENTRY6 = "@H2s4x16s8xQQ"
_ENTRY_SIZE = struct.calcsize(_ENTRY4)
_ENTRY_IOVEC = 32
# struct cmsghdr and the struct timespec that SO_TIMESTAMPNS puts behind it.
_STAMP = struct.Struct("@QiiQQ")
_CONTROL_SIZE = 64
# struct sock_extended_err, then the sockaddr of who sent the error; IP_RECVERR and IPV6_RECVERR.
_ERROR_ORIGINS = (2, 3)  # SO_EE_ORIGIN_ICMP, SO_EE_ORIGIN_ICMP6
_MAX_ERRORS = 64


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

        self._entries = ctypes.create_string_buffer(SEND_SLOTS * _ENTRY_SIZE)
        each = self._messages(
            SEND_SLOTS, self._entries, _ENTRY_SIZE, self._entries, _ENTRY_IOVEC, _ENTRY_SIZE
        )

        gather_names = ctypes.create_string_buffer(SEND_SLOTS * NAME_LENGTH)
        self._gather_names = memoryview(gather_names).cast("B")
        self._gather_iovecs = ctypes.create_string_buffer(SEND_SLOTS * MAX_SPANS * _IOVEC.size)
        self._gather_messages = ctypes.create_string_buffer(SEND_SLOTS * _MESSAGE.size)
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
        if (level, kind) != (socket.SOL_SOCKET, SO_TIMESTAMPNS) or length < _STAMP.size:
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
        for start in range(0, len(entries), ENTRY_FIELDS * SEND_SLOTS):
            part = entries[start : start + ENTRY_FIELDS * SEND_SLOTS]
            count = len(part) // ENTRY_FIELDS
            _entries(form, count).pack_into(self._entries, 0, *part)
            sent += self._send(self._pointers[1], count)
        return sent

    def send_gathered(self, datagrams: Sequence[tuple[bytes, list[int]]]) -> int:
        sent = 0
        names, iovecs = self._pointers[3:]
        for start in range(0, len(datagrams), SEND_SLOTS):
            part = datagrams[start : start + SEND_SLOTS]
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


def _has_stamps(sock: socket.socket) -> bool:
    return bool(sock.getsockopt(socket.SOL_SOCKET, SO_TIMESTAMPNS))


@lru_cache(maxsize=2 * SEND_SLOTS)
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
