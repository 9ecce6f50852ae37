"""A call's conversation: events both ways, the output buffer, barge-in, push to talk."""

from __future__ import annotations

import base64
import json
import time
from typing import Any

import pytest
from pydantic import BaseModel

from tests.support.rig import Rig
from tests.support.scene import SERVER_EVENT, SERVER_TYPES, Scene, body
from voicegate.proto import realtime
from voicegate.proto.event_filter import EventFilter
from voicegate.roles.transceiver.conversation import Conversation
from voicegate.roles.transceiver.life import (
    EndReason,
)
from voicegate.roles.transceiver.outbox import Audience, Filters
from voicegate.roles.transceiver.playback import CLIENT_DELAY
from voicegate.roles.transceiver.responses import CANCEL_SECONDS, GRACE_SECONDS
from voicegate.roles.transceiver.upstream import MAX_EARLY_EVENTS

CLIENT, SIDEBAND = Audience.CLIENT, Audience.SIDEBAND
AUDIO = base64.b64encode(bytes(4800)).decode()
OWN_BUFFER = {f"output_audio_buffer.{kind}" for kind in ("started", "stopped", "cleared")}


def sample(model: Any) -> Any:
    """Any value of a model's field type, only what is required."""
    if isinstance(model, type) and issubclass(model, BaseModel):
        return {n: sample(f.annotation) for n, f in model.model_fields.items() if f.is_required()}
    origin = getattr(model, "__origin__", None)
    arguments = getattr(model, "__args__", ())
    if origin is list:
        return []
    if str(origin) == "typing.Literal":
        return arguments[0]
    if arguments:
        return sample(arguments[0])
    return {str: "x", int: 1, float: 1.5, bool: True}.get(model, {})


SAMPLES = {}
for _model in __import__("typing").get_args(SERVER_EVENT._type)[0].__args__:
    _event = sample(_model)
    SAMPLES[_event["type"]] = _event


