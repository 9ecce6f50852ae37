"""The transceiver's core with real clients on virtual time."""

from __future__ import annotations

import gc
import math
import struct
import weakref

import pytest

from tests.support.light_channel import Wanted
from tests.support.light_client import LightCall
from tests.support.listening import plan
from tests.support.rig import KEYS, PUBLIC, RELAY, Rig, address_of
from voicegate.media.opus import OpusEncoder
from voicegate.proto import link, rtcp, rtp, stun
from voicegate.proto.callid import open_call_id_untrusted
from voicegate.proto.errors import BadOffer
from voicegate.proto.ticket import expired
from voicegate.roles.transceiver.allocation import ENTROPY_LENGTH, Wishes
from voicegate.roles.transceiver.core import MAX_REMEMBERED, Overloaded
from voicegate.roles.transceiver.life import (
    CallLimits,
    Connected,
    Ended,
    EndReason,
)
from voicegate.roles.transceiver.turn_plan import NO_PLAN, TurnPlan


def tone(seconds: float, hertz: float = 440.0) -> bytes:
    """24 kHz s16le mono."""
    count = int(seconds * 24_000)
    return struct.pack(
        f"<{count}h", *(int(8000 * math.sin(2 * math.pi * hertz * i / 24_000)) for i in range(count))
    )


def frames(seconds: float) -> list[bytes]:
    encoder = OpusEncoder()
    pcm = tone(seconds)
    return [encoder.encode(pcm[at : at + 960]) for at in range(0, len(pcm) - 959, 960)]


def connected(rig: Rig, port: int = 5000, **options: object):  # type: ignore[no-untyped-def]
    client, call_id = rig.call(port, **options)
    rig.run(1.0)
    assert "connected" in client.times, client.counts
    return client, call_id


def check_of(client: LightCall) -> bytes:
    assert client.answer is not None
    return stun.binding_request(
        bytes(12),
        f"{client.answer.ufrag}:{client.ufrag}".encode(),
        client.answer.password.encode(),
        priority=1,
        tie_breaker=1,
        use_candidate=True,
    )


class TestSetup:
    def test_connects_and_names_its_owner(self) -> None:
        rig = Rig()
        _, call_id = connected(rig)
        assert [(call_id, Connected())] == rig.events
        assert open_call_id_untrusted(KEYS.seal, call_id) == (1, 7)

    @pytest.mark.parametrize("one_way", [0.0, 0.025, 0.05, 0.1])
    def test_takes_at_most_three_round_trips(self, one_way: float) -> None:
        rig = Rig(one_way=one_way)
        begun = rig.now
        client, _ = rig.call()
        rig.run(3.0)
        round_trips = (client.times["connected"] - begun) / (2 * one_way or 1)
        assert round_trips <= 3.0, client.times

    def test_does_not_wait_for_nomination(self) -> None:
        rig = Rig(one_way=0.05)
        begun = rig.now
        client, _ = rig.call(nominate_after=1.2)
        rig.run(3.0)
        assert client.times["connected"] - begun <= 0.3

    def test_passive_when_the_offer_forces_it(self) -> None:
        connected(Rig(), setup="active")

    def test_refuses_more_than_capacity(self) -> None:
        rig = Rig(max_calls=1)
        rig.call(5000)
        with pytest.raises(Overloaded):
            rig.call(5001)

    def test_a_bad_offer_leaves_nothing(self) -> None:
        rig = Rig()
        with pytest.raises(BadOffer):
            rig.core.allocate(Wishes("v=0", ("127.0.0.1:1",)), now=rig.now, entropy=bytes(ENTROPY_LENGTH))
        assert len(rig.core) == 0 and rig.core.next_deadline() is None

    def test_handshake_survives_loss(self) -> None:
        rig = Rig()
        rig.to_client = lambda data: rig.random.random() > 0.3
        client, _ = rig.call()
        rig.run(15.0)
        assert "connected" in client.times, client.counts


