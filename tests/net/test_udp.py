"""Both kinds of UDP socket, held to the same behaviour on loopback."""

from __future__ import annotations

import ctypes
import errno
import select
import socket
import time
from collections.abc import Iterator

import pytest

from voicegate.net.names import name_address, socket_name
from voicegate.net.udp import (
    BATCH,
    FAMILY4,
    HAS_MMSG,
    HEADROOM,
    SLOT,
    Arena,
    Batching,
    MmsgSocket,
    PlainSocket,
    UdpSocket,
    bind_udp,
    open_udp,
)

MODES = [pytest.param("auto", marks=pytest.mark.skipif(not HAS_MMSG, reason="needs Linux")), "off"]
HOSTS = ["127.0.0.1", "::1"]


@pytest.fixture(params=MODES)
def batching(request: pytest.FixtureRequest) -> Batching:
    return request.param


@pytest.fixture(params=HOSTS)
def pair(request: pytest.FixtureRequest, batching: Batching) -> Iterator[tuple[UdpSocket, UdpSocket]]:
    one = open_udp(request.param, 0, batching=batching)
    two = open_udp(request.param, 0, batching=batching)
    yield one, two
    one.close()
    two.close()


def test_the_setting_chooses_the_kind() -> None:
    for setting, kind in (("auto", MmsgSocket if HAS_MMSG else PlainSocket), ("off", PlainSocket)):
        sock = open_udp("127.0.0.1", 0, batching=setting)
        assert type(sock) is kind
        sock.close()


def test_a_batch_arrives_in_order_with_its_sender(pair: tuple[UdpSocket, UdpSocket]) -> None:
    one, two = pair
    sent = [bytes([number]) * (number + 1) for number in range(40)]
    assert one.send_batch([(two.address(), payload) for payload in sent]) == 40
    assert receive_all(two, 40) == [(one.address(), payload) for payload in sent]
    assert two.recv_batch() == []
    assert not one.drops and not two.drops


def test_more_than_every_slot_goes_out_and_comes_in(pair: tuple[UdpSocket, UdpSocket]) -> None:
    one, two = pair
    sent = [number.to_bytes(2, "big") for number in range(600)]
    assert one.send_batch([(two.address(), payload) for payload in sent]) == 600
    assert len(two.recv_batch()) == BATCH
    assert [payload for _, payload in receive_all(two, 600 - BATCH)] == sent[BATCH:]


def test_an_answer_can_be_sent_while_the_batch_is_read(pair: tuple[UdpSocket, UdpSocket]) -> None:
    one, two = pair
    one.send_batch([(two.address(), b"first"), (two.address(), b"second")])
    batch = receive_all(two, 2)
    assert two.send_batch(batch) == 2
    assert [payload for _, payload in receive_all(one, 2)] == [b"first", b"second"]


def test_the_arena_carries_packets_on_without_a_copy(batching: Batching) -> None:
    arena = Arena(addresses=batching == "auto")
    inside = open_udp("127.0.0.1", 0, batching=batching, arena=arena)
    outside = open_udp("127.0.0.1", 0, batching=batching, arena=arena)
    sender = open_udp("127.0.0.1", 0, batching=batching)
    receiver = open_udp("127.0.0.1", 0, batching=batching)
    sender.send_batch([(outside.address(), b"abc"), (outside.address(), b"defgh")])
    wait_readable(outside)
    assert outside.receive() == 2
    port = sender.address()[1].to_bytes(2, "big")
    assert list(outside.names(2)) == [(port, b"\x7f\0\0\1")] * 2
    assert [length for (length,) in outside.lengths(2)] == [3, 5]
    first, second = arena.offsets[:2]
    arena.view[first - 2 : first] = b"<<"
    arena.view[second - 1 : second] = b"|"
    spans = [arena.base + first - 2, 5, arena.base + second - 1, 6]
    name = socket_name(*receiver.address())
    assert inside.send_gathered([(name, spans), (name, spans[:2])]) == 2
    port = receiver.address()[1].to_bytes(2, "big")
    assert inside.send_each([FAMILY4, port, b"\x7f\0\0\1", arena.base + second, 5]) == 1
    expected = [b"<<abc|defgh", b"<<abc", b"defgh"]
    assert receive_all(receiver, 3) == [(inside.address(), payload) for payload in expected]
    for sock in (inside, outside, sender, receiver):
        sock.close()


def test_one_datagram_that_cannot_go_does_not_stop_the_others(pair: tuple[UdpSocket, UdpSocket]) -> None:
    one, two = pair
    host, _ = two.address()
    good = (two.address(), b"good")
    bad = ((host, 0), b"port 0")
    assert one.send_batch([bad, good, bad, good, bad]) == 2
    assert receive_all(two, 2) == [(one.address(), b"good")] * 2
    assert one.statistics() == {"send_einval": 3}


def test_oversize_is_dropped_both_ways_and_counted(pair: tuple[UdpSocket, UdpSocket]) -> None:
    one, two = pair
    assert one.send_batch([(two.address(), bytes(SLOT))]) == 0
    assert one.statistics() == {"oversize": 1}
    with socket.socket(two.sock.family, socket.SOCK_DGRAM) as raw:
        raw.sendto(bytes(SLOT + 100), two.address())
        raw.sendto(bytes(SLOT - HEADROOM - 1), two.address())
        wait_readable(two)
        assert [len(payload) for _, payload in two.recv_batch()] == [SLOT - HEADROOM - 1]
    assert two.statistics() == {"oversize": 1}


