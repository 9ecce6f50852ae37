"""The rules by which workers are started, given a slot and given up, on virtual time."""

from __future__ import annotations

import itertools

import pytest
from hypothesis import given
from hypothesis import strategies as st

from voicegate.processes.slots import (
    HANG_SECONDS,
    LONGEST_PAUSE,
    LOOP_SECONDS,
    WARM_SECONDS,
    Death,
    Give,
    Kill,
    Slots,
    Start,
)


def running(count: int, now: float = 0.0) -> Slots:
    """All slots served, by workers 1 to `count`; the spare is the next."""
    slots = Slots(count)
    assert slots.poll(now) == [Start(worker) for worker in range(1, count + 2)]
    for worker in range(1, count + 2):
        slots.warm(worker)
    assert slots.poll(now) == [Give(index, index + 1) for index in range(count)]
    for worker in range(1, count + 1):
        slots.progressed(worker, 0, now)
    assert slots.serving() == count
    assert slots.poll(now) == []
    return slots


def test_the_spare_gets_the_slot_at_once_and_is_replaced() -> None:
    slots = running(2)
    assert slots.ended(1, 20.0) == Death(slot=0, deaths=0, pause=0.0)
    assert slots.serving() == 1
    assert slots.poll(20.0) == [Give(0, 3), Start(4)]
    slots.warm(4)
    assert slots.poll(20.1) == []


def test_a_slot_waits_when_the_spare_died_as_well() -> None:
    slots = running(1)
    slots.ended(2, 20.0)
    slots.ended(1, 20.0)
    assert slots.poll(20.0) == [Start(3), Start(4)]
    slots.warm(4)
    assert slots.poll(20.2) == [Give(0, 4)]


def test_a_crash_loop_gets_ever_longer_pauses() -> None:
    slots = running(1)
    now, pauses = 0.0, []
    for worker in itertools.count(1):
        now += 0.01
        death = slots.ended(worker, now)
        assert death is not None and death.slot == 0
        pauses.append(death.pause)
        assert death.deaths == worker
        if worker == 10:
            break
        if death.pause:
            assert not any(isinstance(action, Give) for action in slots.poll(now + death.pause - 0.001))
        now += death.pause
        actions = slots.poll(now)
        assert Give(0, worker + 1) in actions
        slots.warm(worker + 2)
    assert pauses == [0.0, 0.1, 0.2, 0.4, 0.8, 1.6, 3.2, LONGEST_PAUSE, LONGEST_PAUSE, LONGEST_PAUSE]


def test_who_lived_long_ends_the_loop() -> None:
    slots = running(1)
    assert slots.ended(1, 1.0) == Death(0, 1, 0.0)
    slots.poll(1.0)
    slots.warm(3)
    assert slots.ended(2, 2.0) == Death(0, 2, 0.1)
    assert Give(0, 3) in slots.poll(2.1)
    slots.warm(4)
    assert slots.ended(3, 2.1 + LOOP_SECONDS) == Death(0, 0, 0.0)


def test_workers_that_never_get_warm_are_started_at_ever_longer_intervals() -> None:
    slots = Slots(1)
    assert slots.poll(0.0) == [Start(1), Start(2)]
    assert slots.ended(1, 0.0) == Death(None, 1, 0.0)
    assert slots.ended(2, 0.0) == Death(None, 2, 0.1)
    assert slots.poll(0.05) == []
    assert slots.poll(0.11) == [Start(3), Start(4)]
    assert slots.ended(3, 0.2) == Death(None, 3, 0.2)
    assert slots.poll(0.39) == []
    slots.warm(4)
    assert slots.poll(0.41) == [Give(0, 4), Start(5)]


def test_a_worker_without_progress_is_replaced() -> None:
    slots = running(2)
    now = 0.0
    while now < HANG_SECONDS - 0.2:
        now += 0.1
        slots.progressed(2, int(now * 10), now)
        slots.progressed(1, 0, now)  # it reports, but its packets stand still
        assert slots.poll(now) == []
    assert slots.poll(HANG_SECONDS) == [Kill(1, 0), Give(0, 3), Start(4)]
    assert slots.ended(1, HANG_SECONDS + 0.01) is None


