"""TCP connections over real sockets on loopback, on virtual time: framing, strangers, and every bound."""

from __future__ import annotations

import contextlib
import resource
import select
import socket
import time
from collections.abc import Callable, Iterator

import pytest

from voicegate.net import streams as under_test
from voicegate.net.names import socket_name
from voicegate.net.streams import Streams, open_listener
from voicegate.proto.address import ClientAddress, is_tcp, over_tcp, pack_address
from voicegate.proto.keys import ClusterKeys
from voicegate.proto.link import MAX_PAYLOAD
from voicegate.proto.rfc4571 import Deframer, frame
from voicegate.proto.stun import binding_request
from voicegate.roles.relay.core import RelayCore
from voicegate.roles.relay.routes import Backend, RouteTable

Packets = list[tuple[ClientAddress, bytes]]


class Rig:
    """A `Streams` with one listener, and clients of it."""

    def __init__(self, host: str = "127.0.0.1", *, max_connections: int = 1000) -> None:
        self.stack = contextlib.ExitStack()
        self.listener = self.stack.enter_context(open_listener(host, 0, reuse_port=False))
        self.streams = Streams([self.listener], max_connections=max_connections, idle_seconds=35.0)
        self.stack.callback(self.streams.close)
        self.now = 100.0

    def connect(self, first: bytes = b"", *, receive_buffer: int = 0) -> socket.socket:
        """A client; without a first packet it is not even accepted until the kernel's patience is over."""
        sock = self.stack.enter_context(
            socket.socket(socket.AF_INET6 if self.listener.family == socket.AF_INET6 else socket.AF_INET)
        )
        if receive_buffer:
            sock.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, receive_buffer)
        sock.settimeout(5)
        sock.connect(self.listener.getsockname())
        if first:
            sock.sendall(first)
        return sock

    def admitted(self, *, receive_buffer: int = 0) -> socket.socket:
        sock = self.connect(frame(b"hello"), receive_buffer=receive_buffer)
        assert self.packets(1) == [(name(sock), b"hello")]
        self.streams.admit(name(sock))
        return sock

    def packets(self, count: int) -> Packets:
        """The next so many packets."""
        found: Packets = []
        self.until(lambda: found.extend(self.streams.poll(self.now)) or len(found) >= count)
        return found

    def until(self, condition: Callable[[], object]) -> None:
        """Poll until the condition holds: loopback is quick, but not at once."""
        deadline = time.monotonic() + 5
        poller = select.poll()  # other tests of the process may have more descriptors than select() takes
        poller.register(self.streams.fileno(), select.POLLIN)
        while not condition():
            assert time.monotonic() < deadline, (self.streams.statistics(), self.streams.closed)
            poller.poll(10)

    def until_closed(self, reason: str, count: int = 1) -> None:
        def seen() -> bool:
            assert not self.streams.poll(self.now)
            return self.streams.closed[reason] >= count

        self.until(seen)

    def connections(self) -> int:
        statistics = self.streams.statistics()
        return statistics["admitted"] + statistics["strangers"]


@pytest.fixture
def rig() -> Iterator[Rig]:
    made = Rig()
    with made.stack:
        yield made


def name(sock: socket.socket) -> ClientAddress:
    return over_tcp(pack_address(*sock.getsockname()[:2]))


def is_reset(sock: socket.socket) -> bool:
    try:
        sock.recv(4096)
    except ConnectionResetError:
        return True
    return False


def test_packets_go_both_ways(rig: Rig) -> None:
    client = rig.connect(frame(b"one") + frame(b"") + frame(b"two"))
    assert rig.packets(2) == [(name(client), b"one"), (name(client), b"two")]
    assert is_tcp(name(client))
    rig.streams.admit(name(client))
    assert rig.streams.send(name(client), b"three", rig.now)
    assert rig.streams.send(name(client), memoryview(b"four"), rig.now)
    received: list[bytes] = []
    deframer = Deframer()
    while len(received) < 2:
        received += deframer.receive_untrusted(client.recv(4096))
    assert received == [b"three", b"four"]
    assert rig.streams.statistics() == {
        "admitted": 1,
        "strangers": 0,
        "accepted": 1,
        "packets_in": 2,
        "packets_out": 2,
        "bytes_in": 12,
        "bytes_out": 13,
    }
    client.close()
    rig.until_closed("peer")
    assert rig.connections() == 0
    assert not rig.streams._sources, "who has come and gone is forgotten"
    assert not rig.streams.send(name_of_nobody(), b"x", rig.now)
    assert rig.streams.drops == {"no_connection": 1}


