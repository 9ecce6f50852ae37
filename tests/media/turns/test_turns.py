"""voicegate.media.turns.machine: a person's turn, its pauses and its end."""

from __future__ import annotations

from dataclasses import replace

import pytest

from tests.media.turns.calls import QUIET, START, VOICE, Call, ScriptedJudge, seconds
from voicegate.media.codec import FRAME_SECONDS, PCM_RATE
from voicegate.media.turns.decisions import (
    EagerEnd,
    IdleTimeout,
    JudgeAsked,
    PauseBegan,
    Resumed,
    SpeechStarted,
    TurnEnded,
    UserIdle,
    VerdictDropped,
)
from voicegate.media.turns.microphone import STALL
from voicegate.media.turns.plugins import Verdict
from voicegate.media.turns.settings import TurnSettings


def test_a_turn_begins_with_its_padding_and_ends_when_the_verdict_says() -> None:
    call = Call()
    call.quiet(1.0)
    call.voice(1.0)
    call.quiet(1.0)
    assert seconds(call.one(SpeechStarted).at) == pytest.approx(0.7)
    assert call.when(SpeechStarted) == pytest.approx(1.1)
    assert seconds(call.one(PauseBegan).at) == pytest.approx(2.0)
    ended = call.one(TurnEnded)
    assert (ended.reason, ended.pause_id, ended.eager) == ("scripted", call.one(PauseBegan).pause_id, False)
    assert ended.silence == pytest.approx(0.6)
    assert seconds(ended.at) == pytest.approx(2.6)
    assert call.when(TurnEnded) == pytest.approx(2.6)
    assert call.machine.next_deadline() is None


def test_a_click_begins_nothing_and_a_stop_consonant_is_no_pause() -> None:
    call = Call()
    for _ in range(10):
        call.quiet(0.2)
        call.voice(0.06)
    assert call.kinds() == []
    call.quiet(0.2)
    for _ in range(10):
        call.voice(0.12)
        call.quiet(0.08)
    assert call.kinds() == ["SpeechStarted"]


def test_the_judge_hears_all_and_is_asked_on_its_schedule() -> None:
    call = Call(judge=ScriptedJudge(2.0, schedule=(0.2, 0.5, 1.2)))
    call.quiet(0.5)
    call.voice(1.0)
    call.quiet(3.0)
    assert call.judge.frames == 225
    assert [pause.asked for pause in call.judge.asked] == [0, 1, 2]
    assert [pause.silence for pause in call.judge.asked] == pytest.approx([0.2, 0.5, 1.2])
    assert {pause.speech for pause in call.judge.asked} == {1.0}
    # The padding of 0.3 s, the speech of 1 s and the silence.
    assert [len(pause.audio()) / PCM_RATE / 2 for pause in call.judge.asked] == pytest.approx([1.5, 1.8, 2.5])
    assert call.judge.asked[0].audio().count(VOICE) == 50


def test_the_judge_gets_eight_seconds_and_no_more() -> None:
    call = Call()
    call.voice(20.0)
    call.quiet(0.3)
    assert len(call.judge.asked[0].audio()) == 8 * PCM_RATE * 2


def test_speech_voids_what_was_concluded_and_a_click_does_not() -> None:
    call = Call(judge=ScriptedJudge(0.6))
    call.voice(1.0)
    call.quiet(0.58)
    call.voice(0.5)
    assert call.one(Resumed).silence == pytest.approx(0.58)
    call.quiet(0.3)
    call.voice(0.02)
    call.quiet(0.5)
    assert call.kinds()[-1] == "TurnEnded"
    assert call.one(TurnEnded).silence == pytest.approx(
        0.6
    )  # counted from the last voice, not from the click
    told = [(what, pause.id, pytest.approx(pause.silence)) for what, pause in call.judge.told]
    assert told == [("resumed", 1, 0.58), ("ended", 2, 0.6)]


def test_a_turn_does_not_end_under_a_voice_that_has_just_begun() -> None:
    call = Call(judge=ScriptedJudge(0.6))
    call.voice(1.0)
    call.quiet(0.56)
    call.voice(0.4)
    assert call.all(TurnEnded) == []
    assert call.one(Resumed).silence == pytest.approx(0.56)


