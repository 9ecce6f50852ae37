"""The data channel of a light call: the client's side of events, on voicegate's own SCTP."""

from __future__ import annotations

import json
import random
from collections import deque
from typing import NamedTuple

from tests.support.models import Event, server_event
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

LABEL = "oai-events"


class Wanted(NamedTuple):
    """The channel that a light call opens. `dcid`: agreed on in advance, without DCEP."""

    open: Open = Open(LABEL)
    dcid: int | None = None
    max_message_size: int = 262_144
    """`a=max-message-size` of the offer."""
    validate: bool = True
    """Hold every event against the official models; a bench does not."""
    raw: bool = False
    """No SCTP of our own: what comes out of DTLS is kept in `packets`."""


class LightChannel:
    """One association with one channel of events. Bytes and `now` in, bytes out."""

    def __init__(self, wanted: Wanted, source: random.Random, *, dtls_client: bool, now: float) -> None:
        self.events: list[Event] = []
        """What came, decoded."""
        self.times: list[float] = []
        """When, beside `events`."""
        self.odd: list[object] = []
        """Binary messages, and what could not be read."""
        self.packets: list[bytes] = []
        self.opened = self.closed = self.ended = False
        self.closed_at = self.opened_at = 0.0
        self.id: int | None = None
        self.association = Association(source.randbytes(ENTROPY), now)
        self.channels = DataChannels(self.association, dtls_client=dtls_client, max_message_size=262_144)
        self._wanted = wanted
        self._waiting: deque[str | bytes] = deque()
        if not wanted.raw:
            self.channels.connect(now)
            if wanted.dcid is not None:
                self.channels.open_negotiated(wanted.dcid, wanted.open, now)
                self.id = wanted.dcid
            else:
                self.id = self.channels.open(wanted.open, now)

    def receive(self, packet: bytes, now: float) -> None:
        """Take one packet out of DTLS. BadPacket when it is none."""
        if self._wanted.raw:
            self.packets.append(packet)
            return
        try:
            self.channels.receive_datagram(packet, now)
        finally:
            self._drain(now)

    def handle_timeout(self, now: float) -> None:
        if not self._wanted.raw:
            self.channels.handle_timeout(now)
            self._drain(now)

    def send(self, message: str | bytes, now: float) -> None:
        """Queue a message without bound; it leaves when there is room, and once the channel is open."""
        self._waiting.append(message)
        self._send_waiting(now)

    def poll_transmit(self) -> bytes | None:
        return None if self._wanted.raw else self.channels.poll_transmit()

    def next_deadline(self) -> float | None:
        return None if self._wanted.raw else self.channels.next_deadline()

    @property
    def waiting(self) -> int:
        """Messages that have not been given to the association yet."""
        return len(self._waiting)

    def of(self, kind: str) -> list[Event]:
        return [event for event in list(self.events) if event["type"] == kind]

    def types(self) -> list[str]:
        return [event["type"] for event in list(self.events)]

    def at(self, kind: str) -> float:
        """When the first event of this type came."""
        return next(at for at, event in zip(self.times, self.events, strict=False) if event["type"] == kind)

    def _drain(self, now: float) -> None:
        while (event := self.channels.poll_event()) is not None:
            match event:
                case ChannelOpened() if event.id == self.id:
                    self.opened, self.opened_at = True, now
                case MessageReceived(_, str() as text):
                    self.times.append(now)
                    self.events.append(server_event(text) if self._wanted.validate else json.loads(text))
                case ChannelClosed() if event.id == self.id:
                    self.closed, self.closed_at = True, now
                case Disconnected():
                    self.ended = True
                case MessageReceived():
                    self.odd.append(event)
                case _:
                    pass
        self._send_waiting(now)

    def _send_waiting(self, now: float) -> None:
        while self._waiting and self.opened and self.id is not None:
            result = self.channels.send(self.id, self._waiting[0], now)
            if result is SendResult.FULL:
                return
            assert result is not SendResult.TOO_LARGE, "send what is too large past the channel"
            self._waiting.popleft()  # a channel that is closed takes nothing; the test sees no answer
