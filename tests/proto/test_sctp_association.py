"""The association's life, and what it makes of everything that does not belong there."""

from __future__ import annotations

import itertools
import random
import time

import pytest
from hypothesis import given
from hypothesis import strategies as st

from tests.proto.sctp_network import Path, World, association, entropy, incoming, outgoing, pair
from voicegate.proto import dtls
from voicegate.proto.errors import BadPacket
from voicegate.proto.sctp import Association, Connected, Disconnected, Message, State, wire
from voicegate.proto.sctp.association import MAX_BURST
from voicegate.proto.sctp.cookie import COOKIE_LIFE
from voicegate.proto.sctp.inbound import HARD_LIMIT
from voicegate.proto.sctp.lifecycle import MAX_CONTROL
from voicegate.proto.sctp.parameters import Init, build_init, parse_init_untrusted
from voicegate.proto.sctp.states import ACCEPTED, TRANSITIONS, Trigger, next_state
from voicegate.proto.sctp.wire import ChunkType, ErrorCause

U16 = st.integers(0, 0xFFFF)
U32 = st.integers(0, 0xFFFF_FFFF)
TAGS = [int.from_bytes(entropy(seed)[:4], "big") for seed in range(4)]
TSNS = [int.from_bytes(entropy(seed)[4:8], "big") for seed in range(4)]


def packet(to: int, *chunks: bytes, tag: int | None = None) -> bytes:
    """A packet to the association with this seed."""
    return wire.build_packet(5000, 5000, TAGS[to] if tag is None else tag, list(chunks))


def chunk(kind: int, value: bytes = b"", flags: int = 0) -> bytes:
    return wire.build_chunk(kind, flags, value)


def data(offset: int, payload: bytes = b"x", *, flags: int = 3, stream: int = 1, ssn: int = 0) -> bytes:
    """DATA of the association with seed 1, `offset` TSNs after its first."""
    return wire.build_data(flags, TSNS[1] + offset, stream, ssn, 53, payload)


def refusal(to: Association, datagram: bytes, now: float = 2.0) -> str:
    with pytest.raises(BadPacket) as caught:
        to.receive_datagram(datagram, now)
    return caught.value.reason


def kinds(datagrams: list[bytes]) -> list[list[int]]:
    return [[kind for kind, *_ in wire.parse_packet_untrusted(data).chunks] for data in datagrams]


def established() -> tuple[Association, Association]:
    """(seed 1, who connected; seed 2), nothing on the way."""
    world = pair()
    assert isinstance(world.left, Association) and isinstance(world.right, Association)
    return world.left, world.right


# --- tables ---------------------------------------------------------------------------------------------


def test_a_packet_fits_the_dtls_record() -> None:
    assert wire.MAX_PACKET <= dtls.MAX_DATA


def test_every_chunk_is_accepted_somewhere_and_every_state_can_be_reached_and_left() -> None:
    assert set(ACCEPTED) == set(ChunkType)
    assert all(ACCEPTED.values())
    assert all(State.CLOSED not in states for states in ACCEPTED.values())
    reached = {State.LISTENING}
    for _ in State:
        reached |= {after for (before, _), after in TRANSITIONS.items() if before in reached}
    assert reached == set(State)
    assert {before for before, _ in TRANSITIONS} == set(State) - {State.CLOSED}


@pytest.mark.parametrize(("state", "trigger"), list(itertools.product(State, Trigger)))
def test_what_is_not_in_the_table_changes_nothing(state: State, trigger: Trigger) -> None:
    assert next_state(state, trigger) is TRANSITIONS.get((state, trigger), state)


# --- the handshake --------------------------------------------------------------------------------------


def test_four_packets_and_two_round_trips() -> None:
    left, right = association(1), association(2)
    left.connect(0.0)
    assert left.state is State.COOKIE_WAIT
    world = World(left, right, Path(rtt=0.1))
    world.run(5.0)
    assert world.events == ([Connected(65535)], [Connected(65535)])
    assert world.packets == [2, 2]
    assert world.now == pytest.approx(0.2)
    assert left.statistics().round_trip == pytest.approx(0.1)
    assert right.statistics().round_trip == pytest.approx(0.1, abs=0.002)


