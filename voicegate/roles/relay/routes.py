"""Whom a relay sends to on the link: the transceivers of its cluster, and the relays of others. Pure.

Only who is in the registry, inside the allowed networks and of our link socket's address family gets a route.
The final check is on the parsed address in its one form, so that an IPv4-mapped spelling does not pass an
allow-list that the plain one would fail (coturn's CVE-2020-26262 and CVE-2026-27624).

Towards a relay there are two routes: one for packets of clients that came to us (they have passed one relay:
`hops` 1), and its `back` for packets to clients that came to it (`hops` 0, as from a transceiver). The
cluster of a ticket may have many relays and workers; a client's packets go to one of them, chosen by its
address.
"""

from __future__ import annotations

import ipaddress
from collections.abc import Callable, Iterable, Mapping
from typing import NamedTuple

from voicegate.proto.address import ClientAddress, join_host_port, pack_address, parse_ip, split_host_port
from voicegate.proto.keys import ClusterKeys
from voicegate.proto.link import CONTROL, LinkGuard

MAX_PEERS = 4096
"""Link sockets of other clusters' relays that are remembered, in use or not: many times what exists at
once."""


class Backend(NamedTuple):
    """What the relay needs to know of a transceiver's record."""

    cluster: int
    link: str
    boot: str


class Peer(NamedTuple):
    """One link socket of a relay of another cluster."""

    cluster: int
    link: str


class Route:
    """One destination of link datagrams. Flows share it, so they follow it when it moves."""

    __slots__ = (
        "address",
        "back",
        "boot",
        "cluster",
        "dead",
        "flows",
        "header",
        "ingress",
        "listed",
        "name",
        "peer_header",
        "receiver",
        "sender",
        "sink",
        "size",
        "spans",
    )

    def __init__(self, cluster: int) -> None:
        self.cluster = cluster
        self.address = ClientAddress(b"")
        """Its link socket."""
        self.name = b""
        """The same for the socket layer."""
        self.sender = ""
        """The same as it stands in the tags of what it sends."""
        self.receiver = ""
        """Its name in the tags of what it receives."""
        self.header = b""
        """The link header of this hour towards it."""
        self.peer_header = b""
        """The last link header from it that was found genuine in this hour, for frames to clients."""
        self.listed = True
        """False: gone from the registry. Its flows go on (a lease may be late), new ones are not made."""
        self.dead = False
        """Nobody is at its address (ICMP), and nothing came from it since."""
        self.flows = 0
        self.ingress = ""
        self.boot = 0
        """Of a relay: which public addresses it serves, and since when, as it said in its last hello."""
        self.back: Route | None = None
        """The way back, towards a relay; None: a transceiver."""
        self.sink = -1
        """Of a relay: the index of its `back` among the data plane's ways out."""
        self.size = 0
        self.spans: list[int] = []
        """The datagram that the data plane is gathering."""


