"""The turn machine: sound, verdicts, the agent's output and timers in, decisions out. Pure.

    the person:   quiet ──speech──► turn ──silence──► pause ──verdict or ceiling──► quiet
                                      ▲                 │
                                      └─────speech──────┘
    the agent:    quiet ──began──► speaking ──overlap──► held ──► speaking, or stopped: its overlap is a turn

Rules. At most one turn is open, and none while the agent speaks: what is said meanwhile is an overlap, and
becomes a turn when it is confirmed or when the answer ends under it. Where speech does not interrupt
(`TurnSettings.interrupts`) there are no overlaps: turns are as if the agent were silent. A verdict holds for
the pause it names and for no other; speech voids it. Silence is counted in the microphone's own line from the
last voice, so a burst or a jump of the clock ends nothing; only when no frame comes does real time count.
Whoever calls drains `poll_decision` after each input, and calls `handle_timeout` at `next_deadline`.
"""

from __future__ import annotations

import math

from voicegate.media.codec import FRAME_SAMPLES, PCM_RATE
from voicegate.media.turns.agent import Agent, Speech
from voicegate.media.turns.decisions import Decision, IdleTimeout, UserIdle
from voicegate.media.turns.idle import Silence
from voicegate.media.turns.ledger import Ledger
from voicegate.media.turns.microphone import EPSILON, MOST, STALL, Microphone
from voicegate.media.turns.person import Person
from voicegate.media.turns.plugins import Hop, InterruptionPolicy, TurnJudge, Verdict, VoiceActivity
from voicegate.media.turns.settings import TurnSettings


