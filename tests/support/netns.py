"""Networks of their own for tests: namespaces on one Ethernet segment, with a delay between any two of them.

    delays = {("frankfurt", "virginia"): 0.04}
    with Network({"frankfurt": ["10.77.1.1"], "virginia": ["10.77.2.1"]}, delays) as network:
        Popen([*network.command("frankfurt"), "redis-server", ...])
        with network.inside("virginia"):
            ...        # sockets, threads and processes made here are there

Packets between namespaces go through a hub: a process that reads Ethernet frames at one port and writes them,
later, at the others, for this must work on kernels without netem. Needs root and iproute2: see `problem`.
"""

from __future__ import annotations

import contextlib
import ctypes
import fcntl
import heapq
import json
import os
import select
import shutil
import socket
import struct
import subprocess
import sys
import time
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Self

from tests.support.child import Child, tell, when_over

_CLONE_NEWNET = 0x40000000
_SIOCETHTOOL = 0x8946
_ETHTOOL_STXCSUM = 0x17
_ETH_P_ALL = 3
_HUB = "hub"
_libc = ctypes.CDLL(None, use_errno=True)


def problem() -> str:
    """Why there can be no namespaces here; empty when there can."""
    if not shutil.which("ip"):
        return "iproute2 is not installed"
    if os.geteuid() != 0:
        return "network namespaces need root"
    name = f"vgtry{os.getpid()}"
    for command in (["add", name], ["del", name]):
        tried = subprocess.run(["ip", "netns", *command], capture_output=True, text=True)
        if tried.returncode:
            return f"no network namespace can be made: {tried.stderr.strip()}"
    return ""


@dataclass
class Network:
    """A context manager; `members` are the namespaces with their addresses, all of one /16."""

    members: Mapping[str, Sequence[str]]
    delays: Mapping[tuple[str, str], float]
    """Seconds one way, in both directions; none for a pair that is not named."""
    _made: list[str] = field(default_factory=list)
    _hub: Child | None = None

    def __enter__(self) -> Self:
        try:
            self._make()
        except BaseException:
            self.__exit__()
            raise
        return self

    def __exit__(self, *_: object) -> None:
        """Whatever still runs inside keeps its namespace; its owner ends it before."""
        if self._hub is not None:
            self._hub.stop()
            self._hub = None
        for name in self._made:
            subprocess.run(["ip", "netns", "del", name], check=False)
        self._made.clear()

    def command(self, member: str) -> list[str]:
        """What goes before a command that is to run inside; it becomes the command, under the same process
        id."""
        return ["ip", "netns", "exec", self._name(member)]

    @contextlib.contextmanager
    def inside(self, member: str) -> Iterator[None]:
        """This thread, and the threads and processes it starts, are in that namespace."""
        with Path("/proc/thread-self/ns/net").open() as here:
            _enter(f"/run/netns/{self._name(member)}")
            try:
                yield
            finally:
                _set_namespace(here.fileno())

    def _make(self) -> None:
        for member in [_HUB, *self.members]:
            _ip("netns", "add", self._name(member))
            self._made.append(self._name(member))
        ports = {}
        for number, (member, addresses) in enumerate(self.members.items()):
            port = ports[member] = f"port{number}"
            inner = ["-n", self._name(member)]
            _ip(
                "-n", self._name(_HUB), "link", "add", port, "type", "veth", "peer", "eth0", "netns", inner[1]
            )
            for address in addresses:
                _ip(*inner, "address", "add", f"{address}/16", "dev", "eth0")
            _ip(*inner, "link", "set", "lo", "up")
            _ip(*inner, "link", "set", "eth0", "up")
            _ip("-n", self._name(_HUB), "link", "set", port, "up")
            with self.inside(member):
                _compute_checksums("eth0")
        delays = [[ports[one], ports[two], seconds] for (one, two), seconds in self.delays.items()]
        settings = json.dumps({"ports": list(ports.values()), "delays": delays})
        self._hub = Child("tests.support.netns", settings, prefix=self.command(_HUB))

    def _name(self, member: str) -> str:
        return f"vg{os.getpid()}-{member}"


def _ip(*arguments: str) -> None:
    done = subprocess.run(["ip", *arguments], capture_output=True, text=True)
    assert done.returncode == 0, f"ip {' '.join(arguments)}: {done.stderr}"


def _enter(path: str) -> None:
    with Path(path).open() as namespace:
        _set_namespace(namespace.fileno())


def _set_namespace(descriptor: int) -> None:
    if _libc.setns(descriptor, _CLONE_NEWNET):
        raise OSError(ctypes.get_errno(), "setns")


def _compute_checksums(interface: str) -> None:
    """Between veths the kernel leaves checksums out and segments whole; frames that pass through the hub must
    be as they would be on a wire."""
    value = ctypes.create_string_buffer(struct.pack("=II", _ETHTOOL_STXCSUM, 0))
    request = struct.pack("16sP16x", interface.encode(), ctypes.addressof(value))
    with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as control:
        fcntl.ioctl(control, _SIOCETHTOOL, request)


class _HubProcess:
    """Learns which station is at which port, as a switch does; what it does not know goes to all."""

    def __init__(self, settings: dict[str, Any]) -> None:
        self.ports: list[socket.socket] = []
        self.delays: dict[tuple[socket.socket, socket.socket], float] = {}
        self.places: dict[bytes, socket.socket] = {}
        self.due: list[tuple[float, int, socket.socket, bytes]] = []
        self.order = 0
        by_name = {}
        for name in settings["ports"]:
            port = socket.socket(socket.AF_PACKET, socket.SOCK_RAW, socket.htons(_ETH_P_ALL))
            port.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, 4 << 20)
            port.bind((name, 0))
            port.setblocking(False)
            self.ports.append(port)
            by_name[name] = port
        for one, two, seconds in settings["delays"]:
            self.delays[by_name[one], by_name[two]] = seconds
            self.delays[by_name[two], by_name[one]] = seconds

    def run(self) -> None:
        tell("ready")
        over = when_over()
        while not over.is_set():
            wait = max(0.0, self.due[0][0] - time.monotonic()) if self.due else 0.1
            for port in select.select(self.ports, [], [], wait)[0]:
                self._take(port)
            now = time.monotonic()
            while self.due and self.due[0][0] <= now:
                _, _, port, frame = heapq.heappop(self.due)
                with contextlib.suppress(OSError):  # a full queue, or a namespace that is going down
                    port.send(frame)

    def _take(self, port: socket.socket) -> None:
        for _ in range(64):
            try:
                frame, address = port.recvfrom(65536)
            except BlockingIOError:
                return
            if address[2] == socket.PACKET_OUTGOING:
                continue
            now = time.monotonic()
            self.places[frame[6:12]] = port
            known = self.places.get(frame[:6])
            targets = [known] if known is not None else [other for other in self.ports if other is not port]
            for target in targets:
                self.order += 1
                delay = self.delays.get((port, target), 0.0)
                heapq.heappush(self.due, (now + delay, self.order, target, frame))


if __name__ == "__main__":
    _HubProcess(json.loads(sys.argv[1])).run()
