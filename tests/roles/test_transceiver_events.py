"""Events over a call's data channel, through the whole transceiver core, on virtual time."""

from __future__ import annotations

import json

import pytest

from tests.roles.test_transceiver_core import frames, tone
from tests.support.light_channel import Wanted
from tests.support.light_client import LightCall
from tests.support.rig import Rig
from voicegate.proto.dcep import Open
from voicegate.proto.event_filter import EventFilter
from voicegate.roles.transceiver.life import (
    CLOSE_SECONDS,
    CallLimits,
    CallState,
    Ended,
    EndReason,
)
from voicegate.roles.transceiver.playback import CLIENT_DELAY

FRAME = 0.02
PATH = 0.01
"""One way, of the rig."""


def talking(rig: Rig, port: int = 5000, **options: object) -> tuple[LightCall, str]:
    """A call whose channel is open and whose agent is ready."""
    options.setdefault("channel", Wanted())
    client, call_id = rig.call(port, **options)  # type: ignore[arg-type]
    rig.agent_ready(call_id)
    rig.run(1.0)
    assert client.channel is not None and client.channel.opened, client.counts
    return client, call_id


def channel_of(client: LightCall):  # type: ignore[no-untyped-def]
    assert client.channel is not None
    return client.channel


def last_packet_before_silence(client: LightCall, begun: float) -> float:
    """Seconds from `begun` to the arrival of the last packet of the old audio."""
    return max((packet.at - begun for packet in client.heard), default=0.0)


class TestOpening:
    @pytest.mark.parametrize("setup", ["actpass", "active"])
    def test_the_channel_opens_and_says_what_the_session_is(self, setup: str) -> None:
        rig = Rig()
        client, _ = talking(rig, setup=setup)
        channel = channel_of(client)
        assert channel.types() == ["session.created"]
        rig.send_event(client, "session.update", session={"type": "realtime", "instructions": "Be brief."})
        rig.run(0.1)
        (asked,) = rig.asked("session.update")
        assert asked["session"]["instructions"] == "Be brief."
        rig.agent(_id(rig), "session.updated", session={"type": "realtime", "instructions": "Be brief."})
        rig.run(0.1)
        assert channel.types() == ["session.created", "session.updated"]
        assert channel.events[-1]["session"]["instructions"] == "Be brief."

    def test_the_channel_is_open_three_round_trips_after_the_handshake(self) -> None:
        rig = Rig(one_way=0.05)
        client, _ = talking(rig)
        after = channel_of(client).opened_at - client.times["connected"]
        assert after <= 3 * 0.1 + 1e-6, after

    def test_what_happens_before_the_channel_is_open_waits_for_it(self) -> None:
        rig = Rig()
        client, call_id = rig.call(channel=Wanted())
        rig.agent_ready(call_id)
        rig.agent_begins(call_id)
        rig.run(1.0)
        assert channel_of(client).types() == [
            "session.created",
            "response.created",
            "response.content_part.added",
        ]

    def test_without_application_section_there_is_no_channel(self) -> None:
        rig = Rig()
        client, call_id = rig.call()
        rig.agent_ready(call_id)
        rig.run(1.0)
        call = rig.core.call(call_id)
        assert client.channel is None and call is not None
        assert call.statistics()["channel"] is None and call.state is CallState.ACTIVE

    @pytest.mark.parametrize("dcid", [0, 7, 1000])
    def test_a_channel_agreed_on_in_advance(self, dcid: int) -> None:
        """No DCEP at all: it is usable one round trip earlier."""
        rig = Rig()
        client, call_id = talking(rig, channel=Wanted(dcid=dcid), wishes={"dcid": dcid})
        assert channel_of(client).types() == ["session.created"]
        rig.send_event(client, "response.create")
        rig.run(0.1)
        assert rig.asked("response.create")
        assert rig.core.close(call_id, rig.now, EndReason.HANGUP)
        rig.run(0.5)
        assert channel_of(client).closed

    @pytest.mark.parametrize(
        "wanted",
        [
            Open("anything", "json", ordered=False),
            Open("", max_retransmits=3),
            Open("ünïcode", lifetime=1.0, ordered=False),
        ],
        ids=["unordered", "retransmits", "lifetime"],
    )
    def test_any_label_and_kind(self, wanted: Open) -> None:
        rig = Rig()
        client, _ = talking(rig, channel=Wanted(open=wanted))
        rig.send_event(client, "input_audio_buffer.clear")
        rig.run(0.2)
        assert rig.asked("input_audio_buffer.clear")

    def test_oai_events_wins_over_an_earlier_channel(self) -> None:
        rig = Rig()
        client, call_id = talking(rig, channel=Wanted(open=Open("telemetry")))
        channel = channel_of(client)
        other = channel.channels.open(Open("oai-events"), rig.now)
        client.send_event("", rig.now)  # only to make it drain
        rig.changed(call_id)
        rig.run(0.3)
        channel.id, before = other, len(channel.events)
        rig.agent_begins(call_id)
        rig.run(0.2)
        call = rig.core.call(call_id)
        assert call is not None and call._channel is not None and call._channel._id == other
        assert "response.created" in channel.types()[before:]


