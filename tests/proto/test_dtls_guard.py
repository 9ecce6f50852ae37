"""Forged packets from the peer's own address, before, during and after the handshake; and what the parsers
refuse."""

from __future__ import annotations

import random
import resource
from collections.abc import Callable

import pytest
from hypothesis import given
from hypothesis import strategies as st

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
from voicegate.proto import dtls_guard as guard
from voicegate.proto import dtls_wire as wire
from voicegate.proto.dtls import DtlsCertificate, DtlsClosed, DtlsData, DtlsEndpoint
from voicegate.proto.dtls_gathering import join_flight
from voicegate.proto.dtls_openssl import Machine
from voicegate.proto.dtls_wire import ContentType, HandshakeType
from voicegate.proto.errors import BadPacket

FORGER = DtlsCertificate.generate(WALL)
FAR = 0xFFFF_0000  # record numbers that no real record has


def plaintext(kind: int, payload: bytes, sequence: int = FAR) -> bytes:
    return wire.record(kind, 0, sequence, payload)


def handshake(kind: int, sequence: int, body: bytes) -> bytes:
    return plaintext(ContentType.HANDSHAKE, wire.whole_message(kind, sequence, body))


def fragment(kind: int, length: int, sequence: int, offset: int, body: bytes) -> bytes:
    header = b"%c%b%b%b%b" % (
        kind,
        length.to_bytes(3, "big"),
        sequence.to_bytes(2, "big"),
        offset.to_bytes(3, "big"),
        len(body).to_bytes(3, "big"),
    )
    return plaintext(ContentType.HANDSHAKE, header + body)


def a_client_hello() -> bytes:
    """A perfectly good ClientHello of somebody else."""
    return outgoing(endpoint(active=True))[0]


def a_server_flight() -> bytes:
    """A complete and valid flight of another server, answering another client."""
    rival = endpoint(active=False, mine=FORGER)
    deliver([a_client_hello()], rival)
    return outgoing(rival)[0]


def a_client_flight() -> bytes:
    client = endpoint(active=True, mine=FORGER)
    server = endpoint(active=False, mine=THEIRS, peer=FORGER)
    deliver(outgoing(client), server)
    deliver(outgoing(server), client)
    return outgoing(client)[0]


def only(datagram: bytes, kind: HandshakeType) -> bytes:
    """The records of a datagram that carry this handshake message."""
    records, _ = wire.split_records_untrusted(datagram)
    return b"".join(r.raw for r in records if r.content_type == 0x16 and r.payload[0] == kind)


def replaced(datagram: bytes, kind: int, sequence: int, body: bytes) -> bytes:
    """The plaintext of a flight with one message exchanged."""
    records, _ = wire.split_records_untrusted(datagram)
    return b"".join(
        handshake(kind, sequence, body) if r.payload[0] == kind else r.raw
        for r in records
        if r.epoch == 0 and r.content_type == 0x16
    )


def with_cipher_zero(hello: bytes) -> bytes:
    """The ClientHello of CVE-2023-49786: its only cipher suite is 0x0000."""
    body = hello[25:]
    at = 36 + body[34]  # random and session id, no cookie
    suites = int.from_bytes(body[at : at + 2], "big")
    body = body[:at] + b"\x00\x02\x00\x00" + body[at + 2 + suites :]
    return handshake(HandshakeType.CLIENT_HELLO, 0, body)


