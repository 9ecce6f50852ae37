"""voicegate beside an aiortc echo server: CPU, set-up time and memory per call, the same clients, the same
speech.

    make bench                            (or: python -m bench.bench_calls --seconds 5)

voicegate runs as the local cluster of the Procfile. Two runs of it: with the parrot, which answers between
turns, and with an agent that echoes all the time, so that it does the very work of the aiortc server:
decode and encode fifty packets a second each way. CPU is user and system time of the server processes from
/proc; the agents are shown apart, for a real one lives elsewhere. Set-up is from the start of the POST to
DTLS connected at the client.
"""

from __future__ import annotations

import argparse
import contextlib
import tempfile
import time
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field
from pathlib import Path

from bench.peers.process import running_peer
from bench.report import percentile, save, table
from tests.support import speech
from tests.support.light_client import Fleet, LightCall, opus_frames
from tests.support.servers import ROOT, cluster, cpu_seconds, rss_bytes

CALM, FEW, MANY = 4, 10, 50
"""CPU is compared at CALM, where no contender is at the end of its core; memory between FEW and MANY."""
SETUPS = 40


@dataclass
class Contender:
    """A server under measurement: where to call it, and its processes by part."""

    name: str
    url: str
    parts: dict[str, Callable[[], list[int]]]
    candidate_in_offer: bool = False
    aside: tuple[str, ...] = ()
    """Parts that are not the gateway: shown, not counted."""
    delete: bool = True


@dataclass
class Measured:
    setup_quiet: list[float] = field(default_factory=list)
    answer_quiet: list[float] = field(default_factory=list)
    """The part of it until the answer was here."""
    setup_busy: list[float] = field(default_factory=list)
    setup_burst: list[float] = field(default_factory=list)
    cpu: dict[int, dict[str, float]] = field(default_factory=dict)
    """By number of calls and part: milliseconds of CPU per call-second."""
    rss: dict[int, dict[str, int]] = field(default_factory=dict)
    back: dict[int, float] = field(default_factory=dict)
    """Packets a call got back per second."""
    lost: int = 0
    failed: int = 0


@contextlib.contextmanager
def voicegate(directory: Path, agent: str) -> Iterator[Contender]:
    with contextlib.ExitStack() as stack:
        settings = {"log_level": "warning"}
        parts: dict[str, Callable[[], list[int]]] = {}
        if agent == "echo":
            echo = stack.enter_context(running_peer("bench.peers.echo_agent"))
            settings["agent_url"] = echo.url
            parts["agent"] = lambda: [echo.pid]
        gate = stack.enter_context(cluster(directory, check_end=False, **settings))
        for name in ("relay", "transceiver", "signaling"):
            parts[name] = lambda name=name: gate.pids(name)  # type: ignore[misc]
        if agent == "parrot":
            parts["agent"] = lambda: gate.pids("parrot")
        yield Contender(f"voicegate, {agent}", gate.calls_url, parts, aside=("agent",))


@contextlib.contextmanager
def aiortc_echo(_directory: Path) -> Iterator[Contender]:
    with running_peer("bench.peers.aiortc_echo") as peer:
        yield Contender(
            "aiortc, echo", peer.url, {"aiortc": lambda: [peer.pid]}, candidate_in_offer=True, delete=False
        )


