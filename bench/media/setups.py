"""The rows of set-up: how soon a call is there, and how many a core makes in a second."""

from __future__ import annotations

import time
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

from bench.media.contenders import Cpus, voicegate
from bench.media.rows import Figures, Row, Rows
from bench.media.talking import spread
from tests.support.light_client import Fleet, LightCall

ONE_BY_ONE = 60
AT_ONCE = 200
POSTS = 16


def setups(directory: Path, cpus: Cpus) -> Rows:
    """One after the other, from the start of the POST to DTLS connected at the client; then many at once.

    A set-up's cost is the transceiver's CPU time from the first POST of many to the last connection, with the
    ends of these calls. How many a core makes is one second over that: the clients' own handshakes, on the
    other CPU, take longer than the transceiver's, so that it is never full.
    """
    with voicegate(directory, cpus) as gate, Fleet() as fleet:

        def make(_: int) -> LightCall:
            call = fleet.call(gate.url)
            call.wait_for("connected", 20)
            return call

        def make_and_end(number: int) -> LightCall:
            call = make(number)
            fleet.close(call)
            return call

        for number in range(5):  # what the first calls load
            make_and_end(number)
        quiet = []
        for number in range(ONE_BY_ONE):
            quiet.append(make_and_end(number).since_post("connected"))
            time.sleep(0.02)
        cpu, others, begun = gate.cpu_seconds(), gate.others_seconds(), time.monotonic()
        with ThreadPoolExecutor(POSTS) as pool:
            list(pool.map(make_and_end, range(AT_ONCE)))
        taken = time.monotonic() - begun
        time.sleep(0.3)
        cost = (gate.cpu_seconds() - cpu) / AT_ONCE
        after = gate.others_seconds()
    figures: Figures = {
        "connected_ms": spread(quiet),
        "transceiver_ms_per_setup": cost * 1000,
        "others_ms_per_setup": {
            name: (after[name] - before) / AT_ONCE * 1000 for name, before in others.items()
        },
        "setups_per_second_here": AT_ONCE / taken,
    }
    rows = [
        Row("set-ups per second on a core of the transceiver", 1 / cost, "/s", 150.0, at_least=True),
        Row("set-ups per second that these clients made", AT_ONCE / taken, "/s"),
        Row("POST to connected on loopback, p50", figures["connected_ms"]["p50"], " ms", 8.0),
    ]
    return rows, figures
