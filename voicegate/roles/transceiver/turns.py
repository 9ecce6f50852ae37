"""The turn half of a call's conversation: what the turn machine decides becomes events, commits, responses
and silence. Pure. docs/turns.md says how the data goes, `detection` who decides what in which mode.

The conversation gives it the microphone and tells what happens; each of these calls ends with all decisions
carried out.
"""

from __future__ import annotations

from typing import Final

from voicegate.media.convert import Listener, hearing_pcm
from voicegate.media.turns import decisions as d
from voicegate.media.turns.machine import TurnMachine
from voicegate.media.turns.plugins import TurnJudge, Verdict
from voicegate.proto import realtime
from voicegate.roles.transceiver.agent_commits import AgentCommits
from voicegate.roles.transceiver.answers import Answers
from voicegate.roles.transceiver.detection import Detection, Mode
from voicegate.roles.transceiver.eager import EagerReply, HeldEvent
from voicegate.roles.transceiver.input_buffer import InputBuffer
from voicegate.roles.transceiver.input_gate import InputGate
from voicegate.roles.transceiver.outbox import Outbox
from voicegate.roles.transceiver.playback import CallMedia
from voicegate.roles.transceiver.replies import Replies
from voicegate.roles.transceiver.turn_events import Question, TurnEvents
from voicegate.roles.transceiver.turn_plan import TurnPlan
from voicegate.roles.transceiver.upstream import Upstream, What

CONFIRM_SECONDS: Final = 1.0
"""Mode upstream: how long the agent's voice is held for the agent's word. An agent hears a person begin
within some 300 ms and a round trip; a silence that lasts longer than this is taken for a fault."""

_TRANSCRIBES: Final = "conversation.item.input_audio_transcription.delta"


