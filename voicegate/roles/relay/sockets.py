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
from voicegate.net.listen import listen_problem
from voicegate.net.streams import open_listener
from voicegate.net.udp import bind_udp
from voicegate.processes.messages import MAX_DESCRIPTORS
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
    if len(relay.listen) >= MAX_DESCRIPTORS:  # a worker is handed them and its link at once
        raise ConfigError(
            f"[relay] listen: at most {MAX_DESCRIPTORS - 1} addresses; run another relay for more"
        )
    opened: list[socket.socket] = []
    try:
        host, port = _parse("link_listen", relay.link_listen)
        opened.extend(_bind_link(host, port and port + index) for index in range(workers))
        links = tuple(opened)
        groups: dict[str, list[list[socket.socket]]] = {"udp": [], "tcp": []}
        for listen in relay.listen:
            address, _, transport = listen.partition("/")
            group = _bind_public(transport or "udp", *_parse("listen", address), workers)
            opened += group
            groups[transport or "udp"].append(group)
    except ConfigError:
        for sock in opened:
            sock.close()
        raise
    return [
        Sockets(
            link,
            tuple(group[index] for group in groups["udp"]),
            tuple(group[index] for group in groups["tcp"]),
        )
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


def _bind_link(host: str, port: int) -> socket.socket:
    if port > _MAX_PORT:
        raise ConfigError(f"[relay] link_listen: there is no port {port}; worker n has the port plus n")
    try:
        return bind_udp(host, port, errors=True)
    except OSError as error:
        raise ConfigError(_problem("link_listen", f"{join_host_port(host, port)}/udp", error)) from error


def _bind_public(transport: str, host: str, port: int, count: int) -> list[socket.socket]:
    """`count` sockets of one address."""
    group: list[socket.socket] = []
    try:
        for _ in range(count):
            # The first is bound without SO_REUSEPORT, so that a second relay of the same user, which would
            # share as well, is refused rather than given half of our packets.
            if transport == "tcp":
                sock = open_listener(host, port, reuse_port=bool(group))
            else:
                sock = bind_udp(host, port, reuse_port=bool(group), stamps=True)
            group.append(sock)
            if count > 1:
                sock.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEPORT, 1)
            port = sock.getsockname()[1]
    except OSError as error:
        for sock in group:
            sock.close()
        raise ConfigError(_problem("listen", f"{join_host_port(host, port)}/{transport}", error)) from error
    return group


def _problem(key: str, listen: str, error: OSError) -> str:
    return listen_problem("relay", key, listen, error)


def _address(sock: socket.socket) -> str:
    return join_host_port(*sock.getsockname()[:2])
