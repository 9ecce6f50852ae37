"""The transceiver's core: every call of one worker, one link socket, one timer wheel. Pure.

    link datagram ─► Relays ─► frames ─► call by ticket (STUN) or by client address (all else) ─► Call
    Call ─► Paths: by which relay ─► Relays ─► link datagrams
    Entry ─► microphone and events for the agent, events for sidebands ─► the shell

What may move a reply to another relay is in `paths`.
"""

from __future__ import annotations

import heapq
from collections import Counter, OrderedDict, deque
from collections.abc import Callable, Mapping
from functools import partial
from typing import Any

from voicegate.media.recording import Tap
from voicegate.media.sound import Line
from voicegate.media.turns.plugins import Verdict
from voicegate.proto import link
from voicegate.proto.address import ClientAddress
from voicegate.proto.demux import Kind, kind
from voicegate.proto.dtls import DtlsCertificate
from voicegate.proto.errors import BadPacket
from voicegate.proto.keys import ClusterKeys
from voicegate.proto.realtime import ServerEvent
from voicegate.proto.stun import peek_username_untrusted
from voicegate.roles.transceiver.allocation import Identity, Wishes, make_call
from voicegate.roles.transceiver.call import Call, Proof
from voicegate.roles.transceiver.conversation import Conversation
from voicegate.roles.transceiver.entry import Entry, Upstream
from voicegate.roles.transceiver.life import (
    CallEvent,
    CallLimits,
    CallState,
    Connected,
    Ended,
    EndReason,
)
from voicegate.roles.transceiver.outbox import Audience
from voicegate.roles.transceiver.paths import Paths
from voicegate.roles.transceiver.relays import Relays
from voicegate.roles.transceiver.turn_events import Question, Told

MAX_REMEMBERED = 256
"""Ended calls whose status can still be asked for: the page polls once a second and needs it once."""

REMEMBER_SECONDS = 60.0

STALE_TIMERS = 4
"""Timers a call may have in the wheel on average, of which one counts, before the wheel is swept: a call that
is armed earlier leaves the timer that it had, so some are normal."""

MAX_FAILURES = 16
"""Exceptions kept for the log; a bug that strikes more often than it is read shows itself by its first."""


MAX_TURN_NEWS = 4096
"""Decisions that the shell has not taken. It takes them in each turn, in which a call makes a few."""


class Overloaded(Exception):
    """No room for another call here; signaling tries elsewhere or answers 503."""