def measure(contender: Contender, frames: list[bytes], seconds: float) -> Measured:
    measured = Measured()
    with Fleet() as fleet:

        def start() -> LightCall:
            return fleet.call(
                contender.url, frames, loop=True, candidate_in_offer=contender.candidate_in_offer
            )

        def end(call: LightCall) -> None:
            if contender.delete:
                fleet.hang_up(call)
            fleet.close(call)

        def set_up_one_by_one(into: list[float], answers: list[float]) -> None:
            for _ in range(SETUPS):
                call = start()
                call.wait_for("connected", 20)
                into.append(call.since_post("connected"))
                answers.append(call.since_post("answered"))
                end(call)
                time.sleep(0.02)

        def grow(wanted: int, calls: list[LightCall]) -> list[LightCall]:
            with ThreadPoolExecutor(8) as pool:
                added = list(pool.map(lambda _: start(), range(wanted - len(calls))))
            for call in added:
                try:
                    call.wait_for("connected", 30)
                except AssertionError:
                    measured.failed += 1
            return added

        for _ in range(3):  # the first calls of a process load what the others find loaded
            call = start()
            call.wait_for("connected", 20)
            end(call)
        set_up_one_by_one(measured.setup_quiet, measured.answer_quiet)
        calls: list[LightCall] = []
        for wanted in (CALM, FEW, MANY):
            added = grow(wanted, calls)
            calls += added
            if wanted == MANY:
                measured.setup_burst = [c.since_post("connected") for c in added if "connected" in c.times]
            time.sleep(4)  # buffers and allocators reach their size
            _sample(contender, measured, calls, wanted, seconds)
            if wanted == FEW:
                set_up_one_by_one(measured.setup_busy, [])
        measured.lost = sum(call.lost() for call in calls)
        for call in calls:
            end(call)
    return measured


def _sample(
    contender: Contender, measured: Measured, calls: list[LightCall], wanted: int, seconds: float
) -> None:
    heard = sum(len(call.heard) for call in calls)
    before = {part: cpu_seconds(pids()) for part, pids in contender.parts.items()}
    begun = time.monotonic()
    time.sleep(seconds)
    taken = time.monotonic() - begun
    measured.cpu[wanted] = {
        part: (cpu_seconds(pids()) - before[part]) / taken / wanted * 1000
        for part, pids in contender.parts.items()
    }
    measured.back[wanted] = (sum(len(call.heard) for call in calls) - heard) / taken / wanted
    measured.rss[wanted] = {part: rss_bytes(pids()) for part, pids in contender.parts.items()}


def _of_gateway(contender_aside: tuple[str, ...], values: dict[str, float]) -> float:
    return sum(value for part, value in values.items() if part not in contender_aside)


def show(results: dict[str, tuple[tuple[str, ...], Measured]]) -> dict[str, object]:
    """Print the tables; return the figures as data."""
    figures: dict[str, dict[str, object]] = {}
    rows = []
    for name, (aside, m) in results.items():
        cpu = {wanted: _of_gateway(aside, parts) for wanted, parts in m.cpu.items()}
        rss = {wanted: _of_gateway(aside, {k: float(v) for k, v in p.items()}) for wanted, p in m.rss.items()}
        slope = (rss[MANY] - rss[FEW]) / (MANY - FEW) / 1e6
        agent = [m.rss[wanted].get("agent", 0) for wanted in (FEW, MANY)]
        figures[name] = {
            "cpu_ms_per_call_second": cpu,
            "cpu_parts": m.cpu,
            "answer_quiet_ms": [percentile(m.answer_quiet, share) * 1000 for share in (0.5, 0.95)],
            "setup_quiet_ms": [percentile(m.setup_quiet, share) * 1000 for share in (0.5, 0.95)],
            "setup_busy_ms": [percentile(m.setup_busy, share) * 1000 for share in (0.5, 0.95)],
            "setup_burst_ms": [percentile(m.setup_burst, share) * 1000 for share in (0.5, 0.95)],
            "rss_mb": {wanted: value / 1e6 for wanted, value in rss.items()},
            "rss_slope_mb_per_call": slope,
            "agent_rss_slope_mb_per_call": (agent[1] - agent[0]) / (MANY - FEW) / 1e6,
            "packets_back_per_second": m.back,
            "lost": m.lost,
            "failed": m.failed,
        }
        rows.append(
            [
                name,
                *(_cpu(cpu[wanted], wanted) for wanted in (CALM, FEW, MANY)),
                *(
                    f"{percentile(values, 0.5) * 1000:.1f} / {percentile(values, 0.95) * 1000:.1f}"
                    for values in (m.answer_quiet, m.setup_quiet, m.setup_busy, m.setup_burst)
                ),
                f"{slope:.2f}",
                " ".join(f"{m.back[wanted]:.0f}" for wanted in (CALM, FEW, MANY)),
                str(m.lost + m.failed),
            ]
        )
    head = [
        "per call",
        f"CPU ms/s at {CALM}",
        f"at {FEW}",
        f"at {MANY}",
        "answer ms p50/p95",
        "set-up ms p50/p95",
        f"with {FEW} up",
    ]
    head += [f"{MANY - FEW} at once", "MB", "packets back/s", "lost"]
    table("Per call (gateway processes; the agent is apart; * = a whole core is busy)", head, rows)

    parts = [
        [
            f"{name}: {part}",
            *(f"{m.cpu[wanted][part]:.2f}" for wanted in (CALM, FEW, MANY)),
            f"{(m.rss[MANY][part] - m.rss[FEW][part]) / (MANY - FEW) / 1e6:.2f}",
        ]
        for name, (_, m) in results.items()
        for part in m.cpu[FEW]
    ]
    table("By part", ["part", f"CPU ms/s at {CALM}", f"at {FEW}", f"at {MANY}", "MB"], parts)
    return dict(figures)


