"""A call that stalls, floods or is flooded costs its neighbours nothing: their packets stay on the grid."""

from __future__ import annotations

import json
import os
import random
import time
from collections.abc import Iterator

import numpy as np
import pytest

from bench.media import measures
from bench.media.calls import Calls, calls_up
from bench.media.contenders import Contender, Cpus, ahead, voicegate
from tests.e2e.conftest import on_a_quiet_moment
from tests.support.light_client import LightCall, request
from voicegate.load.talk import make_talk, synthetic_speech
from voicegate.proto.rtp import build_rtp

pytestmark = [
    pytest.mark.e2e,
    pytest.mark.skipif(len(os.sched_getaffinity(0)) < 2, reason="the transceiver needs a CPU for itself"),
]

NEIGHBOURS = 10
SECONDS = 2.0
OFF_THE_GRID = 0.005
"""p99, seconds."""
OUR_SHARE = 1.5
"""A machine that is uneven by itself may be more so by this much: then it is not the call's doing."""
FLOOD_RATE = 2000
"""Packets a second."""


@pytest.fixture(scope="module")
def gate(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Contender]:
    directory = tmp_path_factory.mktemp("neighbours")
    with ahead(), voicegate(directory, Cpus.of_machine(), agent_stall_seconds="5") as running:
        assert running.agent is not None
        running.agent.command(behave="echo", ahead=0.2)
        yield running


@pytest.fixture(scope="module")
def calls(gate: Contender) -> Iterator[Calls]:
    """The neighbours, who talk and hear all the time."""
    with calls_up(gate, NEIGHBOURS, make_talk(synthetic_speech(), pause=0.0).frames) as up:
        yield up


def test_an_agent_that_reads_and_says_nothing_any_more(gate: Contender, calls: Calls) -> None:
    def judge() -> None:
        before = _off_the_grid(calls)
        _behave(gate, behave="stuck")
        bad = _bad_call(gate, calls)
        _assert_unharmed(calls, before)
        calls.fleet.close(bad)

    on_a_quiet_moment(judge)


@pytest.mark.parametrize("kind", ["speech", "garbage", "authentic nonsense"])
def test_a_client_that_floods(gate: Contender, calls: Calls, kind: str) -> None:
    """The call goes on; what it floods is dropped and counted."""

    def judge() -> None:
        before = _off_the_grid(calls)
        _behave(gate, behave="listen")
        bad = _bad_call(gate, calls)
        heard = _received(calls, bad)
        source = random.Random(3)
        begun = time.monotonic()
        sent = 0
        while (elapsed := time.monotonic() - begun) < SECONDS:
            wanted = round(elapsed * FLOOD_RATE) - sent
            if wanted > 0:
                _flood(calls, bad, kind, sent, wanted, source)
                sent += wanted
            time.sleep(0.01)
        assert sent > 0.8 * FLOOD_RATE * SECONDS
        assert _deviation(calls, begun) <= max(OFF_THE_GRID, OUR_SHARE * before)
        time.sleep(0.3)
        assert not bad.closed, bad.closed
        bad.speak = True
        time.sleep(0.5)
        assert _received(calls, bad) > heard, "nothing of it is heard any more"
        assert calls.fleet.hang_up(bad) == 200
        calls.fleet.close(bad)

    on_a_quiet_moment(judge)


def test_an_agent_that_says_ten_minutes_at_once(gate: Contender, calls: Calls) -> None:
    def judge() -> None:
        before = _off_the_grid(calls)
        _behave(gate, behave="flood", seconds=600)
        bad = _bad_call(gate, calls)
        _assert_unharmed(calls, before)
        assert bad.heard, "nothing of the ten minutes was played"
        calls.fleet.close(bad)

    on_a_quiet_moment(judge)


def _behave(gate: Contender, **how: object) -> None:
    """How the agent behaves to the call that makes trouble."""
    assert gate.agent is not None
    gate.agent.command(only="bad", **how)


def _bad_call(gate: Contender, calls: Calls) -> LightCall:
    call = calls.fleet.call(f"{gate.url}?model=bad")
    call.wait_for("connected", 10)
    call.speak = False
    return call


def _off_the_grid(calls: Calls) -> float:
    """p99 of the neighbours' packets over the next SECONDS."""
    begun = time.monotonic()
    time.sleep(SECONDS)
    return _deviation(calls, begun)


def _assert_unharmed(calls: Calls, before: float) -> None:
    assert _off_the_grid(calls) <= max(OFF_THE_GRID, OUR_SHARE * before)


def _deviation(calls: Calls, begun: float) -> float:
    neighbours = list(calls.by_name.values())
    assert not any(call.closed for call in neighbours)
    ended = time.monotonic()
    found = [measures.deviations(list(call.heard), begun, ended) for call in neighbours]
    assert min(map(len, found)) > 45 * (ended - begun), "a neighbour hears nothing"
    return float(np.percentile(np.concatenate(found), 99))


def _received(calls: Calls, call: LightCall) -> int:
    status = request("GET", calls.fleet.locations[id(call)])
    assert status.status == 200
    played: int = json.loads(status.body)["statistics"]["audio"]["receive"]["played"]
    return played


def _flood(calls: Calls, call: LightCall, kind: str, first: int, count: int, source: random.Random) -> None:
    if kind == "garbage":
        calls.fleet.send_raw(call, *(b"\x80\x6f" + source.randbytes(100) for _ in range(count)))
        return
    payload = make_talk(synthetic_speech(0.02), pause=0.0).frames[0]
    packets = []
    for number in range(first, first + count):
        if kind == "speech":
            packets.append(build_rtp(111, False, number & 0x7FFF, number * 960, call.ssrc ^ 1, payload))
        else:
            packets.append(_nonsense(number, call.ssrc, source))
    calls.fleet.send_rtp(call, *packets)


def _nonsense(number: int, ssrc: int, source: random.Random) -> bytes:
    """A packet of a client that has the keys and no manners."""
    sequence = number & 0x7FFF
    lies = (
        # Opus garbage, 0 to 1,276 bytes; every table of contents: stereo, 120 ms, anything.
        build_rtp(111, False, sequence, number * 960, ssrc ^ 2, source.randbytes(source.randrange(1277))),
        # A payload type that nobody agreed on.
        build_rtp(source.randrange(96, 127), True, sequence, number * 960, ssrc ^ 2, b"\xf8\xff\xfe"),
        # A source of its own for every packet.
        build_rtp(111, False, sequence, number, source.getrandbits(32), b"\xf8\xff\xfe"),
        # Time out of nowhere; numbers that leap and wrap.
        build_rtp(111, False, sequence, source.getrandbits(32), ssrc ^ 2, b"\xf8\xff\xfe"),
        build_rtp(111, False, number * 3001 & 0xFFFF, number * 960, ssrc ^ 3, b"\xf8\xff\xfe"),
        # Padding (RFC 3550 section 5.1) that is longer than the packet; an extension whose element (RFC 8285
        # section 4.2) goes past its block. What lies about the block itself libsrtp does not even protect.
        b"\xa0" + build_rtp(111, False, sequence, number * 960, ssrc ^ 2, b"abc\xff")[1:],
        b"\x90" + build_rtp(111, False, sequence, number * 960, ssrc ^ 2, b"\xbe\xde\0\1\x1f\0\0\0\xf8")[1:],
        # Reports whose length or count is not theirs (RFC 3550 section 6.4), about whom nobody knows.
        b"\x9f\xc8\x00\x06" + ssrc.to_bytes(4, "big") + source.randbytes(20),
        b"\x81\xc9\x00\x07" + source.randbytes(28),
    )
    return lies[number % len(lies)]
