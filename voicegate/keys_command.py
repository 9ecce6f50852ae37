"""`voicegate keys`: which process has which secrets, and changes of `keys.file` that lose no call.

What is safe is in `voicegate.rotation`; here is where the facts come from, and what a person reads.
Exit status: 0 done or safe, 1 refused, 2 for a configuration or a file that cannot be used.
"""

from __future__ import annotations

import argparse
import os
import secrets
import sys
from collections.abc import Callable, Sequence
from pathlib import Path

import msgspec
import trio

from voicegate.config import Config, ConfigError, load_config
from voicegate.keyfile import (
    BOTH_SET,
    KeyFileError,
    configured_secrets,
    edit,
    entries_of,
    read_key_file,
    valid_seconds,
    write_key_file,
)
from voicegate.logs import configure
from voicegate.net.registry import Registry, RegistryError, open_registry
from voicegate.proto.keys import ClusterKeys
from voicegate.rotation import (
    Process,
    State,
    duration,
    free_id,
    in_use,
    minting_problems,
    next_steps,
    replacement_problems,
    retiring_problems,
)

LEAKED = """Key {mark} is gone from the file. Within about two seconds no process opens it. That means:
  * calls that are connected go on, for as long as their clients keep their address;
  * a client of an older call that changes its address, or whose relay restarts, cannot come back: its ticket
    opens no more. Older calls cannot be asked after, hung up or joined by id; they end by themselves;
  * ek_ client secrets that were made with it are refused."""


def main(arguments: Sequence[str]) -> int:
    """Run the command; returns the exit status."""
    options = _parse(arguments)
    try:
        config = load_config(options.config)
        configure(config.log)
        if config.keys.file and config.keys.secrets:
            raise ConfigError(BOTH_SET)
        return _ACTIONS[options.action](config, options)
    except _Refused as refused:
        for problem in refused.problems:
            print(f"voicegate: refused: {problem}", file=sys.stderr)
        if refused.hint:
            print(f"voicegate: {refused.hint}", file=sys.stderr)
        return 1
    except (ConfigError, KeyFileError) as error:
        print(f"voicegate: {error}", file=sys.stderr)
        return 2


class _Refused(Exception):
    """`problems`: the reasons, a sentence each; `hint`: what may be done all the same."""

    def __init__(self, problems: Sequence[str], hint: str = "") -> None:
        self.problems = problems
        self.hint = hint


def _parse(arguments: Sequence[str]) -> argparse.Namespace:
    parser = argparse.ArgumentParser(
        prog="voicegate keys",
        description="Rotate the secrets of keys.file with no lost call: add, wait, mint, wait, retire."
        " Without an action: the state of every process, and what is safe next.",
    )
    configured = argparse.ArgumentParser(add_help=False)
    configured.add_argument("--config", type=Path, metavar="FILE", help="the file that the processes have")
    parser.add_argument("--config", type=Path, metavar="FILE", help="the file that the processes have")
    forced = argparse.ArgumentParser(add_help=False)
    forced.add_argument(
        "--i-have-checked",
        action="store_true",
        help="do it although this command cannot see that it is safe, or sees that it is not",
    )
    actions = parser.add_subparsers(dest="action", metavar="ACTION")
    actions.add_parser("add", parents=[configured], help="add a new secret, which does not mint yet")
    mint = actions.add_parser("mint", parents=[configured, forced], help="let this one mint from now on")
    retire = actions.add_parser("retire", parents=[configured, forced], help="take this one away")
    for action in (mint, retire):
        action.add_argument("id", type=int, metavar="ID")
    retire.add_argument("--leaked", action="store_true", help="at once: somebody else has this secret")
    check = actions.add_parser(
        "check", parents=[configured], help="whether NEWFILE may take the place of the present secrets now"
    )
    check.add_argument("file", metavar="NEWFILE")
    parser.set_defaults(action="show")
    return parser.parse_args(arguments)


def _show(config: Config, _options: argparse.Namespace) -> int:
    state = _state(config)
    print(_table(state))
    for step in next_steps(state):
        print(f"next: {step}")
    return 0


def _add(config: Config, _options: argparse.Namespace) -> int:
    path = _file_of(config)
    fresh = secrets.token_hex(32)
    if not os.path.exists(path):
        write_key_file(path, f"0:{fresh}\n", instead_of="")
        print(f"Made {path} with its first secret, 0. Every process needs the same file.")
        return 0
    state = _state(config)
    try:
        key_id = free_id(state)
    except ValueError as error:
        raise _Refused([str(error)]) from None
    _rewrite(path, lambda entries: [*entries, f"{key_id}:{fresh}"])
    print(
        f"Added key {key_id}. Give every process the new file; when `voicegate keys` shows that all open it:"
        f" `voicegate keys mint {key_id}`."
    )
    return 0


def _mint(config: Config, options: argparse.Namespace) -> int:
    path, state = _file_of(config), _state(config)
    mark = _choice(state, options.id, "already")
    _allow(options, minting_problems(state, mark))
    _rewrite(path, lambda entries: sorted(entries, key=lambda entry: _entry_id(entry) != options.id))
    print(
        f"Key {mark} mints as soon as a process has read the file. The others stay until what they minted is"
        " void: `voicegate keys` tells when."
    )
    return 0


def _retire(config: Config, options: argparse.Namespace) -> int:
    path, state = _file_of(config), _state(config)
    mark = _choice(state, options.id, "now: add another one and let that mint before")
    problems = retiring_problems(state, mark)
    if not options.leaked:
        _allow(options, problems)
    _rewrite(path, lambda entries: [entry for entry in entries if _entry_id(entry) != options.id])
    print(LEAKED.format(mark=mark) if options.leaked and problems else f"Key {mark} is gone from the file.")
    return 0


