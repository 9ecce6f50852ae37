"""Processes forked from a zygote. Each test is a script: this process has threads, and must not fork."""

from __future__ import annotations

import sys

import pytest

from tests.support.child import run_script

pytestmark = pytest.mark.skipif(sys.platform != "linux", reason="worker processes need Linux")

HEAD = """
import os, signal, sys, time, trio
from voicegate.processes.zygote import start_zygote

def serve(control):
    control.send(str(os.getpid()).encode())
    order = control.recv(100)
    if order == b"fail":
        raise RuntimeError("as it was told")
    return int(order or 9)

def alive(pid):
    try:
        return "State:\\tZ" not in open(f"/proc/{pid}/status").read()
    except OSError:
        return False

def open_descriptors(pid):
    return sorted(int(name) for name in os.listdir(f"/proc/{pid}/fd"))

def started(serial):
    control = zygote.fork(serial)
    control.setblocking(True)
    return control, int(control.recv(100))

zygote = start_zygote(serve)
"""


def run(script: str) -> str:
    return run_script(HEAD + script)


def test_statuses_are_told_by_serial() -> None:
    said = run(
        """
async def main():
    ends = {}
    async with trio.open_nursery() as nursery:
        nursery.start_soon(zygote.run, ends.__setitem__)
        (one, _), (two, _), (three, _) = started(1), started(2), started(3)
        one.send(b"5")
        two.send(b"fail")
        zygote.kill(3)
        while len(ends) < 3:
            await trio.sleep(0.01)
        zygote.kill(3)
        assert three.recv(10) == b"", "its socket closed with it"
        nursery.cancel_scope.cancel()
    assert ends == {1: 5, 2: 1, 3: -signal.SIGKILL}, ends

trio.run(main)
zygote.close()
"""
    )
    assert "as it was told" in said, "what a child fails of is on stderr"


def test_a_child_has_nothing_open_but_its_socket() -> None:
    run(
        """
(control, pid), (other, later) = started(1), started(2)
for child in (pid, later):
    found = open_descriptors(child)
    assert len(found) == 4, [os.readlink(f"/proc/{child}/fd/{n}") for n in found]
zygote.close()
"""
    )


def test_close_ends_every_child_and_signals_of_a_group_none() -> None:
    run(
        """
signal.signal(signal.SIGTERM, signal.SIG_IGN)
signal.signal(signal.SIGINT, signal.SIG_IGN)
children = [started(serial) for serial in range(3)]
pids = [pid for _, pid in children] + [zygote.pid]
os.killpg(os.getpgrp(), signal.SIGTERM)
os.killpg(os.getpgrp(), signal.SIGINT)
time.sleep(0.1)
assert all(map(alive, pids))
zygote.close()
assert not any(map(alive, pids))
"""
    )


def test_the_end_of_the_zygote_is_noticed() -> None:
    run(
        """
control, pid = started(1)
os.kill(zygote.pid, signal.SIGKILL)

async def main():
    with trio.fail_after(5):
        await zygote.run(lambda serial, status: None)

trio.run(main)
try:
    zygote.fork(2)
except OSError:
    pass
else:
    raise AssertionError("forked by nobody")
assert alive(pid), "a child goes on without it"
os.kill(pid, signal.SIGKILL)
zygote.close()
"""
    )


def test_a_child_that_was_watched_can_be_killed_when_the_zygote_is_gone() -> None:
    run(
        """
(one, _), (two, _), (three, _) = children = [started(serial) for serial in (1, 2, 3)]
for serial, (_, pid) in enumerate(children, 1):
    zygote.watch(serial, pid)
zygote.watch(4, os.getpid())
zygote.watch(5, 1 << 30)
opened = open_descriptors(os.getpid())
os.kill(zygote.pid, signal.SIGKILL)
for serial in (1, 2, 4, 5, 1):
    zygote.kill(serial)  # of a process that is no child of the zygote's, this one, nothing comes
one.settimeout(5)
two.settimeout(5)
assert one.recv(10) == two.recv(10) == b"", "their sockets closed with them"
assert len(open_descriptors(os.getpid())) == len(opened) - 2
zygote.close()
three.settimeout(5)
assert three.recv(10) == b"", "nobody is left behind"
"""
    )


def test_a_child_that_is_gone_before_it_is_looked_at_leaves_no_descriptor() -> None:
    run(
        """
import voicegate.processes.zygote as module

def gone(pid):
    raise FileNotFoundError(pid)

control, pid = started(1)
before = open_descriptors(os.getpid())
parent, module._parent = module._parent, gone
zygote.watch(1, pid)
assert open_descriptors(os.getpid()) == before
module._parent = parent
zygote.watch(1, pid)
assert len(open_descriptors(os.getpid())) == len(before) + 1
zygote.close()
"""
    )
