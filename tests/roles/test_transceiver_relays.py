"""By which relay a client is answered: what proves a path, what moves it, and what does neither."""

from __future__ import annotations

from collections import Counter

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from tests.roles.test_transceiver_core import check_of, connected, frames, tone
from tests.support.light_channel import Wanted
from tests.support.light_client import LightCall
from tests.support.rig import KEYS, RELAY, Rig, address_of
from voicegate.proto import link, link_control, rtcp, rtp, stun
from voicegate.proto.address import ClientAddress, over_tcp, pack_address
from voicegate.proto.demux import Kind, kind
from voicegate.proto.keys import ClusterKeys
from voicegate.proto.link_control import CLIENTS_PER_DATAGRAM, HELLO_SECONDS, Clients, Hello
from voicegate.roles.relay.hellos import Hellos
from voicegate.roles.relay.routes import Route
from voicegate.roles.transceiver.allocation import Identity
from voicegate.roles.transceiver.call import Proof
from voicegate.roles.transceiver.entry import Entry
from voicegate.roles.transceiver.life import (
    EndReason,
)
from voicegate.roles.transceiver.paths import Paths
from voicegate.roles.transceiver.relays import (
    FORGET_SECONDS,
    HELLOS_PER_SECOND,
    MAX_ANSWERS,
    MAX_RELAYS,
    Relays,
)

OTHER = "127.0.0.1:7001"
"""Another relay: of the same ingress or not, of this tier or the one before."""
HOUR = 1
INGRESS = "203.0.113.1:3478"


def next_rtp(client: LightCall) -> bytes:
    assert client.srtp is not None
    following = int.from_bytes(client.last_protected[2:4], "big") + 1
    return client.srtp.protect_rtp(rtp.build_rtp(111, False, following, 9, client.ssrc, b"\xf8\xff\xfe"))


def next_rtcp(client: LightCall) -> bytes:
    assert client.srtp is not None
    report = rtcp.build_receiver_report(rtcp.ReceiverReport(client.ssrc, ()))
    return client.srtp.protect_rtcp(report + rtcp.build_cname(client.ssrc, b"light"))


def next_check(client: LightCall) -> bytes:
    assert client.answer is not None
    return stun.binding_request(
        client.random.randbytes(12),
        f"{client.answer.ufrag}:{client.ufrag}".encode(),
        client.answer.password.encode(),
        priority=1,
        tie_breaker=1,
    )


def told(rig: Rig) -> list[tuple[bytes, bytes]]:
    """The clients of all answers so far."""
    return [row for _, message in rig.control for row in message.clients]


