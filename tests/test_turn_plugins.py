"""voicegate.turn_plugins: what is found by name, what is said of it, and what fails in a call."""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import replace
from importlib import metadata
from typing import Any, ClassVar

import numpy as np
import pytest

from tests.media.turns.calls import QUIET, MarkedActivity, ScriptedJudge
from voicegate.config import TurnsConfig
from voicegate.media.turns.activity import WebrtcActivity
from voicegate.media.turns.adaptive import AdaptivePause
from voicegate.media.turns.fixed import FixedSilence, Upstream
from voicegate.media.turns.interruption import DefaultPolicy, InterruptionSettings
from voicegate.media.turns.machine import TurnMachine
from voicegate.media.turns.plugins import Action, Hop, Overlap, Pause, Verdict
from voicegate.media.turns.settings import TurnSettings
from voicegate.turn_config import turn_plugins
from voicegate.turn_plugins import TurnPlugins, load_turn_plugins

SETTINGS = TurnSettings()
PAUSE = Pause(id=7, silence=0.3, speech=1.0, asked=0, audio=lambda: b"")
OVERLAP = Overlap(
    seconds=0.3,
    voiced=0.3,
    strong=0.3,
    pitched=0.2,
    syllables=1,
    silence=0.0,
    level=-20,
    loudness=None,
    echo=0.0,
    agent=2.0,
    remaining=None,
    paused=False,
)


def test_a_call_interrupts_as_the_evaluation_measures() -> None:
    """The configuration's defaults are the policy's own."""
    ours, configured = (make().policy(SETTINGS, unexpected) for make in (_by_itself, _by_configuration))
    assert isinstance(ours, DefaultPolicy) and isinstance(configured, DefaultPolicy)
    assert configured.settings == ours.settings


def test_eagerness_and_the_ceiling_reach_the_judge() -> None:
    def hold(**asked: Any) -> float:
        settings = replace(SETTINGS, judge="adaptive", **asked)
        return load_turn_plugins(settings).judge(settings, unexpected).judge(PAUSE).hold

    assert hold(eagerness="high") < hold() < hold(eagerness="low")
    assert hold() == hold(eagerness="auto") == hold(eagerness="medium")
    assert hold(patience=1.5) > hold()
    assert hold(max_silence=0.3) == 0.3


def _by_itself() -> TurnPlugins:
    return load_turn_plugins(SETTINGS)


def _by_configuration() -> TurnPlugins:
    return turn_plugins(TurnsConfig())


def unexpected(name: str, error: Exception) -> None:
    raise AssertionError(f"{name}: {error}")


class Failures:
    def __init__(self) -> None:
        self.seen: list[tuple[str, str]] = []

    def __call__(self, name: str, error: Exception) -> None:
        self.seen.append((name, str(error)))


@pytest.fixture
def install(monkeypatch: pytest.MonkeyPatch) -> Callable[..., None]:
    """Entry points as if packages had brought them."""
    installed: list[metadata.EntryPoint] = []

    def entry_points(*, group: str) -> metadata.EntryPoints:
        return metadata.EntryPoints(point for point in installed if point.group == group)

    monkeypatch.setattr("voicegate.turn_plugins.entry_points", entry_points)

    def add(group: str, name: str, target: str) -> None:
        installed.append(metadata.EntryPoint(name, target, f"voicegate.{group}"))

    return add


def test_ours() -> None:
    plugins = load_turn_plugins(SETTINGS)
    assert isinstance(plugins.activity(SETTINGS, unexpected), WebrtcActivity)
    assert isinstance(plugins.judge(SETTINGS, unexpected), AdaptivePause)
    assert isinstance(plugins.policy(SETTINGS, unexpected), DefaultPolicy)
    assert isinstance(plugins.judge(replace(SETTINGS, judge="upstream"), unexpected), Upstream)
    fixed = replace(SETTINGS, judge="fixed", silence_duration=0.4, patience=2.0)
    judge = plugins.judge(fixed, unexpected)
    assert isinstance(judge, FixedSilence)
    assert judge.judge(PAUSE).hold == pytest.approx(0.8)


def test_the_default_policy_takes_its_settings() -> None:
    plugins = load_turn_plugins(SETTINGS, interruption=InterruptionSettings(pause_after=0.4))
    assert plugins.policy(SETTINGS, unexpected).decide(OVERLAP)[0] is Action.IGNORE
    assert load_turn_plugins(SETTINGS).policy(SETTINGS, unexpected).decide(OVERLAP)[0] is Action.PAUSE


