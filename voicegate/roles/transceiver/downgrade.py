"""What to leave out of a `session.update` that an agent refused. Pure.

An agent that names the field in its error (`param`, or words of its message) is believed. One that does not
is offered less, one step of LADDER at a time: first what changes nothing that is said, then model and voice,
last what makes the agent what it is.
"""

from __future__ import annotations

import re
from typing import Any, Final

Path = tuple[str | int, ...]

LADDER: Final[tuple[str, ...]] = (
    "audio.input.turn_detection",  # semantic_vad becomes server_vad; dropped further down
    "audio.input.noise_reduction",
    "tracing",
    "audio.input.transcription",
    "include",
    "truncation",
    "parallel_tool_calls",
    "reasoning",
    "prompt",
    "audio.output.speed",
    "model",
    "audio.output.voice",
    "max_output_tokens",
    "audio.input.turn_detection",
    "audio.input.format",
    "audio.output.format",
    "tool_choice",
    "output_modalities",
    "audio",
    "tools",
    "instructions",
)
"""The order of retries without a named field."""

_KEPT_IN_SERVER_VAD: Final = ("create_response", "interrupt_response")
_TURN_DETECTION: Final[Path] = ("audio", "input", "turn_detection")


def downgrade(session: dict[str, Any], param: str, message: str) -> str | None:
    """Change `session` (in place) so that the agent may take it; says what was changed.

    `param` and `message` are those of the agent's error. None: there is nothing left to take out.
    """
    for path in _named(param, message):
        if changed := _without(session, path):
            return changed
    for step in LADDER:
        if changed := _without(session, tuple(step.split("."))):
            return changed
    return None


def _named(param: str, message: str) -> list[Path]:
    """Fields the error speaks of, the likeliest first."""
    paths = [_path(param)] if param else []
    paths += [_path(name) for name in re.findall(r"session\.[A-Za-z_.\[\]0-9]+", message[:2000])]
    words = set(re.findall(r"[a-z_]+", (param + " " + message[:2000]).lower()))
    if "semantic_vad" in words:
        paths.append(_TURN_DETECTION)
    for step in LADDER:
        path = tuple(step.split("."))
        if path[-1] in words and path[-1] not in _PLAIN_WORDS:
            paths.append(path)
    return [path for path in paths if path]


_PLAIN_WORDS: Final = {"audio", "format", "model", "voice", "include", "prompt", "tools", "reasoning"}
"""Field names that an error's sentence may hold without meaning the field."""


def _path(name: str) -> Path:
    """`session.tools[0].name` → ("tools", 0, "name")."""
    parts: list[str | int] = []
    for word, index in re.findall(r"([A-Za-z_]+)|\[?(\d+)\]?", name):
        parts.append(word or min(int(index[:9]), 1_000_000))
    return tuple(parts[1:] if parts[:1] == ["session"] else parts)


def _without(session: dict[str, Any], path: Path) -> str | None:
    if path[:3] == _TURN_DETECTION and (changed := _plainer_turn_detection(session, path)):
        return changed
    holder: Any = session
    *above, last = path
    for step in above:
        if not _has(holder, step):
            return None
        holder = holder[step]
    if not _has(holder, last):
        return None
    if last == "type":
        # An object without its type is nothing: it goes whole. The session's own type is the last resort.
        return _without(session, path[:-1]) if above else None
    del holder[last]
    return f"{_name(path)} (dropped)"


def _plainer_turn_detection(session: dict[str, Any], path: Path) -> str | None:
    audio = session.get("audio")
    heard = audio.get("input") if isinstance(audio, dict) else None
    detection = heard.get("turn_detection") if isinstance(heard, dict) else None
    if not isinstance(heard, dict) or not isinstance(detection, dict):
        return None
    if detection.get("type") != "semantic_vad":
        return None
    if len(path) > 3 and path[3] not in ("type", "eagerness"):
        return None  # one of its numbers is wrong, not its kind
    kept = {key: detection[key] for key in _KEPT_IN_SERVER_VAD if key in detection}
    heard["turn_detection"] = {"type": "server_vad", **kept}
    return "audio.input.turn_detection (semantic_vad -> server_vad)"


def _has(holder: Any, step: str | int) -> bool:
    if isinstance(step, int):
        return isinstance(holder, list) and step < len(holder)
    return isinstance(holder, dict) and step in holder


def _name(path: Path) -> str:
    return "".join(f"[{p}]" if isinstance(p, int) else f".{p}" for p in path).lstrip(".")
