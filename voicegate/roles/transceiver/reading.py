"""The few fields that a conversation reads of events it otherwise passes on, within bounds. Pure."""

from __future__ import annotations

from typing import Any, Final

import msgspec

from voicegate.proto.errors import BadPacket

MAX_DEPTH: Final = 64
"""Nesting of an event that is opened whole: tools with JSON schemas reach 20."""

_UNREADABLE = (msgspec.MsgspecError, UnicodeError, RecursionError)


class Refused(Exception):
    """A client's event that is not carried out, in the words of the `error` event that says so."""

    def __init__(self, code: str, message: str, param: str | None = None) -> None:
        super().__init__(message)
        self.code = code
        self.message = message
        self.param = param


def utf8(text: str | bytes) -> bytes:
    """A message as UTF-8. Raises BadPacket("client_event_json")."""
    try:
        if isinstance(text, str):
            return text.encode()
        str(text, "utf-8")  # what is skipped in reading must hold too: the agent would hang up over it
        return bytes(text)
    except UnicodeError:
        raise BadPacket("client_event_json") from None


def too_deep(raw: bytes, value: Any) -> bool:
    """Whether the JSON `raw`, read as `value`, nests deeper than MAX_DEPTH."""
    if raw.count(b"{") + raw.count(b"[") <= MAX_DEPTH:
        return False
    level: list[Any] = [value]
    for _ in range(MAX_DEPTH):
        inner: list[Any] = []
        for holder in level:
            children = holder.values() if isinstance(holder, dict) else holder
            inner += [child for child in children if isinstance(child, dict | list)]
        if not inner:
            return False
        level = inner
    return True


def session_of(raw: bytes) -> dict[str, Any] | None:
    """The session of an agent's `session.*` event; None when it cannot be read."""
    try:
        session = msgspec.json.decode(raw, type=_SessionEvent).session
    except _UNREADABLE:
        return None
    return None if too_deep(raw, session) else session


def error_param(raw: bytes) -> str:
    """`error.param` of an agent's error, or ""."""
    try:
        param = msgspec.json.decode(raw, type=_ErrorEvent).error.param
    except _UNREADABLE:
        return ""
    return param if isinstance(param, str) else ""


def with_cause(raw: bytes, event_id: str) -> bytes:
    """An agent's error, with the id of the client's event that it answers."""
    try:
        event = msgspec.json.decode(raw, type=dict[str, Any])
        event["error"]["event_id"] = event_id
        return msgspec.json.encode(event)
    except (*_UNREADABLE, KeyError, TypeError):
        return raw


class _SessionEvent(msgspec.Struct):
    session: dict[str, Any]


class _ErrorBody(msgspec.Struct):
    param: Any = None


class _ErrorEvent(msgspec.Struct):
    error: _ErrorBody
