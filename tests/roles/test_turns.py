"""The turn half of a conversation in each mode, on virtual time: a parrot or a script above, speech below."""

from __future__ import annotations

import base64
import json
from typing import Any

import numpy as np
import pytest

from tests.support import speech
from tests.support.listening import plan
from tests.support.scene import Scene, body
from voicegate.media.turns.fixed import Upstream
from voicegate.media.turns.plugins import Hop, Pause, Verdict
from voicegate.proto.event_filter import EventFilter
from voicegate.proto.realtime import BYTES_PER_MS
from voicegate.roles.transceiver.agent_commits import COMMIT_SECONDS
from voicegate.roles.transceiver.outbox import Audience, Filters
from voicegate.roles.transceiver.playback import CLIENT_DELAY
from voicegate.roles.transceiver.turn_events import Question
from voicegate.roles.transceiver.turns import CONFIRM_SECONDS

DEAF = {"turn_detection": False}
NONE = {"type": "realtime", "audio": {"input": {"turn_detection": None}}}


def silence(seconds: float) -> bytes:
    return bytes(round(seconds * 1000) * BYTES_PER_MS)


def detection(**fields: Any) -> dict[str, Any]:
    return {"type": "realtime", "audio": {"input": {"turn_detection": fields}}}


@pytest.fixture(scope="module")
def spoken() -> bytes:
    return speech.to_pcm(speech.say("Say this back to me, please, every word of it.", 24_000))


@pytest.fixture(scope="module")
def word() -> bytes:
    return speech.to_pcm(speech.say("Okay, wait a moment.", 24_000))


def watched(scene: Scene) -> list[tuple[str, str]]:
    """What was decided, in order, with its reason."""
    return [
        (event["type"].removeprefix("voicegate.turn."), event.get("reason", ""))
        for event in scene.to_client
        if event["type"].startswith("voicegate.turn.")
    ]


