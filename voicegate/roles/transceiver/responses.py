"""The agent's responses, from `response.created` to `response.done`: each gets its end, and gets it once.

Official clients send one `response.create` at a time and wait for `response.done`. So a response that was
cancelled and is not confirmed within CANCEL_SECONDS, and every open one when the agent is lost, is ended
here; what the agent still says of it later is not passed on as another end. Pure.

An interrupted response is muted: its late deltas are never played. What was heard of its items is told to the
agent when the response is over (`owed`), for an item that is still being made cannot be truncated.
"""

from __future__ import annotations

from collections import OrderedDict, deque
from dataclasses import dataclass, field
from typing import Any, Final, Literal, NamedTuple

import msgspec

from voicegate.roles.transceiver.playback import Heard

CANCEL_SECONDS: Final = 3.0
"""How long an agent has to confirm a cancellation: models stop within tens of ms, and below the 5 s after
which a person calls it hanging."""

GRACE_SECONDS: Final = 0.3
"""How long an agent that heard the person begin has to end its response by itself. Then it is told to."""

MAX_REMEMBERED: Final = 32
"""Responses, over or not. One or two are open at a time; the rest are there to know late events by."""

MAX_DETAILS_BYTES: Final = 16_384
"""A `response.created` beyond this is remembered by its id only; metadata are at most 16 pairs of 576 B."""

INTERRUPTIBLE: Final = "voicegate_interruptible"

Reason = Literal["turn_detected", "client_cancelled"]


class Tell(NamedTuple):
    """The agent should cancel this response: it heard the person, and goes on."""

    response_id: str


class Ended(NamedTuple):
    """This response is ended here. `response`: the body of its `response.done`."""

    response_id: str
    response: dict[str, Any]


class Responses:
    """Bounded memory of one call's responses, the oldest forgotten first."""

    def __init__(self) -> None:
        self._responses: OrderedDict[str, _Response] = OrderedDict()
        self._muted: deque[str] = deque(maxlen=MAX_REMEMBERED)
        """Interrupted ones, also of a server that announces no responses."""
        self._deadline: float | None = None

    def created(self, response_id: str, raw: bytes) -> list[Ended]:
        """Returns one that had to be given up for it."""
        if "" in self._muted:
            self._muted.remove("")  # deltas that name no response now belong to this one
        if not response_id or response_id in self._responses:
            return []
        ended = []
        if len(self._responses) >= MAX_REMEMBERED:
            oldest = next((r for r in self._responses.values() if r.over), None)
            if oldest is None:
                oldest = next(iter(self._responses.values()))
                ended.append(oldest.end("cancelled"))
            del self._responses[oldest.id]
            self._rearm()
        self._responses[response_id] = _Response(response_id, _details(raw))
        return ended

    def done(self, response_id: str) -> bool:
        """The agent ended it. False: it was already ended here, so say nothing."""
        response = self._responses.get(response_id)
        if response is None:
            return True
        if response.over:
            return False
        response.over = True
        response.tell_at = response.lapse_at = None
        self._rearm()
        return True

    def may_play(self, response_id: str) -> bool:
        response = self._responses.get(response_id)
        return response_id not in self._muted and not (response is not None and response.over)

    def open(self, *, spoken_only: bool = False) -> list[str]:
        """Responses that are not over; `spoken_only`: without those apart from the conversation."""
        return [r.id for r in self._responses.values() if not r.over and not (spoken_only and r.apart)]

    def uncancelled(self) -> list[str]:
        """The open ones of the conversation that nobody has told the agent to end."""
        return [r.id for r in self._responses.values() if not (r.over or r.apart or r.lapse_at is not None)]

    def interruptible(self, response_id: str) -> bool:
        """Whether speech may stop it: not when its metadata say `"voicegate_interruptible": "false"`."""
        response = self._responses.get(response_id)
        metadata = None if response is None else response.details.get("metadata")
        return not (isinstance(metadata, dict) and metadata.get(INTERRUPTIBLE) == "false")

    def latest(self) -> str:
        """The response an event without an id is about: the newest open one not apart, or ""."""
        return next((r.id for r in reversed(self._responses.values()) if not (r.over or r.apart)), "")

    def mute(self, response_id: str) -> None:
        if response_id not in self._muted:
            self._muted.append(response_id)

    def cancelled(self, response_id: str, reason: Reason, now: float, *, told: bool) -> None:
        """It is to end. `told`: a `response.cancel` is on its way; else the agent should know by itself."""
        response = self._responses.get(response_id)
        if response is None or response.over:
            return
        response.reason = response.reason or reason
        if told:
            response.tell_at = None
            response.lapse_at = response.lapse_at or now + CANCEL_SECONDS
        elif response.lapse_at is None and response.tell_at is None:
            response.tell_at = now + GRACE_SECONDS
        self._rearm()

    def owe(self, heard: Heard) -> bool:
        """Keep this for the end of its response; False when that has come."""
        response = self._responses.get(heard.response_id)
        if response is None or response.over:
            return False
        response.owed.append(heard)
        return True

    def owed(self, response_id: str) -> list[Heard]:
        """What was kept for it, once."""
        response = self._responses.get(response_id)
        if response is None:
            return []
        owed, response.owed = response.owed, []
        return owed

    def handle_timeout(self, now: float) -> list[Tell | Ended]:
        due: list[Tell | Ended] = []
        for response in self._responses.values():
            if response.tell_at is not None and response.tell_at <= now:
                response.tell_at = None
                response.lapse_at = now + CANCEL_SECONDS
                due.append(Tell(response.id))
            elif response.lapse_at is not None and response.lapse_at <= now:
                due.append(response.end("cancelled"))
        self._rearm()
        return due

    def next_deadline(self) -> float | None:
        return self._deadline

    def agent_lost(self, code: str, message: str) -> list[Ended]:
        """End all that are open: failed, or cancelled where that was asked for."""
        ended = [
            r.end("cancelled" if r.reason else "failed", code, message)
            for r in self._responses.values()
            if not r.over
        ]
        self._rearm()
        return ended

    def _rearm(self) -> None:
        """After whatever changes a time: `next_deadline` is asked for each packet."""
        times = (at for r in self._responses.values() for at in (r.tell_at, r.lapse_at) if at is not None)
        self._deadline = min(times, default=None)


@dataclass(slots=True)
class _Response:
    id: str
    details: dict[str, Any]
    """Fields of the response as it was created, for an end made here."""
    over: bool = False
    reason: Reason | None = None
    tell_at: float | None = None
    lapse_at: float | None = None
    owed: list[Heard] = field(default_factory=list)

    @property
    def apart(self) -> bool:
        """It is not part of the conversation (`response.create` with `conversation: none`)."""
        return self.details.get("conversation_id", "") is None

    def end(self, status: Literal["cancelled", "failed"], code: str = "", message: str = "") -> Ended:
        self.over = True
        self.tell_at = self.lapse_at = None
        details: dict[str, Any] = {"type": status}
        if status == "cancelled":
            details["reason"] = self.reason or "client_cancelled"
        else:
            details["error"] = {"type": "server_error", "code": code, "message": message}
        body = {**self.details, "id": self.id, "object": "realtime.response", "output": []}
        return Ended(self.id, {**body, "status": status, "status_details": details})


def _details(raw: bytes) -> dict[str, Any]:
    if len(raw) > MAX_DETAILS_BYTES:
        return {}
    try:
        return msgspec.json.decode(raw, type=_Created).response
    except (msgspec.MsgspecError, UnicodeError, RecursionError):
        return {}


class _Created(msgspec.Struct):
    response: dict[str, Any]
