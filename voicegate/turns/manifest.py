"""Manifests of labelled recordings: JSON lines, one object a recording. Times are seconds from its beginning.

A turn says where the person pauses before having finished, and where the turn truly ends:

    {"file": "a.wav", "pauses": [[1.2, 1.9]], "end": 4.31, "call": "7"}

or, as in eot-bench, all silences of which the last is the end: {"file": "a.wav", "silence_spans":
[{"start": 1.2, "end": 1.9}, {"start": 4.31, "end": 6.0}]}. Turns of one `call` come one after the other from
one person, and one judge hears them in this order; without it each is a call of its own.

An overlap says what the person does while the agent says `agent`:

    {"file": "b.wav", "agent": "said.wav", "kind": "cough", "barge_in": false, "onset": 1.02, "end": 1.4}

`agent_onset` is where the agent's first sound comes (0): what the person said before is heard, too. `echo` is
what a loudspeaker brings of `agent` into this microphone, sample by sample beside it; it is mixed in
`echo_delay` later, as far as the agent's sound is really played. Other fields may be there and are left
alone.
"""

from __future__ import annotations

import math
from pathlib import Path
from typing import Any, Final, TypeVar

import msgspec

MAX_ROWS: Final = 100_000
"""All rows' sound is kept in memory for a sweep: far fewer fit."""


class ManifestError(Exception):
    """The message is a sentence that names the file, the line and the problem."""


class Turn(msgspec.Struct, frozen=True):
    """One turn of a person."""

    file: str
    end: float
    """Where the last voice ends."""
    pauses: tuple[tuple[float, float], ...] = ()
    """Mid-turn, in order."""
    call: str = ""


class Overlap(msgspec.Struct, frozen=True):
    """What a microphone hears while the agent speaks."""

    file: str
    agent: str
    kind: str
    barge_in: bool
    """Whether the person means to interrupt."""
    onset: float | None = None
    """Where the person's sound begins, and where it ends; None where there is none but echo."""
    end: float | None = None
    echo: str = ""
    echo_delay: float = 0.0
    said: str = ""
    agent_onset: float = 0.0
    """Where the agent's first sound comes."""


class _Span(msgspec.Struct):
    start: float
    end: float


class _TurnRow(msgspec.Struct):
    """As it stands in the file, before what belongs together is checked."""

    file: str
    end: float | None = None
    pauses: list[tuple[float, float]] | None = None
    silence_spans: list[_Span] | None = None
    call: str = ""


def read_turns(path: Path) -> list[Turn]:
    """The turns of a manifest, in order. Raises ManifestError."""
    return [_turn(row, path, line) for line, row in _rows(path, _TurnRow)]


def read_overlaps(path: Path) -> list[Overlap]:
    """The overlaps of a manifest, in order. Raises ManifestError."""
    rows = _rows(path, Overlap)
    for line, row in rows:
        if row.barge_in and row.onset is None:
            raise ManifestError(f"{path}, line {line}: a barge-in needs its onset")
        if row.onset is not None and not 0 <= row.onset < (row.onset + 1 if row.end is None else row.end):
            raise ManifestError(f"{path}, line {line}: the onset is not before the end, or negative")
        if not 0 <= row.agent_onset <= (math.inf if row.onset is None else row.onset):
            raise ManifestError(f"{path}, line {line}: agent_onset is negative, or behind the onset")
        if not 0 <= row.echo_delay <= 1:
            raise ManifestError(f"{path}, line {line}: echo_delay is 0 to 1 seconds, not {row.echo_delay}")
    return [row for _, row in rows]


Row = TypeVar("Row")


def _rows(path: Path, kind: type[Row]) -> list[tuple[int, Row]]:
    try:
        lines = path.read_bytes().splitlines()
    except OSError as error:
        raise ManifestError(f"{path} cannot be read: {error.strerror}") from None
    rows = []
    for line, text in enumerate(lines, 1):
        if not text.strip():
            continue
        try:
            rows.append((line, msgspec.json.decode(text, type=kind)))
        except (msgspec.DecodeError, UnicodeDecodeError) as error:
            raise ManifestError(f"{path}, line {line}: {error}") from None
        if len(rows) > MAX_ROWS:
            raise ManifestError(f"{path} has more than {MAX_ROWS} rows: split it")
    if not rows:
        raise ManifestError(f"{path} has no rows")
    return rows


def _turn(row: _TurnRow, path: Path, line: int) -> Turn:
    if row.silence_spans:
        spans: list[Any] = [(span.start, span.end) for span in row.silence_spans]
        pauses, end = spans[:-1], spans[-1][0]
    elif row.end is not None:
        pauses, end = list(row.pauses or ()), row.end
    else:
        raise ManifestError(f"{path}, line {line}: a turn needs its end (or silence_spans)")
    before = 0.0
    for start, stop in pauses:
        if not before <= start < stop:
            raise ManifestError(f"{path}, line {line}: the pause from {start} to {stop} is out of order")
        before = stop
    if not before <= end:
        raise ManifestError(f"{path}, line {line}: the end, {end}, is before the last pause is over")
    return Turn(row.file, end, tuple(pauses), row.call)