class TestReplies:
    @pytest.mark.parametrize("packet", [next_rtp, next_rtcp, next_check])
    def test_one_authenticated_packet_by_another_relay_moves_the_replies(self, packet) -> None:  # type: ignore[no-untyped-def]
        rig = Rig()
        client, call_id = connected(rig)
        client.speak = False
        rig.play(call_id, tone(5.0))
        rig.run(0.1)
        assert rig.replied_by[address_of(client)] == RELAY
        rig.inject(packet(client), address_of(client), relay=OTHER)
        rig.run(0.021)
        assert rig.replied_by[address_of(client)] == OTHER

    def test_so_does_a_record_of_the_data_channel(self) -> None:
        rig = Rig()
        client, call_id = connected(rig, channel=Wanted())
        client.speak = False
        rig.relay_of = lambda _: OTHER
        rig.to_core = lambda data: 20 <= data[0] <= 63
        rig.send_event(client, "session.update", session={"type": "realtime"})
        rig.run(0.011)
        entry = rig.core._calls[call_id]
        assert entry.paths[address_of(client)] == OTHER

    def test_a_data_channel_roams_by_its_own_records(self) -> None:
        """To a validated address, and without any SRTP: nobody speaks."""
        rig = Rig()
        client, call_id = connected(rig, channel=Wanted())
        client.speak = False
        rig.run(0.1)
        del rig.clients[address_of(client)]
        client.local = ("192.0.2.1", 6000)
        rig.clients[address_of(client)] = client
        rig.inject(next_check(client), address_of(client))
        call = rig.core.call(call_id)
        assert call is not None and call.client != address_of(client)
        rig.to_core = lambda data: 20 <= data[0] <= 63
        rig.send_event(client, "session.update", session={"type": "realtime"})
        rig.run(0.1)
        assert call.client == address_of(client)

    def test_nothing_that_is_not_new_and_authentic_moves_them(self) -> None:
        rig = Rig()
        heard: list[bytes] = []
        rig.to_core = lambda data: heard.append(data) is None
        client, call_id = connected(rig, channel=Wanted())
        assert client.answer is not None
        rig.send_event(client, "session.update", session={"type": "realtime"})
        rig.run(6.0)
        rig.to_core = lambda data: False
        rig.run(0.1)
        heard.append(next_rtcp(client))
        rig.inject(heard[-1], address_of(client))
        assert {kind(data[0]) for data in heard} == {Kind.STUN, Kind.DTLS, Kind.RTP}
        forged = stun.binding_request(
            bytes(12), f"{client.answer.ufrag}:{client.ufrag}".encode(), b"x" * 24, priority=1, tie_breaker=1
        )
        broken = bytearray(client.last_protected)
        broken[-1] ^= 1
        for data in [*heard, forged, bytes(broken), b"\x80" * 60, b"\x16" * 60, b""]:
            rig.inject(data, address_of(client), relay=OTHER)
            assert rig.core._calls[call_id].paths == {address_of(client): RELAY}

    def test_a_repeated_check_still_makes_a_path_where_there_is_none(self) -> None:
        """A client may repeat a check (RFC 8489 section 6.2.1) whose first copy came too early."""
        rig = Rig()
        client, call_id = rig.call()
        rig.clients.clear()
        check = check_of(client)
        rig.core._calls[call_id].call.receive_datagram(check, address_of(client), rig.now)
        rig.inject(check, address_of(client))
        assert rig.core._calls[call_id].paths == {address_of(client): RELAY}

    def test_a_repeated_check_keeps_no_call_alive(self) -> None:
        rig = Rig()
        client, _ = connected(rig)
        recorded = next_check(client)
        rig.inject(recorded, address_of(client))
        rig.to_core = lambda data: False
        for _ in range(36):
            rig.run(1.0)
            rig.inject(recorded, address_of(client))
        assert len(rig.core) == 0

    @pytest.mark.parametrize("hops", [0, 1, 15])
    def test_how_many_relays_a_packet_passed_does_not_matter(self, hops: int) -> None:
        rig = Rig()
        client, call_id = connected(rig)
        rig.inject(next_check(client), address_of(client), relay=OTHER, header=rig.header(OTHER, hops=hops))
        assert rig.core._calls[call_id].paths == {address_of(client): OTHER}
        assert not rig.core.drops

    def test_a_call_over_tcp(self) -> None:
        """The whole of it: the client's address has one byte more from the first check to the release."""
        rig = Rig()
        client, call_id = rig.call(frames=frames(2.0))
        del rig.clients[address_of(client)]
        address = over_tcp(address_of(client))
        rig.clients[address] = client
        rig.run(1.0)
        assert "connected" in client.times, client.counts
        rig.play(call_id, tone(0.5))
        rig.run(1.0)
        assert len(client.heard) == 25 and len(rig.audio[call_id]) > 48_000
        assert rig.core._calls[call_id].paths == {address: RELAY}
        # Its UDP namesake is somebody else.
        rig.inject(next_rtp(client), address_of(client))
        assert rig.core.drops["unknown_client"] == 1
        rig.core.close(call_id, rig.now, EndReason.HANGUP)
        ((_, datagram),) = rig.core.poll_transmits(rig.now)
        assert link.parse_frames_untrusted(datagram)[-1] == (address, b"")


