"""Events on their way to the clients of one call: who may see what, and what waits for whom. Pure.

A call has up to two kinds of client: the one that called (its events go over the data channel) and sidebands,
servers that watch and steer the call. Both see the same events, each through its filter. What happens before
the data channel is open waits for it.
"""

from __future__ import annotations

from collections import Counter, deque
from collections.abc import Mapping
from enum import Flag, auto
from typing import Any, Final, NamedTuple

from voicegate.media.recording import Tap
from voicegate.proto import realtime
from voicegate.proto.event_filter import EventFilter
from voicegate.roles.transceiver.strip import with_event_id, without_audio

MAX_HELD: Final = 256
MAX_HELD_BYTES: Final = 512 * 1024
"""What waits for a data channel that is not open: some answers' worth; a call without one keeps no more."""

MAX_WAITING: Final = 4096
"""Events not yet polled. One input makes a few; only a driver that does not drain reaches this."""

_ID: Final = "event_voicegate_"


class Audience(Flag):
    """Whose events, or for whom."""

    CLIENT = auto()
    """The one that called."""
    SIDEBAND = auto()
    """All sidebands of the call."""


EVERYONE: Final = Audience.CLIENT | Audience.SIDEBAND


class Filters(NamedTuple):
    """What may come from a party, and what it may see."""

    client_events: EventFilter = EventFilter()
    server_events: EventFilter = EventFilter()


NO_FILTERS: Final[Mapping[Audience, Filters]] = {}


class Outbox:
    """`limit` is the longest event that the data channel takes, in bytes (RFC 8841 max-message-size)."""

    def __init__(self, filters: Mapping[Audience, Filters], limit: int | None) -> None:
        self.counts: Counter[str] = Counter()
        self.tap: Tap | None = None
        """Where the gateway's own events are recorded."""
        self._filters = filters
        self._limit = limit
        self._present = Audience(0)
        self._waiting: deque[tuple[bytes, Audience]] = deque()
        self._held: deque[bytes] = deque()
        self._held_bytes = 0
        self._made = 0
        self._error_allowance = {source: Allowance(rate=10.0, burst=20.0) for source in Audience}

    def joined(self, audience: Audience) -> None:
        """It can be reached from now on."""
        self._present |= audience
        if audience & Audience.CLIENT:
            held, self._held, self._held_bytes = self._held, deque(), 0
            self._waiting.extend((data, Audience.CLIENT) for data in held)

    def left(self, audience: Audience) -> None:
        """It cannot be reached any more; the data channel may open again."""
        self._present &= ~audience

    def allows(self, source: Audience, kind: str) -> bool:
        """Whether a client may send events of this type."""
        filters = self._filters.get(source)
        return filters is None or filters.client_events.allows(kind)

    def make(self, kind: str, to: Audience = EVERYONE, **fields: Any) -> bool:
        """An event of the gateway's own. False as `pass_on`."""
        self._made += 1
        data = realtime.encode_event({"type": kind, "event_id": f"{_ID}{self._made}", **fields})
        if self.tap is not None:
            self.tap.note("voicegate", data)
        return self.pass_on(kind, data, to)

    def pass_on(self, kind: str, raw: bytes, to: Audience = EVERYONE) -> bool:
        """An event as it is. False: it is too long for the client that called, and does not get there."""
        for audience in Audience:
            filters = self._filters.get(audience)
            if filters is not None and not filters.server_events.allows(kind):
                to &= ~audience
        return self._put(raw, to)

    def pass_from_agent(self, kind: str, raw: bytes) -> bool:
        """An event of the agent's, without its audio. False: it is too long for the client that called,
        which is told."""
        if self.pass_on(kind, without_audio(kind, raw)):
            return True
        words = f"An event of type {kind[:64]} is longer than the data channel takes."
        self.report("event_too_long", words, to=Audience.CLIENT)
        return False

    def answer_error(
        self, source: Audience, now: float, code: str, message: str, *, param: str | None, event_id: str
    ) -> None:
        """An `error` for one party about what it sent. At most 10 a second; no filter keeps it back."""
        self.counts[f"refused_{code}"] += 1
        if not self._error_allowance[source].take(now):
            self.counts["errors_not_sent"] += 1
            return
        self._put(self._error("invalid_request_error", code, message, param, event_id), source)

    def report(
        self,
        code: str,
        message: str,
        *,
        param: str | None = None,
        event_id: str = "",
        to: Audience = EVERYONE,
        kind: str = "server_error",
    ) -> None:
        """An `error` about the call."""
        self._put(self._error(kind, code, message, param, event_id), to)

    def pass_error(self, raw: bytes, to: Audience | None) -> None:
        """An agent's error: to the one it answers, whatever its filter, else to all that may see it."""
        if to is None:
            self.pass_on("error", raw)
        else:
            self._put(raw, to)

    def poll(self) -> tuple[bytes, Audience] | None:
        return self._waiting.popleft() if self._waiting else None

    def _error(self, kind: str, code: str, message: str, param: str | None, event_id: str) -> bytes:
        self._made += 1
        error = {"type": kind, "code": code, "message": message, "param": param, "event_id": event_id or None}
        data = realtime.encode_event({"type": "error", "event_id": f"{_ID}{self._made}", "error": error})
        if self.tap is not None:
            self.tap.note("voicegate", data)
        return data

    def _put(self, raw: bytes, to: Audience) -> bool:
        self._made += 1
        raw = with_event_id(raw, f"{_ID}{self._made}")
        fits = not to & Audience.CLIENT or self._limit is None or len(raw) <= self._limit
        if not fits:
            self.counts["events_too_long"] += 1
            to &= ~Audience.CLIENT
        if to & Audience.CLIENT & ~self._present:
            self._hold(raw)
        to &= self._present
        if to:
            if len(self._waiting) < MAX_WAITING:
                self._waiting.append((raw, to))
            else:
                self.counts["events_dropped"] += 1
        return fits

    def _hold(self, raw: bytes) -> None:
        if len(raw) > MAX_HELD_BYTES:
            self.counts["held_dropped"] += 1
            return
        self._held.append(raw)
        self._held_bytes += len(raw)
        while len(self._held) > MAX_HELD or self._held_bytes > MAX_HELD_BYTES:
            # The oldest but the first: that is session.created, by which clients know where they are.
            at = 1 if len(self._held) > 1 else 0
            self._held_bytes -= len(self._held[at])
            del self._held[at]
            self.counts["held_dropped"] += 1


class Allowance:
    """A bucket of things that may be done, filled in real time."""

    __slots__ = ("_at", "_burst", "_left", "_rate")

    def __init__(self, *, rate: float, burst: float) -> None:
        self._rate = rate
        self._burst = self._left = burst
        self._at: float | None = None

    def take(self, now: float) -> bool:
        if self._at is not None:
            self._left = min(self._burst, self._left + (now - self._at) * self._rate)
        self._at = now
        if self._left < 1.0:
            return False
        self._left -= 1.0
        return True
