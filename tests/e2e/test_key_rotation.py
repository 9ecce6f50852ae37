"""The secrets of a running cluster rotate under live calls: none is lost or refused, no gap is heard."""

from __future__ import annotations

import math
import os
import re
import subprocess
import sys
import time
import warnings
from collections.abc import Sequence
from operator import gt
from pathlib import Path

import pytest

from tests.e2e.conftest import assert_nothing_left
from tests.support import speech
from tests.support.light_client import CONSENT_INTERVAL, Fleet, LightCall, opus_frames
from tests.support.servers import Gate, cluster, wait_until
from voicegate.proto.keys import ClusterKeys

pytestmark = pytest.mark.e2e

MAX_GAP = 0.1
"""Seconds without a packet of a talk spurt's 20-ms ones."""


def test_secrets_rotate_under_live_calls(tmp_path: Path) -> None:
    longest = rotate(tmp_path, "first")
    if longest > MAX_GAP:
        # A second chance for the hearing alone: a machine that stalls for a moment makes a gap, too.
        warnings.warn(
            f"heard again, after a gap of {longest:.3f} s at a load of {os.getloadavg()}", stacklevel=1
        )
        longest = rotate(tmp_path, "again")
    assert longest <= MAX_GAP, f"{longest:.3f} s without a packet within a talk spurt"


def rotate(parent: Path, name: str) -> float:
    """Add, mint, retire while calls go on and others begin; the longest gap that any of them heard, infinite
    when packets were lost on the way to the transceivers."""
    directory = parent / name
    directory.mkdir()
    said = speech.say("Nobody notices that the locks are changed while we are talking.")
    frames = opus_frames(speech.conversation(0.2, said, 0.7 + len(said) / speech.RATE + 0.3))
    file = directory / "keys"
    file.write_text("0:" + "o" * 32 + "\n")
    with cluster(directory, keys_secrets="", keys_file=str(file)) as gate, Fleet() as fleet:
        calls: list[LightCall] = []

        def call() -> LightCall:
            new = fleet.call(gate.calls_url, frames, loop=True)
            new.wait_for("connected", 10)
            calls.append(new)
            return new

        old = [call() for _ in range(4)]
        assert {_key_id(one) for one in old} == {0}
        _until(gate, file, "next: `voicegate keys add` is safe")

        _keys(gate, file, "add", expect=0)
        assert "not open yet at" in _keys(gate, file, "mint", "1", expect=1), "it cannot have been read yet"
        call()
        _until(gate, file, "Key 1:[0-9a-f]{8} mints", "mint", "1")
        # Processes read the file one after the other: whichever mints, all open it.
        between = [call() for _ in range(4)]
        wait_until(lambda: _key_id(call()) == 1, 10, "a ticket of the new secret")
        assert {_key_id(one) for one in between} <= {0, 1}

        told = _keys(gate, file, "retire", "0", expect=1)
        assert "mints with" in told or "may be in use for" in told
        _until(gate, file, "not safe: calls and tokens that were minted with key 0")
        assert ClusterKeys.parse(file.read_text().split()).marks[1].startswith("0:"), "refused is not done"
        told = _keys(gate, file, "retire", "0", "--leaked", expect=0)
        assert "calls that are connected go on" in told
        _until(gate, file, "next: `voicegate keys add` is safe")
        for _ in range(3):
            assert _key_id(call()) == 1
        checked = [one.counts["checks_answered"] for one in old]
        time.sleep(CONSENT_INTERVAL + 0.5)
        again = [one.counts["checks_answered"] for one in old]
        assert all(map(gt, again, checked)), "a client whose consent checks fail ends its call (RFC 7675)"

        assert not [one.closed for one in calls if one.closed], "a call was lost"
        assert gate.metrics().total("voicegate_transceiver_calls") == len(calls)
        assert sum(one.lost() for one in calls) == 0
        heard_there = all(one.reported_lost == 0 for one in old)
        assert fleet.hang_up(old[0]) == 404, "as `--leaked` said"
        for one in calls[-3:]:
            assert fleet.hang_up(one) == 200
        for one in calls:
            fleet.close(one)
        assert_nothing_left(gate)
        assert not gate.log_lines(level="error")
        return max(_longest_gap(one) for one in calls) if heard_there else math.inf


def _keys(gate: Gate, file: Path, *arguments: str, expect: int | None = None) -> str:
    """`voicegate keys` as a person runs it beside the cluster; what it said."""
    command = gate.servers["redis"].process.args
    assert isinstance(command, Sequence)
    environment = {name: value for name, value in os.environ.items() if not name.startswith("VOICEGATE_")}
    environment["VOICEGATE_KEYS_FILE"] = str(file)
    environment["VOICEGATE_REGISTRY_REDIS"] = f"redis://127.0.0.1:{command[command.index('--port') + 1]}/0"
    done = subprocess.run(
        [sys.executable, "-m", "voicegate", "keys", *arguments],
        env=environment,
        capture_output=True,
        text=True,
        timeout=20,
    )
    told = done.stdout + done.stderr
    assert "Traceback" not in told and (expect is None or done.returncode == expect), told
    assert "oooo" not in told
    return told


def _until(gate: Gate, file: Path, words: str, *arguments: str) -> None:
    """Repeat a command until it says so: processes read the file and renew their leases every few seconds."""
    deadline = time.monotonic() + 15
    while not re.search(words, told := _keys(gate, file, *arguments)):
        assert time.monotonic() < deadline, f"never {words!r}; at last:\n{told}"
        time.sleep(0.3)


def _key_id(call: LightCall) -> int:
    """The id of the secret that a call's ticket was minted with: three bits of its first character."""
    assert call.answer is not None
    alphabet = "ABCDEFGHIJKLMNOPQRSTUVWXYZabcdefghijklmnopqrstuvwxyz0123456789+/"
    return alphabet.index(call.answer.ufrag[0]) >> 3


def _longest_gap(call: LightCall) -> float:
    """Seconds between two packets that follow each other in sound: a pause of the agent's is none."""
    return max(
        (
            later.at - earlier.at
            for earlier, later in zip(call.heard, call.heard[1:], strict=False)
            if (later.timestamp - earlier.timestamp) & 0xFFFFFFFF <= 960
        ),
        default=0.0,
    )
