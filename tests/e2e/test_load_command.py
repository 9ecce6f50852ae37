"""`voicegate load` as a person runs it: against a gateway, and against what is none."""

from __future__ import annotations

import json
import signal
import socket
import subprocess
import sys
import threading
import time
from collections.abc import Iterator
from http.server import BaseHTTPRequestHandler, HTTPServer
from pathlib import Path

import pytest

from tests.e2e.conftest import assert_nothing_left
from tests.support.rig import Rig
from tests.support.servers import ROOT, Gate, free_port, one_process
from voicegate.roles.transceiver.allocation import ENTROPY_LENGTH, Wishes

pytestmark = pytest.mark.e2e

KEY = "the-key-of-the-load-tests"


@pytest.fixture(scope="module")
def locked(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Gate]:
    with one_process(tmp_path_factory.mktemp("locked"), signaling_api_keys=KEY) as running:
        yield running


def test_ten_calls_talk_listen_and_interrupt(locked: Gate, tmp_path: Path) -> None:
    told = tmp_path / "figures.json"
    options = ["--calls", "10", "--ramp", "20", "--seconds", "8", "--barge-in", "0.5"]
    done = load(locked.url, *options, "--key", KEY, "--json", str(told))
    assert done.returncode == 0, done.stderr
    assert "10 of 10 calls came up, 10 at once" in done.stdout
    assert "interruption to last packet" in done.stdout
    assert done.stderr.count("10/10 calls up") >= 6, "a line a second"

    figures = json.loads(told.read_text())
    assert figures["calls"]["connected"] == figures["calls"]["most_at_once"] == 10
    assert figures["calls"]["lost"] == 0 and not figures["calls"]["ended_early"]
    assert figures["setup_ms"]["answer"]["count"] == figures["setup_ms"]["connect"]["count"] == 10
    assert 9 * 8 * 50 < figures["up"]["packets"] < 11 * 9 * 50
    assert figures["up"]["lost"] == 0 and figures["up"]["calls_without_report"] == 0
    assert figures["down"]["packets"] >= 10 * 20 and figures["down"]["lost"] == 0
    # The parrot answers half a second after the end of speech; each reply is interrupted half a second in.
    turns, interruptions = figures["turns"], figures["interruptions"]
    assert turns["said"] == 20 and turns["answered"] >= 10
    assert 450 < turns["reply_ms"]["p50"] < 1000
    assert interruptions["sent"] >= 10 and interruptions["last_packet_ms"]["p50"] <= 100
    assert figures["events"]["output_audio_buffer.cleared"] == interruptions["sent"]
    assert figures["down"]["longest_gap_ms"]["p50"] >= 20
    assert_nothing_left(locked)


def test_a_bad_network_costs_packets_and_no_call(locked: Gate, tmp_path: Path) -> None:
    told = tmp_path / "figures.json"
    options = ["--calls", "4", "--ramp", "20", "--seconds", "9", "--talk", "1:2.5", "--timeout", "15"]
    network = ["--loss", "8", "--burst", "2", "--jitter", "30", "--reorder", "5"]
    done = load(locked.url, *options, *network, "--key", KEY, "--json", str(told))
    assert done.returncode == 0, done.stdout + done.stderr
    figures = json.loads(told.read_text())
    assert figures["calls"]["connected"] == 4
    assert 0.03 < figures["down"]["loss"] < 0.16 and 0.02 < figures["up"]["loss"] < 0.16
    assert figures["down"]["deviation_ms"]["p95"] > 15
    assert figures["tool"]["drops"]["impaired"] > 50
    assert_nothing_left(locked)


def test_control_c_ends_it_with_the_table_so_far(locked: Gate) -> None:
    command = [*COMMAND, locked.url, "--calls", "2", "--key", KEY]
    running = subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True, cwd=ROOT)
    assert running.stderr is not None
    while "2/2 calls up" not in (line := running.stderr.readline()):
        assert line, "it ended"
    running.send_signal(signal.SIGINT)
    out, err = running.communicate(timeout=5)
    assert running.returncode == 0 and "Traceback" not in err
    assert "2 of 2 calls came up" in out
    assert_nothing_left(locked)


def test_a_refused_key_is_one_line(locked: Gate) -> None:
    done = load(locked.url, "--calls", "200", "--ramp", "1000", "--key", "another")
    assert done.returncode == 1
    assert_one_line(done, "no call came up: HTTP 401", "--key")


def test_an_agent_that_is_not_there_is_what_the_server_says(tmp_path: Path) -> None:
    """And not a network that lets nothing through."""
    with one_process(tmp_path, agent_url=f"ws://127.0.0.1:{free_port()}/v1/realtime") as running:
        done = load(running.url, "--calls", "1", "--seconds", "3")
        assert done.returncode == 1
        last = done.stderr.splitlines()[-1]
        assert "no call came up" in last and "The server has ended the call: agent" in last, done.stderr


def test_addresses_that_are_none() -> None:
    for url in ("gateway", "ftp://127.0.0.1/", "http://127.0.0.1:99999/"):
        done = load(url)
        assert done.returncode == 2
        assert_one_line(done, url)
    done = load(f"http://127.0.0.1:{free_port()}/", "--calls", "3", "--ramp", "100")
    assert done.returncode == 1
    assert_one_line(done, "no call came up: no connection: Connection refused (3 calls)")


def test_a_server_that_does_not_answer() -> None:
    with socket.create_server(("127.0.0.1", 0)) as silent:
        url = f"http://127.0.0.1:{silent.getsockname()[1]}"
        begun = time.monotonic()
        done = load(url, "--calls", "2", "--ramp", "100", "--timeout", "0.5")
    assert time.monotonic() - begun < 5 and done.returncode == 1
    assert_one_line(done, "no HTTP answer within 0.5 s (2 calls)")


def test_media_that_do_not_come_through() -> None:
    """The answer is a transceiver's, but there is nobody at the relay's address."""
    nowhere = f"127.0.0.1:{free_port(socket.SOCK_DGRAM)}"
    core = Rig().core

    class Answering(BaseHTTPRequestHandler):
        def do_POST(self) -> None:
            offer = self.rfile.read(int(self.headers["Content-Length"])).decode()
            answer = core.allocate(Wishes(offer, (nowhere,)), now=1000.0, entropy=bytes(ENTROPY_LENGTH))[1]
            self.send_response(201)
            self.end_headers()
            self.wfile.write(answer.encode())

        def log_message(self, *_: object) -> None:
            pass

    with HTTPServer(("127.0.0.1", 0), Answering) as server:
        threading.Thread(target=server.serve_forever, daemon=True).start()
        done = load(f"http://127.0.0.1:{server.server_address[1]}", "--calls", "1", "--timeout", "1")
        server.shutdown()
    assert done.returncode == 1
    assert_one_line(done, f"no connectivity check was answered, at udp {nowhere}")


COMMAND = [sys.executable, "-m", "voicegate", "load"]


def load(*arguments: str) -> subprocess.CompletedProcess[str]:
    return subprocess.run([*COMMAND, *arguments], capture_output=True, text=True, timeout=60, cwd=ROOT)


def assert_one_line(done: subprocess.CompletedProcess[str], *parts: str) -> None:
    """What is wrong is one line, beside those of the progress."""
    said = [line for line in done.stderr.splitlines() if " calls up " not in line]
    assert len(said) == 1 and not done.stdout, done.stderr + done.stdout
    for part in parts:
        assert part in said[0], said[0]
