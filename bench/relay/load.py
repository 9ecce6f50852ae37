"""The two ends of the bench: all clients behind one socket, all transceivers behind another.

Every client is an address of its own from 127.16.0.1 on, every transceiver one from 127.9.0.1 on; IP_PKTINFO
says which of them sends. The flows are made here, each checked; then `generator.c` inherits the sockets and
does the rest.
"""

from __future__ import annotations

import ipaddress
import json
import os
import select
import socket
import struct
import subprocess
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from voicegate.proto import stun
from voicegate.proto.address import ClientAddress, pack_address
from voicegate.proto.link import frame_header, pack_frames, parse_frames_untrusted

Address = tuple[str, int]

SOCKET_BUFFER = 4 << 20
PAYLOAD = 160
CLIENT_BASE = int(ipaddress.ip_address("127.16.0.1"))
TRANSCEIVER_BASE = int(ipaddress.ip_address("127.9.0.1"))
CALLS_PER_TRANSCEIVER = 200
"""As transceiver.max_calls."""
WAIT_SECONDS = 2.0

_IP_PKTINFO = getattr(socket, "IP_PKTINFO", 8)
_MAGIC = 0x76677231
_HEAD = struct.Struct("=8I")
_TRANSCEIVER = struct.Struct("=4s12s")
_FLOW = struct.Struct("=4sI4s2s2x4s2s2x4s12s")


@dataclass
class Client:
    """One flow: who it is, which transceiver has its call, and where the two send to."""

    ip: str
    transceiver: int
    relay: Address
    back: Address
    prefix: bytes = b""
    """Before each payload, both ways (TURN's channel header)."""


class Ends:
    """The sockets of clients and transceivers, and the flows that were made through a relay."""

    def __init__(self, transceivers: int) -> None:
        self.clients = _wildcard()
        self.transceivers = _wildcard()
        self.client_port: int = self.clients.getsockname()[1]
        port = self.transceivers.getsockname()[1]
        self.backends: list[Address] = [(_ip(TRANSCEIVER_BASE + n), port) for n in range(transceivers)]
        self.headers: list[bytes] = []
        """By transceiver, the link header of what it sends; empty: no link, the payload alone (TURN)."""
        self.flows: list[Client] = []

    def close(self) -> None:
        self.clients.close()
        self.transceivers.close()

    def client_ip(self, number: int) -> str:
        return _ip(CLIENT_BASE + number)

    def client_address(self, number: int) -> ClientAddress:
        return pack_address(self.client_ip(number), self.client_port)

    def from_client(self, number: int, data: bytes, to: Address) -> None:
        _send_as(self.clients, self.client_ip(number), data, to)

    def from_transceiver(self, number: int, data: bytes, to: Address) -> None:
        _send_as(self.transceivers, self.backends[number][0], data, to)

    def make_flows(
        self, numbers: Sequence[int], public: Address, link: Address, request: Callable[[int], Request]
    ) -> None:
        """Checks of these clients through the relay and their answers back; each must arrive where it
        should. Eight at a time, so that no queue drops any."""
        for start in range(0, len(numbers), 8):
            group = {n: request(n) for n in numbers[start : start + 8]}
            for number, asked in group.items():
                self.from_client(number, asked.data, public)
            by_client = {self.client_address(n): (n, asked) for n, asked in group.items()}
            answered = 0
            while answered < len(group):
                datagram = receive(self.transceivers)
                if datagram[0] >> 4 != 1:
                    continue  # what a relay says about itself
                for client, data in parse_frames_untrusted(datagram):
                    number, asked = by_client[client]
                    assert data == asked.data, "the request came through changed"
                    success = stun.binding_success(stun.transaction_id(data), client, asked.password)
                    [reply] = pack_frames(self.headers[asked.transceiver], [(client, success)])
                    self.from_transceiver(asked.transceiver, reply, link)
                    answered += 1
            for _ in group:
                assert stun.is_binding_success(receive(self.clients)), "a client got something else"
            for number, asked in group.items():
                flow = Client(self.client_ip(number), asked.transceiver, public, link)
                self.flows.append(flow)

    def write_plan(self, path: Path) -> None:
        framed = bool(self.headers)
        sockets = (self.clients.fileno(), self.transceivers.fileno())
        prefix = len(self.flows[0].prefix)
        parts = [_HEAD.pack(_MAGIC, len(self.flows), len(self.backends), prefix, framed, PAYLOAD, *sockets)]
        for number, (ip, _) in enumerate(self.backends):
            parts.append(_TRANSCEIVER.pack(_packed(ip), self.headers[number] if framed else b""))
        for flow in self.flows:
            frame = frame_header(pack_address(flow.ip, self.client_port)) + PAYLOAD.to_bytes(2, "big")
            relay, back = (pack_address(*address) for address in (flow.relay, flow.back))
            ends = (relay[:4], relay[4:], back[:4], back[4:])
            parts.append(_FLOW.pack(_packed(flow.ip), flow.transceiver, *ends, flow.prefix, frame))
        path.write_bytes(b"".join(parts))


@dataclass
class Request:
    """A client's first check."""

    transceiver: int
    data: bytes
    password: bytes


def generate(
    generator: Path,
    plan: Path,
    ends: Ends,
    *,
    mode: str,
    amount: float,
    seconds: float,
    bundle: float,
    bundled: bool,
    direct: bool = False,
    pids: Sequence[int] = (),
    cpu: int | None = None,
) -> dict[str, Any]:
    """One run of the generator, which says what its arguments are."""
    for sock in (ends.clients, ends.transceivers):
        drain(sock)
    command = [
        generator,
        plan,
        mode,
        f"{amount:.3f}",
        seconds,
        f"{bundle:.4f}",
        int(bundled),
        int(direct),
        *pids,
    ]
    done = subprocess.run(
        [str(part) for part in command],
        pass_fds=(ends.clients.fileno(), ends.transceivers.fileno()),
        preexec_fn=None if cpu is None else lambda: os.sched_setaffinity(0, {cpu}),
        capture_output=True,
        text=True,
        timeout=seconds + 20,
        check=False,
    )
    if done.returncode:
        raise RuntimeError(f"the generator failed: {done.stderr}")
    found: dict[str, Any] = json.loads(done.stdout)
    return found


def receive(sock: socket.socket) -> bytes:
    """The next datagram; TimeoutError when none comes."""
    if not select.select([sock], [], [], WAIT_SECONDS)[0]:
        raise TimeoutError("a packet of the set-up did not come through")
    return sock.recv(2048)


def drain(sock: socket.socket) -> None:
    """Forget what is still queued."""
    until = time.monotonic() + 0.5
    while time.monotonic() < until:
        try:
            sock.recv(2048)
        except BlockingIOError:
            return


def _wildcard() -> socket.socket:
    sock = socket.socket(socket.AF_INET, socket.SOCK_DGRAM)
    for option in (socket.SO_RCVBUF, socket.SO_SNDBUF):
        sock.setsockopt(socket.SOL_SOCKET, option, SOCKET_BUFFER)
    sock.bind(("0.0.0.0", 0))
    sock.setblocking(False)
    return sock


def _send_as(sock: socket.socket, source: str, data: bytes, to: Address) -> None:
    info = struct.pack("=I4s4x", 0, _packed(source))
    sock.sendmsg([data], [(socket.IPPROTO_IP, _IP_PKTINFO, info)], 0, to)


def _ip(number: int) -> str:
    return str(ipaddress.ip_address(number))


def _packed(ip: str) -> bytes:
    return socket.inet_aton(ip)
