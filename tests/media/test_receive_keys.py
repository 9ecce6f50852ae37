"""voicegate.media.receive: telephone events instead of sound are silence, to the sample."""

from __future__ import annotations

import pytest

from tests.media.signals import frames
from tests.media.test_receive import PT, START, CountingDecoder, line, packet
from voicegate.media.receive import MIN_WAIT, ReceiveBuffer
from voicegate.proto.rtp import RtpPacket

EVENTS = 110


def keyed(sequence: int, begun: int) -> RtpPacket:
    """A packet of a press that began with the `begun`-th frame: its timestamp stands still."""
    return RtpPacket(False, EVENTS, sequence & 0xFFFF, 960 * begun, 1, b"\1\x0a\1\0")


def new() -> ReceiveBuffer:
    return ReceiveBuffer(CountingDecoder(), PT, event_payload_type=EVENTS)


def press(buffer: ReceiveBuffer, count: int, *, lost: frozenset[int] = frozenset()) -> list[int]:
    """Three frames of sound, a press of `count` frames, three frames of sound; what came of it."""
    heard: list[int] = []
    for n in range(count + 6):
        now = START + 0.02 * n
        while (deadline := buffer.next_deadline()) is not None and deadline < now:
            buffer.handle_timeout(deadline)
        if n not in lost:
            buffer.push(keyed(n, 3) if 3 <= n < 3 + count else packet(n), now)
        heard += line(buffer)
    now = START + 0.02 * (count + 6)
    buffer.flush(now)
    return heard + line(buffer)


@pytest.mark.parametrize("count", [1, 5, 30, 300])
def test_a_press_is_as_much_silence(count: int) -> None:
    buffer = new()
    assert press(buffer, count) == [1, 2, 3, *[0] * count, count + 4, count + 5, count + 6]
    counts = buffer.statistics()
    assert counts.telephone_events == count and counts.lost == counts.skipped == counts.omitted_samples == 0
    assert counts.clock_jumps == counts.repaid_samples == 0


def test_the_silence_of_a_long_press_is_given_out_while_it_lasts() -> None:
    buffer = new()
    press(buffer, 100)
    assert buffer.counts.live_silence_samples >= 90 * 480


def test_timestamps_that_stand_still_are_no_jitter() -> None:
    buffer = new()
    press(buffer, 100)
    buffer.push(packet(107), START + 0.02 * 107)
    assert buffer.next_deadline() == pytest.approx(START + 0.02 * 107 + MIN_WAIT), "as on a quiet network"


@pytest.mark.parametrize("lost", [{3}, {4, 5}, {12}, {3, 4, 5, 6, 7, 8, 9, 10, 11, 12}])
def test_lost_packets_of_a_press_move_nothing(lost: set[int]) -> None:
    heard = press(new(), 10, lost=frozenset(lost))
    assert len(heard) == 16
    assert heard[:3] == [1, 2, 3] and heard[-3:] == [14, 15, 16]


def test_sound_that_comes_after_the_press_began_never_goes_back() -> None:
    buffer = new()
    for n in (0, 1, 3):
        buffer.push(packet(n), START + 0.02 * n)
    buffer.push(keyed(4, 4), START + 0.08)
    buffer.handle_timeout(START + 0.2)
    before = line(buffer)
    assert before[:2] == [1, 2] and before[3] == 4
    buffer.push(packet(2), START + 0.21)
    buffer.push(keyed(5, 4), START + 0.22)
    assert buffer.counts.late == 1
    assert set(line(buffer)) <= {0}


def test_sound_beside_a_press_is_heard() -> None:
    """Gateways may send both (RFC 4733 section 2.1 asks for the same sequence numbers)."""
    buffer = new()
    for n in range(20):
        buffer.push(keyed(2 * n, 3), START + 0.02 * n)
        buffer.push(packet(n)._replace(sequence=2 * n + 1), START + 0.02 * n)
    assert len(frames(b"".join(iter(buffer.poll_pcm, None)))) == 20
    assert buffer.counts.silence_samples == 0


def test_a_call_may_begin_with_a_press() -> None:
    buffer = new()
    for n in range(5):
        buffer.push(keyed(n, 0), START + 0.02 * n)
    buffer.push(packet(5), START + 0.1)
    assert line(buffer) == [0, 0, 0, 0, 0, 6]
