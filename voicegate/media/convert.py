"""Sound of one format to another: between the line of a call and what its agent speaks, or what is recorded.

Importing it is cheap; the first conversion between two rates brings PyAV in, and few agents need it.
"""

from __future__ import annotations

from collections.abc import Callable

from voicegate.media.companding import Law, compress, expand
from voicegate.media.recording import Tap
from voicegate.media.sound import PCM, PCMA, PCMU, Line, Sound

Listener = Callable[[bytes, float], None]
"""Takes sound, and when."""
_LAWS = {PCMU.type: Law.PCMU, PCMA.type: Law.PCMA}


class Converter:
    """One stream; keeps the state of its filter. Between two rates it is late by `resample.DELAY`."""

    __slots__ = ("_from_law", "_resampler", "_to_law")

    def __init__(self, source: Sound, target: Sound) -> None:
        self._from_law = _LAWS.get(source.type)
        self._to_law = _LAWS.get(target.type)
        self._resampler = None
        if source.rate != target.rate:
            from voicegate.media.resample import Resampler

            self._resampler = Resampler(source.rate, target.rate)

    def convert(self, data: bytes) -> bytes:
        """Whole samples in, their share of samples out."""
        if self._from_law is not None:
            data = expand(self._from_law, data)
        if self._resampler is not None:
            data = self._resampler.convert(data)
        return data if self._to_law is None else compress(self._to_law, data)

    def begin(self) -> None:
        """What follows is something else: forget what the filter holds back of what came before."""
        if self._resampler is not None:
            self._resampler.begin()


def open_converter(source: Sound, target: Sound) -> Converter | None:
    """None: it is the same already."""
    return None if source == target else Converter(source, target)


def hearing_pcm(listener: Listener, sound: Sound) -> Listener:
    """What hears 24 kHz PCM, for `sound`."""
    converter = open_converter(sound, PCM)
    if converter is None:
        return listener
    return lambda data, now: listener(converter.convert(data), now)


class PcmTap:
    """What is recorded of a line that is not PCM: the same as 24 kHz PCM."""

    def __init__(self, tap: Tap, line: Line) -> None:
        self._tap = tap
        self.hear = hearing_pcm(tap.hear, line.heard)
        self._said = open_converter(line.said, PCM)

    def say(self, pcm: bytes, timestamp: int, at: float) -> None:
        self._tap.say(pcm if self._said is None else self._said.convert(pcm), timestamp, at)

    def note(self, source: str, event: bytes) -> None:
        self._tap.note(source, event)