@pytest.mark.parametrize("seed", range(20))
def test_both_may_begin_on_a_terrible_network(seed: int) -> None:
    """RFC 9260 section 5.2: INITs that cross, are lost, doubled and late make one association."""
    chance = random.Random(seed)
    left, right = association(1), association(2)
    left.connect(0.0)
    world = World(left, right, Path(0.1, 0.2, 0.2, 0.1, seed))
    world.run(chance.random() / 5)
    right.connect(world.now)
    left.send(1, 53, b"from the left", world.now)
    right.send(1, 53, b"from the right", world.now)
    world.run(60.0)
    for events, text in zip(world.events, (b"from the right", b"from the left"), strict=True):
        assert events == [Connected(65535), Message(1, 53, text)]


@pytest.mark.parametrize("nth", range(4))
def test_each_packet_of_the_handshake_may_be_lost(nth: int) -> None:
    count = itertools.count()
    left, right = association(1), association(2)
    left.connect(0.0)
    world = World(left, right, lost=lambda _to, _data: next(count) == nth).run(10.0)
    assert world.events == ([Connected(65535)], [Connected(65535)])


def test_nobody_there() -> None:
    left = association(1)
    left.connect(0.0)
    world = World(left, association(2), lost=lambda _to, _data: True).run(100.0)
    assert world.events == ([Disconnected("unreachable")], [])
    assert 20 < world.now < 40
    assert left.next_deadline() is None


def test_signaling_may_replace_the_handshake() -> None:
    left, right = association(1), association(2)
    left.connect_by_signaling_untrusted(right.local_init(), 0.0)
    right.connect_by_signaling_untrusted(left.local_init(), 0.0)
    left.send(1, 53, b"at once", 0.0)
    world = World(left, right, Path(rtt=0.1))
    world.run(5.0, until=lambda: len(world.events[1]) == 2)
    assert world.events[1] == [Connected(65535), Message(1, 53, b"at once")]
    assert world.now == pytest.approx(0.05)


@pytest.mark.parametrize(
    "init", [b"", b"\x01\0\0\x04", b"\x02\0\0\x14" + bytes(16), b"\x01\0\0\xff" + bytes(16)]
)
def test_a_bad_init_of_signaling(init: bytes) -> None:
    with pytest.raises(BadPacket, match="sctp_init"):
        association(1).connect_by_signaling_untrusted(init, 0.0)


def test_a_flood_of_inits_leaves_no_trace() -> None:
    right = association(2)
    for index in range(1, 2000):
        init = build_init(ChunkType.INIT, Init(index, 1500, 1, 1, index))
        right.receive_datagram(wire.build_packet(5000, 5000, 0, [init]), 0.0)
    assert right.state is State.LISTENING
    assert len(outgoing(right)) == MAX_CONTROL
    assert right.statistics().dropped_control == 1999 - MAX_CONTROL
    left = association(1)
    left.connect(0.0)
    assert World(left, right).run(5.0).events == ([Connected(65535)], [Connected(65535)])


def cookie_echo(left: Association, right: Association) -> bytes:
    left.connect(0.0)
    [init] = outgoing(left)
    right.receive_datagram(init, 0.0)
    [init_ack] = outgoing(right)
    left.receive_datagram(init_ack, 0.0)
    [echo] = outgoing(left)
    return echo


def test_a_cookie_that_comes_again_is_answered_again() -> None:
    """RFC 9260 section 5.2.4, action D."""
    left, right = association(1), association(2)
    echo = cookie_echo(left, right)
    for now in (0.0, 0.1, 2 * COOKIE_LIFE):
        right.receive_datagram(echo, now)
        assert kinds(outgoing(right)) == [[ChunkType.COOKIE_ACK]]
    assert incoming(right) == [Connected(65535)]


def test_stale_and_forged_cookies() -> None:
    left, right = association(1), association(2)
    echo = cookie_echo(left, right)
    assert refusal(right, echo, COOKIE_LIFE + 1) == "sctp_stale_cookie"
    assert kinds(outgoing(right)) == [[ChunkType.ERROR]]
    cookie = echo[16 : 12 + int.from_bytes(echo[14:16], "big")]
    value = bytearray(cookie)
    value[0] ^= 1
    assert refusal(right, packet(2, chunk(ChunkType.COOKIE_ECHO, bytes(value)))) == "sctp_cookie"
    assert refusal(right, packet(2, chunk(ChunkType.COOKIE_ECHO, cookie), tag=5)) == "sctp_tag"
    assert refusal(association(3), echo) == "sctp_cookie"
    assert right.state is State.LISTENING


def test_a_second_cookie_of_another_init_changes_nothing() -> None:
    left, right = association(1), association(2)
    echo = cookie_echo(left, right)
    other = cookie_echo(association(3), right)
    right.receive_datagram(echo, 0.0)
    assert refusal(right, other) == "sctp_late_cookie"
    assert right.state is State.ESTABLISHED


