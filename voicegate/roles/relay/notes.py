"""The flows in Redis: notes are written in batches, questions answered, and neither is ever waited for.

The data plane's thread fills two queues (`recovery`) and goes on; the tasks here empty them. A Redis that is
slow, paused or gone makes the notes of that time be missing and the questions go unanswered, nothing else.
"""

from __future__ import annotations

from collections import Counter, deque
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from typing import TypeVar

import trio

from voicegate.logs import get_logger
from voicegate.net.flow_store import FlowStore, StoreDown
from voicegate.proto.address import ClientAddress
from voicegate.roles.relay.byways import Answer
from voicegate.roles.relay.recovery import Recovery

_T = TypeVar("_T")
_log = get_logger(__name__)

WRITE_SECONDS = 0.1
"""Between two batches of notes. A client that moves to another relay within it is found by its next check."""
MAX_BATCH = 1000
"""Notes or questions per command: some 10 ms of Redis' and our time."""


class NoteKeeper:
    """The Trio side of one data plane's `Recovery`."""

    def __init__(
        self, recovery: Recovery, store: FlowStore, post: Callable[[Sequence[Answer]], None]
    ) -> None:
        self.counts: Counter[str] = Counter()
        """Notes and questions by outcome."""
        self._recovery = recovery
        self._store = store
        self._post = post
        self._asked = trio.Event()
        self._token = trio.lowlevel.current_trio_token()

    def wake(self) -> None:
        """There are questions. For the data plane's thread."""
        try:
            self._token.run_sync_soon(self._wake, idempotent=True)
        except trio.RunFinishedError:
            pass  # the process is ending

    async def run(self) -> None:
        """Serve until cancelled."""
        self._recovery.enabled = True
        async with trio.open_nursery() as nursery:
            nursery.start_soon(self._keep_answering)
            nursery.start_soon(self._keep_writing)

    def statistics(self) -> dict[str, int]:
        """Outcomes, those of the store among them."""
        return {**self._store.statistics(), **self.counts}

    def _wake(self) -> None:
        self._asked.set()

    async def _keep_answering(self) -> None:
        questions = self._recovery.questions
        while True:
            await self._asked.wait()
            self._asked = trio.Event()
            while questions:
                clients = _take(questions)
                known: dict[ClientAddress, bytes] = {}
                with self._survived("questions_failed", len(clients)):
                    known = await self._store.read(clients)
                self._post([Answer(client, known.get(client)) for client in clients])

    async def _keep_writing(self) -> None:
        notes = self._recovery.notes
        while True:
            await trio.sleep(WRITE_SECONDS)
            while notes:
                # The last word about a client counts.
                latest = dict(_take(notes))
                gone = [client for client, ufrag in latest.items() if not ufrag]
                there = [(client, ufrag) for client, ufrag in latest.items() if ufrag]
                # What is not written is noted again within a minute, what is not taken away runs out.
                with self._survived("notes_failed", len(there)):
                    if there:
                        await self._store.write(there)
                with self._survived("notes_failed", len(gone)):
                    if gone:
                        await self._store.forget(gone)

    @contextmanager
    def _survived(self, counter: str, number: int) -> Iterator[None]:
        """Whatever Redis does costs no more than these notes or questions."""
        try:
            yield
        except StoreDown:
            self.counts[counter] += number
        except Exception:
            self.counts[counter] += number
            _log.exception("the flows' notes in Redis met a bug")


def _take(queue: deque[_T]) -> list[_T]:
    return [queue.popleft() for _ in range(min(len(queue), MAX_BATCH))]
