"""Events on their way to the agent, and which of them are the gateway's own. Pure.

They leave at once, also before the agent is there: the dialler keeps them in order with the microphone's
audio, and a `commit` held back here would fall behind what was said after it.
"""

from __future__ import annotations

from collections import Counter, OrderedDict, deque
from typing import Any, Final, Literal

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

What = Literal["cancel", "truncate", "delete"]

_CONFIRMED_BY: Final[dict[str, What]] = {
    "response.done": "cancel",
    "conversation.item.truncated": "truncate",
    "conversation.item.deleted": "delete",
}


class Upstream:
    """The agent's side of a conversation."""

    def __init__(self) -> None:
        self.ready = False
        self.counts: Counter[str] = Counter()
        self.tap: Tap | None = None
        """Where the gateway's own events are recorded."""
        self._waiting: deque[bytes] = deque()
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

    def tell(self, what: What, event: dict[str, Any]) -> None:
        """An event of the gateway's own. An agent's error about it is nobody else's business."""
        self._serial += 1
        event_id = f"{INTERNAL_ID}{what}_{self._serial}"
        self._own[event_id] = what
        if len(self._own) > MAX_OWN:
            self._own.popitem(last=False)
        data = realtime.encode_event(event, event_id)
        if self.tap is not None:
            self.tap.note("voicegate", data)
        self.send(data)

    def send(self, raw: bytes) -> None:
        """An event that was admitted, or of our own."""
        if len(self._waiting) >= MAX_WAITING:
            self.counts["agent_events_dropped"] += 1
            return
        self._waiting.append(raw)

    def confirmed_by(self, kind: str) -> None:
        """The agent sent an event of this type: the oldest of our own that it may answer has gone well."""
        what = _CONFIRMED_BY.get(kind)
        known = next((event_id for event_id, asked in self._own.items() if asked == what), None)
        if known is not None:
            del self._own[known]

    def owns(self, event_id: str, about: str) -> bool:
        """Whether an error that carries no `event_id` answers one of our own events.

        It is judged by what it is `about`: its param, code and message.
        """
        if event_id:
            return False
        about = about.lower()
        for known, what in self._own.items():
            if what in about:
                del self._own[known]
                return True
        return False

    def poll(self) -> bytes | None:
        return self._waiting.popleft() if self._waiting else None
