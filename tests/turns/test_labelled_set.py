"""The labelled set itself: what its figures would be worth nothing without."""

from __future__ import annotations

import json
import re
from collections import Counter
from functools import cache
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from tests.support.speech import Sound, read_wav
from tests.turns.espeak import RATE, engine
from tests.turns.labelled import HALVES, MANNERS, labelled_set
from tests.turns.oracle import Oracle
from tests.turns.scripts import AGENT, BACKCHANNELS, SHORT_INTERRUPTIONS, TURNS, TURNS_ALONE, Half, Texts
from tests.turns.turn_rows import DRAWN
from tests.turns.voices import OVERLAP_VOICES, TONES, TURN_VOICES, agent, variants
from voicegate.media.turns.activity import WebrtcActivity
from voicegate.turns.manifest import read_overlaps, read_turns
from voicegate.turns.sound import read_frames

pytestmark = pytest.mark.e2e
both_halves = pytest.mark.parametrize("half", HALVES)
all_turns = pytest.mark.parametrize(
    ("half", "manner"), [(half, manner.name) for half in HALVES for manner in MANNERS]
)


def test_the_halves_share_no_sentence_and_no_voice() -> None:
    assert not _sentences("tune", TURNS_ALONE) & _sentences("held", TURNS_ALONE)
    assert not _sentences("tune", TURNS) & _sentences("held", TURNS)
    for voices in (TURN_VOICES, OVERLAP_VOICES):
        assert not variants("tune", voices) & variants("held", voices)
    for manner in MANNERS:
        assert not _texts("tune", manner.name) & _texts("held", manner.name)


@both_halves
def test_every_voice_can_say_every_tone(half: Half) -> None:
    """An `intonation` of 3 does not rise at a comma, 2 moves little; and a pitch of which the second number
    is not the higher moves the other way."""
    for name in variants(half, TURN_VOICES) - {agent(half).voice.split("+")[1]}:
        settings = (engine().data() / "voices" / "!v" / name).read_text(errors="replace")
        pitch = re.search(r"^pitch\s+(\d+)\s+(\d+)", settings, re.MULTILINE)
        assert pitch is None or int(pitch[2]) > 1.2 * int(pitch[1]), name
        assert not re.search(r"^intonation\s+(?!1\b)", settings, re.MULTILINE), name


@both_halves
def test_there_are_enough_of_each(half: Half) -> None:
    folder = labelled_set()[half]
    for manner in MANNERS:
        assert len(read_turns(folder / f"{manner.name}.jsonl")) >= 300
        assert {row["language"] for row in _rows(half, manner.name)} == {"en", "de"}
    kinds = Counter(overlap.kind for overlap in read_overlaps(folder / "overlaps.jsonl"))
    assert len(kinds) == 6
    assert min(kinds.values()) >= 60


@both_halves
def test_turns_are_of_all_lengths(half: Half) -> None:
    """As people's: a judge that goes by how long a turn has lasted gets from it what it would get there."""
    lengths = np.array([row["end"] - row["begin"] for row in _rows(half)])
    assert np.std(np.log(lengths)) == pytest.approx(0.9, abs=0.1)
    assert np.median(lengths) == pytest.approx(4.0, abs=0.8)
    words = np.array([len(re.findall(r"[^ |/]+", row["text"])) for row in _rows(half)])
    assert np.mean(words <= 2) == pytest.approx(1 / 8, abs=0.05)
    after_sentences = sum(row["text"].count("/") for row in _rows(half))
    assert after_sentences / sum(len(row["pauses"]) for row in _rows(half)) == pytest.approx(0.45, abs=0.1)


@both_halves
def test_silence_alone_does_as_badly_as_on_human_turns(half: Half) -> None:
    """eot-bench, English: 56 % at 300 ms, 22 % at 600 ms, 10 % at 1 s. A judge has as much to gain here."""
    longest = np.array([max((b - a for a, b in row["pauses"]), default=0.0) for row in _rows(half)])
    assert np.mean(longest > 0.3) == pytest.approx(0.56, abs=0.12)
    assert np.mean(longest > 0.6) == pytest.approx(0.22, abs=0.12)
    assert np.mean(longest > 1.0) == pytest.approx(0.10, abs=0.06)


@both_halves
def test_no_tone_gives_the_answer_away(half: Half) -> None:
    """Each of the tones that espeak-ng has stands before pauses and before ends."""
    before_pause = Counter(tone for row in _rows(half) for tone in row["tones"][:-1])
    before_end = Counter(row["tones"][-1] for row in _rows(half))
    assert before_pause["fall"] / before_pause.total() > 0.08
    assert (before_end["low rise"] + before_end["plateau"]) / before_end.total() > 0.15
    for shares in TONES.values():
        assert sum(shares.values()) == pytest.approx(1.0)


