"""Turns at odd moments, on virtual time: agents and clients that do what they need not, and meetings of two
events."""

from __future__ import annotations

import base64
from typing import Any

import pytest
import trio

from tests.roles.test_turns import DEAF, NONE, Sure, detection, silence, watched
from tests.support import speech
from tests.support.listening import Listening, plan
from tests.support.scene import Scene, body
from voicegate.media.turns.plugins import TurnJudge, Verdict
from voicegate.media.turns.settings import TurnSettings
from voicegate.proto.realtime import BYTES_PER_MS
from voicegate.roles.transceiver.detection import Ability, Mode
from voicegate.roles.transceiver.listening import TurnDesk
from voicegate.roles.transceiver.turn_events import MAX_KINDS, Told
from voicegate.roles.transceiver.turn_plan import TurnPlan

WATCH = '{"type": "voicegate.turns.watch"}'
FIELDS = ["idle_timeout_ms", "silence_duration_ms", "prefix_padding_ms", "threshold", "eagerness", "type"]
FIELDS += ["create_response", "interrupt_response"]
ACTIVE = "conversation_already_has_active_response"


@pytest.fixture(scope="module")
def spoken() -> bytes:
    return speech.to_pcm(speech.say("Say this back to me, please, every word of it.", 24_000))


def scene_with(ability: Ability, **options: Any) -> Scene:
    scene = Scene(turns=plan(ability, **options))
    scene.say_raw(WATCH)
    return scene


def refuse(scene: Scene, event_id: str | None, code: str) -> None:
    error = {"type": "invalid_request_error", "code": code, "message": "No.", "param": None}
    scene.agent("error", error={**error, "event_id": event_id})


class TestHeldVoice:
    @pytest.mark.parametrize("ability", ["none", "silence", "semantic"])
    @pytest.mark.parametrize("sound", range(40, 121, 20))
    def test_an_answer_that_ends_while_it_is_held(self, spoken: bytes, ability: Ability, sound: int) -> None:
        """A live agent's answer is all sent when `response.done` comes, so its end is seen while it is
        held."""
        scene = scene_with(ability)
        scene.speak(silence(0.5))
        scene.begin()
        for _ in range(40):
            scene.delta(0.02)
            scene.speak(silence(0.02))
        scene.speak(spoken[300 * BYTES_PER_MS : (300 + sound) * BYTES_PER_MS])
        scene.finish()
        scene.speak(silence(2.0))
        scene.begin("r2", "i2")
        scene.delta(1.0, "r2", "i2")
        scene.finish("r2", "i2")
        scene.speak(silence(2.0))
        assert len(scene.of("output_audio_buffer.started")) == 2, "the next answer is heard"
        assert not scene.audio._playout.paused

    @pytest.mark.parametrize("ability", ["none", "silence", "semantic"])
    @pytest.mark.parametrize("early", range(0, 161, 20))
    def test_the_next_answer_begins_while_it_is_held(
        self, spoken: bytes, ability: Ability, early: int
    ) -> None:
        scene = scene_with(ability)
        scene.speak(silence(0.5))
        scene.begin()
        scene.delta(1.0)
        scene.begin("r2", "i2")
        scene.delta(1.0, "r2", "i2")
        scene.speak(silence(1.0 - early / 1000) + spoken[300 * BYTES_PER_MS : 420 * BYTES_PER_MS])
        scene.finish()
        scene.finish("r2", "i2")
        scene.speak(silence(4.0))
        assert not scene.audio._playout.paused
        assert scene.types()[-1] != "output_audio_buffer.started"

    def test_an_agent_that_does_not_let_itself_be_interrupted(self, spoken: bytes) -> None:
        """Its word does not stop the voice, so the voice goes on."""
        scene = scene_with("semantic")
        scene.agent("session.updated", session=detection(type="server_vad", interrupt_response=False))
        scene.speak(silence(0.5))
        scene.begin()
        scene.delta(4.0)
        scene.finish()
        scene.speak(silence(0.5) + spoken[: 300 * BYTES_PER_MS])
        scene.speech()
        scene.speak(spoken[300 * BYTES_PER_MS : 2000 * BYTES_PER_MS] + silence(5.0))
        assert "output_audio_buffer.cleared" not in scene.types()
        assert scene.audio.played_samples == 4 * 24_000
        assert "output_audio_buffer.stopped" in scene.types()

    def test_the_agent_closes_meanwhile(self, spoken: bytes) -> None:
        scene = scene_with("none")
        scene.speak(silence(0.5))
        scene.begin()
        scene.delta(4.0)
        scene.speak(silence(0.5) + spoken[: 300 * BYTES_PER_MS])
        assert scene.audio._playout.paused
        scene.conversation.agent_lost(scene.now, "agent_closed")
        scene.run(0.1)
        assert not scene.audio._playout.paused and "output_audio_buffer.cleared" in scene.types()

    @pytest.mark.parametrize("wanted", [NONE, detection(type="semantic_vad", interrupt_response=False)])
    @pytest.mark.parametrize("ability", ["none", "silence", "semantic"])
    def test_the_mode_changes_meanwhile(self, spoken: bytes, ability: Ability, wanted: Any) -> None:
        scene = scene_with(ability)
        scene.speak(silence(0.5))
        scene.begin()
        scene.delta(4.0)
        scene.finish()
        scene.speak(silence(0.5) + spoken[: 300 * BYTES_PER_MS])
        assert scene.audio._playout.paused
        scene.say("session.update", session=wanted)
        scene.agent("session.updated", session=scene.asked("session.update")[-1]["session"])
        scene.speak(silence(6.0))
        assert scene.audio.played_samples == 4 * 24_000

    def test_a_client_empties_the_output_while_a_reply_is_held(self, spoken: bytes) -> None:
        scene = Scene(turns=plan("none", Sure, eager=True))
        scene.speak(silence(1.0) + spoken[: 900 * BYTES_PER_MS] + silence(0.3))
        assert len(scene.asked("response.create")) == 1
        scene.say("output_audio_buffer.clear")
        scene.begin()
        scene.delta(1.0)
        scene.run(0.1)
        assert not scene.packets, "it is still not certain that the turn is over"
        scene.speak(silence(2.0))
        assert scene.packets


