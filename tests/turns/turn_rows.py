"""The turns of the labelled set: WAV files and one manifest row a turn.

They come in two manners. *Drawn*: tones are drawn as people use them (see `tests.turns.voices`), and there
may be more sentences before the last. *Written*: what espeak-ng makes of the text as it would be written, so
that every pause within a turn sounds like one.

Pauses are log-normal, longer after fillers, with a scale of each speaker's own. The median (0.21 s) and the
deviation (0.87 in the logarithm) are chosen so that silence alone does on this set about what it does on the
human turns of eot-bench: 56 % of the turns have a pause over 0.3 s, 22 % one over 0.6 s, 10 % one over 1 s.
They lie within the medium (0.2 to 1 s) and long pauses of Campione and Veronis (2002), who found the
logarithm of silent pauses to be normal within each class in five languages.
"""

from __future__ import annotations

import re
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Final, NamedTuple

import numpy as np

from tests.support.speech import Sound, silence, write_wav
from tests.turns.espeak import RATE, Speaker
from tests.turns.scripts import (
    DIGITS,
    DRAWN_COUNTS,
    DRAWN_LEADS,
    LEADS,
    TURNS_ALONE,
    WRITTEN_COUNTS,
    WRITTEN_LEADS,
    Half,
    Language,
)
from tests.turns.sounds import Beds, draw_place, in_place
from tests.turns.voices import draw_tone, phrase, written

CALLS: Final = 40
TURNS_A_CALL: Final = 8
_MEDIAN: Final = 0.21
_SPEAKER_DEVIATION: Final = 0.3
"""Pauses differ more between speakers than between dialogues of one (Lundholm Fors 2015)."""
_DEVIATION: Final = 0.82
"""Within a speaker; with the speakers' own: 0.87."""
_SHORTEST, _LONGEST = 0.1, 2.0
_FACTORS: Final = {
    "filler": 1.3,
    "drawn": 1.2,
    "broken off": 0.7,
    "digits": 0.9,
    "list": 0.85,
    "complete": 1.1,
}
"""Pauses after fillers are longer (Clark and Fox Tree 2002), before a restart shorter (Levelt 1983)."""


@dataclass(slots=True)
class _Turn:
    """A turn as it grows. Places are samples of `sound`."""

    parts: list[Sound]
    pauses: list[tuple[int, int]]
    tones: list[str]
    begin: int = 0
    """Of the first voice."""

    @property
    def length(self) -> int:
        return sum(map(len, self.parts))

    def wait(self, seconds: float) -> None:
        self.parts.append(silence(seconds, RATE))


class Manner(NamedTuple):
    """How turns are said."""

    name: str
    counts: dict[str, int]
    """Turns of each kind."""
    leads: tuple[float, ...]
    """How often none, one ... sentences are said before."""
    say: Callable[[_Turn, str, str, str, Speaker, np.random.Generator], str]
    """What stands between two pauses; returns what caused the pause after it, if that can be heard."""


def make_turns(
    half: Half, manner: Manner, folder: Path, people: list[Speaker], beds: Beds, rng: np.random.Generator
) -> list[dict[str, Any]]:
    """Write `CALLS` calls of `TURNS_A_CALL` turns; the manifest rows, in order."""
    rows = []
    kinds = iter(rng.permutation(np.repeat(list(manner.counts), list(manner.counts.values()))).tolist())
    for call in range(CALLS):
        speaker = people[call % len(people)]
        pace = float(np.exp(rng.normal(0, _SPEAKER_DEVIATION)))
        place = draw_place(rng)
        for turn in range(TURNS_A_CALL):
            kind = next(kinds)
            script = _script(half, manner, speaker, kind, rng)
            made = _speak(script, manner, kind, speaker, pace, rng)
            heard = in_place(np.concatenate(made.parts), place, beds, rng)
            name = f"{manner.name}-{call:02}-{turn}.wav"
            write_wav(folder / name, heard, RATE)
            *pauses, last = made.pauses
            rows.append(
                {
                    "file": name,
                    "call": f"{half}-{call:02}",
                    "language": speaker.language,
                    "kind": kind,
                    "text": script,
                    "begin": round(made.begin / RATE, 3),
                    "pauses": [[round(begin / RATE, 3), round(end / RATE, 3)] for begin, end in pauses],
                    "end": round(last[0] / RATE, 3),
                    "tones": made.tones,
                    "noise": f"{place.noise} {place.snr:.0f} dB",
                    "opus": place.opus,
                }
            )
    return rows


