"""The relays that are measured: each a process on the same CPU, with N flows made through it.

* voicegate: `voicegate --role relay` as in production, with one worker and a static registry.
* go, c: `relay.go` and `forwarder.c`, built here. They have voicegate's frames on their link, one to a
  datagram, so that all three do the same job.
* coturn: one relay thread, one TURN allocation and one channel for each client, no authentication, so that
  all that is measured is ChannelData. Its peers get the payload alone, from a socket of each allocation.
"""

from __future__ import annotations

import os
import secrets
import shutil
import signal
import socket
import struct
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from functools import partial
from pathlib import Path

from bench.relay.load import CALLS_PER_TRANSCEIVER, PAYLOAD, Address, Client, Ends, Request, receive
from voicegate.proto import stun
from voicegate.proto.address import join_host_port, pack_address
from voicegate.proto.keys import ClusterKeys
from voicegate.proto.link import HOUR, LINK_HEADER_LENGTH, link_header

SOURCES = Path(__file__).resolve().parent
START_SECONDS = 20.0
HOST = "127.0.0.1"
STATIC_HEADER = b"\x10\0" + b"voicegat"
assert len(STATIC_HEADER) == LINK_HEADER_LENGTH
TURN_CHANNEL = 0x4000
TURN_PORTS = (50_000, 60_000)
_COOKIE = 0x2112A442
_XOR_RELAYED, _XOR_PEER, _REQUESTED_TRANSPORT, _CHANNEL = 0x0016, 0x0012, 0x0019, 0x000C


@dataclass
class Running:
    """A relay and the two ends that use it."""

    name: str
    process: subprocess.Popen[bytes]
    ends: Ends
    public: Address
    link: Address
    plan: Path
    keys: ClusterKeys | None = None
    """voicegate's."""

    def pids(self) -> list[int]:
        """It and its children: a relay may have processes of its own for its workers."""
        found = [self.process.pid]
        for pid in found:
            for task in Path(f"/proc/{pid}/task").iterdir():
                found += [int(child) for child in (task / "children").read_text().split()]
        return found

    def rss_bytes(self) -> int:
        """Memory of all of them."""
        pages = sum(int(Path(f"/proc/{pid}/statm").read_text().split()[1]) for pid in self.pids())
        return pages * os.sysconf("SC_PAGE_SIZE")

    def cpu_seconds(self) -> float:
        """User and system time of all of them so far."""
        tasks = [task for pid in self.pids() for task in Path(f"/proc/{pid}/task").iterdir()]
        return sum(int((task / "schedstat").read_text().split()[0]) for task in tasks) / 1e9

    def make_flows(self, flows: int, first: int = 0) -> None:
        """That many clients, spread over the transceivers; `first` is the number of the first one."""
        numbers = range(first, first + flows)
        if self.name == "coturn":
            self.ends.flows += [self._allocate(number) for number in numbers]
        else:
            self.ends.make_flows(numbers, self.public, self.link, self._request)
        self.ends.write_plan(self.plan)

    def _request(self, number: int) -> Request:
        transceiver = number % len(self.ends.backends)
        ufrag, password = str(transceiver).encode(), b"p" * 24
        if self.keys is not None:
            nonce = number.to_bytes(5, "big")
            ufrag = self.keys.tickets.mint(1, transceiver + 1, time.time() + 600, nonce).encode()
            password = self.keys.tickets.password(ufrag)
        transaction = number.to_bytes(12, "big")
        data = stun.binding_request(transaction, ufrag + b":abcd", password, priority=1, tie_breaker=1)
        return Request(transceiver, data, password)

    def _allocate(self, number: int) -> Client:
        """A TURN allocation with a channel to its transceiver (RFC 8656 sections 7.1 and 12.1)."""
        transceiver = number % len(self.ends.backends)
        udp = _attribute(_REQUESTED_TRANSPORT, b"\x11\0\0\0")
        answer = self._turn(number, 0x0003, udp)
        relayed = _xor_address(answer, _XOR_RELAYED)
        host, port = self.ends.backends[transceiver]
        peer = pack_address(host, port)
        mask = _COOKIE.to_bytes(4, "big")
        masked = bytes(a ^ b for a, b in zip(peer[4:] + peer[:4], mask[:2] + mask, strict=True))
        channel = _attribute(_CHANNEL, struct.pack("!HH", TURN_CHANNEL, 0))
        self._turn(number, 0x0009, channel + _attribute(_XOR_PEER, b"\0\1" + masked))
        prefix = struct.pack("!HH", TURN_CHANNEL, PAYLOAD)
        return Client(self.ends.client_ip(number), transceiver, self.public, relayed, prefix)

    def _turn(self, number: int, method: int, attributes: bytes) -> bytes:
        """One TURN request of a client; the attributes of its success."""
        transaction = method.to_bytes(4, "big") + number.to_bytes(8, "big")
        head = struct.pack("!HHI", method, len(attributes), _COOKIE) + transaction
        self.ends.from_client(number, head + attributes, self.public)
        answer = receive(self.ends.clients)
        if answer[:2] != (method | 0x0100).to_bytes(2, "big") or answer[8:20] != transaction:
            raise RuntimeError(f"coturn refuses request {method:#06x} of client {number}: {answer.hex()}")
        return answer[20:]


def missing(name: str) -> str | None:
    """Which program a contender lacks, in words; None: it can run."""
    program = {"go": "go", "c": "cc", "coturn": "turnserver"}.get(name)
    if program is None or shutil.which(program):
        return None
    return f"{name}: the program {program} is not installed"