class TurnMachine:
    """One call's. The plug-ins are this call's own, too."""

    def __init__(
        self, settings: TurnSettings, activity: VoiceActivity, judge: TurnJudge, policy: InterruptionPolicy
    ) -> None:
        self._settings = settings
        self._judge = judge
        self._ledger = Ledger()
        self._microphone = Microphone(activity)
        self._person = Person(settings, judge, self._microphone, self._ledger)
        self._agent = Agent(policy, self._microphone, self._ledger, interruptible=settings.interrupts)
        self._silence = Silence()
        self._kept = _kept_frames(settings)

    def number_pauses_from(self, last: int) -> None:
        """Before anything is heard: this machine follows another, and late verdicts on that one's pauses, up
        to `last`, are about none of ours."""
        self._person.number_pauses_from(last)

    # --- the microphone ---

    def push(self, pcm: bytes, now: float) -> None:
        """Some more of the microphone: 24 kHz s16le mono, any whole number of samples."""
        microphone, person = self._microphone, self._person
        if microphone.heard_at is None and not self._agent.speaking:
            self._silence.began(now, 0, after_answer=False)
        for frame in microphone.frames(pcm, now):
            hop = microphone.detect(frame)
            echo = self._agent.is_echo(hop, now)
            if echo:
                hop = Hop(False, hop.level)
            microphone.hear(frame, hop)
            self._judge.listen(frame, hop)
            if person.has_turn:
                self._agent.hear_turn(hop)
                person.hear(now)
                self._note_end(now)
            elif self._agent.speaking and self._settings.interrupts:
                self._begin_turn(self._agent.hear(hop, echo, now))
            else:
                self._hear_silence(now)

    def clear(self, now: float) -> None:
        """`input_audio_buffer.clear`: what was said is void, and no turn comes of it."""
        had_turn = self._person.has_turn
        self._person.clear(now)
        if had_turn:
            self._note_end(now)
        self._agent.clear(now)
        self._microphone.restart()

    def commit(self, now: float) -> None:
        """`input_audio_buffer.commit`: an open turn is over because the client says so."""
        if self._person.has_turn:
            self._person.end("commit", now)
            self._note_end(now)

    # --- the agent ---

    def push_output(self, frame: bytes, now: float) -> None:
        """20 ms of the agent's audio leave."""
        self._agent.send(frame, now)

    def output_began(self, now: float) -> None:
        """The first frame of an answer leaves. A turn that is still open is over: it is being answered,
        unless both may speak."""
        if self._settings.interrupts or not self._person.has_turn:
            self._person.answered(now)
        self._agent.begin()
        self._silence.broken()

    def output_goes_on(self, now: float) -> None:
        """The answer that is held, or was stopped by our word, is let go on by somebody else's."""
        self._agent.go_on(now)
        self.output_began(now)

    def output_ending(self, remaining: float, now: float) -> None:
        """The agent has said all: so many seconds are still queued."""
        self._agent.ending(remaining, now)

    def output_over(self, now: float) -> None:
        """All of it was heard, or it was dropped."""
        if not self._agent.speaking:
            return
        speech = self._agent.over(now)
        if self._person.has_turn:
            return
        self._silence.began(now, self._microphone.position, after_answer=True)
        self._begin_turn(speech)

    def protect(self, on: bool, now: float) -> None:
        """From here on speech does not interrupt, or does again."""
        self._agent.protect(on, now)

    # --- verdicts and settings ---

    def take_verdict(self, verdict: Verdict, now: float) -> None:
        """Of a judge that is not inline, or the agent's own."""
        had_turn = self._person.has_turn
        self._person.take_verdict(verdict, now)
        if had_turn:
            self._note_end(now)

    def take_transcript(self, text: str, now: float) -> None:
        """What the agent has made of the open turn, or of the overlap, so far."""
        if self._person.has_turn:
            self._person.take_transcript(text)
        else:
            self._begin_turn(self._agent.take_transcript(text, now))

    def configure(self, settings: TurnSettings, judge: TurnJudge, now: float) -> None:
        """`session.update` within a call. A pause that lasts is put to the new judge from its beginning."""
        self._settings = settings
        self._judge = judge
        self._kept = _kept_frames(settings)
        self._person.configure(settings, judge)
        self._agent.configure(settings.interrupts, now)

    # --- time ---

    def next_deadline(self) -> float | None:
        """When to call `handle_timeout`; None while nothing can fall due."""
        deadline = min(self._frames_due(), self._agent.held_until(), self._silence_due())
        return deadline if deadline < math.inf else None

    def handle_timeout(self, now: float) -> None:
        """Time has passed, and perhaps no frame has come."""
        due = self._frames_due()
        if now >= due - EPSILON:
            if self._microphone.excuse(due, now):
                self._person.excuse(now)
            else:
                self._without_frames(now)
        if now >= self._agent.held_until() - EPSILON:
            self._begin_turn(self._agent.held_for_long(now))
        self._tell_silence(now)

    # --- what was decided ---

    def poll_decision(self) -> Decision | None:
        """The next one, in the order of their causes."""
        return self._ledger.poll()

    def statistics(self) -> dict[str, int]:
        """By kind of decision and its reason, as in `TurnEnded.max_silence`; plus what was in vain."""
        return self._ledger.counts()

    def _hear_silence(self, now: float) -> None:
        """A frame while nobody has the turn."""
        microphone = self._microphone
        if microphone.evidence == MOST:
            self._begin_turn(Speech(microphone.onset, None))
        elif not microphone.evidence:
            microphone.keep(self._kept)
            self._tell_silence(now)

    def _begin_turn(self, speech: Speech | None) -> None:
        if speech is not None:
            self._silence.broken()
            self._person.begin(*speech)

    def _note_end(self, now: float) -> None:
        """A turn was open. Where it is not any more, nobody speaks."""
        if not self._person.has_turn and not self._agent.speaking:
            self._silence.began(now, self._microphone.position, after_answer=False)

    def _frames_due(self) -> float:
        """When something falls due that frames would have shown."""
        return min(self._person.deadline(), self._agent.deadline())

    def _without_frames(self, now: float) -> None:
        self._microphone.expect_nothing()
        if self._person.has_turn:
            self._person.without_frames(now)
            self._note_end(now)
        else:
            self._begin_turn(self._agent.without_frames(now))

    def _silence_due(self) -> float:
        settings, microphone = self._settings, self._microphone
        due = min(self._silence.idle_at(settings.idle_timeout), self._silence.user_at(settings.user_idle))
        if microphone.evidence and microphone.heard_at is not None and due < math.inf:
            return max(due, microphone.heard_at + STALL)  # somebody may be about to speak
        return due

    def _tell_silence(self, now: float) -> None:
        settings, silence = self._settings, self._silence
        if now < self._silence_due() - EPSILON:
            return
        if now >= silence.idle_at(settings.idle_timeout) - EPSILON:
            silence.idle_told()
            self._ledger.decide(IdleTimeout(silence.from_sample, self._microphone.position))
        if settings.user_idle is not None and now >= silence.user_at(settings.user_idle) - EPSILON:
            silence.user_told()
            self._ledger.decide(UserIdle(settings.user_idle))


def _kept_frames(settings: TurnSettings) -> int:
    """Frames of audio to keep while nobody speaks: what a turn that begins now needs."""
    return MOST + math.ceil(settings.prefix_padding * PCM_RATE / FRAME_SAMPLES)
