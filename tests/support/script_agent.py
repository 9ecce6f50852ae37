"""A Realtime server whose every word is the test's: it answers at once and keeps what it was told.

    with script_agent() as agent, one_process(tmp_path, agent_url=agent.url) as gate:
        ...
        agent.told("response.cancel"), agent.say("response.output_text.delta", ...)

Everything that it is sent and everything that it says is held against the official models.
"""

from __future__ import annotations

import base64
import contextlib
import json
import math
import threading
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from typing import Any

from websockets.exceptions import ConnectionClosed
from websockets.sync.server import ServerConnection, serve

from tests.support.models import CLIENT_TYPES, Event, client_event, server_event

VOICE = b"\x10\x20" * 24_000
"""A second of it."""


@dataclass
class ScriptAgent:
    url: str = ""
    events: list[Event] = field(default_factory=list)
    """What it was told, without appends."""
    times: list[float] = field(default_factory=list)
    """When, beside `events`."""
    appends: int = 0
    faults: list[str] = field(default_factory=list)
    """What came and is no client event of the official models."""
    seconds: float = 6.0
    """How long its answers are; the whole audio is sent at once."""
    voice: bytes = b""
    """All that it says, instead of `seconds` of VOICE."""
    heard: bytearray | None = None
    """Where the sound it is sent is kept."""
    on: dict[str, Callable[[Event], list[Event]]] = field(default_factory=dict)
    """Other answers, by type."""
    connection: ServerConnection | None = None
    connections: int = 0
    _made: int = 0
    _speaking: str = ""

    def say(self, kind: str, **fields: Any) -> None:
        """One event, over the newest connection."""
        assert self.connection is not None, "nobody is connected"
        self._send(self.connection, {"type": kind, **fields})

    def told(self, kind: str) -> list[Event]:
        return [event for event in list(self.events) if event["type"] == kind]

    def hang_up(self) -> None:
        """End the newest connection."""
        assert self.connection is not None
        self.connection.close()

    def serve_one(self, connection: ServerConnection) -> None:
        with contextlib.suppress(ConnectionClosed, OSError):
            self.connection = connection
            self.connections += 1
            session = {"type": "realtime", "model": "script", "object": "realtime.session", "id": "sess_1"}
            self._send(connection, {"type": "session.created", "session": session})
            for message in connection:
                self._receive(connection, message)

    def _receive(self, connection: ServerConnection, message: str | bytes) -> None:
        if (
            b'"input_audio_buffer.append"'
            in (message.encode() if isinstance(message, str) else message)[:200]
        ):
            self.appends += 1
            if self.heard is not None:
                self.heard += base64.b64decode(json.loads(message)["audio"])
            return
        try:
            event = client_event(message)
        except ValueError as error:
            self.faults.append(f"{message[:200]!r}: {error}")
            return
        if event["type"] not in CLIENT_TYPES:
            self.faults.append(f"unknown type {event['type']}")
        self.times.append(time.monotonic())
        self.events.append(event)
        answer = self.on.get(event["type"], self._answer)
        for said in answer(event):
            self._send(connection, said)

    def _answer(self, event: Event) -> list[Event]:
        match event["type"]:
            case "session.update":
                return [{"type": "session.updated", "session": event["session"]}]
            case "conversation.item.create":
                return [{"type": "conversation.item.added", "previous_item_id": None, "item": event["item"]}]
            case "input_audio_buffer.commit":
                return [{"type": "input_audio_buffer.committed", "item_id": "u1", "previous_item_id": None}]
            case "input_audio_buffer.clear":
                return [{"type": "input_audio_buffer.cleared"}]
            case "response.create":
                return self._speak()
            case "response.cancel" if self._speaking:
                ended, self._speaking = self._speaking, ""
                return [{"type": "response.done", "response": response(ended, "cancelled")}]
            case _:
                return []

    def _speak(self) -> list[Event]:
        """A whole answer but for its `response.done`, which waits for `finish` or a cancel."""
        self._made += 1
        self._speaking = f"resp_{self._made}"
        place = {
            "response_id": self._speaking,
            "item_id": f"item_{self._made}",
            "output_index": 0,
            "content_index": 0,
        }
        said: list[Event] = [
            {"type": "response.created", "response": response(self._speaking, "in_progress")},
            {"type": "response.content_part.added", "part": {"type": "audio", "transcript": ""}, **place},
        ]
        voice = self.voice or (VOICE * math.ceil(self.seconds))[: round(self.seconds * 24_000) * 2]
        for at in range(0, len(voice), len(VOICE)):
            delta = base64.b64encode(voice[at : at + len(VOICE)]).decode()
            said.append({"type": "response.output_audio.delta", "delta": delta, **place})
        return [*said, {"type": "response.output_audio.done", **place}]

    def finish(self) -> None:
        """`response.done` of the answer under way."""
        ended, self._speaking = self._speaking, ""
        self.say("response.done", response=response(ended, "completed"))

    def _send(self, connection: ServerConnection, event: Event) -> None:
        self._made += 1
        text = json.dumps({"event_id": f"event_{self._made}", **event})
        server_event(text)
        connection.send(text)


def response(response_id: str, status: str) -> Event:
    return {"id": response_id, "object": "realtime.response", "status": status, "output": []}


@contextlib.contextmanager
def script_agent(**settings: Any) -> Iterator[ScriptAgent]:
    """Serves in threads of this process. AssertionError at the end for anything that was no client event."""
    agent = ScriptAgent(**settings)
    with serve(agent.serve_one, "127.0.0.1", 0, compression=None, max_size=1 << 24) as server:
        agent.url = f"ws://127.0.0.1:{server.socket.getsockname()[1]}/v1/realtime"
        thread = threading.Thread(target=server.serve_forever, daemon=True)
        thread.start()
        try:
            yield agent
        finally:
            server.shutdown()
            thread.join(5)
    assert not agent.faults, agent.faults[:3]
