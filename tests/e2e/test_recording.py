"""A recorded call, as an operator finds it: the file against what the client said and heard."""

from __future__ import annotations

import json
import time
from pathlib import Path

import av
import numpy as np
import pytest

from tests.e2e.conftest import assert_nothing_left
from tests.media.signals import lag
from tests.support import speech
from tests.support.light_channel import Wanted
from tests.support.light_client import Fleet, listen, opus_frames, request
from tests.support.servers import one_process, wait_until

pytestmark = pytest.mark.e2e


def test_the_file_is_what_was_said_and_heard_when_it_was(tmp_path: Path) -> None:
    recordings = tmp_path / "recordings"
    recordings.mkdir(mode=0o700)
    said = speech.conversation(0.2, speech.say("Please keep what I say."), 1.5)
    with one_process(tmp_path, recording_directory=str(recordings)) as gate, Fleet() as fleet:
        quiet = fleet.call(gate.calls_url)
        call = fleet.call(
            gate.calls_url, opus_frames(said), headers={"X-Voicegate-Record": "true"}, channel=Wanted()
        )
        quiet.wait_for("connected", 10)
        call.wait_for("heard", 20)
        wait_until(lambda: time.monotonic() - call.heard[-1].at > 0.5, 20, "the end of the answer")
        status = json.loads(request("GET", fleet.locations[id(call)]).body)
        assert status["recording"]["status"] == "recording", status["recording"]
        assert json.loads(request("GET", fleet.locations[id(quiet)]).body)["recording"] is None
        assert fleet.hang_up(call) == fleet.hang_up(quiet) == 200
        assert_nothing_left(gate)
        assert len(gate.log_lines(event="call is recorded")) == 1
        status = json.loads(request("GET", fleet.locations[id(call)]).body)

    events_file, sound_file = sorted(recordings.iterdir())
    assert sound_file.name == events_file.stem + ".ogg" and status["id"] in sound_file.name
    with av.open(str(sound_file)) as container:
        user, agent = np.concatenate([f.to_ndarray() for f in container.decode(audio=0)], axis=1)
    heard = listen(call.heard)
    (user_at, user_like), (agent_at, agent_like) = lag(user, said), lag(agent, heard)
    assert user_like > 0.8 and agent_like > 0.8, (user_like, agent_like)
    # The client's clock is the same one: what it saw between its first packet and the agent's first.
    between = call.heard[0].at - call.sent[0][0]
    assert (agent_at - user_at) / 48_000 == pytest.approx(between, abs=0.04)
    first_packet = status["milestones"]["first_packet_in"] / 1000
    assert user_at / 48_000 == pytest.approx(first_packet, abs=0.02)

    events = [json.loads(line) for line in events_file.read_bytes().splitlines()]
    kinds = [event["event"]["type"] for event in events]
    assert kinds[0] == "recording.started" and kinds[-1] == "recording.ended"
    assert {"session.created", "response.done", "output_audio_buffer.started"} <= set(kinds)
    assert events[-1]["event"]["call"]["reason"] == "hangup"
    started = next(event["at"] for event in events if event["event"]["type"] == "output_audio_buffer.started")
    assert started == pytest.approx(agent_at / 48_000, abs=0.04)
