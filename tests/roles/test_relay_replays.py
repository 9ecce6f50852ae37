"""The memory of checks: what was let through is known, what was not nearly never is, and old ones are
forgotten."""

from __future__ import annotations

from hypothesis import given
from hypothesis import strategies as st

from voicegate.roles.relay import replays
from voicegate.roles.relay.replays import CAPACITY, GENERATION_SECONDS, SeenChecks

TICKET = b"t" * 23
HERE, THERE = b"here..", b"there."


@given(st.sets(st.binary(min_size=12, max_size=12), max_size=50))
def test_what_was_noted_is_known_from_everywhere_and_no_replay_from_where_it_came(noted: set[bytes]) -> None:
    seen = SeenChecks()
    for transaction in noted:
        seen.note(TICKET, transaction, HERE, 1.0)
    for transaction in noted:
        assert seen.has(TICKET, transaction)
        assert not seen.is_replay(TICKET, transaction, HERE)
        assert seen.is_replay(TICKET, transaction, THERE)
        assert not seen.has(b"u" * 23, transaction), "of another ticket"


def test_a_check_is_forgotten_after_two_generations_and_not_after_one() -> None:
    seen = SeenChecks()
    seen.note(TICKET, b"first", HERE, 0.0)
    seen.note(TICKET, b"other", HERE, GENERATION_SECONDS)
    assert seen.has(TICKET, b"first")
    seen.note(TICKET, b"third", HERE, 2 * GENERATION_SECONDS)
    assert not seen.has(TICKET, b"first") and seen.has(TICKET, b"other")


def test_a_full_filter_makes_way_before_it_takes_everything_for_a_replay() -> None:
    seen = SeenChecks()
    for number in range(CAPACITY):
        seen.note(TICKET, number.to_bytes(12, "big"), HERE, 1.0)
    wrong = sum(seen.has(TICKET, (1 << 80 | n).to_bytes(12, "big")) for n in range(20_000))
    assert wrong / 20_000 < 0.008
    first = seen._new
    seen.note(TICKET, b"one more", HERE, 1.0)
    assert seen._old is first, "by number as well as by age"
    assert len(first) == replays.BITS // 8
