"""voicegate.media.turns.machine: what is said while the agent speaks."""

from __future__ import annotations

import pytest

from tests.media.turns.calls import BABBLE, COUGH, QUIET, START, VOICE, Call, ScriptedJudge, seconds
from voicegate.media.codec import FRAME_SECONDS
from voicegate.media.turns.agent import HELD_MOST
from voicegate.media.turns.decisions import (
    IdleTimeout,
    OutputPaused,
    OutputResumed,
    OutputStopped,
    PauseBegan,
    SpeechStarted,
    TurnEnded,
)
from voicegate.media.turns.interruption import InterruptionSettings
from voicegate.media.turns.microphone import STALL
from voicegate.media.turns.plugins import Action, Overlap
from voicegate.media.turns.settings import TurnSettings

PAUSE_AFTER = InterruptionSettings().pause_after
STOP_AFTER = InterruptionSettings().stop_after - 2 * InterruptionSettings().per_syllable
"""VOICE has a syllable in 100 ms: more than four."""
RESUME_AFTER = InterruptionSettings().resume_after


class Scripted:
    """A policy that does as it is told."""

    def __init__(self, action: Action = Action.IGNORE) -> None:
        self.action = action
        self.seen: list[Overlap] = []
        self.ended: list[bool] = []

    def decide(self, overlap: Overlap) -> tuple[Action, str]:
        self.seen.append(overlap)
        return self.action, "scripted"

    def over(self, overlap: Overlap, stopped: bool) -> None:
        self.ended.append(stopped)


def answering(call: Call, after: float = 1.0) -> Call:
    """The agent has been speaking for so long."""
    call.quiet(0.5)
    call.machine.output_began(call.now)
    call.quiet(after)
    return call


def test_an_interruption_takes_two_steps() -> None:
    call = answering(Call())
    call.voice(2.0)
    call.quiet(1.0)
    assert call.kinds() == [
        "OutputPaused",
        "OutputStopped",
        "SpeechStarted",
        "PauseBegan",
        "Judged",
        "TurnEnded",
    ]
    assert call.when(OutputPaused) == pytest.approx(1.5 + PAUSE_AFTER)  # in the frame that shows it
    assert call.one(OutputPaused).after == pytest.approx(PAUSE_AFTER)
    assert call.one(OutputStopped) == ("duration", pytest.approx(STOP_AFTER, abs=FRAME_SECONDS))
    # The turn has what was said over the output, and its padding.
    assert seconds(call.one(SpeechStarted).at) == pytest.approx(1.5 - 0.3)
    assert call.judge.asked[0].speech == pytest.approx(2.0)
    assert call.judge.asked[0].audio().count(VOICE) == 100


@pytest.mark.parametrize("length", [0.1, 0.3, 0.46])
def test_a_short_sound_holds_the_output_and_lets_it_go(length: float) -> None:
    call = answering(Call())
    call.voice(length)
    call.quiet(2.0)
    assert call.kinds() == ["OutputPaused", "OutputResumed"]
    assert call.when(OutputResumed) == pytest.approx(1.5 + length + RESUME_AFTER)


def test_a_click_does_not_even_hold_it() -> None:
    call = answering(Call())
    for _ in range(40):
        call.voice(0.02)
        call.quiet(0.06)
    assert call.kinds() == []


def test_acknowledgements_do_not_add_up_to_an_interruption() -> None:
    call = answering(Call())
    for _ in range(5):
        call.voice(0.4)
        call.quiet(0.6)
    assert call.kinds() == ["OutputPaused", "OutputResumed"] * 5


def test_a_cough_holds_it_and_does_not_stop_it() -> None:
    call = answering(Call())
    call.frames(COUGH, 1.5)
    call.quiet(1.0)
    assert call.kinds() == ["OutputPaused", "OutputResumed"]


def test_how_loud_a_person_is_beside_their_own_turns() -> None:
    policy = Scripted()
    call = Call(policy=policy)
    call.voice(0.8)
    call.quiet(1.0)
    answering(call)
    call.frames(BABBLE, 0.1)
    call.quiet(1.0)
    assert policy.seen[-1].loudness == pytest.approx(-42.0 - -20.9, abs=0.2)
    call.voice(0.2)
    assert policy.seen[-1].loudness == pytest.approx(0.0, abs=0.2)


