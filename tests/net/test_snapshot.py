"""The last good tables in a file: starting while Redis is down or does not answer."""

from __future__ import annotations

import os
import signal
import stat
import tempfile
import time
from pathlib import Path
from typing import Any

import pytest
import trio
from hypothesis import given
from hypothesis import strategies as st

from tests.net.test_registry_fleet import relay, transceiver
from tests.support.redis_server import KEYS, LEASE, RedisServer, eventually, joined
from voicegate import logs
from voicegate.config import LogConfig, RegistryConfig
from voicegate.net.leases import Lease, LeaseTable, all_relays, transceivers_of
from voicegate.net.redis import RedisRegistry
from voicegate.net.registry import RegistryError
from voicegate.net.snapshot import Snapshot, _parse_untrusted, open_snapshot
from voicegate.proto.keys import ClusterKeys

pytestmark = pytest.mark.anyio
TABLES = {"voicegate:1:transceivers": ["token", "other"], "voicegate:relays": ["third"]}


@pytest.fixture(autouse=True)
def written_often(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("voicegate.net.redis.SNAPSHOT_SECONDS", 0.1)


def write_snapshot(path: Path) -> None:
    """With transceiver 7 and relay 5, neither of which lives."""
    known: tuple[LeaseTable[Any], ...] = (
        LeaseTable(transceivers_of(1, LEASE), KEYS),
        LeaseTable(all_relays(), KEYS),
    )
    leases = (Lease(transceiver(), 1, 1), Lease(relay(5), 1, 1))
    tables = zip(known, leases, strict=True)
    Snapshot(path).save({table.kind.index: [table.seal(lease)] for table, lease in tables})


@pytest.mark.parametrize("how", ["killed", "paused"])
async def test_a_relay_starts_while_redis_is_away(server: RedisServer, tmp_path: Path, how: str) -> None:
    path = tmp_path / "snapshot"
    write_snapshot(path)
    server.kill() if how == "killed" else server.signal(signal.SIGSTOP)
    try:
        began = time.monotonic()
        async with joined(server, snapshot=str(path)) as registry:
            assert {*registry.records} == {7} and {*registry.relays} == {5}
            await registry.register(relay(boot="r2"))
            assert time.monotonic() - began < 0.3
            assert registry.records[7] == transceiver()
            assert not registry.healthy()
            server.start() if how == "killed" else server.signal(signal.SIGCONT)
            await eventually(registry.healthy, within=3)
            assert {*registry.records} == {7}, "a live one has time to put itself back"
            await eventually(lambda: not registry.records and 5 not in registry.relays, within=3)
            assert len(registry.relays) == 1, "its own"
    finally:
        server.signal(signal.SIGCONT)


async def test_a_redis_that_is_well_is_asked_first(server: RedisServer, tmp_path: Path) -> None:
    path = tmp_path / "snapshot"
    write_snapshot(path)
    async with joined(server) as owner:
        await owner.register(transceiver(8))
        async with joined(server, snapshot=str(path)) as registry:
            assert {*registry.records} == {8} and registry.healthy()


async def test_the_file_follows_the_table(server: RedisServer, tmp_path: Path) -> None:
    path = tmp_path / "snapshot"
    async with joined(server, snapshot=str(path)) as registry, joined(server) as owner:
        await owner.register(transceiver())
        await eventually(path.exists)
        before = os.stat(path)
        assert stat.S_IMODE(before.st_mode) == 0o600
        await trio.sleep(LEASE)
        assert os.stat(path).st_ino == before.st_ino, "renewals without news are not written"
        await owner.withdraw()
        await eventually(lambda: not Snapshot(path).load())
        assert not registry.records
        assert os.listdir(tmp_path) == ["snapshot"]


@pytest.mark.parametrize("spoil", ["junk", "cut", "huge", "directory", "symlink", "keys", "foreign"])
def test_a_file_that_cannot_be_used_is_one_line(
    tmp_path: Path, spoil: str, capsys: pytest.CaptureFixture[str]
) -> None:
    path, keys = tmp_path / "snapshot", KEYS
    write_snapshot(path)
    match spoil:
        case "junk":
            path.write_bytes(os.urandom(1000))
        case "cut":
            path.write_bytes(path.read_bytes()[:-5])
        case "huge":
            os.truncate(path, 17 << 20)
        case "directory":
            path.unlink()
            path.mkdir()
        case "symlink":
            path.rename(tmp_path / "elsewhere")
            path.symlink_to(tmp_path / "elsewhere")
        case "keys":
            keys = ClusterKeys.parse(["0:" + "x" * 32])
        case "foreign":
            path.write_bytes(path.read_bytes().replace(b"voicegate:relays", b"voicegate:1:transceivers"))
    logs.configure(LogConfig(format="json"))
    registry = RedisRegistry(RegistryConfig(redis="redis://127.0.0.1:1/0", snapshot=str(path)), keys)
    registry._load_snapshot()
    assert not registry.relays
    assert {*registry.records} == ({7} if spoil == "foreign" else set())
    told = [line for line in capsys.readouterr().err.splitlines() if "snapshot" in line]
    assert len(told) == 1 and str(path) in told[0]


async def test_without_a_table_and_without_redis_nothing_starts(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("voicegate.net.redis.START_SECONDS", 0.1)
    there = tmp_path / "snapshot"
    Snapshot(there).save({"voicegate:relays": []})
    registry = RedisRegistry(RegistryConfig(redis="redis://127.0.0.1:1/0", snapshot=str(there)), KEYS)
    with pytest.raises(RegistryError, match="cannot use Redis"):
        await registry.run()


async def test_a_file_that_cannot_be_written_ends_nothing(server: RedisServer, tmp_path: Path) -> None:
    async with joined(server, snapshot=str(tmp_path / "no" / "such" / "snapshot")) as registry:
        await registry.register(transceiver())
        await eventually(lambda: registry.statistics().get("snapshot_failures", 0) >= 1)
        assert registry.healthy() and 7 in registry.records


def test_auto_is_a_directory_of_ours_alone(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(tempfile, "tempdir", str(tmp_path))
    snapshot = open_snapshot("auto", "redis://:hush@h/0", [1])
    assert snapshot is not None and snapshot.load() == {}
    snapshot.save(TABLES)
    assert snapshot.load() == TABLES
    (directory,) = tmp_path.iterdir()
    (file,) = directory.iterdir()
    assert stat.S_IMODE(directory.stat().st_mode) == 0o700 and stat.S_IMODE(file.stat().st_mode) == 0o600
    assert directory.name == f"voicegate-{os.getuid()}" and "hush" not in file.name
    for url, clusters in (("redis://h/1", [1]), ("redis://:hush@h/0", [1, 2])):
        other = open_snapshot("auto", url, clusters)
        assert other is not None and other.load() == {}
    directory.chmod(0o755)
    assert snapshot.load() == {}
    with pytest.raises(PermissionError, match="ours alone"):
        snapshot.save(TABLES)
    assert open_snapshot("", "redis://h/0", [1]) is None


@given(st.binary(max_size=300) | st.text(alphabet="voicegate registry1\n:7a", max_size=200).map(str.encode))
def test_any_bytes_are_tables_or_a_value_error(data: bytes) -> None:
    for bytes_in in (data, b"voicegate registry 1\n" + data):
        try:
            tables = _parse_untrusted(bytes_in)
        except ValueError:
            continue
        assert all(tokens for tokens in tables.values())