class TransceiverCore:
    """All calls of one transceiver. One mutation, then drain `poll_*`, then read `next_deadline`."""

    def __init__(
        self,
        identity: Identity,
        keys: ClusterKeys,
        certificate: DtlsCertificate,
        limits: CallLimits,
        *,
        max_calls: int,
        wall_offset: float,
        random: Callable[[], float],
    ) -> None:
        self.identity = identity
        self.max_calls = max_calls
        self.drops: Counter[str] = Counter()
        self.totals: Counter[str] = Counter()
        """Datagrams and frames in and out, calls allocated."""
        self.ends: Counter[str] = Counter()
        """Calls ended, by reason."""
        self._rtcp: Counter[str] = Counter()
        """Feedback and retransmissions of the calls that have ended, by kind."""
        self.wall_offset = wall_offset
        """wall = now + offset. Kept up to date by the shell: a machine that slept has lost monotonic time."""

        self._make_call = partial(
            make_call, identity=identity, keys=keys, certificate=certificate, limits=limits, random=random
        )
        self._paths = Paths(self.drops)
        self._relays = Relays(identity, keys, self._paths, drops=self.drops, totals=self.totals)
        self._calls: dict[str, Entry] = {}
        self._by_ufrag: dict[bytes, Entry] = {}
        self._wheel: list[tuple[float, str]] = []
        """Deadlines by call id, not by call: a void timer may be due in minutes, and would keep a call that
        has ended until then."""
        self.upstream: deque[Upstream] = deque()
        """To be looked at; taken with `poll_upstream`."""
        self._sidebands: deque[tuple[str, bytes]] = deque()
        self._turns: deque[tuple[str, Told | Question]] = deque(maxlen=MAX_TURN_NEWS)
        self._events: deque[tuple[str, CallEvent]] = deque()
        self._failures: deque[tuple[str, Exception]] = deque(maxlen=MAX_FAILURES)
        self._remembered: OrderedDict[str, tuple[float, dict[str, object]]] = OrderedDict()

    # Calls

    def allocate(self, wishes: Wishes, *, now: float, entropy: bytes) -> tuple[str, str]:
        """Make a call for an offer. Returns (call id, SDP answer).

        `entropy`: `ENTROPY_LENGTH` fresh random bytes. Raises BadOffer; Overloaded when `max_calls` are here.
        """
        if len(self._calls) >= self.max_calls:
            raise Overloaded
        entry, answer = self._make_call(wishes, entropy=entropy, now=now, wall_offset=self.wall_offset)
        self.totals["calls"] += 1
        self._calls[entry.call.call_id] = self._by_ufrag[entry.ufrag] = entry
        self._arm(entry, entry.next_deadline())
        return entry.call.call_id, answer

    def close(self, call_id: str, now: float, reason: EndReason, detail: str = "") -> bool:
        """End a call; False when there is none by that id, or it is ending already."""
        entry = self._calls.get(call_id)
        if entry is None or entry.call.ended is not None:
            return False
        if reason is EndReason.AGENT_LOST:
            entry.conversation.agent_lost(now, detail)
            self._drain(entry, now)
        entry.call.close(now, reason, detail)
        self._drain(entry, now)
        return True

    def call(self, call_id: str) -> Call | None:
        entry = self._calls.get(call_id)
        return None if entry is None else entry.call

    def line(self, call_id: str) -> Line:
        """What a call's agent is given to hear, and has to speak."""
        return self._calls[call_id].call.audio.line

    def record(self, call_id: str, tap: Tap) -> None:
        """Leave what is heard, said and told in a call from now on there."""
        self._calls[call_id].record(tap)

    def report(self, call_id: str, code: str, message: str, now: float) -> None:
        """Tell a call's sidebands of something that is wrong with it."""
        entry = self._calls.get(call_id)
        if entry is not None and entry.call.ended is None:
            entry.conversation.report(code, message)
            self._drain(entry, now)

    def agent_ready(self, call_id: str, configured: bool, now: float) -> None:
        """The call's agent listens; `configured`: it took the settings it was dialled with."""
        entry = self._calls.get(call_id)
        if entry is not None and entry.call.ended is None:
            entry.conversation.agent_ready(configured, now)
            self._drain(entry, now)

    def receive_agent_event(self, call_id: str, event: ServerEvent, now: float) -> None:
        """Take one event of a call's agent; one that comes after the end is nobody's."""
        self._give(call_id, now, lambda conversation: conversation.receive_agent_event(event, now))

    def take_verdict(self, call_id: str, verdict: Verdict, now: float) -> None:
        """What a judge in a thread has answered to a `Question` of this call."""
        self._give(call_id, now, lambda conversation: conversation.take_verdict(verdict, now))

    def first_session(self, call_id: str) -> dict[str, Any]:
        """What the agent of a call is to be asked for first."""
        return self._calls[call_id].conversation.first_session()

    def sideband_joined(self, call_id: str, key_id: str, now: float) -> bool:
        """A sideband may listen and speak: the call lives, and is that key's ("" is every call's)."""
        entry = self._calls.get(call_id)
        if entry is None or entry.call.ended is not None or key_id not in ("", entry.key_id):
            return False
        entry.conversation.joined(Audience.SIDEBAND, now)
        self._drain(entry, now)
        return True

    def sideband_left(self, call_id: str, now: float) -> None:
        """The last sideband of a call has gone."""
        entry = self._calls.get(call_id)
        if entry is not None:
            entry.conversation.left(Audience.SIDEBAND, now)
            self._drain(entry, now)

    def greeting(self, call_id: str) -> bytes | None:
        """`session.created` for a sideband that comes when the agent is ready already."""
        entry = self._calls.get(call_id)
        return None if entry is None else entry.conversation.greeting()

    def receive_sideband_event(self, call_id: str, text: str, now: float) -> None:
        """Take one message of a sideband."""
        source = Audience.SIDEBAND
        self._give(call_id, now, lambda c: c.receive_client_event_untrusted(text, now, source=source))

    def status(self, call_id: str, now: float) -> dict[str, object] | None:
        """What `GET /calls/{id}` says, also for a while after the end; None for an unknown id."""
        entry = self._calls.get(call_id)
        if entry is not None:
            return _status(entry)
        self._forget(now)
        remembered = self._remembered.get(call_id)
        return None if remembered is None else remembered[1]

    def call_ids(self) -> list[str]:
        return list(self._calls)

    def __len__(self) -> int:
        return len(self._calls)

    # Packets and time

    def receive_datagram(self, datagram: bytes, relay: str, now: float) -> None:
        """Take one link datagram that came from `relay` (`ip:port`). Never raises: bad ones are counted."""
        self.totals["link_datagrams_in"] += 1
        try:
            frames = self._relays.receive_untrusted(datagram, relay, self._hour(now), now)
        except BadPacket as error:
            self.drops[error.reason] += 1
            return
        self.totals["frames_in"] += len(frames)
        for client, payload in frames:
            entry = self._find(client, payload)
            if entry is None:
                continue
            try:
                self._receive_frame(entry, payload, client, relay, now)
            except Exception as error:
                self._contain(entry, error, now)

    def handle_timeout(self, now: float) -> None:
        """Run every call whose deadline has come."""
        wheel, calls = self._wheel, self._calls
        while wheel and wheel[0][0] <= now:
            deadline, call_id = heapq.heappop(wheel)
            entry = calls.get(call_id)
            if entry is not None and entry.armed == deadline:
                entry.armed = None
                try:
                    if entry.handle_timeout(now):
                        self._drain(entry, now)
                    else:
                        self._send(entry)
                        self._arm(entry, entry.next_frame())
                except Exception as error:
                    self._contain(entry, error, now)

    def next_deadline(self) -> float | None:
        return self._wheel[0][0] if self._wheel else None

    def poll_transmits(self, now: float) -> list[tuple[str, bytes]]:
        """All link datagrams that are ready, as (relay, datagram): frames bundled per relay."""
        return self._relays.poll_transmits(self._hour(now))

    def poll_upstream(self) -> Upstream | None:
        """The next thing for an agent."""
        return self.upstream.popleft() if self.upstream else None

    def poll_sideband(self) -> tuple[str, bytes] | None:
        """(call id, event as JSON) for all sidebands of that call."""
        return self._sidebands.popleft() if self._sidebands else None

    def poll_turn(self) -> tuple[str, Told | Question] | None:
        """(call id, what its turns have to say)."""
        return self._turns.popleft() if self._turns else None

    def poll_event(self) -> tuple[str, CallEvent] | None:
        return self._events.popleft() if self._events else None

    def poll_failure(self) -> tuple[str, Exception] | None:
        """(call id, exception) of a call that a bug of ours has ended."""
        return self._failures.popleft() if self._failures else None

    def statistics(self) -> Mapping[str, Mapping[str, int]]:
        drops, rtcp = Counter(self.drops), Counter(self._rtcp)
        for entry in self._calls.values():
            drops.update(entry.call.drops)
            rtcp.update(entry.call.audio.rtcp_counts)
        return {
            "totals": self.totals,
            "ends": self.ends,
            "drops": drops,
            "rtcp": rtcp,
            "gauges": {"calls": len(self._calls)},
        }

    # Helpers

    def _give(self, call_id: str, now: float, give: Callable[[Conversation], None]) -> None:
        """Give something to a call that is not over, and take what follows from it."""
        entry = self._calls.get(call_id)
        if entry is None or entry.call.ended is not None:
            return
        try:
            give(entry.conversation)
            self._drain(entry, now)
        except Exception as error:
            self._contain(entry, error, now)

    def _find(self, client: ClientAddress, payload: bytes) -> Entry | None:
        """STUN goes by its own ticket, also from a known address; everything else by the address."""
        if payload and kind(payload[0]) is Kind.STUN:
            try:
                username, _ = peek_username_untrusted(payload)
            except BadPacket as error:
                self.drops[error.reason] += 1
                return None
            entry = self._by_ufrag.get(username.partition(b":")[0])
            if entry is None:
                self.drops["unknown_ticket"] += 1
            return entry
        entry = self._paths.owner(client)
        if entry is None:
            self.drops["unknown_client"] += 1
        return entry

    def _receive_frame(
        self, entry: Entry, data: bytes, client: ClientAddress, relay: str, now: float
    ) -> None:
        try:
            proof = entry.call.receive_datagram(data, client, now)
        except BadPacket:
            proof = Proof.NONE  # counted by the call
        self._paths.learn(entry, client, relay, proof, now)
        self._drain(entry, now)

    def _drain(self, entry: Entry, now: float) -> None:
        call = entry.call
        entry.exchange(now, self.upstream, self._sidebands, self._turns)
        while (event := call.poll_event()) is not None:
            if isinstance(event, Connected):
                entry.conversation.handle_timeout(now)  # what waited for the client begins to be heard
                entry.exchange(now, self.upstream, self._sidebands, self._turns)
            self._events.append((call.call_id, event))
            if isinstance(event, Ended):
                self._send(entry)
                self._remove(entry, event, now)
                return
        self._send(entry)
        self._arm(entry, entry.next_deadline())

    def _send(self, entry: Entry) -> None:
        while (transmit := entry.call.poll_transmit()) is not None:
            relay = entry.paths.get(transmit[0])
            if relay is None:
                self.drops["no_path"] += 1
                continue
            self._relays.send(relay, *transmit)

    def _contain(self, entry: Entry, error: Exception, now: float) -> None:
        """A bug met by one call ends that call and no other."""
        self._failures.append((entry.call.call_id, error))
        call = entry.call
        try:
            call.close(now, EndReason.INTERNAL_ERROR)
        except Exception:
            call.state = CallState.ENDED  # it is past saying goodbye
        if call.call_id in self._calls:
            self._remove(entry, call.ended or Ended(EndReason.INTERNAL_ERROR, ""), now)
            self._events.append((call.call_id, Ended(EndReason.INTERNAL_ERROR, "")))

    def _arm(self, entry: Entry, deadline: float | None) -> None:
        if deadline is not None and (entry.armed is None or deadline < entry.armed):
            entry.armed = deadline
            heapq.heappush(self._wheel, (deadline, entry.call.call_id))

    def _remove(self, entry: Entry, ended: Ended, now: float) -> None:
        call_id = entry.call.call_id
        del self._calls[call_id]
        del self._by_ufrag[entry.ufrag]
        for client, relay in self._paths.forget(entry):
            # The release of proto.link: after what was said on this path, in the same bundle.
            self._relays.send(relay, client, b"")
        if len(self._wheel) > STALE_TIMERS * len(self._calls) + MAX_REMEMBERED:
            calls = self._calls
            self._wheel[:] = [
                (deadline, id) for deadline, id in self._wheel if id in calls and calls[id].armed == deadline
            ]
            heapq.heapify(self._wheel)
        # Every detail is one of a fixed list (AgentLost, DtlsClosed), so it may be a metrics label.
        self.ends[ended.detail or ended.reason.value] += 1
        self.drops.update(entry.call.drops)
        self._rtcp.update(entry.call.audio.rtcp_counts)
        self._remembered[call_id] = (now, _status(entry))
        self._forget(now)

    def _forget(self, now: float) -> None:
        while self._remembered:
            call_id, (ended_at, _) = next(iter(self._remembered.items()))
            if len(self._remembered) <= MAX_REMEMBERED and now - ended_at < REMEMBER_SECONDS:
                return
            del self._remembered[call_id]

    def _hour(self, now: float) -> int:
        return int((now + self.wall_offset) / link.HOUR)  # of floats, // takes five times as long


def _status(entry: Entry) -> dict[str, object]:
    call = entry.call
    statistics = call.statistics()
    statistics["events"] = entry.conversation.statistics()
    ended = call.ended
    return {
        "id": call.call_id,
        "object": "realtime.call",
        "status": statistics.pop("state"),
        "reason": None if ended is None else ended.reason.value,
        "detail": None if ended is None else ended.detail or None,
        "milestones": statistics.pop("milestones"),
        "statistics": statistics,
    }
