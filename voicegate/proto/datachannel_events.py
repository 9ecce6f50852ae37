"""What data channels tell their owner, and the words used with them (RFC 8831)."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from enum import Enum, IntEnum
from typing import NamedTuple, TypeAlias

from voicegate.proto.sctp import AssociationStatistics, Connected, Disconnected, SendBufferDrained


class Ppid(IntEnum):
    """RFC 8831 section 8; 52 and 54 are deprecated and not taken."""

    DCEP = 50
    STRING = 51
    BINARY = 53
    STRING_EMPTY = 56
    BINARY_EMPTY = 57


class SendResult(Enum):
    """What became of a message."""

    QUEUED = "it is on its way"
    FULL = "the send buffer is full; SendBufferDrained tells when it is not"
    TOO_LARGE = "the peer does not take messages of this size"
    CLOSED = "there is no such channel, or it is closing"


@dataclass(frozen=True, slots=True)
class ChannelOpened:
    """A channel can be used both ways."""

    id: int
    label: str
    protocol: str
    ordered: bool
    local: bool
    """We opened it, or it is negotiated."""


class MessageReceived(NamedTuple):
    id: int
    data: str | bytes
    """str: a text message; bytes: a binary one."""


@dataclass(frozen=True, slots=True)
class MessageRejected:
    """A message was lost in us: too_large, invalid_utf8 or unknown_ppid."""

    id: int
    reason: str


@dataclass(frozen=True, slots=True)
class ChannelClosed:
    """No more messages come."""

    id: int


ChannelEvent: TypeAlias = (
    ChannelOpened
    | MessageReceived
    | MessageRejected
    | ChannelClosed
    | Connected
    | SendBufferDrained
    | Disconnected
)


class ChannelStatistics(NamedTuple):
    channels: int
    received: int
    """Messages given to the owner."""
    sent: int
    """Messages accepted from the owner."""
    rejected: Mapping[str, int]
    """Of the peer's messages and opens, and of our sends, by reason."""
    association: AssociationStatistics
