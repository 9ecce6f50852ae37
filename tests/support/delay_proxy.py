"""A path with a delay, loss, reordering and duplicates between a client and a UDP server, on loopback.

It runs in a process of its own, so that a busy test does not add to the delay. Every client address gets a
socket of its own towards the server: the server sees as many clients as there are.

    with DelayProxy(("127.0.0.1", 3478), rtt=0.1) as proxy:
        ...  # talk to proxy.address
    proxy.trace  # what went through, after the end
"""

from __future__ import annotations

import contextlib
import heapq
import json
import random
import select
import socket
import subprocess
import sys
import time
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import NamedTuple, Self

ROOT = Path(__file__).resolve().parents[2]
TRACE_PACKETS = 20_000
"""About 200 call-seconds of both directions; a trace is for a set-up, not for a soak."""
TRACE_BYTES = 64
"""Enough for the headers of STUN, a DTLS handshake message and RTP."""
IDLE_POLL = 0.2


@dataclass(frozen=True, slots=True)
class Impairment:
    """What happens to each packet of one direction. Probabilities are 0 to 1, times are seconds."""

    delay: float = 0.0
    jitter: float = 0.0
    """Added to the delay, uniform between 0 and this; packets overtake each other."""
    loss: float = 0.0
    duplicate: float = 0.0
    reorder: float = 0.0
    reorder_delay: float = 0.03
    """A packet that is reordered is held back this much longer."""


class Passed(NamedTuple):
    """One packet as the proxy saw it."""

    at: float
    """Monotonic seconds of its arrival at the proxy; all processes share that clock."""
    upstream: bool
    """True: from the client to the server."""
    size: int
    head: bytes
    lost: bool
    client: int
    """Which client's, in the order of their first packets."""


@dataclass(slots=True)
class DelayProxy:
    """A context manager around the proxy's process."""

    target: tuple[str, int]
    rtt: float = 0.0
    loss: float = 0.0
    duplicate: float = 0.0
    reorder: float = 0.0
    jitter: float = 0.0
    seed: int = 1
    listen: tuple[str, int] | None = None
    """Where clients send to; by default a free port of the target's family."""
    address: tuple[str, int] = ("", 0)
    trace: list[Passed] = field(default_factory=list)
    _process: subprocess.Popen[str] | None = None

    def __enter__(self) -> Self:
        way = Impairment(self.rtt / 2, self.jitter, self.loss, self.duplicate, self.reorder)
        settings = {
            "target": self.target,
            "listen": self.listen or ("::1" if ":" in self.target[0] else "127.0.0.1", 0),
            "up": asdict(way),
            "down": asdict(way),
            "seed": self.seed,
        }
        self._process = subprocess.Popen(
            [sys.executable, "-m", "tests.support.delay_proxy", json.dumps(settings)],
            cwd=ROOT,
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            text=True,
        )
        assert self._process.stdout is not None
        host, port = json.loads(self._process.stdout.readline())
        self.address = (host, port)
        return self

    def __exit__(self, *_: object) -> None:
        """End the proxy and read its trace."""
        if self._process is None:
            return
        try:
            output, _err = self._process.communicate(timeout=10)  # end of its standard input ends it
        except subprocess.TimeoutExpired:
            self._process.kill()
            output, _err = self._process.communicate()
        if output.strip():
            self.trace = [
                Passed(at, up, size, bytes.fromhex(head), lost, client)
                for at, up, size, head, lost, client in json.loads(output)
            ]
        self._process = None


def dtls_retransmissions(trace: list[Passed]) -> int:
    """How many plaintext DTLS handshake fragments and ChangeCipherSpecs went the same way more than once.

    Encrypted records (epoch 1 and later) look new each time and cannot be counted; the flight they end is
    resent whole, so its plaintext part tells. RFC 6347 section 4.2.4.
    """
    seen: set[tuple[int, bool, bytes]] = set()
    repeated = 0
    for packet in trace:
        head = packet.head
        if len(head) < 25 or head[0] != 22 or head[3:5] != b"\0\0":
            continue
        # type 1, length 3, message sequence 2, fragment offset 3: the same message keeps all of them.
        key = (packet.client, packet.upstream, head[13:22])
        repeated += key in seen
        seen.add(key)
    return repeated


