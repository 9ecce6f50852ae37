"""What waits on its way to an agent that does not read yet, and how much an agent may say. Pure."""

from __future__ import annotations

import math
from collections import deque
from typing import Final

from voicegate.proto import realtime

MAX_WAITING_AUDIO: Final = 30 * 1000 * realtime.BYTES_PER_MS
"""30 s of microphone, three minutes in G.711: three times the default `connect_seconds` and more. Older audio
is dropped."""
MAX_WAITING_EVENTS: Final = 1000
MAX_WAITING_EVENT_BYTES: Final = 2 * realtime.MAX_EVENT_BYTES
MAX_APPEND: Final = 1000 * realtime.BYTES_PER_MS
"""Audio that waited goes in appends of at most a second, six in G.711: 64 kB of JSON, far below the API's 15
MiB."""
FLOOD_SECONDS: Final = 10.0
FLOOD_EVENTS: Final = 10_000
"""Within FLOOD_SECONDS: twenty times real time in deltas of 20 ms, the smallest in use."""
FLOOD_BYTES: Final = 64 * 1024 * 1024
"""Of JSON within FLOOD_SECONDS: 1000 s of audio, when the playout keeps 600 s."""


class Waiting:
    """What waits for the agent, in order: runs of audio that grow at their end, and events between them."""

    __slots__ = ("_event_bytes", "audio_bytes", "events", "items")

    def __init__(self) -> None:
        self.items: deque[bytearray | bytes] = deque()
        """bytearray: audio; bytes: an event. To be looked at, not to be changed."""
        self._event_bytes = 0
        self.audio_bytes = 0
        self.events = 0

    def __bool__(self) -> bool:
        return bool(self.items)

    def push_audio(self, pcm: bytes) -> int:
        """Returns how many bytes of the oldest audio were dropped for it."""
        last = self.items[-1] if self.items else None
        if isinstance(last, bytearray) and len(last) + len(pcm) <= MAX_APPEND:
            last += pcm
        else:
            self.items.append(bytearray(pcm))
        self.audio_bytes += len(pcm)
        dropped = 0
        while self.audio_bytes > MAX_WAITING_AUDIO:
            oldest = next(item for item in self.items if isinstance(item, bytearray))
            self.items.remove(oldest)
            self.audio_bytes -= len(oldest)
            dropped += len(oldest)
        return dropped

    def push_event(self, data: bytes) -> bool:
        if self.events >= MAX_WAITING_EVENTS or self._event_bytes + len(data) > MAX_WAITING_EVENT_BYTES:
            return False
        self.items.append(data)
        self._event_bytes += len(data)
        self.events += 1
        return True

    def pop(self) -> bytes:
        item = self.items.popleft()
        if isinstance(item, bytearray):
            self.audio_bytes -= len(item)
            return realtime.encode_append(item)
        self._event_bytes -= len(item)
        self.events -= 1
        return item


class FloodMeter:
    """What an agent sent in the present window of FLOOD_SECONDS."""

    __slots__ = ("_events", "_size", "_until")

    def __init__(self) -> None:
        self._until = -math.inf
        self._events = 0
        self._size = 0

    def exceeded(self, events: int, size: int, now: float) -> bool:
        """Add one turn's events and bytes of JSON; True when that is too much."""
        if now >= self._until:
            self._until = now + FLOOD_SECONDS
            self._events = self._size = 0
        self._events += events
        self._size += size
        return self._events > FLOOD_EVENTS or self._size > FLOOD_BYTES