def test_a_verdict_is_good_for_its_own_pause_only() -> None:
    call = Call(judge=ScriptedJudge(inline=False))
    call.voice(1.0)
    call.quiet(0.4)
    asked = call.one(JudgeAsked).pause
    call.voice(0.4)
    call.quiet(0.4)
    late = Verdict(asked.id, 1.0, 0.0, "late")
    call.machine.take_verdict(late, call.now)
    assert call.one(VerdictDropped).verdict == late
    assert call.all(TurnEnded) == []
    current = call.all(PauseBegan)[-1].pause_id
    call.machine.take_verdict(Verdict(current, 1.0, 0.0, "sure"), call.now)
    assert call.one(TurnEnded).reason == "sure"
    call.machine.take_verdict(Verdict(current, 1.0, 0.0, "twice"), call.now)
    assert call.all(VerdictDropped)[-1].verdict.reason == "twice"
    assert len(call.all(TurnEnded)) == 1


def test_a_later_verdict_takes_back_an_earlier_one() -> None:
    call = Call(judge=ScriptedJudge(inline=False))
    call.voice(1.0)
    call.quiet(0.3)
    pause = call.one(PauseBegan).pause_id
    call.machine.take_verdict(Verdict(pause, 0.9, 0.5, "sure"), call.now)
    call.machine.take_verdict(Verdict(pause, 0.1, 3.0, "unsure"), call.now)
    call.quiet(2.0)
    assert call.all(TurnEnded) == []
    call.quiet(1.0)
    assert call.one(TurnEnded).reason == "unsure"


@pytest.mark.parametrize("hold", [float("inf"), float("nan"), 60.0])
def test_no_verdict_holds_a_turn_beyond_the_ceiling(hold: float) -> None:
    call = Call(TurnSettings(max_silence=2.0), ScriptedJudge(hold))
    call.voice(1.0)
    call.quiet(5.0)
    assert call.one(TurnEnded).reason == "max_silence"
    assert call.one(TurnEnded).silence == pytest.approx(2.0)


def test_a_judge_that_never_answers_is_not_waited_for() -> None:
    call = Call(judge=ScriptedJudge(inline=False))
    call.voice(1.0)
    call.quiet(5.0)
    assert call.one(TurnEnded).silence == pytest.approx(4.0)


def test_noise_in_a_pause_does_not_move_the_ceiling() -> None:
    call = Call(judge=ScriptedJudge(60.0))
    call.voice(1.0)
    for _ in range(90):
        call.quiet(0.04)
        call.voice(0.02)
    assert call.one(TurnEnded).silence == pytest.approx(4.0, abs=0.1)


def test_a_long_turn_is_ended_in_the_middle_of_a_word_and_the_rest_is_another() -> None:
    call = Call(TurnSettings(max_turn=3.0))
    call.voice(5.0)
    call.quiet(1.0)
    first, second = call.all(TurnEnded)
    assert (first.reason, first.pause_id) == ("max_turn", None)
    assert seconds(first.at) == pytest.approx(3.0)
    assert [seconds(start.at) for start in call.all(SpeechStarted)] == pytest.approx([0.0, 3.0])
    assert second.reason == "scripted"


def test_a_long_turn_that_ends_there_leaves_no_other() -> None:
    call = Call(TurnSettings(max_turn=3.0))
    call.voice(3.0)
    call.quiet(2.0)
    assert call.kinds() == ["SpeechStarted", "TurnEnded"]


def test_frames_that_stop_are_silence() -> None:
    call = Call()
    call.voice(1.0)
    call.no_frames(2.0)
    assert call.kinds() == ["SpeechStarted", "PauseBegan", "Judged", "TurnEnded"]
    assert call.when(PauseBegan) == pytest.approx(1.0 + STALL)
    assert call.when(TurnEnded) == pytest.approx(1.6)


def test_frames_that_stop_in_a_pause_end_it_at_its_hold() -> None:
    call = Call(judge=ScriptedJudge(1.5))
    call.voice(1.0)
    call.quiet(0.3)
    call.no_frames(3.0)
    assert call.when(TurnEnded) == pytest.approx(2.5)
    assert call.one(TurnEnded).silence == pytest.approx(1.5)


def test_a_burst_ends_no_turn_that_it_goes_on_with() -> None:
    call = Call()
    call.voice(1.0)
    call.quiet(0.1)
    call.now += 0.45
    call.fire(call.now)
    call.machine.push(QUIET * 10 + VOICE * 20, call.now)
    assert "TurnEnded" not in call.kinds()
    assert call.one(Resumed).silence == pytest.approx(0.3)


@pytest.mark.parametrize("timer_first", [True, False])
def test_a_jump_of_the_clock_with_all_frames_after_it_ends_no_turn(timer_first: bool) -> None:
    """The process stood still for 2 s: what was said meanwhile waits in the socket."""
    call = Call()
    call.voice(1.0)
    call.quiet(0.2)
    call.now += 2.0
    if timer_first:
        assert call.machine.next_deadline() is not None
        call.machine.handle_timeout(call.now)
        due = call.machine.next_deadline()
        assert due is not None and due > call.now
    call.machine.push(QUIET * 10 + VOICE * 90, call.now)
    assert "TurnEnded" not in call.kinds()
    call.quiet(1.0)
    assert len(call.all(TurnEnded)) == 1


