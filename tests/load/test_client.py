"""A light client and a transceiver on virtual time, with a bad network between them."""

from __future__ import annotations

import random

import pytest

from tests.support.rig import CLIENT_CERTIFICATE, Rig
from voicegate.load.channel import Wanted
from voicegate.load.client import LightClient
from voicegate.load.figures import Figures
from voicegate.load.impairment import Impairment, Quality
from voicegate.load.talk import TurnTalk, make_talk
from voicegate.media.codec import PCM_RATE
from voicegate.roles.transceiver.life import (
    EndReason,
)

TALK = make_talk(bytes(PCM_RATE), speech=0.5, pause=4.5)
"""The words do not matter: the agent is scripted."""


def join(rig: Rig, *, talk: TurnTalk = TALK, **options: object) -> tuple[LightClient, str]:
    client = LightClient(CLIENT_CERTIFICATE, random.Random(5), talk, **options)  # type: ignore[arg-type]
    return client, rig.join(client)


def lossy(quality: Quality, seed: int, rig: Rig, dropped: list[bytes]) -> object:
    path = Impairment(quality, random.Random(seed))

    def passes(data: bytes) -> bool:
        if path.deliver_at(rig.now) is None:
            dropped.append(data)
            return False
        return True

    return passes


def is_rtp(data: bytes) -> bool:
    return 128 <= data[0] < 192 and not 192 <= data[1] < 224


def test_set_up_takes_two_round_trips() -> None:
    rig = Rig(one_way=0.01)
    figures = Figures()
    client, _ = join(rig, figures=figures)
    begun = rig.now
    rig.run(1)
    stages = ["answered", "ice", "dtls", "connected"]
    assert [stage for stage in client.times if stage in stages] == ["answered", "ice", "dtls", "connected"]
    # The check, its answer with the ClientHello behind it, the flight, and Finished.
    assert client.times["connected"] - begun == pytest.approx(0.04, abs=0.001)
    assert client.counts["checks"] == 1


@pytest.mark.parametrize("seed", range(6))
def test_it_comes_up_through_a_fifth_of_loss_jitter_and_reorder(seed: int) -> None:
    rig = Rig(seed=seed)
    rig.jitter = 0.05
    lost: list[bytes] = []
    rig.to_core = lossy(Quality(loss=0.2), seed, rig, lost)  # type: ignore[assignment]
    rig.to_client = lossy(Quality(loss=0.2), seed + 100, rig, lost)  # type: ignore[assignment]
    client, _ = join(rig, channel=Wanted())
    rig.run(12)
    assert {"connected", "channel"} <= set(client.times) and not client.closed
    assert lost, "the path was bad"


def test_both_sides_agree_on_what_was_lost() -> None:
    rig = Rig()
    figures = Figures()
    client, call_id = join(rig, figures=figures)
    rig.run(1)
    rig.agent_ready(call_id)
    up: list[bytes] = []
    down: list[bytes] = []
    rig.to_core = lossy(Quality(loss=0.05), 1, rig, up)  # type: ignore[assignment]
    rig.to_client = lossy(Quality(loss=0.05, burst=3), 2, rig, down)  # type: ignore[assignment]
    rig.play(call_id, bytes(2 * PCM_RATE * 20))
    rig.run(20.5)
    rig.to_core = rig.to_client = lambda data: True
    rig.play(call_id, bytes(2 * PCM_RATE))
    rig.run(8)  # the reports of five to seven seconds later tell all of it

    quality = client.statistics()
    assert quality is not None and quality.round_trip == pytest.approx(0.02, abs=0.002)
    assert quality.sent_lost == sum(map(is_rtp, up)) > 20
    assert quality.received_lost == sum(map(is_rtp, down)) > 20
    assert client.counts["reports_about_us"]
    assert figures.deviation.largest < 0.0011, "what is lost does not move the grid"
    assert client.reception.longest_gap is not None and client.reception.longest_gap > 0.059


def test_a_turn_is_answered_and_interrupted() -> None:
    rig = Rig(one_way=0.01)
    figures = Figures()
    client, call_id = join(rig, figures=figures, channel=Wanted(), interrupt_after=0.6)
    rig.run(0.3)
    rig.agent_ready(call_id)
    connected = client.times["connected"]
    rig.run(connected + 0.48 + 0.7 - rig.now)
    rig.agent_begins(call_id)
    rig.agent_says(call_id, bytes(2 * PCM_RATE * 10))
    rig.run(3)
    assert figures.counts["turns"] == figures.counts["interruptions"] == 1
    # 0.48 s after the first packet the last one of the turn went out; the reply needs one way.
    assert figures.reply.largest == pytest.approx(0.71, abs=0.003)
    # The event needs one way, and the last packet of before that another.
    assert figures.stop.count == 1 and 0 < figures.stop.largest <= 0.0201
    assert figures.silence.largest <= 0.0401
    assert client.channel is not None
    assert client.channel.kinds["output_audio_buffer.cleared"] == 1
    assert rig.asked("response.cancel"), "the response was still being made"


def test_nobody_answers() -> None:
    rig = Rig()
    rig.to_core = lambda data: False
    client, _ = join(rig, setup_seconds=3.0)
    rig.run(2.9)
    assert not client.closed and client.counts["checks"] > 5
    rig.run(0.2)
    assert client.closed == "no connectivity check was answered"
    assert client.next_deadline() == float("inf")


def test_the_path_dies() -> None:
    rig = Rig()
    client, _ = join(rig)
    rig.run(5)
    rig.to_core = rig.to_client = lambda data: False
    answered = client.counts["checks_answered"]
    rig.run(26)
    assert not client.closed
    rig.run(5)
    assert client.closed == "consent expired" and client.counts["checks_answered"] == answered


def test_a_held_up_client_does_not_say_everything_at_once() -> None:
    rig = Rig()
    client, _ = join(rig)
    rig.run(1)
    while client.poll_transmit():
        pass
    rig.now += 3.0  # the process was stopped
    client.handle_timeout(rig.now)
    sent = 0
    while (out := client.poll_transmit()) is not None:
        sent += is_rtp(out[0])
    assert sent <= 11 and client.counts["frames_not_said"] >= 139
    rig.run(11)
    assert not client.closed
    quality = client.statistics()
    assert quality is not None and client.counts["reports_about_us"] >= 2
    assert quality.sent_lost == sent, "only what was not given to the network here is lost"


def test_the_far_end_hangs_up() -> None:
    rig = Rig()
    client, call_id = join(rig)
    rig.run(1)
    rig.core.close(call_id, rig.now, EndReason.HANGUP)
    rig._drain()
    rig.run(1)
    assert client.closed.startswith("far: ")


def test_garbage_is_counted() -> None:
    rig = Rig()
    client, _ = join(rig)
    rig.run(1)
    for length in range(60):
        for first in (0, 1, 22, 63, 64, 128, 191, 200, 255):
            client.receive_datagram(bytes([first, 200]) + bytes(length), ("192.0.2.9", 9), rig.now)
    client.receive_datagram(b"", ("192.0.2.9", 9), rig.now)
    assert client.counts["unexpected"] >= 100 and client.counts["srtp_auth"] >= 50
    rig.run(1)
    assert not client.closed
