"""From nothing to an association and to its end: handshake, SHUTDOWN, ABORT (RFC 9260 sections 5, 8.4, 9).

It owns the state (`states`), the peer's tag, the parts that exist once the peer is known, and the chunks of
its own that wait to be sent. `association` gives it what arrives and takes what leaves.
"""

from __future__ import annotations

from collections import deque
from typing import Final

from voicegate.proto.errors import BadPacket
from voicegate.proto.sctp import wire
from voicegate.proto.sctp.events import Connected, Disconnected, SctpEvent
from voicegate.proto.sctp.handshake import CookieAction, Handshake
from voicegate.proto.sctp.inbound import Inbound
from voicegate.proto.sctp.outbound import Outbound
from voicegate.proto.sctp.parameters import MAX_STREAMS, Init, parse_init_untrusted
from voicegate.proto.sctp.reconfig import Reconfig
from voicegate.proto.sctp.rto import RetransmissionTimeout
from voicegate.proto.sctp.states import State, Trigger, next_state
from voicegate.proto.sctp.wire import ChunkType, ErrorCause

MAX_RETRANSMITS: Final = 10
"""Timeouts in a row before the peer counts as gone: Association.Max.Retrans of RFC 9260 section 16. With
`rto.RTO_MAX` that is up to 30 s, as long as ICE's consent lasts."""
MAX_INIT_RETRANSMITS: Final = 8
"""RFC 9260 section 16: Max.Init.Retransmits."""
MAX_CONTROL: Final = 16
"""Control chunks, and packets that travel alone, that wait for their poll: several times what one datagram
should cause. A flood of INITs is answered up to this."""
MAX_CONTROL_CHUNK: Final = 512
"""Bytes of a control chunk, so that it fits beside the longest SACK. Only the echo of a HEARTBEAT could be
larger; such a one is not answered."""

_OPENING: Final = frozenset((State.LISTENING, State.COOKIE_WAIT, State.COOKIE_ECHOED))


class _Retry:
    """T1 or T2: what is to be sent again (RFC 9260 sections 5.1, 9.2)."""

    __slots__ = ("attempts", "chunk", "deadline", "limit", "started", "tag")

    def __init__(self, chunk: bytes, tag: int, now: float, timeout: float, limit: int) -> None:
        self.chunk = chunk
        self.tag = tag
        self.started = now
        self.deadline = now + timeout
        self.limit = limit
        self.attempts = 0


