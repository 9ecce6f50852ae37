"""A Redis, or what listens in its place, whose answers are not RESP or not what the command has."""

from __future__ import annotations

from collections.abc import AsyncIterator
from contextlib import asynccontextmanager

import msgspec
import pytest
import trio

from tests.support.redis_server import KEYS, GarblingRedis, RedisServer, eventually, joined
from voicegate.net import flow_store, key_notes
from voicegate.net import redis as registry_redis
from voicegate.net.flow_store import FlowStore, StoreDown
from voicegate.net.key_notes import KeyNotes
from voicegate.net.registry import RegistryError, TransceiverRecord
from voicegate.proto.address import pack_address

pytestmark = pytest.mark.anyio

ANSWERS = (
    b":x\r\n",
    b"$three\r\nabc\r\n",
    b"*many\r\n",
    b"HTTP/1.1 400 Bad Request\r\n\r\n",
    b"*1\r\n" * 3000,
    b":1000000000000000\r\n",
    b"*1\r\n:7\r\n",
    b"+\xff\r\n",
    b"*3\r\n*1\r\n:1\r\n$-1\r\n-WRONGTYPE\r\n",
)
"""Numbers and lengths that are none, another protocol, and answers that no command of ours has."""


@asynccontextmanager
async def garbling(server: RedisServer) -> AsyncIterator[GarblingRedis]:
    redis = GarblingRedis(server)
    async with trio.open_nursery() as nursery:
        await nursery.start(redis.run)
        yield redis
        nursery.cancel_scope.cancel()


async def test_no_task_of_the_registry_ends_of_it(
    server: RedisServer, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(registry_redis, "BACKOFF_SECONDS", (0.005, 0.01))
    monkeypatch.setattr(registry_redis, "POLL_SECONDS", 0.02)
    own = TransceiverRecord(id=7, cluster=1, link="127.0.0.1:5000", control="127.0.0.1:5001", boot="b")
    async with garbling(server) as redis, joined(redis) as registry, joined(server) as other:
        held = await registry.register(own)
        redis.answers = ANSWERS
        with trio.fail_after(5):
            while redis.given < 8 * len(ANSWERS):
                registry.publish_nowait(msgspec.structs.replace(held, calls=redis.given))
                server.client().publish("voicegate:1:changed", "so that a subscriber is told something")
                await trio.sleep(0.01)
        counts = registry.statistics()
        assert all(counts[f"{task}_failures"] for task in ("read", "subscribe", "renew"))
        assert registry.records[7].boot == "b", "the last good table stays"
        redis.answers = ()
        registry.publish_nowait(msgspec.structs.replace(held, calls=9999))
        await eventually(lambda: 7 in other.records and other.records[7].calls == 9999, within=5)
        await eventually(registry.healthy)


async def test_notes_of_flows_are_not_there_then(
    server: RedisServer, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(flow_store, "PAUSE_SECONDS", 0.0)
    client, ticket = pack_address("192.0.2.1", 5000), b"%023d" % 1
    async with garbling(server) as redis:
        store = FlowStore(f"redis://127.0.0.1:{redis.port}/0", KEYS, ttl_seconds=60)
        await store.write([(client, ticket)])
        for answer in ANSWERS:
            redis.answers = (answer,)
            with pytest.raises(StoreDown):
                await store.read([client])
        redis.answers = ()
        assert await store.read([client]) == {client: ticket}


async def test_notes_of_keys_are_written_later(server: RedisServer, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(key_notes, "LOOK_SECONDS", 0.005)
    async with garbling(server) as redis, trio.open_nursery() as nursery:
        notes = KeyNotes(f"redis://127.0.0.1:{redis.port}/0")
        redis.answers = [answer for answer in ANSWERS if answer[:1] not in b":+"]  # which will do for an EVAL
        nursery.start_soon(notes.run, KEYS, 1000.0)
        await eventually(lambda: redis.given >= len(ANSWERS), within=5)
        for answer in ANSWERS:
            redis.answers = (answer,)
            with pytest.raises(RegistryError, match="cannot use Redis"):
                await notes.read()
        redis.answers = ()
        with trio.fail_after(5):
            while KEYS.marks[0] not in (await notes.read())[0]:  # noqa: ASYNC110 - Redis decides
                await trio.sleep(0.01)
        nursery.cancel_scope.cancel()
