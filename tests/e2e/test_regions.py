"""Two clusters and three ingress points, far from each other: who is sent where, and what if one dies."""

from __future__ import annotations

import sys
import time
from collections.abc import Iterator

import pytest

from tests.support import netns
from tests.support.gaps import longest_gap
from tests.support.light_client import Fleet
from tests.support.regions import PLACES, STRANGER, Regions, ingress_of, regions
from tests.support.servers import wait_until

pytestmark = [
    pytest.mark.e2e,
    pytest.mark.skipif(bool(netns.problem()), reason=netns.problem() or "namespaces can be made"),
]


ELSEWHERE_SECONDS = 8.0
"""Within which new calls go by another ingress than a dead one: its lease of 3 s, half of one in which it is
looked for again, and what the way to Redis and a busy machine take."""
NOISE = 0.05


@pytest.fixture(scope="module")
def world(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Regions]:
    with regions(tmp_path_factory.mktemp("regions")) as running:
        yield running


@pytest.fixture(scope="module")
def fleet(world: Regions) -> Iterator[Fleet]:
    with world.network.inside("client"), Fleet(seed=21) as running:
        yield running


@pytest.fixture(scope="module")
def offer(fleet: Fleet) -> str:
    call, used = fleet.prepare()
    used.close()
    return call.offer()


@pytest.mark.parametrize("region", list(PLACES))
def test_the_nearest_ingress_is_in_the_answer(world: Regions, offer: str, region: str) -> None:
    latitude, longitude = PLACES[region]
    nearby = (latitude - 2.0, longitude + 1.5)
    assert ingress_of(world.ask(offer, nearby)) == region


def test_a_stranger_who_names_a_place_is_not_believed(world: Regions, offer: str) -> None:
    unknown = ingress_of(world.ask(offer, None, STRANGER))
    assert {ingress_of(world.ask(offer, place, STRANGER)) for place in PLACES.values()} == {unknown}


@pytest.mark.parametrize(("region", "cluster"), [("frankfurt", 1), ("virginia", 2), ("singapore", 1)])
def test_a_call_talks_and_hears(world: Regions, fleet: Fleet, region: str, cluster: int) -> None:
    """From Singapore by two relays, and 80 ms each way between them."""
    call = world.call(fleet, PLACES[region], f"talk_{region}")
    assert call.remote is not None and call.answer is not None
    assert (
        ingress_of("".join(f"a=candidate:1 1 udp 1 {h} {p}\n" for h, p in call.answer.candidates)) == region
    )
    assert world.cluster_of(call) == cluster
    wait_until(lambda: len(call.arrivals) >= 50, 5, "a second of the agent's voice")
    assert call.tone(), "what it hears is not what the agent says"
    told = world.statistics(fleet, call)
    assert told["received"] >= 40 and told["lost"] == 0, told
    world.hang_up(fleet, call)


@pytest.mark.parametrize(("relay", "seconds"), [("relay_frankfurt", 1.0), ("relay_singapore", 1.5)])
def test_a_call_by_two_relays_outlives_either_of_them(
    world: Regions, fleet: Fleet, relay: str, seconds: float
) -> None:
    """The second relay is told of its flows by the transceiver. The first one has Redis, where a step takes
    160 ms here, also those of connecting: at the latest the client's next check heals it."""
    call = world.call(fleet, PLACES["singapore"], f"outlives_{relay}")
    start = time.monotonic()
    world.gate.servers[relay].kill()
    world.gate.servers[relay].start()
    time.sleep(seconds + 1.0)
    gap = longest_gap(call.arrivals, start, time.monotonic())
    sys.stdout.write(f"{relay} killed and started again: longest gap down {gap:.2f} s\n")
    assert gap <= seconds
    world.hang_up(fleet, call)


def test_new_calls_go_elsewhere_when_the_nearest_ingress_dies(
    world: Regions, fleet: Fleet, offer: str
) -> None:
    others = [world.call(fleet, PLACES[region], f"on_{region}") for region in ("frankfurt", "virginia")]
    start = time.monotonic()
    time.sleep(2)
    quiet = [longest_gap(call.arrivals, start, time.monotonic()) for call in others]
    killed = time.monotonic()
    world.gate.servers["relay_singapore"].kill()
    wait_until(
        lambda: ingress_of(world.ask(offer, PLACES["singapore"])) != "singapore",
        ELSEWHERE_SECONDS,
        "an answer with another ingress",
        every=0.2,
    )
    took = time.monotonic() - killed
    call = world.call(fleet, PLACES["singapore"], "instead")
    assert call.answer is not None
    sys.stdout.write(f"elsewhere ({call.answer.candidates}) after {took:.1f} s\n")
    end = time.monotonic()
    for other, before in zip(others, quiet, strict=True):
        assert not other.closed
        assert longest_gap(other.arrivals, killed, end) <= before + NOISE
    for up in [*others, call]:
        world.hang_up(fleet, up)
