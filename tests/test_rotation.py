"""The rules of a rotation: sentences for each refusal, and a model of a fleet that reloads in any order."""

from __future__ import annotations

import pytest
from hypothesis import settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, invariant, precondition, rule

from voicegate.rotation import (
    Process,
    State,
    duration,
    free_id,
    minting_problems,
    next_steps,
    replacement_problems,
    retiring_problems,
)

OLD, NEW = "0:aaaaaaaa", "1:bbbbbbbb"
VALID = 7200.0


def fleet(*marks: str, **others: tuple[str, ...]) -> tuple[Process, ...]:
    """A relay, a transceiver and a signaling with these marks; `relay=(...)` differs."""
    return tuple(
        Process(role, number, 1, others.get(role, marks))
        for number, role in enumerate(("relay", "transceiver", "signaling"), 1)
    )


def state(present: tuple[str, ...], processes: tuple[Process, ...], **more: object) -> State:
    return State(
        present,
        processes,
        **{"alive": {}, "noted_seconds": 2 * VALID, "valid_seconds": VALID, **more},  # type: ignore[arg-type]
    )


def test_a_rotation_step_by_step() -> None:
    begun = state((OLD,), fleet(OLD), alive={OLD: VALID})
    assert next_steps(begun) == ["`voicegate keys add` is safe: it begins a rotation"]
    assert free_id(begun) == 1
    added = state((OLD, NEW), fleet(OLD), alive={OLD: VALID})
    assert "will have what the file says" in next_steps(added)[0]
    assert (
        "key 1:bbbbbbbb is not open yet at relay 1, transceiver 2, signaling 3"
        in minting_problems(added, NEW)[0]
    )
    loaded = state((OLD, NEW), fleet(OLD, NEW), alive={OLD: VALID})
    assert minting_problems(loaded, NEW) == []
    assert "`voicegate keys mint 1` is safe" in next_steps(loaded)
    minted = state((NEW, OLD), fleet(NEW, OLD), alive={OLD: 4000.0, NEW: VALID})
    assert "in use for 1 h 07 min more" in retiring_problems(minted, OLD)[0]
    assert next_steps(minted)[0].startswith("`voicegate keys retire 0` is not safe: calls and tokens")
    past = state((NEW, OLD), fleet(NEW, OLD), alive={NEW: VALID})
    assert retiring_problems(past, OLD) == []
    assert "`voicegate keys retire 0` is safe" in next_steps(past)


@pytest.mark.parametrize("role", ["relay", "transceiver", "signaling"])
def test_minting_waits_for_everybody(role: str) -> None:
    behind = state((OLD, NEW), fleet(OLD, NEW, **{role: (OLD,)}))
    [problem] = minting_problems(behind, NEW)
    assert f"not open yet at {role} " in problem
    assert replacement_problems(behind, (NEW, OLD)) == [problem]


@pytest.mark.parametrize("role", ["relay", "transceiver", "signaling"])
def test_retiring_waits_for_who_mints_with_it(role: str) -> None:
    behind = state((NEW, OLD), fleet(NEW, OLD, **{role: (OLD, NEW)}), alive={OLD: VALID})
    [problem] = retiring_problems(behind, OLD)
    assert f"is what {role} " in problem and "mints with" in problem
    assert replacement_problems(behind, (NEW,)) == [problem]


def test_the_first_of_the_file_is_not_retired_before_anybody_has_read_it() -> None:
    just_minted = state((NEW, OLD), fleet(OLD, NEW))
    [problem] = retiring_problems(just_minted, NEW)
    assert "is what the first line of the keys mints with" in problem


def test_what_cannot_be_seen_is_not_safe() -> None:
    loaded = fleet(OLD, NEW)
    for blind, words in (
        (State((OLD, NEW), valid_seconds=VALID), "without Redis"),
        (state((OLD, NEW), loaded, unreadable=True), "records that open with none"),
        (state((OLD, NEW), fleet(OLD, NEW, relay=())), "relay 1 does not tell its keys"),
        (state((OLD, NEW), loaded[1:]), "no relay is in the registry"),
        (state((OLD, NEW), loaded[:1]), "no transceiver and no signaling"),
    ):
        assert words in minting_problems(blind, NEW)[0]
        assert words in retiring_problems(blind, NEW)[0]
        assert words in next_steps(blind)[0]


def test_a_redis_that_was_emptied_says_nothing_of_before() -> None:
    emptied = state((NEW, OLD), fleet(NEW, OLD), noted_seconds=600.0)
    [problem] = retiring_problems(emptied, OLD)
    assert "10 min ago only" in problem and "try in 1 h 50 min" in problem


