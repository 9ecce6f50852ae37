"""The relay's rules without a socket or a clock: who gets a flow, who keeps it, who loses it."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from voicegate.net.names import socket_name
from voicegate.proto import stun
from voicegate.proto.address import ClientAddress, pack_address
from voicegate.proto.keys import ClusterKeys
from voicegate.proto.link import LinkGuard, link_header
from voicegate.roles.relay.core import IN_USE_SECONDS, SETTLING_SECONDS, RelayCore
from voicegate.roles.relay.flows import (
    MAX_FLOWS_PER_TICKET,
    MAX_PROVISIONAL_PER_TICKET,
    PROVISIONAL_SECONDS,
    Flow,
)
from voicegate.roles.relay.routes import Backend, RouteTable

KEYS = ClusterKeys.parse(["1:" + "k" * 32])
WALL = 1_800_000_000.0
HOUR = int(WALL // 3600)
LINK = "10.0.0.1:4000"
PUBLIC = pack_address("203.0.113.10", 3478)
CLIENT = pack_address("198.51.100.7", 50000)
BACKENDS = {
    7: Backend(1, "10.0.0.7:5000", "boot-7"),
    8: Backend(1, "10.0.0.8:5000", "boot-8"),
}


class World:
    """A relay core and the clock, with a word for each thing that happens to it."""

    def __init__(self, *, max_flows: int = 1000) -> None:
        self.now = 100.0
        self.wall = WALL
        self.routes = RouteTable(
            KEYS,
            cluster=1,
            link=LINK,
            allowed_networks=["10.0.0.0/24", "127.0.0.0/8"],
            name_of=socket_name,
            hour=HOUR,
        )
        self.core = RelayCore(
            KEYS, self.routes, cluster=1, public=[PUBLIC], max_flows=max_flows, idle_seconds=60.0
        )
        self.routes.update(BACKENDS)
        self._nonce = 0
        self._transaction = 0

    def ticket(self, transceiver: int = 7, *, cluster: int = 1, lifetime: float = 3600.0) -> bytes:
        self._nonce += 1
        nonce = self._nonce.to_bytes(5, "big")
        return KEYS.tickets.mint(cluster, transceiver, self.wall + lifetime, nonce).encode()

    def send(self, data: bytes, client: ClientAddress = CLIENT, port: int = 0) -> Flow | None:
        return self.core.from_client(data, client, port, self.now, self.wall)

    def check(self, ticket: bytes, client: ClientAddress = CLIENT) -> Flow | None:
        self._transaction += 1
        return self.send(check(ticket, self._transaction.to_bytes(12, "big")), client)

    def answer(self, flow: Flow) -> Flow | None:
        """The transceiver's Binding success to the flow's last check goes back."""
        transaction = flow.transaction if flow.transaction is not None else bytes(12)
        success = stun.binding_success(transaction, flow.client, password(flow))
        return self.core.to_client(flow.route, flow.client, success, self.now)

    def confirmed(self, ticket: bytes, client: ClientAddress = CLIENT) -> Flow:
        flow = self.check(ticket, client)
        assert flow is not None
        self.answer(flow)
        assert flow.transaction is None
        return flow

    def talking(self, ticket: bytes, client: ClientAddress = CLIENT) -> Flow:
        """A live call: checked, answered, and media went both ways."""
        flow = self.confirmed(ticket, client)
        self.media(flow)
        return flow

    def media(self, flow: Flow) -> None:
        assert self.send(b"\x80up", flow.client) is flow
        assert self.core.to_client(flow.route, flow.client, b"\x80down", self.now) is flow

    def later(self, seconds: float) -> None:
        self.now += seconds
        self.wall += seconds
        self.core.tick(self.now)


def check(ticket: bytes, transaction: bytes = bytes(12), password: bytes | None = None) -> bytes:
    password = KEYS.tickets.password(ticket) if password is None else password
    return stun.binding_request(transaction, ticket + b":abcd", password, priority=1, tie_breaker=1)


def password(flow: Flow) -> bytes:
    return KEYS.tickets.password(flow.ufrag)


def client(number: int) -> ClientAddress:
    return pack_address(f"198.51.{number >> 8}.{number & 255}", 50000)


def test_a_released_address_is_free_for_another_call_at_once() -> None:
    world = World()
    flow = world.confirmed(world.ticket(7))
    with_other = world.ticket(8)
    assert world.check(with_other) is None
    other_route = world.routes.get(8)
    assert other_route is not None
    world.core.release(other_route, CLIENT)
    assert world.core.flows[CLIENT] is flow, "only the owner releases"
    world.core.release(flow.route, CLIENT)
    assert not world.core.flows
    assert world.check(with_other) is not None


def test_a_flow_is_made_by_a_check_and_confirmed_by_its_answer() -> None:
    world = World()
    assert world.send(b"\x80early") is None
    flow = world.check(world.ticket())
    assert flow is not None and flow.transaction is not None
    assert flow.route.address == pack_address("10.0.0.7", 5000)
    assert world.send(b"\x80media") is flow
    assert world.core.statistics() == {"provisional": 1, "confirmed": 0}
    other = stun.binding_success(b"other check!", CLIENT, password(flow))
    assert world.core.to_client(flow.route, CLIENT, other, world.now) is flow
    error = stun.binding_error(flow.transaction, stun.ErrorCode.ROLE_CONFLICT, password(flow))
    assert world.core.to_client(flow.route, CLIENT, error, world.now) is flow
    assert world.core.statistics() == {"provisional": 1, "confirmed": 0}
    assert world.answer(flow) is flow
    assert world.core.statistics() == {"provisional": 0, "confirmed": 1}
    assert world.core.drops == {"no_flow": 1}


def test_the_answer_to_the_latest_check_counts() -> None:
    world = World()
    ticket = world.ticket()
    world.check(ticket)
    flow = world.check(ticket)
    assert flow is not None
    stale = stun.binding_success((1).to_bytes(12, "big"), CLIENT, password(flow))
    world.core.to_client(flow.route, CLIENT, stale, world.now)
    assert flow.transaction is not None
    world.answer(flow)
    assert flow.transaction is None


@pytest.mark.parametrize(
    ("backend", "reason"),
    [
        (None, "transceiver_unknown"),
        (Backend(2, "10.0.0.9:5000", "b"), "transceiver_cluster"),
        (Backend(1, "10.0.1.9:5000", "b"), "transceiver_network"),
        (Backend(1, "192.168.0.1:22", "b"), "transceiver_network"),
        (Backend(1, "[::ffff:192.168.0.1]:22", "b"), "transceiver_network"),
        (Backend(1, "[2001:db8::1]:5000", "b"), "transceiver_address"),
        (Backend(1, "10.0.0.9:0", "b"), "transceiver_address"),
        (Backend(1, "redis:6379", "b"), "transceiver_address"),
        (Backend(1, "10.0.0.9", "b"), "transceiver_address"),
    ],
)
def test_only_registered_and_allowed_transceivers_are_reached(backend: Backend | None, reason: str) -> None:
    world = World()
    if backend is not None:
        world.routes.update({**BACKENDS, 9: backend})
    assert world.check(world.ticket(9)) is None
    assert world.core.drops == {reason: 1}


def test_an_ipv4_mapped_spelling_of_an_allowed_address_is_that_address() -> None:
    world = World()
    world.routes.update({9: Backend(1, "[::ffff:10.0.0.9]:5000", "b")})
    flow = world.check(world.ticket(9))
    assert flow is not None and flow.route.address == pack_address("10.0.0.9", 5000)


def test_expiry_gates_the_making_of_a_flow_and_not_the_flow() -> None:
    world = World()
    ticket = world.ticket(lifetime=32)
    flow = world.confirmed(ticket)
    world.later(49)
    assert world.check(ticket) is flow
    assert world.check(ticket, client(1)) is None
    assert world.core.drops == {"ticket_expired": 1}


def test_integrity_is_checked_for_new_and_for_known_flows() -> None:
    world = World()
    ticket = world.ticket()
    assert world.send(check(ticket, password=b"guess")) is None
    world.confirmed(ticket)
    assert world.send(check(ticket, password=b"guess")) is None
    assert world.core.drops == {"stun_integrity": 2}


def test_a_flow_in_use_is_not_taken_over() -> None:
    world = World()
    mine, theirs = world.ticket(7), world.ticket(8)
    flow = world.talking(mine)
    for _ in range(3):
        world.later(IN_USE_SECONDS - 0.1)
        assert world.check(theirs) is None
        world.media(flow)
    assert world.check(mine) is flow
    assert world.core.drops == {"flow_in_use": 3}


def test_a_flow_of_rare_packets_is_not_taken_over() -> None:
    """Without audio there are the heartbeats of SCTP, each 30 s (RFC 9260 section 8.3), and the checks."""
    world = World()
    mine, theirs = world.ticket(7), world.ticket(8)
    flow = world.talking(mine)
    for _ in range(4):
        for _ in range(12):
            world.later(2.5)
            assert world.check(mine) is flow
            world.answer(flow)
            assert world.check(theirs) is None
        assert world.send(b"\x17heartbeat") is flow
    assert world.core.drops == {"flow_in_use": 48}


def test_a_flow_whose_transceiver_fell_silent_is_taken_over() -> None:
    world = World()
    old = world.talking(world.ticket(7))
    world.later(IN_USE_SECONDS)
    assert world.send(b"\x80still here") is old
    new = world.check(world.ticket(8))
    assert new is not None and new is not old and new.transaction is not None
    assert world.core.to_client(old.route, CLIENT, b"\x80late", world.now) is None
    assert world.core.statistics() == {"provisional": 1, "confirmed": 0}


@pytest.mark.parametrize("forged", [[], [b"\x80forged", b"\x16forged"]])
def test_a_flow_that_saw_only_checks_is_taken_over(forged: list[bytes]) -> None:
    """Nor do other packets hold it that anybody can forge: the transceiver has to have taken them up."""
    world = World()
    first, second = world.ticket(7), world.ticket(8)
    flow = world.confirmed(first)
    world.later(SETTLING_SECONDS - 0.1)
    assert world.check(second) is None
    world.later(0.1)
    assert world.check(first) is flow
    world.answer(flow)
    for packet in forged:
        assert world.send(packet) is flow
    new = world.check(second)
    assert new is not None and new.route is world.routes.get(8)
    assert world.core.drops == {"flow_in_use": 1}


def test_a_flow_whose_transceiver_alone_speaks_is_taken_over() -> None:
    world = World()
    flow = world.confirmed(world.ticket(7))
    world.later(SETTLING_SECONDS)
    world.core.to_client(flow.route, CLIENT, b"\x16hello?", world.now)
    assert world.check(world.ticket(8)) is not None


@pytest.mark.parametrize("period", [0.02, 0.3, 1.0])
@pytest.mark.parametrize("head_start", [0.0, 5.0])
@pytest.mark.parametrize("forged", [[], [b"\x80forged"]])
def test_nobody_holds_an_address_by_using_it_first(
    period: float, head_start: float, forged: list[bytes]
) -> None:
    """The holder of a valid ticket sends checks with the client's address as source, before and while the
    client connects: the client's call must come about, and then nothing moves it."""
    world = World()
    attack, ticket = world.ticket(8), world.ticket(7)
    began, next_forged, next_check = world.now, world.now, world.now + head_start + 0.01
    hello_due = float("inf")
    connected: float | None = None
    while world.now < began + head_start + 20:
        world.later(0.01)
        if world.now >= next_forged:
            next_forged += period
            flow = world.check(attack)
            if flow is not None:
                world.answer(flow)
            for packet in forged:
                world.send(packet)
        if world.now >= next_check:
            next_check += 0.48  # Chromium's interval for a pair that is not writable yet
            flow = world.check(ticket)
            if flow is not None:
                world.answer(flow)
                hello_due = min(hello_due, world.now + 0.3)
        if world.now >= hello_due:
            flow = world.send(b"\x16hello")
            assert flow is not None
            if flow.route is world.routes.get(7):
                world.media(flow)
                connected = connected or world.now
            hello_due = world.now + (0.02 if connected else 1.0)
        elif connected:
            assert world.core.flows[CLIENT].ufrag == ticket
    assert connected is not None
    assert connected - began - head_start < SETTLING_SECONDS + 2


