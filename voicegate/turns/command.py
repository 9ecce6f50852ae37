"""`voicegate turns eval`: how good turn judges and interruption policies are on labelled recordings.

Exit status: 0, or 2 for a manifest, a recording, a name or a file that cannot be used.
"""

from __future__ import annotations

import argparse
import json
import sys
from collections.abc import Sequence
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import Any

from voicegate.media.turns.settings import EAGERNESS_CEILING, TurnSettings
from voicegate.turn_plugins import TurnPlugins, load_turn_plugins
from voicegate.turns.evaluate import Outcome, run_calls
from voicegate.turns.manifest import ManifestError, read_overlaps, read_turns
from voicegate.turns.overlaps import MakePlugins, all_barge_ins, figures, run_overlaps
from voicegate.turns.plot import svg
from voicegate.turns.recording import Recording, load_calls
from voicegate.turns.report import overlaps_json, overlaps_table, turns_json, turns_table
from voicegate.turns.sound import RecordingError
from voicegate.turns.sweep import Sweep, sweep


def main(arguments: Sequence[str]) -> int:
    """Run the command; returns the exit status."""
    options = _parse(arguments)
    try:
        found = _overlaps(options) if options.overlaps else _turns(options)
        if options.json:
            _write(options.json, json.dumps(found, indent=2) + "\n")
    except (ManifestError, RecordingError, ValueError) as error:
        print(f"voicegate turns: {error}", file=sys.stderr)
        return 2
    return 0


def _parse(arguments: Sequence[str]) -> argparse.Namespace:
    parser = argparse.ArgumentParser(prog="voicegate turns", description="Measure who has the turn.")
    actions = parser.add_subparsers(dest="action", metavar="ACTION", required=True)
    action = actions.add_parser(
        "eval",
        help="play labelled recordings to a turn machine and say how well it did",
        epilog="docs/turns-evaluation.md says what a manifest looks like and what the figures mean.",
    )
    action.add_argument("manifest", type=Path, metavar="MANIFEST", help="JSON lines, one recording a line")
    action.add_argument(
        "--judge",
        action="append",
        default=[],
        metavar="NAME",
        help="fixed, adaptive, smart-turn, or that of an installed package; repeatable (default: fixed and"
        " adaptive)",
    )
    action.add_argument("--eagerness", choices=EAGERNESS_CEILING, default="auto")
    action.add_argument("--silence", type=int, default=500, metavar="MS", help="the fixed judge's (500)")
    action.add_argument("--model", metavar="FILE", help="the file that the judge reads: smart-turn's weights")
    action.add_argument("--activity", default="webrtc", metavar="NAME", help="the voice activity (webrtc)")
    action.add_argument("--overlaps", action="store_true", help="the rows are overlaps, not turns")
    action.add_argument(
        "--policy", default="default", metavar="NAME", help="the interruption policy (default)"
    )
    action.add_argument(
        "--transcripts",
        type=float,
        metavar="SECONDS",
        help="the agent tells what was said over it so long after it was said; without: it cannot",
    )
    action.add_argument("--json", metavar="FILE", help="write the figures; - is standard output")
    action.add_argument(
        "--plot", metavar="FILE.svg", help="write false cut-ins over mean wait, a line a judge"
    )
    options = parser.parse_args(arguments)
    if options.overlaps and (options.judge or options.plot):
        action.error("--judge and --plot are for turns, not for --overlaps")
    return options


def _settings(options: argparse.Namespace, judge: str) -> TurnSettings:
    return TurnSettings(
        judge=judge,
        eagerness=options.eagerness,
        silence_duration=options.silence / 1000,
        max_silence=EAGERNESS_CEILING[options.eagerness],
        model=options.model,
    )


def _turns(options: argparse.Namespace) -> dict[str, Any]:
    turns = read_turns(options.manifest)
    judges = list(dict.fromkeys(options.judge or ["fixed", "adaptive"]))
    settings = {judge: _settings(options, judge) for judge in judges}
    plugins = {judge: load_turn_plugins(settings[judge], activity=options.activity) for judge in judges}
    of_first = partial(plugins[judges[0]].activity, settings[judges[0]], _failed)
    calls = load_calls(turns, options.manifest.parent, of_first)
    sweeps: dict[str, Sweep] = {}
    for judge in judges:
        sweeps[judge] = sweep(partial(_outcomes, calls, settings[judge], plugins[judge]))
    _print(turns_table(sweeps, len(turns), sum(len(turn.pauses) for turn in turns)))
    if options.plot:
        _write(options.plot, svg(sweeps))
    return turns_json(sweeps)


def _outcomes(
    calls: Sequence[Sequence[Recording]], settings: TurnSettings, plugins: TurnPlugins, patience: float
) -> list[Outcome]:
    return run_calls(calls, settings, partial(plugins.judge, replace(settings, patience=patience), _failed))


def _overlaps(options: argparse.Namespace) -> dict[str, Any]:
    overlaps = read_overlaps(options.manifest)
    settings = _settings(options, "upstream")
    plugins = load_turn_plugins(settings, activity=options.activity, policy=options.policy)
    reactions = run_overlaps(
        overlaps, options.manifest.parent, settings, _maker(plugins, settings), options.transcripts
    )
    kinds, every = figures(reactions), all_barge_ins(reactions)
    _print(overlaps_table(kinds, every))
    return overlaps_json(kinds, every)


def _maker(plugins: TurnPlugins, settings: TurnSettings) -> MakePlugins:
    return lambda: (plugins.activity(settings, _failed), plugins.policy(settings, _failed))


def _failed(name: str, error: Exception) -> None:
    """A call would go on with ours; figures of a plug-in that is not the one asked for would be no
    figures."""
    raise ValueError(f"the plug-in {name!r} failed: {type(error).__name__}: {error}") from error


def _print(lines: Sequence[str]) -> None:
    print("\n".join(lines))


def _write(path: str, text: str) -> None:
    if path == "-":
        print(text, end="")
        return
    try:
        Path(path).write_text(text)
    except OSError as error:
        raise ValueError(f"{path} cannot be written: {error.strerror}") from None
