"""Whose business an error of the agent's is: of a client that sent what it answers, or ours alone. Pure."""

from __future__ import annotations

from voicegate.proto.realtime import AgentError
from voicegate.roles.transceiver.causes import Causes
from voicegate.roles.transceiver.outbox import Outbox
from voicegate.roles.transceiver.reading import error_param, with_cause
from voicegate.roles.transceiver.session import INTERNAL_ID
from voicegate.roles.transceiver.session_talk import SessionTalk
from voicegate.roles.transceiver.turns import Turns
from voicegate.roles.transceiver.upstream import Upstream


class AgentErrors:
    """One conversation's."""

    def __init__(
        self, session: SessionTalk, turns: Turns, upstream: Upstream, causes: Causes, outbox: Outbox
    ) -> None:
        self._session = session
        self._turns = turns
        self._upstream = upstream
        self._causes = causes
        self._outbox = outbox

    def receive(self, event: AgentError, now: float) -> None:
        """Bring it to whoever it is about: the session's updates, the turns, or the client that caused it."""
        param = error_param(event.raw)
        about = f"{param} {event.code} {event.message}"
        if self._session.updates.owns(event.event_id, about):
            self._session.agent_refuses(event.event_id, param, event.message, now)
        elif self._is_internal(event.event_id, about, now):
            self._outbox.counts["internal_errors"] += 1
        else:
            self._turns.client_refused(event.event_id, about)
            event_id, sender = self._causes.find(event.event_id)
            raw = event.raw if event_id == event.event_id else with_cause(event.raw, event_id)
            self._outbox.pass_error(raw, sender)

    def _is_internal(self, event_id: str, about: str, now: float) -> bool:
        """Whether it answers what the gateway sent on its own account."""
        if not self._upstream.ready:
            # The dialler's session.update; nothing else is out yet.
            return bool(self._session.updates.effective)
        if self._causes.knows(event_id):
            return False
        if (owned := self._upstream.owned(event_id, about)) is not None:
            self._turns.refused(owned.what, owned.event_id, about, now)
            return True
        return event_id.startswith(INTERNAL_ID)