class TestBargeIn:
    @pytest.mark.parametrize("how", ["speech_started", "output_audio_buffer.clear", "response.cancel"])
    def test_the_last_old_packet_leaves_within_a_frame(self, how: str) -> None:
        rig = Rig()
        client, call_id = talking(rig, frames=frames(5.0), loop=True)
        rig.agent_begins(call_id)
        rig.agent_says(call_id, tone(6.0))
        rig.agent_ends(call_id)
        rig.run(1.005)
        assert channel_of(client).types()[-1] == "response.done"
        begun = rig.now
        if how == "speech_started":
            rig.agent(call_id, "input_audio_buffer.speech_started", audio_start_ms=0, item_id="u1")
            allowed = PATH + FRAME
        else:
            rig.send_event(client, how)
            allowed = 2 * PATH + FRAME
        rig.run(2.0)
        assert last_packet_before_silence(client, begun) <= allowed + 1e-6
        (cleared,) = channel_of(client).of("output_audio_buffer.cleared")
        assert cleared["response_id"] == "r1"

    @pytest.mark.parametrize("spoken", [0.5, 1.0, 2.3])
    def test_the_agent_is_told_what_was_heard(self, spoken: float) -> None:
        rig = Rig()
        _client, call_id = talking(rig)
        begun = rig.now
        rig.agent_begins(call_id)
        rig.agent_says(call_id, tone(5.0))
        rig.agent_ends(call_id)
        rig.run(spoken)
        rig.agent(call_id, "input_audio_buffer.speech_started", audio_start_ms=0, item_id="u1")
        rig.run(0.1)
        (told,) = rig.asked("conversation.item.truncate")
        assert (told["item_id"], told["content_index"]) == ("i1", 0)
        heard_at_most = rig.now - 0.1 - begun
        assert heard_at_most - CLIENT_DELAY - 2 * FRAME <= told["audio_end_ms"] / 1000 <= heard_at_most

    def test_what_nobody_heard_is_deleted(self) -> None:
        rig = Rig()
        client, call_id = talking(rig)
        rig.agent_begins(call_id)
        rig.agent_says(call_id, tone(3.0))
        rig.run(0.03)
        rig.send_event(client, "output_audio_buffer.clear")
        rig.agent_ends(call_id)
        rig.run(0.1)
        assert not rig.asked("conversation.item.truncate")
        assert [event["item_id"] for event in rig.asked("conversation.item.delete")] == ["i1"]

    def test_started_and_stopped_tell_the_true_playout(self) -> None:
        rig = Rig()
        client, call_id = talking(rig)
        begun = rig.now
        rig.agent_begins(call_id)
        rig.agent_says(call_id, tone(1.0))  # at once, as models do
        rig.agent_ends(call_id)
        rig.run(2.0)
        channel = channel_of(client)
        assert channel.at("output_audio_buffer.started") == pytest.approx(begun + PATH, abs=FRAME)
        assert channel.at("response.done") == pytest.approx(begun + PATH, abs=FRAME)
        assert channel.at("output_audio_buffer.stopped") == pytest.approx(begun + PATH + 1.0, abs=2 * FRAME)
        assert not any("delta" in event for event in channel.events)


