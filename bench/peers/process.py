"""A peer as a process: it prints its URL and serves until its standard input ends."""

from __future__ import annotations

import contextlib
import json
import os
import subprocess
import sys
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

from tests.support.servers import ROOT


@dataclass(frozen=True, slots=True)
class Peer:
    url: str
    process: subprocess.Popen[str]

    @property
    def pid(self) -> int:
        return self.process.pid

    def command(self, **what: Any) -> None:
        """Tell it something, a line of JSON, and wait until it has done it. Only `lean_agent` listens."""
        assert self.process.stdin is not None and self.process.stdout is not None
        self.process.stdin.write(json.dumps(what) + "\n")
        self.process.stdin.flush()
        if not self.process.stdout.readline():
            raise RuntimeError(f"the peer ended with {self.process.poll()} over {what}")


@contextlib.contextmanager
def running_peer(module: str, *, cpu: int | None = None) -> Iterator[Peer]:
    """Start `python -m module`, on this CPU only."""
    process = subprocess.Popen(
        [sys.executable, "-m", module], cwd=ROOT, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True
    )
    assert process.stdin is not None and process.stdout is not None
    try:
        if cpu is not None:
            os.sched_setaffinity(process.pid, {cpu})
        yield Peer(process.stdout.readline().strip(), process)
    finally:
        process.stdin.close()
        try:
            process.wait(10)
        except subprocess.TimeoutExpired:
            process.kill()
            process.wait()
