"""Where a packet goes: the relay's rules and its flow table. Pure; the data plane holds the sockets.

Theory of operation. A *flow* is a short-lived note that a client address belongs to a transceiver. The rules:

1. Only a STUN Binding request makes a flow, and each is routed by its own ticket, also from a known address:
   the ticket is opened, its expiry, cluster and transceiver are looked at, MESSAGE-INTEGRITY is checked under
   the password derived from it. All else from a client goes by flow or is dropped. The relay answers nobody.
2. A flow is *provisional* until the transceiver's Binding success with the same transaction id goes back
   through the relay; then it is *confirmed*. (Stacks that believed the ufrag alone let anybody take a call.)
3. A live flow is never re-pointed by another ticket: a forged source address costs an attacker nothing, so it
   must gain nothing. Live means: more than STUN came from the client lately and ever went to it, and its
   transceiver sent anything in the last 5 s. A flow of mere checks gives way, or whoever forged an address
   first would keep its owner out; but only SETTLING_SECONDS after it was confirmed, so that two tickets do
   not take it from each other for ever.
4. Towards clients only addresses are sent to that have a live flow of the sending transceiver, and
   transceivers are believed only by their address and the link's tag: a broken one makes no open relay of us.
5. Transceivers are known from the registry, and only those inside the allowed networks are used (`routes`).
6. Every table is bounded, provisional flows go first, and no packet costs more than constant time.
7. A check belongs to the address it came from first: who watched it go by makes no flow by repeating it. When
   a ticket has all its flows, the one that carries least goes, not the newcomer: clients change their port.

    nothing ── valid request ──► provisional ── Binding success ──► confirmed
                                     │ 5 s, or evicted                  │ client silent for `idle_seconds`,
                                     └──────────► nothing ◄─────────────┘ released, or lost by rule 3 or 7

The data plane reads `flows` and the public attributes of `Flow` for packets of existing flows;
`from_client` and `to_client` are the whole rules, and it calls them for all else.
"""

from __future__ import annotations

from collections import Counter, OrderedDict
from collections.abc import Iterable

from voicegate.proto.address import IPV4_LENGTH, IPV6_LENGTH, ClientAddress
from voicegate.proto.demux import Kind, kind
from voicegate.proto.errors import BadPacket
from voicegate.proto.keys import ClusterKeys
from voicegate.proto.link import MAX_PAYLOAD, frame_header
from voicegate.proto.stun import is_binding_success, peek_username_untrusted, transaction_id, verify_integrity
from voicegate.proto.ticket import expired
from voicegate.roles.relay.routes import Route, RouteTable

PROVISIONAL_SECONDS = 5.0
"""How long a check may wait for its answer; clients repeat it after 500 ms at most at first (RFC 8445
section 14.3)."""
IN_USE_SECONDS = 5.0
"""A transceiver answers checks every 2.5 s (Chromium) to 6 s (Firefox) and sends audio or RTCP in between."""
SETTLING_SECONDS = 2.0
"""How long a confirmed flow may take to become live: a nomination and DTLS's first flight each way are three
round trips, and ITU-T G.114's limit for a conversation, 400 ms one way, makes 0.8 s of a round trip."""
SEEN_TRANSACTIONS = 64
"""Remembered per ticket: more than all checks of a set-up, and 160 s of Chromium's consent checks."""
MAX_PROVISIONAL_PER_TICKET = 4
MAX_FLOWS_PER_TICKET = 8
"""As mediasoup's tuples: a client has a handful of local addresses, and now and then a new one."""
TABLE_SHARE = 10
"""At most a tenth of the table is provisional, and at most a tenth belongs to one source address (an IPv6
/64): behind one address of a carrier's NAT are some thousand subscribers, few of whom talk at once."""
SWEEP_SHARE = 16
"""`expire` looks at this fraction of the confirmed flows per call, so that a large table makes no pause."""


class Holder:
    """The flows of one ticket: at most MAX_FLOWS_PER_TICKET."""

    __slots__ = ("flows", "password", "seen", "ufrag")

    def __init__(self, ufrag: bytes, password: bytes) -> None:
        self.ufrag = ufrag
        self.password = password
        self.flows: list[Flow] = []
        self.seen = b""
        """Transactions of its last checks, each with the address it came from. One string: with 100,000
        calls a table for each would be the larger part of the relay's memory."""

    def note(self, transaction: bytes, client: ClientAddress) -> None:
        """Remember a check that was let through."""
        record = transaction + client.ljust(IPV6_LENGTH, b"\0")
        self.seen = (self.seen + record)[-SEEN_TRANSACTIONS * len(record) :]

    def is_replay(self, transaction: bytes, client: ClientAddress) -> bool:
        """Whether a check came from another address before: a client sends each transaction from one."""
        return transaction in self.seen and transaction + client.ljust(IPV6_LENGTH, b"\0") not in self.seen


