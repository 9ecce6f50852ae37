"""`voicegate keys` beside a real Redis and processes that are registered there, each with keys of its own."""

from __future__ import annotations

import os
import re
from collections.abc import AsyncIterator, Iterator
from contextlib import asynccontextmanager
from functools import partial
from pathlib import Path

import pytest
import trio
import trio.testing

from tests.support.redis_server import RedisServer
from voicegate.config import RegistryConfig
from voicegate.keyfile import read_key_file
from voicegate.keys_command import main
from voicegate.net import key_notes
from voicegate.net import redis as registry_redis
from voicegate.net.key_notes import KeyNotes
from voicegate.net.redis import RedisRegistry
from voicegate.net.registry import RegistryError, RelayRecord, SignalingRecord, TransceiverRecord
from voicegate.proto.keys import ClusterKeys

pytestmark = pytest.mark.anyio
A, B = "0:" + "a" * 32, "1:" + "b" * 32
LEASE = 1.0
RECORDS = (
    RelayRecord(id=11, cluster=1, ingress="i", boot="r", links=("127.0.0.1:1",), addresses=("127.0.0.1:2",)),
    TransceiverRecord(id=12, cluster=1, link="127.0.0.1:3", control="127.0.0.1:4", boot="t"),
    SignalingRecord(id=13, boot="s"),
)


