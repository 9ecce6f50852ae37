"""Attacks on the relay beside live calls: a stolen source address, and a flood of junk."""

from __future__ import annotations

import os
import random
import socket
import sys
import time
from collections import deque
from collections.abc import Callable, Iterator

import pytest

from tests.support.flood import Flood
from tests.support.gaps import Callers, Counts, PlainCall, count, longest_gap, plain_calls
from tests.support.light_client import Fleet, LightCall
from tests.support.servers import Gate, cluster
from tests.support.spoof import Spoofer, may_spoof
from tests.support.talking_agent import TalkingAgent
from voicegate.proto import stun
from voicegate.proto.address import split_host_port

pytestmark = pytest.mark.e2e

HIJACK_SECONDS = float(os.environ.get("VOICEGATE_TEST_HIJACK_SECONDS", "6"))
FLOOD_SECONDS = float(os.environ.get("VOICEGATE_TEST_FLOOD_SECONDS", "6"))
ATTACKS_PER_SECOND = 100
DELAY_ATTACKS = 10
"""By how many attacks a check that was seen is repeated later, so that it never overtakes the original."""
NOISE = 0.05
"""Seconds that the machine's other work may add to a gap over the one of a quiet time."""
CALLS = 50
JUNK_PER_SECOND = 50_000
MAX_LOSS = 0.005


@pytest.fixture(scope="module")
def agent() -> Iterator[TalkingAgent]:
    with TalkingAgent() as running:
        yield running


@pytest.fixture(scope="module")
def gate(tmp_path_factory: pytest.TempPathFactory, agent: TalkingAgent) -> Iterator[Gate]:
    with cluster(tmp_path_factory.mktemp("attacks"), agent_url=agent.url, relay_workers="2") as running:
        yield running


@pytest.mark.skipif(not may_spoof(), reason="a raw socket needs CAP_NET_RAW")
def test_a_stolen_source_address_takes_nothing_from_a_call(gate: Gate) -> None:
    """An attacker with a call of his own sends checks and media with the victim's address as their source,
    and repeats the victim's checks from his own."""
    relay = split_host_port(gate.media[0])
    with Fleet(seed=3) as fleet, Spoofer() as spoofer, _socket() as stranger:
        victim, attacker = plain_calls(fleet, gate.calls_url, 2, name="hijack")
        quiet_start = time.monotonic()
        time.sleep(HIJACK_SECONDS)
        quiet = longest_gap(victim.arrivals, quiet_start, time.monotonic())
        before, dropped = count(fleet, victim), gate.metrics("relay")

        start = time.monotonic()
        forged = _forgeries(victim, attacker)
        watched = deque([victim.last_check], maxlen=DELAY_ATTACKS)
        for number in range(round(HIJACK_SECONDS * ATTACKS_PER_SECOND)):
            time.sleep(max(0.0, start + number / ATTACKS_PER_SECOND - time.monotonic()))
            spoofer.send(forged[number % len(forged)](), victim.local, relay)
            stranger.sendto(watched[0], relay)
            watched.append(victim.last_check)
        end = time.monotonic()
        time.sleep(0.3)
        after = count(fleet, victim)

        gap = longest_gap(victim.arrivals, start, end)
        sys.stdout.write(
            f"victim's longest gap {gap * 1000:.0f} ms, before the attack {quiet * 1000:.0f} ms\n"
        )
        assert not victim.closed
        assert after.lost_down == before.lost_down
        assert after.lost_up == before.lost_up
        assert gap <= quiet + NOISE
        assert after.heard - before.heard >= 49 * HIJACK_SECONDS
        # Whatever of the victim's came to the attacker's call would not open with its keys.
        assert not [reason for reason in attacker.counts if reason.startswith("srtp")], attacker.counts
        with pytest.raises(BlockingIOError):
            stranger.recv(2048)
        refused = gate.metrics("relay").total("voicegate_relay_drops_total", reason="flow_in_use")
        refused -= dropped.total("voicegate_relay_drops_total", reason="flow_in_use")
        assert refused > 0, "the relay saw no check of another ticket from the victim's address"