class TestPushToTalk:
    """A frame waits behind a gap in the receive buffer when the event comes."""

    def held(self, event: str) -> tuple[list[dict[str, object]], int]:
        """What the agent got, and the place of the event in it."""
        rig = Rig()
        client, _ = talking(rig, frames=frames(10.0), loop=True)
        rig.run(0.5)
        losing = iter([False])
        rig.to_core = lambda data: not 128 <= data[0] <= 191 or next(losing, True)
        sent = len(client.sent)
        while len(client.sent) < sent + 2:  # one is lost, one is held behind it
            rig.run(0.001)
        client.speak = False
        rig.run(0.001)
        rig.send_event(client, event)
        rig.run(0.4)  # longer than any gap waits, and too short to be taken for a mute
        places = [place for place, told in enumerate(rig.upstream) if told["type"] == event]
        assert len(places) == 1
        return rig.upstream, places[0]

    def test_a_commit_stays_behind_the_audio_before_it(self) -> None:
        upstream, place = self.held("input_audio_buffer.commit")
        assert [told["type"] for told in upstream[place:]] == ["input_audio_buffer.commit"]
        assert upstream[place - 1]["type"] == "audio", "what was held came out before it"

    def test_a_clear_drops_what_is_held(self) -> None:
        upstream, place = self.held("input_audio_buffer.clear")
        assert [told["type"] for told in upstream[place:]] == ["input_audio_buffer.clear"]
        committed, at = self.held("input_audio_buffer.commit")
        heard = [
            sum(t["samples"] for t in all_[:n] if t["type"] == "audio")
            for all_, n in ((upstream, place), (committed, at))
        ]  # type: ignore[misc]
        assert heard[1] - heard[0] >= 480, "what was held is the difference"


class TestEnd:
    def test_a_hang_up_closes_the_channel_before_dtls(self) -> None:
        rig = Rig()
        client, call_id = talking(rig)
        begun = rig.now
        rig.core.close(call_id, rig.now, EndReason.HANGUP)
        rig.run(1.0)
        channel = channel_of(client)
        assert channel.closed and client.closed == "far: remote_close"
        assert channel.closed_at < client.times["closed"]
        assert client.times["closed"] - begun <= CLOSE_SECONDS + PATH
        assert rig.events[-1] == (call_id, Ended(EndReason.HANGUP, ""))
        assert len(rig.core) == 0
        rig.run(60.0)
        assert rig.core.next_deadline() is None

    def test_a_client_that_does_not_answer_holds_the_end_up_no_longer(self) -> None:
        rig = Rig()
        _client, call_id = talking(rig)
        rig.to_core = lambda data: False
        rig.core.close(call_id, rig.now, EndReason.HANGUP)
        rig.run(CLOSE_SECONDS + 0.001)
        assert len(rig.core) == 0

    def test_an_agent_that_is_lost_is_told_before_the_end(self) -> None:
        rig = Rig()
        client, call_id = talking(rig)
        rig.agent_begins(call_id)
        rig.agent_says(call_id, tone(5.0))
        rig.run(1.0)
        rig.core.close(call_id, rig.now, EndReason.AGENT_LOST, "agent_closed")
        rig.run(1.0)
        channel = channel_of(client)
        ending = channel.types()[channel.types().index("output_audio_buffer.started") :]
        assert ending == [
            "output_audio_buffer.started",
            "output_audio_buffer.cleared",
            "response.done",
            "error",
        ]
        assert channel.events[-1]["error"]["code"] == "agent_lost"
        assert channel.of("response.done")[0]["response"]["status"] == "failed"
        assert channel.closed and client.closed == "far: remote_close"
        assert channel.times[-1] <= channel.closed_at <= client.times["closed"]

    def test_the_client_closes_its_channel_and_stays(self) -> None:
        rig = Rig()
        client, call_id = talking(rig, frames=frames(2.0), loop=True)
        channel = channel_of(client)
        channel.channels.close_channel(channel.id, rig.now)
        client._drain_channel()
        rig.run(0.5)
        before = len(rig.audio[call_id])
        rig.agent_begins(call_id)  # nobody to tell
        rig.run(1.0)
        assert channel.closed and not client.closed
        assert len(rig.audio[call_id]) - before == pytest.approx(48_000, abs=2000)

    def test_maximum_age_closes_it_as_well(self) -> None:
        rig = Rig(limits=CallLimits(max_seconds=5.0, idle_seconds=35.0))
        client, call_id = talking(rig)
        rig.run(6.0)
        assert channel_of(client).closed and (call_id, Ended(EndReason.MAX_AGE, "")) in rig.events


