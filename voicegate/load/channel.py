"""The data channel of a light client: the client's side of events, on voicegate's own SCTP. Pure."""

from __future__ import annotations

import json
from collections import Counter, deque
from dataclasses import dataclass
from typing import Any, Final, Protocol

from voicegate.proto.datachannel import (
    ChannelClosed,
    ChannelOpened,
    DataChannels,
    Disconnected,
    MessageReceived,
    SendResult,
)
from voicegate.proto.dcep import Open
from voicegate.proto.sctp import Association
from voicegate.proto.sctp.handshake import ENTROPY

LABEL: Final = "oai-events"
MAX_MESSAGE_SIZE: Final = 262_144
"""What Chromium offers."""


class Bytes(Protocol):
    """`random.Random` has it."""

    def randbytes(self, n: int, /) -> bytes: ...


EVENTS: Final = Open(LABEL)


@dataclass(frozen=True, slots=True)
class Wanted:
    """The channel that a client opens. `dcid`: agreed on in advance, without DCEP."""

    open: Open = EVENTS
    dcid: int | None = None
    max_message_size: int = MAX_MESSAGE_SIZE
    """`a=max-message-size` of the offer."""


class EventChannel:
    """One association with one channel of events. Bytes and `now` in, bytes out."""

    def __init__(self, wanted: Wanted, source: Bytes, *, dtls_client: bool, now: float) -> None:
        self.opened = self.closed = self.ended = False
        self.closed_at = self.opened_at = 0.0
        self.id: int | None = None
        self.kinds: Counter[str] = Counter()
        """Events that came, by type; what cannot be read is "unreadable"."""
        self.association = Association(source.randbytes(ENTROPY), now)
        self.channels = DataChannels(
            self.association, dtls_client=dtls_client, max_message_size=MAX_MESSAGE_SIZE
        )
        self._waiting: deque[str | bytes] = deque()
        self.connect(wanted, now)

    def connect(self, wanted: Wanted, now: float) -> None:
        """Begin the association and open the channel."""
        self.channels.connect(now)
        if wanted.dcid is not None:
            self.channels.open_negotiated(wanted.dcid, wanted.open, now)
            self.id = wanted.dcid
        else:
            self.id = self.channels.open(wanted.open, now)

    def receive(self, packet: bytes, now: float) -> None:
        """Take one packet out of DTLS. Raises BadPacket when it is none."""
        try:
            self.channels.receive_datagram(packet, now)
        finally:
            self._drain(now)

    def handle_timeout(self, now: float) -> None:
        self.channels.handle_timeout(now)
        self._drain(now)

    def send(self, message: str | bytes, now: float) -> None:
        """Queue a message without bound; it leaves when there is room, and once the channel is open."""
        self._waiting.append(message)
        self._send_waiting(now)

    def poll_transmit(self) -> bytes | None:
        return self.channels.poll_transmit()

    def next_deadline(self) -> float | None:
        return self.channels.next_deadline()

    @property
    def waiting(self) -> int:
        """Messages that have not been given to the association yet."""
        return len(self._waiting)

    def received(self, message: str | bytes, now: float) -> None:
        """One message of the far end: counted here."""
        try:
            event: Any = json.loads(message)
        except (ValueError, RecursionError):
            event = None
        kind = event.get("type") if isinstance(event, dict) else None
        known = isinstance(kind, str) and (kind in self.kinds or len(self.kinds) < 200)
        self.kinds[kind if known and isinstance(kind, str) else "unreadable"] += 1

    def _drain(self, now: float) -> None:
        while (event := self.channels.poll_event()) is not None:
            match event:
                case ChannelOpened() if event.id == self.id:
                    self.opened, self.opened_at = True, now
                case MessageReceived(_, message):
                    self.received(message, now)
                case ChannelClosed() if event.id == self.id:
                    self.closed, self.closed_at = True, now
                case Disconnected():
                    self.ended = True
                case _:
                    pass
        self._send_waiting(now)

    def _send_waiting(self, now: float) -> None:
        while self._waiting and self.opened and self.id is not None:
            result = self.channels.send(self.id, self._waiting[0], now)
            if result is SendResult.FULL:
                return
            assert result is not SendResult.TOO_LARGE, "send what is too large past the channel"
            self._waiting.popleft()  # a channel that is closed takes nothing; nobody will answer
