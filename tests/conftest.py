"""Fixtures for every test: Trio as the only runtime, seeded Hypothesis profiles, a Redis."""

from __future__ import annotations

import os
from collections.abc import Iterator
from pathlib import Path
from shutil import which

import pytest
from hypothesis import HealthCheck, settings

from tests.support.redis_server import RedisServer

settings.register_profile("fast", max_examples=60, deadline=None, derandomize=True)
settings.register_profile(
    "deep", max_examples=2000, deadline=None, suppress_health_check=[HealthCheck.too_slow]
)
settings.load_profile(os.environ.get("HYPOTHESIS_PROFILE", "fast"))


@pytest.fixture
def anyio_backend() -> str:
    return "trio"


@pytest.fixture
def server(tmp_path: Path) -> Iterator[RedisServer]:
    """A Redis that runs, of this test's own."""
    if which("redis-server") is None:
        pytest.skip("redis-server is not installed")
    running = RedisServer(tmp_path)
    yield running
    running.kill()
