"""The parrot's session core, in conversations: every event it sends is the official models' own."""

from __future__ import annotations

import base64
import json
from collections.abc import Iterator
from itertools import count
from typing import Any

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from openai.types.realtime import RealtimeClientEvent, RealtimeServerEvent
from pydantic import TypeAdapter

from tests.support import speech
from voicegate.agents.parrot.conversation import MAX_AUDIO_BYTES, MAX_ITEMS
from voicegate.agents.parrot.core import MAX_SESSION_SECONDS, ParrotSession
from voicegate.agents.parrot.turns import MAX_TURN_BYTES
from voicegate.proto import realtime
from voicegate.proto.realtime import BYTES_PER_MS

SERVER_EVENT: TypeAdapter[Any] = TypeAdapter(RealtimeServerEvent)
CLIENT_EVENT: TypeAdapter[Any] = TypeAdapter(RealtimeClientEvent)

Event = dict[str, Any]


def silence(seconds: float) -> bytes:
    return bytes(round(seconds * 1000) * BYTES_PER_MS)


@pytest.fixture(scope="module")
def spoken() -> bytes:
    return speech.to_pcm(speech.say("Say this back to me, please.", 24_000))


def noise(seconds: float) -> bytes:
    samples = np.random.default_rng(7).integers(-9000, 9000, round(seconds * 24_000), dtype=np.int16)
    return samples.tobytes()


class Client:
    """A client of a parrot that is no further away than a function call, on a clock of its own."""

    def __init__(self, **options: Any) -> None:
        numbers = count(1)
        self.now = 100.0
        self.parrot = ParrotSession(lambda p: f"{p}_{next(numbers)}", self.now, 1.7e9, **options)
        self.heard = bytearray()
        self.log: list[Event] = []
        (self.created,) = self.drain()

    def drain(self) -> list[Event]:
        events = []
        while (data := self.parrot.poll_transmit()) is not None:
            parsed = SERVER_EVENT.validate_json(data)
            assert not parsed.model_extra, parsed
            event = json.loads(data)
            if event["type"] == "response.output_audio.delta":
                self.heard += base64.b64decode(event["delta"])
            events.append(event)
        self.log += events
        return events

    def say(self, kind: str, **fields: Any) -> list[Event]:
        event = {"type": kind, **fields}
        CLIENT_EVENT.validate_python(event)
        return self.say_raw(json.dumps(event))

    def say_raw(self, text: str | bytes) -> list[Event]:
        self.parrot.receive_event_untrusted(text, self.now)
        return self.drain()

    def hear(self, pcm: bytes, frame_ms: int = 20) -> list[Event]:
        """Send audio as a microphone does, and let its time pass."""
        events = []
        for at in range(0, len(pcm), frame_ms * BYTES_PER_MS):
            data = realtime.encode_append(pcm[at : at + frame_ms * BYTES_PER_MS])
            self.parrot.receive_event_untrusted(data, self.now)
            events += self.drain()
            events += self.wait(frame_ms / 1000)
        return events

    def wait(self, seconds: float) -> list[Event]:
        end = self.now + seconds
        while (deadline := self.parrot.next_deadline()) <= end:
            self.now = max(self.now, deadline)
            self.parrot.handle_timeout(self.now)
        self.now = end
        return self.drain()

    def configure(self, **session: Any) -> list[Event]:
        return self.say("session.update", session={"type": "realtime", **session})


def types(events: list[Event]) -> list[str]:
    """The events' types, runs of the same type as one."""
    names = [event["type"] for event in events]
    return [name for i, name in enumerate(names) if i == 0 or names[i - 1] != name]


def one(events: list[Event], kind: str) -> Event:
    (event,) = [event for event in events if event["type"] == kind]
    return event


