"""The client's Finished in fresh records: every nonce and every number once, whoever made the record."""

from __future__ import annotations

import pytest

from tests.proto.dtls_network import Path, World, deliver, incoming, outgoing, pair
from voicegate.proto import dtls_wire as wire
from voicegate.proto.dtls import DtlsData, DtlsEndpoint
from voicegate.proto.dtls_finished import MAX_REPETITIONS


def encrypted(datagrams: list[bytes]) -> list[bytes]:
    """The records of epoch 1."""
    return [r.raw for data in datagrams for r in wire.split_records_untrusted(data)[0] if r.epoch == 1]


def client_that_waits() -> tuple[DtlsEndpoint, DtlsEndpoint, list[bytes], bytes]:
    """A client that has sent its Finished: (client, server, its datagrams, what would end its wait)."""
    client, server = pair()
    deliver(outgoing(client), server)
    deliver(outgoing(server), client)
    sent = outgoing(client)
    deliver(sent, server)
    (last,) = outgoing(server)
    return client, server, sent, last


@pytest.mark.parametrize("repetitions", [0, 1, 5, 30])
def test_no_nonce_and_no_number_is_used_twice(repetitions: int) -> None:
    """CVE-2026-26014's class. RFC 5288 section 3: distinct explicit nonces under one key."""
    client, server, sent, last = client_that_waits()
    for _ in range(repetitions):
        client.handle_timeout(client.next_deadline() or 0.0)
        sent += outgoing(client)
    deliver([last], client)
    incoming(client), incoming(server)
    for _ in range(100):
        client.send(b"data")
        sent += outgoing(client)
    records = encrypted(sent)
    assert len(records) == 1 + repetitions + 100
    assert len({raw[13:21] for raw in records}) == len(records)
    assert len({raw[3:11] for raw in records}) == len(records)


def test_data_after_many_repetitions_is_no_replay_to_the_server() -> None:
    client, server, _, last = client_that_waits()
    for _ in range(6):
        client.handle_timeout(client.next_deadline() or 0.0)
        deliver(outgoing(client), server)
    deliver([last], client)
    incoming(client), incoming(server)
    for number in range(8):
        client.send(b"%d" % number)
        deliver(outgoing(client), server)
    assert incoming(server) == [DtlsData(b"%d" % number) for number in range(8)]


def test_a_server_that_repeats_itself_cannot_make_us_spend_nonces_without_end() -> None:
    client, server = pair()
    deliver(outgoing(client), server)
    flight = outgoing(server)
    deliver(flight, client)
    sent = outgoing(client)
    for step in range(20_000):
        deliver(flight, client, step * 0.0014)
        sent += outgoing(client)
    records = encrypted(sent)
    assert len({raw[13:21] for raw in records}) == len(records) <= 1 + MAX_REPETITIONS


def test_the_repetition_is_made_of_the_same_message() -> None:
    """Both roles ours, the server's last flight lost again and again."""
    client, server = pair()
    lost = 0

    def drop(to: int, data: bytes) -> bool:
        nonlocal lost
        if to == 0 and encrypted([data]) and lost < 4:
            lost += 1
            return True
        return False

    world = World(client, server, Path(rtt=0.02), lost=drop).run()
    assert lost == 4
    assert world.connected()
    assert world.connected_at(0) < 1.0
