"""The agent's answers: played, cut short, cancelled, truncated. Pure.

An interruption silences all that is queued at once, mutes what is still to come of it, and tells the agent
how much was heard: when the response is over, for an item that is still being made cannot be truncated.
"""

from __future__ import annotations

from voicegate.proto.realtime import AudioDelta, AudioDone
from voicegate.roles.transceiver.playback import CallMedia, Heard, Playback
from voicegate.roles.transceiver.responses import Ended, Reason, Responses, Tell
from voicegate.roles.transceiver.upstream import Upstream


class Answers:
    """One call's."""

    def __init__(self, media: CallMedia, upstream: Upstream, *, client_delay: float) -> None:
        self.interruptions = 0
        self.playback = Playback(media, client_delay=client_delay)
        self.responses = Responses()
        self._upstream = upstream

    def play(self, delta: AudioDelta, now: float) -> bool:
        """Whether all of it is kept; it is false once for each response."""
        response_id = delta.response_id or self.responses.latest()
        before = self.playback.overflowing
        if self.responses.may_play(response_id):
            self.playback.play(response_id, delta.item_id, delta.content_index, delta.pcm, now)
        return self.playback.overflowing == before

    def audio_done(self, done: AudioDone, now: float) -> None:
        self.playback.audio_done(done.response_id or self.responses.latest(), done.item_id, now)

    def over(self, response_id: str, now: float) -> None:
        """A response is done, by the agent's word or by ours."""
        self.playback.response_done(response_id, now)
        for heard in self.responses.owed(response_id):
            self._truncate(heard)

    def interrupt(self, now: float, reason: Reason, *, told: bool = False) -> None:
        """Silence, at once, and let the agent know how much was heard.

        `told`: a `response.cancel` is on its way.
        """
        audible = self.playback.responses
        cut = self.playback.interrupt(now)
        for response_id in audible:
            self.responses.mute(response_id)
        if reason == "turn_detected":
            for response_id in self.responses.open(spoken_only=True):
                self.responses.mute(response_id)
                self.responses.cancelled(response_id, reason, now, told=told)
        if audible:
            self.interruptions += 1
        for heard in cut:
            if not self.responses.owe(heard):
                self._truncate(heard)

    def stop(self, now: float) -> None:
        """Somebody speaks, and it was decided here that the agent is to stop."""
        for response_id in self.responses.uncancelled():
            self._tell_cancel(response_id)
        self.interrupt(now, "turn_detected", told=True)

    def client_cancels(self, response_id: object, now: float) -> None:
        """A client's `response.cancel` has gone out."""
        named = response_id if isinstance(response_id, str) and response_id else None
        target = named or self.responses.latest()
        self.responses.cancelled(target, "client_cancelled", now, told=True)
        # Without a name it means whatever is being said, also when the agent has already finished saying it.
        if named is None or self.playback.holds(named):
            self.interrupt(now, "client_cancelled", told=True)
        self.responses.mute(target)

    def handle_timeout(self, now: float) -> list[Ended]:
        """Returns cancelled responses that the agent has not ended: they are over."""
        ended = []
        for due in self.responses.handle_timeout(now):
            match due:
                case Tell(response_id):
                    self._tell_cancel(response_id)
                case Ended():
                    ended.append(due)
        return ended

    def _tell_cancel(self, response_id: str) -> None:
        self._upstream.tell("cancel", {"type": "response.cancel", "response_id": response_id})

    def _truncate(self, heard: Heard) -> None:
        if not heard.item_id:
            return  # a server without item ids keeps no items to correct
        if heard.milliseconds:
            truncate = {
                "type": "conversation.item.truncate",
                "item_id": heard.item_id,
                "content_index": heard.content_index,
                "audio_end_ms": heard.milliseconds,
            }
            self._upstream.tell("truncate", truncate)
        else:
            # A truncation to nothing is refused by some servers, and an item nobody heard was never said.
            self._upstream.tell("delete", {"type": "conversation.item.delete", "item_id": heard.item_id})
