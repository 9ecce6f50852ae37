"""`session.update` between a client and an agent that takes all, some or none of it."""

from __future__ import annotations

import json
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from tests.support.scene import CLIENT_EVENT, Scene
from voicegate.proto import realtime
from voicegate.roles.transceiver.downgrade import LADDER, downgrade
from voicegate.roles.transceiver.outbox import Audience
from voicegate.roles.transceiver.session import ANSWER_SECONDS, MAX_PENDING

PCM = {"type": "audio/pcm", "rate": 24000}
NARROW = {
    "input": realtime.audio_format("audio/pcm", 16_000),
    "output": realtime.audio_format("audio/pcm", 8_000),
}

SDK = {
    "type": "realtime",
    "instructions": "Be brief.",
    "model": "gpt-realtime-2.1",
    "output_modalities": ["audio"],
    "audio": {
        "input": {
            "format": PCM,
            "noise_reduction": None,
            "transcription": {"model": "gpt-4o-mini-transcribe"},
            "turn_detection": {"type": "semantic_vad"},
        },
        "output": {"format": PCM, "speed": 1},
    },
    "tools": [{"type": "function", "name": "f", "parameters": {"type": "object", "properties": {}}}],
}
"""What the official JavaScript client sends first."""


class Refuser:
    """An agent that refuses fields, one error at a time, as `describe` words it."""

    def __init__(self, scene: Scene, refuses: list[str], *, names: bool = True, echoes: bool = True) -> None:
        self.scene = scene
        self.refuses = refuses
        self.names = names
        self.echoes = echoes
        self.attempts = 0
        self.session: dict[str, Any] = {}

    def run(self) -> None:
        """Answer until nothing is asked."""
        seen = 0
        while seen < len(self.scene.asked("session.update")):
            event = self.scene.asked("session.update")[seen]
            seen += 1
            self.attempts += 1
            wrong = next((path for path in self.refuses if self.has(event["session"], path)), None)
            if wrong is None:
                self.session = event["session"]
                self.scene.agent("session.updated", session=event["session"])
                continue
            self.scene.error(
                event["event_id"] if self.echoes else None,
                f"session.{wrong.removesuffix('!')}" if self.names else None,
                message="session refused" if not self.names else "No.",
            )

    def has(self, session: dict[str, Any], path: str) -> bool:
        if path.endswith("!"):  # only semantic_vad
            heard = session.get("audio", {}).get("input", {})
            return heard.get("turn_detection", {}).get("type") == "semantic_vad"
        holder: Any = session
        for step in path.split("."):
            if not isinstance(holder, dict) or step not in holder:
                return False
            holder = holder[step]
        return True


SEMANTIC = "audio.input.turn_detection.type!"