def test_other_people_in_the_room_do_not_interrupt_and_do_not_hide_who_does() -> None:
    call = answering(Call())
    call.frames(BABBLE, 60.0)
    assert call.kinds() == ["OutputPaused", "OutputResumed"]
    assert call.one(OutputResumed).reason == "background"
    call.voice(0.04)
    call.frames(BABBLE, 1.0)
    assert "OutputStopped" not in call.kinds()  # a click is not enough
    call.voice(1.5)
    assert call.kinds()[2:] == ["OutputStopped", "SpeechStarted"]
    assert call.one(OutputStopped).after < 1.0 + 60 + 1.04 + 1.0


def test_a_finished_word_at_the_agents_first_one_holds_nothing() -> None:
    call = answering(Call(), after=0.04)
    call.voice(0.18)
    call.quiet(1.0)
    assert call.kinds() == []
    call = answering(Call(), after=0.2)
    call.voice(1.0)
    assert call.kinds()[0] == "OutputPaused"
    assert call.when(OutputPaused) == pytest.approx(1.1)  # 0.6 s of the answer
    assert seconds(call.one(SpeechStarted).at) == pytest.approx(0.7 - 0.3)


def test_the_last_second_of_an_answer_belongs_to_the_next_turn() -> None:
    call = answering(Call())
    call.machine.output_ending(0.8, call.now)
    call.quiet(0.1)
    call.voice(0.3)
    call.quiet(0.4)
    call.machine.output_over(call.now)
    call.quiet(1.0)
    assert call.kinds() == ["SpeechStarted", "PauseBegan", "Judged", "TurnEnded"]
    assert seconds(call.one(SpeechStarted).at) == pytest.approx(1.6 - 0.3)
    assert call.one(TurnEnded).silence == pytest.approx(0.6)


def test_speech_that_an_answer_ends_under_becomes_a_turn() -> None:
    call = answering(Call(policy=Scripted()))
    call.voice(3.0)
    call.machine.output_over(call.now)
    call.voice(1.0)
    assert call.kinds() == ["SpeechStarted"]
    assert seconds(call.one(SpeechStarted).at) == pytest.approx(1.5 - 0.3)


def test_a_sound_long_before_the_end_does_not() -> None:
    call = answering(Call())
    call.voice(0.4)
    call.quiet(2.0)
    call.machine.output_over(call.now)
    call.quiet(1.0)
    assert "SpeechStarted" not in call.kinds()


def test_a_held_output_that_is_dropped_is_over() -> None:
    call = answering(Call())
    call.voice(0.2)
    call.quiet(0.2)
    call.machine.output_over(call.now)
    call.quiet(2.0)
    assert call.kinds()[0] == "OutputPaused"
    assert call.all(OutputResumed) == call.all(OutputStopped) == []


def test_a_stretch_that_cannot_be_interrupted() -> None:
    call = answering(Call())
    call.machine.protect(True, call.now)
    call.voice(2.0)
    assert call.kinds() == []
    call.machine.output_over(call.now)
    call.voice(0.5)
    assert call.kinds() == ["SpeechStarted"]
    assert seconds(call.one(SpeechStarted).at) == pytest.approx(1.5 - 0.3)


def test_where_speech_does_not_interrupt_it_is_a_turn_beside_the_answer() -> None:
    call = answering(Call(TurnSettings(interrupts=False, idle_timeout=5.0, user_idle=5.0)))
    call.voice(2.0)
    call.quiet(1.0)
    kinds = [kind for kind in call.kinds() if kind in ("SpeechStarted", "TurnEnded")]
    assert kinds == ["SpeechStarted", "TurnEnded"]
    call.quiet(6.0)
    assert not {"IdleTimeout", "UserIdle", "OutputPaused"} & set(call.kinds()), "the agent still speaks"
    call.voice(1.0)
    call.machine.output_over(call.now)
    call.voice(0.5)
    assert call.kinds()[-1] == "SpeechStarted", "the same turn goes on when the answer is over"
    call.machine.output_began(call.now)
    call.voice(0.5)
    assert call.kinds()[-1] == "SpeechStarted", "and when the next begins"
    call.quiet(1.0)
    assert len(call.all(SpeechStarted)) == len(call.all(TurnEnded)) == 2


