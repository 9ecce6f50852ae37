"""The relay's thread on real loopback sockets of both kinds, with hand-made clients and transceivers."""

from __future__ import annotations

import os
import socket
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass

import msgspec
import pytest

from voicegate.net.names import socket_name
from voicegate.net.registry import RelayRecord
from voicegate.net.streams import Streams, open_listener
from voicegate.net.udp import HAS_MMSG, Arena, Batching, MmsgSocket, UdpSocket, open_udp
from voicegate.proto import rfc4571, stun
from voicegate.proto.address import ClientAddress, join_host_port, over_tcp, pack_address
from voicegate.proto.keys import ClusterKeys
from voicegate.proto.link import (
    CONTROL,
    DATA,
    HOUR,
    LINK_HEADER_LENGTH,
    MAX_DATAGRAM,
    MAX_PAYLOAD,
    LinkGuard,
    encode_frame,
    link_header,
    pack_frames,
    parse_frames_untrusted,
)
from voicegate.proto.link_control import Hello, answer_hello, parse_control_untrusted
from voicegate.roles.relay.byways import Answer, Directory
from voicegate.roles.relay.core import RelayCore
from voicegate.roles.relay.dataplane import DataPlane
from voicegate.roles.relay.hellos import Hellos
from voicegate.roles.relay.routes import Backend, RouteTable

KEYS = ClusterKeys.parse(["1:" + "k" * 32])
OTHER_KEYS = ClusterKeys.parse(["1:" + "x" * 32])
MODES = [pytest.param("auto", marks=pytest.mark.skipif(not HAS_MMSG, reason="needs Linux")), "off"]


class Peer:
    """A UDP socket of the test's: a client, or a transceiver's link socket."""

    def __init__(self, host: str = "127.0.0.1") -> None:
        self.sock = socket.socket(socket.AF_INET6 if ":" in host else socket.AF_INET, socket.SOCK_DGRAM)
        self.sock.settimeout(5)
        self.sock.bind((host, 0))
        self.packed = pack_address(*self.sock.getsockname()[:2])
        self.text = join_host_port(*self.sock.getsockname()[:2])

    def send(self, data: bytes, to: UdpSocket) -> None:
        self.sock.sendto(data, to.address())

    def receive(self) -> bytes:
        return self.sock.recv(4096)