class TestFilters:
    def test_what_a_client_may_say_and_see(self) -> None:
        rig = Rig()
        wishes = {
            "client_events": EventFilter(["input_audio_buffer.*", "response.cancel"]),
            "server_events": EventFilter(["session.created", "output_audio_buffer.*"]),
        }
        client, call_id = talking(rig, wishes=wishes)
        assert rig.core.sideband_joined(call_id, "", rig.now)
        rig.send_event(client, "session.update", event_id="mine", session={"type": "realtime"})
        rig.send_event(client, "input_audio_buffer.clear")
        rig.agent_begins(call_id)
        rig.agent_says(call_id, tone(0.5))
        rig.agent_ends(call_id)
        rig.run(1.0)
        channel = channel_of(client)
        assert not rig.asked("session.update") and rig.asked("input_audio_buffer.clear")
        (error,) = channel.of("error")
        assert error["error"]["code"] == "event_not_allowed" and error["error"]["event_id"] == "mine"
        assert set(channel.types()) == {
            "session.created",
            "error",
            "output_audio_buffer.started",
            "output_audio_buffer.stopped",
        }
        sideband = [event["type"] for event in rig.to_sidebands]
        assert {"response.created", "response.done", "output_audio_buffer.started"} <= set(sideband)
        rig.sideband(call_id, "session.update", session={"type": "realtime", "instructions": "Hush."})
        assert rig.asked("session.update"), "a sideband is not filtered"


class TestSideband:
    def test_sees_and_sends_the_same_events(self) -> None:
        rig = Rig()
        client, call_id = rig.call(channel=Wanted())
        assert rig.core.sideband_joined(call_id, "", rig.now)
        rig.agent_ready(call_id)
        rig.run(1.0)
        rig.sideband(call_id, "session.update", session={"type": "realtime", "instructions": "Tools."})
        rig.agent(call_id, "session.updated", session={"type": "realtime", "instructions": "Tools."})
        rig.agent_begins(call_id)
        rig.agent_says(call_id, tone(3.0))
        rig.run(1.0)
        rig.sideband(call_id, "response.cancel", event_id="from-the-side")
        stopped = rig.now
        rig.run(1.0)
        assert last_packet_before_silence(client, stopped) <= PATH + FRAME
        seen = [event["type"] for event in rig.to_sidebands]
        assert seen == channel_of(client).types()
        assert {"session.created", "session.updated", "output_audio_buffer.cleared"} <= set(seen)
        assert rig.asked("response.cancel") and rig.asked("session.update")

    def test_an_error_goes_to_the_one_that_caused_it(self) -> None:
        rig = Rig()
        client, call_id = talking(rig)
        assert rig.core.sideband_joined(call_id, "", rig.now)
        rig.core.receive_sideband_event(call_id, "{not json", rig.now)
        rig._drain()
        rig.run(0.2)
        assert [event["type"] for event in rig.to_sidebands] == ["error"]
        assert not channel_of(client).of("error")

    def test_a_stranger_finds_nothing(self) -> None:
        rig = Rig()
        _, call_id = talking(rig, wishes={"key_id": "alice"})
        assert not rig.core.sideband_joined(call_id, "mallory", rig.now)
        assert not rig.core.sideband_joined("rtc_nothing", "alice", rig.now)
        assert rig.core.sideband_joined(call_id, "alice", rig.now)
        assert rig.core.sideband_joined(call_id, "", rig.now)
        assert rig.core.greeting(call_id) is not None