FORGERIES: dict[str, Callable[[], bytes]] = {
    "hello with cipher 0": lambda: with_cipher_zero(a_client_hello()),
    "hello of a stranger": a_client_hello,
    "hello with no body": lambda: handshake(HandshakeType.CLIENT_HELLO, 0, b""),
    "fatal alert": lambda: plaintext(ContentType.ALERT, b"\x02\x28"),
    "close_notify": lambda: plaintext(ContentType.ALERT, b"\x01\x00"),
    "no_renegotiation": lambda: plaintext(ContentType.ALERT, b"\x01\x64"),
    "early CCS": lambda: plaintext(ContentType.CHANGE_CIPHER_SPEC, b"\x01"),
    "bad CCS": lambda: plaintext(ContentType.CHANGE_CIPHER_SPEC, b"\x02\x02"),
    "16 MB hello": lambda: fragment(HandshakeType.CLIENT_HELLO, 0xFFFFFF, 0, 0, bytes(100)),
    "16 MB server hello": lambda: fragment(HandshakeType.SERVER_HELLO, 0xFFFFFF, 0, 0, bytes(100)),
    "16 MB certificate": lambda: fragment(HandshakeType.CERTIFICATE, 0xFFFFFF, 1, 0xFFFF00, bytes(100)),
    "largest certificate": lambda: fragment(HandshakeType.CERTIFICATE, guard.MAX_MESSAGE, 1, 0, bytes(1000)),
    "fragment that overruns": lambda: fragment(HandshakeType.CERTIFICATE, 100, 1, 50, bytes(51)),
    "empty fragment": lambda: fragment(HandshakeType.CERTIFICATE, 100, 1, 50, b""),
    "message of the future": lambda: handshake(HandshakeType.FINISHED, 500, bytes(12)),
    "plaintext Finished": lambda: handshake(HandshakeType.FINISHED, 4, bytes(12)),
    "HelloRequest": lambda: handshake(0x00, 0, b""),
    "HelloVerifyRequest": lambda: handshake(HandshakeType.HELLO_VERIFY_REQUEST, 0, b"\xfe\xfd\x04cook"),
    "plaintext data": lambda: plaintext(ContentType.APPLICATION_DATA, b"data"),
    "unknown type": lambda: plaintext(0x3F, b"what"),
    "heartbeat": lambda: plaintext(0x18, b"\x01\x40\x00"),
    "garbage of epoch 1": lambda: wire.record(ContentType.HANDSHAKE, 1, 0, bytes(48)),
    "alert of epoch 1": lambda: wire.record(ContentType.ALERT, 1, 0, b"\x02\x28"),
    "CCS of epoch 1": lambda: wire.record(ContentType.CHANGE_CIPHER_SPEC, 1, 0, b"\x01"),
    "last number of epoch 1": lambda: wire.record(ContentType.APPLICATION_DATA, 1, (1 << 48) - 1, bytes(48)),
    "epoch 2": lambda: wire.record(ContentType.HANDSHAKE, 2, 0, bytes(48)),
    "epoch 65535": lambda: wire.record(ContentType.APPLICATION_DATA, 65535, 0, bytes(48)),
    "truncated record": lambda: a_client_hello()[:40],
    "record without body": lambda: plaintext(ContentType.HANDSHAKE, b""),
    "garbage": lambda: b"\x16" + random.Random(7).randbytes(300),
    "ServerHello": lambda: only(a_server_flight(), HandshakeType.SERVER_HELLO),
    "Certificate": lambda: only(a_server_flight(), HandshakeType.CERTIFICATE),
    "ServerKeyExchange": lambda: only(a_server_flight(), HandshakeType.SERVER_KEY_EXCHANGE),
    "CertificateRequest": lambda: handshake(
        HandshakeType.CERTIFICATE_REQUEST, 3, b"\x01\x40\x00\x02\x04\x03\x00\x00"
    ),
    "ServerHelloDone": lambda: handshake(HandshakeType.SERVER_HELLO_DONE, 4, b""),
    "ServerHelloDone with body": lambda: handshake(HandshakeType.SERVER_HELLO_DONE, 4, b"x"),
    "flight of another server": a_server_flight,
    "client's Certificate": lambda: only(a_client_flight(), HandshakeType.CERTIFICATE),
    "ClientKeyExchange": lambda: only(a_client_flight(), HandshakeType.CLIENT_KEY_EXCHANGE),
    "CertificateVerify": lambda: only(a_client_flight(), HandshakeType.CERTIFICATE_VERIFY),
    "flight of another client": a_client_flight,
    "HelloVerifyRequest with a number": lambda: handshake(0x03, 1, b"\xfe\xfd\x04cook"),
    "HelloVerifyRequest without cookie": lambda: handshake(0x03, 0, b"\xfe\xfd\x00"),
    "server's flight with a broken key exchange": lambda: replaced(a_server_flight(), 0x0C, 2, b"\x03"),
    "server's flight with a broken hello": lambda: replaced(a_server_flight(), 0x02, 0, bytes(40)),
    "server's flight with an empty chain": lambda: replaced(a_server_flight(), 0x0B, 1, bytes(3)),
    "server's flight with an empty certificate": lambda: replaced(
        a_server_flight(), 0x0B, 1, bytes([0, 0, 3, 0, 0, 0])
    ),
    "server's flight with another key exchange": lambda: replaced(
        a_server_flight(), 0x0C, 2, b"\x01" + bytes(80)
    ),
    "client's flight with a broken signature": lambda: replaced(a_client_flight(), 0x0F, 3, b"\x04"),
}