class TestAgentToClients:
    def test_there_are_46_kinds(self) -> None:
        assert len(SERVER_TYPES) == len(SAMPLES) == 46

    @pytest.mark.parametrize(
        "kind",
        sorted(
            SERVER_TYPES - OWN_BUFFER - {"response.output_audio.delta", "session.created", "session.updated"}
        ),
    )
    def test_passes_as_it_is(self, kind: str) -> None:
        scene = Scene()
        event = SAMPLES[kind]
        SERVER_EVENT.validate_python(event)
        scene.to_client.clear()
        scene.agent_raw(json.dumps(event))
        (seen,) = scene.to_client
        assert seen == {"event_id": seen["event_id"], **event}  # one kind has none of its own

    def test_sessions_are_shown(self) -> None:
        scene = Scene(session={"type": "realtime", "audio": {"output": {"format": {"type": "audio/pcmu"}}}})
        scene.agent("session.updated", session={"type": "realtime", "instructions": "hi"})
        created, updated = scene.to_client
        assert created["type"] == "session.created" and updated["type"] == "session.updated"
        for event in (created, updated):
            assert event["session"]["audio"]["output"]["format"] == {"type": "audio/pcmu"}
        assert updated["session"]["instructions"] == "hi"

    def test_unknown_events_pass_whole(self) -> None:
        scene = Scene()
        raw = '{"type":"vendor.thing","event_id":"e","n":1.50,"item":{"content":[{"audio":"QUJD"}]}}'
        scene.agent_raw(raw)
        assert scene.to_client[-1] == json.loads(raw)

    @pytest.mark.parametrize("name", ["response.output_audio.delta", "response.audio.delta"])
    def test_deltas_become_sound(self, name: str) -> None:
        scene = Scene()
        scene.begin()
        seen = len(scene.to_client)
        scene.agent_raw(json.dumps({"type": name, "response_id": "r1", "item_id": "i1", "delta": AUDIO}))
        scene.run(0.2)
        assert scene.types()[seen:] == ["output_audio_buffer.started"]
        assert len(scene.packets) == 5

    @pytest.mark.parametrize(
        "kind",
        [f"conversation.item.{kind}" for kind in ("created", "added", "done", "retrieved")]
        + ["response.output_item.added", "response.output_item.done"],
    )
    def test_items_lose_their_audio_and_nothing_else(self, kind: str) -> None:
        scene = Scene()
        part = {"type": "input_audio", "transcript": 'say "audio"', "audio": AUDIO}
        item = {
            "id": "i",
            "type": "message",
            "role": "user",
            "content": [part, {"type": "input_text", "text": "t"}],
        }
        event = {"type": kind, "event_id": "e", "response_id": "r", "output_index": 0, "item": item}
        scene.agent_raw(json.dumps(event))
        del part["audio"]
        assert scene.to_client[-1] == event

    def test_parts_and_responses_lose_their_audio(self) -> None:
        scene = Scene()
        place = {"response_id": "r", "item_id": "i", "output_index": 0, "content_index": 0}
        scene.agent(
            "response.content_part.done", part={"type": "audio", "audio": AUDIO, "transcript": "t"}, **place
        )
        assert scene.to_client[-1]["part"] == {"type": "audio", "transcript": "t"}
        part = {"type": "output_audio", "audio": AUDIO, "transcript": "t"}
        item = {"type": "message", "role": "assistant", "content": [part]}
        response = {**body("r", "completed"), "output": [item], "audio": {"output": {"voice": "marin"}}}
        scene.agent("response.done", response=response)
        seen = scene.to_client[-1]["response"]
        assert seen["output"][0]["content"] == [{"type": "output_audio", "transcript": "t"}]
        assert seen["audio"] == {"output": {"voice": "marin"}}

    @pytest.mark.parametrize("item", [None, 3, {"content": 3}, {"content": [3]}, {"content": None}])
    def test_items_of_another_shape_pass(self, item: Any) -> None:
        scene = Scene()
        event = {"type": "conversation.item.created", "event_id": "e", "item": item, "audio": "x"}
        scene.conversation.receive_agent_event(
            realtime.decode_server_event_untrusted(json.dumps(event)), scene.now
        )
        out = scene.conversation.poll_to_clients()
        assert out is not None and json.loads(out[0]) == event

    def test_big_items_cost_linear_time(self) -> None:
        scene = Scene()
        part = {"type": "input_audio", "audio": "A" * 5_000_000}
        item = {"type": "message", "role": "user", "content": [part] * 3}
        raw = json.dumps({"type": "conversation.item.retrieved", "event_id": "e", "item": item})
        begun = time.process_time()
        scene.agent_raw(raw)
        assert time.process_time() - begun < 1.0
        assert len(json.dumps(scene.to_client[-1])) < 300

    def test_events_get_the_id_that_is_missing(self) -> None:
        scene = Scene()
        scene.agent_raw('{"type":"response.created","response":{"id":"r1"}}')
        assert scene.to_client[-1]["event_id"].startswith("event_")

    def test_an_agents_own_buffer_events_are_not_believed(self) -> None:
        scene = Scene()
        scene.agent("output_audio_buffer.started", response_id="r1")
        assert scene.types() == ["session.created"]

    def test_too_long_for_the_channel(self) -> None:
        scene = Scene(max_client_message=2000)
        scene.conversation.joined(SIDEBAND, scene.now)
        scene.begin()
        response = {**body("r1", "incomplete"), "metadata": {"m": "x" * 3000}}
        scene.agent("response.done", response=response)
        assert scene.types()[-2:] == ["error", "response.done"]
        assert scene.of("response.done")[0]["response"] == {**body("r1", "incomplete")}
        assert len(scene.to_sideband[-1]["response"]["metadata"]["m"]) == 3000


