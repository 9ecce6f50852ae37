"""A client and an agent that both speak G.711, through the whole transceiver core, on virtual time."""

from __future__ import annotations

import random
from collections.abc import Sequence
from typing import Any

import pytest

from tests.media.signals import best_match, tone
from tests.media.signals import frames as pcm_frames
from tests.roles.test_transceiver_core import frames as opus_frames
from tests.support import speech
from tests.support.light_channel import Wanted
from tests.support.light_client import LightCall
from tests.support.listening import plan
from tests.support.models import SERVER_EVENT
from tests.support.rig import Rig
from voicegate.media.companding import Law
from voicegate.media.g711 import G711Encoder
from voicegate.media.sound import PCM, PCMA, PCMU, Line, Sound
from voicegate.proto.realtime import audio_format
from voicegate.roles.transceiver.playback import CLIENT_DELAY

MULAW = {"input": audio_format("audio/pcmu", 8_000), "output": audio_format("audio/pcmu", 8_000)}


class Said:
    """These payloads from now on, and nothing after them."""

    def __init__(self, client: LightCall, payloads: Sequence[bytes] = ()) -> None:
        self.begin = client.voice.place
        self.payloads = payloads

    def payload(self, place: int) -> bytes | None:
        place -= self.begin
        return self.payloads[place] if place < len(self.payloads) else None

    def ends_at(self, place: int) -> bool:
        return False


class Kept:
    """A recording's tap."""

    def __init__(self) -> None:
        self.heard, self.said = bytearray(), bytearray()
        self.notes: list[bytes] = []

    def hear(self, pcm: bytes, at: float) -> None:
        self.heard += pcm

    def say(self, pcm: bytes, timestamp: int, at: float) -> None:
        self.said += pcm

    def note(self, source: str, event: bytes) -> None:
        self.notes.append(event)


def call(rig: Rig, codec: str = "0", formats: Any = MULAW, **wishes: Any) -> tuple[LightCall, str]:
    """A connected call of a client that knows only this codec, and says nothing yet."""
    client, call_id = rig.call(
        edit=lambda offer: offer.replace("SAVPF 111 0 8", f"SAVPF {codec}"),
        wishes={"formats": formats, **wishes},
        channel=Wanted(),
    )
    client.voice.talk = Said(client)
    if codec != "111":
        client.voice.frame_samples = 160
    rig.agent_ready(call_id)
    rig.run(1.0)
    assert client.channel is not None and client.channel.opened
    return client, call_id


def noise(count: int, seed: int = 1) -> list[bytes]:
    rng = random.Random(seed)
    return [rng.randbytes(160) for _ in range(count)]


@pytest.mark.parametrize(("codec", "sound"), [("0", PCMU), ("8", PCMA)])
@pytest.mark.parametrize("law", ["audio/pcmu", "audio/pcma"])
def test_every_bit_passes_both_ways(codec: str, sound: Sound, law: str) -> None:
    """On the line it is the client's law, whichever the agent's; see agents.realtime for the rest."""
    rig = Rig()
    agent = {"input": audio_format(law, 8_000), "output": audio_format(law, 8_000)}
    client, call_id = call(rig, codec, agent)
    assert rig.core.line(call_id) == Line(sound, sound)
    said, answer = noise(100), noise(100, 2)
    client.voice.talk = Said(client, said)
    rig.run(2.2)
    heard = bytes(rig.audio[call_id])
    assert heard.startswith(b"".join(said))
    assert set(heard[16_000:]) <= set(sound.silence)
    rig.agent_begins(call_id)
    for at in range(0, 16_000, 1_111):
        rig.agent_says(call_id, b"".join(answer)[at : at + 1_111])
    rig.agent_ends(call_id)
    rig.run(2.5)
    assert [packet.payload for packet in client.heard] == answer
    begin = client.heard[0].timestamp
    assert [(p.timestamp - begin) & 0xFFFFFFFF for p in client.heard] == [160 * n for n in range(100)]
    gaps = [b.at - a.at for a, b in zip(client.heard, client.heard[1:], strict=False)]
    assert min(gaps) == pytest.approx(0.02) == max(gaps)


def test_an_interruption_says_how_much_was_heard() -> None:
    rig = Rig()
    client, call_id = call(rig)
    rig.agent_begins(call_id)
    rig.agent_says(call_id, bytes(8_000 * 5))
    rig.run(2.0)
    rig.send_event(client, "output_audio_buffer.clear")
    rig.run(0.2)
    assert client.channel is not None
    assert "output_audio_buffer.cleared" in client.channel.types()
    rig.agent_ends(call_id)
    rig.run(0.2)
    (cut,) = rig.asked("conversation.item.truncate")
    assert cut["audio_end_ms"] == pytest.approx((2.0 - CLIENT_DELAY) * 1000, abs=41)
    assert len(client.heard) == pytest.approx(101, abs=2)


def test_started_and_stopped_tell_the_true_playout() -> None:
    rig = Rig()
    client, call_id = call(rig)
    begun = rig.now
    rig.agent_begins(call_id)
    rig.agent_says(call_id, bytes(8_000))
    rig.agent_ends(call_id)
    rig.run(2.0)
    assert client.channel is not None
    buffer = [event["type"] for event in client.channel.events if "output_audio_buffer" in event["type"]]
    assert buffer == ["output_audio_buffer.started", "output_audio_buffer.stopped"]
    stopped = client.times["output_audio_buffer.stopped"] - begun
    assert stopped == pytest.approx(1.0, abs=0.05)


