"""What an association tells its owner."""

from __future__ import annotations

from dataclasses import dataclass
from typing import NamedTuple, TypeAlias


class Message(NamedTuple):
    """A whole message of the peer's."""

    stream: int
    ppid: int
    """The payload protocol identifier, as sent."""
    data: bytes | None
    """None: the message was larger than our limit; its bytes are gone."""


@dataclass(frozen=True, slots=True)
class Connected:
    """The handshake is complete."""

    streams: int
    """Stream numbers below this can be used, both ways."""


@dataclass(frozen=True, slots=True)
class Disconnected:
    """The end, once: local_abort, peer_abort, shutdown, unreachable, violation or restarted."""

    reason: str


@dataclass(frozen=True, slots=True)
class StreamsReset:
    """The peer has reset its side of these streams: it sends nothing more on them."""

    streams: tuple[int, ...]
    """Empty: all of them (RFC 6525 section 4.1)."""


@dataclass(frozen=True, slots=True)
class StreamsResetDone:
    """Our reset of these streams is over."""

    streams: tuple[int, ...]
    performed: bool
    """False: the peer refused, or cannot."""


@dataclass(frozen=True, slots=True)
class SendBufferDrained:
    """A send was refused because the buffer was full; half of it is free now."""


SctpEvent: TypeAlias = (
    Message | Connected | Disconnected | StreamsReset | StreamsResetDone | SendBufferDrained
)
