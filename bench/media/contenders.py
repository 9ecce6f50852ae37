"""Who is measured: voicegate's processes or an aiortc server, on one CPU, all others on another one."""

from __future__ import annotations

import contextlib
import json
import os
import secrets
import socket
import tempfile
import time
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from bench.peers.process import Peer, running_peer
from tests.support.light_client import request
from tests.support.servers import (
    Gate,
    Metrics,
    free_port,
    free_ports,
    parse_metrics,
    rss_bytes,
    running,
    script,
    spawn,
    wait_until,
    with_children,
)

HOST = "127.0.0.1"
AHEAD = -15
"""Nice value of all that takes part, also of aiortc: the machine's other work is nobody's fault here."""


@dataclass(frozen=True, slots=True)
class Cpus:
    """Numbers of CPUs."""

    measured: int
    others: int

    @classmethod
    def of_machine(cls) -> Cpus:
        usable = sorted(os.sched_getaffinity(0))
        if len(usable) < 2:
            raise SystemExit("bench-media needs a CPU for what is measured and one for the rest")
        return cls(usable[-1], usable[0])


@dataclass(slots=True)
class Contender:
    """A server under measurement."""

    name: str
    url: str
    pids: list[int]
    """Of what is measured: the transceiver, or the aiortc process."""
    others: dict[str, list[int]]
    cpu: int
    agent: Peer | None = None
    gate: Gate | None = None

    def cpu_seconds(self) -> float:
        """Of what is measured so far, in the scheduler's nanoseconds: /proc/.../stat has ticks of 10 ms."""
        return sum(_ran(pid) for pid in self.pids)

    def others_seconds(self) -> dict[str, float]:
        return {name: sum(_ran(pid) for pid in pids) for name, pids in self.others.items()}

    def rss(self) -> int:
        return rss_bytes(self.pids)

    def metrics(self) -> Metrics:
        """The transceiver's."""
        assert self.gate is not None
        return parse_metrics(request("GET", f"{self.gate.servers['transceiver'].ops}/metrics").body)

    def heard_by_agent(self) -> dict[str, dict[str, Any]]:
        """What the agent noted of each connection."""
        assert self.agent is not None
        with tempfile.NamedTemporaryFile(suffix=".json") as file:
            self.agent.command(dump=file.name)
            noted: dict[str, dict[str, Any]] = json.loads(Path(file.name).read_text())
        return noted


@contextlib.contextmanager
def ahead() -> Iterator[None]:
    """Put this process and all that it starts before the machine's other work, where it has the right to."""
    session, usual = Path("/proc/self/autogroup"), os.getpriority(os.PRIO_PROCESS, 0)
    with contextlib.suppress(OSError):
        os.setpriority(os.PRIO_PROCESS, 0, AHEAD)
        # Linux weighs sessions before it weighs processes (sched(7), autogroup): this is the session's.
        session.write_text(str(AHEAD))
    try:
        yield
    finally:
        with contextlib.suppress(OSError):
            os.setpriority(os.PRIO_PROCESS, 0, usual)
            session.write_text("0")  # it is also the session of the shell that started this


def busy_seconds(cpu: int) -> float:
    """How long a CPU was not idle so far, whoever had it."""
    for line in Path("/proc/stat").read_text().splitlines():
        name, *fields = line.split()
        if name == f"cpu{cpu}":
            return (sum(map(int, fields[:8])) - int(fields[3]) - int(fields[4])) / os.sysconf("SC_CLK_TCK")
    return 0.0


@contextlib.contextmanager
def voicegate(directory: Path, cpus: Cpus, **settings: str) -> Iterator[Contender]:
    """Relay, transceiver and signaling as processes of their own, with a static registry, and an agent."""
    link, control = f"{HOST}:{free_port(socket.SOCK_DGRAM)}", f"{HOST}:{free_port()}"
    media, ops = f"{HOST}:{free_port(socket.SOCK_DGRAM)}", f"{HOST}:{free_port()}"
    web = f"{HOST}:{free_port()}"
    shared = {
        "keys_secrets": f"0:{secrets.token_hex(24)}",
        "registry_transceivers": json.dumps([{"id": 1, "link": link, "control": control, "capacity": 1000}]),
        "registry_snapshot": "",
        "relay_listen": media,
        "relay_workers": "1",
        "relay_pin_cpu": "-2",
        "relay_link_listen": f"{HOST}:{free_ports(1)}",
        "relay_ops_listen": ops,
        "transceiver_id": "1",
        "transceiver_link_listen": link,
        "transceiver_control_listen": control,
        "transceiver_max_calls": "1000",
        "signaling_listen": web,
        "signaling_advertise": media,
        "signaling_max_setups": "500",
        "log_level": "warning",
        **settings,
    }
    gate = Gate(f"http://{web}", (media,))
    with running_peer("bench.peers.lean_agent", cpu=cpus.others) as agent, running(gate, check_end=False):
        shared.setdefault("agent_url", agent.url)
        for role, page in (("transceiver", control), ("relay", ops), ("signaling", web)):
            command = [script("voicegate"), "--role", role]
            gate.servers[role] = spawn(role, command, directory, shared, ops=f"http://{page}")
            _pin(gate.servers[role].process.pid, cpus.measured if role == "transceiver" else cpus.others)
        for server in gate.servers.values():
            wait_until(lambda ops=server.ops: _ready(ops), 30, f"{server.name} to be ready")
        transceiver = gate.pids("transceiver")
        relay = gate.pids("relay")
        for pid in relay:
            _pin(pid, cpus.others)
            _forward_at_once(pid)
        others = {"relay": relay, "signaling": gate.pids("signaling"), "agent": [agent.pid]}
        yield Contender("voicegate", gate.calls_url, transceiver, others, cpus.measured, agent, gate)


@contextlib.contextmanager
def aiortc(cpus: Cpus) -> Iterator[Contender]:
    """An echo server on aiortc, which also takes calls to listen to (`?listen=NAME`)."""
    with running_peer("bench.peers.aiortc_echo", cpu=cpus.measured) as peer:
        yield Contender("aiortc", peer.url, with_children(peer.pid), {}, cpus.measured)


def _ready(ops: str) -> bool:
    try:
        return request("GET", f"{ops}/readyz", timeout=2).status == 200
    except OSError:
        time.sleep(0.05)
        return False


def _ran(pid: int) -> float:
    """Seconds that a process's threads were on a CPU."""
    ran = 0
    for task in _tasks(pid):
        with contextlib.suppress(OSError):
            ran += int(Path(f"/proc/{pid}/task/{task}/schedstat").read_text().split()[0])
    return ran / 1e9


def _tasks(pid: int) -> list[int]:
    with contextlib.suppress(OSError):
        return [int(name) for name in os.listdir(f"/proc/{pid}/task")]
    return []


def _pin(pid: int, cpu: int) -> None:
    for task in _tasks(pid):
        with contextlib.suppress(OSError):
            os.sched_setaffinity(task, {cpu})


def _forward_at_once(pid: int) -> None:
    """A relay that waits for a busy generator on its CPU would be measured as the transceiver's delay."""
    for task in _tasks(pid):
        with contextlib.suppress(OSError):
            os.sched_setscheduler(task, os.SCHED_FIFO, os.sched_param(1))
