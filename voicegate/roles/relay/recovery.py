"""What a relay does not know and others may: packets without a flow, and the notes by which flows are found.
Pure.

    packet without a flow ─► held ─ question ─► Redis ─ ticket ─► flow, and the packets go on
    flow confirmed, lived on or ended ─► note ─► Redis

A relay that was restarted, or that a client's packets reach for the first time (anycast, a re-hash), has no
flow. Its next check makes one, but that may be 2.5 s away. Meanwhile its address is looked up: who asks at
most once for an address, at a bounded rate, keeps a few packets for a short while, and remembers who is not
known. So a flood of junk costs Redis no more than the rate, and the relay no more than the tables here.
"""

from __future__ import annotations

from collections import Counter, OrderedDict, deque
from typing import NamedTuple

from voicegate.proto.address import ClientAddress

HOLD_SECONDS = 0.05
"""How long a packet may wait for the answer: two and a half audio frames, what a jitter buffer hides."""
MAX_HELD_PER_CLIENT = 8
"""More than one client sends in HOLD_SECONDS: three audio frames, RTCP, a few records."""
MAX_ASKED = 512
"""Addresses that are being asked after at once; a question takes about a millisecond."""
QUESTIONS_PER_SECOND = 2000.0
"""Of one worker. One that lost 20,000 flows has asked after all in 10 s, most heal by hello or check sooner;
Redis does fifty times as many."""
UNKNOWN_SECONDS = 2.0
"""How long an address that nobody knows is not asked after again: about the time to its next check."""
MAX_UNKNOWN = 65_536
MAX_NOTES = 65_536
"""Notes that wait to be written."""


class Held(NamedTuple):
    """A packet that waits for its flow."""

    data: bytes
    port: int
    """The way it came, as in `Flow.port`."""


class _Question:
    __slots__ = ("asked_at", "held")

    def __init__(self, asked_at: float) -> None:
        self.asked_at = asked_at
        self.held: list[Held] = []


class Recovery:
    """The questions and the notes of one worker. `questions` and `notes` are emptied by another thread."""

    def __init__(self, drops: Counter[str]) -> None:
        """`drops`: the relay's, by reason."""
        self.enabled = False
        """Whether there is anybody to ask."""
        self.counts: Counter[str] = Counter()
        """Questions by outcome, notes by kind."""
        self.questions: deque[ClientAddress] = deque()
        self.notes: deque[tuple[ClientAddress, bytes]] = deque()
        """Flows as (client, ticket); an empty ticket: there is no such flow any more."""
        self._asked: dict[ClientAddress, _Question] = {}
        self._unknown: OrderedDict[ClientAddress, float] = OrderedDict()
        self._drops = drops
        self._tokens = QUESTIONS_PER_SECOND
        self._counted_at = 0.0

    def ask(self, client: ClientAddress, data: bytes, port: int, now: float) -> bool:
        """Hold a packet that has no flow and ask whose it is. True when there is a new question; False when
        there is none to be asked or the packet is dropped, which is counted."""
        if not self.enabled:
            self._drops["no_flow"] += 1
            return False
        question = self._asked.get(client)
        if question is not None:
            if len(question.held) >= MAX_HELD_PER_CLIENT or now - question.asked_at > HOLD_SECONDS:
                self._drops["recovery_held"] += 1
            else:
                question.held.append(Held(data, port))
            return False
        until = self._unknown.get(client)
        if until is not None and now < until:
            self._drops["no_flow"] += 1
            return False
        self._tokens = min(
            QUESTIONS_PER_SECOND, self._tokens + (now - self._counted_at) * QUESTIONS_PER_SECOND
        )
        self._counted_at = now
        if self._tokens < 1 or len(self._asked) >= MAX_ASKED or len(self.questions) >= MAX_ASKED:
            self._drops["recovery_rate"] += 1
            return False
        self._tokens -= 1
        question = self._asked[client] = _Question(now)
        question.held.append(Held(data, port))
        self.questions.append(client)
        self.counts["asked"] += 1
        return True

    def answered(self, client: ClientAddress, known: bool, now: float) -> list[Held]:
        """The packets that waited, unless they are too old. `known`: somebody said whose they are."""
        question = self._asked.pop(client, None)
        if known:
            self.counts["found"] += 1
            self._unknown.pop(client, None)
        else:
            self._note_unknown(client, now)
        if question is None:
            return []
        if known and now - question.asked_at <= HOLD_SECONDS:
            return question.held
        self._drops["recovery_late" if known else "no_flow"] += len(question.held)
        return []

    def settled(self, client: ClientAddress) -> list[Held]:
        """A flow of this client was made by other means: the packets that waited for it."""
        question = self._asked.get(client)
        if question is None:
            return []
        held, question.held = question.held, []
        return held

    def note(self, client: ClientAddress, ufrag: bytes) -> None:
        """A flow is to be known to others; an empty `ufrag`: no more."""
        if not self.enabled:
            return
        if len(self.notes) >= MAX_NOTES:
            self.counts["notes_dropped"] += 1
            return
        self.notes.append((client, ufrag))

    def expire(self, now: float) -> None:
        """Give up questions that nobody answers: their packets are dropped, and they may be asked again."""
        late = [client for client, question in self._asked.items() if now - question.asked_at > 1.0]
        for client in late:
            self._drops["recovery_unanswered"] += len(self._asked.pop(client).held)
        while self._unknown and now >= next(iter(self._unknown.values())):
            self._unknown.popitem(last=False)

    def _note_unknown(self, client: ClientAddress, now: float) -> None:
        self.counts["unknown"] += 1
        self._unknown[client] = now + UNKNOWN_SECONDS
        self._unknown.move_to_end(client)
        if len(self._unknown) > MAX_UNKNOWN:
            self._unknown.popitem(last=False)
