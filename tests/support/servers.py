"""voicegate as its users run it: processes, ports, logs, metrics and a clean end.

    with one_process(tmp_path) as gate:          # all roles and the embedded parrot
    with cluster(tmp_path) as gate:              # the commands of the Procfile, on free ports, with a Redis
        gate.calls_url, gate.metrics("transceiver"), ...

Leaving the block sends SIGTERM and checks that every process ended by itself with 0, within `STOP_SECONDS`,
and that no log has a traceback.
"""

from __future__ import annotations

import contextlib
import json
import os
import random
import re
import secrets
import shlex
import shutil
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, field
from pathlib import Path

from tests.support.light_client import request

ROOT = Path(__file__).resolve().parents[2]
START_SECONDS = 30.0
"""A busy two-core machine imports PyAV and OpenSSL in five processes at once."""
STOP_SECONDS = 10.0
FREE_PORTS = (20_000, 32_000)
"""Below Linux's net.ipv4.ip_local_port_range, and above what services listen on."""
PROCFILE = ROOT / "Procfile"
LINK_PORTS = 4
"""In a row for a relay's workers; a restarted relay has the same ones."""


class Metrics(dict[tuple[str, frozenset[tuple[str, str]]], float]):
    """The samples of one /metrics page."""

    def total(self, name: str, **labels: str) -> float:
        """The sum over every sample of that name that has these labels."""
        wanted = set(labels.items())
        return sum(value for (sample, has), value in self.items() if sample == name and wanted <= has)

    def like(self, pattern: str) -> dict[str, float]:
        """name{labels} to value, for messages and look-ups."""
        shown = {
            name + ("{" + ",".join(f'{k}="{v}"' for k, v in sorted(labels)) + "}" if labels else ""): value
            for (name, labels), value in self.items()
        }
        return {name: value for name, value in shown.items() if re.search(pattern, name)}


@dataclass
class Server:
    """One process."""

    name: str
    command: list[str]
    environment: dict[str, str]
    log: Path
    ops: str = ""
    """Base URL with /healthz, /readyz and /metrics; empty when it has none."""
    killed: bool = False
    """By the test, so that its end is nobody's fault."""
    own_group: bool = False
    """It leads a process group, so that a test can signal all of it as a terminal does."""

    def __post_init__(self) -> None:
        self.start()

    def start(self) -> None:
        """Start its process, at first or once more, with the same configuration; its log goes on."""
        self.killed = False
        with self.log.open("ab") as out:
            self.process = subprocess.Popen(
                self.command,
                cwd=ROOT,
                env=self.environment,
                stdin=subprocess.DEVNULL,
                stdout=out,
                stderr=subprocess.STDOUT,
                start_new_session=self.own_group,
            )

    def kill(self) -> None:
        """SIGKILL to the process and all below it, at once."""
        self.killed = True
        for pid in with_children(self.process.pid):
            with contextlib.suppress(ProcessLookupError):
                os.kill(pid, signal.SIGKILL)
        self.process.wait()

    def lines(self) -> list[dict[str, object]]:
        """Its structured log lines."""
        found = []
        for line in self.log.read_text(errors="replace").splitlines():
            with contextlib.suppress(ValueError):
                entry = json.loads(line)
                if isinstance(entry, dict):
                    found.append(entry)
        return found