def test_a_slot_may_take_longer_to_be_served_at_first() -> None:
    slots = Slots(1, start_seconds=2 * HANG_SECONDS)
    slots.poll(0.0)
    slots.warm(1)
    slots.warm(2)
    assert slots.poll(0.0) == [Give(0, 1)]
    now = 0.0
    while now < 2 * HANG_SECONDS - 0.6:
        now += 0.5
        assert slots.poll(now) == []
    assert slots.poll(2 * HANG_SECONDS)[:2] == [Kill(1, 0), Give(0, 2)]
    slots.progressed(2, 1, now := 2 * HANG_SECONDS)
    while now < 3 * HANG_SECONDS - 0.6:
        now += 0.5
        assert not any(isinstance(action, Kill) for action in slots.poll(now))
    assert Kill(2, 0) in slots.poll(3 * HANG_SECONDS), "who served once has no longer than others"


def test_a_worker_that_never_gets_warm_is_given_up() -> None:
    slots = running(1)
    slots.ended(2, 20.0)
    now = 20.0
    assert slots.poll(now) == [Start(3)]
    while now < 20.0 + WARM_SECONDS - 0.5:
        now += 0.5
        slots.progressed(1, int(now * 10), now)
        assert slots.poll(now) == []
    assert slots.poll(20.0 + WARM_SECONDS) == [Kill(3, None), Start(4)]


def test_nobody_is_blamed_when_the_machine_stood_still() -> None:
    slots = running(2)
    slots.poll(100.0)
    assert slots.poll(100.1) == []
    assert slots.poll(100.0 + HANG_SECONDS - 0.5) == [], "it was not polled meanwhile either"


def test_a_report_after_the_end_changes_nothing() -> None:
    slots = running(1)
    slots.ended(1, 20.0)
    slots.progressed(1, 7, 20.0)
    slots.warm(1)
    assert slots.serving() == 0
    assert slots.ended(1, 20.0) is None


EVENTS = st.lists(
    st.tuples(
        st.sampled_from(["warm", "ended", "progressed", "wait"]), st.integers(0, 12), st.floats(0.0, 3.0)
    ),
    max_size=60,
)


@given(st.integers(1, 4), EVENTS)
def test_never_two_on_a_slot_and_never_too_many(count: int, events: list[tuple[str, int, float]]) -> None:
    slots = Slots(count)
    now, alive, holders = 0.0, set(), {}
    for kind, number, wait in events:
        now += wait
        known = sorted(alive)
        worker = known[number % len(known)] if known else 0
        if kind == "warm":
            slots.warm(worker)
        elif kind == "progressed":
            slots.progressed(worker, number, now)
        elif kind == "ended" and worker:
            slots.ended(worker, now)
            alive.discard(worker)
            holders = {slot: holder for slot, holder in holders.items() if holder != worker}
        for action in slots.poll(now):
            match action:
                case Start(worker):
                    assert worker not in alive
                    alive.add(worker)
                case Kill(worker, slot):
                    alive.discard(worker)
                    if slot is not None:
                        assert holders.pop(slot) == worker
                case Give(slot, worker):
                    assert slot not in holders and worker in alive
                    assert worker not in holders.values()
                    holders[slot] = worker
        assert len(alive) <= count + 1
        assert slots.serving() <= len(holders)


@pytest.mark.parametrize("count", [1, 3])
def test_everything_is_served_again_once_the_cause_is_gone(count: int) -> None:
    slots = running(count)
    now, alive = 0.0, set(range(1, count + 2))
    for step in range(400):
        now += 0.1
        for worker in sorted(alive):
            if step < 50:
                slots.ended(worker, now)
                alive.discard(worker)
            else:
                slots.warm(worker)
                slots.progressed(worker, step, now)
        alive |= {action.worker for action in slots.poll(now) if isinstance(action, Start)}
    assert slots.serving() == count
    assert len(alive) == count + 1
