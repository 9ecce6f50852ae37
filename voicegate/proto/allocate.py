"""`POST /calls` of the internal HTTP: what signaling and a transceiver say to each other, as JSON. Pure."""

from __future__ import annotations

from typing import Any

import msgspec

from voicegate.proto.event_filter import EVERYTHING


class AllocateRequest(msgspec.Struct, frozen=True, kw_only=True):
    """What signaling asks for."""

    sdp: str
    candidates: tuple[str, ...]
    """Public addresses for the answer, best first: `host:port`, and `host:port/tcp` for ICE-TCP."""
    model: str = ""
    session: dict[str, Any] | None = None
    """Laid over the agent's configured session."""
    dcid: int | None = None
    """The stream id of a pre-negotiated data channel, 0 to 65534."""
    client_events: tuple[str, ...] = EVERYTHING
    server_events: tuple[str, ...] = EVERYTHING
    """What may pass the data channel (`voicegate.proto.event_filter`); a sideband is not filtered."""
    key_id: str = ""
    """Whose call it is: the id of an API key, never the key."""
    safety_identifier: str = ""
    """The user, as the issuer of the client's key named him; for the agent."""
    record: bool = False
    """Whether the call is to be recorded."""


class AllocateReply(msgspec.Struct, frozen=True):
    """A call that a transceiver took, and its load now."""

    call_id: str
    sdp: str
    calls: int
    capacity: int