def name_of_nobody() -> ClientAddress:
    return over_tcp(pack_address("192.0.2.1", 5000))


def test_ipv6_and_its_own_listener() -> None:
    try:
        made = Rig("::1")
    except OSError:
        pytest.skip("no IPv6 here")
    with made.stack:
        client = made.connect(frame(b"six"))
        assert made.packets(1) == [(name(client), b"six")]
        assert len(name(client)) == 19


def test_listeners_share_a_port_only_when_asked_to() -> None:
    with open_listener("127.0.0.1", 0, reuse_port=True) as first:
        port = first.getsockname()[1]
        open_listener("127.0.0.1", port, reuse_port=True).close()
        with pytest.raises(OSError):
            open_listener("127.0.0.1", port, reuse_port=False)


def test_a_listener_of_ipv6_has_no_ipv4_clients() -> None:
    with open_listener("::", 0, reuse_port=False) as six, socket.socket() as client:
        client.settimeout(5)
        with pytest.raises(ConnectionRefusedError):
            client.connect(("127.0.0.1", six.getsockname()[1]))


def test_a_restarted_relay_gets_its_port_at_once() -> None:
    with open_listener("127.0.0.1", 0, reuse_port=False) as first, socket.socket() as client:
        address = first.getsockname()
        client.connect(address)
        client.sendall(b"x")
        assert select.select([first], [], [], 5)[0]
        accepted, _ = first.accept()
        accepted.recv(10)
        accepted.close()  # as the kernel does for a process that dies: its end waits for stragglers
    open_listener(*address, reuse_port=False).close()


def test_one_client_address_is_one_connection(rig: Rig) -> None:
    with (
        open_listener("127.0.0.1", 0, reuse_port=False) as other,
        socket.socket() as first,
        socket.socket() as second,
        contextlib.closing(
            Streams([rig.listener, other], max_connections=10, idle_seconds=35)
        ) as rig.streams,
    ):
        for sock, listener in ((first, rig.listener), (second, other)):
            sock.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
            sock.bind(first.getsockname() if sock is second else ("127.0.0.1", 0))
            sock.connect(listener.getsockname())
            sock.sendall(frame(b"x"))
            rig.until(lambda: rig.streams.poll(rig.now) or rig.streams.closed)
        assert rig.streams.closed == {"address_in_use": 1}
        assert rig.connections() == 1


def test_connections_inherit_what_bounds_the_kernel(rig: Rig) -> None:
    client = rig.admitted()
    (accepted,) = [key.fileobj for key in rig.streams._selector.get_map().values() if key.data is not None]
    assert isinstance(accepted, socket.socket)
    assert accepted.getpeername() == client.getsockname()
    assert not accepted.getblocking()
    assert accepted.getsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY)
    assert accepted.getsockopt(socket.SOL_SOCKET, socket.SO_SNDBUF) <= 2 * under_test.SOCKET_BUFFER


def test_a_stranger_is_never_sent_to_and_has_five_seconds(rig: Rig) -> None:
    client = rig.connect(frame(b"who am I?"))
    rig.packets(1)
    assert not rig.streams.send(name(client), b"x", rig.now)
    rig.streams.expire(rig.now + 4.9)
    assert rig.connections() == 1
    rig.streams.expire(rig.now + 5)
    assert rig.streams.closed == {"stranger": 1}
    assert is_reset(client)


def test_a_stranger_has_two_kilobytes(rig: Rig) -> None:
    client = rig.connect(frame(b"x" * 1000) * 3)
    assert rig.packets(2) == [(name(client), b"x" * 1000)] * 2
    rig.until_closed("stranger")
    assert is_reset(client)


def test_who_connects_and_says_nothing_or_half_a_check_is_closed(rig: Rig) -> None:
    slow = rig.connect(frame(b"x" * 100)[:50])
    rig.until(lambda: not rig.streams.poll(rig.now) and rig.connections() == 1)
    slow.sendall(b"y")
    rig.streams.poll(rig.now + 4)
    rig.streams.expire(rig.now + 5)
    assert rig.streams.closed == {"stranger": 1}


