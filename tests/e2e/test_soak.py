"""Calls that come and go: nothing of them stays in the transceiver.

The real thing is five minutes of ordinary churn: `make soak`, which is VOICEGATE_SOAK_SECONDS=300, with 50
calls of 20 to 120 s. There are not five minutes to spare in every run of all tests, so without that variable
this takes half a minute, with 20 calls of 1 to 4 s: half as many set-ups and ends, and less talking.

The short run judges calls, tasks and descriptors. It does not judge memory: a process that has just begun
grows in its first minute by more than a few calls that stay. The long run does, and finds it when a tenth of
the calls stay; for a leak of a megabyte an hour there is `bench/media/soak.py`.
"""

from __future__ import annotations

import os
from pathlib import Path

import pytest

from bench.media.soak import soak

SECONDS = float(os.environ.get("VOICEGATE_SOAK_SECONDS", "0"))
SHORT_SECONDS = 10.0

pytestmark = [
    pytest.mark.e2e,
    pytest.mark.soak,
    pytest.mark.skipif(len(os.sched_getaffinity(0)) < 2, reason="the transceiver needs a CPU for itself"),
]

SPARE_TASKS, SPARE_DESCRIPTORS = 6, 4
"""Connections of whoever asked for the metrics, and of signaling, which are kept alive."""
HEAP_MB, BYTES_PER_SETUP = 10.0, 20_000
"""The heap's own way of growing under another mix of calls; and a tenth of a call for each."""


def test_nothing_of_a_call_stays(tmp_path: Path) -> None:
    if SECONDS:
        result = soak(tmp_path, seconds=SECONDS, calls=50, lengths=(20.0, 120.0))
    else:
        result = soak(tmp_path, seconds=SHORT_SECONDS, calls=20, lengths=(1.0, 4.0))

    assert not result.failures, result.failures
    assert result.connected > 60
    assert all(result.ends[way] > 3 for way in ("hung up", "closed", "vanished", "interrupted")), result.ends
    assert result.before is not None and result.after is not None
    assert result.after.tasks <= result.before.tasks + SPARE_TASKS
    assert result.after.descriptors <= result.before.descriptors + SPARE_DESCRIPTORS
    if SECONDS:
        limit = HEAP_MB + result.connected * BYTES_PER_SETUP / 1e6
        assert result.kept_mb() <= limit, result.data()
