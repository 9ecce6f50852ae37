"""The agent's input audio buffer, where the gateway fills and commits it. Pure.

Mode gateway: `InputGate` says what of the microphone is in it, and the events about it are made here. Mode
hybrid: the agent fills it and mostly commits; what is committed here is the exception.
"""

from __future__ import annotations

from collections import deque
from typing import Final, NamedTuple

from voicegate.media.turns.decisions import IdleTimeout
from voicegate.proto.realtime import SAMPLE_RATE, item_id_of
from voicegate.roles.transceiver.aliases import Aliases
from voicegate.roles.transceiver.input_gate import InputGate
from voicegate.roles.transceiver.outbox import Outbox
from voicegate.roles.transceiver.upstream import Upstream

MAX_COMMITS: Final = 32
"""Commits that the agent has not answered; it answers within a round trip."""


class _Commit(NamedTuple):
    item_id: str
    """As the clients know it; "": as the agent calls it."""
    idle: IdleTimeout | None


class InputBuffer:
    """One call's. Places are samples at 24 kHz since the start of the call."""

    def __init__(self, upstream: Upstream, outbox: Outbox) -> None:
        self.aliases = Aliases()
        self.gate: InputGate | None = None
        """None: all of the microphone goes to the agent."""
        self.item_id = ""
        """The item that the open turn becomes; "" between turns."""
        self._upstream = upstream
        self._outbox = outbox
        self._items = 0
        self._commits: deque[_Commit] = deque(maxlen=MAX_COMMITS)

    def begin(self, place: int) -> None:
        """A turn has begun there."""
        self.item_id = self._new_item()
        self._outbox.make(
            "input_audio_buffer.speech_started", audio_start_ms=_milliseconds(place), item_id=self.item_id
        )
        if self.gate is not None:
            self.gate.open_at(place)

    def stopped(self, place: int) -> None:
        """The turn is over."""
        self._outbox.make(
            "input_audio_buffer.speech_stopped", audio_end_ms=_milliseconds(place), item_id=self.item_id
        )

    def commit(self) -> None:
        """What the agent has of the turn becomes its item."""
        self._send_commit(_Commit(self.item_id, None))
        if self.gate is not None:
            self.gate.shut()

    def over(self) -> None:
        """No turn is open any more."""
        self.item_id = ""
        if self.gate is not None:
            self.gate.shut()

    def give_up(self, place: int) -> None:
        """A turn that may be open comes to nothing, or to what others make of it."""
        if self.item_id:
            self.stopped(place)
        self.over()

    def commit_silence(self, idle: IdleTimeout, start: int) -> None:
        """Nobody has spoken from `start` on: that becomes an item, and the clients are told why."""
        item_id = ""
        if self.gate is not None:
            item_id = self._new_item()
            self.gate.open_at(start)
            self.gate.shut()
        self._send_commit(_Commit(item_id, idle))

    def client_commits(self) -> None:
        """A client's own commit goes out: of the open turn, or of what was held."""
        if self.gate is None:
            return
        if not self.gate.is_open:
            self.gate.open_at(0)
            self.gate.shut()
        self._commits.append(_Commit(self.item_id or self._new_item(), None))

    def committed(self, raw: bytes) -> str:
        """The agent's `input_audio_buffer.committed`; returns its name for the item."""
        item_id = item_id_of(raw)
        if not self._commits:
            return item_id  # the agent's own
        commit = self._commits.popleft()
        if commit.item_id:
            self.aliases.add(item_id, commit.item_id)
        if commit.idle is not None:
            self._outbox.make(
                "input_audio_buffer.timeout_triggered",
                audio_start_ms=_milliseconds(commit.idle.start),
                audio_end_ms=_milliseconds(commit.idle.end),
                item_id=commit.item_id or item_id,
            )
        return item_id

    def refused(self) -> None:
        """The agent has refused the oldest commit."""
        if self._commits:
            self._commits.popleft()

    def _new_item(self) -> str:
        self._items += 1
        return f"item_voicegate_{self._items}"

    def _send_commit(self, commit: _Commit) -> None:
        self._commits.append(commit)
        self._upstream.tell("commit", {"type": "input_audio_buffer.commit"})


def _milliseconds(place: int) -> int:
    return place * 1000 // SAMPLE_RATE
