"""A supervisor with real workers that do nothing. Each test is a script: this process must not fork."""

from __future__ import annotations

import sys

import pytest

from tests.support.child import run_script

pytestmark = pytest.mark.skipif(sys.platform != "linux", reason="worker processes need Linux")

HEAD = """
import os, signal, trio
from voicegate.config import Config
from voicegate.metrics import Sample
from voicegate.processes import slots, supervisor, worker, zygote
from voicegate.proto.keys import ClusterKeys

DRAIN_SECONDS = 0.3
worker.FIRST_REPORTS, worker.REPORT_SECONDS = (), 0.02
slots.HANG_SECONDS = 0.6

class Part:
    def __init__(self, start):
        self.slot, self.reports = start.slot, 0

    async def run(self, *, task_status):
        task_status.started()
        try:
            await trio.sleep_forever()
        finally:
            with trio.CancelScope(shield=True):
                await trio.sleep(DRAIN_SECONDS)

    def progress(self):
        self.reports += 1
        return self.reports

    def samples(self):
        labels = {"worker": str(self.slot)}
        values = {"voicegate_test_pid": os.getpid(), "voicegate_test_reports": self.reports}
        return [Sample(name, "gauge", "Help.", labels, value) for name, value in values.items()]

    def unready(self):
        return None

    def close(self):
        pass

def shown(name):
    found = [sample for sample in workers.samples() if sample.name == f"voicegate_test_{name}"]
    return {int(sample.labels["worker"]): int(sample.value) for sample in found}

def alive(pid):
    try:
        return "State:\\tZ" not in open(f"/proc/{pid}/status").read()
    except OSError:
        return False

async def until(condition):
    with trio.fail_after(5):
        while not condition():
            await trio.sleep(0.01)

def start(stop_seconds):
    global origin, workers
    origin = zygote.start_zygote(worker.worker_process(Config(), "test", Part))
    keys = ClusterKeys.parse(["0:" + "k" * 32])
    places = [supervisor.Place(None, b"")] * 2
    workers = supervisor.Supervisor("test", keys, origin, places, stop_seconds=stop_seconds)
"""


def run(script: str) -> str:
    return run_script(HEAD + script)


def test_the_page_shows_every_worker_until_it_has_ended() -> None:
    run(
        """
async def main():
    async with trio.open_nursery() as nursery:
        await nursery.start(workers.run)
        assert workers.unready() is None
        await until(lambda: len(shown("pid")) == 2)
        pids = set(shown("pid").values())
        assert len(pids) == 2 and os.getpid() not in pids
        nursery.start_soon(look_on)
        await trio.sleep(0.01)
        nursery.cancel_scope.cancel()
    assert shown("reports") == {}, "whoever has ended is shown no more"
    assert seen == ["draining"]

seen = []

async def look_on():
    with trio.CancelScope(shield=True):
        await until(workers.unready)
        seen.append(workers.unready())
        before = shown("reports")
        await until(lambda: len(now := shown("reports")) == 2 and all(now[w] > before[w] for w in now))

start(stop_seconds=5)
trio.run(main)
origin.close()
"""
    )


def test_a_worker_that_hangs_is_killed_when_the_zygote_is_gone() -> None:
    run(
        """
async def main():
    async with trio.open_nursery() as nursery:
        await nursery.start(workers.run)
        await until(lambda: len(shown("pid")) == 2)
        os.kill(origin.pid, signal.SIGKILL)
        await trio.sleep(0.05)
        hung = shown("pid")[0]
        os.kill(hung, signal.SIGSTOP)
        await until(lambda: shown("pid").get(0, hung) != hung)
        await until(lambda: not alive(hung))
        last = shown("pid")
        os.kill(last[1], signal.SIGSTOP)
        nursery.cancel_scope.cancel()
    assert alive(last[1]) and not alive(last[0])
    origin.close()
    await until(lambda: not alive(last[1]))

start(stop_seconds=0.5)
trio.run(main)
"""
    )