class TestBadMessages:
    @pytest.mark.parametrize(
        "message",
        ["", "{", "[]", '"text"', '{"type": 7}', '{"type": ""}', "[" * 5000, b"\xff\xfe", b""],
        ids=["empty", "cut", "list", "string", "number", "nothing", "deep", "binary", "empty binary"],
    )
    def test_is_answered_with_an_error(self, message: str | bytes) -> None:
        rig = Rig()
        client, _ = talking(rig)
        client.send_event(message, rig.now)
        rig._drain()
        rig.run(0.2)
        (error,) = channel_of(client).of("error")
        assert error["error"]["type"] == "invalid_request_error" and error["error"]["message"]
        assert not rig.upstream or rig.upstream[-1]["type"] == "audio"

    def test_the_answer_is_never_longer_than_the_client_takes(self) -> None:
        rig = Rig()
        client, call_id = talking(rig, channel=Wanted(max_message_size=2_000))
        channel = channel_of(client)
        words = {"type": "response.output_text.done", "text": "x" * 3000}
        place = {"response_id": "r", "item_id": "i", "output_index": 0, "content_index": 0}
        rig.agent_begins(call_id)
        rig.agent(call_id, **{"kind": words.pop("type"), **words, **place})  # type: ignore[arg-type]
        output = [{"id": "i", "type": "message", "role": "assistant", "content": []}] * 60
        done = {"id": "r1", "object": "realtime.response", "status": "completed", "output": output}
        rig.agent(call_id, "response.done", response=done)
        rig.run(0.5)
        assert all(len(json.dumps(event)) < 2_200 for event in channel.events)
        codes = [event["error"]["code"] for event in channel.of("error")]
        assert codes and set(codes) == {"event_too_long"}
        assert channel.of("response.done")[0]["response"]["output"] == []

    def test_a_session_that_is_too_long_is_told_in_short(self) -> None:
        """Clients wait for `session.updated`: one that they could not take must not be missing."""
        rig = Rig()
        client, call_id = talking(rig, channel=Wanted(max_message_size=2_000))
        session = {"type": "realtime", "model": "m", "instructions": "x" * 3_000}
        rig.send_event(client, "session.update", session=session)
        rig.run(0.2)
        assert rig.asked("session.update")[-1]["session"]["instructions"] == "x" * 3_000
        rig.agent(call_id, "session.updated", session=session)
        rig.run(0.2)
        (updated,) = channel_of(client).of("session.updated")
        assert updated["session"] == {"type": "realtime", "model": "m"}


class TestLossyPath:
    @pytest.mark.parametrize("seed", range(3))
    def test_every_event_arrives_once_and_in_order_both_ways(self, seed: int) -> None:
        rig = Rig(seed=seed)
        rig.jitter = 0.02
        rig.to_core = rig.to_client = lambda data: rig.random.random() > 0.05
        client, call_id = rig.call(channel=Wanted())
        rig.agent_ready(call_id)
        rig.run(8.0)
        channel = channel_of(client)
        assert channel.opened, client.counts
        sizes = [rig.random.choice((1, 100, 1_200, 20_000, 64_000)) for _ in range(120)]
        for number, size in enumerate(sizes):
            text = {
                "type": "message",
                "role": "user",
                "content": [{"type": "input_text", "text": "x" * size}],
            }
            item = {"id": f"c{number}", **text}
            rig.send_event(client, "conversation.item.create", event_id=f"e{number}", item=item)
            back = {"response_id": "r", "item_id": f"s{number}", "output_index": 0, "content_index": 0}
            rig.agent(call_id, "response.output_text.delta", delta="y" * size, **back)
            rig.run(0.4)
        rig.run(20.0)
        assert not client.closed
        got = rig.asked("conversation.item.create")
        assert [event["item"]["id"] for event in got] == [f"c{n}" for n in range(len(sizes))]
        assert [len(event["item"]["content"][0]["text"]) for event in got] == sizes
        came = channel.of("response.output_text.delta")
        assert [(event["item_id"], len(event["delta"])) for event in came] == [
            (f"s{n}", size) for n, size in enumerate(sizes)
        ]

    def test_a_client_that_takes_nothing_costs_bounded_memory(self) -> None:
        rig = Rig()
        _client, call_id = talking(rig)
        rig.to_client = lambda data: data[0] < 20 or data[0] > 63  # no DTLS: no SACK, no event
        place = {"response_id": "r", "item_id": "i", "output_index": 0, "content_index": 0}
        for _ in range(400):
            rig.agent(call_id, "response.output_text.delta", delta="z" * 16_000, **place)
        call = rig.core.call(call_id)
        assert call is not None and call._channel is not None
        assert call._channel._backlog_bytes <= 1 << 20
        assert call._channel.lost_events > 100
        assert call._channel._channels.statistics().association.outbound.buffered <= 1 << 20


def _id(rig: Rig) -> str:
    (call_id,) = rig.core.call_ids()
    return call_id