def test_a_provisional_flow_yields_to_the_next_ticket() -> None:
    world = World()
    world.check(world.ticket(8))
    flow = world.check(world.ticket(7))
    assert flow is not None and flow.route.address == pack_address("10.0.0.7", 5000)
    assert len(world.core.flows) == 1


def test_a_transceiver_reaches_only_its_own_clients() -> None:
    world = World()
    flow = world.confirmed(world.ticket(7))
    other = world.routes.by_address[pack_address("10.0.0.8", 5000)]
    assert world.core.to_client(other, CLIENT, b"\x80", world.now) is None
    assert world.core.to_client(flow.route, client(1), b"\x80", world.now) is None
    assert world.core.drops == {"frame_without_flow": 2}


@pytest.mark.parametrize("address", [PUBLIC, pack_address("198.51.100.7", 0)])
def test_nobody_is_made_to_talk_to_itself(address: ClientAddress) -> None:
    world = World()
    assert world.check(world.ticket(), address) is None
    assert world.core.drops == {"client_address": 1}


def test_a_ticket_has_a_few_provisional_flows_and_the_oldest_goes() -> None:
    world = World()
    ticket = world.ticket()
    for number in range(MAX_PROVISIONAL_PER_TICKET + 3):
        assert world.check(ticket, client(number)) is not None
    assert list(world.core.flows) == [client(n) for n in range(3, MAX_PROVISIONAL_PER_TICKET + 3)]
    assert world.core.table.evicted == {"ticket_flows": 3}