class TestGateway:
    def scene(self, **options: Any) -> Scene:
        scene = Scene(parrot=DEAF, turns=plan("none", **options))
        scene.say_raw('{"type": "voicegate.turns.watch"}')
        return scene

    def test_a_turn(self, spoken: bytes) -> None:
        scene = self.scene()
        scene.speak(silence(1.0) + spoken + silence(0.8))
        scene.run(6.0)
        order = [
            "input_audio_buffer.speech_started",
            "input_audio_buffer.speech_stopped",
            "input_audio_buffer.committed",
            "conversation.item.added",
            "response.created",
            "output_audio_buffer.started",
            "response.done",
            "output_audio_buffer.stopped",
        ]
        seen = [kind for kind in dict.fromkeys(scene.types()) if kind in order]
        assert seen == order
        started, stopped, committed, added = (scene.of(kind)[0] for kind in order[:4])
        ids = {event["item_id"] for event in (started, stopped, committed)} | {added["item"]["id"]}
        assert len(ids) == 1, "the clients know the item by one name from its first voice on"
        assert started["audio_start_ms"] == pytest.approx(720, abs=60)  # 300 ms before the first voice
        ended = 1000 + len(spoken) / BYTES_PER_MS
        assert stopped["audio_end_ms"] == pytest.approx(ended + 500, abs=60)
        assert [event["type"] for event in scene.upstream if event["type"] != "audio"] == [
            "input_audio_buffer.commit",
            "response.create",
        ]
        heard = sum(event["samples"] for event in scene.upstream if event["type"] == "audio") / 24
        assert heard == pytest.approx(stopped["audio_end_ms"] - started["audio_start_ms"], abs=1)
        assert not scene.of("error")

    def test_the_client_sees_its_own_detection(self) -> None:
        scene = self.scene()
        wanted = {"type": "server_vad", "silence_duration_ms": 300}
        scene.say("session.update", session=detection(**wanted))
        shown = scene.of("session.updated")[-1]["session"]["audio"]["input"]["turn_detection"]
        assert shown.items() >= wanted.items() and shown["create_response"] is True
        (told,) = scene.asked("session.update")
        assert told["session"]["audio"]["input"]["turn_detection"] is None

    def test_detection_that_is_none_is_refused(self) -> None:
        scene = self.scene()
        scene.say_raw('{"type":"session.update","session":{"type":"realtime","audio":{"input":{"turn_detection":'
                      '{"type":"server_vad","threshold":7}}}}}')  # fmt: skip
        (error,) = scene.of("error")
        assert error["error"]["param"] == "session.audio.input.turn_detection"
        assert "0 to 1" in error["error"]["message"]
        assert not scene.asked("session.update")

    def test_a_barge_in_is_held_then_stopped_and_truncated_at_what_was_heard(self, spoken: bytes) -> None:
        scene = self.scene()
        scene.speak(silence(1.0) + spoken + silence(0.6))
        scene.run(0.3)
        began = scene.at("output_audio_buffer.started")
        scene.speak(spoken[: 1800 * BYTES_PER_MS])
        assert ("output_paused", "voice") in watched(scene)
        held = scene.at("voicegate.turn.output_paused")
        assert scene.packets[-1][0] <= held, "not a frame leaves once it is held"
        assert scene.at("output_audio_buffer.cleared") > held
        scene.run(0.1)
        (truncated,) = scene.of("conversation.item.truncated")
        heard = 1000 * (held - began)
        assert heard - 1000 * CLIENT_DELAY - 20 <= truncated["audio_end_ms"] <= heard + 20
        # It was asked to stop at once, not after a grace.
        assert scene.upstream[-1]["type"] != "response.cancel" or len(scene.asked("response.cancel")) == 1
        assert not scene.of("error")

    def test_a_short_sound_is_resumed_from_the_same_sample(self, spoken: bytes, word: bytes) -> None:
        scene = self.scene()
        scene.speak(silence(1.0) + spoken + silence(0.6))
        scene.speak(silence(1.2) + word[: 250 * BYTES_PER_MS] + silence(1.0))
        scene.run(6.0)
        decided = [what for what, _ in watched(scene) if what.startswith("output")]
        assert decided == ["output_paused", "output_resumed"]
        assert "output_audio_buffer.cleared" not in scene.types()
        playout = scene.audio.statistics()["playout"]
        assert isinstance(playout, dict) and playout["dropped_samples"] == 0
        said = scene.of("input_audio_buffer.committed")
        assert len(said) == 1 and len(scene.of("response.done")) == 1
        turn = sum(event["samples"] for event in scene.upstream if event["type"] == "audio")
        assert scene.audio.played_samples == turn, "all of the answer was played, and once"

    def test_who_goes_on_before_the_answer_cancels_it(self, spoken: bytes) -> None:
        scene = Scene(turns=plan("none"))
        scene.speak(silence(1.0) + spoken + silence(0.6))
        assert len(scene.asked("response.create")) == 1
        scene.agent("input_audio_buffer.committed", item_id="u1", previous_item_id=None)
        scene.speak(spoken[: 600 * BYTES_PER_MS])
        scene.begin()  # the agent had not heard of it
        scene.delta(1.0)
        scene.run(0.2)
        assert [event["response_id"] for event in scene.asked("response.cancel")] == ["r1"]
        assert not scene.packets
        scene.finish(status="cancelled")
        scene.speak(silence(0.6))
        assert len(scene.asked("response.create")) == 2

    def test_a_reply_waits_for_the_one_before(self, spoken: bytes) -> None:
        scene = Scene(turns=plan("none", interrupts=False))
        scene.speak(silence(1.0) + spoken + silence(0.6))
        scene.begin()
        scene.speak(spoken[: 800 * BYTES_PER_MS] + silence(0.6))
        assert len(scene.asked("input_audio_buffer.commit")) == 2
        assert len(scene.asked("response.create")) == 1, "an agent refuses a second one"
        scene.finish()
        assert len(scene.asked("response.create")) == 2

    def test_a_refused_reply_is_asked_for_again(self, spoken: bytes) -> None:
        scene = Scene(turns=plan("none"))
        scene.speak(silence(1.0) + spoken + silence(0.6))
        (create,) = scene.asked("response.create")
        scene.begin("theirs")
        error = {"type": "invalid_request_error", "code": "conversation_already_has_active_response"}
        error |= {"message": "Wait.", "param": None, "event_id": create["event_id"]}
        scene.agent("error", error=error)
        assert not scene.of("error"), "the clients did not ask"

    def test_create_response_false(self, spoken: bytes) -> None:
        scene = self.scene()
        scene.say("session.update", session=detection(type="semantic_vad", create_response=False))
        scene.speak(silence(1.0) + spoken + silence(0.8))
        assert scene.of("input_audio_buffer.committed")
        assert not scene.asked("response.create")

    def test_interrupt_response_false(self, spoken: bytes) -> None:
        scene = self.scene()
        scene.say("session.update", session=detection(type="semantic_vad", interrupt_response=False))
        scene.speak(silence(1.0) + spoken + silence(0.6))
        scene.speak(spoken[: 1500 * BYTES_PER_MS] + silence(1.0))
        scene.run(8.0)
        assert "output_audio_buffer.cleared" not in scene.types()
        assert not [what for what, _ in watched(scene) if what.startswith("output")]

    def test_idle_timeout(self, spoken: bytes) -> None:
        scene = self.scene()
        scene.say("session.update", session=detection(type="server_vad", idle_timeout_ms=5000))
        scene.speak(silence(1.0) + spoken + silence(0.6))
        scene.speak(silence(10.5))
        (event,) = scene.of("input_audio_buffer.timeout_triggered")
        assert event["audio_end_ms"] - event["audio_start_ms"] == pytest.approx(5000, abs=60)
        committed = scene.of("input_audio_buffer.committed")[1]
        assert committed["item_id"] == event["item_id"]
        assert len(scene.asked("response.create")) == 2
        assert not scene.of("error")

    def test_items_keep_the_name_that_the_clients_know(self, spoken: bytes) -> None:
        scene = self.scene()
        scene.speak(silence(1.0) + spoken + silence(0.8))
        known = scene.of("input_audio_buffer.speech_started")[0]["item_id"]
        scene.say("conversation.item.retrieve", item_id=known)
        assert scene.of("conversation.item.retrieved")[0]["item"]["id"] == known
        scene.say("conversation.item.delete", item_id=known)
        assert scene.of("conversation.item.deleted")[-1]["item_id"] == known
        assert not scene.of("error")

    def test_push_to_talk_within_the_call(self, spoken: bytes) -> None:
        scene = self.scene()
        scene.speak(silence(1.0) + spoken[: 500 * BYTES_PER_MS])
        scene.say("session.update", session=NONE)
        scene.speak(spoken[: 1000 * BYTES_PER_MS])
        scene.say("input_audio_buffer.commit")
        scene.say("response.create")
        scene.run(4.0)
        shown = scene.of("session.updated")[-1]["session"]["audio"]["input"]["turn_detection"]
        assert shown is None
        committed = scene.of("input_audio_buffer.committed")
        assert len(committed) == 1 and len(scene.of("response.done")) == 1
        decided = len(watched(scene))
        scene.speak(spoken[: 500 * BYTES_PER_MS] + silence(1.0))
        assert len(watched(scene)) == decided, "nothing listens in manual mode"
        assert not scene.of("error")

    def test_a_client_commits_a_turn_early(self, spoken: bytes) -> None:
        scene = self.scene()
        scene.speak(silence(1.0) + spoken[: 1000 * BYTES_PER_MS])
        scene.say("input_audio_buffer.commit")
        scene.speak(silence(1.0))
        assert len(scene.of("input_audio_buffer.committed")) == 1
        names = {event["item_id"] for event in scene.to_client if event["type"].startswith("input_audio")}
        assert len(names) == 1
        assert ("ended", "commit") in watched(scene)

    def test_a_client_clears_a_turn(self, spoken: bytes) -> None:
        scene = self.scene()
        scene.speak(silence(1.0) + spoken[: 1000 * BYTES_PER_MS])
        scene.say("input_audio_buffer.clear")
        scene.speak(silence(1.5))
        assert not scene.of("input_audio_buffer.committed")
        assert not scene.asked("response.create")

    def test_appended_audio_has_turns_too(self, spoken: bytes) -> None:
        scene = self.scene()
        for pcm in (silence(1.0), spoken, silence(0.8)):
            for at in range(0, len(pcm), 4800):
                scene.say("input_audio_buffer.append", audio=base64.b64encode(pcm[at : at + 4800]).decode())
                scene.run(0.1)
        assert len(scene.of("input_audio_buffer.committed")) == 1
        assert len(scene.asked("response.create")) == 1
        assert not scene.asked("input_audio_buffer.append"), "it goes in one line with the microphone's"
        scene.say("input_audio_buffer.append", audio=base64.b64encode(bytes(3)).decode())
        assert scene.of("error")[-1]["error"]["param"] == "audio"

    def test_user_idle_and_the_longest_turn(self, spoken: bytes) -> None:
        scene = Scene(parrot=DEAF, turns=plan("none", max_turn=1.0, user_idle=3.0))
        scene.speak(silence(1.0) + spoken[: 1500 * BYTES_PER_MS] + silence(0.2))
        stopped = scene.of("input_audio_buffer.speech_stopped")[0]
        started = scene.of("input_audio_buffer.speech_started")[0]
        assert stopped["audio_end_ms"] - started["audio_start_ms"] <= 1400
        scene.speak(silence(8.0))
        (idle, *_) = scene.of("voicegate.turn.user_idle")
        assert idle["seconds"] == 3.0, "without having asked for decisions: it is configured"


