"""What the relay's data plane costs: CPU per forwarded packet at saturation, each way, and per first packet.

    python -m bench.relay_bench [--seconds 3] [--clients 32] [--size 160] [--batching auto|off]

The data plane runs in this process, on its own thread; load and sinks are child processes. The CPU time is
that of the data plane's thread (user and system), so the kernel's work for its system calls is in it and a
busy machine disturbs the figure little. On loopback it also holds the delivery into the receiver's socket.
"""

from __future__ import annotations

import argparse
import multiprocessing
import os
import selectors
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import NoReturn

from voicegate.net.names import socket_name
from voicegate.net.udp import Arena, UdpSocket, open_udp, uses_mmsg
from voicegate.proto import stun
from voicegate.proto.address import ClientAddress, join_host_port, pack_address
from voicegate.proto.keys import ClusterKeys
from voicegate.proto.link import HOUR, link_header, pack_frames, parse_frames_untrusted
from voicegate.roles.relay.core import RelayCore
from voicegate.roles.relay.dataplane import DataPlane
from voicegate.roles.relay.routes import Backend, RouteTable

KEYS = ClusterKeys.parse(["0:" + "b" * 32])
HOST = "127.0.0.1"


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--seconds", type=float, default=3.0)
    parser.add_argument("--clients", type=int, default=32)
    parser.add_argument("--transceivers", type=int, default=2)
    parser.add_argument("--size", type=int, default=160, help="bytes per client packet")
    parser.add_argument("--batching", choices=["auto", "off"], default="auto")
    args = parser.parse_args()
    first_packet()
    bench = Bench(args)
    bench.connect()
    with process(bench.sink, bench.transceivers):
        bench.measure("to transceivers", "client_packets", bench.load_from_clients)
    with process(bench.sink, bench.clients):
        for bundle in (1, 2, 8):
            bench.measure(
                f"to clients, {bundle} per link datagram",
                "transceiver_packets",
                lambda bundle=bundle: bench.load_from_transceivers(bundle),
            )
    bench.plane.stop()
    bench.thread.join()
    bench.plane.close()


def first_packet() -> None:
    """The rules alone, without the socket: what one more client, or one more forger, costs."""
    core = make_core("127.0.0.1:1", [], max_flows=100_000)
    core.routes.update({1: Backend(1, "127.0.0.1:2", "b")})
    wall, count = time.time(), 5000
    tickets = [KEYS.tickets.mint(1, 1, wall + 60, n.to_bytes(5, "big")).encode() for n in range(count)]
    checks = [check(ticket, n) for n, ticket in enumerate(tickets)]
    clients = [pack_address(f"10.{n >> 8}.{n & 255}.1", 5000) for n in range(count)]
    name = socket_name("10.0.0.1", 5000)
    packets = {
        "first packet: flow made": list(zip(checks, clients, strict=True)),
        "check of a known flow": list(zip(checks, clients, strict=True)),
        "forged ticket: refused": [
            (check(ticket[:9] + ticket[8:9] + ticket[10:], 0, b"p" * 24), clients[0]) for ticket in tickets
        ],
        "wrong password: refused": [
            (check(ticket, 0, b"p" * 24), clients[0][:-1] + b"x") for ticket in tickets
        ],
    }
    for label, items in packets.items():
        before = time.thread_time_ns()
        for data, client in items:
            core.from_client(data, ClientAddress(client), name, 0, 1.0, wall)
        print(f"{label:45} {(time.thread_time_ns() - before) / count / 1000:6.2f} us")


