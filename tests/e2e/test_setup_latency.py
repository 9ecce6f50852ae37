"""Set-up over a path with a round trip: a straight line of at most three round trips, without a stall."""

from __future__ import annotations

import socket
import statistics
from pathlib import Path

import pytest

from tests.e2e.conftest import assert_nothing_left
from tests.support.delay_proxy import DelayProxy
from tests.support.light_client import Fleet
from tests.support.servers import free_port, one_process

pytestmark = pytest.mark.e2e

RTTS = (0.0, 0.05, 0.1, 0.2)
CALLS = 5


def test_connected_within_three_round_trips(tmp_path: Path) -> None:
    """From the POST to DTLS connected at the client; the POST itself has no delay here."""
    media = free_port(socket.SOCK_DGRAM)
    medians: dict[float, float] = {}
    listen = ("127.0.0.1", free_port(socket.SOCK_DGRAM))
    with (
        one_process(tmp_path, media=f"127.0.0.1:{media}", advertise=f"{listen[0]}:{listen[1]}") as gate,
        Fleet() as fleet,
    ):
        for rtt in RTTS:
            with DelayProxy(("127.0.0.1", media), rtt=rtt, listen=listen):
                taken = []
                for _ in range(CALLS):
                    # Chromium holds USE-CANDIDATE back that long on a slow path; nothing may wait for it.
                    call = fleet.call(gate.calls_url, nominate_after=1.2)
                    call.wait_for("connected", 10)
                    taken.append(call.since_post("connected"))
                    assert fleet.hang_up(call) == 200
                medians[rtt] = statistics.median(taken)
        assert_nothing_left(gate)
    base = medians[0.0]
    for rtt, median in medians.items():
        # 50 ms: what a loaded two-core machine adds to any one of them.
        assert median <= 3 * rtt + base + 0.05, f"{median:.3f} s over a round trip of {rtt} s; all: {medians}"
    # A straight line: each round trip costs as much as the next one.
    slopes = [(medians[rtt] - base) / rtt for rtt in RTTS[1:]]
    assert max(slopes) - min(slopes) < 1.0, f"round trips to connected are {slopes}; all: {medians}"


def test_connects_over_a_lossy_path(tmp_path: Path) -> None:
    """A tenth of all packets lost, some twice, some late: every call comes up."""
    media = free_port(socket.SOCK_DGRAM)
    listen = ("127.0.0.1", free_port(socket.SOCK_DGRAM))
    with (
        one_process(tmp_path, media=f"127.0.0.1:{media}", advertise=f"{listen[0]}:{listen[1]}") as gate,
        DelayProxy(("127.0.0.1", media), 0.04, loss=0.1, duplicate=0.05, reorder=0.1, listen=listen) as proxy,
        Fleet() as fleet,
    ):
        calls = [fleet.call(gate.calls_url) for _ in range(12)]
        for call in calls:
            call.wait_for("connected", 15)
        for call in calls:
            assert fleet.hang_up(call) == 200
        assert_nothing_left(gate)
    assert any(packet.lost for packet in proxy.trace), "the path was not lossy"
