"""Events without the audio in their items. Pure.

An item that is retrieved, or the output of a response, may carry minutes of base64: over a data channel whose
messages end at 256 KiB nobody would get it, and nobody needs it, for the sound went over the media track. The
field is removed; the API's models have it optional. All else keeps its very text: objects are opened only on
the way to the audio, once, so the cost is linear in the size of the event.
"""

from __future__ import annotations

from collections.abc import Callable

import msgspec

_Fields = dict[str, msgspec.Raw]


def without_audio(kind: str, raw: bytes) -> bytes:
    """The event `raw` of type `kind` without base64 audio in its items; the same object if there was none.

    What has another shape than the API's is left as it is.
    """
    strip = _PLACES.get(kind)
    if strip is None or b'"audio"' not in raw:
        return raw
    try:
        stripped = strip(msgspec.Raw(raw))
    except (msgspec.MsgspecError, UnicodeError, RecursionError):
        return raw
    return raw if stripped is None else bytes(stripped)


def with_event_id(raw: bytes, event_id: str) -> bytes:
    """The event with an `event_id`, which the API promises and some servers leave out.

    Official clients drop a known event without one. `raw` is a JSON object.
    """
    # A nested one hides its absence. Reading every event whole to know would cost more than it brings: only
    # errors nest one, and those are read anyway.
    if b'"event_id"' in raw:
        return raw
    start = raw.index(b"{") + 1
    comma = b"" if raw[start:].lstrip()[:1] == b"}" else b","
    return raw[:start] + b'"event_id":' + msgspec.json.encode(event_id) + comma + raw[start:]


# Each takes the text of a value and returns it stripped, or None when there is nothing to take out.

_Strip = Callable[[msgspec.Raw], msgspec.Raw | None]


def _part(raw: msgspec.Raw) -> msgspec.Raw | None:
    part = _object(raw)
    audio = part.get("audio")
    if (
        audio is None or bytes(memoryview(audio)[:1]) != b'"'
    ):  # an object by that name is a setting, not a sound
        return None
    del part["audio"]
    return _text(part)


def _inside(key: str, strip: _Strip) -> _Strip:
    def strip_inside(raw: msgspec.Raw) -> msgspec.Raw | None:
        fields = _object(raw)
        value = fields.get(key)
        stripped = None if value is None else strip(value)
        if stripped is None:
            return None
        fields[key] = stripped
        return _text(fields)

    return strip_inside


def _each(strip: _Strip) -> _Strip:
    def strip_each(raw: msgspec.Raw) -> msgspec.Raw | None:
        values = [] if bytes(memoryview(raw)[:4]) == b"null" else _LIST.decode(raw)
        stripped = [strip(value) for value in values]
        if all(value is None for value in stripped):
            return None
        return _text([old if new is None else new for old, new in zip(values, stripped, strict=True)])

    return strip_each


def _object(raw: msgspec.Raw) -> _Fields:
    return _OBJECT.decode(raw)


def _text(value: object) -> msgspec.Raw:
    return msgspec.Raw(msgspec.json.encode(value))


_OBJECT = msgspec.json.Decoder(_Fields)
_LIST = msgspec.json.Decoder(list[msgspec.Raw])

_item = _inside("content", _each(_part))
_in_item = _inside("item", _item)
_in_part = _inside("part", _part)
_in_response = _inside("response", _inside("output", _each(_item)))

_PLACES: dict[str, _Strip] = {
    # These two go to the agent as they are, but not into a recording's events.
    "conversation.item.create": _in_item,
    "response.create": _inside("response", _inside("input", _each(_item))),
    "conversation.item.created": _in_item,
    "conversation.item.added": _in_item,
    "conversation.item.done": _in_item,
    "conversation.item.retrieved": _in_item,
    "response.created": _in_response,
    "response.done": _in_response,
    "response.output_item.added": _in_item,
    "response.output_item.done": _in_item,
    "response.content_part.added": _in_part,
    "response.content_part.done": _in_part,
}