def test_an_excuse_is_given_once() -> None:
    call = Call()
    call.voice(1.0)
    call.quiet(0.2)
    for _ in range(3):
        call.now += 3.0
        call.machine.handle_timeout(call.now)
    assert call.one(TurnEnded).reason in ("scripted", "max_silence")


def test_a_trickle_of_frames_does_not_outlive_the_ceiling() -> None:
    call = Call(judge=ScriptedJudge(60.0))
    call.voice(1.0)
    for _ in range(20):
        call.now += 0.4
        call.fire(call.now)
        call.machine.push(QUIET, call.now)
    assert call.one(TurnEnded).reason == "max_silence"
    assert call.when(TurnEnded) < 1.0 + 5 * 0.4 + 4.0 + STALL  # five frames show that it is a pause


def test_frames_may_come_in_any_pieces() -> None:
    whole, pieces = Call(), Call()
    line = QUIET * 50 + VOICE * 50 + QUIET * 50
    whole.machine.push(line, START)
    for at in range(0, len(line), 334):
        pieces.machine.push(line[at : at + 334], START)
    assert whole.kinds() == pieces.kinds() == ["SpeechStarted", "PauseBegan", "Judged", "TurnEnded"]
    assert whole.all(TurnEnded) == pieces.all(TurnEnded)


def test_who_goes_on_after_the_end_tells_the_judge_so() -> None:
    call = Call()
    call.voice(1.0)
    call.quiet(0.9)
    call.voice(0.5)
    assert call.kinds().count("SpeechStarted") == 2
    assert [(what, pytest.approx(pause.silence)) for what, pause in call.judge.told] == [
        ("ended", 0.6),
        ("resumed", 0.9),
    ]
    assert call.machine.statistics()["went_on"] == 1


def test_who_answers_an_answer_does_not_go_on() -> None:
    call = Call()
    call.voice(1.0)
    call.quiet(0.7)
    call.machine.output_began(call.now)
    call.quiet(0.3)
    call.machine.output_over(call.now)
    call.quiet(0.3)
    call.voice(0.5)
    assert [what for what, _ in call.judge.told] == ["ended"]


def test_padding_does_not_reach_into_the_turn_before() -> None:
    call = Call(judge=ScriptedJudge(0.2))
    call.voice(1.0)
    call.quiet(0.3)
    call.voice(0.5)
    assert seconds(call.all(SpeechStarted)[1].at) == seconds(call.all(TurnEnded)[0].at) == pytest.approx(1.2)


def test_the_transcript_is_the_turns_own() -> None:
    call = Call()
    call.voice(1.0)
    call.machine.take_transcript("I would like", call.now)
    call.quiet(1.0)
    call.machine.take_transcript("nobody's", call.now)
    call.voice(1.0)
    call.quiet(1.0)
    assert [pause.transcript for pause in call.judge.asked] == ["I would like", None]


def test_the_client_commits() -> None:
    call = Call()
    call.machine.commit(call.now)
    call.voice(1.0)
    call.machine.commit(call.now)
    assert call.one(TurnEnded)[0] is None
    assert call.one(TurnEnded).reason == "commit"
    call.voice(1.0)
    call.quiet(0.3)
    call.machine.commit(call.now)
    assert call.all(TurnEnded)[1].pause_id == call.one(PauseBegan).pause_id


def test_the_client_clears() -> None:
    call = Call(TurnSettings(eager=True), ScriptedJudge(2.0, eager=True))
    call.voice(1.0)
    call.quiet(0.3)
    assert call.one(EagerEnd)
    call.machine.clear(call.now)
    assert call.one(Resumed).eager  # the reply that was asked for is for nobody
    call.quiet(5.0)
    assert call.all(TurnEnded) == []
    call.voice(0.5)
    assert seconds(call.all(SpeechStarted)[1].at) == pytest.approx(6.0)
    call.machine.clear(call.now)
    call.voice(0.5)
    assert seconds(call.all(SpeechStarted)[2].at) == pytest.approx(6.8)


def test_an_answer_ends_the_turn_that_it_answers() -> None:
    call = Call()
    call.voice(1.0)
    call.machine.output_began(call.now)
    assert call.one(TurnEnded).reason == "answered"


