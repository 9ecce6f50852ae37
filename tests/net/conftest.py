from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from shutil import which

import pytest

from tests.support.redis_server import RedisServer


@pytest.fixture
def server(tmp_path: Path) -> Iterator[RedisServer]:
    """A Redis that runs."""
    if which("redis-server") is None:
        pytest.skip("redis-server is not installed")
    running = RedisServer(tmp_path)
    yield running
    running.kill()
