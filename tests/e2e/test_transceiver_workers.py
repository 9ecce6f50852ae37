"""A transceiver's processes: each has its own calls, one dies and the others' calls lose nothing."""

from __future__ import annotations

import contextlib
import os
import signal
import socket
import sys
import time
from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.support import speech
from tests.support.light_client import Fleet, LightCall, opus_frames, request
from tests.support.redis_server import RedisServer
from tests.support.servers import (
    Gate,
    Server,
    cluster,
    free_port,
    free_ports,
    parse_metrics,
    script,
    spawn,
    wait_until,
    with_children,
)
from voicegate.processes.slots import HANG_SECONDS

pytestmark = [
    pytest.mark.e2e,
    pytest.mark.skipif(sys.platform != "linux", reason="worker processes need Linux"),
]

CALLS = 12
WORKERS = 2
NAME = "transceiver"


@pytest.fixture
def gate(tmp_path: Path) -> Iterator[Gate]:
    with cluster(tmp_path, transceiver_workers=str(WORKERS)) as running:
        yield running


def _processes(gate: Gate) -> dict[str, dict[str, int]]:
    """The processes of each transceiver of the cluster by name: vg-trans-0, ..."""
    return {server.name: _names(server) for server in gate.servers.values() if server.name.startswith(NAME)}


def _names(server: Server) -> dict[str, int]:
    names = {}
    for pid in with_children(server.process.pid):
        with contextlib.suppress(OSError):
            names[Path(f"/proc/{pid}/comm").read_text().strip()] = pid
    return names


def _ready(gate: Gate) -> list[dict[str, object]]:
    return gate.log_lines(event="transceiver ready")


def _placed(gate: Gate, fleet: Fleet) -> dict[str, list[LightCall]]:
    """The calls by their transceiver's id."""
    names = {str(line["call"]): str(line["transceiver"]) for line in gate.log_lines(event="call allocated")}
    placed: dict[str, list[LightCall]] = {}
    for call in fleet.calls:
        placed.setdefault(names[fleet.locations[id(call)].rsplit("/", 1)[1]], []).append(call)
    return placed


def _pid_of(gate: Gate, transceiver: str) -> int:
    """The worker that is this transceiver: by its place among its siblings in the log."""
    [line] = [line for line in _ready(gate) if str(line["transceiver"]) == transceiver]
    for server in gate.servers.values():
        if server.name.startswith(NAME) and line in server.lines():
            return _processes(gate)[server.name][f"vg-trans-{line['worker']}"]
    raise AssertionError("it is nobody's")


def test_one_worker_dies_and_the_calls_of_the_others_lose_nothing(gate: Gate) -> None:
    servers = [server for server in gate.servers.values() if server.name.startswith(NAME)]
    ids = {line["transceiver"] for line in _ready(gate)}
    assert len(ids) == WORKERS * len(servers), "each has an id of its own"
    cpus = [
        os.sched_getaffinity(pid)
        for names in _processes(gate).values()
        for name, pid in names.items()
        if name.startswith("vg-trans-") and name[-1].isdigit()
    ]
    assert len(cpus) == WORKERS * len(servers) and all(len(one) == 1 for one in cpus), cpus

    frames = opus_frames(speech.say("One after the other, and none of them is missing."))
    with Fleet() as fleet:
        for _ in range(CALLS):
            fleet.call(gate.calls_url, frames, loop=True)
        for call in fleet.calls:
            call.wait_for("connected", 10)
        placed = _placed(gate, fleet)
        assert len(placed) >= 2, "calls are spread"
        wait_until(lambda: _shown(gate) == (len(ids), CALLS, CALLS), 3, "every worker on the pages of all")
        victim = next(iter(placed))
        others = [call for name, calls in placed.items() if name != victim for call in calls]
        time.sleep(0.5)
        before = {id(call): call.lost() for call in others}
        killed_at = time.monotonic()
        os.kill(_pid_of(gate, victim), signal.SIGKILL)
        wait_until(lambda: len(_ready(gate)) > len(ids), 5, "another worker in its place")
        replaced = time.monotonic() - killed_at
        time.sleep(1.0)
        assert replaced < 2.0, f"after {replaced:.2f} s"
        assert {id(call): call.lost() for call in others} == before
        for call in others:
            assert not call.closed, "its call goes on"
        newest = str(_ready(gate)[-1]["transceiver"])
        assert newest != victim, "nobody takes it for the dead one"
        wait_until(lambda: _takes_calls(gate, fleet, newest), 5, "calls at the new worker")


def _shown(gate: Gate) -> tuple[float, float, float]:
    """By the processes' own pages: workers, calls, and how many set-ups were timed."""
    page = gate.metrics(NAME)
    names = ("workers", "calls", "setup_seconds_count")
    workers, calls, setups = (page.total(f"voicegate_transceiver_{name}") for name in names)
    return workers, calls, setups


def _takes_calls(gate: Gate, fleet: Fleet, transceiver: str) -> bool:
    call = fleet.call(gate.calls_url)
    call.wait_for("connected", 10)
    return transceiver in _placed(gate, fleet)


def test_nothing_outlives_a_killed_supervisor(gate: Gate) -> None:
    server = next(server for server in gate.servers.values() if server.name.startswith(NAME))
    processes = [pid for pid in with_children(server.process.pid) if pid != server.process.pid]
    assert len(processes) == WORKERS + 2, "the zygote, the workers and the spare"
    server.killed = True
    os.kill(server.process.pid, signal.SIGKILL)
    server.process.wait()
    wait_until(lambda: not any(Path(f"/proc/{pid}").exists() for pid in processes), 5, "their end")


