"""The public WebSockets: a call's sideband, and the agent itself.

    GET /v1/realtime?call_id=rtc_...   events of a call, from whichever transceiver owns it
    GET /v1/realtime?model=...         a session with the agent, without WebRTC

Both are a pair of legs, the client's and ours, and two pumps between them. A pump takes the next message only
when the other leg has taken the last one, so that in each direction at most a message waits here.
"""

from __future__ import annotations

import time
from collections import Counter
from collections.abc import Awaitable, Callable, Iterable, Iterator
from contextlib import contextmanager
from urllib.parse import parse_qs

import trio

from voicegate import logs, metrics
from voicegate.agents.dialing import dial
from voicegate.agents.websocket import AgentLost, WebSocket
from voicegate.config import AgentConfig
from voicegate.net.http import error_body, serve_socket
from voicegate.net.registry import TransceiverRecord
from voicegate.net.websocket import (
    CLOSE_SECONDS,
    INTERNAL_ERROR,
    TOO_BIG,
    ServerSocket,
    SocketClosed,
    sendable,
)
from voicegate.proto import realtime
from voicegate.proto.errors import BadPacket
from voicegate.proto.event_filter import EventFilter
from voicegate.roles.signaling.control import ControlClient, Unreachable
from voicegate.roles.signaling.keys import Caller, Denied, Key, KeyLimits

PATH = "/v1/realtime"
SUBPROTOCOL = "realtime"
REFUSAL_SECONDS = 0.02
"""When a refusal that could tell a guesser something is sent, counted from the request: a forged id or key,
which asks nobody, takes as long as a call whose transceiver had to be asked (1 to 5 ms)."""
SESSION_EVENT_ID = "voicegate_session"
"""The id of the `session.update` that carries an `ek_`'s session."""

_log = logs.get_logger(__name__)


class Sockets:
    """Serves them, and knows how many there are. One per process."""

    def __init__(
        self,
        agent: AgentConfig,
        control: ControlClient,
        limits: KeyLimits,
        max_sockets: int,
        owner_of: Callable[[str], TransceiverRecord | None],
        begin: Callable[[Key], Awaitable[None]],
        admit: Callable[[ServerSocket], Caller],
    ) -> None:
        """`owner_of` finds a call's transceiver. `begin` counts a session against its key's limits, `admit`
        says who asks; both raise Denied."""
        self._agent = agent
        self._control = control
        self._limits = limits
        self._max_sockets = max_sockets
        self._owner_of = owner_of
        self._begin = begin
        self._admit = admit
        self._scopes: set[trio.CancelScope] = set()
        self._admitted = 0
        """Those that had a key: strangers must not use up the room of others."""
        self._results: Counter[str] = Counter()

    async def serve(self, socket: ServerSocket) -> None:
        """One WebSocket, from its request to its end."""
        with trio.CancelScope() as scope:
            self._scopes.add(scope)
            try:
                await serve_socket(socket, self._serve_or_refuse)
            finally:
                self._scopes.discard(scope)

    def close(self) -> None:
        """End them all, with 1001."""
        for scope in tuple(self._scopes):
            scope.cancel()

    def samples(self) -> Iterable[metrics.Sample]:
        name = "voicegate_signaling_websockets"
        yield metrics.Sample(name, "gauge", "WebSockets open now.", {}, self._admitted)
        name = "voicegate_signaling_websockets_total"
        for result, count in self._results.items():
            yield metrics.Sample(name, "counter", "WebSockets by outcome.", {"result": result}, count)

    async def _serve_or_refuse(self, socket: ServerSocket) -> None:
        not_before = trio.current_time() + REFUSAL_SECONDS
        try:
            await self._serve(socket)
        except Denied as denied:
            self._results[denied.code] += 1
            if denied.status < 500:
                await trio.sleep_until(not_before)
            body = error_body(denied.status, denied.code, str(denied), denied.param)
            await socket.refuse(denied.status, body, denied.headers())

    async def _serve(self, socket: ServerSocket) -> None:
        if socket.path != PATH:
            raise Denied(404, "not_found", f"There is no WebSocket {socket.path[:200]} here.")
        caller = self._admit(socket)
        if self._admitted >= self._max_sockets:
            raise Denied(503, "overloaded", "Too many WebSockets are open; try again.", retry_after=5)
        query = parse_qs(socket.query, keep_blank_values=True)
        self._admitted += 1
        try:
            if "call_id" in query:
                await self._sideband(socket, caller, query["call_id"][0])
            else:
                await self._to_agent(socket, caller, query.get("model", [""])[0])
        finally:
            self._admitted -= 1

    async def _sideband(self, socket: ServerSocket, caller: Caller, call_id: str) -> None:
        key = caller.standard_key("open a sideband")
        record = self._owner_of(call_id)
        try:
            wire = (
                None if record is None else await self._control.sideband(record.control, call_id, key.owner)
            )
        except Unreachable as error:
            assert record is not None, "only a transceiver that was asked cannot answer"
            _log.warning("a transceiver does not answer", transceiver=record.id, error=str(error))
            raise Denied(
                503, "overloaded", "The call's transceiver does not answer; try again.", retry_after=2
            ) from None
        if wire is None:
            message = "No session found for the provided call_id."
            raise Denied(404, "call_id_not_found", message, "call_id")
        self._results["sideband"] += 1
        _log.info("sideband opened", call=call_id, key=key.id)
        leg = _Leg(socket, wire, EventFilter(), EventFilter())
        await leg.run(b"", self._agent.stall_seconds)
        _log.info("sideband closed", call=call_id, why=leg.why)

    async def _to_agent(self, socket: ServerSocket, caller: Caller, asked: str) -> None:
        model = caller.model(asked)
        key = caller.key
        if not self._agent.url:
            raise Denied(503, "agent_not_configured", "This server has no agent.url to connect to.")
        await self._begin(key)
        try:
            wire = await self._dial_agent(model, caller.safety_identifier)
            self._results["agent"] += 1
            session = dict(caller.session(None) or {})
            session.pop("model", None)  # it is on the URL, and cannot be changed
            first = b""
            if session:
                first = realtime.encode_session_update({"type": "realtime", **session}, SESSION_EVENT_ID)
            leg = _Leg(socket, wire, EventFilter(key.client_events), EventFilter(key.server_events))
            _log.info("WebSocket to the agent opened", key=key.id, model=model)
            await leg.run(first, self._agent.stall_seconds)
            _log.info("WebSocket to the agent closed", key=key.id, why=leg.why)
        finally:
            self._limits.end(key)

    async def _dial_agent(self, model: str, safety_identifier: str) -> WebSocket:
        url, headers = dial(self._agent, model)
        if safety_identifier.isascii() and safety_identifier.isprintable() and safety_identifier:
            headers.append(("OpenAI-Safety-Identifier", safety_identifier))
        try:
            with trio.fail_after(self._agent.connect_seconds):
                return await WebSocket.open(url, headers, max_message=realtime.MAX_EVENT_BYTES)
        except (AgentLost, trio.TooSlowError) as error:
            _log.warning("the agent cannot be reached", error=str(error))
            raise Denied(
                502, "agent_unreachable", "The agent behind this server cannot be reached.", retry_after=2
            ) from None


