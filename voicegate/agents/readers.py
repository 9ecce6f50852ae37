"""The sockets of all agents of a worker, read in its turns instead of by a task for each.

What a delta costs is mostly the waking of a task for it. A call's task goes to sleep here when its agent is
ready; from then on whoever takes turns asks one epoll for all of them and reads those that have something.
"""

from __future__ import annotations

import select
from collections.abc import Callable
from typing import Protocol

import trio


class Readable(Protocol):
    def fileno(self) -> int: ...


class _Reader:
    """One socket: what reads it, and how it ended."""

    __slots__ = ("ended", "failure", "read")

    def __init__(self, read: Callable[[], bool]) -> None:
        self.read = read
        self.failure: Exception | None = None
        self.ended = trio.Event()


class Readers:
    """`fileno` is readable when some socket is: wait for it, then `read`. One Trio thread; Linux."""

    def __init__(self, *others: Readable) -> None:
        """`others`: sockets that make `fileno` readable as well, and are read by whoever waits for it."""
        self._epoll = select.epoll()
        for other in others:
            self._epoll.register(other.fileno(), select.EPOLLIN)
        self._readers: dict[int, _Reader] = {}
        self._unfinished: dict[int, None] = {}
        """Those that have more than one turn of work."""

    def fileno(self) -> int:
        return self._epoll.fileno()

    @property
    def unfinished(self) -> bool:
        """Whether `read` has something to do even if no socket is readable."""
        return bool(self._unfinished)

    async def read_until_failure(self, socket: Readable, read: Callable[[], bool]) -> None:
        """Have `read` called when the socket is readable, or again when it returned True, until it raises.

        That is raised here.
        """
        reader = _Reader(read)
        descriptor = socket.fileno()
        self._readers[descriptor] = reader
        self._epoll.register(descriptor, select.EPOLLIN)
        try:
            await reader.ended.wait()
        finally:
            if self._readers.get(descriptor) is reader:
                self._remove(descriptor)
        assert reader.failure is not None, "nothing else ends it"
        raise reader.failure

    def read(self, until: float) -> bool:
        """Read what is there, one turn of bounded work for each; none is begun after `until`. False when
        there was nothing."""
        ready: dict[int, int | None] = dict.fromkeys(self._unfinished)
        ready.update(self._epoll.poll(0))
        worked = False
        for descriptor in ready:
            reader = self._readers.get(descriptor)
            if reader is None:
                continue  # one of the others, or removed by what another one brought
            worked = True
            self._unfinished.pop(descriptor, None)
            try:
                if reader.read():
                    self._unfinished[descriptor] = None
            except Exception as failure:  # of one call, whose task raises it; the others are read on
                reader.failure = failure
                reader.ended.set()
                if self._readers.get(descriptor) is reader:
                    self._remove(descriptor)
            if trio.current_time() > until:
                break
        return worked

    def close(self) -> None:
        self._epoll.close()

    def _remove(self, descriptor: int) -> None:
        del self._readers[descriptor]
        self._unfinished.pop(descriptor, None)
        self._epoll.unregister(descriptor)
