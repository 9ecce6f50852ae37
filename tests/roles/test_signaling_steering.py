"""The rule of steering: distances, loads, what is never chosen, and the order of what is tried."""

from __future__ import annotations

import itertools
import math
import random
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from voicegate.net.registry import RelayRecord, TransceiverRecord
from voicegate.roles.signaling.steering import (
    ADVERTISED,
    FULL,
    LOAD_MS,
    PUBLIC_MS,
    Place,
    Route,
    find_routes,
    kilometres,
    open_ingresses,
    place_of,
)

AMSTERDAM, FRANKFURT, PARIS = Place(52.37, 4.90), Place(50.11, 8.68), Place(48.86, 2.35)
ASHBURN, SYDNEY, TOKYO = Place(39.04, -77.49), Place(-33.87, 151.21), Place(35.68, 139.69)
AUCKLAND = Place(-36.85, 174.76)

ids = itertools.count(1)


def relay(ingress: str, location: tuple[float, float] | None, cluster: int = 1, **more: Any) -> RelayRecord:
    values: dict[str, Any] = {
        "addresses": (f"{ingress}:3478",),
        "links": ("127.0.0.1:1",),
        "capacity": 1000,
        **more,
    }
    return RelayRecord(id=next(ids), cluster=cluster, ingress=ingress, boot="b", location=location, **values)


def transceiver(cluster: int = 1, calls: int = 0, **more: Any) -> TransceiverRecord:
    values = {"capacity": 10, **more}
    return TransceiverRecord(
        id=next(ids), cluster=cluster, link="", control="", boot="", calls=calls, **values
    )


def routes(
    client: Place | None, *records: RelayRecord | TransceiverRecord, own: int = 1, **more: Any
) -> list[tuple[str, int]]:
    """Ingress and cluster of each, the best first."""
    return [(route.ingress.name, route.cluster) for route in found(client, *records, own=own, **more)]


def found(
    client: Place | None, *records: RelayRecord | TransceiverRecord, own: int = 1, **more: Any
) -> list[Route]:
    clusters: dict[int, list[TransceiverRecord]] = {}
    for record in records:
        if isinstance(record, TransceiverRecord):
            clusters.setdefault(record.cluster, []).append(record)
    relays = [record for record in records if isinstance(record, RelayRecord)]
    return find_routes(client, own, clusters, relays, **more)


@pytest.mark.parametrize(
    ("one", "other", "distance"),
    [
        (AMSTERDAM, AMSTERDAM, 0),
        (AMSTERDAM, FRANKFURT, 364),
        (FRANKFURT, ASHBURN, 6550),
        (SYDNEY, TOKYO, 7820),
        (Place(90, 0), Place(-90, 123), 20015),
        (Place(0, 180), Place(0, -180), 0),
        (Place(0, 179.5), Place(0, -179.5), 111),
    ],
)
def test_great_circles(one: Place, other: Place, distance: float) -> None:
    assert kilometres(one, other) == pytest.approx(distance, abs=15)
    assert kilometres(other, one) == kilometres(one, other)


@given(st.floats(), st.floats(), st.floats(), st.floats())
def test_any_floats_are_a_place_or_none_and_have_a_distance(a: float, b: float, c: float, d: float) -> None:
    one, other = place_of(a, b), place_of(c, d)
    assert (one is None) == (not (abs(a) <= 90 and abs(b) <= 180))
    if one is not None and other is not None:
        assert 0 <= kilometres(one, other) <= 20_016


def test_the_nearest_ingress_and_its_cluster() -> None:
    fleet = (
        relay("ams", AMSTERDAM), relay("iad", ASHBURN, 2), relay("syd", SYDNEY, 3),
        transceiver(1), transceiver(2), transceiver(3),
    )  # fmt: skip
    assert routes(PARIS, *fleet)[0] == ("ams", 1)
    assert routes(ASHBURN, *fleet)[0] == ("iad", 2)
    assert routes(TOKYO, *fleet)[0] == ("syd", 3)


