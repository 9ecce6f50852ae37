"""The three plug-ins of a turn machine, by name: ours, and those of third parties by entry points.

    group                             ours                                     makes
    voicegate.voice_activities        webrtc                                   VoiceActivity
    voicegate.turn_judges             adaptive, fixed, smart-turn, upstream    TurnJudge
    voicegate.interruption_policies   default                                  InterruptionPolicy

An entry point names a factory: something that takes the `TurnSettings` of a call and makes that call's own
instance. A third party's `pyproject.toml`:

    [project.entry-points."voicegate.turn_judges"]
    patient = "their_package:PatientJudge"

`load_turn_plugins` is for start-up: an unknown name, a package that does not import or a factory that fails
is a ValueError with a sentence. A plug-in that fails later, in a call, costs that call nothing but itself:
what it was asked for is asked of ours instead, from then on, and whoever made the call is told once.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from importlib.metadata import EntryPoint, entry_points
from itertools import pairwise
from typing import Final, Generic, TypeVar

from voicegate.media.turns.activity import WebrtcActivity
from voicegate.media.turns.adaptive import AdaptivePause
from voicegate.media.turns.fixed import FixedSilence, Upstream
from voicegate.media.turns.interruption import DefaultPolicy, InterruptionSettings
from voicegate.media.turns.plugins import (
    Action,
    Hop,
    InterruptionPolicy,
    Overlap,
    Pause,
    TurnJudge,
    Verdict,
    VoiceActivity,
)
from voicegate.media.turns.settings import PATIENCE, TurnSettings

T = TypeVar("T")

Factory = Callable[[TurnSettings], T]

Failed = Callable[[str, Exception], None]
"""Told once a call and plug-in that it failed: its name, and how. For judges that are not inline, from the
thread that asked."""


@dataclass(frozen=True, slots=True)
class TurnPlugins:
    """What a process's calls use; each method makes one call's own."""

    activity_name: str
    policy_name: str
    _activity: Factory[VoiceActivity]
    _judges: Mapping[str, Factory[TurnJudge]]
    _policy: Factory[InterruptionPolicy]

    def activity(self, settings: TurnSettings, failed: Failed) -> VoiceActivity:
        if self.activity_name in _ACTIVITIES:
            return self._activity(settings)
        return _GuardedActivity(self.activity_name, self._activity, _webrtc, settings, failed)

    def judge(self, settings: TurnSettings, failed: Failed) -> TurnJudge:
        """The judge that `settings` names: one that was loaded, or one of ours that needs nothing."""
        factory = self._judges[settings.judge]
        if settings.judge in _JUDGES:
            return factory(settings)
        return _GuardedJudge(settings.judge, factory, _adaptive, settings, failed)

    def policy(self, settings: TurnSettings, failed: Failed) -> InterruptionPolicy:
        if self.policy_name == "default":
            return self._policy(settings)
        return _GuardedPolicy(self.policy_name, self._policy, _default_policy, settings, failed)


def load_turn_plugins(
    settings: TurnSettings,
    *,
    activity: str = "webrtc",
    policy: str = "default",
    interruption: InterruptionSettings | None = None,
) -> TurnPlugins:
    """Find what is named here and as `settings.judge`, and try it once. Raises ValueError with a sentence.

    `interruption` is for the policy "default".
    """
    policies = {"default": lambda settings: DefaultPolicy(interruption)}
    judges = {name: _JUDGES[name] for name in ("adaptive", "fixed", "upstream")}
    judges[settings.judge] = _find("voicegate.turn_judges", "turn judge", settings.judge, _JUDGES)
    plugins = TurnPlugins(
        activity,
        policy,
        _find("voicegate.voice_activities", "voice activity", activity, _ACTIVITIES),
        judges,
        _find("voicegate.interruption_policies", "interruption policy", policy, policies),
    )
    _try(f"voice activity {activity!r}", plugins._activity, settings, ("push", "reset"))
    _try(f"interruption policy {policy!r}", plugins._policy, settings, ("decide", "over"))
    what = f"turn judge {settings.judge!r}"
    judge = _try(what, judges[settings.judge], settings, ("listen", "judge", "resumed", "ended"))
    _check_schedule(what, judge)
    return plugins


def _webrtc(settings: TurnSettings) -> VoiceActivity:
    return WebrtcActivity(settings.threshold)


def _adaptive(settings: TurnSettings) -> TurnJudge:
    return AdaptivePause(_patience(settings), ceiling=settings.max_silence)


def _fixed(settings: TurnSettings) -> TurnJudge:
    return FixedSilence(settings.silence_duration * settings.patience)


def _smart_turn(settings: TurnSettings) -> TurnJudge:
    # Needs onnxruntime, which only the extra `smart-turn` installs.
    from voicegate.media.turns.smart_turn import SmartTurn

    if settings.model is None:
        raise ValueError("it needs the path of its ONNX file, as the model of the turn settings")
    return SmartTurn(settings.model, _patience(settings), ceiling=settings.max_silence)


def _upstream(settings: TurnSettings) -> TurnJudge:
    return Upstream()


def _patience(settings: TurnSettings) -> float:
    return PATIENCE[settings.eagerness] * settings.patience


def _default_policy(settings: TurnSettings) -> InterruptionPolicy:
    return DefaultPolicy()


_ACTIVITIES: Final[Mapping[str, Factory[VoiceActivity]]] = {"webrtc": _webrtc}
_JUDGES: Final[Mapping[str, Factory[TurnJudge]]] = {
    "adaptive": _adaptive,
    "fixed": _fixed,
    "smart-turn": _smart_turn,
    "upstream": _upstream,
}


def _find(group: str, kind: str, name: str, ours: Mapping[str, Factory[T]]) -> Factory[T]:
    if name in ours:
        return ours[name]
    installed = entry_points(group=group)
    found = [point for point in installed if point.name == name]
    if not found:
        known = sorted({*ours, *(point.name for point in installed)})
        raise ValueError(
            f"There is no {kind} {name!r} here. There are: {', '.join(known)}. "
            f"Others come with packages that have an entry point in {group}."
        )
    if len(found) > 1:
        raise ValueError(
            f"Several packages have a {kind} {name!r}: {', '.join(_package(point) for point in found)}. "
            "Uninstall all but one."
        )
    try:
        factory: Factory[T] = found[0].load()
    except Exception as error:
        raise ValueError(
            f"The {kind} {name!r} of {_package(found[0])} does not load: {_words(error)}."
        ) from error
    return factory


def _package(point: EntryPoint) -> str:
    return point.dist.name if point.dist is not None else point.value


def _try(what: str, factory: Factory[T], settings: TurnSettings, methods: Sequence[str]) -> T:
    try:
        made = factory(settings)
    except Exception as error:
        raise ValueError(f"The {what} cannot be used: {_words(error)}.") from error
    missing = [method for method in methods if not callable(getattr(made, method, None))]
    if missing:
        raise ValueError(f"The {what} cannot be used: it has no method {', '.join(missing)}.")
    return made


def _check_schedule(what: str, judge: TurnJudge) -> None:
    try:
        schedule, inline = list(judge.schedule), judge.inline
        rising = all(a < b for a, b in pairwise(schedule))
        sound = rising and all(0 <= at < 60 for at in schedule) and isinstance(inline, bool)
    except (AttributeError, TypeError) as error:
        raise ValueError(f"The {what} cannot be used: {_words(error)}.") from error
    if not sound:
        raise ValueError(
            f"The {what} cannot be used: its schedule has to be rising seconds below 60, and inline "
            "True or False."
        )


def _words(error: Exception) -> str:
    return str(error).strip().rstrip(".") or type(error).__name__


class _Guard(Generic[T]):
    """A plug-in of a third party in a call: asked until it fails, then ours in its place."""

    def __init__(
        self, name: str, factory: Factory[T], ours: Factory[T], settings: TurnSettings, failed: Failed
    ) -> None:
        self._name = name
        self._ours = ours
        self._settings = settings
        self._failed = failed
        self._replaced = False
        try:
            self._plugin = factory(settings)
        except Exception as error:
            self._replace(error)

    def _replace(self, error: Exception) -> T:
        """Ours is asked instead from now on. When that raises too, nothing is left."""
        if self._replaced:
            raise error
        self._replaced = True
        self._plugin = self._ours(self._settings)
        self._failed(self._name, error)
        return self._plugin


class _GuardedActivity(_Guard[VoiceActivity]):
    def push(self, frame: bytes) -> Hop:
        try:
            hop = self._plugin.push(frame)
            _check_type(hop, Hop)
            return Hop(bool(hop.voiced), _number(max(hop.level, -100.0)))  # a logarithm of 0 is no fault
        except Exception as error:
            return self._replace(error).push(frame)

    def reset(self) -> None:
        try:
            self._plugin.reset()
        except Exception as error:
            self._replace(error)


class _GuardedJudge(_Guard[TurnJudge]):
    """Stays as inline as it was, and is asked as often: whoever asks goes on as before."""

    def __init__(
        self,
        name: str,
        factory: Factory[TurnJudge],
        ours: Factory[TurnJudge],
        settings: TurnSettings,
        failed: Failed,
    ) -> None:
        super().__init__(name, factory, ours, settings, failed)
        self.inline = self._plugin.inline
        self.schedule = self._plugin.schedule

    def listen(self, frame: bytes, hop: Hop) -> None:
        try:
            self._plugin.listen(frame, hop)
        except Exception as error:
            self._replace(error).listen(frame, hop)

    def judge(self, pause: Pause) -> Verdict:
        try:
            verdict = self._plugin.judge(pause)
            _check_type(verdict, Verdict)
            _check_type(verdict.reason, str)
            if not verdict.hold >= 0 or verdict.pause_id != pause.id:
                raise ValueError(f"{verdict} is no verdict on pause {pause.id}")
            done, hold = _number(verdict.done), float(verdict.hold)
            return Verdict(pause.id, done, hold, verdict.reason, bool(verdict.eager))
        except Exception as error:
            return self._replace(error).judge(pause)

    def resumed(self, pause: Pause) -> None:
        try:
            self._plugin.resumed(pause)
        except Exception as error:
            self._replace(error).resumed(pause)

    def ended(self, pause: Pause) -> None:
        try:
            self._plugin.ended(pause)
        except Exception as error:
            self._replace(error).ended(pause)


class _GuardedPolicy(_Guard[InterruptionPolicy]):
    def decide(self, overlap: Overlap) -> tuple[Action, str]:
        try:
            action, reason = self._plugin.decide(overlap)
            _check_type(action, Action)
            _check_type(reason, str)
        except Exception as error:
            return self._replace(error).decide(overlap)
        return action, reason

    def over(self, overlap: Overlap, stopped: bool) -> None:
        try:
            self._plugin.over(overlap, stopped)
        except Exception as error:
            self._replace(error)


def _number(value: float) -> float:
    """As Python's own kind: numpy's are no JSON. Raises ValueError where it is none."""
    if not math.isfinite(value):
        raise ValueError(f"{value} is no number")
    return float(value)


def _check_type(value: object, wanted: type) -> None:
    if not isinstance(value, wanted):
        raise TypeError(f"{value!r} is no {wanted.__name__}")