RESPONSE_BEGINS = [
    "response.created",
    "response.output_item.added",
    "conversation.item.added",
    "response.content_part.added",
    "response.output_audio_transcript.delta",
]
RESPONSE_ENDS = [
    "response.output_audio.done",
    "response.output_audio_transcript.done",
    "response.content_part.done",
    "conversation.item.done",
    "response.output_item.done",
    "response.done",
]
COMMITS = ["input_audio_buffer.committed", "conversation.item.added", "conversation.item.done"]


def test_a_turn_is_said_back(spoken: bytes) -> None:
    client = Client(model="anything")
    session = client.created["session"]
    assert session["model"] == "anything"
    assert session["expires_at"] == 1_700_003_600
    sent = silence(1.0) + spoken + silence(0.7)
    events = client.hear(sent) + client.wait(2.0)
    assert types(events) == [
        "input_audio_buffer.speech_started",
        "input_audio_buffer.speech_stopped",
        *COMMITS,
        *RESPONSE_BEGINS,
        "response.output_audio.delta",
        *RESPONSE_ENDS,
    ]
    started = one(events, "input_audio_buffer.speech_started")
    stopped = one(events, "input_audio_buffer.speech_stopped")
    committed = one(events, "input_audio_buffer.committed")
    spoken_ms = len(spoken) // BYTES_PER_MS
    # Speech begins at 1000 ms and the padding is 300; it ends at `spoken_ms` more and the silence is 500.
    assert 680 <= started["audio_start_ms"] <= 800
    assert 1350 + spoken_ms <= stopped["audio_end_ms"] <= 1580 + spoken_ms
    assert started["item_id"] == stopped["item_id"] == committed["item_id"]
    assert committed["previous_item_id"] is None
    # What is said back is what was said, from the padding to the end of the speech, to the sample.
    start = started["audio_start_ms"] * BYTES_PER_MS
    assert bytes(client.heard) == sent[start : start + len(client.heard)]
    end_ms = (start + len(client.heard)) // BYTES_PER_MS
    assert 850 + spoken_ms <= end_ms <= 1100 + spoken_ms
    done = one(events, "response.done")["response"]
    assert done["status"] == "completed"
    assert (
        done["output"][0]["content"][0]["transcript"]
        == f"[{len(client.heard) / 48000:.1f} s of what you said]"
    )
    items = [event for event in events if event["type"] == "conversation.item.added"]
    assert items[1]["previous_item_id"] == committed["item_id"]


def test_it_speaks_about_four_times_as_fast_as_it_plays(spoken: bytes) -> None:
    client = Client()
    client.configure(audio={"input": {"turn_detection": None}})
    client.say_raw(realtime.encode_append(noise(4.0)))
    client.say("input_audio_buffer.commit")
    client.say("response.create")
    assert len(client.heard) == 160 * BYTES_PER_MS  # the first at once
    client.wait(0.5)
    assert 1.9 <= len(client.heard) / 48_000 <= 2.3
    client.wait(0.6)
    assert bytes(client.heard) == noise(4.0)


def test_speaking_over_it_stops_it(spoken: bytes) -> None:
    client = Client()
    client.hear(silence(0.5) + spoken + silence(0.52))
    first = one(client.log, "response.created")["response"]["id"]
    assert "response.done" not in types(client.log)
    said = len(client.heard)
    events = client.hear(spoken[: 400 * BYTES_PER_MS])
    names = types(events)
    at = names.index("input_audio_buffer.speech_started")
    assert names[at + 1 :] == RESPONSE_ENDS
    done = one(events, "response.done")["response"]
    assert done["id"] == first
    assert done["status"] == "cancelled"
    assert done["status_details"] == {"type": "cancelled", "reason": "turn_detected"}
    assert done["output"][0]["status"] == "incomplete"
    assert said <= len(client.heard) < len(spoken)
    # Its item holds what was said before.
    item = client.say("conversation.item.retrieve", item_id=done["output"][0]["id"])[0]["item"]
    assert base64.b64decode(item["content"][0]["audio"]) == bytes(client.heard)