def test_a_client_enters_near_to_itself_and_not_near_to_the_cluster() -> None:
    fleet = (relay("syd", SYDNEY, 3), relay("iad", ASHBURN, 2), relay("ams", AMSTERDAM), transceiver(1))
    assert routes(SYDNEY, *fleet) == [("syd", 1)]
    assert routes(ASHBURN, *fleet) == [("iad", 1)]
    assert routes(AUCKLAND, *fleet) == [("syd", 1)]
    # Not by a detour: Sydney is 1,500 km nearer to Tokyo, but then it is 16,600 km to Amsterdam.
    assert kilometres(TOKYO, SYDNEY) < kilometres(TOKYO, AMSTERDAM) - 1400
    assert routes(TOKYO, *fleet) == [("ams", 1)]
    # Unless the way there is about as short.
    near = (relay("ams", AMSTERDAM), relay("fra", FRANKFURT, 2), transceiver(1))
    between = Place(51.1, 7.1)
    assert 150 < kilometres(between, FRANKFURT) < kilometres(between, AMSTERDAM) < 250
    assert routes(between, *near) == [("ams", 1)]
    assert routes(FRANKFURT, *near) == [("fra", 1)]


def test_load_decides_between_places_that_are_about_as_near() -> None:
    reach = LOAD_MS / PUBLIC_MS
    assert 200 < reach < 300
    busy = relay("ams", AMSTERDAM, flows=800)
    idle = relay("fra", FRANKFURT, flows=0)
    between = Place(51.3, 6.7)  # 172 km from the one, 192 km from the other
    assert routes(between, busy, idle, transceiver())[0][0] == "fra"
    assert routes(AMSTERDAM, busy, idle, transceiver())[0][0] == "ams", "364 km are more than load outweighs"
    clusters = (relay("a", AMSTERDAM, 1), relay("b", AMSTERDAM, 2))
    assert routes(PARIS, *clusters, transceiver(1, calls=8), transceiver(2, calls=2))[0] == ("b", 2)


@pytest.mark.parametrize(
    "bad", [{"draining": True}, {"flows": 900}, {"addresses": ()}], ids=["draining", "full", "no address"]
)
def test_what_is_no_ingress(bad: dict[str, Any]) -> None:
    assert routes(AMSTERDAM, relay("ams", AMSTERDAM, **bad), relay("iad", ASHBURN), transceiver()) == [
        ("iad", 1)
    ]
    assert routes(AMSTERDAM, relay("ams", AMSTERDAM, **bad), transceiver()) == []


def test_relays_that_share_their_addresses_are_one_ingress() -> None:
    shared = {"addresses": ("192.0.2.1:443/tcp", "192.0.2.1:3478/udp", "[2001:db8::1]:3478")}
    (one,) = open_ingresses(
        [relay("ams", AMSTERDAM, flows=1000, **shared), relay("ams", None, 2, flows=200, **shared),
         relay("ams", AMSTERDAM, draining=True, flows=1000, **shared)]
    )  # fmt: skip
    assert one.addresses == ("192.0.2.1:3478", "[2001:db8::1]:3478", "192.0.2.1:443/tcp"), "UDP first"
    assert (one.load, one.clusters, one.places) == (0.6, {1, 2}, (AMSTERDAM,))
    assert len(open_ingresses([relay("ams", AMSTERDAM), relay("ams", AMSTERDAM, addresses=("a:1",))])) == 2


def test_anycast_is_entered_at_the_nearest_place() -> None:
    shared = {"addresses": ("192.0.2.1:3478",)}
    relays = (relay("any", AMSTERDAM, 1, **shared), relay("any", SYDNEY, 2, **shared))
    fleet = (*relays, transceiver(1), transceiver(2))
    assert routes(PARIS, *fleet) == [("any", 1), ("any", 2)]
    assert routes(TOKYO, *fleet) == [("any", 2), ("any", 1)]


def test_a_client_nobody_knows_gets_our_own_cluster_and_its_least_loaded_ingress() -> None:
    fleet = (
        relay("ams", AMSTERDAM, flows=500), relay("fra", FRANKFURT, flows=100), relay("iad", ASHBURN, 2),
        transceiver(1), transceiver(2),
    )  # fmt: skip
    assert routes(None, *fleet)[0] == ("fra", 1)
    assert routes(None, *fleet, own=2)[0] == ("iad", 2)
    nowhere = (relay("a", None), relay("b", None, 2), transceiver(1, calls=9), transceiver(2))
    assert routes(SYDNEY, *nowhere)[0] == ("a", 1)
    assert routes(SYDNEY, *nowhere, relay("syd", SYDNEY, 2))[0] == ("syd", 2), "known places go before"


