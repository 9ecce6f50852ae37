"""How a relay finds flows that it lost or never had: hellos, notes, and what it holds meanwhile."""

from __future__ import annotations

from itertools import pairwise

import pytest
from hypothesis import given
from hypothesis import strategies as st

from tests.roles.test_relay_core import BACKENDS, CLIENT, World, check, client, password
from voicegate.net.names import socket_name
from voicegate.proto import stun
from voicegate.proto.address import over_tcp, pack_address
from voicegate.proto.link_control import HELLO_RETRY_SECONDS, HELLO_SECONDS, Clients
from voicegate.roles.relay.core import SETTLING_SECONDS
from voicegate.roles.relay.flows import NEVER, NOTE_SECONDS
from voicegate.roles.relay.hellos import Hellos
from voicegate.roles.relay.recovery import (
    HOLD_SECONDS,
    MAX_ASKED,
    MAX_HELD_PER_CLIENT,
    MAX_NOTES,
    QUESTIONS_PER_SECOND,
    UNKNOWN_SECONDS,
)
from voicegate.roles.relay.routes import Peer, Route

MEDIA = b"\x80media"


@pytest.fixture
def world() -> World:
    world = World()
    world.core.recovery.enabled = True
    return world


def test_a_packet_without_a_flow_waits_for_the_answer_and_goes_on(world: World) -> None:
    ticket = world.ticket(7)
    assert world.send(MEDIA) is None and world.send(b"\x80more") is None
    assert list(world.core.recovery.questions) == [CLIENT], "asked once, whatever comes"
    flow, held = world.core.answer(CLIENT, ticket, 0, world.now + HOLD_SECONDS)
    assert flow is not None and flow.route is world.routes.get(7)
    assert [packet.data for packet in held] == [MEDIA, b"\x80more"]
    assert world.send(b"\x80next") is flow
    assert not world.core.drops


def test_what_waited_too_long_is_dropped_and_the_flow_is_made_all_the_same(world: World) -> None:
    world.send(MEDIA)
    world.now += HOLD_SECONDS + 0.01
    assert world.send(MEDIA) is None
    flow, held = world.core.answer(CLIENT, world.ticket(7), 0, world.now)
    assert flow is not None and held == []
    assert world.core.drops == {"recovery_held": 1, "recovery_late": 1}


def test_who_is_not_known_is_not_asked_after_again_for_a_while(world: World) -> None:
    world.send(MEDIA)
    assert world.core.answer(CLIENT, None, 0, world.now) == (None, [])
    world.now += UNKNOWN_SECONDS - 0.1
    world.send(MEDIA)
    assert len(world.core.recovery.questions) == 1
    world.now += 0.1
    world.send(MEDIA)
    assert len(world.core.recovery.questions) == 2
    assert world.core.drops == {"no_flow": 2}


def test_questions_have_a_rate_and_every_table_an_end(world: World) -> None:
    for number in range(MAX_ASKED + 50):
        world.send(MEDIA, client(number))
    assert len(world.core.recovery.questions) == MAX_ASKED
    assert world.core.drops == {"recovery_rate": 50}
    for _ in range(MAX_HELD_PER_CLIENT + 5):
        world.send(MEDIA, client(1))
    assert world.core.drops["recovery_held"] == 6
    asked = 0
    for number in range(3 * int(QUESTIONS_PER_SECOND)):
        world.core.answer(client(number), None, 0, world.now)
        before = len(world.core.recovery.questions)
        world.send(MEDIA, pack_address(f"10.{number >> 8}.{number & 255}.1", 5000))
        asked += len(world.core.recovery.questions) - before
        world.core.answer(pack_address(f"10.{number >> 8}.{number & 255}.1", 5000), None, 0, world.now)
    assert asked <= QUESTIONS_PER_SECOND - MAX_ASKED


def test_a_question_that_nobody_answers_is_given_up(world: World) -> None:
    world.send(MEDIA)
    world.later(1.1)
    assert world.core.drops == {"recovery_unanswered": 1}
    world.send(MEDIA)
    assert len(world.core.recovery.questions) == 2


def test_without_anybody_to_ask_nothing_is_held() -> None:
    world = World()
    world.send(MEDIA)
    assert not world.core.recovery.questions and world.core.drops == {"no_flow": 1}


@pytest.mark.parametrize("data", [b"\x50turn", b"\xff", b"\x04"])
def test_what_is_no_call_is_not_asked_after(world: World, data: bytes) -> None:
    world.send(data)
    world.send(MEDIA, over_tcp(CLIENT))
    assert not world.core.recovery.questions
    assert world.core.drops == {"unknown_kind": 1, "no_flow": 1}


