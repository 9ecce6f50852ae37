"""What people do while the agent speaks: manifest rows and WAV files of the labelled set's other part.

`file` is the microphone without the agent's echo; `echo` is what the loudspeaker would bring of `agent` to
the microphone, sample by sample beside it, to be mixed in `echo_delay` later as far as it was really played.
The person has said something before, which the agent answers: it begins at `agent_onset`.
"""

from __future__ import annotations

import re
from collections.abc import Callable
from pathlib import Path
from typing import Any, Final

import numpy as np

from tests.support.speech import Sound, at_level, silence, write_wav
from tests.turns.espeak import RATE, Speaker, say
from tests.turns.scripts import AGENT, BACKCHANNELS, SHORT_INTERRUPTIONS, TURNS, Half, Language
from tests.turns.sounds import Beds, cough, draw_place, in_place, keys, through_loudspeaker
from tests.turns.voices import agent, draw_tone, phrase

EACH: Final = 60
"""Overlaps of each kind in a half."""
AGENT_LEVEL: Final = 0.1
ECHO_DECIBELS: Final = -20.0
_PHONEMES: Final = {"mm hm": "[[mh'm]]", "mhm": "[[mh'm]]", "mh": "[[hm]]"}
"""What espeak-ng would spell, letter by letter. A mark behind phonemes comes late, so these are never cut off
in the middle of a sentence, as a plateau is."""
_ECHOES: Final = 4
"""Rooms for each thing the agent says."""


def make_overlaps(
    half: Half, folder: Path, people: list[Speaker], beds: Beds, rng: np.random.Generator
) -> list[dict[str, Any]]:
    """Write `EACH` overlaps of every kind; the manifest rows."""
    answers = _write_answers(half, folder, rng)
    rows = []
    for kind, (barge_in, gain, make) in _KINDS.items():
        for number in range(EACH):
            speaker = people[int(rng.integers(len(people)))]
            sound, said = make(half, speaker, rng)
            sound *= 10 ** (gain(rng) / 20)
            before = _before(half, speaker, rng)
            agent_onset = len(before) / RATE
            onset = agent_onset + float(rng.uniform(0.5, 3.5))
            dry = np.concatenate(
                [
                    before,
                    silence(onset - agent_onset, RATE),
                    sound,
                    silence(float(rng.uniform(2.6, 3.2)), RATE),
                ]
            )
            name = f"{kind.replace(' ', '-')}-{number:02}.wav"
            place = draw_place(rng)
            write_wav(folder / name, in_place(dry, place, beds, rng), RATE)
            answer, echoes = answers[int(rng.integers(len(answers)))]
            row = {"file": name, "agent": answer, "kind": kind, "barge_in": barge_in, "said": said}
            row |= {"agent_onset": round(agent_onset, 3), "voice": speaker.voice}
            row |= {"noise": f"{place.noise} {place.snr:.0f} dB", "opus": place.opus}
            if len(sound):
                row |= {"onset": round(onset, 3), "end": round(onset + len(sound) / RATE, 3)}
            if kind == "echo" or rng.random() < 0.5:
                row |= {
                    "echo": str(rng.choice(echoes)),
                    "echo_delay": round(float(rng.uniform(0.02, 0.2)), 3),
                }
            rows.append(row)
    return rows


def _write_answers(half: Half, folder: Path, rng: np.random.Generator) -> list[tuple[str, list[str]]]:
    """The agent's answers and their echoes: 15 s or more, longer than any overlap."""
    answers = []
    for number, text in enumerate(AGENT[half]):
        sound = at_level(say(f"{text} {AGENT[half][number - 1]}", agent(half)), AGENT_LEVEL)
        name = f"agent-{number}.wav"
        write_wav(folder / name, sound, RATE)
        echoes = []
        for room in range(_ECHOES):
            echo = through_loudspeaker(sound, rng) * 10 ** (ECHO_DECIBELS / 20)
            write_wav(folder / f"echo-{number}-{room}.wav", echo, RATE)
            echoes.append(f"echo-{number}-{room}.wav")
        answers.append((name, echoes))
    return answers


def _language(speaker: Speaker) -> Language:
    return "de" if speaker.language == "de" else "en"


def _before(half: Half, speaker: Speaker, rng: np.random.Generator) -> Sound:
    """A turn of the person, and the time until it is answered."""
    sound, _ = _long(half, speaker, rng)
    return np.concatenate([silence(0.4, RATE), sound, silence(float(rng.uniform(0.5, 1.2)), RATE)])


def _backchannel(half: Half, speaker: Speaker, rng: np.random.Generator) -> tuple[Sound, str]:
    said = str(rng.choice(BACKCHANNELS[half][_language(speaker)]))
    tone = draw_tone("backchannel", rng)
    if said in _PHONEMES and tone == "plateau":
        tone = "low rise"
    return phrase(_PHONEMES.get(said, said), tone, "", speaker, rng, final=False), said


def _cough(_half: Half, _speaker: Speaker, rng: np.random.Generator) -> tuple[Sound, str]:
    return cough(rng), ""


def _keys(_half: Half, _speaker: Speaker, rng: np.random.Generator) -> tuple[Sound, str]:
    return keys(rng), ""


def _nothing(_half: Half, _speaker: Speaker, _rng: np.random.Generator) -> tuple[Sound, str]:
    return silence(0.0, RATE), ""


def _short(half: Half, speaker: Speaker, rng: np.random.Generator) -> tuple[Sound, str]:
    said = str(rng.choice(SHORT_INTERRUPTIONS[half][_language(speaker)]))
    return phrase(said, draw_tone("end", rng), "", speaker, rng, final=False), said


def _long(half: Half, speaker: Speaker, rng: np.random.Generator) -> tuple[Sound, str]:
    scripts = TURNS[half][_language(speaker)]
    said = str(rng.choice(scripts[str(rng.choice(["statement", "clause", "question"]))]))
    said = re.sub(r" [|/]|\?", "", said)
    return phrase(said, draw_tone("end", rng), "", speaker, rng, final=False), said


Make = Callable[[Half, Speaker, np.random.Generator], tuple[Sound, str]]
Gain = Callable[[np.random.Generator], float]


def _even(low: float, high: float) -> Gain:
    return lambda rng: float(rng.uniform(low, high))


def _about(mean: float) -> Gain:
    return lambda rng: float(rng.normal(mean, _SPREAD))


_SPREAD: Final = 3.5
"""dB. Who competes for the turn speaks louder (French and Local 1983; Kurtic et al. 2013), a backchannel is a
little softer than other speech; the two differ by so much from one to the next that who went by the level
alone, and knew the speaker's own, would be right three times in four."""
_KINDS: Final[dict[str, tuple[bool, Gain, Make]]] = {
    "backchannel": (False, _about(-2.0), _backchannel),
    "cough": (False, _even(-6.0, 6.0), _cough),
    "keys": (False, _even(-12.0, 0.0), _keys),
    "echo": (False, _even(0.0, 0.0), _nothing),
    "short barge-in": (True, _about(3.0), _short),
    "long barge-in": (True, _about(3.0), _long),
}
"""Whether it is meant to interrupt, decibels beside the usual voice, and how it is made."""
