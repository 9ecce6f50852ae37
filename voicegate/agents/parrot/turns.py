"""The input side of a parrot session: the audio buffer, and where in it a turn begins and ends.

All positions are bytes since the session's first append; the audio itself is the clock.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Final

from voicegate.agents.parrot.settings import SEMANTIC_SILENCE_MS, SemanticVad, ServerVad, TurnDetection
from voicegate.media.vad import SpeechDetector
from voicegate.proto.realtime import BYTES_PER_MS

MAX_TURN_BYTES: Final = 120_000 * BYTES_PER_MS
"""Two minutes, 5.8 MB: longer than anybody wants to hear said back. Then the turn is committed by force."""
_SAMPLE_BYTES: Final = 2


class InputBuffer:
    """What was appended and is not committed yet: `start` is the position of its first byte, `end` of the
    next."""

    def __init__(self) -> None:
        self._pcm = bytearray()
        self.start = 0

    def __len__(self) -> int:
        return len(self._pcm)

    @property
    def end(self) -> int:
        return self.start + len(self._pcm)

    def append(self, pcm: bytes) -> None:
        self._pcm += pcm

    def take(self, start: int, end: int) -> bytes:
        """The audio between two positions; it and everything before it leaves the buffer."""
        taken = bytes(self._pcm[max(0, start - self.start) : max(0, end - self.start)])
        self.forget_before(end)
        return taken

    def forget_before(self, position: int) -> None:
        if position > self.start:
            del self._pcm[: position - self.start]
            self.start = min(position, self.start + len(self._pcm)) if self._pcm else position


@dataclass(frozen=True, slots=True)
class Started:
    """Somebody speaks. `position`: the first voiced frame, less the prefix padding."""

    position: int


@dataclass(frozen=True, slots=True)
class Stopped:
    """They have been quiet for long enough. `speech_end`: behind the last voiced frame; `position`: now."""

    position: int
    speech_end: int


class TurnDetector:
    """Voice activity as the session asks for it, on the positions of the buffer."""

    def __init__(self, settings: TurnDetection, position: int) -> None:
        match settings:
            case ServerVad():
                vad = settings
                silence_ms = settings.silence_duration_ms
            case SemanticVad():
                vad = ServerVad()
                silence_ms = SEMANTIC_SILENCE_MS[settings.eagerness]
        self._speech = SpeechDetector(
            vad.threshold, silence_ms=silence_ms, prefix_padding_ms=vad.prefix_padding_ms
        )
        self._begin = position
        self._silence = silence_ms * BYTES_PER_MS
        self.padding = vad.prefix_padding_ms * BYTES_PER_MS

    @property
    def speaking(self) -> bool:
        return self._speech.speaking

    def push(self, pcm: bytes) -> list[Started | Stopped]:
        """Whole samples; any amount."""
        events: list[Started | Stopped] = []
        for started, sample in self._speech.push(pcm):
            position = self._begin + sample * _SAMPLE_BYTES
            events.append(Started(position) if started else Stopped(position, position - self._silence))
        return events

    def end_turn(self) -> Stopped:
        """The end of a turn that is too long. This detector has no further use."""
        position = self._begin + self._speech.position * _SAMPLE_BYTES
        return Stopped(position, position)
