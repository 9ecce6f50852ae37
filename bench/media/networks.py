"""The rows of bad networks: what the agent hears of a microphone whose packets are lost, late or overtaken.

All calls say the same, encoded as browsers do it (VOIP with in-band FEC), so that what the agent got in a run
without impairment is what it should get in the others, sample by sample. The network turns bad when the calls
are up. Reported is the log-spectral distance from the clean run, the share of frames that were made up, and
how long a packet that came took from the network to the agent.
"""

from __future__ import annotations

import base64
import json
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from bench.media import measures
from bench.media.calls import Calls, calls_up
from bench.media.contenders import Contender, Cpus, voicegate
from bench.media.rows import Figures, Row, Rows
from bench.media.talking import inside, spread
from tests.support.light_client import request
from voicegate.load.impairment import PERFECT, Quality
from voicegate.media.codec import FRAME_BYTES, PCM_RATE
from voicegate.media.opus import Application, OpusEncoder

CALLS = 20
EXPECTED_LOSS = 10
"""Percent, as a client that hears of 5 % in reports prepares for."""
CONCEALED_GOAL, UPLINK_GOAL = 1.0, 65.0
NETWORKS: dict[str, tuple[Quality, bool]] = {
    "clean": (PERFECT, False),
    "5 % random loss, FEC": (Quality(loss=0.05), False),
    "5 % random loss, RED": (Quality(loss=0.05), True),
    "5 % loss in bursts of 5, RED": (Quality(loss=0.05, burst=5.0), True),
    "40 ms jitter": (Quality(jitter=0.04), False),
    "25 % overtaken": (Quality(reorder=0.25), False),
}
"""What is impaired, both ways, and whether the client offers RED."""
JUDGED_CONCEALMENT = ("5 % random loss, FEC", "5 % random loss, RED")


def networks(directory: Path, cpus: Cpus, speech: bytes, seconds: float) -> Rows:
    frames = _as_browsers_do(speech)
    figures: Figures = {}
    rows: list[Row] = []
    clean: NDArray[Any] = np.empty(0, dtype="<i2")
    with voicegate(directory, cpus) as gate:
        assert gate.agent is not None
        gate.agent.command(behave="listen", keep=True)
        for name, (quality, red) in NETWORKS.items():
            with calls_up(gate, CALLS, frames, red=red) as calls:
                found, sounds = _measure(gate, calls, quality, seconds)
            if name == "clean":
                clean = sounds[0]
            distances = [measures.spectral_distance(clean[PCM_RATE:], sound[PCM_RATE:]) for sound in sounds]
            found["distance_db"] = float(np.mean([distance for distance, _ in distances]))
            found["frames_over_6_db_percent"] = float(np.mean([share for _, share in distances])) * 100
            figures[name] = found
            rows += _rows(name, found)
    return rows, figures


def _rows(name: str, found: Figures) -> list[Row]:
    concealed = CONCEALED_GOAL if name in JUDGED_CONCEALMENT else None
    judged = UPLINK_GOAL if name != "clean" else None
    return [
        Row(f"{name}: log-spectral distance from the clean run", found["distance_db"], " dB"),
        Row(f"{name}: frames concealed", found["concealed_percent"], " %", concealed),
        Row(f"{name}: uplink p99", found["uplink_ms"]["p99"], " ms", judged),
    ]


def _measure(
    gate: Contender, calls: Calls, quality: Quality, seconds: float
) -> tuple[Figures, list[NDArray[Any]]]:
    before = _received(calls)
    if not quality.perfect:
        calls.impair(quality)
    sample = calls.sample(seconds)
    noted = gate.heard_by_agent()
    received = {name: value - before[name] for name, value in _received(calls).items()}
    latencies: list[float] = []
    late = 0
    for name in calls.by_name:
        found, behind = measures.uplink(calls.sent(name), noted[name]["appends"], *inside(sample))
        latencies += found
        late += behind
    made_up = received["concealed_samples"] + received["silence_samples"]
    there = received["decoded_samples"] + received["recovered_fec_samples"]
    figures: Figures = {
        "uplink_ms": spread(latencies),
        "late": late,
        "concealed_percent": 100 * made_up / (made_up + there),
        "received": received,
    }
    audio = [np.frombuffer(base64.b64decode(noted[name]["audio"]), dtype="<i2") for name in calls.by_name]
    return figures, audio


def _received(calls: Calls) -> dict[str, int]:
    """The gateway's counts of what came, of all calls together."""
    total: dict[str, int] = {}
    for call in calls.by_name.values():
        status = json.loads(request("GET", calls.fleet.locations[id(call)]).body)
        for name, value in status["statistics"]["audio"]["receive"].items():
            if isinstance(value, int):
                total[name] = total.get(name, 0) + value
    return total


def _as_browsers_do(speech: bytes) -> list[bytes]:
    encoder = OpusEncoder(application=Application.VOIP, complexity=9)
    encoder.expect_loss(EXPECTED_LOSS)
    starts = range(0, len(speech) - FRAME_BYTES + 1, FRAME_BYTES)
    return [encoder.encode(speech[at : at + FRAME_BYTES]) for at in starts]