def test_a_replacement_by_hand() -> None:
    loaded = state((OLD, NEW), fleet(OLD, NEW), alive={OLD: 50.0})
    assert replacement_problems(loaded, (OLD, NEW, "2:cccccccc")) == []
    assert replacement_problems(loaded, (NEW, OLD)) == []
    assert replacement_problems(loaded, (OLD,)) == [], "one that never minted may go"
    [reused] = replacement_problems(loaded, (OLD, "1:dddddddd"))
    assert "key id 1 stands for another secret (1:bbbbbbbb)" in reused
    assert any("not open yet" in text for text in replacement_problems(loaded, ("2:cccccccc", OLD, NEW)))
    assert any("mints with" in text for text in replacement_problems(loaded, (NEW,)))
    # An id that left the file, but not yet the calls.
    [reused] = replacement_problems(state((NEW,), fleet(NEW), alive={OLD: 50.0}), (NEW, "0:eeeeeeee"))
    assert "key id 0 stands for another secret" in reused


def test_ids_go_round_and_are_not_used_twice() -> None:
    assert free_id(State(("6:f",))) == 0
    assert free_id(state(("6:f",), fleet("6:f", "0:a"), alive={"1:b": 9.0})) == 2
    with pytest.raises(ValueError, match="retire one first"):
        free_id(State(tuple(f"{n}:a" for n in range(7))))


def test_durations_are_for_people() -> None:
    assert [duration(n) for n in (0, 119.9, 120, 3599, 3600, 7260)] == [
        "0 s", "119 s", "2 min", "1 h 00 min", "1 h 00 min", "2 h 01 min",
    ]  # fmt: skip


class Fleet(RuleBasedStateMachine):
    """Processes that read the file and tell of it when they like; commands only when the rules allow them.

    Never is there a live ticket that a relay cannot open, nor anybody who mints what another does not open.
    """

    VALID = 100.0

    def __init__(self) -> None:
        super().__init__()
        self.serial = 0
        self.file = (self.fresh(0),)
        self.held = [self.file] * 5
        self.told = [self.file] * 5
        self.roles = ["relay", "relay", "transceiver", "transceiver", "signaling"]
        self.now = 1000.0
        self.tickets: list[tuple[str, float]] = []
        self.notes: dict[str, float] = {self.file[0]: self.now + self.VALID}

    def fresh(self, key_id: int) -> str:
        self.serial += 1
        return f"{key_id}:{self.serial:08x}"

    def view(self) -> State:
        return State(
            self.file,
            tuple(Process(role, n, 1, self.told[n]) for n, role in enumerate(self.roles)),
            {mark: until - self.now for mark, until in self.notes.items() if until > self.now},
            noted_seconds=2 * self.VALID,
            valid_seconds=self.VALID,
        )

    def note(self, n: int) -> None:
        self.notes[self.held[n][0]] = self.now + self.VALID

    @rule()
    def add(self) -> None:
        try:
            new = (*self.file, self.fresh(free_id(self.view())))
        except ValueError:
            return
        if not replacement_problems(self.view(), new):
            self.file = new

    @rule(pick=st.integers(0, 6))
    def mint(self, pick: int) -> None:
        mark = self.file[pick % len(self.file)]
        if not minting_problems(self.view(), mark):
            self.file = (mark, *(other for other in self.file if other != mark))

    @rule(pick=st.integers(0, 6))
    def retire(self, pick: int) -> None:
        mark = self.file[pick % len(self.file)]
        if not retiring_problems(self.view(), mark):
            self.file = tuple(other for other in self.file if other != mark)

    @rule(order=st.permutations(range(7)), keep=st.integers(1, 7), invent=st.booleans())
    def replace_by_hand(self, order: list[int], keep: int, invent: bool) -> None:
        new = tuple(self.file[n] for n in order if n < len(self.file))[:keep]
        if invent:
            new = (self.fresh(order[0]), *(mark for mark in new if mark[0] != str(order[0])))
        if new and not replacement_problems(self.view(), new):
            self.file = new

    @rule(n=st.integers(0, 4))
    def read_the_file(self, n: int) -> None:
        self.note(n)  # of what it minted with until now
        self.held[n] = self.file
        self.note(n)

    @rule(n=st.integers(0, 4))
    def tell(self, n: int) -> None:
        self.told[n] = self.held[n]

    @rule()
    def all_settle(self) -> None:
        for n in range(5):
            self.read_the_file(n)
            self.tell(n)

    @rule(n=st.integers(2, 3))
    def allocate(self, n: int) -> None:
        self.tickets.append((self.held[n][0], self.now + self.VALID))
        self.note(n)

    @rule(seconds=st.sampled_from([1.0, 60.0, 101.0]))
    def wait(self, seconds: float) -> None:
        for n in range(5):
            self.note(n)  # once a minute, with slack
        self.now += seconds
        self.tickets = [ticket for ticket in self.tickets if ticket[1] > self.now]

    @precondition(lambda self: self.tickets)
    @invariant()
    def every_relay_opens_every_live_ticket(self) -> None:
        for n in (0, 1):
            for mark, _ in self.tickets:
                assert mark in self.held[n], f"relay {n} with {self.held[n]} cannot open a ticket of {mark}"

    @invariant()
    def everybody_opens_what_anybody_mints(self) -> None:
        for minting, *_ in self.held:
            assert all(minting in held for held in self.held)


Fleet.TestCase.settings = settings(max_examples=150, stateful_step_count=40, deadline=None)
TestFleet = Fleet.TestCase