@dataclass
class Gate:
    """A running voicegate."""

    url: str
    media: tuple[str, ...]
    """The relay's public UDP addresses."""
    servers: dict[str, Server] = field(default_factory=dict)
    redis_port: int = 0
    """Where a cluster's Redis listens."""

    @property
    def calls_url(self) -> str:
        return f"{self.url}/v1/realtime/calls"

    def metrics(self, prefix: str = "") -> Metrics:
        """All samples of the processes whose name begins with `prefix`, added up."""
        merged = Metrics()
        for server in self.servers.values():
            if server.ops and server.name.startswith(prefix) and server.process.poll() is None:
                for key, value in parse_metrics(request("GET", f"{server.ops}/metrics").body).items():
                    merged[key] = merged.get(key, 0.0) + value
        return merged

    def pids(self, prefix: str = "") -> list[int]:
        """Process ids of the servers so named, and of their children."""
        roots = [server.process.pid for server in self.servers.values() if server.name.startswith(prefix)]
        return [pid for root in roots for pid in with_children(root)]

    def logs(self) -> str:
        return "\n".join(
            f"--- {server.name}\n{server.log.read_text(errors='replace')}" for server in self.servers.values()
        )

    def log_lines(self, **wanted: object) -> list[dict[str, object]]:
        """Structured lines of every process that have these fields."""
        return [
            line
            for server in self.servers.values()
            for line in server.lines()
            if all(line.get(key) == value for key, value in wanted.items())
        ]

    def stop(self) -> None:
        """SIGTERM to all, from the front to the back; AssertionError when one does not end cleanly."""
        problems = []
        running = [server for server in reversed(self.servers.values()) if not server.killed]
        for server in running:
            if server.process.poll() is None:
                server.process.send_signal(signal.SIGTERM)
            else:
                problems.append(f"{server.name} had ended with {server.process.returncode}")
        deadline = time.monotonic() + STOP_SECONDS
        for server in running:
            try:
                code = server.process.wait(max(0.1, deadline - time.monotonic()))
            except subprocess.TimeoutExpired:
                server.process.kill()
                server.process.wait()
                problems.append(f"{server.name} did not end within {STOP_SECONDS} s of SIGTERM")
                continue
            if code != 0:
                problems.append(f"{server.name} ended with {code}")
            if "Traceback" in server.log.read_text(errors="replace"):
                problems.append(f"{server.name} logged a traceback")
        assert not problems, "; ".join(problems) + "\n" + self.logs()[-6000:]


def wait_until(condition: Callable[[], object], timeout: float, what: str, *, every: float = 0.05) -> None:
    """Poll until the condition holds; AssertionError says `what` was waited for."""
    deadline = time.monotonic() + timeout
    while not condition():
        assert time.monotonic() < deadline, f"not within {timeout} s: {what}"
        time.sleep(every)


def free_port(kind: socket.SocketKind = socket.SOCK_STREAM, host: str = "127.0.0.1") -> int:
    """A port that is free, and that the kernel gives to nobody who asks for any: clients open thousands."""
    while True:
        with socket.socket(socket.AF_INET6 if ":" in host else socket.AF_INET, kind) as probe:
            port = random.randrange(*FREE_PORTS)
            with contextlib.suppress(OSError):
                probe.bind((host, port))
                return port


def free_ports(count: int) -> int:
    """The first of so many UDP ports in a row that were free a moment ago."""
    while True:
        first = free_port(socket.SOCK_DGRAM)
        with contextlib.ExitStack() as stack, contextlib.suppress(OSError, OverflowError):
            for port in range(first, first + count):
                probe = stack.enter_context(socket.socket(socket.AF_INET, socket.SOCK_DGRAM))
                probe.bind(("127.0.0.1", port))
            return first


@contextlib.contextmanager
def one_process(
    directory: Path,
    *,
    ipv4: bool = True,
    ipv6: bool = False,
    media: str = "",
    advertise: str = "",
    check_end: bool = True,
    **settings: str,
) -> Iterator[Gate]:
    """All roles in one process with the embedded parrot; `settings` are `signaling_api_keys="..."` and such.

    `media` is the relay's address, a free port by default; `advertise` puts another one into the answers,
    that of a delay proxy in front of it.
    """
    addresses = []
    if ipv4:
        addresses.append(media or f"127.0.0.1:{free_port(socket.SOCK_DGRAM)}")
    if ipv6:
        addresses.append(f"[::1]:{free_port(socket.SOCK_DGRAM, '::1')}")
    web = f"127.0.0.1:{free_port()}"
    environment = {
        "signaling_listen": web,
        "signaling_advertise": advertise or ",".join(addresses),
        "relay_listen": ",".join(addresses),
        **settings,
    }
    gate = Gate(f"http://{web}", tuple(addresses))
    with running(gate, check_end=check_end):
        gate.servers["voicegate"] = spawn(
            "voicegate", [script("voicegate")], directory, environment, ops=gate.url
        )
        _wait_ready(gate)
        yield gate


