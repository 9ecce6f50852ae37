"""Keys of a client's keypad, through the whole transceiver core, on virtual time."""

from __future__ import annotations

import pytest

from tests.roles.test_transceiver_core import frames
from tests.roles.test_transceiver_events import channel_of, talking
from tests.support.light_channel import Wanted
from tests.support.light_client import LightCall
from tests.support.models import SERVER_EVENT
from tests.support.rig import Rig
from tests.support.scene import Scene
from voicegate.media.recording import Tap
from voicegate.proto.event_filter import EventFilter
from voicegate.proto.rtp import build_rtp
from voicegate.proto.telephone_event import KEYS, TelephoneEvent, build_telephone_event
from voicegate.roles.transceiver.audio import Press
from voicegate.roles.transceiver.conversation import KEYS_BURST

KIND = "input_audio_buffer.dtmf_event_received"
KEYPAD = 110


def with_keys(offer: str) -> str:
    return offer.replace(" 111 0 8\r\n", f" 111 0 8 {KEYPAD}\r\n").replace(
        "a=rtpmap:0 PCMU", f"a=rtpmap:{KEYPAD} telephone-event/48000\r\na=rtpmap:0 PCMU"
    )


def press(rig: Rig, client: LightCall, key: str, *, payload: bytes = b"", frames: int = 4) -> None:
    """As a browser does: the same timestamp, the last packet three times, among the call's sequence
    numbers."""
    assert client.srtp is not None
    voice = client.voice
    talk, voice.talk = voice.talk, Mute()
    begun = voice.timestamp
    for n in range(frames + 3):
        event = TelephoneEvent(KEYS.index(key), n >= frames, 10, 960 * min(n + 1, frames + 1))
        told = payload or build_telephone_event(event)
        packet = build_rtp(KEYPAD, n == 0, voice.number(), begun, voice.ssrc, told)
        client.send_raw(client.srtp.protect_rtp(packet))
        rig.run(0.02)  # in which the client's own place in time goes on
    voice.talk = talk


class Mute:
    def payload(self, place: int) -> bytes | None:
        return None

    def ends_at(self, place: int) -> bool:
        return False


class Notes(Tap):
    def __init__(self) -> None:
        self.notes: list[tuple[str, bytes]] = []

    def hear(self, pcm: bytes, now: float) -> None: ...

    def say(self, pcm: bytes, timestamp: int, now: float) -> None: ...

    def note(self, origin: str, event: bytes) -> None:
        self.notes.append((origin, event))


@pytest.mark.parametrize("talks", [False, True])
def test_each_press_is_told_once_to_client_and_sideband_and_not_to_the_agent(talks: bool) -> None:
    rig = Rig()
    client, call_id = talking(rig, edit=with_keys)
    rig.core.sideband_joined(call_id, "", rig.now)
    tap = Notes()
    rig.core.record(call_id, tap)
    before = len(rig.upstream)
    for key in "12#":
        if talks:
            client.say(frames(0.2))
            rig.run(0.3)
        press(rig, client, key)
    rig.run(0.2)
    told = [event for event in channel_of(client).events if event["type"] == KIND]
    assert [event["event"] for event in told] == ["1", "2", "#"]
    assert [event["event"] for event in rig.to_sidebands if event["type"] == KIND] == ["1", "2", "#"]
    for event in told:
        model = SERVER_EVENT.validate_python(event, strict=True)
        assert type(model).__name__ == "InputAudioBufferDtmfEventReceivedEvent"
        assert event["received_at"] == pytest.approx(rig.now + rig.core.wall_offset, abs=5)
        assert event["event_id"]
    assert {event["type"] for event in rig.upstream[before:]} <= {"audio"}
    assert [origin for origin, event in tap.notes if KIND.encode() in event] == ["voicegate"] * 3
    call = rig.core.call(call_id)
    assert call is not None
    audio = call.statistics()["audio"]
    assert isinstance(audio, dict)
    assert audio["keypad"]["presses"] == 3 and audio["keypad"]["repetitions"] == 18
    assert audio["receive"]["telephone_events"] == 21


def test_garbage_of_keys_ends_nothing() -> None:
    rig = Rig()
    client, call_id = talking(rig, edit=with_keys)
    for payload in (b"\0", bytes(1200), b"\xff" * 4):
        press(rig, client, "1", payload=payload)
    press(rig, client, "D")
    rig.run(0.2)
    assert [e["event"] for e in channel_of(client).events if e["type"] == KIND] == ["D"]
    call = rig.core.call(call_id)
    assert call is not None and call.ended is None
    audio = call.statistics()["audio"]
    assert isinstance(audio, dict)
    assert audio["keypad"]["malformed"] == 14 and audio["keypad"]["other_events"] == 1


def test_where_it_was_not_negotiated_it_is_a_packet_of_no_use() -> None:
    rig = Rig()
    client, call_id = talking(rig)
    press(rig, client, "1")
    assert KIND not in channel_of(client).types()
    call = rig.core.call(call_id)
    assert call is not None
    audio = call.statistics()["audio"]
    assert isinstance(audio, dict)
    assert audio["receive"]["skipped"] == 7


def test_a_key_may_be_kept_from_the_client() -> None:
    rig = Rig()
    wishes = {"server_events": EventFilter(("session.*",))}
    client, call_id = talking(rig, edit=with_keys, channel=Wanted(), wishes=wishes)
    rig.core.sideband_joined(call_id, "", rig.now)
    press(rig, client, "7")
    rig.run(0.1)
    assert KIND not in channel_of(client).types()
    assert [event["event"] for event in rig.to_sidebands if event["type"] == KIND] == ["7"]


def test_a_client_that_presses_without_end_is_heeded_as_fast_as_one_can_type() -> None:
    scene = Scene()
    for n in range(1000):
        scene.conversation.key_pressed(Press("1", 1.8e9), scene.now + n / 1000)
    scene.run(0)
    told = [event for event in scene.to_client if event["type"] == KIND]
    assert KEYS_BURST <= len(told) <= KEYS_BURST + 20
    assert scene.conversation.statistics()["keys_dropped"] == 1000 - len(told)
