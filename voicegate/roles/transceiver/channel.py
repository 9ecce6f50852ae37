"""A call's events channel: the data channel that carries Realtime events (RFC 8831), over its DTLS. Pure.

A client may open channels of any label. Events go over one of them: the one that was agreed on in advance
(`?dcid=N`), else the first, unless one labelled `oai-events` comes later. What comes on any of them is the
client's.
"""

from __future__ import annotations

from collections import deque
from enum import Enum
from typing import Final, NamedTuple

from voicegate.proto.datachannel import (
    ChannelClosed,
    ChannelOpened,
    DataChannels,
    Disconnected,
    MessageReceived,
    MessageRejected,
    SendResult,
)
from voicegate.proto.dcep import Open
from voicegate.proto.sctp import Association

LABEL: Final = "oai-events"
"""What the official clients call it."""

MAX_BACKLOG: Final = 1024
MAX_BACKLOG_BYTES: Final = 1 << 20
"""Events that wait for room in the association's send buffer: a client that takes nothing for so long loses
the newest."""


class ChannelParameters(NamedTuple):
    """What is known of a call's channels before they exist."""

    entropy: bytes
    """`sctp.handshake.ENTROPY` random bytes."""
    remote_port: int
    max_message_size: int
    """The client's `a=max-message-size`; 0: any."""
    negotiated: int | None
    """`?dcid=N`."""


class Notice(Enum):
    """What the owner hears besides messages."""

    OPENED = "events can be sent"
    CLOSED = "events can no longer be sent"


class EventsChannel:
    """Made when DTLS is connected. `dtls_client`: we are the DTLS client."""

    def __init__(self, parameters: ChannelParameters, *, dtls_client: bool, now: float) -> None:
        association = Association(parameters.entropy, now, remote_port=parameters.remote_port)
        self._channels = DataChannels(
            association, dtls_client=dtls_client, max_message_size=parameters.max_message_size
        )
        self._id: int | None = None
        self._backlog: deque[bytes] = deque()
        self._backlog_bytes = 0
        self._inbox: deque[Notice | str | bytes | MessageRejected] = deque()
        self.ended = False
        """The association is over."""
        self.lost_events = 0
        """Events for the client that had no room, or that it does not take."""
        if parameters.negotiated is not None:
            self._channels.open_negotiated(parameters.negotiated, Open(LABEL), now)
        self._channels.connect(now)  # RFC 8841 section 9.3: both sides begin

    @property
    def open(self) -> bool:
        return self._id is not None

    def receive_datagram(self, data: bytes, now: float) -> None:
        """Take one SCTP packet. Raises BadPacket."""
        try:
            self._channels.receive_datagram(data, now)
        finally:
            self._take_events(now)

    def handle_timeout(self, now: float) -> None:
        self._channels.handle_timeout(now)
        self._take_events(now)

    def send(self, event: bytes, now: float) -> None:
        """Send one event, a text of UTF-8. Bounded: what has no room is dropped and counted."""
        if (
            len(self._backlog) >= MAX_BACKLOG
            or self._backlog_bytes + len(event) > MAX_BACKLOG_BYTES
            or self._id is None
        ):
            self.lost_events += 1
            return
        self._backlog.append(event)
        self._backlog_bytes += len(event)
        self._send_backlog(now)

    def poll_message(self) -> Notice | str | bytes | MessageRejected | None:
        """What came: a notice, a message, or one that could not be read."""
        return self._inbox.popleft() if self._inbox else None

    def poll_transmit(self) -> bytes | None:
        """The next SCTP packet for DTLS."""
        return self._channels.poll_transmit()

    def next_deadline(self) -> float | None:
        return self._channels.next_deadline()

    def shutdown(self, now: float) -> None:
        """Close every channel, then the association: `ended` tells when the client has seen it."""
        self._channels.shutdown(now)
        self._take_events(now)

    def statistics(self) -> dict[str, object]:
        counts = self._channels.statistics()
        return {
            "channels": counts.channels,
            "received": counts.received,
            "sent": counts.sent,
            "lost": self.lost_events,
            "rejected": dict(counts.rejected),
        }

    def _take_events(self, now: float) -> None:
        while (event := self._channels.poll_event()) is not None:
            match event:
                case MessageReceived():
                    self._inbox.append(event.data)
                case MessageRejected():
                    self._inbox.append(event)
                case ChannelOpened():
                    if self._id is None or event.label == LABEL:
                        self._id = event.id
                        self._inbox.append(Notice.OPENED)
                case ChannelClosed() if event.id == self._id:
                    self._id = None
                    self._drop_backlog()
                    self._inbox.append(Notice.CLOSED)
                case Disconnected():
                    self.ended = True
                case _:
                    pass
        self._send_backlog(now)

    def _send_backlog(self, now: float) -> None:
        while self._backlog and self._id is not None:
            # Text goes out as it is: DataChannels encodes str, so it is decoded here once.
            result = self._channels.send(self._id, self._backlog[0].decode("utf-8", "replace"), now)
            if result is SendResult.FULL:
                return
            if result is not SendResult.QUEUED:
                self.lost_events += 1
            self._backlog_bytes -= len(self._backlog.popleft())

    def _drop_backlog(self) -> None:
        self.lost_events += len(self._backlog)
        self._backlog.clear()
        self._backlog_bytes = 0