def _check(config: Config, options: argparse.Namespace) -> int:
    state = _state(config)
    new = ClusterKeys.parse(entries_of(read_key_file(options.file))).marks
    if problems := replacement_problems(state, new):
        raise _Refused(problems)
    print(f"{options.file} may take the place of the present secrets now.")
    return 0


_ACTIONS: dict[str, Callable[[Config, argparse.Namespace], int]] = {
    "show": _show,
    "add": _add,
    "mint": _mint,
    "retire": _retire,
    "check": _check,
}


def _allow(options: argparse.Namespace, problems: list[str]) -> None:
    if not problems:
        return
    if not options.i_have_checked:
        raise _Refused(problems, "--i-have-checked does it all the same")
    for problem in problems:
        print(f"voicegate: done all the same: {problem}", file=sys.stderr)


def _file_of(config: Config) -> str:
    if not config.keys.file:
        raise KeyFileError(
            "keys.file is not set: where the secrets are somewhere else, change them there, and ask"
            " `voicegate keys check NEWFILE` before each step"
        )
    return config.keys.file


def _rewrite(path: str, change: Callable[[tuple[str, ...]], Sequence[str]]) -> None:
    text = read_key_file(path)
    write_key_file(path, edit(text, change(entries_of(text))), instead_of=text)


def _entry_id(entry: str) -> int:
    return int(entry.partition(":")[0])


def _choice(state: State, key_id: int, if_first: str) -> str:
    """The mark of a key that is in the file, but not the first there."""
    for mark in state.present:
        if _entry_id(mark) != key_id:
            continue
        if mark == state.present[0]:
            raise _Refused([f"key {mark} is the first in the file {if_first}"])
        return mark
    there = ", ".join(str(_entry_id(mark)) for mark in state.present)
    raise _Refused([f"there is no key {key_id} in the file; there is {there}"])


def _state(config: Config) -> State:
    """What registry and notes say now; where Redis cannot be reached, as if there were none. ConfigError."""
    given = configured_secrets(config.keys)
    if not given:
        raise ConfigError("there are no secrets: set keys.file, and make it with `voicegate keys add`")
    keys = ClusterKeys.parse(given)
    state = State(keys.marks, valid_seconds=valid_seconds(config))
    if config.registry.redis:
        try:
            state = trio.run(_look, config, keys)
        except* RegistryError as group:
            error: BaseException = group
            while isinstance(error, BaseExceptionGroup):
                error = error.exceptions[0]
            print(f"voicegate: {error}", file=sys.stderr)
    return state


async def _look(config: Config, keys: ClusterKeys) -> State:
    from voicegate.net.key_notes import KeyNotes  # redis-py is loaded only where it is used

    # A state of some time ago, from the snapshot of the registry, is no ground to do anything.
    settings = msgspec.structs.replace(config.registry, snapshot="")
    registry = open_registry(msgspec.structs.replace(config, registry=settings), keys)
    async with trio.open_nursery() as nursery:
        await nursery.start(registry.run)
        if not registry.healthy():
            raise RegistryError("Redis does not answer, and what it said before may be out of date")
        alive, noted = await KeyNotes(config.registry.redis).read()
        state = State(
            keys.marks,
            _processes(registry),
            alive,
            noted_seconds=noted or 0.0,
            valid_seconds=valid_seconds(config),
            unreadable=registry.statistics().get("forged", 0) > 0,
        )
        nursery.cancel_scope.cancel()
    return state


def _processes(registry: Registry) -> tuple[Process, ...]:
    transceivers = [*registry.records.values(), *(t for c in registry.clusters.values() for t in c.values())]
    found = [
        *(Process("relay", r.id, r.cluster, r.keys) for r in registry.relays.values()),
        *(Process("transceiver", t.id, t.cluster, t.keys) for t in transceivers),
        *(Process("signaling", s.id, None, s.keys) for s in registry.signalings.values()),
    ]
    return tuple(dict.fromkeys(found))


def _table(state: State) -> str:
    """Keys, then processes; the columns as wide as what is in them."""
    rows = [("KEY", "PLACE", "OPENED BY", "MINTED WITH BY", "IN USE FOR")]
    everybody = state.processes
    known = in_use(state)
    for mark in known:
        place = (
            "mints" if mark == state.present[0] else "opens" if mark in state.present else "not in the file"
        )
        opened = sum(mark in p.marks for p in everybody)
        minted = sum(p.marks[:1] == (mark,) for p in everybody)
        left = None if state.alive is None else state.alive.get(mark)
        use = "unknown" if state.alive is None else duration(left) if left else "-"
        rows.append((mark, place, f"{opened} of {len(everybody)}", str(minted), use))
    lines = _columns(rows)
    if everybody:
        processes = [("ROLE", "ID", "CLUSTER", "MINTS", "OPENS")]
        for p in sorted(everybody, key=lambda p: (p.role, p.cluster or 0, p.id)):
            cluster = "-" if p.cluster is None else str(p.cluster)
            mints = p.marks[0] if p.marks else "?"
            processes.append((p.role, str(p.id), cluster, mints, " ".join(p.marks) or "?"))
        lines += ["", *_columns(processes)]
    return "\n".join((*lines, ""))


def _columns(rows: Sequence[Sequence[str]]) -> list[str]:
    widths = [max(map(len, column)) for column in zip(*rows, strict=True)]
    return [
        "  ".join(cell.ljust(width) for cell, width in zip(row, widths, strict=True)).rstrip() for row in rows
    ]
