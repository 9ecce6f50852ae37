"""Processes in a few milliseconds: forked from one that has loaded everything and does nothing.

    zygote = start_zygote(serve)            # before any thread is there, Trio's included
    control = zygote.fork(7)                # serve(socket) runs in a new process, at the other end
    await zygote.run(ended)                 # ended(7, status), and why the zygote itself is lost

Theory of operation. A process with threads must not fork, and starting Python anew costs some 0.4 s. So the
first thing a supervising process does is to fork the *zygote*, which stays single-threaded, waits for orders
on a socket, forks a child for each, and reaps it. Children are known by the serial number of their order:
process ids are used again.

Nothing outlives who started it, however that ends: the zygote kills its children and ends when its socket is
closed at the other end. Should the zygote itself be killed, its children go on, and who started it can still
kill those whose process ids it was told in time: by descriptors, for a process id may be another's by then.
SIGINT and SIGTERM, which terminals and service managers send to whole groups, are
ignored by all of them: the supervisor tells its children when to stop, and in which order.
"""

from __future__ import annotations

import contextlib
import gc
import os
import select
import signal
import socket
import struct
import sys
import time
import traceback
from collections.abc import Callable
from pathlib import Path

import trio

NO_FORK = -(1 << 31)
"""The status of a child that could not be forked: the system has no memory or process left."""
END_SECONDS = 1.0
"""How long the zygote may take to kill its children and end; it takes milliseconds."""

_ORDER = struct.Struct("!cI")
_REPORT = struct.Struct("!Ii")
_FORK, _KILL = b"f", b"k"


class Zygote:
    """The handle in the process that called `start_zygote`. Not for several threads."""

    def __init__(self, pid: int, sock: socket.socket) -> None:
        self.pid = pid
        self._descriptors: dict[int, int] = {}
        """Of children's processes (pidfd_open(2)), by serial."""
        self._sock = sock
        sock.setblocking(False)

    def fork(self, serial: int) -> socket.socket:
        """Let a child run `serve`; our end of its control socket (SOCK_SEQPACKET), closed by the kernel when
        the child ends. OSError when the zygote is gone. `serial`: 32 bits, never used before."""
        ours, its = socket.socketpair(socket.AF_UNIX, socket.SOCK_SEQPACKET)  # noqa: TID251 - to a process
        with its:
            try:
                socket.send_fds(self._sock, [_ORDER.pack(_FORK, serial)], [its.fileno()])
            except OSError:
                ours.close()
                raise
        return ours

    def watch(self, serial: int, pid: int) -> None:
        """Tell a child's process id, as it says itself, so that `kill` needs no zygote. An id of anything but
        a child of the zygote is ignored, and so is any where the kernel has no descriptors of processes
        (Linux before 5.3)."""
        with contextlib.suppress(OSError):
            # Opened first: whatever becomes of the id, the descriptor stays with the process that was asked.
            descriptor = os.pidfd_open(pid)
            try:
                if _parent(pid) == self.pid and serial not in self._descriptors:
                    self._descriptors[serial] = descriptor
            finally:  # also of one that is gone before it is looked at
                if self._descriptors.get(serial) != descriptor:
                    os.close(descriptor)

    def kill(self, serial: int) -> None:
        """SIGKILL; nothing happens to a child that has ended already."""
        with contextlib.suppress(OSError):
            self._sock.send(_ORDER.pack(_KILL, serial))
        if (descriptor := self._descriptors.pop(serial, None)) is not None:
            with contextlib.suppress(ProcessLookupError):
                signal.pidfd_send_signal(descriptor, signal.SIGKILL)
            os.close(descriptor)

    async def run(self, ended: Callable[[int, int], None]) -> None:
        """Report each child's end, as `subprocess` writes its status (-9: SIGKILL); returns when the zygote
        itself has ended."""
        while True:
            await trio.lowlevel.wait_readable(self._sock)
            try:
                report = self._sock.recv(_REPORT.size)
            except BlockingIOError:
                continue
            except OSError:
                return
            if not report:
                return
            ended(*_REPORT.unpack(report))

    def close(self) -> None:
        """End it and every child that is left. Waits until they are gone, END_SECONDS at most."""
        for serial in tuple(self._descriptors):
            self.kill(serial)
        self._sock.close()
        deadline = time.monotonic() + END_SECONDS
        with contextlib.suppress(ChildProcessError):
            while os.waitpid(self.pid, os.WNOHANG) == (0, 0):
                if time.monotonic() > deadline:
                    os.kill(self.pid, signal.SIGKILL)
                    os.waitpid(self.pid, 0)
                    return
                time.sleep(0.005)


