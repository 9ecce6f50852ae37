"""The command itself: messages, exit status, signals. Each test is a process, as a user starts it."""

from __future__ import annotations

import json
import os
import re
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest

from voicegate import __version__

SECRET = {"VOICEGATE_KEYS_SECRETS": "0:" + "s" * 32}
QUIET = {"VOICEGATE_SIGNALING_LISTEN": "127.0.0.1:0", "VOICEGATE_RELAY_LISTEN": "127.0.0.1:0"}


def run(*arguments: str, **environ: str) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        command(*arguments), env=environment(environ), capture_output=True, text=True, timeout=30
    )


def test_version_and_help() -> None:
    assert run("--version").stdout == f"voicegate {__version__}\n"
    assert "--check-config" in run("--help").stdout
    assert run("--role", "conductor").returncode == 2


def test_check_config() -> None:
    fine = run("--check-config")
    assert (fine.returncode, fine.stderr) == (0, "")
    assert "usable for all roles in one process" in fine.stdout
    split = run("--check-config", "--role", "relay", "--role", "transceiver")
    assert split.returncode == 2
    for words in (
        "keys.secrets is empty and keys.file too",
        "VOICEGATE_KEYS_SECRETS=",
        "registry.redis",
        "agent.url is empty",
    ):
        assert words in split.stderr
    assert "Traceback" not in split.stderr


def test_bad_configuration_is_one_line(tmp_path: Path) -> None:
    path = tmp_path / "c.toml"
    path.write_text("[relay]\nmax_flows = 'x'\n")
    result = run("--config", str(path))
    assert (result.returncode, result.stdout) == (2, "")
    assert result.stderr == "voicegate: relay.max_flows: Expected `int`, got `str`\n"


def test_a_redis_url_that_cannot_be_one_is_one_line() -> None:
    for url in ("redis://h:abc/0", "redis://127.0.0.1/0?foo=bar"):
        for arguments in (("--check-config",), ()):
            result = run(*arguments, "--role", "relay", VOICEGATE_REGISTRY_REDIS=url, **SECRET, **QUIET)
            assert (result.returncode, result.stdout) == (2, "")
            assert told(result).startswith("voicegate: registry.redis ")


def test_a_public_address_without_keys_is_refused() -> None:
    result = run(VOICEGATE_SIGNALING_LISTEN="0.0.0.0:0")
    assert result.returncode == 2
    assert "needs signaling.api_keys" in result.stderr


def test_a_taken_port_is_one_line() -> None:
    with socket.socket() as taken:
        taken.bind(("127.0.0.1", 0))
        taken.listen()
        address = f"127.0.0.1:{taken.getsockname()[1]}"
        result = run(**{**QUIET, "VOICEGATE_SIGNALING_LISTEN": address})
    assert result.returncode == 1
    assert told(result) == (
        f"voicegate: [signaling] listen: cannot listen on {address}: Address already in use; stop what uses"
        " that port, or choose another address (VOICEGATE_SIGNALING_LISTEN)"
    )
    with socket.socket(type=socket.SOCK_DGRAM) as taken:
        taken.bind(("127.0.0.1", 0))
        address = f"127.0.0.1:{taken.getsockname()[1]}"
        result = run(**{**QUIET, "VOICEGATE_RELAY_LISTEN": address})
    assert result.returncode == 1
    assert address in told(result) and "in use" in told(result)


@pytest.mark.parametrize("key", ["signaling_listen", "transceiver_control_listen", "transceiver_link_listen"])
def test_an_address_of_another_machine_is_one_line(key: str) -> None:
    variable = f"VOICEGATE_{key.upper()}"
    keys = {"VOICEGATE_SIGNALING_API_KEYS": "sk-" + "x" * 20}
    result = run(**{**QUIET, **keys, variable: "192.0.2.1:4444"})
    section, _, name = key.partition("_")
    assert result.returncode == 1
    assert told(result).startswith(f"voicegate: [{section}] {name}: cannot listen on 192.0.2.1:4444")
    assert f"this machine has no such address; choose another address ({variable})" in told(result)


def test_unreachable_redis_is_one_line() -> None:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port = probe.getsockname()[1]
    redis = f"redis://:hush@127.0.0.1:{port}/0"
    result = run("--role", "relay", VOICEGATE_REGISTRY_REDIS=redis, **SECRET, **QUIET)
    assert result.returncode == 1
    assert f"voicegate: cannot use Redis at 127.0.0.1:{port}" in told(result)
    assert "hush" not in result.stdout + result.stderr


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT])
def test_all_roles_in_one_process_until_a_signal(number: signal.Signals) -> None:
    with started() as process:
        ready = wait_for(process, "voicegate is ready")
        assert re.fullmatch(r"http://127\.0\.0\.1:\d+/", ready["open"])
        up = next(line for line in process.lines if line["event"] == "signaling is up")
        assert up["advertise"] == ready["relay"], "the answer names the port that the relay really has"
        assert not up["advertise"][0].endswith(":0")
        process.send_signal(number)
        assert process.wait(10) == 0
        rest = process.rest()
        assert "Traceback" not in rest and "press Talk" not in rest
        assert json.loads(rest.splitlines()[-1])["event"] == "stopped"


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT])
def test_signals_while_it_ends_change_nothing(number: signal.Signals) -> None:
    with started() as process:
        wait_for(process, "voicegate is ready")
        while process.poll() is None:
            process.send_signal(number)
            time.sleep(0.002)
        assert process.returncode == 0
        assert json.loads(process.rest().splitlines()[-1])["event"] == "stopped"