def test_a_full_ticket_gives_up_a_flow_of_checks_and_then_the_longest_silent() -> None:
    world = World()
    ticket = world.ticket()
    talking = [world.talking(ticket, client(number)) for number in range(3)]
    for number in range(3, MAX_FLOWS_PER_TICKET):
        world.confirmed(ticket, client(number))
    # Forged packets make a flow look alive, and are not taken up by the transceiver.
    world.later(1)
    world.send(b"\x80forged", client(3))
    for number in range(100, 105):
        world.later(1)
        world.talking(ticket, client(number))
    assert all(world.core.flows[flow.client] is flow for flow in talking)
    assert [client(number) in world.core.flows for number in range(3, MAX_FLOWS_PER_TICKET)] == [False] * 5
    world.media(talking[0])
    for number in (105, 106):
        world.later(1)
        world.talking(ticket, client(number))
    assert list(world.core.flows) == [client(0), *[client(n) for n in range(100, 107)]]
    assert world.core.table.evicted == {"ticket_flows": 7}
    assert not world.core.drops


def test_a_replayed_check_makes_no_flow() -> None:
    world = World()
    ticket = world.ticket()
    captured = [check(ticket, bytes([number]) * 12) for number in range(64)]
    for data in captured:
        assert world.send(data) is not None
    flow = world.core.flows[CLIENT]
    world.answer(flow)
    for data in captured:
        assert world.send(data, client(1)) is None
        assert world.send(data, pack_address("2001:db8::1", 5000)) is None
    assert world.core.drops == {"stun_replay": 2 * 64}
    # Its own address may repeat it (RFC 8489 section 6.2.1), also when the flow has gone meanwhile.
    assert world.send(captured[0]) is flow
    other = world.confirmed(ticket, client(2))
    world.core.release(flow.route, CLIENT)
    assert world.send(captured[-1]) is not None
    assert world.core.flows[other.client] is other


