"""Events and the microphone on their way to the agent, and which events are the gateway's own. Pure.

They leave at once, also before the agent is there: the dialler keeps them in order with the microphone's
audio, and a `commit` held back here would fall behind what was said after it.
"""

from __future__ import annotations

from collections import Counter, OrderedDict, deque
from typing import Any, Final, Literal, NamedTuple

from voicegate.media.recording import Tap
from voicegate.proto import realtime
from voicegate.roles.transceiver.reading import Refused
from voicegate.roles.transceiver.session import INTERNAL_ID

MAX_EARLY_EVENTS: Final = 800
MAX_EARLY_BYTES: Final = 1024 * 1024
"""Client events for an agent that is still being dialled: a few updates and a history, or
16 s of appended audio; below what the dialler keeps (agents.realtime)."""

MAX_WAITING: Final = 4096
"""Events not yet polled. One input makes a few; only a driver that does not drain reaches this."""

MAX_OWN: Final = 64
"""Own events that an error may still answer."""

What = Literal["cancel", "truncate", "delete", "commit", "create"]

_CONFIRMED_BY: Final[dict[str, What]] = {
    "response.done": "cancel",
    "conversation.item.truncated": "truncate",
    "conversation.item.deleted": "delete",
    "input_audio_buffer.committed": "commit",
    "response.created": "create",
}


_WORDS: Final[dict[What, str]] = {"create": "active_response"}
"""What an error about such an event says, where it is not the event's own word."""


class ToAgent(NamedTuple):
    """Audio and events go in one line, so that a commit stays behind its audio."""

    is_audio: bool
    """24 kHz s16le PCM, else an event as JSON."""
    data: bytes


class Owned(NamedTuple):
    """One of our own events."""

    event_id: str
    what: What


class Upstream:
    """The agent's side of a conversation."""

    def __init__(self) -> None:
        self.ready = False
        self.counts: Counter[str] = Counter()
        self.tap: Tap | None = None
        """Where the gateway's own events are recorded."""
        self._waiting: deque[ToAgent] = deque()
        self._early_events = 0
        self._early_bytes = 0
        self._own: OrderedDict[str, What] = OrderedDict()
        self._serial = 0

    def admit(self, raw: bytes) -> None:
        """A client's event is about to be sent. Raises Refused when too much waits already."""
        if not self.ready and (
            self._early_events >= MAX_EARLY_EVENTS or self._early_bytes + len(raw) > MAX_EARLY_BYTES
        ):
            raise Refused("agent_not_ready", "Too many events are waiting for the agent.")
        if len(self._waiting) >= MAX_WAITING:
            raise Refused("rate_limit_exceeded", "Too many events are waiting for the agent.")
        if not self.ready:
            self._early_events += 1
            self._early_bytes += len(raw)

    def tell(self, what: What, event: dict[str, Any]) -> str:
        """An event of the gateway's own; returns its id. An agent's error about it is nobody else's
        business."""
        self._serial += 1
        event_id = f"{INTERNAL_ID}{what}_{self._serial}"
        self._own[event_id] = what
        if len(self._own) > MAX_OWN:
            self._own.popitem(last=False)
        data = realtime.encode_event(event, event_id)
        if self.tap is not None:
            self.tap.note("voicegate", data)
        self.send(data)
        return event_id

    def send(self, raw: bytes) -> None:
        """An event that was admitted, or of our own."""
        if len(self._waiting) >= MAX_WAITING:
            self.counts["agent_events_dropped"] += 1
            return
        self._waiting.append(ToAgent(False, raw))

    def send_audio(self, pcm: bytes) -> None:
        """Some of the microphone."""
        if len(self._waiting) >= MAX_WAITING:
            self.counts["agent_events_dropped"] += 1
            return
        self._waiting.append(ToAgent(True, pcm))

    def confirmed_by(self, kind: str) -> None:
        """The agent sent an event of this type: the oldest of our own that it may answer has gone well."""
        what = _CONFIRMED_BY.get(kind)
        known = next((event_id for event_id, asked in self._own.items() if asked == what), None)
        if known is not None:
            del self._own[known]

    def owned(self, event_id: str, about: str) -> Owned | None:
        """Which of our own events an error answers, once.

        An error that carries no `event_id` is judged by what it is `about`: its param, code and message.
        """
        if event_id:
            what = self._own.pop(event_id, None)
            return None if what is None else Owned(event_id, what)
        about = about.lower()
        for known, what in self._own.items():
            if _WORDS.get(what, what) in about:
                del self._own[known]
                return Owned(known, what)
        return None

    def poll(self) -> ToAgent | None:
        return self._waiting.popleft() if self._waiting else None
