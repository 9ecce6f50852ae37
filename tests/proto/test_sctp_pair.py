"""Two associations of ours on terrible networks of virtual time."""

from __future__ import annotations

import random

import pytest

from tests.proto.sctp_network import TERRIBLE, Path, World, association, pair
from voicegate.proto.sctp import Connected, Message, SendBufferDrained, StreamsReset, StreamsResetDone
from voicegate.proto.sctp.inbound import RECEIVE_BUFFER
from voicegate.proto.sctp.sendqueue import MESSAGE_COST, SEND_BUFFER
from voicegate.proto.sctp.wire import MAX_PACKET


class Feeder:
    """Sends a seeded plan both ways as fast as the send buffers take it."""

    def __init__(self, world: World, total: int, seed: int) -> None:
        self.sides = (world.left, world.right)
        self.plans = [self._plan(random.Random(seed + side), total) for side in (0, 1)]
        self.positions = [0, 0]

    @staticmethod
    def _plan(chance: random.Random, total: int) -> list[tuple[int, bool, bytes]]:
        plan = []
        for index in range(total):
            usual = chance.choice([1, 2, 40, 300, 1103, 1104, 1105, 3000])
            size = chance.randint(4000, 65_536) if chance.random() < 0.02 else usual
            stream = chance.randrange(4)  # 0 and 1 in order, 2 and 3 not
            data = (index.to_bytes(3, "big") + chance.randbytes(1) * size)[: max(size, 3)]
            plan.append((stream, stream < 2, data if size > 2 else data[:size]))
        return plan

    def __call__(self, now: float) -> None:
        for side, peer in enumerate(self.sides):
            plan = self.plans[side]
            while self.positions[side] < len(plan):
                stream, ordered, data = plan[self.positions[side]]
                if not peer.send(stream, 53, data, now, ordered=ordered):
                    break
                self.positions[side] += 1

    def check(self, world: World) -> None:
        for side in (0, 1):
            for stream in range(4):
                sent = [data for number, _, data in self.plans[side] if number == stream]
                got = [m.data or b"" for m in world.messages(1 - side) if m.stream == stream]
                assert (got if stream < 2 else sorted(got)) == (sent if stream < 2 else sorted(sent))


def test_ten_thousand_messages_each_way_over_a_terrible_network() -> None:
    """5 % loss, 5 % duplication, reordering; 1 B to 64 kB: all arrive, in order where promised."""
    world = pair(TERRIBLE)
    feeder = Feeder(world, 10_000, seed=3)
    world.busy = feeder
    count = [0, 0]

    def all_there() -> bool:
        count[:] = [len(events) for events in world.events]
        return min(count) >= 10_000 and all(len(world.messages(side)) >= 10_000 for side in (0, 1))

    world.run(1000.0, until=all_there)
    feeder.check(world)
    assert world.dropped == ([], [])
    assert world.left.statistics().held == 0


@pytest.mark.parametrize("seed", range(12))
def test_other_misfortunes(seed: int) -> None:
    """Up to a quarter of all packets lost or doubled, and delays that shuffle them."""
    chance = random.Random(seed)
    path = Path(
        chance.choice([0.0, 0.02, 0.2]), chance.random() / 4, chance.random() / 4, chance.random() / 5, seed
    )
    world = pair(path)
    feeder = Feeder(world, 120, seed)
    world.busy = feeder
    world.run(500.0, until=lambda: all(len(world.messages(side)) >= 120 for side in (0, 1)))
    feeder.check(world)


def test_a_good_path_repeats_nothing() -> None:
    world = pair(Path(rtt=0.1))
    feeder = Feeder(world, 300, seed=1)
    world.busy = feeder
    world.run(60.0)
    feeder.check(world)
    for side in (world.left, world.right):
        outbound = side.statistics().outbound
        assert (outbound.retransmitted, outbound.timeouts, outbound.buffered) == (0, 0, 0)


def test_the_largest_message_arrives() -> None:
    world = pair(TERRIBLE)
    data = random.Random(1).randbytes(262_144)
    assert world.left.send(1, 53, data, world.now)
    assert world.run(60.0).messages(1) == [Message(1, 53, data)]


def test_a_lost_event_is_there_after_one_timeout() -> None:
    """RTO_MIN is what a lost message costs when nothing follows it."""
    world = pair(Path(rtt=0.04))
    drops = iter([True])
    world.lost = lambda to, _data: to == 1 and next(drops, False)
    start = world.now
    world.left.send(1, 51, b"event", start)
    world.run(10.0, until=lambda: bool(world.messages(1)))
    assert world.now - start == pytest.approx(0.22, abs=0.03)


def test_a_lost_packet_among_many_does_not_wait_for_the_timer() -> None:
    world = pair(Path(rtt=0.04))
    drops = iter([False, True])
    world.lost = lambda to, _data: to == 1 and next(drops, False)
    start = world.now
    world.left.send(1, 51, bytes(20_000), start)
    world.run(10.0, until=lambda: bool(world.messages(1)))
    assert world.now - start < 0.15
    assert world.left.statistics().outbound.timeouts == 0


