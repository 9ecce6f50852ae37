"""The conversation of one parrot session: its items, in order, with the audio they hold."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Annotated, Any, Final, Literal

import msgspec

from voicegate.agents.parrot.errors import Refused
from voicegate.agents.parrot.settings import converted
from voicegate.proto.realtime import BYTES_PER_MS

MAX_ITEMS: Final = 500
"""Some two hours of turns of 15 s; the session ends after one."""
MAX_AUDIO_BYTES: Final = 16 * 1024 * 1024
"""About 6 minutes are kept for `conversation.item.retrieve`; the audio of older items is let go."""

_ItemId = Annotated[str, msgspec.Meta(min_length=1, max_length=64)]


@dataclass(slots=True)
class Item:
    """`body` is the item as the API shows it, without audio; `audio` belongs to its only audio part."""

    id: str
    body: dict[str, Any]
    audio: bytes = b""
    audio_index: int = field(default=0)

    @property
    def audio_ms(self) -> int:
        return -(-len(self.audio) // BYTES_PER_MS)

    def with_audio(self) -> dict[str, Any]:
        """The body with the audio in its part (bytes, which become base64)."""
        if not self.audio:
            return self.body
        content = [dict(part) for part in self.body["content"]]
        content[self.audio_index]["audio"] = self.audio
        return {**self.body, "content": content}


class Conversation:
    """Items by order and by id; bounded."""

    def __init__(self) -> None:
        self._items: dict[str, Item] = {}  # in the order of the conversation

    def __contains__(self, item_id: str) -> bool:
        return item_id in self._items

    def get(self, item_id: object) -> Item | None:
        return self._items.get(item_id) if isinstance(item_id, str) else None

    @property
    def last_id(self) -> str | None:
        return next(reversed(self._items), None)

    def last_user_message(self) -> Item | None:
        for item in reversed(self._items.values()):
            if item.body.get("role") == "user":
                return item
        return None

    def add(self, item: Item, after: str | None = None) -> tuple[str | None, list[str]]:
        """Put `item` at the end, after the item `after`, or first (`root`).

        Returns the id of the item before it and the ids of items that were dropped for it.
        """
        previous = self.last_id
        if after is None or after == previous:
            self._items[item.id] = item
        else:
            previous = None if after == "root" else after
            ordered = list(self._items.values())
            place = 0 if previous is None else 1 + list(self._items).index(previous)
            ordered.insert(place, item)
            self._items = {i.id: i for i in ordered}
        dropped = []
        while len(self._items) > MAX_ITEMS:
            oldest = next(i for i in self._items if i != item.id)
            del self._items[oldest]
            dropped.append(oldest)
        self.trim_audio()
        return (previous if previous in self._items else None), dropped

    def delete(self, item_id: str) -> None:
        del self._items[item_id]

    def trim_audio(self) -> None:
        """Let the oldest audio go until the rest fits."""
        excess = sum(len(item.audio) for item in self._items.values()) - MAX_AUDIO_BYTES
        for item in self._items.values():
            if excess <= 0:
                break
            excess -= len(item.audio)
            item.audio = b""


def truncate(item: Item | None, content_index: object, audio_end_ms: object) -> int:
    """Forget what of an assistant's audio lies behind `audio_end_ms`; returns it. Raises Refused."""
    if item is None or item.body.get("role") != "assistant" or not _has_audio_part(item):
        raise Refused("item_truncate_invalid_item_id", "Only model output audio can be truncated.", "item_id")
    if content_index != item.audio_index or isinstance(content_index, bool):
        raise Refused("invalid_value", "That content part holds no audio.", "content_index")
    if not isinstance(audio_end_ms, int) or isinstance(audio_end_ms, bool) or audio_end_ms < 0:
        raise Refused("invalid_value", "audio_end_ms is a whole number of milliseconds.", "audio_end_ms")
    if audio_end_ms > item.audio_ms:
        raise Refused(
            "invalid_value",
            f"Audio content of {item.audio_ms}ms is already shorter than {audio_end_ms}ms.",
            "audio_end_ms",
        )
    item.audio = item.audio[: audio_end_ms * BYTES_PER_MS]
    # The transcript goes too: nobody knows which of its words were heard (reference of
    # `conversation.item.truncate`).
    item.body["content"][item.audio_index]["transcript"] = None
    return audio_end_ms