def test_a_check_heals_before_the_answer_and_what_waited_goes_with_it(world: World) -> None:
    ticket = world.ticket(7)
    world.send(MEDIA)
    flow = world.check(ticket)
    assert flow is not None
    assert [packet.data for packet in world.core.recovery.settled(CLIENT)] == [MEDIA]
    again, held = world.core.answer(CLIENT, ticket, 0, world.now)
    assert again is flow and held == [] and flow.transaction is not None
    late, _ = world.core.answer(CLIENT, world.ticket(8), 0, world.now)
    assert late is None and world.core.flows[CLIENT] is flow
    assert world.core.drops == {"learned_late": 1}


@pytest.mark.parametrize("forgery", ["garbage", "transceiver", "cluster"])
def test_a_note_is_believed_no_more_than_its_ticket(world: World, forgery: str) -> None:
    ticket = {"garbage": b"x" * 23, "transceiver": world.ticket(9), "cluster": world.ticket(7, cluster=2)}[
        forgery
    ]
    world.send(MEDIA)
    assert world.core.answer(CLIENT, ticket, 0, world.now)[0] is None
    assert not world.core.flows and sum(world.core.drops.values()) == 2


def test_a_learned_flow_gives_way_to_any_valid_check_until_it_is_taken_up(world: World) -> None:
    learned, other = world.ticket(7), world.ticket(8)
    assert world.core.learn(CLIENT, learned, 0, world.now) is not None
    flow = world.check(other)
    assert flow is not None and flow.ufrag == other
    world.later(SETTLING_SECONDS + 10)
    taken_up = world.core.learn(client(1), learned, 0, world.now)
    assert taken_up is not None
    world.send(MEDIA, client(1))
    assert world.core.to_client(taken_up.route, client(1), b"\x80down", world.now) is taken_up
    assert world.check(other, client(1)) is None
    assert world.core.drops == {"flow_in_use": 1}


def test_a_learned_flow_follows_the_clients_packets_and_a_checked_one_does_not(world: World) -> None:
    ticket = world.ticket(7)
    flow = world.core.learn(CLIENT, ticket, 0, world.now)
    assert flow is not None
    assert world.send(MEDIA, port=2) is flow and flow.port == 2
    assert world.check(ticket) is flow and flow.port == 0
    assert world.send(MEDIA, port=2) is flow and flow.port == 0


def test_a_learned_flow_lives_as_long_as_any_other(world: World) -> None:
    flow = world.core.learn(CLIENT, world.ticket(7), 0, world.now)
    assert flow is not None
    world.later(59)
    assert world.core.flows[CLIENT] is flow, "a muted client says nothing until its next check"
    world.later(1)
    assert not world.core.flows


def test_an_answer_that_comes_after_the_check_changes_nothing(world: World) -> None:
    ticket = world.ticket(7)
    world.send(MEDIA, port=1)
    flow = world.check(ticket)
    assert flow is not None
    again, held = world.core.answer(CLIENT, ticket, 0, world.now)
    assert again is flow and [packet.port for packet in held] == [1]
    assert flow.port == 0 and flow.transaction is not None and flow.confirmed_at == NEVER


def test_questions_that_nobody_takes_are_bounded(world: World) -> None:
    for number in range(40 * MAX_ASKED):
        world.send(MEDIA, pack_address(f"10.{number >> 8}.{number & 255}.1", 5000))
        if number % 100 == 0:
            world.later(1.1)
    assert len(world.core.recovery.questions) <= MAX_ASKED


def test_a_stranger_gets_the_answer_to_its_check_and_nothing_more(world: World) -> None:
    flow = world.check(world.ticket(7))
    assert flow is not None
    assert world.core.to_client(flow.route, CLIENT, b"\x16a flight of DTLS", world.now) is None
    assert world.core.to_client(flow.route, CLIENT, b"\x80media", world.now) is None
    assert world.core.drops == {"frame_before_answer": 2}
    assert world.answer(flow) is flow
    assert world.core.to_client(flow.route, CLIENT, b"\x16a flight of DTLS", world.now) is flow


def test_a_replayed_check_moves_no_flow_to_another_of_our_addresses(world: World) -> None:
    ticket = world.ticket(7)
    flow = world.talking(ticket)
    world.check(ticket)
    captured = check(ticket, (3).to_bytes(12, "big"))
    assert world.send(captured) is flow
    assert world.send(captured, port=1) is None
    assert flow.port == 0 and world.core.drops == {"stun_replay": 1}
    assert world.send(check(ticket, b"really moved"), port=1) is flow and flow.port == 1


