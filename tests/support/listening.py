"""What listens for turns, as the transceiver has it, for tests on virtual time."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from voicegate.media.turns.activity import WebrtcActivity
from voicegate.media.turns.fixed import FixedSilence, Upstream
from voicegate.media.turns.interruption import DefaultPolicy
from voicegate.media.turns.machine import TurnMachine
from voicegate.media.turns.plugins import TurnJudge
from voicegate.media.turns.settings import TurnSettings
from voicegate.roles.transceiver.detection import Ability
from voicegate.roles.transceiver.turn_plan import TurnPlan


class Listening:
    """`make` is the judge for everything but `server_vad` and mode upstream."""

    def __init__(self, make: Callable[[], TurnJudge] = FixedSilence) -> None:
        self._make = make

    def machine(self, settings: TurnSettings) -> tuple[TurnMachine, TurnJudge]:
        judge = self.judge(settings)
        return TurnMachine(settings, WebrtcActivity(settings.threshold), judge, DefaultPolicy()), judge

    def judge(self, settings: TurnSettings) -> TurnJudge:
        match settings.judge:
            case "fixed":
                return FixedSilence(settings.silence_duration)
            case "upstream":
                return Upstream()
            case _:
                return self._make()


def plan(ability: Ability, make: Callable[[], TurnJudge] = FixedSilence, **defaults: Any) -> TurnPlan:
    return TurnPlan(ability, TurnSettings(**defaults), Listening(make), pause_upstream=True)
