"""The rows of answers: how soon one begins, and how soon it stops when the user begins to speak."""

from __future__ import annotations

from pathlib import Path

from bench.media import measures
from bench.media.calls import calls_up
from bench.media.contenders import Cpus, voicegate
from bench.media.rows import Row, Rows
from bench.media.talking import spread
from voicegate.load.talk import TurnTalk

CALLS = 50


def downlink(directory: Path, cpus: Cpus, talk: TurnTalk, seconds: float) -> Rows:
    """From a delta that the agent gives to its socket to the first packet of the answer at the client's."""
    with voicegate(directory, cpus) as gate:
        assert gate.agent is not None
        gate.agent.command(behave="prompts")
        with calls_up(gate, CALLS, talk.frames) as calls:
            calls.sample(seconds)
            noted = gate.heard_by_agent()
            found: list[float] = []
            for name, call in calls.by_name.items():
                found += measures.first_after(list(call.heard), noted[name]["said"])
    figures = spread(found)
    rows = [
        Row(f"downlink, delta sent to first packet, {CALLS} calls, p50", figures["p50"], " ms", 3.0),
        Row("the same, p99", figures["p99"], " ms"),
    ]
    return rows, figures


def interruption(directory: Path, cpus: Cpus, talk: TurnTalk, seconds: float) -> Rows:
    """From the agent's `speech_started` to the last packet of the answer that it interrupts."""
    with voicegate(directory, cpus) as gate:
        assert gate.agent is not None
        gate.agent.command(behave="interrupted")
        with calls_up(gate, CALLS, talk.frames) as calls:
            calls.sample(seconds)
            noted = gate.heard_by_agent()
            found: list[float] = []
            for name, call in calls.by_name.items():
                found += measures.last_before_pause(list(call.heard), noted[name]["said"])
    figures = spread(found)
    rows = [
        Row(
            f"agent's speech_started to the last old packet, {CALLS} calls, p99", figures["p99"], " ms", 20.0
        ),
    ]
    return rows, figures
