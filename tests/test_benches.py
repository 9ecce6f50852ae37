"""Every measurement explains itself."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import pytest

BENCH = Path(__file__).resolve().parents[1] / "bench"
PROGRAMS = sorted(path for path in BENCH.rglob("*.py") if "ArgumentParser" in path.read_text())


@pytest.mark.parametrize("program", PROGRAMS, ids=lambda path: path.stem)
def test_help(program: Path) -> None:
    module = ".".join(program.relative_to(BENCH.parent).with_suffix("").parts)
    told = subprocess.run(
        [sys.executable, "-m", module, "--help"], cwd=BENCH.parent, capture_output=True, text=True, timeout=60
    )
    assert told.returncode == 0, told.stderr
    assert "usage:" in told.stdout
