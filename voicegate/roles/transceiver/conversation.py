"""What the agent's events become for the clients of a call, what the clients' events become for the agent,
and what both do to the sound. Pure.

    agent ── deltas ──► Playback ──► the call's media         (never to a client)
          ── all else ─► stripped of audio ─► Outbox ─► clients, each through its filter
    clients ─► checked, session.update through SessionUpdates ─► agent
    microphone ─► Turns ─► agent
    a person begins to speak, output_audio_buffer.clear, response.cancel ─► `Answers.interrupt`

Drain discipline: after the call or the conversation was given anything, call `hear_microphone`, then drain
`poll_to_agent`, then `poll_to_clients`, then read `next_deadline`. `handle_timeout` is due at
`next_deadline`, after the call's own timer where both are due; and once when the call has connected.

Decisions. Client events of unknown type are passed on: the agent knows what it understands, and says so.
`input_audio_buffer.append` from a client is passed on too, in its place among the microphone's audio: it is
one of the API's client events and the only way in for a client without a microphone; an allow-list can forbid
it. `output_audio_buffer.*` of the agent are not believed, the buffer is here.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, Final

from voicegate.media.playout import DEFAULT_LIMIT_SECONDS
from voicegate.media.recording import Tap
from voicegate.media.sound import PCM
from voicegate.media.turns.plugins import Verdict
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
from voicegate.roles.transceiver.agent_errors import AgentErrors
from voicegate.roles.transceiver.answers import Answers
from voicegate.roles.transceiver.audio import Press
from voicegate.roles.transceiver.causes import Causes
from voicegate.roles.transceiver.detection import Mode
from voicegate.roles.transceiver.outbox import NO_FILTERS, Allowance, Audience, Filters, Outbox
from voicegate.roles.transceiver.playback import CLIENT_DELAY, CallMedia
from voicegate.roles.transceiver.reading import (
    MAX_DEPTH,
    Refused,
    session_of,
    too_deep,
    utf8,
)
from voicegate.roles.transceiver.responses import Ended
from voicegate.roles.transceiver.session import SessionUpdates
from voicegate.roles.transceiver.session_talk import SessionTalk
from voicegate.roles.transceiver.turn_events import WATCH
from voicegate.roles.transceiver.turn_plan import NO_PLAN, TurnPlan
from voicegate.roles.transceiver.turns import Turns
from voicegate.roles.transceiver.upstream import ToAgent, Upstream

EVENTS_PER_SECOND: Final = 1000.0
EVENTS_BURST: Final = 4000.0
"""What a client may send: twenty times a 20-ms append, and a long history at once."""

KEYS_PER_SECOND: Final = 20.0
KEYS_BURST: Final = 40.0
"""Keys of a client's keypad. A browser that types as fast as it may makes 14 a second (40 ms of tone and 30
of pause, W3C WebRTC section 7.2), and a number has some 20 digits."""

MAX_APPEND: Final = 10 * 1000 * realtime.BYTES_PER_MS
"""Bytes of audio in one event, where turns are detected here: a few ms of work in one piece."""

_TOO_MUCH_AUDIO: Final = (
    f"The agent is more than {DEFAULT_LIMIT_SECONDS:.0f} s ahead of what is heard: the rest is not played."
)


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
        turns: TurnPlan = NO_PLAN,
    ) -> None:
        self._media = media
        self._outbox = Outbox(filters, max_client_message)
        self._upstream = Upstream()
        self._answers = Answers(media, self._upstream, client_delay=client_delay)
        self._playback = self._answers.playback
        self._responses = self._answers.responses
        self.turns = Turns(turns, media, self._upstream, self._outbox, self._answers)
        updates = SessionUpdates(session or {}, formats, turns.ability, turns.defaults)
        self._session = SessionTalk(updates, self._upstream, self._outbox, self.turns.configure)
        self.turns.configure(updates.detection, 0.0)
        self._causes = Causes()
        self._errors = AgentErrors(self._session, self.turns, self._upstream, self._causes, self._outbox)
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

    def first_session(self) -> dict[str, Any]:
        """What the agent's first `session.update` is to ask for."""
        return self._session.updates.first

    # Who is there

    def joined(self, audience: Audience, now: float) -> None:
        """The data channel is open, or the first sideband has come."""
        self._outbox.joined(audience)

    def left(self, audience: Audience, now: float) -> None:
        """The data channel is closed, or the last sideband has gone."""
        self._outbox.left(audience)

    def greeting(self) -> bytes | None:
        """`session.created` for a sideband that comes later; None when the agent is not ready."""
        return self._session.greeting()

    def agent_ready(self, configured: bool, now: float) -> None:
        """The agent listens; `configured`: it took the settings it was dialled with."""
        self._upstream.ready = True
        self._session.agent_ready(configured, now)

    def agent_lost(self, now: float, reason: str) -> None:
        """The agent is gone and does not come back: everything that was begun is ended."""
        if self._lost:
            return
        self._lost = reason
        message = f"The connection to the agent was lost ({reason})."
        self._playback.interrupt(now)
        self._buffer_events(now)
        for ended in self._responses.agent_lost(reason, message):
            self._tell_done(ended)
        self.turns.close(now)
        self._session.agent_lost("agent_lost", message, now)
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
                if not self._answers.play(event, now):
                    self._outbox.report("agent_audio_overflow", _TOO_MUCH_AUDIO)
            case AudioDone():
                self._pass("response.output_audio.done", event.raw)
                self._answers.audio_done(event, now)
            case SpeechStarted():
                self._speech_started(event, now)
            case SpeechStopped():
                self._speech_stopped(event, now)
            case ResponseCreated():
                self._response_created(event, now)
            case ResponseDone():
                self._response_done(event, now)
            case AgentError():
                self._errors.receive(event, now)
            case OtherEvent():
                self._other_agent_event(event, now)
        self._buffer_events(now)

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
        self._buffer_events(now)

    def client_message_rejected(self, reason: str, now: float, *, source: Audience) -> None:
        """A message of a client could not even be handed over: too_large, invalid_utf8, unknown_ppid."""
        self._refuse(source, now, Refused(reason, f"The message cannot be read ({reason})."), "")
        self._buffer_events(now)

    # Sound

    def key_pressed(self, press: Press, now: float) -> None:
        """The client pressed a key. It is a server's event, so clients are told and the agent is not."""
        if self._key_allowance.take(now):
            kind = "input_audio_buffer.dtmf_event_received"
            self._outbox.make(kind, event=press.key, received_at=int(press.wall))
        else:
            self._outbox.counts["keys_dropped"] += 1

    def hear_microphone(self, now: float) -> None:
        """Take what the microphone brought, for the agent."""
        while (pcm := self._media.poll_audio()) is not None:
            if self._tap is not None:
                self._tap.hear(pcm, now)
            self.turns.hear(pcm, now)
            self._buffer_events(now)

    def take_verdict(self, verdict: Verdict, now: float) -> None:
        """What a judge in a thread has answered."""
        self.turns.take_verdict(verdict, now)
        self._buffer_events(now)

    # Time and outputs

    def handle_timeout(self, now: float) -> None:
        """Do what is due. Too often does no harm."""
        self._playback.advance(now)
        self.turns.handle_timeout(now)
        self._buffer_events(now)
        if self._lost:
            return
        for ended in self._answers.handle_timeout(now):
            self._outbox.counts["responses_ended_here"] += 1
            self._tell_done(ended)
            self._response_over(ended.response_id, now)
        self._session.handle_timeout(now)
        self._buffer_events(now)

    def next_deadline(self) -> float | None:
        deadline = self._playback.next_deadline()
        response, turn = self._responses.next_deadline(), self.turns.next_deadline()
        if response is not None and (deadline is None or response < deadline):
            deadline = response
        if turn is not None and (deadline is None or turn < deadline):
            deadline = turn
        update = self._session.updates.next_deadline()
        return update if update is not None and (deadline is None or update < deadline) else deadline

    def poll_to_agent(self) -> ToAgent | None:
        """The next event or audio for the agent."""
        return self._upstream.poll()

    def poll_to_clients(self) -> tuple[bytes, Audience] | None:
        """The next event for clients, as JSON, and for whom: one of them or both."""
        return self._outbox.poll()

    def statistics(self) -> dict[str, int]:
        """Counts by name."""
        return {
            **self._outbox.counts,
            **self._upstream.counts,
            "interruptions": self._answers.interruptions,
            "deltas_dropped": self._playback.dropped_deltas,
            **self.turns.statistics(),
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
            self._session.agent_says(session, now, updated=kind == "session.updated")
        else:
            self.turns.agent_event(kind, event.raw, now)
            self._pass(kind, event.raw)

    def _response_created(self, event: ResponseCreated, now: float) -> None:
        self._causes.response_created()
        for ended in self._responses.created(event.response_id, event.raw):
            self._tell_done(ended)
        self.turns.response_created(event.response_id, now)
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
        self._response_over(response_id, now)

    def _speech_started(self, event: SpeechStarted, now: float) -> None:
        if self.turns.mode is Mode.GATEWAY:
            return  # the agent was told not to listen for speech; the clients have heard of it from here
        self._pass("input_audio_buffer.speech_started", event.raw)
        if self.turns.agent_heard_speech(interrupts=self._session.updates.interrupts):
            self._answers.interrupt(now, "turn_detected")

    def _speech_stopped(self, event: SpeechStopped, now: float) -> None:
        if self.turns.mode is not Mode.GATEWAY:
            self._pass("input_audio_buffer.speech_stopped", event.raw)
            self.turns.agent_heard_silence(now)

    # The clients' events

    def _client_event(self, kind: str, event_id: str, raw: bytes, source: Audience, now: float) -> None:
        if kind == "input_audio_buffer.append":
            if not self._session.updates.takes_appends():
                raise Refused("invalid_value", _NO_APPENDS, "audio")
            if raw.count(b"{") + raw.count(b"[") > MAX_DEPTH:
                raise BadPacket("client_event_depth")
            self._append(raw, now)
            return
        event = realtime.decode_client_event_untrusted(raw)
        if too_deep(raw, event):
            raise BadPacket("client_event_depth")
        if kind == WATCH:
            self.turns.events.watch(source)
            return
        if kind == "output_audio_buffer.clear":
            self._answers.interrupt(now, "client_cancelled")
            self.turns.output_emptied(now)
            return
        session = event.get("session") if kind == "session.update" else {}
        if not isinstance(session, dict):
            raise Refused("missing_required_parameter", "session.update needs a session.", "session")
        self._upstream.admit(raw)
        self._causes.sent(kind, event_id, source)
        match kind:
            case "session.update":
                self._session.asked(session, event_id, source, now)
                return
            case "input_audio_buffer.commit":
                self._media.flush_microphone(now)
                self.hear_microphone(now)
                self.turns.client_commits(event_id, now)
            case "input_audio_buffer.clear":
                self._media.drop_microphone(now)
                self.turns.client_clears(now)
        self._upstream.send(self.turns.for_agent(kind, raw))
        if kind == "response.cancel":
            self._answers.client_cancels(event.get("response_id"), now)
            self.turns.output_emptied(now)

    def _append(self, raw: bytes, now: float) -> None:
        """Audio of a client that has no microphone, or not only."""
        if self.turns.mode in (Mode.UPSTREAM, Mode.MANUAL) or self._media.line.heard != PCM:
            self._upstream.admit(raw)
            self._upstream.send(raw)
            return
        pcm = realtime.decode_append_untrusted(raw)  # turns are detected here, in this too
        if len(pcm) % 2 or len(pcm) > MAX_APPEND:
            raise Refused("invalid_value", "Append 16-bit samples, and at most ten seconds.", "audio")
        self.turns.hear(pcm, now)

    def _refuse(self, source: Audience, now: float, refused: Refused, event_id: str) -> None:
        self._outbox.answer_error(
            source, now, refused.code, refused.message, param=refused.param, event_id=event_id
        )

    # What follows

    def _tell_done(self, ended: Ended) -> None:
        if not self.turns.hides(ended.response_id):
            self._outbox.make("response.done", response=ended.response)

    def _response_over(self, response_id: str, now: float) -> None:
        self._answers.over(response_id, now)
        self.turns.response_over(response_id, now)
        self.turns.output_ending(now)

    def _buffer_events(self, now: float) -> None:
        while (event := self._playback.poll_event()) is not None:
            self._outbox.make(f"output_audio_buffer.{event.kind}", response_id=event.response_id)
            self.turns.output(event.kind, event.response_id, now)

    def _pass(self, kind: str, raw: bytes) -> bool:
        self._upstream.confirmed_by(kind)
        shown = self.turns.show(kind, raw)
        return shown is None or self._outbox.pass_from_agent(kind, shown)


_NO_APPENDS: Final = "Appended audio is 24 kHz PCM or G.711, as the session says and as the agent hears it."
_STATUSES: Final = frozenset(("completed", "cancelled", "failed", "incomplete"))
