"""Two names for one item: the one that the clients were told before there was an item, and the agent's. Pure.

`speech_started` names the item that a turn will become. Where that event is made here the agent has not named
the item yet, so a name is made here too; when the agent commits, it is the item's name for the clients ever
after. Only events that can name an item of a user are looked at.
"""

from __future__ import annotations

from collections import OrderedDict
from typing import Any, Final

import msgspec

MAX_ITEMS: Final = 1000
"""Turns of one call; the oldest are forgotten first, and then go by the agent's names. An hour has some
500."""

_SHOWN: Final = ("conversation.item.", "input_audio_buffer.committed")
_SAID: Final = ("conversation.item.", "response.create")


class Aliases:
    """The names of one call's items."""

    def __init__(self) -> None:
        self._shown: OrderedDict[str, str] = OrderedDict()
        self._known: dict[str, str] = {}

    def add(self, item_id: str, shown: str) -> None:
        """The agent calls it `item_id`, the clients `shown`."""
        if not item_id or item_id == shown:
            return
        self._shown[item_id] = shown
        self._known[shown] = item_id
        if len(self._shown) > MAX_ITEMS:
            del self._known[self._shown.popitem(last=False)[1]]

    def for_clients(self, kind: str, raw: bytes) -> bytes:
        """An event of the agent as the clients know its items."""
        return _renamed(raw, self._shown) if self._shown and kind.startswith(_SHOWN) else raw

    def for_agent(self, kind: str, raw: bytes) -> bytes:
        """A client's event as the agent knows its items."""
        return _renamed(raw, self._known) if self._known and kind.startswith(_SAID) else raw


def _renamed(raw: bytes, names: dict[str, str] | OrderedDict[str, str]) -> bytes:
    try:
        event = _DECODE(raw)
    except (msgspec.MsgspecError, UnicodeError, RecursionError):
        return raw
    for item_id in _named(event):
        other = names.get(item_id)
        if other is not None:
            # A string's own quotes are escaped in JSON, so no words of a transcript look like this.
            raw = raw.replace(msgspec.json.encode(item_id), msgspec.json.encode(other))
    return raw


def _named(event: _Event) -> set[str]:
    named = {event.item_id, event.previous_item_id}
    if isinstance(event.item, dict):
        named.add(event.item.get("id"))
    given = event.response.get("input") if isinstance(event.response, dict) else None
    for item in given if isinstance(given, list) else ():
        if isinstance(item, dict):
            named.add(item.get("id"))
    return {name for name in named if isinstance(name, str)}


class _Event(msgspec.Struct):
    item_id: Any = None
    previous_item_id: Any = None
    item: Any = None
    response: Any = None


_DECODE: Final = msgspec.json.Decoder(_Event).decode