@pytest.mark.parametrize("captures", [1, 256])
def test_replays_do_not_keep_a_client_from_a_new_port(captures: int) -> None:
    world = World()
    ticket = world.ticket()
    captured = [check(ticket, (1 << 90 | number).to_bytes(12, "big")) for number in range(captures)]
    for data in captured:
        flow = world.send(data)
    assert flow is not None
    world.answer(flow)
    for moves in range(3):
        world.media(flow)
        for number, data in enumerate(captured[:64]):
            world.later(0.05)
            replayed = world.send(data, client(1 + number % 24))
            if replayed is not None:
                world.answer(replayed)
                world.send(b"\x80forged", replayed.client)
            world.media(flow)
        assert world.core.flows[flow.client] is flow, "never the one that carries media"
        flow = world.talking(ticket, pack_address("198.51.100.7", 51000 + moves))
    assert world.core.drops.keys() == {"stun_replay", "no_flow"} - ({"no_flow"} if captures else set())


@pytest.mark.parametrize("ahead", [False, True])
def test_replays_do_not_keep_a_client_from_connecting(ahead: bool) -> None:
    """The first check comes again from 30 addresses, at once and for as long as the set-up takes. `ahead`:
    even before the client's own, which then takes a second check."""
    world = World()
    ticket = world.ticket()
    captured = check(ticket, b"first check!")

    def replay() -> None:
        for number in range(30):
            flow = world.send(captured, client(1 + number))
            if flow is not None:
                world.answer(flow)

    if ahead:
        replay()
    flow = world.send(captured)
    assert (flow is None) == ahead
    replay()
    if flow is None:
        world.later(0.05)
        flow = world.check(ticket)
        replay()
    assert flow is not None
    world.answer(flow)
    assert flow.transaction is None
    for _ in range(100):
        replay()
        world.media(flow)
        world.later(0.02)
    assert len(world.core.flows) <= 2


