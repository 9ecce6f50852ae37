"""What is sent: the timer's arithmetic, the windows, retransmission and giving up, chunk by chunk."""

from __future__ import annotations

import pytest

from voicegate.proto.errors import BadPacket
from voicegate.proto.sctp import wire
from voicegate.proto.sctp.congestion import INITIAL_WINDOW, MAXIMUM_WINDOW, MINIMUM_THRESHOLD, Congestion
from voicegate.proto.sctp.outbound import MAX_SKIPPED_STREAMS, Outbound
from voicegate.proto.sctp.rto import RTO_INITIAL, RTO_MAX, RTO_MIN, RetransmissionTimeout
from voicegate.proto.sctp.sendqueue import SEND_BUFFER, Outgoing
from voicegate.proto.sctp.wire import COMMON_HEADER, MAX_PACKET, ChunkType, Sack

ROOM = MAX_PACKET - COMMON_HEADER
WIDE = 1 << 30
FIRST = 1000


class Sender:
    """An Outbound with what it sends, decoded."""

    def __init__(self, window: int = WIDE, *, forward_tsn: bool = True) -> None:
        self.timeout = RetransmissionTimeout()
        self.outbound = Outbound(FIRST, self.timeout)
        self.outbound.open(window, forward_tsn)

    def queue(self, size: int, stream: int = 1, **options: object) -> None:
        settings: dict[str, object] = {"ordered": True, "repeats": None, "expiry": None} | options
        assert self.outbound.queue.add(Outgoing(stream, 53, bytes(size), **settings))  # type: ignore[arg-type]

    def sent(self, now: float, packets: int = 100) -> list[int]:
        """TSNs that leave, as offsets from the first; a FORWARD TSN is -1."""
        found = []
        for _ in range(packets):
            chunks: list[bytes] = []
            self.outbound.fill(chunks, ROOM, now)
            if not chunks:
                break
            assert sum(map(len, chunks)) <= ROOM
            for chunk in chunks:
                forward = chunk[0] == ChunkType.FORWARD_TSN
                found.append(-1 if forward else int.from_bytes(chunk[4:8], "big") - FIRST)
        return found

    def flags(self, now: float) -> list[int]:
        chunks: list[bytes] = []
        self.outbound.fill(chunks, ROOM, now)
        return [chunk[1] for chunk in chunks]

    def sack(self, cumulative: int, now: float, gaps: tuple[int, ...] = (), window: int = WIDE) -> bool:
        """Everything up to this offset has arrived."""
        return self.outbound.acknowledge(Sack(FIRST + cumulative, window, gaps), now)


def test_the_timeout_is_rfc_9260s() -> None:
    """Section 6.3.1: SRTT + 4 RTTVAR, with the first measurement's half as its variance."""
    timeout = RetransmissionTimeout()
    assert timeout.value == RTO_INITIAL
    timeout.measured(0.2)
    assert (timeout.round_trip, timeout.value) == (0.2, pytest.approx(0.6))
    timeout.measured(0.4)
    assert timeout.round_trip == pytest.approx(0.225)
    assert timeout.value == pytest.approx(0.225 + 4 * 0.125)
    for _ in range(200):
        timeout.measured(0.001)
    assert timeout.value == RTO_MIN
    for _ in range(20):
        timeout.back_off()
    assert timeout.value == RTO_MAX


def test_the_congestion_window_grows_halves_and_collapses() -> None:
    window = Congestion()
    window.acknowledged(1, MAX_PACKET, limited=False)
    assert window.window == INITIAL_WINDOW  # not used, not grown
    window.acknowledged(1, 5 * MAX_PACKET, limited=True)
    assert window.window == INITIAL_WINDOW + MAX_PACKET  # slow start: a packet an acknowledgement
    window.lost(10)
    window.lost(11)
    half = (INITIAL_WINDOW + MAX_PACKET) // 2
    assert window.window == half  # once an episode
    window.acknowledged(9, half, limited=True)
    assert window.window == half and window.recovering
    window.acknowledged(10, half - 1, limited=True)
    assert not window.recovering
    before = window.window
    window.acknowledged(12, before, limited=True)
    assert before < window.window <= before + MAX_PACKET
    window.timed_out()
    assert window.window == MAX_PACKET
    for tsn in range(100_000):
        window.acknowledged(tsn, MAX_PACKET, limited=True)
    assert window.window <= MAXIMUM_WINDOW
    window.timed_out()
    window.timed_out()
    assert window.window == MAX_PACKET
    assert MINIMUM_THRESHOLD == 4 * MAX_PACKET


