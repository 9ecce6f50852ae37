"""The data channel of a light call: the load tool's, with every event kept and held against the models."""

from __future__ import annotations

import json
from dataclasses import dataclass

from tests.support.models import Event, server_event
from voicegate.load.channel import EventChannel
from voicegate.load.channel import Wanted as WantedChannel
from voicegate.load.ice import Randomness


@dataclass(frozen=True, slots=True)
class Wanted(WantedChannel):
    """The channel that a light call opens."""

    validate: bool = True
    """Hold every event against the official models; a bench does not."""
    raw: bool = False
    """No SCTP of our own: what comes out of DTLS is kept in `packets`."""


class LightChannel(EventChannel):
    """One association with one channel of events. Bytes and `now` in, bytes out."""

    def __init__(self, wanted: Wanted, source: Randomness, *, dtls_client: bool, now: float) -> None:
        self.events: list[Event] = []
        """What came, decoded."""
        self.times: list[float] = []
        """When, beside `events`."""
        self.odd: list[bytes] = []
        """Binary messages."""
        self.packets: list[bytes] = []
        self._raw = wanted.raw
        self._validate = wanted.validate
        super().__init__(wanted, source, dtls_client=dtls_client, now=now)

    def connect(self, wanted: WantedChannel, now: float) -> None:
        if not self._raw:
            super().connect(wanted, now)

    def receive(self, packet: bytes, now: float) -> None:
        if self._raw:
            self.packets.append(packet)
        else:
            super().receive(packet, now)

    def handle_timeout(self, now: float) -> None:
        if not self._raw:
            super().handle_timeout(now)

    def poll_transmit(self) -> bytes | None:
        return None if self._raw else super().poll_transmit()

    def next_deadline(self) -> float | None:
        return None if self._raw else super().next_deadline()

    def received(self, message: str | bytes, now: float) -> None:
        if isinstance(message, bytes):
            self.odd.append(message)
            return
        self.times.append(now)
        self.events.append(server_event(message) if self._validate else json.loads(message))

    def of(self, kind: str) -> list[Event]:
        return [event for event in list(self.events) if event["type"] == kind]

    def types(self) -> list[str]:
        return [event["type"] for event in list(self.events)]

    def at(self, kind: str) -> float:
        """When the first event of this type came."""
        return next(at for at, event in zip(self.times, self.events, strict=False) if event["type"] == kind)