@pytest.mark.parametrize("ordered", [True, False])
@pytest.mark.parametrize("limits", [{"max_retransmits": 0}, {"max_retransmits": 1}, {"lifetime": 0.1}])
def test_partial_reliability_loses_some_and_never_stalls(ordered: bool, limits: dict[str, float]) -> None:
    """With 10 % loss some messages are given up, what arrives is whole and, if promised, in order; a reliable
    stream beside it loses nothing."""
    world = pair(Path(rtt=0.04, loss=0.1, duplicate=0.02, jitter=0.01, seed=4))
    sent = []
    for index in range(300):
        data = index.to_bytes(2, "big") * (700 if index % 10 == 0 else 20)
        sent.append(data)
        assert world.left.send(1, 53, data, world.now, ordered=ordered, **limits)
        assert world.left.send(2, 53, data[:20], world.now)
        world.run(world.now + 0.01)
    world.run(world.now + 60.0)
    got = [m.data for m in world.messages(1) if m.stream == 1]
    assert 150 < len(got) < 300
    assert set(got) <= set(sent)
    assert len(set(got)) == len(got)
    if ordered:
        assert got == [data for data in sent if data in set(got)]
    assert [m.data for m in world.messages(1) if m.stream == 2] == [data[:20] for data in sent]
    statistics = world.left.statistics()
    assert statistics.outbound.abandoned >= 300 - len(got)  # some arrive and nobody hears of it
    assert statistics.outbound.buffered == 0
    assert world.right.statistics().held == 0


def test_a_message_abandoned_half_sent_does_not_block_the_next() -> None:
    """Its unsent rest needs a TSN to be forwarded over, though all that was sent has arrived."""
    world = pair(Path(rtt=0.04))
    world.left.send(1, 53, bytes(200_000), world.now, lifetime=0.05)
    world.left.send(1, 53, b"next", world.now)
    world.run(world.now + 20.0)
    assert [m.data for m in world.messages(1)] == [b"next"]
    assert world.right.statistics().held == 0
    assert world.ends() == ([], [])


@pytest.mark.parametrize("seed", range(6))
def test_streams_are_reset_under_loss_and_begin_again(seed: int) -> None:
    world = pair(Path(rtt=0.04, loss=0.2, duplicate=0.1, jitter=0.03, seed=seed))
    left = world.left
    for turn in range(4):
        for stream in (2, 5):
            for index in range(5):
                assert left.send(stream, 53, bytes((turn, index)) * 800, world.now)
            assert left.reset_stream(stream, world.now)
        done = 2 * (turn + 1)
        world.run(
            world.now + 30.0,
            until=lambda done=done: (
                sum(len(e.streams) for e in world.events[0] if isinstance(e, StreamsResetDone)) == done
            ),
        )
    resets = [e for e in world.events[0] if isinstance(e, StreamsResetDone)]
    assert all(event.performed for event in resets)
    for stream in (2, 5):
        story: list[object] = []
        for event in world.events[1]:
            if isinstance(event, Message) and event.stream == stream:
                story.append((event.data or b"")[:2])
            elif isinstance(event, StreamsReset) and stream in event.streams:
                story.append("reset")
        assert story == [x for turn in range(4) for x in [*(bytes((turn, i)) for i in range(5)), "reset"]]


def test_a_slow_owner_closes_the_window_and_nothing_is_lost() -> None:
    world = pair(Path(rtt=0.02))
    world.listening = (True, False)
    total = 4 * RECEIVE_BUFFER // 10_000
    sent = 0

    def more(now: float) -> None:
        nonlocal sent
        while sent < total and world.left.send(1, 53, sent.to_bytes(2, "big") * 5_000, now):
            sent += 1

    world.busy = more
    world.run(world.now + 20.0)
    held = world.right.statistics().held
    assert RECEIVE_BUFFER * 0.9 < held <= RECEIVE_BUFFER + 2 * MAX_PACKET
    assert world.left.statistics().outbound.peer_window < MAX_PACKET
    before = world.packets[0]
    world.run(world.now + 20.0)
    assert 1 <= world.packets[0] - before < 20  # questions at the closed window, no flood
    assert world.ends() == ([], [])
    world.listening = (True, True)
    world.run(world.now + 60.0, until=lambda: len(world.messages(1)) == total)
    assert [m.data for m in world.messages(1)] == [i.to_bytes(2, "big") * 5_000 for i in range(total)]


def test_a_closed_window_is_no_death_sentence() -> None:
    """RFC 9260 section 6.1: a peer that answers questions at its closed window is alive, for ever."""
    world = pair(Path(rtt=0.02))
    world.listening = (True, False)
    for _ in range(60):
        world.left.send(1, 53, bytes(15_000), world.now)
    world.run(world.now + 300.0)
    assert world.ends() == ([], [])


def test_the_send_buffer_is_bounded_and_says_when_it_is_not_full() -> None:
    world = pair()
    accepted = 0
    while world.left.send(1, 53, bytes(10_000), world.now):
        accepted += 1
    assert accepted == SEND_BUFFER // (10_000 + MESSAGE_COST)
    assert SendBufferDrained() not in world.events[0]
    world.run(world.now + 60.0)
    assert world.events[0].count(SendBufferDrained()) == 1


def test_a_peer_that_falls_silent_is_given_up_within_ice_consent() -> None:
    world = pair()
    start = world.now
    world.lost = lambda _to, _data: True
    world.left.send(1, 53, b"anybody?", start)
    world.run(start + 100.0, until=lambda: bool(world.ends()[0]))
    assert world.ends() == (["unreachable"], [])
    assert 20.0 < world.now - start < 35.0


def test_messages_queued_before_the_handshake_leave_with_it() -> None:
    left, right = association(1), association(2)
    left.send(0, 51, b"early", 0.0)
    left.connect(0.0)
    world = World(left, right, Path(rtt=0.1)).run(5.0)
    assert world.events[1] == [Connected(65535), Message(0, 51, b"early")]
