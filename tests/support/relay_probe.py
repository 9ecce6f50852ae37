"""How late a relay forwards: some flows with 50 packets a second each way, and each packet's time under way.

The probe is a process that is both ends. As a transceiver it is registered in the relay's Redis, answers
checks and sends back at once what its clients send; its clients write the time into each packet. A packet's
delay runs from just before the system call that sends it to when the kernel had it at the receiving socket
(SO_TIMESTAMPNS), so how busy the probe itself is does not count. Up and down are timed apart.

    with RelayProbe(relay_address, redis_url, secret) as probe:
        ...                                     # something happens to Redis
    probe.delays(start, end)                    # monotonic seconds
"""

from __future__ import annotations

import json
import os
import selectors
import socket
import struct
import sys
import threading
import time
from dataclasses import dataclass, field
from typing import Any, NamedTuple, Self

import trio

from tests.support.child import Child, tell, when_over
from tests.support.light_client import Address
from voicegate.config import load_config
from voicegate.logs import configure as configure_logs
from voicegate.net.registry import TransceiverRecord, open_registry
from voicegate.proto import stun
from voicegate.proto.address import ClientAddress, join_host_port, pack_address, split_host_port
from voicegate.proto.keys import ClusterKeys
from voicegate.proto.link import (
    DATA,
    HOUR,
    LINK_HEADER_LENGTH,
    LinkGuard,
    link_header,
    pack_frames,
    parse_frames_untrusted,
)

INTERVAL = 0.02
CHECK_SECONDS = 2.5  # what Chromium does
SIZE = 160
TRANSCEIVER = 4242
_SO_TIMESTAMPNS = 35  # asm-generic/socket.h; the control message has the same number
_STAMP = struct.Struct("@qq")
_BODY = struct.Struct("!xIq")
"""Media by its first byte; the packet's number and when it was sent, nanoseconds of the calendar clock."""


class Passage(NamedTuple):
    """One packet, there and back."""

    at: float
    """When it was sent, monotonic seconds."""
    up: float | None
    """Seconds from the client to the transceiver; None: it did not arrive."""
    down: float | None


@dataclass(frozen=True, slots=True)
class Delays:
    """Of all packets sent within a window; seconds."""

    packets: int
    lost: int
    median: float
    p99: float
    worst: float

    def __str__(self) -> str:
        return (
            f"{self.packets} packets each way, {self.lost} lost, delay median {self.median * 1000:.2f}"
            f" p99 {self.p99 * 1000:.2f} worst {self.worst * 1000:.2f} ms"
        )


