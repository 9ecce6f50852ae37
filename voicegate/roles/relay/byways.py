"""Where packets go that do not go the common way: over TCP, between relays, and to clients that were lost.

    TCP client ─► streams ─► rules ─► link                        link ─► streams ─► TCP client
    relay of another cluster ─► rules ─► transceiver              transceiver ─► the same relay
    (`flush_relays`) packet without a flow ─► held (`recovery`), Redis is asked ─► `answered` ─► link
    hello ─► transceiver ─► its clients become flows
    ICMP: nobody is at a transceiver's address ─► nothing is sent there but a packet now and then

Everything here belongs to the data plane's thread, and copies what it forwards.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Iterable, Mapping, Sequence
from typing import NamedTuple, Protocol

from voicegate.net.names import Address
from voicegate.net.streams import Streams
from voicegate.net.udp import UdpSocket
from voicegate.proto.address import IPV4_LENGTH, ClientAddress, is_tcp, pack_address
from voicegate.proto.errors import BadPacket
from voicegate.proto.link import pack_frames, parse_frame_untrusted, parse_frames_untrusted
from voicegate.proto.link_control import Hello, answer_hello, encode_control, parse_control_untrusted
from voicegate.roles.relay.core import RelayCore
from voicegate.roles.relay.counts import PlaneCounts
from voicegate.roles.relay.flows import Flow
from voicegate.roles.relay.hellos import Hellos
from voicegate.roles.relay.routes import Backend, Peer, Route

SNAPSHOT_SECONDS = 0.02
"""The least time between two takeovers of the registry: any call of any transceiver changes it."""
PROBE_SECONDS = 0.25
"""How often a packet is sent to where nobody was, to see whether somebody is there again."""


GREET_SECONDS = 0.015
"""Between two hellos of one relay that are answered: less than HELLO_RETRY_SECONDS begin with."""


class Record(Protocol):
    """What of a transceiver's record is used here."""

    @property
    def cluster(self) -> int: ...
    @property
    def link(self) -> str: ...
    @property
    def boot(self) -> str: ...


class RelayEntry(Protocol):
    """What of a relay's record is used here."""

    @property
    def cluster(self) -> int: ...
    @property
    def links(self) -> tuple[str, ...]: ...


class Directory(NamedTuple):
    """The registry as it is now."""

    transceivers: Mapping[int, Record]
    relays: Mapping[int, RelayEntry]


class Answer(NamedTuple):
    """What Redis knows of a client."""

    client: ClientAddress
    ufrag: bytes | None


