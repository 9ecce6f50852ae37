"""A Realtime server for tests that calls tools: the parrot, with a script for text.

What it hears it says back, as the parrot does. A text of the user's that names one of the session's tools
gets that tool called; a JSON object behind the name is its arguments. The tool's output is then said aloud:

    user       What does get_time {"zone": "UTC"} say?
    agent      function_call get_time({"zone": "UTC"})
    client     function_call_output 12:00
    agent      "The tool has answered, and it says 12:00"   (espeak, with the transcript)

It keeps what it was sent and what it sent, for judging both by the official models.
"""

from __future__ import annotations

import contextlib
import json
import re
import threading
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from typing import Any, Final

import trio
from trio_websocket import ConnectionClosed, WebSocketRequest, serve_websocket

from tests.support import speech
from voicegate.agents.parrot.conversation import Conversation, Item
from voicegate.agents.parrot.core import ParrotSession
from voicegate.agents.parrot.errors import Refused
from voicegate.agents.parrot.reply import Emit, Reply, Wish, Words
from voicegate.agents.parrot.server import _new_id
from voicegate.agents.parrot.settings import FunctionTool
from voicegate.proto.realtime import MAX_EVENT_BYTES

RATE: Final = 24_000
START_SECONDS: Final = 10.0
ANSWER: Final = "The tool has answered, and it says {}"
"""Some three seconds, long enough to be interrupted."""

Event = dict[str, Any]


@dataclass
class ToolAgent:
    """What one server was told and what it answered, over all its sessions."""

    url: str = ""
    received: list[Event] = field(default_factory=list)
    sent: list[Event] = field(default_factory=list)
    paths: list[str] = field(default_factory=list)
    """Of each WebSocket request, query included."""


@contextlib.contextmanager
def tool_agent(*, picky: bool = False) -> Iterator[ToolAgent]:
    """Serve on a free port, from a thread, until the block is left. `picky`: as a `PickySession`."""
    make = PickySession if picky else ToolSession
    agent = ToolAgent()
    ready = threading.Event()
    stop: list[Callable[[], None]] = []
    failures: list[BaseException] = []

    async def main() -> None:
        async with trio.open_nursery() as nursery:
            server = await nursery.start(
                lambda task_status: serve_websocket(
                    lambda request: _serve(agent, make, request),
                    "127.0.0.1",
                    0,
                    None,
                    max_message_size=MAX_EVENT_BYTES,
                    task_status=task_status,
                )
            )
            agent.url = f"ws://127.0.0.1:{server.port}/v1/realtime"
            token = trio.lowlevel.current_trio_token()
            stop.append(lambda: token.run_sync_soon(nursery.cancel_scope.cancel))
            ready.set()

    def run() -> None:
        try:
            trio.run(main)
        except BaseException as error:
            failures.append(error)
        ready.set()

    thread = threading.Thread(target=run, name="tool agent", daemon=True)
    thread.start()
    assert ready.wait(START_SECONDS) and stop, f"the tool agent did not start: {failures}"
    try:
        yield agent
    finally:
        stop[0]()
        thread.join(START_SECONDS)
    assert not failures, failures


class ToolSession(ParrotSession):
    """A parrot that, asked in text, calls a tool and says what came of it."""

    def _respond(self, now: float, wish: Wish | None = None) -> None:
        reply = None if self._reply is not None else self._scripted(wish or Wish())
        if reply is None:
            super()._respond(now, wish)
            return
        self._owes_reply = False
        self._reply = reply
        self._tell_dropped(reply.start(now))
        self.handle_timeout(now)

    def _scripted(self, wish: Wish) -> Reply | ToolCall | None:
        last = self._conversation.get(self._conversation.last_id)
        if last is None:
            return None
        details = {
            "conversation_id": self._conversation_id,
            "output_modalities": wish.output_modalities or self._settings.output_modalities,
            "metadata": wish.metadata,
        }
        if last.body["type"] == "function_call_output":
            text = ANSWER.format(last.body["output"])
            aloud = "audio" in details["output_modalities"]
            pcm = speech.to_pcm(speech.say(text, RATE)) if aloud else b""
            return Reply(
                Words(pcm, text), self._emit, self._new_id, details=details, conversation=self._conversation
            )
        wanted = self._wanted_tool(last)
        if wanted is None:
            return None
        name, arguments = wanted
        return ToolCall(
            name, arguments, self._emit, self._new_id, details=details, conversation=self._conversation
        )

    def _wanted_tool(self, item: Item) -> tuple[str, str] | None:
        if item.body.get("role") != "user" or self._settings.tool_choice == "none":
            return None
        said = " ".join(part.get("text", "") for part in item.body["content"])
        for tool in self._settings.tools:
            assert isinstance(tool, FunctionTool), "the only kind that the settings take"
            if found := re.search(rf"\b{re.escape(tool.name)}\b\s*(\{{.*\}})?", said):
                return tool.name, found[1] or "{}"
        return None


