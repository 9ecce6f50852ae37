"""The person's side: the turn that is open, its pauses, and what the judge says of them."""

from __future__ import annotations

import math
from dataclasses import dataclass, replace
from typing import Final

from voicegate.media.codec import PCM_RATE
from voicegate.media.turns.decisions import (
    EagerEnd,
    JudgeAsked,
    Judged,
    PauseBegan,
    Resumed,
    SpeechStarted,
    TurnEnded,
    VerdictDropped,
)
from voicegate.media.turns.ledger import Ledger
from voicegate.media.turns.microphone import EPSILON, STALL, Microphone
from voicegate.media.turns.plugins import Pause, TurnJudge, Verdict
from voicegate.media.turns.settings import TurnSettings

PAUSE_AFTER: Final = 0.1
"""Seconds of silence that are a pause: stops within words are shorter."""
WENT_ON: Final = 2.0
"""Seconds after a turn's end within which speech shows that it was none, unless an answer came between."""
MAX_EAGER: Final = 3
"""Replies asked for early in one turn: who hesitates more often would pay for more than is gained."""
MAX_EAGER_SPEECH: Final = 10.0
"""Seconds of speech before a pause: after longer turns little is gained and much sent twice."""


@dataclass(slots=True)
class _OpenPause:
    """A pause nobody knows yet to be the end."""

    id: int
    began: int
    """Sample at which the last voice ended."""
    ceiling_at: float
    """Real time at which it is over whatever comes, should frames come too slowly to tell."""
    asked: int = 0
    """How often the judge was asked."""
    hold: float = math.inf
    """The silence at which the last verdict lets the turn end."""
    reason: str = ""
    """The last verdict's."""
    eager: bool = False
    """A reply was asked for."""


@dataclass(slots=True)
class _OpenTurn:
    """From its first voice until it is ended."""

    began: int
    """Sample at which its audio begins."""
    onset: int
    """Sample of its first voice."""
    transcript: str | None
    pause: _OpenPause | None = None
    eager_ends: int = 0
    """Replies asked for in it before its end was certain."""


