"""Sentences as espeak-ng says them by itself, which nothing of the labelled set went into: the default judge
gives who says "um" time to think, and answers what is finished as soon as ever."""

from __future__ import annotations

from collections.abc import Iterator
from itertools import count

import numpy as np
import pytest

from tests.media.signals import frames
from tests.support.speech import Sound
from tests.turns.espeak import RATE, Speaker, say
from voicegate.media.codec import FRAME_SECONDS
from voicegate.media.turns.activity import WebrtcActivity
from voicegate.media.turns.adaptive import AdaptivePause
from voicegate.media.turns.decisions import TurnEnded
from voicegate.media.turns.interruption import DefaultPolicy
from voicegate.media.turns.machine import TurnMachine
from voicegate.media.turns.settings import TurnSettings

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
    """Reached: 1.1 s and 0.43 s; 0.5 s each with silence alone, which knows no difference."""
    waits = [_waits(speaker) for speaker in SPEAKERS]
    hesitating = np.median([wait for of in waits for wait in of[: len(HESITATING)]])
    finished = np.median([wait for of in waits for wait in of[len(HESITATING) :]])
    assert hesitating > 0.9
    assert finished < 0.5


def _waits(speaker: Speaker) -> list[float]:
    """Of each sentence, in one call, the silence after which it was taken for over."""
    machine = TurnMachine(TurnSettings(), WebrtcActivity(), AdaptivePause(), DefaultPolicy())
    random = np.random.default_rng(1)
    clock = (number * FRAME_SECONDS for number in count(1))
    return [_wait(machine, _trimmed(say(text, speaker)), random, clock) for text in HESITATING + FINISHED]


def _wait(machine: TurnMachine, sound: Sound, random: np.random.Generator, clock: Iterator[float]) -> float:
    silence = np.zeros(3 * RATE, np.float32)
    whole = np.concatenate([silence[: RATE // 2], sound, silence])
    whole = whole + random.normal(0, ROOM, len(whole))
    pcm = (whole.clip(-1, 1) * 32767).astype("<i2").tobytes()
    end = 0.5 + len(sound) / RATE
    ended = float("inf")
    for number, frame in enumerate(frames(pcm), 1):
        machine.push(frame, now := next(clock))
        machine.handle_timeout(now)
        while (decision := machine.poll_decision()) is not None:
            if isinstance(decision, TurnEnded):
                ended = number * FRAME_SECONDS - end
    return ended


def _trimmed(sound: Sound) -> Sound:
    loud = np.flatnonzero(np.abs(sound) > 0.003)
    sound = sound[loud[0] : loud[-1] + 1]
    return sound * (0.08 / np.sqrt(np.mean(sound**2)))
