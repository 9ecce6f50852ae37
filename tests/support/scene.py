"""A call's conversation and its sound on virtual time, with a scripted agent or a parrot above it.

The sound is the call's own (`CallAudio`, G.711 for speed); only transport is left out. What goes to clients
and to the agent is validated against the official models on the way.
"""

from __future__ import annotations

import base64
import json
from itertools import count
from typing import Any

import msgspec

from tests.support.models import CLIENT_EVENT, CLIENT_TYPES, SERVER_EVENT, SERVER_TYPES, Event, official
from voicegate.agents.parrot.core import ParrotSession
from voicegate.media.codec import FRAME_SAMPLES, open_encoder
from voicegate.proto import realtime
from voicegate.proto.rtp import build_rtp
from voicegate.proto.sdp import AudioFormat, Codec
from voicegate.roles.transceiver.audio import CallAudio
from voicegate.roles.transceiver.conversation import Conversation
from voicegate.roles.transceiver.outbox import Audience

STEP = 0.02


class Scene:
    """One call. `parrot`: it answers; otherwise a test plays the agent with `agent`."""

    def __init__(
        self,
        *,
        parrot: dict[str, Any] | None = None,
        start: bool = True,
        listening: bool = True,
        session: Event | None = None,
        configured: bool | None = True,
        **options: Any,
    ) -> None:
        self.now = 100.0
        self.audio = CallAudio(
            AudioFormat(0, Codec.PCMU, 8000, 1),
            listening=listening,
            ssrc=1,
            cname="c",
            first_sequence=1,
            first_timestamp=1,
            random=lambda: 0.5,
            wall_offset=0.0,
            now=self.now,
        )
        self.conversation = Conversation(self.audio, session=session, **options)
        self.to_client: list[Event] = []
        self.to_sideband: list[Event] = []
        self.times: list[tuple[float, str]] = []
        """When which event went to the client."""
        self.upstream: list[Event] = []
        """Events to the agent, with the microphone between them as {"type": "audio", "samples": n}."""
        self.packets: list[tuple[float, bytes]] = []
        self.parrot: ParrotSession | None = None
        self._numbers = count(1)
        self._rtp = count(100)
        self._encoder = open_encoder("PCMU")
        self.conversation.joined(Audience.CLIENT, self.now)
        if start:
            self.audio.start(self.now)
        if parrot is not None:
            numbers = count(1)
            self.parrot = ParrotSession(lambda p: f"{p}_{next(numbers)}", self.now, 1.7e9, **parrot)
            self._drain()
        elif configured is not None:
            self.agent("session.created", session={"type": "realtime"})
        if configured is not None:
            self.conversation.agent_ready(configured, self.now)
        self._drain()

    # The agent

    def agent(self, kind: str, **fields: Any) -> None:
        """One event of the scripted agent."""
        event = {"type": kind, "event_id": f"up_{next(self._numbers)}", **fields}
        self.agent_raw(json.dumps(event))

    def agent_raw(self, text: str | bytes) -> None:
        self.conversation.receive_agent_event(realtime.decode_server_event_untrusted(text), self.now)
        self._drain()

    def begin(self, response_id: str = "r1", item_id: str = "i1") -> None:
        """`response.created` up to `content_part.added`."""
        self.agent("response.created", response=body(response_id, "in_progress"))
        part = {"response_id": response_id, "item_id": item_id, "output_index": 0, "content_index": 0}
        self.agent("response.content_part.added", part={"type": "audio", "transcript": ""}, **part)

    def delta(self, seconds: float, response_id: str = "r1", item_id: str = "i1") -> None:
        """So much of the agent's voice."""
        pcm = b"\x10\x20" * round(seconds * 24_000)
        self.agent(
            "response.output_audio.delta",
            response_id=response_id,
            item_id=item_id,
            output_index=0,
            content_index=0,
            delta=base64.b64encode(pcm).decode(),
        )

    def finish(self, response_id: str = "r1", item_id: str = "i1", status: str = "completed") -> None:
        """`output_audio.done` and `response.done`."""
        place = {"response_id": response_id, "item_id": item_id, "output_index": 0, "content_index": 0}
        self.agent("response.output_audio.done", **place)
        self.agent("response.done", response=body(response_id, status))

    def speech(self) -> None:
        """The agent hears the person begin."""
        self.agent("input_audio_buffer.speech_started", audio_start_ms=0, item_id="u1")

    def error(self, event_id: str | None, param: str | None = None, message: str = "No.") -> None:
        error = {"type": "invalid_request_error", "code": "invalid_value", "message": message}
        self.agent("error", error={**error, "param": param, "event_id": event_id})

    # The client

    def say(self, kind: str, *, source: Audience = Audience.CLIENT, **fields: Any) -> None:
        """One event of the client or a sideband."""
        event = {"type": kind, **fields}
        CLIENT_EVENT.validate_python(event)
        self.say_raw(json.dumps(event), source=source)

    def say_raw(self, text: str | bytes, *, source: Audience = Audience.CLIENT) -> None:
        self.conversation.receive_client_event_untrusted(text, self.now, source=source)
        self._drain()

    def speak(self, pcm: bytes) -> None:
        """The microphone, in real time."""
        for at in range(0, len(pcm), FRAME_SAMPLES * 2):
            self.packet(pcm[at : at + FRAME_SAMPLES * 2].ljust(FRAME_SAMPLES * 2, b"\0"))
            self.run(STEP)

    def packet(self, pcm: bytes = bytes(FRAME_SAMPLES * 2), *, skip: int = 0) -> None:
        """One packet now; `skip` are lost before it."""
        for _ in range(skip):
            next(self._rtp)
        n = next(self._rtp)
        self.audio.receive_rtp(build_rtp(0, False, n, n * 160, 7, self._encoder.encode(pcm)), self.now)
        self._drain()

    # Time

    def run(self, seconds: float) -> None:
        """Let time pass: the call's timer first, then the conversation's."""
        end = self.now + seconds
        for _ in range(100_000):
            deadlines = [self.audio.next_deadline(), self.conversation.next_deadline()]
            if self.parrot is not None:
                deadlines.append(self.parrot.next_deadline())
            deadline = min((d for d in deadlines if d is not None), default=end + 1)
            if deadline > end:
                break
            self.now = max(self.now, deadline)
            self.audio.handle_timeout(self.now)
            due = self.conversation.next_deadline()
            if due is not None and due <= self.now:
                self.conversation.handle_timeout(self.now)
                again = self.conversation.next_deadline()
                assert again is None or again > self.now, "a driver would spin"
            if self.parrot is not None:
                self.parrot.handle_timeout(self.now)
            self._drain()
        else:
            raise AssertionError("time does not pass")
        self.now = end
        self._drain()

    # What was seen

    def types(self) -> list[str]:
        return [event["type"] for event in self.to_client]

    def of(self, kind: str) -> list[Event]:
        return [event for event in self.to_client if event["type"] == kind]

    def asked(self, kind: str) -> list[Event]:
        return [event for event in self.upstream if event["type"] == kind]

    def at(self, kind: str) -> float:
        """When the only event of this type went to the client."""
        (time,) = [at for at, known in self.times if known == kind]
        return time

    def _drain(self) -> None:
        busy = True
        while busy:
            busy = self._drain_upstream()
            while (out := self.conversation.poll_to_clients()) is not None:
                self._to_clients(*out)
            busy |= self._drain_parrot()
        while (packet := self.audio.poll_packet()) is not None:
            if not packet[0]:
                self.packets.append((self.now, packet[1]))

    def _drain_upstream(self) -> bool:
        busy = False
        self.conversation.hear_microphone(self.now)
        while (item := self.conversation.poll_to_agent()) is not None:
            is_audio, data = item
            if is_audio:
                self.upstream.append({"type": "audio", "samples": len(data) // 2})
                if self.parrot is not None:
                    self.parrot.receive_event_untrusted(realtime.encode_append(data), self.now)
                    busy = True
                continue
            event = json.loads(data)
            if event["type"] in CLIENT_TYPES:
                CLIENT_EVENT.validate_python(official(event))
            self.upstream.append(event)
            if self.parrot is not None:
                self.parrot.receive_event_untrusted(data, self.now)
                busy = True
        return busy

    def _drain_parrot(self) -> bool:
        busy = False
        while self.parrot is not None and (data := self.parrot.poll_transmit()) is not None:
            event = realtime.decode_server_event_untrusted(data)
            self.conversation.receive_agent_event(event, self.now)
            busy = True
        return busy

    def _to_clients(self, data: bytes, audience: Audience) -> None:
        event = msgspec.json.decode(data)
        if event["type"] in SERVER_TYPES:
            SERVER_EVENT.validate_json(data)
        assert "voicegate_" not in str((event.get("error") or {}).get("event_id"))
        assert "output_audio.delta" not in event["type"]
        if Audience.CLIENT in audience:
            self.to_client.append(event)
            self.times.append((self.now, event["type"]))
        if Audience.SIDEBAND in audience:
            self.to_sideband.append(event)


def body(response_id: str, status: str) -> Event:
    return {"id": response_id, "object": "realtime.response", "status": status, "output": []}