def test_without_interruption_the_second_turn_is_answered_behind_the_first(spoken: bytes) -> None:
    client = Client()
    client.configure(
        audio={
            "input": {
                "turn_detection": {
                    "type": "server_vad",
                    "interrupt_response": False,
                    "silence_duration_ms": 100,
                }
            }
        }
    )
    client.say_raw(realtime.encode_append(silence(0.5) + spoken + silence(0.7) + spoken + silence(0.7)))
    client.drain()
    client.wait(5)
    starts = [e["response"]["id"] for e in client.log if e["type"] == "response.created"]
    dones = [e["response"] for e in client.log if e["type"] == "response.done"]
    assert len(starts) == 2
    assert [d["id"] for d in dones] == starts
    assert {d["status"] for d in dones} == {"completed"}


def test_create_response_off_leaves_the_answer_to_the_client(spoken: bytes) -> None:
    client = Client()
    client.configure(audio={"input": {"turn_detection": {"type": "server_vad", "create_response": False}}})
    client.hear(silence(0.5) + spoken + silence(0.7))
    assert client.log[-1]["type"] == "conversation.item.done"
    assert types(client.say("response.create"))[:5] == RESPONSE_BEGINS


def test_push_to_talk(spoken: bytes) -> None:
    client = Client()
    (updated,) = client.configure(audio={"input": {"turn_detection": None}})
    assert updated["session"]["audio"]["input"]["turn_detection"] is None
    assert client.hear(spoken) == []
    assert types(client.say("input_audio_buffer.clear")) == ["input_audio_buffer.cleared"]
    assert client.hear(spoken) == []
    assert types(client.say("input_audio_buffer.commit")) == COMMITS
    events = client.say("response.create") + client.wait(2)
    assert types(events) == [*RESPONSE_BEGINS, "response.output_audio.delta", *RESPONSE_ENDS]
    assert bytes(client.heard) == spoken
    (error,) = client.say("input_audio_buffer.commit", event_id="mine")
    assert error["error"]["code"] == "input_audio_buffer_commit_empty"
    assert error["error"]["event_id"] == "mine"


def test_a_commit_in_mid_turn_takes_the_turn(spoken: bytes) -> None:
    client = Client()
    events = client.hear(silence(0.5) + spoken[: 800 * BYTES_PER_MS])
    item = one(events, "input_audio_buffer.speech_started")["item_id"]
    committed = client.say("input_audio_buffer.commit")
    assert types(committed) == COMMITS
    assert committed[0]["item_id"] == item
    assert types(client.hear(silence(1))) == []  # the detector began anew


def test_semantic_vad_is_a_choice_of_silences(spoken: bytes) -> None:
    waits = {}
    for eagerness in ("low", "medium", "high"):
        client = Client()
        (updated,) = client.configure(
            audio={"input": {"turn_detection": {"type": "semantic_vad", "eagerness": eagerness}}}
        )
        assert updated["session"]["audio"]["input"]["turn_detection"] == {
            "type": "semantic_vad",
            "eagerness": eagerness,
            "create_response": True,
            "interrupt_response": True,
        }
        events = client.hear(silence(0.5) + spoken + silence(1.5))
        waits[eagerness] = one(events, "input_audio_buffer.speech_stopped")["audio_end_ms"]
    assert waits["low"] - waits["medium"] == 400
    assert waits["medium"] - waits["high"] == 400


def test_only_what_an_update_names_changes() -> None:
    client = Client()
    client.configure(instructions="Be brief", tools=[{"type": "function", "name": "f", "parameters": {}}])
    (updated,) = client.configure(
        audio={
            "input": {
                "transcription": {"model": "gpt-4o-mini-transcribe"},
                "turn_detection": {"type": "server_vad", "threshold": 0.7},
            },
            "output": {"voice": "marin", "speed": 1},
        },
        tracing="auto",
        tool_choice={"type": "function", "name": "f"},
    )
    session = updated["session"]
    assert session["instructions"] == "Be brief"
    assert session["tools"][0]["name"] == "f"
    assert session["audio"]["input"]["turn_detection"]["threshold"] == 0.7
    assert session["audio"]["input"]["turn_detection"]["silence_duration_ms"] == 500
    assert session["audio"]["output"] == {
        "format": {"type": "audio/pcm", "rate": 24000},
        "voice": "marin",
        "speed": 1.0,
    }


