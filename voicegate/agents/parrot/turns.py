"""The input side of a parrot session: the audio buffer, and where in it a turn begins and ends.

All positions are bytes since the session's first append; the audio itself is the clock.
"""

from __future__ import annotations

from array import array
from dataclasses import dataclass
from typing import Final

import webrtcvad

from voicegate.agents.parrot.settings import SEMANTIC_SILENCE_MS, SemanticVad, ServerVad, TurnDetection
from voicegate.proto.realtime import BYTES_PER_MS

MAX_TURN_BYTES: Final = 120_000 * BYTES_PER_MS
"""Two minutes, 5.8 MB: longer than anybody wants to hear said back. Then the turn is committed by force."""
ONSET_FRAMES: Final = 4
"""80 ms of voice begin a turn: shorter than a syllable, longer than a click."""
_FRAME_BYTES: Final = 20 * BYTES_PER_MS
_QUIET_RMS: Final = 60.0
"""About -55 dBFS: below it nothing is speech, whatever its spectrum."""


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
    """Somebody speaks. `position`: the first voiced frame, less the prefix padding; never before `floor`."""

    position: int


@dataclass(frozen=True, slots=True)
class Stopped:
    """They have been quiet for long enough. `speech_end`: behind the last voiced frame; `position`: now."""

    position: int
    speech_end: int


class TurnDetector:
    """Voice activity on 20-ms frames, and silence counted between them."""

    def __init__(self, settings: TurnDetection, position: int) -> None:
        match settings:
            case ServerVad():
                threshold = settings.threshold
                self.padding = settings.prefix_padding_ms * BYTES_PER_MS
                self._silence = settings.silence_duration_ms * BYTES_PER_MS
            case SemanticVad():
                threshold = ServerVad().threshold
                self.padding = ServerVad().prefix_padding_ms * BYTES_PER_MS
                self._silence = SEMANTIC_SILENCE_MS[settings.eagerness] * BYTES_PER_MS
        # WebRTC's detector has four modes, 3 the most doubtful; the API's threshold is a probability.
        self._vad = webrtcvad.Vad(min(3, int(threshold * 4)))
        self._carry = b""
        self._position = position  # of the next frame
        self._voiced = 0
        self._speech_end = position
        self.speaking = False

    def push(self, pcm: bytes) -> list[Started | Stopped]:
        """Whole samples; any amount."""
        data = self._carry + pcm
        whole = len(data) - len(data) % _FRAME_BYTES
        self._carry = data[whole:]
        events: list[Started | Stopped] = []
        for at in range(0, whole, _FRAME_BYTES):
            self._on_frame(data[at : at + _FRAME_BYTES], events)
        return events

    def end_turn(self) -> Stopped:
        """Stop by force."""
        self.speaking = False
        self._voiced = 0
        return Stopped(self._position, self._position)

    def _on_frame(self, frame: bytes, events: list[Started | Stopped]) -> None:
        end = self._position + _FRAME_BYTES
        if self._is_voice(frame):
            self._voiced += 1
            if self._voiced >= ONSET_FRAMES:
                self._speech_end = end
                if not self.speaking:
                    self.speaking = True
                    events.append(Started(end - self._voiced * _FRAME_BYTES - self.padding))
        else:
            self._voiced = 0
            if self.speaking and end - self._speech_end >= self._silence:
                self.speaking = False
                events.append(Stopped(end, self._speech_end))
        self._position = end

    def _is_voice(self, frame: bytes) -> bool:
        samples = array("h", frame)
        narrow = array("h", [(a + b + c) // 3 for a, b, c in zip(*[iter(samples)] * 3, strict=True)])
        if sum(s * s for s in narrow) < _QUIET_RMS * _QUIET_RMS * len(narrow):
            return False
        return bool(self._vad.is_speech(narrow.tobytes(), 8000))
