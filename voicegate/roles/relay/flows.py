"""The relay's flow table: bounded, and small enough that 100,000 flows are 40 MB. Pure.

The rules of who may have a flow are in `core`; here is what it costs to keep them. A flow is one object with
ten fields and two entries in dictionaries. Times are what the caller calls `now`; a caller that passes the
same object for all packets of a moment stores it once.

Sources are counted in buckets by hash. A bucket that two sources share makes the cap a little tighter for
both: with a cap of thousands nobody notices, and a table by source would be a fourth of all memory.
"""

from __future__ import annotations

from array import array
from collections import Counter, OrderedDict, deque
from collections.abc import Callable
from math import log2

from voicegate.proto.address import IPV4_LENGTH, ClientAddress, without_transport
from voicegate.proto.errors import BadPacket
from voicegate.roles.relay.routes import Route

PROVISIONAL_SECONDS = 5.0
"""How long a check may wait for its answer; clients repeat it after 500 ms at most at first (RFC 8445
section 14.3)."""
MAX_PROVISIONAL_PER_TICKET = 4
MAX_FLOWS_PER_TICKET = 8
"""As mediasoup's tuples: a client has a handful of local addresses, and now and then a new one."""
TABLE_SHARE = 10
"""At most a tenth of the table is provisional, and at most a tenth belongs to one source address (an IPv6
/64): behind one address of a carrier's NAT are some thousand subscribers, few of whom talk at once."""
SWEEP_SHARE = 16
"""`expire` looks at this fraction of the flows per call, so that a large table makes no pause."""
NOTE_SECONDS = 48.0
"""At most this long, or the time after which an idle flow ends if that is shorter, between two times that a
flow is due to be noted anew: a note lives for twice `relay.flow_idle_seconds`."""
NEVER = float("-inf")

_BUCKETS = 1 << 16


class Flow:
    """One client address, and the transceiver, or the relay of another cluster, that its packets go to."""

    __slots__ = (
        "checked",
        "client",
        "client_seen",
        "confirmed_at",
        "port",
        "route",
        "settled",
        "transaction",
        "transceiver_seen",
        "ufrag",
    )

    def __init__(
        self, client: ClientAddress, port: int, route: Route, ufrag: bytes, transaction: bytes | None
    ) -> None:
        self.client = client
        self.port = port
        """Where the client is reached: an index into the data plane's ways out."""
        self.route = route
        self.ufrag = ufrag
        """Its ticket."""
        self.transaction = transaction
        """That of the last check while the flow is provisional; None: confirmed."""
        self.checked = NEVER
        """When its last check came. NEVER: a flow that another told us of, see `RelayCore.learn`."""
        self.confirmed_at = NEVER
        """When the transceiver answered its check, or when it was learned."""
        self.client_seen = NEVER
        """When the client last sent anything but STUN."""
        self.settled = False
        """Confirmed, and the transceiver has sent it more than STUN. Until then `to_client` looks at every
        packet of the transceiver."""
        self.transceiver_seen = NEVER