class TestWhoSees:
    def test_filters_of_server_events(self) -> None:
        filters = {CLIENT: Filters(server_events=EventFilter({"response.created"}))}
        scene = Scene(filters=filters)
        scene.conversation.joined(SIDEBAND, scene.now)
        scene.begin()
        assert scene.types() == ["response.created"]
        assert [e["type"] for e in scene.to_sideband] == ["response.created", "response.content_part.added"]

    def test_filters_of_client_events(self) -> None:
        filters = {
            CLIENT: Filters(client_events=EventFilter({"response.create"}), server_events=EventFilter(()))
        }
        scene = Scene(filters=filters)
        scene.conversation.joined(SIDEBAND, scene.now)
        scene.say("response.cancel", event_id="mine")
        assert scene.to_client[-1]["error"]["event_id"] == "mine"
        assert scene.to_client[-1]["error"]["code"] == "event_not_allowed"
        assert not scene.upstream and not scene.to_sideband
        scene.say("response.create")
        scene.say("response.cancel", source=SIDEBAND)
        assert [e["type"] for e in scene.upstream] == ["response.create", "response.cancel"]

    def test_what_happens_before_the_channel_opens_waits(self) -> None:
        scene = Scene()
        scene.conversation.left(CLIENT, scene.now)
        scene.begin()
        assert scene.types() == ["session.created"]
        for n in range(1000):
            scene.agent("vendor.noise", n=n)
        scene.conversation.joined(CLIENT, scene.now)
        scene._drain()
        assert scene.types()[1] == "response.created"  # the first is kept
        assert len(scene.to_client) == 257 and scene.to_client[-1]["n"] == 999

    def test_a_later_sideband_is_greeted(self) -> None:
        scene = Scene(configured=None)
        assert scene.conversation.greeting() is None
        scene = Scene()
        greeting = scene.conversation.greeting()
        assert greeting is not None and json.loads(greeting)["type"] == "session.created"

    def test_an_agents_error_goes_to_the_one_who_asked(self) -> None:
        scene = Scene()
        scene.conversation.joined(SIDEBAND, scene.now)
        scene.say("conversation.item.delete", event_id="sb", item_id="x", source=SIDEBAND)
        scene.error("sb")
        assert scene.types() == ["session.created"]
        assert scene.to_sideband[-1]["error"]["event_id"] == "sb"
        scene.error(None)
        assert scene.types()[-1] == "error" and len(scene.to_sideband) == 2

    def test_an_error_that_names_nothing_answers_response_create(self) -> None:
        scene = Scene()
        scene.say("response.create", event_id="c1")
        scene.error(None)
        assert scene.to_client[-1]["error"]["event_id"] == "c1"
        scene.say("response.create", event_id="c2")
        scene.begin()
        scene.error(None)
        assert scene.to_client[-1]["error"]["event_id"] is None


