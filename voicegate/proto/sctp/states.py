"""The states of an association (RFC 9260 section 4) as a table.

                 LISTENING ──connect──► COOKIE_WAIT ──INIT ACK──► COOKIE_ECHOED
                     │                       │                         │
                COOKIE ECHO             COOKIE ECHO         COOKIE ACK, COOKIE ECHO
                     └───────────────────────┴──► ESTABLISHED ◄────────┘
                              shutdown │                 │ SHUTDOWN
                                SHUTDOWN_PENDING ─► SHUTDOWN_RECEIVED
                             all acked │    SHUTDOWN     │ all acked
                                SHUTDOWN_SENT ─────► SHUTDOWN_ACK_SENT
                          SHUTDOWN ACK │                 │ SHUTDOWN COMPLETE
                                       └────► CLOSED ◄───┘

LISTENING is the standard's CLOSED before, CLOSED the one after: nothing begins again here.
"""

from __future__ import annotations

from enum import Enum

from voicegate.proto.sctp.wire import ChunkType


class State(Enum):
    LISTENING = "nothing known of the peer"
    COOKIE_WAIT = "our INIT is out"
    COOKIE_ECHOED = "our COOKIE ECHO is out"
    ESTABLISHED = "data flows"
    SHUTDOWN_PENDING = "no new data; what is left is being delivered"
    SHUTDOWN_SENT = "all of ours arrived; the peer may have more"
    SHUTDOWN_RECEIVED = "the peer has no more; ours is being delivered"
    SHUTDOWN_ACK_SENT = "all arrived, both ways"
    CLOSED = "over"


class Trigger(Enum):
    CONNECT = "the owner wants an association"
    INIT_ACK = "INIT ACK with our tag"
    ASSOCIATE = "a COOKIE ECHO or COOKIE ACK, or both INITs by signaling"
    SHUTDOWN_CALL = "the owner wants a graceful end"
    SHUTDOWN = "SHUTDOWN"
    ALL_ACKED = "nothing of ours is left"
    SHUTDOWN_ACK = "SHUTDOWN ACK"
    SHUTDOWN_COMPLETE = "SHUTDOWN COMPLETE"


TRANSITIONS: dict[tuple[State, Trigger], State] = {
    (State.LISTENING, Trigger.CONNECT): State.COOKIE_WAIT,
    (State.LISTENING, Trigger.ASSOCIATE): State.ESTABLISHED,
    (State.COOKIE_WAIT, Trigger.INIT_ACK): State.COOKIE_ECHOED,
    (State.COOKIE_WAIT, Trigger.ASSOCIATE): State.ESTABLISHED,
    (State.COOKIE_ECHOED, Trigger.ASSOCIATE): State.ESTABLISHED,
    (State.ESTABLISHED, Trigger.SHUTDOWN_CALL): State.SHUTDOWN_PENDING,
    (State.ESTABLISHED, Trigger.SHUTDOWN): State.SHUTDOWN_RECEIVED,
    (State.SHUTDOWN_PENDING, Trigger.SHUTDOWN): State.SHUTDOWN_RECEIVED,
    (State.SHUTDOWN_PENDING, Trigger.ALL_ACKED): State.SHUTDOWN_SENT,
    (State.SHUTDOWN_SENT, Trigger.SHUTDOWN): State.SHUTDOWN_ACK_SENT,
    (State.SHUTDOWN_SENT, Trigger.SHUTDOWN_ACK): State.CLOSED,
    (State.SHUTDOWN_RECEIVED, Trigger.ALL_ACKED): State.SHUTDOWN_ACK_SENT,
    (State.SHUTDOWN_ACK_SENT, Trigger.SHUTDOWN_ACK): State.CLOSED,
    (State.SHUTDOWN_ACK_SENT, Trigger.SHUTDOWN_COMPLETE): State.CLOSED,
}
"""Every other pair changes nothing."""

_HANDSHAKE = frozenset((State.COOKIE_WAIT, State.COOKIE_ECHOED))
_OPEN = frozenset((State.ESTABLISHED, State.SHUTDOWN_PENDING, State.SHUTDOWN_RECEIVED))
_RECEIVING = frozenset((State.ESTABLISHED, State.SHUTDOWN_PENDING, State.SHUTDOWN_SENT))
_SHUTTING = frozenset((State.SHUTDOWN_SENT, State.SHUTDOWN_ACK_SENT))
_ALIVE = _OPEN | _SHUTTING

SENDING = _OPEN
"""DATA may be sent (RFC 9260 section 6)."""
ACCEPTED: dict[int, frozenset[State]] = {
    ChunkType.DATA: _RECEIVING,
    ChunkType.INIT: _ALIVE | _HANDSHAKE | {State.LISTENING},
    ChunkType.INIT_ACK: frozenset((State.COOKIE_WAIT,)),
    ChunkType.SACK: _ALIVE,
    ChunkType.HEARTBEAT: _ALIVE | {State.COOKIE_ECHOED},
    ChunkType.HEARTBEAT_ACK: _ALIVE,
    ChunkType.ABORT: _ALIVE | _HANDSHAKE,
    ChunkType.SHUTDOWN: _ALIVE,
    ChunkType.SHUTDOWN_ACK: _SHUTTING,
    ChunkType.ERROR: _ALIVE | _HANDSHAKE,
    ChunkType.COOKIE_ECHO: _ALIVE | _HANDSHAKE | {State.LISTENING},
    ChunkType.COOKIE_ACK: frozenset((State.COOKIE_ECHOED,)),
    ChunkType.SHUTDOWN_COMPLETE: frozenset((State.SHUTDOWN_ACK_SENT,)),
    ChunkType.RE_CONFIG: _OPEN,
    ChunkType.FORWARD_TSN: _RECEIVING,
}
"""Where each chunk means something; elsewhere it is dropped and counted."""


def next_state(state: State, trigger: Trigger) -> State:
    return TRANSITIONS.get((state, trigger), state)
