"""ICE-lite: who is answered, who is met with silence, what is remembered."""

from __future__ import annotations

import asyncio
import hmac
import itertools
import random

import aioice
import pytest
from hypothesis import given
from hypothesis import strategies as st

from voicegate.proto import ice, stun
from voicegate.proto.address import ClientAddress, pack_address
from voicegate.proto.errors import BadPacket
from voicegate.proto.ice import IceLite, Nominated, Validated

UFRAG = "RsyneX9nYRgVbgDJNgLsu3g"
PASSWORD = b"a-password-of-24-letters"
REMOTE = "Ab+/"
CLIENT = pack_address("203.0.113.7", 40_000)
OTHER = pack_address("2001:db8::7", 40_000)


def test_check_is_answered_with_the_clients_address() -> None:
    agent = make_agent()
    agent.receive_datagram(check(), CLIENT, 10.0)
    assert take_success(agent) == (CLIENT, CLIENT)
    assert agent.poll_transmit() is None
    assert agent.poll_event() == Validated(CLIENT)
    assert agent.poll_event() is None
    assert dict(agent.validated) == {CLIENT: 10.0}
    assert agent.statistics().answered == 1


def test_every_check_is_answered_but_an_address_is_reported_once() -> None:
    agent = make_agent()
    for second in range(3600):
        agent.receive_datagram(check(), CLIENT, float(second))
        assert take_success(agent) == (CLIENT, CLIENT)
    assert [*drain_events(agent)] == [Validated(CLIENT)]
    assert dict(agent.validated) == {CLIENT: 3599.0}


def test_ipv6_client_is_answered() -> None:
    agent = make_agent()
    agent.receive_datagram(check(), OTHER, 0.0)
    assert take_success(agent) == (OTHER, OTHER)


def test_nomination_is_reported_when_it_changes() -> None:
    agent = make_agent()
    agent.receive_datagram(check(), CLIENT, 0.0)
    assert agent.nominated is None
    agent.receive_datagram(check(use_candidate=True), CLIENT, 1.0)
    agent.receive_datagram(check(use_candidate=True), CLIENT, 2.0)
    agent.receive_datagram(check(use_candidate=True), OTHER, 3.0)
    assert [*drain_events(agent)] == [
        Validated(CLIENT),
        Nominated(CLIENT),
        Validated(OTHER),
        Nominated(OTHER),
    ]
    assert agent.nominated == OTHER


def test_use_candidate_after_integrity_does_not_nominate() -> None:
    agent = make_agent()
    data = set_length(check()[:-8] + bytes.fromhex("00250000"))
    agent.receive_datagram(data, CLIENT, 0.0)
    assert [*drain_events(agent)] == [Validated(CLIENT)]


def test_unknown_required_attribute_is_refused_with_its_number() -> None:
    agent = make_agent()
    agent.receive_datagram(check(extra=((0x7001, b""), (0x7002, b"x"))), CLIENT, 0.0)
    taken = agent.poll_transmit()
    assert taken is not None
    client, response = taken
    assert client == CLIENT
    assert response[:2] == b"\x01\x11"
    assert bytes.fromhex("000900040000 0414") in response  # ERROR-CODE: class 4, number 20
    assert bytes.fromhex("000a0004 7001 7002") in response
    assert agent.poll_event() is None
    assert not agent.validated
    assert agent.statistics().refused == 1


def test_a_client_that_wants_to_be_controlled_is_told_to_switch() -> None:
    agent = make_agent()
    agent.receive_datagram(check(controlling=False), CLIENT, 0.0)
    taken = agent.poll_transmit()
    assert taken is not None
    assert bytes.fromhex("000900040000 0457") in taken[1]  # 487
    assert not agent.validated


