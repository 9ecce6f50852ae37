"""Voice activity of one line of 24 kHz PCM, as `server_vad` of the Realtime API tells it.

The detector is WebRTC's (webrtcvad-wheels), in 20-ms frames, behind an energy floor. It works at 8 kHz inside
and takes 48 kHz through its own band-limiting resampler, so each 24 kHz sample is given to it twice. That is
as good as a filter: holding a sample leaves the band below 4 kHz flat to 0.4 dB, and the images lie above
12 kHz, which that resampler removes. It keeps no state and adds no delay here. Measured per 20 ms: about
25 us, 14 of them the detector at 48 kHz. (At 8 kHz it would take 2, but a filter in Python takes 17 or more.)
"""

from __future__ import annotations

from array import array
from operator import mul
from typing import Final, NamedTuple

import webrtcvad

from voicegate.media.codec import FRAME_BYTES, FRAME_SAMPLES, PCM_RATE

START_MS: Final = 100
"""Voice this long, in one piece, is speech: more than a click, a key, or the 80 ms for which the detector
takes any noise for voice until it knows it."""
DEFAULT_SILENCE_MS: Final = 500
DEFAULT_PREFIX_PADDING_MS: Final = 300
"""The defaults of `turn_detection` in the Realtime API."""
DEFAULT_FLOOR_DBFS: Final = -55.0
"""Quieter is not voice whatever it sounds like: 15 dB below a low voice at a headset."""
_DETECTOR_RATE = 48_000
_ENERGY_STEP = 3
"""Every third sample is enough to know how loud it is."""


class VoiceTransition(NamedTuple):
    """Speech started or stopped at this sample of everything pushed.

    As the Realtime API counts them: a start includes the prefix padding, a stop the silence that proves it.
    """

    started: bool
    sample: int


class VoiceActivity:
    """`aggressiveness` is WebRTC's mode, 0 (takes much for voice) to 3 (takes little)."""

    def __init__(
        self,
        aggressiveness: int = 2,
        *,
        silence_ms: int = DEFAULT_SILENCE_MS,
        prefix_padding_ms: int = DEFAULT_PREFIX_PADDING_MS,
        floor_dbfs: float = DEFAULT_FLOOR_DBFS,
    ) -> None:
        self._detector = webrtcvad.Vad(aggressiveness)
        self._floor = 32768.0**2 * 10 ** (floor_dbfs / 10)
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
        voiced = self._is_voice(frame)
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

    def _is_voice(self, frame: bytes) -> bool:
        samples = array("h", frame)
        some = samples[::_ENERGY_STEP]
        if sum(map(mul, some, some)) < self._floor * len(some):
            return False
        twice = array("h", bytes(2 * FRAME_BYTES))
        twice[0::2] = samples
        twice[1::2] = samples
        return bool(self._detector.is_speech(twice.tobytes(), _DETECTOR_RATE))


def _samples(milliseconds: int) -> int:
    """Whole frames, at least one: nothing shorter is judged."""
    return max(1, round(milliseconds * PCM_RATE / 1000 / FRAME_SAMPLES)) * FRAME_SAMPLES