def test_idle_time_fades_the_window_once_and_not_below_the_first() -> None:
    sender = Sender()
    now = 0.0
    for _ in range(40):
        sender.queue(20_000)
        last = max(sender.sent(now), default=None)
        now += 0.01
        if last is not None:
            sender.sack(last, now)
    grown = sender.outbound.statistics().congestion_window
    assert grown > 2 * INITIAL_WINDOW
    while not sender.outbound.idle:
        sender.sack(max(sender.sent(now)), now)
    sender.sent(now + 100.0)
    sender.queue(1)
    sender.sent(now + 200.0)
    assert sender.outbound.statistics().congestion_window == pytest.approx(grown, rel=0.55)
    assert sender.outbound.statistics().congestion_window >= INITIAL_WINDOW


def test_small_messages_share_a_packet_and_the_last_asks_for_its_sack() -> None:
    sender = Sender()
    for _ in range(3):
        sender.queue(10)
    assert sender.flags(0.0) == [0x03, 0x03, 0x0B]


def test_fragments() -> None:
    sender = Sender()
    sender.queue(3000, ordered=False)
    sender.queue(10)
    assert [flag for _ in range(3) for flag in sender.flags(0.0)] == [0x06, 0x04, 0x05, 0x0B]


def test_three_reports_of_a_gap_repeat_a_chunk_once() -> None:
    sender = Sender()
    for _ in range(8):
        sender.queue(1000)
    assert sender.sent(0.0) == list(range(8))
    for last in (2, 3):
        sender.sack(0, 0.1, (2, last))
        assert sender.sent(0.1) == []
    sender.sack(0, 0.1, (2, 4))
    assert sender.sent(0.1) == [1]
    assert sender.outbound.statistics().congestion_window == INITIAL_WINDOW // 2
    for last in (5, 6, 7):
        sender.sack(0, 0.2, (2, last))
    assert sender.sent(0.2) == []  # its second chance is the timer's
    assert sender.outbound.handle_timeout(1.0)
    assert sender.sent(1.0) == [1]


def test_a_sack_without_news_is_no_report() -> None:
    sender = Sender()
    for _ in range(4):
        sender.queue(1000)
    sender.sent(0.0)
    for _ in range(10):
        sender.sack(0, 0.1, (2, 2))
    assert sender.sent(0.1) == []


def test_the_timer_repeats_what_is_missing_slowly() -> None:
    sender = Sender()
    for _ in range(5):
        sender.queue(1000)
    sender.sent(0.0)
    sender.sack(-1, 0.05, (2, 2))
    assert not sender.outbound.handle_timeout(RTO_INITIAL - 0.01)
    assert sender.outbound.handle_timeout(RTO_INITIAL)
    assert sender.sent(RTO_INITIAL) == [0, 2]  # what one packet's window lets begin
    assert sender.outbound.statistics().congestion_window == MAX_PACKET
    assert sender.timeout.value == 2 * RTO_INITIAL


def test_a_gap_that_comes_back_is_sent_again() -> None:
    """RFC 9260 section 6.2.1: a receiver may renege."""
    sender = Sender()
    for _ in range(3):
        sender.queue(100)
    sender.sent(0.0)
    sender.sack(-1, 0.1, (1, 3))  # all three, only not cumulatively
    assert sender.outbound.handle_timeout(1.0)
    assert sender.sent(1.0) == [0, 1, 2]
    assert sender.sack(2, 1.1)
    assert sender.outbound.idle and sender.outbound.timer is None
    assert sender.outbound.statistics().in_flight == 0


def test_karns_rule() -> None:
    """A chunk that was repeated measures nothing."""
    sender = Sender()
    sender.queue(100)
    sender.sent(0.0)
    sender.outbound.handle_timeout(1.0)
    sender.sent(1.0)
    sender.sack(0, 1.05)
    assert sender.timeout.round_trip is None
    sender.queue(100)
    sender.sent(2.0)
    sender.sack(1, 2.05)
    assert sender.timeout.round_trip == pytest.approx(0.05)