class Sure:
    """A judge that is sure at once, and still waits."""

    inline = True
    schedule = (0.1,)

    def listen(self, frame: bytes, hop: Hop) -> None: ...

    def judge(self, pause: Pause) -> Verdict:
        return Verdict(pause.id, 0.9, 0.6, "sure", eager=True)

    def resumed(self, pause: Pause) -> None: ...

    def ended(self, pause: Pause) -> None: ...


class TestEager:
    def scene(self) -> Scene:
        scene = Scene(parrot=DEAF, turns=plan("none", Sure, eager=True))
        scene.say_raw('{"type": "voicegate.turns.watch"}')
        return scene

    def test_a_reply_that_is_kept(self, spoken: bytes) -> None:
        scene = self.scene()
        one = spoken[: 900 * BYTES_PER_MS]
        scene.speak(silence(1.0) + one + silence(0.4))
        assert len(scene.asked("response.create")) == 1
        assert "response.created" not in scene.types() and not scene.packets
        assert "input_audio_buffer.committed" not in scene.types()
        scene.speak(silence(0.4))
        scene.run(3.0)
        assert len(scene.asked("response.create")) == 1
        kinds = scene.types()
        assert kinds.index("input_audio_buffer.speech_stopped") < kinds.index("response.created")
        assert scene.at("output_audio_buffer.started") == scene.at("input_audio_buffer.speech_stopped")
        assert kinds[-1] == "output_audio_buffer.stopped"
        assert not scene.of("error")

    def test_a_reply_in_vain(self, spoken: bytes) -> None:
        scene = self.scene()
        one, two = spoken[: 900 * BYTES_PER_MS], spoken[900 * BYTES_PER_MS : 1800 * BYTES_PER_MS]
        scene.speak(silence(1.0) + one + silence(0.4) + two)
        scene.run(0.1)
        assert ("eager_wasted", "") in watched(scene)
        assert not scene.packets
        scene.speak(silence(0.8))
        scene.run(4.0)
        assert len(scene.asked("response.create")) >= 2
        assert len(scene.of("response.created")) == len(scene.of("response.done")) == 1
        assert len(scene.of("input_audio_buffer.committed")) == 1
        assert len(scene.of("input_audio_buffer.speech_started")) == 1
        assert "conversation.item.deleted" not in scene.types(), "what nobody saw is not deleted either"
        roles = [event["item"]["role"] for event in scene.of("conversation.item.added")]
        assert roles == ["user", "assistant"]
        started = scene.of("input_audio_buffer.speech_started")[0]["audio_start_ms"]
        stopped = scene.of("input_audio_buffer.speech_stopped")[0]["audio_end_ms"]
        played = scene.audio.played_samples / 24
        # What was asked for early ends at the judge's word, half a second before the turn does.
        assert played == pytest.approx(stopped - started - 500, abs=30)
        assert not scene.of("error")