def test_speech_that_goes_on_after_a_protected_stretch_interrupts() -> None:
    call = answering(Call())
    call.machine.protect(True, call.now)
    call.voice(2.0)
    call.machine.protect(False, call.now)
    call.voice(0.1)
    assert call.kinds() == ["OutputStopped", "SpeechStarted"]


@pytest.mark.parametrize("how", ["protect", "configure"])
def test_protection_lets_a_held_output_go(how: str) -> None:
    call = answering(Call())
    call.voice(0.2)
    if how == "protect":
        call.machine.protect(True, call.now)
    else:
        call.machine.configure(TurnSettings(interrupts=False), call.judge, call.now)
    call.voice(2.0)
    assert call.kinds()[:2] == ["OutputPaused", "OutputResumed"]
    assert call.one(OutputResumed).reason == "protected"
    assert call.kinds()[2:] == ([] if how == "protect" else ["SpeechStarted"])


def test_words_decide_at_once() -> None:
    call = answering(Call())
    call.voice(0.3)
    call.machine.take_transcript("wait", call.now)
    assert call.one(OutputStopped).reason == "words"
    assert call.kinds()[-1] == "SpeechStarted"


def test_words_that_go_with_listening_get_more_time() -> None:
    call = answering(Call())
    call.voice(0.3)
    call.machine.take_transcript("Yeah, right. Mm-hm.", call.now)
    call.voice(0.9)
    call.quiet(1.0)
    assert call.one(OutputResumed).reason == "acknowledgement"


def test_words_that_come_after_the_sound_count() -> None:
    call = answering(Call())
    call.voice(0.3)
    call.quiet(0.3)
    call.machine.take_transcript("stop", call.now)
    call.quiet(1.0)
    assert call.kinds()[1:4] == ["OutputStopped", "SpeechStarted", "PauseBegan"]
    assert seconds(call.one(PauseBegan).at) == pytest.approx(1.8)
    assert call.one(TurnEnded).silence == pytest.approx(0.6)


def test_words_that_come_when_the_answer_goes_on_again_still_count() -> None:
    call = answering(Call())
    call.voice(0.3)
    call.quiet(1.5)
    assert call.kinds() == ["OutputPaused", "OutputResumed"]
    call.machine.take_transcript("stop", call.now)
    call.quiet(1.0)
    assert call.kinds()[2:] == ["OutputStopped", "SpeechStarted", "PauseBegan", "Judged", "TurnEnded"]
    assert seconds(call.one(SpeechStarted).at) == pytest.approx(1.5 - 0.3)


@pytest.mark.parametrize("text, wait", [("mm-hm", 1.0), ("stop", 4.0)])
def test_words_that_agree_or_come_too_late_do_not(text: str, wait: float) -> None:
    call = answering(Call())
    call.voice(0.3)
    call.quiet(wait)
    call.machine.take_transcript(text, call.now)
    call.quiet(1.0)
    assert call.kinds() == ["OutputPaused", "OutputResumed"]


def test_the_policy_is_told_the_truth() -> None:
    policy = Scripted()
    call = answering(Call(policy=policy))
    call.machine.output_ending(3.0, call.now)
    call.voice(0.2)
    call.quiet(0.04)
    seen = policy.seen[-1]
    assert (seen.seconds, seen.voiced, seen.silence, seen.agent) == pytest.approx((0.24, 0.2, 0.04, 1.24))
    assert (seen.level, seen.strong) == (pytest.approx(-20.9, abs=0.1), pytest.approx(0.16))
    assert (seen.pitched, seen.loudness) == (pytest.approx(0.16), None)
    assert (seen.echo, seen.remaining) == pytest.approx((0.0, 2.76))
    assert (seen.paused, seen.words, seen.said) == (False, None, None)
    policy.action = Action.PAUSE
    call.voice(0.4)
    call.machine.take_transcript("two words", call.now)
    seen = policy.seen[-1]
    assert (seen.paused, seen.words, seen.said) == (True, 2, "two words")
    assert seen.remaining == pytest.approx(3.0 - 0.26)  # it stands still while the output does


