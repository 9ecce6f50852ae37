"""Registries: memory, static, and Redis with a real server that is killed, emptied, overwritten."""

from __future__ import annotations

import signal
import time

import msgspec
import pytest
import trio

from tests.support.redis_server import KEYS, LEASE, RedisServer, config, eventually, joined, own_table
from tests.support.servers import free_port
from voicegate import logs
from voicegate.config import Config, LogConfig, RegistryConfig, StaticTransceiver
from voicegate.net import redis as registry_redis
from voicegate.net.leases import Lease
from voicegate.net.redis import RedisRegistry
from voicegate.net.registry import (
    MAX_ID,
    MemoryRegistry,
    RegistryError,
    StaticRegistry,
    TransceiverRecord,
    open_registry,
)
from voicegate.proto.keys import ClusterKeys

pytestmark = pytest.mark.anyio


def record(id: int = 7, boot: str = "b1", cluster: int = 1, calls: int = 0) -> TransceiverRecord:
    return TransceiverRecord(
        id=id,
        cluster=cluster,
        link="127.0.0.1:5000",
        control="127.0.0.1:5001",
        boot=boot,
        calls=calls,
        capacity=9,
        keys=KEYS.marks,
    )


async def test_memory_registry() -> None:
    registry = MemoryRegistry()
    assert await registry.register(record()) == record()
    with pytest.raises(RegistryError, match="7 is in use"):
        await registry.register(record())
    chosen = await registry.register(record(id=0))
    assert 1 <= chosen.id <= MAX_ID and chosen.id != 7
    before = registry.records
    registry.publish_nowait(record(calls=3))
    assert (registry.records[7].calls, before[7].calls) == (3, 0)
    registry.publish_nowait(record(id=99))
    assert 99 not in registry.records
    registry.observe_load_nowait(7, 5, 10)
    registry.observe_load_nowait(99, 5, 10)
    assert (registry.records[7].calls, registry.records[7].capacity) == (5, 10)
    with pytest.raises(TypeError):
        registry.records[7] = record()  # type: ignore[index]
    assert registry.healthy() and registry.statistics()["transceivers"] == 2
    await registry.withdraw()
    assert registry.records == {}


async def test_static_registry() -> None:
    entry = StaticTransceiver(id=7, link="127.0.0.1:5000", control="127.0.0.1:5001", capacity=50)
    registry = open_registry(Config(registry=RegistryConfig(transceivers=(entry,))), KEYS)
    assert isinstance(registry, StaticRegistry)
    relay_side = registry.records[7]
    registered = await registry.register(record(boot="random"))
    assert registered.boot == relay_side.boot
    with pytest.raises(RegistryError, match=r"transceiver.id 8 is not in registry.transceivers"):
        await registry.register(record(id=8))
    with pytest.raises(RegistryError, match="listens on"):
        await registry.register(msgspec.structs.replace(record(), link="127.0.0.1:6000"))
    registry.publish_nowait(record(calls=4))
    assert registry.records[7].calls == 4
    await registry.withdraw()
    assert 7 in registry.records


def test_the_configuration_chooses() -> None:
    assert isinstance(open_registry(Config(), KEYS), MemoryRegistry)
    shared = Config(registry=RegistryConfig(redis="redis://127.0.0.1:1/0"))
    assert isinstance(open_registry(shared, KEYS), RedisRegistry)


async def test_a_change_is_seen_at_once(server: RedisServer) -> None:
    async with joined(server) as relay, joined(server) as owner:
        await owner.register(record())
        await eventually(lambda: relay.records.get(7) == record(), within=0.5)
        began = time.monotonic()
        owner.publish_nowait(record(calls=4))
        await eventually(lambda: relay.records[7].calls == 4, within=0.5)
        assert time.monotonic() - began < registry_redis.POLL_SECONDS / 2, "pushed, not polled"
        await owner.withdraw()
        await eventually(lambda: 7 not in relay.records, within=0.5)
        assert server.client().keys("*") == []