def test_a_source_has_its_share_of_the_table() -> None:
    world = World(max_flows=200)
    one_host = [pack_address("198.51.100.7", port) for port in range(1, 30)]
    one_subscriber = [pack_address(f"2001:db8:0:1::{n:x}", 5000) for n in range(1, 30)]
    for addresses in (one_host, one_subscriber):
        made = [world.check(world.ticket(), address) for address in addresses]
        assert sum(flow is not None for flow in made) == 20
        world.later(PROVISIONAL_SECONDS)
    assert world.core.drops == {"source_flows": 18}
    assert world.check(world.ticket(), pack_address("2001:db8:0:2::1", 5000)) is not None


def test_a_full_table_keeps_what_is_confirmed() -> None:
    world = World(max_flows=100)
    calls = [world.confirmed(world.ticket(), client(number)) for number in range(95)]
    for number in range(100, 200):
        assert world.check(world.ticket(), client(number)) is not None
        assert len(world.core.flows) <= 100
    assert all(world.core.flows[flow.client] is flow for flow in calls)
    for number in range(300, 305):
        world.confirmed(world.ticket(), client(number))
    assert world.check(world.ticket(), client(400)) is None
    assert world.core.drops == {"table_full": 1}


def test_flows_end_when_nobody_answers_or_speaks() -> None:
    world = World()
    flow = world.confirmed(world.ticket())
    world.check(world.ticket(), client(1))
    world.later(PROVISIONAL_SECONDS - 0.1)
    assert len(world.core.flows) == 2
    # What is not a check keeps no provisional flow alive.
    world.send(b"\x80", client(1))
    world.later(0.1)
    assert list(world.core.flows) == [CLIENT]
    world.send(b"\x80")
    world.later(59.9)
    # The transceiver's side alone does not keep a flow: the client is who may have left.
    world.core.to_client(flow.route, CLIENT, b"\x80", world.now)
    assert len(world.core.flows) == 1
    world.later(0.1)
    assert not world.core.flows
    assert world.core.table.evicted == {"unanswered": 1, "idle": 1}


@pytest.mark.parametrize("checks", [True, False])
def test_checks_or_media_alone_keep_a_flow(checks: bool) -> None:
    world = World()
    ticket = world.ticket()
    flow = world.confirmed(ticket)
    for _ in range(5):
        world.later(59)
        assert (world.check(ticket) if checks else world.send(b"\x80")) is flow
    world.later(60)
    assert not world.core.flows


