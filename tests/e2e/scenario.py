"""One conversation with the parrot, and what must have been heard of it.

1 s silence · first (said back whole) · second (said back until ...) · third (... spoken over it, said back)
· silence

The clients differ in what they can measure; they all bring the same three facts: what was heard, and when
on the heard recording the microphone's first sample was said.
"""

from __future__ import annotations

from dataclasses import dataclass

from tests.support import speech
from tests.support.speech import RATE, Sound

FIRST = "The quick brown fox jumps over the lazy dog."
SECOND = "Peter Piper picked a peck of pickled peppers, and carried every one of them home."
THIRD = "Wait a moment, I want to say something else now."

LEAD = 1.0
TURN_END = 0.7
"""The parrot's silence that ends a turn, and a little."""


@dataclass(frozen=True, slots=True)
class Script:
    """The microphone's sound and when its parts begin and end, in seconds."""

    sound: Sound
    first: tuple[float, float]
    second: tuple[float, float]
    third: tuple[float, float]
    end: float


def script() -> Script:
    first, second, third = (speech.say(text) for text in (FIRST, SECOND, THIRD))
    parts: list[Sound | float] = [LEAD, first]
    at = LEAD + len(first) / RATE
    places = [(LEAD, at)]
    # Room for the whole answer before the second; into the middle of the answer to the second for the third;
    # room for the whole answer after the third.
    for pause, sound in ((TURN_END + len(first) / RATE + 1.0, second), (TURN_END + 1.5, third)):
        parts += [pause, sound]
        places.append((at + pause, at + pause + len(sound) / RATE))
        at = places[-1][1]
    tail = TURN_END + len(third) / RATE + 1.5
    parts.append(tail)
    return Script(speech.conversation(*parts), places[0], places[1], places[2], at + tail)


def judge(
    script: Script,
    heard: Sound,
    offset: float,
    *,
    said: Sound | None = None,
    correlation: float = 0.8,
    level: float = 2.0,
    shortest_gap: float = 0.03,
) -> None:
    """Assert that the parrot answered, was interrupted and answered again.

    `offset` is where on `heard` the microphone's time 0 is, in seconds, path and buffers included. `said` is
    the microphone's sound when the client has changed it. `correlation` is what two passes through the
    client's own codec leave of the waveform; `level` the greatest difference in decibels; `shortest_gap` what
    counts as one, in seconds: a browser that stretches time moves sounds by a little.
    """
    microphone = script.sound if said is None else said
    first = _cut(microphone, *script.first)
    third = _cut(microphone, *script.third)

    answer = _cut(heard, offset + script.first[1], offset + script.second[0] + 0.5)
    match = speech.find(first, answer)
    assert match.correlation > correlation, f"the first answer is not what was said: {match}"
    assert match.envelope > 0.85, f"the first answer has another shape: {match}"
    assert 0.05 < match.lag < 2.5, f"the first answer came {match.lag:.2f} s after the turn"
    assert abs(match.gain) < level, f"the first answer has another level: {match}"
    holes = speech.gaps(first, answer[round(match.lag * RATE) :], shortest=shortest_gap)
    assert not holes, f"gaps in the first answer at {holes}"

    # The parrot was speaking when the third part began ...
    speaking = speech.rms(_cut(heard, offset + script.third[0] - 0.5, offset + script.third[0]))
    assert speaking > 0.01, "no answer was under way when it was spoken over"
    # ... and stopped: from one second after until the end of the third part nothing comes.
    quiet = _cut(heard, offset + script.third[0] + 1.0, offset + script.third[1])
    assert speech.rms(quiet) < 0.1 * speaking, "the answer went on while it was spoken over"

    answer = _cut(heard, offset + script.third[1], offset + script.end)
    match = speech.find(third, answer)
    assert match.correlation > correlation, f"the last answer is not what was said: {match}"
    assert match.envelope > 0.85, f"the last answer has another shape: {match}"


def _cut(sound: Sound, start: float, end: float) -> Sound:
    return sound[max(0, round(start * RATE)) : max(0, round(end * RATE))]
