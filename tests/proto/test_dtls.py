"""A DTLS endpoint against itself: both roles, good and terrible networks, ends of every kind."""

from __future__ import annotations

import gc
import statistics
import weakref

import pytest
from OpenSSL import SSL

from tests.proto.dtls_network import (
    OURS,
    THEIRS,
    WALL,
    Path,
    World,
    deliver,
    endpoint,
    incoming,
    outgoing,
    pair,
)
from voicegate.proto import dtls_openssl
from voicegate.proto.dtls import (
    HANDSHAKE_LIMIT,
    MAX_DATA,
    MAX_EVENTS,
    DtlsCertificate,
    DtlsClosed,
    DtlsConnected,
    DtlsData,
    DtlsEndpoint,
)
from voicegate.proto.dtls_openssl import MTU
from voicegate.proto.errors import BadPacket
from voicegate.proto.srtp import SrtpProfile, SrtpSession


def connected_pair() -> tuple[DtlsEndpoint, DtlsEndpoint]:
    client, server = pair()
    assert World(client, server).run().connected()
    return client, server


@pytest.mark.parametrize("rtt", [0.0, 0.02, 0.05, 0.1, 0.2])
def test_the_handshake_takes_two_round_trips_and_not_a_moment_more(rtt: float) -> None:
    """Client's hello, server's flight, client's flight, server's Finished: RFC 6347 figure 1 without
    cookie."""
    world = World(*pair(), Path(rtt=rtt)).run()
    assert world.connected()
    assert world.connected_at(0) == pytest.approx(2 * rtt)
    assert world.connected_at(1) == pytest.approx(1.5 * rtt)


def test_a_fast_path_sees_four_datagrams_and_no_repetition() -> None:
    client, server = pair()
    world = World(client, server, Path(rtt=0.03)).run()
    assert [side for _, side, _ in world.datagrams] == [0, 1, 0, 1]
    assert client.statistics().repeated_flights == server.statistics().repeated_flights == 0
    assert all(len(data) <= MTU for _, _, data in world.datagrams)


def test_nothing_is_repeated_without_end() -> None:
    """On a path longer than the first timeouts both sides repeat themselves; it must die down."""
    world = World(*pair(), Path(rtt=0.4)).run()
    assert world.connected()
    assert len(world.datagrams) < 22
    assert world.datagrams[-1][0] < 2.0


@pytest.mark.parametrize("loss", [0.0, 0.2, 0.3])
def test_a_terrible_network(loss: float) -> None:
    """200 handshakes on 50 ms round trip with loss, duplicates and reordering: every one must finish.

    The client's last step needs one datagram of every flight; with 30 % loss each try of a flight succeeds
    at least half of the time, and the timer tries at 50, 150, 350, 750, 1750 ms.
    """
    took = []
    for seed in range(200):
        path = Path(rtt=0.05, loss=loss, duplicate=0.1, jitter=0.06, seed=seed)
        world = World(*pair(), path).run(limit=HANDSHAKE_LIMIT)
        assert world.connected(), seed
        took.append(max(world.connected_at(0), world.connected_at(1)))
    took.sort()
    p50, p95 = statistics.median(took), took[int(0.95 * len(took))]
    assert p50 < 0.5
    assert p95 < (0.3 if loss == 0.0 else 2.5)


@pytest.mark.parametrize("nth", range(4))
def test_each_flight_may_be_lost_once(nth: int) -> None:
    """A lost flight costs one first timeout, also the last one, which only its receiver can miss."""
    client, server = pair()
    sent = 0

    def lost(_to: int, _data: bytes) -> bool:
        nonlocal sent
        sent += 1
        return sent == nth + 1

    world = World(client, server, Path(rtt=0.02), lost=lost).run()
    assert world.connected()
    assert world.connected_at(0) == pytest.approx(0.04 + 0.05, abs=0.021)


def test_repeated_plaintext_records_have_fresh_numbers() -> None:
    """RFC 6347 section 4.1.2.6: a receiver drops a number it has seen."""
    client = endpoint(active=True)
    seen = []
    for _ in range(5):
        seen += [data[5:11] for data in outgoing(client)]
        client.handle_timeout(client.next_deadline() or 0.0)
    assert len(seen) == len(set(seen)) == 5


