"""The sockets of a relay: one address for all workers, and nobody else's."""

from __future__ import annotations

import os
import socket

import pytest

from voicegate.config import ConfigError, RelayConfig
from voicegate.proto.address import split_host_port
from voicegate.roles.relay.sockets import Sockets, adopt_sockets, open_sockets

LISTEN = ("127.0.0.1:0", "[::1]:0", "127.0.0.1:0/tcp", "[::1]:0/tcp")


def opened(workers: int, **settings: object) -> list[Sockets]:
    return open_sockets(RelayConfig(**{"listen": LISTEN, **settings}), workers)  # type: ignore[arg-type]


def close(slots: list[Sockets]) -> None:
    for sockets in slots:
        sockets.close()


def test_the_kernel_spreads_clients_over_the_workers() -> None:
    slots = opened(3)
    try:
        assert len({tuple(sockets.addresses()) for sockets in slots}) == 1
        assert len({sockets.link_address() for sockets in slots}) == 3
        first = slots[0].addresses()
        assert [text.endswith("/tcp") for text in first] == [False, False, True, True]
        for index, text in enumerate(first):
            clients = [_send(text) for _ in range(60)]
            kind = "listeners" if text.endswith("/tcp") else "public"
            shares = [_taken(getattr(sockets, kind)[index % 2]) for sockets in slots]
            assert sum(shares) == 60
            assert min(shares) > 3, f"{text}: {shares}"
            for client in clients:
                client.close()
    finally:
        close(slots)


@pytest.mark.parametrize("transport", ["", "/tcp"])
@pytest.mark.parametrize("workers", [1, 2])
def test_a_second_relay_on_the_address_is_refused(transport: str, workers: int) -> None:
    slots = opened(workers)
    try:
        taken = slots[0].addresses()[2 if transport else 0]
        for others in (1, 2):
            with pytest.raises(ConfigError, match=r"127\.0\.0\.1:\d+/(udp|tcp): .*in use; stop what uses"):
                opened(others, listen=("[::1]:0", taken))
    finally:
        close(slots)
    close(opened(2, listen=(taken,)))


def test_more_addresses_than_a_worker_can_be_handed_are_refused() -> None:
    with pytest.raises(ConfigError, match="at most 249 addresses"):
        opened(2, listen=("127.0.0.1:0",) * 250)


def test_what_was_opened_is_closed_when_the_last_cannot_be() -> None:
    slots = opened(1, listen=("127.0.0.1:0",))
    free, taken = slots[0].addresses()[0], ""
    with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as holder:
        holder.bind(("127.0.0.1", 0))
        taken = f"127.0.0.1:{holder.getsockname()[1]}"
        close(slots)
        with pytest.raises(ConfigError, match="in use"):
            opened(2, listen=(free, taken))
        close(opened(2, listen=(free,)))


def test_worker_n_has_the_link_port_plus_n() -> None:
    with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as probe:
        probe.bind(("127.0.0.1", 0))
        port = min(probe.getsockname()[1], 65000)
    slots = opened(3, link_listen=f"127.0.0.1:{port}")
    try:
        links = [split_host_port(sockets.link_address())[1] for sockets in slots]
        assert links == [port, port + 1, port + 2]
    finally:
        close(slots)
    with pytest.raises(ConfigError, match="no port 65536"):
        opened(2, link_listen="127.0.0.1:65535")


def test_another_process_takes_them_over_by_their_descriptors() -> None:
    slots = opened(2)
    try:
        taken = adopt_sockets([os.dup(descriptor) for descriptor in slots[1].descriptors()])
        assert (taken.link_address(), taken.addresses()) == (slots[1].link_address(), slots[1].addresses())
        assert not taken.public[0].getblocking()
        taken.close()
        assert slots[1].link.fileno() >= 0, "the supervisor's own stay open"
        slots[1].public[0].getsockname()
    finally:
        close(slots)


def _send(text: str) -> socket.socket:
    address, _, transport = text.partition("/")
    family = socket.AF_INET6 if text.startswith("[") else socket.AF_INET
    client = socket.socket(family, socket.SOCK_STREAM if transport else socket.SOCK_DGRAM)
    client.connect(split_host_port(address))
    client.send(b"x")
    return client


def _taken(sock: socket.socket) -> int:
    """How many clients wait at this socket."""
    sock.setblocking(False)
    count = 0
    try:
        while True:
            if sock.type == socket.SOCK_DGRAM:
                sock.recv(10)
            else:
                sock.accept()[0].close()
            count += 1
    except BlockingIOError:
        return count