class TestReplies:
    def test_an_agent_that_is_always_busy_is_not_asked_without_end(self, spoken: bytes) -> None:
        scene = scene_with("none")
        scene.speak(silence(1.0) + spoken + silence(0.6))
        for _ in range(200):
            refuse(scene, scene.asked("response.create")[-1]["event_id"], ACTIVE)
            scene.run(0.01)
        assert 2 <= len(scene.asked("response.create")) <= 6
        scene.run(60.0)
        assert scene.conversation.next_deadline() is None or len(scene.asked("response.create")) < 40

    def test_an_answer_to_be_spoken_to_its_end_is_not_cancelled_before_its_first_sound(
        self, spoken: bytes
    ) -> None:
        scene = scene_with("none")
        scene.speak(silence(1.0))
        metadata = {"voicegate_interruptible": "false"}
        scene.agent("response.created", response={**body("r1", "in_progress"), "metadata": metadata})
        scene.speak(spoken[: 800 * BYTES_PER_MS])
        scene.delta(1.0)
        scene.finish()
        scene.speak(silence(3.0))
        assert not scene.asked("response.cancel")
        assert scene.audio.played_samples == 24_000
        assert len(scene.asked("response.create")) == 1, "and what was said meanwhile is answered"


class TestCommits:
    def test_a_refused_commit_of_a_client_takes_no_turns_name(self, spoken: bytes) -> None:
        scene = scene_with("none")
        for event_id in ("mine", None):
            scene.speak(silence(0.5))
            scene.say("input_audio_buffer.commit", **({"event_id": event_id} if event_id else {}))
            refuse(scene, event_id, "input_audio_buffer_commit_empty")
        scene.speak(silence(1.0) + spoken + silence(0.6))
        scene.agent("input_audio_buffer.committed", item_id="u1", previous_item_id=None)
        started = scene.of("input_audio_buffer.speech_started")[0]
        assert scene.of("input_audio_buffer.committed")[0]["item_id"] == started["item_id"]

    def test_a_client_commits_what_is_committed(self, spoken: bytes) -> None:
        """While a reply is held the turn is the agent's already: what is left is another item."""
        scene = Scene(parrot=DEAF, turns=plan("none", Sure, eager=True))
        scene.speak(silence(1.0) + spoken[: 900 * BYTES_PER_MS] + silence(0.3))
        scene.say("input_audio_buffer.commit")
        scene.run(2.0)
        names = [event["item_id"] for event in scene.of("input_audio_buffer.committed")]
        assert len(names) == len(set(names))

    def test_what_was_cleared_is_not_committed(self, spoken: bytes) -> None:
        scene = scene_with("none")
        scene.speak(silence(2.0))
        scene.say("input_audio_buffer.clear")
        scene.say("input_audio_buffer.commit")
        assert sum(event.get("samples", 0) for event in scene.upstream) == 0

    def test_appended_audio_in_mode_hybrid(self, spoken: bytes) -> None:
        """The agent hears it and commits; so somebody here has to hear it and ask for the reply."""
        scene = scene_with("silence")
        for pcm in (silence(1.0), spoken, silence(0.8)):
            for at in range(0, len(pcm), 4800):
                scene.say("input_audio_buffer.append", audio=base64.b64encode(pcm[at : at + 4800]).decode())
                scene.run(0.1)
        scene.agent("input_audio_buffer.committed", item_id="u1", previous_item_id=None)
        assert len(scene.asked("response.create")) == 1

    def test_late_words_of_the_question_do_not_stop_the_answer(self, spoken: bytes) -> None:
        scene = scene_with("silence")
        scene.speak(silence(1.0) + spoken[: 700 * BYTES_PER_MS] + silence(0.6))
        scene.agent("input_audio_buffer.committed", item_id="u1", previous_item_id=None)
        assert len(scene.asked("response.create")) == 1
        scene.begin()
        scene.delta(4.0)
        scene.speak(silence(0.8) + spoken[: 200 * BYTES_PER_MS])
        kind = "conversation.item.input_audio_transcription.delta"
        scene.agent(kind, item_id="u1", content_index=0, delta="What is the weather")
        scene.speak(silence(0.6))
        assert "output_stopped" not in dict(watched(scene))
        scene.speak(spoken[: 200 * BYTES_PER_MS])
        scene.agent(kind, item_id="u2", content_index=0, delta="stop it")
        assert "output_stopped" in dict(watched(scene))