def user_audio(item_id: str, pcm: bytes) -> Item:
    """A committed turn."""
    return Item(
        item_id,
        _body(item_id, "message", role="user", content=[{"type": "input_audio", "transcript": None}]),
        pcm,
    )


def assistant_message(item_id: str) -> Item:
    """An answer that has just begun."""
    return Item(item_id, {**_body(item_id, "message", role="assistant", content=[]), "status": "in_progress"})


def from_client(body: Any, new_id: Callable[[str], str]) -> Item:
    """The item of a `conversation.item.create`. Raises Refused."""
    shape = converted(body, _AnyItem, "item")
    item_id = shape.id or new_id("item")
    if isinstance(shape, _FunctionCall):
        fields = {"call_id": shape.call_id, "name": shape.name, "arguments": shape.arguments}
        return Item(item_id, _body(item_id, "function_call", **fields))
    if isinstance(shape, _FunctionOutput):
        fields = {"call_id": shape.call_id, "output": shape.output}
        return Item(item_id, _body(item_id, "function_call_output", **fields))
    return _message(shape, item_id)


class _Fields(msgspec.Struct, forbid_unknown_fields=True, kw_only=True):
    pass


class _InputText(_Fields, kw_only=True, tag_field="type", tag="input_text"):
    text: str


class _InputAudio(_Fields, kw_only=True, tag_field="type", tag="input_audio"):
    audio: bytes = b""
    transcript: str | None = None


class _OutputText(_Fields, kw_only=True, tag_field="type", tag="output_text"):
    text: str


class _OutputAudio(_Fields, kw_only=True, tag_field="type", tag="output_audio"):
    audio: bytes = b""
    transcript: str | None = None


class _Item(_Fields, kw_only=True):
    id: _ItemId | None = None
    object: Literal["realtime.item"] = "realtime.item"
    status: Literal["completed", "incomplete", "in_progress"] | None = None


class _Message(_Item, kw_only=True, tag_field="type", tag="message"):
    role: Literal["system", "user", "assistant"]
    content: Annotated[
        list[_InputText | _InputAudio | _OutputText | _OutputAudio], msgspec.Meta(max_length=100)
    ]


class _FunctionCall(_Item, kw_only=True, tag_field="type", tag="function_call"):
    name: str
    arguments: str
    call_id: str | None = None


class _FunctionOutput(_Item, kw_only=True, tag_field="type", tag="function_call_output"):
    call_id: str
    output: str


_AnyItem: Any = _Message | _FunctionCall | _FunctionOutput

_PARTS_OF = {
    "system": (_InputText,),
    "user": (_InputText, _InputAudio),
    "assistant": (_OutputText, _OutputAudio),
}


def _message(shape: _Message, item_id: str) -> Item:
    content: list[dict[str, Any]] = []
    item = Item(item_id, _body(item_id, "message", role=shape.role, content=content))
    for index, part in enumerate(shape.content):
        if not isinstance(part, _PARTS_OF[shape.role]):
            raise Refused(
                "invalid_value", f"A {shape.role} message cannot hold this part.", f"item.content[{index}]"
            )
        if isinstance(part, _InputText | _OutputText):
            content.append({"type": part.__struct_config__.tag, "text": part.text})
            continue
        if len(part.audio) % 2:
            raise Refused("invalid_value", "Audio is 16-bit samples.", f"item.content[{index}].audio")
        if part.audio and item.audio:
            raise Refused("invalid_value", "One audio part per item.", f"item.content[{index}]")
        if part.audio:
            item.audio, item.audio_index = part.audio, index
        content.append({"type": part.__struct_config__.tag, "transcript": part.transcript})
    return item


def _body(item_id: str, kind: str, **fields: Any) -> dict[str, Any]:
    return {"id": item_id, "object": "realtime.item", "type": kind, "status": "completed", **fields}


def _has_audio_part(item: Item) -> bool:
    content = item.body.get("content") or []
    return item.audio_index < len(content) and content[item.audio_index]["type"] == "output_audio"
