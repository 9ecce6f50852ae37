"""The sockets of a relay: opened once, for as many workers as it has, and handed to each.

Worker n has its own copy of every public address, UDP and TCP, and a link socket. Whoever opened them keeps
them open: the kernel spreads clients over the copies by their address, so as long as none is closed no client
moves, and what arrives while a worker is replaced waits in its socket.
"""

from __future__ import annotations

import socket
from collections.abc import Sequence
from dataclasses import dataclass

from voicegate.config import ConfigError, RelayConfig
from voicegate.net.listen import bind_group, listen_problem
from voicegate.net.udp import SOCKET_BUFFER
from voicegate.proto.address import join_host_port, parse_ip, split_host_port

_MAX_PORT = 65535


@dataclass(frozen=True, slots=True)
class Sockets:
    """What one worker listens on."""

    link: socket.socket
    public: tuple[socket.socket, ...]
    """UDP, in the order of `relay.listen`."""
    listeners: tuple[socket.socket, ...]
    """TCP, listening, in the order of `relay.listen`."""

    def descriptors(self) -> list[int]:
        """For `adopt_sockets` in another process."""
        return [sock.fileno() for sock in (self.link, *self.public, *self.listeners)]

    def link_address(self) -> str:
        return _address(self.link)

    def addresses(self) -> list[str]:
        """The public addresses as bound: `ip:port`, then `ip:port/tcp`."""
        return [*map(_address, self.public), *(f"{_address(sock)}/tcp" for sock in self.listeners)]

    def close(self) -> None:
        for sock in (self.link, *self.public, *self.listeners):
            sock.close()


def open_sockets(relay: RelayConfig, workers: int) -> list[Sockets]:
    """One `Sockets` for each of `workers` (at least 1). ConfigError, with a sentence, when one cannot be
    had."""
    opened: list[socket.socket] = []
    try:
        links = []
        host, port = _parse("link_listen", relay.link_listen)
        for index in range(workers):
            opened += (group := _bind("link_listen", host, port and port + index, 1))
            links += group
        udp: list[list[socket.socket]] = []
        tcp: list[list[socket.socket]] = []
        for listen in relay.listen:
            address, _, transport = listen.partition("/")
            kind = socket.SOCK_STREAM if transport == "tcp" else socket.SOCK_DGRAM
            opened += (group := _bind("listen", *_parse("listen", address), workers, kind))
            (tcp if transport == "tcp" else udp).append(group)
    except ConfigError:
        for sock in opened:
            sock.close()
        raise
    return [
        Sockets(link, tuple(group[index] for group in udp), tuple(group[index] for group in tcp))
        for index, link in enumerate(links)
    ]


def adopt_sockets(descriptors: Sequence[int]) -> Sockets:
    """The sockets of `Sockets.descriptors`, received from another process."""
    link, *public = [socket.socket(fileno=descriptor) for descriptor in descriptors]
    for sock in (link, *public):
        sock.setblocking(False)
    return Sockets(
        link,
        tuple(sock for sock in public if sock.type == socket.SOCK_DGRAM),
        tuple(sock for sock in public if sock.type == socket.SOCK_STREAM),
    )


def _parse(key: str, listen: str) -> tuple[str, int]:
    try:
        host, port = split_host_port(listen)
        ip = parse_ip(host)
    except ValueError as error:
        raise ConfigError(f"[relay] {key}: {error}; write 127.0.0.1:3478 or [::1]:3478") from None
    if key == "link_listen" and ip.is_unspecified:
        raise ConfigError(
            f"[relay] link_listen: {listen} is every address of this machine; write the one that the "
            "transceivers reach"
        )
    return str(ip), port


def _bind(
    key: str, host: str, port: int, count: int, kind: socket.SocketKind = socket.SOCK_DGRAM
) -> list[socket.socket]:
    if port > _MAX_PORT:
        raise ConfigError(f"[relay] {key}: there is no port {port}: worker n has the port plus n")
    is_udp = kind == socket.SOCK_DGRAM
    try:
        return bind_group(kind, host, port, count, buffer=SOCKET_BUFFER if is_udp else 0)
    except OSError as error:
        listen = f"{join_host_port(host, port)}/{'udp' if is_udp else 'tcp'}"
        raise ConfigError(listen_problem("relay", key, listen, error)) from error


def _address(sock: socket.socket) -> str:
    return join_host_port(*sock.getsockname()[:2])