class Lifecycle:
    """One association's life. `entropy`: `handshake.ENTROPY` random bytes; `ports`: ours, the peer's."""

    def __init__(self, entropy: bytes, ports: tuple[int, int]) -> None:
        self.state = State.LISTENING
        self.peer_tag = 0
        """0: not known yet."""
        self.streams = MAX_STREAMS
        """Stream numbers below this can be used; more may be before the peer has said its number."""
        self.timeout = RetransmissionTimeout()
        self.control: deque[bytes] = deque()
        """Chunks that travel in the next packet."""
        self.alone: deque[bytes] = deque()
        """Whole packets."""
        self.events: deque[SctpEvent] = deque()
        self.end: Disconnected | None = None
        """The last event, when its time has come."""
        self.overflowed = 0
        """Chunks of ours dropped because too many waited."""
        self.inbound: Inbound | None = None
        self.reconfig: Reconfig | None = None
        self._ports = ports
        self._handshake = Handshake(entropy)
        self.outbound = Outbound(self._handshake.tsn, self.timeout)
        self._retry: _Retry | None = None

    @property
    def tag(self) -> int:
        """Ours."""
        return self._handshake.tag

    @property
    def opening(self) -> bool:
        """The handshake is not through."""
        return self.state in _OPENING

    @property
    def deadline(self) -> float | None:
        return self._retry.deadline if self._retry else None

    def init_chunk(self) -> bytes:
        return self._handshake.init_chunk()

    # --- handshake --------------------------------------------------------------------------------

    def connect(self, now: float) -> None:
        if self.state is State.LISTENING:
            self._move(Trigger.CONNECT)
            self._repeatedly(self.init_chunk(), 0, now, MAX_INIT_RETRANSMITS)

    def receive_init(self, value: bytes, now: float) -> None:
        """RFC 9260 sections 5.1, 5.2.1, 5.2.2. BadPacket: sctp_init, sctp_parameter."""
        init = parse_init_untrusted(value)
        if self.opening:
            answer = self._handshake.init_ack_chunk(init, self.tag, 0, now)
        elif self.state is State.SHUTDOWN_ACK_SENT:  # section 9.2
            answer = wire.build_chunk(ChunkType.SHUTDOWN_ACK, 0, b"")
            self.send_alone(answer, self.peer_tag)
            return
        else:
            answer = self._handshake.init_ack_chunk(init, self._handshake.other_tag(init), self.peer_tag, now)
        self.send_alone(answer, init.tag)

    def receive_init_ack(self, value: bytes, now: float) -> None:
        """BadPacket: sctp_init, sctp_parameter."""
        init = parse_init_untrusted(value)
        if self._retry is not None and not self._retry.attempts:
            self.timeout.measured(now - self._retry.started)
        echo = wire.build_chunk(ChunkType.COOKIE_ECHO, 0, init.cookie)
        if not init.cookie or len(echo) > wire.MAX_PACKET - wire.COMMON_HEADER:
            raise BadPacket("sctp_init")
        self._move(Trigger.INIT_ACK)
        self._meet(init)
        self._repeatedly(echo, self.peer_tag, now, MAX_INIT_RETRANSMITS)

    def receive_cookie(self, value: bytes, tag: int, now: float) -> None:
        """A COOKIE ECHO in a packet with this tag (RFC 9260 sections 5.1.5, 5.2.4). BadPacket: sctp_cookie,
        sctp_tag, sctp_stale_cookie, sctp_late_cookie."""
        action, init, age = self._handshake.judge_cookie_untrusted(value, tag, self.peer_tag, now)
        match action:
            case CookieAction.REPEAT | CookieAction.ESTABLISH if self.opening:
                if self.state is State.LISTENING:
                    self.timeout.measured(age)  # our answer to its INIT came back as the cookie
                self.establish(init)
                self.send(wire.build_chunk(ChunkType.COOKIE_ACK, 0, b""))
            case CookieAction.REPEAT:
                self.send(wire.build_chunk(ChunkType.COOKIE_ACK, 0, b""))
            case CookieAction.STALE:
                cause = wire.build_cause(ErrorCause.STALE_COOKIE, bytes(4))
                self.send_alone(wire.build_chunk(ChunkType.ERROR, 0, cause), init.tag)
                raise BadPacket("sctp_stale_cookie")
            case CookieAction.RESTART:
                # Its channels are gone with its memory; ours cannot go on with them.
                self.abort(ErrorCause.PROTOCOL_VIOLATION, "restarted")
            case _:
                raise BadPacket("sctp_late_cookie")

    def receive_cookie_ack(self) -> None:
        self._move(Trigger.ASSOCIATE)
        self._retry = None
        self.events.append(Connected(self.streams))

    def establish(self, init: Init) -> None:
        """Both sides know each other."""
        self._retry = None
        self._meet(init)
        self._move(Trigger.ASSOCIATE)
        self.events.append(Connected(self.streams))

    def _meet(self, init: Init) -> None:
        """Take the peer's values."""
        self.peer_tag = init.tag
        self.streams = min(init.outbound, init.inbound, MAX_STREAMS)
        self.inbound = Inbound(init.tsn - 1, MAX_STREAMS)
        self.outbound.open(init.window, init.forward_tsn)
        self.reconfig = Reconfig(self.inbound, self._handshake.tsn, self.outbound, self.timeout)
        self.reconfig.available = init.reconfig

    # --- the end ----------------------------------------------------------------------------------

    def shutdown(self) -> None:
        self._move(Trigger.SHUTDOWN_CALL)

    def receive_shutdown(self, value: bytes, now: float) -> None:
        """BadPacket: sctp_shutdown, sctp_sack_unsent."""
        self.outbound.acknowledge_cumulative(wire.parse_shutdown_untrusted(value), now)
        before = self.state
        self._move(Trigger.SHUTDOWN)
        if before is State.SHUTDOWN_SENT or before is State.SHUTDOWN_ACK_SENT:
            self._send_shutdown_ack(now)

    def receive_shutdown_ack(self) -> None:
        self.send_alone(wire.build_chunk(ChunkType.SHUTDOWN_COMPLETE, 0, b""), self.peer_tag)
        self.finish("shutdown")

    def repeat_shutdown_complete(self, tag: int) -> None:
        """The peer has not heard that all is over: RFC 9260 section 8.4, rule 5."""
        self.send_alone(wire.build_chunk(ChunkType.SHUTDOWN_COMPLETE, wire.FLAG_T, b""), tag)

    def all_acked(self, now: float) -> None:
        """Nothing of ours is left to deliver."""
        if self.state is State.SHUTDOWN_PENDING:
            self._move(Trigger.ALL_ACKED)
            self.send_shutdown(now)
        elif self.state is State.SHUTDOWN_RECEIVED:
            self._move(Trigger.ALL_ACKED)
            self._send_shutdown_ack(now)

    def send_shutdown(self, now: float) -> None:
        assert self.inbound is not None, "there is an association to shut down"
        chunk = wire.build_shutdown(self.inbound.cumulative)
        self._repeatedly(chunk, self.peer_tag, now, MAX_RETRANSMITS)

    def abort(self, cause: ErrorCause, reason: str) -> None:
        if self.peer_tag:
            self.alone.clear()
            self.send_alone(wire.build_chunk(ChunkType.ABORT, 0, wire.build_cause(cause)), self.peer_tag)
        self.finish(reason)

    def finish(self, reason: str) -> None:
        self.state = State.CLOSED
        self._retry = None
        self.control.clear()
        self.outbound = Outbound(self._handshake.tsn, self.timeout)  # what it held is of no use any more
        self.end = Disconnected(reason)

    def _send_shutdown_ack(self, now: float) -> None:
        chunk = wire.build_chunk(ChunkType.SHUTDOWN_ACK, 0, b"")
        self._repeatedly(chunk, self.peer_tag, now, MAX_RETRANSMITS)

    # --- sending ----------------------------------------------------------------------------------

    def handle_timeout(self, now: float) -> None:
        """T1 and T2."""
        retry = self._retry
        if retry is None or now < retry.deadline:
            return
        retry.attempts += 1
        if retry.attempts > retry.limit:
            self.finish("unreachable")
            return
        self.timeout.back_off()
        retry.deadline = now + self.timeout.value
        self.send_alone(retry.chunk, retry.tag)

    def send(self, chunk: bytes) -> None:
        """In the next packet."""
        if len(self.control) < MAX_CONTROL and len(chunk) <= MAX_CONTROL_CHUNK:
            self.control.append(chunk)
        else:
            self.overflowed += 1

    def send_error(self, cause: ErrorCause, detail: bytes) -> None:
        self.send(wire.build_chunk(ChunkType.ERROR, 0, wire.build_cause(cause, detail)))

    def send_alone(self, chunk: bytes, tag: int) -> None:
        """In a packet of its own."""
        if len(self.alone) < MAX_CONTROL:
            self.alone.append(wire.build_packet(*self._ports, tag, [chunk]))
        else:
            self.overflowed += 1

    def _repeatedly(self, chunk: bytes, tag: int, now: float, limit: int) -> None:
        self.send_alone(chunk, tag)
        self._retry = _Retry(chunk, tag, now, self.timeout.value, limit)

    def _move(self, trigger: Trigger) -> None:
        self.state = next_state(self.state, trigger)
