"""Random calls in which somebody speaks, in each mode: what is promised to clients and agents is kept."""

from __future__ import annotations

from collections import Counter
from functools import cache
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from tests.roles.test_conversation_parrot import ACTIONS, Random
from tests.roles.test_turns import NONE, Sure, detection
from tests.support import speech
from tests.support.listening import plan
from voicegate.proto.realtime import BYTES_PER_MS
from voicegate.roles.transceiver.detection import Ability

TALK = st.tuples(st.just("talk"), st.sampled_from([200, 400, 900, 1500]))
HUSH = st.tuples(st.just("hush"), st.sampled_from([100, 300, 700, 1500]))
ACTIVE = "conversation_already_has_active_response"
COMMITTED = st.tuples(st.just("committed"))
MODE = st.tuples(
    st.just("mode"),
    st.sampled_from(
        [
            NONE,
            detection(type="server_vad"),
            detection(type="semantic_vad", create_response=False),
            detection(type="semantic_vad", interrupt_response=False),
        ]
    ),
)
HEARD = st.tuples(st.just("stopped"))
BUSY = st.tuples(st.just("busy"))
TALKS = st.lists(
    st.one_of(*[TALK, HUSH] * 3, COMMITTED, MODE, HEARD, BUSY, ACTIONS.flatmap(lambda a: st.sampled_from(a))),
    min_size=5,
    max_size=25,
)


@cache
def voice() -> bytes:
    return speech.to_pcm(speech.say("Peter Piper picked a peck of pickled peppers on the way home.", 24_000))


class Talking(Random):
    """With a microphone that somebody speaks into, and an agent that commits when it likes."""

    def __init__(self, ability: Ability, *, eager: bool) -> None:
        super().__init__(turns=plan(ability, Sure, eager=eager))
        self.place = 0
        self.committed = 0

    def play(self, action: tuple[Any, ...]) -> None:
        scene = self.scene
        match action:
            case ("talk", milliseconds):
                self.connected()
                start = self.place % (len(voice()) - 2000 * BYTES_PER_MS)
                self.place += milliseconds * BYTES_PER_MS
                scene.speak(voice()[start : start + milliseconds * BYTES_PER_MS])
            case ("hush", milliseconds):
                self.connected()
                scene.speak(bytes(milliseconds * BYTES_PER_MS))
            case ("committed",):
                self.committed += 1
                scene.agent(
                    "input_audio_buffer.committed", item_id=f"u{self.committed}", previous_item_id=None
                )
            case ("mode", session):
                scene.say("session.update", session=session)
                scene.agent("session.updated", session=scene.asked("session.update")[-1]["session"])
            case ("busy",):
                for create in scene.asked("response.create")[-1:]:
                    error = {
                        "type": "invalid_request_error",
                        "code": ACTIVE,
                        "message": "Wait.",
                        "param": None,
                    }
                    scene.agent("error", error={**error, "event_id": create.get("event_id")})
            case ("stopped",):
                scene.agent("input_audio_buffer.speech_stopped", audio_end_ms=0, item_id="u")
            case _:
                super().play(action)

    def connected(self) -> None:
        if not self.started:
            self.connect()

    def check_turns(self) -> None:
        """At the end of the call."""
        scene = self.scene
        self.connected()
        for _ in range(4):
            scene.speak(bytes(1000 * BYTES_PER_MS))
        assert not scene.audio._playout.paused or scene.conversation.turns._eager.held, (
            "a voice is held for good"
        )
        scene.conversation.agent_lost(scene.now, "agent_closed")
        scene._drain()
        shown = Counter(event["response"]["id"] for event in scene.of("response.created"))
        done = Counter(event["response"]["id"] for event in scene.of("response.done"))
        assert done == shown and max(done.values(), default=1) == 1
        cut = [e["item_id"] for e in scene.upstream if e["type"] == "conversation.item.truncate"]
        assert len(cut) == len(set(cut)), "an item is cut once"


def turns(events: list[dict[str, Any]]) -> list[str]:
    """Those that were made here; an agent of any kind may send some that it was told not to."""
    kinds = ("input_audio_buffer.speech_started", "input_audio_buffer.speech_stopped")
    return [
        event["type"]
        for event in events
        if event["type"] in kinds and event["item_id"].startswith("item_voicegate_")
    ]


@settings(max_examples=40, deadline=None)
@given(TALKS)
@pytest.mark.parametrize("eager", [False, True])
def test_gateway(eager: bool, actions: list[tuple[Any, ...]]) -> None:
    call = Talking("none", eager=eager)
    for action in actions:
        call.play(action)
    call.check_turns()
    seen = turns(call.scene.to_client)
    assert seen == [
        f"input_audio_buffer.speech_{'stopped' if n % 2 else 'started'}" for n in range(len(seen))
    ], "turns begin and end by turns"


@settings(max_examples=40, deadline=None)
@given(TALKS)
@pytest.mark.parametrize("ability", ["silence", "semantic"])
def test_agents_that_listen(ability: Ability, actions: list[tuple[Any, ...]]) -> None:
    call = Talking(ability, eager=False)
    for action in actions:
        call.play(action)
    call.check_turns()