def test_the_policy_hears_how_it_ended() -> None:
    policy = Scripted()
    call = answering(Call(policy=policy))
    call.voice(0.2)
    call.quiet(1.0)
    policy.action = Action.STOP
    call.voice(0.2)
    assert policy.ended == [False, True]


@pytest.mark.parametrize(
    "frame, kinds",
    [(VOICE, ["OutputPaused", "OutputStopped", "SpeechStarted"]), (QUIET, ["OutputPaused", "OutputResumed"])],
)
def test_no_policy_holds_the_output_for_good(frame: bytes, kinds: list[str]) -> None:
    policy = Scripted(Action.PAUSE)
    call = answering(Call(policy=policy))
    call.voice(0.1)
    policy.action = Action.IGNORE
    call.frames(frame, HELD_MOST + 0.1)
    assert call.kinds() == kinds
    assert {getattr(decision, "reason", "held") for _, decision in call.decisions[1:]} == {"held"}


@pytest.mark.parametrize("frame", [VOICE, QUIET])
def test_nor_do_frames_that_come_late(frame: bytes) -> None:
    policy = Scripted(Action.PAUSE)
    call = answering(Call(policy=policy))
    call.voice(0.1)
    held_at = call.when(OutputPaused)
    policy.action = Action.IGNORE
    for _ in range(10):
        call.no_frames(0.33)
        call.frames(frame, 0.02)
    at, _ = next(entry for entry in call.decisions if isinstance(entry[1], OutputResumed | OutputStopped))
    assert at - START - held_at == pytest.approx(HELD_MOST)


def test_a_policy_may_let_go_of_what_is_still_said() -> None:
    """As with an echo that shows only after a while; more of it holds the output again."""
    policy = Scripted(Action.PAUSE)
    call = answering(Call(policy=policy))
    call.voice(0.1)
    policy.action = Action.RESUME
    call.voice(0.1)
    policy.action = Action.STOP
    call.voice(0.1)
    assert call.kinds() == ["OutputPaused", "OutputResumed", "OutputStopped", "SpeechStarted"]
    assert seconds(call.one(SpeechStarted).at) == pytest.approx(1.5 - 0.3)


def test_a_policy_may_stop_without_a_hold() -> None:
    call = answering(Call(policy=Scripted(Action.STOP)))
    call.voice(0.02)
    assert call.kinds() == ["OutputStopped", "SpeechStarted"]
    call.quiet(1.0)
    assert call.judge.asked[0].speech == 0.0


def test_frames_that_stop_let_a_held_output_go() -> None:
    call = answering(Call())
    call.voice(0.2)
    call.no_frames(5.0)
    assert call.kinds() == ["OutputPaused", "OutputResumed"]
    assert call.when(OutputResumed) == pytest.approx(1.7 + STALL)


def test_pushes_of_nothing_hide_no_stall() -> None:
    call = answering(Call())
    call.voice(0.2)
    for _ in range(20):
        call.no_frames(0.1)
        call.machine.push(b"", call.now)
    assert call.when(OutputResumed) == pytest.approx(1.7 + STALL)


def test_clear_lets_a_held_output_go() -> None:
    call = answering(Call())
    call.voice(0.2)
    call.machine.clear(call.now)
    assert call.one(OutputResumed).reason == "cleared"


def test_silence_after_a_stop_is_not_idle() -> None:
    call = answering(Call(TurnSettings(idle_timeout=5.0), ScriptedJudge(0.5)))
    call.voice(1.0)
    call.machine.output_over(call.now)  # whoever plays it confirms
    call.quiet(20.0)
    assert call.all(IdleTimeout) == []


def test_the_hold_comes_in_the_frame_of_its_decision() -> None:
    call = answering(Call())
    call.voice(1.0)
    (at, _), *_ = [(at, d) for at, d in call.decisions if isinstance(d, OutputPaused)]
    assert at == pytest.approx(call.now - 1.0 + PAUSE_AFTER, abs=FRAME_SECONDS / 10)
