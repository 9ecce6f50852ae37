"""What 100 live calls hear of a killed worker, a killed relay and a Redis in trouble.

    python -m bench.bench_kills [--calls 100] [--seconds 10]

A gap is the longest time without a packet, of one call in one direction (tests/support/gaps.py says where it
is measured); the chapter "nothing" is what this machine does to the same calls without any kill. The probe's
delays are those of 20 flows of 50 packets a second each way through the same relay.
"""

from __future__ import annotations

import argparse
import tempfile
from dataclasses import asdict
from pathlib import Path

from bench.report import save
from tests.support.kills import KILLS, NOTHING, tell


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--calls", type=int, default=100)
    parser.add_argument("--seconds", type=float, default=10.0, help="of each chapter, at least")
    args = parser.parse_args()
    with tempfile.TemporaryDirectory() as directory:
        story = tell(Path(directory), args.calls, args.seconds)
    print(story.table())
    assert story.arrivals is not None
    results = {
        "calls": args.calls,
        "calls_lost": story.arrivals.lost,
        "calls_of_killed_worker": story.on_worker,
        "gaps_seconds": {name: [asdict(gap) for gap in story.gaps(name)] for name in (NOTHING, *KILLS)},
        "delays_seconds": {name: asdict(delays) for name, delays in story.delays.items()},
        "ready_after_seconds": story.taken_up,
    }
    print(f"\nwritten to {save('kills', results)}")


if __name__ == "__main__":
    main()
