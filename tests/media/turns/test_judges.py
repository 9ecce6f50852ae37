"""voicegate.media.turns.fixed and adaptive: how long a pause is waited out, and what is learned in a call."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from itertools import pairwise
from math import inf

import numpy as np
import pytest

from tests.media.signals import frames
from tests.media.turns.test_prosody import SPEECH, semitones, vowel
from voicegate.media.turns.adaptive import SCHEDULE, AdaptivePause, filled, final
from voicegate.media.turns.fixed import FixedSilence, Upstream
from voicegate.media.turns.pauses import CEILING, FLOOR
from voicegate.media.turns.plugins import Hop, Pause, TurnJudge, Verdict
from voicegate.media.turns.prosody import Cues

FINISHED = vowel(
    semitones(4, 4, 4, 1, -2), 0.8, gain=np.array([1.0, 1.0, 0.9, 0.6, 0.3]), formant=np.tile(SPEECH, 2)
)
WORD = vowel(semitones(3, 1, -3), 0.3, gain=np.array([1.0, 0.9, 0.3]), formant=SPEECH)
UM = vowel(semitones(1, 0, -2), 0.35, gain=np.array([1.0, 0.9, 0.5]))
"""It falls as an end does, and is no word."""
HESITATING = vowel(150, 0.8)
RISING = vowel(semitones(0, -1, 0, 1, 2), 0.8, formant=np.tile(SPEECH, 2))
WHISPERED = np.random.default_rng(3).integers(-3000, 3000, 24_000).astype("<i2").tobytes()
MIDDLING = Cues(height=3.0, rise=0.5, change=10.0)


def pause(speech: float, silence: float = SCHEDULE[0], asked: int = 0, number: int = 1) -> Pause:
    return Pause(number, silence, speech, asked, bytes)


def heard(
    judge: TurnJudge, voice: bytes, speech: float, silence: float = SCHEDULE[0], *, number: int = 1
) -> Verdict:
    """What it makes of the pause after `voice`, with which a turn of so many seconds ends."""
    for frame in frames(voice + bytes(round(silence * 24_000) * 2)):
        judge.listen(frame, Hop(True, -20.0))
    return judge.judge(pause(speech, silence, number=number))


def test_the_fixed_judge_waits_its_silence() -> None:
    judge = FixedSilence(0.7)
    assert judge.schedule[0] <= 0.7
    assert judge.judge(pause(1.0, 0.1)) == Verdict(1, 0.0, 0.7, "silence")
    assert judge.judge(pause(1.0, 0.7, asked=1)) == Verdict(1, 1.0, 0.7, "silence")
    assert FixedSilence(0.05).schedule == (0.05,)


def test_the_upstream_judge_never_ends_a_turn() -> None:
    assert Upstream().judge(pause(1.0)).hold == inf
    assert Upstream().schedule == ()


def test_a_finished_sentence_is_answered_soon_and_a_hesitation_waited_out() -> None:
    finished = heard(AdaptivePause(), FINISHED, 3.0)
    hesitating = heard(AdaptivePause(), HESITATING, 0.8)
    assert finished.hold < 0.45
    assert finished.reason == "finished"
    assert hesitating.hold > 1.8 * finished.hold
    assert hesitating.reason == "unfinished"
    assert finished.done > 0.5 > 0.3 > hesitating.done


def test_an_um_is_waited_out_though_it_falls() -> None:
    assert heard(AdaptivePause(), UM, 1.5).hold > 1.8 * heard(AdaptivePause(), WORD, 1.5).hold


@pytest.mark.parametrize("voice", [FINISHED, WORD, HESITATING, UM])
def test_who_is_more_patient_waits_for_longer(voice: bytes) -> None:
    holds = [heard(AdaptivePause(patience), voice, 2.0).hold for patience in (1.0, 2.0, 4.0)]
    assert 1.3 * holds[0] < holds[1] < 4.2 * holds[0]
    assert 1.3 * holds[1] < holds[2] < 2.5 * holds[1]


def test_the_more_patient_the_less_it_goes_by_the_sound() -> None:
    def ratio(patience: float) -> float:
        unfinished = heard(AdaptivePause(patience, ceiling=60.0), HESITATING, 2.0).hold
        return unfinished / heard(AdaptivePause(patience), FINISHED, 2.0).hold

    assert ratio(1.0) > ratio(2.0) > ratio(3.0) > 1.2


def test_a_wait_has_a_floor_and_a_ceiling() -> None:
    assert heard(AdaptivePause(1e4), FINISHED, 2.0).hold == CEILING
    assert heard(AdaptivePause(1e4, ceiling=8.0), FINISHED, 2.0).hold == 8.0
    assert heard(AdaptivePause(0.01), UM, 2.0).hold == FLOOR


def test_the_longer_it_lasts_the_surer_is_the_end() -> None:
    judge = AdaptivePause()
    verdicts = [heard(judge, HESITATING, 2.0)]
    verdicts += [judge.judge(pause(2.0, silence, place)) for place, silence in enumerate(SCHEDULE[1:], 1)]
    done = [verdict.done for verdict in verdicts]
    assert all(earlier < later for earlier, later in pairwise(done))
    assert len({verdict.hold for verdict in verdicts}) == 1
    eager = [verdict.eager for verdict in verdicts]
    assert (eager[0], eager[-1]) == (False, True)
    assert eager == sorted(eager)


def test_who_makes_long_pauses_gets_more_time() -> None:
    def after(silences: Sequence[float]) -> float:
        judge = AdaptivePause()
        for number, silence in enumerate(silences):
            heard(judge, HESITATING, 1.0, number=number)
            judge.resumed(pause(1.0, silence, number=number))
        return heard(judge, HESITATING, 1.0, number=99).hold

    assert after([1.2] * 8) > 1.2 * after([0.4] * 8) > 1.2 * after([0.2] * 8)


def test_stops_within_words_are_no_pauses_of_the_speaker() -> None:
    judge = AdaptivePause()
    usual = heard(judge, HESITATING, 2.0).hold
    for _ in range(20):
        judge.resumed(pause(2.0, 0.12))
    assert judge.judge(pause(2.0, asked=1)).hold == usual


def test_a_word_is_answered_as_soon_as_a_speech() -> None:
    """How long the turn has lasted is no cue."""
    assert heard(AdaptivePause(), WORD, 0.3).hold < 0.45
    assert heard(AdaptivePause(), FINISHED, 20.0).hold == heard(AdaptivePause(), FINISHED, 0.8).hold


def test_who_sounds_final_before_going_on_is_trusted_less() -> None:
    def ratio(voice: bytes) -> float:
        judge = AdaptivePause()
        for number in range(12):
            heard(judge, voice, 1.0, number=number)
            judge.resumed(pause(1.0, 0.33, number=number))
        unfinished = heard(judge, HESITATING, 1.0, number=98).hold
        return unfinished / heard(judge, FINISHED, 1.0, number=99).hold

    assert ratio(HESITATING) > 1.3 * ratio(FINISHED)


def test_who_never_sounded_final_may_do_so_a_little() -> None:
    """And who always does is not cut off for it."""

    def hold(before: bytes, voice: bytes) -> float:
        judge = AdaptivePause()
        for number in range(300):
            heard(judge, before, 1.0, number=number)
            judge.resumed(pause(1.0, 0.33, number=number))
        return heard(judge, voice, 1.0, number=999).hold

    middling = vowel(semitones(0, -1, 1, 1, 0), 0.8, formant=np.tile(SPEECH, 2))
    assert hold(RISING, middling) > 0.35
    assert hold(FINISHED, FINISHED) > 0.35


def test_where_nothing_can_be_told_nothing_is_learned() -> None:
    judge, other = AdaptivePause(), AdaptivePause()
    for number in range(8):
        assert heard(judge, WHISPERED, 1.0, number=number).reason == "unfinished"
        for each in (judge, other):
            each.resumed(pause(1.0, 0.33, number=number))
    assert heard(judge, FINISHED, 1.0, number=9).hold == heard(other, FINISHED, 1.0, number=9).hold


def test_a_pause_that_was_not_asked_about_teaches_only_its_length() -> None:
    judge, other = AdaptivePause(), AdaptivePause()
    for each in (judge, other):
        heard(each, FINISHED, 1.0, number=1)
    for number in range(2, 9):
        judge.resumed(pause(1.0, 0.33, number=number))
        other._pauses.learn(0.33)
    assert heard(judge, FINISHED, 1.0, number=9).hold == heard(other, FINISHED, 1.0, number=9).hold


def test_a_judge_that_comes_late_hears_what_there_is() -> None:
    """Asked again about a pause at which another judge has failed: nothing was heard of the voice before
    it."""
    verdict = AdaptivePause().judge(pause(1.0, 0.2, asked=3))
    assert verdict.reason == "unfinished"
    assert not verdict.eager


def test_where_no_frames_come_the_voice_is_still_heard() -> None:
    """As of a client that sends nothing in silence: the silence is not to be looked for in the frames."""
    judge, other = AdaptivePause(), AdaptivePause()
    for frame in frames(FINISHED):
        judge.listen(frame, Hop(True, -20.0))
    silent = judge.judge(replace(pause(1.0, 0.5), missing=0.5))
    assert silent.hold == heard(other, FINISHED, 1.0).hold


def test_each_cue_has_the_sign_that_people_give_it() -> None:
    def of(**cues: float) -> float:
        return final(MIDDLING._replace(**cues))

    assert of() == of(rise=2.0) == 0
    assert 0 < of(height=0.0) < of(height=-1.0) < 1
    assert 0 < of(rise=-1.0) < of(rise=-4.0) < 1
    assert of(height=-1.0, rise=-4.0) == of(rise=6.0) == 1
    assert of(height=-50.0) == of(height=-1.0)  # no cue alone decides


def test_what_hardly_changes_is_a_filled_pause() -> None:
    found = [filled(MIDDLING._replace(change=change)) for change in (0.5, 1.8, 2.3, 2.8, 9.0)]
    assert found == [1.0, 1.0, pytest.approx(0.5), 0.0, 0.0]


def test_it_is_asked_when_the_machine_asks() -> None:
    assert list(SCHEDULE) == sorted(SCHEDULE)
    assert AdaptivePause().inline


@pytest.mark.parametrize("judge", [AdaptivePause(), FixedSilence(), Upstream()])
def test_nothing_heard_yet_is_no_error(judge: TurnJudge) -> None:
    verdict = judge.judge(pause(0.0, 0.0))
    assert 0 <= verdict.done <= 1
    assert verdict.hold > 0
    judge.ended(pause(0.0, 0.0))
    judge.resumed(pause(0.0, 0.0))