def test_admitted_packets_keep_a_connection_and_others_do_not(rig: Rig) -> None:
    client = rig.admitted()
    for _ in range(3):
        rig.now += 30
        client.sendall(frame(b"sound"))
        rig.packets(1)
        rig.streams.admit(name(client))
        rig.streams.expire(rig.now)
    client.sendall(frame(b"of a call that is over") + frame(b""))
    rig.now += 34.9
    rig.packets(1)
    rig.streams.expire(rig.now)
    assert rig.connections() == 1
    rig.streams.expire(rig.now + 0.2)
    assert rig.streams.closed == {"idle": 1}
    assert is_reset(client)


def test_a_frame_that_is_not_finished_ends_the_connection(rig: Rig) -> None:
    client = rig.admitted()
    client.sendall(frame(b"whole") + frame(b"half")[:3])
    rig.packets(1)
    rig.streams.admit(name(client))
    rig.now += 9
    before = rig.streams.statistics()["bytes_in"]
    client.sendall(b"a")
    rig.until(lambda: not rig.streams.poll(rig.now) and rig.streams.statistics()["bytes_in"] > before)
    rig.streams.expire(rig.now)
    assert rig.connections() == 1
    rig.streams.expire(rig.now + 1)
    assert rig.streams.closed == {"stalled": 1}, "from the frame's beginning, however it trickles"


def test_what_is_no_frame_ends_the_connection_only(rig: Rig) -> None:
    bystander = rig.admitted()
    client = rig.admitted()
    client.sendall((MAX_PAYLOAD + 1).to_bytes(2, "big") + b"x" * 100)
    rig.until_closed("tcp_frame")
    assert is_reset(client)
    bystander.sendall(frame(b"still here"))
    assert rig.packets(1) == [(name(bystander), b"still here")]


def test_a_client_that_reads_nothing_gets_little_kept_and_is_closed(rig: Rig) -> None:
    client = rig.admitted(receive_buffer=4096)
    payload = b"s" * 150
    taken = 0
    while rig.streams.send(name(client), payload, rig.now):
        taken += 1
        assert taken < 80, "1.6 s of sound lie between us and a client that reads nothing"
    assert rig.streams.drops == {"late": 1}
    rig.streams.expire(rig.now + 9.9)
    assert rig.connections() == 1
    rig.streams.expire(rig.now + 10)
    assert rig.streams.closed == {"stalled": 1}
    assert rig.streams.statistics()["packets_out"] == taken


def test_a_client_that_reads_again_gets_whole_frames_in_order(rig: Rig) -> None:
    client = rig.admitted(receive_buffer=4096)
    numbers = [n for n in range(200) if rig.streams.send(name(client), b"%03d" % n + b"s" * 147, rig.now)]
    assert len(numbers) < 200
    client.setblocking(False)
    deframer = Deframer()
    received: list[bytes] = []

    def read() -> bool:
        rig.streams.poll(rig.now)
        with contextlib.suppress(BlockingIOError):
            received.extend(deframer.receive_untrusted(client.recv(65536)))
        return len(received) == len(numbers)

    rig.until(read)
    assert [int(packet[:3]) for packet in received] == numbers
    rig.streams.expire(rig.now + 20)
    assert rig.connections() == 1, "nothing waits any more"
    assert not select.select([rig.streams.fileno()], [], [], 0)[0], "and nobody is watched for writing"


def test_a_flood_of_some_leaves_the_others_their_turn(rig: Rig) -> None:
    quiet = rig.admitted()
    for loud in [rig.admitted() for _ in range(4)]:
        loud.setblocking(False)
        with contextlib.suppress(BlockingIOError):
            while True:
                loud.send(frame(b"x") * 500)
    quiet.sendall(frame(b"a word"))
    found: Packets = []
    for _ in range(4):
        batch = rig.streams.poll(rig.now)
        assert len(batch) <= under_test.PACKETS_PER_POLL
        found += batch
    assert (name(quiet), b"a word") in found
    assert rig.streams.drops["burst"] > 0
    assert select.select([rig.streams.fileno()], [], [], 0)[0], "the rest makes it ready again"


