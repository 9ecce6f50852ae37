"""voicegate.media.turns.echo: our own output come back, and what is not."""

from __future__ import annotations

import math
import random

import numpy as np
import pytest

from tests.media.turns.calls import START
from voicegate.media.codec import FRAME_SAMPLES, FRAME_SECONDS
from voicegate.media.turns.echo import EchoGuard
from voicegate.media.turns.plugins import Hop

SILENCE = -100.0
NOISE = np.random.default_rng(1).standard_normal(FRAME_SAMPLES)


def frame(level: float) -> bytes:
    """20 ms of noise at this level, dBFS."""
    if level <= -90:
        return bytes(2 * FRAME_SAMPLES)
    noise = NOISE * 32768 * 10 ** (level / 20) / math.sqrt(float(np.mean(NOISE**2)))
    return np.clip(noise, -32768, 32767).astype("<i2").tobytes()


def talk(seed: int, seconds: float) -> list[float]:
    """The levels of something like speech: syllables of 3 to 12 frames, some pauses."""
    rng = random.Random(seed)
    levels: list[float] = []
    while len(levels) < seconds / FRAME_SECONDS:
        loud = rng.uniform(-30, -16)
        length = rng.randrange(3, 12)
        levels += [loud - abs(n - length / 3) * rng.uniform(0.5, 3) for n in range(length)]
        levels += [-80.0] * rng.choice([0, 1, 2, 6, 15])
    return levels[: round(seconds / FRAME_SECONDS)]


def listen(
    guard: EchoGuard, sent: list[float | None], heard: list[float], *, jitter: float = 0.0
) -> list[bool]:
    """What of `heard` is taken for echo of `sent`, frame by frame; None: nothing is sent."""
    rng = random.Random(5)
    echoes = []
    for n, (out, level) in enumerate(zip(sent, heard, strict=True)):
        now = START + n * FRAME_SECONDS
        if out is not None:
            guard.send(frame(out), now)
        arrival = now + FRAME_SECONDS + rng.uniform(0, jitter)
        echoes.append(guard.is_echo(Hop(level > -60, level), n * FRAME_SECONDS, arrival))
    return echoes


def echo_of(sent: list[float], lag: int, loss: float) -> list[float]:
    back = [SILENCE] * lag + [level - loss for level in sent]
    return back[: len(sent)]


def audible(levels: list[float], echoes: list[bool], after: int = 0) -> list[bool]:
    return [echo for level, echo in zip(levels[after:], echoes[after:], strict=True) if level > -60]


@pytest.mark.parametrize("lag", [0, 1, 7, 15])
@pytest.mark.parametrize("loss", [6.0, 20.0, 30.0])
def test_an_echo_is_known_within_a_second(lag: int, loss: float) -> None:
    sent = talk(1, 6.0)
    heard = echo_of(sent, lag, loss)
    found = audible(heard, listen(EchoGuard(), [*sent], heard), after=50)
    assert len(found) > 60
    assert sum(found) / len(found) > 0.95


def test_jitter_and_room_do_not_hide_it() -> None:
    sent = talk(2, 6.0)
    dry = echo_of(sent, 4, 18.0)
    heard = [max(level, dry[n - 1] - 6 if n else SILENCE) for n, level in enumerate(dry)]
    found = audible(heard, listen(EchoGuard(), [*sent], heard, jitter=0.06), after=60)
    assert sum(found) / len(found) > 0.9


def test_another_voice_is_no_echo() -> None:
    for seed in range(20):
        found = listen(EchoGuard(), [*talk(seed, 6.0)], talk(100 + seed, 6.0))
        assert sum(found) < 0.15 * len(found)


def test_two_that_begin_together_are_not_taken_for_each_other() -> None:
    """Each rises from digital silence within 300 ms: a step is like any step."""
    taken = 0
    for seed in range(20):
        for later in (2, 6, 10, 14):
            sent = [*talk(seed, 2.0)]
            heard = [SILENCE] * later + talk(100 + seed, 2.0 - later * FRAME_SECONDS)
            taken += sum(listen(EchoGuard(), [*sent], heard)[: later + 25]) > 10
    assert taken <= 4  # of 80


def test_a_person_over_an_echo_is_heard() -> None:
    sent = talk(3, 6.0)
    echo = echo_of(sent, 6, 20.0)
    voice = [SILENCE] * 150 + talk(7, 3.0)
    heard = [10 * math.log10(10 ** (a / 10) + 10 ** (b / 10)) for a, b in zip(echo, voice, strict=True)]
    echoes = listen(EchoGuard(), [*sent], heard)
    person = [not e for e, level in zip(echoes[150:], voice[150:], strict=True) if level > -32]
    assert sum(person) / len(person) > 0.8


def test_nothing_comes_back_of_a_held_output() -> None:
    sent = [*talk(4, 4.0), *[None] * 100]
    heard = [*echo_of(talk(4, 4.0), 5, 12.0), *talk(9, 2.0)]
    echoes = listen(EchoGuard(), sent, heard)
    assert sum(echoes[:200]) > 60
    assert not any(echoes[200 + 16 :])


def test_a_path_that_is_none_any_more_is_forgotten() -> None:
    """The person puts on headphones, and later speaks as loudly as the echo was."""
    sent = talk(5, 12.0)
    heard = [*echo_of(sent[:200], 5, 10.0), *[SILENCE] * 200, *talk(11, 4.0)]
    echoes = listen(EchoGuard(), [*sent], heard)
    assert sum(audible(heard, echoes[:200] + [False] * 400, after=50)) > 60
    assert sum(echoes[400:]) < 20


def test_the_path_outlives_an_answer() -> None:
    guard = EchoGuard()
    sent = talk(6, 4.0)
    listen(guard, [*sent], echo_of(sent, 5, 20.0))
    guard.forget()
    again = talk(8, 1.0)
    heard = echo_of(again, 5, 20.0)
    echoes = []
    for n, (out, level) in enumerate(zip(again, heard, strict=True)):
        now = START + 60 + n * FRAME_SECONDS
        guard.send(frame(out), now)
        echoes.append(guard.is_echo(Hop(level > -60, level), 60 + n * FRAME_SECONDS, now + FRAME_SECONDS))
    found = audible(heard, echoes)
    assert sum(found) / len(found) > 0.95


def test_an_agent_that_is_silent_has_no_echo() -> None:
    assert not any(listen(EchoGuard(), [None] * 300, talk(9, 6.0)))
    assert not any(listen(EchoGuard(), [-90.0] * 300, talk(9, 6.0)))