BAD_CHECKS = {
    "our_ufrag": (lambda: check(username=f"{UFRAG[:-1]}h:{REMOTE}"), "ice_username"),
    "our_ufrag_in_lower_case": (lambda: check(username=f"{UFRAG.lower()}:{REMOTE}"), "ice_username"),
    "their_ufrag": (lambda: check(username=f"{UFRAG}:Ab+A"), "ice_username"),
    "their_ufrag_longer": (lambda: check(username=f"{UFRAG}:{REMOTE}x"), "ice_username"),
    "their_ufrag_missing": (lambda: check(username=f"{UFRAG}:"), "ice_username"),
    "halves_swapped": (lambda: check(username=f"{REMOTE}:{UFRAG}"), "ice_username"),
    "no_colon": (lambda: check(username=UFRAG), "ice_username"),
    "trailing_zero": (lambda: check(username=f"{UFRAG}:{REMOTE}\x00"), "ice_username"),
    "space": (lambda: check(username=f" {UFRAG}:{REMOTE}"), "ice_username"),
    "password": (lambda: check(password=b"another-password-of-24-l"), "ice_integrity"),
    "password_empty": (lambda: check(password=b""), "ice_integrity"),
    "bit_flipped": (lambda: flip_priority(check()), "ice_integrity"),
    "fingerprint": (lambda: check()[:-1] + b"!", "stun_fingerprint"),
    "success_response": (lambda: stun.binding_success(bytes(12), CLIENT, PASSWORD), "stun_not_a_request"),
    "indication": (lambda: b"\x00\x11" + check()[2:], "stun_not_a_request"),
    "no_integrity": (lambda: cut_integrity(check()), "stun_no_integrity"),
    "empty": (lambda: b"", "stun_not_a_request"),
}


@pytest.mark.parametrize("name", BAD_CHECKS)
def test_what_is_not_a_valid_check_meets_silence_and_changes_nothing(name: str) -> None:
    make, reason = BAD_CHECKS[name]
    agent = make_agent()
    with pytest.raises(BadPacket) as caught:
        agent.receive_datagram(make(), CLIENT, 0.0)
    assert caught.value.reason == reason
    assert dict(agent.statistics().dropped) == {reason: 1}
    assert agent.poll_transmit() is None
    assert agent.poll_event() is None
    assert not agent.validated
    agent.receive_datagram(check(), CLIENT, 1.0)
    assert take_success(agent) == (CLIENT, CLIENT)


def test_the_stalest_address_goes_but_never_the_selected_one() -> None:
    agent = make_agent()
    addresses = [pack_address("198.51.100.1", 1000 + n) for n in range(ice.MAX_ADDRESSES)]
    for second, address in enumerate(addresses):
        agent.receive_datagram(check(), address, float(second))
    agent.select(addresses[0])
    agent.receive_datagram(check(), CLIENT, 100.0)
    assert addresses[0] in agent.validated
    assert addresses[1] not in agent.validated
    assert len(agent.validated) == ice.MAX_ADDRESSES
    agent.receive_datagram(check(), addresses[1], 101.0)
    events = [*drain_events(agent)]
    assert events.count(Validated(addresses[1])) == 2
    assert agent.statistics().evicted == 2


def test_a_repeated_check_is_answered_but_not_new() -> None:
    agent = make_agent()
    first = check()
    assert agent.receive_datagram(first, CLIENT, 1.0)
    assert not agent.receive_datagram(first, CLIENT, 2.0)
    assert [take_success(agent)[0] for _ in range(2)] == [CLIENT, CLIENT]
    assert dict(agent.validated) == {CLIENT: 1.0}
    refused = check(controlling=False)
    assert agent.receive_datagram(refused, CLIENT, 4.0) and not agent.receive_datagram(refused, CLIENT, 5.0)


def test_a_check_repeated_from_another_address_is_nobodys() -> None:
    agent = make_agent()
    for number, controlling in enumerate((True, False)):
        seen = check(transaction=bytes([number]) * 12, controlling=controlling)
        agent.receive_datagram(seen, CLIENT, 1.0)
        assert agent.poll_transmit() is not None
        with pytest.raises(BadPacket, match="ice_replay"):
            agent.receive_datagram(seen, OTHER, 2.0)
        assert agent.poll_transmit() is None
    assert dict(agent.validated) == {CLIENT: 1.0}
    assert agent.statistics().dropped == {"ice_replay": 2}


