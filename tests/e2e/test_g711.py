"""A client and an agent that both speak PCMU, with all of voicegate between them: to the bit, both ways."""

from __future__ import annotations

import json
import random
import time
from pathlib import Path
from typing import Any

import pytest

from tests.support.light_channel import Wanted
from tests.support.light_client import Fleet, LightCall, request
from tests.support.script_agent import script_agent
from tests.support.servers import one_process, wait_until

pytestmark = pytest.mark.e2e

FRAMES = 100


class TelephoneCall(LightCall):
    """Knows only PCMU, says its frames once and then sends nothing."""

    def __init__(self, *arguments: Any, **options: Any) -> None:
        super().__init__(*arguments, **options)
        self.voice.frame_samples = 160

    def offer(self) -> str:
        return super().offer().replace("SAVPF 111 0 8", "SAVPF 0")

    def payload(self, place: int) -> bytes | None:
        return self.frames[place] if place < len(self.frames) else None


def test_every_bit_passes_both_ways(tmp_path: Path) -> None:
    rng = random.Random(4)
    said, answer = ([rng.randbytes(160) for _ in range(FRAMES)] for _ in range(2))
    formats = {"agent_audio_format_in": "audio/pcmu", "agent_audio_format_out": "audio/pcmu"}
    with (
        script_agent(voice=b"".join(answer), heard=bytearray()) as agent,
        one_process(tmp_path, agent_url=agent.url, **formats) as gate,
        Fleet() as fleet,
    ):
        assert agent.heard is not None
        call = fleet.call(gate.calls_url, said, kind=TelephoneCall, channel=Wanted())
        call.wait_for("session.created", 5)
        fleet.send_event(call, {"type": "response.create"})
        wait_until(lambda: len(call.heard) >= FRAMES, 10, "the answer")
        wait_until(lambda: len(agent.heard or b"") >= 160 * FRAMES, 10, "what was said")
        agent.finish()
        call.wait_for("output_audio_buffer.stopped", 5)
        time.sleep(0.1)
        state = json.loads(request("GET", fleet.locations[id(call)]).body)
        fleet.close(call)
    audio = state["statistics"]["audio"]
    assert [packet.payload for packet in call.heard] == answer
    # A packet that this machine held up for longer than a gap waits is concealed, and not passed.
    heard = bytes(agent.heard)
    passed = sum(heard[160 * n : 160 * (n + 1)] == frame for n, frame in enumerate(said))
    assert passed == audio["receive"]["played"] >= FRAMES - 2, audio["receive"]
    assert set(heard[160 * FRAMES :]) <= {0xFF}, "silence, in PCMU"
    assert agent.told("session.update")[0]["session"]["audio"]["output"]["format"] == {"type": "audio/pcmu"}
