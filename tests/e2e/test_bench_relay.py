"""`make bench-relay` measures: its generator, its C forwarder and voicegate's relay, for a moment each."""

from __future__ import annotations

import json
import os
import shutil
import subprocess
import sys

import pytest

from bench.report import RESULTS
from tests.support.servers import ROOT

pytestmark = [
    pytest.mark.e2e,
    pytest.mark.skipif(shutil.which("cc") is None, reason="the generator is made from C: install gcc"),
    pytest.mark.skipif(
        len(os.sched_getaffinity(0)) < 2, reason="the relay and the generator need a CPU each: there is one"
    ),
]

NAME = "relay-test"
OPTIONS = "--only voicegate,c --flows 20 --seconds 0.1 --rounds 1 --memory-flows 200 --rate 5000"


def test_packets_go_through_both_relays_both_ways() -> None:
    command = [sys.executable, "-m", "bench.relay.run", "--name", NAME, *OPTIONS.split()]
    done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, timeout=60, check=False)
    assert done.returncode == 0, done.stdout + done.stderr

    results = json.loads((RESULTS / f"{NAME}.json").read_text())
    found = results["20 flows"]
    for label in ("voicegate", "voicegate, single frames", "c"):
        assert found["saturation"][label]["packets_per_second"] > 5000, label
        loaded = found["load"][label]
        assert loaded["lost"] < 0.01 and loaded["own_cpu_us"] > 0, label
        assert 3000 < loaded["packets_per_second"] < 7000, label
    assert found["load"]["voicegate"]["frames_down"] > 5 > found["load"]["c"]["frames_down"] == 1
    assert results["memory"]["flows"] == 200
    assert results["first_packet_us"]["flow made"] > 0
    assert "Goals" in done.stdout