def test_a_large_table_is_swept_in_pieces() -> None:
    world = World(max_flows=100_000)
    for number in range(2000):
        world.confirmed(world.ticket(), client(number))
    world.later(61)
    left = len(world.core.flows)
    assert 0 < left < 2000
    for _ in range(10):
        world.later(1)
    assert not world.core.flows


def test_flows_follow_a_transceiver_that_moves_and_outlive_its_record() -> None:
    world = World()
    flow = world.confirmed(world.ticket(7))
    world.routes.update({7: Backend(1, "10.0.0.77:5000", "boot-77")})
    assert flow.route.name == socket_name("10.0.0.77", 5000)
    assert pack_address("10.0.0.7", 5000) not in world.routes.by_address
    expected = link_header(KEYS.link[1], 1, LINK, "10.0.0.77:5000#boot-77", HOUR)
    assert flow.route.header == expected
    world.routes.update({})
    assert world.send(b"\x80") is flow
    assert world.check(world.ticket(7), client(1)) is None
    assert world.routes.listed() == 0
    world.later(61)
    world.later(1)
    assert not world.routes.by_address


def test_link_headers_turn_with_the_hour_and_are_checked() -> None:
    world = World()
    route = world.routes.by_address[pack_address("10.0.0.7", 5000)]
    guard = LinkGuard(KEYS.link, "10.0.0.7:5000#boot-7")
    first = route.header
    assert guard.accepts(LINK, first, HOUR)
    world.routes.begin_hour(HOUR + 2)
    assert route.header != first
    assert guard.accepts(LINK, route.header, HOUR + 2)
    genuine = link_header(KEYS.link[1], 1, "10.0.0.7:5000", LINK, HOUR + 2)
    assert world.routes.genuine(route, genuine)
    assert world.routes.genuine(route, genuine)
    assert not world.routes.genuine(route, genuine[:-1] + bytes([genuine[-1] ^ 1]))
    assert not world.routes.genuine(route, link_header(KEYS.link[1], 1, "10.0.0.8:5000", LINK, HOUR + 2))


@given(st.lists(st.tuples(st.binary(max_size=60), st.integers(0, 3), st.booleans()), max_size=40))
def test_arbitrary_packets_make_no_flow_and_leave_the_counts_right(
    packets: list[tuple[bytes, int, bool]],
) -> None:
    world = World()
    flow = world.confirmed(world.ticket())
    for data, number, as_stun in packets:
        packet = b"\0\1" + data[:2] + stun.COOKIE + data if as_stun else data
        world.send(packet, client(number))
    assert world.core.flows == {CLIENT: flow}
    assert sum(world.core.drops.values()) == len(packets)


@given(
    st.lists(
        st.tuples(
            st.sampled_from(["check", "replay", "answer", "media", "down", "wait"]),
            st.integers(0, 5),
            st.integers(0, 5),
        ),
        max_size=60,
    )
)
def test_the_tables_agree_whatever_happens(steps: list[tuple[str, int, int]]) -> None:
    world = World(max_flows=4)
    tickets = [world.ticket(7 + number % 2) for number in range(6)]
    for step, who, which in steps:
        flow = world.core.flows.get(client(who))
        match step:
            case "check":
                world.check(tickets[which], client(who))
            case "answer" if flow is not None:
                world.answer(flow)
            case "media":
                world.send(b"\x80", client(who))
            case "down" if flow is not None:
                world.core.to_client(flow.route, client(who), b"\x80", world.now)
            case "replay":
                world.send(check(tickets[which], bytes(12)), client(who))
            case "wait":
                world.later(which)
    states = world.core.statistics()
    assert states["provisional"] + states["confirmed"] == len(world.core.flows) <= 4
    for id in BACKENDS:
        route = world.routes.get(id)
        assert route is not None
        expected = sum(flow.route is route for flow in world.core.flows.values())
        assert route.flows == expected
    for ticket in tickets:
        assert set(world.core.table.of_ticket(ticket)) == {
            flow for flow in world.core.flows.values() if flow.ufrag == ticket
        }
