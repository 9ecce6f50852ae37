"""The transceivers as a relay sees them: where their link sockets are and what the link headers say. Pure.

Only a transceiver of the registry, of our cluster, inside the allowed networks and of our link socket's
address family gets a route. The final check is on the parsed address in its one form, so that an
IPv4-mapped spelling does not pass an allow-list that the plain one would fail (coturn's CVE-2020-26262
and CVE-2026-27624).
"""

from __future__ import annotations

import ipaddress
from collections.abc import Callable, Iterable, Mapping
from typing import NamedTuple

from voicegate.proto.address import ClientAddress, join_host_port, pack_address, parse_ip, split_host_port
from voicegate.proto.keys import ClusterKeys
from voicegate.proto.link import LinkGuard, link_header


class Backend(NamedTuple):
    """What the relay needs to know of a transceiver's record."""

    cluster: int
    link: str
    boot: str


class Route:
    """A transceiver as the destination of link datagrams. Flows share it, so they follow it when it moves."""

    __slots__ = (
        "address",
        "backend",
        "flows",
        "header",
        "listed",
        "name",
        "peer_header",
        "sender",
        "size",
        "spans",
    )

    def __init__(self) -> None:
        self.backend: Backend | None = None
        self.address = ClientAddress(b"")
        """Its link socket."""
        self.name = b""
        """The same for the socket layer."""
        self.sender = ""
        """The same as it stands in the tags of what it sends."""
        self.header = b""
        """The link header of this hour towards it."""
        self.peer_header = b""
        """The last link header from it that was found genuine in this hour."""
        self.listed = True
        """False: gone from the registry. Its flows go on (a lease may be late), new ones are not made."""
        self.flows = 0
        self.size = 0
        self.spans: list[int] = []
        """The data plane's own: bytes and pieces of the link datagram that is being gathered."""


class RouteTable:
    """Routes by transceiver id and by link address."""

    def __init__(
        self,
        keys: ClusterKeys,
        *,
        cluster: int,
        link: str,
        allowed_networks: Iterable[str],
        name_of: Callable[[str, int], bytes],
        hour: int,
    ) -> None:
        """`link`: our link socket as `ip:port`; `name_of`: host and port for the socket layer; `hour`:
        calendar seconds // 3600."""
        self.by_address: dict[bytes, Route] = {}
        """Who may speak on the link."""
        self.refused: dict[int, str] = {}
        """Transceivers of the registry that are never sent to, and why (a drop reason)."""
        self._by_id: dict[int, Route] = {}
        self._keys = keys
        self._cluster = cluster
        self._link = link
        self._is_ipv6 = parse_ip(split_host_port(link)[0]).version == 6
        self._networks = tuple(ipaddress.ip_network(text) for text in allowed_networks)
        self._name_of = name_of
        self._hour = hour
        self._guard = LinkGuard(keys.link, link)

    def get(self, transceiver: int) -> Route | None:
        """The route by which new flows of this transceiver may be made."""
        route = self._by_id.get(transceiver)
        return route if route is not None and route.listed else None

    def update(self, backends: Mapping[int, Backend]) -> None:
        """Take over a snapshot of the registry. What did not change costs a comparison."""
        for id in [id for id in self._by_id if id not in backends]:
            self._unlist(id)
        self.refused = {id: reason for id, reason in self.refused.items() if id in backends}
        for id, backend in backends.items():
            route = self._by_id.get(id)
            if route is not None and route.backend == backend:
                route.listed = True
                continue
            address = self._resolve(backend)
            if isinstance(address, str):
                self.refused[id] = address
                self._unlist(id)
                continue
            self.refused.pop(id, None)
            if route is None:
                route = self._by_id[id] = Route()
            self._move(route, backend, address)

    def begin_hour(self, hour: int) -> None:
        """Write the link headers anew when the hour is another one; a few microseconds per route."""
        if hour == self._hour:
            return
        self._hour = hour
        for route in self._by_id.values():
            self._write_header(route)

    def accepts(self, route: Route, header: bytes) -> bool:
        """Whether a datagram that came from this route's address begins with a genuine link header."""
        if header == route.peer_header:
            return True
        if not self._guard.accepts(route.sender, header, self._hour):
            return False
        route.peer_header = header
        return True

    def forget_unused(self) -> None:
        """Drop routes that are neither in the registry nor used by a flow."""
        for id in [id for id, route in self._by_id.items() if not route.listed and not route.flows]:
            route = self._by_id.pop(id)
            if self.by_address.get(route.address) is route:
                del self.by_address[route.address]

    def listed(self) -> int:
        """How many transceivers can be given new flows."""
        return sum(route.listed for route in self._by_id.values())

    def _resolve(self, backend: Backend) -> tuple[str, int] | str:
        """The link address, or the drop reason why it is not used."""
        if backend.cluster != self._cluster:
            return "transceiver_cluster"
        try:
            host, port = split_host_port(backend.link)
            ip = parse_ip(host)
        except ValueError:
            return "transceiver_address"
        if port == 0 or (ip.version == 6) != self._is_ipv6:
            return "transceiver_address"
        # `in` is false between the families, never an error.
        if not any(ip in network for network in self._networks):
            return "transceiver_network"
        return str(ip), port

    def _move(self, route: Route, backend: Backend, address: tuple[str, int]) -> None:
        if self.by_address.get(route.address) is route:
            del self.by_address[route.address]
        route.backend = backend
        route.listed = True
        route.address = pack_address(*address)
        route.name = self._name_of(*address)
        route.sender = join_host_port(*address)
        self.by_address[route.address] = route
        self._write_header(route)

    def _write_header(self, route: Route) -> None:
        assert route.backend is not None, "a route is made from a backend"
        receiver = f"{route.backend.link}#{route.backend.boot}"
        key_id = self._keys.link_id
        route.header = link_header(self._keys.link[key_id], key_id, self._link, receiver, self._hour)
        route.peer_header = b""

    def _unlist(self, id: int) -> None:
        route = self._by_id.get(id)
        if route is not None:
            route.listed = False
