"""The Realtime client: one agent for one call.

    agent = RealtimeAgent(config.agent, call_id, on_event=call.on_agent_event, readers=readers)
    nursery.start_soon(agent.run)
    agent.send_audio_nowait(pcm)      # from the first packet on, whether the agent is there yet or not

Life: connecting → (session.created) → configuring → (session.updated) → ready → over. Until it is ready,
microphone audio and events wait in a `Waiting`; from then on a frame goes from `send_audio_nowait` to
the socket in the caller's turn. Order between audio and events is kept throughout.
"""

from __future__ import annotations

import ssl
from collections import Counter, deque
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from enum import Enum, auto
from typing import Any, Final

import trio

from voicegate.agents.dialing import audio_formats, configured_session, dial
from voicegate.agents.readers import Readers
from voicegate.agents.waiting import FLOOD_SECONDS, FloodMeter, Waiting
from voicegate.agents.websocket import AgentLost, WebSocket
from voicegate.config import AgentConfig
from voicegate.logs import get_logger
from voicegate.media.convert import open_converter
from voicegate.media.sound import PCM_LINE, Line, sound_of
from voicegate.proto import realtime
from voicegate.proto.errors import BadPacket
from voicegate.proto.realtime import AgentError, AudioDelta, OtherEvent, ServerEvent

MAX_MESSAGE: Final = 6 * 1024 * 1024
"""The largest event that is read: 98 s of audio in one delta, where servers send a second or less. The API
names no limit for its own events (15 MiB is for a client's append). One this large takes 6 to 9 ms to decode,
in one piece: half a frame of all other calls. Larger ones are skipped and counted: messages_oversized."""
TURN_EVENTS: Final = 16
TURN_BYTES: Final = 65_536
"""After so many events, or so much JSON (one read of the socket), all other tasks have their turn: about a
millisecond of work. What an ordinary agent sends at once is less."""
MAX_BAD_EVENTS: Final = 100
"""Events that could not be read before the agent is given up: more than a rare slip, at most a few seconds of
nonsense."""
CONFIGURE_SECONDS: Final = 5.0
"""How long `session.updated` is waited for; the official JavaScript client waits as long."""
CLOSE_SECONDS: Final = 2.0
"""How long the peer's close frame is waited for after `close`."""


@dataclass(frozen=True, slots=True)
class AgentReady:
    """The agent listens; what waited has been sent. `configured`: it confirmed our `session.update`."""

    configured: bool


AgentEvent = AgentReady | ServerEvent


class _Life(Enum):
    CONNECTING = auto()
    """Until `session.created`."""
    CONFIGURING = auto()
    """Our `session.update` is out."""
    READY = auto()
    CLOSING = auto()
    """`close` was called; the peer's close frame is waited for."""
    OVER = auto()