def test_a_transcript_it_cannot_make_is_refused_aloud() -> None:
    client = Client()
    client.configure(audio={"input": {"turn_detection": None, "transcription": {"model": "whisper-1"}}})
    client.say_raw(realtime.encode_append(noise(0.5)))
    events = client.say("input_audio_buffer.commit")
    assert types(events) == [*COMMITS, "conversation.item.input_audio_transcription.failed"]


def test_text_is_answered_in_text() -> None:
    client = Client()
    item = {"type": "message", "role": "user", "content": [{"type": "input_text", "text": "Good day"}]}
    added, done = client.say("conversation.item.create", item=item)
    assert added["item"] == done["item"]
    events = client.say("response.create")
    assert types(events) == [
        *RESPONSE_BEGINS[:4],
        "response.output_text.delta",
        "response.output_text.done",
        *RESPONSE_ENDS[2:],
    ]
    assert one(events, "response.output_text.done")["text"] == "Good day"
    assert one(events, "response.done")["response"]["output"][0]["content"] == [
        {"type": "output_text", "text": "Good day"}
    ]


def test_a_response_apart_from_the_conversation() -> None:
    client = Client()
    item = {"type": "message", "role": "user", "content": [{"type": "input_text", "text": "aside"}]}
    events = client.say(
        "response.create",
        response={
            "conversation": "none",
            "metadata": {"topic": "x"},
            "input": [item],
            "output_modalities": ["text"],
        },
    )
    assert "conversation.item.added" not in types(events)
    done = one(events, "response.done")["response"]
    assert done["metadata"] == {"topic": "x"}
    assert done["output"][0]["content"][0]["text"] == "aside"
    # It left nothing behind.
    events = client.say("response.create")
    assert "nothing yet" in one(events, "response.output_text.done")["text"]


def test_one_response_at_a_time_and_cancel() -> None:
    client = Client()
    assert client.say("response.cancel", event_id="c0")[0]["error"]["code"] == "response_cancel_not_active"
    client.configure(audio={"input": {"turn_detection": None}})
    client.say_raw(realtime.encode_append(noise(3)))
    client.say("input_audio_buffer.commit")
    client.say("response.create")
    (error,) = client.say("response.create", event_id="second")
    assert error["error"]["code"] == "conversation_already_has_active_response"
    assert error["error"]["event_id"] == "second"
    (error,) = client.say("response.cancel", response_id="resp_other")
    assert error["error"]["code"] == "response_cancel_not_active"
    events = client.say("response.cancel")
    assert types(events) == RESPONSE_ENDS
    assert events[-1]["response"]["status_details"] == {"type": "cancelled", "reason": "client_cancelled"}
    assert client.wait(1) == []


def test_items_are_placed_retrieved_and_deleted() -> None:
    client = Client()

    def put(name: str, **where: str) -> str | None:
        item = {
            "id": name,
            "type": "message",
            "role": "system",
            "content": [{"type": "input_text", "text": name}],
        }
        added, done = client.say("conversation.item.create", item=item, **where)
        assert added["previous_item_id"] == done["previous_item_id"]
        previous: str | None = added["previous_item_id"]
        return previous

    assert put("a") is None
    assert put("c") == "a"
    assert put("b", previous_item_id="a") == "a"
    assert put("z", previous_item_id="root") is None
    assert put("d") == "c"
    (retrieved,) = client.say("conversation.item.retrieve", item_id="b")
    assert retrieved["item"]["content"] == [{"type": "input_text", "text": "b"}]
    assert client.say("conversation.item.delete", item_id="b")[0]["item_id"] == "b"
    for kind in ("retrieve", "delete"):
        (error,) = client.say(f"conversation.item.{kind}", item_id="b", event_id="x")
        assert error["error"]["code"] == f"item_{kind}_invalid_item_id"
    call = {"type": "function_call", "name": "f", "arguments": "{}", "call_id": "call_1"}
    assert client.say("conversation.item.create", item=call)[0]["item"]["name"] == "f"
    result = {"type": "function_call_output", "call_id": "call_1", "output": "42"}
    assert client.say("conversation.item.create", item=result)[1]["item"]["output"] == "42"
    audio = base64.b64encode(noise(0.2)).decode()
    heard = {"type": "message", "role": "user", "content": [{"type": "input_audio", "audio": audio}]}
    (added, _) = client.say("conversation.item.create", item=heard)
    (retrieved,) = client.say("conversation.item.retrieve", item_id=added["item"]["id"])
    assert retrieved["item"]["content"][0]["audio"] == audio
    assert "audio" not in added["item"]["content"][0]


