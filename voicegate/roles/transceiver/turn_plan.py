"""How a call's turns are handled: what its agent can, what the configuration says, and what listens. Pure."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Final, Protocol

from voicegate.media.turns.machine import TurnMachine
from voicegate.media.turns.plugins import TurnJudge
from voicegate.media.turns.settings import TurnSettings
from voicegate.roles.transceiver.detection import Ability


class Listening(Protocol):
    """What makes a call's machine, with plug-ins of its own."""

    def machine(self, settings: TurnSettings) -> tuple[TurnMachine, TurnJudge]: ...

    def judge(self, settings: TurnSettings) -> TurnJudge: ...


@dataclass(frozen=True, slots=True)
class TurnPlan:
    """How a call's turns are handled."""

    ability: Ability = "semantic"
    """The agent's."""
    defaults: TurnSettings = field(default_factory=TurnSettings)
    """What holds where the session says nothing."""
    listening: Listening | None = None
    """None: nothing listens, and only modes upstream and manual can be had."""
    pause_upstream: bool = False


NO_PLAN: Final = TurnPlan()
"""Everything is the agent's business."""
