"""The registry of a fleet in a real Redis: relays, signaling, several clusters."""

from __future__ import annotations

import signal
from types import SimpleNamespace

import msgspec
import pytest
import trio

from tests.support.redis_server import KEYS, RedisServer, config, eventually, joined
from voicegate.config import Config, RegistryConfig, StaticRelay, StaticTransceiver
from voicegate.net.leases import RELAY_LEASE_SECONDS
from voicegate.net.redis import RedisRegistry
from voicegate.net.registry import (
    STATIC_BOOT,
    MemoryRegistry,
    RegistryError,
    RelayRecord,
    SignalingRecord,
    StaticRegistry,
    TransceiverRecord,
    open_registry,
)

pytestmark = pytest.mark.anyio


def transceiver(id: int = 7, boot: str = "t", cluster: int = 1) -> TransceiverRecord:
    address = "127.0.0.1:5000"
    return TransceiverRecord(id=id, cluster=cluster, link=address, control=address, boot=boot)


def relay(id: int = 0, boot: str = "r", cluster: int = 1, port: int = 6000) -> RelayRecord:
    return RelayRecord(
        id=id,
        cluster=cluster,
        ingress="ams",
        boot=boot,
        links=(f"127.0.0.1:{port}",),
        addresses=("203.0.113.1:3478", "203.0.113.1:443/tcp"),
        location=(52.37, 4.9),
    )


async def test_one_process_holds_a_record_of_each_kind(server: RedisServer) -> None:
    async with joined(server) as owner, joined(server, cluster=2) as other:
        await owner.register(transceiver())
        mine = await owner.register(relay())
        await owner.register(SignalingRecord(id=0, boot="s"))
        assert owner.relays == {mine.id: mine}, "shown here before Redis has it"
        await eventually(lambda: len(other.relays) == len(other.signalings) == 1)
        assert other.relays == {mine.id: mine} and mine.keys == KEYS.marks
        assert [record.keys for record in other.signalings.values()] == [KEYS.marks]
        assert other.clusters == {2: {}}, "it watches no other cluster"
        owner.publish_nowait(msgspec.structs.replace(mine, flows=5))
        await eventually(lambda: other.relays[mine.id].flows == 5, within=0.4)
        assert owner.statistics()["relays"] == owner.statistics()["signalings"] == 1
        await owner.withdraw()
        await eventually(lambda: not other.relays and not other.signalings, within=0.4)
        assert server.client().keys("*") == []


async def test_clusters_are_watched(server: RedisServer) -> None:
    watching = joined(server, watched=(2, 1))
    async with watching as here, joined(server, cluster=2) as there, joined(server, cluster=3) as far:
        near, away = transceiver(), transceiver(7, "t2", cluster=2)
        await here.register(near)
        await there.register(away)
        await far.register(transceiver(7, "t3", cluster=3))
        distant = await far.register(relay(cluster=3))
        await eventually(lambda: distant.id in here.relays and 7 in here.clusters[2])
        assert {cluster: {*table} for cluster, table in here.clusters.items()} == {1: {7}, 2: {7}}
        assert (here.records[7].boot, here.clusters[2][7].boot) == ("t", "t2")
        assert here.clusters[2] is here.clusters[2] and here.records is here.clusters[1]
        here.observe_load_nowait(7, 3, 9, cluster=2)
        here.observe_load_nowait(7, 3, 9, cluster=3)
        assert (here.records[7].calls, here.clusters[2][7].calls) == (0, 3)


async def test_a_killed_relay_is_gone_in_three_seconds(server: RedisServer) -> None:
    async with joined(server) as one, joined(server, cluster=2) as two:
        async with joined(server) as owner:
            await owner.register(relay())
            await eventually(lambda: bool(one.relays and two.relays))
            await trio.sleep(RELAY_LEASE_SECONDS + 0.3)
            assert one.relays and two.relays, "renewed"
        await eventually(lambda: not one.relays and not two.relays, within=3.2)
        assert one.statistics()["expired"] == 1


