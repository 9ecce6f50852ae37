"""What a client makes of packets, against sequences written by hand. Times are seconds, frames are 20 ms."""

from __future__ import annotations

import pytest

from voicegate.load.figures import Figures
from voicegate.load.reception import FRAME_SECONDS, GRID_SECONDS, Reception

START = 100.0
FRAME = 960


def hear(
    reception: Reception, places: list[int], *, begin: float = START, late: dict[int, float] | None = None
) -> None:
    """The frames of these places of one stream, each at its time and `late` by so much."""
    for place in places:
        at = begin + place * FRAME_SECONDS + (late or {}).get(place, 0.0)
        reception.packet((65_530 + place) & 0xFFFF, (0xFFFFF000 + place * FRAME) & 0xFFFFFFFF, at)


def milliseconds(value: float | None) -> float | None:
    return None if value is None else round(value * 1000, 1)


def test_an_even_stream_across_both_wraps() -> None:
    figures = Figures()
    reception = Reception(figures)
    hear(reception, list(range(20)))
    assert figures.counts["spurts"] == 1
    assert figures.deviation.count == 19 and figures.deviation.largest < 1e-6
    assert milliseconds(reception.longest_gap) == 20.0


def test_one_late_packet_is_a_deviation_and_a_gap() -> None:
    figures = Figures()
    reception = Reception(figures)
    hear(reception, list(range(10)), late={4: 0.012})
    assert milliseconds(figures.deviation.largest) == 12.0
    assert milliseconds(figures.deviation.percentile(0.5)) == 0.0
    assert milliseconds(reception.longest_gap) == 32.0


def test_a_lost_packet_is_a_gap_and_no_deviation() -> None:
    figures = Figures()
    reception = Reception(figures)
    hear(reception, [0, 1, 2, 5, 6])
    assert figures.counts["spurts"] == 1
    assert milliseconds(reception.longest_gap) == 60.0
    assert figures.deviation.largest < 1e-6


def test_a_burst_of_forty_lost_packets_is_no_pause() -> None:
    figures = Figures()
    reception = Reception(figures)
    hear(reception, [0, 1, 42, 43])
    assert figures.counts["spurts"] == 1 and milliseconds(reception.longest_gap) == 820.0


def test_an_overtaken_packet_counts_by_its_own_time() -> None:
    figures = Figures()
    reception = Reception(figures)
    hear(reception, [0, 1, 3, 2, 4], late={2: 0.025})
    assert milliseconds(figures.deviation.largest) == 25.0 and figures.deviation.count == 4
    assert figures.counts["spurts"] == 1


def test_a_pause_begins_a_spurt_and_is_no_gap() -> None:
    figures = Figures()
    reception = Reception(figures)
    hear(reception, [0, 1, 2])
    for place in range(3):  # the sequence goes on, the timestamps leave out a second
        reception.packet(
            (65_533 + place) & 0xFFFF,
            (0xFFFFF000 + (53 + place) * FRAME) & 0xFFFFFFFF,
            START + 9 + place * 0.02,
        )
    assert figures.counts["spurts"] == 2
    assert milliseconds(reception.longest_gap) == 20.0
    assert figures.deviation.largest < 1e-6, "the second spurt has a grid of its own"


def test_a_drifting_clock_does_not_add_up() -> None:
    figures = Figures()
    reception = Reception(figures)
    for place in range(int(60 / FRAME_SECONDS)):
        reception.packet(place & 0xFFFF, place * FRAME, START + place * FRAME_SECONDS * (1 + 50e-6))
    assert figures.deviation.largest == pytest.approx(GRID_SECONDS * 50e-6, rel=0.1)


def test_reply_latency_is_from_the_end_of_speech_to_the_next_spurt() -> None:
    figures = Figures()
    reception = Reception(figures)
    reception.speech_ended(START - 0.53)
    hear(reception, [0, 1, 2])
    assert figures.counts["turns"] == 1
    assert milliseconds(figures.reply.largest) == 530.0 and figures.reply.count == 1


def test_a_turn_without_reply_is_unanswered() -> None:
    figures = Figures()
    reception = Reception(figures)
    reception.speech_ended(START)
    reception.speech_ended(START + 5)
    assert figures.counts["turns"] == 2 and figures.counts["unanswered"] == 1
    assert figures.reply.count == 0


def test_who_speaks_already_gives_no_reply_latency() -> None:
    figures = Figures()
    reception = Reception(figures)
    hear(reception, [0, 1])
    reception.speech_ended(START + 0.03)
    hear(reception, [2, 3])
    assert figures.counts["overlapped"] == 1 and figures.reply.count == 0


def interrupted(stops_after: int, *, ahead: int = 0) -> Figures:
    """A reply that is interrupted 0.2 s in; `stops_after` more frames come, and `ahead` with the last."""
    figures = Figures()
    reception = Reception(figures, interrupt_after=0.2)
    reception.speech_ended(START - 0.5)
    for place in range(10 + stops_after + 1):
        now = START + place * FRAME_SECONDS
        hear(reception, [place])
        if reception.should_interrupt(now + 0.001):
            assert place == 10
            reception.interrupted(now + 0.001)
    for extra in range(ahead):
        place = 11 + stops_after + extra
        hear(reception, [place], late={place: -FRAME_SECONDS * (1 + extra)})
    for tick in range(40):
        assert not reception.should_interrupt(START + 0.3 + tick * FRAME_SECONDS)
    assert figures.counts["interruptions"] == 1
    return figures


def test_interrupted_at_once() -> None:
    figures = interrupted(0)
    # Nothing came any more; the last frame plays for another 19 ms.
    assert figures.stop.count == 1 and figures.stop.largest == 0.0
    assert milliseconds(figures.silence.percentile(1)) == 19.0


def test_interrupted_with_two_more_packets() -> None:
    figures = interrupted(2)
    assert milliseconds(figures.stop.largest) == 39.0
    assert milliseconds(figures.silence.largest) == 59.0


def test_what_was_sent_ahead_has_to_be_played() -> None:
    figures = interrupted(0, ahead=3)
    assert figures.stop.largest == 0.0
    assert milliseconds(figures.silence.largest) == 79.0


def test_a_reply_that_ended_by_itself_is_not_interrupted() -> None:
    figures = Figures()
    reception = Reception(figures, interrupt_after=1.0)
    reception.speech_ended(START - 0.5)
    hear(reception, [0, 1, 2])
    assert not any(reception.should_interrupt(START + tick * FRAME_SECONDS) for tick in range(100))
    assert not figures.counts["interruptions"]