class TestUpdate:
    def test_agreed(self) -> None:
        scene = Scene()
        scene.say("session.update", session=SDK, event_id="u1")
        Refuser(scene, []).run()
        assert scene.types() == ["session.created", "session.updated"]
        assert scene.to_client[-1]["session"] == SDK

    def test_formats_are_pinned_and_shown(self) -> None:
        scene = Scene()
        formats = {side: {"format": {"type": "audio/pcma"}} for side in ("input", "output")}
        scene.say("session.update", session={"type": "realtime", "audio": formats})
        Refuser(scene, []).run()
        (asked,) = scene.asked("session.update")
        assert asked["session"]["audio"] == {"input": {"format": PCM}, "output": {"format": PCM}}
        assert scene.to_client[-1]["session"]["audio"] == formats

    def test_two_quick_updates_get_two_answers(self) -> None:
        scene = Scene()
        scene.say("session.update", session=SDK)
        scene.say("session.update", session={"type": "realtime", "tracing": "auto"})
        Refuser(scene, []).run()
        assert scene.types().count("session.updated") == 2

    def test_also_when_the_agent_answers_once(self) -> None:
        scene = Scene()
        scene.say("session.update", session=SDK)
        scene.say("session.update", session={"type": "realtime", "tracing": "auto"}, event_id="t")
        scene.agent("session.updated", session=SDK)
        scene.run(ANSWER_SECONDS + 0.1)
        assert scene.types()[1:] == ["session.updated", "session.updated", "error"]
        assert scene.to_client[2]["session"] == {**SDK, "tracing": "auto"}
        assert scene.to_client[3]["error"]["event_id"] == "t"

    @pytest.mark.parametrize("echoes", [True, False])
    def test_refused_fields_are_left_out(self, echoes: bool) -> None:
        scene = Scene()
        scene.say("session.update", session=SDK, event_id="mine")
        scene.say("session.update", session={"type": "realtime", "tracing": "auto"}, event_id="second")
        refuses = [SEMANTIC, "audio.input.noise_reduction", "tracing", "model"]
        agent = Refuser(scene, refuses, echoes=echoes)
        agent.run()
        assert agent.attempts == 5  # two, and one more for each field but the last of the second
        updated = scene.of("session.updated")
        assert len(updated) == 2
        # A client that waits for its first answer must find its settings in force, also when the second
        # update was settled sooner.
        assert updated[0]["session"].get("tools") == SDK["tools"]
        errors = [e["error"] for e in scene.of("error")]
        assert [e["event_id"] for e in errors] == ["mine", "second"]
        first = next(e for e in errors if e["event_id"] == "mine")
        for word in ("semantic_vad -> server_vad", "noise_reduction", "model"):
            assert word in first["message"]
        assert first["code"] == "session_settings_dropped"
        sent = [e["session"] for e in scene.asked("session.update") if "tools" in e["session"]][-1]
        assert sent["instructions"] == "Be brief." and sent["audio"]["input"]["turn_detection"] == {
            "type": "server_vad"
        }

    def test_an_agent_that_names_nothing_is_offered_less_and_less(self) -> None:
        scene = Scene()
        scene.say("session.update", session=SDK, event_id="mine")
        agent = Refuser(scene, [SEMANTIC, "audio.input.noise_reduction", "model"], names=False)
        agent.run()
        assert agent.session["instructions"] == "Be brief." and agent.session["tools"] == SDK["tools"]
        assert len(scene.of("session.updated")) == 1
        assert scene.types()[-1] == "error"

    def test_an_agent_that_takes_nothing(self) -> None:
        scene = Scene()
        scene.say("session.update", session=SDK, event_id="mine")
        agent = Refuser(scene, ["type"], names=False)
        agent.run()
        assert agent.attempts <= len(LADDER) + 1
        assert scene.types()[-2:] == ["session.updated", "error"]
        assert "instructions" not in scene.to_client[-2]["session"]

    @pytest.mark.parametrize("agent_says", ["nothing", "errors for ever"])
    def test_bounded_time(self, agent_says: str) -> None:
        scene = Scene()
        scene.say("session.update", session=SDK, event_id="mine")
        for _ in range(40):
            scene.run(0.1)
            if agent_says != "nothing" and scene.now < 102.5:
                scene.error(scene.upstream[-1]["event_id"])
        assert scene.at("session.updated") <= 100 + ANSWER_SECONDS + 1e-6
        assert scene.of("error")[0]["error"]["event_id"] == "mine"

    def test_what_is_dropped_is_not_interrupting(self) -> None:
        scene = Scene()
        off = {"type": "realtime", "audio": {"input": {"turn_detection": None}}}
        scene.say("session.update", session=off)
        Refuser(scene, []).run()
        scene.begin()
        scene.delta(1.0)
        scene.speech()
        assert "output_audio_buffer.cleared" not in scene.types()

    def test_errors_go_to_the_one_who_asked(self) -> None:
        scene = Scene()
        scene.conversation.joined(Audience.SIDEBAND, scene.now)
        scene.say("session.update", session=SDK, event_id="sb", source=Audience.SIDEBAND)
        Refuser(scene, ["model"]).run()
        assert scene.types()[-1] == "session.updated" == scene.to_sideband[-2]["type"]
        assert scene.to_sideband[-1]["error"]["event_id"] == "sb"

    def test_many_are_bounded(self) -> None:
        scene = Scene()
        for n in range(MAX_PENDING + 1):
            scene.say("session.update", session={"type": "realtime"}, event_id=f"u{n}")
        assert scene.to_client[-1]["error"]["event_id"] == f"u{MAX_PENDING}"

    def test_a_spontaneous_one_passes(self) -> None:
        scene = Scene()
        scene.agent("session.updated", session={"instructions": "new"})
        assert scene.to_client[-1]["session"] == {"type": "realtime", "instructions": "new"}