def test_sigterm_ends_the_calls_of_every_worker_with_a_word(gate: Gate) -> None:
    servers = [server for server in gate.servers.values() if server.name.startswith(NAME)]
    with Fleet() as fleet:
        for _ in range(CALLS):
            fleet.call(gate.calls_url)
        for call in fleet.calls:
            call.wait_for("connected", 10)
        for server in servers:
            server.killed = True
            server.process.terminate()
        for server in servers:
            assert server.process.wait(10) == 0
        wait_until(lambda: all(call.closed for call in fleet.calls), 5, "every client to be told")
    assert request("GET", f"{gate.url}/healthz").status == 200


FIRST_ID = 20


@pytest.fixture
def settings(server: RedisServer) -> dict[str, str]:
    """A transceiver whose workers have given ids and ports: who takes a place needs what the dead one had."""
    return {
        "keys_secrets": f"0:{'f' * 32}",
        "registry_redis": f"redis://127.0.0.1:{server.port}/0",
        "registry_snapshot": "",
        "agent_url": "ws://127.0.0.1:9/v1/realtime",
        "transceiver_id": str(FIRST_ID),
        "transceiver_link_listen": f"127.0.0.1:{free_ports(WORKERS)}",
        "transceiver_control_listen": f"127.0.0.1:{free_ports(WORKERS)}",
        "transceiver_ops_listen": f"127.0.0.1:{free_port()}",
        "transceiver_workers": str(WORKERS),
    }


@contextlib.contextmanager
def _spawned(settings: dict[str, str], directory: Path) -> Iterator[Server]:
    command, ops = [script("voicegate"), "--role", "transceiver"], settings["transceiver_ops_listen"]
    running = spawn(NAME, command, directory, settings, ops=f"http://{ops}")
    try:
        yield running
    finally:
        running.process.terminate()
        running.process.wait(10)


@pytest.fixture
def fixed(settings: dict[str, str], tmp_path: Path) -> Iterator[Server]:
    with _spawned(settings, tmp_path) as running:
        wait_until(lambda: len(_served(running)) == WORKERS, 20, "both workers")
        yield running


def _served(server: Server) -> list[object]:
    """The ids of the transceivers that were ready, in order."""
    return [line["transceiver"] for line in server.lines() if line["event"] == "transceiver ready"]


def test_a_given_id_and_its_ports_are_taken_over_from_the_dead(fixed: Server) -> None:
    before = _names(fixed)
    for served, number in enumerate((signal.SIGKILL, signal.SIGSTOP), start=WORKERS + 1):
        began = time.monotonic()
        os.kill(_names(fixed)["vg-trans-0"], number)
        wait_until(lambda n=served: len(_served(fixed)) >= n, 15, "another one with its id", every=0.02)
        took = time.monotonic() - began
        # The lease of a dead one lasts for four to six seconds; who hangs is given five.
        assert took < (2.0 if number == signal.SIGKILL else HANG_SECONDS + 2.5), f"after {took:.2f} s"
        assert _served(fixed)[-1] == FIRST_ID
    assert fixed.process.poll() is None
    assert _names(fixed)["vg-trans-1"] == before["vg-trans-1"], "the other worker serves on"
    wait_until(lambda: request("GET", f"{fixed.ops}/readyz").status == 200, 3, "all of them to be ready")
    page = parse_metrics(request("GET", f"{fixed.ops}/metrics").body)
    assert page.total("voicegate_transceiver_worker_deaths_total", worker="0") == 2
    for worker in range(WORKERS):
        labels = {"worker": str(worker), "transceiver": str(FIRST_ID + worker)}
        assert ("voicegate_transceiver_calls", frozenset(labels.items())) in page, page.like("_calls")


@pytest.mark.parametrize("key", ["link_listen", "control_listen"])
def test_a_port_of_the_second_worker_that_is_taken_is_a_sentence(
    key: str, settings: dict[str, str], tmp_path: Path
) -> None:
    kind = socket.SOCK_DGRAM if key == "link_listen" else socket.SOCK_STREAM
    host, port = settings[f"transceiver_{key}"].split(":")
    with socket.socket(type=kind) as taken, _spawned(settings, tmp_path) as running:
        taken.bind((host, int(port) + 1))
        if kind == socket.SOCK_STREAM:
            taken.listen()
        assert running.process.wait(20) == 1
        told = running.log.read_text().splitlines()[-1]
        assert told.startswith(f"voicegate: [transceiver] {key}: cannot listen on {host}:{int(port) + 1}")


def test_an_id_that_somebody_holds_is_a_sentence(
    settings: dict[str, str], fixed: Server, tmp_path: Path
) -> None:
    other = {**settings, "registry_lease_seconds": "3", "transceiver_id": str(FIRST_ID + 1)}
    listens = ("link_listen", "control_listen", "ops_listen")
    other |= {f"transceiver_{key}": "127.0.0.1:0" for key in listens}
    (tmp_path / "other").mkdir()
    with _spawned(other, tmp_path / "other") as running:
        assert running.process.wait(20) == 1
        told = running.log.read_text().splitlines()[-1]
        assert told == f"voicegate: transceiver id {FIRST_ID + 1} is held by another process: choose another"
    assert fixed.process.poll() is None