def test_the_timer_doubles_up_to_a_second_and_the_handshake_is_given_up() -> None:
    client = endpoint(active=True)
    at, gaps = 0.0, []
    while (deadline := client.next_deadline()) is not None:
        gaps.append(round(deadline - at, 6))
        at = deadline
        client.handle_timeout(at)
    assert gaps[:7] == [0.05, 0.1, 0.2, 0.4, 0.8, 1.0, 1.0]
    assert at == HANDSHAKE_LIMIT
    assert incoming(client) == [DtlsClosed("handshake_timeout")]


def test_a_server_that_hears_nothing_wakes_only_to_give_up() -> None:
    server = endpoint(active=False)
    assert server.next_deadline() == HANDSHAKE_LIMIT
    server.handle_timeout(1.0)
    assert outgoing(server) == []
    server.handle_timeout(HANDSHAKE_LIMIT)
    assert incoming(server) == [DtlsClosed("handshake_timeout")]


def test_both_sides_have_the_same_keys_and_srtp_flows_both_ways() -> None:
    world = World(*pair()).run()
    sessions = []
    for events in world.events:
        event = events[0]
        assert isinstance(event, DtlsConnected)
        assert event.profile is SrtpProfile.AEAD_AES_128_GCM
        assert event.key_material not in repr(event).encode()
        sessions.append(SrtpSession(event.profile, event.key_material, event.active))
    packet = b"\x80\x6f\x00\x01" + bytes(8) + b"voice"
    client, server = sessions
    assert server.unprotect_rtp_untrusted(client.protect_rtp(packet)) == packet
    assert client.unprotect_rtp_untrusted(server.protect_rtp(packet)) == packet


@pytest.mark.parametrize("size", [1, 100, MAX_DATA])
def test_data_both_ways(size: int) -> None:
    client, server = connected_pair()
    for source, target in ((client, server), (server, client)):
        message = bytes(range(256)) * 5
        source.send(message[:size])
        datagrams = outgoing(source)
        assert len(datagrams) == 1 and len(datagrams[0]) <= MTU
        assert deliver(datagrams, target) == []
        assert incoming(target) == [DtlsData(message[:size])]


def test_data_is_limited_and_waits_for_the_handshake() -> None:
    client, _ = pair()
    outgoing(client)
    client.send(b"too early")
    assert outgoing(client) == []
    with pytest.raises(ValueError, match="limited"):
        client.send(bytes(MAX_DATA + 1))


def test_data_that_nobody_fetches_is_bounded_and_counted() -> None:
    client, server = connected_pair()
    for _ in range(MAX_EVENTS + 10):
        client.send(b"x")
        deliver(outgoing(client), server)
    assert len(incoming(server)) == MAX_EVENTS
    assert server.statistics().dropped_data == 10


def test_output_that_nobody_fetches_is_bounded_and_counted() -> None:
    client, _ = connected_pair()
    for _ in range(100):
        client.send(b"x")
    assert client.statistics().dropped_output == 36
    assert len(outgoing(client)) == 64


@pytest.mark.parametrize("closer", [0, 1])
def test_a_close_notify_closes_the_other_side(closer: int) -> None:
    sides = connected_pair()
    sides[closer].close(1.0)
    sides[closer].close(1.0)
    assert incoming(sides[closer]) == [DtlsClosed("local_close")]
    goodbye = outgoing(sides[closer])
    other = sides[1 - closer]
    assert deliver(goodbye, other) == []
    assert incoming(other) == [DtlsClosed("remote_close")]
    assert deliver(goodbye, other) == ["dtls_closed"]
    assert other.next_deadline() is None
    other.send(b"nobody hears")
    assert outgoing(other) == []


def test_closing_before_the_handshake_says_nothing() -> None:
    client = endpoint(active=True)
    outgoing(client)
    client.close(0.0)
    assert outgoing(client) == []
    assert incoming(client) == [DtlsClosed("local_close")]