class TestReady:
    def test_created_comes_once_with_what_is_in_force(self) -> None:
        scene = Scene(configured=None, session={"type": "realtime", "instructions": "x"})
        scene.agent("session.created", session={"type": "realtime", "instructions": "default"})
        scene.agent("session.updated", session={"type": "realtime", "instructions": "x"})
        assert not scene.to_client
        scene.conversation.agent_ready(True, scene.now)
        scene._drain()
        assert [e["session"]["instructions"] for e in scene.of("session.created")] == ["x"]
        assert scene.types() == ["session.created"]

    def test_refused_settings_of_the_call_are_offered_again(self) -> None:
        scene = Scene(configured=None, session=SDK)
        scene.agent("session.created", session={"type": "realtime"})
        scene.say("session.update", session={"type": "realtime", "instructions": "mine"}, event_id="u")
        scene.error("voicegate_session", "session.model")
        scene.conversation.agent_ready(False, scene.now)
        scene._drain()
        agent = Refuser(scene, ["model"])
        agent.run()
        assert scene.types() == ["session.created", "session.updated"]
        assert agent.session["instructions"] == "mine" and agent.session["tools"] == SDK["tools"]

    def test_an_update_waits_for_the_agent_without_running_out(self) -> None:
        scene = Scene(configured=None)
        scene.say("session.update", session=SDK)
        scene.run(10.0)
        assert not scene.to_client
        scene.agent("session.created", session={"type": "realtime"})
        scene.conversation.agent_ready(True, scene.now)
        scene._drain()
        Refuser(scene, []).run()
        assert scene.types() == ["session.created", "session.updated"]

    def test_and_is_answered_in_time_from_then_on(self) -> None:
        scene = Scene(configured=None)
        scene.say("session.update", session=SDK, event_id="u")
        scene.run(10.0)
        scene.agent("session.created", session={"type": "realtime"})
        scene.conversation.agent_ready(True, scene.now)
        scene.run(ANSWER_SECONDS)
        assert scene.types() == ["session.created", "session.updated", "error"]

    def test_an_error_before_the_session_is_shown(self) -> None:
        scene = Scene(configured=None)
        scene.error(None, message="No such model.")
        assert scene.to_client[-1]["error"]["message"] == "No such model."


class TestAgainstTheParrot:
    def test_the_official_clients_first_update(self) -> None:
        scene = Scene(parrot={})
        scene.say("session.update", session=SDK, event_id="u")
        scene.say("session.update", session={"type": "realtime", "tracing": "auto"})
        scene.run(0.1)
        assert scene.types() == ["session.created", "session.updated", "session.updated"]

    def test_fields_it_does_not_know(self) -> None:
        scene = Scene(parrot={})
        session: dict[str, Any] = {**SDK, "audio": {"input": {"turn_detection": {"type": "server_vad"}}}}
        session["audio"]["input"]["turn_detection"]["idle_timeout_ms"] = 6000
        scene.say("session.update", session=session, event_id="u")
        scene.run(0.1)
        assert scene.types() == ["session.created", "session.updated", "error"]
        assert scene.to_client[-1]["error"]["param"] == "session.audio.input.turn_detection.idle_timeout_ms"

    def test_a_parrot_without_turn_detection(self) -> None:
        scene = Scene(parrot={"turn_detection": False})
        scene.say("session.update", session=SDK, event_id="u")
        scene.run(0.1)
        assert scene.types() == ["session.created", "session.updated", "error"]
        assert scene.to_client[1]["session"]["audio"]["input"]["turn_detection"] is None


