"""What of the microphone goes to an agent that detects no turns: turns, and nothing between them. Pure.

An agent that is told `turn_detection: null` makes an item of everything it was sent since the last commit,
minutes of silence too. So the microphone waits here, the last HELD_SECONDS of it, until a turn is known to
have begun, and goes from the turn's beginning on. Places are samples at 24 kHz since the start of the call.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Callable
from typing import Final

from voicegate.media.codec import PCM_RATE
from voicegate.media.sound import Sound

HELD_SECONDS: Final = 4.0
"""An interruption is confirmed or not within some tenths of a second; a prefix is 2 s at the most. 192 kB."""

MAX_KEPT_SECONDS: Final = 10.0
"""Of a turn, where a reply may be asked for early: all of it has to be said again when the person goes on."""


class InputGate:
    """One call's. `send` takes what goes to the agent, as `sound`; `keeps`: a turn is remembered, so that it
    can be said to the agent once more."""

    def __init__(self, send: Callable[[bytes], None], position: int, sound: Sound, *, keeps: bool) -> None:
        self.is_open = False
        self._sound = sound
        self._most_held = HELD_SECONDS * sound.bytes_per_second
        self._most_kept = MAX_KEPT_SECONDS * sound.bytes_per_second
        self._send = send
        self._keeps = keeps
        self._position = position  # behind the last sample that came
        self._held: deque[bytes] = deque()
        self._held_bytes = 0
        self._turn = bytearray()

    def take(self, pcm: bytes, position: int) -> None:
        """The next of the microphone, which ends at this place."""
        self._position = position
        if self.is_open:
            self._keep(pcm)
            self._send(pcm)
            return
        self._held.append(pcm)
        self._held_bytes += len(pcm)
        while self._held_bytes - len(self._held[0]) >= self._most_held:
            self._held_bytes -= len(self._held.popleft())

    def open_at(self, place: int) -> None:
        """A turn began there: what is held from there on goes, and what comes. Most of it may have gone."""
        if self.is_open:
            return
        held = b"".join(self._held)
        samples = max(0, self._position - place)
        size = samples * self._sound.rate // PCM_RATE * self._sound.sample_bytes
        start = max(0, len(held) - size)
        self._forget_held()
        self.is_open = True
        self._turn.clear()
        self._keep(held[start:])
        if held[start:]:
            self._send(held[start:])

    def shut(self) -> None:
        """The turn is over, or may be."""
        self.is_open = False

    def kept_whole(self) -> bool:
        """Whether the turn can be said again."""
        return self._keeps and len(self._turn) < self._most_kept

    def repeat(self) -> None:
        """The turn goes on, and what the agent had of it is gone: all of it is sent again."""
        self._keep(b"".join(self._held))
        self._forget_held()
        self.is_open = True
        self._send(bytes(self._turn))

    def _keep(self, pcm: bytes) -> None:
        if self._keeps and len(self._turn) <= self._most_kept:
            self._turn += pcm

    def _forget_held(self) -> None:
        self._held.clear()
        self._held_bytes = 0
