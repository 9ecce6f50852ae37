"""voicegate's relay beside a Go relay, a C forwarder and coturn: CPU per packet, rate, latency; its memory.

    make bench-relay                          (or: python -m bench.relay.run --quick --only voicegate,go)

All relays are there at once, each alone on the same CPU when its turn comes; the generator has another one.
They take turns in short rounds, so that whatever else the machine does hits all alike; tables hold medians.
Every packet is one of 160 bytes, both ways at once, from as many clients as there are flows, with a
transceiver for each 200 of them.

voicegate is measured twice. A transceiver sends what became ready in a turn of 3 ms together: with 200 calls
of 50 packets a second that is 30 packets, as 4 datagrams of 7 to 8 (`--bundle`). The second row has the same
bursts with one frame to a datagram, as the others have them; what the relay bundles itself stays.
"""

from __future__ import annotations

import argparse
import os
import sys
import tempfile
from collections.abc import Sequence
from contextlib import ExitStack
from pathlib import Path
from typing import Any

from bench.relay.contenders import Running, build, missing, running
from bench.relay.load import CALLS_PER_TRANSCEIVER
from bench.relay.measure import Bench, Contender, Figures, medians, ratio
from bench.relay.memory import first_packet, flows_in_process
from bench.report import save, table

CONTENDERS = (
    Contender("voicegate", "voicegate", bundled=True),
    Contender("voicegate, single frames", "voicegate"),
    Contender("go", "go"),
    Contender("c", "c"),
    Contender("coturn", "coturn"),
)
NAMES = ("voicegate", "go", "c", "coturn")
CPU_GOALS = {"go": 0.6, "c": 0.8, "coturn": 0.5}
BYTES_GOAL, FIRST_PACKET_GOAL = 400, 15.0
LOAD = 0.3
Rounds = dict[str, list[Figures]]


def main() -> None:
    args = _arguments()
    lacking = [text for name in args.only if (text := missing(name))]
    if missing("c"):
        lacking.append("the generator: the program cc is not installed")
    cpus = sorted(os.sched_getaffinity(0))
    if len(cpus) < 2:
        lacking.append("the relay and the generator need a CPU each, and there is one")
    if lacking:
        sys.exit("bench-relay cannot run: " + "; ".join(dict.fromkeys(lacking)))
    results: dict[str, Any] = {"seconds": args.seconds, "rounds": args.rounds, "bundle": args.bundle}
    with tempfile.TemporaryDirectory() as place:
        directory = Path(place)
        build(directory, args.only)
        os.sched_setaffinity(0, cpus[:1])
        bench = Bench(directory, args.seconds, args.bundle, cpus[0])
        for flows in args.flows:
            results[f"{flows} flows"] = _measure(bench, args, flows, cpus[-1])
        if args.memory_flows and "voicegate" in args.only:
            results["memory"] = flows_in_process(args.memory_flows, directory, cpus[-1])
            results["first_packet_us"] = first_packet()
    _print_goals(results, args)
    print(f"\nAll figures: {save(args.name, results)}")


def _arguments() -> argparse.Namespace:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--only", type=lambda text: text.split(","), default=list(NAMES), metavar="NAME,...")
    parser.add_argument("--flows", type=int, nargs="+", default=[200, 2000])
    parser.add_argument("--seconds", type=float, default=0.5, help="of each run; four make a turn")
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--bundle", type=float, default=7.0, help="packets a transceiver sends at once")
    parser.add_argument("--rate", type=float, default=0, help=f"instead of {LOAD:.0%}% of the Go relay's")
    parser.add_argument("--memory-flows", type=int, default=100_000, help="0: leave memory out")
    parser.add_argument("--quick", action="store_true", help="40 seconds, for tuning")
    parser.add_argument("--name", default="relay", help="of the file in bench/results")
    args = parser.parse_args()
    if unknown := set(args.only) - set(NAMES):
        parser.error(f"--only knows {', '.join(NAMES)}, not {', '.join(sorted(unknown))}")
    if args.quick:
        args.seconds, args.rounds, args.flows, args.memory_flows = 0.4, 3, [2000], 0
    return args