def test_eager_needs_to_be_wanted() -> None:
    call = Call(judge=ScriptedJudge(2.0, eager=True))
    call.voice(1.0)
    call.quiet(3.0)
    assert call.all(EagerEnd) == []
    assert not call.one(TurnEnded).eager


def test_an_eager_end_is_kept_or_cancelled() -> None:
    call = Call(TurnSettings(eager=True), ScriptedJudge(0.8, schedule=(0.2, 0.4), eager=True))
    call.voice(1.0)
    call.quiet(0.5)
    call.voice(0.5)
    call.quiet(1.0)
    first, second = call.all(EagerEnd)
    assert call.one(Resumed) == (first.pause_id, pytest.approx(0.5), True)
    assert call.one(TurnEnded).pause_id == second.pause_id
    assert call.one(TurnEnded).eager
    counts = call.machine.statistics()
    assert (counts["eager_wasted"], counts["eager_confirmed"]) == (1, 1)


def test_eager_ends_are_few_and_for_short_turns() -> None:
    call = Call(TurnSettings(eager=True), ScriptedJudge(0.8, eager=True))
    for _ in range(6):
        call.voice(0.5)
        call.quiet(0.5)
    assert len(call.all(EagerEnd)) == 3
    call.quiet(1.0)
    assert not call.one(TurnEnded).eager
    call.voice(10.5)
    call.quiet(1.0)
    assert len(call.all(EagerEnd)) == 3
    assert call.machine.statistics()["eager_refused"] == 4


def test_another_judge_within_a_pause_is_asked_from_its_beginning() -> None:
    call = Call(judge=ScriptedJudge(2.0))
    call.voice(1.0)
    call.quiet(0.4)
    another = ScriptedJudge(0.8, schedule=(0.1, 0.2))
    call.machine.configure(TurnSettings(), another, call.now)
    call.quiet(1.0)
    assert [pause.asked for pause in another.asked] == [0, 1]
    assert call.one(TurnEnded).silence == pytest.approx(0.8)


def test_nobody_speaks_after_an_answer() -> None:
    call = Call(TurnSettings(idle_timeout=5.0))
    call.quiet(10.0)
    assert call.kinds() == []  # nothing was asked yet
    call.machine.output_began(call.now)
    call.quiet(1.0)
    call.machine.output_over(call.now)
    call.quiet(20.0)
    idle = call.one(IdleTimeout)
    assert (seconds(idle.start), seconds(idle.end)) == pytest.approx((11.0, 16.0), abs=FRAME_SECONDS)
    call.machine.output_began(call.now)
    call.machine.output_over(call.now)
    call.quiet(4.0)
    call.voice(0.5)
    call.quiet(20.0)
    assert len(call.all(IdleTimeout)) == 1  # somebody spoke


def test_idle_without_frames() -> None:
    call = Call(TurnSettings(idle_timeout=5.0))
    call.quiet(0.2)
    call.machine.output_began(call.now)
    call.machine.output_over(call.now)
    call.no_frames(10.0)
    assert call.when(IdleTimeout) == pytest.approx(5.2)


def test_idle_waits_for_a_voice_that_has_just_begun() -> None:
    call = Call(TurnSettings(idle_timeout=5.0))
    call.machine.output_began(call.now)
    call.machine.output_over(call.now)
    call.quiet(4.98)
    call.voice(0.5)
    assert call.all(IdleTimeout) == []
    assert call.one(SpeechStarted)


def test_nobody_speaks_at_all() -> None:
    call = Call(TurnSettings(user_idle=8.0))
    call.quiet(30.0)
    assert call.when(UserIdle) == pytest.approx(8.0, abs=0.05)
    call.voice(1.0)
    call.quiet(8.0)
    assert len(call.all(UserIdle)) == 1
    call.quiet(1.0)
    assert len(call.all(UserIdle)) == 2


def test_statistics_count_by_reason_and_are_bounded() -> None:
    call = Call(judge=ScriptedJudge(inline=False))
    call.voice(1.0)
    call.quiet(0.2)
    pause = call.one(PauseBegan).pause_id
    for n in range(300):
        call.machine.take_verdict(Verdict(pause, 0.0, 4.0, f"reason {n}"), call.now)
    counts = call.machine.statistics()
    assert counts["SpeechStarted"] == counts["Judged.reason 5"] == 1
    assert len(counts) <= 129
    assert counts["other"] > 100


def test_settings_can_change_within_a_turn() -> None:
    settings = TurnSettings()
    call = Call(settings, ScriptedJudge(60.0))
    call.voice(1.0)
    call.machine.configure(replace(settings, max_silence=1.0), call.judge, call.now)
    call.quiet(2.0)
    assert call.one(TurnEnded).silence == pytest.approx(1.0)
