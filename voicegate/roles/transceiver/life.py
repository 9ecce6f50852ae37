"""A call's life: how long each part of it may last, and for what reasons it ends.

CONNECTING (allocated, then checked, then in the handshake) -> ACTIVE -> ENDED, by way of CLOSING where a data
channel is to be closed first.
"""

from __future__ import annotations

from dataclasses import dataclass
from enum import Enum
from typing import NamedTuple

SETUP_SECONDS = 30.0
"""From allocation to the end of the handshake: libwebrtc gives a connection attempt up about then."""

CLOSE_SECONDS = 0.3
"""How long the data channel may take to close before DTLS does: a client that sees the channel close first
knows that the call ended and did not break. A round trip on most paths."""


class CallState(Enum):
    CONNECTING = "connecting"
    ACTIVE = "active"
    CLOSING = "closing"
    ENDED = "ended"


class EndReason(Enum):
    HANGUP = "hangup"
    """HTTP hang-up or DELETE."""
    REMOTE_CLOSE = "remote_close"
    """DTLS close_notify from the client."""
    BYE = "bye"
    """RTCP BYE from the client (RFC 3550 section 6.6)."""
    IDLE = "idle"
    """No authenticated packet for `idle_seconds` (RFC 7675 consent)."""
    MAX_AGE = "max_age"
    SETUP_TIMEOUT = "setup_timeout"
    FINGERPRINT_MISMATCH = "fingerprint_mismatch"
    HANDSHAKE_FAILED = "handshake_failed"
    AGENT_LOST = "agent_lost"
    SHUTDOWN = "shutdown"
    INTERNAL_ERROR = "internal_error"
    """A bug of ours; the log has the traceback, and the other calls go on."""


UNHURRIED = frozenset(
    (EndReason.HANGUP, EndReason.BYE, EndReason.MAX_AGE, EndReason.AGENT_LOST, EndReason.SHUTDOWN)
)
"""Ends that the client can still be told of over its data channel."""


def end_of_dtls(reason: str) -> tuple[EndReason, str]:
    """What it is to a call, with its detail, that DTLS was closed for this reason (`DtlsClosed`)."""
    match reason:
        case "remote_close":
            return EndReason.REMOTE_CLOSE, ""
        case "fingerprint_mismatch":
            return EndReason.FINGERPRINT_MISMATCH, ""
        case "handshake_timeout":
            return EndReason.SETUP_TIMEOUT, reason
        case _:
            return EndReason.HANDSHAKE_FAILED, reason


@dataclass(frozen=True, slots=True)
class Connected:
    """The handshake is done: media flows both ways from now on."""


@dataclass(frozen=True, slots=True)
class Ended:
    reason: EndReason
    detail: str
    """More words for a person, such as the agent's own reason; may be empty."""


CallEvent = Connected | Ended


class CallLimits(NamedTuple):
    max_seconds: float
    idle_seconds: float


class Life:
    """When a call is over that nobody ends."""

    __slots__ = ("_allocated", "_limits", "client_heard", "close_deadline", "last_authenticated")

    def __init__(self, limits: CallLimits, now: float) -> None:
        self._allocated = now
        self._limits = limits
        self.last_authenticated = now
        """When an authentic packet came, from wherever."""
        self.client_heard = now
        """When the address that output goes to last sent something authentic: consent is an address's, not a
        call's (RFC 7675)."""
        self.close_deadline = 0.0
        """Of CLOSING."""

    def deadline(self, state: CallState) -> float:
        if state is CallState.CONNECTING:
            return self._allocated + SETUP_SECONDS
        if state is CallState.CLOSING:
            return self.close_deadline
        age = self._allocated + self._limits.max_seconds
        silence = self.client_heard + self._limits.idle_seconds
        return age if age < silence else silence

    def reason(self, state: CallState, now: float) -> EndReason:
        """Why it ends at `deadline`."""
        if state is CallState.CONNECTING:
            return EndReason.SETUP_TIMEOUT
        if now >= self._allocated + self._limits.max_seconds:
            return EndReason.MAX_AGE
        return EndReason.IDLE

    def moved_to(self, heard: float, now: float) -> bool:
        """Output may go on to an address that was last heard then; False when that is too long ago too."""
        if now - heard >= self._limits.idle_seconds:
            return False
        self.client_heard = heard
        return True