class Person:
    """One call's."""

    def __init__(
        self, settings: TurnSettings, judge: TurnJudge, microphone: Microphone, ledger: Ledger
    ) -> None:
        self._settings = settings
        self._judge = judge
        self._microphone = microphone
        self._ledger = ledger
        self._turn: _OpenTurn | None = None
        self._pauses = 0  # the last one's id
        self._ended_at = 0  # sample up to which everything belongs to turns that are over
        self._last_pause: Pause | None = None  # in which the last turn was ended, until it is answered

    @property
    def has_turn(self) -> bool:
        return self._turn is not None

    def number_pauses_from(self, last: int) -> None:
        self._pauses = last

    def begin(self, onset: int, said: str | None = None) -> None:
        """A turn whose first voice was at this sample; `said` is its transcript so far."""
        began = max(self._ended_at, onset - round(self._settings.prefix_padding * PCM_RATE))
        self._turn = _OpenTurn(began, onset, said)
        self._microphone.voice_end = max(self._microphone.voice_end, onset)  # where a policy was quicker
        self._ledger.decide(SpeechStarted(began))
        pause, self._last_pause = self._last_pause, None
        if pause is not None and onset - self._ended_at <= WENT_ON * PCM_RATE:
            self._ledger.count("went_on")
            silence = pause.silence + max(0, onset - self._ended_at) / PCM_RATE
            self._judge.resumed(replace(pause, silence=silence))

    def hear(self, now: float) -> None:
        """The microphone has moved on by a frame; a turn is open."""
        turn, microphone = self._open(), self._microphone
        most = self._settings.max_turn
        if most is not None and microphone.position - turn.onset >= most * PCM_RATE:
            self._end("max_turn", now)
        elif turn.pause is None:
            if microphone.position - microphone.voice_end >= PAUSE_AFTER * PCM_RATE:
                self._begin_pause(turn, now)
        elif microphone.likely:
            self._resume(turn, turn.pause)
        else:
            self._weigh(turn, turn.pause, now)

    def take_verdict(self, verdict: Verdict, now: float) -> None:
        turn = self._turn
        if turn is None or turn.pause is None or turn.pause.id != verdict.pause_id:
            self._ledger.decide(VerdictDropped(verdict))
            return
        self._judged(turn, turn.pause, verdict, now)
        self._end_if_due(turn.pause, now)

    def take_transcript(self, text: str) -> None:
        if self._turn is not None:
            self._turn.transcript = text

    def end(self, reason: str, now: float) -> None:
        """Somebody else says that the open turn is over."""
        self._end(reason, now)

    def answered(self, now: float) -> None:
        """The agent speaks. A turn that is open is over, and what is said from here on continues none."""
        if self._turn is not None:
            self._end("answered", now)
        self._last_pause = None

    def clear(self, now: float) -> None:
        """What was said is void."""
        turn, self._turn = self._turn, None
        if turn is not None and turn.pause is not None and turn.pause.eager:
            self._waste(turn.pause, self._microphone.silence(now))
        self._ended_at = self._microphone.position
        self._last_pause = None

    def configure(self, settings: TurnSettings, judge: TurnJudge) -> None:
        """A pause that lasts is put to the new judge from its beginning."""
        self._settings = settings
        self._judge = judge
        if self._turn is not None and self._turn.pause is not None:
            self._turn.pause.asked = 0
            self._turn.pause.hold = math.inf

    def deadline(self) -> float:
        """When something is due should no frame come."""
        microphone = self._microphone
        if self._turn is None or microphone.heard_at is None:
            return math.inf
        pause = self._turn.pause
        if pause is None:
            return microphone.heard_at + STALL
        wanted = min(pause.hold, self._settings.max_silence)
        if pause.asked < len(self._judge.schedule):
            wanted = min(wanted, self._judge.schedule[pause.asked])
        return min(microphone.silent_at(wanted), pause.ceiling_at)

    def without_frames(self, now: float) -> None:
        """`deadline` has come."""
        turn = self._open()
        if turn.pause is None:
            self._begin_pause(turn, now)
        else:
            self._weigh(turn, turn.pause, now)

    def excuse(self, now: float) -> None:
        """Frames may be waiting: a ceiling in real time waits for them."""
        if self._turn is not None and self._turn.pause is not None:
            self._turn.pause.ceiling_at = max(self._turn.pause.ceiling_at, now + STALL)

    def _open(self) -> _OpenTurn:
        assert self._turn is not None  # asked for only where `has_turn`
        return self._turn

    def _begin_pause(self, turn: _OpenTurn, now: float) -> None:
        self._pauses += 1
        ceiling_at = now + max(0.0, self._settings.max_silence - self._microphone.silence(now)) + STALL
        turn.pause = _OpenPause(self._pauses, self._microphone.voice_end, ceiling_at)
        self._ledger.decide(PauseBegan(turn.pause.id, turn.pause.began))
        self._weigh(turn, turn.pause, now)

    def _resume(self, turn: _OpenTurn, pause: _OpenPause) -> None:
        turn.pause = None
        silence = max(0, self._microphone.onset - pause.began) / PCM_RATE
        if pause.eager:
            self._waste(pause, silence)
        else:
            self._ledger.decide(Resumed(pause.id, silence, False))
        self._judge.resumed(self._told(turn, pause, silence))

    def _waste(self, pause: _OpenPause, silence: float) -> None:
        """The reply that was asked for in this pause is for nobody."""
        self._ledger.count("eager_wasted")
        self._ledger.decide(Resumed(pause.id, silence, True))

    def _weigh(self, turn: _OpenTurn, pause: _OpenPause, now: float) -> None:
        """Put the pause to the judge when the schedule says so, and end the turn when that is due."""
        schedule = self._judge.schedule
        silence = self._microphone.silence(now)
        if pause.asked < len(schedule) and silence >= schedule[pause.asked] - EPSILON:
            asked = self._told(turn, pause, silence)
            pause.asked += 1
            if self._judge.inline:
                self._judged(turn, pause, self._judge.judge(asked), now)
            else:
                self._ledger.decide(JudgeAsked(asked))
        self._end_if_due(pause, now)

    def _judged(self, turn: _OpenTurn, pause: _OpenPause, verdict: Verdict, now: float) -> None:
        pause.hold = math.inf if math.isnan(verdict.hold) else verdict.hold
        pause.reason = verdict.reason
        self._ledger.decide(Judged(verdict, self._microphone.silence(now)))
        if pause.eager or not (verdict.eager and self._settings.eager):
            return
        if turn.eager_ends >= MAX_EAGER or pause.began - turn.onset > MAX_EAGER_SPEECH * PCM_RATE:
            self._ledger.count("eager_refused")
            return
        turn.eager_ends += 1
        pause.eager = True
        self._ledger.decide(EagerEnd(pause.id))

    def _end_if_due(self, pause: _OpenPause, now: float) -> None:
        silence = self._microphone.silence(now)
        if silence >= self._settings.max_silence - EPSILON or now >= pause.ceiling_at:
            self._end("max_silence", now)
        elif silence >= pause.hold - EPSILON and self._microphone.evidence == 0:
            self._end(pause.reason, now)

    def _end(self, reason: str, now: float) -> None:
        turn, microphone = self._open(), self._microphone
        pause, silence = turn.pause, microphone.silence(now)
        self._turn = None
        self._ended_at = microphone.position
        eager = pause is not None and pause.eager
        if eager:
            self._ledger.count("eager_confirmed")
        pause_id = None if pause is None else pause.id
        self._ledger.decide(TurnEnded(pause_id, microphone.position, silence, reason, eager))
        self._last_pause = None if pause is None else self._told(turn, pause, silence)
        if self._last_pause is not None:
            self._judge.ended(self._last_pause)
        if reason == "max_turn" and pause is None:
            microphone.expect_voice()
        else:
            microphone.expect_nothing()

    def _told(self, turn: _OpenTurn, pause: _OpenPause, silence: float) -> Pause:
        """The pause as the judge is told of it. It may look at the audio from a thread."""
        frames = self._microphone.audio_since(turn.began)
        came = (self._microphone.position - pause.began) / PCM_RATE
        return Pause(
            id=pause.id,
            silence=silence,
            speech=(pause.began - turn.onset) / PCM_RATE,
            asked=pause.asked,
            audio=lambda: b"".join(frames),
            transcript=turn.transcript,
            missing=max(0.0, silence - came),
        )