def _cpu(milliseconds: float, calls: int) -> str:
    """Marked where the calls together take a whole core: a single-threaded server is at its end there."""
    return f"{milliseconds:.1f}" + ("*" if milliseconds * calls > 900 else "")


def goals(results: dict[str, tuple[tuple[str, ...], Measured]]) -> list[dict[str, object]]:
    """What was asked for beside what came out."""
    aiortc = results["aiortc, echo"][1]
    found = []
    rows = []
    for name, (aside, m) in results.items():
        if name.startswith("aiortc"):
            continue
        slope = sum(m.rss[MANY][p] - m.rss[FEW][p] for p in m.rss[FEW] if p not in aside) / (MANY - FEW) / 1e6
        lines = []
        for count in (CALM, FEW, MANY):
            cpu = _of_gateway((), aiortc.cpu[count]) / _of_gateway(aside, m.cpu[count])
            what = f"CPU below aiortc's, {count} calls"
            if aiortc.back[count] < 45:
                # It no longer keeps up: compared by what each packet that came back has cost, on both sides.
                cpu *= m.back[count] / aiortc.back[count]
                what += ", per packet returned"
            lines.append((what, "4 x", f"{cpu:.1f} x", cpu >= 4))
        for label, of in (
            ("quiet", "setup_quiet"),
            (f"{FEW} calls up", "setup_busy"),
            ("burst", "setup_burst"),
        ):
            ratio = percentile(getattr(aiortc, of), 0.5) / percentile(getattr(m, of), 0.5)
            lines.append((f"set-up p50 faster, {label}", "10 x", f"{ratio:.1f} x", ratio >= 10))
        lines.append(("memory per call", "0.5 MB", f"{slope:.2f} MB", slope <= 0.5))
        for what, goal, value, reached in lines:
            rows.append([f"{name}: {what}", goal, value, "reached" if reached else "NOT reached"])
            found.append({"of": name, "what": what, "goal": goal, "measured": value, "reached": reached})
    table("Goals", ["goal", "asked", "measured", ""], rows)
    return found


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawTextHelpFormatter)
    parser.add_argument("--seconds", type=float, default=10.0, help="length of each CPU sample")
    parser.add_argument("--only", choices=["voicegate", "aiortc"], help="leave the other one out")
    arguments = parser.parse_args()
    said = speech.say("All of us are talking at once.")
    frames = opus_frames(speech.conversation(0.2, said, 0.7 + len(said) / speech.RATE + 0.3))

    results: dict[str, tuple[tuple[str, ...], Measured]] = {}
    contenders = [
        lambda directory: voicegate(directory, "parrot"),
        lambda directory: voicegate(directory, "echo"),
        aiortc_echo,
    ]
    if arguments.only:
        contenders = contenders[:2] if arguments.only == "voicegate" else contenders[2:]
    for make in contenders:
        with tempfile.TemporaryDirectory(prefix="voicegate-bench-") as directory, make(Path(directory)) as it:
            print(f"measuring {it.name} ...", flush=True)
            results[it.name] = it.aside, measure(it, frames, arguments.seconds)
    figures: dict[str, object] = {"calls": [CALM, FEW, MANY], "figures": show(results)}
    if not arguments.only:
        figures["goals"] = goals(results)
    print(f"\nwritten to {save('calls', figures).relative_to(ROOT)}")


if __name__ == "__main__":
    main()