def test_an_init_in_the_middle_is_answered_and_changes_nothing() -> None:
    """RFC 9260 section 5.2.2: with another tag of ours."""
    left, right = established()
    right.receive_datagram(packet(2, left.local_init(), tag=0), 2.0)
    [answer] = outgoing(right)
    assert parse_init_untrusted(answer[16:]).tag not in (0, TAGS[2])
    left.receive_datagram(answer, 2.0)  # not ours to make anything of
    left.send(1, 53, b"still here", 2.0)
    assert World(left, right).run(5.0).messages(1) == [Message(1, 53, b"still here")]


def test_a_peer_that_restarts_ends_the_association() -> None:
    """Action A: its data channels are gone."""
    _, right = established()
    again = association(3)
    again.connect(2.0)
    world = World(again, right, now=2.0)
    world.run(10.0)
    assert world.ends()[1] == ["restarted"]


@pytest.mark.parametrize("init", [Init(0, 1500, 1, 1, 1), Init(1, 1500, 0, 1, 1), Init(1, 1500, 1, 0, 1)])
def test_impossible_inits(init: Init) -> None:
    assert refusal(association(2), packet(2, build_init(ChunkType.INIT, init), tag=0)) == "sctp_init"


def test_a_peer_with_few_streams() -> None:
    right = association(2)
    left = association(1)
    left.connect_by_signaling_untrusted(build_init(ChunkType.INIT, Init(9, 1500, 10, 7, 1)), 0.0)
    right.connect_by_signaling_untrusted(build_init(ChunkType.INIT, Init(9, 1500, 10, 70, 1)), 0.0)
    assert (left.streams, right.streams) == (7, 10)


# --- the end --------------------------------------------------------------------------------------------


@pytest.mark.parametrize("seed", range(10))
@pytest.mark.parametrize("both", [False, True])
def test_shutdown_delivers_what_is_queued_first(seed: int, both: bool) -> None:
    world = pair(Path(0.05, 0.2, 0.1, 0.05, seed))
    for side in (world.left, world.right):
        side.send(1, 53, bytes(30_000), world.now)
    world.left.shutdown(world.now)
    if both:
        world.right.shutdown(world.now)
    assert not world.left.send(1, 53, b"too late", world.now)
    world.run(120.0)
    assert [len(world.messages(side)) for side in (0, 1)] == [1, 1]
    assert world.ends() == (["shutdown"], ["shutdown"])
    assert world.left.state is world.right.state is State.CLOSED


def test_close_aborts() -> None:
    left, right = established()
    left.send(1, 53, bytes(100_000), 2.0)
    left.close(2.0)
    sent = outgoing(left)
    assert kinds(sent) == [[ChunkType.ABORT]]
    right.receive_datagram(sent[0], 2.0)
    assert incoming(left) == [Disconnected("local_abort")]
    assert incoming(right) == [Disconnected("peer_abort")]
    for side in (left, right):
        assert (side.next_deadline(), side.state) == (None, State.CLOSED)
        assert refusal(side, sent[0]) == "sctp_closed"
        side.handle_timeout(100.0)
        side.close(100.0)
        side.shutdown(100.0)
        assert not side.send(1, 53, b"x", 100.0)
        assert outgoing(side) == incoming(side) == []


def test_closing_before_anything_is_silent() -> None:
    for begin in (False, True):
        left = association(1)
        if begin:
            left.connect(0.0)
            outgoing(left)
        left.shutdown(0.0)
        assert outgoing(left) == []
        assert incoming(left) == [Disconnected("local_abort")]


# --- what does not belong -------------------------------------------------------------------------------


@pytest.mark.parametrize("kind", [kind for kind in ChunkType if kind != ChunkType.INIT])
def test_nothing_but_a_handshake_before_the_handshake(kind: ChunkType) -> None:
    right = association(2)
    assert refusal(right, packet(2, chunk(kind, bytes(16)))) in ("sctp_unexpected_chunk", "sctp_cookie")
    assert right.state is State.LISTENING
    assert outgoing(right) == incoming(right) == []


@pytest.mark.parametrize("kind", list(ChunkType))
def test_a_wrong_verification_tag(kind: ChunkType) -> None:
    _, right = established()
    for tag in (0, 1, TAGS[2] ^ 1, TAGS[1]):
        if (kind, tag) != (ChunkType.INIT, 0):
            reason = refusal(right, packet(2, chunk(kind, bytes(16)), tag=tag))
            assert reason in ("sctp_tag", "sctp_cookie")
    assert right.state is State.ESTABLISHED
    assert outgoing(right) == []


