"""What the default judge and policy reach on the half of the labelled set that nothing was tuned on."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

from tests.turns.labelled import labelled_set

pytestmark = pytest.mark.e2e


@pytest.fixture(scope="module")
def found(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Any]:
    """The command's JSON for the judges and for the overlaps; all three run at once."""
    held, out = labelled_set()["held"], tmp_path_factory.mktemp("found")
    commands = {
        "fixed": (held / "turns.jsonl", "--judge", "fixed"),
        "adaptive": (held / "turns.jsonl", "--judge", "adaptive"),
        "overlaps": (held / "overlaps.jsonl", "--overlaps"),
    }
    running = {name: _start(out / name, *arguments) for name, arguments in commands.items()}
    try:
        for name, process in running.items():
            assert process.wait(100) == 0, name
    finally:
        for process in running.values():
            process.kill()
            process.wait()
    found = {name: json.loads((out / name).read_text()) for name in commands}
    return {"fixed": found["fixed"]["fixed"], "adaptive": found["adaptive"]["adaptive"]} | found["overlaps"]


def test_false_cut_ins_at_300_ms(found: dict[str, Any]) -> None:
    assert found["adaptive"]["cut_ins_at_300_ms"] <= 0.5 * found["fixed"]["cut_ins_at_300_ms"]


def test_wait_at_5_percent_false_cut_ins(found: dict[str, Any]) -> None:
    assert found["adaptive"]["wait_at_5_percent"] <= 0.6 * found["fixed"]["wait_at_5_percent"]


@pytest.mark.parametrize("kind", ["backchannel", "cough", "echo"])
def test_false_stops(found: dict[str, Any], kind: str) -> None:
    assert found[kind]["stopped"] <= 0.1


def test_missed_barge_ins(found: dict[str, Any]) -> None:
    assert 1 - found["all barge-ins"]["stopped"] <= 0.02


def test_the_output_is_paused_in_time(found: dict[str, Any]) -> None:
    """95 of 100 barge-ins, from their first sound on."""
    late = found["all barge-ins"]["pause"][1]
    assert late is not None
    assert late <= 0.12


def _start(out: Path, *arguments: object) -> subprocess.Popen[bytes]:
    command = [sys.executable, "-m", "voicegate", "turns", "eval", *map(str, arguments), "--json", str(out)]
    return subprocess.Popen(command, stdout=subprocess.DEVNULL)
