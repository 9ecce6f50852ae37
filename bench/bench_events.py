"""Data channels and events: throughput and CPU beside aiortc, round trips through the gateway, barge-in,
memory.

    make bench                            (or: python -m bench.bench_events --seconds 2)

Throughput: two processes that echo whatever comes over a data channel, voicegate's protocol floor and aiortc,
with the same client, one after the other. CPU is user and system time of the echoing process, per message,
which it takes and sends once.

Round trips: an event client → voicegate → agent → voicegate → client, through the local cluster, less the
same event client → agent → client over the agent's own WebSocket. Barge-in: from the client's
`output_audio_buffer.clear` until the last packet of the old audio is here, with a path that takes no time.
"""

from __future__ import annotations

import argparse
import asyncio
import json
import subprocess
import sys
import tempfile
import time
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

from websockets.sync.client import connect

from bench.peers.process import running_peer
from bench.report import percentile, save, table
from tests.support import speech
from tests.support.channel_peer import OurPeer, until
from tests.support.light_channel import Wanted
from tests.support.light_client import Fleet, LightCall, opus_frames
from tests.support.servers import ROOT, Gate, cluster, cpu_seconds, rss_bytes
from voicegate.proto.dcep import Open

SIZES = (100, 1_000, 16_000)
OUTSTANDING = 32
"""Messages under way at once; 16 kB ones: an eighth as many."""
FEW, MANY = 10, 50
CHANNEL = Wanted(validate=False)


# ------------------------------------------------------------------------------------------------ throughput


def echo_throughput(kind: str, seconds: float) -> dict[int, dict[str, float]]:
    """By size: messages_per_second, cpu_us of the echoing process, and how much of a core it took."""
    process = subprocess.Popen(
        [sys.executable, "-m", "bench.peers.channel_end", kind],
        cwd=ROOT,
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        text=True,
    )
    assert process.stdin is not None
    try:
        return asyncio.run(_against(process, seconds))
    finally:
        process.stdin.close()
        try:
            process.wait(5)
        except subprocess.TimeoutExpired:
            process.kill()
            process.wait()


async def _against(process: subprocess.Popen[str], seconds: float) -> dict[int, dict[str, float]]:
    assert process.stdin is not None and process.stdout is not None
    ours = OurPeer()
    await ours.open()
    try:
        process.stdin.write(json.dumps(ours.offer()) + "\n")
        process.stdin.flush()
        ours.accept(json.loads(await asyncio.to_thread(process.stdout.readline)))
        await until(lambda: ours.call.channels is not None, 20, "DTLS")
        ours.drain()
        assert ours.channels is not None
        number = ours.channels.open(Open("bench"), time.monotonic())
        assert number is not None
        ours.drain()
        await until(lambda: number in ours.opened, 20, "the channel")
        return {size: await _echo(ours, number, process.pid, size, seconds) for size in SIZES}
    finally:
        ours.close()


