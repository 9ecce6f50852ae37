"""Which change of the keys is safe now, and why another one is not. Pure.

A secret is named by its *mark*, `ID:FINGERPRINT` (`voicegate.proto.keys.mark`); a key file is the tuple of
its marks, of which the first mints. Whatever the change, two rules keep every call and every token:

1. Nobody begins to mint with a secret that somebody does not open yet. So it is added everywhere first.
2. A secret is taken away only when nobody mints with it, and when the last ticket or token that was is void.

A third one is for ids: while a secret is in use, its id means that secret and no other.

    add ─► all open it ─► mint ─► nobody mints with the old one, and what was is void ─► retire
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass

from voicegate.proto.ticket import MAX_KEY_ID

ROLES = ("relay", "transceiver", "signaling")


@dataclass(frozen=True, slots=True)
class Process:
    """One process of the fleet, as the registry shows it."""

    role: str
    id: int
    cluster: int | None
    marks: tuple[str, ...]
    """What it opens; the first one mints. Empty: it does not say."""

    def __str__(self) -> str:
        return f"{self.role} {self.id}"


@dataclass(frozen=True, slots=True)
class State:
    """What is known at one moment."""

    present: tuple[str, ...]
    """The marks of the key file (or of `keys.secrets`)."""
    processes: tuple[Process, ...] = ()
    alive: Mapping[str, float] | None = None
    """Mark -> seconds for which something minted with it may still be in use; None: nobody keeps note."""
    noted_seconds: float = 0.0
    """For how long notes have been kept."""
    valid_seconds: float = 0.0
    """How long something that is minted is valid at most: what is older than this needs no note."""
    unreadable: bool = False
    """Whether there are records that open with none of our secrets."""


def replacement_problems(state: State, new: Sequence[str]) -> list[str]:
    """Why the keys must not be replaced by `new` now, a sentence each; empty: it is safe."""
    before = state.present
    gone = [mark for mark in before if mark not in new]
    problems = [*_reused(state, new)]
    if new[0] != before[0]:
        problems += minting_problems(state, new[0])
    for mark in gone:
        problems += retiring_problems(state, mark)
    for process in state.processes:
        if process.marks and process.marks[0] not in new and process.marks[0] not in gone:
            problems.append(f"{process} mints with {process.marks[0]}, which the new keys do not have")
    return list(dict.fromkeys(problems))


def minting_problems(state: State, mark: str) -> list[str]:
    """Why nobody must begin to mint with this secret yet."""
    problems = _blindness(state)
    lacking = [str(process) for process in state.processes if process.marks and mark not in process.marks]
    if lacking:
        problems.append(
            f"key {mark} is not open yet at {_listed(lacking)}: give every process the file that has it,"
            " and wait until `voicegate keys` shows it"
        )
    return problems


def retiring_problems(state: State, mark: str) -> list[str]:
    """Why this secret must not be taken away yet."""
    problems = _blindness(state)
    minting = [str(process) for process in state.processes if process.marks[:1] == (mark,)]
    if minting or mark == state.present[0]:
        by = _listed(minting) if minting else "the first line of the keys"
        problems.append(f"key {mark} is what {by} mints with: move another one to the front first")
    if state.alive is None:
        problems.append(
            f"without Redis nobody notes when key {mark} was last minted with: wait"
            f" {duration(state.valid_seconds)} after the last process stopped doing so"
        )
    elif left := state.alive.get(mark, 0.0):
        if not minting:
            problems.append(
                f"calls and tokens that were minted with key {mark} may be in use for {duration(left)} more:"
                " try again then"
            )
    elif state.noted_seconds < state.valid_seconds:
        problems.append(
            "Redis has notes of what is minted since"
            f" {duration(state.noted_seconds)} ago only, which tells nothing of key {mark} before: try in"
            f" {duration(state.valid_seconds - state.noted_seconds)}"
        )
    return problems


def free_id(state: State) -> int:
    """The next id for a new secret; ValueError when all are in use."""
    known = {_id(mark) for mark in in_use(state)}
    highest = _id(state.present[0]) if state.present else -1
    # The one after the minting one, round and round: an id comes back as late as possible.
    for step in range(1, MAX_KEY_ID + 2):
        key_id = (highest + step) % (MAX_KEY_ID + 1)
        if key_id not in known:
            return key_id
    raise ValueError(f"all ids from 0 to {MAX_KEY_ID} are in use: retire one first")


def next_steps(state: State) -> list[str]:
    """What can be done now, and what each of the other secrets waits for; a sentence each."""
    if blind := _blindness(state):
        return blind
    late = [str(p) for p in state.processes if p.marks and p.marks != state.present]
    if late:
        return [f"{_listed(late)} will have what the file says in a second or two, or has another file"]
    if len(state.present) == 1:
        return ["`voicegate keys add` is safe: it begins a rotation"]
    steps = []
    for mark in state.present[1:]:
        # One that was never minted with is new, so minting is what it is there for.
        used = state.alive is not None and mark in state.alive
        for verb, problems in (
            ("mint", [] if used else minting_problems(state, mark)),
            ("retire", retiring_problems(state, mark)),
        ):
            if verb == "mint" and used:
                continue
            if not problems:
                steps.append(f"`voicegate keys {verb} {_id(mark)}` is safe")
            elif verb == "mint" or used:
                steps.append(f"`voicegate keys {verb} {_id(mark)}` is not safe: {problems[0]}")
    return steps


def in_use(state: State) -> list[str]:
    """All marks that are in the file, open somewhere, or stand for something that is not void yet."""
    opened = (mark for process in state.processes for mark in process.marks)
    return list(dict.fromkeys((*state.present, *opened, *(state.alive or ()))))


def duration(seconds: float) -> str:
    """`1 h 05 min`, `4 min`, `50 s`."""
    whole = int(seconds)
    if whole < 120:
        return f"{whole} s"
    minutes = -(-whole // 60)
    return f"{minutes} min" if minutes < 60 else f"{minutes // 60} h {minutes % 60:02d} min"


def _reused(state: State, new: Sequence[str]) -> Iterable[str]:
    by_id = {_id(mark): mark for mark in new}
    for mark in in_use(state):
        other = by_id.get(_id(mark))
        if other is not None and other != mark:
            yield (
                f"key id {_id(mark)} stands for another secret ({mark}) that is in use: give the new one"
                " an id of its own"
            )


def _blindness(state: State) -> list[str]:
    """What keeps us from knowing who opens what."""
    problems = []
    if state.alive is None:
        problems.append("without Redis nobody tells which keys each process has: look at each")
    if state.unreadable:
        problems.append(
            "there are registry records that open with none of these secrets: somebody has others"
        )
    silent = [str(process) for process in state.processes if not process.marks]
    if silent:
        problems.append(f"{_listed(silent)} does not tell its keys: it runs an older version")
    there = {process.role for process in state.processes}
    if there and (absent := [role for role in ROLES if role not in there]):
        problems.append(
            f"no {' and no '.join(absent)} is in the registry: start it, or its keys cannot be known"
        )
    return problems


def _id(mark: str) -> int:
    return int(mark.partition(":")[0])


def _listed(names: Sequence[str]) -> str:
    shown = ", ".join(names[:5])
    return shown if len(names) <= 5 else f"{shown} and {len(names) - 5} more"