def test_truncation_is_held_to_what_was_said() -> None:
    client = Client()
    client.configure(audio={"input": {"turn_detection": None}})
    client.say_raw(realtime.encode_append(noise(3)))
    user = client.say("input_audio_buffer.commit")[0]["item_id"]
    client.say("response.create")
    client.wait(0.2)
    item = client.say("response.cancel")[-1]["response"]["output"][0]["id"]
    said_ms = len(client.heard) // BYTES_PER_MS

    def truncate(item_id: str, ms: int, index: int = 0) -> Event:
        (event,) = client.say(
            "conversation.item.truncate", item_id=item_id, content_index=index, audio_end_ms=ms, event_id="t"
        )
        return event

    assert "already shorter" in truncate(item, said_ms + 1)["error"]["message"]
    for refused in (truncate(user, 0), truncate("no", 0), truncate(item, -1), truncate(item, 0, 1)):
        assert refused["type"] == "error"
        assert refused["error"]["event_id"] == "t"
    assert truncate(item, 123)["audio_end_ms"] == 123
    (retrieved,) = client.say("conversation.item.retrieve", item_id=item)
    part = retrieved["item"]["content"][0]
    assert base64.b64decode(part["audio"]) == bytes(client.heard[: 123 * BYTES_PER_MS])
    assert part["transcript"] is None
    assert truncate(item, 0)["audio_end_ms"] == 0


BAD: list[tuple[Any, str, str | None]] = [
    ({"type": "no.such.event"}, "invalid_value", "type"),
    ({"type": 5}, "invalid_value", "type"),
    ({}, "invalid_value", "type"),
    ({"type": "session.update"}, "missing_required_parameter", "session"),
    ({"type": "session.update", "session": {}}, "missing_required_parameter", "session.type"),
    ({"type": "session.update", "session": {"type": "transcription"}}, "invalid_value", "session.type"),
    ({"type": "session.update", "session": {"type": "realtime", "x": 1}}, "unknown_parameter", "session"),
    (
        {"type": "session.update", "session": {"type": "realtime", "audio": {"output": {"speed": 9}}}},
        "invalid_value",
        "session.audio.output.speed",
    ),
    (
        {
            "type": "session.update",
            "session": {"type": "realtime", "audio": {"input": {"format": {"type": "audio/pcmu"}}}},
        },
        "invalid_value",
        "session.audio.input.format.type",
    ),
    ({"type": "input_audio_buffer.append"}, "invalid_event", None),
    ({"type": "input_audio_buffer.append", "audio": "!"}, "invalid_event", None),
    ({"type": "input_audio_buffer.append", "audio": "AAAA"}, "invalid_value", "audio"),
    ({"type": "conversation.item.create"}, "invalid_value", "item"),
    ({"type": "conversation.item.create", "item": {"type": "mcp_call"}}, "invalid_value", "item.type"),
    (
        {
            "type": "conversation.item.create",
            "item": {"type": "message", "role": "system", "content": [{"type": "output_text", "text": ""}]},
        },
        "invalid_value",
        "item.content[0]",
    ),
    (
        {
            "type": "conversation.item.create",
            "previous_item_id": "gone",
            "item": {"type": "message", "role": "user", "content": []},
        },
        "item_create_invalid_item_id",
        "previous_item_id",
    ),
    ({"type": "conversation.item.retrieve", "item_id": ["x"]}, "item_retrieve_invalid_item_id", "item_id"),
    (
        {"type": "response.create", "response": {"conversation": "c"}},
        "invalid_value",
        "response.conversation",
    ),
    ({"type": "response.create", "response": 5}, "invalid_value", "response"),
]


