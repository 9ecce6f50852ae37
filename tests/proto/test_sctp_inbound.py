"""What arrives: TSNs against a model, fragments in any order, order of messages, what is given up."""

from __future__ import annotations

import random

import pytest
from hypothesis import given
from hypothesis import strategies as st

from voicegate.proto.sctp import Message, StreamsReset, wire
from voicegate.proto.sctp.inbound import RECEIVE_BUFFER, SACK_DELAY, Inbound
from voicegate.proto.sctp.reassembly import CHUNK_COST, MAX_MESSAGE, Reassembly
from voicegate.proto.sctp.received import MAX_DUPLICATES, Received
from voicegate.proto.sctp.wire import MAX_GAPS

BEGIN, END, UNORDERED, IMMEDIATE = 2, 1, 4, 8


@given(st.lists(st.tuples(st.booleans(), st.integers(0, 40)), max_size=80))
def test_received_against_a_set(story: list[tuple[bool, int]]) -> None:
    """Recording and skipping in any order: cumulative point, gaps and duplicates are those of a plain set."""
    received = Received(0)
    model = {0}
    for skip, tsn in story:
        if skip:
            received.skip_to(tsn)
            model |= set(range(tsn + 1))
        else:
            assert received.record(tsn) is (tsn not in model)
            model.add(tsn)
        cumulative = next(n for n in range(100) if n + 1 not in model)
        assert received.cumulative == cumulative
        blocks = received.gaps()
        found = {
            cumulative + n
            for first, last in zip(blocks[::2], blocks[1::2], strict=True)
            for n in range(first, last + 1)
        }
        assert found == {n for n in model if n > cumulative}
        assert received.complete is (not found)
        assert blocks == sorted(set(blocks)) or any(
            a == b for a, b in zip(blocks[::2], blocks[1::2], strict=True)
        )


def test_what_a_sack_tells_is_bounded() -> None:
    received = Received(0)
    for tsn in range(2, 2000, 2):
        received.record(tsn)
        received.record(tsn)
    assert len(received.gaps()) == 2 * MAX_GAPS
    assert len(received.duplicates) == MAX_DUPLICATES


Fragment = tuple[int, int, int, int, bytes]


def fragments(chance: random.Random, count: int) -> tuple[list[Fragment], list[tuple[int, bool, bytes]]]:
    """(tsn, flags, stream, ssn, payload) of `count` messages on three streams, the last one unordered."""
    found: list[Fragment] = []
    messages = []
    ssns = [0, 0, 0]
    for index in range(count):
        stream = chance.randrange(3)
        ordered = stream < 2
        size = chance.choice([1, 1, 2, 3, 7])
        parts = [bytes((index, part)) for part in range(size)]
        for part, payload in enumerate(parts):
            flags = BEGIN * (part == 0) | END * (part == size - 1) | UNORDERED * (not ordered)
            found.append((len(found) + 1, flags, stream, ssns[stream] if ordered else 0, payload))
        ssns[stream] += ordered
        messages.append((stream, ordered, b"".join(parts)))
    return found, messages


def feed(reassembly: Reassembly, received: Received, arrivals: list[Fragment]) -> None:
    for tsn, flags, stream, ssn, payload in arrivals:
        cumulative = received.cumulative
        assert received.record(tsn)
        reassembly.add(tsn, cumulative, flags, stream, ssn, 53, payload)


def taken(reassembly: Reassembly) -> list[Message | StreamsReset]:
    found = []
    while (event := reassembly.take()) is not None:
        found.append(event)
    return found


@given(st.integers(0, 1 << 32))
def test_fragments_in_any_order_make_the_messages(seed: int) -> None:
    chance = random.Random(seed)
    parts, messages = fragments(chance, 25)
    chance.shuffle(parts)
    reassembly = Reassembly()
    feed(reassembly, Received(0), parts)
    got = taken(reassembly)
    for stream in range(3):
        sent = [data for number, _, data in messages if number == stream]
        arrived = [m.data for m in got if isinstance(m, Message) and m.stream == stream]
        assert (arrived if stream < 2 else sorted(d for d in arrived if d)) == (
            sent if stream < 2 else sorted(sent)
        )
    assert reassembly.held == 0


