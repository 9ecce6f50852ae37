"""The keeper between a worker's queues and a real Redis: written, answered, and never in the way."""

from __future__ import annotations

from collections import Counter, deque
from collections.abc import Sequence

import pytest
import trio
import trio.testing

from tests.support.redis_server import KEYS, RedisServer
from voicegate.net.flow_store import FlowStore
from voicegate.proto.address import pack_address
from voicegate.roles.relay.byways import Answer
from voicegate.roles.relay.notes import NoteKeeper
from voicegate.roles.relay.recovery import Recovery

pytestmark = pytest.mark.anyio
FIRST, SECOND, NOBODY = (pack_address("192.0.2.1", port) for port in (1, 2, 3))
TICKET, OTHER = b"t" * 23, b"u" * 23


class Desk:
    """A keeper at work, and what it answered."""

    def __init__(self, server: RedisServer) -> None:
        self.recovery = Recovery(Counter())
        self.store = FlowStore(f"redis://127.0.0.1:{server.port}/0", KEYS, ttl_seconds=60)
        self.answers: deque[Answer] = deque()
        self.keeper = NoteKeeper(self.recovery, self.store, self.post)
        self.answered = trio.Event()

    def post(self, answers: Sequence[Answer]) -> None:
        self.answers.extend(answers)
        self.answered.set()

    async def ask(self, *clients: bytes) -> list[Answer]:
        for client in clients:
            assert self.recovery.ask(client, b"\x80", 0, 1.0)  # type: ignore[arg-type]
        self.answered = trio.Event()
        await trio.to_thread.run_sync(self.keeper.wake)  # as the thread of packets does
        with trio.fail_after(5):
            await self.answered.wait()
        found = list(self.answers)
        self.answers.clear()
        return found

    async def written(self, counter: str, count: int) -> None:
        with trio.fail_after(5):
            while {**self.keeper.statistics()}.get(counter, 0) < count:  # noqa: ASYNC110 - as a reader of metrics
                await trio.sleep(0.01)


async def test_what_a_worker_notes_another_is_told(server: RedisServer) -> None:
    one, other = Desk(server), Desk(server)
    async with trio.open_nursery() as nursery:
        nursery.start_soon(one.keeper.run)
        nursery.start_soon(other.keeper.run)
        await trio.testing.wait_all_tasks_blocked()
        one.recovery.note(FIRST, OTHER)
        one.recovery.note(FIRST, TICKET)
        one.recovery.note(SECOND, OTHER)
        await one.written("written", 2)
        assert await other.ask(FIRST, SECOND, NOBODY) == [
            Answer(FIRST, TICKET),
            Answer(SECOND, OTHER),
            Answer(NOBODY, None),
        ]
        one.recovery.note(SECOND, b"")
        await one.written("forgotten", 1)
        nursery.cancel_scope.cancel()


async def test_without_redis_questions_are_answered_and_notes_counted(server: RedisServer) -> None:
    desk = Desk(server)
    server.kill()
    async with trio.open_nursery() as nursery:
        nursery.start_soon(desk.keeper.run)
        await trio.testing.wait_all_tasks_blocked()
        assert await desk.ask(FIRST) == [Answer(FIRST, None)]
        desk.recovery.note(FIRST, TICKET)
        desk.recovery.note(SECOND, b"")
        await desk.written("notes_failed", 2)
        assert desk.keeper.statistics()["questions_failed"] == 1
        nursery.cancel_scope.cancel()