def test_a_flood_of_junk_costs_the_calls_beside_it_next_to_nothing(gate: Gate) -> None:
    with Fleet(seed=4) as fleet, Callers(gate.calls_url, CALLS) as callers:
        own = plain_calls(fleet, gate.calls_url, 1, name="flood")[0]
        quiet = callers.count()
        time.sleep(FLOOD_SECONDS / 2)
        before = callers.count()
        with Flood(split_host_port(gate.media[0]), _junk(own), JUNK_PER_SECOND) as flood:
            time.sleep(FLOOD_SECONDS)
        time.sleep(0.3)
        after = callers.count()
    dropped = gate.metrics("relay").like("voicegate_relay_(drops|socket)")
    rate = flood.sent / flood.seconds
    up, down = _loss(before, after)
    base = _loss(quiet, before)
    sys.stdout.write(
        f"{rate:.0f} junk packets a second from {flood.sources} sources: lost {up:.3%} up, {down:.3%} down;"
        f" without them {base[0]:.3%} up, {base[1]:.3%} down; {dropped}\n"
    )
    assert flood.answers == 0, "something was sent back to a stranger"
    assert rate >= 0.8 * JUNK_PER_SECOND, f"this machine made only {rate:.0f} junk packets a second"
    assert up <= MAX_LOSS and down <= MAX_LOSS


def _forgeries(victim: PlainCall, attacker: PlainCall) -> list[Callable[[], bytes]]:
    """What is sent as if the victim had sent it."""
    source = random.Random(9)

    def own_check() -> bytes:
        return _check(attacker, source.randbytes(12))

    return [
        own_check,
        lambda: victim.last_check,
        lambda: attacker.last_check,
        lambda: victim.last_protected,
        lambda: b"\x80\x00" + source.randbytes(160),
        lambda: b"\x16\xfe\xfd" + source.randbytes(60),
        lambda: b"\x15\xfe\xfd\0\0\0\0\0\0\0\0\0\2\2\x28",
    ]


def _junk(own: LightCall) -> list[bytes]:
    """A batch of each kind: noise, what looks like RTP, STUN of no ticket, and STUN of a ticket that is good
    under a password that is not."""
    source = random.Random(8)
    assert own.answer is not None
    junk = []
    for _ in range(64):
        junk.append(source.randbytes(source.randrange(1, 400)))
        junk.append(b"\x80\x6f" + source.randbytes(170))
        ufrag = bytes(source.choice(b"abcdefghijklmnopqrstuvwxyzABCDEF0123456789+/") for _ in range(23))
        for name in (ufrag, own.answer.ufrag.encode()):
            username, password = name + b":abcd", source.randbytes(24)
            check = stun.binding_request(source.randbytes(12), username, password, priority=1, tie_breaker=2)
            junk.append(check)
    return junk


def _check(call: LightCall, transaction: bytes) -> bytes:
    """A connectivity check that is good in every respect."""
    assert call.answer is not None
    username = f"{call.answer.ufrag}:{call.ufrag}".encode()
    password = call.answer.password.encode()
    return stun.binding_request(
        transaction, username, password, priority=1, tie_breaker=1, use_candidate=True
    )


def _loss(before: dict[str, Counts], after: dict[str, Counts]) -> tuple[float, float]:
    """Shares of all packets between two counts that were lost: up, down."""
    sent = sum(after[call].sent - before[call].sent for call in after)
    heard = sum(after[call].heard - before[call].heard for call in after)
    up = sum(after[call].lost_up - before[call].lost_up for call in after)
    down = sum(after[call].lost_down - before[call].lost_down for call in after)
    return up / sent, down / (heard + down)


def _socket() -> socket.socket:
    made = socket.socket(socket.AF_INET, socket.SOCK_DGRAM)
    made.setblocking(False)
    made.bind(("127.0.0.1", 0))
    return made
