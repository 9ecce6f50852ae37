"""How a voice ends: the tones before pauses and ends, as people use them, and who speaks.

The tones are drawn, not always the ones that give the answer away. Gravano and Hirschberg (2011, table of
phrase accents and boundary tones in the Columbia Games Corpus) count before a change of speaker: falling 47
%, high rise 22 %, low rise 14 %, plateau 13 %, none 1 %; and before a pause after which the same speaker goes
on: falling 25 %, high rise 9 %, low rise 12 %, plateau 30 %, none 22 %. `TONES` splits these by what the
script knows (whether the sentence is complete, whether it is a question), so that the sums come near the
table. Backchannels rise: 69 % of them end high in Dutch map tasks (Caspers 2000), and in American English
their pitch has a greater slope than that of the same words when they answer something (Benus et al. 2007).
"""

from __future__ import annotations

from typing import Final

import numpy as np

from tests.support.speech import Sound, at_level
from tests.turns.espeak import RATE, Speaker, say, say_until
from tests.turns.scripts import FOLLOWING, Half, Language

TONES: Final[dict[str, dict[str, float]]] = {
    "incomplete": {"fall": 0.08, "high rise": 0.04, "low rise": 0.28, "plateau": 0.35, "none": 0.25},
    "complete": {"fall": 0.47, "high rise": 0.13, "low rise": 0.15, "plateau": 0.25},
    "end": {"fall": 0.60, "high rise": 0.08, "low rise": 0.16, "plateau": 0.16},
    "question": {"fall": 0.30, "high rise": 0.70},
    "backchannel": {"fall": 0.20, "high rise": 0.25, "low rise": 0.45, "plateau": 0.10},
}
_PUNCTUATION: Final = {"fall": ".", "high rise": "?", "low rise": ","}
_FADE: Final = {"end": -3.0, "pause": -0.5}
"""Mean gain in decibels over the last 0.3 s; the deviation is 2: ends are lower in level (the same paper)."""

Voices = dict[Language, tuple[str, ...]]
OVERLAP_VOICES: Final[dict[Half, Voices]] = {
    "tune": {
        "en": ("en-us+m1", "en-gb-x-rp+f1", "en-us+Andy", "en-gb-x-rp+m3", "en-us+f3", "en-us+linda"),
        "de": ("de+m5", "de+f5"),
    },
    "held": {
        "en": ("en+m2", "en-gb-scotland+f2", "en+michael", "en-gb-scotland+m4", "en+f4", "en+steph"),
        "de": ("de+m7", "de+anika"),
    },
}
TURN_VOICES: Final[dict[Half, Voices]] = {
    "tune": {
        "en": (
            *("en-us+m1", "en-gb-x-rp+f1", "en-us+Andy", "en-gb-x-rp+m3", "en-us+f3", "en-us+linda"),
            *("en+m2", "en-gb-scotland+f2", "en-gb-scotland+m4", "en+f4", "en+steph", "en+Michael"),
            *("en-gb-x-rp+Henrique", "en-us+caleb", "en-gb-x-gbclan+Gene", "en-us+quincy"),
        ),
        "de": ("de+m7", "de+f5", "de+benjamin", "de+shelby"),
    },
    "held": {
        "en": ("en-us-nyc+adam", "en-gb-x-gbclan+belinda", "en-gb-x-gbclan+david", "en-029+victor"),
        "de": ("de+boris", "de+Annie"),
    },
}
"""Who speaks while the agent is silent: see `tests.turns.scripts.TURNS_ALONE`. All of them can say every
tone: some variants of espeak-ng have an intonation of their own in which a comma sounds like a full stop."""
_AGENT: Final[dict[Half, Speaker]] = {
    "tune": Speaker("en", "en-us+m8", 165, 50, 50),
    "held": Speaker("en", "en-us+m6", 165, 50, 50),
}


def speakers(voices: Voices, count: int, rng: np.random.Generator) -> list[Speaker]:
    """`count` people; one in five speaks German."""
    people = []
    for place in range(count):
        language: Language = "de" if place % 5 == 4 else "en"
        turn = place // 5 if language == "de" else place - place // 5
        rate, pitch, spread = (int(rng.integers(*limits)) for limits in ((145, 196), (35, 66), (40, 66)))
        voice = voices[language][turn % len(voices[language])]
        people.append(Speaker(language, voice, rate, pitch, spread))
    return people


def variants(half: Half, voices: dict[Half, Voices]) -> set[str]:
    """Every voice of a half, the agent's too. A variant of espeak-ng is a voice in whatever language."""
    everybody = [voice for of_language in voices[half].values() for voice in of_language]
    return {voice.split("+")[1] for voice in [*everybody, _AGENT[half].voice]}


def agent(half: Half) -> Speaker:
    return _AGENT[half]


def draw_tone(where: str, rng: np.random.Generator) -> str:
    tones = TONES[where]
    return str(rng.choice(list(tones), p=list(tones.values())))


def phrase(
    words: str, tone: str, following: str, speaker: Speaker, rng: np.random.Generator, *, final: bool
) -> Sound:
    """`words` with their last tone, from the first to the last audible sample, 24 kHz, at an RMS of 0.1.

    A last word with `~` is drawn out, one with `-` breaks off; `{um}` is a filler of its own: all three have
    no tone to choose.
    """
    following = following or FOLLOWING["de" if speaker.language == "de" else "en"]
    *rest, last = words.split()
    start = " ".join(rest)
    if last.startswith("{"):
        sound = say_until(_slowly(last.strip("{}"), rng, 40, 60, 15), following, speaker)
    elif last.endswith("~"):
        sound = say_until(f"{start} {_slowly(last[:-1], rng, 38, 60, 40)}", following, speaker)
    elif last.endswith("-"):
        sound = say_until(f"{start} {last[:-1]}", following, speaker)
    elif tone == "plateau":
        sound = say_until(f"{start} {_slowly(last, rng, 55, 80, 20)}", following, speaker)
    elif tone == "none":
        sound = say_until(words, following, speaker)
    else:
        sound = say(words + _PUNCTUATION[tone], speaker)
    sound = _audible(at_level(sound, 0.1))
    return _faded(at_level(sound, 0.1), rng.normal(_FADE["end" if final else "pause"], 2.0))


def written(words: str, mark: str, speaker: Speaker) -> Sound:
    """`words` as espeak-ng reads them before that mark, with no more around them than `phrase` has."""
    return at_level(_audible(at_level(say(words + mark, speaker), 0.1)), 0.1)


def _slowly(word: str, rng: np.random.Generator, low: int, high: int, spread: int) -> str:
    """`low` to `high` percent of the pace, `spread` percent of the movement in pitch."""
    return f'<prosody rate="{rng.integers(low, high)}%" range="{spread}%">{word}</prosody>'


def _audible(sound: Sound) -> Sound:
    """From the first to the last 5 ms that are less than 36 dB below the loud ones."""
    step = RATE // 200
    power = np.square(sound[: len(sound) // step * step]).reshape(-1, step).mean(axis=1)
    loud = np.nonzero(power > np.quantile(power, 0.95) * 10**-3.6)[0]
    return sound[loud[0] * step : (loud[-1] + 1) * step].copy()


def _faded(sound: Sound, decibels: float) -> Sound:
    """The last 0.3 s ramp to a gain; the edges have no clicks."""
    length = min(len(sound), round(0.3 * RATE))
    sound[-length:] *= 10 ** (np.linspace(0, decibels, length) / 20)
    edge = RATE // 125
    sound[:edge] *= np.linspace(0, 1, edge)
    sound[-edge:] *= np.linspace(1, 0, edge)
    return sound
