"""Where a client is, as far as the request for its call tells. Pure, but for the database that is given.

Whoever sends a header can write anything into it, so headers count only when they come from a proxy of ours:
the connection's other end is in `signaling.trusted_proxies`. From such a proxy, in this order:

1. the pair `signaling.location_headers` (`X-Client-Latitude`, `X-Client-Longitude`);
2. Cloudflare's `cf-iplatitude` and `cf-iplongitude` (its managed transform "Add visitor location headers");
3. the client's address, looked up in the database: in `X-Forwarded-For`, to which each proxy appends whom it
   was asked by, the right-most one that is no proxy of ours; without that header, `CF-Connecting-IP`.

The proxy has to set these headers or take them away; what it passes on from the client counts as its own.
For anybody else it is the address of the connection that is looked up. A pair that is incomplete, repeated or
no place is ignored, and counted. The worst that a client gains by a lie is to be served from afar.
"""

from __future__ import annotations

import ipaddress
import re
from collections import Counter
from collections.abc import Callable, Sequence

from voicegate.proto.address import parse_ip
from voicegate.roles.signaling.steering import Place, place_of

CLOUDFLARE_PAIR = ("cf-iplatitude", "cf-iplongitude")
FORWARDED_FOR = "x-forwarded-for"
CLOUDFLARE_ADDRESS = "cf-connecting-ip"
MAX_HOPS = 16
"""Addresses of X-Forwarded-For that are looked at; real chains have two or three."""

Address = ipaddress.IPv4Address | ipaddress.IPv6Address
Network = ipaddress.IPv4Network | ipaddress.IPv6Network
Headers = Callable[[str], Sequence[str]]
"""All values of a request's header, by its name in lower case."""

_DEGREES = re.compile(r"[+-]?[0-9]{1,3}(\.[0-9]{1,20})?")
_MAPPED = ipaddress.IPv6Network("::ffff:0:0/96")


class Locator:
    """Finds clients, and counts how. `look_up` gives the coordinates of an address, or None; LookupError
    where its data are damaged."""

    def __init__(
        self,
        trusted: Sequence[str],
        location_headers: Sequence[str],
        look_up: Callable[[Address], Place | None],
    ) -> None:
        """`trusted`: networks; `location_headers`: two names, or none."""
        self._trusted = tuple(map(_parse_network, trusted))
        pairs = {"headers": tuple(name.lower() for name in location_headers), "cloudflare": CLOUDFLARE_PAIR}
        self._pairs = {source: (pair[0], pair[1]) for source, pair in pairs.items() if pair}
        self._look_up = look_up
        self.sources: Counter[str] = Counter()
        """Clients by what told of their place: `headers`, `cloudflare`, `database`, `none`; `damaged`: the
        database should have."""
        self.ignored: Counter[str] = Counter()
        """Headers that were not believed, by reason."""

    def locate(self, peer: str, headers: Headers) -> Place | None:
        """The place of the client whose request came over a connection from `peer`."""
        connection = _address(peer)
        if connection is None or not self._is_trusted(connection):
            if any(headers(name) for pair in self._pairs.values() for name in pair):
                self.ignored["untrusted_peer"] += 1
            return self._by_address(connection)
        for source, pair in self._pairs.items():
            place = self._read_pair_untrusted(pair, headers)
            if place is not None:
                self.sources[source] += 1
                return place
        return self._by_address(self._client_address_untrusted(connection, headers))

    def _by_address(self, address: Address | None) -> Place | None:
        # An address of a private network, a loopback and the like is nowhere on Earth.
        try:
            place = self._look_up(address) if address is not None and address.is_global else None
        except LookupError:
            self.sources["damaged"] += 1
            return None
        self.sources["none" if place is None else "database"] += 1
        return place

    def _read_pair_untrusted(self, pair: tuple[str, str], headers: Headers) -> Place | None:
        values = [headers(name) for name in pair]
        texts = [texts[0].strip() if texts else "" for texts in values]
        if not any(texts):
            return None
        place = None
        if any(len(repeated) > 1 for repeated in values):
            reason = "repeated"
        elif not all(texts):
            reason = "incomplete"
        else:
            reason = "not_a_place"
            if all(map(_DEGREES.fullmatch, texts)):
                place = place_of(float(texts[0]), float(texts[1]))
        if place is None:
            self.ignored[reason] += 1
        return place

    def _client_address_untrusted(self, connection: Address, headers: Headers) -> Address | None:
        """Who asked the outermost proxy of ours."""
        chain = ",".join(headers(FORWARDED_FOR))
        if not chain.strip():
            chain = "".join(headers(CLOUDFLARE_ADDRESS)[:1])
        if not chain.strip():
            return connection
        hop: Address | None = None
        for text in reversed(chain.rsplit(",", MAX_HOPS)[-MAX_HOPS:]):
            hop = _address(text)
            if hop is None:
                self.ignored["not_an_address"] += 1
                return None
            if not self._is_trusted(hop):
                return hop
        return hop

    def _is_trusted(self, address: Address) -> bool:
        return any(address.version == network.version and address in network for network in self._trusted)


def _address(text: str) -> Address | None:
    """An address as proxies write it: some put a port behind it, and brackets around IPv6."""
    host = text.strip()
    if host.startswith("["):
        host = host[1:].partition("]")[0]
    elif host.count(":") == 1:
        host = host.partition(":")[0]
    try:
        return parse_ip(host)
    except ValueError:
        return None


def _parse_network(text: str) -> Network:
    """In the same form as the addresses: a network of IPv4-mapped ones is one of IPv4."""
    network = ipaddress.ip_network(text)
    if isinstance(network, ipaddress.IPv6Network) and network.subnet_of(_MAPPED):
        mapped = network.network_address.ipv4_mapped
        assert mapped is not None, "it is inside the mapped addresses"
        return ipaddress.IPv4Network((mapped, network.prefixlen - 96))
    return network
