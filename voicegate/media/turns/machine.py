"""The turn machine: sound, verdicts, the agent's output and timers in, decisions out. Pure.

    the person:   quiet ──speech──► turn ──silence──► pause ──verdict or ceiling──► quiet
                                      ▲                 │
                                      └─────speech──────┘
    the agent:    quiet ──began──► speaking ──overlap──► held ──► speaking, or stopped: its overlap is a turn

Rules. At most one turn is open, and none while the agent speaks: what is said meanwhile is an overlap, and
becomes a turn when it is confirmed or when the answer ends under it. A verdict holds for the pause it names
and for no other; speech voids it. Silence is counted in the microphone's own line from the last voice, so a
burst or a jump of the clock ends nothing; only when no frame comes does real time count. Whoever calls drains
`poll_decision` after each input, and calls `handle_timeout` at `next_deadline`.
"""

from __future__ import annotations

import math
from collections import deque
from dataclasses import replace
from typing import Final

from voicegate.media.codec import FRAME_SAMPLES, PCM_RATE
from voicegate.media.turns.decisions import (
    Decision,
    EagerEnd,
    IdleTimeout,
    JudgeAsked,
    Judged,
    OutputPaused,
    OutputResumed,
    OutputStopped,
    PauseBegan,
    Resumed,
    SpeechStarted,
    TurnEnded,
    UserIdle,
    VerdictDropped,
)
from voicegate.media.turns.echo import EchoGuard
from voicegate.media.turns.idle import Silence
from voicegate.media.turns.microphone import LIKELY, MOST, STALL, Microphone
from voicegate.media.turns.output import AgentOutput
from voicegate.media.turns.overlap import OpenOverlap
from voicegate.media.turns.plugins import (
    Action,
    Hop,
    InterruptionPolicy,
    Overlap,
    Pause,
    TurnJudge,
    Verdict,
    VoiceActivity,
)
from voicegate.media.turns.settings import TurnSettings
from voicegate.media.turns.turn import OpenPause, OpenTurn

PAUSE_AFTER: Final = 0.1
"""Seconds of silence that are a pause: stops within words are shorter."""
OVERLAP_OVER: Final = 0.5
"""Seconds of silence after which the next sound over the output is another one."""
HELD_MOST: Final = 2.0
"""Seconds for which a policy may hold the output undecided; a person takes longer silence for a lost call."""
ECHO_TAIL: Final = 0.5
"""Seconds after the output within which a sound may still be its echo."""
ECHO_MOST: Final = 0.5
"""A sound with more echo than this begins no turn."""
LAST_WORDS: Final = 1.0
"""Seconds before the output's end within which speech is meant for the time after it."""
WENT_ON: Final = 2.0
"""Seconds after a turn's end within which speech shows that it was none, unless an answer came between."""
MAX_EAGER: Final = 3
"""Replies asked for early in one turn: who hesitates more often would pay for more than is gained."""
MAX_EAGER_SPEECH: Final = 10.0
"""Seconds of speech before a pause: after longer turns little is gained and much sent twice."""
_MOST_COUNTS: Final = 128
"""Kinds of decision and reasons counted apart; a plug-in may make up reasons."""
_EPSILON: Final = 1e-6


