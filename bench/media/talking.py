"""The rows of calls that talk: CPU, smoothness, uplink, a conversation, and memory."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np

from bench.media import measures
from bench.media.calls import Calls, Sample, calls_up
from bench.media.contenders import Cpus, aiortc, voicegate
from bench.media.rows import Figures, Row, Rows
from bench.report import percentile
from tests.support.light_client import request
from voicegate.load.talk import TurnTalk, make_talk

AHEAD = 0.2
"""Seconds of silence that the echoing agent sends first: else what is measured is its own jitter."""
AIORTC_CALLS = 15
SHARES = (0.5, 0.95, 0.99)


def talking(directory: Path, cpus: Cpus, talk: TurnTalk, count: int, seconds: float) -> Figures:
    """Everybody talks all the time and hears an echo: CPU, smoothness and uplink of `count` calls."""
    with voicegate(directory, cpus) as gate:
        assert gate.agent is not None
        gate.agent.command(behave="echo", ahead=AHEAD)
        with calls_up(gate, count, talk.frames) as calls:
            sample = calls.sample(seconds)
            noted = gate.heard_by_agent()
            latencies: list[float] = []
            for name in calls.by_name:
                if name in noted:
                    appends = noted[name]["appends"]
                    latencies += measures.uplink(calls.sent(name), appends, *inside(sample))[0]
            return {**_figures(calls, sample), "uplink_ms": spread(latencies)}


def aiortc_talking(cpus: Cpus, talk: TurnTalk, count: int, seconds: float) -> Figures:
    """The same of aiortc's echo, and how long an aiortc application waits for its frames."""
    with aiortc(cpus) as server:
        with calls_up(server, count, talk.frames) as calls:
            figures = _figures(calls, calls.sample(seconds))
        with calls_up(server, count, talk.frames, listen=True) as calls:
            sample = calls.sample(seconds)
            taken = json.loads(request("GET", server.url).body)
            latencies = []
            for name in calls.by_name:
                latencies += measures.listened(calls.sent(name), taken.get(name, []), *inside(sample))
        return {**figures, "uplink_ms": spread(latencies)}


def cpu_rows(ours: Figures, floors: Figures, aiortc: Figures | None) -> list[Row]:
    cpu, calls = ours["cpu_ms_per_call_second"], ours["calls"]
    rows = [
        Row(f"CPU per call-second, both ways all the time, {calls} calls", cpu, " ms", 8.0),
        Row("the same beside the sum of the floors", cpu / floors["sum"], "x", 1.5),
    ]
    if aiortc is not None:
        ratio = aiortc["cpu_ms_per_call_second"] / cpu
        rows.append(
            Row(f"aiortc's bare echo, {aiortc['calls']} calls, beside ours", ratio, "x", 7.0, at_least=True)
        )
    return rows


def smooth_rows(ours: Figures, aiortc: Figures | None) -> list[Row]:
    p99 = ours["deviation_ms"]["p99"]
    rows = [Row(f"sent packets off the 20-ms grid, {ours['calls']} calls, p99", p99, " ms", 5.0)]
    if aiortc is not None:
        theirs = aiortc["deviation_ms"]["p50"]
        rows.append(Row(f"the same beside aiortc's p50 at {aiortc['calls']} calls", p99, " ms", theirs))
    return rows


def uplink_rows(ours: Figures, aiortc: Figures | None) -> list[Row]:
    found, calls = ours["uplink_ms"], ours["calls"]
    rows = [
        Row(f"uplink, packet sent to append at the agent, {calls} calls, p50", found["p50"], " ms", 2.0),
        Row("the same, p99", found["p99"], " ms", 5.0),
    ]
    if aiortc is not None:
        ratio = aiortc["uplink_ms"]["p50"] / found["p50"]
        what = "aiortc's, packet sent to frame at the track's recv, beside ours, p50"
        rows.append(Row(what, ratio, "x", 40.0, at_least=True))
    return rows


def conversation(directory: Path, cpus: Cpus, speech: bytes, count: int, seconds: float) -> Rows:
    """The user talks 40 % of the time and so does the agent; in his pauses the user's client sends silence,
    as browsers do without DTX."""
    talk = make_talk(speech, speech=4.0, pause=6.0)
    with voicegate(directory, cpus) as gate:
        assert gate.agent is not None
        gate.agent.command(behave="turns")
        with calls_up(gate, count, talk.frames) as calls:
            figures = _figures(calls, calls.sample(seconds))
    cpu = figures["cpu_ms_per_call_second"]
    what = f"CPU per call-second, conversation (user 40 %, agent 40 %), {count} calls"
    return [Row(what, cpu, " ms", 5.0)], figures


def memory(directory: Path, cpus: Cpus, talk: TurnTalk, few: int, many: int) -> Rows:
    """Resident memory of the transceiver with few and with many calls, both talking to a listening agent."""
    rss = {}
    with voicegate(directory, cpus) as gate:
        with calls_up(gate, few, talk.frames):
            pass  # what the first calls of a process load
        with calls_up(gate, few, talk.frames) as first:
            first.sample(2.0)
            rss[few] = gate.rss()
            with calls_up(gate, many - few, talk.frames) as rest:
                rest.sample(2.0)
                rss[many] = gate.rss()
    slope = (rss[many] - rss[few]) / (many - few) / 1e6
    figures = {"rss_mb": {count: value / 1e6 for count, value in rss.items()}, "mb_per_call": slope}
    return [Row(f"memory a call, slope of {few} to {many} calls", slope, " MB", 0.3)], figures


def inside(sample: Sample) -> tuple[float, float]:
    """What left near the end of the sample may not have arrived when the notes were taken."""
    return sample.begun + 0.1, sample.ended - 0.3


def spread(seconds: list[float] | np.ndarray[Any, Any]) -> dict[str, float]:
    values = [float(value) * 1000 for value in seconds]
    found = {f"p{round(share * 100)}": percentile(values, share) for share in SHARES}
    return {**found, "count": float(len(values))}


def _figures(calls: Calls, sample: Sample) -> Figures:
    count = len(calls.by_name)
    heard = [list(call.heard) for call in calls.by_name.values()]
    inside = (sample.begun, sample.ended)
    deviation = np.concatenate([measures.deviations(packets, *inside) for packets in heard])
    gaps = np.concatenate([measures.gaps(packets, *inside) for packets in heard])
    return {
        "calls": count,
        "seconds": sample.seconds,
        "cpu_ms_per_call_second": sample.cpu / sample.seconds / count * 1000,
        "core": sample.cpu / sample.seconds,
        "others_core": {name: cpu / sample.seconds for name, cpu in sample.others.items()},
        "foreign_core": sample.foreign / sample.seconds,
        "deviation_ms": spread(deviation),
        "gap_ms": spread(gaps),
        "packets_back_per_call_second": (len(gaps) + count) / sample.seconds / count,
        "lost": sum(call.lost() for call in calls.by_name.values()),
        "generator_late_ms_p99": sample.lateness_p99 * 1000,
        "closed": sum(bool(call.closed) for call in calls.by_name.values()),
    }