@pytest.mark.parametrize(
    "names, words",
    [
        ({"activity": "silero"}, ["voice activity 'silero'", "webrtc", "voicegate.voice_activities"]),
        ({"judge": "Wise"}, ["turn judge 'Wise'", "adaptive, fixed, smart-turn, upstream"]),
        ({"policy": "polite"}, ["interruption policy 'polite'", "default"]),
    ],
)
def test_an_unknown_name_is_a_sentence(names: dict[str, str], words: list[str]) -> None:
    settings = replace(SETTINGS, judge=names.pop("judge", "adaptive"))
    with pytest.raises(ValueError) as caught:
        load_turn_plugins(settings, **names)
    assert all(word in str(caught.value) for word in words)


@pytest.mark.parametrize(
    "model, words", [(None, "needs the path"), ("/nowhere/model.onnx", "/nowhere/model.onnx|onnxruntime")]
)
def test_smart_turn_without_its_file_is_a_sentence(model: str | None, words: str) -> None:
    with pytest.raises(ValueError, match=words):
        load_turn_plugins(replace(SETTINGS, judge="smart-turn", model=model))


def raises(settings: TurnSettings) -> Any:
    raise RuntimeError("no licence")


def no_judge(settings: TurnSettings) -> Any:
    return object()


def falling_schedule(settings: TurnSettings) -> Any:
    return ScriptedJudge(schedule=(0.5, 0.2))


def no_schedule(settings: TurnSettings) -> Any:
    judge = ScriptedJudge()
    del judge.schedule
    return judge


@pytest.mark.parametrize(
    "target, words",
    [
        ("nowhere_at_all:judge", "No module named 'nowhere_at_all'"),
        (f"{__name__}:nothing", "has no attribute 'nothing'"),
        (f"{__name__}:raises", "no licence"),
        (f"{__name__}:no_judge", "no method listen, judge, resumed, ended"),
        (f"{__name__}:falling_schedule", "rising"),
        (f"{__name__}:no_schedule", "schedule"),
    ],
)
def test_a_broken_plugin_is_a_sentence(install: Callable[..., None], target: str, words: str) -> None:
    install("turn_judges", "theirs", target)
    with pytest.raises(ValueError) as caught:
        load_turn_plugins(replace(SETTINGS, judge="theirs"))
    assert words in str(caught.value)
    assert "'theirs'" in str(caught.value) and str(caught.value).endswith(".")


def test_two_of_one_name_are_a_sentence(install: Callable[..., None]) -> None:
    install("turn_judges", "theirs", f"{__name__}:raises")
    install("turn_judges", "theirs", f"{__name__}:no_judge")
    with pytest.raises(ValueError, match="Several packages"):
        load_turn_plugins(replace(SETTINGS, judge="theirs"))


class Faulty:
    """Each plug-in at once: right until it is told to fail, one way or another."""

    instances: ClassVar[list[Faulty]] = []
    schedule = (0.2,)
    inline = True

    def __init__(self, settings: TurnSettings) -> None:
        self.how: Callable[[], Any] | None = None
        Faulty.instances.append(self)

    def push(self, frame: bytes) -> Hop:
        return self.how() if self.how else MarkedActivity().push(frame)

    def reset(self) -> None:
        if self.how:
            self.how()

    def listen(self, frame: bytes, hop: Hop) -> None:
        if self.how:
            self.how()

    def judge(self, pause: Pause) -> Verdict:
        return self.how() if self.how else Verdict(pause.id, 0.0, 4.0, "theirs")

    def resumed(self, pause: Pause) -> None:
        if self.how:
            self.how()

    ended = resumed

    def decide(self, overlap: Overlap) -> tuple[Action, str]:
        return self.how() if self.how else (Action.IGNORE, "theirs")

    def over(self, overlap: Overlap, stopped: bool) -> None:
        if self.how:
            self.how()


def breaks() -> Any:
    raise RuntimeError("broken")


@pytest.fixture
def faulty(install: Callable[..., None]) -> Callable[[], tuple[Any, Any, Any, Failures]]:
    for group in ("voice_activities", "turn_judges", "interruption_policies"):
        install(group, "theirs", f"{__name__}:Faulty")
    settings = replace(SETTINGS, judge="theirs")
    plugins = load_turn_plugins(settings, activity="theirs", policy="theirs")

    def make() -> tuple[Any, Any, Any, Failures]:
        failures = Failures()
        made = (
            plugins.activity(settings, failures),
            plugins.judge(settings, failures),
            plugins.policy(settings, failures),
        )
        return (*made, failures)

    return make