def test_a_full_cluster_is_tried_last_and_a_draining_one_never() -> None:
    fleet = (relay("ams", AMSTERDAM, 1), relay("iad", ASHBURN, 2), relay("syd", SYDNEY, 3))
    full = [transceiver(1, calls=10), transceiver(2), transceiver(3, draining=True)]
    assert routes(AMSTERDAM, *fleet, *full) == [("ams", 2), ("ams", 1)]
    assert routes(AMSTERDAM, *fleet, transceiver(1, draining=True)) == []


def test_a_cluster_is_reached_by_an_ingress_of_its_own_or_through_a_relay_of_its_own() -> None:
    ours = (relay("ams", AMSTERDAM), transceiver(1, calls=10), transceiver(2))
    assert routes(AMSTERDAM, *ours) == [("ams", 1)], "nobody there could pass a packet on"
    link_only = relay("inside", None, 2, addresses=())
    assert routes(AMSTERDAM, *ours, link_only) == [("ams", 2), ("ams", 1)]
    assert routes(AMSTERDAM, relay("ams", AMSTERDAM, 2), transceiver(1)) == []


def test_advertised_addresses_are_used_as_they_are() -> None:
    given_ = ("203.0.113.1:443/tcp", "203.0.113.1:3478")
    fleet = (relay("ams", AMSTERDAM, 1), relay("syd", SYDNEY, 2), transceiver(1), transceiver(2))
    for client, best in ((PARIS, 1), (TOKYO, 2), (None, 1)):
        first = found(client, *fleet, advertise=given_)[0]
        assert (first.ingress.name, first.ingress.addresses, first.cluster) == (ADVERTISED, given_, best)
    assert routes(PARIS, transceiver(1), advertise=given_) == [(ADVERTISED, 1)], "no relay need be known"


PLACES = st.builds(Place, st.floats(-90, 90), st.floats(-180, 180))
ANY_LOCATION = st.none() | st.tuples(st.floats(), st.floats())
RELAYS = st.builds(
    relay,
    st.sampled_from("abcdef"),
    ANY_LOCATION,
    st.integers(1, 3),
    flows=st.integers(0, 1200),
    capacity=st.sampled_from([0, 1, 1000]),
    draining=st.booleans(),
    addresses=st.sampled_from([(), ("192.0.2.1:1",), ("192.0.2.1:2/tcp", "192.0.2.1:2")]),
)
TRANSCEIVERS = st.builds(
    transceiver, st.integers(1, 3), st.integers(0, 12), capacity=st.integers(0, 10), draining=st.booleans()
)


@given(
    st.none() | PLACES,
    st.lists(RELAYS, max_size=8),
    st.lists(TRANSCEIVERS, max_size=6),
    st.randoms(use_true_random=False),
)
def test_whatever_is_registered(
    client: Place | None,
    relays: list[RelayRecord],
    transceivers: list[TransceiverRecord],
    mixer: random.Random,
) -> None:
    """Nothing raises, the order of the records changes nothing, and what must not be chosen is not."""
    result = found(client, *relays, *transceivers)
    mixed = [*relays, *transceivers]
    mixer.shuffle(mixed)
    assert [route[1:] for route in found(client, *mixed)] == [route[1:] for route in result]
    assert [route.ingress for route in found(client, *mixed)] == [route.ingress for route in result]
    assert len({route.cluster for route in result}) == len(result)
    for route in result:
        assert math.isfinite(route.cost) and route.cost >= 0
        behind = [
            record
            for record in relays
            if record.ingress == route.ingress.name
            and set(record.addresses) == set(route.ingress.addresses)
            and not record.draining
        ]
        assert route.ingress.addresses and behind
        assert route.ingress.load < FULL
        assert any(r.cluster == route.cluster and not r.draining for r in transceivers)
        assert any(r.cluster == route.cluster and not r.draining for r in relays)


@given(PLACES, st.lists(PLACES, min_size=1, max_size=6, unique=True), st.integers(0, 800))
def test_the_nearest_wins_when_loads_are_equal(client: Place, places: list[Place], flows: int) -> None:
    for cluster_of in (lambda i: 1, lambda i: i + 1):
        fleet = [relay(f"r{i}", place, cluster_of(i), flows=flows) for i, place in enumerate(places)]
        takers = [transceiver(number) for number in {record.cluster for record in fleet}]
        best = found(client, *fleet, *takers)[0].ingress.places[0]
        assert kilometres(client, best) <= min(kilometres(client, place) for place in places) + 1e-6