MOMENTS = {
    "before": (0.0, 0.01),
    "between": (0.07, 0.12),
    "before Finished": (0.149, 0.199),
    "after": (0.3, 0.31),
}


@pytest.mark.parametrize("moment", MOMENTS)
@pytest.mark.parametrize("role", ["active", "passive"])
@pytest.mark.parametrize("name", FORGERIES)
def test_a_forged_datagram_neither_kills_nor_delays_the_handshake(name: str, role: str, moment: str) -> None:
    client, server = pair()
    world = World(client, server, Path(rtt=0.1))
    target = 0 if role == "active" else 1
    for at in MOMENTS[moment]:
        for _ in range(3):
            world.inject(target, FORGERIES[name](), at)
    world.run()
    assert world.connected()
    assert world.connected_at(0) == pytest.approx(0.2)
    check_alive(client, server)


@pytest.mark.parametrize("role", ["active", "passive"])
def test_all_forgeries_at_once_all_the_time(role: str) -> None:
    client, server = pair()
    world = World(client, server, Path(rtt=0.1))
    names = list(FORGERIES)
    random.Random(3).shuffle(names)
    for number, name in enumerate(names * 3):
        world.inject(0 if role == "active" else 1, FORGERIES[name](), 0.003 * number)
    world.run()
    assert world.connected()
    assert max(world.connected_at(0), world.connected_at(1)) < 1.5
    check_alive(client, server)


def check_alive(client: DtlsEndpoint, server: DtlsEndpoint) -> None:
    for source, target in ((client, server), (server, client)):
        outgoing(source)
        source.send(b"alive")
        deliver(outgoing(source), target)
        assert incoming(target) == [DtlsData(b"alive")]


def test_a_flood_of_rival_messages_costs_a_repetition_at_most() -> None:
    """500 forged ServerHellos and key exchanges in every round trip."""
    client, server = pair()
    world = World(client, server, Path(rtt=0.1))
    chance = random.Random(5)
    for number in range(1000):
        kind, sequence = [(2, 0), (0x0C, 2), (0x0B, 1), (0x0D, 3)][number % 4]
        body = b"\xfe\xfd" + chance.randbytes(68)
        world.inject(0, handshake(kind, sequence, body), number * 0.0002)
    world.run()
    assert world.connected()
    assert world.connected_at(0) < 0.5


@pytest.mark.parametrize("copies", [3, 200, 600])
def test_a_flood_of_client_hellos_leaves_room_for_the_real_one(copies: int) -> None:
    client, server = pair()
    world = World(client, server, Path(rtt=0.1))
    for number in range(copies):
        world.inject(1, a_client_hello(), number * 0.04 / copies)
    world.run()
    assert world.connected()
    check_alive(client, server)


def test_a_forger_who_saw_the_certificate_still_cannot_sign() -> None:
    """The real certificate with a forged ServerHello and key exchange."""
    client, server = pair()
    hello = outgoing(client)
    deliver(hello, server)
    (flight,) = outgoing(server)
    forged = (
        only(a_server_flight(), HandshakeType.SERVER_HELLO)
        + only(flight, HandshakeType.CERTIFICATE)
        + only(a_server_flight(), HandshakeType.SERVER_KEY_EXCHANGE)
        + handshake(HandshakeType.CERTIFICATE_REQUEST, 3, b"\x01\x40\x00\x02\x04\x03\x00\x00")
        + handshake(HandshakeType.SERVER_HELLO_DONE, 4, b"")
    )
    deliver([forged], client)
    assert incoming(client) == [] and outgoing(client) == []
    deliver([flight], client)
    deliver(outgoing(client), server)
    deliver(outgoing(server), client)
    check_alive_after(client, server)


def check_alive_after(client: DtlsEndpoint, server: DtlsEndpoint) -> None:
    assert len(incoming(client)) == len(incoming(server)) == 1
    check_alive(client, server)


