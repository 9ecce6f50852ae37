"""Data channels against themselves, and against a peer that breaks the rules."""

from __future__ import annotations

from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from tests.proto.sctp_network import TERRIBLE, Path, World, association, incoming, pair
from voicegate.proto.datachannel import (
    MAX_CHANNELS,
    MAX_NAMES,
    ChannelClosed,
    ChannelOpened,
    Connected,
    DataChannels,
    Disconnected,
    MessageReceived,
    MessageRejected,
    Ppid,
    SendBufferDrained,
    SendResult,
)
from voicegate.proto.dcep import ACK, Open, build_open
from voicegate.proto.errors import BadPacket
from voicegate.proto.sctp import Association, StreamsReset
from voicegate.proto.sctp.inbound import HARD_LIMIT


class Both(World):
    """Two ends of data channels: the left one is the DTLS client."""

    left: DataChannels
    right: DataChannels

    def later(self, seconds: float = 10.0) -> None:
        self.run(self.now + seconds)

    def new(self, side: int) -> list[Any]:
        found = self.events[side][:]
        self.events[side].clear()
        return found


def both(path: Path | None = None, *, connect: bool = True, **options: int) -> Both:
    world = Both(
        DataChannels(association(1), dtls_client=True, **options),
        DataChannels(association(2), dtls_client=False, **options),
        path or Path(),
    )
    if connect:
        world.left.connect(0.0)
        world.right.connect(0.0)  # RFC 8841 section 9.3: both begin
        world.later(2.0)
        assert world.new(0) == world.new(1) == [Connected(65535)]
    return world


class Rogue:
    """Our channels on the right, and a bare association on the left that says what it likes."""

    def __init__(self) -> None:
        self.world = pair()
        assert isinstance(self.world.left, Association) and isinstance(self.world.right, Association)
        self.bare = self.world.left
        self.ours = DataChannels(self.world.right, dtls_client=False)
        self.ours._connected = True  # `pair` has taken the event
        self.world.right = self.ours

    def say(self, stream: int, ppid: int, data: bytes, **options: Any) -> None:
        assert self.bare.send(stream, ppid, data, self.world.now, **options)

    def heard(self) -> list[Any]:
        self.world.run(self.world.now + 5.0)
        found = self.world.events[1][:]
        self.world.events[1].clear()
        return found

    def rejected(self) -> dict[str, int]:
        return dict(self.ours.statistics().rejected)


@pytest.mark.parametrize("path", [Path(), TERRIBLE])
def test_both_sides_open_talk_and_close(path: Path) -> None:
    world = both(path)
    first = world.left.open(Open("oai-events"), world.now)
    second = world.right.open(Open("mine", "proto", ordered=False), world.now)
    assert (first, second) == (0, 1)
    world.later()
    assert set(world.new(0)) == {
        ChannelOpened(0, "oai-events", "", True, True),
        ChannelOpened(1, "mine", "proto", False, False),
    }
    assert set(world.new(1)) == {
        ChannelOpened(0, "oai-events", "", True, False),
        ChannelOpened(1, "mine", "proto", False, True),
    }
    talk = ["text", "", b"", b"\x00", "é" * 20_000, b"x" * 65_536]
    for data in talk:
        assert world.left.send(0, data, world.now) is SendResult.QUEUED
        assert world.right.send(0, data, world.now) is SendResult.QUEUED
    world.later()
    assert world.new(0) == world.new(1) == [MessageReceived(0, data) for data in talk]

    world.left.send(0, "last words", world.now)
    world.left.close_channel(0, world.now)
    assert world.left.send(0, "too late", world.now) is SendResult.CLOSED
    world.later()
    assert world.new(0) == [ChannelClosed(0)]
    assert world.new(1) == [MessageReceived(0, "last words"), ChannelClosed(0)]
    assert world.left.statistics().channels == world.right.statistics().channels == 1
    assert world.left.open(Open("again"), world.now) == 0  # the number is free on both sides
    world.later()
    assert world.new(1) == [ChannelOpened(0, "again", "", True, False)]


def test_a_channel_opened_before_the_association_and_used_at_once() -> None:
    """Unordered, yet what is sent before the ACK cannot overtake the OPEN (RFC 8832 section 6)."""
    world = both(Path(jitter=0.2, seed=3), connect=False)
    number = world.left.open(Open("early", ordered=False), 0.0)
    assert number is not None
    for index in range(20):
        world.left.send(number, str(index), 0.0)
    world.left.connect(0.0)
    world.later(20.0)
    assert world.new(1)[1:] == [
        ChannelOpened(0, "early", "", False, False),
        *(MessageReceived(0, str(index)) for index in range(20)),
    ]