@contextlib.contextmanager
def cluster(
    directory: Path, *, advertise: str = "", check_end: bool = True, **settings: str
) -> Iterator[Gate]:
    """Every line of the Procfile as its own process, with its own configuration file, on free ports.

    The environment wins over the files, so the ports are all that differs from `make cluster`. The server's
    names are the Procfile's.
    """
    redis_port, parrot_port = free_port(), free_port()
    web, relay_ops = f"127.0.0.1:{free_port()}", f"127.0.0.1:{free_port()}"
    media = f"127.0.0.1:{free_port(socket.SOCK_DGRAM)}"
    shared = {
        "registry_redis": f"redis://127.0.0.1:{redis_port}/0",
        "registry_snapshot": str(directory / "registry-snapshot"),
        "agent_url": f"ws://127.0.0.1:{parrot_port}/v1/realtime",
        "relay_listen": media,
        "relay_link_listen": f"127.0.0.1:{free_ports(LINK_PORTS)}",
        "relay_ops_listen": relay_ops,
        "signaling_listen": web,
        "signaling_advertise": advertise or media,
        "transceiver_link_listen": "127.0.0.1:0",
        "keys_secrets": f"0:{secrets.token_hex(24)}",
        **settings,
    }
    gate = Gate(f"http://{web}", (media,), redis_port=redis_port)
    with running(gate, check_end=check_end):
        for name, command in _procfile():
            own = shared | {"registry_snapshot": str(directory / f"{name}.snapshot")}
            ops = ""
            if "redis-server" in command:
                command = ["redis-server", "--port", str(redis_port), "--bind", "127.0.0.1"]
                command += ["--save", "", "--appendonly", "no", "--dir", str(directory)]
            elif "voicegate.agents.parrot" in command:
                command = _with_option(command, "--listen", f"127.0.0.1:{parrot_port}")
            elif "transceiver" in command:
                own["transceiver_ops_listen"] = f"127.0.0.1:{free_port()}"
                ops = f"http://{own['transceiver_ops_listen']}"
            elif "relay" in command:
                ops = f"http://{relay_ops}"
            elif "signaling" in command:
                ops = gate.url
            gate.servers[name] = spawn(name, command, directory, own, ops=ops)
            if "redis-server" in command:
                wait_until(lambda: _listening(redis_port), START_SECONDS, "Redis")
        _wait_ready(gate)
        yield gate


@contextlib.contextmanager
def parrot(directory: Path, *options: str) -> Iterator[str]:
    """A parrot as a process of its own; its `ws://` URL."""
    address = f"127.0.0.1:{free_port()}"
    command = [sys.executable, "-m", "voicegate.agents.parrot", "--listen", address, *options]
    server = spawn("parrot", command, directory, {}, ops="")
    try:
        wait_until(lambda: _listening(int(address.rpartition(":")[2])), START_SECONDS, "the parrot")
        yield f"ws://{address}/v1/realtime"
    finally:
        server.process.terminate()
        server.process.wait(STOP_SECONDS)


def parse_metrics(page: str) -> Metrics:
    """A Prometheus text page."""
    parsed = Metrics()
    for line in page.splitlines():
        match = re.fullmatch(r"([a-zA-Z_:][\w:]*)(?:\{(.*)\})? (\S+)", line)
        if match and not line.startswith("#"):
            labels = frozenset(re.findall(r'(\w+)="((?:[^"\\]|\\.)*)"', match[2] or ""))
            parsed[match[1], labels] = float(match[3])
    return parsed