async def test_a_late_reader_loads_everything(server: RedisServer) -> None:
    async with joined(server) as one, joined(server) as two:
        first, second = await one.register(record(0)), await two.register(record(0, "b2"))
        assert first.id != second.id
        async with joined(server) as relay:
            assert relay.records == {first.id: first, second.id: second}
            assert relay.healthy()


async def test_an_id_is_leased_to_one(server: RedisServer, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(registry_redis, "START_SECONDS", 0.2)
    async with joined(server) as one, joined(server) as two:
        await one.register(record())
        with pytest.raises(RegistryError, match="id 7 is held by another process"):
            await two.register(record(boot="b2"))
        assert not one.lost.is_set()
        assert one.records[7].boot == "b1"


async def test_a_dead_transceiver_runs_out_and_its_id_can_be_taken(server: RedisServer) -> None:
    async with joined(server) as relay:
        async with joined(server) as owner:
            await owner.register(record())
        await eventually(lambda: 7 in relay.records)
        async with joined(server) as heir:
            assert (await heir.register(record(boot="b2"))).boot == "b2"
            await eventually(lambda: relay.records[7].boot == "b2")
        await eventually(lambda: 7 not in relay.records, within=6 * LEASE)
        assert relay.statistics()["expired"] == 1


async def test_a_dead_transceiver_is_buried_at_once_and_its_id_is_free(server: RedisServer) -> None:
    async with joined(server) as parent, joined(server) as reader:
        async with joined(server) as dying:
            await dying.register(record(boot="dead"))
            await eventually(lambda: 7 in parent.records and 7 in reader.records)
            dying.publish_nowait(record(boot="dead", calls=3))
            await eventually(lambda: reader.records[7].calls == 3)
        began = trio.current_time()
        await parent.bury("dead")
        assert 7 not in parent.records
        await eventually(lambda: 7 not in reader.records)
        async with joined(server) as heir:
            await heir.register(record(boot="heir"))
            assert trio.current_time() - began < LEASE / 2, "nobody waited for the lease"
            await eventually(lambda: 7 in reader.records and reader.records[7].boot == "heir")
            await parent.bury("dead")
            await parent.bury("unknown")
            await trio.sleep(LEASE)
            assert reader.records[7].boot == "heir", "who came after is not buried with it"
        server.kill()
        with trio.fail_after(5):
            await parent.bury("heir")


async def test_a_restart_with_a_clock_set_back_is_seen_at_once(server: RedisServer) -> None:
    async with joined(server) as relay:
        async with joined(server) as owner:
            await owner.register(record())
            ahead = Lease(record(), time.time_ns() // 1_000_000 + 3_600_000, 1)
            server.client().set(
                "voicegate:1:transceiver:7", own_table(relay).seal(ahead), px=int(LEASE * 1000)
            )
        await eventually(lambda: 7 in relay.records)
        async with joined(server) as heir:
            await heir.register(record(boot="b2"))
            await eventually(lambda: relay.records[7].boot == "b2", within=0.3)
            assert heir.records[7].boot == "b2"


@pytest.mark.parametrize("gone", [False, True])
async def test_who_holds_the_key_outranks_an_earlier_start_of_a_later_clock(
    server: RedisServer, gone: bool
) -> None:
    """The predecessor is known to the relay only: its lease ran out, or its farewell was long ago."""
    ahead = Lease(record(), time.time_ns() // 1_000_000 + 3_600_000, 1, gone)
    async with joined(server) as owner:
        await owner.register(record(boot="b2"))
        async with joined(server) as relay:
            own_table(relay).forget(7)
            own_table(relay).apply(ahead, own_table(relay).seal(ahead))
            assert (7 in relay.records) is not gone
            await eventually(lambda: 7 in relay.records and relay.records[7].boot == "b2", within=4)
            owner.publish_nowait(record(boot="b2", calls=3))
            await eventually(lambda: relay.records[7].calls == 3, within=0.5)
            assert not owner.lost.is_set()


async def test_a_renewed_lease_outlives_its_time(server: RedisServer) -> None:
    async with joined(server) as relay, joined(server) as owner:
        await owner.register(record())
        with trio.move_on_after(2.5 * LEASE):
            while True:
                await trio.sleep(0.05)
                assert 7 in owner.records
        assert 7 in relay.records
        assert relay.statistics().get("expired", 0) == 0


async def test_the_table_stays_while_redis_is_killed_and_comes_back_empty(server: RedisServer) -> None:
    async with joined(server) as relay, joined(server) as owner:
        await owner.register(record())
        await eventually(lambda: 7 in relay.records)
        server.kill()
        await eventually(lambda: not relay.healthy(), within=5)
        owner.publish_nowait(record(calls=2))
        assert relay.records[7] == record()
        server.start()
        await eventually(lambda: relay.healthy() and relay.records[7].calls == 2, within=6)
        assert 7 in relay.records and not owner.lost.is_set()
        assert await trio.to_thread.run_sync(server.client().exists, "voicegate:1:transceiver:7")


async def test_emptied_redis_does_not_blink(server: RedisServer) -> None:
    async with joined(server, lease=1.8) as relay, joined(server, lease=1.8) as owner:
        await owner.register(record())
        await eventually(lambda: 7 in relay.records)
        for _ in range(20):
            server.client().flushall()
            await trio.sleep(0.01)
            assert 7 in relay.records
        until = trio.current_time() + 1.2  # longer than a record may be missing
        while trio.current_time() < until:
            await trio.sleep(0.02)
            assert 7 in relay.records
        assert server.client().exists("voicegate:1:transceiver:7") == 1


async def test_wrong_types_are_repaired(server: RedisServer) -> None:
    async with joined(server) as relay, joined(server) as owner:
        await owner.register(record())
        await eventually(lambda: 7 in relay.records)
        stranger = server.client()
        stranger.delete("voicegate:1:transceivers", "voicegate:1:transceiver:7")
        stranger.set("voicegate:1:transceivers", "text")
        stranger.rpush("voicegate:1:transceiver:7", "a", "list")
        owner.publish_nowait(record(calls=1))
        await eventually(lambda: relay.records[7].calls == 1, within=3)
        await eventually(lambda: stranger.type("voicegate:1:transceivers") == b"set", within=3)
        assert stranger.smembers("voicegate:1:transceivers") == {b"7"}
        await eventually(relay.healthy, within=3)


async def test_a_stranger_with_write_access_cannot_redirect(server: RedisServer) -> None:
    """What Redis says is believed only under the seal, for its own id, and never backwards."""
    stranger = server.client()
    foreign = RedisRegistry(config(server), ClusterKeys.parse(["0:" + "x" * 32]))
    async with joined(server) as relay, joined(server) as owner:
        await owner.register(record())
        old = stranger.get("voicegate:1:transceiver:7")
        owner.publish_nowait(record(calls=5))
        await eventually(lambda: relay.records.get(7) == record(calls=5))
        evil = msgspec.structs.replace(record(), link="10.0.0.1:22")
        forged = own_table(foreign).seal(Lease(evil, 2**62, 2**62))
        other_cluster = own_table(owner).seal(Lease(record(id=9, cluster=2), 1, 1))
        stranger.sadd("voicegate:1:transceivers", 8, 9, "x", "-1", "0", str(2**70), "7\n", b"\xff" * 100)
        stranger.set("voicegate:1:transceiver:8", old)
        stranger.set("voicegate:1:transceiver:9", other_cluster)
        for junk in (forged, old, b"", b"\xff\xfe", b"A" * 10_000, b"rtc_" + old):
            stranger.set("voicegate:1:transceiver:7", junk)
            stranger.publish("voicegate:1:changed", junk)
            await trio.sleep(0.05)
            assert relay.records == {7: record(calls=5)}
        await eventually(lambda: relay.statistics().get("forged", 0) >= 5, within=3)
        await eventually(
            lambda: stranger.smembers("voicegate:1:transceivers") <= {b"7", b"8", b"9"}, within=3
        )
        assert relay.records == {7: record(calls=5)}
        assert not owner.lost.is_set(), "the owner takes its place back from what is not a lease"


async def test_records_under_other_keys_are_told_not_swallowed(
    server: RedisServer, capsys: pytest.CaptureFixture[str]
) -> None:
    logs.configure(LogConfig(format="json"))
    stranger = RedisRegistry(config(server), ClusterKeys.parse(["0:" + "x" * 32]))
    async with joined(server) as owner, trio.open_nursery() as nursery:
        await owner.register(record(7))
        assert stranger.absence() == "no transceiver is registered"
        await nursery.start(stranger.run)
        assert (stranger.records, stranger.statistics()["unreadable"]) == ({}, 1)
        assert "1 with others" in stranger.absence()
        assert owner.statistics()["unreadable"] == 0
        await stranger._read()
        await stranger._read()
        told = [line for line in capsys.readouterr().err.splitlines() if "does every role" in line]
        assert len(told) == 1 and "1 registry records do not open with our keys.secrets" in told[0]
        await owner.withdraw()
        await stranger._read()
        assert stranger.absence() == "no transceiver is registered"
        nursery.cancel_scope.cancel()


async def test_a_lost_lease_is_told(server: RedisServer) -> None:
    async with joined(server) as relay, joined(server) as owner, joined(server) as other:
        await owner.register(record())
        server.client().delete("voicegate:1:transceiver:7")
        await trio.sleep(0.002)  # the younger one is the one that started later, by the wall clock
        await other.register(record(boot="b2"))
        owner.publish_nowait(record(calls=1))
        with trio.fail_after(3):
            await owner.lost.wait()
        assert not other.lost.is_set()
        await owner.withdraw()
        await eventually(lambda: relay.records[7].boot == "b2")
        assert server.client().exists("voicegate:1:transceiver:7"), "a loser takes nothing away"


async def test_a_burst_is_one_announcement(server: RedisServer) -> None:
    async with joined(server) as relay, joined(server) as owner:
        await owner.register(record())
        await eventually(lambda: 7 in relay.records)
        commands = server.client().info("commandstats")["cmdstat_eval"]["calls"]
        for calls in range(1000):
            owner.publish_nowait(record(calls=calls))
        await eventually(lambda: relay.records[7].calls == 999, within=1)
        assert server.client().info("commandstats")["cmdstat_eval"]["calls"] - commands < 10


@pytest.mark.parametrize("url", ["redis://h:abc/0", "redis://h/0?foo=bar", "rediss://h?ssl_cert_reqs=maybe"])
def test_a_url_that_is_none_is_a_sentence(url: str) -> None:
    with pytest.raises(RegistryError, match=r"registry\.redis cannot be used"):
        RedisRegistry(RegistryConfig(redis=url), KEYS)


async def test_unreachable_redis_is_a_sentence(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(registry_redis, "START_SECONDS", 0.1)
    port = free_port()
    registry = RedisRegistry(RegistryConfig(redis=f"redis://:hush@127.0.0.1:{port}/0"), KEYS)
    with pytest.raises(RegistryError, match=f"cannot use Redis at 127.0.0.1:{port}: .*refused") as caught:
        await registry.run()
    assert "hush" not in str(caught.value)
    with pytest.raises(RegistryError, match="cannot use Redis"):
        await registry.register(record(0))
    with trio.fail_after(4):
        await registry.withdraw()


async def test_a_paused_redis_holds_up_nothing(server: RedisServer) -> None:
    async with joined(server) as relay, joined(server) as owner:
        await owner.register(record())
        await eventually(lambda: 7 in relay.records)
        server.signal(signal.SIGSTOP)
        try:
            turns = 0
            with trio.move_on_after(0.3):
                while True:
                    began = time.monotonic()
                    owner.publish_nowait(record(calls=turns))
                    await trio.sleep(0.001)
                    turns += 1
                    assert time.monotonic() - began < 0.2
            with trio.fail_after(5):
                await owner.withdraw()
        finally:
            server.signal(signal.SIGCONT)