def test_negotiated_channels_need_no_word() -> None:
    """`?dcid=7`: both sides know; what comes with the handshake is theirs already."""
    world = both(connect=False)
    assert world.left.open_negotiated(7, Open("events"), 0.0)
    assert world.right.open_negotiated(7, Open("events"), 0.0)
    assert world.left.send(7, "first", 0.0) is SendResult.QUEUED
    world.left.connect(0.0)
    world.later()
    opened = ChannelOpened(7, "events", "", True, True)
    assert world.new(0) == [Connected(65535), opened]
    assert world.new(1) == [Connected(65535), opened, MessageReceived(7, "first")]
    assert not world.right.open_negotiated(7, Open("twice"), world.now)
    assert not world.right.open_negotiated(65_535, Open("none"), world.now)
    assert world.right.open_negotiated(65_534, Open("late"), world.now)
    world.later()
    assert world.new(1) == [ChannelOpened(65_534, "late", "", True, True)]


def test_the_peers_limit_is_obeyed_and_counted() -> None:
    world = both(max_message_size=100)
    world.left.open(Open("x"), world.now)
    assert world.left.send(0, "é" * 50, world.now) is SendResult.QUEUED
    assert world.left.send(0, "é" * 51, world.now) is SendResult.TOO_LARGE
    assert world.left.send(9, "x", world.now) is SendResult.CLOSED
    assert world.left.statistics().rejected == {"send_too_large": 1, "send_closed": 1}
    free = both(max_message_size=0)
    free.left.open(Open("x"), free.now)
    assert free.left.send(0, bytes(1_000_000), free.now) is SendResult.QUEUED
    assert free.left.send(0, bytes(1_000_000), free.now) is SendResult.FULL
    free.later(60.0)
    assert free.new(1)[1] == MessageRejected(0, "too_large")  # larger than we take
    assert SendBufferDrained() in free.new(0)


def test_buffered_amount() -> None:
    world = both()
    world.left.open(Open("x"), world.now)
    world.later()
    world.left.send(0, bytes(60_000), world.now)
    assert world.left.buffered_amount(0) == 60_000
    world.later()
    assert world.left.buffered_amount(0) == 0


def test_a_clean_end() -> None:
    """A client sees its channel close before anything else ends."""
    world = both(TERRIBLE)
    for label in ("a", "b"):
        world.left.open(Open(label), world.now)
    world.later()
    world.new(1)
    world.new(0)
    world.right.send(0, "goodbye", world.now)
    world.right.shutdown(world.now)
    assert world.right.open(Open("no more"), world.now) is None
    world.later()
    heard = world.new(0)
    assert heard[-1] == Disconnected("shutdown")
    assert [event for event in heard if event != ChannelClosed(2)] == [
        MessageReceived(0, "goodbye"),
        ChannelClosed(0),
        Disconnected("shutdown"),
    ]
    assert heard.count(ChannelClosed(2)) == 1
    assert set(world.new(1)) == {ChannelClosed(0), ChannelClosed(2), Disconnected("shutdown")}


@pytest.mark.parametrize("connect", [False, True])
def test_an_abrupt_end_closes_all_channels(connect: bool) -> None:
    world = both(connect=connect)
    world.left.open(Open("a"), world.now)
    if connect:
        world.later()
        world.new(0)
    world.left.close(world.now)
    world.later()
    assert world.new(0) == [ChannelClosed(0), Disconnected("local_abort")]
    assert world.new(1)[1:] == ([ChannelClosed(0), Disconnected("peer_abort")] if connect else [])
    assert world.left.next_deadline() is None
    assert world.left.send(0, "x", world.now) is SendResult.CLOSED
    assert world.left.open(Open("b"), world.now) is None


def test_closing_before_there_is_an_association() -> None:
    world = both(connect=False)
    world.left.open(Open("a"), 0.0)
    world.left.close_channel(0, 0.0)
    world.left.connect(0.0)
    world.later()
    assert world.new(1)[1:] == [ChannelOpened(0, "a", "", True, False), ChannelClosed(0)]
    assert ChannelClosed(0) in world.new(0)
    assert world.left.statistics().channels == 0


def test_numbers_and_channels_run_out() -> None:
    world = both()
    numbers = [world.left.open(Open(str(index)), world.now) for index in range(MAX_CHANNELS + 1)]
    assert numbers == [*range(0, 2 * MAX_CHANNELS, 2), None]
    assert not world.left.open_negotiated(1, Open("x"), world.now)


# --- a peer that breaks the rules -------------------------------------------------------------------


def test_wrong_parity_is_closed_without_an_ack() -> None:
    """RFC 8832 section 6: the DTLS client's numbers are even, and the rogue is it."""
    rogue = Rogue()
    rogue.say(1, Ppid.DCEP, build_open(Open("wrong")))
    assert rogue.heard() == []
    assert rogue.rejected() == {"open_parity": 1}
    assert rogue.world.events[0] == [StreamsReset((1,))]
    assert rogue.ours.statistics().channels == 0


def test_an_open_of_a_channel_in_use_closes_it() -> None:
    rogue = Rogue()
    rogue.say(0, Ppid.DCEP, build_open(Open("one")))
    rogue.say(0, Ppid.DCEP, build_open(Open("two")))
    assert rogue.heard() == [ChannelOpened(0, "one", "", True, False)]
    assert rogue.rejected() == {"open_in_use": 1}
    assert StreamsReset((0,)) in rogue.world.events[0]