def stun_retransmissions(trace: list[Passed]) -> int:
    """How many STUN requests of the client were sent again under the same transaction id."""
    seen: set[bytes] = set()
    repeated = 0
    for packet in trace:
        if packet.upstream and packet.head[:2] == b"\x00\x01":
            repeated += packet.head[8:20] in seen
            seen.add(packet.head[8:20])
    return repeated


class _Proxy:
    def __init__(self, settings: dict[str, object]) -> None:
        self.target = tuple(settings["target"])  # type: ignore[arg-type]
        self.up = Impairment(**settings["up"])  # type: ignore[arg-type]
        self.down = Impairment(**settings["down"])  # type: ignore[arg-type]
        self.random = random.Random(int(settings["seed"]))  # type: ignore[call-overload]
        self.public = _udp_socket(tuple(settings["listen"]))  # type: ignore[arg-type]
        self.clients: dict[object, socket.socket] = {}
        self.owner: dict[socket.socket, object] = {}
        self.numbers: dict[socket.socket, int] = {}
        self.due: list[tuple[float, int, socket.socket, bytes, object]] = []
        self.order = 0
        self.trace: list[tuple[float, bool, int, str, bool, int]] = []

    def run(self) -> None:
        sys.stdout.write(json.dumps(self.public.getsockname()[:2]) + "\n")
        sys.stdout.flush()
        while True:
            wait = IDLE_POLL if not self.due else max(0.0, self.due[0][0] - time.monotonic())
            readable, _, _ = select.select(
                [sys.stdin, self.public, *self.owner], [], [], min(wait, IDLE_POLL)
            )
            if sys.stdin in readable and not sys.stdin.readline():
                break
            for source in readable:
                if source is not sys.stdin:
                    self._drain(source)
            self._send_due()
        sys.stdout.write(json.dumps(self.trace))

    def _drain(self, source: socket.socket) -> None:
        for _ in range(64):
            try:
                data, address = source.recvfrom(65536)
            except (BlockingIOError, ConnectionRefusedError):
                return
            now = time.monotonic()
            if source is self.public:
                link = self._towards_server(address)
                self._pass(data, now, link, None, self.up, self.numbers[link])
            else:
                client = self.numbers[source]
                self._pass(data, now, self.public, self.owner[source], self.down, client)

    def _pass(
        self, data: bytes, now: float, out: socket.socket, to: object, way: Impairment, client: int
    ) -> None:
        lost = self.random.random() < way.loss
        if len(self.trace) < TRACE_PACKETS:
            self.trace.append((now, to is None, len(data), data[:TRACE_BYTES].hex(), lost, client))
        if lost:
            return
        for _ in range(2 if self.random.random() < way.duplicate else 1):
            at = now + way.delay + (self.random.random() * way.jitter if way.jitter else 0.0)
            if self.random.random() < way.reorder:
                at += way.reorder_delay
            self.order += 1
            heapq.heappush(self.due, (at, self.order, out, data, to))

    def _send_due(self) -> None:
        now = time.monotonic()
        while self.due and self.due[0][0] <= now:
            _, _, out, data, to = heapq.heappop(self.due)
            with contextlib.suppress(BlockingIOError, ConnectionRefusedError):
                if to is None:
                    out.send(data)
                else:
                    out.sendto(data, to)  # type: ignore[call-overload]

    def _towards_server(self, client: object) -> socket.socket:
        link = self.clients.get(client)
        if link is None:
            link = _udp_socket((self.public.getsockname()[0], 0))
            link.connect(self.target)
            self.clients[client] = link
            self.owner[link] = client
            self.numbers[link] = len(self.numbers)
        return link


def _udp_socket(address: tuple[str, int]) -> socket.socket:
    made = socket.socket(socket.AF_INET6 if ":" in address[0] else socket.AF_INET, socket.SOCK_DGRAM)
    made.setblocking(False)
    made.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, 1 << 20)
    made.bind(address)
    return made


if __name__ == "__main__":
    _Proxy(json.loads(sys.argv[1])).run()
