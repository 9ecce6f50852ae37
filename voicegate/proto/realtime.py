"""Realtime events as JSON text: what the gateway says to an agent, and what an agent says to it.

The vocabulary is OpenAI's Realtime API: 11 client events and 46 server events, each a JSON object with a
string `type`. Only the few that the media path acts on are opened here, and of those only the fields that
are used; every other event is `OtherEvent`, whole and unread, so that a translator can pass it on.
Servers differ in what they leave out: every field but the audio itself has a default.

Audio inside events is base64 of 16-bit, little-endian, mono PCM: 24 kHz, or what the session's format says,
which may also be G.711.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Annotated, Any, Final, NamedTuple, TypeVar

import msgspec

from voicegate.proto.errors import BadPacket

SAMPLE_RATE: Final = 24_000
BYTES_PER_MS: Final = SAMPLE_RATE * 2 // 1000

MAX_EVENT_BYTES: Final = 16 * 1024 * 1024
"""The API's own limit for the audio of one append is 15 MiB of base64 (reference of
`input_audio_buffer.append`); the rest is room for the JSON around it."""

Formats = Mapping[str, Mapping[str, object]]
"""The audio formats of a session by side, "input" and "output", as the API writes them."""

PCM_FORMAT: Final[Mapping[str, object]] = {"type": "audio/pcm", "rate": SAMPLE_RATE}
PCM_FORMATS: Final[Formats] = {"input": PCM_FORMAT, "output": PCM_FORMAT}


def audio_format(kind: str, rate: int) -> Mapping[str, object]:
    """`audio/pcm` at a rate in Hz (OpenAI's has one; open servers have others), or `audio/pcmu` or
    `audio/pcma`, which have one."""
    return {"type": kind, "rate": rate} if kind == PCM_FORMAT["type"] else {"type": kind}


# --- Server events, as the gateway sees them ------------------------------------------------------


@dataclass(frozen=True, slots=True)
class AudioDelta:
    """A piece of the agent's voice."""

    response_id: str
    item_id: str
    content_index: int
    pcm: bytes
    """In the session's format; may be empty or end in half a sample, as the server cut it."""


@dataclass(frozen=True, slots=True)
class AudioDone:
    """The last delta of this content part has been sent."""

    response_id: str
    item_id: str
    raw: bytes


@dataclass(frozen=True, slots=True)
class SpeechStarted:
    """The agent heard the user begin."""

    audio_start_ms: int
    item_id: str
    raw: bytes


@dataclass(frozen=True, slots=True)
class SpeechStopped:
    """The agent heard the user end."""

    audio_end_ms: int
    item_id: str
    raw: bytes


@dataclass(frozen=True, slots=True)
class ResponseCreated:
    """The agent begins a response."""

    response_id: str
    raw: bytes


@dataclass(frozen=True, slots=True)
class ResponseDone:
    """A response is over. `status`: completed, cancelled, failed, incomplete, or "" when the server did not
    say."""

    response_id: str
    status: str
    reason: str
    """`status_details.reason`: turn_detected, client_cancelled, ... or ""."""
    raw: bytes


@dataclass(frozen=True, slots=True)
class AgentError:
    """An `error` event. `event_id` is the client's event it answers, or ""."""

    code: str
    message: str
    event_id: str
    raw: bytes


@dataclass(frozen=True, slots=True)
class OtherEvent:
    """Any event that is not one of the above, `session.created` and `session.updated` among them."""

    type: str
    raw: bytes


ServerEvent = (
    AudioDelta
    | AudioDone
    | SpeechStarted
    | SpeechStopped
    | ResponseCreated
    | ResponseDone
    | AgentError
    | OtherEvent
)


def decode_server_event_untrusted(text: str | bytes) -> ServerEvent:
    """One event of an agent.

    Raises BadPacket: agent_event_size, agent_event_json (also nesting too deep), agent_event_type (none,
    or not a string), agent_event_fields (a field that is needed has another shape; bad base64).
    """
    kind = _decode(_HEAD, text, "agent_event").type
    if not kind:
        raise BadPacket("agent_event_type")
    build = _BUILDERS.get(kind)
    if build is None:
        return OtherEvent(kind, _raw(text))
    return build(text)


def item_id_of(raw: bytes) -> str:
    """The `item_id` of an event that was read before; "" where there is none."""
    try:
        return _PART.decode(raw).item_id or ""
    except (msgspec.MsgspecError, UnicodeError, RecursionError):
        return ""


def delta_of(raw: bytes) -> str:
    """The `delta` of an event whose delta is text; "" where there is none."""
    try:
        return msgspec.json.decode(raw, type=_TextDelta).delta or ""
    except (msgspec.MsgspecError, UnicodeError, RecursionError):
        return ""


# --- Client events, as the gateway sends them -----------------------------------------------------


def encode_append(pcm: bytes | bytearray) -> bytes:
    """`input_audio_buffer.append` of audio in the session's format."""
    return _encode(_Append(pcm))


def encode_commit(event_id: str | None = None) -> bytes:
    """`input_audio_buffer.commit`: what was appended becomes a user item."""
    return encode_event({"type": "input_audio_buffer.commit"}, event_id)


def encode_clear(event_id: str | None = None) -> bytes:
    """`input_audio_buffer.clear`: what was appended is forgotten."""
    return encode_event({"type": "input_audio_buffer.clear"}, event_id)


def encode_session_update(session: Mapping[str, Any], event_id: str | None = None) -> bytes:
    """`session.update`."""
    return encode_event({"type": "session.update", "session": session}, event_id)


def encode_response_create(event_id: str | None = None) -> bytes:
    """`response.create` with the session's own settings."""
    return encode_event({"type": "response.create"}, event_id)


def encode_response_cancel(response_id: str = "", event_id: str | None = None) -> bytes:
    """`response.cancel`; without an id the response in progress."""
    event = {"type": "response.cancel"}
    if response_id:
        event["response_id"] = response_id
    return encode_event(event, event_id)


def encode_truncate(
    item_id: str, audio_end_ms: int, content_index: int = 0, event_id: str | None = None
) -> bytes:
    """`conversation.item.truncate`: the user has heard `audio_end_ms` milliseconds of that item and no
    more."""
    event = {
        "type": "conversation.item.truncate",
        "item_id": item_id,
        "content_index": content_index,
        "audio_end_ms": audio_end_ms,
    }
    return encode_event(event, event_id)


def encode_item_delete(item_id: str, event_id: str | None = None) -> bytes:
    """`conversation.item.delete`."""
    return encode_event({"type": "conversation.item.delete", "item_id": item_id}, event_id)


def encode_event(event: Mapping[str, Any], event_id: str | None = None) -> bytes:
    """Any event as JSON. Values of type bytes become base64. `event_id` is what an `error` answers with."""
    return _encode(event if event_id is None else {**event, "event_id": event_id})


def session_settings(*layers: Mapping[str, Any], formats: Formats = PCM_FORMATS) -> dict[str, Any]:
    """The `session` of the first `session.update`: the layers over one another, the last on top.

    As `merged`. The audio formats are pinned: they are what
    the media path is set up for.
    """
    pinned = {"audio": {side: {"format": format} for side, format in formats.items()}}
    return merged({"type": "realtime"}, *layers, pinned)


def merged(*layers: Mapping[str, Any]) -> dict[str, Any]:
    """The layers over one another, the last on top: objects are merged, all else (null too) is replaced.

    So are objects of another `type`: server_vad's numbers mean nothing to semantic_vad.
    """
    result: dict[str, Any] = {}
    for layer in layers:
        _merge_into(result, layer)
    return result


# --- Client events, as a server reads them --------------------------------------------------------


class EventHead(NamedTuple):
    """What can be known of an event without reading the rest. Both are "" when absent or not a string."""

    type: str
    event_id: str


def peek_client_event_untrusted(text: str | bytes) -> EventHead:
    """Type and id of a client's event. BadPacket: client_event_size, client_event_json,
    client_event_fields."""
    head = _decode(_CLIENT_HEAD, text, "client_event")
    kind, event_id = head.type, head.event_id
    return EventHead(
        kind if isinstance(kind, str) else "",
        event_id if isinstance(event_id, str) and len(event_id) <= _MAX_ID else "",
    )


def decode_append_untrusted(text: str | bytes) -> bytes:
    """The audio of an `input_audio_buffer.append`. BadPacket: as above (bad base64: fields)."""
    return bytes(_decode(_APPEND_IN, text, "client_event").audio)


def decode_client_event_untrusted(text: str | bytes) -> dict[str, Any]:
    """Any client event as plain objects. BadPacket: as above."""
    return _decode(_OBJECT, text, "client_event")


# --- Below: how -----------------------------------------------------------------------------------

_MAX_ID = 512  # identifiers in the wild are below 64 characters; this only keeps one from being a megabyte
_Id = Annotated[str, msgspec.Meta(max_length=_MAX_ID)]


class _Head(msgspec.Struct):
    type: str = ""


class _ClientHead(msgspec.Struct):
    type: Any = ""
    event_id: Any = ""


class _Append(msgspec.Struct, tag_field="type", tag="input_audio_buffer.append"):
    audio: bytes | bytearray


class _AppendIn(msgspec.Struct):
    audio: bytes


class _Delta(msgspec.Struct):
    delta: bytes
    response_id: _Id | None = None
    item_id: _Id | None = None
    content_index: int | None = None


class _TextDelta(msgspec.Struct):
    delta: str | None = None


class _Part(msgspec.Struct):
    response_id: _Id | None = None
    item_id: _Id | None = None


class _Speech(msgspec.Struct):
    audio_start_ms: int | float | None = None
    audio_end_ms: int | float | None = None
    item_id: _Id | None = None


class _StatusDetails(msgspec.Struct):
    reason: _Id | None = None


class _Response(msgspec.Struct):
    id: _Id | None = None
    status: _Id | None = None
    status_details: _StatusDetails | None = None


class _ResponseEvent(msgspec.Struct):
    response: _Response


class _ErrorBody(msgspec.Struct):
    code: _Id | None = None
    type: _Id | None = None
    message: str | None = None
    event_id: _Id | None = None


class _ErrorEvent(msgspec.Struct):
    error: _ErrorBody


_Shape = TypeVar("_Shape")

_HEAD = msgspec.json.Decoder(_Head)
_CLIENT_HEAD = msgspec.json.Decoder(_ClientHead)
_APPEND_IN = msgspec.json.Decoder(_AppendIn)
_OBJECT = msgspec.json.Decoder(dict[str, Any])
_DELTA = msgspec.json.Decoder(_Delta)
_PART = msgspec.json.Decoder(_Part)
_SPEECH = msgspec.json.Decoder(_Speech)
_RESPONSE = msgspec.json.Decoder(_ResponseEvent)
_ERROR = msgspec.json.Decoder(_ErrorEvent)
_encode = msgspec.json.Encoder().encode


def _decode(decoder: msgspec.json.Decoder[_Shape], text: str | bytes, side: str) -> _Shape:
    if len(text) > MAX_EVENT_BYTES:
        raise BadPacket(f"{side}_size")
    try:
        return decoder.decode(text)
    except msgspec.ValidationError:
        raise BadPacket(f"{side}_fields") from None
    except (msgspec.DecodeError, UnicodeError, RecursionError):
        # RecursionError is how msgspec bounds the depth of nesting. UnicodeError: bytes that are not
        # UTF-8, or a lone surrogate in a str.
        raise BadPacket(f"{side}_json") from None


def _raw(text: str | bytes) -> bytes:
    return text.encode() if isinstance(text, str) else bytes(text)


def _milliseconds(value: int | float | None) -> int:
    # JSON numbers such as 1e308 are valid and meaningless; a day is more than any session has.
    return int(min(max(value or 0, 0), 86_400_000))


def _audio_delta(text: str | bytes) -> ServerEvent:
    d = _decode(_DELTA, text, "agent_event")
    return AudioDelta(d.response_id or "", d.item_id or "", d.content_index or 0, d.delta)


def _audio_done(text: str | bytes) -> ServerEvent:
    d = _decode(_PART, text, "agent_event")
    return AudioDone(d.response_id or "", d.item_id or "", _raw(text))


def _speech_started(text: str | bytes) -> ServerEvent:
    d = _decode(_SPEECH, text, "agent_event")
    return SpeechStarted(_milliseconds(d.audio_start_ms), d.item_id or "", _raw(text))


def _speech_stopped(text: str | bytes) -> ServerEvent:
    d = _decode(_SPEECH, text, "agent_event")
    return SpeechStopped(_milliseconds(d.audio_end_ms), d.item_id or "", _raw(text))


def _response_created(text: str | bytes) -> ServerEvent:
    d = _decode(_RESPONSE, text, "agent_event").response
    return ResponseCreated(d.id or "", _raw(text))


def _response_done(text: str | bytes) -> ServerEvent:
    d = _decode(_RESPONSE, text, "agent_event").response
    reason = d.status_details.reason if d.status_details else ""
    return ResponseDone(d.id or "", d.status or "", reason or "", _raw(text))


def _error(text: str | bytes) -> ServerEvent:
    d = _decode(_ERROR, text, "agent_event").error
    return AgentError(d.code or d.type or "", d.message or "", d.event_id or "", _raw(text))


_BUILDERS = {
    "response.output_audio.delta": _audio_delta,
    "response.output_audio.done": _audio_done,
    # The names of the beta interface, which several open servers still speak.
    "response.audio.delta": _audio_delta,
    "response.audio.done": _audio_done,
    "input_audio_buffer.speech_started": _speech_started,
    "input_audio_buffer.speech_stopped": _speech_stopped,
    "response.created": _response_created,
    "response.done": _response_done,
    "error": _error,
}


def _merge_into(target: dict[str, Any], layer: Mapping[str, Any]) -> None:
    for key, value in layer.items():
        if isinstance(value, Mapping):
            below = target.get(key)
            same = isinstance(below, Mapping) and value.get("type", below.get("type")) == below.get("type")
            merged: dict[str, Any] = dict(below) if isinstance(below, Mapping) and same else {}
            _merge_into(merged, value)
            target[key] = merged
        else:
            target[key] = value