class Bench:
    """One data plane with its clients and transceivers."""

    def __init__(self, args: argparse.Namespace) -> None:
        self.args = args
        self.arena = Arena(addresses=uses_mmsg(args.batching))
        self.public, self.link = (
            open_udp(HOST, 0, batching=args.batching, arena=self.arena) for _ in range(2)
        )
        self.link_name = join_host_port(*self.link.address())
        core = make_core(self.link_name, [], max_flows=100_000)
        self.transceivers = [open_udp(HOST, 0) for _ in range(args.transceivers)]
        self.clients = [open_udp(HOST, 0) for _ in range(args.clients)]
        records = {
            index + 1: Backend(1, join_host_port(*sock.address()), "b")
            for index, sock in enumerate(self.transceivers)
        }
        self.core = core
        self.plane = DataPlane(
            core, [self.public], self.link, self.arena, records=lambda: records, report=self.fail
        )
        self.thread = threading.Thread(
            target=self.plane.run, args=(max(os.sched_getaffinity(0)),), daemon=True
        )
        self.thread.start()

    def fail(self, error: Exception) -> None:
        raise error

    def connect(self) -> None:
        """Every client's flow, spread over the transceivers, confirmed."""
        for index, client in enumerate(self.clients):
            transceiver = self.transceivers[index % len(self.transceivers)]
            ticket = KEYS.tickets.mint(
                1, index % len(self.transceivers) + 1, time.time() + 600, index.to_bytes(5, "big")
            ).encode()
            client.send_batch([(self.public.address(), check(ticket, index))])
            [(_, datagram)] = wait(transceiver)
            [(address, request)] = parse_frames_untrusted(datagram)
            success = stun.binding_success(
                stun.transaction_id(request), address, KEYS.tickets.password(ticket)
            )
            transceiver.send_batch(
                [(self.link.address(), pack_frames(self.header(transceiver), [(address, success)])[0])]
            )
            wait(client)

    def header(self, transceiver: UdpSocket) -> bytes:
        sender = join_host_port(*transceiver.address())
        return link_header(
            KEYS.link[KEYS.link_id], KEYS.link_id, sender, self.link_name, int(time.time() // HOUR)
        )

    def measure(self, label: str, counter: str, load: Callable[[], NoReturn]) -> None:
        clock = time.pthread_getcpuclockid(self.thread.ident or 0)
        drops = sum(self.core.drops.values())
        with process(load):
            time.sleep(0.5)
            start, packets, before = time.monotonic(), self.plane.statistics(), time.clock_gettime(clock)
            time.sleep(self.args.seconds)
            cpu = time.clock_gettime(clock) - before
            after, seconds = self.plane.statistics(), time.monotonic() - start
        done = after[counter] - packets[counter]
        link = sum(after[name] - packets[name] for name in ("link_datagrams_in", "link_datagrams_out"))
        assert sum(self.core.drops.values()) == drops, self.core.drops
        print(
            f"{label:45} {cpu / done * 1e6:6.2f} us  {done / seconds:9,.0f} packets/s  "
            f"{done / link:5.1f} per link datagram  thread {cpu / seconds:4.0%} busy"
        )

    def load_from_clients(self) -> NoReturn:
        payload = b"\x80" * self.args.size
        batch = [(self.public.address(), payload)] * 4
        while True:
            for client in self.clients:
                client.send_batch(batch)

    def load_from_transceivers(self, bundle: int) -> NoReturn:
        payload = b"\x80" * self.args.size
        batches = []
        for index, transceiver in enumerate(self.transceivers):
            mine = [
                pack_address(*client.address()) for client in self.clients[index :: len(self.transceivers)]
            ]
            frames = [(mine[n % len(mine)], payload) for n in range(32)]
            datagrams = [
                datagram
                for start in range(0, 32, bundle)
                for datagram in pack_frames(self.header(transceiver), frames[start : start + bundle])
            ]
            batches.append((transceiver, [(self.link.address(), datagram) for datagram in datagrams]))
        while True:
            for transceiver, datagrams in batches:
                transceiver.send_batch(datagrams)

    def sink(self, sockets: list[UdpSocket]) -> NoReturn:
        selector = selectors.DefaultSelector()
        for sock in sockets:
            selector.register(sock.fileno(), selectors.EVENT_READ, sock)
        while True:
            for key, _ in selector.select():
                key.data.receive()


def make_core(link: str, public: list[ClientAddress], max_flows: int) -> RelayCore:
    routes = RouteTable(
        KEYS,
        cluster=1,
        link=link,
        allowed_networks=["127.0.0.0/8"],
        name_of=socket_name,
        hour=int(time.time() // HOUR),
    )
    return RelayCore(KEYS, routes, cluster=1, public=public, max_flows=max_flows, idle_seconds=60)


def check(ticket: bytes, number: int, password: bytes | None = None) -> bytes:
    return stun.binding_request(
        number.to_bytes(12, "big"),
        ticket + b":abcd",
        KEYS.tickets.password(ticket) if password is None else password,
        priority=1,
        tie_breaker=1,
        extra=((0xC057, b"\0\1\0\x0a"), (0xC059, bytes(4))),  # of the size that Chromium sends
    )


def wait(sock: UdpSocket) -> list[tuple[tuple[str, int], bytes]]:
    while not (batch := sock.recv_batch()):
        time.sleep(0.0005)
    return batch


@contextmanager
def process(target: Callable[..., NoReturn], *args: object) -> Iterator[None]:
    child = multiprocessing.get_context("fork").Process(target=target, args=args, daemon=True)
    child.start()
    try:
        yield
    finally:
        child.terminate()
        child.join()


if __name__ == "__main__":
    main()
