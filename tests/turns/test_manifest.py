from __future__ import annotations

from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from voicegate.turns.manifest import ManifestError, read_overlaps, read_turns


def written(folder: Path, text: str) -> Path:
    path = folder / "rows.jsonl"
    path.write_text(text)
    return path


def test_a_turn_and_a_blank_line(tmp_path: Path) -> None:
    path = written(
        tmp_path, '{"file": "a.wav", "pauses": [[1.2, 1.9]], "end": 4.31, "call": "7", "x": 1}\n\n'
    )
    (turn,) = read_turns(path)
    assert (turn.file, turn.pauses, turn.end, turn.call) == ("a.wav", ((1.2, 1.9),), 4.31, "7")


def test_the_silences_of_eot_bench(tmp_path: Path) -> None:
    spans = '[{"start": 1.2, "end": 1.9}, {"start": 4.31, "end": 6.0}]'
    (turn,) = read_turns(written(tmp_path, f'{{"file": "a.wav", "silence_spans": {spans}}}'))
    assert turn.pauses == ((1.2, 1.9),)
    assert turn.end == 4.31


@pytest.mark.parametrize(
    ("row", "problem"),
    [
        ("{", "line 2: Input data was truncated"),
        ('{"end": 1.0}', "line 2: Object missing required field `file`"),
        ('{"file": "a.wav"}', "line 2: a turn needs its end (or silence_spans)"),
        ('{"file": "a.wav", "end": "soon"}', "line 2: Expected `float | null`, got `str`"),
        ('{"file": "a.wav", "end": 3, "pauses": [[2, 1]]}', "the pause from 2.0 to 1.0 is out of order"),
        ('{"file": "a.wav", "end": 3, "pauses": [[2, 4]]}', "line 2: the end, 3.0, is before the last pause"),
    ],
)
def test_what_is_wrong_with_a_turn_names_the_line(tmp_path: Path, row: str, problem: str) -> None:
    path = written(tmp_path, '{"file": "good.wav", "end": 1.0}\n' + row)
    with pytest.raises(ManifestError) as error:
        read_turns(path)
    assert problem in str(error.value)
    assert str(path) in str(error.value)


def test_a_manifest_that_is_not_there_or_empty(tmp_path: Path) -> None:
    with pytest.raises(ManifestError, match="cannot be read: No such file"):
        read_turns(tmp_path / "none.jsonl")
    with pytest.raises(ManifestError, match="has no rows"):
        read_overlaps(written(tmp_path, "\n"))


@pytest.mark.parametrize(
    ("fields", "problem"),
    [
        ('"barge_in": true', "a barge-in needs its onset"),
        ('"barge_in": false, "onset": 2, "end": 1', "the onset is not before the end"),
        ('"barge_in": false, "onset": -1', "the onset is not before the end, or negative"),
        ('"barge_in": false, "agent_onset": -1', "agent_onset is negative, or behind the onset"),
        ('"barge_in": true, "onset": 1, "agent_onset": 2', "agent_onset is negative, or behind the onset"),
        ('"barge_in": false, "echo": "e.wav", "echo_delay": 2', "echo_delay is 0 to 1 seconds, not 2.0"),
        ('"kind": 3, "barge_in": false', "Expected `str`, got `int`"),
    ],
)
def test_what_is_wrong_with_an_overlap(tmp_path: Path, fields: str, problem: str) -> None:
    row = '{"file": "a.wav", "agent": "b.wav", "kind": "cough", ' + fields + "}"
    with pytest.raises(ManifestError, match="line 1: ") as error:
        read_overlaps(written(tmp_path, row))
    assert problem in str(error.value)


@given(st.binary(max_size=200))
def test_any_bytes_are_rows_or_a_sentence(tmp_path_factory: pytest.TempPathFactory, data: bytes) -> None:
    path = tmp_path_factory.getbasetemp() / "any.jsonl"
    path.write_bytes(data)
    for read in (read_turns, read_overlaps):
        try:
            read(path)
        except ManifestError:
            pass
