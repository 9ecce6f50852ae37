"""One transceiver at work: its core, driven in turns, and a task for each call's agent.

Packets are fed to the core in batches, inline: no task switch per packet. Everything the core produced in one
turn leaves in one `_pump`.
"""

from __future__ import annotations

import math
import random
import secrets
import time
from collections.abc import Iterable
from functools import lru_cache
from typing import TYPE_CHECKING, NamedTuple

import msgspec
import trio

from voicegate import logs, metrics
from voicegate.agents.dialing import audio_formats, configured_session
from voicegate.agents.readers import Readers
from voicegate.agents.realtime import AgentEvent, AgentReady, RealtimeAgent
from voicegate.agents.websocket import AgentLost
from voicegate.config import Config, RecordingConfig
from voicegate.media.turns.plugins import Verdict
from voicegate.net import udp
from voicegate.net.names import Address
from voicegate.net.registry import TransceiverRecord
from voicegate.proto import realtime
from voicegate.proto.address import join_host_port, split_host_port
from voicegate.proto.allocate import AllocateReply, AllocateRequest
from voicegate.proto.dtls import DtlsCertificate
from voicegate.proto.event_filter import EventFilter
from voicegate.roles.context import RoleContext
from voicegate.roles.transceiver.allocation import ENTROPY_LENGTH, Identity, Wishes
from voicegate.roles.transceiver.control import (
    SidebandPort,
)
from voicegate.roles.transceiver.core import Overloaded, TransceiverCore
from voicegate.roles.transceiver.garbage import Garbage
from voicegate.roles.transceiver.life import (
    CLOSE_SECONDS,
    CallLimits,
    Connected,
    Ended,
    EndReason,
)
from voicegate.roles.transceiver.listening import TurnDesk
from voicegate.roles.transceiver.sidebands import Sidebands
from voicegate.roles.transceiver.turn_plan import TurnPlan

if TYPE_CHECKING:
    from voicegate.roles.transceiver.recorder import Recorder

logger = logs.get_logger(__name__)

PUBLISH_SECONDS = 1.0
"""How often the load in the registry is brought up to date; placement reads it, so about a set-up's time."""

MAX_BATCHES = 8
"""Batches of the link read in one turn: 512 packets, some 30 ms of work."""

MAX_TURN_SECONDS = 0.015
"""And none is begun after this long: packets full of small events cost twenty times as much as sound."""

TURN_SECONDS = 0.0016
"""The time between two turns under load, at least: Trio sleeps for whole milliseconds after the work. A
packet waits half of that on average, and a frame leaves that much off its 20-ms grid. Measured with 50 calls
from socket to socket: 1.5 to 1.6 ms and 6.6 to 7.4 ms of CPU a call-second; with 0.001 1.3 to 1.4 and 7.9
to 8.3 (`bench.media`)."""

CALLS_FOR_TURNS = 4
"""From here on a worker has more than one packet or deadline in most turns."""


class _Session(NamedTuple):
    """What the shell keeps about a call beside the core's own."""

    agent: RealtimeAgent
    scope: trio.CancelScope


