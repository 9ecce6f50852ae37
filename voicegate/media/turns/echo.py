"""How much of what the microphone hears is our own output come back. Pure.

A browser cancels echo; a loudspeaker phone, or a browser asked not to, does not. What comes back has the
output's envelope: later, by up to LAGS frames, and quieter by some constant. So the levels of the last WINDOW
frames of the microphone, in dB, are correlated with those of what was sent, at each lag. A person's own voice
has another envelope; a person over an echo is louder than it and hides it. And while the output is held there
is nothing to come back.

Frames are matched by real time: what was sent by when it was sent, what is heard by the microphone's own
count, set against the quickest arrival lately, so that jitter does not smear the lag.
"""

from __future__ import annotations

import math
from typing import Final

import numpy as np
from numpy.typing import NDArray

from voicegate.media.codec import FRAME_SECONDS

LAGS: Final = 16
"""Frames, 0 to 300 ms: two ways through a network, a jitter buffer and a loudspeaker."""
WINDOW: Final = 32
"""Frames. At 0.64 s a voice of its own is seldom like another by chance; shorter answers are not given."""
LEAST: Final = 12
"""Frames heard since the output began before anything is said: below, any two rises look alike."""
_FLOOR: Final = -60.0
"""dBFS. What is quieter is silence on both sides."""
_ALIKE: Final = (0.6, 0.9)
"""Correlations: no echo up to the first, nothing but echo from the second."""
_RESYNC: Final = 3
"""Frames sent so much off their turn begin a new count: the output was held, or late."""
_DRIFT: Final = 0.002
"""Of the distance, each frame: how quickly a later arrival is believed."""


class EchoGuard:
    """One call's."""

    __slots__ = ("_heard", "_heard_tick", "_offset", "_sent", "_sent_tick")

    def __init__(self) -> None:
        self._sent = [_FLOOR] * (WINDOW + 2 * LAGS)  # levels, the last one at _sent_tick
        self._sent_tick = 0
        self._heard: list[float] = []
        self._heard_tick = 0
        self._offset = math.inf  # real time less the microphone's, in seconds, at the quickest

    def send(self, frame: bytes, now: float) -> None:
        """A frame of the output leaves."""
        tick = round(now / FRAME_SECONDS)
        if abs(tick - self._sent_tick - 1) < _RESYNC:
            tick = self._sent_tick + 1
        self._advance(tick)
        self._sent[-1] = _level(frame)

    def hear(self, level: float, at: float, now: float) -> None:
        """A frame of the microphone, of which `at` seconds were heard before, while there may be echo."""
        offset = now - at
        if offset < self._offset:
            self._offset = offset
        else:
            self._offset += (offset - self._offset) * _DRIFT
        self._heard_tick = round((at + self._offset) / FRAME_SECONDS)
        self._heard.append(level if level > _FLOOR else _FLOOR)
        if len(self._heard) > 2 * WINDOW:
            del self._heard[:WINDOW]

    def share(self) -> float:
        """How much of the last frames is echo, 0 to 1."""
        if len(self._heard) < LEAST:
            return 0.0
        heard = np.array(self._heard[-WINDOW:])
        self._advance(self._heard_tick)
        behind = self._sent_tick - self._heard_tick
        sent = np.array(self._sent)
        end = len(sent) - behind
        rows = [sent[end - lag - len(heard) : end - lag] for lag in range(LAGS) if end - lag >= len(heard)]
        if not rows:
            return 0.0
        low, high = _ALIKE
        return float(min(1.0, max(0.0, (_best_correlation(heard, np.array(rows)) - low) / (high - low))))

    def forget(self) -> None:
        """Another answer begins."""
        self._heard.clear()

    def _advance(self, tick: int) -> None:
        """Silence up to this tick, where nothing was sent."""
        missing = tick - self._sent_tick
        if missing > 0:
            kept = len(self._sent)
            self._sent.extend([_FLOOR] * min(missing, kept))
            del self._sent[:-kept]
            self._sent_tick = tick


def _best_correlation(heard: NDArray[np.float64], sent: NDArray[np.float64]) -> float:
    heard = heard - heard.mean()
    sent = sent - sent.mean(axis=1, keepdims=True)
    size = np.sqrt((heard @ heard) * (sent * sent).sum(axis=1))
    return float(np.max((sent @ heard) / np.maximum(size, 1.0)))


def _level(frame: bytes) -> float:
    samples = np.frombuffer(frame, np.int16)[::3].astype(np.float32)
    power = float(samples @ samples) / len(samples)
    return max(_FLOOR, 10 * math.log10(power / 2**30)) if power else _FLOOR
