"""voicegate.media.turns.interruption: what the default policy makes of an overlap."""

from __future__ import annotations

from dataclasses import replace

import pytest

from voicegate.media.turns.interruption import DefaultPolicy, InterruptionSettings
from voicegate.media.turns.plugins import Action, Overlap

SETTINGS = InterruptionSettings()
SOUND = Overlap(
    seconds=0.2,
    voiced=0.2,
    strong=0.2,
    pitched=0.15,
    syllables=2,
    silence=0.0,
    level=-25.0,
    loudness=0.0,
    echo=0.0,
    agent=3.0,
    remaining=None,
    paused=False,
)
HELD = replace(SOUND, paused=True)
LONG = replace(HELD, seconds=0.8, voiced=0.74, strong=0.4, pitched=0.3)
QUIET = replace(LONG, loudness=-20.0)
FLAT = replace(LONG, seconds=1.1, voiced=1.0, strong=0.95, loudness=-6.0)


@pytest.mark.parametrize(
    "overlap, action, reason",
    [
        (SOUND, Action.PAUSE, "voice"),
        (replace(SOUND, seconds=0.02, voiced=0.02), Action.PAUSE, "voice"),
        (replace(SOUND, seconds=0.02, voiced=0.02, loudness=-4.0), Action.IGNORE, "short"),
        (replace(SOUND, seconds=0.02, voiced=0.02, loudness=None), Action.IGNORE, "short"),
        (replace(SOUND, seconds=0.04, voiced=0.04, loudness=-4.0), Action.PAUSE, "voice"),
        (replace(SOUND, seconds=0.04, voiced=0.04, loudness=None), Action.PAUSE, "voice"),
        (replace(SOUND, loudness=-11.0), Action.IGNORE, "short"),
        (replace(SOUND, seconds=0.3, voiced=0.3, loudness=-11.0), Action.PAUSE, "voice"),
        (replace(SOUND, silence=0.1), Action.IGNORE, "short"),
        (replace(SOUND, seconds=0.1, agent=0.2), Action.IGNORE, "grace"),
        (replace(SOUND, seconds=0.1, agent=0.3), Action.PAUSE, "voice"),
        (replace(SOUND, seconds=0.1, agent=0.58, loudness=-4.0), Action.IGNORE, "grace"),
        (replace(SOUND, seconds=0.1, agent=0.58, loudness=None), Action.IGNORE, "grace"),
        (replace(SOUND, seconds=0.1, agent=0.6, loudness=None), Action.PAUSE, "voice"),
        (replace(SOUND, remaining=0.9), Action.IGNORE, "ending"),
        (replace(SOUND, remaining=1.1), Action.PAUSE, "voice"),
        (HELD, Action.IGNORE, "waiting"),
        (replace(HELD, silence=0.3), Action.IGNORE, "waiting"),
        (replace(HELD, seconds=0.6, silence=0.4), Action.RESUME, "short"),
        (replace(HELD, remaining=0.5, seconds=0.6, silence=0.4), Action.RESUME, "short"),
        (LONG, Action.STOP, "duration"),
        (replace(LONG, loudness=None), Action.STOP, "duration"),
        (replace(LONG, voiced=0.7), Action.IGNORE, "waiting"),
        (replace(LONG, voiced=0.5, loudness=6.0), Action.STOP, "duration"),
        (replace(LONG, voiced=0.46, loudness=20.0), Action.IGNORE, "waiting"),
        (replace(LONG, loudness=-2.0), Action.IGNORE, "waiting"),
        (replace(LONG, voiced=0.82, loudness=-2.0), Action.STOP, "duration"),
        (replace(QUIET, voiced=1.1, seconds=1.2), Action.IGNORE, "waiting"),
        (replace(QUIET, voiced=1.14, seconds=1.2), Action.STOP, "duration"),
        (replace(LONG, paused=False), Action.STOP, "duration"),
        (FLAT, Action.RESUME, "background"),
        (replace(FLAT, paused=False), Action.IGNORE, "background"),
        (replace(FLAT, loudness=None), Action.RESUME, "background"),
        (replace(FLAT, loudness=-2.0), Action.STOP, "duration"),
        (replace(LONG, strong=0.7, said="no, wait"), Action.STOP, "words"),
        (replace(LONG, syllables=1), Action.IGNORE, "waiting"),
        (replace(LONG, syllables=1, voiced=0.84), Action.STOP, "duration"),
        (replace(LONG, syllables=3, voiced=0.64), Action.STOP, "duration"),
        (replace(LONG, syllables=4, voiced=0.54), Action.STOP, "duration"),
        (replace(LONG, syllables=9, voiced=0.5), Action.IGNORE, "waiting"),
        (replace(LONG, pitched=0.14), Action.IGNORE, "waiting"),
        (replace(LONG, seconds=2.0, voiced=1.6, pitched=0.1), Action.IGNORE, "waiting"),
        (replace(LONG, seconds=60.0, voiced=1.6), Action.STOP, "duration"),
        (replace(LONG, seconds=60.0, voiced=1.4), Action.IGNORE, "waiting"),
        (replace(LONG, seconds=2.5, voiced=1.2), Action.IGNORE, "waiting"),
        (replace(HELD, said="No, wait!"), Action.STOP, "words"),
        (replace(HELD, said="yeah but no"), Action.STOP, "words"),
        (replace(HELD, said="Mm-hm."), Action.IGNORE, "waiting"),
        (replace(HELD, said="..."), Action.IGNORE, "waiting"),
        (replace(LONG, said="oh, I see. Genau!"), Action.IGNORE, "waiting"),
        (replace(LONG, said="right", silence=0.5), Action.RESUME, "acknowledgement"),
        (replace(LONG, said="right, right, right", seconds=1.7, voiced=1.6), Action.STOP, "duration"),
    ],
)
def test_an_overlap(overlap: Overlap, action: Action, reason: str) -> None:
    assert DefaultPolicy().decide(overlap) == (action, reason)


def test_settings_move_it() -> None:
    patient = DefaultPolicy(
        InterruptionSettings(pause_after=0.42, stop_after=2.0, stop_after_acknowledgements=3.0)
    )
    assert patient.decide(SOUND)[0] is Action.IGNORE
    assert patient.decide(LONG)[0] is Action.IGNORE
    assert patient.decide(replace(LONG, seconds=2.5, voiced=2.4))[0] is Action.STOP


def test_it_learns_nothing() -> None:
    policy = DefaultPolicy()
    policy.over(LONG, True)
    assert policy.decide(SOUND) == (Action.PAUSE, "voice")
