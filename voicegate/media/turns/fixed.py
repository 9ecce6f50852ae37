"""The two judges that do not listen: a silence of fixed length, and the agent's own verdict."""

from __future__ import annotations

from collections.abc import Sequence
from math import inf

from voicegate.media.turns.plugins import Hop, Pause, Verdict


class FixedSilence:
    """`server_vad`: the turn is over after `silence` seconds (`silence_duration_ms`), whatever was said.

    `silence` is also its knob for patience: the one number that a sweep moves. (`threshold` of `server_vad`
    is the voice activity's.)
    """

    inline = True

    def __init__(self, silence: float = 0.5) -> None:
        self._silence = silence
        self.schedule: Sequence[float] = (min(0.1, silence),)

    def listen(self, frame: bytes, hop: Hop) -> None:
        pass

    def judge(self, pause: Pause) -> Verdict:
        over = pause.silence >= self._silence
        return Verdict(pause.id, 1.0 if over else 0.0, self._silence, "silence")

    def resumed(self, pause: Pause) -> None:
        pass

    def ended(self, pause: Pause) -> None:
        pass


class Upstream:
    """The agent decides: its verdicts reach the turn machine from outside. Without one a turn ends at the
    machine's longest pause only."""

    inline = True
    schedule: Sequence[float] = ()

    def listen(self, frame: bytes, hop: Hop) -> None:
        pass

    def judge(self, pause: Pause) -> Verdict:
        return Verdict(pause.id, 0.0, inf, "upstream")

    def resumed(self, pause: Pause) -> None:
        pass

    def ended(self, pause: Pause) -> None:
        pass