class TestDowngrade:
    @given(st.text(max_size=40), st.text(max_size=80))
    def test_always_ends(self, param: str, message: str) -> None:
        session = json.loads(json.dumps(SDK))
        for _ in range(60):
            if downgrade(session, param, message) is None:
                return
            CLIENT_EVENT.validate_python({"type": "session.update", "session": {**session}})
        raise AssertionError(session)

    @given(st.recursive(st.none() | st.integers() | st.text(max_size=3), lambda x: st.lists(x, max_size=3)))
    def test_any_shape(self, value: Any) -> None:
        for key in ("audio", "tools", "tracing"):
            session = {"type": "realtime", key: value}
            for param in ("session.audio.input.turn_detection.type", "session.tools[0].name", "audio[1][0]"):
                downgrade(session, param, "")
            assert session["type"] == "realtime"


def test_an_agent_with_other_rates_is_told_them_and_the_client_is_not() -> None:
    scene = Scene(formats=NARROW)
    scene.say("session.update", session=SDK)
    asked = scene.asked("session.update")[-1]["session"]["audio"]
    assert asked["input"]["format"] == {"type": "audio/pcm", "rate": 16_000}
    assert asked["output"]["format"] == {"type": "audio/pcm", "rate": 8_000}
    Refuser(scene, []).run()
    shown = scene.of("session.updated")[-1]["session"]["audio"]
    assert shown["input"]["format"] == shown["output"]["format"] == PCM
    assert scene.of("error") == []
    scene.say("input_audio_buffer.append", audio="AAAA")
    assert "24 kHz" in scene.of("error")[-1]["error"]["message"]
    assert scene.asked("input_audio_buffer.append") == []


@pytest.mark.parametrize("said", [{"type": "audio/pcm", "rate": 16_000}, {"type": "audio/pcmu"}, {"type": 7}])
def test_an_agent_that_speaks_another_format_is_told_of_once(said: dict[str, Any]) -> None:
    scene = Scene()
    for _ in range(3):
        scene.say("session.update", session={"type": "realtime", "instructions": "x"})
        audio = {"input": {"format": PCM}, "output": {"format": said}}
        scene.agent("session.updated", session={"type": "realtime", "audio": audio})
    (error,) = scene.of("error")
    assert error["error"]["code"] == "agent_audio_format"
    assert error["error"]["param"] == "session.audio.output.format"
    assert "24000 Hz" in error["error"]["message"]
    key = "agent.audio_rate_out" if said["type"] == "audio/pcm" else "agent.audio_format_out"
    assert key in error["error"]["message"]
    assert len(scene.of("session.updated")) == 3


def test_appends_in_g711_where_the_client_said_so_and_the_agent_hears_it() -> None:
    law = realtime.audio_format("audio/pcmu", 8_000)
    scene = Scene(formats={"input": law, "output": PCM})
    scene.say("input_audio_buffer.append", audio="AAAA")
    assert "G.711" in scene.of("error")[-1]["error"]["message"]
    for kind, taken in (("audio/pcma", False), ("audio/pcmu", True)):
        session = {"type": "realtime", "audio": {"input": {"format": {"type": kind}}}}
        scene.say("session.update", session=session)
        assert scene.asked("session.update")[-1]["session"]["audio"]["input"]["format"] == law
        scene.say("input_audio_buffer.append", audio="AAAA")
        assert len(scene.asked("input_audio_buffer.append")) == taken
