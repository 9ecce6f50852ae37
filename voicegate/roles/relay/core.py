"""Where a packet goes: the relay's rules. Pure; the flows are in `flows`, the data plane holds the sockets.

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
7. A check belongs to the address it came from first: who watched it go by makes no flow by repeating it, and
   does not move one to another of our own addresses. When a ticket has all its flows, the one that carries
   least goes, not the newcomer: clients change their port.
8. A ticket of another cluster goes to a relay of that cluster, from where it goes to a transceiver or
   nowhere: a packet passes two relays at most, so there are no loops. Replies come back by the same two.
9. Flows that a relay lost, or never had, it learns: from the transceivers, who say whose packets came by our
   public addresses (`hellos`), and from the notes in Redis (`recovery`). Such a flow is confirmed, but not
   settled, and any valid check of another ticket takes its place at once.

    nothing ── valid request ──► provisional ── Binding success ──► confirmed
       │                             │ 5 s, or evicted                │ ▲ │ client silent for `idle_seconds`,
       │                             └──────────► nothing ◄───────────┼─┘ │ released, or lost by rule 3 or 7
       └── learned ───────────────────────────────────────────────────┘   └──► nothing

The data plane reads `flows` and the public attributes of `Flow` for packets of existing flows;
`from_client` and `to_client` are the whole rules, and it calls them for all else.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable

from voicegate.proto.address import ClientAddress, is_tcp, without_transport
from voicegate.proto.demux import Kind, kind
from voicegate.proto.errors import BadPacket
from voicegate.proto.keys import ClusterKeys
from voicegate.proto.link import MAX_PAYLOAD
from voicegate.proto.stun import is_binding_success, peek_username_untrusted, transaction_id, verify_integrity
from voicegate.proto.ticket import Ticket, expired
from voicegate.roles.relay.flows import NEVER, Flow, FlowTable
from voicegate.roles.relay.recovery import Held, Recovery
from voicegate.roles.relay.replays import SeenChecks
from voicegate.roles.relay.routes import Route, RouteTable

IN_USE_SECONDS = 5.0
"""A transceiver answers checks every 2.5 s (Chromium) to 6 s (Firefox) and sends audio or RTCP in between."""
SETTLING_SECONDS = 2.0
"""How long a confirmed flow may take to become live: a nomination and DTLS's first flight each way are three
round trips, and ITU-T G.114's limit for a conversation, 400 ms one way, makes 0.8 s of a round trip."""


