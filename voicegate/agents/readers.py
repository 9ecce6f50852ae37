"""The sockets of all agents of a worker, read in its turns instead of by a task for each.

What a delta costs is mostly the waking of a task for it. A call's task goes to sleep here when its agent is
ready; from then on whoever takes turns asks one selector for all of them and reads those that have something.
"""

from __future__ import annotations

import selectors
from collections.abc import Callable
from typing import Protocol

import trio


class Readable(Protocol):
    def fileno(self) -> int: ...


class _Reader:
    """One socket: what reads it, and how it ended."""

    __slots__ = ("ended", "failure", "over", "read")

    def __init__(self, read: Callable[[], bool]) -> None:
        self.read = read
        self.failure: Exception | None = None
        self.over = False
        self.ended = trio.Event()


class Readers:
    """`fileno` is readable when some socket is: wait for it, then `read`. One Trio thread."""

    def __init__(self, *others: Readable) -> None:
        """`others`: sockets that make `fileno` readable as well, and are read by whoever waits for it."""
        self._selector = selectors.DefaultSelector()
        for other in others:
            self._selector.register(other, selectors.EVENT_READ)
        self._unfinished: dict[_Reader, None] = {}
        """Those that have more than one turn of work."""

    def fileno(self) -> int:
        return self._selector.fileno()

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
        self._selector.register(descriptor, selectors.EVENT_READ, reader)
        try:
            await reader.ended.wait()
        finally:
            reader.over = True
            self._unfinished.pop(reader, None)
            self._selector.unregister(descriptor)
        assert reader.failure is not None, "nothing else ends it"
        raise reader.failure

    def read(self, until: float) -> bool:
        """Read what is there, one turn of bounded work for each; none is begun after `until`. False when
        there was nothing."""
        ready = self._unfinished
        self._unfinished = {}
        for key, _ in self._selector.select(0):
            if key.data is not None:
                ready[key.data] = None
        worked = bool(ready)
        for reader in ready:
            if reader.over:
                continue
            if trio.current_time() > until:
                self._unfinished[reader] = None
                continue
            try:
                if reader.read():
                    self._unfinished[reader] = None
            except Exception as failure:  # of one call, whose task raises it; the others are read on
                reader.failure = failure
                reader.over = True
                reader.ended.set()
        return worked

    def close(self) -> None:
        self._selector.close()
