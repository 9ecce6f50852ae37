"""A call's fast feedback with a real client on virtual time: what is agreed in the answer happens on the
wire."""

from __future__ import annotations

from typing import Any

from tests.roles.test_transceiver_core import frames, tone
from tests.support.light_client import LightCall
from tests.support.rig import Rig, address_of
from voicegate.proto import rtcp
from voicegate.proto.demux import is_rtcp
from voicegate.roles.transceiver.life import (
    EndReason,
)

FEEDBACK = "a=rtcp-fb:111 transport-cc\r\n"


def with_nack(offer: str) -> str:
    assert FEEDBACK in offer
    return offer.replace(FEEDBACK, FEEDBACK + "a=rtcp-fb:111 nack\r\n")


def with_numbers(offer: str) -> str:
    uri = "http://www.ietf.org/id/draft-holmer-rmcat-transport-wide-cc-extensions-01"
    return offer.replace("a=extmap:4 ", f"a=extmap:3 {uri}\r\na=rtcp-xr:rcvr-rtt=all\r\na=extmap:4 ")


def connected(rig: Rig, edit: Any, **options: object) -> tuple[LightCall, str]:
    client, call_id = rig.call(edit=edit, **options)
    rig.run(1.0)
    assert "connected" in client.times
    return client, call_id


def feedback_of(rig: Rig, call_id: str) -> dict[str, int]:
    call = rig.core.call(call_id)
    assert call is not None
    return dict(call.audio.rtcp_counts)


def send_rtcp(rig: Rig, client: LightCall, data: bytes) -> None:
    assert client.srtp is not None
    rig.inject(client.srtp.protect_rtcp(data), address_of(client))


def test_a_packet_the_client_lacks_comes_again_once() -> None:
    rig = Rig()
    client, call_id = connected(rig, with_nack)
    dropped: list[bytes] = []

    def lose_the_fifth(data: bytes) -> bool:
        if 0x80 <= data[0] < 0xC0 and not is_rtcp(data):
            dropped.append(data)
            return len(dropped) != 5
        return True

    rig.to_client = lose_the_fifth
    rig.play(call_id, tone(0.4))
    rig.run(0.2)
    missing = (client.heard[3].sequence + 1) & 0xFFFF
    assert missing not in {heard.sequence for heard in client.heard}
    ours = int.from_bytes(dropped[0][8:12], "big")
    nack = rtcp.build_nack(rtcp.Nack(client.ssrc, ours, (missing,)))
    send_rtcp(rig, client, nack)
    send_rtcp(rig, client, nack)
    rig.run(0.5)
    assert [heard.sequence for heard in client.heard].count(missing) == 1
    assert dropped.count(dropped[4]) == 2, "the same bytes, and not a third time"
    assert feedback_of(rig, call_id) == {
        "nacked": 2,
        "resent": 1,
        "requested": 0,
        "transport_feedback": 0,
        "extended_round_trips": 0,
    }
    assert rig.core.statistics()["rtcp"]["resent"] == 1
    rig.core.close(call_id, rig.now, EndReason.HANGUP)
    assert rig.core.statistics()["rtcp"]["resent"] == 1, "also of calls that have ended"


def test_what_was_not_agreed_is_not_sent_again() -> None:
    rig = Rig()
    client, call_id = connected(rig, lambda offer: offer)
    rig.play(call_id, tone(0.4))
    rig.run(0.2)
    call = rig.core.call(call_id)
    assert call is not None
    count = len(client.heard)
    nack = rtcp.build_nack(rtcp.Nack(client.ssrc, call.audio._ssrc, (client.heard[-1].sequence,)))
    send_rtcp(rig, client, nack)
    rig.run(1.0)
    assert len({heard.sequence for heard in client.heard}) == len(client.heard) > count
    assert feedback_of(rig, call_id)["resent"] == 0


def test_a_gap_is_asked_for_when_the_round_trip_is_known_and_short() -> None:
    rig = Rig(one_way=0.01)
    client, call_id = connected(
        rig, lambda offer: with_numbers(with_nack(offer)), frames=frames(0.5), loop=True
    )
    seen = 0

    def lose_every_tenth(data: bytes) -> bool:
        nonlocal seen
        if 0x80 <= data[0] < 0xC0 and not is_rtcp(data):
            seen += 1
            return seen % 10 != 0
        return True

    rig.to_core = lose_every_tenth
    rig.run(1.0)
    assert feedback_of(rig, call_id)["requested"] == 0, "no round trip has been measured"
    # The client answers our clock: it hears reports only, so it answers the reference time (RFC 3611).
    call = rig.core.call(call_id)
    assert call is not None
    middle, said_at = _wait_for_our_clock(rig, call)
    held = rig.now - said_at - 0.02
    delay = rtcp.Delay(call.audio._ssrc, middle, round(held * 65536))
    send_rtcp(rig, client, rtcp.build_extended_report(rtcp.ExtendedReport(client.ssrc, None, (delay,))))
    quality = call.audio.statistics()["quality"]
    assert isinstance(quality, dict)
    assert abs(quality["round_trip"] - 0.02) < 0.001
    before = client.counts.get("Nack", 0)
    rig.run(2.0)
    assert 8 <= client.counts.get("Nack", 0) - before <= 11
    assert feedback_of(rig, call_id)["extended_round_trips"] == 1


def _wait_for_our_clock(rig: Rig, call: Any) -> tuple[int, float]:
    said = call.audio._reporter._sending._said
    for _ in range(100):
        rig.run(0.1)
        if said:
            return said[-1]  # type: ignore[no-any-return]
    raise AssertionError("no report in 10 s")