class Worker:
    """One transceiver's tasks around its core."""

    def __init__(
        self,
        config: Config,
        context: RoleContext,
        record: TransceiverRecord,
        socket: udp.UdpSocket,
        readers: Readers,
        nursery: trio.Nursery,
        turns: TurnPlan,
    ) -> None:
        settings = config.transceiver
        identity = Identity(record.cluster, record.id, record.boot, record.link)
        self._core = TransceiverCore(
            identity,
            context.keys,
            DtlsCertificate.generate(time.time()),
            CallLimits(settings.max_call_seconds, settings.idle_seconds),
            max_calls=settings.max_calls,
            wall_offset=time.time() - trio.current_time(),
            random=random.random,
        )
        self._config = config
        self._registry = context.registry
        self._record = record
        self._socket = socket
        self._nursery = nursery
        self._sessions: dict[str, _Session] = {}
        self._sidebands = Sidebands(self._core, nursery, self._pump)
        self._turn_plan = turns
        self._turn_desk = TurnDesk(nursery, self._take_verdict)
        self._recorder = _open_recorder(config.recording)
        self._readers = readers
        self._turning = False
        """In a turn, at whose end everything is taken at once."""
        self._timer = trio.CancelScope()
        self._empty = trio.Event()
        """Set when the last call has ended after draining began."""
        self._logger = logger.bind(transceiver=record.id)
        self._setup_seconds = metrics.histogram(
            "voicegate_transceiver_setup_seconds", "From the allocation of a call to its DTLS handshake done."
        )

    def start(self) -> None:
        """Start the tasks of this worker in its nursery."""
        for task in (self._run_turns, self._publish):
            self._nursery.start_soon(task)
        self._garbage = Garbage()
        self._forget_metrics = metrics.expose(self.samples)
        self._logger.info("transceiver ready", link=self._record.link, control=self._record.control)

    async def shut_down(self) -> None:
        """Take no more calls, wait `drain_seconds` for those that are here, then hang up on the rest."""
        self._announce(draining=True)
        with trio.move_on_after(self._config.transceiver.drain_seconds):
            if len(self._core):
                await self._empty.wait()
        for call_id in self._core.call_ids():
            self._end(call_id, EndReason.SHUTDOWN)
        with trio.move_on_after(2 * CLOSE_SECONDS):  # data channels close before their calls
            if len(self._core):
                await self._empty.wait()
        if self._recorder is not None:
            await trio.to_thread.run_sync(self._recorder.close)
        await self._registry.withdraw()
        self._forget_metrics()
        self._garbage.close()

    # What the control API asks

    def allocate(self, request: AllocateRequest) -> AllocateReply:
        """Make a call and dial its agent at the same moment. Raises BadOffer, Overloaded."""
        if self._record.draining:
            raise Overloaded
        now = trio.current_time()
        wishes = Wishes(
            request.sdp,
            request.candidates,
            session=realtime.merged(configured_session(self._config.agent), request.session or {}),
            dcid=request.dcid,
            client_events=EventFilter(request.client_events),
            server_events=EventFilter(request.server_events),
            key_id=request.key_id,
            formats=audio_formats(self._config.agent),
            turns=self._turn_plan,
            keep_warm=self._config.transceiver.silence == "dtx",
        )
        call_id, answer = self._core.allocate(wishes, now=now, entropy=secrets.token_bytes(ENTROPY_LENGTH))
        if request.record:
            self._record_call(call_id, now)
        agent = RealtimeAgent(
            self._config.agent,
            call_id,
            model=request.model,
            session=self._core.first_session(call_id),
            line=self._core.line(call_id),
            on_event=lambda event: self._agent_event(call_id, event),
            readers=self._readers,
        )
        scope = trio.CancelScope()
        self._sessions[call_id] = _Session(agent, scope)
        self._nursery.start_soon(self._run_agent, call_id, agent, scope)
        self._logger.info("call allocated", call=call_id, calls=len(self._core), key_id=request.key_id)
        self._pump()
        return AllocateReply(call_id, answer, len(self._core), self._core.max_calls)

    def _record_call(self, call_id: str, now: float) -> None:
        call, recorder = self._core.call(call_id), self._recorder
        assert call is not None, "it was allocated in this moment"
        if recorder is None:
            self._logger.warning("a call is not recorded: recording.directory is empty", call=call_id)
            return
        clock_rate = call.audio.clock_rate
        tap = recorder.start(call_id, wall=now + self._core.wall_offset, now=now, clock_rate=clock_rate)
        if tap is not None:
            self._core.record(call_id, tap)
            self._logger.info("call is recorded", call=call_id)

    def status(self, call_id: str) -> dict[str, object] | None:
        status = self._core.status(call_id, trio.current_time())
        if status is not None:
            recorded = None if self._recorder is None else self._recorder.status(call_id)
            status = {**status, "recording": recorded}
        return status

    def hang_up(self, call_id: str) -> bool:
        return self._end(call_id, EndReason.HANGUP)

    def attach(self, call_id: str, owner: str) -> SidebandPort | None:
        """Open a sideband of a call."""
        return self._sidebands.attach(call_id, owner)

    def not_ready(self) -> str | None:
        if self._registry.lost.is_set():
            return "the lease of this transceiver's id was lost to another process"
        return "draining" if self._record.draining else None

    # Packets and time

    async def _run_turns(self) -> None:
        """Feed the core: what the link brought and what is due, in turns.

        A worker with few calls wakes for each packet and each deadline. From `CALLS_FOR_TURNS` on it looks
        once per `TURN_SECONDS` instead: one waking serves all calls, and it is waking that costs.
        """
        while True:
            begun = trio.current_time()
            if len(self._core) < CALLS_FOR_TURNS or not self._turn():
                if not self._readers.unfinished:
                    self._timer = trio.CancelScope(deadline=self._next_deadline())
                    with self._timer:
                        await trio.lowlevel.wait_readable(self._readers.fileno())
                    begun = trio.current_time()
                self._turn()
            if len(self._core) >= CALLS_FOR_TURNS:
                await trio.sleep_until(begun + TURN_SECONDS)
            else:
                await trio.lowlevel.checkpoint()

    def _turn(self) -> bool:
        """One turn; False when there was nothing to do."""
        self._turning = True
        now = trio.current_time()
        until = now + MAX_TURN_SECONDS
        # 1. What came, within bounds: a flood must not delay the next frame. What a microphone brought goes
        #    to its agent at once.
        worked = False
        for _ in range(MAX_BATCHES):
            batch = self._socket.recv_batch()
            for address, datagram in batch:
                self._core.receive_datagram(datagram, _relay_name(address), now)
                self._send_upstream()
            worked = worked or bool(batch)
            if len(batch) < udp.BATCH or trio.current_time() > until:
                break
        # 2. What the agents said.
        worked = self._readers.read(until) or worked
        # 3. What is due: frames and reports that a person hears, right before they leave.
        now = trio.current_time()
        if self._next_deadline() <= now:
            self._core.handle_timeout(now)
            worked = True
        # 4. What follows from it.
        self._turning = False
        if worked:
            self._pump()
        return worked

    def _next_deadline(self) -> float:
        deadline = self._core.next_deadline()
        return math.inf if deadline is None else deadline

    def _pump(self) -> None:
        """Take everything the core produced, in the order of urgency, and re-arm the timer."""
        core = self._core
        # 1. What leaves for clients: the only part that a person hears.
        if transmits := core.poll_transmits(trio.current_time()):
            self._socket.send_batch([(_relay_address(relay), datagram) for relay, datagram in transmits])
        # 2. What is for agents and sidebands.
        self._send_upstream()
        while (addressed := core.poll_sideband()) is not None:
            self._sidebands.deliver(*addressed)
        now = trio.current_time()
        while (said := core.poll_turn()) is not None:
            self._turn_desk.take(*said, now)
        # 3. What became of calls.
        while (happened := core.poll_event()) is not None:
            self._call_event(*happened)
        while (failure := core.poll_failure()) is not None:
            self._logger.error("a call met a bug", call=failure[0], exc_info=failure[1])
        # 4. The timer, after every change of state.
        deadline = self._next_deadline()
        if self._timer.deadline != deadline:
            self._timer.deadline = deadline

    def _send_upstream(self) -> None:
        core, sessions = self._core, self._sessions
        while core.upstream and (item := core.poll_upstream()) is not None:
            if (session := sessions.get(item.call_id)) is not None:
                if item.is_audio:
                    session.agent.send_audio_nowait(item.data)
                else:
                    session.agent.send_event_nowait(item.data)

    # Calls and their agents

    def _call_event(self, call_id: str, event: Connected | Ended) -> None:
        log = self._logger.bind(call=call_id)
        match event:
            case Connected():
                call = self._core.call(call_id)
                if call is not None:
                    seconds = call.milestones["dtls"] - call.milestones["allocated"]
                    self._setup_seconds.observe(seconds)
                    log.info("call connected", milliseconds=round(seconds * 1000, 1))
            case Ended(reason, detail):
                facts = {"detail": detail} if detail else {}
                log.info("call ended", reason=reason.value, **facts, calls=len(self._core))
                self._garbage.call_ended()
                session = self._sessions.pop(call_id, None)
                if session is not None:
                    session.scope.cancel()
                if self._recorder is not None:
                    now = trio.current_time()
                    self._recorder.finish(call_id, now, self._core.status(call_id, now) or {})
                self._sidebands.close(call_id)
                if self._record.draining and not len(self._core):
                    self._empty.set()

    async def _run_agent(self, call_id: str, agent: RealtimeAgent, scope: trio.CancelScope) -> None:
        detail = "agent_closed"
        try:
            with scope:
                await agent.run()
        # Outside the scope and as groups: a reader that raises while the call is being cancelled raises a
        # group with Cancelled in it, and one call's agent must not take the other calls with it.
        except* AgentLost as lost:
            first = lost.exceptions[0]
            detail = first.reason if isinstance(first, AgentLost) else detail
        except* Exception:
            self._logger.exception("agent task failed", call=call_id)
            detail = "internal_error"
        self._end(call_id, EndReason.AGENT_LOST, detail)

    def _agent_event(self, call_id: str, event: AgentEvent) -> None:
        now = trio.current_time()
        if isinstance(event, AgentReady):
            self._logger.info("agent ready", call=call_id, configured=event.configured)
            self._core.agent_ready(call_id, event.configured, now)
        else:
            self._core.receive_agent_event(call_id, event, now)
        if not self._turning:
            self._pump()

    def _take_verdict(self, call_id: str, verdict: Verdict) -> None:
        self._core.take_verdict(call_id, verdict, trio.current_time())
        self._pump()

    def _end(self, call_id: str, reason: EndReason, detail: str = "") -> bool:
        known = self._core.close(call_id, trio.current_time(), reason, detail)
        self._pump()
        return known

    # Registry, end, metrics

    async def _publish(self) -> None:
        """Keep our load in the registry. A lost lease drains us: the id may already name somebody else."""
        while True:
            self._core.wall_offset = time.time() - trio.current_time()
            self._announce(draining=self._record.draining or self._registry.lost.is_set())
            self._tell_failed_recordings()
            self._garbage.look(len(self._core))
            await trio.sleep(PUBLISH_SECONDS)

    def _tell_failed_recordings(self) -> None:
        while self._recorder is not None and (failure := self._recorder.poll_failure()) is not None:
            call_id, reason = failure
            self._logger.warning("a recording stopped before its call", call=call_id, reason=reason)
            words = f"The recording of this call has stopped ({reason}); the call goes on."
            self._core.report(call_id, "recording_stopped", words, trio.current_time())
            self._pump()

    def _announce(self, *, draining: bool) -> None:
        # Also when nothing changed here: signaling may have noted a load that was over before it was told so.
        self._record = msgspec.structs.replace(self._record, calls=len(self._core), draining=draining)
        self._registry.publish_nowait(self._record)

    def samples(self) -> Iterable[metrics.Sample]:
        """The worker's numbers for the metrics page."""
        statistics = self._core.statistics()
        labels = {"transceiver": str(self._record.id)}
        yield metrics.Sample(
            "voicegate_transceiver_calls", "gauge", "Calls now.", labels, statistics["gauges"]["calls"]
        )
        tasks = trio.lowlevel.current_statistics().tasks_living
        yield metrics.Sample(
            "voicegate_transceiver_tasks", "gauge", "Trio tasks of the process now.", labels, tasks
        )
        for name, value in statistics["totals"].items():
            yield metrics.Sample(
                f"voicegate_transceiver_{name}_total", "counter", f"{name.replace('_', ' ')}.", labels, value
            )
        if self._recorder is not None:
            yield from self._recorder.samples(labels)
        yield from self._turn_desk.samples(labels)
        for family, label, help in (
            ("ends", "reason", "Calls ended, by reason."),
            ("drops", "reason", "Packets dropped, by reason."),
            ("rtcp", "kind", "Feedback and packets sent again, by kind."),
        ):
            for which, value in statistics[family].items():
                yield metrics.Sample(
                    f"voicegate_transceiver_{family}_total", "counter", help, {**labels, label: which}, value
                )


def _open_recorder(settings: RecordingConfig) -> Recorder | None:
    if not settings.directory:
        return None
    from voicegate.roles.transceiver.recorder import Recorder  # brings in PyAV, 20 MB

    offset = trio.current_time() - time.perf_counter()  # Trio's own clock is the latter, but for one thread
    return Recorder(settings, lambda: time.perf_counter() + offset)


@lru_cache(maxsize=4096)
def _relay_name(address: Address) -> str:
    """How the link's tags name a relay."""
    return join_host_port(*address)


@lru_cache(maxsize=4096)
def _relay_address(name: str) -> Address:
    return split_host_port(name)