class Flow:
    """One client address."""

    __slots__ = (
        "checked",
        "client",
        "client_seen",
        "confirmed_at",
        "frame_header",
        "holder",
        "name",
        "port",
        "route",
        "settled",
        "source",
        "transaction",
        "transceiver_seen",
    )

    def __init__(
        self, client: ClientAddress, name: bytes, port: int, route: Route, holder: Holder, transaction: bytes
    ) -> None:
        self.client = client
        self.name = name
        """The client for the socket layer."""
        self.port = port
        """Index of the public socket it talks to."""
        self.route = route
        self.holder = holder
        self.source = _source(client)
        self.frame_header = frame_header(client)
        self.transaction: bytes | None = transaction
        """That of the last check while the flow is provisional; None: confirmed."""
        self.checked = 0.0
        """When its last check came."""
        self.confirmed_at = float("-inf")
        self.client_seen = float("-inf")
        """When the client last sent anything but STUN."""
        self.settled = False
        """Confirmed, and the transceiver has sent it more than STUN. Until then `to_client` looks at every
        packet of the transceiver."""
        self.transceiver_seen = float("-inf")


class RelayCore:
    """The flow table. It belongs to one thread; `drops` and `statistics` may be read by others."""

    def __init__(
        self,
        keys: ClusterKeys,
        routes: RouteTable,
        *,
        cluster: int,
        public: Iterable[ClientAddress],
        max_flows: int,
        idle_seconds: float,
    ) -> None:
        """`public`: the relay's own public addresses, which are nobody's client."""
        self.flows: dict[bytes, Flow] = {}
        """By client address (ClientAddress; plain bytes so that a look-up needs no conversion)."""
        self.routes = routes
        self.drops: Counter[str] = Counter()
        """Packets not forwarded, by reason."""
        self.evicted: Counter[str] = Counter()
        """Flows that ended, by reason."""
        self._tickets = keys.tickets.clone()
        self._cluster = cluster
        self._own = frozenset(public)
        self._max_flows = max_flows
        self._share = max(MAX_FLOWS_PER_TICKET, max_flows // TABLE_SHARE)
        self._idle_seconds = idle_seconds
        # By last check, and by when `expire` last looked. OrderedDict and not dict: taking the first of a
        # dict whose front was deleted walks over the holes.
        self._provisional: OrderedDict[ClientAddress, Flow] = OrderedDict()
        self._confirmed: OrderedDict[ClientAddress, Flow] = OrderedDict()
        self._holders: dict[bytes, Holder] = {}
        self._sources: dict[bytes, int] = {}

    def from_client(
        self, data: bytes, client: ClientAddress, name: bytes, port: int, now: float, wall: float
    ) -> Flow | None:
        """The flow along which a client's packet goes to its transceiver, or None: dropped and counted.

        `name` and `port` say how the socket layer reaches the client; `now` is monotonic, `wall` calendar
        seconds.
        """
        if not 0 < len(data) <= MAX_PAYLOAD:
            self.drops["size"] += 1
            return None
        flow = self.flows.get(client)
        if kind(data[0]) is not Kind.STUN:
            if flow is None:
                self.drops["no_flow"] += 1
                return None
            flow.client_seen = now
        else:
            try:
                flow = self._route_check_untrusted(data, flow, client, name, port, now, wall)
            except BadPacket as error:
                self.drops[error.reason] += 1
                return None
        return flow

    def to_client(self, route: Route, client: ClientAddress, payload: bytes, now: float) -> Flow | None:
        """The flow along which a transceiver's frame goes to its client, or None: dropped and counted.
        `payload` is not empty."""
        flow = self.flows.get(client)
        if flow is None or flow.route is not route:
            self.drops["frame_without_flow"] += 1
            return None
        if flow.transaction is None:
            flow.settled = flow.settled or kind(payload[0]) is not Kind.STUN
        elif is_binding_success(payload) and transaction_id(payload) == flow.transaction:
            flow.transaction = None
            flow.confirmed_at = now
            del self._provisional[client]
            self._confirmed[client] = flow
        flow.transceiver_seen = now
        return flow

    def release(self, route: Route, client: ClientAddress) -> None:
        """A transceiver says that its call with this client is over."""
        flow = self.flows.get(client)
        if flow is None or flow.route is not route:
            self.drops["frame_without_flow"] += 1
            return
        self._remove(flow, "released")

    def expire(self, now: float) -> None:
        """End flows whose time is over, some of them at a time; call it a few times a second."""
        budget = 256 + len(self.flows) // SWEEP_SHARE
        for _ in range(min(len(self._provisional), budget)):
            flow = next(iter(self._provisional.values()))
            if now - flow.checked < PROVISIONAL_SECONDS:
                break
            self._remove(flow, "unanswered")
        for _ in range(min(len(self._confirmed), budget)):
            client, flow = next(iter(self._confirmed.items()))
            if now - max(flow.client_seen, flow.checked) >= self._idle_seconds:
                self._remove(flow, "idle")
            else:
                self._confirmed.move_to_end(client)
        self.routes.forget_unused()

    def statistics(self) -> dict[str, int]:
        """The table's size by state."""
        return {"provisional": len(self._provisional), "confirmed": len(self._confirmed)}

    def _route_check_untrusted(
        self,
        data: bytes,
        flow: Flow | None,
        client: ClientAddress,
        name: bytes,
        port: int,
        now: float,
        wall: float,
    ) -> Flow:
        """The flow for a connectivity check: its own, or a new one. Cheap refusals first."""
        username, integrity_offset = peek_username_untrusted(data)
        ufrag = username.partition(b":")[0]
        transaction = transaction_id(data)
        if flow is not None and flow.holder.ufrag == ufrag:
            # A ticket's expiry gates the making of a flow, never an existing one.
            if not verify_integrity(data, integrity_offset, flow.holder.password):
                raise BadPacket("stun_integrity")
            flow.holder.note(transaction, client)
            flow.port = port
            flow.checked = now
            if flow.transaction is not None:
                flow.transaction = transaction
                self._provisional.move_to_end(client)
            return flow
        ticket = self._tickets.open_untrusted(ufrag)
        if expired(ticket, wall):
            raise BadPacket("ticket_expired")
        if ticket.cluster != self._cluster:
            raise BadPacket("ticket_cluster")
        route = self.routes.get(ticket.transceiver)
        if route is None:
            raise BadPacket(self.routes.refused.get(ticket.transceiver, "transceiver_unknown"))
        holder = self._holders.get(ufrag)
        if holder is None:
            holder = Holder(ufrag, self._tickets.password(ufrag))
        if not verify_integrity(data, integrity_offset, holder.password):
            raise BadPacket("stun_integrity")
        if client in self._own or client[-2:] == b"\0\0":
            raise BadPacket("client_address")
        if holder.is_replay(transaction, client):
            raise BadPacket("stun_replay")
        if flow is not None:
            if self._is_live(flow, now):
                raise BadPacket("flow_in_use")
            self._remove(flow, "taken_over")
        self._make_room(client, holder)
        holder.note(transaction, client)
        return self._add(Flow(client, name, port, route, holder, transaction), now)

    def _is_live(self, flow: Flow, now: float) -> bool:
        """Rule 3. What the client's side sends can be forged, so it counts only when the transceiver took it
        up; a client may be quiet for half a minute (SCTP's heartbeat, RFC 9260 section 8.3)."""
        if now - flow.transceiver_seen >= IN_USE_SECONDS:
            return False
        if now - flow.confirmed_at < SETTLING_SECONDS:
            return True
        return flow.settled and now - flow.client_seen < self._idle_seconds

    def _make_room(self, client: ClientAddress, holder: Holder) -> None:
        """Bring every table below its bound for one more flow; BadPacket when only confirmed flows of other
        tickets are left.

        Evicting the oldest provisional flow, rather than refusing the new one, means that whoever is in the
        way must be so within the transceiver's answering time.
        """
        if self._sources.get(_source(client), 0) >= self._share:
            raise BadPacket("source_flows")
        if len(holder.flows) >= MAX_PROVISIONAL_PER_TICKET:
            waiting = [flow for flow in holder.flows if flow.transaction is not None]
            if len(waiting) >= MAX_PROVISIONAL_PER_TICKET:
                self._remove(waiting[0], "ticket_flows")
            elif len(holder.flows) >= MAX_FLOWS_PER_TICKET:
                self._remove(min(holder.flows, key=_worth), "ticket_flows")
        if self._provisional and (
            len(self._provisional) >= self._share or len(self.flows) >= self._max_flows
        ):
            self._remove(next(iter(self._provisional.values())), "table_full")
        if len(self.flows) >= self._max_flows:
            raise BadPacket("table_full")

    def _add(self, flow: Flow, now: float) -> Flow:
        flow.checked = now
        self.flows[flow.client] = flow
        self._provisional[flow.client] = flow
        self._holders[flow.holder.ufrag] = flow.holder
        flow.holder.flows.append(flow)
        self._sources[flow.source] = self._sources.get(flow.source, 0) + 1
        flow.route.flows += 1
        return flow

    def _remove(self, flow: Flow, reason: str) -> None:
        self.evicted[reason] += 1
        client = flow.client
        del self.flows[client]
        if flow.transaction is not None:
            del self._provisional[client]
        else:
            del self._confirmed[client]
        holder = flow.holder
        holder.flows.remove(flow)
        if not holder.flows:
            del self._holders[holder.ufrag]
        self._sources[flow.source] -= 1
        if not self._sources[flow.source]:
            del self._sources[flow.source]
        flow.route.flows -= 1


def _source(client: ClientAddress) -> bytes:
    """Whom the caps count as one: an IPv4 address, or the /64 that one IPv6 subscriber has all to itself."""
    return client[:-2] if len(client) == IPV4_LENGTH else client[:8]


def _worth(flow: Flow) -> tuple[bool, bool, float, float]:
    """Which flow of a full ticket goes, the least first: unanswered, never taken up by the transceiver,
    nothing but checks, the longest silent. So the one that carries media now is the last."""
    return flow.settled, flow.transaction is None, flow.client_seen, flow.checked