class TestOutputBuffer:
    def test_started_and_stopped_when_it_is_so(self) -> None:
        scene = Scene()
        scene.run(0.5)
        scene.begin()
        scene.run(0.1)
        first = scene.now
        scene.delta(1.0)
        scene.run(0.1)
        scene.finish()
        scene.run(2.0)
        assert scene.types()[1:] == [
            "response.created",
            "response.content_part.added",
            "output_audio_buffer.started",
            "response.output_audio.done",
            "response.done",
            "output_audio_buffer.stopped",
        ]
        assert scene.at("output_audio_buffer.started") == first == scene.packets[0][0]
        assert scene.at("output_audio_buffer.stopped") == pytest.approx(first + 1.0, abs=1e-6)
        for event in scene.to_client[3:]:
            assert "response_id" not in event or event["response_id"] == "r1"
        assert not scene.upstream

    def test_stopped_waits_for_response_done(self) -> None:
        scene = Scene()
        scene.begin()
        scene.delta(0.1)
        scene.run(1.0)
        assert "output_audio_buffer.stopped" not in scene.types()
        scene.finish()
        assert scene.types()[-2:] == ["response.done", "output_audio_buffer.stopped"]

    def test_the_clock_runs_from_the_connection(self) -> None:
        scene = Scene(start=False)
        scene.begin()
        scene.delta(0.5)
        scene.finish()
        scene.run(1.0)
        assert "output_audio_buffer.started" not in scene.types()
        scene.audio.start(scene.now)
        scene.conversation.handle_timeout(scene.now)
        scene._drain()
        connected = scene.now
        scene.run(1.0)
        assert scene.at("output_audio_buffer.started") == connected
        assert scene.at("output_audio_buffer.stopped") == pytest.approx(connected + 0.5, abs=1e-6)

    def test_two_responses_behind_each_other(self) -> None:
        scene = Scene()
        begun = scene.now
        for r, i in (("r1", "i1"), ("r2", "i2")):
            scene.begin(r, i)
            scene.delta(0.5, r, i)
            scene.finish(r, i)
        scene.run(2.0)
        buffer = [(e["type"][20:], e["response_id"]) for e in scene.to_client if e["type"] in OWN_BUFFER]
        assert buffer == [("started", "r1"), ("stopped", "r1"), ("started", "r2"), ("stopped", "r2")]
        times = [at for at, kind in scene.times if kind in OWN_BUFFER]
        assert times == pytest.approx([begun, begun + 0.5, begun + 0.5, begun + 1.0], abs=1e-6)

    @pytest.mark.parametrize("audio_done", [True, False])
    def test_a_partial_last_frame_does_not_wait(self, audio_done: bool) -> None:
        scene = Scene()
        scene.begin()
        scene.delta(0.51)
        if audio_done:
            place = {"response_id": "r1", "item_id": "i1", "output_index": 0, "content_index": 0}
            scene.agent("response.output_audio.done", **place)
            scene.run(0.55)
            assert len(scene.packets) == 26
        scene.agent("response.done", response=body("r1", "completed"))
        scene.run(1.0)
        assert scene.at("output_audio_buffer.stopped") == pytest.approx(100.55 if audio_done else 100.52)
        assert len(scene.packets) == 26

    def test_a_late_call_does_not_make_its_driver_spin(self) -> None:
        scene = Scene()
        scene.begin()
        scene.delta(0.1)
        scene.finish()
        due = scene.conversation.next_deadline()
        assert due is not None
        scene.conversation.handle_timeout(due)  # without the call's own timer
        again = scene.conversation.next_deadline()
        assert again is not None and again > due

    def test_a_response_without_sound_has_no_buffer_events(self) -> None:
        scene = Scene()
        scene.begin()
        scene.finish()
        scene.run(1.0)
        assert not OWN_BUFFER & set(scene.types())

    def test_a_client_that_does_not_listen(self) -> None:
        scene = Scene(listening=False)
        scene.begin()
        scene.delta(1.0)
        scene.speech()
        scene.run(1.0)
        scene.finish(status="cancelled")
        assert not OWN_BUFFER & set(scene.types())
        assert {e["type"] for e in scene.upstream} == {"response.cancel"}


def heard_ms(seconds: float) -> int:
    """After `seconds` of playing: whole frames sent, less what is still on its way."""
    return round((seconds - CLIENT_DELAY) * 1000)