class TestSettings:
    def test_an_update_about_something_else_keeps_what_the_judge_has_learnt(self) -> None:
        class Counting(Listening):
            made = 0

            def judge(self, settings: TurnSettings) -> TurnJudge:
                self.made += 1
                return super().judge(settings)

        listening = Counting()
        scene = Scene(parrot=DEAF, turns=TurnPlan("none", TurnSettings(), listening))
        made = listening.made
        for n in range(20):
            scene.say("session.update", session={"type": "realtime", "instructions": f"Say {n}."})
        scene.run(0.1)
        assert len(scene.of("session.updated")) == 20 and listening.made == made

    @pytest.mark.parametrize("own", [None, {"type": "server_vad"}])
    def test_an_agent_that_refuses_to_leave_turns_to_us(self, own: Any) -> None:
        """One that goes on detecting them would answer each, and so would we; one that knows of none not."""
        scene = Scene(configured=False, turns=plan("none"))
        (first,) = scene.asked("session.update")
        scene.error(first["event_id"], "session.audio.input.turn_detection", "Unknown.")
        said: dict[str, Any] = {"turn_detection": own} if own else {}
        scene.agent("session.updated", session={"type": "realtime", "audio": {"input": said}})
        assert scene.conversation.turns.mode is (Mode.UPSTREAM if own else Mode.GATEWAY)
        assert scene.of("session.created")

    @pytest.mark.parametrize("field", FIELDS)
    @pytest.mark.parametrize("value", ["1" + "0" * 400, "-1", "1e300", '"500"', "[]", "{}", "1" + "0" * 5000])
    def test_values_that_are_none(self, field: str, value: str) -> None:
        scene = scene_with("none")
        wanted = f'{{"type":"server_vad","{field}":{value}}}'
        if field in ("type", "eagerness"):
            wanted = f'{{"type":"semantic_vad","{field}":{value}}}'
        scene.say_raw(
            f'{{"type":"session.update","session":{{"audio":{{"input":{{"turn_detection":{wanted}}}}}}}}}'
        )
        (error,) = scene.of("error")
        assert len(error["error"]["message"]) < 300
        assert not scene.asked("session.update")


class TestVerdicts:
    def test_reasons_without_end_are_not_counted_apart(self) -> None:
        """They are labels of a metric: a plug-in that puts a number into each would never stop."""

        async def counted() -> list[float]:
            async with trio.open_nursery() as nursery:
                desk = TurnDesk(nursery, lambda call_id, verdict: None)
                for n in range(1000):
                    desk.take("c", Told("judged", f"p = {n}", {}), 1.0)
                return [sample.value for sample in desk.samples({})]

        counts = trio.run(counted)
        assert len(counts) <= MAX_KINDS + 1 and sum(counts) == 1000

    def test_a_verdict_on_a_pause_of_before(self, spoken: bytes) -> None:
        """A judge in a thread answers when the mode, and with it the machine, is another."""

        class Slow(Sure):
            inline = False

        scene = Scene(parrot=DEAF, turns=plan("none", Slow))
        scene.say_raw(WATCH)
        scene.speak(silence(1.0) + spoken[: 700 * BYTES_PER_MS] + silence(0.2))
        asked = scene.of("voicegate.turn.judge_asked")[-1]["pause_id"]
        scene.say("session.update", session=NONE)
        scene.say("session.update", session=detection(type="semantic_vad"))
        scene.speak(silence(0.5) + spoken[: 700 * BYTES_PER_MS] + silence(0.2))
        scene.conversation.take_verdict(Verdict(asked, 1.0, 0.0, "sure"), scene.now)
        scene._drain()
        assert watched(scene)[-1][0] == "verdict_dropped"
