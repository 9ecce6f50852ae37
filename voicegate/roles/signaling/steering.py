"""Where a call is to enter, and which cluster's transceivers are to take it. Pure: records in, routes out.

An *ingress* is a set of public addresses with the relays that share them; a *cluster* is where transceivers
are. A call goes from the client over the public network to an ingress, and from there over the network
between our machines to a cluster, so a *route* is a pair of the two. It costs

    public kilometres x 2.1 + kilometres between ingress and cluster x 1.3      as milliseconds of fibre
    + the ingress's load x 5 ms + the cluster's load x 5 ms
    + 1 ms where the ingress's relay has to pass it on to a relay of the cluster

**Kilometres** are along the great circle. In fibre a round trip takes 1 ms for each 100 km. The factors are
from Bozkurt et al., "Dissecting Latency in the Internet's Fiber Infrastructure" (2018): 2.1 is the usual
detour of the public Internet, 1.3 that of the shortest path through the conduits which are there. As a public
kilometre costs more, a client enters near to itself and not near to the cluster; as it is the whole way that
counts, not where that is a detour. A second relay is avoided where that costs less than 1 ms.

**Load** is a fraction from 0 to 1, so it decides between places that are about as near: an idle one is
preferred to a full one that is up to 240 km (public) or 385 km (internal) nearer. It is what was last
announced, and every signaling process goes by the same number; a relay that gets all calls of a second for
that is in no danger, for it holds a hundred thousand flows.

**A place that is not known** counts as 10,000 km away in our own cluster, which is how far two places on
Earth are from each other on average, and as 20,000 km, the farthest, in another. So a client of whom nothing
is known is served by our own cluster, and one that is known is sent to places that are known.

**Who is asked.** Relays that drain, have no address or nine tenths of their flows are no ingress. A cluster
is as near to an ingress as its nearest relay, draining or not: its relays stand where it does. A cluster
without a relay of its own cannot be reached from another's ingress. For each cluster that takes calls the
best ingress is sought, and the clusters are tried in order of cost, those that look full last: a transceiver
knows better.

**Anycast.** Relays in several places may share their addresses; the client comes in at the nearest of them.
With `signaling.advertise` the addresses are given and all that is chosen is the cluster; as nothing is known
of those addresses, the client is taken to come in where it is.
"""

from __future__ import annotations

import math
from collections import defaultdict
from collections.abc import Collection, Iterable, Mapping, Sequence
from dataclasses import dataclass
from functools import lru_cache
from typing import NamedTuple, Protocol

from voicegate.roles.signaling.core import Placeable

FIBRE_MS = 0.01
"""Round trip per kilometre: light makes 200,000 km/s in glass."""
PUBLIC_MS = 2.1 * FIBRE_MS
INTERNAL_MS = 1.3 * FIBRE_MS
LOAD_MS = 5.0
"""What a full ingress or cluster costs over an idle one: less than a listener notices, more than the way
between data centres of a region."""
HOP_MS = 1.0
"""What the second relay costs; a tie-breaker, for it adds much less than that."""
FULL = 0.9
"""The load above which an ingress gets no calls: a call may need flows for several addresses of its client,
and what was announced is old."""
SOMEWHERE_KM = 10_000.0
FAR_KM = 20_000.0
ADVERTISED = "signaling.advertise"
"""The name of the ingress that the configuration gives."""

_EARTH_KM = 6371.0


class Steerable(Protocol):
    """What steering needs to know of a relay (`voicegate.net.registry.RelayRecord` has it)."""

    @property
    def cluster(self) -> int: ...
    @property
    def ingress(self) -> str: ...
    @property
    def addresses(self) -> tuple[str, ...]: ...
    @property
    def location(self) -> tuple[float, float] | None: ...
    @property
    def flows(self) -> int: ...
    @property
    def capacity(self) -> int: ...
    @property
    def draining(self) -> bool: ...


class Place(NamedTuple):
    """Degrees; made by `place_of`, so always on Earth."""

    latitude: float
    longitude: float


@dataclass(frozen=True, slots=True)
class Ingress:
    """Public addresses in the order of the answer, and where they are; `clusters`: of the relays behind."""

    name: str
    addresses: tuple[str, ...]
    clusters: frozenset[int]
    places: tuple[Place, ...]
    load: float = 0.0


class Route(NamedTuple):
    """A cluster to ask for the call, and by which ingress the client is to reach it; `cost` in
    milliseconds."""

    ingress: Ingress
    cluster: int
    cost: float