def test_the_t_bit_names_the_other_tag() -> None:
    """RFC 9260 section 8.5.1, rules B and C."""
    _, right = established()
    assert refusal(right, packet(2, chunk(ChunkType.ABORT, flags=1))) == "sctp_tag"
    assert refusal(right, packet(2, chunk(ChunkType.ABORT), tag=TAGS[1])) == "sctp_tag"
    right.receive_datagram(packet(2, chunk(ChunkType.ABORT, flags=1), tag=TAGS[1]), 2.0)
    assert incoming(right) == [Disconnected("peer_abort")]


def test_init_travels_alone_and_untagged() -> None:
    left, right = established()
    assert refusal(right, packet(2, left.local_init())) == "sctp_init_tag"
    assert refusal(right, packet(2, left.local_init(), data(0), tag=0)) == "sctp_tag"


def test_other_ports_are_other_associations() -> None:
    _, right = established()
    assert refusal(right, wire.build_packet(5000, 5001, TAGS[2], [data(0)])) == "sctp_port"
    assert refusal(right, wire.build_packet(5001, 5000, TAGS[2], [data(0)])) == "sctp_port"


def test_a_bad_chunk_does_not_spoil_its_neighbours() -> None:
    _, right = established()
    bad_sack = chunk(ChunkType.SACK, bytes(3))
    assert refusal(right, packet(2, data(0, b"one"), bad_sack, data(1, b"two", ssn=1))) == "sctp_sack"
    assert [m.data for m in incoming(right)] == [b"one", b"two"]


@pytest.mark.parametrize(
    ("kind", "goes_on", "reports"),
    [(0x3F, False, False), (0x7F, False, True), (0xBF, True, False), (0xFF, True, True)],
)
def test_unknown_chunks(kind: int, goes_on: bool, reports: bool) -> None:
    """RFC 9260 section 3.2: the two highest bits."""
    _, right = established()
    assert refusal(right, packet(2, chunk(kind, bytes(1000)), data(0))) == "sctp_unknown_chunk"
    assert bool(incoming(right)) is goes_on
    sent = outgoing(right)
    assert any(ChunkType.ERROR in found for found in kinds(sent)) is reports
    assert all(len(datagram) < 200 for datagram in sent)


def test_sacks_for_what_was_never_sent() -> None:
    _, right = established()
    right.send(1, 53, b"one", 2.0)
    outgoing(right)
    first = TSNS[2]
    for cumulative, gaps in [
        (first + 1, []),
        (first + 70_000, []),
        (first - 1, [2, 2]),
        (first, [1, 0xFFFF]),
    ]:
        assert refusal(right, packet(2, wire.build_sack(cumulative, 0, gaps, []))) == "sctp_sack_unsent"
    assert right.statistics().outbound.in_flight > 0
    right.receive_datagram(packet(2, wire.build_sack(first - 5, 0, [], [])), 2.0)  # old: overtaken
    assert right.statistics().outbound.peer_window > 0


def test_heartbeats_are_echoed_unless_huge() -> None:
    _, right = established()
    right.receive_datagram(packet(2, chunk(ChunkType.HEARTBEAT, b"\0\1\0\x08beat")), 2.0)
    [answer] = outgoing(right)
    assert answer[12:] == chunk(ChunkType.HEARTBEAT_ACK, b"\0\1\0\x08beat")
    right.receive_datagram(packet(2, chunk(ChunkType.HEARTBEAT, bytes(1_000))), 2.0)
    right.receive_datagram(packet(2, chunk(ChunkType.HEARTBEAT_ACK, b"")), 2.0)
    right.receive_datagram(packet(2, chunk(ChunkType.ERROR, b"")), 2.0)
    assert outgoing(right) == []


def test_data_without_data_ends_it() -> None:
    """RFC 9260 section 6.2."""
    _, right = established()
    assert refusal(right, packet(2, data(0, b""))) == "sctp_no_user_data"
    [abort] = outgoing(right)
    assert abort[12:] == chunk(ChunkType.ABORT, wire.build_cause(ErrorCause.NO_USER_DATA))
    assert incoming(right) == [Disconnected("violation")]