class TestMedia:
    def test_microphone_arrives_whole(self) -> None:
        rig = Rig()
        _, call_id = connected(rig, frames=frames(1.0))
        rig.run(1.0)
        heard = len(rig.audio[call_id]) / 48_000
        assert heard == pytest.approx(2.0, abs=0.1)

    def test_agent_is_played_on_the_grid(self) -> None:
        rig = Rig()
        client, call_id = connected(rig)
        rig.play(call_id, tone(1.0))
        rig.run(2.0)
        assert len(client.heard) == 50
        assert client.heard[0].marker and not any(p.marker for p in client.heard[1:])
        gaps = [b.at - a.at for a, b in zip(client.heard, client.heard[1:], strict=False)]
        assert max(gaps) == pytest.approx(0.02, abs=1e-6) and min(gaps) == pytest.approx(0.02, abs=1e-6)
        steps = {b.timestamp - a.timestamp for a, b in zip(client.heard, client.heard[1:], strict=False)}
        assert steps == {960}

    def test_what_the_agent_says_early_waits_for_the_client(self) -> None:
        rig = Rig()
        client, call_id = rig.call()
        rig.play(call_id, tone(0.2))
        rig.run(1.0)
        assert len(client.heard) == 10

    @pytest.mark.parametrize("direction", ["sendonly", "inactive"])
    def test_a_client_that_takes_no_audio_gets_none(self, direction: str) -> None:
        rig = Rig()
        client, call_id = connected(rig, edit=lambda offer: offer.replace("a=sendrecv", f"a={direction}"))
        rig.play(call_id, tone(1.0))
        rig.run(1.0)
        assert not client.heard

    def test_silence_is_sent_where_configured(self) -> None:
        rig = Rig()
        client, _ = connected(rig, wishes={"keep_warm": True})
        rig.run(4.0)
        assert len(client.heard) == pytest.approx(4.5 / 0.4, abs=2)
        gaps = [b.at - a.at for a, b in zip(client.heard, client.heard[1:], strict=False)]
        assert gaps == [pytest.approx(0.4)] * len(gaps)

    def test_stopping_is_immediate(self) -> None:
        rig = Rig()
        client, call_id = connected(rig)
        rig.play(call_id, tone(5.0))
        rig.run(1.0)
        call = rig.core.call(call_id)
        assert call is not None and call.media.stop_playing(rig.now)
        stopped = rig.now
        rig.changed(call_id)
        rig.run(2.0)
        assert client.heard[-1].at <= stopped + rig.one_way

    def test_reports_go_both_ways(self) -> None:
        rig = Rig()
        client, call_id = connected(rig, frames=frames(0.5))
        rig.play(call_id, tone(20.0))
        rig.run(20.0)
        assert client.reported_lost == 0

    def test_replayed_truncated_and_flipped_packets_cost_nothing(self) -> None:
        rig = Rig()
        client, call_id = connected(rig, frames=frames(3.0), loop=True)
        call = rig.core.call(call_id)
        assert call is not None
        good = client.last_protected
        address = address_of(client)
        rig.inject(good, address)
        for length in range(len(good)):
            rig.inject(good[:length], address)
        for bit in range(0, len(good) * 8, 7):
            flipped = bytearray(good)
            flipped[bit // 8] ^= 1 << bit % 8
            rig.inject(bytes(flipped), address)
        before = len(rig.audio[call_id])
        rig.run(1.0)
        assert len(rig.audio[call_id]) - before == pytest.approx(48_000, abs=2000)
        assert call.drops["srtp_auth"] and call.drops["srtp_short"] and call.drops["srtp_replay"]


class TestEnd:
    def test_hang_up_frees_everything(self) -> None:
        rig = Rig()
        client, call_id = connected(rig)
        assert rig.core.close(call_id, rig.now, EndReason.HANGUP)
        rig.run(0.1)
        assert client.closed == "far: remote_close"
        assert not rig.core.close(call_id, rig.now, EndReason.HANGUP)
        core = rig.core
        assert (len(core), len(core._by_ufrag), len(core._paths)) == (0, 0, 0)
        rig.run(60.0)
        assert core.next_deadline() is None

    @pytest.mark.parametrize("turns", [NO_PLAN, plan("none")])
    def test_nothing_keeps_a_call_that_has_ended(self, turns: TurnPlan) -> None:
        rig = Rig()
        _, call_id = rig.call(channel=Wanted(), wishes={"turns": turns})
        rig.run(1)
        rig.agent_ready(call_id)
        rig.agent_begins(call_id)
        rig.agent_says(call_id, bytes(24_000))
        rig.run(2)
        ended = weakref.ref(rig.core.call(call_id))
        assert ended() is not None
        gc.collect()
        gc.disable()  # what lies in a cycle stays for minutes, see `garbage`
        try:
            rig.core.close(call_id, rig.now, EndReason.HANGUP)
            rig.run(1)
            assert ended() is None, gc.get_referrers(ended())
        finally:
            gc.enable()

    def test_hang_up_in_the_last_half_round_trip_of_the_handshake(self) -> None:
        rig = Rig(one_way=0.05)
        client, call_id = rig.call()
        while "connected" not in client.times:
            rig.run(0.01)
        assert not rig.events, "the gateway does not know yet"
        assert rig.core.close(call_id, rig.now, EndReason.HANGUP)
        rig.run(0.2)
        assert client.closed == "far: remote_close"
        assert rig.events == [(call_id, Ended(EndReason.HANGUP, ""))] and len(rig.core) == 0

    def test_hang_up_on_a_handshake_that_goes_nowhere(self) -> None:
        rig = Rig()
        rig.to_client = lambda data: False
        _, call_id = rig.call()
        rig.run(0.5)
        rig.core.close(call_id, rig.now, EndReason.HANGUP)
        rig.run(0.5)
        assert rig.events == [(call_id, Ended(EndReason.HANGUP, ""))] and len(rig.core) == 0

    def test_the_relay_is_told_that_the_address_is_free(self) -> None:
        rig = Rig()
        client, call_id = connected(rig)
        rig.core.close(call_id, rig.now, EndReason.HANGUP)
        ((relay, datagram),) = rig.core.poll_transmits(rig.now)
        assert relay == RELAY
        *said, last = link.parse_frames_untrusted(datagram)
        assert len(said) == 2 and last == (address_of(client), b"")

    def test_the_client_closes(self) -> None:
        rig = Rig()
        client, call_id = connected(rig)
        client.close(rig.now)
        rig._drain()
        rig.run(0.1)
        assert rig.events[-1] == (call_id, Ended(EndReason.REMOTE_CLOSE, ""))

    def test_bye(self) -> None:
        rig = Rig()
        client, call_id = connected(rig)
        assert client.srtp is not None
        report = rtcp.build_receiver_report(rtcp.ReceiverReport(client.ssrc, ()))
        rig.inject(client.srtp.protect_rtcp(report + rtcp.build_bye([client.ssrc])), address_of(client))
        assert rig.events[-1] == (call_id, Ended(EndReason.BYE, ""))

    def test_silence(self) -> None:
        rig = Rig()
        client, call_id = connected(rig)
        del rig.clients[address_of(client)]
        rig.run(34.0)
        assert len(rig.core) == 1
        rig.run(3.0)
        assert rig.events[-1] == (call_id, Ended(EndReason.IDLE, ""))

    def test_maximum_age(self) -> None:
        rig = Rig(limits=CallLimits(max_seconds=10.0, idle_seconds=35.0))
        _, call_id = connected(rig)
        rig.run(10.0)
        assert rig.events[-1] == (call_id, Ended(EndReason.MAX_AGE, ""))

    def test_never_connected(self) -> None:
        rig = Rig()
        _, call_id = rig.call()
        rig.clients.clear()
        rig.run(31.0)
        assert rig.events == [(call_id, Ended(EndReason.SETUP_TIMEOUT, ""))]

    def test_wrong_fingerprint_gets_no_media(self) -> None:
        rig = Rig()
        client, call_id = rig.call(fingerprint=":".join(["AB"] * 32))
        rig.play(call_id, tone(1.0))
        rig.run(2.0)
        assert rig.events == [(call_id, Ended(EndReason.FINGERPRINT_MISMATCH, ""))]
        assert not client.heard and "connected" not in client.times

    def test_the_past_is_remembered_for_a_while_and_bounded(self) -> None:
        rig = Rig()
        first = ""
        for port in range(MAX_REMEMBERED + 5):
            _, call_id = rig.call(1000 + port)
            rig.clients.clear()
            first = first or call_id
            rig.core.close(call_id, rig.now, EndReason.HANGUP)
        status = rig.core.status(call_id, rig.now)
        assert status is not None and (status["status"], status["reason"]) == ("ended", "hangup")
        assert rig.core.status(first, rig.now) is None
        rig.run(61.0)
        assert rig.core.status(call_id, rig.now) is None

    def test_the_agent_may_speak_after_the_end(self) -> None:
        rig = Rig()
        _, call_id = connected(rig)
        call = rig.core.call(call_id)
        assert call is not None
        rig.core.close(call_id, rig.now, EndReason.HANGUP)
        call.media.play(tone(0.01), rig.now)
        call.media.end_of_audio(rig.now)
        assert not call.media.stop_playing(rig.now)

    def test_a_bug_ends_the_call_that_met_it_and_no_other(self, monkeypatch: pytest.MonkeyPatch) -> None:
        rig = Rig()
        _, healthy = connected(rig, 5000, frames=frames(3.0), loop=True)
        _, unlucky = connected(rig, 5001, frames=frames(3.0), loop=True)
        call = rig.core.call(unlucky)
        assert call is not None

        def fail(*_: object) -> None:
            raise ZeroDivisionError

        monkeypatch.setattr(call.audio, "receive_rtp", fail)
        before = len(rig.audio[healthy])
        rig.run(1.0)
        assert (unlucky, Ended(EndReason.INTERNAL_ERROR, "")) in rig.events
        failure = rig.core.poll_failure()
        assert failure is not None and failure[0] == unlucky and isinstance(failure[1], ZeroDivisionError)
        assert len(rig.core) == 1 and len(rig.audio[healthy]) - before == pytest.approx(48_000, abs=2000)

    def test_new_calls_work_after_the_machine_slept(self) -> None:
        rig = Rig()
        rig.core.wall_offset += 10 * 3600
        _, call_id = rig.call()
        assert rig.core.call(call_id) is not None
        ufrag = next(iter(rig.core._by_ufrag))
        assert not expired(KEYS.tickets.open_untrusted(ufrag), rig.now + rig.core.wall_offset)


class TestStrangers:
    def test_media_leaves_an_address_that_fell_silent(self) -> None:
        """The voice hammer: one packet from a spoofed address must not aim a stream at it for longer than
        consent lasts."""
        rig = Rig()
        client, call_id = connected(rig)
        call = rig.core.call(call_id)
        assert call is not None and client.answer is not None and client.srtp is not None
        victim = link.ClientAddress(bytes([198, 51, 100, 9, 1, 1]))
        rig.inject(check_of(client), victim)
        client.speak = False
        following = int.from_bytes(client.last_protected[2:4], "big") + 1
        packet = rtp.build_rtp(111, False, following, 9, client.ssrc, b"\xf8\xff\xfe")
        rig.inject(client.srtp.protect_rtp(packet), victim)
        assert call.client == victim
        rig.run(36.0)
        assert call.client == address_of(client) and len(rig.core) == 1

    def test_link_datagrams_without_our_tag(self) -> None:
        rig = Rig()
        client, _ = connected(rig)
        rig.inject(b"\x80" * 60, address_of(client), header=bytes([0x10, 0]) + bytes(8))
        rig.inject(b"\x80" * 60, address_of(client), relay="127.0.0.1:6666", header=rig.header(RELAY))
        assert rig.core.drops["link_stranger"] == 2

    def test_media_of_an_unknown_address(self) -> None:
        rig = Rig()
        rig.inject(b"\x80" * 60, address_of(rig.call()[0]))
        assert rig.core.drops["unknown_client"] == 1

    def test_a_check_from_elsewhere_does_not_move_media(self) -> None:
        rig = Rig()
        client, call_id = connected(rig)
        call = rig.core.call(call_id)
        assert call is not None and client.answer is not None
        thief = link.ClientAddress(bytes([198, 51, 100, 9, 1, 1]))
        rig.inject(check_of(client), thief)
        assert call.client == address_of(client)

    def test_roaming_follows_the_first_authenticated_packet(self) -> None:
        rig = Rig()
        client, call_id = connected(rig, frames=frames(5.0), loop=True)
        call = rig.core.call(call_id)
        assert call is not None
        del rig.clients[address_of(client)]
        client.local = ("192.0.2.1", 6000)
        rig.clients[address_of(client)] = client
        rig.run(5.0)
        assert call.client == address_of(client)

    def test_one_call_cannot_take_anothers_address(self) -> None:
        rig = Rig()
        victim, victim_id = connected(rig, 5000, frames=frames(5.0), loop=True)
        thief, _ = connected(rig, 5001)
        assert thief.answer is not None
        check = check_of(thief)
        before = len(rig.audio[victim_id])
        for _ in range(10):
            rig.inject(check, address_of(victim))
            rig.run(0.1)
        assert len(rig.audio[victim_id]) - before == pytest.approx(48_000, abs=2000)
        assert rig.core.drops["client_taken"] == 10

    def test_one_call_cannot_keep_an_address_it_only_checks_from(self) -> None:
        rig = Rig()
        thief, _ = connected(rig, 5001)
        newcomer = link.ClientAddress(bytes([192, 0, 2, 1]) + (5002).to_bytes(2, "big"))
        for _ in range(5):
            rig.inject(check_of(thief), newcomer)
            rig.run(0.1)
        connected(rig, 5002)

    def test_garbage_never_raises(self) -> None:
        rig = Rig()
        client, _ = connected(rig)
        for _ in range(2000):
            data = rig.random.randbytes(rig.random.randrange(1, 200))
            rig.inject(data, address_of(client))
            rig.core.receive_datagram(data, RELAY, rig.now)
        rig.run(1.0)
        assert len(rig.core) == 1
        assert PUBLIC
