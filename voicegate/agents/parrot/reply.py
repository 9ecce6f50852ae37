"""One response of the parrot, from response.created to response.done, as events over time.

    created · output_item.added · item.added · content_part.added · transcript.delta · audio.delta …
    audio.done · transcript.done · content_part.done · item.done · output_item.done · response.done

It speaks as a model does: deltas of 160 ms about four times faster than they play, so that it can be cut
short.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any, Final, Literal

import msgspec

from voicegate.agents.parrot.conversation import Conversation, Item, assistant_message
from voicegate.proto.realtime import BYTES_PER_MS

DELTA_BYTES: Final = 160 * BYTES_PER_MS
DELTA_SECONDS: Final = 0.040

Emit = Callable[[dict[str, Any]], None]


class Wish(msgspec.Struct, forbid_unknown_fields=True, kw_only=True):
    """`response.create`: what the parrot heeds, and what it takes and has no use for."""

    conversation: Literal["auto", "none"] = "auto"
    output_modalities: list[Literal["text", "audio"]] | None = None
    metadata: dict[str, str] | None = None
    input: list[Any] | None = None
    instructions: str | None = None
    audio: dict[str, Any] | None = None
    max_output_tokens: int | str | None = None
    parallel_tool_calls: bool | None = None
    prompt: dict[str, Any] | None = None
    reasoning: dict[str, Any] | None = None
    tool_choice: Any = None
    tools: list[Any] | None = None


@dataclass(frozen=True, slots=True)
class Words:
    """What a response will say: audio with a transcript, or only text."""

    pcm: bytes
    text: str


def words_for(heard: Item | None, modalities: Sequence[str]) -> Words:
    """Say back what the user said last. A parrot has no voice of its own, so text is answered in text."""
    if heard is not None and heard.audio:
        seconds = len(heard.audio) / BYTES_PER_MS / 1000
        text = f"[{seconds:.1f} s of what you said]"
        return Words(heard.audio if "audio" in modalities else b"", text)
    if heard is not None:
        said = " ".join(part["text"] for part in heard.body["content"] if part["type"] == "input_text")
        if said:
            return Words(b"", said)
    return Words(b"", "I say back what I hear, and I have heard nothing yet.")


class Reply:
    """A response in progress. `next_at` is when it wants to go on; None once it is over."""

    def __init__(
        self,
        words: Words,
        emit: Emit,
        new_id: Callable[[str], str],
        *,
        details: dict[str, Any],
        conversation: Conversation | None,
    ) -> None:
        self.id = new_id("resp")
        self._words = words
        self._emit_plain = emit
        self._details = details
        self._conversation = conversation
        self.item = assistant_message(new_id("item"))
        self._said = 0
        self.next_at: float | None = None

    def start(self, now: float) -> list[str]:
        """Begin; returns the ids of items that the conversation dropped for this one."""
        self._emit("response.created", response=self._body("in_progress", []))
        self._emit("response.output_item.added", output_index=0, item=self.item.body, response_id=self.id)
        dropped: list[str] = []
        if self._conversation is not None:
            self._previous, dropped = self._conversation.add(self.item)
            self._emit_item("conversation.item.added")
        part = {"type": "audio", "transcript": ""} if self._words.pcm else {"type": "text", "text": ""}
        self._emit_part("response.content_part.added", part=part)
        if self._words.pcm:
            self._emit_part("response.output_audio_transcript.delta", delta=self._words.text)
        else:
            self._emit_part("response.output_text.delta", delta=self._words.text)
        self.next_at = now
        return dropped

    def handle_timeout(self, now: float) -> None:
        """Say the deltas that are due; the last is followed by the end."""
        while self.next_at is not None and self.next_at <= now:
            delta = self._words.pcm[self._said : self._said + DELTA_BYTES]
            if delta:
                self._said += len(delta)
                self._emit_part("response.output_audio.delta", delta=delta)
            self.next_at += DELTA_SECONDS
            if self._said >= len(self._words.pcm):
                self._finish("completed", {"type": "completed"})

    def cancel(self, reason: Literal["turn_detected", "client_cancelled"]) -> None:
        """End it here; what was said stays said."""
        self._finish("cancelled", {"type": "cancelled", "reason": reason})

    def _finish(self, status: str, status_details: dict[str, str]) -> None:
        self.next_at = None
        text = self._words.text
        if self._words.pcm:
            self._emit_part("response.output_audio.done")
            self._emit_part("response.output_audio_transcript.done", transcript=text)
            part = {"type": "audio", "transcript": text}
            content = {"type": "output_audio", "transcript": text}
        else:
            self._emit_part("response.output_text.done", text=text)
            part = {"type": "text", "text": text}
            content = {"type": "output_text", "text": text}
        self._emit_part("response.content_part.done", part=part)
        self.item.audio = self._words.pcm[: self._said]
        self.item.body["content"] = [content]
        self.item.body["status"] = "completed" if status == "completed" else "incomplete"
        if self._conversation is not None and self.item.id in self._conversation:
            self._conversation.trim_audio()
            self._emit_item("conversation.item.done")
        self._emit("response.output_item.done", output_index=0, item=self.item.body, response_id=self.id)
        self._emit("response.done", response=self._body(status, [self.item.body], status_details))

    def _body(
        self, status: str, output: list[dict[str, Any]], status_details: dict[str, str] | None = None
    ) -> dict[str, Any]:
        return {
            "id": self.id,
            "object": "realtime.response",
            "status": status,
            "status_details": status_details,
            "output": output,
            **self._details,
        }

    def _emit(self, kind: str, **fields: Any) -> None:
        self._emit_plain({"type": kind, **fields})

    def _emit_part(self, kind: str, **fields: Any) -> None:
        place = {"response_id": self.id, "item_id": self.item.id, "output_index": 0, "content_index": 0}
        self._emit_plain({"type": kind, **place, **fields})

    def _emit_item(self, kind: str) -> None:
        self._emit_plain({"type": kind, "previous_item_id": self._previous, "item": self.item.body})