def test_many_ready_connections_have_their_turns(rig: Rig) -> None:
    clients = [rig.admitted() for _ in range(6)]
    for client in clients:
        client.sendall(b"".join(frame(b"%d" % n * 60) for n in range(30)))
    turns: list[ClientAddress] = []
    for _ in range(6):
        turns += dict.fromkeys(client for client, _packet in rig.streams.poll(rig.now))
    assert set(turns[:6]) == {name(client) for client in clients}, "each once before anybody twice"


def test_one_source_has_its_share() -> None:
    made = Rig(max_connections=20)
    with made.stack:
        clients = [made.connect(frame(b"x")) for _ in range(10)]
        found: Packets = []
        made.until(
            lambda: found.extend(made.streams.poll(made.now)) or made.streams.statistics()["accepted"] == 10
        )
        assert made.streams.closed == {"source_connections": 2}
        assert made.connections() == under_test.MIN_SHARE
        for client in clients[:8]:
            client.close()
        made.until(lambda: made.streams.poll(made.now) is not None and made.connections() == 0)
        made.admitted()


def test_strangers_give_way_and_the_admitted_stay() -> None:
    made = Rig(max_connections=2)
    with made.stack:
        first = made.admitted()
        stranger = made.connect(frame(b"x"))
        made.packets(1)
        second = made.admitted()
        assert made.streams.closed == {"displaced": 1}
        assert is_reset(stranger)
        refused = made.connect(frame(b"x"))
        made.until_closed("table_full")
        assert is_reset(refused)
        for client in (first, second):
            client.sendall(frame(b"still"))
            assert made.packets(1) == [(name(client), b"still")]


def test_a_reset_is_the_end_of_one_connection(rig: Rig) -> None:
    client = rig.admitted()
    client.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, under_test._RESET)
    client.close()
    rig.until(lambda: not rig.streams.poll(rig.now) and rig.connections() == 0)
    assert sum(rig.streams.closed.values()) == 1
    assert not rig.streams.send(name_of_nobody(), b"x", rig.now)


def test_without_a_free_descriptor_it_pauses_and_goes_on(rig: Rig) -> None:
    client = rig.connect(frame(b"patient"))
    assert select.select([rig.streams.fileno()], [], [], 5)[0]
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    resource.setrlimit(resource.RLIMIT_NOFILE, (3, hard))
    try:
        assert rig.streams.poll(rig.now) == []
    finally:
        resource.setrlimit(resource.RLIMIT_NOFILE, (soft, hard))
    assert rig.streams.drops == {"accept": 1}
    assert not select.select([rig.streams.fileno()], [], [], 0)[0], "it would keep the thread busy"
    rig.streams.expire(rig.now)
    assert rig.packets(1) == [(name(client), b"patient")]


def test_its_end_is_the_end_of_all(rig: Rig) -> None:
    client = rig.admitted()
    rig.streams.close()
    assert rig.streams.closed == {"shutdown": 1}
    assert is_reset(client)


def test_the_relays_rules_admit_a_check_with_a_ticket_and_nobody_else(rig: Rig) -> None:
    wall = 1_800_000_000.0
    keys = ClusterKeys.parse(["1:" + "k" * 32])
    routes = RouteTable(
        keys,
        cluster=1,
        link="127.0.0.1:4000",
        allowed_networks=["127.0.0.0/8"],
        name_of=socket_name,
        hour=int(wall // 3600),
    )
    routes.update({7: Backend(1, "127.0.0.1:5000", "boot-7")})
    core = RelayCore(keys, routes, cluster=1, public=[], max_flows=100, idle_seconds=60.0)
    ticket = keys.tickets.mint(1, 7, wall + 3600, bytes(5)).encode()

    def check(password: bytes) -> bytes:
        return binding_request(bytes(12), ticket + b":abcd", password, priority=1, tie_breaker=1)

    guest = rig.connect(frame(check(keys.tickets.password(ticket))))
    stranger = rig.connect(frame(check(b"guess")))
    let_through = []
    for client, packet in rig.packets(2):
        if core.from_client(packet, client, 0, rig.now, wall) is not None:
            rig.streams.admit(client)
            let_through.append(client)
    assert let_through == [name(guest)]
    assert core.drops == {"stun_integrity": 1}
    assert rig.streams.send(name(guest), b"answer", rig.now)
    assert not rig.streams.send(name(stranger), b"answer", rig.now)
    assert guest.recv(4096) == frame(b"answer")
