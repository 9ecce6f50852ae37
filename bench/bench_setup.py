"""How long a call takes to come up over a path with a round trip, seen by three independent clients.

    make bench                            (or: python -m bench.bench_setup --calls 5)

From the start of the POST to DTLS connected at the client. Only UDP passes the delay; the POST goes
straight, so that the figure is that of ICE and DTLS. Retransmissions are counted on the path: handshake
messages that went the same way twice, and checks sent again.
"""

from __future__ import annotations

import argparse
import contextlib
import socket
import statistics
import tempfile
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

from bench.report import save, table
from tests.support import speech
from tests.support.aiortc_client import start_call
from tests.support.chromium import BrowserError, Chromium
from tests.support.delay_proxy import DelayProxy, dtls_retransmissions, stun_retransmissions
from tests.support.light_client import Fleet
from tests.support.servers import ROOT, Gate, free_port, one_process

RTTS = (0.0, 0.05, 0.1, 0.2)
GOAL = 3.0
"""Round trips from the POST to connected."""


@dataclass(frozen=True, slots=True)
class Line:
    client: str
    rtt: float
    seconds: list[float]
    dtls_again: float
    """Plaintext DTLS handshake messages sent again, per call."""
    stun_again: float


def light(gate: Gate, calls: int, _directory: Path) -> list[float]:
    taken = []
    with Fleet() as fleet:
        for _ in range(calls):
            call = fleet.call(gate.calls_url)
            call.wait_for("connected", 20)
            taken.append(call.since_post("connected"))
            fleet.hang_up(call)
    return taken


def light_late_nomination(gate: Gate, calls: int, _directory: Path) -> list[float]:
    """As libwebrtc does on a slow path: no USE-CANDIDATE for 1.2 s."""
    taken = []
    with Fleet() as fleet:
        for _ in range(calls):
            call = fleet.call(gate.calls_url, nominate_after=1.2)
            call.wait_for("connected", 20)
            taken.append(call.since_post("connected"))
            fleet.hang_up(call)
    return taken


def aiortc(gate: Gate, calls: int, directory: Path) -> list[float]:
    said = speech.write_wav(directory / "silence.wav", speech.silence(0.1))
    taken = []
    for number in range(calls):
        heard = directory / f"{number}.wav"
        result = start_call(gate.calls_url, said=said, heard=heard, seconds=2).wait()
        if result.connected is not None:
            taken.append(result.connected)
    return taken


def chromium(gate: Gate, calls: int, directory: Path) -> list[float]:
    said = speech.write_wav(directory / "silence.wav", speech.silence(0.1))
    taken = []
    with Chromium(microphone=said) as browser:
        page = browser.open(gate.url + "/")
        for _ in range(calls):
            page.click('[data-testid="talk"]')
            page.wait("window.voicegate.state === 'connected'", 20)
            milestones = page.evaluate("window.voicegate.milestones")
            taken.append((milestones["dtls"] - milestones["post"]) / 1000)
            page.click('[data-testid="hang-up"]')
            page.wait("window.voicegate.state === 'ended'", 10)
    return taken


CLIENTS: dict[str, Callable[[Gate, int, Path], list[float]]] = {
    "light": light,
    "light, late nomination": light_late_nomination,
    "aiortc": aiortc,
    "Chromium": chromium,
}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawTextHelpFormatter)
    parser.add_argument("--calls", type=int, default=5)
    parser.add_argument("--client", choices=list(CLIENTS), action="append")
    arguments = parser.parse_args()
    media = free_port(socket.SOCK_DGRAM)
    listen = ("127.0.0.1", free_port(socket.SOCK_DGRAM))
    lines: list[Line] = []
    with contextlib.ExitStack() as stack:
        directory = Path(stack.enter_context(tempfile.TemporaryDirectory(prefix="voicegate-bench-")))
        gate = stack.enter_context(
            one_process(
                directory,
                media=f"127.0.0.1:{media}",
                advertise=f"{listen[0]}:{listen[1]}",
                check_end=False,
                log_level="warning",
            )
        )
        for name in arguments.client or CLIENTS:
            for rtt in RTTS:
                with DelayProxy(("127.0.0.1", media), rtt=rtt, listen=listen) as proxy:
                    try:
                        taken = CLIENTS[name](gate, arguments.calls, directory)
                    except (AssertionError, BrowserError, RuntimeError) as error:
                        print(f"{name} at {rtt * 1000:.0f} ms failed: {error}")
                        taken = []
                again = dtls_retransmissions(proxy.trace), stun_retransmissions(proxy.trace)
                lines.append(Line(name, rtt, taken, again[0] / arguments.calls, again[1] / arguments.calls))
    _show(lines)
    print(f"\nwritten to {save('setup', _figures(lines)).relative_to(ROOT)}")


def _show(lines: list[Line]) -> None:
    rows = []
    base = {line.client: statistics.median(line.seconds) for line in lines if line.rtt == 0 and line.seconds}
    for line in lines:
        if not line.seconds:
            rows.append([line.client, f"{line.rtt * 1000:.0f}", "failed", "", "", "", ""])
            continue
        median = statistics.median(line.seconds)
        trips = (median - base.get(line.client, 0.0)) / line.rtt if line.rtt else 0.0
        rows.append(
            [
                line.client,
                f"{line.rtt * 1000:.0f}",
                f"{median * 1000:.1f}",
                f"{max(line.seconds) * 1000:.1f}",
                f"{trips:.2f}" if line.rtt else "",
                f"{line.dtls_again:.1f} / {line.stun_again:.1f}",
                ("reached" if trips <= GOAL else "NOT reached") if line.rtt else "",
            ]
        )
    table(
        f"Set-up over a path (goal: at most {GOAL:.0f} round trips, a straight line)",
        ["client", "RTT ms", "median ms", "max ms", "round trips", "DTLS/STUN again per call", ""],
        rows,
    )


def _figures(lines: list[Line]) -> dict[str, object]:
    return {
        "goal_round_trips": GOAL,
        "lines": [
            {
                "client": line.client,
                "rtt_ms": line.rtt * 1000,
                "ms": [round(value * 1000, 2) for value in line.seconds],
                "dtls_retransmissions_per_call": line.dtls_again,
                "stun_retransmissions_per_call": line.stun_again,
            }
            for line in lines
        ],
    }


if __name__ == "__main__":
    main()