@pytest.mark.parametrize(("event", "code", "param"), BAD, ids=lambda v: json.dumps(v)[:60])
def test_a_bad_event_is_answered_and_nothing_else_happens(event: Any, code: str, param: str | None) -> None:
    client = Client()
    before = client.say("session.update", session={"type": "realtime"})[0]["session"]
    (answer,) = client.say_raw(json.dumps({**event, "event_id": "evt_mine"}))
    assert answer["type"] == "error"
    assert answer["error"]["code"] == code
    assert answer["error"]["param"] == param
    assert answer["error"]["event_id"] == "evt_mine"
    assert client.say("session.update", session={"type": "realtime"})[0]["session"] == before


@pytest.mark.parametrize("text", ["", "[]", "nonsense", b"\xff", "[" * 100_000, '{"type":' * 5000])
def test_what_is_no_event_at_all_is_an_error_too(text: str | bytes) -> None:
    client = Client()
    (answer,) = client.say_raw(text)
    assert answer["error"]["code"] == "invalid_event"
    assert types(client.say("input_audio_buffer.clear")) == ["input_audio_buffer.cleared"]


def test_a_parrot_that_detects_no_turns() -> None:
    client = Client(turn_detection=False)
    assert client.created["session"]["audio"]["input"]["turn_detection"] is None
    (error,) = client.configure(audio={"input": {"turn_detection": {"type": "server_vad"}}})
    assert error["error"]["param"] == "session.audio.input.turn_detection"
    assert types(client.configure(instructions="x")) == ["session.updated"]


def test_ten_minutes_of_audio_at_once_stay_in_bounds(spoken: bytes) -> None:
    client = Client()
    client.configure(audio={"input": {"turn_detection": None}})
    block = realtime.encode_append(silence(200))
    for _ in range(3):
        client.say_raw(block)
        assert len(client.parrot._buffer) <= MAX_TURN_BYTES
    committed = [e["item_id"] for e in client.log if e["type"] == "input_audio_buffer.committed"]
    assert len(committed) == 5  # 600 s in turns of 120
    kept = 0
    for item_id in committed:
        (retrieved,) = client.say("conversation.item.retrieve", item_id=item_id)
        kept += len(base64.b64decode(retrieved["item"]["content"][0].get("audio", "")))
    assert 0 < kept <= MAX_AUDIO_BYTES