class FlowTable:
    """Flows by client and by ticket. `ended` is told of each flow that goes, with the reason."""

    def __init__(self, max_flows: int, idle_seconds: float, ended: Callable[[Flow, str], None]) -> None:
        self.by_client: dict[bytes, Flow] = {}
        """By ClientAddress; plain bytes so that a look-up needs no conversion."""
        self.evicted: Counter[str] = Counter()
        """Flows that ended, by reason."""
        self._by_ticket: dict[bytes, Flow | tuple[Flow, ...]] = {}
        self._max_flows = max_flows
        self._share = max(MAX_FLOWS_PER_TICKET, max_flows // TABLE_SHARE)
        self._idle_seconds = idle_seconds
        self._ended = ended
        # By last check. Not a dict: taking the first of one whose front was deleted walks over the holes.
        self._provisional: OrderedDict[ClientAddress, Flow] = OrderedDict()
        self._sweep: deque[Flow] = deque()
        """All flows, in the order in which `expire` looks at them; some may be gone."""
        self._sweeps = 0
        self._sweep_left = 0
        self._sweep_began = 0.0
        self._note_mask = 0
        """A flow is due in one sweep of `_note_mask` + 1, a power of two."""
        self._sources = array("I", bytes(4 * _BUCKETS))

    def __len__(self) -> int:
        return len(self.by_client)

    def of_ticket(self, ufrag: bytes) -> tuple[Flow, ...]:
        """The flows of one ticket, the oldest first."""
        flows = self._by_ticket.get(ufrag, ())
        return (flows,) if isinstance(flows, Flow) else flows

    def make_room(self, client: ClientAddress, ufrag: bytes) -> None:
        """Bring every table below its bound for one more flow; BadPacket when only confirmed flows of other
        tickets are left.

        Evicting the oldest provisional flow, rather than refusing the new one, means that whoever is in the
        way must be so within the transceiver's answering time.
        """
        if self._sources[_bucket(client)] >= self._share:
            raise BadPacket("source_flows")
        flows = self.of_ticket(ufrag)
        if len(flows) >= MAX_PROVISIONAL_PER_TICKET:
            waiting = [flow for flow in flows if flow.transaction is not None]
            if len(waiting) >= MAX_PROVISIONAL_PER_TICKET:
                self.remove(waiting[0], "ticket_flows")
            elif len(flows) >= MAX_FLOWS_PER_TICKET:
                self.remove(min(flows, key=_worth), "ticket_flows")
        if self._provisional and (
            len(self._provisional) >= self._share or len(self.by_client) >= self._max_flows
        ):
            self.remove(next(iter(self._provisional.values())), "table_full")
        if len(self.by_client) >= self._max_flows:
            raise BadPacket("table_full")

    def add(self, flow: Flow) -> None:
        """Take a flow in, after `make_room`."""
        client = flow.client
        self.by_client[client] = flow
        if flow.transaction is not None:
            self._provisional[client] = flow
        others = self._by_ticket.get(flow.ufrag)
        if others is None:
            self._by_ticket[flow.ufrag] = flow
        else:
            self._by_ticket[flow.ufrag] = (others, flow) if isinstance(others, Flow) else (*others, flow)
        self._sweep.append(flow)
        self._sources[_bucket(client)] += 1
        flow.route.flows += 1

    def remove(self, flow: Flow, reason: str) -> None:
        self.evicted[reason] += 1
        client, ufrag = flow.client, flow.ufrag
        del self.by_client[client]
        if flow.transaction is not None:
            del self._provisional[client]
        left = tuple(other for other in self.of_ticket(ufrag) if other is not flow)
        if left:
            self._by_ticket[ufrag] = left if len(left) > 1 else left[0]
        else:
            del self._by_ticket[ufrag]
        self._sources[_bucket(client)] -= 1
        flow.route.flows -= 1
        self._ended(flow, reason)

    def checked(self, flow: Flow, transaction: bytes, now: float) -> None:
        """A valid check of this flow came."""
        flow.checked = now
        if flow.transaction is not None:
            flow.transaction = transaction
            self._provisional.move_to_end(flow.client)

    def confirm(self, flow: Flow, now: float) -> None:
        """The transceiver answered the flow's check."""
        flow.transaction = None
        flow.confirmed_at = now
        del self._provisional[flow.client]

    def expire(self, now: float) -> list[Flow]:
        """End flows whose time is over, some of them at a time; call it a few times a second. Returns the
        confirmed ones that are due to be noted anew: all are, once in NOTE_SECONDS."""
        budget = 256 + len(self.by_client) // SWEEP_SHARE
        for _ in range(min(len(self._provisional), budget)):
            flow = next(iter(self._provisional.values()))
            if now - flow.checked < PROVISIONAL_SECONDS:
                break
            self.remove(flow, "unanswered")
        due = []
        for _ in range(min(len(self._sweep), budget)):
            if not self._sweep_left:
                self._begin_sweep(now)
            self._sweep_left -= 1
            flow = self._sweep.popleft()
            if self.by_client.get(flow.client) is not flow:
                continue
            if flow.transaction is None:
                if now - max(flow.client_seen, flow.checked, flow.confirmed_at) >= self._idle_seconds:
                    self.remove(flow, "idle")
                    continue
                if (hash(flow.client) + self._sweeps) & self._note_mask == 0:
                    due.append(flow)
            self._sweep.append(flow)
        return due

    def _begin_sweep(self, now: float) -> None:
        seconds = max(0.01, now - self._sweep_began)
        period = min(NOTE_SECONDS, self._idle_seconds)
        self._note_mask = (1 << int(log2(max(1.0, period / seconds)))) - 1
        self._sweeps += 1
        self._sweep_left = len(self._sweep)
        self._sweep_began = now

    def statistics(self) -> dict[str, int]:
        """Flows by state."""
        provisional = len(self._provisional)
        return {"provisional": provisional, "confirmed": len(self.by_client) - provisional}


def _bucket(client: ClientAddress) -> int:
    """Whom the caps count as one: an IPv4 address, or the /64 that one IPv6 subscriber has all to itself."""
    address = without_transport(client)
    return hash(address[:-2] if len(address) == IPV4_LENGTH else address[:8]) & (_BUCKETS - 1)


def _worth(flow: Flow) -> tuple[bool, bool, float, float]:
    """Which flow of a full ticket goes, the least first: unanswered, never taken up by the transceiver,
    nothing but checks, the longest silent. So the one that carries media now is the last."""
    return flow.settled, flow.transaction is None, flow.client_seen, flow.checked