@pytest.fixture(autouse=True)
def clean_environment(monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    for name in [name for name in os.environ if name.startswith("VOICEGATE_")]:
        monkeypatch.delenv(name)
    yield


class Desk:
    """A person with a configuration file, a key file, and the command."""

    def __init__(self, directory: Path, redis: str, capsys: pytest.CaptureFixture[str]) -> None:
        self.file = directory / "keys"
        self.config = directory / "c.toml"
        self.config.write_text(
            f'[keys]\nfile = "{self.file}"\n[registry]\nredis = "{redis}"\nlease_seconds = {LEASE}\n'
        )
        self._capsys = capsys

    def run(self, *arguments: str) -> tuple[int, str]:
        """Exit status, and all that was said."""
        self._capsys.readouterr()
        status = main([*arguments, "--config", str(self.config)])
        told = self._capsys.readouterr()
        assert "aaaa" not in told.out + told.err and "bbbb" not in told.out + told.err, "a secret is out"
        return status, told.out + told.err

    async def does(self, *arguments: str) -> tuple[int, str]:
        return await trio.to_thread.run_sync(partial(self.run, *arguments))

    def ids(self) -> list[str]:
        return [mark.partition(":")[0] for mark in ClusterKeys.parse(self.entries()).marks]

    def entries(self) -> list[str]:
        return [line for line in read_key_file(str(self.file)).splitlines() if line[:1].isdigit()]


@asynccontextmanager
async def fleet(server: RedisServer, entries: list[str]) -> AsyncIterator[list[ClusterKeys]]:
    """A relay, a transceiver and a signaling in the registry; their keys, which a test replaces."""
    everybody = []
    async with trio.open_nursery() as nursery:
        for record in RECORDS:
            keys = ClusterKeys.parse(entries)
            url = f"redis://127.0.0.1:{server.port}/0"
            registry = RedisRegistry(RegistryConfig(redis=url, lease_seconds=LEASE, snapshot=""), keys)
            await nursery.start(registry.run)
            await registry.register(record)
            nursery.start_soon(KeyNotes(url).run, keys, 60.0)
            everybody.append(keys)
        await trio.sleep(0.3)
        yield everybody
        nursery.cancel_scope.cancel()


@pytest.fixture
def desk(tmp_path: Path, server: RedisServer, capsys: pytest.CaptureFixture[str]) -> Desk:
    return Desk(tmp_path, f"redis://127.0.0.1:{server.port}/0", capsys)


async def until(desk: Desk, words: str, *arguments: str) -> str:
    """Ask until it says so: what a process has is in the registry after a third of a lease."""
    for _ in range(30):
        _, told = await desk.does(*arguments)
        if re.search(words, told):
            return told
        await trio.sleep(0.1)
    raise AssertionError(f"never {words!r}; at last:\n{told}")


async def test_a_whole_rotation_and_each_step_too_early(desk: Desk, server: RedisServer) -> None:
    desk.file.write_text(f"# ours\n{A}\n")
    async with fleet(server, [A]) as everybody:
        told = await until(desk, "next: `voicegate keys add` is safe")
        assert re.search(r"0:[0-9a-f]{8} +mints +3 of 3 +3 +\d", told), told
        assert re.search(r"relay +11 +1 +0:[0-9a-f]{8}", told) and "signaling    13" in told

        status, told = await desk.does("add")
        assert status == 0 and desk.ids() == ["0", "1"], told
        status, told = await desk.does("mint", "1")
        assert status == 1 and "not open yet at relay 11, transceiver 12, signaling 13" in told
        for keys in everybody[1:]:
            keys.replace(desk.entries())
        told = await until(desk, "not open yet at relay 11:", "mint", "1")
        assert desk.ids() == ["0", "1"], "a relay that does not open it yet"
        everybody[0].replace(desk.entries())
        await until(desk, "mints as soon as", "mint", "1")
        assert desk.ids() == ["1", "0"] and desk.file.read_text().startswith("# ours\n1:")

        status, told = await desk.does("retire", "1")
        assert status == 1 and "the first in the file" in told
        status, told = await desk.does("retire", "0")
        assert status == 1 and "is what relay 11, transceiver 12, signaling 13 mints with" in told
        for keys in everybody:
            keys.replace(desk.entries())
        told = await until(desk, "may be in use for", "retire", "0")
        await until(desk, "next: `voicegate keys retire 0` is not safe: calls and tokens")
        # The time has passed, for all that Redis knows: the notes ran out, and it kept them for long.
        for key in server.client().scan_iter("voicegate:keys:alive:0:*"):
            server.client().pexpire(key, 1)
        status, told = await desk.does("retire", "0")
        assert status == 1 and "notes of what is minted since" in told, "but it is a young Redis"
        server.client().set("voicegate:keys:noted-since", 1_000_000)
        status, told = await desk.does("retire", "0")
        assert (status, desk.ids()) == (0, ["1"]), told


async def test_a_leaked_key_goes_at_once(desk: Desk, server: RedisServer) -> None:
    desk.file.write_text(f"{B}\n{A}\n")
    async with fleet(server, [A, B]) as everybody:
        for keys in everybody:
            keys.replace([B, A])
        await until(desk, "may be in use for", "retire", "0")
        status, told = await desk.does("retire", "0", "--leaked")
        assert status == 0 and "calls that are connected go on" in told and desk.ids() == ["1"]
        desk.file.write_text(f"{B}\n")
        for keys in everybody:
            keys.replace([B])
        desk.file.with_name("new").write_text(f"{B}\n0:" + "z" * 32 + "\n")
        told = await until(desk, "stands for another secret", "check", str(desk.file.with_name("new")))
        status, told = await desk.does("retire", "1", "--leaked")
        assert status == 1 and "add another one" in told, "something has to mint"


async def test_a_replacement_that_is_made_elsewhere_is_checked(desk: Desk, server: RedisServer) -> None:
    desk.file.write_text(f"{A}\n")
    new = desk.file.with_name("new")
    async with fleet(server, [A]):
        for text, status, words in (
            (f"{A}\n{B}\n", 0, "may take the place"),
            (f"{B}\n{A}\n", 1, "not open yet at relay 11"),
            (f"{B}\n", 1, "mints with"),
            ("0:" + "z" * 32 + "\n", 1, "stands for another secret"),
            ("0:short\n", 2, "at least 32"),
        ):
            new.write_text(text)
            told = await desk.does("check", str(new))
            assert told[0] == status and words in told[1], told
    assert desk.file.read_text() == f"{A}\n"


async def test_who_has_other_keys_is_not_overlooked(desk: Desk, server: RedisServer) -> None:
    desk.file.write_text(f"{A}\n{B}\n")
    async with fleet(server, [A, B]):
        other = RedisRegistry(
            RegistryConfig(redis=f"redis://127.0.0.1:{server.port}/0", lease_seconds=LEASE, snapshot=""),
            ClusterKeys.parse(["0:" + "z" * 32]),
        )
        async with trio.open_nursery() as nursery:
            nursery.start_soon(other.run)
            await other.register(RECORDS[0])
            await until(desk, "next: there are registry records that open with none")
            status, told = await desk.does("mint", "1")
            assert status == 1 and re.search(
                r"registry records that open with none of these secrets", told
            ), told
            nursery.cancel_scope.cancel()


def test_without_redis_it_says_what_it_cannot_see(desk: Desk) -> None:
    desk.config.write_text(f'[keys]\nfile = "{desk.file}"\n')
    assert desk.run("add") == (
        0,
        f"Made {desk.file} with its first secret, 0. Every process needs the same file.\n",
    )
    assert desk.file.stat().st_mode & 0o777 == 0o600
    assert desk.run("add")[0] == 0 and desk.ids() == ["0", "1"]
    assert "next: without Redis" in desk.run()[1]
    status, told = desk.run("mint", "1")
    *reasons, hint = told.splitlines()
    assert status == 1 and len(reasons) == 1 and "refused: without Redis" in reasons[0], told
    assert hint == "voicegate: --i-have-checked does it all the same", "which is no reason"
    status, told = desk.run("mint", "1", "--i-have-checked")
    assert status == 0 and "done all the same" in told and desk.ids() == ["1", "0"]
    status, told = desk.run("retire", "0")
    assert status == 1 and "nobody notes when" in told
    assert desk.run("retire", "0", "--i-have-checked")[0] == 0 and desk.ids() == ["1"]
    assert desk.run("mint", "5") == (1, "voicegate: refused: there is no key 5 in the file; there is 1\n")


def test_with_a_redis_that_is_away_it_is_as_without_one(
    desk: Desk, server: RedisServer, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A secret that has leaked can be taken away on a bad day, too."""
    monkeypatch.setattr(registry_redis, "START_SECONDS", 0.3)
    desk.file.write_text(f"{A}\n{B}\n")
    server.kill()
    try:
        status, told = desk.run("mint", "1")
        away, reason, hint = [line for line in told.splitlines() if not line.startswith("{")]
        assert status == 1 and "cannot use Redis at 127.0.0.1" in away and "without Redis nobody" in reason
        assert desk.ids() == ["0", "1"] and "--i-have-checked" in hint
        assert "refused: without Redis nobody notes" in desk.run("retire", "1")[1]
        assert desk.run("check", str(desk.file))[0] == 0, "nothing changes"
        assert desk.run("mint", "1", "--i-have-checked")[0] == 0 and desk.ids() == ["1", "0"]
        assert desk.run("retire", "0", "--leaked")[0] == 0 and desk.ids() == ["1"]
        assert desk.run("add")[0] == 0 and desk.ids() == ["1", "2"]
        assert desk.run()[0] == 0
    finally:
        server.start()


def test_secrets_in_the_configuration_are_changed_there(desk: Desk) -> None:
    desk.config.write_text(f'[keys]\nsecrets = ["{A}"]\n')
    for arguments in (("add",), ("mint", "0"), ("retire", "0")):
        status, told = desk.run(*arguments)
        assert status == 2 and "keys.file is not set" in told
    assert desk.run()[0] == 0
    desk.file.write_text(f"{A}\n")
    desk.config.write_text(f'[keys]\nfile = "{desk.file}"\nsecrets = ["{A}"]\n')
    status, told = desk.run()
    assert status == 2 and "keys.file and keys.secrets are both set" in told
    desk.config.write_text("")
    status, told = desk.run()
    assert status == 2 and "there are no secrets" in told


async def test_notes_are_lengthened_never_shortened_and_catch_up_after_an_outage(
    server: RedisServer, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(key_notes, "LOOK_SECONDS", 0.05)
    url = f"redis://127.0.0.1:{server.port}/0"
    notes = KeyNotes(url)
    keys = ClusterKeys.parse([A, B])
    first, second = keys.marks
    slack = key_notes.SLACK_SECONDS
    async with trio.open_nursery() as nursery:
        nursery.start_soon(notes.run, keys, 1000.0)
        nursery.start_soon(KeyNotes(url).run, ClusterKeys.parse([A]), 10.0)
        await trio.sleep(0.5)
        alive, noted = await notes.read()
        assert alive.keys() == {first} and 999 + slack - 2 < alive[first] <= 1000 + slack
        assert noted is not None and 0 <= noted < 3
        server.kill()
        with pytest.raises(RegistryError, match="cannot use Redis"):
            await notes.read()
        keys.replace([B, A])
        await trio.sleep(0.5)
        server.start()  # empty
        for _ in range(100):
            if second in (await notes.read())[0]:
                break
            await trio.sleep(0.05)
        alive, _ = await notes.read()
        assert 995 + slack < alive[first] <= 1000 + slack, "minted with until it changed, during the outage"
        nursery.cancel_scope.cancel()