class Turns:
    """One call's."""

    def __init__(
        self,
        plan: TurnPlan,
        media: CallMedia,
        upstream: Upstream,
        outbox: Outbox,
        answers: Answers,
    ) -> None:
        self.mode = Mode.MANUAL
        self.events = TurnEvents(outbox)
        self._plan = plan
        self._settings = plan.defaults
        self._media = media
        self._playback = answers.playback
        self._responses = answers.responses
        self._upstream = upstream
        self._stop = answers.stop
        self._outbox = outbox
        self._buffer = InputBuffer(upstream, outbox)
        self._replies = Replies(upstream, answers.responses)
        self._eager = EagerReply(media, upstream, answers.responses, answers.playback)
        self._agent = AgentCommits()
        self._machine: TurnMachine | None = None
        self._machine_hears: Listener | None = None
        self._judge: TurnJudge | None = None
        self._places = _Places()
        self._confirm_by: float | None = None

    # What is wanted

    def configure(self, detection: Detection, now: float) -> None:
        """From now on turns are detected so."""
        if detection.mode is self.mode and detection.settings == self._settings:
            return  # the session has changed in something else: a judge keeps what it has learned
        listening = self._plan.listening
        listens = detection.ours or (
            detection.mode is Mode.UPSTREAM and self._plan.pause_upstream and detection.settings.interrupts
        )
        changed = detection.mode is not self.mode
        if changed:
            self._leave_mode(now)
        self.mode, self._settings = detection.mode, detection.settings
        if listening is None or not listens:
            self._machine = self._judge = None
            self._media.listen_to_output(None)
        elif self._machine is None or changed:
            self._machine, self._judge = listening.machine(detection.settings)
            self._machine.number_pauses_from(self._places.pause_id)
            self._places.base = self._places.heard
            line = self._media.line
            self._machine_hears = hearing_pcm(self._machine.push, line.heard)
            self._media.listen_to_output(hearing_pcm(self._machine.push_output, line.said))
            if self._playback.audible:
                self._machine.output_began(now)
        else:
            self._judge = listening.judge(detection.settings)
            self._machine.configure(detection.settings, self._judge, now)
            self._carry_out(now)
        if self.mode is Mode.GATEWAY and changed:
            self._buffer.gate = InputGate(
                self._upstream.send_audio,
                self._places.heard,
                self._media.line.heard,
                keeps=detection.settings.eager,
            )

    def close(self, now: float) -> None:
        """The agent is gone."""
        self._leave_mode(now)
        self._machine = self._judge = None
        self.mode = Mode.MANUAL

    def _leave_mode(self, now: float) -> None:
        """What is held is let go."""
        if self._eager.held:
            self._show(self._eager.keep(now))
        self._eager.reset()
        self._media.resume_playing(now)
        self._confirm_by = None
        self._replies.forget()
        self._agent = AgentCommits()
        self._buffer.give_up(self._places.heard)
        self._buffer.gate = None

    # What is heard and said

    def hear(self, pcm: bytes, now: float) -> None:
        """The next of the microphone, for the agent and the machine."""
        self._places.heard += self._media.line.heard.samples(pcm)
        gate = self._buffer.gate
        if gate is None:
            self._upstream.send_audio(pcm)
        else:
            gate.take(pcm, self._places.heard)
        if self._machine is not None and self._machine_hears is not None:
            self._machine_hears(pcm, now)
            self._carry_out(now)

    def output(self, kind: str, response_id: str, now: float) -> None:
        """The output audio buffer's `started`, `stopped` or `cleared`."""
        machine = self._machine
        if machine is None:
            return
        if kind == "started":
            machine.output_began(now)
            machine.protect(not self._responses.interruptible(response_id), now)
        elif not self._playback.audible:
            self._confirm_by = None
            machine.output_over(now)
            self._let_play(now)  # it was held in its last frame: the next answer is not to be
        self._carry_out(now)

    def output_ending(self, now: float) -> None:
        """The agent has said all of its response."""
        if self._machine is not None and self._playback.audible:
            self._machine.output_ending(self._media.queued_samples / realtime.SAMPLE_RATE, now)
            self._carry_out(now)

    def output_emptied(self, now: float) -> None:
        """A client has dropped what was queued, and a pause with it: a reply that is held stays so."""
        if self._eager.held:
            self._media.pause_playing(now)

    # What the agent says

    def show(self, kind: str, raw: bytes) -> bytes | None:
        """An event of the agent's as the clients see it; None: not at all, or not yet."""
        if self._eager.takes(kind, raw):
            return None
        return self._buffer.aliases.for_clients(kind, raw)

    def hides(self, response_id: str) -> bool:
        """Whether the clients know nothing of this response."""
        return self._eager.hides(response_id)

    def agent_heard_speech(self, *, interrupts: bool) -> bool:
        """The agent's `speech_started`; whether it is an interruption, by the agent's own word.

        `interrupts`: it lets itself be interrupted. One that does not confirms nothing.
        """
        if self.mode is Mode.HYBRID:
            self._agent.speech_started()
        if not interrupts or self.mode not in (Mode.UPSTREAM, Mode.MANUAL):
            return False
        if self._confirm_by is not None:
            self.events.tell("output_stopped", "upstream", {})
            self._confirm_by = None
        return True

    def agent_heard_silence(self, now: float) -> None:
        """The agent's `speech_stopped`."""
        if self.mode is Mode.UPSTREAM and self._machine is not None:
            self._machine.commit(now)
            self._carry_out(now)

    def agent_event(self, kind: str, raw: bytes, now: float) -> None:
        """Any other event of the agent's, before `show`."""
        if kind == "input_audio_buffer.committed":
            self._agent_committed(raw, now)
        elif kind == _TRANSCRIBES and self.mode is Mode.HYBRID and self._machine is not None:
            words = self._agent.understood(realtime.item_id_of(raw), realtime.delta_of(raw))
            if words is not None:
                self._machine.take_transcript(words, now)
                self._carry_out(now)

    def _agent_committed(self, raw: bytes, now: float) -> None:
        item_id = self._buffer.committed(raw)
        self._eager.committed(item_id)
        if self._agent.committed(item_id):
            self._replies.want(now)
        if self.mode is Mode.HYBRID and self._settings.judge == "upstream" and self._machine is not None:
            self.take_verdict(Verdict(self._places.pause_id, 1.0, 0.0, "upstream"), now)

    def response_created(self, response_id: str, now: float) -> None:
        """A response has begun: nobody's wish any more where the person speaks again."""
        self._eager.response_created(response_id, now)
        if self._replies.created():
            self._stop(now)

    def response_over(self, response_id: str, now: float) -> None:
        """A response is done, here or there."""
        self._eager.response_over(response_id)
        self._replies.advance(now)

    def refused(self, what: What, event_id: str, about: str, now: float) -> None:
        """The agent's error about an event of ours."""
        if what == "create":
            self._replies.refused(event_id, about, now)
            self._replies.advance(now)
        elif what == "commit":
            self._buffer.refused(event_id)
        self._eager.refused(what)

    def client_refused(self, event_id: str, about: str) -> None:
        """The agent's error about an event of a client's."""
        if event_id or "commit" in about.lower():
            self._buffer.refused(event_id)

    # What the clients say

    def for_agent(self, kind: str, raw: bytes) -> bytes:
        """A client's event as the agent knows its items."""
        return self._buffer.aliases.for_agent(kind, raw)

    def client_commits(self, event_id: str, now: float) -> None:
        """A client's commit is about to go out."""
        self._buffer.client_commits(event_id)
        if self._machine is not None:
            self._machine.commit(now)
            self._carry_out(now, commits=False)

    def client_clears(self, now: float) -> None:
        """A client's clear is about to go out."""
        if self._machine is not None:
            self._machine.clear(now)
            self._carry_out(now)
        self._buffer.cleared(self._places.heard)

    # Judges in threads

    def take_verdict(self, verdict: Verdict, now: float) -> None:
        """A judge's answer to a question."""
        if self._machine is not None:
            self._machine.take_verdict(verdict, now)
            self._carry_out(now)

    # Time

    def handle_timeout(self, now: float) -> None:
        if self._machine is not None:
            self._machine.handle_timeout(now)
            self._carry_out(now)
        if self._confirm_by is not None and self._confirm_by <= now:
            self._confirm_by = None
            self.events.tell("output_resumed", "unconfirmed", {})
            self._go_on(now)
        self._replies.advance(now)
        match self._agent.handle_timeout(now):
            case "commit":
                self._buffer.commit()
                self._replies.want(now)
            case "unheard":
                self.events.tell("unheard", "", {})

    def statistics(self) -> dict[str, int]:
        """Decisions by kind and reason."""
        counts = {
            f"turn_{what}{f'_{reason}' if reason else ''}": n
            for (what, reason), n in self.events.counts.items()
        }
        return {**counts, "turn_events_lost": self._eager.lost_events}

    def next_deadline(self) -> float | None:
        deadline = None if self._machine is None else self._machine.next_deadline()
        for other in (self._confirm_by, self._agent.deadline, self._replies.deadline):
            if other is not None and (deadline is None or other < deadline):
                deadline = other
        return deadline

    # Decisions

    def _carry_out(self, now: float, *, commits: bool = True) -> None:
        """`commits`: the end of a turn is to be told to the agent."""
        machine = self._machine
        while machine is not None and (decision := machine.poll_decision()) is not None:
            if isinstance(decision, d.OutputStopped) and self.mode is Mode.UPSTREAM:
                continue  # that is the agent's to say
            self.events.decided(decision, self._places.base)
            match decision:
                case d.PauseBegan(pause_id):
                    self._places.pause_id = pause_id
                case d.SpeechStarted():
                    self._speech_started(decision, now)
                case d.TurnEnded():
                    self._turn_ended(decision, now, commits=commits)
                case d.OutputPaused():
                    self._output_paused(now)
                case d.OutputResumed():
                    self._confirm_by = None
                    self._go_on(now)
                case d.OutputStopped():
                    self._stop(now)
                case d.JudgeAsked(pause) if self._judge is not None:
                    self.events.ask(Question(self._judge, pause))
                case d.EagerEnd():
                    self._ask_early(now)
                case d.Resumed(_, _, True):
                    self._take_back(now)
                case d.IdleTimeout() if self.mode is not Mode.UPSTREAM:
                    self._buffer.commit_silence(decision, self._places.base)
                    self._replies.want(now)

    def _speech_started(self, decision: d.SpeechStarted, now: float) -> None:
        if self.mode is Mode.UPSTREAM:
            return
        self._agent.turn_began()
        if self.mode is Mode.GATEWAY:
            self._buffer.begin(self._places.base + decision.at)
        if self._settings.interrupts and self._responses.all_interruptible():
            self._replies.forget()
            self._stop(now)

    def _turn_ended(self, ended: d.TurnEnded, now: float, *, commits: bool) -> None:
        if self.mode is Mode.GATEWAY:
            self._buffer.stopped(self._places.base + ended.at)
            if self._eager.held:
                self.events.tell("eager_kept", "", {})
                self._show(self._eager.keep(now))
            elif commits:
                self._buffer.commit()
                self._ask(now)
            self._buffer.over()
        elif self.mode is Mode.HYBRID and commits and self._settings.create_response:
            self._end_hybrid(now)

    def _end_hybrid(self, now: float) -> None:
        if self._agent.turn_ended(now):
            self._replies.want(now)

    def _ask(self, now: float) -> None:
        if self._settings.create_response:
            self._replies.want(now)

    def _output_paused(self, now: float) -> None:
        self._media.pause_playing(now)
        if self.mode is Mode.UPSTREAM:
            self._confirm_by = now + CONFIRM_SECONDS

    def _go_on(self, now: float) -> None:
        self._let_play(now)
        if not self._eager.held:
            self._playback.advance(now)
            if self.mode is Mode.UPSTREAM and self._machine is not None and self._playback.audible:
                self._machine.output_goes_on(now)  # it may have taken the overlap for an interruption

    def _let_play(self, now: float) -> None:
        if not self._eager.held:
            self._media.resume_playing(now)

    # A reply before its time

    def _ask_early(self, now: float) -> None:
        gate = self._buffer.gate
        if gate is None or not gate.kept_whole() or not self._settings.create_response:
            return  # then the end of the turn is where all is asked for
        if self._playback.audible or not self._replies.free:
            return
        self._buffer.commit()
        self._eager.begin(now)
        self._replies.want(now)

    def _take_back(self, now: float) -> None:
        gate = self._buffer.gate
        if gate is None or not self._eager.held:
            return
        self.events.tell("eager_wasted", "", {})
        self._replies.forget()
        self._show(self._eager.drop(now))
        gate.repeat()

    def _show(self, held: list[HeldEvent]) -> None:
        for kind, raw in held:
            self._outbox.pass_from_agent(kind, self._buffer.aliases.for_clients(kind, raw))


class _Places:
    """Where the microphone is: samples since the start of the call."""

    __slots__ = ("base", "heard", "pause_id")

    def __init__(self) -> None:
        self.base = 0
        """Before the machine began to count."""
        self.heard = 0
        self.pause_id = 0
        """The newest pause."""
