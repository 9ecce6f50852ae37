"""What the agent's events do to a call's audio. Pure.

The agent speaks in deltas, faster than real time; the call plays them in real time. When the person begins to
speak, what is queued is dropped at once, and what still arrives of that response is never played.
"""

from __future__ import annotations

from voicegate.proto.realtime import AudioDelta, AudioDone, ServerEvent, SpeechStarted
from voicegate.roles.transceiver.call import Call


class Conversation:
    """Translates one agent's events into playout of one call."""

    def __init__(self, call: Call) -> None:
        self._call = call
        self._speaking: str | None = None
        """The response whose audio was last queued."""
        self._muted: str | None = None
        """The response that was interrupted: its late deltas are dropped."""
        self.interruptions = 0

    def receive(self, event: ServerEvent, now: float) -> None:
        """Take one event of the agent; the call's outputs are to be drained after it."""
        match event:
            case AudioDelta(response_id=response_id, pcm=pcm):
                if response_id == self._muted:
                    return
                self._speaking = response_id
                self._call.play(pcm, now)
            case AudioDone(response_id=response_id):
                if response_id != self._muted:
                    self._call.end_of_audio(now)
            case SpeechStarted():
                if self._call.stop_playing(now):
                    self.interruptions += 1
                self._muted = self._speaking
            case _:
                pass