class TurnMachine:
    """One call's. The plug-ins are this call's own, too."""

    def __init__(
        self, settings: TurnSettings, activity: VoiceActivity, judge: TurnJudge, policy: InterruptionPolicy
    ) -> None:
        self._settings = settings
        self._judge = judge
        self._policy = policy
        self._microphone = Microphone(activity)
        self._echo = EchoGuard()
        self._output = AgentOutput()
        self._silence = Silence()
        self._turn: OpenTurn | None = None
        self._overlap: OpenOverlap | None = None
        self._pauses = 0  # their ids
        self._ended_at = 0  # sample up to which everything belongs to turns that are over
        self._last_pause: Pause | None = None  # in which the last turn was ended, until it is answered
        self._decisions: deque[Decision] = deque()  # a few from each input; whoever gave it drains them
        self._counts: dict[str, int] = {}

    # --- the microphone ---

    def push(self, pcm: bytes, now: float) -> None:
        """Some more of the microphone: 24 kHz s16le mono, any whole number of samples."""
        microphone = self._microphone
        if microphone.heard_at is None:
            self._silence.began(now, 0, after_answer=False)
        for frame in microphone.frames(pcm, now):
            hop = microphone.hear(frame)
            self._judge.listen(frame, hop)
            if self._turn is not None:
                self._in_turn(self._turn, now)
            elif self._output.speaking:
                self._over_output(hop, now)
            else:
                self._in_silence(hop, now)

    def clear(self, now: float) -> None:
        """`input_audio_buffer.clear`: what was said is void, and no turn comes of it."""
        turn, self._turn = self._turn, None
        if turn is not None and turn.pause is not None and turn.pause.eager:
            self._decide(Resumed(turn.pause.id, self._silence_in(turn.pause, now), True))
        self._settle_overlap(now, "cleared")
        self._microphone.restart()
        self._ended_at = self._microphone.position
        self._last_pause = None
        if turn is not None:
            self._silence.began(now, self._microphone.position, after_answer=False)

    def commit(self, now: float) -> None:
        """`input_audio_buffer.commit`: an open turn is over because the client says so."""
        if self._turn is not None:
            self._end_turn(self._turn, "commit", now)

    # --- the agent ---

    def push_output(self, frame: bytes, now: float) -> None:
        """20 ms of the agent's audio leave."""
        self._echo.send(frame, now)

    def output_began(self, now: float) -> None:
        """The first frame of an answer leaves. It answers a turn that is still open: that one is over."""
        if self._turn is not None:
            self._end_turn(self._turn, "answered", now)
        if not self._output.speaking:
            self._echo.forget()
        self._output.begin(self._microphone.position)
        self._last_pause = None
        self._silence.broken()

    def output_ending(self, remaining: float, now: float) -> None:
        """The agent has said all: so many seconds are still queued."""
        self._output.ending(remaining, now)

    def output_over(self, now: float) -> None:
        """All of it was heard, or it was dropped."""
        if not self._output.speaking:
            return
        microphone = self._microphone
        overlap, seen = self._overlap, self._seen(now)
        self._output.over(microphone.position)
        self._overlap = None
        if seen is not None:
            self._policy.over(seen, False)
        if overlap is not None and seen is not None and self._is_next_turn(overlap, seen):
            self._start_turn(overlap.onset, overlap.said)
        else:
            self._silence.began(now, microphone.position, after_answer=True)

    def protect(self, on: bool, now: float) -> None:
        """From here on speech does not interrupt, or does again."""
        self._output.protected = on
        if on and self._output.held:
            self._resume_output("protected", now)

    # --- verdicts and settings ---

    def take_verdict(self, verdict: Verdict, now: float) -> None:
        """Of a judge that is not inline, or the agent's own."""
        turn = self._turn
        if turn is None or turn.pause is None or turn.pause.id != verdict.pause_id:
            self._decide(VerdictDropped(verdict))
            return
        self._judged(turn, turn.pause, verdict, now)
        self._end_if_due(turn, turn.pause, now)

    def take_transcript(self, text: str, now: float) -> None:
        """What the agent has made of the open turn, or of the overlap, so far."""
        if self._turn is not None:
            self._turn.transcript = text
        elif self._overlap is not None:
            self._overlap.said = text
            self._ask_policy(self._overlap, now)

    def configure(self, settings: TurnSettings, judge: TurnJudge, now: float) -> None:
        """`session.update` within a call. A pause that lasts is put to the new judge from its beginning."""
        self._settings = settings
        self._judge = judge
        if self._turn is not None and self._turn.pause is not None:
            pause = self._turn.pause
            pause.asked, pause.hold = 0, math.inf
        if not settings.interrupts and self._output.held:
            self._resume_output("protected", now)

    # --- time ---

    def next_deadline(self) -> float | None:
        deadline = min(self._microphone_deadline(), self._silence_deadline())
        return deadline if deadline < math.inf else None

    def handle_timeout(self, now: float) -> None:
        due = self._microphone_deadline()
        if now >= due - _EPSILON and not self._excuse(due, now):
            self._without_frames(now)
        if now >= self._silence_deadline() - _EPSILON:
            self._tell_silence(now)

    # --- what was decided ---

    def poll_decision(self) -> Decision | None:
        return self._decisions.popleft() if self._decisions else None

    def statistics(self) -> dict[str, int]:
        """By kind of decision and its reason, as in `TurnEnded.max_silence`; plus what was in vain."""
        return dict(self._counts)

    # --- within a turn ---

    def _in_turn(self, turn: OpenTurn, now: float) -> None:
        microphone = self._microphone
        most = self._settings.max_turn
        if most is not None and microphone.position - turn.onset >= most * PCM_RATE:
            self._end_turn(turn, "max_turn", now)
            return
        pause = turn.pause
        if pause is None:
            if microphone.position - microphone.voice_end >= PAUSE_AFTER * PCM_RATE:
                self._begin_pause(turn, now)
        elif microphone.evidence >= LIKELY:
            self._resume(turn, pause)
        else:
            self._ask_if_due(turn, pause, now)

    def _begin_pause(self, turn: OpenTurn, now: float) -> None:
        self._pauses += 1
        began = self._microphone.voice_end
        silence = self._microphone.silence(now)
        ceiling_at = now + max(0.0, self._settings.max_silence - silence) + STALL
        turn.pause = OpenPause(self._pauses, began, ceiling_at)
        self._decide(PauseBegan(self._pauses, began))
        self._ask_if_due(turn, turn.pause, now)

    def _resume(self, turn: OpenTurn, pause: OpenPause) -> None:
        turn.pause = None
        silence = max(0, self._microphone.onset - pause.began) / PCM_RATE
        if pause.eager:
            self._count("eager_wasted")
        self._decide(Resumed(pause.id, silence, pause.eager))
        self._judge.resumed(self._told(turn, pause, silence))

    def _ask_if_due(self, turn: OpenTurn, pause: OpenPause, now: float) -> None:
        """Put the pause to the judge when the schedule says so, and end the turn when that is due."""
        schedule = self._judge.schedule
        silence = self._silence_in(pause, now)
        if pause.asked < len(schedule) and silence >= schedule[pause.asked] - _EPSILON:
            asked = self._told(turn, pause, silence)
            pause.asked += 1
            if self._judge.inline:
                verdict = self._judge.judge(asked)
                self._judged(turn, pause, verdict._replace(pause_id=pause.id), now)
            else:
                self._decide(JudgeAsked(asked))
        self._end_if_due(turn, pause, now)

    def _judged(self, turn: OpenTurn, pause: OpenPause, verdict: Verdict, now: float) -> None:
        pause.hold, pause.reason = verdict.hold, verdict.reason
        self._decide(Judged(verdict, self._silence_in(pause, now)))
        if not (verdict.eager and self._settings.eager) or pause.eager:
            return
        if turn.eager_ends >= MAX_EAGER or pause.began - turn.onset > MAX_EAGER_SPEECH * PCM_RATE:
            self._count("eager_refused")
            return
        turn.eager_ends += 1
        pause.eager = True
        self._decide(EagerEnd(pause.id))

    def _end_if_due(self, turn: OpenTurn, pause: OpenPause, now: float) -> None:
        silence = self._silence_in(pause, now)
        if silence >= self._settings.max_silence - _EPSILON or now >= pause.ceiling_at:
            self._end_turn(turn, "max_silence", now)
        elif silence >= pause.hold - _EPSILON and self._microphone.evidence == 0:
            self._end_turn(turn, pause.reason, now)

    def _end_turn(self, turn: OpenTurn, reason: str, now: float) -> None:
        microphone, pause = self._microphone, turn.pause
        self._turn = None
        self._ended_at = microphone.position
        silence = microphone.silence(now) if pause is None else self._silence_in(pause, now)
        eager = pause is not None and pause.eager
        self._decide(TurnEnded(pause.id if pause else None, microphone.position, silence, reason, eager))
        self._last_pause = None if pause is None else self._told(turn, pause, silence)
        if self._last_pause is not None:
            self._judge.ended(self._last_pause)
        if reason == "max_turn" and pause is None:
            # What follows at once is another turn: no evidence is asked of it again.
            microphone.evidence = MOST - 1
            microphone.onset = microphone.position
        else:
            microphone.evidence = 0
        self._silence.began(now, microphone.position, after_answer=False)

    def _told(self, turn: OpenTurn, pause: OpenPause, silence: float) -> Pause:
        """The pause as the judge is told of it. It may look at the audio from a thread."""
        frames = self._microphone.audio_since(turn.began)
        return Pause(
            id=pause.id,
            silence=silence,
            speech=(pause.began - turn.onset) / PCM_RATE,
            asked=pause.asked,
            audio=lambda: b"".join(frames),
            transcript=turn.transcript,
        )

    def _silence_in(self, pause: OpenPause, now: float) -> float:
        return self._microphone.silence(now)

    # --- while nobody has the turn ---

    def _in_silence(self, hop: Hop, now: float) -> None:
        microphone = self._microphone
        ended = self._output.ended
        if ended is not None and microphone.position - ended < ECHO_TAIL * PCM_RATE:
            self._echo.hear(hop.level, microphone.position / PCM_RATE, now)
            if microphone.evidence == MOST and self._echo.share() >= ECHO_MOST:
                return
        if microphone.evidence == MOST:
            self._start_turn(microphone.onset, None)
        elif not microphone.evidence:
            microphone.keep(self._kept_frames())
            self._tell_silence_if_due(now)

    def _start_turn(self, onset: int, said: str | None) -> None:
        began = max(self._ended_at, onset - round(self._settings.prefix_padding * PCM_RATE))
        self._turn = OpenTurn(began, onset, transcript=said)
        self._silence.broken()
        self._decide(SpeechStarted(began))
        pause, self._last_pause = self._last_pause, None
        if pause is not None:
            silence = pause.silence + (onset - self._ended_at) / PCM_RATE
            if silence - pause.silence <= WENT_ON:
                self._count("went_on")
                self._judge.resumed(replace(pause, silence=silence))

    def _kept_frames(self) -> int:
        return MOST + round(self._settings.prefix_padding * PCM_RATE) // FRAME_SAMPLES

    # --- over the output ---

    def _over_output(self, hop: Hop, now: float) -> None:
        microphone = self._microphone
        self._echo.hear(hop.level, microphone.position / PCM_RATE, now)
        overlap = self._overlap
        if overlap is None:
            if not hop.voiced:
                microphone.keep(self._kept_frames())
                return
            overlap = self._overlap = OpenOverlap(microphone.position - FRAME_SAMPLES)
        overlap.hear(hop, microphone.position, microphone.evidence >= LIKELY)
        silence = (microphone.position - overlap.last_voice) / PCM_RATE
        if not self._output.held and (
            silence >= OVERLAP_OVER if overlap.likely else microphone.evidence == 0
        ):
            self._settle_overlap(now, "over")
        else:
            self._ask_policy(overlap, now)

    def _ask_policy(self, overlap: OpenOverlap, now: float) -> None:
        output = self._output
        if output.protected or not self._settings.interrupts:
            return
        seen = self._seen(now)
        assert seen is not None  # there is an overlap
        action, reason = self._policy.decide(seen)
        undecided = action is Action.IGNORE or action is Action.PAUSE
        if undecided and output.held_since is not None and now - output.held_since >= HELD_MOST - _EPSILON:
            action, reason = (Action.STOP if seen.silence < PAUSE_AFTER else Action.RESUME), "held"
        if action is Action.STOP:
            self._stop_output(overlap, seen, reason)
        elif action is Action.PAUSE and not output.held:
            output.hold(now)
            self._decide(OutputPaused(reason))
        elif action is Action.RESUME and output.held:
            self._resume_output(reason, now)
            if seen.silence >= PAUSE_AFTER:
                self._settle_overlap(now, reason)

    def _stop_output(self, overlap: OpenOverlap, seen: Overlap, reason: str) -> None:
        self._overlap = None
        self._output.over(self._microphone.position)
        self._decide(OutputStopped(reason))
        self._policy.over(seen, True)
        self._start_turn(overlap.onset, overlap.said)

    def _resume_output(self, reason: str, now: float) -> None:
        self._output.release(now)
        self._decide(OutputResumed(reason))

    def _settle_overlap(self, now: float, reason: str) -> None:
        """It was no interruption."""
        seen = self._seen(now)
        self._overlap = None
        if self._output.held:
            self._resume_output(reason, now)
        if seen is not None:
            self._policy.over(seen, False)

    def _seen(self, now: float) -> Overlap | None:
        """The overlap as the policy is told of it."""
        overlap, output, microphone = self._overlap, self._output, self._microphone
        if overlap is None:
            return None
        missing = now - microphone.heard_at if microphone.heard_at is not None else 0.0
        return Overlap(
            seconds=(microphone.position - overlap.onset) / PCM_RATE,
            voiced=overlap.voiced,
            silence=(microphone.position - overlap.last_voice) / PCM_RATE
            + (missing if missing >= STALL else 0.0),
            level=overlap.level,
            echo=self._echo.share(),
            agent=output.spoken(microphone.position),
            remaining=output.remaining(now),
            paused=output.held,
            words=None if overlap.said is None else len(overlap.said.split()),
            said=overlap.said,
        )

    def _is_next_turn(self, overlap: OpenOverlap, seen: Overlap) -> bool:
        """Whether speech that the output ended under is the person's turn."""
        if not overlap.likely or seen.echo >= ECHO_MOST:
            return False
        return seen.silence < PAUSE_AFTER or seen.seconds <= LAST_WORDS

    # --- timers ---

    def _microphone_deadline(self) -> float:
        """When something is due should no frame come."""
        microphone = self._microphone
        if microphone.heard_at is None:
            return math.inf
        if self._turn is not None:
            pause = self._turn.pause
            if pause is None:
                return microphone.heard_at + STALL
            wanted = min(pause.hold, self._settings.max_silence)
            if pause.asked < len(self._judge.schedule):
                wanted = min(wanted, self._judge.schedule[pause.asked])
            silent_at = microphone.silent_at(wanted)
            return min(math.inf if silent_at is None else silent_at, pause.ceiling_at)
        if self._output.held_since is not None:
            return max(microphone.heard_at + STALL, self._output.held_since + HELD_MOST)
        return math.inf

    def _without_frames(self, now: float) -> None:
        """No frame came for so long that it is silence, or too few for a turn's ceiling."""
        microphone = self._microphone
        microphone.evidence = 0
        if self._turn is not None:
            if self._turn.pause is None:
                self._begin_pause(self._turn, now)
            else:
                self._ask_if_due(self._turn, self._turn.pause, now)
        elif self._overlap is not None:
            self._ask_policy(self._overlap, now)

    def _excuse(self, due: float, now: float) -> bool:
        """Everything was held up, frames may be waiting: they get their time once more."""
        if not self._microphone.excuse(due, now):
            return False
        if self._turn is not None and self._turn.pause is not None:
            self._turn.pause.ceiling_at = max(self._turn.pause.ceiling_at, now + STALL)
        return True

    def _silence_deadline(self) -> float:
        settings, silence = self._settings, self._silence
        due = min(silence.idle_at(settings.idle_timeout), silence.user_at(settings.user_idle))
        heard_at = self._microphone.heard_at
        if due < math.inf and self._microphone.evidence and heard_at is not None:
            return max(due, heard_at + STALL)  # somebody may be about to speak
        return due

    def _tell_silence_if_due(self, now: float) -> None:
        if now >= self._silence_deadline():
            self._tell_silence(now)

    def _tell_silence(self, now: float) -> None:
        settings, silence = self._settings, self._silence
        if now >= silence.idle_at(settings.idle_timeout) - _EPSILON:
            silence.idle_told()
            self._decide(IdleTimeout(silence.from_sample, self._microphone.position))
        if settings.user_idle is not None and now >= silence.user_at(settings.user_idle) - _EPSILON:
            silence.user_told()
            self._decide(UserIdle(settings.user_idle))

    # --- counting ---

    def _decide(self, decision: Decision) -> None:
        self._decisions.append(decision)
        kind = type(decision).__name__
        reason = (
            decision.verdict.reason if isinstance(decision, Judged) else getattr(decision, "reason", None)
        )
        self._count(kind if reason is None else f"{kind}.{reason}")

    def _count(self, what: str) -> None:
        if what not in self._counts and len(self._counts) >= _MOST_COUNTS:
            what = "other"
        self._counts[what] = self._counts.get(what, 0) + 1