def test_a_transceiver_speaks_of_its_own_calls_only(world: World) -> None:
    seven, eight = world.routes.get(7), world.routes.get(8)
    assert world.core.learn(CLIENT, world.ticket(7), 0, world.now, told_by=eight) is None
    assert world.core.learn(CLIENT, world.ticket(7), 0, world.now, told_by=seven) is not None
    assert world.core.drops == {"learned_foreign": 1}


def test_flows_are_noted_when_confirmed_now_and_then_and_when_released(world: World) -> None:
    ticket = world.ticket(7)
    notes = world.core.recovery.notes
    flow = world.check(ticket)
    assert flow is not None and not notes
    world.answer(flow)
    assert list(notes) == [(CLIENT, ticket)]
    world.later(0.25)
    notes.clear()
    noted = [world.now]
    while len(noted) < 5:
        world.later(0.25)
        world.media(flow)
        if notes:
            assert list(notes) == [(CLIENT, ticket)]
            notes.clear()
            noted.append(world.now)
    assert all(NOTE_SECONDS / 2 <= later - earlier <= NOTE_SECONDS for earlier, later in pairwise(noted[1:]))
    world.core.release(flow.route, CLIENT)
    assert notes[-1] == (CLIENT, b"")
    idle = world.confirmed(world.ticket(8), client(1))
    world.later(61)
    assert idle.client not in world.core.flows
    assert notes[-1] == (client(1), idle.ufrag), "another relay may have it: its note runs out by itself"


def test_every_flow_of_a_large_table_is_noted_in_its_time() -> None:
    world = World(max_flows=20_000)
    world.core.recovery.enabled = True
    clients = [client(number) for number in range(10_000)]
    for who in clients:
        world.confirmed(world.ticket(), who)
    notes, last = world.core.recovery.notes, dict.fromkeys(clients, world.now)
    for _ in range(4 * 200):
        notes.clear()
        world.later(0.25)
        for flow in world.core.flows.values():
            flow.client_seen = world.now
        for who, _ in notes:
            last[who] = world.now
        assert len(notes) < 1000, "not all at once"
        assert min(last.values()) >= world.now - 1.5 * NOTE_SECONDS
    assert len(world.core.flows) == 10_000


def test_notes_that_nobody_takes_are_bounded(world: World) -> None:
    for number in range(MAX_NOTES + 10):
        world.core.recovery.note(client(number & 0xFFFF), b"t" * 23)
    assert len(world.core.recovery.notes) == MAX_NOTES
    assert world.core.recovery.counts["notes_dropped"] == 10


# Two tiers


def two_clusters() -> tuple[World, Route]:
    world = World()
    peers = [Peer(2, "10.0.0.20:4000"), Peer(2, "10.0.0.20:4001"), Peer(1, "10.0.0.30:4000")]
    peers.append(Peer(3, "192.168.0.1:1"))
    world.routes.update(BACKENDS, peers)
    route = world.routes.by_address[pack_address("10.0.0.20", 4000)]
    return world, route


def test_a_ticket_of_another_cluster_goes_to_one_of_its_relays_and_stays_there() -> None:
    world, _ = two_clusters()
    routes = set()
    for number in range(40):
        flow = world.confirmed(world.ticket(7, cluster=2), client(number))
        assert flow.route.cluster == 2 and flow.route.back is not None
        assert flow.route.header[0] & 15 == 1 and flow.route.back.header[0] & 15 == 0
        assert world.send(MEDIA, client(number)) is flow
        routes.add(flow.route)
    assert len(routes) == 2, "both workers of the other relay get some"
    assert world.check(world.ticket(7, cluster=3)) is None
    assert world.check(world.ticket(7, cluster=4)) is None
    assert world.core.drops == {"ticket_cluster": 2}


def test_our_own_clusters_relays_are_no_peers_and_strangers_networks_neither() -> None:
    world, _ = two_clusters()
    assert pack_address("10.0.0.30", 4000) not in world.routes.by_address
    assert pack_address("192.168.0.1", 1) not in world.routes.by_address


def test_a_packet_passes_two_relays_at_most() -> None:
    world, peer = two_clusters()
    ticket = world.ticket(7, cluster=2)
    assert world.core.from_client(check(ticket), CLIENT, peer.sink, world.now, world.wall, hops=1) is None
    assert world.core.drops == {"hop_limit": 1}
    assert not world.core.flows


