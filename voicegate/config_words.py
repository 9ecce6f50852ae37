"""What is wrong with a configuration, for a person: msgspec says what it met, and here is what to write."""

from __future__ import annotations

import difflib
import re
from collections.abc import Iterable
from typing import Any, Literal, get_args, get_origin

import msgspec


def in_words(error: str, config: type[msgspec.Struct]) -> str:
    """`Expected `int`, got `str` - at `$.relay.max_flows`` -> `relay.max_flows: Expected ...`."""
    message, _, path = error.partition(" - at `$.")
    path = path.rstrip("`")
    return f"{path}: {message}{remedy(message, _kind(path, config))}" if path else message


def remedy(message: str, kind: Any) -> str:
    """What to write instead, to be put behind what msgspec says of a value of this type; empty: no idea."""
    if "Invalid enum value" in message:
        return f"; write one of {', '.join(_choices(kind))}" if _choices(kind) else ""
    if message == "Expected `array`, got `str`":
        return '; write a list, as in ["..."]'
    if unknown := re.fullmatch("Object contains unknown field `(.*)`", message):
        return did_you_mean(unknown[1], _keys(kind))
    return ""


def did_you_mean(word: str, known: Iterable[str], prefix: str = "") -> str:
    """The nearest of the words that are known, as a question, with what all of them begin with; empty when
    none is near."""
    nearest = difflib.get_close_matches(word, known, n=1)
    return f"; did you mean {prefix}{nearest[0]}?" if nearest else ""


def _kind(path: str, config: type[msgspec.Struct]) -> Any:
    """The type of what is at `signaling.keys[0].record`; None when there is none."""
    kind: Any = config
    for name in re.sub(r"\[[^]]*\]", "", path).split("."):
        if not _keys(kind):
            return None
        kind = next((key.type for key in msgspec.structs.fields(_item(kind)) if key.name == name), None)
    return kind


def _keys(kind: Any) -> tuple[str, ...]:
    """Those of a table, or of each table in a list."""
    kind = _item(kind)
    return kind.__struct_fields__ if isinstance(kind, type) and issubclass(kind, msgspec.Struct) else ()


def _item(kind: Any) -> Any:
    return get_args(kind)[0] if get_origin(kind) is tuple else kind


def _choices(kind: Any) -> list[str]:
    """What may be written for a `Literal`, or for a number that may be a word as well."""
    if kind is int:
        return ["a number"]
    if get_origin(kind) is Literal:
        return [str(word) for word in get_args(kind)]
    return [choice for part in get_args(kind) for choice in _choices(part)]
