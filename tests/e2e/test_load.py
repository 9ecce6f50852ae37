"""Fifty calls at once through the local cluster: none lost, no packet lost."""

from __future__ import annotations

import time
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest

from tests.e2e.conftest import assert_nothing_left
from tests.support import speech
from tests.support.light_client import Fleet, listen, opus_frames
from tests.support.servers import cluster

pytestmark = pytest.mark.e2e

CALLS = 50
SECONDS = 12.0


def test_fifty_calls_at_once(tmp_path: Path) -> None:
    said = speech.say("All fifty of us are talking at once.")
    turn = speech.conversation(0.4, said, 0.7 + len(said) / speech.RATE + 0.6)
    frames = opus_frames(turn)
    with cluster(tmp_path) as gate, Fleet() as fleet:
        with ThreadPoolExecutor(8) as pool:
            calls = list(pool.map(lambda _: fleet.call(gate.calls_url, frames, loop=True), range(CALLS)))
        for call in calls:
            call.wait_for("connected", 20)
        per_transceiver = {
            name: gate.metrics(name).total("voicegate_transceiver_calls")
            for name, server in gate.servers.items()
            if "transceiver" in name
        }
        time.sleep(SECONDS)

        ended = [call.closed for call in calls if call.closed]
        assert not ended, f"calls that ended by themselves: {ended}"
        assert gate.metrics().total("voicegate_transceiver_calls") == CALLS
        lost_here = sum(call.lost() for call in calls)
        assert lost_here == 0, f"packets lost on the way to the clients: {lost_here}"
        lost_there = [call.reported_lost for call in calls]
        assert None not in lost_there, "a transceiver sent no reception report"
        assert lost_there == [0] * CALLS, f"packets lost on the way to the transceivers: {lost_there}"

        # Power of two choices: with 50 calls on two transceivers neither stays empty.
        assert sum(per_transceiver.values()) == CALLS
        assert min(per_transceiver.values()) >= CALLS // 5, per_transceiver

        for call in calls:
            assert len(call.heard) > 100, f"only {len(call.heard)} packets heard"
        for call in calls[:: CALLS // 5]:  # decoding all of them would take longer than the calls
            assert speech.understood(said, listen(call.heard)) >= 0.6

        with ThreadPoolExecutor(8) as pool:
            assert set(pool.map(fleet.hang_up, calls)) == {200}
        for call in calls:
            call.wait_for("closed", 10)
        assert_nothing_left(gate)