def test_a_relay_that_goes_is_given_nothing_new_and_one_that_is_dead_is_avoided() -> None:
    world, peer = two_clusters()
    peer.dead = True
    made = [world.check(world.ticket(7, cluster=2), client(number)) for number in range(20)]
    assert all(flow is not None and flow.route is not peer for flow in made)
    world.routes.update({}, [])
    assert world.check(world.ticket(7, cluster=2), client(30)) is None
    world.routes.update({}, [Peer(2, "10.0.0.20:4000")])
    assert world.routes.by_address[pack_address("10.0.0.20", 4000)] is peer, "the same way out as before"


def test_ways_back_have_numbers_of_their_own() -> None:
    world, peer = two_clusters()
    assert {route.sink for route in world.routes.by_address.values() if route.back} == {1, 2}
    assert world.routes.backs[peer.sink - 1] is peer.back
    assert peer.back is not None and peer.back.name == socket_name("10.0.0.20", 4000)


# Hellos


class Said:
    """Hellos to two transceivers, on a clock."""

    def __init__(self) -> None:
        self.world = World()
        self.hellos = Hellos("frankfurt", 1_700_000_000_000)
        self.routes = self.world.routes.neighbours()
        self.now = 50.0
        self.hellos.update(self.routes, self.now)


def test_a_hello_is_repeated_until_all_of_its_answer_has_come() -> None:
    said = Said()
    first, second = said.hellos.poll(said.now)
    assert {first[0], second[0]} == set(said.routes) and first[1].number != second[1].number
    assert (first[1].ingress, first[1].boot) == ("frankfurt", 1_700_000_000_000)
    assert said.hellos.poll(said.now) == []
    assert said.hellos.next_deadline() == said.now + HELLO_RETRY_SECONDS[0]
    said.now += HELLO_RETRY_SECONDS[0]
    assert len(said.hellos.poll(said.now)) == 2
    route, hello = first
    assert said.hellos.answered(route, Clients(hello.number, 0, 2, ()), said.now)
    assert said.hellos.waiting() == 2
    assert not said.hellos.answered(route, Clients(hello.number + 100, 1, 2, ()), said.now)
    assert not said.hellos.answered(second[0], Clients(hello.number, 1, 2, ()), said.now)
    assert said.hellos.answered(route, Clients(hello.number, 1, 2, ()), said.now)
    assert said.hellos.waiting() == 1
    assert not said.hellos.answered(route, Clients(hello.number, 1, 2, ()), said.now), "it is a replay"
    said.now += HELLO_SECONDS
    assert {(r, h.number == 0) for r, h in said.hellos.poll(said.now)} == {(route, True), (second[0], False)}


def test_a_transceiver_that_started_anew_is_asked_anew() -> None:
    said = Said()
    for route, hello in said.hellos.poll(said.now):
        said.hellos.answered(route, Clients(hello.number, 0, 1, ()), said.now)
    said.hellos.update(said.routes, said.now)
    assert said.hellos.poll(said.now) == []
    said.routes[0].receiver += "again"
    said.hellos.update(said.routes, said.now)
    assert [route for route, _ in said.hellos.poll(said.now)] == [said.routes[0]]
    said.hellos.update([], said.now)
    assert said.hellos.next_deadline() is None


@given(st.lists(st.floats(0, 3), max_size=30))
def test_hellos_never_come_faster_than_their_schedule(steps: list[float]) -> None:
    said = Said()
    sent: list[float] = []
    for step in steps:
        said.now += step
        sent += [said.now for route, _ in said.hellos.poll(said.now) if route is said.routes[0]]
    gaps = [later - earlier for earlier, later in pairwise(sent)]
    for number, gap in enumerate(gaps):
        assert gap >= HELLO_RETRY_SECONDS[min(number, len(HELLO_RETRY_SECONDS) - 1)] - 1e-9


def test_a_note_of_an_answered_check_survives_the_relay(world: World) -> None:
    """The whole round: a second relay with the notes of the first forwards the next packet of a call."""
    flow = world.talking(world.ticket(8))
    second = World()
    second.core.recovery.enabled = True
    notes = dict(world.core.recovery.notes)
    assert second.send(MEDIA) is None
    again, held = second.core.answer(CLIENT, notes[CLIENT], 0, second.now)
    assert again is not None and again.ufrag == flow.ufrag and [packet.data for packet in held] == [MEDIA]
    success = stun.binding_success(b"T" * 12, CLIENT, password(again))
    assert second.core.to_client(again.route, CLIENT, success, second.now) is again
