"""Who detects turns: from what the agent can and what the client wants, a mode and what the agent is told.
Pure.

`turn_detection` stands in `session.audio.input`. docs/turns.md has the table of modes.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from copy import deepcopy
from dataclasses import dataclass
from enum import Enum
from typing import Any, Final, Literal

from voicegate.media.turns.settings import TurnSettings, from_turn_detection

Ability = Literal["none", "silence", "semantic"]
"""What an agent can: nothing, hear that somebody is silent, or tell that somebody is finished."""

HYBRID_SILENCE_MS: Final = 300
"""After so much silence an agent that only detects silence commits, where the client asked for
`semantic_vad`: before a judge here is sure of an end as a rule, and behind the gaps between words."""

_PATH: Final = ("audio", "input")
_KEY: Final = "turn_detection"


class Mode(Enum):
    """Who says when a turn ends, and whether somebody interrupts."""

    UPSTREAM = "upstream"
    """The agent does."""
    HYBRID = "hybrid"
    """The agent commits, all else is here."""
    GATEWAY = "gateway"
    """All is here."""
    MANUAL = "manual"
    """The client says so."""


@dataclass(frozen=True, slots=True)
class Detection:
    """One session's turn detection."""

    mode: Mode
    settings: TurnSettings
    told: Mapping[str, Any] | None
    """What the agent is told; of no meaning in mode `UPSTREAM`, where it is told what the client said."""
    shown: Mapping[str, Any] | None
    """What the client is shown: what it asked for, whole; of no meaning in mode `UPSTREAM` either."""

    @property
    def ours(self) -> bool:
        """Ends of turns and interruptions are decided here."""
        return self.mode in (Mode.HYBRID, Mode.GATEWAY)


def detection_for(session: Mapping[str, Any], ability: Ability, defaults: TurnSettings) -> Detection:
    """What a session asks for, where it says nothing what is in `defaults`. Raises ValueError with a
    sentence for the client."""
    if mentions(session):
        wanted = _input(session)[_KEY]
        if wanted is None:
            return Detection(Mode.MANUAL, defaults, None, None)
    else:
        wanted = {}
    if ability == "semantic":
        return Detection(Mode.UPSTREAM, _upstream_settings(wanted, defaults), None, None)
    if not isinstance(wanted, Mapping):
        raise ValueError("turn_detection is an object or null")
    settings = from_turn_detection(wanted, defaults)
    if ability == "none":
        return Detection(Mode.GATEWAY, settings, None, _whole(settings))
    return Detection(Mode.HYBRID, settings, _silence_detection(settings), _whole(settings))


def mentions(session: Mapping[str, Any]) -> bool:
    """Whether a session says anything about turn detection."""
    return _KEY in _input(session)


def with_detection(session: Mapping[str, Any], value: Mapping[str, Any] | None) -> dict[str, Any]:
    """A copy of a session with this turn detection."""
    changed = deepcopy(dict(session))
    holder: Any = changed
    for key in _PATH:
        inner = holder.get(key)
        holder[key] = holder = inner if isinstance(inner, dict) else {}
    holder[_KEY] = None if value is None else dict(value)
    return changed


def without_detection(session: Mapping[str, Any]) -> dict[str, Any]:
    """A copy of a session that says nothing about turn detection."""
    changed = deepcopy(dict(session))
    _input(changed).pop(_KEY, None)
    return changed


def _input(session: Mapping[str, Any]) -> dict[str, Any]:
    holder: Any = session
    for key in _PATH:
        holder = holder.get(key) if isinstance(holder, Mapping) else None
    return holder if isinstance(holder, dict) else {}


def _upstream_settings(wanted: object, defaults: TurnSettings) -> TurnSettings:
    """What a listener beside an agent needs to know; whether the rest is right is the agent's to say."""
    interrupts = not isinstance(wanted, Mapping) or wanted.get("interrupt_response", True) is not False
    return TurnSettings(
        judge="upstream",
        max_silence=math.inf,
        user_idle=defaults.user_idle,
        interrupts=interrupts and defaults.interrupts,
    )


def _silence_detection(settings: TurnSettings) -> dict[str, Any]:
    fixed = settings.judge == "fixed"
    return {
        "type": "server_vad",
        "threshold": settings.threshold,
        "prefix_padding_ms": round(settings.prefix_padding * 1000),
        "silence_duration_ms": round(settings.silence_duration * 1000) if fixed else HYBRID_SILENCE_MS,
        "create_response": False,
        "interrupt_response": False,
    }


def _whole(settings: TurnSettings) -> dict[str, Any]:
    flags = {"create_response": settings.create_response, "interrupt_response": settings.interrupts}
    if settings.judge != "fixed":
        return {"type": "semantic_vad", "eagerness": settings.eagerness, **flags}
    idle = settings.idle_timeout
    return {
        "type": "server_vad",
        "threshold": settings.threshold,
        "prefix_padding_ms": round(settings.prefix_padding * 1000),
        "silence_duration_ms": round(settings.silence_duration * 1000),
        "idle_timeout_ms": None if idle is None else round(idle * 1000),
        **flags,
    }