async def _echo(ours: OurPeer, number: int, pid: int, size: int, seconds: float) -> dict[str, float]:
    message = b"\xa5" * size
    window = max(1, OUTSTANDING // (8 if size > 10_000 else 1))
    got = ours.received[number]
    got.clear()

    async def run(length: float) -> tuple[int, float, float]:
        sent, begun_at, came = len(got), len(got), len(got)
        cpu, begun = cpu_seconds([pid]), time.monotonic()
        while time.monotonic() - begun < length:
            while sent - len(got) < window:
                ours.send(number, message)
                sent += 1
            ours.drain()
            came = len(got)
            while len(got) == came and time.monotonic() - begun < length:  # noqa: ASYNC110 - it spins
                await asyncio.sleep(0)
        return len(got) - begun_at, cpu_seconds([pid]) - cpu, time.monotonic() - begun

    await run(0.5)  # windows and timers find their size
    count, cpu, taken = await run(seconds)
    await until(lambda: not ours.waiting, 10, "the rest")
    await asyncio.sleep(0.3)
    return {"messages_per_second": count / taken, "cpu_us": cpu / max(1, count) * 1e6, "busy": cpu / taken}


# ------------------------------------------------------------------------------------- through the gateway


def item(number: int) -> dict[str, Any]:
    text = [{"type": "input_text", "text": "Is anybody there? " * 5}]
    return {
        "type": "conversation.item.create",
        "item": {"id": f"c{number}", "type": "message", "role": "user", "content": text},
    }


def direct_round_trips(url: str, count: int) -> list[float]:
    """Client → agent → client without a gateway."""
    taken = []
    with connect(url, compression=None) as socket:
        socket.recv()
        for number in range(count):
            begun = time.perf_counter()
            socket.send(json.dumps(item(number)))
            socket.recv()
            taken.append(time.perf_counter() - begun)
            time.sleep(0.004)
    return taken


def round_trips(fleet: Fleet, call: LightCall, count: int) -> list[float]:
    channel = call.channel
    assert channel is not None
    taken = []
    for number in range(count):
        seen = len(channel.times)
        at = fleet.send_event(call, item(number))
        deadline = time.monotonic() + 5
        while len(channel.events) == seen and time.monotonic() < deadline:
            time.sleep(0.0005)
        taken.append(channel.times[seen] - at)
        time.sleep(0.004)
    return taken


def barge_ins(fleet: Fleet, call: LightCall, count: int) -> list[float]:
    """From the event to the arrival of the last old packet, seconds."""
    found = []
    for number in range(count):
        call.heard.clear()
        fleet.send_event(call, {"type": "response.create"})
        _wait(lambda: len(call.heard) > 15)
        time.sleep(0.003 * (number % 7))  # at any place of a frame
        at = fleet.send_event(call, {"type": "output_audio_buffer.clear"})
        time.sleep(0.15)
        found.append(max(0.0, call.heard[-1].at - at))
    return found


def _wait(condition: Any, seconds: float = 10.0) -> None:
    deadline = time.monotonic() + seconds
    while not condition():
        assert time.monotonic() < deadline, "it did not happen"
        time.sleep(0.002)


def memory_slope(gate: Gate, fleet: Fleet, frames: list[bytes], *, channel: bool) -> float:
    """MB of the transceivers per call, between FEW and MANY."""
    calls: list[LightCall] = []
    sizes = []
    for wanted in (FEW, MANY):
        with ThreadPoolExecutor(8) as pool:
            calls += pool.map(
                lambda _: fleet.call(gate.calls_url, frames, loop=True, channel=CHANNEL if channel else None),
                range(wanted - len(calls)),
            )
        for call in calls:
            call.wait_for("session.created" if channel else "connected", 30)
        if channel:
            for number, call in enumerate(calls):
                fleet.send_event(call, item(number))
        time.sleep(4)
        sizes.append(rss_bytes(gate.pids()) - rss_bytes(gate.pids("parrot")) - rss_bytes(gate.pids("redis")))
    for call in calls:
        fleet.hang_up(call)
        fleet.close(call)
    return (sizes[1] - sizes[0]) / (MANY - FEW) / 1e6


def through_the_gateway(directory: Path, count: int) -> dict[str, Any]:
    frames = opus_frames(speech.silence(0.5))
    found: dict[str, Any] = {}
    with running_peer("bench.peers.event_echo_agent") as agent:
        settings = {"log_level": "warning", "agent_url": agent.url}
        direct = direct_round_trips(agent.url, count)
        with cluster(directory, check_end=False, **settings) as gate, Fleet() as fleet:
            call = fleet.call(gate.calls_url, frames, loop=True, channel=CHANNEL)
            call.wait_for("session.created", 20)
            round_trips(fleet, call, 50)
            through = round_trips(fleet, call, count)
            for share in (0.5, 0.99):
                found[f"direct_p{share * 100:.0f}_ms"] = percentile(direct, share) * 1000
                found[f"through_p{share * 100:.0f}_ms"] = percentile(through, share) * 1000
            barged = barge_ins(fleet, call, max(40, count // 10))
            found["barge_in_ms"] = [percentile(barged, share) * 1000 for share in (0.5, 0.99)]
            fleet.hang_up(call)
            fleet.close(call)
        with cluster(directory, check_end=False, **settings) as gate, Fleet() as fleet:
            found["mb_per_call_with_channel"] = memory_slope(gate, fleet, frames, channel=True)
        with cluster(directory, check_end=False, **settings) as gate, Fleet() as fleet:
            found["mb_per_call_without"] = memory_slope(gate, fleet, frames, channel=False)
    return found


# ------------------------------------------------------------------------------------------------- report


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawTextHelpFormatter)
    parser.add_argument("--seconds", type=float, default=5.0, help="length of each throughput sample")
    parser.add_argument("--round-trips", type=int, default=1000)
    arguments = parser.parse_args()
    echoes = {}
    for name in ("ours", "aiortc"):
        print(f"measuring data channels of {name} ...", flush=True)
        echoes[name] = echo_throughput(name, arguments.seconds)
    rows = [
        [
            f"{size} B",
            *(f"{echoes[name][size]['messages_per_second']:.0f}" for name in echoes),
            *(f"{echoes[name][size]['cpu_us']:.0f}" for name in echoes),
            *(f"{echoes[name][size]['busy']:.0%}" for name in echoes),
        ]
        for size in SIZES
    ]
    head = ["echo of", "ours msg/s", "aiortc msg/s", "ours CPU us/msg", "aiortc CPU us/msg"]
    table("Data channels", [*head, "ours core", "aiortc core"], rows)

    print("\nmeasuring events through the cluster ...", flush=True)
    with tempfile.TemporaryDirectory(prefix="voicegate-bench-") as directory:
        found = through_the_gateway(Path(directory), arguments.round_trips)
    added = {p: found[f"through_{p}_ms"] - found[f"direct_{p}_ms"] for p in ("p50", "p99")}
    found["added_ms"] = added
    goals = []
    for size in SIZES:
        ratio = echoes["aiortc"][size]["cpu_us"] / echoes["ours"][size]["cpu_us"]
        goals.append((f"CPU per message below aiortc's, {size} B", ">= 3 x", f"{ratio:.1f} x", ratio >= 3))
    goals += [
        ("event round trip added, p50", "<= 1.5 ms", f"{added['p50']:.2f} ms", added["p50"] <= 1.5),
        ("event round trip added, p99", "<= 5 ms", f"{added['p99']:.2f} ms", added["p99"] <= 5),
    ]
    last = found["barge_in_ms"][1]
    goals.append(("barge-in event to last old packet, p99", "<= 20 ms", f"{last:.1f} ms", last <= 20))
    slope = found["mb_per_call_with_channel"]
    goals.append(("memory of a call with a channel", "<= 0.6 MB", f"{slope:.2f} MB", slope <= 0.6))
    table(
        "Goals",
        ["goal", "asked", "measured", ""],
        [
            [what, asked, value, "reached" if reached else "NOT reached"]
            for what, asked, value, reached in goals
        ],
    )
    rest = {
        "round trip direct, p50 / p99": f"{found['direct_p50_ms']:.2f} / {found['direct_p99_ms']:.2f} ms",
        "round trip through, p50 / p99": f"{found['through_p50_ms']:.2f} / {found['through_p99_ms']:.2f} ms",
        "barge-in, p50": f"{found['barge_in_ms'][0]:.1f} ms",
        "memory of a call without a channel": f"{found['mb_per_call_without']:.2f} MB",
    }
    table("Beside them", ["", "measured"], [[what, value] for what, value in rest.items()])
    data = {
        "echo": echoes,
        "events": found,
        "goals": [
            {"what": what, "goal": asked, "measured": value, "reached": reached}
            for what, asked, value, reached in goals
        ],
    }
    print(f"\nwritten to {save('events', data).relative_to(ROOT)}")


if __name__ == "__main__":
    main()
