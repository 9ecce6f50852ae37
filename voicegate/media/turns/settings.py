"""What can be set about turns, and how the Realtime API's `turn_detection` says it."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, replace
from typing import Final

EAGERNESS_CEILING: Final = {"low": 8.0, "medium": 4.0, "auto": 4.0, "high": 2.0}
"""Seconds of silence after which `semantic_vad` answers in any case, by its `eagerness`."""
PATIENCE: Final = {"low": 2.0, "medium": 1.0, "auto": 1.0, "high": 0.5}
"""How patient judges are that weigh a pause: in proportion to those ceilings."""


@dataclass(frozen=True, slots=True)
class TurnSettings:
    """Seconds, unless a field says otherwise. Defaults are those of the Realtime API where it has one."""

    judge: str = "adaptive"
    """The name of the turn judge; `server_vad` means "fixed"."""
    model: str | None = None
    """The path of a file that the judge reads, where it needs one."""
    eagerness: str = "auto"
    """For judges that know more than silence: "low", "medium", "auto" (medium) or "high"."""
    patience: float = 1.0
    """About by what a judge multiplies its waits: the one number that an evaluation sweeps. Every judge has
    to look at it."""
    silence_duration: float = 0.5
    """For the fixed judge: the silence that ends a turn."""
    threshold: float = 0.5
    """How sure voice activity has to be, 0 to 1."""
    prefix_padding: float = 0.3
    """How much of what was before the first voice belongs to a turn."""
    max_silence: float = 4.0
    """No pause within a turn is longer, whatever the judge says."""
    max_turn: float | None = None
    """No turn is longer: it is ended in the middle of a word."""
    eager: bool = False
    """Ask for replies before a turn's end is certain. Costs the replies that nobody hears."""
    create_response: bool = True
    """Whether a turn's end asks for a reply. The machine decides the same either way."""
    interrupts: bool = True
    """Whether speech stops the agent's output. Without it what is said meanwhile is a turn like any other."""
    idle_timeout: float | None = None
    """After the agent's last sound, when nobody speaks: the agent is to speak again."""
    user_idle: float | None = None
    """Silence on both sides after which the application is told."""


def from_turn_detection(wanted: Mapping[str, object], defaults: TurnSettings) -> TurnSettings:
    """What a client's `session.audio.input.turn_detection` asks for; what it leaves out is as in `defaults`.

    Raises ValueError with a sentence for the client. `null` is not for here: it turns the machine off.
    """
    kind = wanted.get("type", "server_vad" if defaults.judge == "fixed" else "semantic_vad")
    settings = replace(
        defaults,
        create_response=_flag(wanted, "create_response", defaults.create_response),
        interrupts=_flag(wanted, "interrupt_response", defaults.interrupts),
    )
    if kind == "server_vad":
        silence = _milliseconds(wanted, "silence_duration_ms", defaults.silence_duration, 0.0, 10.0)
        assert silence is not None  # its default is a number
        padding = _milliseconds(wanted, "prefix_padding_ms", defaults.prefix_padding, 0.0, 2.0)
        assert padding is not None
        return replace(
            settings,
            judge="fixed",
            silence_duration=silence,
            max_silence=max(defaults.max_silence, silence),
            prefix_padding=padding,
            threshold=_fraction(wanted, "threshold", defaults.threshold),
            idle_timeout=_milliseconds(wanted, "idle_timeout_ms", defaults.idle_timeout, 1.0, 120.0),
        )
    if kind == "semantic_vad":
        eagerness = wanted.get("eagerness", defaults.eagerness)
        if not isinstance(eagerness, str) or eagerness not in EAGERNESS_CEILING:
            raise ValueError(f"eagerness is one of {', '.join(EAGERNESS_CEILING)}, not {eagerness!r:.80}")
        judge = "adaptive" if defaults.judge == "fixed" else defaults.judge
        ceiling = EAGERNESS_CEILING[eagerness] if "eagerness" in wanted else defaults.max_silence
        return replace(settings, judge=judge, eagerness=eagerness, max_silence=ceiling)
    raise ValueError(f"turn_detection.type is server_vad or semantic_vad, not {kind!r:.80}")


def _flag(wanted: Mapping[str, object], name: str, default: bool) -> bool:
    value = wanted.get(name, default)
    if not isinstance(value, bool):
        raise ValueError(f"turn_detection.{name} is true or false, not {value!r:.80}")
    return value


def _fraction(wanted: Mapping[str, object], name: str, default: float) -> float:
    value = wanted.get(name, default)
    if isinstance(value, bool) or not isinstance(value, int | float) or not 0.0 <= value <= 1.0:
        raise ValueError(f"turn_detection.{name} is a number from 0 to 1, not {value!r:.80}")
    return float(value)


def _milliseconds(
    wanted: Mapping[str, object], name: str, default: float | None, least: float, most: float
) -> float | None:
    """Of a field in milliseconds, the seconds; null is what it is by default. The limits are in seconds."""
    value = wanted.get(name)
    if value is None:
        return default
    limits = f"{least * 1000:.0f} to {most * 1000:.0f} milliseconds"
    if (
        isinstance(value, bool)
        or not isinstance(value, int | float)
        or not least * 1000 <= value <= most * 1000
    ):
        raise ValueError(f"turn_detection.{name} is {limits}, not {value!r:.80}")
    return value / 1000