class TestHybrid:
    def scene(self, **options: Any) -> Scene:
        scene = Scene(turns=plan("silence", **options))
        scene.say_raw('{"type": "voicegate.turns.watch"}')
        return scene

    def agent_hears(self, scene: Scene, item_id: str) -> None:
        scene.agent("input_audio_buffer.speech_started", audio_start_ms=0, item_id=item_id)

    def agent_commits(self, scene: Scene, item_id: str) -> None:
        scene.agent("input_audio_buffer.speech_stopped", audio_end_ms=0, item_id=item_id)
        scene.agent("input_audio_buffer.committed", item_id=item_id, previous_item_id=None)

    def test_the_agent_is_told_to_commit_and_no_more(self) -> None:
        scene = self.scene()
        told = scene.conversation.first_session()["audio"]["input"]["turn_detection"]
        assert told["type"] == "server_vad"
        assert told["create_response"] is told["interrupt_response"] is False
        shown = scene.of("session.created")[0]["session"]["audio"]["input"]["turn_detection"]
        assert shown["type"] == "semantic_vad" and shown["create_response"] is True

    def test_two_commits_and_one_reply(self, spoken: bytes) -> None:
        scene = self.scene()
        scene.speak(silence(1.0) + spoken[: 700 * BYTES_PER_MS])
        self.agent_hears(scene, "u1")
        scene.speak(silence(0.25))
        self.agent_commits(scene, "u1")
        scene.speak(spoken[700 * BYTES_PER_MS : 1500 * BYTES_PER_MS])
        self.agent_hears(scene, "u2")
        scene.speak(silence(0.25))
        self.agent_commits(scene, "u2")
        assert not scene.asked("response.create")
        scene.speak(silence(0.4))
        assert len(scene.asked("response.create")) == 1
        assert not scene.asked("input_audio_buffer.commit")
        assert len(scene.of("input_audio_buffer.committed")) == 2

    def test_with_an_agent_that_does_so(self, spoken: bytes) -> None:
        scene = Scene(parrot={}, configured=None, turns=plan("silence"))
        assert scene.parrot is not None
        first = json.dumps({"type": "session.update", "session": scene.conversation.first_session()})
        scene.parrot.receive_event_untrusted(first, scene.now)
        scene.conversation.agent_ready(True, scene.now)
        scene.speak(silence(1.0) + spoken + silence(0.8))
        scene.run(0.3)
        scene.speak(silence(0.5) + spoken[: 1800 * BYTES_PER_MS] + silence(1.0))
        scene.run(4.0)
        created = len(scene.of("response.created"))
        assert created == len(scene.asked("response.create")) == len(scene.of("response.done")) == 2
        assert len(scene.of("output_audio_buffer.cleared")) == 1
        assert len(scene.of("conversation.item.truncated")) == 1
        assert not scene.of("error")

    def test_a_late_commit_is_waited_for(self, spoken: bytes) -> None:
        scene = self.scene()
        scene.speak(silence(1.0) + spoken[: 700 * BYTES_PER_MS])
        self.agent_hears(scene, "u1")
        scene.speak(silence(0.8))
        assert not scene.asked("response.create")
        self.agent_commits(scene, "u1")
        assert len(scene.asked("response.create")) == 1

    def test_a_commit_that_does_not_come_is_made(self, spoken: bytes) -> None:
        scene = self.scene()
        scene.speak(silence(1.0) + spoken[: 700 * BYTES_PER_MS])
        self.agent_hears(scene, "u1")
        scene.speak(silence(0.6 + COMMIT_SECONDS))
        kinds = [event["type"] for event in scene.upstream if event["type"] != "audio"]
        assert kinds == ["input_audio_buffer.commit", "response.create"]

    def test_what_the_agent_has_not_heard_is_not_answered(self, spoken: bytes) -> None:
        scene = self.scene()
        scene.speak(silence(1.0) + spoken[: 700 * BYTES_PER_MS] + silence(0.6 + COMMIT_SECONDS))
        assert not scene.asked("response.create") and not scene.asked("input_audio_buffer.commit")
        assert watched(scene)[-1] == ("unheard", "")

    def test_the_agents_ear_does_not_interrupt(self, spoken: bytes) -> None:
        scene = self.scene()
        scene.speak(silence(1.0))
        scene.begin()
        scene.delta(3.0)
        scene.speak(silence(0.5))
        scene.speech()
        scene.run(0.2)
        assert "output_audio_buffer.cleared" not in scene.types()
        scene.speak(spoken[: 1800 * BYTES_PER_MS])
        assert "output_audio_buffer.cleared" in scene.types()
        assert [event["response_id"] for event in scene.asked("response.cancel")] == ["r1"]

    def test_words_decide_before_the_duration_does(self, spoken: bytes) -> None:
        scene = self.scene()
        scene.speak(silence(1.0))
        scene.begin()
        scene.delta(3.0)
        scene.speak(silence(0.6) + spoken[: 300 * BYTES_PER_MS])
        assert ("output_paused", "voice") in watched(scene)
        kind = "conversation.item.input_audio_transcription.delta"
        scene.agent(kind, item_id="u1", content_index=0, delta="stop it")
        assert ("output_stopped", "words") in watched(scene)

    def test_the_agent_may_be_the_judge(self, spoken: bytes) -> None:
        scene = self.scene(judge="upstream", make=Upstream)
        scene.speak(silence(1.0) + spoken[: 700 * BYTES_PER_MS])
        self.agent_hears(scene, "u1")
        scene.speak(silence(1.0))
        assert not scene.asked("response.create")
        self.agent_commits(scene, "u1")
        assert len(scene.asked("response.create")) == 1
        assert watched(scene)[-1] == ("ended", "upstream")

    def test_an_answer_that_is_not_to_be_interrupted(self, spoken: bytes) -> None:
        scene = self.scene()
        scene.speak(silence(1.0))
        metadata = {"voicegate_interruptible": "false"}
        scene.agent("response.created", response={**body("r1", "in_progress"), "metadata": metadata})
        scene.delta(3.0)
        scene.speak(silence(0.5) + spoken[: 1800 * BYTES_PER_MS])
        assert not [what for what, _ in watched(scene) if what.startswith("output")]
        scene.finish()
        scene.run(2.0)
        scene.begin("r2", "i2")
        scene.delta(3.0, "r2", "i2")
        scene.speak(silence(0.8) + spoken[: 1800 * BYTES_PER_MS])
        assert "output_audio_buffer.cleared" in scene.types(), "the next one is an answer like any other"