def test_a_client_whose_check_was_overtaken_by_its_copy_is_answered() -> None:
    agent = make_agent()
    agent.receive_datagram(check(), CLIENT, 1.0)
    overtaken = check()
    assert agent.receive_datagram(overtaken, OTHER, 2.0)
    assert not agent.receive_datagram(overtaken, CLIENT, 2.1)
    assert [take_success(agent)[0] for _ in range(3)] == [CLIENT, OTHER, CLIENT]


def test_the_memory_for_checks_is_bounded() -> None:
    agent = make_agent()
    checks = [check() for _ in range(ice.MAX_TRANSACTIONS + 1)]
    assert all(agent.receive_datagram(data, CLIENT, 1.0) for data in checks)
    assert not any(agent.receive_datagram(data, CLIENT, 1.0) for data in checks[1:])
    assert agent.receive_datagram(checks[0], CLIENT, 1.0), "the price of the bound"


def test_only_a_validated_address_can_be_selected() -> None:
    with pytest.raises(AssertionError):
        make_agent().select(CLIENT)


def test_what_nobody_drains_stays_bounded() -> None:
    agent = make_agent()
    for port in range(100):
        agent.receive_datagram(check(), pack_address("198.51.100.1", 1 + port), 0.0)
    assert len([*iter(agent.poll_transmit, None)]) == ice.MAX_WAITING
    assert len([*drain_events(agent)]) == ice.MAX_WAITING
    assert agent.statistics().overflowed == 2 * (100 - ice.MAX_WAITING)


@pytest.mark.parametrize("client", [CLIENT, OTHER], ids=["ipv4", "ipv6"])
def test_a_response_is_not_larger_than_the_smallest_valid_check(client: ClientAddress) -> None:
    """Username and integrity alone, no fingerprint, no priority: nothing that is answered is shorter."""
    username = f"{UFRAG}:{REMOTE}".encode()
    body = b"\x00\x06" + len(username).to_bytes(2, "big") + username + bytes(-len(username) % 4)
    agent = make_agent()
    data = sign(check()[:20] + body)
    agent.receive_datagram(data, client, 0.0)
    taken = agent.poll_transmit()
    assert taken is not None
    assert len(taken[1]) <= len(data) == 76


@pytest.mark.parametrize("client", [CLIENT, OTHER], ids=["ipv4", "ipv6"])
def test_a_refusal_is_not_larger_than_its_check(client: ClientAddress) -> None:
    for count in range(1, 20):
        agent = make_agent()
        data = check(extra=tuple((0x7000 + n, b"") for n in range(count)))
        agent.receive_datagram(data, client, 0.0)
        taken = agent.poll_transmit()
        assert taken is not None
        assert len(taken[1]) <= len(data)


def test_connects_with_a_full_agent_of_another_implementation(monkeypatch: pytest.MonkeyPatch) -> None:
    """aioice, controlling, over loopback."""
    monkeypatch.setattr("aioice.ice.get_host_addresses", lambda **_: ["127.0.0.1"])

    async def connect() -> tuple[int, list[Validated | Nominated]]:
        connection = aioice.Connection(ice_controlling=True, stun_server=None)
        await connection.gather_candidates()
        agent = IceLite(UFRAG, PASSWORD, connection.local_username)
        loop = asyncio.get_running_loop()
        events: list[Validated | Nominated] = []

        class Server(asyncio.DatagramProtocol):
            def connection_made(self, transport: asyncio.DatagramTransport) -> None:
                self.transport = transport

            def datagram_received(self, data: bytes, source: tuple[str, int]) -> None:
                agent.receive_datagram(data, pack_address(*source[:2]), loop.time())
                while (transmit := agent.poll_transmit()) is not None:
                    self.transport.sendto(transmit[1], source)
                events.extend(drain_events(agent))

        transport, _ = await loop.create_datagram_endpoint(Server, local_addr=("127.0.0.1", 0))
        port = transport.get_extra_info("sockname")[1]
        connection.remote_is_lite = True
        connection.remote_username = UFRAG
        connection.remote_password = PASSWORD.decode()
        await connection.add_remote_candidate(
            aioice.Candidate("1", 1, "udp", 2130706431, "127.0.0.1", port, "host")
        )
        await connection.add_remote_candidate(None)
        await asyncio.wait_for(connection.connect(), 10)
        await connection.close()
        transport.close()
        return agent.statistics().answered, events

    answered, events = asyncio.run(connect())
    assert answered >= 1
    assert isinstance(events[0], Validated)
    assert any(isinstance(event, Nominated) for event in events)