def find_routes(
    client: Place | None,
    own: int,
    clusters: Mapping[int, Collection[Placeable]],
    relays: Collection[Steerable],
    advertise: Sequence[str] = (),
) -> list[Route]:
    """The routes of a call, the best first, at most one for each cluster.

    `own` is our own cluster, `clusters` those that may take the call with their transceivers, `relays` all
    relays of all clusters, `advertise` the addresses to use instead of an ingress from among them.
    """
    if advertise:
        known = () if client is None else (client,)
        ingresses = [Ingress(ADVERTISED, tuple(map(_plain, advertise)), frozenset(), known)]
        reached = frozenset(clusters)
    else:
        ingresses = open_ingresses(relays)
        reached = frozenset(relay.cluster for relay in relays if not relay.draining)
    entries = [(ingress, *_enter(client, ingress, own)) for ingress in ingresses]
    found = []
    for number, transceivers in clusters.items():
        takers = [record for record in transceivers if not record.draining]
        if not takers or number not in reached or not entries:
            continue
        places = _places(relay for relay in relays if relay.cluster == number)
        cost, _, _, best = min(
            (ms + _inner_ms(entry, places, number, ingress, own), ingress.name, ingress.addresses, ingress)
            for ingress, ms, entry in entries
        )
        load = _load(sum(record.calls for record in takers), sum(record.capacity for record in takers))
        full = all(record.calls >= record.capacity for record in takers)
        found.append((full, Route(best, number, cost + load * LOAD_MS)))
    found.sort(key=lambda entry: (entry[0], entry[1].cost, entry[1].cluster != own, entry[1].cluster))
    return [route for _, route in found]


def open_ingresses(relays: Iterable[Steerable]) -> list[Ingress]:
    """Those that new calls may be sent to. Relays of one name but different addresses are two ingresses, so
    that a client is never given addresses of relays that it was not steered to."""
    groups: dict[tuple[str, tuple[str, ...]], list[Steerable]] = defaultdict(list)
    for relay in relays:
        if relay.addresses and not relay.draining:
            # UDP first: TCP is for those whom UDP does not reach.
            ordered = sorted(map(_plain, relay.addresses), key=lambda address: address.endswith("/tcp"))
            groups[relay.ingress, tuple(ordered)].append(relay)
    ingresses = []
    for (name, addresses), members in groups.items():
        load = _load(sum(member.flows for member in members), sum(member.capacity for member in members))
        if load < FULL:
            clusters = frozenset(member.cluster for member in members)
            ingresses.append(Ingress(name, addresses, clusters, _places(members), load))
    return ingresses


def place_of(latitude: float, longitude: float) -> Place | None:
    """None for what is no place on Earth."""
    if -90.0 <= latitude <= 90.0 and -180.0 <= longitude <= 180.0:  # false for a nan
        return Place(latitude, longitude)
    return None


def kilometres(one: Place, other: Place) -> float:
    """Along the great circle (haversine formula), 0 to 20,015."""
    one_latitude, other_latitude = math.radians(one.latitude), math.radians(other.latitude)
    half_longitude = math.radians(other.longitude - one.longitude) / 2
    chord = (
        math.sin((other_latitude - one_latitude) / 2) ** 2
        + math.cos(one_latitude) * math.cos(other_latitude) * math.sin(half_longitude) ** 2
    )
    return 2 * _EARTH_KM * math.asin(min(1.0, math.sqrt(chord)))


def _enter(client: Place | None, ingress: Ingress, own: int) -> tuple[float, Place | None]:
    """What the way to the ingress costs, and at which of its places the client comes in."""
    busy = ingress.load * LOAD_MS
    if client is None or not ingress.places:
        unknown = _unknown_km(own in ingress.clusters) * PUBLIC_MS
        return unknown + busy, next(iter(ingress.places), None)
    distance, entry = min((kilometres(client, place), place) for place in ingress.places)
    return distance * PUBLIC_MS + busy, entry


def _inner_ms(
    entry: Place | None, places: tuple[Place, ...], cluster: int, ingress: Ingress, own: int
) -> float:
    """What the way from an ingress to a cluster with relays at these places costs."""
    direct = cluster in ingress.clusters
    hop = 0.0 if direct else HOP_MS
    if entry is not None and places:
        return _nearest_km(entry, places) * INTERNAL_MS + hop
    return 0.0 if direct else _unknown_km(cluster == own) * INTERNAL_MS + hop


@lru_cache(maxsize=4096)  # the ways between our own places come again with every call
def _nearest_km(place: Place, places: tuple[Place, ...]) -> float:
    return min(kilometres(place, other) for other in places)


def _unknown_km(ours: bool) -> float:
    return SOMEWHERE_KM if ours else FAR_KM


def _places(relays: Iterable[Steerable]) -> tuple[Place, ...]:
    places = {place_of(*relay.location) for relay in relays if relay.location is not None}
    return tuple(sorted(place for place in places if place is not None))


def _load(used: int, capacity: int) -> float:
    """0 to 1; 0 where the capacity is not known, as in a static table."""
    return min(max(used / capacity, 0.0), 1.0) if capacity > 0 else 0.0


def _plain(address: str) -> str:
    """As candidates are written: UDP without a word."""
    return address.removesuffix("/udp")
