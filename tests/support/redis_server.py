"""A Redis of a test's own, that can be killed and paused, and registries that use it.

async def test(server: RedisServer) -> None:      # the fixture of tests/conftest.py
    async with joined(server) as registry: ...
"""

from __future__ import annotations

import subprocess
import time
from collections.abc import AsyncIterator, Callable, Sequence
from contextlib import asynccontextmanager, suppress
from pathlib import Path

import redis
import trio

from tests.support.servers import free_port
from voicegate.config import RegistryConfig
from voicegate.net.leases import LeaseTable
from voicegate.net.redis import RedisRegistry
from voicegate.net.registry import TransceiverRecord
from voicegate.proto.keys import ClusterKeys

KEYS = ClusterKeys.parse(["0:" + "k" * 32])
LEASE = 0.9


class RedisServer:
    """A Redis of this test's own."""

    def __init__(self, directory: Path) -> None:
        self.port = free_port()
        self._directory = directory
        self._process: subprocess.Popen[bytes] | None = None
        self.start()

    def start(self) -> None:
        arguments = ["--port", str(self.port), "--bind", "127.0.0.1", "--save", "", "--appendonly", "no"]
        self._process = subprocess.Popen(
            ["redis-server", *arguments, "--dir", str(self._directory), "--loglevel", "warning"],
            stdout=subprocess.DEVNULL,
        )
        deadline = time.monotonic() + 10
        while True:
            try:
                self.client().ping()
                return
            except redis.RedisError:
                assert time.monotonic() < deadline, "redis-server did not start"
                time.sleep(0.02)

    def signal(self, number: int) -> None:
        assert self._process is not None
        self._process.send_signal(number)

    def kill(self) -> None:
        assert self._process is not None
        self._process.kill()
        self._process.wait()

    def client(self) -> redis.Redis:
        return redis.Redis(port=self.port, socket_timeout=5)


class GarblingRedis:
    """Stands before a Redis; while there are `answers`, each of its own is replaced by the next of them."""

    def __init__(self, behind: RedisServer) -> None:
        self.port = free_port()
        self.answers: Sequence[bytes] = ()
        self.given = 0
        self._behind = behind

    async def run(self, *, task_status: trio.TaskStatus[object] = trio.TASK_STATUS_IGNORED) -> None:
        await trio.serve_tcp(self._serve, self.port, host="127.0.0.1", task_status=task_status)

    async def _serve(self, client: trio.SocketStream) -> None:
        redis = await trio.open_tcp_stream("127.0.0.1", self._behind.port)
        async with redis, trio.open_nursery() as nursery:
            nursery.start_soon(self._answer, client, redis)
            with suppress(trio.BrokenResourceError):
                async for commands in client:
                    await redis.send_all(commands)
            nursery.cancel_scope.cancel()

    async def _answer(self, client: trio.SocketStream, redis: trio.SocketStream) -> None:
        with suppress(trio.BrokenResourceError):
            async for answer in redis:
                if self.answers:
                    answer = self.answers[self.given % len(self.answers)]
                    self.given += 1
                await client.send_all(answer)


def config(
    server: RedisServer | GarblingRedis, lease: float = LEASE, snapshot: str = "", cluster: int = 1
) -> RegistryConfig:
    url = f"redis://127.0.0.1:{server.port}/0"
    return RegistryConfig(cluster=cluster, redis=url, lease_seconds=lease, snapshot=snapshot)


def own_table(registry: RedisRegistry) -> LeaseTable[TransceiverRecord]:
    return registry._lease_table_of_ours()


@asynccontextmanager
async def joined(
    server: RedisServer | GarblingRedis,
    *,
    lease: float = LEASE,
    snapshot: str = "",
    cluster: int = 1,
    watched: tuple[int, ...] = (),
) -> AsyncIterator[RedisRegistry]:
    """A registry that runs; leaving is a crash: nothing is withdrawn."""
    registry = RedisRegistry(config(server, lease, snapshot, cluster), KEYS, watched)
    async with trio.open_nursery() as nursery:
        await nursery.start(registry.run)
        yield registry
        nursery.cancel_scope.cancel()


async def eventually(condition: Callable[[], bool], within: float = 2.0) -> None:
    with trio.fail_after(within):
        while not condition():  # noqa: ASYNC110  (another process decides)
            await trio.sleep(0.01)