def test_a_fragmented_flight_in_any_order_with_rivals_between() -> None:
    """Every message in pieces of 50 bytes, shuffled, doubled, each with a forged twin of the same place and
    size."""
    client, server = pair()
    deliver(outgoing(client), server)
    (flight,) = outgoing(server)
    pieces: list[bytes] = []
    for record in wire.split_records_untrusted(flight)[0]:
        for part in wire.split_fragments_untrusted(record.payload, guard.MAX_MESSAGE):
            for at in range(0, max(part.length, 1), 150):
                body = part.body[at : at + 150]
                pieces.append(fragment(part.kind, part.length, part.sequence, at, body))
    chance = random.Random(11)
    for _ in range(3):
        chance.shuffle(pieces)
        for piece in pieces:
            twin = bytearray(piece)
            twin[-1] ^= 0xFF if len(piece) > 25 else 0
            deliver([bytes(twin), piece], client)
    deliver(outgoing(client), server)
    deliver(outgoing(server), client)
    check_alive_after(client, server)


def test_half_open_handshakes_with_huge_claims_stay_small() -> None:
    """500 passive endpoints, each with a real hello and every kind of large claim: CVE-2014-3506."""
    before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    hello = a_client_hello()
    claims = [
        fragment(kind, length, sequence, offset, bytes(1100))
        for kind in (0x01, 0x0B, 0x0F, 0x10)
        for sequence in range(4)
        for length, offset in (
            (0xFFFFFF, 0),
            (0xFFFFFF, 0xFF0000),
            (guard.MAX_MESSAGE, 0),
            (guard.MAX_MESSAGE, 5000),
        )
    ]
    servers = []
    for _ in range(500):
        server = endpoint(active=False, mine=THEIRS, peer=OURS)
        deliver([hello, *claims], server)
        outgoing(server)
        servers.append(server)
    grown = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before
    assert grown < 64 * 1024, f"{grown} KiB"
    assert all(server.next_deadline() is not None for server in servers)


def test_plaintext_alerts_and_changes_are_dropped_with_their_reasons() -> None:
    client = endpoint(active=True)
    reasons = deliver(
        [
            plaintext(ContentType.ALERT, b"\x02\x28"),
            plaintext(0x3F, b"what"),
            wire.record(ContentType.HANDSHAKE, 2, 0, bytes(48)),
            wire.record(ContentType.HANDSHAKE, 1, 0, bytes(48)),
            fragment(HandshakeType.SERVER_HELLO, 0xFFFFFF, 0, 0, bytes(10)),
            fragment(HandshakeType.SERVER_HELLO, 100, 0, 99, bytes(10)),
            b"\x16\xfe\xfd" + bytes(5),
            b"\x16\x03\x03" + bytes(10),
            plaintext(ContentType.APPLICATION_DATA, b"data"),
            handshake(HandshakeType.FINISHED, 500, bytes(12)),
        ],
        client,
    )
    assert reasons == [
        "dtls_plaintext_alert",
        "dtls_content_type",
        "dtls_future_epoch",
        "dtls_early_record",
        "dtls_huge_handshake",
        "dtls_bad_fragment",
        "dtls_truncated_record",
        "dtls_record_version",
        "dtls_plaintext_data",
        "dtls_bad_sequence",
    ]
    assert client.statistics().dropped_records == 8  # the two that are no records are not counted as such


def test_a_certificate_of_100_kb_is_refused_at_once() -> None:
    """CVE-2022-0778's neighbourhood: the size is judged before a byte is kept."""
    client = endpoint(active=True)
    pieces = [
        fragment(HandshakeType.CERTIFICATE, 100_000, 1, at, bytes(1000)) for at in range(0, 100_000, 1000)
    ]
    assert set(deliver(pieces, client)) == {"dtls_huge_handshake"}


@pytest.mark.parametrize("kind", [0x14, 0x15, 0x16, 0x17, 0x18])
@pytest.mark.parametrize("phase", ["finishing", "connected"])
def test_forged_encrypted_records_of_every_length_are_dropped(phase: str, kind: int) -> None:
    client, server = pair()
    deliver(outgoing(client), server)
    deliver(outgoing(server), client)
    deliver(outgoing(client), server)
    last = outgoing(server)
    if phase == "connected":
        deliver(last, client)
    chance = random.Random(kind)
    lengths = [*range(80), 1200, 16384, 16385, 16640, 16641, 18433, 60000]
    forged = [
        wire.record(kind, 1, number, chance.randbytes(length))
        for length in lengths
        for number in (0, 1, 1 << 47)
    ]
    assert set(deliver(forged, client)) == {"dtls_bad_record"}
    if phase == "finishing":
        deliver(last, client)
    check_alive_after(client, server)