class TestBargeIn:
    def playing(self, seconds: float = 1.0, **options: Any) -> Scene:
        """Four seconds of speech of which `seconds` have been sent."""
        scene = Scene(**options)
        scene.begin()
        scene.delta(4.0)
        scene.run(seconds)
        return scene

    def test_speech_stops_the_agent_at_once(self) -> None:
        scene = self.playing(1.0)
        scene.speech()
        assert scene.types()[-2:] == ["input_audio_buffer.speech_started", "output_audio_buffer.cleared"]
        sent = len(scene.packets)
        scene.delta(1.0)
        scene.finish(status="cancelled")
        scene.delta(1.0)
        scene.run(1.0)
        assert len(scene.packets) == sent
        (truncate,) = scene.asked("conversation.item.truncate")
        assert (truncate["item_id"], truncate["content_index"]) == ("i1", 0)
        assert truncate["audio_end_ms"] == pytest.approx(heard_ms(1.0), abs=20)
        assert "output_audio_buffer.stopped" not in scene.types()
        assert not scene.asked("response.cancel")

    def test_truncation_waits_for_the_item_to_be_made(self) -> None:
        scene = self.playing()
        scene.speech()
        assert not scene.upstream
        scene.finish(status="cancelled")
        assert len(scene.asked("conversation.item.truncate")) == 1

    def test_a_finished_item_is_truncated_at_once(self) -> None:
        scene = self.playing()
        scene.finish()
        scene.speech()
        assert scene.asked("conversation.item.truncate")[0]["audio_end_ms"] > 0

    def test_an_agent_that_goes_on_is_told_to_stop(self) -> None:
        scene = self.playing()
        scene.speech()
        scene.run(GRACE_SECONDS - 0.01)
        assert not scene.upstream
        scene.run(0.02)
        assert scene.asked("response.cancel")[0]["response_id"] == "r1"
        scene.error(scene.upstream[-1]["event_id"], message="no active response")
        scene.run(CANCEL_SECONDS)
        (done,) = scene.of("response.done")
        assert done["response"]["status_details"] == {"type": "cancelled", "reason": "turn_detected"}
        assert len(scene.asked("conversation.item.truncate")) == 1
        assert not scene.of("error")
        scene.finish(status="cancelled")
        assert len(scene.of("response.done")) == 1

    @pytest.mark.parametrize(
        ("detection", "stops"),
        [
            (None, False),
            ({"type": "server_vad", "interrupt_response": False}, False),
            ({"type": "server_vad", "interrupt_response": None}, True),
            ({"type": "semantic_vad"}, True),
            ("beta", False),
        ],
    )
    def test_interruption_can_be_switched_off(self, detection: Any, stops: bool) -> None:
        scene = self.playing()
        session: Any = {"type": "realtime", "audio": {"input": {"turn_detection": detection}}}
        if detection == "beta":
            session = {"type": "realtime", "turn_detection": None}
        scene.agent("session.updated", session=session)
        scene.speech()
        assert ("output_audio_buffer.cleared" in scene.types()) is stops

    def test_nothing_heard_deletes_the_item(self) -> None:
        scene = self.playing(0.04)
        scene.finish()
        scene.speech()
        assert [e["type"] for e in scene.upstream] == ["conversation.item.delete"]

    def test_never_more_than_was_received(self) -> None:
        scene = Scene()
        scene.begin()
        scene.delta(0.5)
        scene.run(3.0)
        scene.speech()
        scene.finish(status="cancelled")
        assert scene.asked("conversation.item.truncate")[0]["audio_end_ms"] == 500

    def test_an_item_heard_to_its_end_is_left_alone(self) -> None:
        scene = Scene()
        scene.begin()
        scene.delta(0.5)
        scene.agent(
            "response.output_audio.done", response_id="r1", item_id="i1", output_index=0, content_index=0
        )
        scene.run(1.0)
        scene.delta(1.0, "r1", "i2")
        scene.run(0.5)
        scene.speech()
        scene.finish(status="cancelled")
        (truncate,) = scene.asked("conversation.item.truncate")
        assert truncate["item_id"] == "i2"
        assert truncate["audio_end_ms"] == pytest.approx(heard_ms(0.5), abs=20)

    def test_several_items_in_the_queue(self) -> None:
        scene = Scene()
        for n in "123":
            scene.begin(f"r{n}", f"i{n}")
            scene.delta(0.4, f"r{n}", f"i{n}")
            scene.finish(f"r{n}", f"i{n}")
        scene.run(0.6)
        scene.say("output_audio_buffer.clear")
        truncate, delete = scene.upstream
        assert (truncate["item_id"], delete["item_id"]) == ("i2", "i3")
        assert truncate["audio_end_ms"] == pytest.approx(heard_ms(0.2), abs=20)
        assert delete["type"] == "conversation.item.delete"
        buffer = [(e["type"][20:], e["response_id"]) for e in scene.to_client if e["type"] in OWN_BUFFER]
        assert buffer == [("started", "r1"), ("stopped", "r1"), ("started", "r2"), ("cleared", "r2")]

    @pytest.mark.parametrize("cancel_first", [True, False])
    def test_cancel_and_clear_in_both_orders(self, cancel_first: bool) -> None:
        scene = self.playing()
        order = ["response.cancel", "output_audio_buffer.clear"]
        for kind in order if cancel_first else reversed(order):
            scene.say(kind)
        scene.finish(status="cancelled")
        scene.run(1.0)
        assert [e["type"] for e in scene.upstream] == ["response.cancel", "conversation.item.truncate"]
        assert len(scene.of("output_audio_buffer.cleared")) == 1
        assert not scene.of("error") and len(scene.packets) == 51

    def test_clear_of_nothing_is_silent(self) -> None:
        scene = Scene()
        scene.say("output_audio_buffer.clear", event_id="c")
        assert scene.types() == ["session.created"] and not scene.upstream

    def test_a_cancel_that_is_not_confirmed(self) -> None:
        scene = self.playing()
        scene.say("response.cancel")
        scene.run(CANCEL_SECONDS + 0.1)
        (done,) = scene.of("response.done")
        assert (done["response"]["id"], done["response"]["status"]) == ("r1", "cancelled")
        assert done["response"]["status_details"]["reason"] == "client_cancelled"
        assert len(scene.asked("conversation.item.truncate")) == 1

    @pytest.mark.parametrize("named", [True, False])
    def test_cancel_before_the_first_sound(self, named: bool) -> None:
        scene = Scene()
        scene.begin()
        scene.say("response.cancel", **({"response_id": "r1"} if named else {}))
        scene.delta(1.0)
        scene.finish(status="cancelled")
        scene.run(1.0)
        assert not scene.packets and not OWN_BUFFER & set(scene.types())

    def test_cancel_of_another_response_leaves_the_sound(self) -> None:
        scene = self.playing()
        scene.say("response.cancel", response_id="r9")
        scene.run(1.0)
        assert len(scene.packets) == 101

    def test_the_agents_answers_to_our_events_are_not_shown(self) -> None:
        scene = self.playing()
        scene.finish()
        scene.speech()
        scene.error(scene.upstream[-1]["event_id"])
        assert not scene.of("error")

    def test_also_those_that_name_no_event(self) -> None:
        scene = self.playing()
        scene.finish()
        scene.speech()
        scene.error(None, message="Audio is too short to truncate.")
        assert not scene.of("error")
        scene.error(None, message="Audio is too short to truncate.")
        assert len(scene.of("error")) == 1

    def test_what_went_well_explains_no_later_error(self) -> None:
        scene = self.playing()
        scene.finish()
        scene.speech()
        scene.agent("conversation.item.truncated", item_id="i1", content_index=0, audio_end_ms=900)
        scene.error(None, message="Audio is too short to truncate.")
        assert len(scene.of("error")) == 1

    @pytest.mark.parametrize("response_id", ["unannounced", ""])
    def test_late_deltas_of_a_server_that_announces_nothing(self, response_id: str) -> None:
        scene = Scene()
        scene.delta(1.0, response_id, "i1")
        scene.run(0.5)
        scene.speech()
        scene.delta(1.0, response_id, "i1")
        scene.run(1.0)
        assert len(scene.packets) == 26
        scene.begin("r2", "i2")
        scene.delta(0.1, response_id and "r2", "i2")
        scene.run(1.0)
        assert len(scene.packets) == 31

    def test_a_response_apart_goes_on(self) -> None:
        scene = self.playing()
        scene.agent("response.created", response={**body("r2", "in_progress"), "conversation_id": None})
        scene.speech()
        scene.finish(status="cancelled")
        scene.run(1.0)
        assert not scene.asked("response.cancel")