def test_a_turn_without_end_is_ended(spoken: bytes) -> None:
    client = Client()
    client.configure(audio={"input": {"turn_detection": {"type": "server_vad", "create_response": False}}})
    words = spoken * (1 + 150_000 * BYTES_PER_MS // len(spoken))
    client.say_raw(realtime.encode_append(words))
    starts = [e["audio_start_ms"] for e in client.log if e["type"] == "input_audio_buffer.speech_started"]
    stops = [e["audio_end_ms"] for e in client.log if e["type"] == "input_audio_buffer.speech_stopped"]
    assert len(stops) == 1
    assert 119_000 <= stops[0] - starts[0] <= 121_000
    assert len(starts) == 2  # and the rest is another turn
    assert starts[1] >= stops[0]


def test_the_oldest_items_are_let_go() -> None:
    client = Client()
    for number in range(MAX_ITEMS + 3):
        item = {"id": f"i{number}", "type": "message", "role": "user", "content": []}
        client.say_raw(json.dumps({"type": "conversation.item.create", "item": item}))
    deleted = [e["item_id"] for e in client.log if e["type"] == "conversation.item.deleted"]
    assert deleted == ["i0", "i1", "i2"]


def test_a_session_ends_after_an_hour() -> None:
    client = Client()
    assert client.wait(MAX_SESSION_SECONDS - 1) == []
    assert not client.parrot.closed
    client.now += 1
    client.parrot.handle_timeout(client.now)
    (error,) = client.drain()
    assert error["error"]["code"] == "session_expired"
    assert client.parrot.closed


EVENT_TYPES = [
    "session.update",
    "input_audio_buffer.append",
    "input_audio_buffer.commit",
    "input_audio_buffer.clear",
    "conversation.item.create",
    "conversation.item.retrieve",
    "conversation.item.truncate",
    "conversation.item.delete",
    "response.create",
    "response.cancel",
]
LEAF = (
    st.none()
    | st.booleans()
    | st.integers(-5, 5000)
    | st.floats()
    | st.sampled_from(["", "item_1", "item_3", "root", "realtime", "message", "user", "assistant", "none"])
    | st.sampled_from(["audio", "text", "server_vad", "semantic_vad", "function_call", "input_audio", "AAAA"])
)
KEYS = st.sampled_from(
    [
        "type",
        "session",
        "item",
        "item_id",
        "id",
        "audio",
        "input",
        "output",
        "response",
        "content",
        "role",
        "turn_detection",
        "output_modalities",
        "content_index",
        "audio_end_ms",
        "previous_item_id",
        "call_id",
        "conversation",
        "metadata",
        "tools",
        "text",
        "transcript",
        "event_id",
        "response_id",
        "status",
    ]
)
TREE = st.recursive(
    LEAF, lambda t: st.lists(t, max_size=3) | st.dictionaries(KEYS, t, max_size=4), max_leaves=10
)
GOOD = st.sampled_from(
    [
        realtime.encode_append(noise(0.4)),
        realtime.encode_append(silence(0.7)),
        realtime.encode_commit(),
        realtime.encode_response_create(),
        realtime.encode_response_cancel(),
        realtime.encode_session_update({"type": "realtime", "audio": {"input": {"turn_detection": None}}}),
        realtime.encode_truncate("item_3", 0),
        realtime.encode_item_delete("item_1"),
    ]
)


@st.composite
def almost_events(draw: st.DrawFn) -> bytes:
    body = draw(st.dictionaries(KEYS, TREE, max_size=5))
    return json.dumps({**body, "type": draw(st.sampled_from(EVENT_TYPES))}).encode()


@given(
    inputs=st.lists(
        st.tuples(GOOD | almost_events() | st.binary(max_size=60) | st.text(max_size=60), st.floats(0, 2)),
        max_size=12,
    )
)
def test_whatever_a_client_sends_the_answers_are_the_protocols(
    inputs: list[tuple[str | bytes, float]],
) -> None:
    client = Client()
    for text, seconds in inputs:
        client.say_raw(text)  # validates every answer
        client.wait(seconds)
    client.wait(30)
    created = [e["response"]["id"] for e in client.log if e["type"] == "response.created"]
    done = [e["response"]["id"] for e in client.log if e["type"] == "response.done"]
    assert created == done
    ids = [e["event_id"] for e in client.log]
    assert len(set(ids)) == len(ids)


def test_the_same_turn_in_frames_and_at_once(spoken: bytes) -> None:
    def positions(pieces: Iterator[bytes]) -> list[Any]:
        client = Client()
        for piece in pieces:
            client.say_raw(realtime.encode_append(piece))
        return [e.get("audio_start_ms", e.get("audio_end_ms")) for e in client.log if "speech_" in e["type"]]

    sent = silence(0.5) + spoken + silence(0.8)
    at_once = positions(iter([sent]))
    assert len(at_once) == 2
    assert positions(sent[at : at + 962] for at in range(0, len(sent), 962)) == at_once