class RelayCore:
    """The rules of one worker. It belongs to one thread; `drops` and `statistics` may be read by others."""

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
        self.routes = routes
        self.drops: Counter[str] = Counter()
        """Packets not forwarded, by reason."""
        self.recovery = Recovery(self.drops)
        self.table = FlowTable(max_flows, idle_seconds, self._flow_ended)
        self.flows = self.table.by_client
        self._keys = keys
        self._keys_version = keys.version
        self._tickets = keys.tickets.clone()
        self._seen = SeenChecks()
        self._cluster = cluster
        self._own = frozenset(public)
        self._idle_seconds = idle_seconds

    def from_client(
        self, data: bytes, client: ClientAddress, port: int, now: float, wall: float, *, hops: int = 0
    ) -> Flow | None:
        """The flow along which a client's packet goes to its transceiver, or None: held, or dropped and
        counted.

        `port` says how the client is reached (`Flow.port`); `now` is monotonic, `wall` calendar seconds;
        `hops`: how many relays the packet has passed before us.
        """
        if not 0 < len(data) <= MAX_PAYLOAD:
            self.drops["size"] += 1
            return None
        flow = self.flows.get(client)
        what = kind(data[0])
        if what is Kind.STUN:
            try:
                return self._route_check_untrusted(data, flow, client, port, now, wall, hops)
            except BadPacket as error:
                self.drops[error.reason] += 1
                return None
        if flow is None:
            if what is Kind.UNKNOWN:
                self.drops["unknown_kind"] += 1
            else:
                self._look_up(data, client, port, now)
            return None
        flow.client_seen = now
        if flow.checked == NEVER:
            flow.port = port  # learned: only the client's own packets tell how it is reached
        return flow

    def to_client(self, route: Route, client: ClientAddress, payload: bytes, now: float) -> Flow | None:
        """The flow along which a transceiver's frame goes to its client, or None: dropped and counted.
        `payload` is not empty."""
        flow = self.flows.get(client)
        if flow is None or flow.route is not route:
            self.drops["frame_without_flow"] += 1
            return None
        is_stun = kind(payload[0]) is Kind.STUN
        if flow.transaction is None:
            flow.settled = flow.settled or not is_stun
        elif not is_stun:
            # Its client is a stranger yet, whose address may be forged: it gets the answer to its check
            # alone, which is not larger than the check.
            self.drops["frame_before_answer"] += 1
            return None
        elif is_binding_success(payload) and transaction_id(payload) == flow.transaction:
            self.table.confirm(flow, now)
            self.recovery.note(client, flow.ufrag)
        flow.transceiver_seen = now
        return flow

    def release(self, route: Route, client: ClientAddress) -> Flow | None:
        """A transceiver says that its call with this client is over. Returns the flow that was."""
        flow = self.flows.get(client)
        if flow is None or flow.route is not route:
            self.drops["frame_without_flow"] += 1
            return None
        self.table.remove(flow, "released")
        return flow

    def learn(
        self, client: ClientAddress, ufrag: bytes, port: int, now: float, *, told_by: Route | None = None
    ) -> Flow | None:
        """A flow that another knows of; None, counted, when it cannot be. `told_by`: the transceiver, or the
        relay of another cluster, which may speak of its own calls only; None: the authenticated note in
        Redis."""
        known = self.flows.get(client)
        if known is not None and known.ufrag == ufrag:
            return known
        try:
            ticket = self._tickets.open_untrusted(ufrag)
            if told_by is not None and told_by.back is not None and ticket.cluster == told_by.cluster:
                route = told_by  # of the other cluster's relays it is this one that has the flow
            else:
                route = self._route_of(ticket, client, 0)
            if told_by is not None and told_by is not route:
                raise BadPacket("learned_foreign")
            if known is not None:
                raise BadPacket("learned_late")  # what we know is newer
            if self._is_own(client):
                raise BadPacket("client_address")
            self.table.make_room(client, ufrag)
        except BadPacket as error:
            self.drops[error.reason] += 1
            return None
        flow = Flow(client, port, route, ufrag, None)
        flow.confirmed_at = now  # it is idle from now on, as any other
        self.table.add(flow)
        return flow

    def answer(
        self, client: ClientAddress, ufrag: bytes | None, port: int, now: float
    ) -> tuple[Flow | None, list[Held]]:
        """Redis says whose this client is (None: it does not know). Returns the flow and the packets that
        waited for it."""
        known = self.flows.get(client)
        flow = None if ufrag is None else self.learn(client, ufrag, port, now)
        held = self.recovery.answered(client, flow is not None, now)
        if flow is not None and flow is not known:
            flow.client_seen = now
            if held:
                flow.port = held[-1].port
        return flow, held

    def tick(self, now: float) -> None:
        """Do what time asks for; call it a few times a second."""
        if self._keys.version != self._keys_version:
            self._keys_version = self._keys.version
            self._tickets = self._keys.tickets.clone()
        for flow in self.table.expire(now):
            self.recovery.note(flow.client, flow.ufrag)
        self.recovery.expire(now)
        self.routes.forget_unused()

    def statistics(self) -> dict[str, int]:
        """The table's size by state."""
        return self.table.statistics()

    def _route_check_untrusted(
        self,
        data: bytes,
        flow: Flow | None,
        client: ClientAddress,
        port: int,
        now: float,
        wall: float,
        hops: int,
    ) -> Flow:
        """The flow for a connectivity check: its own, or a new one. Cheap refusals first."""
        username, integrity_offset = peek_username_untrusted(data)
        ufrag = username.partition(b":")[0]
        transaction = transaction_id(data)
        if flow is not None and flow.ufrag == ufrag:
            # A ticket's expiry gates the making of a flow, never an existing one.
            if not verify_integrity(data, integrity_offset, self._tickets.password(ufrag)):
                raise BadPacket("stun_integrity")
            if flow.port != port:
                if flow.checked != NEVER and self._seen.has(ufrag, transaction):
                    raise BadPacket("stun_replay")
                flow.port = port
            self._seen.note(ufrag, transaction, client, now)
            self.table.checked(flow, transaction, now)
            return flow
        ticket = self._tickets.open_untrusted(ufrag)
        if expired(ticket, wall):
            raise BadPacket("ticket_expired")
        route = self._route_of(ticket, client, hops)
        if not verify_integrity(data, integrity_offset, self._tickets.password(ufrag)):
            raise BadPacket("stun_integrity")
        if self._is_own(client):
            raise BadPacket("client_address")
        if self._seen.is_replay(ufrag, transaction, client):
            raise BadPacket("stun_replay")
        if flow is not None:
            if self._is_live(flow, now):
                raise BadPacket("flow_in_use")
            self.table.remove(flow, "taken_over")
        self.table.make_room(client, ufrag)
        self._seen.note(ufrag, transaction, client, now)
        flow = Flow(client, port, route, ufrag, transaction)
        flow.checked = now
        self.table.add(flow)
        return flow

    def _route_of(self, ticket: Ticket, client: ClientAddress, hops: int) -> Route:
        """Where a ticket's packets go from here. BadPacket when that is nowhere."""
        if ticket.cluster != self._cluster:
            if hops:
                raise BadPacket("hop_limit")  # rule 8: it came from a relay that took us for that cluster's
            towards = self.routes.towards(ticket.cluster, client)
            if towards is None:
                raise BadPacket("ticket_cluster")
            return towards
        route = self.routes.get(ticket.transceiver)
        if route is None:
            raise BadPacket(self.routes.refused.get(ticket.transceiver, "transceiver_unknown"))
        return route

    def _look_up(self, data: bytes, client: ClientAddress, port: int, now: float) -> None:
        if is_tcp(client):
            self.drops["no_flow"] += 1  # a new connection has a new address: nobody can know it
        else:
            self.recovery.ask(client, data, port, now)

    def _is_own(self, client: ClientAddress) -> bool:
        address = without_transport(client)
        return address in self._own or address[-2:] == b"\0\0"

    def _is_live(self, flow: Flow, now: float) -> bool:
        """Rule 3. What the client's side sends can be forged, so it counts only when the transceiver took it
        up; a client may be quiet for half a minute (SCTP's heartbeat, RFC 9260 section 8.3)."""
        if now - flow.transceiver_seen >= IN_USE_SECONDS:
            return False
        if now - flow.confirmed_at < SETTLING_SECONDS and flow.checked != NEVER:
            return True
        return flow.settled and now - flow.client_seen < self._idle_seconds

    def _flow_ended(self, flow: Flow, reason: str) -> None:
        # Another relay may have the client now, so only who knows that the call is over takes its note away;
        # the others run out.
        if reason == "released":
            self.recovery.note(flow.client, b"")