class TestOnARealCall:
    def test_a_call_is_the_media_of_a_conversation(self) -> None:
        rig = Rig()
        client, call_id = rig.call()
        call = rig.core.call(call_id)
        assert call is not None
        conversation = Conversation(call.media)
        conversation.joined(CLIENT, rig.now)
        conversation.agent_ready(True, rig.now)
        conversation.receive_agent_event(realtime.AudioDelta("r1", "i1", 0, bytes(48_000 * 4)), rig.now)
        assert conversation.next_deadline() is None  # nobody is connected yet
        rig.run(1.0)
        conversation.handle_timeout(rig.now)
        heard = len(client.heard)
        conversation.receive_client_event_untrusted(
            '{"type":"output_audio_buffer.clear"}', rig.now, source=CLIENT
        )
        rig.changed(call_id)
        stopped = rig.now
        rig.run(1.0)
        assert heard and client.heard[-1].at <= stopped + rig.one_way
        events = [json.loads(out[0])["type"] for out in iter(conversation.poll_to_clients, None)]
        assert events[1:] == ["output_audio_buffer.started", "output_audio_buffer.cleared"]
        item = conversation.poll_to_agent()
        truncate = json.loads(item.data if item is not None else b"{}")
        assert 0 < truncate["audio_end_ms"] < 20 * (heard + 1)

    def test_the_end_of_a_call_is_no_error(self) -> None:
        rig = Rig()
        _, call_id = rig.call()
        call = rig.core.call(call_id)
        assert call is not None
        conversation = Conversation(call.media)
        rig.run(1.0)
        delta = realtime.AudioDelta("r1", "i1", 0, bytes(9600))
        conversation.receive_agent_event(delta, rig.now)
        rig.core.close(call_id, rig.now, EndReason.HANGUP)
        conversation.receive_agent_event(delta, rig.now)
        conversation.receive_agent_event(realtime.AudioDone("r1", "i1", b'{"type":"x"}'), rig.now)
        for kind in ("input_audio_buffer.commit", "input_audio_buffer.clear", "output_audio_buffer.clear"):
            conversation.receive_client_event_untrusted(json.dumps({"type": kind}), rig.now, source=CLIENT)
        conversation.handle_timeout(rig.now)
        conversation.agent_lost(rig.now, "agent_closed")