class TestUpstream:
    def scene(self, **options: Any) -> Scene:
        scene = Scene(turns=plan("semantic", **options))
        scene.say_raw('{"type": "voicegate.turns.watch"}')
        scene.speak(silence(0.5))
        scene.begin()
        scene.delta(4.0)
        scene.speak(silence(0.5))
        return scene

    def test_nothing_is_changed_on_the_way(self) -> None:
        scene = Scene(turns=plan("semantic"))
        assert "audio" not in scene.conversation.first_session()
        scene.say("session.update", session=detection(type="semantic_vad", eagerness="low"))
        (told,) = scene.asked("session.update")
        assert told["session"]["audio"]["input"]["turn_detection"] == {
            "type": "semantic_vad",
            "eagerness": "low",
        }

    def test_the_agents_word_confirms(self, spoken: bytes) -> None:
        scene = self.scene()
        scene.speak(spoken[: 300 * BYTES_PER_MS])
        assert watched(scene)[-1] == ("output_paused", "voice")
        held = scene.packets[-1][0]
        scene.speech()
        assert "output_audio_buffer.cleared" in scene.types()
        scene.run(1.0)
        assert scene.packets[-1][0] == held

    def test_without_it_the_voice_goes_on(self, spoken: bytes) -> None:
        scene = self.scene()
        scene.speak(spoken[: 1200 * BYTES_PER_MS])
        scene.run(5.0)
        assert ("output_resumed", "unconfirmed") in watched(scene)
        assert "output_audio_buffer.cleared" not in scene.types()
        assert scene.audio.played_samples == 4 * 24_000
        gaps = np.diff([at for at, _ in scene.packets])
        assert gaps.max() == pytest.approx(CONFIRM_SECONDS, abs=0.05)
        assert not scene.asked("response.cancel")

    def test_a_short_sound_is_over_before(self, word: bytes) -> None:
        scene = self.scene()
        scene.speak(word[: 250 * BYTES_PER_MS] + silence(1.0))
        scene.run(5.0)
        assert [what for what, _ in watched(scene) if "output" in what] == ["output_paused", "output_resumed"]
        assert scene.audio.played_samples == 4 * 24_000

    def test_a_client_that_wants_no_interruptions(self, spoken: bytes) -> None:
        scene = self.scene()
        wanted = detection(type="server_vad", interrupt_response=False)
        scene.say("session.update", session=wanted)
        scene.agent("session.updated", session=wanted)
        decided = len(watched(scene))
        scene.speak(spoken[: 1000 * BYTES_PER_MS])
        assert len(watched(scene)) == decided


