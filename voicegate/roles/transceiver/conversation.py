"""What the agent's events become for the clients of a call, what the clients' events become for the agent,
and what both do to the sound. Pure.

    agent ── deltas ──► Playback ──► the call's media         (never to a client)
          ── all else ─► stripped of audio ─► Outbox ─► clients, each through its filter
    clients ─► checked, session.update through SessionUpdates ─► agent
    a person begins to speak, output_audio_buffer.clear, response.cancel ─► `interrupt`

Drain discipline: after each call of a method that takes `now`, take the call's microphone PCM (`poll_audio`)
first, then `poll_to_agent`, then `poll_to_clients`, then read `next_deadline`. The order of the first two is
what keeps `commit` and `clear` in their place behind the audio before them. `handle_timeout` is due at
`next_deadline`, after the call's own timer where both are due; and once when the call has connected.

Decisions. Client events of unknown type are passed on: the agent knows what it understands, and says so.
`input_audio_buffer.append` from a client is passed on too, in its place among the microphone's audio: it is
one of the API's client events and the only way in for a client without a microphone; an allow-list can forbid
it. `output_audio_buffer.*` of the agent are not believed, the buffer is here.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, Final

from voicegate.media.recording import Tap
from voicegate.proto import realtime
from voicegate.proto.errors import BadPacket
from voicegate.proto.realtime import (
    AgentError,
    AudioDelta,
    AudioDone,
    OtherEvent,
    ResponseCreated,
    ResponseDone,
    ServerEvent,
    SpeechStarted,
    SpeechStopped,
)
from voicegate.roles.transceiver.audio import Press
from voicegate.roles.transceiver.causes import Causes
from voicegate.roles.transceiver.outbox import NO_FILTERS, Allowance, Audience, Filters, Outbox
from voicegate.roles.transceiver.playback import CLIENT_DELAY, CallMedia, Heard, Playback
from voicegate.roles.transceiver.reading import (
    MAX_DEPTH,
    Refused,
    error_param,
    session_of,
    too_deep,
    utf8,
    with_cause,
)
from voicegate.roles.transceiver.responses import Ended, Reason, Responses, Tell
from voicegate.roles.transceiver.session import (
    INTERNAL_ID,
    Problem,
    SendUpdate,
    SessionOutput,
    SessionUpdates,
    Updated,
)
from voicegate.roles.transceiver.strip import without_audio
from voicegate.roles.transceiver.upstream import Upstream

EVENTS_PER_SECOND: Final = 1000.0
EVENTS_BURST: Final = 4000.0
"""What a client may send: twenty times a 20-ms append, and a long history at once."""

KEYS_PER_SECOND: Final = 20.0
KEYS_BURST: Final = 40.0
"""Keys of a client's keypad. A browser that types as fast as it may makes 14 a second (40 ms of tone and 30
of pause, W3C WebRTC section 7.2), and a number has some 20 digits."""


class Conversation:
    """One call's clients and its agent.

    `session`: the settings that the agent's dialler asks for, and `formats` the audio formats in them.
    """

    def __init__(
        self,
        media: CallMedia,
        *,
        session: Mapping[str, Any] | None = None,
        filters: Mapping[Audience, Filters] = NO_FILTERS,
        max_client_message: int | None = None,
        client_delay: float = CLIENT_DELAY,
        formats: realtime.Formats = realtime.PCM_FORMATS,
    ) -> None:
        self.interruptions = 0
        self._media = media
        self._outbox = Outbox(filters, max_client_message)
        self._playback = Playback(media, client_delay=client_delay)
        self._responses = Responses()
        self._session = SessionUpdates(session or {}, formats)
        self._upstream = Upstream()
        self._greeted = False
        self._causes = Causes()
        self._allowance = {
            source: Allowance(rate=EVENTS_PER_SECOND, burst=EVENTS_BURST) for source in Audience
        }
        self._key_allowance = Allowance(rate=KEYS_PER_SECOND, burst=KEYS_BURST)
        self._lost = ""
        self._tap: Tap | None = None

    def record(self, tap: Tap) -> None:
        """Leave every event that passes from now on there."""
        self._tap = self._outbox.tap = self._upstream.tap = tap

    def report(self, code: str, message: str) -> None:
        """Tell the sidebands of something about the call that is not the client's business."""
        self._outbox.report(code, message, to=Audience.SIDEBAND)

    # Who is there

    def joined(self, audience: Audience, now: float) -> None:
        """The data channel is open, or the first sideband has come."""
        self._outbox.joined(audience)

    def left(self, audience: Audience, now: float) -> None:
        """The data channel is closed, or the last sideband has gone."""
        self._outbox.left(audience)

    def greeting(self) -> bytes | None:
        """`session.created` for a sideband that comes later; None when the agent is not ready."""
        if not self._greeted:
            return None
        event = {"type": "session.created", "event_id": "event_voicegate_0", "session": self._session.view()}
        return realtime.encode_event(event)

    def agent_ready(self, configured: bool, now: float) -> None:
        """The agent listens; `configured`: it took the settings it was dialled with."""
        self._upstream.ready = True
        outputs = self._session.agent_ready(configured, now)
        self._session_outputs(outputs)
        if not outputs:  # else it comes with what the agent takes of them
            self._greet()

    def agent_lost(self, now: float, reason: str) -> None:
        """The agent is gone and does not come back: everything that was begun is ended."""
        if self._lost:
            return
        self._lost = reason
        message = f"The connection to the agent was lost ({reason})."
        self._playback.interrupt(now)
        self._buffer_events()
        for ended in self._responses.agent_lost(reason, message):
            self._outbox.make("response.done", response=ended.response)
        self._session_outputs(self._session.agent_lost("agent_lost", message))
        self._outbox.report("agent_lost", message)

    # Events in

    def receive_agent_event(self, event: ServerEvent, now: float) -> None:
        """Take one event of the agent."""
        if self._lost:
            return
        if self._tap is not None and not isinstance(event, AudioDelta):
            self._tap.note("agent", event.raw)
        match event:
            case AudioDelta():
                response_id = event.response_id or self._responses.latest()
                if self._responses.may_play(response_id):
                    self._playback.play(response_id, event.item_id, event.content_index, event.pcm, now)
            case AudioDone():
                self._pass("response.output_audio.done", event.raw)
                self._playback.audio_done(event.response_id or self._responses.latest(), event.item_id, now)
            case SpeechStarted():
                self._pass("input_audio_buffer.speech_started", event.raw)
                self._speech_started(now)
            case SpeechStopped():
                self._pass("input_audio_buffer.speech_stopped", event.raw)
            case ResponseCreated():
                self._response_created(event)
            case ResponseDone():
                self._response_done(event, now)
            case AgentError():
                self._agent_error(event, now)
            case OtherEvent():
                self._other_agent_event(event, now)
        self._buffer_events()

    def receive_client_event_untrusted(self, text: str | bytes, now: float, *, source: Audience) -> None:
        """Take one message of a client. Never raises: what is wrong with it becomes an `error` event."""
        event_id = ""
        try:
            if not self._allowance[source].take(now):
                raise Refused("rate_limit_exceeded", "Too many events.")
            raw = utf8(text)
            kind, event_id = realtime.peek_client_event_untrusted(raw)
            if not kind:
                raise Refused("invalid_type", "An event needs a type, which is a string.", "type")
            if not self._outbox.allows(source, kind):
                raise Refused("event_not_allowed", f"Events of type {kind[:64]!r} are not allowed.", "type")
            if self._lost:
                raise Refused("agent_lost", f"The connection to the agent was lost ({self._lost}).")
            self._client_event(kind, event_id, raw, source, now)
            if self._tap is not None and kind != "input_audio_buffer.append":
                self._tap.note("client" if source is Audience.CLIENT else "sideband", raw)
        except BadPacket as bad:
            self._refuse(
                source, now, Refused(bad.reason, f"The event cannot be read ({bad.reason})."), event_id
            )
        except Refused as refused:
            self._refuse(source, now, refused, event_id)
        self._buffer_events()

    def client_message_rejected(self, reason: str, now: float, *, source: Audience) -> None:
        """A message of a client could not even be handed over: too_large, invalid_utf8, unknown_ppid."""
        self._refuse(source, now, Refused(reason, f"The message cannot be read ({reason})."), "")
        self._buffer_events()

    # Sound

    def key_pressed(self, press: Press, now: float) -> None:
        """The client pressed a key. It is a server's event, so clients are told and the agent is not."""
        if self._key_allowance.take(now):
            kind = "input_audio_buffer.dtmf_event_received"
            self._outbox.make(kind, event=press.key, received_at=int(press.wall))
        else:
            self._outbox.counts["keys_dropped"] += 1

    def interrupt(self, now: float, reason: Reason, *, told: bool = False) -> None:
        """Silence, at once, and let the agent know how much was heard.

        `told`: a `response.cancel` is on its way. This is where a turn machine comes in.
        """
        audible = self._playback.responses
        cut = self._playback.interrupt(now)
        for response_id in audible:
            self._responses.mute(response_id)
        if reason == "turn_detected":
            for response_id in self._responses.open(spoken_only=True):
                self._responses.mute(response_id)
                self._responses.cancelled(response_id, reason, now, told=told)
        if audible:
            self.interruptions += 1
        for heard in cut:
            if not self._responses.owe(heard):
                self._truncate(heard)

    # Time and outputs

    def handle_timeout(self, now: float) -> None:
        """Do what is due. Too often does no harm."""
        self._playback.advance(now)
        self._buffer_events()
        if self._lost:
            return
        for due in self._responses.handle_timeout(now):
            match due:
                case Tell(response_id):
                    self._upstream.tell("cancel", {"type": "response.cancel", "response_id": response_id})
                case Ended():
                    self._end(due, now)
        self._session_outputs(self._session.handle_timeout(now))
        self._buffer_events()

    def next_deadline(self) -> float | None:
        deadline, response = self._playback.next_deadline(), self._responses.next_deadline()
        if response is not None and (deadline is None or response < deadline):
            deadline = response
        update = self._session.next_deadline()
        return update if update is not None and (deadline is None or update < deadline) else deadline

    def poll_to_agent(self) -> bytes | None:
        """The next event for the agent, as JSON."""
        return self._upstream.poll()

    def poll_to_clients(self) -> tuple[bytes, Audience] | None:
        """The next event for clients, as JSON, and for whom: one of them or both."""
        return self._outbox.poll()

    def statistics(self) -> dict[str, int]:
        """Counts by name."""
        return {
            **self._outbox.counts,
            **self._upstream.counts,
            "interruptions": self.interruptions,
            "deltas_dropped": self._playback.dropped_deltas,
        }

    # The agent's events

    def _other_agent_event(self, event: OtherEvent, now: float) -> None:
        kind = event.type
        if kind.startswith("output_audio_buffer."):
            self._outbox.counts["foreign_buffer_events"] += 1
        elif kind in ("session.created", "session.updated"):
            session = session_of(event.raw)
            if session is None:
                self._pass(kind, event.raw)
                return
            self._session_outputs(self._session.agent_says(session, now, updated=kind == "session.updated"))
        else:
            self._pass(kind, event.raw)

    def _response_created(self, event: ResponseCreated) -> None:
        self._causes.response_created()
        for ended in self._responses.created(event.response_id, event.raw):
            self._outbox.make("response.done", response=ended.response)
        self._pass("response.created", event.raw)

    def _response_done(self, event: ResponseDone, now: float) -> None:
        response_id = event.response_id or self._responses.latest()
        if not self._responses.done(response_id):
            self._outbox.counts["late_response_done"] += 1
            return
        if not self._pass("response.done", event.raw):
            # It must arrive: without its output it does.
            status = event.status if event.status in _STATUSES else "completed"
            short = {"id": response_id, "object": "realtime.response", "status": status, "output": []}
            self._outbox.make("response.done", Audience.CLIENT, response=short)
        self._playback.response_done(response_id, now)
        self._settle_truncations(response_id)

    def _agent_error(self, event: AgentError, now: float) -> None:
        param = error_param(event.raw)
        about = f"{param} {event.code} {event.message}"
        if self._session.owns(event.event_id, about):
            self._session_outputs(self._session.refused(event.event_id, param, event.message, now))
        elif self._is_internal(event.event_id, about):
            self._outbox.counts["internal_errors"] += 1
        else:
            event_id, sender = self._causes.find(event.event_id)
            raw = event.raw if event_id == event.event_id else with_cause(event.raw, event_id)
            self._outbox.pass_error(raw, sender)

    def _is_internal(self, event_id: str, about: str) -> bool:
        """Whether an agent's error answers what the gateway sent on its own account."""
        if not self._upstream.ready:
            return bool(self._session.effective)  # the dialler's session.update; nothing else is out yet
        if event_id.startswith(INTERNAL_ID):
            return not self._causes.knows(event_id)
        return self._upstream.owns(event_id, about)

    def _speech_started(self, now: float) -> None:
        if self._session.interrupts:
            self.interrupt(now, "turn_detected")

    # The clients' events

    def _client_event(self, kind: str, event_id: str, raw: bytes, source: Audience, now: float) -> None:
        if kind == "input_audio_buffer.append":
            if not self._session.takes_appends():
                raise Refused("invalid_value", _NO_APPENDS, "audio")
            if raw.count(b"{") + raw.count(b"[") > MAX_DEPTH:
                raise BadPacket("client_event_depth")
            self._upstream.admit(raw)
            self._upstream.send(raw)
            return
        event = realtime.decode_client_event_untrusted(raw)
        if too_deep(raw, event):
            raise BadPacket("client_event_depth")
        if kind == "output_audio_buffer.clear":
            self.interrupt(now, "client_cancelled")
            return
        session = event.get("session") if kind == "session.update" else {}
        if not isinstance(session, dict):
            raise Refused("missing_required_parameter", "session.update needs a session.", "session")
        self._upstream.admit(raw)
        self._causes.sent(kind, event_id, source)
        match kind:
            case "session.update":
                self._session_outputs(self._session.asked(session, event_id, source, now))
                return
            case "input_audio_buffer.commit":
                self._media.flush_microphone(now)
            case "input_audio_buffer.clear":
                self._media.drop_microphone(now)
        self._upstream.send(raw)
        if kind == "response.cancel":
            self._cancel(event.get("response_id"), now)

    def _cancel(self, response_id: object, now: float) -> None:
        """A client's `response.cancel` has gone out."""
        named = response_id if isinstance(response_id, str) and response_id else None
        target = named or self._responses.latest()
        self._responses.cancelled(target, "client_cancelled", now, told=True)
        # Without a name it means whatever is being said, also when the agent has already finished saying it.
        if named is None or self._playback.holds(named):
            self.interrupt(now, "client_cancelled", told=True)
        self._responses.mute(target)

    def _refuse(self, source: Audience, now: float, refused: Refused, event_id: str) -> None:
        self._outbox.answer_error(
            source, now, refused.code, refused.message, param=refused.param, event_id=event_id
        )

    # What follows

    def _greet(self) -> None:
        if not self._greeted:
            self._greeted = True
            self._tell_session("session.created", self._session.view())

    def _session_outputs(self, outputs: list[SessionOutput]) -> None:
        for output in outputs:
            match output:
                case SendUpdate(data):
                    self._upstream.send(data)
                case Updated(session, quiet):
                    if self._upstream.ready:
                        self._greet()
                    if not quiet:
                        self._tell_session("session.updated", session)
                case Problem():
                    self._outbox.report(
                        output.code,
                        output.message,
                        param=output.param,
                        event_id=output.event_id,
                        to=output.source,
                        kind="invalid_request_error",
                    )

    def _tell_session(self, kind: str, session: Mapping[str, Any]) -> None:
        if not self._outbox.make(kind, session=session):
            # It must arrive: without its instructions and tools it does.
            short = {name: session[name] for name in _SHORT_SESSION if name in session}
            self._outbox.make(kind, Audience.CLIENT, session=short)

    def _end(self, ended: Ended, now: float) -> None:
        """A cancelled response that the agent has not ended."""
        self._outbox.counts["responses_ended_here"] += 1
        self._outbox.make("response.done", response=ended.response)
        self._playback.response_done(ended.response_id, now)
        self._settle_truncations(ended.response_id)

    def _settle_truncations(self, response_id: str) -> None:
        for heard in self._responses.owed(response_id):
            self._truncate(heard)

    def _truncate(self, heard: Heard) -> None:
        if not heard.item_id:
            return  # a server without item ids keeps no items to correct
        if heard.milliseconds:
            truncate = {
                "type": "conversation.item.truncate",
                "item_id": heard.item_id,
                "content_index": heard.content_index,
                "audio_end_ms": heard.milliseconds,
            }
            self._upstream.tell("truncate", truncate)
        else:
            # A truncation to nothing is refused by some servers, and an item nobody heard was never said.
            self._upstream.tell("delete", {"type": "conversation.item.delete", "item_id": heard.item_id})

    def _buffer_events(self) -> None:
        while (event := self._playback.poll_event()) is not None:
            self._outbox.make(f"output_audio_buffer.{event.kind}", response_id=event.response_id)

    def _pass(self, kind: str, raw: bytes) -> bool:
        self._upstream.confirmed_by(kind)
        if self._outbox.pass_on(kind, without_audio(kind, raw)):
            return True
        words = f"An event of type {kind[:64]} is longer than the data channel takes."
        self._outbox.report("event_too_long", words, to=Audience.CLIENT)
        return False


_NO_APPENDS: Final = "Appended audio is 24 kHz PCM or G.711, as the session says and as the agent hears it."
_SHORT_SESSION: Final = ("type", "object", "id", "model", "output_modalities")
_STATUSES: Final = frozenset(("completed", "cancelled", "failed", "incomplete"))