class TestPushToTalk:
    def test_commit_comes_behind_what_was_said_before_it(self) -> None:
        scene = Scene()
        scene.packet()
        scene.packet(skip=1)  # a gap: this one is held
        assert [e["samples"] for e in scene.asked("audio")] == [480]
        scene.say("input_audio_buffer.commit")
        scene.packet()
        kinds = [e["type"] for e in scene.upstream]
        commit = kinds.index("input_audio_buffer.commit")
        before = sum(e["samples"] for e in scene.upstream[:commit])
        assert before == 3 * 480 and kinds[commit + 1 :] == ["audio"]

    def test_clear_drops_it(self) -> None:
        scene = Scene()
        scene.packet()
        scene.packet(skip=1)
        scene.say("input_audio_buffer.clear")
        scene.packet()
        assert [e["type"] for e in scene.upstream] == ["audio", "input_audio_buffer.clear", "audio"]
        scene.run(0.4)  # longer than any gap waits, and too short to be taken for a mute
        assert sum(e["samples"] for e in scene.asked("audio")) == 960

    def test_events_before_the_agent_is_ready_keep_their_place(self) -> None:
        scene = Scene(configured=None)
        scene.say("input_audio_buffer.clear")
        scene.packet()
        scene.say("input_audio_buffer.commit")
        scene.packet()
        kinds = ["input_audio_buffer.clear", "audio", "input_audio_buffer.commit", "audio"]
        assert [e["type"] for e in scene.upstream] == kinds

    def test_appends_of_a_client(self) -> None:
        scene = Scene()
        scene.say("input_audio_buffer.append", audio=AUDIO)
        assert scene.upstream == [{"type": "input_audio_buffer.append", "audio": AUDIO}]
        formats = {"type": "realtime", "audio": {"input": {"format": {"type": "audio/pcmu"}}}}
        scene.say("session.update", session=formats)
        scene.say("input_audio_buffer.append", audio=AUDIO, event_id="a")
        assert scene.to_client[-1]["error"]["event_id"] == "a"