class _Leg:
    """A client's WebSocket joined to ours."""

    def __init__(self, socket: ServerSocket, wire: WebSocket, sends: EventFilter, hears: EventFilter) -> None:
        """`sends` and `hears`: the events that the client may send, and is told."""
        self._socket = socket
        self._wire = wire
        self._sends = sends
        self._hears = hears
        self._clear = trio.Event()
        self._gone = False
        """The client has gone; what still comes is read and thrown away."""
        self.why = ""
        """What ended it, for the log."""

    async def run(self, first: bytes, stall_seconds: float) -> None:
        """Accept, send `first` to our side, and pump until either side ends; its close code goes to the
        other."""
        with _closing(self._wire):
            offered = self._socket.subprotocols
            await self._socket.accept(SUBPROTOCOL if SUBPROTOCOL in offered else None)
            if first:
                self._wire.send_text_nowait(first)
            code, reason = INTERNAL_ERROR, ""
            async with trio.open_nursery() as nursery:

                async def until_the_end(work: Callable[[], Awaitable[None]]) -> None:
                    nonlocal code, reason
                    try:
                        await work()
                    except AgentLost as lost:
                        code, reason = lost.code or INTERNAL_ERROR, lost.text
                        self.why = self.why or str(lost)
                    except SocketClosed as closed:
                        self.why, self._gone = self.why or f"client: {closed}", True
                        await self._say_goodbye(closed.code)
                    nursery.cancel_scope.cancel()

                nursery.start_soon(until_the_end, self._from_client)
                nursery.start_soon(until_the_end, self._from_us)
                nursery.start_soon(
                    until_the_end, lambda: self._wire.keep_moving(stall_seconds, self._on_clear)
                )
            await self._socket.close(sendable(code), reason)

    async def _from_client(self) -> None:
        while True:
            text = await self._socket.receive()
            if self._sends.is_open:
                event = text.encode()
            else:
                event, refusal = _filtered(text, self._sends)
                if refusal:
                    await self._socket.send(refusal)
                    continue
            self._clear = trio.Event()
            self._wire.send_text_nowait(event)
            if not self._wire.clear:
                await self._clear.wait()

    async def _from_us(self) -> None:
        while True:
            for message in await self._wire.receive():
                text = message if isinstance(message, str) else message.decode("utf-8", "replace")
                if not self._gone and (self._hears.is_open or self._hears.allows(_type_of(text))):
                    await self._socket.send(text)
            if self._wire.oversized:
                raise AgentLost("agent_protocol", "a message was too large", code=TOO_BIG)

    def _on_clear(self) -> None:
        self._clear.set()

    async def _say_goodbye(self, code: int) -> None:
        """Pass the client's close on, and wait a moment for the other side's answer."""
        self._wire.begin_close(sendable(code))
        with trio.move_on_after(CLOSE_SECONDS):
            await trio.sleep_forever()  # `_from_us` ends the wait


def _filtered(text: str, allowed: EventFilter) -> tuple[bytes, str]:
    """The event as it may be sent on and "", or the `error` event for one that this key's clients may not
    send.

    What goes on is written anew: two readers must not see two types in one text.
    """
    code, message, event_id = "invalid_event", "The event is not a JSON object with a string `type`.", None
    try:
        event = realtime.decode_client_event_untrusted(text)
        kind, event_id = event.get("type"), event.get("event_id")
        if isinstance(kind, str):
            if allowed.allows(kind):
                return realtime.encode_event(event), ""
            code, message = "event_not_allowed", "This API key may not send events of this type."
    except BadPacket:
        pass
    error = {
        "type": "invalid_request_error",
        "code": code,
        "message": message,
        "param": "type",
        "event_id": event_id if isinstance(event_id, str) else None,
    }
    refusal = {"type": "error", "error": error}
    return b"", realtime.encode_event(refusal, f"event_{time.monotonic_ns():x}").decode()


def _type_of(text: str) -> str:
    try:
        return realtime.peek_client_event_untrusted(text).type
    except BadPacket:
        return ""


@contextmanager
def _closing(wire: WebSocket) -> Iterator[None]:
    try:
        yield
    finally:
        wire.close()
