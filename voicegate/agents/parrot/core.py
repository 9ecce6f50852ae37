"""One session of the parrot: a Realtime server that says back what it hears. Pure.

Theory of operation. A client event goes into `receive_event_untrusted`, time into `handle_timeout`; what
they cause waits in order for `poll_transmit`. An event that cannot be carried out is answered with an
`error` that echoes its `event_id`; nothing a client sends ends a session, only its age does.

With turn detection a turn goes: speech_started (a running response is cancelled) … speech_stopped,
committed, item.added, item.done, then a response. Without it the client says `commit` and
`response.create`.

Where it differs from OpenAI's: it does no speech recognition, so a transcript of its own voice is a
remark on the length, and a transcript asked for of the user's is answered with
`input_audio_transcription.failed`; semantic_vad is a choice of three silences; audio is 24 kHz PCM only.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Callable
from typing import Any, Final, Literal

import msgspec

from voicegate.agents.parrot import conversation, settings
from voicegate.agents.parrot.conversation import Conversation, Item
from voicegate.agents.parrot.errors import Refused
from voicegate.agents.parrot.reply import Reply, Wish, words_for
from voicegate.agents.parrot.turns import MAX_TURN_BYTES, InputBuffer, Started, Stopped, TurnDetector
from voicegate.proto import realtime
from voicegate.proto.errors import BadPacket
from voicegate.proto.realtime import BYTES_PER_MS

MAX_SESSION_SECONDS: Final = 3600.0
"""As OpenAI's."""
MIN_COMMIT_BYTES: Final = 100 * BYTES_PER_MS
"""As OpenAI's."""
_SLICE_BYTES: Final = 1000 * BYTES_PER_MS
"""A large append is worked through in pieces of a second, so that bounds hold inside it too."""