class RealtimeAgent:
    """A call's agent over its Realtime WebSocket. One Trio thread; `run` once.

    `on_event` is called in the reader's turn, in order; what it raises ends `run`.
    A ready agent is read in the turns of whoever calls `readers.read`; no task wakes for what it says.
    `model` goes before the one configured; `session` goes over `settings.session`. `line` is the call's.
    Raises ConfigError when the settings cannot be used.
    """

    def __init__(
        self,
        settings: AgentConfig,
        call_id: str,
        *,
        on_event: Callable[[AgentEvent], None],
        model: str = "",
        session: Mapping[str, Any] | None = None,
        line: Line = PCM_LINE,
        readers: Readers,
        ssl_context: ssl.SSLContext | None = None,
    ) -> None:
        self._settings = settings
        self._url, self._headers = dial(settings, model)
        formats = audio_formats(settings)
        self._session = realtime.session_settings(
            configured_session(settings), session or {}, formats=formats
        )
        self._to_agent = open_converter(line.heard, sound_of(formats["input"]))
        self._speaks = sound_of(formats["output"])
        self._from_agent = open_converter(self._speaks, line.said)
        """None: the agent's audio is the call's."""
        self._tls = ssl_context
        self._readers = readers
        self._on_event = on_event
        self._log = get_logger(__name__).bind(call=call_id)
        self._scope = trio.CancelScope()
        self._wire: WebSocket | None = None
        self._life = _Life.CONNECTING
        self._waiting = Waiting()
        self._inbox: deque[str | bytes | AudioDelta] = deque()
        """What came and is not handed on yet: the messages of one read, or the seconds of one delta."""
        self._flood = FloodMeter()
        self._odd: tuple[str, bytes] = ("", b"")
        self._counts: Counter[str] = Counter()
        self._bad_events = 0

    def send_audio_nowait(self, pcm: bytes) -> None:
        """Microphone audio, as `line.heard`. Never blocks; bounded (`MAX_WAITING_AUDIO`)."""
        wire = self._wire
        if self._to_agent is not None:
            pcm = self._to_agent.convert(pcm)
            if not pcm:
                return  # less than one of the agent's samples; the next call brings it
        if self._life is _Life.READY and wire is not None and not self._waiting.items and wire.clear:
            wire.send_text_nowait(realtime.encode_append(pcm))
        elif self._life is not _Life.OVER:
            self._counts["audio_bytes_dropped"] += self._waiting.push_audio(pcm)

    def send_event_nowait(self, event: Mapping[str, Any] | bytes) -> bool:
        """A client event, as an object or as JSON. False: the agent takes nothing and too much waits
        already."""
        data = event if isinstance(event, bytes) else realtime.encode_event(event)
        if self._life is _Life.OVER or not self._waiting.push_event(data):
            self._counts["events_dropped"] += 1
            return False
        self._send_waiting()
        return True

    async def run(self, *, task_status: trio.TaskStatus[None] = trio.TASK_STATUS_IGNORED) -> None:
        """Connect, configure, pump. Started when ready; returns after `close`; raises AgentLost.

        Reasons: agent_unreachable, agent_timeout, agent_refused, agent_closed, agent_protocol, agent_stalled,
        agent_flood (more than FLOOD_EVENTS or FLOOD_BYTES within FLOOD_SECONDS).
        """
        try:
            with self._scope:
                await self._run(task_status)
        except AgentLost as lost:
            if self._life is _Life.CLOSING:
                return
            self._log.warning("agent lost", reason=lost.reason, detail=lost.detail, **self._counts)
            raise
        finally:
            self._life = _Life.OVER
            if self._wire is not None:
                self._wire.close()

    def close(self) -> None:
        """End the session cleanly; `run` returns within `CLOSE_SECONDS`."""
        if self._wire is not None and self._life is not _Life.OVER:
            self._life = _Life.CLOSING
            self._wire.begin_close()
            self._scope.deadline = trio.current_time() + CLOSE_SECONDS
        else:
            self._scope.cancel()

    def statistics(self) -> dict[str, int]:
        """Counts by name: bad_<reason>, audio_bytes_dropped, events_dropped, messages_oversized; and what
        waits."""
        return {
            **self._counts,
            "messages_oversized": self._wire.oversized if self._wire is not None else 0,
            "waiting_audio_bytes": self._waiting.audio_bytes,
            "waiting_events": self._waiting.events,
        }

    async def _run(self, task_status: trio.TaskStatus[None]) -> None:
        try:
            with trio.fail_after(self._settings.connect_seconds):
                wire = await WebSocket.open(
                    self._url,
                    self._headers,
                    max_message=MAX_MESSAGE,
                    ssl_context=self._tls,
                )
                self._wire = wire
                while self._life is _Life.CONNECTING:
                    await self._receive(wire)
        except trio.TooSlowError:
            raise AgentLost("agent_timeout", "no session.created in time") from None
        lost: list[AgentLost] = []

        async def watched(work: Callable[[], Any], scope: trio.CancelScope) -> None:
            try:
                await work()
            except AgentLost as reason:
                lost.append(reason)
                scope.cancel()

        async with trio.open_nursery() as nursery:
            nursery.start_soon(watched, self._keep_moving, nursery.cancel_scope)
            await watched(lambda: self._pump(wire, task_status), nursery.cancel_scope)
        if lost:
            raise lost[0]

    async def _keep_moving(self) -> None:
        assert self._wire is not None, "started once connected"
        await self._wire.keep_moving(self._settings.stall_seconds, self._send_waiting)

    async def _pump(self, wire: WebSocket, task_status: trio.TaskStatus[None]) -> None:
        wire.send_text_nowait(realtime.encode_session_update(self._session, "voicegate_session"))
        with trio.move_on_after(CONFIGURE_SECONDS):
            while self._life is _Life.CONFIGURING:
                await self._receive(wire)
        if self._life is _Life.CONFIGURING:
            self._log.warning("agent did not confirm the session's settings", seconds=CONFIGURE_SECONDS)
            self._become_ready(configured=False)
        task_status.started()
        while self._inbox or wire.unread:
            await self._receive(wire)
        await self._readers.read_until_failure(wire, self._read)

    async def _receive(self, wire: WebSocket) -> None:
        """One turn of bounded work, in order. What is left waits in `_inbox`, also over a cancellation."""
        if self._inbox:
            await trio.lowlevel.checkpoint()
        else:
            self._inbox.extend(await wire.receive())
        self._handle_inbox(wire)

    def _read(self) -> bool:
        """The same without waiting; whether there is more in `_inbox`."""
        wire = self._wire
        assert wire is not None, "read once ready"
        if not self._inbox:
            self._inbox.extend(wire.receive_nowait())
        self._handle_inbox(wire)
        return bool(self._inbox)

    def _handle_inbox(self, wire: WebSocket) -> None:
        inbox = self._inbox
        events = size = 0
        while inbox and events < TURN_EVENTS and size < TURN_BYTES:
            item = inbox.popleft()
            events += 1
            if isinstance(item, AudioDelta):
                self._hand_on(item, item.pcm)
            else:
                size += len(item)
                self._on_message(item)
        if self._bad_events + wire.oversized > MAX_BAD_EVENTS:
            raise AgentLost("agent_protocol", "too many events that cannot be read")
        if self._flood.exceeded(events, size, trio.current_time()):
            raise AgentLost("agent_flood", f"too much within {FLOOD_SECONDS:.0f} s")

    def _on_message(self, message: str | bytes) -> None:
        try:
            event = realtime.decode_server_event_untrusted(message)
        except BadPacket as bad:
            self._count_bad(bad.reason)
            return
        if isinstance(event, AudioDelta):
            self._on_audio(event)
        else:
            self._on_event(event)
            if self._life in (_Life.CONNECTING, _Life.CONFIGURING):
                self._advance(event)

    def _advance(self, event: ServerEvent) -> None:
        """The steps from connected to ready."""
        match event:
            case OtherEvent("session.created") if self._life is _Life.CONNECTING:
                self._life = _Life.CONFIGURING
            case OtherEvent("session.updated") if self._life is _Life.CONFIGURING:
                self._become_ready(configured=True)
            case AgentError() if self._life is _Life.CONFIGURING:
                # It would not take some of our settings. It may well work with its own.
                self._log.warning(
                    "agent refused the session's settings", code=event.code, message=event.message
                )
                self._become_ready(configured=False)

    def _become_ready(self, *, configured: bool) -> None:
        self._life = _Life.READY
        self._send_waiting()
        self._on_event(AgentReady(configured))

    def _on_audio(self, event: AudioDelta) -> None:
        # Servers that pass on a byte stream cut it anywhere: half a sample belongs to the next delta of
        # the item.
        item_id, rest = self._odd
        if self._from_agent is not None and item_id != event.item_id:
            self._from_agent.begin()
        pcm = rest + event.pcm if rest and item_id == event.item_id else event.pcm
        whole = len(pcm) - len(pcm) % self._speaks.sample_bytes
        most = self._speaks.bytes_per_second
        self._odd = (event.item_id, pcm[whole:])
        if whole != len(pcm):
            self._counts["audio_odd"] += 1
            pcm = pcm[:whole]
        if not pcm:
            self._counts["audio_empty"] += 1
        elif whole > most:  # it is handed on as several events of at most a second, with the same ids
            ids = (event.response_id, event.item_id, event.content_index)
            starts = range(0, whole, most)
            self._inbox.extendleft(AudioDelta(*ids, pcm[at : at + most]) for at in reversed(starts))
        else:
            self._hand_on(event, pcm)

    def _hand_on(self, event: AudioDelta, pcm: bytes) -> None:
        """Whole samples of the agent's, no more than a second, as the call's line has them."""
        if self._from_agent is not None:
            pcm = self._from_agent.convert(pcm)
        if pcm is event.pcm:
            self._on_event(event)
        else:
            self._on_event(AudioDelta(event.response_id, event.item_id, event.content_index, pcm))

    def _count_bad(self, reason: str) -> None:
        self._counts[f"bad_{reason}"] += 1
        self._bad_events += 1
        if self._bad_events == 1:  # one line a call; the rest is in the counts
            self._log.warning("agent sent an event that cannot be read", reason=reason)

    def _send_waiting(self) -> None:
        wire = self._wire
        while self._life is _Life.READY and wire is not None and wire.clear and self._waiting:
            wire.send_text_nowait(self._waiting.pop())