async def test_a_paused_redis_makes_no_relay_blink(server: RedisServer) -> None:
    async with joined(server) as owner, joined(server) as other:
        mine = await owner.register(relay())
        await eventually(lambda: mine.id in other.relays)
        server.signal(signal.SIGSTOP)
        await trio.sleep(RELAY_LEASE_SECONDS + 0.2)  # the lease runs out meanwhile
        server.signal(signal.SIGCONT)
        until = trio.current_time() + 1.5
        while trio.current_time() < until:
            assert mine.id in other.relays
            await trio.sleep(0.02)
        assert other.healthy() and server.client().exists(f"voicegate:relay:{mine.id}")


async def test_a_relay_starts_without_redis_and_is_known_when_it_comes_back(server: RedisServer) -> None:
    async with joined(server) as owner, joined(server) as other:
        server.kill()
        began = trio.current_time()
        mine = await owner.register(relay())
        await owner.register(SignalingRecord(id=0, boot="s"))
        assert trio.current_time() - began < 0.1
        assert owner.relays == {mine.id: mine}
        owner.publish_nowait(msgspec.structs.replace(mine, flows=2))
        server.start()
        await eventually(lambda: [record.flows for record in other.relays.values()] == [2], within=4)
        await eventually(lambda: len(other.signalings) == 1, within=2)


async def test_a_relay_whose_id_is_taken_takes_another(server: RedisServer) -> None:
    async with joined(server) as one, joined(server) as two:
        await one.register(relay(5, "r1"))
        await eventually(lambda: server.client().exists("voicegate:relay:5") == 1)
        asked = await two.register(relay(5, "r2"))
        await eventually(lambda: len(one.relays) == len(two.relays) == 2)
        assert one.relays[5].boot == two.relays[5].boot == "r1"
        two.publish_nowait(msgspec.structs.replace(asked, flows=9))  # by the id it was given first
        await eventually(lambda: sorted(record.flows for record in one.relays.values()) == [0, 9])
        assert not one.lost.is_set() and not two.lost.is_set()


async def test_the_marks_of_keys_follow_a_reload(server: RedisServer) -> None:
    keys = SimpleNamespace(seal=KEYS.seal, marks=KEYS.marks)
    registry = RedisRegistry(config(server), keys)  # type: ignore[arg-type]
    async with joined(server) as other, trio.open_nursery() as nursery:
        await nursery.start(registry.run)
        await registry.register(transceiver())
        await registry.register(relay())
        keys.marks = ("1:00000000", *KEYS.marks)
        await eventually(lambda: 7 in other.records and other.records[7].keys == keys.marks)
        await eventually(lambda: [record.keys for record in other.relays.values()] == [keys.marks])
        nursery.cancel_scope.cancel()


async def test_a_lease_does_not_move_between_kinds_or_clusters(server: RedisServer) -> None:
    stranger = server.client()
    async with joined(server) as one, joined(server, cluster=2) as two:
        await one.register(relay(5))
        await one.register(transceiver(5))
        await eventually(lambda: stranger.exists("voicegate:relay:5", "voicegate:1:transceiver:5") == 2)
        relay_token, token = stranger.get("voicegate:relay:5"), stranger.get("voicegate:1:transceiver:5")
        for place in ("relay:5", "relay:6", "signaling:5"):
            stranger.set(f"voicegate:{place}", token)
        for place in ("signaling:6", "2:transceiver:5", "relay:6"):
            stranger.set(f"voicegate:{place}", relay_token)
        stranger.set("voicegate:2:transceiver:6", token)
        for index in ("relays", "signalings", "2:transceivers"):
            stranger.sadd(f"voicegate:{index}", 5, 6)
        for channel in ("relays:changed", "signalings:changed", "2:changed", "1:changed"):
            stranger.publish(f"voicegate:{channel}", token)
            stranger.publish(f"voicegate:{channel}", relay_token)
        await trio.sleep(0.7)
        assert {*two.relays} == {*one.relays} == {5}
        assert not two.signalings and not two.records
        assert two.statistics()["forged"] >= 5 and two.statistics()["foreign"] >= 1


