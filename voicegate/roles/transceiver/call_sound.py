"""A call's sound as its conversation has it (`playback.CallMedia`): what is said, held and dropped. Pure."""

from __future__ import annotations

from collections.abc import Callable

from voicegate.media.sound import Line
from voicegate.roles.transceiver.audio import CallAudio


class CallSound:
    """`send`: what the audio has ready is to leave now. Nothing is said any more once the call is over."""

    def __init__(self, audio: CallAudio, send: Callable[[], None]) -> None:
        self._audio = audio
        self._send: Callable[[], None] | None = send

    def close(self) -> None:
        """The call is over."""
        self._send = None  # the call's own: with it neither would be free before a full garbage collection

    @property
    def listening(self) -> bool:
        return self._audio.listening

    @property
    def line(self) -> Line:
        return self._audio.line

    @property
    def played_samples(self) -> int:
        return self._audio.played_samples

    @property
    def queued_samples(self) -> int:
        return self._audio.queued_samples

    def heard_until(self) -> float | None:
        return self._audio.heard_until()

    def play(self, pcm: bytes, now: float) -> None:
        """Queue the agent's audio (as `line.said`); it waits until the client is connected."""
        if self._send is not None:
            self._audio.play(pcm, now)
            self._send()

    def end_of_audio(self, now: float) -> None:
        """The agent has said all of this response; a last partial frame may go."""
        if self._send is not None:
            self._audio.end_of_audio(now)
            self._send()

    def stop_playing(self, now: float) -> bool:
        """Drop what is queued for the client, at once. True when there was something."""
        return self._send is not None and self._audio.stop_playing(now)

    def pause_playing(self, now: float) -> None:
        """Send no more of the agent's audio; nothing is lost."""
        if self._send is not None:
            self._audio.pause_playing(now)

    def resume_playing(self, now: float) -> None:
        """Go on from the next sample."""
        if self._send is not None:
            self._audio.resume_playing(now)
            self._send()

    def listen_to_output(self, listener: Callable[[bytes, float], None] | None) -> None:
        self._audio.listen_to_output(listener)

    def poll_audio(self) -> bytes | None:
        """The next stretch of the microphone, as `line.heard`: any whole number of samples."""
        return self._audio.poll_audio()

    def flush_microphone(self, now: float) -> None:
        self._audio.flush_microphone(now)

    def drop_microphone(self, now: float) -> None:
        self._audio.drop_microphone(now)
