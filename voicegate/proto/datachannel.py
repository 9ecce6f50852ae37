"""Data channels over one SCTP association (RFC 8831, RFC 8832).

Theory of operation. A channel is a pair of streams with the same number, opened by an OPEN of one side
(numbers are even for the DTLS client, odd for the server) or agreed on elsewhere ("negotiated"). It is closed
by resetting both streams: the side that closes resets its own and the other answers in kind; the number is
free again when both are done. `ChannelClosed` comes once, as soon as no more messages can.

A message that cannot be given to the application (no UTF-8, a payload protocol nobody knows, larger than we
take) is `MessageRejected`; the channel stays, and its owner decides. RFC 8831 section 6.6 would close it; a
client that can be told what was wrong is better served.

The verbs are the association's; `now` as there. What nobody takes out of here stays inside the association's
receive buffer, so a slow owner slows the peer.
"""

from __future__ import annotations

from collections import Counter, deque
from enum import Enum
from types import MappingProxyType
from typing import Final

from voicegate.proto.datachannel_events import (
    ChannelClosed,
    ChannelEvent,
    ChannelOpened,
    ChannelStatistics,
    MessageReceived,
    MessageRejected,
    Ppid,
    SendResult,
)
from voicegate.proto.dcep import ACK, Open, build_open, parse_dcep_untrusted
from voicegate.proto.errors import BadPacket
from voicegate.proto.sctp import (
    Association,
    Connected,
    Disconnected,
    Message,
    SctpEvent,
    SendBufferDrained,
    State,
    StreamsReset,
    StreamsResetDone,
)

__all__ = [
    "ChannelClosed",
    "ChannelEvent",
    "ChannelOpened",
    "ChannelStatistics",
    "Connected",
    "DataChannels",
    "Disconnected",
    "MessageReceived",
    "MessageRejected",
    "Ppid",
    "SendBufferDrained",
    "SendResult",
]

MAX_CHANNELS: Final = 64
"""Channels of one call, closing ones included. Realtime clients have one; each may keep MAX_NAMES."""
MAX_NAMES: Final = 2_048
"""Characters of an incoming channel's label and protocol together: generous beside the 64 KiB each that the
format allows, and nothing else bounds what 64 channels may keep."""
DEFAULT_MAX_MESSAGE: Final = 65_536
"""Bytes: RFC 8841 section 6.1, when the peer's SDP has no `a=max-message-size`."""
MAX_EVENTS: Final = 64
MAX_EVENT_BYTES: Final = 65_536
"""What is taken out of the association ahead of the owner: enough for one drain, small beside its buffer."""
MAX_STREAM: Final = 65_534
"""RFC 8832 section 6: 65535 is not a stream."""

_LIVING: Final = frozenset((State.LISTENING, State.COOKIE_WAIT, State.COOKIE_ECHOED, State.ESTABLISHED))


class _Stage(Enum):
    OPENING = "our OPEN is unanswered, or the association is not there yet"
    OPEN = "both ways"
    CLOSING = "a reset is under way"


class _Channel:
    __slots__ = ("closed", "id", "local", "open", "ours_reset", "stage", "theirs_reset")

    def __init__(self, number: int, message: Open, *, local: bool, stage: _Stage) -> None:
        self.id = number
        self.open = message
        self.local = local
        self.stage = stage
        self.closed = False
        """ChannelClosed is out."""
        self.ours_reset = self.theirs_reset = False


