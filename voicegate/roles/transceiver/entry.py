"""A call as its transceiver keeps it: transport and audio, events, and the paths to its relays. Pure.

events channel ─► Conversation ─► agent          microphone ─► agent, in one line with the events
agent ─► Conversation ─► events channel, sidebands, playout
"""

from __future__ import annotations

from collections import deque
from typing import NamedTuple

from voicegate.media.convert import PcmTap
from voicegate.media.recording import Tap
from voicegate.media.sound import PCM_LINE
from voicegate.proto.address import ClientAddress
from voicegate.proto.datachannel import MessageRejected
from voicegate.roles.transceiver.call import Call
from voicegate.roles.transceiver.channel import Notice
from voicegate.roles.transceiver.conversation import Conversation
from voicegate.roles.transceiver.outbox import Audience
from voicegate.roles.transceiver.turn_events import Question, Told

_TOLERANCE = 1e-6
"""A timer that fires a rounding error early is on time."""


class Upstream(NamedTuple):
    """Something for a call's agent (`ToAgent`)."""

    call_id: str
    is_audio: bool
    """True: the microphone, as the call's `line.heard`; False: an event as JSON."""
    data: bytes


class Entry:
    """One call."""

    __slots__ = ("_others_due", "armed", "call", "conversation", "key_id", "paths", "ufrag")

    def __init__(self, call: Call, conversation: Conversation, ufrag: bytes, key_id: str) -> None:
        self.call = call
        self.conversation = conversation
        self.ufrag = ufrag
        self.key_id = key_id
        self.paths: dict[ClientAddress, str] = {}
        """Client address -> relay (`ip:port`) that last brought an authenticated packet from it."""
        self.armed: float | None = None
        """The deadline of this call's valid entry in the wheel."""
        self._others_due = 0.0
        """When something other than a frame of the agent's is due, as `next_deadline` saw it last."""

    def record(self, tap: Tap) -> None:
        """Leave what is heard, said and told from now on there."""
        line = self.call.audio.line
        tap = tap if line == PCM_LINE else PcmTap(tap, line)
        self.call.audio.tap = tap
        self.conversation.record(tap)

    def handle_timeout(self, now: float) -> bool:
        """Do what is due: the media first, for the conversation looks at what was played.

        False: that was at most a frame of the agent's, so there is nothing to `exchange`.
        """
        if now + _TOLERANCE < self._others_due:
            self.call.send_due_frame(now)
            return False
        self.call.handle_timeout(now)
        if self.call.ended is None:
            due = self.conversation.next_deadline()
            if due is not None and due <= now + _TOLERANCE:  # not for each frame
                self.conversation.handle_timeout(now)
        return True

    def next_deadline(self) -> float | None:
        """After anything but a frame of the agent's."""
        call = self.call
        deadline = call.others_deadline()
        if deadline is None:
            return None
        if call.ended is None:
            conversation = self.conversation.next_deadline()
            if conversation is not None and conversation < deadline:
                deadline = conversation
        self._others_due = deadline
        return self.next_frame()

    def next_frame(self) -> float:
        """`next_deadline` after a frame of the agent's, which changes only when the next one is due."""
        frame = self.call.frame_deadline()
        return frame if frame < self._others_due else self._others_due

    def exchange(
        self,
        now: float,
        upstream: deque[Upstream],
        sidebands: deque[tuple[str, bytes]],
        turns: deque[tuple[str, Told | Question]],
    ) -> None:
        """Carry events between channel, conversation, agent and sidebands until all is still."""
        call, conversation, call_id = self.call, self.conversation, self.call.call_id
        while True:
            conversation.hear_microphone(now)
            while (item := conversation.poll_to_agent()) is not None:
                upstream.append(Upstream(call_id, *item))
            message = call.poll_message()
            if message is None:
                break
            if call.ended is None:
                self._receive(message, now)
        while call.audio.presses:
            conversation.key_pressed(call.audio.presses.popleft(), now)
        while (addressed := conversation.poll_to_clients()) is not None:
            event, audience = addressed
            if Audience.CLIENT in audience:
                call.send_event(event, now)
            if Audience.SIDEBAND in audience:
                sidebands.append((call_id, event))

        while (news := conversation.turns.events.poll()) is not None:
            turns.append((call_id, news))

    def _receive(self, message: Notice | str | bytes | MessageRejected, now: float) -> None:
        match message:
            case Notice.OPENED:
                self.conversation.joined(Audience.CLIENT, now)
            case Notice.CLOSED:
                self.conversation.left(Audience.CLIENT, now)
            case MessageRejected():
                self.conversation.client_message_rejected(message.reason, now, source=Audience.CLIENT)
            case str() | bytes():
                self.conversation.receive_client_event_untrusted(message, now, source=Audience.CLIENT)