def test_a_stream_that_does_not_exist_is_reported() -> None:
    _, right = established()
    right.receive_datagram(packet(2, data(0, stream=65_535)), 2.0)
    assert kinds(outgoing(right)) == [[ChunkType.ERROR, ChunkType.SACK]]
    assert incoming(right) == []


@pytest.mark.parametrize(
    ("chunks", "reason"),
    [
        ([data(0, flags=2), data(1, flags=2)], "sctp_fragments"),  # a beginning inside a message
        ([data(0, flags=2), data(1, flags=0, stream=2)], "sctp_fragments"),  # another stream inside one
        ([data(2, flags=2), data(1, flags=2)], "sctp_fragments"),  # the same, from behind
        ([data(2, flags=0), data(1, flags=3)], "sctp_fragments"),  # a continuation of a whole message
        ([data(1, ssn=5), data(2, ssn=5)], "sctp_repeated_ssn"),
    ],
)
def test_fragments_that_contradict_each_other_end_it(chunks: list[bytes], reason: str) -> None:
    _, right = established()
    for each in chunks[:-1]:
        right.receive_datagram(packet(2, each), 2.0)
    assert refusal(right, packet(2, chunks[-1])) == reason
    assert right.state is State.CLOSED


def test_what_is_far_ahead_is_dropped() -> None:
    _, right = established()
    assert refusal(right, packet(2, data(0x10000))) == "sctp_tsn_far_ahead"
    forward = wire.build_forward_tsn(TSNS[1] + 0x10000, {})
    assert refusal(right, packet(2, forward)) == "sctp_forward_tsn_far_ahead"
    right.receive_datagram(packet(2, data(0)), 2.0)
    assert len(incoming(right)) == 1


def test_half_messages_without_end_are_bounded() -> None:
    """2^16 beginnings with a gap behind each: nothing can ever be put together."""
    _, right = established()
    reasons = set()
    for index in range(1, 1 << 16, 2):
        try:
            right.receive_datagram(packet(2, data(index, bytes(1000), flags=2, stream=index % 50)), 2.0)
        except BadPacket as error:
            reasons.add(error.reason)
        outgoing(right)
    assert reasons == {"sctp_buffer_full", "sctp_tsn_far_ahead"}
    assert right.statistics().held <= HARD_LIMIT
    right.receive_datagram(packet(2, data(0, b"whole")), 2.0)  # what is next in turn still comes in
    assert [m.data for m in incoming(right)] == [b"whole"]


def test_one_message_without_end_loses_its_bytes_and_keeps_its_place() -> None:
    _, right = established()
    for index in range(1000):
        right.receive_datagram(packet(2, data(index, bytes(1100), flags=2 if index == 0 else 0)), 2.0)
        outgoing(right)
        assert right.statistics().held < 400_000
    right.receive_datagram(packet(2, data(1000, b"end", flags=1), data(1001, b"next", ssn=1)), 2.0)
    assert [m.data for m in incoming(right)] == [None, b"next"]
    assert right.statistics().held == 0


def test_work_per_packet_is_bounded() -> None:
    """The largest packet of the smallest FORWARD TSNs, each one step, below as many halves as can be held;
    and of SACKs that each tell of one more chunk."""
    _, right = established()
    for index in range(1, 4000, 2):
        try:
            right.receive_datagram(packet(2, data(60_000 + index, flags=2, stream=3)), 2.0)
        except BadPacket:
            break
        outgoing(right)
    assert right.statistics().held > 500_000
    steps = [wire.build_forward_tsn(TSNS[1] + index, {}) for index in range(250)]
    started = time.process_time()
    right.receive_datagram(packet(2, *steps), 2.0)
    for _ in range(3000):
        right.send(1, 53, b"x", 2.0)
    sent = len(outgoing(right))
    sacks = [wire.build_sack(TSNS[2] - 1, 1 << 20, [200, 200 + index], []) for index in range(100)]
    right.receive_datagram(packet(2, *sacks), 2.0)
    assert sent == MAX_BURST
    assert time.process_time() - started < 1.0  # a hundred times what it takes


def test_a_hundred_thousand_tiny_messages_that_nobody_takes() -> None:
    _, right = established()
    for base in range(0, 100_000, 50):
        chunks = [data(base + i, b"x", flags=7) for i in range(50)]
        try:
            right.receive_datagram(packet(2, *chunks), 2.0)
        except BadPacket as error:
            assert error.reason in ("sctp_buffer_full", "sctp_tsn_far_ahead")
        outgoing(right)
    assert right.statistics().held <= HARD_LIMIT
    assert 1000 < len(incoming(right)) < 10_000


