"""voicegate.turn_plugins: what is found by name, what is said of it, and what fails in a call."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from importlib import metadata
from typing import Any, ClassVar

import pytest

from tests.media.turns.calls import QUIET, MarkedActivity, ScriptedJudge
from voicegate.media.turns.activity import WebrtcActivity
from voicegate.media.turns.adaptive import AdaptivePause
from voicegate.media.turns.fixed import FixedSilence, Upstream
from voicegate.media.turns.interruption import DefaultPolicy, InterruptionSettings
from voicegate.media.turns.machine import TurnMachine
from voicegate.media.turns.plugins import Action, Hop, Overlap, Pause, Verdict
from voicegate.media.turns.settings import TurnSettings
from voicegate.turn_plugins import load_turn_plugins

SETTINGS = TurnSettings()
PAUSE = Pause(id=7, silence=0.3, speech=1.0, asked=0, audio=lambda: b"")
OVERLAP = Overlap(
    seconds=0.3,
    voiced=0.3,
    strong=0.3,
    silence=0.0,
    level=-20,
    echo=0.0,
    agent=2.0,
    remaining=None,
    paused=False,
)


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
