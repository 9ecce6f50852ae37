"""Conversations with a parrot on virtual time, and random ones that must keep their promises."""

from __future__ import annotations

from collections import Counter
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from tests.support import speech
from tests.support.scene import Scene
from voicegate.proto.realtime import BYTES_PER_MS
from voicegate.roles.transceiver.playback import CLIENT_DELAY
from voicegate.roles.transceiver.session import MAX_PENDING


def silence(seconds: float) -> bytes:
    return bytes(round(seconds * 1000) * BYTES_PER_MS)


@pytest.fixture(scope="module")
def spoken() -> bytes:
    return speech.to_pcm(speech.say("Say this back to me, please, every word of it.", 24_000))


def truncated(scene: Scene) -> dict[str, Any]:
    (event,) = scene.of("conversation.item.truncated")
    return event


class TestTurns:
    def test_said_back(self, spoken: bytes) -> None:
        scene = Scene(parrot={})
        scene.speak(silence(0.5) + spoken + silence(0.8))
        scene.run(6.0)
        kinds = scene.types()
        order = [
            "session.created",
            "input_audio_buffer.speech_started",
            "input_audio_buffer.speech_stopped",
            "response.created",
            "response.content_part.added",
            "output_audio_buffer.started",
            "response.done",
            "output_audio_buffer.stopped",
        ]
        assert [kind for kind in kinds if kind in order] == order
        played = scene.at("output_audio_buffer.stopped") - scene.at("output_audio_buffer.started")
        assert played == pytest.approx(len(scene.packets) * 0.02, abs=1e-6)
        assert not scene.of("error")

    def test_interrupted(self, spoken: bytes) -> None:
        scene = Scene(parrot={})
        scene.speak(silence(0.5) + spoken + silence(0.8))
        started = scene.at("output_audio_buffer.started")
        scene.speak(spoken[: 800 * BYTES_PER_MS])
        cleared = scene.at("output_audio_buffer.cleared")
        assert cleared == max(at for at, kind in scene.times if kind == "input_audio_buffer.speech_started")
        event = truncated(scene)
        heard = 1000 * (cleared - started - CLIENT_DELAY)
        assert heard - 1 <= event["audio_end_ms"] <= heard + 21
        assert scene.packets[-1][0] <= cleared
        assert not scene.of("error")

    @pytest.mark.parametrize("cancel_first", [True, False])
    def test_cancelled(self, spoken: bytes, cancel_first: bool) -> None:
        scene = Scene(parrot={})
        scene.speak(silence(0.5) + spoken + silence(0.8))
        order = ["response.cancel", "output_audio_buffer.clear"]
        for kind in order if cancel_first else reversed(order):
            scene.say(kind, event_id=kind)
        scene.run(1.0)
        assert len(scene.of("output_audio_buffer.cleared")) == 1
        assert scene.of("response.done")[-1]["response"]["status"] == "cancelled"
        assert truncated(scene)
        assert not scene.of("error")

    def test_cleared_before_anything_was_heard(self, spoken: bytes) -> None:
        scene = Scene(parrot={}, client_delay=60.0)
        scene.speak(silence(0.5) + spoken + silence(0.8))
        scene.say("response.cancel")
        scene.run(1.0)
        assert len(scene.of("conversation.item.deleted")) == 1
        assert not scene.of("error")

    def test_push_to_talk(self, spoken: bytes) -> None:
        scene = Scene(parrot={})
        off = {"type": "realtime", "audio": {"input": {"turn_detection": None}}}
        scene.say("session.update", session=off)
        scene.speak(spoken)
        scene.say("input_audio_buffer.clear")
        scene.speak(spoken[: 480 * BYTES_PER_MS])
        scene.packet(skip=1)
        scene.say("input_audio_buffer.commit")
        scene.say("response.create", event_id="go")
        scene.run(3.0)
        assert len(scene.packets) == 24 + 2  # what was said between, with the gap
        assert scene.types()[-1] == "output_audio_buffer.stopped"
        assert not scene.of("error")

    def test_retrieved_items_carry_no_audio(self, spoken: bytes) -> None:
        scene = Scene(parrot={})
        scene.speak(silence(0.5) + spoken + silence(0.8))
        scene.run(3.0)
        committed = scene.of("input_audio_buffer.committed")[0]
        scene.say("conversation.item.retrieve", item_id=committed["item_id"])
        content = scene.of("conversation.item.retrieved")[0]["item"]["content"]
        assert content == [{"type": "input_audio", "transcript": None}]