@given(st.integers(0, 2**32 - 1))
def test_over_a_bad_network_every_check_that_arrives_whole_from_a_client_is_answered(seed: int) -> None:
    """Loss, duplicates, reordering, bit flips, and a thief with the ufrags but not the password."""
    rng = random.Random(seed)
    agent = make_agent()
    expected = 0
    addresses = [pack_address("198.51.100.1", 1000 + n) for n in range(12)]
    senders: dict[bytes, ClientAddress] = {}
    # Without fingerprint: a flip in it is outside of what integrity covers.
    datagrams = [check(transaction=rng.randbytes(12), fingerprint=False) for _ in range(30)]
    stolen = [check(transaction=rng.randbytes(12), password=b"guess") for _ in range(10)]
    pool = [d for d in datagrams for _ in range(rng.randint(0, 2))] + stolen
    rng.shuffle(pool)
    for tick, original in enumerate(pool):
        data = bytearray(original)
        if rng.random() < 0.3:
            data[rng.randrange(len(data))] ^= 1 << rng.randrange(8)
        sender = rng.choice(addresses)
        valid = bytes(data) in datagrams
        if valid:
            valid = senders.setdefault(bytes(data), sender) == sender or sender in agent.validated
        try:
            agent.receive_datagram(bytes(data), sender, float(tick))
        except BadPacket:
            assert not valid
        answers = [*iter(agent.poll_transmit, None)]
        expected += valid
        assert len(answers) == valid
        assert len(agent.validated) <= ice.MAX_ADDRESSES
    statistics = agent.statistics()
    assert statistics.answered == expected
    assert statistics.answered + sum(statistics.dropped.values()) == len(pool)


@given(st.binary(max_size=200))
def test_arbitrary_bytes_raise_only_bad_packet(data: bytes) -> None:
    with pytest.raises(BadPacket):
        make_agent().receive_datagram(data, CLIENT, 0.0)


TRANSACTIONS = itertools.count(1)


def make_agent() -> IceLite:
    return IceLite(UFRAG, PASSWORD, REMOTE)


def check(
    *,
    username: str = f"{UFRAG}:{REMOTE}",
    password: bytes = PASSWORD,
    transaction: bytes | None = None,
    use_candidate: bool = False,
    controlling: bool = True,
    fingerprint: bool = True,
    extra: tuple[tuple[int, bytes], ...] = (),
) -> bytes:
    data = stun.binding_request(
        transaction or next(TRANSACTIONS).to_bytes(12, "big"),
        username.encode(),
        password,
        priority=1845501695,
        tie_breaker=5,
        use_candidate=use_candidate,
        controlling=controlling,
        extra=extra,
    )
    return data if fingerprint else set_length(data[:-8])


def take_success(agent: IceLite) -> tuple[ClientAddress, ClientAddress]:
    """Where the next response goes, and the address in it."""
    taken = agent.poll_transmit()
    assert taken is not None
    client, data = taken
    response = stun.parse_binding_success_untrusted(data)
    assert stun.verify_integrity(data, response.integrity_offset, PASSWORD)
    return client, response.mapped


def drain_events(agent: IceLite) -> list[Validated | Nominated]:
    return [*iter(agent.poll_event, None)]


def flip_priority(data: bytes) -> bytes:
    """One bit of PRIORITY, and no fingerprint to show it."""
    at = data.index(bytes.fromhex("00240004")) + 4
    return set_length(data[:at] + bytes((data[at] ^ 1,)) + data[at + 1 : -8])


def cut_integrity(data: bytes) -> bytes:
    return set_length(data[:-32])


def set_length(data: bytes) -> bytes:
    return data[:2] + (len(data) - 20).to_bytes(2, "big") + data[4:]


def sign(data: bytes) -> bytes:
    """Append MESSAGE-INTEGRITY and nothing else."""
    covered = data[:2] + (len(data) + 4).to_bytes(2, "big") + data[4:]
    return covered + bytes.fromhex("00080014") + hmac.digest(PASSWORD, covered, "sha1")
