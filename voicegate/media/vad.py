"""Where speech starts and stops in one line of 24 kHz PCM, as `server_vad` of the Realtime API tells it.

Each 20 ms is judged by `turns.activity`; what is here joins the frames: so much voice in one piece is speech,
so much silence ends it.
"""

from __future__ import annotations

from typing import Final, NamedTuple

from voicegate.media.codec import FRAME_BYTES, FRAME_SAMPLES, PCM_RATE
from voicegate.media.turns.activity import DEFAULT_THRESHOLD, WebrtcActivity

START_MS: Final = 100
"""Voice this long, in one piece, is speech: more than a click, a key, or the 80 ms for which the detector
takes any noise for voice until it knows it."""
DEFAULT_SILENCE_MS: Final = 500
DEFAULT_PREFIX_PADDING_MS: Final = 300
"""The defaults of `turn_detection` in the Realtime API."""


class VoiceTransition(NamedTuple):
    """Speech started or stopped at this sample of everything pushed.

    As the Realtime API counts them: a start includes the prefix padding, a stop the silence that proves it.
    """

    started: bool
    sample: int


class SpeechDetector:
    """`threshold`, `silence_ms`, `prefix_padding_ms`: as in `turn_detection`."""

    def __init__(
        self,
        threshold: float = DEFAULT_THRESHOLD,
        *,
        silence_ms: int = DEFAULT_SILENCE_MS,
        prefix_padding_ms: int = DEFAULT_PREFIX_PADDING_MS,
    ) -> None:
        self._activity = WebrtcActivity(threshold)
        self._start = _samples(START_MS)
        self._silence = _samples(silence_ms)
        self._padding = _samples(prefix_padding_ms)
        self._rest = b""
        self._position = 0  # samples judged
        self._run = 0  # samples in a row that speak against the present state
        self._speaking = False
        self._stopped_at = 0

    @property
    def speaking(self) -> bool:
        return self._speaking

    @property
    def position(self) -> int:
        """Samples judged so far; less than a frame may be waiting for more."""
        return self._position

    def push(self, pcm: bytes) -> list[VoiceTransition]:
        """Judge some more of the line, any number of bytes; what changed, in order."""
        data = self._rest + pcm
        whole = len(data) - len(data) % FRAME_BYTES
        self._rest = data[whole:]
        transitions = []
        for at in range(0, whole, FRAME_BYTES):
            transition = self._judge(data[at : at + FRAME_BYTES])
            if transition is not None:
                transitions.append(transition)
        return transitions

    def _judge(self, frame: bytes) -> VoiceTransition | None:
        voiced = self._activity.push(frame).voiced
        self._position += FRAME_SAMPLES
        if voiced == self._speaking:
            self._run = 0
            return None
        self._run += FRAME_SAMPLES
        if self._run < (self._silence if self._speaking else self._start):
            return None
        onset = self._position - self._run
        self._run = 0
        self._speaking = voiced
        if voiced:
            return VoiceTransition(True, max(self._stopped_at, onset - self._padding))
        self._stopped_at = self._position
        return VoiceTransition(False, self._position)


def _samples(milliseconds: int) -> int:
    """Whole frames, at least one: nothing shorter is judged."""
    return max(1, round(milliseconds * PCM_RATE / 1000 / FRAME_SAMPLES)) * FRAME_SAMPLES
