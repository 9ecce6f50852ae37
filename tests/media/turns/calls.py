"""A call with a turn machine on virtual time: frames that say themselves whether they hold a voice."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TypeVar

import numpy as np

from voicegate.media.codec import FRAME_BYTES, FRAME_SECONDS, PCM_RATE
from voicegate.media.turns.decisions import Decision
from voicegate.media.turns.interruption import DefaultPolicy
from voicegate.media.turns.machine import TurnMachine
from voicegate.media.turns.plugins import Hop, InterruptionPolicy, Pause, Verdict
from voicegate.media.turns.settings import TurnSettings

_TONE = (3000 * np.sin(2 * np.pi * 200 / PCM_RATE * np.arange(FRAME_BYTES // 2))).astype("<i2").tobytes()
VOICE = b"\x01" + _TONE[1:]
COUGH = b"\x01" + bytes(FRAME_BYTES - 1)
BABBLE = b"\x02" + _TONE[1:]
QUIET = bytes(FRAME_BYTES)
START = 1000.0
D = TypeVar("D")


class MarkedActivity:
    """A frame that begins with 1 is a voice: one in five is weak, as syllables have it. With 2: people at the
    other end of the room, who are always as loud. COUGH is a voice to it, but has no pitch."""

    def __init__(self) -> None:
        self._voiced = 0

    def push(self, frame: bytes) -> Hop:
        if frame[0] == 2:
            return Hop(True, -42.0)
        if frame[0] != 1:
            return Hop(False, -100.0)
        self._voiced += 1
        return Hop(True, -36.0 if self._voiced % 5 == 0 else -20.0)

    def reset(self) -> None:
        pass


class ScriptedJudge:
    """The same hold for every pause; notes what it is told."""

    def __init__(
        self,
        hold: float = 0.6,
        *,
        schedule: Sequence[float] = (0.2,),
        inline: bool = True,
        eager: bool = False,
    ) -> None:
        self.hold = hold
        self.schedule: Sequence[float] = schedule
        self.inline = inline
        self.eager = eager
        self.asked: list[Pause] = []
        self.told: list[tuple[str, Pause]] = []
        self.frames = 0

    def listen(self, frame: bytes, hop: Hop) -> None:
        self.frames += 1

    def judge(self, pause: Pause) -> Verdict:
        self.asked.append(pause)
        return Verdict(pause.id, 0.5, self.hold, "scripted", self.eager)

    def resumed(self, pause: Pause) -> None:
        self.told.append(("resumed", pause))

    def ended(self, pause: Pause) -> None:
        self.told.append(("ended", pause))


class Call:
    """Says and hears; what was decided meanwhile is in `decisions`, with the time."""

    def __init__(
        self,
        settings: TurnSettings | None = None,
        judge: ScriptedJudge | None = None,
        policy: InterruptionPolicy | None = None,
    ) -> None:
        self.judge = judge or ScriptedJudge()
        self.machine = TurnMachine(
            settings or TurnSettings(), MarkedActivity(), self.judge, policy or DefaultPolicy()
        )
        self.now = START
        self.decisions: list[tuple[float, Decision]] = []

    def voice(self, seconds: float) -> None:
        self.frames(VOICE, seconds)

    def quiet(self, seconds: float) -> None:
        self.frames(QUIET, seconds)

    def frames(self, frame: bytes, seconds: float) -> None:
        for _ in range(round(seconds / FRAME_SECONDS)):
            self.now += FRAME_SECONDS
            self.fire(self.now)
            self.machine.push(frame, self.now)
            self.drain()

    def no_frames(self, seconds: float) -> None:
        """Time passes, and only timers fire."""
        self.now += seconds
        self.fire(self.now)

    def fire(self, until: float) -> None:
        for _ in range(20):
            due = self.machine.next_deadline()
            if due is None or due > until:
                return
            self.machine.handle_timeout(due)
            self.drain(due)
        raise AssertionError("a timer fires again and again")

    def drain(self, now: float | None = None) -> None:
        while (decision := self.machine.poll_decision()) is not None:
            self.decisions.append((self.now if now is None else now, decision))

    def kinds(self) -> list[str]:
        """What was decided so far, by name."""
        self.drain()
        return [type(decision).__name__ for _, decision in self.decisions]

    def all(self, kind: type[D]) -> list[D]:
        self.drain()
        return [decision for _, decision in self.decisions if isinstance(decision, kind)]

    def one(self, kind: type[D]) -> D:
        found = self.all(kind)
        assert len(found) == 1, self.decisions
        return found[0]

    def when(self, kind: type[D]) -> float:
        """Seconds since the call's beginning, of the only one."""
        self.one(kind)
        return next(at for at, decision in self.decisions if isinstance(decision, kind)) - START


def seconds(sample: int) -> float:
    return sample / PCM_RATE
