"""Realtime events: what is read of an agent's, what is written for it, and what is refused."""

from __future__ import annotations

import base64
import json
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st
from openai.types.realtime import RealtimeClientEvent
from pydantic import TypeAdapter

from voicegate.proto import realtime
from voicegate.proto.errors import BadPacket
from voicegate.proto.realtime import (
    AgentError,
    AudioDelta,
    AudioDone,
    OtherEvent,
    ResponseCreated,
    ResponseDone,
    SpeechStarted,
    SpeechStopped,
)

CLIENT_EVENT: TypeAdapter[Any] = TypeAdapter(RealtimeClientEvent)

PLACE = {"response_id": "resp_1", "item_id": "item_1", "output_index": 0, "content_index": 2}


def decode(**event: Any) -> realtime.ServerEvent:
    return realtime.decode_server_event_untrusted(json.dumps(event))


@pytest.mark.parametrize("kind", ["response.output_audio.delta", "response.audio.delta"])
def test_audio_is_decoded_whatever_the_server_calls_it(kind: str) -> None:
    pcm = bytes(range(200))
    event = decode(type=kind, event_id="e", delta=base64.b64encode(pcm).decode(), **PLACE)
    assert event == AudioDelta("resp_1", "item_1", 2, pcm)


def test_fields_that_servers_leave_out_have_defaults() -> None:
    assert decode(type="response.output_audio.delta", delta="AAA=") == AudioDelta("", "", 0, b"\0\0")
    assert decode(type="response.output_audio.delta", delta="", item_id=None) == AudioDelta("", "", 0, b"")
    done = decode(type="response.done", response={"status_details": None})
    assert isinstance(done, ResponseDone)
    assert (done.response_id, done.status, done.reason) == ("", "", "")


def test_the_events_that_the_media_path_acts_on() -> None:
    def fields(event: realtime.ServerEvent) -> tuple[Any, ...]:
        raw = event.raw  # type: ignore[union-attr]
        assert json.loads(raw)["type"]
        return (type(event), *(getattr(event, name) for name in event.__slots__ if name != "raw"))

    assert fields(decode(type="response.output_audio.done", **PLACE)) == (AudioDone, "resp_1", "item_1")
    assert fields(
        decode(type="input_audio_buffer.speech_started", audio_start_ms=1200, item_id="item_2")
    ) == (SpeechStarted, 1200, "item_2")
    assert fields(decode(type="input_audio_buffer.speech_stopped", audio_end_ms=2.5e3, item_id="item_2")) == (
        SpeechStopped,
        2500,
        "item_2",
    )
    assert fields(decode(type="response.created", response={"id": "r"})) == (ResponseCreated, "r")
    assert fields(
        decode(
            type="response.done",
            response={"id": "r", "status": "cancelled", "status_details": {"reason": "turn_detected"}},
        )
    ) == (ResponseDone, "r", "cancelled", "turn_detected")
    assert fields(decode(type="error", error={"type": "t", "message": "m", "event_id": "mine"})) == (
        AgentError,
        "t",
        "m",
        "mine",
    )


def test_events_of_no_concern_and_of_the_future_pass_whole() -> None:
    for kind in ("session.created", "response.function_call_arguments.delta", "something.new"):
        raw = json.dumps({"type": kind, "delta": 7, "response": "odd", "error": []}).encode()
        assert realtime.decode_server_event_untrusted(raw) == OtherEvent(kind, raw)
        assert realtime.decode_server_event_untrusted(raw.decode()) == OtherEvent(kind, raw)


def test_meaningless_positions_are_clamped() -> None:
    for value, expected in ((-5, 0), (1e300, 86_400_000), (10**30, 86_400_000), (None, 0)):
        event = decode(type="input_audio_buffer.speech_started", audio_start_ms=value)
        assert isinstance(event, SpeechStarted)
        assert event.audio_start_ms == expected


@pytest.mark.parametrize(
    ("text", "reason"),
    [
        ("", "json"),
        ("{", "json"),
        (b"\xff\xfe{}", "json"),
        ('{"type":"x","y":"\ud800"}', "json"),
        ('{"type":"x","y":' + "[" * 200_000, "json"),
        ('{"type":"x","y":' + "[" * 5_000 + "]" * 5_000 + "}", "json"),
        ("[]", "fields"),
        ("null", "fields"),
        ('{"type":5}', "fields"),
        ("{}", "type"),
        ('{"type":""}', "type"),
        ('{"type":"response.output_audio.delta"}', "fields"),
        ('{"type":"response.output_audio.delta","delta":5}', "fields"),
        ('{"type":"response.output_audio.delta","delta":"*&^%"}', "fields"),
        ('{"type":"response.output_audio.delta","delta":"AAA"}', "fields"),
        ('{"type":"response.output_audio.delta","delta":"","content_index":1e99}', "fields"),
        ('{"type":"response.output_audio.delta","delta":"","item_id":"' + "i" * 600 + '"}', "fields"),
        ('{"type":"response.done"}', "fields"),
        ('{"type":"response.done","response":[]}', "fields"),
        ('{"type":"error","error":null}', "fields"),
        ('{"type":"input_audio_buffer.speech_started","audio_start_ms":"now"}', "fields"),
        ('{"type":"x","y":"' + "z" * realtime.MAX_EVENT_BYTES + '"}', "size"),
    ],
    ids=lambda value: value[:40] if isinstance(value, str) else None,
)
def test_what_cannot_be_read_has_a_reason(text: str | bytes, reason: str) -> None:
    with pytest.raises(BadPacket) as caught:
        realtime.decode_server_event_untrusted(text)
    assert caught.value.reason == f"agent_event_{reason}"