@dataclass
class RelayProbe:
    """A context manager around the probe's process; inside it all flows are up."""

    relay: str
    redis: str
    secret: str
    flows: int = 20
    passages: list[Passage] = field(default_factory=list)
    """Filled by `stop`."""
    _child: Child | None = None

    def __enter__(self) -> Self:
        settings = {"relay": self.relay, "redis": self.redis, "secret": self.secret, "flows": self.flows}
        self._child = Child("tests.support.relay_probe", json.dumps(settings))
        return self

    def __exit__(self, *_: object) -> None:
        self.stop()

    def stop(self) -> None:
        """End the probe and read what it measured."""
        assert self._child is not None, "a context manager"
        self.passages = [Passage(*row) for row in self._child.stop()]

    def delays(self, start: float, end: float) -> Delays:
        """Both directions together, of the packets sent in this window."""
        chosen = [passage for passage in self.passages if start <= passage.at < end]
        values = sorted(d for passage in chosen for d in (passage.up, passage.down) if d is not None)
        assert values, "no packet passed"
        lost = sum(passage.down is None for passage in chosen)
        return Delays(
            len(chosen), lost, values[len(values) // 2], values[round(0.99 * (len(values) - 1))], values[-1]
        )


class _Client:
    """One flow."""

    def __init__(self, relay: Address, keys: ClusterKeys, number: int) -> None:
        self.sock = _udp()
        self.relay = relay
        self.packed = pack_address(*self.sock.getsockname()[:2])
        self.ticket = keys.tickets.mint(1, TRANSCEIVER, time.time() + 3600, os.urandom(5)).encode()
        self.password = keys.tickets.password(self.ticket)
        self.number = number
        self.confirmed = False
        self.by: Address | None = None
        """The link socket of the relay's worker that its packets come by."""
        self.next_check = 0.0

    def check(self) -> None:
        username = self.ticket + b":abcd"
        data = stun.binding_request(os.urandom(12), username, self.password, priority=1, tie_breaker=1)
        self.sock.sendto(data, self.relay)


class _Probe:
    def __init__(self, settings: dict[str, Any]) -> None:
        self.keys = ClusterKeys.parse([settings["secret"]])
        self.link = _udp()
        self.name = join_host_port(*self.link.getsockname()[:2])
        self.boot = os.urandom(4).hex()
        self.guard = LinkGuard(self.keys.link, f"{self.name}#{self.boot}")
        relay = split_host_port(settings["relay"])
        self.clients = [_Client(relay, self.keys, number) for number in range(settings["flows"])]
        self.by_address = {client.packed: client for client in self.clients}
        self.rows: list[list[float | None]] = []
        self.selector = selectors.DefaultSelector()
        self.selector.register(self.link, selectors.EVENT_READ, None)
        for client in self.clients:
            self.selector.register(client.sock, selectors.EVENT_READ, client)

    def run(self) -> None:
        """Bring the flows up, say so, and measure until standard input ends."""
        deadline = time.monotonic() + 20
        while not all(client.confirmed for client in self.clients):
            if time.monotonic() > deadline:
                sys.exit("the probe's flows did not come up")
            for client in self.clients:
                if not client.confirmed:
                    client.check()
            self._receive(time.monotonic() + 0.2)
        tell("ready")
        over = when_over()
        begun = time.monotonic()
        step = INTERVAL / len(self.clients)
        turn = 0
        while not over.is_set():
            self._receive(begun + turn * step)
            client = self.clients[turn % len(self.clients)]
            now = time.monotonic()
            if now >= client.next_check:
                client.next_check = now + CHECK_SECONDS
                client.check()
            self.rows.append([round(now, 5), None, None])
            client.sock.sendto(_media(len(self.rows) - 1), client.relay)
            turn += 1
        self._receive(time.monotonic() + 0.2)
        for client in self.clients:
            if client.by is not None:
                self._send([(client.packed, b"")], client.by)  # a release: the relay has none of them left
        self.rows = [row for row in self.rows if row[0] is not None and row[0] < time.monotonic() - 0.15]
        tell(self.rows)

    def _receive(self, until: float) -> None:
        while True:
            for key, _ in self.selector.select(max(0.0, until - time.monotonic())):
                while (came := _stamped(key.fileobj)) is not None:  # type: ignore[arg-type]
                    data, source, at = came
                    if key.data is None:
                        self._from_relay(data, source, at)
                    else:
                        self._at_client(key.data, data, at)
            if time.monotonic() >= until:
                return

    def _from_relay(self, datagram: bytes, source: Address, at: int) -> None:
        relay = join_host_port(*source)
        hour = int(time.time() // HOUR)
        if not self.guard.accepts(relay, datagram[:LINK_HEADER_LENGTH], hour) or datagram[0] >> 4 != DATA:
            return
        answers: list[tuple[ClientAddress, bytes]] = []
        for client, payload in parse_frames_untrusted(datagram):
            known = self.by_address[client]
            known.by = source
            if stun.is_binding_request(payload):
                answers.append(
                    (client, stun.binding_success(stun.transaction_id(payload), client, known.password))
                )
            elif payload[0] == 0x80:
                number, sent = _BODY.unpack_from(payload)
                self.rows[number][1] = round((at - sent) / 1e9, 7)
                answers.append((client, _media(number)))
        self._send(answers, source)

    def _send(self, frames: list[tuple[ClientAddress, bytes]], to: Address) -> None:
        key, hour = self.keys.link[self.keys.link_id], int(time.time() // HOUR)
        header = link_header(key, self.keys.link_id, self.name, join_host_port(*to), hour)
        for datagram in pack_frames(header, frames):
            self.link.sendto(datagram, to)

    def _at_client(self, client: _Client, data: bytes, at: int) -> None:
        if data[0] == 0x80:
            number, sent = _BODY.unpack_from(data)
            self.rows[number][2] = round((at - sent) / 1e9, 7)
        else:
            client.confirmed = True

    async def register(self, settings: dict[str, Any]) -> None:
        """Be a transceiver in Redis for ever; one that takes no calls."""
        environment = {
            "VOICEGATE_REGISTRY_REDIS": settings["redis"],
            "VOICEGATE_REGISTRY_SNAPSHOT": "",
            "VOICEGATE_KEYS_SECRETS": settings["secret"],
            "VOICEGATE_LOG_FORMAT": "json",
        }
        config = load_config(None, environment)
        configure_logs(config.log)
        registry = open_registry(config, self.keys)
        record = TransceiverRecord(
            id=TRANSCEIVER, cluster=1, link=self.name, control="127.0.0.1:1", boot=self.boot, draining=True
        )
        await registry.register(record)
        await registry.run()


def _media(number: int) -> bytes:
    return b"\x80" + _BODY.pack(number, time.time_ns())[1:] + bytes(SIZE - _BODY.size)


def _udp() -> socket.socket:
    made = socket.socket(socket.AF_INET, socket.SOCK_DGRAM)
    made.setblocking(False)
    made.setsockopt(socket.SOL_SOCKET, _SO_TIMESTAMPNS, 1)
    made.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, 1 << 20)
    made.bind(("127.0.0.1", 0))
    return made


def _stamped(sock: socket.socket) -> tuple[bytes, Address, int] | None:
    """A datagram, its sender, and when the kernel had it (nanoseconds of the calendar clock)."""
    try:
        data, control, _flags, source = sock.recvmsg(2048, 64)
    except (BlockingIOError, ConnectionRefusedError):
        return None
    stamps = [
        value for level, kind, value in control if (level, kind) == (socket.SOL_SOCKET, _SO_TIMESTAMPNS)
    ]
    seconds, nanoseconds = _STAMP.unpack(stamps[0])
    return data, source[:2], seconds * 1_000_000_000 + nanoseconds


def main() -> None:
    settings = json.loads(sys.argv[1])
    probe = _Probe(settings)
    threading.Thread(target=lambda: trio.run(probe.register, settings), daemon=True).start()
    probe.run()


if __name__ == "__main__":
    main()
