"""Helper processes of tests: both sides of what they say to each other.

A child is a module of ours with an interpreter of its own, so that what it measures or drives does not share
one with the tests. It says one line of JSON when it is up, one for each line it is asked, and one at its end,
which is when its standard input ends: so none outlives the tests.
"""

from __future__ import annotations

import json
import subprocess
import sys
import threading
from collections.abc import Sequence
from pathlib import Path
from typing import Any

ROOT = Path(__file__).resolve().parents[2]
END_SECONDS = 60.0
"""For a hundred calls to hang up on a busy machine."""


class Child:
    """The parent's handle. AssertionError when the child fails."""

    def __init__(self, module: str, *arguments: str, prefix: Sequence[str] = ()) -> None:
        """`prefix`: what goes before the command, as `ip netns exec`."""
        self.module = module
        self.process = subprocess.Popen(
            [*prefix, sys.executable, "-m", module, *arguments],
            cwd=ROOT,
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            text=True,
        )
        self.first = self._read()
        """What it said when it was up."""
        self._last: Any = None
        self._stopped = False

    def ask(self, line: str) -> Any:
        """Its answer."""
        assert self.process.stdin is not None
        self.process.stdin.write(line + "\n")
        self.process.stdin.flush()
        return self._read()

    def stop(self) -> Any:
        """What it says at its end; the same when asked again."""
        if not self._stopped:
            self._stopped = True
            output, _err = self.process.communicate(timeout=END_SECONDS)
            assert self.process.returncode == 0, f"{self.module} ended with {self.process.returncode}"
            self._last = json.loads(output) if output else None
        return self._last

    def _read(self) -> Any:
        assert self.process.stdout is not None
        line = self.process.stdout.readline()
        assert line, f"{self.module} failed; its last words are above"
        return json.loads(line)


def run_script(script: str) -> str:
    """What a Python script says, in an interpreter and a process group of its own: for what forks, which a
    process with threads must not. AssertionError, with its last words, when it fails."""
    result = subprocess.run(
        [sys.executable, "-c", script], capture_output=True, text=True, timeout=20, start_new_session=True
    )
    assert result.returncode == 0, result.stderr
    return result.stdout + result.stderr


def tell(result: object) -> None:
    """In the child: one line to the parent."""
    sys.stdout.write(json.dumps(result) + "\n")
    sys.stdout.flush()


def when_over() -> threading.Event:
    """In the child: set when the parent wants it to end."""
    over = threading.Event()

    def wait() -> None:
        sys.stdin.read()
        over.set()

    threading.Thread(target=wait, daemon=True).start()
    return over
