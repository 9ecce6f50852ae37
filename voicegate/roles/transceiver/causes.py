"""Which client's event an agent's error answers. Pure."""

from __future__ import annotations

from collections import OrderedDict, deque
from typing import Final

from voicegate.roles.transceiver.outbox import Audience

MAX_SENDERS: Final = 256
"""Ids of client events remembered: errors come within a round trip or not at all."""

MAX_CREATES: Final = 32
"""`response.create` events without an answer. Official clients send one at a time."""


class Causes:
    """What clients have sent to the agent lately, by event id. Bounded, the oldest forgotten first."""

    def __init__(self) -> None:
        self._senders: OrderedDict[str, Audience] = OrderedDict()
        self._creates: deque[str] = deque(maxlen=MAX_CREATES)
        """Ids of `response.create` events that neither a response nor an error has answered."""

    def sent(self, kind: str, event_id: str, source: Audience) -> None:
        if not event_id:
            return
        self._senders[event_id] = source
        if len(self._senders) > MAX_SENDERS:
            self._senders.popitem(last=False)
        if kind == "response.create":
            self._creates.append(event_id)

    def response_created(self) -> None:
        """The agent took the oldest `response.create`, or began by itself."""
        if self._creates:
            self._creates.popleft()

    def knows(self, event_id: str) -> bool:
        return event_id in self._senders

    def find(self, event_id: str) -> tuple[str, Audience | None]:
        """The event that an error with this id answers and who sent it; None: nobody in particular.

        An error without an id is taken for the answer to the oldest `response.create`: official clients wait
        for no other event's error.
        """
        if event_id in self._creates:
            self._creates.remove(event_id)
        elif not event_id and self._creates:
            event_id = self._creates.popleft()
        return event_id, self._senders.get(event_id)
