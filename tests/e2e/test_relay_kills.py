"""Kill a worker, kill the relay, take Redis away in every manner: no call is lost, none is silent for long.

The calls talk both ways all the time. Gaps are judged beside those of the same calls while nothing is done,
for two cores carry calls, callers and agent here. `bench/bench_kills.py` prints the same as a table.
"""

from __future__ import annotations

import os
import sys

import pytest

from tests.support.gaps import describe
from tests.support.kills import (
    BOTH_KILLED,
    NOTHING,
    QUIET,
    REDIS_KILLED,
    RELAY_KILLED,
    TROUBLES,
    WORKER_KILLED,
    Story,
    is_late,
    tell,
)

pytestmark = pytest.mark.e2e

CALLS = int(os.environ.get("VOICEGATE_TEST_KILL_CALLS", "100"))
SECONDS = 3.0
"""Of a chapter: longer than the 2.5 s in which a client's next check heals a relay that knows nothing."""
NOISE = 0.05
"""Seconds: what this machine's other work may add to a call's longest gap over that of the quiet chapter."""


@pytest.fixture(scope="module")
def story(tmp_path_factory: pytest.TempPathFactory) -> Story:
    told = tell(tmp_path_factory.mktemp("kills"), CALLS, SECONDS)
    sys.stdout.write(told.table() + "\n")
    return told


def test_no_call_is_lost(story: Story) -> None:
    assert story.arrivals is not None
    assert len(story.arrivals.down) == CALLS
    assert story.arrivals.lost == {}


def test_a_killed_worker_is_heard_by_its_own_calls_only_and_for_a_fifth_of_a_second(story: Story) -> None:
    assert 0 < story.on_worker < CALLS, "all calls went by one worker: nothing is told apart"
    quiet = story.gaps(NOTHING)[0].longest
    gaps = story.gaps(WORKER_KILLED)
    own, others = gaps[: story.on_worker], gaps[story.on_worker :]
    assert own[0].longest <= 0.2, describe(own)
    assert others[0].longest <= quiet + NOISE, describe(others)


@pytest.mark.parametrize("chapter", [RELAY_KILLED, BOTH_KILLED])
def test_a_relay_that_is_killed_and_started_again_has_its_flows_within_a_second(
    story: Story, chapter: str
) -> None:
    gaps = story.gaps(chapter)
    assert gaps[0].longest <= 1.0, f"{describe(gaps)}; ready after {story.taken_up[chapter]:.2f} s"


def test_calls_do_not_hear_that_redis_is_killed(story: Story) -> None:
    gaps = story.gaps(REDIS_KILLED)
    assert gaps[0].longest <= story.gaps(NOTHING)[0].longest + NOISE, describe(gaps)


@pytest.mark.parametrize("chapter", TROUBLES)
def test_no_trouble_of_redis_delays_a_packet(story: Story, chapter: str) -> None:
    delays, quiet = story.delays[chapter], story.delays[QUIET]
    assert not is_late(delays, quiet), f"{delays}; quiet: {quiet}"


def test_everything_ends_cleanly_after_all_that(story: Story) -> None:
    assert not story.unclean