def test_a_person_is_told_where_to_go() -> None:
    with started(VOICEGATE_LOG_FORMAT="console") as process:
        assert process.stderr is not None
        invitation = next(line for line in process.stderr if "press Talk" in line)
        assert re.fullmatch(
            r"  Open http://127\.0\.0\.1:[1-9]\d*/ and press Talk\. Ctrl-C ends it\.\n", invitation
        )
        process.send_signal(signal.SIGINT)
        assert process.wait(10) == 0


def test_keys_of_a_file_are_read_again_without_a_restart(tmp_path: Path) -> None:
    file = tmp_path / "keys"
    file.write_text("0:" + "o" * 32 + "\n")
    with started(VOICEGATE_KEYS_FILE=str(file)) as process:
        wait_for(process, "voicegate is ready")
        file.write_text("1:" + "n" * 32 + "\n0:" + "o" * 32 + "\n")
        line = wait_for(process, "the key file was read again")
        assert line["mints"].startswith("1:") and len(line["opens"]) == 2
        file.write_text("1:short\n")
        line = wait_for(process, "the last good secrets stay in use")
        assert "needs at least 32" in line["event"]
        process.send_signal(signal.SIGTERM)
        assert process.wait(10) == 0
        rest = process.rest() + json.dumps(process.lines)
        assert "nnnn" not in rest and "oooo" not in rest and "Traceback" not in rest


def test_the_keys_command_is_there(tmp_path: Path) -> None:
    assert "retire" in run("keys", "--help").stdout
    assert "voicegate keys --help" in run("--help").stdout
    nothing = run("keys")
    assert nothing.returncode == 2 and "there are no secrets" in told(nothing)
    file = str(tmp_path / "keys")
    assert run("keys", "add", VOICEGATE_KEYS_FILE=file).returncode == 0
    assert "mints" in run("keys", VOICEGATE_KEYS_FILE=file).stdout
    both = run("keys", "frobnicate")
    assert both.returncode == 2 and "Traceback" not in both.stderr


def test_a_signal_while_starting_ends_it_too() -> None:
    with started() as process:
        time.sleep(0.6)
        process.send_signal(signal.SIGTERM)
        assert process.wait(10) in (0, -signal.SIGTERM)
        assert "Traceback" not in process.rest()


def test_a_relay_starts_without_the_heavy_parts() -> None:
    code = (
        "import sys; from voicegate.cli import _load; _load('relay');"
        "print([m for m in ('av', 'numpy', 'OpenSSL', 'pylibsrtp', 'quart') if m in sys.modules])"
    )
    assert printed(code) == "[]\n"


def test_signaling_starts_without_the_parts_for_media() -> None:
    code = (
        "import sys; from voicegate.cli import _load; _load('signaling');"
        "print([m for m in ('av', 'numpy', 'pylibsrtp', 'webrtcvad') if m in sys.modules])"
    )
    assert printed(code) == "[]\n"


def printed(code: str) -> str:
    result = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, timeout=30)
    assert result.returncode == 0, result.stderr
    return result.stdout


class Process(subprocess.Popen[str]):
    lines: list[dict[str, object]]

    def rest(self) -> str:
        assert self.stderr is not None
        return self.stderr.read()


@contextmanager
def started(**environ: str) -> Iterator[Process]:
    process = Process(command(), env=environment({**QUIET, **environ}), stderr=subprocess.PIPE, text=True)
    process.lines = []
    try:
        yield process
    finally:
        process.kill()
        process.wait()
        assert process.stderr is not None
        process.stderr.close()


def wait_for(process: Process, event: str) -> dict[str, str]:
    assert process.stderr is not None
    for text in process.stderr:
        line = json.loads(text)
        process.lines.append(line)
        if str(line["event"]).startswith(event):
            return line
    raise AssertionError(f"ended without {event}: {process.lines}")


def told(result: subprocess.CompletedProcess[str]) -> str:
    """What is on stderr beside the log: one line."""
    assert "Traceback" not in result.stderr
    lines = [line for line in result.stderr.splitlines() if not line.startswith("{")]
    assert len(lines) == 1, result.stderr
    return lines[0]


def command(*arguments: str) -> list[str]:
    return [sys.executable, "-m", "voicegate", *arguments]


def environment(extra: dict[str, str]) -> dict[str, str]:
    inherited = {key: value for key, value in os.environ.items() if not key.startswith("VOICEGATE_")}
    return inherited | extra