class TestWatching:
    def test_who_has_not_asked_sees_nothing(self, spoken: bytes) -> None:
        scene = Scene(parrot=DEAF, turns=plan("none"))
        scene.conversation.joined(Audience.SIDEBAND, scene.now)
        scene.say_raw('{"type": "voicegate.turns.watch"}', source=Audience.SIDEBAND)
        scene.speak(silence(1.0) + spoken + silence(0.8))
        assert not watched(scene)
        seen = [event["type"] for event in scene.to_sideband]
        assert "voicegate.turn.ended" in seen
        assert not any("voicegate" in event["type"] for event in scene.upstream)

    def test_a_recording_has_them_all(self, spoken: bytes) -> None:
        class Tap:
            def __init__(self) -> None:
                self.noted: list[str] = []

            def note(self, source: str, data: bytes) -> None:
                self.noted.append(json.loads(data)["type"])

            def hear(self, pcm: bytes, at: float) -> None: ...

            def say(self, pcm: bytes, timestamp: int, at: float) -> None: ...

        tap: Any = Tap()
        scene = Scene(parrot=DEAF, turns=plan("none"))
        scene.conversation.record(tap)
        scene.speak(silence(1.0) + spoken + silence(0.8))
        assert not watched(scene)
        for kind in ("voicegate.turn.speech_started", "voicegate.turn.judged", "voicegate.turn.ended"):
            assert kind in tap.noted

    def test_filters_hold(self, spoken: bytes) -> None:
        filters = Filters(server_events=EventFilter(("input_audio_buffer.*", "session.*")))
        scene = Scene(parrot=DEAF, turns=plan("none"), filters={Audience.CLIENT: filters})
        scene.say_raw('{"type": "voicegate.turns.watch"}')
        scene.speak(silence(1.0) + spoken + silence(0.8))
        assert not watched(scene) and scene.of("input_audio_buffer.speech_started")

    def test_a_judge_in_a_thread(self, spoken: bytes) -> None:
        class Slow(Sure):
            inline = False

        scene = Scene(parrot=DEAF, turns=plan("none", Slow))
        scene.speak(silence(1.0) + spoken + silence(0.3))
        news = iter(scene.conversation.turns.events.poll, None)
        question = [item for item in news if isinstance(item, Question)][-1]
        verdict = question.judge.judge(question.pause)
        scene.conversation.take_verdict(verdict, scene.now)
        scene.speak(silence(0.5))
        assert scene.of("input_audio_buffer.speech_stopped")
        scene.conversation.take_verdict(verdict, scene.now)
        assert scene.conversation.turns.events.counts["verdict_dropped", "sure"] == 1