def test_too_many_channels_and_too_long_names() -> None:
    rogue = Rogue()
    rogue.say(0, Ppid.DCEP, build_open(Open("x" * (MAX_NAMES + 1))))
    for index in range(1, MAX_CHANNELS + 20):
        rogue.say(2 * index, Ppid.DCEP, build_open(Open("x")))
    assert len(rogue.heard()) == MAX_CHANNELS
    assert rogue.rejected() == {"open_too_long": 1, "open_too_many": 19}


@pytest.mark.parametrize(
    ("ppid", "data", "reason"),
    [(51, b"\xff\xfe", "invalid_utf8"), (0, b"x", "unknown_ppid"), (52, b"x", "unknown_ppid")],
)
def test_messages_nobody_can_read_are_told_and_the_channel_stays(ppid: int, data: bytes, reason: str) -> None:
    rogue = Rogue()
    rogue.say(0, Ppid.DCEP, build_open(Open("x")))
    rogue.say(0, ppid, data)
    rogue.say(0, 51, b"fine")
    assert rogue.heard()[1:] == [MessageRejected(0, reason), MessageReceived(0, "fine")]
    assert rogue.rejected() == {reason: 1}


def test_an_over_size_message_is_told_and_the_channel_stays() -> None:
    rogue = Rogue()
    rogue.say(0, Ppid.DCEP, build_open(Open("x")))
    rogue.say(0, 51, bytes(300_000))
    rogue.say(0, 51, b"fine")
    assert rogue.heard()[1:] == [MessageRejected(0, "too_large"), MessageReceived(0, "fine")]


def test_talk_without_a_channel_and_acks_for_nothing() -> None:
    rogue = Rogue()
    rogue.say(4, 51, b"hello?")
    rogue.say(4, Ppid.DCEP, ACK)
    rogue.say(4, Ppid.DCEP, b"\x07")
    assert rogue.heard() == []
    assert rogue.rejected() == {"no_channel": 1, "ack_unexpected": 1, "dcep_type": 1}


def test_a_slow_owner_holds_the_peer_back() -> None:
    """100,000 messages; what waits in us is bounded, and nothing is lost."""
    rogue = Rogue()
    rogue.say(0, Ppid.DCEP, build_open(Open("x")))
    rogue.world.listening = (True, False)
    sent = 0

    def flood(now: float) -> None:
        nonlocal sent
        while sent < 100_000 and rogue.bare.send(0, 51, b"%d" % sent, now):
            sent += 1

    rogue.world.busy = flood
    rogue.world.run(rogue.world.now + 5.0)
    assert rogue.ours.statistics().association.held <= HARD_LIMIT
    assert sent < 100_000
    rogue.world.listening = (True, True)
    rogue.world.run(rogue.world.now + 300.0, until=lambda: len(rogue.world.events[1]) == 100_001)
    assert rogue.world.events[1][-1] == MessageReceived(0, "99999")


@given(
    st.lists(
        st.tuples(
            st.integers(0, 4) | st.integers(0, 65_534),
            st.sampled_from([50, 50, 51, 53, 56, 57]) | st.integers(0, 0xFFFF_FFFF),
            st.sampled_from([ACK, build_open(Open("x")), b"\xff"]) | st.binary(min_size=1, max_size=30),
            st.booleans(),
            st.integers(0, 5),
        ),
        max_size=30,
    )
)
def test_whatever_a_peer_says(story: list[tuple[int, int, bytes, bool, int]]) -> None:
    """No exception, a bounded table, and each channel's events in their order."""
    rogue = Rogue()
    now = rogue.world.now
    for stream, ppid, data, ordered, action in story:
        rogue.say(stream, ppid, data, ordered=ordered)
        if action == 1:
            rogue.bare.reset_stream(stream, now)
        elif action == 2:
            rogue.ours.open(Open("ours"), now)
        elif action == 3:
            rogue.ours.close_channel(stream, now)
        elif action == 4:
            rogue.ours.send(stream, "x", now)
        elif action == 5:
            rogue.world.run(rogue.world.now + 0.1)
            now = rogue.world.now
    open_now: set[int] = set()
    for event in rogue.heard():
        if isinstance(event, ChannelOpened):
            assert event.id not in open_now
            open_now.add(event.id)
        elif isinstance(event, ChannelClosed):
            open_now.discard(event.id)
        elif isinstance(event, MessageReceived | MessageRejected):
            assert event.id in open_now
    assert rogue.ours.statistics().channels <= MAX_CHANNELS


def test_garbage_is_a_bad_packet() -> None:
    channels = DataChannels(association(1), dtls_client=True)
    with pytest.raises(BadPacket, match="sctp_short"):
        channels.receive_datagram(b"", 0.0)
    assert incoming(channels) == []