class TestBadInput:
    @pytest.mark.parametrize(
        ("text", "code"),
        [
            ("", "client_event_json"),
            ("{", "client_event_json"),
            (b'{"type":"response.create","x":"\xff"}', "client_event_json"),
            ('{"type":"x","y":"\ud800"}', "client_event_json"),
            (b'{"type":"input_audio_buffer.append","audio":"","x":"\xff"}', "client_event_json"),
            ("[1]", "client_event_fields"),
            ('"x"', "client_event_fields"),
            ("{}", "invalid_type"),
            ('{"type":3}', "invalid_type"),
            ('{"type":"x","y":' + "[" * 100 + "]" * 100 + "}", "client_event_depth"),
            ('{"type":"session.update","session":' + '{"a":' * 100 + "1" + "}" * 101, "client_event_depth"),
            (
                '{"type":"input_audio_buffer.append","audio":' + "[" * 100 + "]" * 100 + "}",
                "client_event_depth",
            ),
            ('{"type":"x","y":' + "[" * 100_000, "client_event_json"),
            ('{"type":"session.update"}', "missing_required_parameter"),
            (b" " * (realtime.MAX_EVENT_BYTES + 1), "client_event_size"),
        ],
    )
    def test_is_answered(self, text: str | bytes, code: str) -> None:
        scene = Scene()
        scene.say_raw(text)
        assert scene.to_client[-1]["error"]["code"] == code
        assert not scene.upstream
        assert scene.conversation.statistics()[f"refused_{code}"] == 1

    def test_an_unknown_type_is_the_agents_to_judge(self) -> None:
        scene = Scene(parrot={})
        scene.say_raw('{"type":"vendor.wish","event_id":"v"}')
        assert scene.to_client[-1]["error"]["event_id"] == "v"

    def test_answers_are_few_when_there_is_much(self) -> None:
        scene = Scene()
        for _ in range(20_000):
            scene.say_raw("{")
        assert len(scene.of("error")) == 20
        assert scene.conversation.statistics()["errors_not_sent"] == 19_980

    def test_a_flood_is_cut(self) -> None:
        scene = Scene()
        for _ in range(10_000):
            scene.conversation.receive_client_event_untrusted('{"type":"x"}', scene.now, source=CLIENT)
        scene._drain()
        assert len(scene.upstream) == 4000

    def test_one_sides_flood_is_not_the_others(self) -> None:
        scene = Scene()
        scene.conversation.joined(SIDEBAND, scene.now)
        for _ in range(10_000):
            scene.conversation.receive_client_event_untrusted("{", scene.now, source=CLIENT)
        scene.say("response.cancel", source=SIDEBAND)
        assert scene.asked("response.cancel")

    def test_too_much_before_the_agent_is_there(self) -> None:
        scene = Scene(configured=None)
        for _ in range(MAX_EARLY_EVENTS + 1):
            scene.say_raw('{"type":"x"}')
        assert len(scene.upstream) == MAX_EARLY_EVENTS
        assert scene.to_client[-1]["error"]["code"] == "agent_not_ready"


class TestAgentLost:
    def test_everything_is_ended(self) -> None:
        scene = Scene()
        scene.begin()
        scene.delta(4.0)
        scene.begin("r2", "i2")
        scene.say("response.cancel", response_id="r2")
        scene.say("session.update", session={"type": "realtime"}, event_id="u")
        scene.run(1.0)
        scene.conversation.agent_lost(scene.now, "agent_closed")
        scene._drain()
        types = scene.types()[-5:]
        assert types == [
            "output_audio_buffer.cleared",
            "response.done",
            "response.done",
            "error",
            "error",
        ]
        failed, cancelled, unanswered, reason = scene.to_client[-4:]
        assert failed["response"]["status"] == "failed"
        assert failed["response"]["status_details"]["error"]["code"] == "agent_closed"
        assert cancelled["response"]["status_details"]["reason"] == "client_cancelled"
        assert unanswered["error"]["event_id"] == "u"
        assert reason["error"]["code"] == "agent_lost" and "agent_closed" in reason["error"]["message"]
        scene.say("response.create", event_id="late")
        assert scene.to_client[-1]["error"]["event_id"] == "late"
        scene.conversation.agent_lost(scene.now, "again")
        scene.agent("response.done", response=body("r1", "completed"))
        scene.run(10.0)
        assert scene.types().count("response.done") == 2 and scene.conversation.next_deadline() is None

    def test_details_of_a_response_are_kept(self) -> None:
        scene = Scene()
        response = {**body("r1", "in_progress"), "metadata": {"topic": "x"}, "output_modalities": ["audio"]}
        scene.agent("response.created", response=response)
        scene.conversation.agent_lost(scene.now, "agent_closed")
        scene._drain()
        assert scene.of("response.done")[0]["response"]["metadata"] == {"topic": "x"}
