"""Voice in each 20 ms: WebRTC's detector, and the energy it does not look at.

The detector (webrtcvad-wheels) compares six bands below 4 kHz with models of voice and of noise that it keeps
up to date. It knows a voice well, but it takes any new noise for one during its first 80 ms, keeps saying
"voice" for 100 ms after the last of it, and knows nothing of loudness. So a frame is voice when the detector
says so and when it is also louder than

* an absolute floor, below which nobody is speaking to us,
* what else is to be heard: the mean of what lasts between the words, and 2.5 times its mean deviation (little
  for a fan, much for people talking in the background), up to the middle between the room at its quietest and
  the speaker's peaks. Once a voice is heard 2 dB less will do, so that a word that fades is not cut to
  pieces,
* the speaker's own peaks less 35 dB: what is left after a voice has stopped is its echo in the room.

It is fed at 8 kHz, the mean of every three samples. That filter is poor (-10 dB at 12 kHz) and good enough:
on synthetic voices in white, pink and brown noise and hum at 10 and 20 dB a filter of 47 taps changed the
share of missed voice by two points in a hundred at most, either way. Measured: 4.0 us a frame, of which the
detector 1.2.
"""

from __future__ import annotations

from collections import deque
from math import log10
from typing import Final

import numpy as np
import webrtcvad

from voicegate.media.codec import FRAME_SAMPLES
from voicegate.media.turns.plugins import Hop

DEFAULT_THRESHOLD: Final = 0.5
"""Of `turn_detection` in the Realtime API: the higher, the louder and the clearer a voice must be."""
SILENT_DBFS: Final = -100.0
_DETECTOR_RATE = 8_000
_DECIMATION = 3
_THIRD = np.full(_DECIMATION, 1 / _DECIMATION, np.float32)
_FULL_SCALE_DB = 10 * log10(32768.0**2 * FRAME_SAMPLES)
_FLOOR_DBFS = -75.0
_FLOOR_SPAN_DB = 20.0
"""The absolute floor is -65 dBFS at the default threshold: the weakest syllables of a voice of -45 dBFS."""
_MARGIN_SPAN_DB = 6.0
"""Above the room at its quietest: 3 dB at the default threshold. White noise wavers by 0.5 dB from frame to
frame, pink noise by 1."""
_DEVIATIONS_SPAN = 5.0
"""Above the mean of the background: 2.5 mean deviations at the default threshold. With 2 one pause in six
amid talk 10 to 20 dB below the speaker was not heard as one, with 2.5 one in twenty; with 3 words lose their
ends."""
_KEEP_DB = 2.0
_PEAK_RANGE_DB = 35.0
_PEAK_DECAY_DB = 0.04
"""A frame: 2 dB a second, so that a speaker who lowers the voice is followed."""
_SMOOTHING = 0.4
_ROOM_FRAMES = 20
_ROOM_PIECES = 8
"""The room at its quietest: the least level of 8 x 0.4 s. Speech seldom goes on for three seconds without a
gap of 60 ms."""
_STEADY_PIECES = 3
_STEADY_DB = 4.0
"""What has wavered by no more for so many pieces, 1.2 s, is no voice but a new room: a fan that began."""
_BETWEEN_FRAMES = 8
"""So many frames in the lower half are no longer a stop within a word: what follows is background."""
_BACKGROUND_RATE = 0.05
"""The background is averaged over 0.4 s of it."""


class WebrtcActivity:
    """`threshold`: 0 (takes much for voice) to 1 (takes little). It also picks the detector's mode, 0 to
    3."""

    def __init__(self, threshold: float = DEFAULT_THRESHOLD) -> None:
        self._mode = max(0, min(3, int(threshold * 4)))
        self._floor = _FLOOR_DBFS + _FLOOR_SPAN_DB * threshold
        self._margin = _MARGIN_SPAN_DB * threshold
        self._deviations = _DEVIATIONS_SPAN * threshold
        self.reset()

    def reset(self) -> None:
        self._detector = webrtcvad.Vad(self._mode)
        self._voiced = False
        self._peak = SILENT_DBFS
        self._room = _Room()
        self._background = _Background()

    def push(self, frame: bytes) -> Hop:
        samples = np.frombuffer(frame, "<i2").astype(np.float32)
        power = samples.dot(samples)
        if not power:
            # What a codec or a muted microphone makes of nothing: it tells nothing of the room.
            self._voiced = False
            return Hop(False, SILENT_DBFS)
        level = 10 * log10(power) - _FULL_SCALE_DB
        narrow = samples.reshape(-1, _DECIMATION).dot(_THIRD).astype(np.int16)
        likely = self._detector.is_speech(narrow.tobytes(), _DETECTOR_RATE)
        needed = self._needed(level)
        self._voiced = bool(likely) and level > (needed - _KEEP_DB if self._voiced else needed)
        self._peak -= _PEAK_DECAY_DB
        if self._voiced and level > self._peak:
            self._peak = level
        return Hop(self._voiced, level)

    def _needed(self, level: float) -> float:
        """The level above which a voice stands out, this frame included in what it stands out from."""
        room = self._room.follow(level)
        middle = max((room + self._peak) / 2, room + 2 * self._margin)
        background = self._background
        background.follow(level, level < middle)
        noise = room + self._margin
        usual = background.mean + self._deviations * background.deviation
        if usual > noise:
            noise = max(noise, min(usual, middle))
        return max(noise, self._floor, self._peak - _PEAK_RANGE_DB)


class _Room:
    """The line at its quietest, lately."""

    __slots__ = ("_frames", "_least", "_most", "_pieces", "_smooth", "level")

    def __init__(self) -> None:
        self.level: float | None = None
        self._smooth = 0.0
        self._least = self._most = 0.0  # of the smoothed level in this piece
        self._frames = 0  # of this piece
        self._pieces: deque[tuple[float, float]] = deque(maxlen=_ROOM_PIECES)

    def follow(self, level: float) -> float:
        if self.level is None:
            # A voice from the first frame on is found at its first dip: better late than a room of voice.
            self.level = self._smooth = self._least = self._most = level
            return level
        self._smooth = smooth = self._smooth + (level - self._smooth) * _SMOOTHING
        if smooth < self._least:
            self._least = smooth
            if smooth < self.level:
                self.level = smooth
        elif smooth > self._most:
            self._most = smooth
        self._frames += 1
        if self._frames == _ROOM_FRAMES:
            self._end_piece()
        return self.level

    def _end_piece(self) -> None:
        self._pieces.append((self._least, self._most))
        self._least = self._most = self._smooth
        self._frames = 0
        lately = list(self._pieces)[-_STEADY_PIECES:]
        least = min(piece[0] for piece in lately)
        if len(lately) < _STEADY_PIECES or max(piece[1] for piece in lately) - least > _STEADY_DB:
            least = min(piece[0] for piece in self._pieces)
        self.level = least


class _Background:
    """What lasts in the lower half, between the room at its quietest and the speaker's peaks."""

    __slots__ = ("_frames", "deviation", "mean")

    def __init__(self) -> None:
        self._frames = 0  # in the lower half, in a row
        self.mean = SILENT_DBFS
        self.deviation = 1.0

    def follow(self, level: float, low: bool) -> None:
        if not low:
            self._frames = 0
            return
        self._frames += 1
        if self._frames <= _BETWEEN_FRAMES:
            return
        if self.mean == SILENT_DBFS:
            self.mean = level
        away = level - self.mean
        self.mean += _BACKGROUND_RATE * away
        self.deviation += _BACKGROUND_RATE * (abs(away) - self.deviation)