def _measure(bench: Bench, args: argparse.Namespace, flows: int, cpu: int) -> dict[str, Any]:
    transceivers = max(1, flows // CALLS_PER_TRANSCEIVER)
    contenders = [contender for contender in CONTENDERS if contender.relay in args.only]
    saturated: Rounds = {contender.label: [] for contender in contenders}
    loaded: Rounds = {contender.label: [] for contender in contenders}
    with ExitStack() as stack:
        relays: dict[str, Running] = {}
        for name in args.only:
            started = running(name, transceivers=transceivers, directory=bench.directory, cpu=cpu)
            relays[name] = stack.enter_context(started)
            relays[name].make_flows(flows)
        rate, source = args.rate, "--rate"
        if not rate:
            source = "go" if "go" in args.only else contenders[0].label
            [model] = [contender for contender in contenders if contender.label == source]
            full = bench.saturate(model, relays[model.relay])["packets_per_second"]
            rate = round(LOAD * full, -3)
        for _ in range(args.rounds):
            for contender in contenders:
                relay = relays[contender.relay]
                saturated[contender.label].append(bench.saturate(contender, relay))
                loaded[contender.label].append(bench.load(contender, relay, rate))
    _print(f"{flows} flows, saturation", saturated)
    _print(f"{flows} flows, {rate:,.0f} packets/s ({LOAD:.0%} of the saturation of {source})", loaded)
    return {
        "rate": rate,
        "saturation": {label: medians(rounds) for label, rounds in saturated.items()},
        "load": {label: medians(rounds) for label, rounds in loaded.items()},
        "cpu_ratio": {
            label: ratio(saturated["voicegate"], rounds, "cpu_us")
            for label, rounds in saturated.items()
            if "voicegate" in saturated
        },
        "rounds": {"saturation": saturated, "load": loaded},
    }


HEAD = (
    *("relay", "CPU us/packet", "voicegate's share", "its own us", "packets/s", "core busy", "lost"),
    *("p50 us", "p99 us", "frames up", "down", "others"),
)


def _print(title: str, rounds: Rounds) -> None:
    rows = []
    for label, runs in rounds.items():
        figures = medians(runs)
        share = f"{ratio(rounds['voicegate'], runs, 'cpu_us'):.2f}" if "voicegate" in rounds else ""
        rows.append(
            [
                *(label, f"{figures['cpu_us']:.2f}", share, f"{figures['own_cpu_us']:.2f}"),
                *(
                    f"{figures['packets_per_second']:,.0f}",
                    f"{figures['core']:.0%}",
                    f"{figures['lost']:.2%}",
                ),
                *(f"{figures['added_p50_us']:,.0f}", f"{figures['added_p99_us']:,.0f}"),
                *(
                    f"{figures['frames_up']:.1f}",
                    f"{figures['frames_down']:.1f}",
                    f"{figures['foreign']:.0%}",
                ),
            ]
        )
    table(title, HEAD, rows)


def _print_goals(results: dict[str, Any], args: argparse.Namespace) -> None:
    rows = []
    for flows in args.flows:
        found = results[f"{flows} flows"]
        for name, goal in CPU_GOALS.items():
            if name in found["cpu_ratio"]:
                what = f"{flows} flows, saturation: CPU per packet, of {name}'s"
                rows.append(_goal(what, found["cpu_ratio"][name], goal, "x"))
        if "go" in found["load"] and "voicegate" in found["load"]:
            theirs = found["load"]["go"]["added_p99_us"]
            ours = found["load"]["voicegate"]["added_p99_us"]
            rows.append(_goal(f"{flows} flows, {LOAD:.0%} load: added p99", ours, theirs, " us"))
    if "memory" in results:
        memory = results["memory"]
        rows.append(
            _goal(f"memory per flow at {memory['flows']:,}", memory["bytes_per_flow"], BYTES_GOAL, " bytes")
        )
        cost = results["first_packet_us"]["flow made"]
        rows.append(_goal("first packet: ticket, integrity, flow", cost, FIRST_PACKET_GOAL, " us"))
    table("Goals", ("what", "measured", "at most", ""), rows)
    if "memory" in results:
        rows = [[label, f"{cost:.1f}"] for label, cost in results["first_packet_us"].items()]
        rows.append(["set-up on the process, both packets", f"{results['memory']['setup_cpu_us']:.1f}"])
        table("The relay's rules", ("packet", "us"), rows)


def _goal(what: str, measured: float, goal: float, unit: str) -> Sequence[str]:
    digits = 2 if unit == "x" else 1
    verdict = "reached" if measured <= goal else "missed"
    return [what, f"{measured:,.{digits}f}{unit}", f"{goal:,.{digits}f}{unit}", verdict]


if __name__ == "__main__":
    main()
