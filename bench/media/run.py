"""voicegate's media path in figures: `make bench-media`.

    python -m bench.media.run                                  every row, six minutes
    python -m bench.media.run --only cpu,smooth --seconds 5    some of them, for the edit-and-run loop

The transceiver (and aiortc, when it is measured) is alone on one CPU; clients, relay, signaling and agent
share another. What a packet's way through the relay takes is in the latencies. aiortc is measured with fewer
calls, for it is at the end of its core with some twenty.
"""

from __future__ import annotations

import argparse
import gc
import os
import tempfile
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

from bench.media import answering, floors, networks, setups, talking
from bench.media.contenders import Cpus, ahead
from bench.media.rows import Row, Rows
from bench.report import save, table
from voicegate.load.talk import make_talk, synthetic_speech

SECTIONS = (
    *("cpu", "smooth", "uplink", "conversation"),
    *("downlink", "interruption", "networks", "memory", "setups"),
)
SPEECH_SECONDS = 1.6


def main() -> None:
    args = _arguments()
    bench = Bench(args)
    gc.disable()  # a collection over all that was heard would hold up the clients
    with ahead():
        for name in SECTIONS:
            if name in args.only:
                begun = time.monotonic()
                bench.rows += getattr(bench, name)()
                print(f"  {name}: {time.monotonic() - begun:.0f} s", flush=True)
    table("Media path", ("what", "measured", "goal", ""), [row.cells() for row in bench.rows])
    if "floors" in bench.figures:
        parts = bench.figures["floors"].items()
        table("Floors", ("a call-second, both ways", "ms"), [[name, f"{ms:.2f}"] for name, ms in parts])
    print(_conditions(bench.figures))
    bench.figures["rows"] = [row.data() for row in bench.rows]
    print(f"\nAll figures: {save(args.name, bench.figures)}")


class Bench:
    """The rows so far, and what they share."""

    def __init__(self, args: argparse.Namespace) -> None:
        self.rows: list[Row] = []
        self.figures: dict[str, Any] = {"seconds": args.seconds}
        self._args = args
        self._cpus = Cpus.of_machine()
        os.sched_setaffinity(0, {self._cpus.others})
        self._speech = synthetic_speech(SPEECH_SECONDS)
        self._talk = make_talk(self._speech, pause=0.0)

    def cpu(self) -> list[Row]:
        return talking.cpu_rows(self._ours(50), self._floors(), self._aiortc())

    def smooth(self) -> list[Row]:
        return talking.smooth_rows(self._ours(100), self._aiortc())

    def uplink(self) -> list[Row]:
        return talking.uplink_rows(self._ours(50), self._aiortc())

    def conversation(self) -> list[Row]:
        count, seconds = self._args.calls or 100, self._args.seconds
        return self._section(
            "conversation",
            lambda place: talking.conversation(place, self._cpus, self._speech, count, seconds),
        )

    def downlink(self) -> list[Row]:
        seconds = self._args.seconds
        return self._section(
            "downlink", lambda place: answering.downlink(place, self._cpus, self._talk, seconds)
        )

    def interruption(self) -> list[Row]:
        seconds = self._args.seconds
        return self._section(
            "interruption", lambda place: answering.interruption(place, self._cpus, self._talk, seconds)
        )

    def networks(self) -> list[Row]:
        seconds = self._args.seconds * 0.6  # six of them
        return self._section(
            "networks", lambda place: networks.networks(place, self._cpus, self._speech, seconds)
        )

    def memory(self) -> list[Row]:
        return self._section(
            "memory", lambda place: talking.memory(place, self._cpus, self._talk, 20, self._args.calls or 200)
        )

    def setups(self) -> list[Row]:
        return self._section("setups", lambda place: setups.setups(place, self._cpus))

    def _section(self, name: str, measure: Callable[[Path], Rows]) -> list[Row]:
        with _directory() as place:
            rows, self.figures[name] = measure(Path(place))
        return rows

    def _floors(self) -> dict[str, float]:
        if "floors" not in self.figures:
            self.figures["floors"] = floors.measure(self._cpus.measured)
        found: dict[str, float] = self.figures["floors"]
        return found

    def _ours(self, count: int) -> dict[str, Any]:
        count = self._args.calls or count
        name = f"voicegate, {count} calls"
        if name not in self.figures:
            with _directory() as place:
                self.figures[name] = talking.talking(
                    Path(place), self._cpus, self._talk, count, self._args.seconds
                )
        found: dict[str, Any] = self.figures[name]
        return found

    def _aiortc(self) -> dict[str, Any] | None:
        if self._args.no_aiortc:
            return None
        name = f"aiortc, {talking.AIORTC_CALLS} calls"
        if name not in self.figures:
            self.figures[name] = talking.aiortc_talking(
                self._cpus, self._talk, talking.AIORTC_CALLS, self._args.seconds
            )
        found: dict[str, Any] = self.figures[name]
        return found


def _conditions(figures: dict[str, Any]) -> str:
    """Whether the figures can be believed: who else was there, and was the generator in time."""
    runs = [run for run in figures.values() if isinstance(run, dict) and "foreign_core" in run]
    if not runs:
        return ""
    foreign = max(run["foreign_core"] for run in runs)
    late = max(run["generator_late_ms_p99"] for run in runs)
    return (
        f"\nAt worst, others had {foreign:.0%} of the measured CPU (on a quiet machine 2 to 5 %), and the"
        f"\ngenerator's own timers were {late:.1f} ms late (p99), which makes the load uneven by as much."
    )


def _directory() -> tempfile.TemporaryDirectory[str]:
    return tempfile.TemporaryDirectory(prefix="voicegate-bench-")


def _arguments() -> argparse.Namespace:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    names = ", ".join(SECTIONS)
    parser.add_argument(
        "--only", type=lambda text: text.split(","), default=list(SECTIONS), metavar="NAME,...", help=names
    )
    parser.add_argument("--seconds", type=float, default=10.0, help="of each sample")
    parser.add_argument("--calls", type=int, default=0, help="instead of a row's own number")
    parser.add_argument("--no-aiortc", action="store_true", help="leave aiortc out, and the rows about it")
    parser.add_argument("--name", default="media", help="of the file in bench/results")
    args = parser.parse_args()
    if unknown := set(args.only) - set(SECTIONS):
        parser.error(f"--only knows {', '.join(SECTIONS)}, not {', '.join(sorted(unknown))}")
    return args


if __name__ == "__main__":
    main()
