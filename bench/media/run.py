"""voicegate's media path in figures: `make bench-media`.

    python -m bench.media.run                                  every row, six minutes
    python -m bench.media.run --only cpu,smooth --seconds 5    some of them, for the edit-and-run loop

The transceiver (and aiortc, when it is measured) is alone on one CPU; clients, relay, signaling and agent share
another. What a packet's way through the relay takes is in the latencies. aiortc is measured with fewer calls,
for it is at the end of its core with some twenty.
"""

from __future__ import annotations

import argparse
import gc
import os
import tempfile
import time
from pathlib import Path
from typing import Any

from bench.media import floors, talking
from bench.media.contenders import Cpus
from bench.media.rows import Row
from bench.report import save, table
from voicegate.load.talk import make_talk, synthetic_speech

SECTIONS = ("cpu", "smooth", "uplink", "conversation", "memory")
SPEECH_SECONDS = 1.6


def main() -> None:
    args = _arguments()
    bench = Bench(args)
    gc.disable()  # a collection over all that was heard would hold up the clients
    for name in SECTIONS:
        if name in args.only:
            begun = time.monotonic()
            bench.rows += getattr(bench, name)()
            print(f"  {name}: {time.monotonic() - begun:.0f} s", flush=True)
    table("Media path", ("what", "measured", "goal", ""), [row.cells() for row in bench.rows])
    if "floors" in bench.figures:
        parts = bench.figures["floors"].items()
        table("Floors", ("a call-second, both ways", "ms"), [[name, f"{ms:.2f}"] for name, ms in parts])
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
        with _directory() as place:
            rows, figures = talking.conversation(
                Path(place), self._cpus, self._speech, self._args.calls or 100, self._args.seconds
            )
        self.figures["conversation"] = figures
        return rows

    def memory(self) -> list[Row]:
        with _directory() as place:
            rows, figures = talking.memory(Path(place), self._cpus, self._talk, 20, 200)
        self.figures["memory"] = figures
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


def _directory() -> tempfile.TemporaryDirectory[str]:
    return tempfile.TemporaryDirectory(prefix="voicegate-bench-")


def _arguments() -> argparse.Namespace:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument(
        "--only", type=lambda text: text.split(","), default=list(SECTIONS), metavar="NAME,..."
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