def test_an_authentic_flight_that_openssl_refuses_ends_the_call() -> None:
    """Somebody on the path writes a cipher suite that was not offered into the server's hello."""
    client, server = pair()
    deliver(outgoing(client), server)
    (flight,) = outgoing(server)
    (hello, *_), _ = wire.split_records_untrusted(flight)
    body = bytearray(hello.raw[25:])
    at = 35 + body[34]
    body[at : at + 2] = b"\xc0\x09"
    deliver([replaced(flight, HandshakeType.SERVER_HELLO, 0, bytes(body))], client)
    assert incoming(client) == [DtlsClosed("handshake_failed")]


def test_failed_signatures_are_remembered_up_to_a_limit() -> None:
    budget = guard.SignatureBudget()
    for number in range(300):
        parameters = wire.SignedParameters(b"", 0x0403, number.to_bytes(2, "big"))
        assert not budget.verify(b"no certificate", True, parameters, b"signed")
        assert not budget.verify(b"no certificate", True, parameters, b"signed")


def test_joining_a_flight_can_begin_later() -> None:
    flight = [
        wire.Record(0x16, 0, handshake(HandshakeType.CLIENT_HELLO, number, b"hello %d" % number))
        for number in (0, 1)
    ]
    assert join_flight(flight, first=1) == wire.whole_message(HandshakeType.CLIENT_HELLO, 1, b"hello 1")


def test_openssl_before_its_handshake_neither_writes_nor_says_goodbye() -> None:
    machine = Machine(OURS, active=False)
    assert not machine.write(b"data")
    machine.shutdown()
    machine.handle_timeout()
    assert machine.take_output() == []


@pytest.mark.parametrize(
    ("parse", "data"),
    [
        (lambda data: wire.split_fragments_untrusted(data, 100), b"\x01" + bytes(10)),
        (lambda data: wire.split_fragments_untrusted(data, 100), b"\x01\0\0\x05\0\0\0\0\0\0\0\x05four"),
        (lambda data: wire.split_fragments_untrusted(data, 100), b""),
        (wire.hello_random_untrusted, b"\xfe\xff" + bytes(40)),
        (wire.hello_random_untrusted, b"\xfe\xfd" + bytes(32) + b"\x21" + bytes(40)),
        (wire.hello_verify_cookie_untrusted, b"\xfe\xfd\x02c"),
        (wire.hello_verify_cookie_untrusted, b"\xfe\xfd\x01cc"),
        (wire.leaf_certificate_untrusted, bytes(3)),
        (wire.leaf_certificate_untrusted, bytes([0, 0, 3, 0, 0, 0])),
        (wire.leaf_certificate_untrusted, bytes([0, 0, 4, 0, 0, 9, 1])),
        (wire.server_key_exchange_untrusted, b"\x01" + bytes(80)),
        (wire.certificate_verify_untrusted, b"\x04\x03\xff\xff"),
        (wire.certificate_verify_untrusted, b"\x04\x03\x00\x01ss"),
    ],
)
def test_malformed_messages(parse: Callable[[bytes], object], data: bytes) -> None:
    with pytest.raises(BadPacket):
        parse(data)


def test_what_a_client_hello_must_have() -> None:
    """RFC 5764 section 4.1: use_srtp, a suite of ours, null compression."""
    body = a_client_hello()[25:]
    at = 36 + body[34]
    suites = int.from_bytes(body[at : at + 2], "big")
    compression = at + 2 + suites
    ours = frozenset({0xC02B})
    wire.check_client_hello_untrusted(body, ours)
    for broken in (
        body[: compression + 2] + b"\x00\x00",
        body[:compression] + b"\x01\x01" + body[compression + 2 :],
        body + b"\x00",
        body[:at] + b"\x00\x03\xc0\x2b\x00" + body[compression:],
    ):
        with pytest.raises(BadPacket):
            wire.check_client_hello_untrusted(broken, ours)
    with pytest.raises(BadPacket):
        wire.check_client_hello_untrusted(body, frozenset({0x1301}))