def _script(half: Half, manner: Manner, speaker: Speaker, kind: str, rng: np.random.Generator) -> str:
    language: Language = "de" if speaker.language == "de" else "en"
    texts = TURNS_ALONE[half][language]
    leads = 0 if kind == "short" else int(rng.choice(len(manner.leads), p=manner.leads))
    said = [str(rng.choice(texts[str(rng.choice(LEADS))])) for _ in range(leads)]
    script = " / ".join([*said, str(rng.choice(texts[kind]))])

    def group(_: re.Match[str]) -> str:
        return " ".join(rng.choice(DIGITS[language], int(rng.integers(2, 5))))

    return re.sub("#", group, script)


def _speak(
    script: str, manner: Manner, kind: str, speaker: Speaker, pace: float, rng: np.random.Generator
) -> _Turn:
    question = script.endswith("?")
    pieces = re.split(r"\s*([|/])\s*", script.rstrip("?"))
    turn = _Turn([], [], [])
    turn.wait(rng.uniform(0.3, 1.2))
    turn.begin = turn.length
    for place in range(0, len(pieces), 2):
        mark = pieces[place + 1] if place + 1 < len(pieces) else ""
        following = pieces[place + 2].replace("~", "").replace("-", "") if mark else ""
        where = {"|": "incomplete", "/": "complete"}.get(mark, "question" if question else "end")
        cause = manner.say(turn, pieces[place], where, re.sub(r"\{|\}", "", following), speaker, rng)
        if mark:
            usual = "complete" if mark == "/" else kind
            begin = turn.length
            turn.wait(_pause(pace * _FACTORS.get(cause, _FACTORS.get(usual, 1.0)), rng))
            turn.pauses.append((begin, turn.length))
    end = turn.length
    turn.wait(rng.uniform(2.4, 3.4))
    turn.pauses.append((end, turn.length))
    return turn


def _say_drawn(
    turn: _Turn, piece: str, where: str, following: str, speaker: Speaker, rng: np.random.Generator
) -> str:
    tone = draw_tone(where, rng)
    final = where in ("end", "question")
    words, _, filler = piece.partition("{")
    gain = 10 ** (rng.uniform(-1.5, 1.5) / 20)
    if filler:
        filler = "{" + filler
        if words:
            turn.parts.append(
                gain * phrase(words.strip(), "none", filler.strip("{}"), speaker, rng, final=False)
            )
            turn.wait(rng.uniform(0.03, 0.09))
        turn.parts.append(gain * phrase(filler, "", following, speaker, rng, final=False))
        turn.tones.append("filler")
        return "filler"
    turn.parts.append(gain * phrase(words, tone, following, speaker, rng, final=final))
    cause = {"~": "drawn", "-": "broken off"}.get(words[-1], "")
    turn.tones.append(cause or tone)
    return cause


def _say_written(
    turn: _Turn, piece: str, where: str, following: str, speaker: Speaker, rng: np.random.Generator
) -> str:
    cause = "filler" if "{" in piece else "drawn" if piece.endswith("~") else ""
    hesitating = str(rng.choice([",", "..."])) if cause else ","
    mark = {"end": ".", "question": "?"}.get(where, hesitating)
    turn.parts.append(
        10 ** (rng.uniform(-1.5, 1.5) / 20) * written(re.sub(r"[{}~]", "", piece), mark, speaker)
    )
    turn.tones.append(mark)
    return cause


def _pause(scale: float, rng: np.random.Generator) -> float:
    while True:
        seconds = _MEDIAN * scale * float(np.exp(rng.normal(0, _DEVIATION)))
        if _SHORTEST <= seconds <= _LONGEST:
            return seconds


DRAWN: Final = Manner("drawn", DRAWN_COUNTS, DRAWN_LEADS, _say_drawn)
WRITTEN: Final = Manner("written", WRITTEN_COUNTS, WRITTEN_LEADS, _say_written)