class ParrotSession:
    """`new_id(prefix)` makes unguessable ids; `wall` is only for `expires_at`."""

    def __init__(
        self,
        new_id: Callable[[str], str],
        now: float,
        wall: float,
        *,
        model: str = "",
        turn_detection: bool = True,
    ) -> None:
        self._new_id = new_id
        self._identity = {
            "id": new_id("sess"),
            "object": "realtime.session",
            "expires_at": int(wall + MAX_SESSION_SECONDS),
        }
        self._conversation_id = new_id("conv")
        self._expires_at = now + MAX_SESSION_SECONDS
        self._has_turn_detection = turn_detection
        self._settings = settings.Session(model=model or "parrot")
        if not turn_detection:
            none = {"audio": {"input": {"turn_detection": None}}}
            self._settings = settings.updated(self._settings, none)
        self._conversation = Conversation()
        self._buffer = InputBuffer()
        self._detector = self._new_detector()
        self._turn_item = ""  # the item that the turn in progress will become
        self._turn_start = 0
        self._reply: Reply | None = None
        self._owes_reply = False
        self._out: deque[bytes] = deque()
        self.closed = False
        self._emit({"type": "session.created", "session": self._session_body()})

    def receive_event_untrusted(self, text: str | bytes, now: float) -> None:
        """One message of the client. Never raises: what is wrong with it becomes an `error` event."""
        event_id = ""
        try:
            kind, event_id = realtime.peek_client_event_untrusted(text)
            if kind == "input_audio_buffer.append":
                self._append(realtime.decode_append_untrusted(text), now)
                return
            handler = _HANDLERS.get(kind)
            if handler is None:
                raise Refused("invalid_value", f"Unknown event type {kind[:64]!r}.", "type")
            handler(self, realtime.decode_client_event_untrusted(text), now)
        except BadPacket as bad:
            self._emit_error(Refused("invalid_event", f"The event cannot be read ({bad.reason})."), event_id)
        except Refused as refused:
            self._emit_error(refused, event_id)

    def handle_timeout(self, now: float) -> None:
        if now >= self._expires_at and not self.closed:
            self.closed = True
            expired = "Your session hit the maximum duration of 60 minutes."
            self._emit_error(Refused("session_expired", expired), "")
        if self._reply is not None:
            self._reply.handle_timeout(now)
            if self._reply.next_at is None:
                self._reply = None
                if self._owes_reply:
                    self._respond(now)

    def next_deadline(self) -> float:
        """When `handle_timeout` has something to do."""
        if self._reply is not None and self._reply.next_at is not None:
            return min(self._reply.next_at, self._expires_at)
        return self._expires_at

    def poll_transmit(self) -> bytes | None:
        """The next event for the client, as JSON."""
        return self._out.popleft() if self._out else None

    # --- session ------------------------------------------------------------------------------------

    def _on_session_update(self, event: dict[str, Any], now: float) -> None:
        change = event.get("session")
        if not isinstance(change, dict):
            raise Refused("missing_required_parameter", "session.update needs a session.", "session")
        if "type" not in change:
            raise Refused("missing_required_parameter", 'Write "type": "realtime".', "session.type")
        new = settings.updated(self._settings, change)
        detection = new.audio.input.turn_detection
        if detection is not None and not self._has_turn_detection:
            raise Refused(
                "invalid_value", "This server detects no turns.", "session.audio.input.turn_detection"
            )
        changed = detection != self._settings.audio.input.turn_detection
        self._settings = new
        if changed:
            self._detector = self._new_detector()
            self._turn_item = ""
        self._emit({"type": "session.updated", "session": self._session_body()})

    def _session_body(self) -> dict[str, Any]:
        return {**msgspec.to_builtins(self._settings), **self._identity}

    def _new_detector(self) -> TurnDetector | None:
        detection = self._settings.audio.input.turn_detection
        return None if detection is None else TurnDetector(detection, self._buffer.end)

    # --- input audio --------------------------------------------------------------------------------

    def _append(self, pcm: bytes, now: float) -> None:
        if len(pcm) % 2:
            raise Refused("invalid_value", "Audio is 16-bit samples.", "audio")
        for at in range(0, len(pcm), _SLICE_BYTES):
            piece = pcm[at : at + _SLICE_BYTES]
            self._buffer.append(piece)
            detector = self._detector
            if detector is None:
                if len(self._buffer) >= MAX_TURN_BYTES:
                    self._commit(self._buffer.start, self._buffer.end, self._new_id("item"))
                continue
            for event in detector.push(piece):
                self._on_turn(event, now)
            if not detector.speaking:
                # What may still become the prefix of a turn: the padding and the frames that begin it.
                self._buffer.forget_before(self._buffer.end - detector.padding - _SLICE_BYTES // 2)
            elif self._buffer.end - self._turn_start >= MAX_TURN_BYTES:
                self._on_turn(detector.end_turn(), now)
                self._detector = self._new_detector()

    def _on_turn(self, event: Started | Stopped, now: float) -> None:
        detection = self._settings.audio.input.turn_detection
        assert detection is not None, "only a detector makes these events"
        if isinstance(event, Started):
            self._turn_item = self._new_id("item")
            self._turn_start = max(event.position, self._buffer.start)
            self._emit(
                {
                    "type": "input_audio_buffer.speech_started",
                    "audio_start_ms": self._turn_start // BYTES_PER_MS,
                    "item_id": self._turn_item,
                }
            )
            if self._reply is not None and detection.interrupt_response:
                self._cancel("turn_detected")
            return
        self._emit(
            {
                "type": "input_audio_buffer.speech_stopped",
                "audio_end_ms": event.position // BYTES_PER_MS,
                "item_id": self._turn_item,
            }
        )
        # The silence that ended the turn is not said back.
        self._commit(self._turn_start, event.speech_end, self._turn_item)
        self._buffer.forget_before(event.position)
        self._turn_item = ""
        if detection.create_response:
            self._respond(now)

    def _on_commit(self, event: dict[str, Any], now: float) -> None:
        if len(self._buffer) < MIN_COMMIT_BYTES:
            have = len(self._buffer) / BYTES_PER_MS
            raise Refused(
                "input_audio_buffer_commit_empty",
                "Error committing input audio buffer: buffer too small. "
                f"Expected at least 100ms of audio, but buffer only has {have:.2f}ms of audio.",
            )
        start = self._turn_start if self._turn_item else self._buffer.start
        self._commit(start, self._buffer.end, self._turn_item or self._new_id("item"))
        self._detector = self._new_detector()
        self._turn_item = ""

    def _on_clear(self, event: dict[str, Any], now: float) -> None:
        self._buffer.forget_before(self._buffer.end)
        self._detector = self._new_detector()
        self._turn_item = ""
        self._emit({"type": "input_audio_buffer.cleared"})

    def _commit(self, start: int, end: int, item_id: str) -> None:
        item = conversation.user_audio(item_id, self._buffer.take(start, end))
        committed = {
            "type": "input_audio_buffer.committed",
            "previous_item_id": self._conversation.last_id,
            "item_id": item_id,
        }
        self._emit(committed)
        self._add(item, None)
        if self._settings.audio.input.transcription is not None:
            self._emit(
                {
                    "type": "conversation.item.input_audio_transcription.failed",
                    "item_id": item_id,
                    "content_index": 0,
                    "error": {
                        "type": "invalid_request_error",
                        "code": "transcription_unavailable",
                        "message": "A parrot does not know what words are.",
                    },
                }
            )

    # --- conversation -------------------------------------------------------------------------------

    def _on_item_create(self, event: dict[str, Any], now: float) -> None:
        item = conversation.from_client(event.get("item"), self._new_id)
        after = event.get("previous_item_id")
        if item.id in self._conversation:
            raise Refused("item_create_duplicate_item_id", "An item with that id exists.", "item.id")
        if after is not None and after != "root" and self._conversation.get(after) is None:
            raise Refused("item_create_invalid_item_id", "There is no item with that id.", "previous_item_id")
        self._add(item, after)

    def _on_item_retrieve(self, event: dict[str, Any], now: float) -> None:
        item = self._item(event, "item_retrieve_invalid_item_id")
        self._emit({"type": "conversation.item.retrieved", "item": item.with_audio()})

    def _on_item_truncate(self, event: dict[str, Any], now: float) -> None:
        item = self._item(event, "item_truncate_invalid_item_id")
        index = event.get("content_index")
        end_ms = conversation.truncate(item, index, event.get("audio_end_ms"))
        self._emit(
            {
                "type": "conversation.item.truncated",
                "item_id": item.id,
                "content_index": index,
                "audio_end_ms": end_ms,
            }
        )

    def _on_item_delete(self, event: dict[str, Any], now: float) -> None:
        item = self._item(event, "item_delete_invalid_item_id")
        self._conversation.delete(item.id)
        self._emit({"type": "conversation.item.deleted", "item_id": item.id})

    def _item(self, event: dict[str, Any], code: str) -> Item:
        item = self._conversation.get(event.get("item_id"))
        if item is None:
            raise Refused(code, "There is no item with that id.", "item_id")
        return item

    def _add(self, item: Item, after: str | None) -> None:
        previous, dropped = self._conversation.add(item, after)
        self._tell_dropped(dropped)
        for kind in ("conversation.item.added", "conversation.item.done"):
            self._emit({"type": kind, "previous_item_id": previous, "item": item.body})

    def _tell_dropped(self, item_ids: list[str]) -> None:
        for item_id in item_ids:
            self._emit({"type": "conversation.item.deleted", "item_id": item_id})

    # --- responses ----------------------------------------------------------------------------------

    def _on_response_create(self, event: dict[str, Any], now: float) -> None:
        wish = settings.converted(event.get("response") or {}, Wish, "response")
        if self._reply is not None:
            raise Refused(
                "conversation_already_has_active_response",
                "Conversation already has an active response in progress. "
                "Wait until the response is finished before creating a new one.",
            )
        self._respond(now, wish)

    def _on_response_cancel(self, event: dict[str, Any], now: float) -> None:
        wanted = event.get("response_id")
        if self._reply is None or (wanted is not None and wanted != self._reply.id):
            raise Refused("response_cancel_not_active", "Cancellation failed: no active response found.")
        self._owes_reply = False
        self._cancel("client_cancelled")

    def _respond(self, now: float, wish: Wish | None = None) -> None:
        """Begin a response; one at a time, so a turn that ends during one is answered behind it."""
        self._owes_reply = self._reply is not None
        if self._owes_reply:
            return
        wish = wish or Wish()
        modalities = wish.output_modalities or self._settings.output_modalities
        heard = self._conversation.last_user_message()
        if wish.input is not None:
            given = [conversation.from_client(item, self._new_id) for item in wish.input]
            heard = next((item for item in reversed(given) if item.body.get("role") == "user"), None)
        apart = wish.conversation == "none"
        self._reply = Reply(
            words_for(heard, modalities),
            self._emit,
            self._new_id,
            details={
                "conversation_id": None if apart else self._conversation_id,
                "output_modalities": modalities,
                "metadata": wish.metadata,
            },
            conversation=None if apart else self._conversation,
        )
        self._tell_dropped(self._reply.start(now))
        self.handle_timeout(now)

    def _cancel(self, reason: Literal["turn_detected", "client_cancelled"]) -> None:
        assert self._reply is not None, "callers look first"
        self._reply.cancel(reason)
        self._reply = None

    # --- out ----------------------------------------------------------------------------------------

    def _emit_error(self, refused: Refused, event_id: str) -> None:
        self._emit(
            {
                "type": "error",
                "error": {
                    "type": "invalid_request_error",
                    "code": refused.code,
                    "message": refused.message,
                    "param": refused.param,
                    "event_id": event_id or None,
                },
            }
        )

    def _emit(self, event: dict[str, Any]) -> None:
        self._out.append(realtime.encode_event(event, self._new_id("event")))


_HANDLERS: Final[dict[str, Callable[[ParrotSession, dict[str, Any], float], None]]] = {
    "session.update": ParrotSession._on_session_update,
    "input_audio_buffer.commit": ParrotSession._on_commit,
    "input_audio_buffer.clear": ParrotSession._on_clear,
    "conversation.item.create": ParrotSession._on_item_create,
    "conversation.item.retrieve": ParrotSession._on_item_retrieve,
    "conversation.item.truncate": ParrotSession._on_item_truncate,
    "conversation.item.delete": ParrotSession._on_item_delete,
    "response.create": ParrotSession._on_response_create,
    "response.cancel": ParrotSession._on_response_cancel,
}