class PickySession(ToolSession):
    """Refuses, one at a time, what open servers refuse of the settings that OpenAI's clients send."""

    def receive_event_untrusted(self, text: str | bytes, now: float) -> None:
        event = json.loads(text)
        refused = _foreign(event["session"]) if event["type"] == "session.update" else None
        if refused is None:
            super().receive_event_untrusted(text, now)
        else:
            error = Refused("unknown_parameter", f"Unknown parameter: '{refused}'.", refused)
            self._emit_error(error, event.get("event_id", ""))


def _foreign(session: Event) -> str | None:
    heard = session.get("audio", {}).get("input", {})
    if (heard.get("turn_detection") or {}).get("type") == "semantic_vad":
        return "session.audio.input.turn_detection.type"
    if "noise_reduction" in heard:
        return "session.audio.input.noise_reduction"
    if "transcription" in heard:
        return "session.audio.input.transcription"
    return next((f"session.{name}" for name in ("tracing", "model") if name in session), None)


class ToolCall:
    """A response that is one function call. Driven as a `Reply`; over as soon as it has begun."""

    def __init__(
        self,
        name: str,
        arguments: str,
        emit: Emit,
        new_id: Callable[[str], str],
        *,
        details: Event,
        conversation: Conversation,
    ) -> None:
        self.id = new_id("resp")
        self.next_at: float | None = None
        self._arguments = arguments
        self._emit_plain = emit
        self._details = details
        self._conversation = conversation
        body = {
            "id": new_id("item"),
            "object": "realtime.item",
            "type": "function_call",
            "status": "in_progress",
            "call_id": new_id("call"),
            "name": name,
            "arguments": "",
        }
        self.item = Item(body["id"], body)

    def start(self, now: float) -> list[str]:
        body, item_id, call_id = self.item.body, self.item.id, self.item.body["call_id"]
        self._emit("response.created", response=self._body("in_progress", []))
        self._emit("response.output_item.added", output_index=0, item=dict(body), response_id=self.id)
        previous, dropped = self._conversation.add(self.item)
        self._emit("conversation.item.added", previous_item_id=previous, item=dict(body))
        place = {"response_id": self.id, "item_id": item_id, "output_index": 0, "call_id": call_id}
        self._emit("response.function_call_arguments.delta", **place, delta=self._arguments)
        self._emit(
            "response.function_call_arguments.done", **place, arguments=self._arguments, name=body["name"]
        )
        body.update(arguments=self._arguments, status="completed")
        self._emit("conversation.item.done", previous_item_id=previous, item=dict(body))
        self._emit("response.output_item.done", output_index=0, item=dict(body), response_id=self.id)
        self._emit("response.done", response=self._body("completed", [dict(body)]))
        self.next_at = now  # the session looks once more, and finds it over
        return dropped

    def handle_timeout(self, now: float) -> None:
        self.next_at = None

    def _body(self, status: str, output: list[Event]) -> Event:
        over = {"type": "completed"} if status == "completed" else None
        return {
            "id": self.id,
            "object": "realtime.response",
            "status": status,
            "status_details": over,
            "output": output,
            **self._details,
        }

    def _emit(self, kind: str, **fields: Any) -> None:
        self._emit_plain({"type": kind, **fields})


async def _serve(agent: ToolAgent, make: type[ToolSession], request: WebSocketRequest) -> None:
    agent.paths.append(request.path)
    with contextlib.suppress(ConnectionClosed):
        connection = await request.accept()
        session = make(_new_id, trio.current_time(), time.time(), model="tool-agent")
        while not session.closed:
            while (event := session.poll_transmit()) is not None:
                agent.sent.append(json.loads(event))
                await connection.send_message(event.decode())
            with trio.move_on_at(session.next_deadline()):
                message = await connection.get_message()
                with contextlib.suppress(ValueError):
                    agent.received.append(json.loads(message))
                session.receive_event_untrusted(message, trio.current_time())
            session.handle_timeout(trio.current_time())