def test_a_recording_has_both_sides_as_pcm() -> None:
    rig = Rig()
    client, call_id = call(rig)
    kept = Kept()
    rig.core.record(call_id, kept)
    encoder = G711Encoder(Law.PCMU)
    sent = tone(440, 1.0)
    coded = [encoder.encode(frame) for frame in pcm_frames(sent)]
    client.voice.talk = Said(client, coded)
    rig.agent_begins(call_id)
    rig.agent_says(call_id, b"".join(coded))
    rig.agent_ends(call_id)
    rig.run(1.3)
    for side in (kept.heard, kept.said):
        assert best_match(sent, bytes(side[:48_000]), longest_delay=300) == (96, pytest.approx(1, abs=0.001))
    assert len(kept.said) == 48_000
    assert any(b"response.created" in event for event in kept.notes)


def test_losses_are_concealed_and_the_rest_untouched() -> None:
    rig = Rig(seed=5)
    client, call_id = call(rig)
    said = noise(200)
    client.voice.talk = Said(client, said)
    rig.to_core = lambda data: data[0] < 128 or data[0] > 191 or rig.random.random() > 0.1
    rig.run(4.5)
    heard = bytes(rig.audio[call_id])
    came = sum(heard[160 * n : 160 * (n + 1)] == payload for n, payload in enumerate(said))
    received = receive_counts(rig, call_id)
    assert 150 < came < 200 and came == received["played"]
    assert received["concealed_samples"] == 480 * received["lost"]


@pytest.mark.parametrize(
    "payload", [b"", bytes(961), bytes(1200)], ids=["empty", "more than 120 ms", "most of a packet"]
)
def test_bad_payloads_are_counted_and_the_call_goes_on(payload: bytes) -> None:
    rig = Rig()
    client, call_id = call(rig)
    client.voice.talk = Said(client, [*noise(5), payload, *noise(5, 3)])
    rig.run(0.5)
    heard = bytes(rig.audio[call_id])
    assert heard.startswith(b"".join(noise(5)))
    assert b"".join(noise(5, 3)) in heard
    received = receive_counts(rig, call_id)
    assert received["corrupt"] + received["skipped"] == 1


def test_a_client_with_opus_is_pcm_on_the_line() -> None:
    rig = Rig()
    client, call_id = call(rig, "111")
    assert rig.core.line(call_id) == Line(PCM, PCM)
    client.voice.talk = Said(client, opus_frames(0.5))
    rig.run(0.6)
    assert len(rig.audio[call_id]) >= 24_000


def test_the_client_is_shown_its_own_format_and_the_agent_told_its() -> None:
    rig = Rig()
    client, _ = call(rig)
    asked = {"type": "realtime", "audio": {"input": {"format": {"type": "audio/pcm", "rate": 24_000}}}}
    rig.send_event(client, "session.update", session=asked)
    rig.run(0.1)
    (told,) = rig.asked("session.update")
    assert told["session"]["audio"]["input"]["format"] == {"type": "audio/pcmu"}
    rig.agent(call_of(rig), "session.updated", session=told["session"])
    rig.run(0.1)
    assert client.channel is not None
    event = client.channel.events[-1]
    assert event["type"] == "session.updated"
    assert event["session"]["audio"]["input"]["format"] == {"type": "audio/pcm", "rate": 24_000}
    SERVER_EVENT.validate_python(event)


def test_a_turn_that_is_detected_here_goes_to_the_agent_untouched() -> None:
    """The machine hears PCM, the agent the client's own bytes, from the turn's beginning on."""
    rig = Rig()
    client, call_id = call(rig, turns=plan("none"))
    encoder = G711Encoder(Law.PCMU)
    spoken = speech.to_pcm(speech.say("Say this back to me, please, every word of it.", 24_000))
    sound = bytes(48_000) + spoken + bytes(48_000 + -len(spoken) % 960)
    said = [encoder.encode(frame) for frame in pcm_frames(sound)]
    client.voice.talk = Said(client, said)
    rig.run(len(said) * 0.02 + 0.1)
    assert client.channel is not None
    events = {event["type"]: event for event in client.channel.events}
    begun = events["input_audio_buffer.speech_started"]["audio_start_ms"]
    ended = events["input_audio_buffer.speech_stopped"]["audio_end_ms"]
    assert rig.asked("input_audio_buffer.commit")
    heard = bytes(rig.audio[call_id])
    assert heard in b"".join(said)
    assert len(heard) / 8 == pytest.approx(ended - begun, abs=1)
    length = 1000 * len(spoken) / 48_000
    assert length < ended - begun < length + 1000


def receive_counts(rig: Rig, call_id: str) -> dict[str, int]:
    found = rig.core.call(call_id)
    assert found is not None
    audio = found.statistics()["audio"]
    assert isinstance(audio, dict)
    received: dict[str, int] = audio["receive"]
    return received


def call_of(rig: Rig) -> str:
    (call_id,) = rig.core.call_ids()
    return call_id