def start_zygote(serve: Callable[[socket.socket], int]) -> Zygote:
    """Fork the zygote. `serve` is given a control socket in each child and returns its exit status; what it
    needs should be imported by now."""
    ours, its = socket.socketpair(socket.AF_UNIX, socket.SOCK_SEQPACKET)  # noqa: TID251 - to a process
    gc.collect()
    gc.freeze()  # the collector of a child would write into, and so copy, every page of what is shared
    sys.stdout.flush()
    sys.stderr.flush()
    pid = os.fork()
    if pid == 0:
        ours.close()
        _end(lambda: _Loop(its, serve).run())
    its.close()
    return Zygote(pid, ours)


def name_process(name: str) -> None:
    """What `ps` and `top` show, 15 characters; only for people, so nothing depends on it."""
    with contextlib.suppress(OSError):
        Path("/proc/self/comm").write_text(name)


def _parent(pid: int) -> int:
    """Its parent's process id, by the fourth field of proc_pid_stat(5): the second is a name, in which
    anything may be. OSError when there is no such process."""
    return int(Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[1])


class _Loop:
    """The zygote itself."""

    def __init__(self, control: socket.socket, serve: Callable[[socket.socket], int]) -> None:
        self._control = control
        self._serve = serve
        self._children: dict[int, int] = {}
        """Process id to serial."""
        for ignored in (signal.SIGINT, signal.SIGTERM):
            signal.signal(ignored, signal.SIG_IGN)
        self._wake, wake_writer = os.pipe()
        os.set_blocking(self._wake, False)
        os.set_blocking(wake_writer, False)
        signal.signal(signal.SIGCHLD, lambda *_: None)
        signal.set_wakeup_fd(wake_writer, warn_on_full_buffer=False)
        self._wake_writer = wake_writer
        name_process("vg-zygote")

    def run(self) -> int:
        try:
            while True:
                control = self._control.fileno()
                ready, _, _ = select.select([control, self._wake], [], [])
                if self._wake in ready:
                    with contextlib.suppress(BlockingIOError):
                        os.read(self._wake, 4096)
                    self._reap()
                if control in ready and not self._obey():
                    return 0
        finally:
            for pid in self._children:
                os.kill(pid, signal.SIGKILL)
            for pid in self._children:
                os.waitpid(pid, 0)

    def _obey(self) -> bool:
        """Carry out one order; False when who gives them is gone."""
        try:
            order, descriptors, _, _ = socket.recv_fds(self._control, _ORDER.size, 1)
        except ConnectionError:  # it ended before it had read all reports
            return False
        if not order:
            return False
        kind, serial = _ORDER.unpack(order)
        if kind == _KILL:
            for pid in [pid for pid, other in self._children.items() if other == serial]:
                os.kill(pid, signal.SIGKILL)  # not reaped yet, so the id is still its own
            return True
        with socket.socket(fileno=descriptors[0]) as its:
            its.set_inheritable(False)
            self._fork(serial, its)
        return True

    def _fork(self, serial: int, its: socket.socket) -> None:
        try:
            pid = os.fork()
        except OSError:
            self._report(serial, NO_FORK)
            return
        if pid == 0:
            signal.set_wakeup_fd(-1)
            signal.signal(signal.SIGCHLD, signal.SIG_DFL)
            self._control.close()
            os.close(self._wake)
            os.close(self._wake_writer)
            _end(lambda: self._serve(its))
        self._children[pid] = serial

    def _reap(self) -> None:
        while self._children:
            pid, status = os.waitpid(-1, os.WNOHANG)
            if pid == 0:
                return
            serial = self._children.pop(pid)
            self._report(serial, os.waitstatus_to_exitcode(status))

    def _report(self, serial: int, status: int) -> None:
        with contextlib.suppress(ConnectionError):  # `_obey` finds out
            self._control.send(_REPORT.pack(serial, status))


def _end(work: Callable[[], int]) -> None:
    """Do the work and end the process there: what is above on the stack is the parent's."""
    status = 1
    try:
        status = work()
    except BaseException:
        traceback.print_exc()
    finally:
        with contextlib.suppress(OSError, ValueError):
            sys.stdout.flush()
            sys.stderr.flush()
        os._exit(status)