class Transceiver(Peer):
    """It opens link datagrams as the real one does, and says what the test tells it to."""

    def __init__(self, id: int, relay: UdpSocket) -> None:
        super().__init__()
        self.id = id
        self.backend = Backend(1, self.text, "boot")
        self._relay = relay
        self._relay_name = join_host_port(*relay.address())
        self._guard = LinkGuard(KEYS.link, f"{self.text}#boot")

    def ticket(self, *, lifetime: float = 3600, cluster: int = 1, keys: ClusterKeys = KEYS) -> bytes:
        return keys.tickets.mint(cluster, self.id, time.time() + lifetime, os.urandom(5)).encode()

    def frames(self) -> list[tuple[ClientAddress, bytes]]:
        deadline = time.monotonic() + 5
        while (datagram := self.receive())[0] >> 4 == CONTROL:  # the relay says hello until it is answered
            assert time.monotonic() < deadline, "no frames came"
        assert self._guard.accepts(self._relay_name, datagram[:LINK_HEADER_LENGTH], int(time.time() // HOUR))
        assert len(datagram) <= MAX_DATAGRAM or len(parse_frames_untrusted(datagram)) == 1
        return parse_frames_untrusted(datagram)

    def hello(self) -> Hello:
        while (datagram := self.receive())[0] >> 4 != CONTROL:
            pass
        message = parse_control_untrusted(datagram)
        assert isinstance(message, Hello)
        return message

    def header(self, keys: ClusterKeys = KEYS, *, version: int = DATA) -> bytes:
        hour = int(time.time() // HOUR)
        return keys.link_header(self.text, self._relay_name, hour, version=version)

    def answer(self, *frames: tuple[ClientAddress, bytes]) -> None:
        for datagram in pack_frames(self.header(), frames):
            self.send(datagram, self._relay)

    def answer_check(self, frame: tuple[ClientAddress, bytes], ticket: bytes) -> bytes:
        client, request = frame
        success = stun.binding_success(stun.transaction_id(request), client, KEYS.tickets.password(ticket))
        self.answer((client, success))
        return success


@dataclass
class Relay:
    core: RelayCore
    plane: DataPlane
    public: list[UdpSocket]
    link: UdpSocket
    listener: socket.socket
    records: dict[int, Backend]
    relays: dict[int, RelayRecord]
    thread: threading.Thread
    reports: list[Exception]

    def start(self) -> None:
        self.thread.start()

    def link_name(self) -> str:
        return join_host_port(*self.link.address())

    def transceiver(self, id: int) -> Transceiver:
        transceiver = Transceiver(id, self.link)
        self.records = {**self.records, id: transceiver.backend}
        return transceiver

    def via(self, client: Peer) -> UdpSocket:
        return self.public[client.text.startswith("[")]

    def connect(self, client: Peer, transceiver: Transceiver) -> bytes:
        """A check and its answer through the relay; the ticket."""
        ticket = transceiver.ticket()
        client.send(check(ticket), self.via(client))
        [frame] = transceiver.frames()
        assert frame == (client.packed, check(ticket))
        success = transceiver.answer_check(frame, ticket)
        assert client.receive() == success
        return ticket

    def wait_for_drop(self, reason: str, count: int = 1) -> None:
        until(lambda: self.core.drops[reason] >= count)


def until(condition: Callable[[], bool]) -> None:
    """The relay's thread has its own pace: wait for what it did, not for how long it takes."""
    deadline = time.monotonic() + 5
    while not condition():
        assert time.monotonic() < deadline, "it did not come about"
        time.sleep(0.001)


@pytest.fixture(params=MODES)
def relay(request: pytest.FixtureRequest) -> Iterator[Relay]:
    with running(request.param, cluster=1) as relay:
        yield relay


@pytest.fixture(params=MODES)
def far_relay(request: pytest.FixtureRequest) -> Iterator[Relay]:
    """A relay of another cluster, which has no transceivers."""
    with running(request.param, cluster=2) as relay:
        yield relay


@contextmanager
def running(batching: Batching, cluster: int, boot: int = 1) -> Iterator[Relay]:
    arena = Arena(addresses=batching == "auto")
    link = open_udp("127.0.0.1", 0, batching=batching, arena=arena, errors=True)
    public = [open_udp(host, 0, batching=batching, arena=arena) for host in ("127.0.0.1", "::1")]
    routes = RouteTable(
        KEYS,
        cluster=cluster,
        link=join_host_port(*link.address()),
        allowed_networks=["127.0.0.0/8"],
        name_of=socket_name,
        hour=int(time.time() // HOUR),
        first_sink=len(public) + 1,
    )
    core = RelayCore(
        KEYS,
        routes,
        cluster=cluster,
        public=[pack_address(*sock.address()) for sock in public],
        max_flows=1000,
        idle_seconds=60,
    )
    reports: list[Exception] = []
    listener = open_listener("127.0.0.1", 0, reuse_port=False)
    streams = Streams([listener], max_connections=10, idle_seconds=60)
    plane = DataPlane(
        core,
        public,
        link,
        arena,
        streams=streams,
        hellos=Hellos("near" if cluster == 1 else "far", boot),
        directory=lambda: Directory(world.records, world.relays),
        report=reports.append,
        asked=lambda: None,
    )
    world = Relay(core, plane, public, link, listener, {}, {}, threading.Thread(target=plane.run), reports)
    yield world
    plane.stop()
    if world.thread.ident is not None:
        world.thread.join(5)
        assert not world.thread.is_alive()
    plane.close()
    streams.close()
    for sock in (link, listener, *public):
        sock.close()
    assert not reports


def check(ticket: bytes, password: bytes | None = None, transaction: bytes = b"T" * 12) -> bytes:
    password = KEYS.tickets.password(ticket) if password is None else password
    return stun.binding_request(transaction, ticket + b":abcd", password, priority=1, tie_breaker=1)


@pytest.mark.parametrize("host", ["127.0.0.1", "::1"])
def test_a_call_passes_both_ways_with_its_clients_address(relay: Relay, host: str) -> None:
    relay.start()
    transceiver, client = relay.transceiver(7), Peer(host)
    relay.connect(client, transceiver)
    assert relay.core.statistics() == {"provisional": 0, "confirmed": 1}
    assert not relay.core.flows[client.packed].settled
    client.send(b"\x80up", relay.via(client))
    assert transceiver.frames() == [(client.packed, b"\x80up")]
    transceiver.answer((client.packed, b"\x80down"), (client.packed, b"\x80again"))
    assert [client.receive(), client.receive()] == [b"\x80down", b"\x80again"]
    assert relay.core.flows[client.packed].settled
    assert not relay.core.drops


def test_what_is_ready_at_once_shares_link_datagrams(relay: Relay) -> None:
    first, second = relay.transceiver(7), relay.transceiver(8)
    clients = [Peer() for _ in range(4)]
    for index, client in enumerate(clients):
        client.send(check((first, second)[index % 2].ticket()), relay.public[0])
    sent: dict[ClientAddress, list[bytes]] = {client.packed: [] for client in clients}
    for repeat in range(6):
        for client in clients:
            payload = bytes([0x80, repeat]) + bytes(158)
            client.send(payload, relay.public[0])
            sent[client.packed].append(payload)
    relay.start()
    # 12 frames of 169 bytes and 2 checks for each transceiver: 1,400 bytes hold 8 of them or fewer.
    received: dict[ClientAddress, list[bytes]] = {client.packed: [] for client in clients}
    for transceiver in (first, second):
        datagrams = 0
        while sum(len(received[client.packed]) for client in clients[transceiver is second :: 2]) < 12:
            datagrams += 1
            for address, payload in transceiver.frames():
                if payload[0] == 0x80:
                    received[address].append(payload)
        assert datagrams == 2
    assert received == sent
    until(lambda: relay.plane.statistics()["link_datagrams_out"] == 4)
    assert relay.plane.statistics()["client_packets"] == 28


def test_a_link_datagram_fans_out_to_many_clients_of_both_families(relay: Relay) -> None:
    relay.start()
    transceiver = relay.transceiver(7)
    clients = [Peer(), Peer("::1"), Peer(), Peer("::1")]
    for client in clients:
        relay.connect(client, transceiver)
    transceiver.answer(*[(client.packed, b"\x80" + client.packed) for client in clients * 3])
    for client in clients:
        assert [client.receive() for _ in range(3)] == [b"\x80" + client.packed] * 3


def test_a_release_behind_the_last_words_ends_the_flow(relay: Relay) -> None:
    relay.start()
    transceiver, client = relay.transceiver(7), Peer()
    relay.connect(client, transceiver)
    transceiver.answer((client.packed, b"\x80bye"), (client.packed, b""))
    assert client.receive() == b"\x80bye"
    until(lambda: not relay.core.flows)
    assert relay.core.table.evicted == {"released": 1}


def test_the_largest_payload_passes_and_a_larger_one_does_not(relay: Relay) -> None:
    relay.start()
    transceiver, client = relay.transceiver(7), Peer("::1")
    relay.connect(client, transceiver)
    client.send(b"\x80" * (MAX_PAYLOAD + 1), relay.via(client))
    client.send(b"\x80" * 5000, relay.via(client))
    client.send(b"", relay.via(client))
    client.send(b"\x80" * MAX_PAYLOAD, relay.via(client))
    assert transceiver.frames() == [(client.packed, b"\x80" * MAX_PAYLOAD)]
    assert relay.core.drops == {"size": 3}


def test_before_the_answer_a_flow_is_provisional(relay: Relay) -> None:
    relay.start()
    transceiver, client = relay.transceiver(7), Peer()
    ticket = transceiver.ticket()
    client.send(check(ticket), relay.public[0])
    [frame] = transceiver.frames()
    password = KEYS.tickets.password(ticket)
    wrong = stun.binding_success(b"X" * 12, client.packed, password)
    transceiver.answer((client.packed, wrong))
    assert client.receive() == wrong
    assert relay.core.statistics() == {"provisional": 1, "confirmed": 0}
    success = transceiver.answer_check(frame, ticket)
    assert client.receive() == success
    assert relay.core.statistics() == {"provisional": 0, "confirmed": 1}


def test_another_ticket_does_not_take_a_flow_that_is_in_use(relay: Relay) -> None:
    relay.start()
    victim_side, attacker_side, client = relay.transceiver(7), relay.transceiver(8), Peer()
    ticket = relay.connect(client, victim_side)
    # Only the sender's address matters to the relay, so the victim's own socket plays the forger.
    client.send(check(attacker_side.ticket()), relay.public[0])
    relay.wait_for_drop("flow_in_use")
    client.send(b"\x80still", relay.public[0])
    client.send(check(ticket, transaction=b"U" * 12), relay.public[0])
    frames = victim_side.frames()
    frames += victim_side.frames() if len(frames) < 2 else []
    assert frames == [
        (client.packed, b"\x80still"),
        (client.packed, check(ticket, transaction=b"U" * 12)),
    ]
    attacker_side.answer((client.packed, b"\x80injected"))
    relay.wait_for_drop("frame_without_flow")
    victim_side.answer((client.packed, b"\x80right"))
    assert client.receive() == b"\x80right"
    assert_silent(attacker_side, client)


def test_bad_checks_are_dropped_counted_and_never_answered(relay: Relay) -> None:
    relay.start()
    transceiver, client = relay.transceiver(7), Peer()
    good = transceiver.ticket()
    password = KEYS.tickets.password(good)
    # The last of the 22 characters holds 4 spare bits, zero in the one canonical spelling.
    alphabet = b"ABCDEFGHIJKLMNOPQRSTUVWXYZabcdefghijklmnopqrstuvwxyz0123456789+/"
    respelled = good[:-1] + bytes([alphabet[alphabet.index(good[-1]) + 1]])
    forged = good[:5] + (b"A" if good[5:6] != b"A" else b"B") + good[6:]
    gone = KEYS.tickets.mint(1, 999, time.time() + 60, bytes(5)).encode()
    bad = [
        (check(respelled, password), "ticket_form"),
        (check(good[:-1], password), "ticket_form"),
        (check(forged, password), "ticket_forged"),
        (check(transceiver.ticket(keys=OTHER_KEYS), b"p" * 24), "ticket_forged"),
        (check(b"R" + good[1:], password), "ticket_key"),
        (check(transceiver.ticket(lifetime=-60)), "ticket_expired"),
        (check(transceiver.ticket(cluster=2)), "ticket_cluster"),
        (check(gone), "transceiver_unknown"),
        (check(good, b"wrong" * 5), "stun_integrity"),
        (check(good)[:-9], "stun_length"),
        (b"\0\1\0\0" + bytes(16), "stun_cookie"),
        (stun.binding_success(b"T" * 12, client.packed, password), "stun_not_a_request"),
        (b"\x16\xfe\xfd" + bytes(50), "no_flow"),
        (b"\x80" * 100, "no_flow"),
    ]
    for data, _ in bad:
        client.send(data, relay.public[0])
    for reason in {reason for _, reason in bad}:
        relay.wait_for_drop(reason, [other for _, other in bad].count(reason))
    assert sum(relay.core.drops.values()) == len(bad)
    assert not relay.core.flows
    assert_silent(client, transceiver)
    relay.connect(client, transceiver)


def test_a_flow_outlives_the_registry_entry_of_its_transceiver(relay: Relay) -> None:
    transceiver, client = relay.transceiver(7), Peer()
    relay.start()
    ticket = relay.connect(client, transceiver)
    relay.records = {}
    client.send(check(ticket, transaction=b"V" * 12), relay.public[0])
    assert transceiver.frames() == [(client.packed, check(ticket, transaction=b"V" * 12))]


def test_strangers_on_the_link_are_refused(relay: Relay) -> None:
    relay.start()
    transceiver, client, stranger = relay.transceiver(7), Peer(), Peer()
    relay.connect(client, transceiver)
    frame = encode_frame(client.packed, b"\x80injected")
    stranger.send(transceiver.header() + frame, relay.link)
    relay.wait_for_drop("link_stranger")
    transceiver.send(transceiver.header(OTHER_KEYS) + frame, relay.link)
    relay.wait_for_drop("link_header")
    transceiver.send(b"", relay.link)
    relay.wait_for_drop("link_header", 2)
    for broken in (
        b"",
        b"\x05" + frame[1:],
        frame[:-1],
        frame[:5],
        frame + b"\x04",
    ):
        before = relay.core.drops["link_frame"]
        transceiver.send(transceiver.header() + broken, relay.link)
        relay.wait_for_drop("link_frame", before + 1)
    assert client.receive() == b"\x80injected"  # the one whole frame before a broken one
    assert_silent(client)


def test_a_transceiver_reaches_only_its_own_clients(relay: Relay) -> None:
    relay.start()
    owner, other, client, nobody = relay.transceiver(7), relay.transceiver(8), Peer(), Peer()
    relay.connect(client, owner)
    other.answer((client.packed, b"\x80not yours"), (nobody.packed, b"\x80open relay?"))
    owner.answer((nobody.packed, b"\x80open relay?"))
    relay.wait_for_drop("frame_without_flow", 3)
    assert_silent(client, nobody)


def test_one_failing_packet_does_not_end_the_batch(relay: Relay, monkeypatch: pytest.MonkeyPatch) -> None:
    transceiver, client = relay.transceiver(7), Peer()
    real = relay.core.from_client

    def failing(data: bytes, *rest: object) -> object:
        if data == b"\xff":
            raise ZeroDivisionError
        return real(data, *rest)  # type: ignore[arg-type]

    monkeypatch.setattr(relay.core, "from_client", failing)
    client.send(b"\xff", relay.public[0])
    client.send(check(transceiver.ticket()), relay.public[0])
    relay.start()
    assert len(transceiver.frames()) == 1
    relay.wait_for_drop("internal_error")
    until(lambda: bool(relay.reports))
    assert [type(error) for error in relay.reports] == [ZeroDivisionError]
    relay.reports.clear()


def meet(near: Relay, far: Relay) -> None:
    """Each relay's registry tells of the other."""
    for relay, other, cluster in ((near, far, 2), (far, near, 1)):
        record = RelayRecord(
            id=1,
            cluster=cluster,
            ingress="other",
            boot="b",
            links=(join_host_port(*other.link.address()),),
            addresses=(),
        )
        relay.relays = {1: record}


@pytest.mark.parametrize("host", ["127.0.0.1", "::1"])
def test_a_call_passes_two_relays_when_its_ticket_says_so(relay: Relay, far_relay: Relay, host: str) -> None:
    meet(relay, far_relay)
    relay.start()
    far_relay.start()
    transceiver, client = relay.transceiver(7), Peer(host)
    ticket = transceiver.ticket()
    client.send(check(ticket), far_relay.via(client))
    [frame] = transceiver.frames()
    assert frame == (client.packed, check(ticket)), "with the client's own address"
    success = transceiver.answer_check(frame, ticket)
    assert client.receive() == success
    for core in (relay.core, far_relay.core):
        assert core.statistics() == {"provisional": 0, "confirmed": 1}
    for n in range(3):
        client.send(b"\x80up" + bytes([n]), far_relay.via(client))
        assert transceiver.frames() == [(client.packed, b"\x80up" + bytes([n]))]
        transceiver.answer((client.packed, b"\x80down"), (client.packed, b"\x80again"))
        assert [client.receive(), client.receive()] == [b"\x80down", b"\x80again"]
    transceiver.answer((client.packed, b""))
    until(lambda: not relay.core.flows and not far_relay.core.flows)
    assert not {*relay.core.drops, *far_relay.core.drops} - {"hello_answered"}


def test_the_first_of_two_relays_learns_its_clients_from_the_second(relay: Relay, far_relay: Relay) -> None:
    meet(relay, far_relay)
    relay.start()
    far_relay.start()
    transceiver, client, near_client = relay.transceiver(7), Peer(), Peer()
    ticket = transceiver.ticket()
    client.send(check(ticket), far_relay.public[0])
    transceiver.answer_check(transceiver.frames()[0], ticket)
    client.receive()
    relay.connect(near_client, transceiver)
    with running("auto" if HAS_MMSG else "off", cluster=2, boot=2) as successor:
        successor.relays = far_relay.relays
        predecessor = relay.relays[1]
        relay.relays = {
            1: predecessor,
            2: msgspec.structs.replace(predecessor, links=(successor.link_name(),)),
        }
        near_client.send(b"\x80", relay.public[0])
        successor.start()
        until(lambda: client.packed in successor.core.flows)
        assert near_client.packed not in successor.core.flows, "only who came by its addresses"
        transceiver.answer((client.packed, b"\x80down"))
        assert client.receive() == b"\x80down", "by the successor, before anything came from the client"
        until(lambda: successor.plane.statistics()["transceiver_packets"] == 1)
        client.send(b"\x80up", successor.public[0])
        while (client.packed, b"\x80up") not in transceiver.frames():
            pass


def test_a_ticket_goes_in_no_circle(relay: Relay, far_relay: Relay) -> None:
    """Two relays that take each other for the one of a third cluster."""
    meet(relay, far_relay)
    for one in (relay, far_relay):
        one.relays = {1: msgspec.structs.replace(one.relays[1], cluster=3)}
        one.start()
    client = Peer()
    client.send(check(KEYS.tickets.mint(3, 7, time.time() + 60, bytes(5)).encode()), far_relay.public[0])
    relay.wait_for_drop("hop_limit")
    assert not relay.core.flows
    assert_silent(client)


def test_a_transceiver_cannot_speak_as_a_relay(relay: Relay) -> None:
    relay.start()
    transceiver, client = relay.transceiver(7), Peer()
    relay.connect(client, transceiver)
    key = KEYS.link[KEYS.link_id]
    hour = int(time.time() // HOUR)
    for hops in (1, 2, 15):
        header = link_header(key, KEYS.link_id, transceiver.text, relay.link_name(), hour, hops=hops)
        transceiver.send(header + encode_frame(client.packed, b"\x80"), relay.link)
    relay.wait_for_drop("hop_limit", 3)


def test_a_call_over_tcp_passes_both_ways(relay: Relay) -> None:
    relay.start()
    transceiver = relay.transceiver(7)
    ticket = transceiver.ticket()
    with socket.create_connection(relay.listener.getsockname(), 5) as client:
        address = over_tcp(pack_address(*client.getsockname()))
        client.sendall(rfc4571.frame(check(ticket)))
        [sent] = transceiver.frames()
        assert sent == (address, check(ticket))
        success = transceiver.answer_check(sent, ticket)
        assert received(client) == success
        client.sendall(rfc4571.frame(b"\x80up") * 2)
        got = transceiver.frames()
        got += transceiver.frames() if len(got) < 2 else []
        assert got == [(address, b"\x80up")] * 2
        transceiver.answer((address, b"\x80down"), (address, b"\x80again"))
        assert [received(client), received(client)] == [b"\x80down", b"\x80again"]
        udp = Peer()
        transceiver.answer((udp.packed, b"\x80not by udp"))
        relay.wait_for_drop("frame_without_flow")
    transceiver.answer((address, b"\x80late"))
    transceiver.answer((address, b""))
    until(lambda: not relay.core.flows)


def received(client: socket.socket) -> bytes:
    """One RFC 4571 packet."""
    length = int.from_bytes(client.recv(2, socket.MSG_WAITALL), "big")
    return client.recv(length, socket.MSG_WAITALL)


def test_a_hello_brings_back_what_a_restarted_relay_lost(relay: Relay) -> None:
    transceiver, clients = relay.transceiver(7), [Peer() for _ in range(40)]
    tickets = [transceiver.ticket() for _ in clients]
    relay.start()
    hello = transceiver.hello()
    assert (hello.ingress, hello.boot) == ("near", 1) and hello.number
    rows = [(client.packed, ticket) for client, ticket in zip(clients, tickets, strict=True)]
    for body in answer_hello(hello.number, [*rows, (over_tcp(clients[0].packed), tickets[0])]):
        transceiver.send(transceiver.header(version=CONTROL) + body, relay.link)
    until(lambda: len(relay.core.flows) == len(clients))
    # Both ways at once, without a check, at whichever of the relay's addresses.
    transceiver.answer((clients[0].packed, b"\x80down"))
    assert clients[0].receive() == b"\x80down"
    clients[1].send(b"\x80up", relay.public[0])
    assert transceiver.frames() == [(clients[1].packed, b"\x80up")]
    transceiver.send(transceiver.header(version=CONTROL) + b"junk", relay.link)
    relay.wait_for_drop("link_control")
    again = answer_hello(hello.number, [(Peer().packed, transceiver.ticket())])[0]
    transceiver.send(transceiver.header(version=CONTROL) + again, relay.link)
    relay.wait_for_drop("hello_answered")
    assert len(relay.core.flows) == len(clients), "an answer counts once"


@pytest.mark.skipif(not HAS_MMSG, reason="Linux tells")
def test_a_killed_transceiver_is_noticed_at_its_next_packet(relay: Relay) -> None:
    if not isinstance(relay.link, MmsgSocket):
        pytest.skip("plain sockets are not told")
    relay.start()
    gone, living = relay.transceiver(7), relay.transceiver(8)
    client, other = Peer(), Peer()
    relay.connect(client, gone)
    relay.connect(other, living)
    place = gone.sock.getsockname()
    gone.sock.close()
    client.send(b"\x80", relay.public[0])
    until(lambda: relay.plane.statistics()["dead_transceivers"] == 1)
    for _ in range(20):
        client.send(b"\x80", relay.public[0])
        other.send(b"\x80still", relay.public[0])
        assert (other.packed, b"\x80still") in living.frames()
    assert relay.core.drops["transceiver_dead"] >= 15
    gone.sock = socket.socket(socket.AF_INET, socket.SOCK_DGRAM)
    gone.sock.settimeout(5)
    gone.sock.bind(place)
    gone.answer((client.packed, b"\x80back"))
    assert client.receive() == b"\x80back"
    client.send(b"\x80again", relay.public[0])
    while (client.packed, b"\x80again") not in gone.frames():
        pass


def test_what_redis_knows_lets_a_packet_that_waited_go_on(relay: Relay) -> None:
    relay.core.recovery.enabled = True
    relay.start()
    transceiver, client, unknown = relay.transceiver(7), Peer("::1"), Peer()
    client.send(b"\x80early", relay.via(client))
    unknown.send(b"\x80who?", relay.via(unknown))
    until(lambda: len(relay.core.recovery.questions) == 2)
    relay.plane.post([Answer(client.packed, transceiver.ticket()), Answer(unknown.packed, None)])
    assert transceiver.frames() == [(client.packed, b"\x80early")]
    transceiver.answer((client.packed, b"\x80down"))
    assert client.receive() == b"\x80down"
    relay.wait_for_drop("no_flow")


def test_one_failing_packet_of_a_byway_does_not_end_its_batch(
    relay: Relay, far_relay: Relay, monkeypatch: pytest.MonkeyPatch
) -> None:
    meet(relay, far_relay)
    real = relay.core.from_client

    def failing(data: bytes, *rest: object, **more: object) -> object:
        if data == b"\x80bad":
            raise ZeroDivisionError
        return real(data, *rest, **more)  # type: ignore[arg-type]

    monkeypatch.setattr(relay.core, "from_client", failing)
    relay.start()
    far_relay.start()
    transceiver, client = relay.transceiver(7), Peer()
    ticket = transceiver.ticket()
    client.send(check(ticket), far_relay.public[0])
    transceiver.answer_check(transceiver.frames()[0], ticket)
    client.receive()
    hour = int(time.time() // HOUR)
    header = KEYS.link_header(far_relay.link_name(), relay.link_name(), hour, hops=1)
    frames = encode_frame(client.packed, b"\x80bad") + encode_frame(client.packed, b"\x80good")
    far_relay.link.sock.sendto(header + frames, relay.link.address())
    assert transceiver.frames() == [(client.packed, b"\x80good")]
    with socket.create_connection(relay.listener.getsockname(), 5) as tcp:
        tcp.sendall(rfc4571.frame(b"\x80bad") + rfc4571.frame(check(ticket, transaction=b"V" * 12)))
        assert transceiver.frames()[0][1] == check(ticket, transaction=b"V" * 12)
    until(lambda: relay.core.drops["internal_error"] == 2 and bool(relay.reports))
    relay.reports.clear()


def test_the_relay_does_not_load_what_terminates_media() -> None:
    program = (
        "import sys, voicegate.roles.relay.shell\n"
        "loaded = {'OpenSSL', 'av', 'numpy', 'pylibsrtp', 'quart', 'webrtcvad'} & set(sys.modules)\n"
        "print(sorted(loaded))"
    )
    output = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, check=True)
    assert output.stdout.strip() == "[]"


def assert_silent(*peers: Peer) -> None:
    """Nothing has come; call it after a drop was waited for, or after a later packet arrived."""
    for peer in peers:
        peer.sock.setblocking(False)
        with pytest.raises(BlockingIOError):
            while peer.sock.recv(4096)[0] >> 4 == CONTROL:
                pass  # hellos are no packets of clients
        peer.sock.settimeout(5)