async def test_wrong_types_hinder_no_other_table(server: RedisServer) -> None:
    async with joined(server) as owner, joined(server) as other:
        await owner.register(relay(5))
        await eventually(lambda: 5 in other.relays)
        server.client().delete("voicegate:relays", "voicegate:1:transceivers", "voicegate:relay:5")
        server.client().set("voicegate:relays", "text")
        server.client().hset("voicegate:1:transceivers", "a", "hash")
        server.client().hset("voicegate:relay:5", "a", "hash")
        await owner.register(transceiver())
        await eventually(lambda: 7 in other.records)
        await eventually(lambda: server.client().type("voicegate:relays") == b"set")
        assert server.client().smembers("voicegate:relays") == {b"5"}
        assert {*other.relays} == {5} and other.healthy()


async def test_a_process_asks_redis_little(server: RedisServer) -> None:
    async with joined(server, lease=6.0) as owner:
        await owner.register(transceiver())
        await owner.register(relay())
        await eventually(lambda: server.client().exists("voicegate:relays") == 1)
        before = server.client().info("stats")["total_commands_processed"]
        await trio.sleep(1.5)
        spent = server.client().info("stats")["total_commands_processed"] - before
        # Three readings of three sets and the leases in two of them; three renewals of two commands and two
        # more inside the script; the question itself.
        assert spent <= 4 * 5 + 4 * 4 + 4


async def test_a_record_beyond_all_measure_is_refused(server: RedisServer) -> None:
    async with joined(server) as owner:
        huge = msgspec.structs.replace(relay(), links=tuple(f"10.0.0.1:{port}" for port in range(1000)))
        with pytest.raises(RegistryError, match="too many addresses"):
            await owner.register(huge)
        assert not owner.relays


async def test_memory_and_static_registries_know_relays_and_clusters() -> None:
    listed = StaticRelay(
        cluster=2, links=("10.1.0.4:3479",), addresses=("203.0.113.2:3478",), location="50.11, 8.68"
    )
    entry = StaticTransceiver(id=7, link="127.0.0.1:5000", control="127.0.0.1:5000")
    memory = open_registry(Config(registry=RegistryConfig(relays=(listed,))), KEYS)
    static = open_registry(Config(registry=RegistryConfig(relays=(listed,), transceivers=(entry,))), KEYS)
    assert type(memory) is MemoryRegistry and type(static) is StaticRegistry
    for registry in (memory, static):
        known = registry.relays[1]
        assert (known.boot, known.ingress, known.location) == (STATIC_BOOT, "203.0.113.2:3478", (50.11, 8.68))
        assert (await registry.register(transceiver())).keys == KEYS.marks
        added = await registry.register(relay())
        await registry.register(SignalingRecord(id=0, boot="s"))
        registry.publish_nowait(msgspec.structs.replace(added, flows=3))
        assert registry.relays[added.id].flows == 3 and registry.relays[added.id].keys == KEYS.marks
        assert len(registry.relays) == 2 and len(registry.signalings) == 1
        assert {*registry.clusters} == {1} and registry.clusters[1] is registry.records
        await registry.withdraw()
        assert {*registry.relays} == {1} and not registry.signalings
    assert not memory.records and 7 in static.records


async def test_a_relay_that_is_listed_takes_its_own_place() -> None:
    listed = StaticRelay(cluster=1, links=("127.0.0.1:6000",))
    registry = MemoryRegistry(RegistryConfig(relays=(listed,)))
    assert (await registry.register(relay())).id == 1
    assert [record.boot for record in registry.relays.values()] == ["r"]


async def test_memory_takes_records_of_another_cluster() -> None:
    registry = MemoryRegistry()
    await registry.register(transceiver(7, cluster=2))
    assert not registry.records and {*registry.clusters[2]} == {7}
