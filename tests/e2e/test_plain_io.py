"""The same code without recvmmsg and sendmmsg, as it runs where Linux is not."""

from __future__ import annotations

import time
from pathlib import Path

import pytest

from tests.e2e.conftest import assert_nothing_left
from tests.support import speech
from tests.support.light_client import Fleet, listen, opus_frames
from tests.support.servers import one_process, wait_until

pytestmark = pytest.mark.e2e


def test_a_call_on_plain_sockets(tmp_path: Path) -> None:
    said = speech.say("Nothing special here, just sockets.")
    frames = opus_frames(speech.conversation(0.3, said, 0.5))
    with one_process(tmp_path, net_batching="off") as gate, Fleet() as fleet:
        call = fleet.call(gate.calls_url, frames)
        call.wait_for("connected", 10)
        call.wait_for("heard", 20)
        wait_until(lambda: time.monotonic() - call.heard[-1].at > 0.5, 20, "the end of the answer")
        assert call.lost() == 0
        assert speech.understood(said, listen(call.heard)) >= 0.6
        assert fleet.hang_up(call) == 200
        assert_nothing_left(gate)
