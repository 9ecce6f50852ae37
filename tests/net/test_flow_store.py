"""Notes of flows in a real Redis that is killed, paused, emptied and written to by others."""

from __future__ import annotations

import signal
import time

import pytest
import trio

from tests.support.redis_server import KEYS, RedisServer
from voicegate.config import Config, RegistryConfig, RelayConfig
from voicegate.net.flow_store import BATCH, MAX_CALLS, PAUSE_SECONDS, FlowStore, StoreDown, open_flow_store
from voicegate.proto.address import ClientAddress, over_tcp, pack_address
from voicegate.proto.keys import ClusterKeys

pytestmark = pytest.mark.anyio
V4 = pack_address("192.0.2.1", 5000)
V6 = pack_address("2001:db8::1", 5000)
CLIENTS = (V4, V6, over_tcp(V4), over_tcp(V6))


def ticket(number: int = 0) -> bytes:
    return b"%023d" % number


def store(server: RedisServer, keys: ClusterKeys = KEYS) -> FlowStore:
    return FlowStore(f"redis://127.0.0.1:{server.port}/0", keys, ttl_seconds=60)


async def test_what_is_noted_is_read_until_it_is_forgotten(server: RedisServer) -> None:
    ours = store(server)
    notes = [(client, ticket(number)) for number, client in enumerate(CLIENTS)]
    await ours.write(notes)
    stranger = server.client()
    assert {key.decode() for key in stranger.keys("*")} == {
        f"voicegate:flow:{client.hex()}" for client in CLIENTS
    }
    assert all(59_000 < stranger.pttl(key) <= 60_000 for key in stranger.keys("*"))
    assert await store(server).read([*CLIENTS, pack_address("192.0.2.9", 1)]) == dict(notes)
    await ours.write([(V4, ticket(9))])
    await ours.forget([V6])
    assert await ours.read([V4, V6]) == {V4: ticket(9)}
    assert await ours.read([]) == {}
    assert ours.statistics() == {
        "written": 5,
        "forgotten": 1,
        "asked": 2,
        "found": 1,
        "forged": 0,
        "failures": 0,
        "skipped": 0,
    }
    ours.close()


async def test_many_go_in_batches(server: RedisServer) -> None:
    ours = store(server)
    notes = [(pack_address("10.0.0.1", port), ticket(port)) for port in range(2 * BATCH + 1)]
    await ours.write(notes)
    assert await ours.read([client for client, _ in notes]) == dict(notes)
    await ours.forget([client for client, _ in notes])
    assert server.client().keys("*") == []


async def test_forged_and_moved_notes_are_ignored(server: RedisServer) -> None:
    ours, stranger = store(server), server.client()
    await ours.write([(V4, ticket())])
    genuine = stranger.get(f"voicegate:flow:{V4.hex()}")
    await store(server, ClusterKeys.parse(["0:" + "x" * 32])).write([(V6, ticket())])
    stranger.set(f"voicegate:flow:{over_tcp(V4).hex()}", genuine)
    other_label = KEYS.seal.seal(b"registry", ticket() + over_tcp(V6))
    stranger.set(f"voicegate:flow:{over_tcp(V6).hex()}", other_label)
    assert await ours.read(CLIENTS) == {V4: ticket()}
    assert ours.statistics()["forged"] == 3
    short = KEYS.seal.seal(b"flow", ticket()[:20])
    for junk in (b"", b"\xff\xfe", b"A" * 10_000, short, genuine[:-1], genuine + b"A", b"\n" + genuine):
        stranger.set(f"voicegate:flow:{V4.hex()}", junk)
        assert await ours.read([V4]) == {}
    assert ours.statistics()["forged"] == 10


async def test_a_note_of_a_retired_key_is_read_as_long_as_the_key_is_known(server: RedisServer) -> None:
    await store(server).write([(V4, ticket())])
    rotated = ClusterKeys.parse(["1:" + "n" * 32, "0:" + "k" * 32])
    assert await store(server, rotated).read([V4]) == {V4: ticket()}


async def test_wrong_types_and_an_emptied_redis(server: RedisServer) -> None:
    ours, stranger = store(server), server.client()
    await ours.write([(V4, ticket()), (V6, ticket(1))])
    stranger.delete(f"voicegate:flow:{V4.hex()}")
    stranger.rpush(f"voicegate:flow:{V4.hex()}", "a", "list")
    assert await ours.read([V4, V6]) == {V6: ticket(1)}
    await ours.write([(V4, ticket(2))])
    assert await ours.read([V4]) == {V4: ticket(2)}
    stranger.flushall()
    assert await ours.read(CLIENTS) == {}
    await ours.forget(CLIENTS)
    assert ours.statistics()["failures"] == 0


async def test_a_killed_redis_is_asked_seldom_and_found_again(server: RedisServer) -> None:
    ours = store(server)
    await ours.write([(V4, ticket())])
    server.kill()
    asked = 0
    with trio.move_on_after(2.5 * PAUSE_SECONDS):
        while True:
            with pytest.raises(StoreDown, match=r"127\.0\.0\.1"):
                await ours.write([(V4, ticket())])
            asked += 1
            await trio.sleep(0.005)
    statistics = ours.statistics()
    assert 2 <= statistics["failures"] <= 4 and statistics["failures"] + statistics["skipped"] >= asked
    server.start()
    await trio.sleep(PAUSE_SECONDS)
    await ours.write([(V4, ticket())])
    assert await ours.read([V4]) == {V4: ticket()}


async def test_a_paused_redis_queues_nothing(server: RedisServer) -> None:
    ours = store(server)
    await ours.write([(V4, ticket())])
    outcomes: list[str] = []

    async def ask() -> None:
        try:
            await ours.read([V4])
        except StoreDown as error:
            outcomes.append(str(error))

    server.signal(signal.SIGSTOP)
    try:
        began = time.monotonic()
        async with trio.open_nursery() as nursery:
            for _ in range(MAX_CALLS + 5):
                nursery.start_soon(ask)
            await trio.sleep(0.05)
            assert len(outcomes) == 5 and all("not answered yet" in outcome for outcome in outcomes)
        assert len(outcomes) == MAX_CALLS + 5 and time.monotonic() - began < 1.6
        with pytest.raises(StoreDown, match="a moment ago"):
            await ours.read([V4])
    finally:
        server.signal(signal.SIGCONT)
    await trio.sleep(PAUSE_SECONDS)
    assert await ours.read([V4]) == {V4: ticket()}


async def test_a_caller_may_give_up(server: RedisServer) -> None:
    ours = store(server)
    server.signal(signal.SIGSTOP)
    try:
        began = time.monotonic()
        with trio.move_on_after(0.05) as scope:
            await ours.read([V4])
        assert scope.cancelled_caught and time.monotonic() - began < 0.3
    finally:
        server.signal(signal.SIGCONT)


async def test_a_redis_that_refuses_is_down(server: RedisServer) -> None:
    server.client().config_set("maxmemory", 1)
    with pytest.raises(StoreDown, match="maxmemory"):
        await store(server).write([(V4, ticket())])


def test_the_configuration_chooses() -> None:
    assert open_flow_store(Config(), KEYS) is None
    redis = RegistryConfig(redis="redis://127.0.0.1:1/0")
    opened = open_flow_store(Config(registry=redis, relay=RelayConfig(flow_idle_seconds=7.0)), KEYS)
    assert opened is not None and opened.ttl_seconds == 14.0


def test_a_client_is_a_packed_address(server: RedisServer) -> None:
    with pytest.raises(AssertionError, match="packed"):
        trio.run(store(server).forget, [ClientAddress(b"192.0.2.1")])