@all_turns
def test_the_labels_are_where_the_voice_stops_and_goes_on(half: Half, manner: str) -> None:
    """In quiet places, to hear them exactly: 50 ms on both sides of every label."""
    steps = []
    for row in _rows(half, manner):
        if not row["noise"].startswith("room"):
            continue
        sound = _sound(labelled_set()[half] / row["file"])
        for begin, end in row["pauses"]:
            steps += [_level(sound, begin - 0.05, begin) - _level(sound, end - 0.05, end)]
            steps += [_level(sound, end, end + 0.05) - _level(sound, end - 0.05, end)]
        steps.append(
            _level(sound, row["end"] - 0.05, row["end"]) - _level(sound, row["end"] + 0.3, row["end"] + 0.4)
        )
    assert np.quantile(steps, 0.02) > 3
    assert np.median(steps) > 15


@all_turns
def test_voice_activity_hears_the_pauses_as_silence(half: Half, manner: str) -> None:
    """Else the waits would be those of the voice activity. A pause of 0.1 s in a room that is heard is half
    echo."""
    voiced: dict[str, list[float]] = {}
    for row in _rows(half, manner):
        activity = WebrtcActivity()
        heard = [activity.push(frame).voiced for frame in read_frames(labelled_set()[half] / row["file"])]
        for begin, end in [*row["pauses"], [row["end"], row["end"] + 2.0]]:
            inside = heard[round(begin / 0.02) + 1 : round(end / 0.02)]
            voiced.setdefault(row["noise"].split()[0], []).append(float(np.mean(inside)))
    assert np.mean(voiced["room"]) < 0.1
    assert np.mean(voiced["pink"]) < 0.08
    assert np.mean(voiced["babble"]) < 0.15


@all_turns
def test_nothing_but_the_voice_tells_an_end_from_a_pause(half: Half, manner: str) -> None:
    """No digital silence, no length that repeats, the same noise within pauses and behind the end."""
    lengths, tails, differences = [], [], []
    for row in _rows(half, manner):
        sound = _sound(labelled_set()[half] / row["file"])
        whole = sound[: len(sound) // 480 * 480].reshape(-1, 480)
        assert np.all(np.ptp(whole, axis=1) > 0), f"{row['file']} has digital silence"
        lengths += [round(end - begin, 2) for begin, end in row["pauses"]]
        tails.append(round(len(sound) / RATE - row["end"], 2))
        for begin, end in row["pauses"]:
            if end - begin > 0.4 and row["noise"].startswith("pink"):
                behind = _level(sound, row["end"] + 0.3, row["end"] + 1.3)
                differences.append(_level(sound, begin + 0.3, end) - behind)
    assert Counter(lengths).most_common(1)[0][1] < 0.08 * len(lengths)
    assert Counter(tails).most_common(1)[0][1] < 0.08 * len(tails)
    assert abs(np.median(differences)) < 1.0


@both_halves
def test_how_much_the_tones_alone_could_tell(half: Half) -> None:
    """Not half of silence's cut-ins, nor 0.6 of its wait: every other pause comes after a complete sentence,
    and sounds like an end as often as people's pauses do."""
    oracle = Oracle(_rows(half))
    assert 0.55 < oracle.cut_ins_at(0.3) / oracle.silence_cut_ins_at(0.3) < 0.85
    assert 0.65 < oracle.wait_at(0.05) / oracle.silence_at(0.05) < 0.95


def _sentences(half: Half, turns: dict[Half, Texts]) -> set[str]:
    said = {text for language in turns[half].values() for texts in language.values() for text in texts}
    for overlaps in (BACKCHANNELS[half], SHORT_INTERRUPTIONS[half]):
        said |= {text for texts in overlaps.values() for text in texts}
    return {*said, *AGENT[half]}


@cache
def _rows(half: Half, manner: str = DRAWN.name) -> list[dict[str, Any]]:
    lines = (labelled_set()[half] / f"{manner}.jsonl").read_text().splitlines()
    return [json.loads(line) for line in lines]


def _texts(half: Half, manner: str) -> set[str]:
    return {row["text"] for row in _rows(half, manner)}


def _sound(path: Path) -> Sound:
    sound, rate = read_wav(path)
    assert rate == RATE
    return sound


def _level(sound: Sound, begin: float, end: float) -> float:
    """Decibels."""
    part = sound[round(begin * RATE) : round(end * RATE)].astype(np.float64)
    return float(10 * np.log10(np.mean(part**2) + 1e-12))