def test_more_streams_than_anybody_remembers() -> None:
    _, right = established()
    for index in range(5000):
        right.receive_datagram(packet(2, data(index, stream=index)), 2.0)
        outgoing(right)
    assert len(incoming(right)) == 1024
    assert right.statistics().dropped_messages == 5000 - 1024
    assert right.statistics().held == 0


def test_what_leaves_at_once_is_bounded() -> None:
    left, _ = established()
    left.send(1, 53, bytes(500_000), 2.0)
    assert len(outgoing(left)) == MAX_BURST


# --- anything -------------------------------------------------------------------------------------------

NEAR = st.integers(-3, 12)
ANY_DATA = st.builds(
    data,
    NEAR | st.integers(-(1 << 31), 1 << 31),
    st.binary(max_size=8),
    flags=st.integers(0, 15),
    stream=st.integers(0, 3) | U16,
    ssn=st.integers(0, 3) | U16,
)
ANY_SACK = st.builds(
    lambda offset, window, gaps: wire.build_sack(
        TSNS[2] + offset, window, sorted(gaps)[: len(gaps) & ~1], []
    ),
    NEAR | U32,
    U32 | st.just(0),
    st.lists(st.integers(1, 12) | st.integers(1, 0xFFFF), unique=True, max_size=6),
)
ANY_FORWARD = st.builds(
    lambda offset, skipped: wire.build_forward_tsn(TSNS[1] + offset, skipped),
    NEAR | U32,
    st.dictionaries(st.integers(0, 3), st.integers(0, 5) | U16, max_size=4),
)
ANY_RECONFIG = st.builds(
    lambda kind, number, response, last, streams: chunk(
        ChunkType.RE_CONFIG,
        kind.to_bytes(2, "big")
        + (16 + 2 * len(streams)).to_bytes(2, "big")
        + ((TSNS[1] + number) & 0xFFFF_FFFF).to_bytes(4, "big")
        + ((TSNS[2] + response) & 0xFFFF_FFFF).to_bytes(4, "big")
        + ((TSNS[1] + last) & 0xFFFF_FFFF).to_bytes(4, "big")
        + b"".join(stream.to_bytes(2, "big") for stream in streams),
    ),
    st.integers(0x0D, 0x12),
    NEAR,
    NEAR,
    NEAR | U32,
    st.lists(st.integers(0, 3) | U16, max_size=5),
)
ANY_CHUNK = st.builds(
    chunk,
    st.sampled_from([k for k in ChunkType if k not in (ChunkType.ABORT, ChunkType.SHUTDOWN)])
    | st.integers(0, 255),
    st.binary(max_size=40),
    st.integers(0, 255),
)
CHUNKS = st.lists(ANY_DATA | ANY_SACK | ANY_FORWARD | ANY_RECONFIG | ANY_CHUNK, min_size=1, max_size=6)


@given(st.lists(st.tuples(CHUNKS, st.integers(0, 5)), max_size=25))
def test_whatever_a_peer_says(story: list[tuple[list[bytes], int]]) -> None:
    """Only BadPacket, no endless output, bounded memory, and deadlines that lie ahead once served."""
    _, right = established()
    now = 2.0
    for chunks, action in story:
        try:
            right.receive_datagram(packet(2, *chunks), now)
        except BadPacket as error:
            assert error.reason.startswith("sctp_")
        now += 0.3 * (action == 1)
        if action == 2:
            right.send(1, 53, bytes(3000), now, max_retransmits=0)
        elif action == 3:
            right.reset_stream(1, now)
        elif action == 4:
            right.send(2, 53, b"x", now)
        for _ in range(3):
            deadline = right.next_deadline()
            if deadline is None or deadline > now:
                break
            right.handle_timeout(now)
            assert len(outgoing(right)) <= MAX_BURST + MAX_CONTROL
        else:
            raise AssertionError("a deadline that is never served")
        assert len(outgoing(right)) <= MAX_BURST + MAX_CONTROL
        if action == 5:
            incoming(right)
        assert 0 <= right.statistics().held <= HARD_LIMIT
        outbound = right.statistics().outbound
        assert outbound.in_flight >= 0 and outbound.buffered >= 0


@given(st.binary(max_size=100))
def test_any_datagram(datagram: bytes) -> None:
    with pytest.raises(BadPacket):
        association(2).receive_datagram(datagram, 0.0)


def test_entropy_has_its_size() -> None:
    with pytest.raises(ValueError, match="40 random bytes"):
        Association(b"", 0.0)