def with_children(pid: int) -> list[int]:
    """A process and everything below it (Linux)."""
    parents: dict[int, list[int]] = {}
    for entry in Path("/proc").iterdir():
        if entry.name.isdigit():
            with contextlib.suppress(OSError):
                stat = (entry / "stat").read_text()
                parents.setdefault(int(stat.rpartition(")")[2].split()[1]), []).append(int(entry.name))
    found = [pid]
    for known in found:
        found += parents.get(known, [])
    return found


def cpu_seconds(pids: list[int]) -> float:
    """User and system time of the processes so far."""
    ticks = 0
    for pid in pids:
        with contextlib.suppress(OSError):
            fields = Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()
            ticks += int(fields[11]) + int(fields[12])
    return ticks / os.sysconf("SC_CLK_TCK")


def rss_bytes(pids: list[int]) -> int:
    """Resident memory of the processes, what is shared counted once per process."""
    pages = 0
    for pid in pids:
        with contextlib.suppress(OSError):
            pages += int(Path(f"/proc/{pid}/statm").read_text().split()[1])
    return pages * os.sysconf("SC_PAGE_SIZE")


@contextlib.contextmanager
def running(gate: Gate, *, check_end: bool) -> Iterator[None]:
    """Stop whatever was started, also when the start or the test fails."""
    try:
        yield
    except BaseException:
        with contextlib.suppress(AssertionError):
            gate.stop()
        sys.stderr.write(gate.logs()[-20_000:])  # pytest shows it beside the failure
        raise
    try:
        gate.stop()
    except AssertionError:
        if check_end:
            raise


def spawn(name: str, command: list[str], directory: Path, settings: Mapping[str, str], *, ops: str) -> Server:
    """Start a process with these settings in its environment, as `relay_listen`, and nothing of ours."""
    environment = {key: value for key, value in os.environ.items() if not key.startswith("VOICEGATE_")}
    environment |= {f"VOICEGATE_{key.upper()}": value for key, value in settings.items()}
    environment["VOICEGATE_LOG_FORMAT"] = "json"
    environment["PYTHONUNBUFFERED"] = "1"
    environment["PATH"] = f"{Path(sys.executable).parent}{os.pathsep}{environment.get('PATH', '')}"
    return Server(name, command, environment, directory / f"{name}.log", ops)


def _wait_ready(gate: Gate) -> None:
    def ready() -> bool:
        for server in gate.servers.values():
            code = server.process.poll()
            assert code is None, f"{server.name} ended with {code} at its start"
            if server.ops:
                try:
                    if request("GET", f"{server.ops}/readyz", timeout=2).status != 200:
                        return False
                except OSError:
                    return False
        return True

    wait_until(ready, START_SECONDS, "every process to be ready")


def _procfile() -> list[tuple[str, list[str]]]:
    """(name, command) of each line, with this interpreter instead of whichever `python` is first."""
    entries = []
    for line in PROCFILE.read_text().splitlines():
        if line.strip() and not line.startswith("#"):
            name, _, text = line.partition(":")
            command = shlex.split(text)
            if command[0] == "exec":
                command = command[1:]
            command[0] = {"voicegate": script("voicegate"), "python": sys.executable}.get(
                command[0], command[0]
            )
            entries.append((name.strip(), command))
    return entries


def _with_option(command: list[str], option: str, value: str) -> list[str]:
    if option in command:
        place = command.index(option)
        return [*command[: place + 1], value, *command[place + 2 :]]
    return [*command, option, value]


def script(name: str) -> str:
    """The path of a program of this environment."""
    beside = Path(sys.executable).with_name(name)
    found = str(beside) if beside.exists() else shutil.which(name)
    assert found, f"{name} is not installed beside {sys.executable}"
    return found


def _listening(port: int) -> bool:
    with contextlib.suppress(OSError), socket.create_connection(("127.0.0.1", port), timeout=1):
        return True
    return False
