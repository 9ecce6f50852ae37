"""Sentences as espeak-ng says them by itself, which nothing of the labelled sets went into: the default judge
gives who says "um" time to think, and answers what is finished before silence would."""

from __future__ import annotations

import numpy as np
import pytest

from tests.media.signals import frames
from tests.support.speech import at_level, conversation, to_pcm, trim
from tests.turns.espeak import RATE, Speaker, say
from voicegate.media.turns.activity import WebrtcActivity
from voicegate.media.turns.adaptive import AdaptivePause
from voicegate.media.turns.settings import TurnSettings
from voicegate.turns.evaluate import run_calls
from voicegate.turns.manifest import Turn
from voicegate.turns.recording import Recording

pytestmark = pytest.mark.e2e

SPEAKERS = (
    Speaker("en", "en", 150, 50, 50),
    Speaker("en", "en-us", 170, 40, 60),
    Speaker("en", "en-us+f3", 160, 60, 50),
    Speaker("en", "en+m3", 175, 45, 40),
    Speaker("en", "en+f2", 150, 55, 70),
)
HESITATING = (
    "I would like to, umm",
    "I want to, uh",
    "So I was thinking, um,",
    "Well, um,",
    "Could you please, hmm,",
    "Let me see, er,",
    "It was a nice day and, uh,",
    "Maybe we could go to the, um",
)
FINISHED = (
    "I would like to book a table.",
    "Yes.",
    "No, thank you.",
    "What time is it?",
    "Can you help me with that?",
    "My number is five five five.",
    "Book a small table.",
    "Okay.",
    "Tell me a joke.",
    "I don't know.",
    "That sounds great.",
    "How are you today?",
    "I was born in the north, and I have lived there ever since.",
    "Please cancel my appointment for tomorrow morning.",
)
ROOM = 0.0004
"""RMS of the noise of a quiet room."""


def test_a_hesitation_is_waited_out_and_an_end_is_not() -> None:
    """Reached: 1.1 s and 0.35 s; 0.5 s each with silence alone, which knows no difference."""
    outcomes = run_calls([_call(speaker) for speaker in SPEAKERS], TurnSettings(), AdaptivePause)
    waits = np.array([outcome.wait for outcome in outcomes]).reshape(len(SPEAKERS), -1)
    assert np.median(waits[:, : len(HESITATING)]) > 0.9
    assert np.median(waits[:, len(HESITATING) :]) < 0.42


def _call(speaker: Speaker) -> list[Recording]:
    random = np.random.default_rng(1)
    activity = WebrtcActivity()
    recordings = []
    for text in HESITATING + FINISHED:
        sound = conversation(0.5, at_level(trim(say(text, speaker), RATE), 0.08), 3.0, rate=RATE)
        heard = frames(to_pcm(sound + random.normal(0, ROOM, len(sound)).astype(np.float32)))
        turn = Turn(text, len(sound) / RATE - 3.0)
        recordings.append(Recording(turn, heard, [activity.push(frame) for frame in heard]))
    return recordings
