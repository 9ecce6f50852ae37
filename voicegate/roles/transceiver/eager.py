"""A reply that is asked for before it is certain that the person has finished, and what becomes of it. Pure.

While it is held its sound is paused and its events are kept back, so that nobody sees what may never have
been. Either the turn ends, and all of it goes out in order; or the person goes on, and the response is
cancelled, its items are deleted at the agent, and what the agent still says of them is dropped.
"""

from __future__ import annotations

from collections import deque
from typing import Any, Final, NamedTuple

import msgspec

from voicegate.roles.transceiver.playback import CallMedia, Playback
from voicegate.roles.transceiver.responses import Responses
from voicegate.roles.transceiver.upstream import Upstream, What

MAX_HELD_BYTES: Final = 4 * 1024 * 1024
"""Events kept back. A pause lasts a few seconds, in which an answer's transcript is some kilobytes."""

MAX_DROPPED: Final = 64
"""Ids of responses and items that nobody is to see; three attempts a turn have three each."""

MAX_LATE: Final = 8
"""Replies that were given up and whose end the agent has not told: one after the other, each within
seconds."""

_ABOUT: Final = ("response.", "conversation.item.", "input_audio_buffer.")
_ADDS_ITEM: Final = ("response.output_item.added", "conversation.item.added", "conversation.item.created")


class HeldEvent(NamedTuple):
    kind: str
    raw: bytes


class EagerReply:
    """One call's; at most one is held."""

    def __init__(
        self, media: CallMedia, upstream: Upstream, responses: Responses, playback: Playback
    ) -> None:
        self.lost_events = 0
        """Kept back beyond the bound, and dropped."""
        self._media = media
        self._upstream = upstream
        self._responses = responses
        self._playback = playback
        self._held: list[HeldEvent] | None = None
        self._held_bytes = 0
        self._reply = _Reply()
        self._late: list[_Reply] = []
        """Given up, and not all of it has come."""
        self._dropped: deque[str] = deque(maxlen=MAX_DROPPED)

    @property
    def held(self) -> bool:
        return self._held is not None

    def begin(self, now: float) -> None:
        """A commit and a `response.create` have been sent."""
        self._held, self._held_bytes, self._reply = [], 0, _Reply()
        self._media.pause_playing(now)

    def keep(self, now: float) -> list[HeldEvent]:
        """The turn is over: the reply is one like any other. Returns what the clients have not seen of it."""
        held, self._held = self._held or [], None
        self._media.resume_playing(now)
        self._playback.advance(now)
        return held

    def drop(self, now: float) -> list[HeldEvent]:
        """The person goes on. Returns what was kept back and is about something else."""
        held, self._held = self._held or [], None
        reply = self._reply
        self._late = [*self._late[1 - MAX_LATE :], reply]
        if reply.item_id:
            self._delete(reply.item_id)
        if reply.response_id:
            self._cancel(reply, now)
        self._dropped.extend(reply.made)
        self._playback.interrupt(now)  # nothing of it was heard
        return [event for event in held if not self._is_dropped(_read(event.raw))]

    def takes(self, kind: str, raw: bytes) -> bool:
        """Whether this event of the agent is not for the clients, or not yet."""
        if self._held is None and not self._dropped:
            return False
        if not kind.startswith(_ABOUT):
            return False
        event = _read(raw)
        if kind in _ADDS_ITEM:
            self._item_added(event)
        if self._is_dropped(event):
            return True
        if self._held is None:
            return False
        if self._held_bytes + len(raw) > MAX_HELD_BYTES:
            self.lost_events += 1
        else:
            self._held.append(HeldEvent(kind, raw))
            self._held_bytes += len(raw)
        return True

    def hides(self, response_id: str) -> bool:
        """Whether the clients do not know of this response."""
        return response_id in self._dropped or (self.held and response_id == self._reply.response_id)

    def committed(self, item_id: str) -> None:
        """The agent has made an item of the turn."""
        late = next((reply for reply in self._late if not reply.item_id), None)
        if late is not None:
            late.item_id = item_id
            self._delete(item_id)
        elif self.held and not self._reply.item_id:
            self._reply.item_id = item_id

    def response_created(self, response_id: str, now: float) -> None:
        """The agent has begun the reply."""
        late = next((reply for reply in self._late if not reply.response_id), None)
        if late is not None:
            late.response_id = response_id
            self._cancel(late, now)
        elif self.held and not self._reply.response_id:
            self._reply.response_id = response_id

    def refused(self, what: What) -> None:
        """The agent's error about a commit or a `response.create`: what was given up and waits for it is
        gone."""
        missing = "item_id" if what == "commit" else "response_id"
        self._late = [reply for reply in self._late if getattr(reply, missing)]

    def response_over(self, response_id: str) -> None:
        """A response is done: now the agent lets its items be deleted."""
        for reply in [reply for reply in self._late if reply.response_id == response_id]:
            self._late.remove(reply)
            for item_id in reply.made:
                self._delete(item_id)

    def reset(self) -> None:
        """Nothing more comes from this agent, or the mode has changed and the reply goes where it came
        from."""
        self._held = None
        self._late.clear()

    def _cancel(self, reply: _Reply, now: float) -> None:
        self._dropped.append(reply.response_id)
        self._upstream.tell("cancel", {"type": "response.cancel", "response_id": reply.response_id})
        self._responses.cancelled(reply.response_id, "turn_detected", now, told=True)
        self._responses.mute(reply.response_id)

    def _delete(self, item_id: str) -> None:
        self._dropped.append(item_id)
        self._upstream.tell("delete", {"type": "conversation.item.delete", "item_id": item_id})

    def _item_added(self, event: _Event) -> None:
        """The items of a reply: what is added meanwhile, but for the person's own."""
        item_id = event.item.get("id")
        if not isinstance(item_id, str) or event.item.get("role") != "assistant":
            return
        reply = self._reply if self.held else next((r for r in self._late if r.response_id), None)
        if reply is not None and item_id not in reply.made and len(reply.made) < MAX_DROPPED // 4:
            reply.made.append(item_id)
            if not self.held:
                self._dropped.append(item_id)

    def _is_dropped(self, event: _Event) -> bool:
        about = (event.item_id, event.response_id, event.item.get("id"), event.response.get("id"))
        return any(name in self._dropped for name in about if name)


class _Reply:
    """What the agent calls its parts, as far as it has said."""

    __slots__ = ("item_id", "made", "response_id")

    def __init__(self) -> None:
        self.item_id = ""
        self.response_id = ""
        self.made: list[str] = []


class _Event(msgspec.Struct):
    """What an event is about. What stands before an item (`previous_item_id`) is not."""

    item_id: Any = None
    response_id: Any = None
    item: dict[str, Any] = {}
    response: dict[str, Any] = {}


def _read(raw: bytes) -> _Event:
    try:
        return _DECODE(raw)
    except (msgspec.MsgspecError, UnicodeError, RecursionError):
        return _Event()


_DECODE: Final = msgspec.json.Decoder(_Event).decode