def test_a_closed_window_gets_one_question_at_a_time() -> None:
    sender = Sender(window=0)
    for _ in range(3):
        sender.queue(500)
    assert sender.sent(0.0) == [0]
    assert sender.sack(-1, 0.1, window=0)  # an answer, though it acknowledges nothing
    assert sender.sent(0.1) == []
    window = sender.outbound.statistics().congestion_window
    assert sender.outbound.handle_timeout(5.0)
    assert sender.outbound.statistics().congestion_window == window  # no loss of the path's
    assert sender.sent(5.0) == [0]
    sender.sack(0, 5.1, window=10_000)
    assert sender.sent(5.1) == [1, 2]


def test_the_peers_window_is_obeyed() -> None:
    sender = Sender(window=2500)
    for _ in range(5):
        sender.queue(1000)
    assert sender.sent(0.0) == [0, 1]
    sender.sack(0, 0.1, window=2500)
    assert sender.sent(0.1) == [2]


def test_a_message_without_repeats_is_given_up_and_the_peer_told() -> None:
    sender = Sender()
    sender.queue(2500, repeats=0)
    sender.queue(10)
    assert sender.sent(0.0) == [0, 1, 2, 3]
    assert sender.outbound.handle_timeout(1.0)
    chunks: list[bytes] = []
    sender.outbound.fill(chunks, ROOM, 1.0)
    assert wire.parse_forward_tsn_untrusted(chunks[0][4:]) == (FIRST + 2, [(1, 0)])
    assert int.from_bytes(chunks[1][4:8], "big") == FIRST + 3
    assert sender.outbound.handle_timeout(10.0)
    assert sender.sent(10.0) == [-1, 3]  # FORWARD TSN may be lost, too
    sender.sack(3, 10.1)
    assert sender.outbound.idle
    assert sender.outbound.queue.buffered == 0


def test_a_peer_without_forward_tsn_gets_everything() -> None:
    """RFC 3758 section 3.3: then there is no partial reliability."""
    sender = Sender(forward_tsn=False)
    sender.queue(100, repeats=0, expiry=0.5)
    sender.sent(0.0)
    for now in (1.0, 5.0, 20.0):
        assert sender.outbound.handle_timeout(now)
        assert sender.sent(now) == [0]


def test_an_expired_message_that_never_left_costs_no_tsn() -> None:
    sender = Sender()
    sender.queue(100, expiry=1.0)
    sender.queue(100)
    assert sender.sent(2.0) == [0]
    sender.sack(0, 2.1)
    assert sender.outbound.idle
    assert sender.outbound.statistics().abandoned == 1


def test_forward_tsns_name_a_bounded_number_of_streams() -> None:
    sender = Sender()
    total = 3 * MAX_SKIPPED_STREAMS
    for stream in range(total):
        sender.queue(1, stream=stream, repeats=0)
    assert sender.sent(0.0) == list(range(total))
    assert sender.outbound.handle_timeout(1.0)
    reached = -1
    for step in range(3):
        chunks: list[bytes] = []
        sender.outbound.fill(chunks, ROOM, 1.0 + step)
        number, skipped = wire.parse_forward_tsn_untrusted(chunks[0][4:])
        assert len(skipped) == MAX_SKIPPED_STREAMS
        reached = number - FIRST
        sender.sack(reached, 1.0 + step)
    assert reached == total - 1
    assert sender.outbound.idle


@pytest.mark.parametrize("sack", [Sack(FIRST + 1, 0, ()), Sack(FIRST - 1, 0, (3, 3)), Sack(FIRST, 0, (1, 9))])
def test_a_sack_is_checked_before_it_changes_anything(sack: Sack) -> None:
    sender = Sender()
    sender.queue(100)
    sender.sent(0.0)
    before = sender.outbound.statistics()
    with pytest.raises(BadPacket, match="sctp_sack_unsent"):
        sender.outbound.acknowledge(sack, 0.1)
    assert sender.outbound.statistics() == before
    with pytest.raises(BadPacket, match="sctp_sack_unsent"):
        sender.outbound.acknowledge_cumulative(FIRST + 1, 0.1)
    sender.outbound.acknowledge_cumulative(FIRST, 0.1)
    assert sender.outbound.idle


def test_the_buffer_is_bounded_for_tiny_messages_too() -> None:
    sender = Sender()
    count = 0
    while sender.outbound.queue.add(Outgoing(1, 53, b"x", True, None, None)):
        count += 1
    assert count < SEND_BUFFER // 256
    assert sender.outbound.queue.waiting(1) == count
