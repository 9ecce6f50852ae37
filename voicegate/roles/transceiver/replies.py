"""The responses that the gateway asks for: one at a time, and none while another is open. Pure.

An agent refuses `response.create` while a response is open, one that is being cancelled too. So what is
wanted waits for `response.done`, which always comes (`responses`).
"""

from __future__ import annotations

from typing import Final

from voicegate.roles.transceiver.responses import Responses
from voicegate.roles.transceiver.upstream import Upstream

ASK_SECONDS: Final = 10.0
"""How long an agent may take from `response.create` to `response.created`. One that says neither that nor an
error is asked again at the next turn's end."""


class Replies:
    """One call's. After a change of `responses`, call `advance`."""

    def __init__(self, upstream: Upstream, responses: Responses) -> None:
        self._upstream = upstream
        self._responses = responses
        self._wanted = False
        self._asked = ""  # the event that is out
        self._asked_at = 0.0
        self._unwanted = False  # what is out

    def want(self, now: float) -> None:
        """The agent's turn: ask for a response as soon as it can be had."""
        self._wanted = True
        self.advance(now)

    def forget(self) -> None:
        """The person speaks again: no reply is wanted any more, also none that is on its way."""
        self._wanted = False
        self._unwanted = bool(self._asked)

    def advance(self, now: float) -> None:
        if not self._wanted or self._responses.open(spoken_only=True):
            return
        if self._asked and now < self._asked_at + ASK_SECONDS:
            return
        self._wanted = False
        self._asked = self._upstream.tell("create", {"type": "response.create"})
        self._asked_at = now
        self._unwanted = False

    @property
    def free(self) -> bool:
        """Nothing is asked for, and no response is open: the next one can be had at once."""
        return not (self._wanted or self._asked or self._responses.open(spoken_only=True))

    def created(self) -> bool:
        """The agent has begun a response; whether nobody wants it any more."""
        self._asked = ""
        unwanted, self._unwanted = self._unwanted, False
        return unwanted

    def refused(self, event_id: str, about: str) -> None:
        """The agent's error about an event of ours. Another response was open: ask again behind it."""
        if event_id == self._asked or not event_id:
            self._wanted = bool(self._asked) and not self._unwanted and "active_response" in about
            self._asked, self._unwanted = "", False