class Byways:
    """The uncommon ways of one data plane."""

    def __init__(
        self,
        core: RelayCore,
        link: UdpSocket,
        streams: Streams | None,
        ways_out: WaysOut,
        hellos: Hellos,
        directory: Callable[[], Directory],
        asked: Callable[[], None],
        counts: PlaneCounts,
        failed: Callable[[Exception], None],
    ) -> None:
        """`failed`: told of what a packet caused and nobody expected."""
        self.due = 0.0
        """When `handle_timeout` is to be called."""
        self._core = core
        self._link = link
        self._streams = streams
        self._ways_out = ways_out
        self._hellos = hellos
        self._directory = directory
        self._asked = asked
        self._counts = counts
        self._failed = failed
        self._known: Directory | None = None
        self._refresh_due = 0.0
        self._probe_due: dict[Route, float] = {}
        self._greeted: dict[Route, float] = {}

    # Time

    def refresh(self, now: float) -> None:
        """Take over the registry when it has changed."""
        directory = self._directory()
        known = self._known
        if now < self._refresh_due or (
            known is not None
            and directory.transceivers is known.transceivers
            and directory.relays is known.relays
        ):
            return
        if known is not None:
            self._refresh_due = now + SNAPSHOT_SECONDS
        self._known = directory
        routes = self._core.routes
        routes.update(
            {id: Backend(one.cluster, one.link, one.boot) for id, one in directory.transceivers.items()},
            [Peer(relay.cluster, link) for relay in directory.relays.values() for link in relay.links],
        )
        self._ways_out.ensure(len(routes.backs))
        self._hellos.update(routes.neighbours(), now)
        self._look_at_hellos()

    def handle_timeout(self, now: float) -> None:
        """Say the hellos that are due."""
        for route, hello in self._hellos.poll(now):
            header = self._core.routes.control_header(route)
            self._link.send_batch([(route.name, header + encode_control(hello))])
        self._look_at_hellos()

    def tick(self, now: float) -> None:
        if self._streams is not None:
            self._streams.expire(now)
        self._probe_due = {route: due for route, due in self._probe_due.items() if route.dead}
        self._greeted = {route: at for route, at in self._greeted.items() if now < at + GREET_SECONDS}

    def _look_at_hellos(self) -> None:
        deadline = self._hellos.next_deadline()
        self.due = float("inf") if deadline is None else deadline

    # Clients

    def from_client(self, data: bytes, client: ClientAddress, port: int, wall: float) -> Flow | None:
        """A packet that the common way has no flow for."""
        now = time.monotonic()
        self.refresh(now)
        flow = self._core.from_client(data, client, port, now, wall)
        if flow is None:
            if self._core.recovery.questions:
                self._asked()
        elif held := self._core.recovery.settled(client):
            self._forward(flow.route, [(client, packet.data) for packet in held])
        return flow

    def answered(self, answer: Answer, now: float) -> None:
        """Redis has answered."""
        port = self._ways_out.likely(answer.client)
        if port is None:
            return
        flow, held = self._core.answer(answer.client, answer.ufrag, port, now)
        if flow is not None and held:
            self._forward(flow.route, [(answer.client, packet.data) for packet in held])

    def release(self, route: Route, client: bytes) -> None:
        """The transceiver's call with this client is over. The relay that the client came by is told of it
        behind the client's last words, which wait until the batch is through."""
        flow = self._core.release(route, ClientAddress(client))
        back = None if flow is None else self._ways_out.relay(flow.port)
        if flow is None or back is None:
            return
        if is_tcp(flow.client):  # whose last words do not wait
            self._forward(back, [(flow.client, b"")])
        else:
            self._ways_out.outgoing[flow.port] += (0, flow.client[-2:], flow.client[:-2], 0, 0)

    # TCP

    def serve_streams(self, wall: float) -> None:
        """From TCP clients to transceivers."""
        assert self._streams is not None, "watched only when there are streams"
        outgoing: dict[Route, list[tuple[ClientAddress, bytes]]] = {}
        packets = self._streams.poll(time.monotonic())
        for client, data in packets:
            try:
                flow = self.from_client(data, client, self._ways_out.tcp, wall)
                if flow is not None:
                    self._streams.admit(client)
                    outgoing.setdefault(flow.route, []).append((client, data))
            except Exception as error:  # one packet never ends the batch
                self._failed(error)
        for route, frames in outgoing.items():
            self._forward(route, frames)
        self._counts.totals["client_packets"] += len(packets)
        self._counts.totals["client_bytes"] += sum(len(data) for _, data in packets)

    def to_tcp(self, route: Route, view: memoryview, position: int, end: int) -> int:
        """Send one frame of a link datagram to its TCP client, or to the relay that has it. Returns where the
        next one begins, or -1 when this is none."""
        try:
            client, start, stop = parse_frame_untrusted(view, position, end)
        except BadPacket:
            return -1
        payload = bytes(view[start:stop])
        if not payload:
            self.release(route, client)
            return stop
        now = time.monotonic()
        flow = self._core.to_client(route, client, payload, now)
        if flow is None:
            return stop
        if flow.port == self._ways_out.tcp and self._streams is not None:
            if self._streams.send(client, payload, now):
                self._counts.totals["transceiver_packets"] += 1
                self._counts.totals["transceiver_bytes"] += len(payload)
        elif (back := self._ways_out.relay(flow.port)) is not None:
            self._forward(back, [(client, payload)])
        else:
            self._core.drops["tcp_gone"] += 1
        return stop

    # Relays of other clusters

    def from_relay(self, route: Route, datagram: bytes, wall: float) -> None:
        """Packets of clients that came to another relay, for a transceiver here."""
        try:
            frames = parse_frames_untrusted(datagram)
        except BadPacket as error:
            self._core.drops[error.reason] += 1
            return
        now = time.monotonic()
        self.refresh(now)
        outgoing: dict[Route, list[tuple[ClientAddress, bytes]]] = {}
        for client, payload in frames:
            try:
                flow = self._core.from_client(payload, client, route.sink, now, wall, hops=1)
                if flow is None:
                    continue
                if flow.route.back is not None:
                    self._core.drops["hop_limit"] += 1  # a flow of a client that comes here as well
                    continue
                outgoing.setdefault(flow.route, []).append((client, payload))
            except Exception as error:  # one packet never ends the batch
                self._failed(error)
        if self._core.recovery.questions:
            self._asked()
        for towards, packets in outgoing.items():
            self._forward(towards, packets)

    def flush_relays(self, view: memoryview, base: int) -> None:
        """Send what transceivers had for clients of other relays."""
        for back, entries in self._ways_out.take_relays():
            frames = []
            for at in range(0, len(entries), 5):
                _, port, ip, spot, length = entries[at : at + 5]
                assert isinstance(port, bytes) and isinstance(ip, bytes), "the order"
                assert isinstance(spot, int) and isinstance(length, int), "the order"
                payload = bytes(view[spot - base : spot - base + length]) if length else b""  # a release
                frames.append((ClientAddress(ip + port), payload))
            self._forward(back, frames)

    def control(self, route: Route, datagram: bytes) -> None:
        """What a transceiver or a relay has to say to us."""
        try:
            message = parse_control_untrusted(datagram)
        except BadPacket as error:
            self._core.drops[error.reason] += 1
            return
        if isinstance(message, Hello):
            self._greet(route, message, time.monotonic())
            return
        if not self._hellos.answered(route, message, time.monotonic()):
            self._core.drops["hello_answered"] += 1  # our hello was repeated, and so its answer
            return
        self._look_at_hellos()
        for client, ufrag in message.clients:
            port = self._ways_out.likely(ClientAddress(client))
            if port is not None:  # else over TCP, and the connection went with its relay
                self._core.learn(ClientAddress(client), ufrag, port, time.monotonic(), told_by=route)

    def _greet(self, route: Route, hello: Hello, now: float) -> None:
        """A relay of another cluster presents itself. What came by its predecessor is its own from now on,
        and it is told whom it has. Looking at 100,000 flows takes some 5 ms."""
        if route.back is None or now < self._greeted.get(route, 0.0) + GREET_SECONDS:
            self._core.drops["link_control"] += 1
            return
        is_news = (route.ingress, route.boot) != (hello.ingress, hello.boot)
        route.ingress, route.boot = hello.ingress, hello.boot
        if not is_news and not hello.number:
            return
        self._greeted[route] = now
        routes = self._core.routes
        gone, present = routes.sinks(hello.ingress, before=hello.boot), routes.sinks(hello.ingress)
        clients = []
        for flow in self._core.flows.values():
            if flow.port in present:
                clients.append((flow.client, flow.ufrag))
                if flow.port in gone:
                    flow.port = route.sink
        if hello.number:
            header = routes.control_header(route)
            answer = answer_hello(hello.number, clients)
            self._link.send_batch((route.name, header + body) for body in answer)

    # The link

    def take_refused(self, now: float) -> None:
        """Nobody is where these went (ICMP): a transceiver that was killed shows so at its next packet."""
        for address in self._link.take_refused():
            route = self._route_at(address)
            if route is not None and not route.dead:
                route.dead = True
                route.peer_header = b""  # whatever comes from it is looked at again, and ends this
                self._probe_due[route] = time.monotonic() + PROBE_SECONDS
                self._counts.totals["dead_transceivers"] += 1

    def without_dead(
        self, route: Route, datagrams: list[tuple[bytes, list[int]]]
    ) -> list[tuple[bytes, list[int]]]:
        """What is left of a batch when its datagrams for a dead transceiver are dropped, but for a probe."""
        now = time.monotonic()
        if now >= self._probe_due.get(route, 0.0):
            self._probe_due[route] = now + PROBE_SECONDS
            return datagrams
        lost = sum(len(spans) // 2 for name, spans in datagrams if name == route.name)
        self._core.drops["transceiver_dead"] += lost
        return [(name, spans) for name, spans in datagrams if name != route.name]

    def _route_at(self, address: Address) -> Route | None:
        try:
            return self._core.routes.by_address.get(pack_address(*address))
        except ValueError:
            return None

    def _forward(self, route: Route, frames: Iterable[tuple[ClientAddress, bytes]]) -> None:
        datagrams = pack_frames(route.header, frames)
        self._link.send_batch((route.name, datagram) for datagram in datagrams)
        self._counts.totals["link_datagrams_out"] += len(datagrams)
        self._counts.totals["link_bytes_out"] += sum(map(len, datagrams))


class WaysOut:
    """The numbers by which clients are reached, and what waits to go out by each: public sockets, TCP,
    relays.

    `outgoing[n]` is a flat list of entries as `UdpSocket.send_each` takes them. Of TCP's there are never any:
    its frames are sent as they come.
    """

    def __init__(self, public: Sequence[UdpSocket], backs: Sequence[Route]) -> None:
        """`backs`: the route table's live list of ways back to relays."""
        self.outgoing: list[list[bytes | int]] = [[] for _ in range(len(public) + 1)]
        self.tcp = len(public)
        self._backs = backs
        self._first = {is_ipv6: n for n, is_ipv6 in reversed([*enumerate(sock.is_ipv6 for sock in public)])}

    def ensure(self, relays: int) -> None:
        """There are so many ways back to relays."""
        while len(self.outgoing) < self.tcp + 1 + relays:
            self.outgoing.append([])

    def relay(self, port: int) -> Route | None:
        """The way back to a relay, if this is one."""
        return self._backs[port - self.tcp - 1] if port > self.tcp else None

    def take_relays(self) -> list[tuple[Route, list[bytes | int]]]:
        """What waits for relays."""
        taken = []
        for number, back in enumerate(self._backs, self.tcp + 1):
            if self.outgoing[number]:
                taken.append((back, self.outgoing[number]))
                self.outgoing[number] = []
        return taken

    def likely(self, client: ClientAddress) -> int | None:
        """How a client is probably reached of whom only the address is known; None: not at all, for a TCP
        connection does not outlive its relay."""
        return None if is_tcp(client) else self._first.get(len(client) != IPV4_LENGTH)
