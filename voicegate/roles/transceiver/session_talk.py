"""What `SessionUpdates` decides, carried out: updates to the agent, events to the clients. Pure."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any, Final

from voicegate.proto import realtime
from voicegate.roles.transceiver.detection import Detection
from voicegate.roles.transceiver.outbox import Audience, Outbox
from voicegate.roles.transceiver.reading import Refused
from voicegate.roles.transceiver.session import Problem, SendUpdate, SessionOutput, SessionUpdates, Updated
from voicegate.roles.transceiver.upstream import Upstream

_SHORT_SESSION: Final = ("type", "object", "id", "model", "output_modalities")


class SessionTalk:
    """One call's. `detects` is given the turn detection that is in force, whenever it may have changed."""

    def __init__(
        self,
        updates: SessionUpdates,
        upstream: Upstream,
        outbox: Outbox,
        detects: Callable[[Detection, float], None],
    ) -> None:
        self.updates = updates
        self._upstream = upstream
        self._outbox = outbox
        self._detects = detects
        self._greeted = False

    def greeting(self) -> bytes | None:
        """`session.created` for a sideband that comes later; None when the agent is not ready."""
        if not self._greeted:
            return None
        event = {"type": "session.created", "event_id": "event_voicegate_0", "session": self.updates.view()}
        return realtime.encode_event(event)

    def agent_ready(self, configured: bool, now: float) -> None:
        """The agent listens; `configured`: it took the settings it was dialled with."""
        outputs = self.updates.agent_ready(configured, now)
        self._carry_out(outputs, now)
        if not outputs:  # else it comes with what the agent takes of them
            self._greet()

    def agent_says(self, session: dict[str, Any], now: float, *, updated: bool) -> None:
        """The agent's `session.created` or `session.updated`."""
        self._carry_out(self.updates.agent_says(session, now, updated=updated), now)

    def agent_refuses(self, event_id: str, param: str, message: str, now: float) -> None:
        """The agent's error about an update."""
        self._carry_out(self.updates.refused(event_id, param, message, now), now)

    def agent_lost(self, code: str, message: str, now: float) -> None:
        self._carry_out(self.updates.agent_lost(code, message), now)

    def asked(self, session: dict[str, Any], event_id: str, source: Audience, now: float) -> None:
        """A client's `session.update`. Raises Refused."""
        try:
            outputs = self.updates.asked(session, event_id, source, now)
        except ValueError as error:
            raise Refused("invalid_value", f"{error}.", "session.audio.input.turn_detection") from None
        self._carry_out(outputs, now)

    def handle_timeout(self, now: float) -> None:
        self._carry_out(self.updates.handle_timeout(now), now)

    def _carry_out(self, outputs: list[SessionOutput], now: float) -> None:
        for output in outputs:
            match output:
                case SendUpdate(data):
                    self._upstream.send(data)
                case Updated(session, quiet):
                    self._detects(self.updates.detection, now)
                    if self._upstream.ready:
                        self._greet()
                    if not quiet:
                        self._tell("session.updated", session)
                case Problem():
                    self._outbox.report(
                        output.code,
                        output.message,
                        param=output.param,
                        event_id=output.event_id,
                        to=output.source,
                        kind="invalid_request_error",
                    )

    def _greet(self) -> None:
        if not self._greeted:
            self._greeted = True
            self._tell("session.created", self.updates.view())

    def _tell(self, kind: str, session: Mapping[str, Any]) -> None:
        if not self._outbox.make(kind, session=session):
            # It must arrive: without its instructions and tools it does.
            short = {name: session[name] for name in _SHORT_SESSION if name in session}
            self._outbox.make(kind, Audience.CLIENT, session=short)