@pytest.mark.parametrize(
    "how", [breaks, lambda: None, lambda: (None, "x"), lambda: Verdict(1, 0.0, 0.0, "x")]
)
def test_a_plugin_that_fails_in_a_call_is_replaced_and_told_once(
    faulty: Callable[[], tuple[Any, Any, Any, Failures]], how: Callable[[], Any]
) -> None:
    activity, judge, policy, failures = faulty()
    assert judge.judge(PAUSE).reason == "theirs" and judge.inline and judge.schedule == (0.2,)
    assert policy.decide(OVERLAP) == (Action.IGNORE, "theirs")
    for instance in Faulty.instances[-3:]:
        instance.how = how
    for _ in range(3):
        assert activity.push(QUIET) == Hop(False, -100.0)
        assert judge.judge(PAUSE).reason != "theirs"
        assert policy.decide(OVERLAP)[0] is Action.PAUSE
    assert [name for name, _ in failures.seen] == ["theirs"] * 3


@pytest.mark.parametrize(
    "fields",
    [(None, 0.5, "x"), (math.nan, 0.5, "x"), (0.5, math.nan, "x"), (0.5, 0.5, 7), ("0.5", 0.5, "x")],
)
def test_a_verdict_with_something_else_in_it(
    faulty: Callable[[], tuple[Any, Any, Any, Failures]], fields: tuple[Any, ...]
) -> None:
    _, judge, _, failures = faulty()
    Faulty.instances[-2].how = lambda: Verdict(PAUSE.id, *fields)
    assert judge.judge(PAUSE).reason not in ("theirs", "x") and len(failures.seen) == 1


@pytest.mark.parametrize("level", [math.nan, None, math.inf, "loud"])
def test_a_level_that_is_none(faulty: Callable[[], tuple[Any, Any, Any, Failures]], level: Any) -> None:
    activity, _, _, failures = faulty()
    Faulty.instances[-3].how = lambda: Hop(True, level)
    assert activity.push(QUIET) == Hop(False, -100.0) and len(failures.seen) == 1


def test_numpys_numbers_become_pythons(faulty: Callable[[], tuple[Any, Any, Any, Failures]]) -> None:
    """Networks answer in them, and JSON has none of them."""
    activity, judge, _, failures = faulty()
    one, half = np.bool_(True), np.float32(0.5)
    Faulty.instances[-2].how = lambda: Verdict(PAUSE.id, half, half, "theirs", one)  # type: ignore[arg-type]
    Faulty.instances[-3].how = lambda: Hop(one, np.float32(-math.inf))  # type: ignore[arg-type]
    for made in (judge.judge(PAUSE), activity.push(QUIET)):
        assert all(type(field) in (bool, int, float, str) for field in made)
    assert not failures.seen


@pytest.mark.parametrize(
    "use",
    [
        lambda activity, judge, policy: activity.reset(),
        lambda activity, judge, policy: judge.listen(QUIET, Hop(False, -100.0)),
        lambda activity, judge, policy: judge.resumed(PAUSE),
        lambda activity, judge, policy: judge.ended(PAUSE),
        lambda activity, judge, policy: policy.over(OVERLAP, True),
    ],
)
def test_a_plugin_that_fails_when_it_is_told_something(
    faulty: Callable[[], tuple[Any, Any, Any, Failures]], use: Callable[[Any, Any, Any], None]
) -> None:
    activity, judge, policy, failures = faulty()
    for instance in Faulty.instances[-3:]:
        instance.how = breaks
    use(activity, judge, policy)
    use(activity, judge, policy)
    assert failures.seen == [("theirs", "broken")]


def test_a_call_outlives_its_plugins(faulty: Callable[[], tuple[Any, Any, Any, Failures]]) -> None:
    activity, judge, policy, failures = faulty()
    machine = TurnMachine(SETTINGS, activity, judge, policy)
    for instance in Faulty.instances[-3:]:
        instance.how = breaks
    for n in range(100):
        machine.push(QUIET, n * 0.02)
    assert [words for _, words in failures.seen] == ["broken", "broken"]  # the policy was not asked


def test_a_factory_that_fails_in_a_call(
    install: Callable[..., None], monkeypatch: pytest.MonkeyPatch
) -> None:
    install("turn_judges", "theirs", f"{__name__}:Faulty")
    settings = replace(SETTINGS, judge="theirs")
    plugins = load_turn_plugins(settings)
    failures = Failures()
    monkeypatch.setattr(Faulty, "__init__", raises)
    judge = plugins.judge(settings, failures)
    assert judge.judge(PAUSE).reason != "theirs"
    assert len(failures.seen) == 1