@pytest.mark.parametrize("liar", [0, 1])
def test_another_certificate_than_the_offer_s_ends_the_call_without_keys(liar: int) -> None:
    """RFC 5763 section 5. The honest side gives up at once; the other never gets keys."""
    wrong = (("sha-256", bytes(32)),)
    sides = [
        endpoint(active=True, fingerprints=wrong if liar == 1 else None),
        endpoint(active=False, mine=THEIRS, peer=OURS, fingerprints=wrong if liar == 0 else None),
    ]
    world = World(sides[0], sides[1], Path(rtt=0.02)).run()
    assert world.events[1 - liar] == [DtlsClosed("fingerprint_mismatch")]
    assert world.times[1 - liar][0] < 0.1
    assert world.events[liar] == [DtlsClosed("handshake_timeout")]


def test_of_several_fingerprints_the_strongest_hash_counts() -> None:
    """RFC 8122 section 5; sha-1 alone is refused."""
    good = ("SHA-256", THEIRS.fingerprint)
    for fingerprints, works in (
        ((("sha-1", bytes(20)), good), True),
        ((("sha-256", bytes(32)), good), True),
        ((("sha-512", bytes(64)), good), False),
    ):
        client = endpoint(active=True, fingerprints=fingerprints)
        world = World(client, endpoint(active=False, mine=THEIRS, peer=OURS)).run()
        assert world.connected() is works
    with pytest.raises(ValueError, match="sha-256"):
        endpoint(active=True, fingerprints=(("sha-1", bytes(20)),))


def test_two_calls_of_one_certificate_do_not_share_keys() -> None:
    keys = set()
    for _ in range(3):
        event = World(*pair()).run().events[0][0]
        assert isinstance(event, DtlsConnected)
        keys.add(event.key_material)
    assert len(keys) == 3


def test_every_certificate_is_another() -> None:
    assert DtlsCertificate.generate(WALL).fingerprint != DtlsCertificate.generate(WALL).fingerprint
    assert len(OURS.fingerprint) == 32


def test_encrypted_records_that_were_touched_are_dropped_without_harm() -> None:
    client, server = connected_pair()
    client.send(b"the real one")
    (record,) = outgoing(client)
    for position in range(len(record)):
        for bit in (0x01, 0x80):
            forged = bytearray(record)
            forged[position] ^= bit
            deliver([bytes(forged)], server)
    for cut in range(len(record)):
        deliver([record[:cut]], server)
    assert incoming(server) == []
    assert deliver([record, record, record], server) == ["dtls_bad_record"] * 2  # replays
    assert incoming(server) == [DtlsData(b"the real one")]
    server.send(b"and back")
    deliver(outgoing(server), client)
    assert incoming(client) == [DtlsData(b"and back")]


def test_a_finished_endpoint_survives_a_flood_of_garbage() -> None:
    client, server = connected_pair()
    for number in range(2000):
        body = number.to_bytes(4, "big") * 20
        kind = (0x14, 0x15, 0x16, 0x17)[number % 4]
        deliver([b"%c\xfe\xfd\x00\x01%b\x00\x50%b" % (kind, number.to_bytes(6, "big"), body)], server)
    assert incoming(server) == [] and outgoing(server) == []
    client.send(b"still here")
    deliver(outgoing(client), server)
    assert incoming(server) == [DtlsData(b"still here")]


def test_nothing_is_left_after_the_end(monkeypatch: pytest.MonkeyPatch) -> None:
    """No cycle holds OpenSSL's object: it is gone with the last reference, without the collector."""
    machines: list[weakref.ref[object]] = []

    class Watched(SSL.Connection):
        def __init__(self, context: SSL.Context) -> None:
            super().__init__(context)
            machines.append(weakref.ref(self))

    monkeypatch.setattr(dtls_openssl.SSL, "Connection", Watched)
    gc.disable()
    try:
        client, server = connected_pair()
        assert [ref() is None for ref in machines] == [False, False]
        client.close(0.0)
        deliver(outgoing(client), server)
        assert [ref() is None for ref in machines] == [True, True]
    finally:
        gc.enable()


@pytest.mark.parametrize("data", [b"", b"\x16", bytes(13), b"\x16\xfe\xfd" + bytes(9) + b"\xff"])
def test_what_is_no_record_is_a_bad_packet(data: bytes) -> None:
    with pytest.raises(BadPacket):
        endpoint(active=True).receive_datagram(data, 0.0)
