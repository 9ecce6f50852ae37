"""What the microphone says, frame by frame: where voice began, where it last was, how long it is silent.

Voice activity tells voice from noise 20 ms at a time and errs often. Here a voiced frame counts for voice and
an unvoiced one against it, between 0 and MOST, so that a click stays alone and a stop consonant within a word
changes nothing. Time is the line's own while frames come. When none has come for STALL, real time is silence.
"""

from __future__ import annotations

import math
from collections import deque
from collections.abc import Iterator
from typing import Final

from voicegate.media.codec import FRAME_BYTES, FRAME_SAMPLES, PCM_RATE
from voicegate.media.turns.plugins import Hop, VoiceActivity

MOST: Final = 5
"""Frames: 100 ms of voice are speech, more than a click or a key."""
LIKELY: Final = 3
"""Frames of evidence at which voice is taken for one that goes on: a syllable is longer, a click is not."""
STALL: Final = 0.5
"""Seconds without a frame: longer than packets are held up where sound still comes (`pause.MUTE_AFTER`)."""
EPSILON: Final = 1e-6
"""Seconds by which a sum of frames may be off."""
LATE: Final = 0.2
"""A timer that fires so much too late was held up with everything else; frames may be waiting."""
AUDIO_FRAMES: Final = 8 * PCM_RATE // FRAME_SAMPLES
"""Eight seconds: as much as a judge is given."""


class Microphone:
    """One call's."""

    __slots__ = (
        "_activity",
        "_excused",
        "_rest",
        "audio",
        "evidence",
        "heard_at",
        "likely",
        "onset",
        "position",
        "voice_end",
    )

    def __init__(self, activity: VoiceActivity) -> None:
        self._activity = activity
        self._rest = b""
        self._excused = False
        self.audio: deque[bytes] = deque(maxlen=AUDIO_FRAMES)
        self.position = 0
        """Samples judged."""
        self.evidence = 0
        """For voice now, 0 to MOST frames."""
        self.likely = False
        """Whether it has been LIKELY since it was 0."""
        self.onset = 0
        """Sample at which the evidence last began to rise from 0."""
        self.voice_end = 0
        """Sample at which the last likely voice ended."""
        self.heard_at: float | None = None
        """When the last frame came; None before the first."""

    def frames(self, pcm: bytes, now: float) -> Iterator[bytes]:
        """The whole frames that `pcm` completes."""
        if not pcm:
            return  # nothing was heard: it hides no stall
        self.heard_at = now
        self._excused = False
        data = self._rest + pcm if self._rest else pcm
        whole = len(data) - len(data) % FRAME_BYTES
        self._rest = data[whole:]
        for at in range(0, whole, FRAME_BYTES):
            yield data[at : at + FRAME_BYTES]

    def detect(self, frame: bytes) -> Hop:
        """What voice activity says of the next frame."""
        return self._activity.push(frame)

    def hear(self, frame: bytes, hop: Hop) -> None:
        """The next frame, and what it is taken for."""
        self.audio.append(frame)
        if hop.voiced:
            if self.evidence == 0:
                self.onset = self.position
            if self.evidence < MOST:
                self.evidence += 1
            self.position += FRAME_SAMPLES
            if self.evidence >= LIKELY or self.likely:
                self.likely = True
                self.voice_end = self.position
            return
        self.position += FRAME_SAMPLES
        if self.evidence:
            self.evidence -= 1
            if not self.evidence:
                self.likely = False

    def expect_nothing(self) -> None:
        """Voice from here on is another one."""
        self.evidence = 0
        self.likely = False

    def expect_voice(self) -> None:
        """The next voice, if it follows at once, needs no more evidence: it only goes on."""
        self.evidence = MOST - 1
        self.likely = False
        self.onset = self.position

    def keep(self, frames: int) -> None:
        """Forget the audio before the last so many frames."""
        while len(self.audio) > frames:
            self.audio.popleft()

    def last(self, frames: int) -> bytes:
        """The last so many frames, as far as they are kept."""
        return b"".join(self.audio[-n] for n in range(min(frames, len(self.audio)), 0, -1))

    def audio_since(self, sample: int) -> list[bytes]:
        """The frames from the one that holds this sample, as far as they are kept."""
        wanted = -((sample - self.position) // FRAME_SAMPLES)
        frames = list(self.audio)
        return frames[max(0, len(frames) - wanted) :]

    def silence(self, now: float) -> float:
        """Seconds since the last voice."""
        return (self.position - self.voice_end) / PCM_RATE + self.missing(now)

    def missing(self, now: float) -> float:
        """Seconds without a frame that are taken for silence."""
        missing = 0.0 if self.heard_at is None else now - self.heard_at
        return missing if missing >= STALL - EPSILON else 0.0

    def silent_at(self, silence: float) -> float:
        """When the silence will have lasted so long, should no frame come; never before the first frame."""
        if self.heard_at is None:
            return math.inf
        return self.heard_at + max(STALL, silence - (self.position - self.voice_end) / PCM_RATE)

    def excuse(self, due: float, now: float) -> bool:
        """Whether a timer that was due at `due` tells nothing, since everything was held up.

        Once: after that, what does not come is missing.
        """
        if self._excused or now - due < LATE:
            return False
        self._excused = True
        self.heard_at = now
        return True

    def restart(self) -> None:
        """What is heard from here on has nothing to do with what was."""
        self.expect_nothing()
        self.voice_end = self.position
        self.audio.clear()