def build(directory: Path, names: Sequence[str]) -> None:
    """The generator and the contenders that are made from source, into `directory`."""
    compiler = ["cc", "-O2", "-Wall", "-Wextra", "-o"]
    subprocess.run([*compiler, directory / "generator", SOURCES / "generator.c", "-lm"], check=True)
    if "c" in names:
        subprocess.run([*compiler, directory / "forwarder", SOURCES / "forwarder.c"], check=True)
    if "go" in names:
        offline = {"GOPROXY": "off", "GOTOOLCHAIN": "local", "GOFLAGS": "-mod=mod"}
        subprocess.run(
            ["go", "build", "-o", directory / "relay", SOURCES / "relay.go"],
            env={**os.environ, "GOCACHE": str(directory / "go"), **offline},
            check=True,
        )


@contextmanager
def running(name: str, *, transceivers: int, directory: Path, cpu: int | None) -> Iterator[Running]:
    """A contender, which uses `cpu` alone, without flows yet. `directory`: of `build`."""
    ends = Ends(transceivers)
    public, link = _free(), _free()
    with tempfile.TemporaryDirectory(dir=directory) as place:
        keys = None
        if name == "voicegate":
            secret = "0:" + secrets.token_hex(32)
            keys = ClusterKeys.parse([secret])
            command = _voicegate(ends, public, link, secret, Path(place))
            ends.headers = [_header(keys, backend, link) for backend in ends.backends]
        elif name == "coturn":
            command = _coturn(public, Path(place))
        else:
            ends.headers = [STATIC_HEADER] * transceivers
            command = _plain(name, ends, public, link, directory)
        with open(Path(place) / "log", "wb") as log:
            process = subprocess.Popen(
                command,
                stdout=log,
                stderr=log,
                cwd=place,
                preexec_fn=None if cpu is None else partial(os.sched_setaffinity, 0, {cpu}),
            )
        try:
            _wait_until_bound(process, public, Path(place) / "log")
            yield Running(name, process, ends, public, link, Path(place) / "plan", keys)
        finally:
            process.send_signal(signal.SIGTERM)
            try:
                process.wait(10)
            except subprocess.TimeoutExpired:
                process.kill()
                process.wait()
            ends.close()


def _voicegate(ends: Ends, public: Address, link: Address, secret: str, place: Path) -> list[str]:
    config = place / "voicegate.toml"
    table = "".join(
        f'[[registry.transceivers]]\nid = {n + 1}\nlink = "{join_host_port(*backend)}"\n'
        f'control = "127.0.0.1:9"\ncapacity = {CALLS_PER_TRANSCEIVER}\n'
        for n, backend in enumerate(ends.backends)
    )
    config.write_text(
        f'[log]\nlevel = "warning"\n[keys]\nsecrets = ["{secret}"]\n'
        f'[relay]\nlisten = ["{join_host_port(*public)}"]\nlink_listen = "{join_host_port(*link)}"\n'
        f"workers = 1\n{table}"
    )
    return [sys.executable, "-m", "voicegate", "--role", "relay", "--config", str(config)]


def _plain(name: str, ends: Ends, public: Address, link: Address, directory: Path) -> list[str]:
    backends = [join_host_port(*backend) for backend in ends.backends]
    if name == "go":
        addresses = [join_host_port(*public), join_host_port(*link)]
        return [str(directory / "relay"), *addresses, STATIC_HEADER.hex(), *backends]
    own = [str(part) for part in (*public, *link)]
    return [str(directory / "forwarder"), *own, STATIC_HEADER.hex(), *backends]


def _coturn(public: Address, place: Path) -> list[str]:
    options = "-n -z -m 1 --allow-loopback-peers --no-cli --no-tcp --no-tls --no-dtls --no-tcp-relay"
    quiet = f"--log-file stdout --simple-log --pidfile {place}/pid --userdb {place}/users"
    ports = f"-L {HOST} -E {HOST} -p {public[1]} --min-port {TURN_PORTS[0]} --max-port {TURN_PORTS[1]}"
    return ["turnserver", *f"{options} {quiet} {ports}".split()]


def _header(keys: ClusterKeys, backend: Address, link: Address) -> bytes:
    hour = int(time.time() // HOUR)
    key = keys.link[keys.link_id]
    return link_header(key, keys.link_id, join_host_port(*backend), join_host_port(*link), hour)


def _free() -> Address:
    with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as sock:
        sock.bind((HOST, 0))
        address: Address = sock.getsockname()
        return address


def _wait_until_bound(process: subprocess.Popen[bytes], public: Address, log: Path) -> None:
    until = time.monotonic() + START_SECONDS
    row = f":{public[1]:04X} "
    while time.monotonic() < until and process.poll() is None:
        if row in Path("/proc/net/udp").read_text():
            time.sleep(0.3)  # its other sockets and its table of transceivers
            return
        time.sleep(0.02)
    raise RuntimeError(f"a relay did not start; it said:\n{log.read_text(errors='replace')[-2000:]}")


def _attribute(kind: int, value: bytes) -> bytes:
    return struct.pack("!HH", kind, len(value)) + value + bytes(-len(value) % 4)


def _xor_address(attributes: bytes, wanted: int) -> Address:
    while len(attributes) >= 4:
        kind, length = struct.unpack_from("!HH", attributes)
        if kind == wanted:
            port = int.from_bytes(attributes[6:8], "big") ^ _COOKIE >> 16
            host = int.from_bytes(attributes[8:12], "big") ^ _COOKIE
            return socket.inet_ntoa(host.to_bytes(4, "big")), port
        attributes = attributes[4 + length + -length % 4 :]
    raise RuntimeError("coturn's answer has no relayed address")