@given(st.integers(0, 1 << 32), st.integers(1, 60))
def test_what_is_given_up_leaves_nothing_behind(seed: int, upto: int) -> None:
    """A forward to any TSN, between any arrivals, and the rest of the fragments before or after it: what is
    delivered is whole and in order, and nothing is held in the end."""
    chance = random.Random(seed)
    parts, messages = fragments(chance, 25)
    chance.shuffle(parts)
    cut = chance.randrange(len(parts))
    reassembly, received = Reassembly(), Received(0)
    feed(reassembly, received, parts[:cut])
    upto = min(upto, len(parts))
    in_order = sorted(parts)
    skipped = {
        stream: ssn for tsn, flags, stream, ssn, _ in in_order if tsn <= upto and not flags & UNORDERED
    }
    if upto > received.cumulative:  # else `Inbound` takes it for old news
        reassembly.skip_to(upto, received.cumulative, list(skipped.items()))
        received.skip_to(upto)
    for tsn, flags, stream, ssn, payload in parts[cut:]:
        cumulative = received.cumulative
        if received.record(tsn):
            reassembly.add(tsn, cumulative, flags, stream, ssn, 53, payload)
    got = [m for m in taken(reassembly) if isinstance(m, Message)]
    for stream in range(3):
        sent = [data for number, _, data in messages if number == stream]
        arrived = [m.data for m in got if m.stream == stream]
        assert set(arrived) <= set(sent)
        if stream < 2:
            assert arrived == [data for data in sent if data in set(arrived)]
    assert reassembly.held == 0


def test_a_reset_begins_again_at_zero_and_frees_what_waited_for_it() -> None:
    reassembly = Reassembly()
    reassembly.add(1, 0, BEGIN | END, 1, 0, 53, b"one")
    reassembly.add(2, 1, BEGIN | END, 1, 0, 53, b"new one")  # SSN 0 again: it waits for the reset
    assert taken(reassembly) == [Message(1, 53, b"one")]
    reassembly.reset(())
    assert taken(reassembly) == [Message(1, 53, b"new one"), StreamsReset(())]
    assert reassembly.held == 0


def test_ssns_wrap() -> None:
    reassembly = Reassembly()
    for index in range(0x10002):
        reassembly.add(index + 1, index, BEGIN | END, 1, index & 0xFFFF, 53, b"x")
    assert len(taken(reassembly)) == 0x10002


def test_an_oversize_message_costs_nothing() -> None:
    reassembly = Reassembly()
    size = 1000
    for index in range(400):
        reassembly.add(index + 1, index, BEGIN * (index == 0), 1, 0, 53, bytes(size))
        assert reassembly.held <= MAX_MESSAGE // size * (size + CHUNK_COST) + size + CHUNK_COST
    assert reassembly.held == CHUNK_COST
    reassembly.add(401, 400, END, 1, 0, 53, b"x")
    assert taken(reassembly) == [Message(1, 53, None)]


# --- acknowledging ------------------------------------------------------------------------------------


def arrive(inbound: Inbound, tsn: int, now: float, *, flags: int = BEGIN | END | UNORDERED) -> None:
    packet = wire.build_data(flags, tsn, 1, 0, 53, b"x")
    inbound.receive_data_untrusted(packet, flags, 4, 17)
    inbound.end_packet(now)


def test_every_second_packet_is_acknowledged_at_once_and_the_last_one_soon() -> None:
    inbound = Inbound(0, 10)
    arrive(inbound, 1, 0.0)
    assert (inbound.sack_due, inbound.sack_pending, inbound.sack_at) == (False, True, SACK_DELAY)
    arrive(inbound, 2, 0.01)
    assert inbound.sack_due
    inbound.sack_sent()
    assert (inbound.sack_due, inbound.sack_pending, inbound.sack_at) == (False, False, None)
    arrive(inbound, 3, 1.0)
    inbound.handle_timeout(1.0 + SACK_DELAY)
    assert inbound.sack_due


@pytest.mark.parametrize(
    ("tsn", "flags"),
    [(3, 7), (1, 7 | IMMEDIATE), (0, 7)],
    ids=["a gap", "the I bit", "a duplicate"],
)
def test_what_is_acknowledged_at_once(tsn: int, flags: int) -> None:
    inbound = Inbound(0, 10)
    arrive(inbound, tsn, 0.0, flags=flags)
    assert inbound.sack_due


def test_a_gap_that_closes_is_acknowledged_at_once() -> None:
    inbound = Inbound(0, 10)
    arrive(inbound, 2, 0.0)
    inbound.sack_sent()
    arrive(inbound, 1, 0.0)
    assert inbound.sack_due
    sack = inbound.build_sack()
    assert wire.parse_sack_untrusted(sack, 4, len(sack)).cumulative == 2


def test_the_window_shrinks_with_what_is_held_and_its_opening_is_told() -> None:
    inbound = Inbound(0, 10)
    payload = bytes(1100)
    tsn = 0
    while inbound.reassembly.held <= RECEIVE_BUFFER:
        tsn += 1
        chunk = wire.build_data(7, tsn, 1, 0, 53, payload)
        inbound.receive_data_untrusted(chunk, 7, 4, len(chunk))
    sack = inbound.build_sack()
    assert wire.parse_sack_untrusted(sack, 4, len(sack)).window == 0
    inbound.sack_sent()
    count = 0
    while not inbound.sack_due:
        assert inbound.take() is not None
        count += 1
    assert count == pytest.approx(tsn / 2, abs=2)  # half the buffer, not a byte