def test_a_refused_receiver_is_no_error(pair: tuple[UdpSocket, UdpSocket]) -> None:
    one, two = pair
    gone = two.address()
    two.close()
    one.sock.connect(gone)  # a connected socket is told of ICMP errors
    # Where the error is reported (this send, the next or a receive) is the kernel's affair; none may raise.
    for _ in range(3):
        one.send_batch([(gone, b"anybody?")])
        assert one.recv_batch() == []
    assert one.drops and all(reason.endswith("econnrefused") for reason in one.drops)


@pytest.mark.skipif(not HAS_MMSG, reason="Linux tells")
@pytest.mark.parametrize("host", ["127.0.0.1", "::1"])
def test_where_nobody_is_becomes_known_and_costs_no_datagram_for_others(host: str) -> None:
    one, two, gone = open_udp(host, 0, errors=True), open_udp(host, 0), open_udp(host, 0)
    nowhere = gone.address()
    gone.close()
    one.send_batch([(nowhere, b"anybody?")])
    wait_readable(one)
    assert one.send_batch([(two.address(), b"still")] * 3) == 3
    assert [payload for _, payload in receive_all(two, 3)] == [b"still"] * 3
    assert one.recv_batch() == []
    assert one.take_refused() == [nowhere]
    assert one.take_refused() == [] and not one.drops
    for sock in (one, two):
        sock.close()


@pytest.mark.skipif(not HAS_MMSG, reason="Linux tells")
@pytest.mark.parametrize("host", ["127.0.0.1", "::1"])
def test_the_kernel_stamps_the_first_of_each_batch(host: str) -> None:
    one, two, plain = open_udp(host, 0), open_udp(host, 0, stamps=True), open_udp(host, 0)
    for count in (1, 3):
        before = time.time()
        one.send_batch([(two.address(), b"tick"), (plain.address(), b"tick")] * count)
        after = time.time()
        wait_readable(two)
        assert len(two.recv_batch()) == count
        stamp = two.stamp()
        assert stamp is not None and before - 0.001 <= stamp <= after + 0.001
    wait_readable(plain)
    assert plain.recv_batch() and plain.stamp() is None
    for sock in (one, two, plain):
        sock.close()


def test_sockets_of_one_port_share_its_clients() -> None:
    first = bind_udp("127.0.0.1", 0, reuse_port=True)
    second = bind_udp("127.0.0.1", first.getsockname()[1], reuse_port=True)
    with pytest.raises(OSError):
        bind_udp("127.0.0.1", first.getsockname()[1])
    for sock in (first, second):
        sock.close()


def test_a_full_socket_buffer_drops_the_rest_and_counts(monkeypatch: pytest.MonkeyPatch) -> None:
    # Loopback never fills a sender's buffer, so the kernel's answer is put in by hand.
    class FullSocket(socket.socket):
        def sendto(self, *_: object) -> int:
            raise BlockingIOError(errno.EAGAIN, "full")

    plain = PlainSocket(FullSocket(socket.AF_INET, socket.SOCK_DGRAM), Arena(addresses=False))
    assert plain.send_batch([(("127.0.0.1", 9), b"x")] * 3) == 0
    assert plain.statistics() == {"send_full": 3}
    plain.close()
    if not HAS_MMSG:
        return
    results = [2, -1]

    def sendmmsg(*_: object) -> int:
        ctypes.set_errno(errno.EAGAIN)
        return results.pop(0)

    monkeypatch.setattr("voicegate.net.mmsg._sendmmsg", sendmmsg)
    batched = open_udp("127.0.0.1", 0)
    assert batched.send_batch([(("127.0.0.1", 9), b"x")] * 5) == 2
    assert batched.statistics() == {"send_full": 3}
    batched.close()


def test_an_address_that_is_none_is_skipped(pair: tuple[UdpSocket, UdpSocket]) -> None:
    one, two = pair
    bad = [("nowhere", 1), ("127.0.0.1", 65536)]
    assert one.send_batch([(bad[0], b"x"), (two.address(), b"good"), (bad[1], b"x")]) == 1
    assert receive_all(two, 1) == [(one.address(), b"good")]
    assert one.statistics() == {"address": 2}


def test_ipv6_sockets_leave_ipv4_alone(batching: Batching) -> None:
    six = open_udp("::", 0, batching=batching)
    port = six.address()[1]
    four = open_udp("127.0.0.1", port, batching=batching)
    four.send_batch([(("127.0.0.1", port), b"four")])
    assert receive_all(four, 1) == [(("127.0.0.1", port), b"four")]
    assert six.recv_batch() == []
    six.close()
    four.close()


def test_a_taken_port_is_the_callers_error(batching: Batching) -> None:
    one = open_udp("127.0.0.1", 0, batching=batching)
    with pytest.raises(OSError, match="in use"):
        open_udp(*one.address(), batching=batching)
    one.close()


@pytest.mark.parametrize(
    "address", [("192.0.2.1", 1), ("255.255.255.255", 65535), ("2001:db8::1", 3478), ("::", 0)]
)
def test_names_keep_the_address(address: tuple[str, int]) -> None:
    name = socket_name(*address)
    assert len(name) == 28
    assert name_address(name) == address


def receive_all(sock: UdpSocket, count: int) -> list[tuple[tuple[str, int], bytes]]:
    received: list[tuple[tuple[str, int], bytes]] = []
    while len(received) < count:
        wait_readable(sock)
        received += sock.recv_batch()
    return received


def wait_readable(sock: UdpSocket) -> None:
    poll = select.poll()  # select() takes no descriptor above 1023, and the tests before may have left many
    poll.register(sock, select.POLLIN)
    ready = poll.poll(5000)
    assert ready, "nothing arrived"
