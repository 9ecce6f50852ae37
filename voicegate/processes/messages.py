"""What a supervisor and its worker processes say to each other, over a SOCK_SEQPACKET socket each.

    supervisor ── Keys ──► worker     what a worker begins with, and again when the secrets change
    supervisor ◄── Warm ── worker     everything is loaded: it waits for a slot
    supervisor ── Serve ─► worker     a slot, with its sockets
    supervisor ◄─ Report ─ worker     it serves: at once, and then about every REPORT_SECONDS
    supervisor ◄─ Failed ─ worker     the configuration, or the registry, cannot be used
    supervisor ── Stop ──► worker     end, after what is under way

Either side takes the end of the socket for the end of the other process.
"""

from __future__ import annotations

import contextlib
import os
import socket
from collections.abc import Sequence
from typing import Generic, TypeVar

import msgspec
import trio

from voicegate.metrics import Sample

REPORT_SECONDS = 1.0
MAX_MESSAGE = 256 * 1024
"""A report has some hundred samples of 200 bytes; the kernel's own limit is about as much."""
MAX_DESCRIPTORS = 250
"""The kernel takes 253 per message: more addresses than that are not listened on."""


class Keys(msgspec.Struct, frozen=True, array_like=True, tag=1):
    secrets: tuple[str, ...]
    """See `ClusterKeys.entries`."""


class Serve(msgspec.Struct, frozen=True, array_like=True, tag=2):
    slot: int
    cpu: int | None
    """To pin to."""
    boot: str
    """For the record of this worker's own, if it registers one: never used before."""
    given: bytes
    """What else the role's part needs to know, in its own words; the sockets come beside it."""


class Stop(msgspec.Struct, frozen=True, array_like=True, tag=3):
    pass


class Warm(msgspec.Struct, frozen=True, array_like=True, tag=1):
    pid: int


class Report(msgspec.Struct, frozen=True, array_like=True, tag=2):
    progress: int
    """Grows as long as work is done."""
    samples: list[Sample]
    unready: str | None
    """Why no call would get through, for a person."""


class Failed(msgspec.Struct, frozen=True, array_like=True, tag=3):
    problem: str
    """A sentence for a person."""


ToWorker = Keys | Serve | Stop
FromWorker = Warm | Report | Failed
Received = TypeVar("Received")


class Channel(Generic[Received]):
    """One end. `decoder` is for what the other end sends."""

    def __init__(self, sock: socket.socket, decoder: msgspec.msgpack.Decoder[Received]) -> None:
        sock.setblocking(False)
        self._sock = sock
        self._decoder = decoder

    async def receive(self) -> tuple[Received, list[int]] | None:
        """A message with its file descriptors, now the caller's to close; None: the other process ended."""
        while True:
            await trio.lowlevel.wait_readable(self._sock)
            try:
                data, descriptors, _, _ = socket.recv_fds(self._sock, MAX_MESSAGE, MAX_DESCRIPTORS)
            except (BlockingIOError, InterruptedError):
                continue
            except ConnectionError:
                return None
            for descriptor in descriptors:
                os.set_inheritable(descriptor, False)
            return (self._decoder.decode(data), descriptors) if data else None

    def send_nowait(self, message: ToWorker | FromWorker, descriptors: Sequence[int] = ()) -> bool:
        """Whether the kernel took it: false when the other end reads no more, or is gone."""
        try:
            socket.send_fds(self._sock, [_ENCODER.encode(message)], descriptors)
        except OSError:
            return False
        return True

    def close(self) -> None:
        with contextlib.suppress(RuntimeError):  # outside of Trio nobody waits for it
            trio.lowlevel.notify_closing(self._sock)
        self._sock.close()


def supervisor_end(sock: socket.socket) -> Channel[FromWorker]:
    return Channel(sock, msgspec.msgpack.Decoder(FromWorker))


def worker_end(sock: socket.socket) -> Channel[ToWorker]:
    return Channel(sock, msgspec.msgpack.Decoder(ToWorker))


_ENCODER = msgspec.msgpack.Encoder()