WHICH = st.sampled_from([0, 0, 0, 1])
DELTA = st.tuples(
    st.just("delta"), WHICH, st.sampled_from([0, 0, 1]), st.sampled_from([1.0, 4.0, 0.05, 0.001])
)
RUN = st.tuples(st.just("run"), st.sampled_from([0.4, 0.2, 1.0, 0.033, 0.02, 4.0, 0.0]))
ACTIONS = st.lists(
    st.one_of(
        *[DELTA] * 5,
        *[RUN] * 5,
        *[st.tuples(st.just("done"), WHICH)] * 3,
        st.tuples(st.just("audio_done"), WHICH, st.integers(0, 1)),
        st.tuples(st.just("speech")),
        st.tuples(st.just("cancel"), st.none() | WHICH),
        st.tuples(st.just("clear")),
        st.tuples(st.just("create")),
        st.tuples(st.just("error"), st.booleans()),
        st.tuples(st.just("update")),
        st.tuples(
            st.just("updated"), st.sampled_from([None, {"type": "server_vad"}, {"type": "server_vad"}])
        ),
        st.tuples(st.just("packet"), st.integers(0, 2)),
        st.tuples(st.just("commit")),
    ),
    min_size=10,
    max_size=60,
)


class Random:
    """Plays actions and keeps its own account of what must hold."""

    def __init__(self, *, early: int = 0, **options: Any) -> None:
        self.scene = Scene(start=False, **options)
        self.early = early
        """So many actions happen before the client is connected."""
        self.received: Counter[str] = Counter()
        self.created: list[str] = []
        self.open: dict[int, str] = {}
        self.asked: list[str] = []
        self.started = False

    def play(self, action: tuple[Any, ...]) -> None:
        scene = self.scene
        self.asked.append(action[0])
        self.early -= 1
        if self.early < 0 and not self.started:
            self.connect()
        if action[0] == "delta" and action[1] not in self.open:
            name = self.open[action[1]] = f"r{len(self.created)}"
            self.created.append(name)
            scene.begin(name, f"{name}.0")
        match action:
            case ("run", seconds):
                scene.run(seconds)
            case ("delta", n, item, seconds):
                name = f"{self.open[n]}.{item}"
                self.received[name] += round(seconds * 24_000)
                scene.delta(seconds, self.open[n], name)
            case ("audio_done", n, item) if n in self.open:
                place = {"output_index": 0, "content_index": 0, "item_id": f"{self.open[n]}.{item}"}
                scene.agent("response.output_audio.done", response_id=self.open[n], **place)
            case ("done", n) if n in self.open:
                name = self.open.pop(n)
                response = {"id": name, "object": "realtime.response", "status": "completed", "output": []}
                scene.agent("response.done", response=response)
            case ("speech",):
                scene.speech()
            case ("cancel", n):
                scene.say("response.cancel", **({} if n is None else {"response_id": self.open.get(n, "x")}))
            case ("clear",):
                scene.say("output_audio_buffer.clear")
            case ("create",):
                scene.say("response.create", event_id="c")
            case ("error", echoes):
                asked = scene.upstream[-1].get("event_id") if scene.upstream else None
                scene.error(asked if echoes else None, message="session truncate")
            case ("update",):
                scene.say("session.update", session={"type": "realtime", "tracing": "auto"})
            case ("updated", detection):
                audio = {"input": {"turn_detection": detection}}
                scene.agent("session.updated", session={"type": "realtime", "audio": audio})
            case ("packet", skip):
                scene.packet(skip=skip)
            case ("commit",):
                scene.say("input_audio_buffer.commit")

    def connect(self) -> None:
        self.started = True
        self.scene.audio.start(self.scene.now)
        self.scene.conversation.handle_timeout(self.scene.now)
        self.scene._drain()

    def check(self) -> None:
        """At the end of the call."""
        scene = self.scene
        if not self.started:
            self.connect()
        scene.run(5.0)
        scene.conversation.agent_lost(scene.now, "agent_closed")
        scene._drain()
        ends: Counter[str] = Counter()
        begun: list[str] = []
        for event in scene.to_client:
            match event["type"]:
                case "output_audio_buffer.started":
                    begun.append(event["response_id"])
                case "output_audio_buffer.stopped" | "output_audio_buffer.cleared":
                    assert event["response_id"] in begun, "an end without a beginning"
                    ends[event["response_id"]] += 1
        assert len(begun) == len(set(begun)) and ends == Counter(begun)
        done = Counter(event["response"]["id"] for event in scene.of("response.done"))
        assert done == Counter(self.created)
        asked = sum(kind == "update" for kind in self.asked)
        assert len(scene.of("session.updated")) >= min(asked, MAX_PENDING)
        cut = [e["item_id"] for e in scene.upstream if e["type"].startswith("conversation.item.")]
        assert len(cut) == len(set(cut)), "an item is cut once"
        for event in scene.asked("conversation.item.truncate"):
            assert 0 < event["audio_end_ms"] <= self.received[event["item_id"]] * 1000 // 24_000


class TestProperties:
    @settings(max_examples=80)
    @given(ACTIONS, st.sampled_from([0, 0, 0, 10]))
    def test_promises_are_kept(self, actions: list[tuple[Any, ...]], early: int) -> None:
        play = Random(early=early)
        for action in actions:
            play.play(action)
        play.check()