# --- the parsers: only BadPacket, never a hang
# ----------------------------------------------------------------


@given(st.lists(st.binary(max_size=1500), max_size=8), st.booleans())
def test_an_endpoint_takes_anything(datagrams: list[bytes], active: bool) -> None:
    target = endpoint(active=active)
    deliver(datagrams, target)
    assert target.next_deadline() is not None


@given(
    st.lists(
        st.builds(
            fragment,
            st.sampled_from(list(HandshakeType)),
            st.integers(0, 400),
            st.integers(0, 5),
            st.integers(0, 400),
            st.binary(max_size=400),
        ),
        max_size=12,
    ),
    st.booleans(),
)
def test_an_endpoint_takes_any_handshake_fragments(datagrams: list[bytes], active: bool) -> None:
    target = endpoint(active=active)
    deliver(datagrams, target)
    assert incoming(target) == []


PARSERS: list[Callable[[bytes], object]] = [
    wire.split_records_untrusted,
    lambda data: wire.split_fragments_untrusted(data, guard.MAX_MESSAGE),
    wire.hello_random_untrusted,
    lambda data: wire.check_client_hello_untrusted(data, frozenset({0xC02B})),
    wire.hello_verify_cookie_untrusted,
    wire.leaf_certificate_untrusted,
    wire.server_key_exchange_untrusted,
    wire.certificate_verify_untrusted,
]


@pytest.mark.parametrize("parser", range(len(PARSERS)))
@given(data=st.binary(max_size=300))
def test_parsers_raise_only_bad_packet(parser: int, data: bytes) -> None:
    try:
        PARSERS[parser](data)
    except BadPacket:
        pass


@given(st.integers(0, 5000), st.integers(0, 255), st.sampled_from(["client", "server"]))
def test_real_messages_with_one_byte_changed(position: int, value: int, whose: str) -> None:
    """Real flights reach far deeper into the parsers than noise does."""
    flight = bytearray(a_server_flight() if whose == "server" else a_client_hello())
    flight[position % len(flight)] = value
    for active in (True, False):
        deliver([bytes(flight)], endpoint(active=active))


@given(st.binary(max_size=2000), st.integers(1, 300), st.randoms(use_true_random=False))
def test_a_message_survives_being_cut_up(body: bytes, size: int, chance: random.Random) -> None:
    pool = guard.FragmentPool()
    step = max(size, len(body) // 20 + 1)
    parts = [
        wire.Fragment(HandshakeType.CERTIFICATE, len(body), 1, at, body[at : at + step])
        for at in range(0, max(len(body), 1), step)
    ]
    chance.shuffle(parts)
    for number, part in enumerate(parts):
        assert pool.add(part, number)
        assert not pool.add(part, number)
    (message,) = pool.messages(HandshakeType.CERTIFICATE, 1)
    assert message.body == body
    assert message.raw == wire.whole_message(HandshakeType.CERTIFICATE, 1, body)


@given(st.lists(st.tuples(st.integers(0, 7000), st.binary(min_size=1, max_size=1100)), max_size=100))
def test_the_pool_is_bounded(parts: list[tuple[int, bytes]]) -> None:
    pool = guard.FragmentPool()
    for offset, body in parts:
        pool.add(wire.Fragment(HandshakeType.CERTIFICATE, guard.MAX_MESSAGE, 1, offset, body), 0)
        assert pool.held <= guard.MAX_HELD
    assert len(pool.messages(HandshakeType.CERTIFICATE, 1)) <= guard.MAX_VERSIONS


@pytest.mark.parametrize("cookie", [b"c", bytes(255)])
def test_the_second_hello_differs_only_in_its_cookie(cookie: bytes) -> None:
    record = a_client_hello()
    first = record[13:]
    second = wire.insert_cookie(first, cookie)
    body = second[12:]
    at = 35 + body[34]
    assert body[at] == len(cookie) and body[at + 1 : at + 1 + len(cookie)] == cookie
    assert body[:at] + b"\x00" + body[at + 1 + len(cookie) :] == first[12:]
    assert second[4:6] == b"\x00\x01"
