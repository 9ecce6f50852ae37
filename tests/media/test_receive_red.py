"""voicegate.media.receive with RED (RFC 2198): copies take the place of missing packets at once."""

from __future__ import annotations

from hypothesis import given
from hypothesis import strategies as st

from tests.media.streams import PT, RED, START, red
from tests.media.test_receive import CONCEALED, CountingDecoder, line, packet, waits
from voicegate.media.opus import OpusDecoder
from voicegate.media.receive import ReceiveBuffer
from voicegate.proto.rtp import RtpPacket


def new() -> ReceiveBuffer:
    return ReceiveBuffer(CountingDecoder(), PT, red_payload_type=RED)


def frame(index: int) -> bytes:
    return (index + 1).to_bytes(2, "little")


def carrier(index: int, *distances: int, base: int = 0, time_base: int = 0) -> RtpPacket:
    """The index-th packet with copies of those that many before it."""
    copies = [(960 * distance, frame(index - distance)) for distance in sorted(distances, reverse=True)]
    plain = packet(index, base=base, time_base=time_base)
    return plain._replace(payload_type=RED, payload=red(frame(index), *copies))


def push(buffer: ReceiveBuffer, *packets: RtpPacket) -> list[int]:
    for each in packets:
        buffer.push(each, START + 0.02 * ((each.timestamp & 0xFFFFFFFF) / 960))
    return line(buffer)


def test_in_order_copies_are_not_heard() -> None:
    buffer = new()
    assert push(buffer, *(carrier(index, 1) for index in range(1, 30))) == list(range(2, 31))
    assert buffer.counts.recovered_red == buffer.counts.unplaced_red == 0


def test_a_copy_closes_a_gap_at_once() -> None:
    buffer = new()
    assert push(buffer, packet(0), carrier(2, 1)) == [1, 2, 3]
    assert not waits(buffer, START + 0.04)
    assert buffer.counts.recovered_red == 1
    assert buffer.counts.recovered_red_samples == 480
    assert buffer.counts.lost == 0


def test_the_packet_itself_is_a_duplicate_after_its_copy() -> None:
    buffer = new()
    assert push(buffer, packet(0), carrier(2, 1), packet(1), carrier(3, 1)) == [1, 2, 3, 4]
    assert buffer.counts.duplicate == 1


def test_two_copies_close_a_gap_of_two_across_the_wraps() -> None:
    buffer = new()
    for each in (
        packet(0, base=0xFFFE, time_base=0xFFFFFFFF),
        carrier(3, 1, 2, base=0xFFFE, time_base=0xFFFFFFFF),
    ):
        buffer.push(each, START)
    assert line(buffer) == [1, 2, 3, 4]
    assert buffer.counts.recovered_red == 2


def test_one_copy_in_a_gap_of_two_waits_for_the_other() -> None:
    buffer = new()
    assert push(buffer, packet(0), carrier(3, 1)) == [1]
    buffer.handle_timeout(START + 0.2)
    assert line(buffer) == [CONCEALED, 3, 4]
    assert buffer.counts.lost == buffer.counts.recovered_red == 1


def test_a_copy_from_two_packets_away_goes_where_it_belongs() -> None:
    buffer = new()
    assert push(buffer, packet(0), packet(2), carrier(3, 2)) == [1, 2, 3, 4]
    assert push(buffer, carrier(5, 2)) == []  # its copy is of packet 3, played already
    assert buffer.counts.recovered_red == 1


def test_a_copy_of_the_last_packet_before_a_pause() -> None:
    buffer = new()
    assert push(buffer, packet(0)) == [1]
    later = RtpPacket(False, RED, 2, 960 * 11, 1, red(frame(10), (960 * 10, frame(1))))
    assert push(buffer, later) == [2, *[0] * 9, 11]
    assert buffer.counts.concealed_samples == 0


def test_lies_cost_their_own_frame_only() -> None:
    buffer = new()
    push(buffer, packet(0))
    lies = [
        b"",
        b"\xff",
        b"\xef\x0f\x03\xffx",
        red(red(frame(9)), payload_type=RED),  # RED within RED
        red(frame(1), (960, frame(1)), payload_type=99),  # of another payload type
    ]
    for index, payload in enumerate(lies, 1):
        push(buffer, packet(index, payload=payload)._replace(payload_type=RED))
    assert push(buffer, packet(6)) == [*[CONCEALED] * 5, 7]
    assert buffer.counts.corrupt == 4
    assert buffer.counts.skipped == 1


def test_copies_that_fit_nowhere_are_counted() -> None:
    buffer = new()
    push(buffer, packet(0))
    lies = red(frame(3), (0x3FFF, frame(1)), (1000, frame(2)), (0, frame(2)))
    push(buffer, packet(3, payload=lies)._replace(payload_type=RED))
    buffer.handle_timeout(START + 0.3)
    assert line(buffer) == [CONCEALED, CONCEALED, 4]
    assert buffer.counts.unplaced_red == 2
    assert buffer.counts.recovered_red == 0


@given(
    st.lists(
        st.tuples(
            st.integers(0, 12),
            st.integers(0, 20),
            st.lists(st.tuples(st.integers(0, 0x3FFF), st.binary(max_size=8)), max_size=4),
            st.sampled_from([PT, RED, 9]),
            st.floats(0, 0.2),
        ),
        max_size=40,
    )
)
def test_any_redundancy_is_bounded(
    pushes: list[tuple[int, int, list[tuple[int, bytes]], int, float]],
) -> None:
    buffer = ReceiveBuffer(OpusDecoder(), PT, red_payload_type=RED)
    now, heard = START, 0
    for sequence, time, copies, inner, pause in pushes:
        now += pause
        buffer.handle_timeout(now)
        payload = red(b"\xf8abc", *copies, payload_type=inner)
        buffer.push(RtpPacket(False, RED, sequence, 960 * time, 1, payload), now)
        heard += sum(map(len, iter(buffer.poll_pcm, None))) // 2
    buffer.flush(now)
    assert heard <= (10 + 1.05 * (now - START)) * 24_000 + 2880
    assert buffer.counts.received == len(pushes)
