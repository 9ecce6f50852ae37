"""The command line: what it prints, what it writes, and what it says of what it cannot use."""

from __future__ import annotations

import json
from pathlib import Path
from xml.etree import ElementTree

import numpy as np
import pytest

from tests.support.speech import conversation, say, write_wav
from voicegate.cli import main

RATE = 24_000


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A turn with a pause of 0.8 s, and an agent's sound with a sentence said over it."""
    folder = tmp_path_factory.mktemp("labelled")
    voice = say(rate=RATE)
    seconds = len(voice) / RATE
    rng = np.random.default_rng(1)

    def heard(*parts: object) -> np.ndarray:
        sound = conversation(*parts, rate=RATE)  # type: ignore[arg-type]
        return sound + rng.normal(0, 0.0005, len(sound)).astype(np.float32)

    write_wav(folder / "turn.wav", heard(0.5, voice, 0.8, voice, 3.0), RATE)
    write_wav(folder / "over.wav", heard(1.0, voice, 1.0), RATE)
    write_wav(folder / "agent.wav", 0.1 * np.ones(10 * RATE, np.float32), RATE)
    pause = [0.5 + seconds, 1.3 + seconds]
    turn = {"file": "turn.wav", "pauses": [pause], "end": 1.3 + 2 * seconds}
    over = {"file": "over.wav", "agent": "agent.wav", "kind": "long", "barge_in": True, "onset": 1.0}
    (folder / "turns.jsonl").write_text(json.dumps(turn) + "\n")
    (folder / "overlaps.jsonl").write_text(json.dumps(over) + "\n")
    return folder


def test_two_judges_side_by_side(folder: Path, capsys: pytest.CaptureFixture[str]) -> None:
    arguments = ["turns", "eval", str(folder / "turns.jsonl"), "--json", str(folder / "found.json")]
    assert main([*arguments, "--plot", str(folder / "plot.svg")]) == 0
    printed = capsys.readouterr().out.splitlines()
    assert printed[0].startswith("1 turns with 1 pauses")
    assert [line.split()[0] for line in printed[1:]] == ["judge", "fixed", "adaptive"]
    found = json.loads((folder / "found.json").read_text())
    assert found["fixed"]["default"]["cut_ins"] == 1.0  # half a second into a pause of 0.8 s
    assert found["fixed"]["default"]["mean_wait"] == pytest.approx(0.5, abs=0.1)
    assert found["fixed"]["wait_at_5_percent"] == pytest.approx(0.8, abs=0.15)
    root = ElementTree.fromstring((folder / "plot.svg").read_text())
    lines = root.findall("{http://www.w3.org/2000/svg}polyline")
    assert len(lines) == 2
    names = [text.text for text in root.findall("{http://www.w3.org/2000/svg}text")]
    assert {"fixed", "adaptive"} <= set(names)


def test_silence_that_is_long_enough_cuts_nothing(folder: Path, capsys: pytest.CaptureFixture[str]) -> None:
    arguments = ["turns", "eval", str(folder / "turns.jsonl"), "--judge", "fixed", "--silence", "1000"]
    assert main([*arguments, "--json", "-"]) == 0
    found = json.loads(capsys.readouterr().out.split("\n", 3)[3])
    assert found["fixed"]["default"]["cut_ins"] == 0.0
    assert found["fixed"]["default"]["mean_wait"] == pytest.approx(1.0, abs=0.1)


def test_an_overlap(folder: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["turns", "eval", str(folder / "overlaps.jsonl"), "--overlaps", "--json", "-"]) == 0
    printed = capsys.readouterr().out
    assert "Missed barge-ins: 0.0 %." in printed
    found = json.loads(printed[printed.index("{") :])
    assert found["long"]["stopped"] == 1.0
    assert 0 < found["long"]["pause"][1] < found["long"]["stop"][1] < 1.5


@pytest.mark.parametrize(
    ("arguments", "problem"),
    [
        (["none.jsonl"], "none.jsonl cannot be read: No such file or directory"),
        (["overlaps.jsonl"], "overlaps.jsonl, line 1: a turn needs its end"),
        (["turns.jsonl", "--overlaps"], "turns.jsonl, line 1: Object missing required field `agent`"),
        (["turns.jsonl", "--judge", "oracle"], "There is no turn judge 'oracle' here"),
        (["turns.jsonl", "--judge", "smart-turn"], "the path of its ONNX file"),
        (["turns.jsonl", "--judge", "fixed", "--plot", "none/plot.svg"], "none/plot.svg cannot be written"),
    ],
)
def test_what_cannot_be_used_is_one_sentence(
    folder: Path, capsys: pytest.CaptureFixture[str], arguments: list[str], problem: str
) -> None:
    arguments[0] = str(folder / arguments[0])
    assert main(["turns", "eval", *arguments]) == 2
    said = capsys.readouterr().err
    assert said.startswith("voicegate turns: ")
    assert problem in said
    assert said.count("\n") == 1


def test_a_recording_that_is_too_short_or_missing(folder: Path, capsys: pytest.CaptureFixture[str]) -> None:
    manifest = folder / "bad.jsonl"
    manifest.write_text('{"file": "turn.wav", "end": 1000}\n')
    assert main(["turns", "eval", str(manifest)]) == 2
    assert "turn.wav is over before the turn's end at 1000.0 s" in capsys.readouterr().err
    manifest.write_text('{"file": "gone.wav", "end": 1}\n')
    assert main(["turns", "eval", str(manifest)]) == 2
    assert "gone.wav cannot be read: No such file or directory" in capsys.readouterr().err
