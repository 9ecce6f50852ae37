"""What every end-to-end test does before and after."""

from __future__ import annotations

import os
import warnings
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import TypeVar

import pytest

from tests.e2e.scenario import Script, script
from tests.support.light_client import request
from tests.support.servers import Gate, one_process, wait_until
from voicegate.config import TransceiverConfig

T = TypeVar("T")

IDLE_SECONDS = TransceiverConfig().idle_seconds + 5.0
"""After which a call that nobody hung up is over."""


@pytest.fixture(scope="session")
def conversation() -> Script:
    return script()


@pytest.fixture(scope="module")
def gate(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Gate]:
    """One process, shared by the tests of a file."""
    with one_process(tmp_path_factory.mktemp("gate")) as running:
        yield running


def on_a_quiet_moment(attempt: Callable[[], T], gate: Gate | None = None) -> T:
    """Judge a conversation in real time; once more if it fails, for a machine that stalls spoils it too.

    Only the hearing is given a second chance: what fails twice is not the machine's. `gate`: where the second
    one begins only when the first one's call is over, which a killed browser may have left to consent.
    """
    try:
        return attempt()
    except AssertionError as error:
        warnings.warn(f"judged again, at a load of {os.getloadavg()}: {error}", stacklevel=2)
        if gate is not None:
            assert_nothing_left(gate, IDLE_SECONDS)
        return attempt()


def assert_nothing_left(gate: Gate, timeout: float = 10.0) -> None:
    """Wait until no transceiver of the gate has a call."""
    wait_until(
        lambda: gate.metrics().total("voicegate_transceiver_calls") == 0,
        timeout,
        "the transceiver to be empty",
    )


def assert_over(location: str) -> None:
    """The call is not known as a live one."""
    answer = request("GET", location)
    assert answer.status == 404 or '"ended"' in answer.body, answer


def artifact(name: str) -> Path:
    """Where a screenshot or a recording is kept after the test, to look at or listen to (git-ignored)."""
    directory = Path(__file__).resolve().parents[1] / "artifacts"
    directory.mkdir(exist_ok=True)
    return directory / name