class TestHellos:
    def test_a_restarted_relay_learns_its_clients_and_gets_their_replies(self) -> None:
        rig = Rig()
        client, call_id = connected(rig, frames=frames(2.0))
        rig.hello(RELAY, INGRESS, 1000)
        assert not rig.control
        rig.hello(OTHER, INGRESS, 2000, number=7)
        ufrag = rig.core._calls[call_id].ufrag
        assert rig.control == [(OTHER, Clients(7, 0, 1, ((address_of(client), ufrag),)))]
        assert KEYS.tickets.open_untrusted(ufrag).transceiver == 7
        rig.play(call_id, tone(0.2))
        assert rig.core._calls[call_id].paths[address_of(client)] == OTHER
        assert rig.core.totals["paths_moved"] == 1

    def test_the_relays_own_hellos_are_answered_to_its_content(self) -> None:
        rig = Rig(max_calls=100)
        for port in range(100):
            client, _ = rig.call(1000 + port)
            rig.inject(next_check(client), address_of(client))
        transceiver = Route(1)
        transceiver.receiver = f"{rig.core.identity.link}#{rig.core.identity.boot}"
        hellos = Hellos(INGRESS, boot=2000)
        hellos.update([transceiver], rig.now)
        rig.hello(RELAY, INGRESS, 1000)
        ((_, message),) = hellos.poll(rig.now)
        rig.hello(OTHER, message.ingress, message.boot, message.number)
        assert hellos.waiting() == 1 and len(rig.control) == 4
        assert all(hellos.answered(transceiver, answer, rig.now) for _, answer in rig.control)
        assert hellos.waiting() == 0 and len(told(rig)) == 100

    def test_the_answer_leaves_before_the_replies(self) -> None:
        rig = Rig()
        _, call_id = connected(rig)
        rig.hello(RELAY, INGRESS, 1000)
        hello = link_control.encode_control(Hello(INGRESS, 2000, 1))
        call = rig.core.call(call_id)
        assert call is not None
        rig.core.close(call_id, rig.now, EndReason.HANGUP)
        rig.core.receive_datagram(rig.header(OTHER, version=link.CONTROL) + hello, OTHER, rig.now)
        sent = rig.core.poll_transmits(rig.now)
        assert [(relay, data[0] >> 4) for relay, data in sent] == [(OTHER, link.CONTROL), (RELAY, link.DATA)]
        for relay, data in sent:
            peer = link.LinkGuard(KEYS.link, relay)
            hour = int((rig.now + rig.core.wall_offset) // 3600)
            assert peer.accepts(rig.core.identity.link, data[: link.LINK_HEADER_LENGTH], hour)

    def test_a_relay_that_starts_at_its_old_link_address(self) -> None:
        rig = Rig()
        connected(rig)
        rig.hello(RELAY, INGRESS, 1000)
        rig.hello(RELAY, INGRESS, 2000, number=1)
        assert len(told(rig)) == 1 and rig.core.totals["paths_moved"] == 0

    @pytest.mark.parametrize("boot", [1000, 999])
    def test_another_worker_or_an_elder_moves_nothing_and_is_told_all(self, boot: int) -> None:
        rig = Rig()
        client, call_id = connected(rig)
        rig.hello(RELAY, INGRESS, 1000)
        rig.hello(OTHER, INGRESS, boot, number=1)
        assert rig.core._calls[call_id].paths[address_of(client)] == RELAY
        assert len(told(rig)) == 1

    def test_two_relays_that_live_keep_what_each_brings(self) -> None:
        """Behind one anycast address: the younger's later hellos are no news."""
        rig = Rig()
        client, call_id = connected(rig)
        rig.hello(RELAY, INGRESS, 1000)
        rig.hello(OTHER, INGRESS, 2000)
        assert rig.core._calls[call_id].paths[address_of(client)] == OTHER
        rig.inject(next_check(client), address_of(client))
        for _ in range(3):
            rig.hello(RELAY, INGRESS, 1000)
            rig.hello(OTHER, INGRESS, 2000)
            assert rig.core._calls[call_id].paths[address_of(client)] == RELAY
            rig.run(1.0)

    def test_other_ingresses_and_ended_calls_are_not_told(self) -> None:
        rig = Rig()
        client, call_id = connected(rig, 5000)
        elsewhere, _ = connected(rig, 5001)
        rig.inject(next_check(elsewhere), address_of(elsewhere), relay=OTHER)
        rig.hello(RELAY, INGRESS, 1000)
        rig.hello(OTHER, "203.0.113.2:3478", 1000)
        rig.hello("127.0.0.1:7002", INGRESS, 2000, number=1)
        assert [row[0] for row in told(rig)] == [address_of(client)]
        rig.core.close(call_id, rig.now, EndReason.HANGUP)
        rig.hello("127.0.0.1:7002", INGRESS, 2000, number=2)
        assert rig.control[-1] == ("127.0.0.1:7002", Clients(2, 0, 1, ()))

    def test_200_clients_come_in_several_datagrams(self) -> None:
        rig = Rig(max_calls=200)
        for port in range(200):
            client, _ = rig.call(1000 + port)
            rig.inject(next_check(client), address_of(client))
        rig.hello(RELAY, INGRESS, 1000, number=3)
        assert len(rig.control) == -(-200 // CLIENTS_PER_DATAGRAM) == 8
        assert {(message.number, message.parts) for _, message in rig.control} == {(3, 8)}
        assert len(set(told(rig))) == 200

    def test_a_relay_that_fell_silent_is_forgotten(self) -> None:
        rig = Rig()
        client, call_id = connected(rig)
        rig.hello(RELAY, INGRESS, 1000)
        rig.run(FORGET_SECONDS - 0.1)
        rig.hello(OTHER, INGRESS, 1000, number=1)
        assert len(told(rig)) == 1
        rig.run(0.2)
        rig.hello("127.0.0.1:7002", INGRESS, 2000, number=2)
        assert len(told(rig)) == 1, "the path's relay is no longer known to have served that ingress"
        assert rig.core._calls[call_id].paths[address_of(client)] == RELAY
        assert FORGET_SECONDS == 3 * HELLO_SECONDS

    def test_hellos_that_come_too_often_are_not_answered(self) -> None:
        rig = Rig()
        for number in range(1, HELLOS_PER_SECOND + 6):
            rig.hello(RELAY, INGRESS, 1000, number=number)
        rig.hello(OTHER, INGRESS, 1000, number=1)
        assert Counter(relay for relay, _ in rig.control) == {RELAY: HELLOS_PER_SECOND, OTHER: 1}
        assert rig.core.drops["hello_too_often"] == 5
        rig.run(1.0)
        rig.hello(RELAY, INGRESS, 1000, number=99)
        assert rig.control[-1][1].number == 99

    def test_what_is_no_hello_of_a_genuine_relay(self) -> None:
        rig = Rig()
        hello = link_control.encode_control(Hello(INGRESS, 1000, 1))
        control = rig.header(RELAY, version=link.CONTROL)
        for datagram, relay in (
            (control + hello, OTHER),
            (bytes([0x20, 0]) + bytes(8) + hello, RELAY),
            (bytes([0x30]) + control[1:] + hello, RELAY),
            (b"", RELAY),
        ):
            rig.core.receive_datagram(datagram, relay, rig.now)
        assert rig.core.drops == {"link_stranger": 4}
        rig.core.receive_datagram(control + b"\xc1", RELAY, rig.now)
        assert rig.core.drops["link_control"] == 1
        clients = link_control.encode_control(Clients(1, 0, 1, ()))
        rig.core.receive_datagram(control + clients, RELAY, rig.now)
        assert rig.core.drops["link_clients"] == 1
        rig.core.receive_datagram(rig.header(RELAY) + hello, RELAY, rig.now)
        assert rig.core.drops["link_frame"] == 1
        assert not rig.core.poll_transmits(rig.now)


class TestBounds:
    def test_no_more_relays_than_bounded_are_remembered(self) -> None:
        relays = bare_relays()
        for port in range(MAX_RELAYS + 3):
            relays.receive_untrusted(*hello(f"10.0.0.1:{port}"), HOUR, 1.0)
        assert relays._drops["relays_full"] == 3
        relays.receive_untrusted(*hello("10.0.0.2:1"), HOUR, 1.0 + FORGET_SECONDS + 0.1)
        assert relays._drops["relays_full"] == 3, "the silent ones are no loss"

    def test_answers_that_nobody_polls(self) -> None:
        relays = bare_relays()
        for port in range(MAX_ANSWERS + 2):
            relays.receive_untrusted(*hello(f"10.0.0.1:{port}", number=1), HOUR, port / 100)
        assert relays._drops["hello_answers_full"] == 2
        assert len(relays.poll_transmits(HOUR)) == MAX_ANSWERS and not relays.poll_transmits(HOUR)

    def test_headers_follow_the_hour_and_the_keys(self) -> None:
        keys = ClusterKeys.parse(["0:" + "first " * 8])
        relays = bare_relays(keys)
        headers = []
        for hour in (1, 1, 2, 2):
            if len(headers) == 3:
                keys.replace(["1:" + "second " * 8])
            relays.send(RELAY, pack_address("192.0.2.1", 1), b"x")
            ((_, datagram),) = relays.poll_transmits(hour)
            assert link.LinkGuard(keys.link, RELAY).accepts("127.0.0.1:9000", datagram[:10], hour)
            headers.append(datagram[: link.LINK_HEADER_LENGTH])
        assert headers[0] == headers[1] and len(set(headers)) == 3


def hello(relay: str, ingress: str = INGRESS, boot: int = 1, number: int = 0) -> tuple[bytes, str]:
    """A relay's datagram, and who sent it."""
    header = KEYS.link_header(relay, "127.0.0.1:9000#b", HOUR, version=link.CONTROL)
    return header + link_control.encode_control(Hello(ingress, boot, number)), relay


def bare_relays(keys: ClusterKeys = KEYS, paths: Paths | None = None) -> Relays:
    identity = Identity(cluster=1, transceiver=7, boot="b", link="127.0.0.1:9000")
    paths = Paths(Counter()) if paths is None else paths
    return Relays(identity, keys, paths, drops=Counter(), totals=Counter())


class _Call:
    """As much of a call as its paths look at."""

    def __init__(self) -> None:
        self.client: ClientAddress | None = None
        self.call_id = "rtc_x"

    def silent_for(self, now: float) -> float:
        return 100.0


RELAYS = [f"10.0.0.{host}:{port}" for host in (1, 2) for port in (1, 2)]
STEPS = st.one_of(
    st.tuples(
        st.just("packet"),
        st.integers(0, 3),
        st.integers(0, 3),
        st.sampled_from(RELAYS),
        st.sampled_from(Proof),
    ),
    st.tuples(
        st.just("hello"), st.sampled_from(RELAYS), st.sampled_from("ab"), st.integers(1, 4), st.booleans()
    ),
    st.tuples(st.just("end"), st.integers(0, 3)),
)


@given(st.lists(STEPS, max_size=60))
@settings(max_examples=300, deadline=None)
def test_a_path_names_who_brought_a_packet_or_a_successor_of_that(steps: list[tuple[object, ...]]) -> None:
    """For every path: its relay brought something authentic from that client of that call, or greeted for an
    ingress, later in boot than a relay of the same ingress that the path had named before."""
    paths = Paths(Counter())
    relays = bare_relays(paths=paths)
    entries = [
        Entry(_Call(), None, bytes([65 + index]) * 23, "")  # type: ignore[arg-type]
        for index in range(4)
    ]
    allowed: dict[tuple[int, ClientAddress], set[str]] = {}
    served: dict[str, tuple[str, int]] = {}
    for at, step in enumerate(steps):
        match step:
            case ("packet", int(call), int(port), str(relay), Proof() as proof):
                client = pack_address("192.0.2.1", port)
                paths.learn(entries[call], client, relay, proof, at)
                if proof is Proof.NEW or (proof is Proof.REPEATED and (call, client) not in allowed):
                    allowed[call, client] = {relay}
            case ("hello", str(relay), str(ingress), int(boot), bool(asks)):
                relays.receive_untrusted(*hello(relay, ingress, boot, int(asks)), HOUR, at)
                served[relay] = (ingress, boot)
                for names in allowed.values():
                    if any(
                        served.get(name, ("", 9))[0] == ingress and served[name][1] < boot for name in names
                    ):
                        names.add(relay)
                answers = [data for to, data in relays.poll_transmits(HOUR) if to == relay]
                assert bool(answers) is asks
                for answer in answers:
                    clients = link_control.parse_control_untrusted(answer)
                    assert isinstance(clients, Clients)
                    for address, ticket in clients.clients:
                        by = entries[ticket[0] - 65].paths[ClientAddress(address)]
                        assert served[by][0] == ingress
            case ("end", int(call)):
                for client, _ in paths.forget(entries[call]):
                    assert client in entries[call].paths
                entries[call].paths.clear()
                allowed = {key: names for key, names in allowed.items() if key[0] != call}
        for index, entry in enumerate(entries):
            for client, relay in entry.paths.items():
                assert relay in allowed[index, client]