@pytest.mark.parametrize(
    "data",
    [
        realtime.encode_append(b"\1\2" * 480),
        realtime.encode_commit(),
        realtime.encode_clear("e1"),
        realtime.encode_session_update(realtime.session_settings({"instructions": "Hi"}), "e1"),
        realtime.encode_response_create(),
        realtime.encode_response_cancel(),
        realtime.encode_response_cancel("resp_1", "e1"),
        realtime.encode_truncate("item_1", 1234),
        realtime.encode_item_delete("item_1"),
    ],
    ids=lambda data: json.loads(data)["type"],
)
def test_client_events_are_the_protocols_own(data: bytes) -> None:
    event = CLIENT_EVENT.validate_json(data)
    # The union's models ignore nothing they know: what was written is what they read.
    assert event.type == json.loads(data)["type"]
    assert json.loads(event.model_dump_json(exclude_unset=True)) == json.loads(data)


def test_an_append_is_read_back() -> None:
    pcm = bytes(range(256)) * 4
    for source in (pcm, bytearray(pcm)):
        assert realtime.decode_append_untrusted(realtime.encode_append(source)) == pcm


def test_session_settings_lie_over_one_another_and_the_formats_stay() -> None:
    settings = realtime.session_settings(
        {"instructions": "a", "audio": {"input": {"turn_detection": {"type": "server_vad"}}, "output": None}},
        {"instructions": "b", "audio": {"input": {"turn_detection": None, "format": {"type": "audio/pcmu"}}}},
    )
    pcm = {"type": "audio/pcm", "rate": 24000}
    assert settings == {
        "type": "realtime",
        "instructions": "b",
        "audio": {"input": {"turn_detection": None, "format": pcm}, "output": {"format": pcm}},
    }


def test_layers_are_not_changed() -> None:
    layer = {"audio": {"input": {"turn_detection": None}}}
    realtime.session_settings(layer, {"audio": {"input": {"x": 1}}})
    assert layer == {"audio": {"input": {"turn_detection": None}}}


def test_a_client_event_is_peeked_at_without_trusting_it() -> None:
    peek = realtime.peek_client_event_untrusted
    assert peek(b'{"type":"response.create","event_id":"e"}') == ("response.create", "e")
    assert peek('{"type":5,"event_id":["e"]}') == ("", "")
    assert peek('{"event_id":"' + "e" * 600 + '"}') == ("", "")
    with pytest.raises(BadPacket, match="client_event_json"):
        peek("{")
    with pytest.raises(BadPacket, match="client_event_fields"):
        realtime.decode_append_untrusted(b'{"audio":"?"}')
    with pytest.raises(BadPacket, match="client_event_fields"):
        realtime.decode_client_event_untrusted(b"[]")


JSON = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats() | st.text(max_size=20),
    lambda inner: st.lists(inner, max_size=4) | st.dictionaries(st.text(max_size=12), inner, max_size=4),
    max_leaves=12,
)
NAMES = st.sampled_from(
    ["type", "delta", "response", "response_id", "item_id", "error", "audio_start_ms", "audio", "event_id"]
)
TYPES = st.sampled_from([*realtime._BUILDERS, "session.created", "input_audio_buffer.append"])
PARSERS = [
    realtime.decode_server_event_untrusted,
    realtime.peek_client_event_untrusted,
    realtime.decode_append_untrusted,
    realtime.decode_client_event_untrusted,
]


@given(data=st.binary(max_size=200) | st.text(max_size=200))
def test_any_bytes_are_read_or_refused(data: str | bytes) -> None:
    for parse in PARSERS:
        try:
            parse(data)
        except BadPacket as bad:
            assert bad.reason.startswith(("agent_event_", "client_event_"))


@given(kind=TYPES, fields=st.dictionaries(NAMES, JSON, max_size=6))
def test_any_object_is_read_or_refused(kind: str, fields: dict[str, Any]) -> None:
    text = json.dumps({"type": kind, **fields})
    for parse in PARSERS:
        try:
            parse(text)
        except BadPacket as bad:
            assert bad.reason.startswith(("agent_event_", "client_event_"))


@given(pcm=st.binary(max_size=5000), ids=st.tuples(st.text(max_size=64), st.text(max_size=64)))
def test_a_delta_survives_the_way_through_json(pcm: bytes, ids: tuple[str, str]) -> None:
    text = realtime.encode_event(
        {"type": "response.output_audio.delta", "response_id": ids[0], "item_id": ids[1], "delta": pcm}
    )
    assert realtime.decode_server_event_untrusted(text) == AudioDelta(ids[0], ids[1], 0, pcm)
