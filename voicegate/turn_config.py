"""From the section [turns] of the configuration to what listens for turns."""

from __future__ import annotations

from voicegate.config import TurnsConfig
from voicegate.media.turns.interruption import InterruptionSettings
from voicegate.media.turns.settings import EAGERNESS_CEILING, TurnSettings
from voicegate.turn_plugins import TurnPlugins, load_turn_plugins


def turn_settings(turns: TurnsConfig) -> TurnSettings:
    """What holds where a session says nothing of turn detection."""
    return TurnSettings(
        judge=turns.judge,
        model=turns.smart_turn_model or None,
        eagerness=turns.eagerness,
        max_silence=EAGERNESS_CEILING[turns.eagerness],
        max_turn=turns.max_turn_seconds or None,
        eager=turns.eager,
        user_idle=turns.user_idle_seconds or None,
    )


def turn_plugins(turns: TurnsConfig) -> TurnPlugins:
    """The plug-ins that are named. Raises ValueError with a sentence for one that cannot be had."""
    interruption = InterruptionSettings(
        pause_after=turns.pause_after_seconds,
        stop_after=turns.stop_after_seconds,
        resume_after=turns.resume_after_seconds,
        grace=turns.grace_seconds,
    )
    return load_turn_plugins(
        turn_settings(turns), activity=turns.activity, policy=turns.policy, interruption=interruption
    )