class DataChannels:
    """All channels of one call. `max_message_size`: the peer's `a=max-message-size`, 0 for no limit."""

    def __init__(
        self,
        association: Association,
        *,
        dtls_client: bool,
        max_message_size: int = DEFAULT_MAX_MESSAGE,
    ) -> None:
        self._association = association
        self._parity = 0 if dtls_client else 1  # RFC 8832 section 6
        self._max_message = max_message_size
        self._channels: dict[int, _Channel] = {}
        self._negotiated: set[int] = set()
        self._events: deque[ChannelEvent] = deque()
        self._event_bytes = 0
        self._rejected: Counter[str] = Counter()
        self._received = self._sent = 0
        self._connected = self._ending = False
        self._now = 0.0

    # --- what the owner wants -----------------------------------------------------------------------

    def connect(self, now: float) -> None:
        """Begin the association; the peer may have."""
        self._association.connect(now)

    def open(self, message: Open, now: float) -> int | None:
        """Open a channel (also before the association stands) and give its number; ChannelOpened follows.
        None: no number or room is left. ValueError: see `dcep.build_open`."""
        data = build_open(message)
        limit = min(self._association.streams, MAX_STREAM + 1)
        number = next((n for n in range(self._parity, limit, 2) if n not in self._channels), None)
        if number is None or len(self._channels) >= MAX_CHANNELS or self._ending:
            return None
        if not self._association.send(number, Ppid.DCEP, data, now):
            return None
        self._channels[number] = _Channel(number, message, local=True, stage=_Stage.OPENING)
        return number

    def open_negotiated(self, number: int, message: Open, now: float) -> bool:
        """Use a channel that both sides agreed on elsewhere; ChannelOpened follows when it can be used. False
        if the number is taken or none, or no room is left."""
        if not 0 <= number < min(self._association.streams, MAX_STREAM + 1):
            return False
        if number in self._channels or len(self._channels) >= MAX_CHANNELS:
            return False
        self._channels[number] = channel = _Channel(number, message, local=True, stage=_Stage.OPENING)
        self._negotiated.add(number)
        if self._connected:
            self._opened(channel)
        return True

    def send(self, number: int, data: str | bytes, now: float) -> SendResult:
        """Send a text (str) or binary message."""
        channel = self._channels.get(number)
        if channel is None or channel.stage is _Stage.CLOSING:
            return self._count(SendResult.CLOSED)
        if isinstance(data, str):
            payload = data.encode("utf-8", "replace")  # a lone surrogate is not Unicode text
            ppid = Ppid.STRING if payload else Ppid.STRING_EMPTY
        else:
            payload = data
            ppid = Ppid.BINARY if payload else Ppid.BINARY_EMPTY
        if self._max_message and len(payload) > self._max_message:
            return self._count(SendResult.TOO_LARGE)
        wanted = channel.open
        accepted = self._association.send(
            number,
            ppid,
            payload or b"\0",  # RFC 8831 section 6.6: an empty message is one byte that is not looked at
            now,
            # RFC 8832 section 6: in order until the peer is known to have the OPEN
            ordered=wanted.ordered or channel.stage is _Stage.OPENING,
            max_retransmits=wanted.max_retransmits,
            lifetime=wanted.lifetime,
        )
        if accepted:
            self._sent += 1
            return SendResult.QUEUED
        ending = self._association.state not in _LIVING
        return self._count(SendResult.CLOSED if ending else SendResult.FULL)

    def buffered_amount(self, number: int) -> int:
        """Bytes accepted on this channel that were never sent."""
        return self._association.waiting(number)

    def close_channel(self, number: int, now: float) -> None:
        """Close a channel once what is queued on it is sent."""
        self._now = now
        channel = self._channels.get(number)
        if channel is not None and channel.stage is not _Stage.CLOSING:
            self._close(channel)
            self._pump()

    def shutdown(self, now: float) -> None:
        """Close every channel, then the association; `Disconnected` tells when it is done. The peer sees a
        clean end. An owner that cannot wait calls `close` after a while."""
        self._now = now
        self._ending = True
        for channel in list(self._channels.values()):
            if channel.stage is not _Stage.CLOSING:
                self._close(channel)
        self._finish_shutdown()
        self._pump()

    # --- the verbs --------------------------------------------------------------------------------

    def receive_datagram(self, data: bytes, now: float) -> None:
        """Take one packet out of DTLS. BadPacket as `Association.receive_datagram`."""
        self._now = now
        try:
            self._association.receive_datagram(data, now)
        finally:
            self._pump()

    def handle_timeout(self, now: float) -> None:
        """Do what is due at `now`."""
        self._now = now
        self._association.handle_timeout(now)
        self._pump()

    def poll_transmit(self) -> bytes | None:
        """The next packet for DTLS."""
        return self._association.poll_transmit()

    def poll_event(self) -> ChannelEvent | None:
        """The next event; `Disconnected` is the last."""
        if not self._events:
            self._pump()
            if not self._events:
                return None
        event = self._events.popleft()
        if not self._events:
            self._event_bytes = 0
        return event

    def next_deadline(self) -> float | None:
        """When to call `handle_timeout` next."""
        return self._association.next_deadline()

    def close(self, now: float) -> None:
        """End at once, with an ABORT."""
        self._now = now
        self._association.close(now)
        self._pump()

    def statistics(self) -> ChannelStatistics:
        return ChannelStatistics(
            len(self._channels),
            self._received,
            self._sent,
            MappingProxyType(self._rejected),
            self._association.statistics(),
        )

    # --- events of the association ------------------------------------------------------------------

    def _pump(self) -> None:
        while len(self._events) < MAX_EVENTS and self._event_bytes < MAX_EVENT_BYTES:
            event = self._association.poll_event()
            if event is None:
                return
            if isinstance(event, Message):
                self._receive(event)
            else:
                self._notice(event)

    def _notice(self, event: SctpEvent) -> None:
        match event:
            case Connected():
                self._connected = True
                self._events.append(event)
                self._begin_channels()
            case StreamsReset():
                for number in event.streams or tuple(self._channels):
                    self._receive_reset(number)
            case StreamsResetDone():
                for number in event.streams:
                    channel = self._channels.get(number)
                    if channel is not None and channel.stage is _Stage.CLOSING:
                        channel.ours_reset = True
                        self._forget_if_done(channel)
            case Disconnected():
                for channel in list(self._channels.values()):
                    self._announce_closed(channel)
                self._channels.clear()
                self._events.append(event)
            case SendBufferDrained():
                self._events.append(event)
            case Message():
                pass  # `_pump` has taken it

    def _begin_channels(self) -> None:
        """The association stands: negotiated channels open, and what was closed meanwhile is reset."""
        for channel in list(self._channels.values()):
            if channel.stage is _Stage.CLOSING or channel.id >= self._association.streams:
                self._close(channel)
            elif channel.id in self._negotiated:
                self._opened(channel)

    def _opened(self, channel: _Channel) -> None:
        channel.stage = _Stage.OPEN
        wanted = channel.open
        self._events.append(
            ChannelOpened(channel.id, wanted.label, wanted.protocol, wanted.ordered, channel.local)
        )

    # --- messages -----------------------------------------------------------------------------------

    def _receive(self, message: Message) -> None:
        if message.ppid == Ppid.DCEP:
            try:
                opening = parse_dcep_untrusted(message.data or b"")
            except BadPacket as error:
                self._rejected[error.reason] += 1
                return
            if opening is None:
                self._receive_ack(message.stream)
            else:
                self._receive_open(message.stream, opening)
            return
        channel = self._channels.get(message.stream)
        if channel is None or channel.stage is _Stage.CLOSING:
            self._rejected["no_channel"] += 1
            return
        if channel.stage is _Stage.OPENING:  # RFC 8832 section 6: as good as an ACK
            self._opened(channel)
        self._deliver(message)

    def _deliver(self, message: Message) -> None:
        data = message.data
        if data is None:
            self._reject(message.stream, "too_large")
            return
        received: str | bytes
        match message.ppid:
            case Ppid.STRING:
                try:
                    received = data.decode()
                except UnicodeDecodeError:
                    self._reject(message.stream, "invalid_utf8")
                    return
            case Ppid.BINARY:
                received = data
            case Ppid.STRING_EMPTY:
                received = ""
            case Ppid.BINARY_EMPTY:
                received = b""
            case _:
                self._reject(message.stream, "unknown_ppid")
                return
        self._received += 1
        self._event_bytes += len(data)
        self._events.append(MessageReceived(message.stream, received))

    def _reject(self, number: int, reason: str) -> None:
        self._rejected[reason] += 1
        self._events.append(MessageRejected(number, reason))

    # --- opening and closing --------------------------------------------------------------------------

    def _receive_open(self, number: int, message: Open) -> None:
        """RFC 8832 section 6: a number of the wrong parity, or one in use, closes it; no ACK."""
        channel = self._channels.get(number)
        if channel is not None:
            self._rejected["open_in_use"] += 1
            if channel.stage is not _Stage.CLOSING:
                self._close(channel)
            return
        reason = ""
        if number % 2 == self._parity:
            reason = "open_parity"
        elif number > MAX_STREAM:
            reason = "open_stream"
        elif len(self._channels) >= MAX_CHANNELS:
            reason = "open_too_many"
        elif len(message.label) + len(message.protocol) > MAX_NAMES:
            reason = "open_too_long"
        elif self._ending or not self._association.send(number, Ppid.DCEP, ACK, self._now):
            reason = "open_no_room"
        if reason:
            self._rejected[reason] += 1
            self._association.reset_stream(number, self._now)
            return
        self._channels[number] = channel = _Channel(number, message, local=False, stage=_Stage.OPENING)
        self._opened(channel)

    def _receive_ack(self, number: int) -> None:
        channel = self._channels.get(number)
        if channel is not None and channel.stage is _Stage.OPENING:
            self._opened(channel)
        else:
            self._rejected["ack_unexpected"] += 1

    def _close(self, channel: _Channel) -> None:
        """Reset our side; without an association, as soon as there is one (RFC 8831 section 6.7)."""
        channel.stage = _Stage.CLOSING
        if self._connected and not self._association.reset_stream(channel.id, self._now):
            # The peer cannot reset, or has had too much of it: the number is lost, the rest goes on.
            self._announce_closed(channel)
            channel.ours_reset = channel.theirs_reset = True
            self._forget_if_done(channel)

    def _receive_reset(self, number: int) -> None:
        channel = self._channels.get(number)
        if channel is None:
            return
        channel.theirs_reset = True
        self._announce_closed(channel)
        if channel.stage is not _Stage.CLOSING:
            self._close(channel)
        self._forget_if_done(channel)

    def _announce_closed(self, channel: _Channel) -> None:
        if not channel.closed:
            channel.closed = True
            self._events.append(ChannelClosed(channel.id))

    def _forget_if_done(self, channel: _Channel) -> None:
        if channel.ours_reset and channel.theirs_reset:
            self._channels.pop(channel.id, None)
            self._negotiated.discard(channel.id)
            self._finish_shutdown()

    def _finish_shutdown(self) -> None:
        if self._ending and not self._channels:
            self._association.shutdown(self._now)

    def _count(self, result: SendResult) -> SendResult:
        self._rejected["send_" + result.name.lower()] += 1
        return result
