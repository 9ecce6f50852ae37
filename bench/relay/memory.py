"""What a flow costs the relay besides its packets: memory, and the path of a first packet."""

from __future__ import annotations

import time
from pathlib import Path

from bench.relay.contenders import running
from bench.relay.load import CALLS_PER_TRANSCEIVER
from voicegate.net.names import socket_name
from voicegate.proto import stun
from voicegate.proto.address import ClientAddress, pack_address
from voicegate.proto.keys import ClusterKeys
from voicegate.proto.link import HOUR
from voicegate.roles.relay.core import RelayCore
from voicegate.roles.relay.routes import Backend, RouteTable

KEYS = ClusterKeys.parse(["0:" + "b" * 32])
FIRST_PACKETS = 5000


def flows_in_process(flows: int, directory: Path, cpu: int | None) -> dict[str, float]:
    """Of the real process: bytes of resident memory and CPU time per confirmed flow, each made by its own
    client with its own ticket through the sockets. The CPU time holds both packets of the set-up."""
    transceivers = max(1, flows // CALLS_PER_TRANSCEIVER)
    with running("voicegate", transceivers=transceivers, directory=directory, cpu=cpu) as relay:
        relay.make_flows(1)  # what the first flow of all brings with it is nobody's share
        memory, cpu_seconds = relay.rss_bytes(), relay.cpu_seconds()
        relay.make_flows(flows - 1, first=1)
        return {
            "flows": flows,
            "bytes_per_flow": (relay.rss_bytes() - memory) / (flows - 1),
            "setup_cpu_us": (relay.cpu_seconds() - cpu_seconds) / (flows - 1) * 1e6,
        }


def first_packet() -> dict[str, float]:
    """Microseconds of the rules alone, without the socket, for one more client or one more forger."""
    core = _core()
    wall, count = time.time(), FIRST_PACKETS
    tickets = [KEYS.tickets.mint(1, 1, wall + 60, n.to_bytes(5, "big")).encode() for n in range(count)]
    checks = [_check(ticket, n) for n, ticket in enumerate(tickets)]
    clients = [pack_address(f"10.{n >> 8}.{n & 255}.1", 5000) for n in range(count)]
    packets = {
        "flow made": list(zip(checks, clients, strict=True)),
        "check of a known flow": list(zip(checks, clients, strict=True)),
        "forged ticket refused": [
            (_check(ticket[:9] + ticket[8:9] + ticket[10:], 0, b"p" * 24), clients[0]) for ticket in tickets
        ],
        "wrong password refused": [
            (_check(ticket, 0, b"p" * 24), ClientAddress(clients[0][:-1] + b"x")) for ticket in tickets
        ],
    }
    costs = {}
    for label, items in packets.items():
        before = time.thread_time_ns()
        for data, client in items:
            core.from_client(data, client, 0, 1.0, wall)
        costs[label] = (time.thread_time_ns() - before) / count / 1000
    assert len(core.flows) == count, core.drops
    return costs


def _core() -> RelayCore:
    routes = RouteTable(
        KEYS,
        cluster=1,
        link="127.0.0.1:1",
        allowed_networks=["127.0.0.0/8"],
        name_of=socket_name,
        hour=int(time.time() // HOUR),
    )
    routes.update({1: Backend(1, "127.0.0.1:2", "b")})
    return RelayCore(KEYS, routes, cluster=1, public=[], max_flows=100_000, idle_seconds=60)


def _check(ticket: bytes, number: int, password: bytes | None = None) -> bytes:
    return stun.binding_request(
        number.to_bytes(12, "big"),
        ticket + b":abcd",
        KEYS.tickets.password(ticket) if password is None else password,
        priority=1,
        tie_breaker=1,
        extra=((0xC057, b"\0\1\0\x0a"), (0xC059, bytes(4))),  # of the size that Chromium sends
    )
