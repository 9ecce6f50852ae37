"""Sockets that listen: bound here, and where that fails a sentence that names the key and what to do."""

from __future__ import annotations

import errno
import os
import socket

BACKLOG = 1024
"""Connections that wait to be accepted; the kernel cuts it to net.core.somaxconn."""


class ListenError(OSError):
    """An address that cannot be listened on; the message names it."""


def listen_problem(section: str, key: str, listen: str, error: OSError) -> str:
    """The sentence for `[section] key`; `listen` is the address as it was asked for."""
    choose = f"choose another address (VOICEGATE_{section.upper()}_{key.upper()})"
    reason, remedy = os.strerror(error.errno) if error.errno else str(error), choose
    if error.errno == errno.EADDRINUSE:
        remedy = f"stop what uses that port, or {choose}"
    elif error.errno == errno.EADDRNOTAVAIL:
        reason = "this machine has no such address"
    elif error.errno == errno.EACCES:
        remedy = f"ports below 1024 need a permission; {choose}"
    return f"[{section}] {key}: cannot listen on {listen}: {reason}; {remedy}"


def bind_group(
    kind: socket.SocketKind, host: str, port: int, count: int, *, buffer: int = 0
) -> list[socket.socket]:
    """`count` sockets of SOCK_DGRAM or SOCK_STREAM on one address: the kernel spreads the clients over them.

    `host` is numeric; `buffer`: bytes asked for each way, 0: the system's. Streams listen already. OSError as
    from `bind`: also when anybody else has the address, sharing or not.
    """
    group: list[socket.socket] = []
    try:
        for _ in range(count):
            group.append(_socket(kind, host, buffer))
            if len(group) > 1:
                group[-1].setsockopt(socket.SOL_SOCKET, socket.SO_REUSEPORT, 1)
            group[-1].bind((host, port))
            port = group[-1].getsockname()[1]
            if count > 1:
                # The first was bound without it, so that a second process of the same user, which might
                # share as well, is refused rather than given half of our packets.
                group[-1].setsockopt(socket.SOL_SOCKET, socket.SO_REUSEPORT, 1)
        if kind == socket.SOCK_STREAM:
            for sock in group:
                sock.listen(BACKLOG)
    except OSError:
        for sock in group:
            sock.close()
        raise
    return group


def _socket(kind: socket.SocketKind, host: str, buffer: int) -> socket.socket:
    family = socket.AF_INET6 if ":" in host else socket.AF_INET
    sock = socket.socket(family, kind)
    sock.setblocking(False)
    if family == socket.AF_INET6:
        # The same client must not arrive under two spellings, and "::" must leave IPv4 to its own socket.
        sock.setsockopt(socket.IPPROTO_IPV6, socket.IPV6_V6ONLY, 1)
    if kind == socket.SOCK_STREAM and os.name == "posix":
        # Connections of a relay that has just ended must not keep its successor from the address.
        sock.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
    if buffer:
        for option in (socket.SO_RCVBUF, socket.SO_SNDBUF):
            sock.setsockopt(socket.SOL_SOCKET, option, buffer)
    return sock
