"""The Realtime events as the official client describes them: PyPI `openai`'s typed models."""

from __future__ import annotations

import json
from copy import deepcopy
from typing import Any

from openai.types.realtime import RealtimeClientEvent, RealtimeServerEvent
from pydantic import TypeAdapter

SERVER_EVENT: TypeAdapter[Any] = TypeAdapter(RealtimeServerEvent)
CLIENT_EVENT: TypeAdapter[Any] = TypeAdapter(RealtimeClientEvent)
SERVER_TYPES = frozenset(
    model.model_fields["type"].annotation.__args__[0]
    for model in RealtimeServerEvent.__args__[0].__args__  # type: ignore[attr-defined]
)
CLIENT_TYPES = frozenset(
    model.model_fields["type"].annotation.__args__[0]
    for model in RealtimeClientEvent.__args__[0].__args__  # type: ignore[attr-defined]
)

Event = dict[str, Any]


def server_event(text: str | bytes) -> Event:
    """An event as a client gets it. pydantic's ValidationError when the models do not know it so."""
    event: Event = json.loads(text)
    if event["type"] in SERVER_TYPES:
        SERVER_EVENT.validate_json(text)
    return event


def client_event(text: str | bytes) -> Event:
    """An event as an agent gets it. pydantic's ValidationError when the models do not know it so."""
    event: Event = json.loads(text)
    if event["type"] in CLIENT_TYPES:
        CLIENT_EVENT.validate_python(event)
    return event


def official(event: Event) -> Event:
    """The event as if its audio formats had the one rate that the models know; open servers have others."""
    if event["type"] != "session.update":
        return event
    event = deepcopy(event)
    for side in event["session"].get("audio", {}).values():
        if side.get("format", {}).get("rate") in (8_000, 16_000):
            side["format"]["rate"] = 24_000
    return event