class RouteTable:
    """Every transceiver and relay that may be sent to."""

    def __init__(
        self,
        keys: ClusterKeys,
        *,
        cluster: int,
        link: str,
        allowed_networks: Iterable[str],
        name_of: Callable[[str, int], bytes],
        hour: int,
        first_sink: int = 1,
    ) -> None:
        """`link`: our link socket as `ip:port`; `name_of`: host and port for the socket layer; `hour`:
        calendar seconds // 3600; `first_sink`: see `Route.sink`."""
        self.by_address: dict[bytes, Route] = {}
        """Who may speak on the link."""
        self.refused: dict[int, str] = {}
        """Transceivers of the registry that are never sent to, and why (a drop reason)."""
        self.backs: list[Route] = []
        """The ways back to relays, by sink less `first_sink`."""
        self._transceivers: dict[int, tuple[Backend, Route]] = {}
        self._peers: dict[str, Route] = {}
        self._peers_of: dict[int, list[Route]] = {}
        self._keys = keys
        self._keys_version = keys.version
        self._cluster = cluster
        self._link = link
        self._is_ipv6 = parse_ip(split_host_port(link)[0]).version == 6
        self._networks = tuple(ipaddress.ip_network(text) for text in allowed_networks)
        self._name_of = name_of
        self._hour = hour
        self._first_sink = first_sink
        self._guard = LinkGuard(keys.link, link)

    def get(self, transceiver: int) -> Route | None:
        """The route by which new flows of this transceiver may be made."""
        known = self._transceivers.get(transceiver)
        return known[1] if known is not None and known[1].listed else None

    def towards(self, cluster: int, client: ClientAddress) -> Route | None:
        """The relay of another cluster that gets this client's packets; the same one for all of its packets
        as long as the relays are."""
        routes = self._peers_of.get(cluster)
        if not routes:
            return None
        living = [route for route in routes if not route.dead] or routes
        return living[hash(client) % len(living)]

    def neighbours(self) -> list[Route]:
        """Who is told of us: transceivers that can be given new flows, and other clusters' relays."""
        known = (*(route for _, route in self._transceivers.values()), *self._peers.values())
        return [route for route in known if route.listed]

    def sinks(self, ingress: str, *, before: int | None = None) -> set[int]:
        """The ways back to the relays of this ingress, or to those that started before this time."""
        return {
            route.sink
            for route in self._peers.values()
            if route.ingress == ingress and (before is None or route.boot < before)
        }

    def update(self, backends: Mapping[int, Backend], peers: Iterable[Peer] = ()) -> None:
        """Take over a snapshot of the registry. What did not change costs a comparison."""
        for id in self._transceivers.keys() - backends.keys():
            self._transceivers[id][1].listed = False
        self.refused = {id: reason for id, reason in self.refused.items() if id in backends}
        for id, backend in backends.items():
            known = self._transceivers.get(id)
            if known is not None and known[0] == backend:
                known[1].listed = True
                continue
            address = self._resolve(backend)
            if isinstance(address, str):
                self.refused[id] = address
                if known is not None:
                    known[1].listed = False
                continue
            self.refused.pop(id, None)
            route = known[1] if known is not None else Route(self._cluster)
            self._transceivers[id] = (backend, route)
            self._move(route, f"{backend.link}#{backend.boot}", address)
        self._update_peers(peers)

    def begin_hour(self, hour: int) -> None:
        """Write the link headers anew when the hour is another one, or the keys are; a few microseconds per
        route."""
        if hour == self._hour and self._keys.version == self._keys_version:
            return
        self._hour = hour
        self._keys_version = self._keys.version
        for route in (*(route for _, route in self._transceivers.values()), *self._peers.values()):
            self._write_header(route)

    def genuine(self, route: Route, header: bytes) -> bool:
        """Whether a datagram that came from this route's address begins with a genuine link header. Of which
        version and hops is in its first byte."""
        return self._guard.accepts(route.sender, header, self._hour)

    def control_header(self, route: Route) -> bytes:
        """The header of a datagram that is for the transceiver itself."""
        return self._keys.link_header(self._link, route.receiver, self._hour, version=CONTROL)

    def forget_unused(self) -> None:
        """Drop routes that are neither in the registry nor used by a flow."""
        unused = [id for id, (_, route) in self._transceivers.items() if not route.listed and not route.flows]
        for id in unused:
            _, route = self._transceivers.pop(id)
            if self.by_address.get(route.address) is route:
                del self.by_address[route.address]

    def listed(self) -> int:
        """How many transceivers can be given new flows."""
        return sum(route.listed for _, route in self._transceivers.values())

    def _update_peers(self, peers: Iterable[Peer]) -> None:
        for route in self._peers.values():
            route.listed = False
        for peer in peers:
            known = self._peers.get(peer.link)
            if known is None and len(self.backs) < MAX_PEERS and peer.cluster != self._cluster:
                address = self._allowed(peer.link)
                if isinstance(address, str):
                    continue
                known = self._peers[peer.link] = Route(peer.cluster)
                known.sink = self._first_sink + len(self.backs)
                known.back = Route(peer.cluster)
                self.backs.append(known.back)
                self._move(known, peer.link, address)
            if known is not None:
                known.cluster = peer.cluster
                known.listed = True
        self._peers_of = {}
        for route in self._peers.values():
            if route.listed:
                self._peers_of.setdefault(route.cluster, []).append(route)

    def _resolve(self, backend: Backend) -> tuple[str, int] | str:
        """The link address, or the drop reason why it is not used."""
        return self._allowed(backend.link) if backend.cluster == self._cluster else "transceiver_cluster"

    def _allowed(self, link: str) -> tuple[str, int] | str:
        try:
            host, port = split_host_port(link)
            ip = parse_ip(host)
        except ValueError:
            return "transceiver_address"
        if port == 0 or (ip.version == 6) != self._is_ipv6:
            return "transceiver_address"
        # `in` is false between the families, never an error.
        if not any(ip in network for network in self._networks):
            return "transceiver_network"
        return str(ip), port

    def _move(self, route: Route, receiver: str, address: tuple[str, int]) -> None:
        if self.by_address.get(route.address) is route:
            del self.by_address[route.address]
        route.listed = True
        route.dead = False
        route.address = pack_address(*address)
        route.name = self._name_of(*address)
        route.sender = join_host_port(*address)
        route.receiver = receiver
        self.by_address[route.address] = route
        if route.back is not None:
            route.back.name = route.name
        self._write_header(route)

    def _write_header(self, route: Route) -> None:
        header = self._keys.link_header
        route.header = header(self._link, route.receiver, self._hour, hops=0 if route.back is None else 1)
        route.peer_header = b""
        if route.back is not None:
            route.back.header = header(self._link, route.receiver, self._hour)
