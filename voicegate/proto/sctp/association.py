"""An SCTP association over DTLS (RFC 8261, RFC 9260): the verbs, and who gets which chunk.

Theory of operation. Either side may begin, or both at once. Until the handshake is through (`lifecycle`)
nothing is kept for an INIT. Then `inbound`, `outbound` and `reconfig` do the work, and packets are made when
they are asked for (`poll_transmit`), from whatever is due: so SACK, resets and DATA share a packet. Time
moves with the mutations; polling happens at the time of the last one.

DTLS has authenticated the peer, so a bad packet is the peer's own or damage. It is dropped and counted. What
RFC 9260 answers with ABORT ends the association, not the call it belongs to.

Timers: T1 and T2 (`lifecycle`), T3 (`outbound.timer`), the delayed SACK (`inbound.sack_at`), the reset's
(`reconfig.timer`). There are no HEARTBEATs of ours: ICE's checks watch the path, there is only one.
"""

from __future__ import annotations

from typing import Final, NamedTuple

from voicegate.proto.errors import BadPacket
from voicegate.proto.sctp import wire
from voicegate.proto.sctp.events import SctpEvent, SendBufferDrained
from voicegate.proto.sctp.lifecycle import MAX_RETRANSMITS, Lifecycle
from voicegate.proto.sctp.outbound import OutboundStatistics
from voicegate.proto.sctp.parameters import parse_init_untrusted
from voicegate.proto.sctp.reassembly import PeerViolation
from voicegate.proto.sctp.sendqueue import SEND_BUFFER, Outgoing
from voicegate.proto.sctp.states import ACCEPTED, SENDING, State
from voicegate.proto.sctp.wire import COMMON_HEADER, FLAG_T, MAX_PACKET, ChunkType, ErrorCause, Packet

MAX_BURST: Final = 10
"""Packets sent on one occasion (RFC 9260 section 6.1, rule D, says 4; here as many as the first window): a
relay's or a home router's queue is short."""
MAX_REPORTED: Final = 64
"""Bytes of an unknown chunk that are sent back in ERROR."""

_DATA: Final = int(ChunkType.DATA)
_SACK: Final = int(ChunkType.SACK)
_USUAL: Final = (_DATA, _SACK)


class AssociationStatistics(NamedTuple):
    """Counters since the start, and the present."""

    state: State
    received: int
    """Packets with a right checksum."""
    sent: int
    dropped_chunks: int
    """Of the peer's: malformed, unexpected or unacceptable."""
    dropped_control: int
    """Answers of ours for which there was no room."""
    refused_data: int
    """DATA the peer has to send again: the buffer was full, or the TSN too far ahead."""
    dropped_messages: int
    """Fragments and messages thrown away: incomplete ones the peer gave up, too many streams."""
    held: int
    """Cost in bytes of what is received and not yet taken or complete."""
    round_trip: float | None
    """Seconds, smoothed."""
    outbound: OutboundStatistics


class Association:
    """One association, from before its handshake to its end; not used again. `entropy`: `handshake.ENTROPY`
    random bytes."""

    def __init__(
        self, entropy: bytes, now: float, *, local_port: int = 5000, remote_port: int = 5000
    ) -> None:
        self._ports = (local_port, remote_port)
        self._life = Lifecycle(entropy, self._ports)
        self._now = now
        self._errors = self._burst = 0
        self._starved = False
        self._received = self._sent = self._dropped_chunks = 0

    # --- what the owner wants -----------------------------------------------------------------------

    @property
    def state(self) -> State:
        return self._life.state

    @property
    def streams(self) -> int:
        """Stream numbers below this can be used."""
        return self._life.streams

    @property
    def can_reset(self) -> bool:
        """The peer knows RFC 6525."""
        return self._life.reconfig is not None and self._life.reconfig.available

    def connect(self, now: float) -> None:
        """Begin the handshake; nothing if it has begun."""
        self._begin(now)
        self._life.connect(now)

    def local_init(self) -> bytes:
        """Our INIT chunk, to be told by signaling (`a=sctp-init`)."""
        return self._life.init_chunk()

    def connect_by_signaling_untrusted(self, init: bytes, now: float) -> None:
        """Skip the handshake: the peer's INIT chunk came by signaling, as ours did to the peer
        (draft-hancke-tsvwg-snap). BadPacket: sctp_init, sctp_parameter."""
        self._begin(now)
        if len(init) < 4 or init[0] != ChunkType.INIT or int.from_bytes(init[2:4], "big") != len(init):
            raise BadPacket("sctp_init")
        peer = parse_init_untrusted(init[4:])
        if self._life.state is State.LISTENING:
            self._life.establish(peer)

    def send(
        self,
        stream: int,
        ppid: int,
        payload: bytes,
        now: float,
        *,
        ordered: bool = True,
        max_retransmits: int | None = None,
        lifetime: float | None = None,
    ) -> bool:
        """Queue a message of at least one byte; False if the send buffer has no room or the association is
        ending. `lifetime` in seconds. A message with a limit may be lost (RFC 3758)."""
        assert payload, "SCTP has no empty messages: RFC 8831 section 6.6 has payload protocols for them"
        self._begin(now)
        if not self._life.opening and self._life.state is not State.ESTABLISHED:
            return False
        expiry = None if lifetime is None else now + lifetime
        message = Outgoing(stream, ppid, payload, ordered, max_retransmits, expiry)
        if self._life.outbound.queue.add(message):
            return True
        self._starved = True
        return False

    def waiting(self, stream: int) -> int:
        """Bytes queued on a stream that were never sent."""
        return self._life.outbound.queue.waiting(stream)

    def reset_stream(self, stream: int, now: float) -> bool:
        """Reset our side of a stream once what waits on it is sent; `StreamsResetDone` follows. False if that
        cannot be: no association, a peer without RFC 6525, or too many waiting."""
        self._begin(now)
        reconfig = self._life.reconfig
        return reconfig is not None and reconfig.available and reconfig.reset(stream)

    def shutdown(self, now: float) -> None:
        """End gracefully: what is queued is delivered first. Before the handshake is through, as `close`."""
        if self._life.opening:
            self.close(now)
            return
        self._begin(now)
        self._life.shutdown()
        self._after_input(now)

    # --- the verbs --------------------------------------------------------------------------------

    def receive_datagram(self, data: bytes, now: float) -> None:
        """Take one packet out of DTLS. BadPacket if a part of it is of no use (reasons of `wire`, and
        sctp_closed, sctp_port, sctp_tag, sctp_unexpected_chunk, ...); the good parts count."""
        life = self._life
        packet = wire.parse_packet_untrusted(data)
        self._begin(now)
        self._received += 1
        if (packet.destination, packet.source) != self._ports:
            raise BadPacket("sctp_port")
        if life.state is State.CLOSED:
            if packet.chunks[0][0] == ChunkType.SHUTDOWN_ACK:
                life.repeat_shutdown_complete(packet.tag)
            raise BadPacket("sctp_closed")
        try:
            if packet.tag == life.tag:
                self._receive_chunks(data, packet.chunks, now)
            else:
                self._receive_odd_tag(data, packet, now)
        except PeerViolation as violation:
            self._dropped_chunks += 1
            life.abort(violation.cause, "violation")
            raise BadPacket(violation.reason) from None
        finally:
            self._after_input(now)

    def handle_timeout(self, now: float) -> None:
        """Do what is due at `now`."""
        self._begin(now)
        life = self._life
        if life.state is State.CLOSED:
            return
        if life.inbound is not None:
            life.inbound.handle_timeout(now)
        if life.outbound.handle_timeout(now):
            self._count_error()
        if life.reconfig is not None and life.reconfig.handle_timeout(now):
            self._count_error()
        life.handle_timeout(now)
        self._after_input(now)

    def poll_transmit(self) -> bytes | None:
        """The next packet for DTLS, `wire.MAX_PACKET` bytes at most."""
        life = self._life
        if life.alone:
            self._sent += 1
            return life.alone.popleft()
        inbound, reconfig, outbound = life.inbound, life.reconfig, life.outbound
        if inbound is None or reconfig is None or self._burst >= MAX_BURST or life.state is State.CLOSED:
            return None
        if not (inbound.sack_due or outbound.has_work or life.control or reconfig.has_work):
            return None
        chunks: list[bytes] = []
        sack = inbound.build_sack() if inbound.sack_pending else b""
        room = MAX_PACKET - COMMON_HEADER - len(sack)
        while life.control and len(life.control[0]) <= room:
            room -= len(life.control[0])
            chunks.append(life.control.popleft())
        control = len(chunks)
        if life.state is State.ESTABLISHED or life.state in SENDING:
            reset = reconfig.poll(room, self._now) if reconfig.has_work else None
            if reset is not None:
                chunks.append(reset)
                room -= len(reset)
            outbound.fill(chunks, room, self._now)
        if sack and (chunks or inbound.sack_due):
            chunks.insert(
                control, sack
            )  # behind a COOKIE ACK (RFC 9260 section 5.1), before DATA (section 6)
            inbound.sack_sent()
        if not chunks:
            return None
        self._burst += 1
        self._sent += 1
        return wire.build_packet(*self._ports, life.peer_tag, chunks)

    def poll_event(self) -> SctpEvent | None:
        """The next event; `Disconnected` is the last. Taking messages opens our window again."""
        life = self._life
        if life.events:
            return life.events.popleft()
        if life.inbound is not None and life.inbound.reassembly.delivered:
            return life.inbound.take()
        end, life.end = life.end, None
        return end

    def next_deadline(self) -> float | None:
        """When to call `handle_timeout` next."""
        life = self._life
        if life.state is State.CLOSED:
            return None
        deadlines = (
            life.outbound.timer,
            life.inbound.sack_at if life.inbound else None,
            life.reconfig.timer if life.reconfig else None,
            life.deadline,
        )
        return min((deadline for deadline in deadlines if deadline is not None), default=None)

    def close(self, now: float) -> None:
        """End at once, with an ABORT for a peer that is known."""
        self._begin(now)
        if self._life.state is not State.CLOSED:
            self._life.abort(ErrorCause.USER_ABORT, "local_abort")

    def statistics(self) -> AssociationStatistics:
        life = self._life
        inbound = life.inbound
        return AssociationStatistics(
            life.state,
            self._received,
            self._sent,
            self._dropped_chunks,
            life.overflowed,
            inbound.refused if inbound else 0,
            inbound.reassembly.dropped if inbound else 0,
            inbound.reassembly.held if inbound else 0,
            life.timeout.round_trip,
            life.outbound.statistics(),
        )

    # --- chunks -----------------------------------------------------------------------------------

    def _receive_chunks(self, data: bytes, chunks: list[wire.Chunk], now: float) -> None:
        """All chunks of a packet with our tag. A bad one does not spoil those behind it."""
        life = self._life
        problem = ""
        has_data = False
        for kind, flags, start, stop in chunks:
            try:
                # The usual case is asked for first: a look into the table costs more than the rest here.
                usual = kind in _USUAL and life.state is State.ESTABLISHED
                if not usual and life.state not in ACCEPTED.get(kind, ()):
                    self._refuse(data, kind, start, stop)
                elif kind == _DATA:
                    has_data = True
                    self._receive_data(data, flags, start, stop)
                elif kind == _SACK:
                    if life.outbound.acknowledge(wire.parse_sack_untrusted(data, start, stop), now):
                        self._errors = 0
                else:
                    self._receive_control(kind, flags, data[start:stop], now)
            except BadPacket as error:
                self._dropped_chunks += 1
                problem = problem or error.reason
                if kind not in ACCEPTED and not kind & 0x80:  # RFC 9260 section 3.2: do not go on
                    break
            if life.state is State.CLOSED:
                break
        if has_data and life.inbound is not None:
            life.inbound.end_packet(now)
            if life.state is State.SHUTDOWN_SENT:  # RFC 9260 section 9.2
                life.send_shutdown(now)
        if problem:
            raise BadPacket(problem)

    def _receive_data(self, data: bytes, flags: int, start: int, stop: int) -> None:
        assert self._life.inbound is not None, "DATA is accepted in states that have it"
        stream = self._life.inbound.receive_data_untrusted(data, flags, start, stop)
        if stream is not None:
            self._life.send_error(ErrorCause.INVALID_STREAM, stream.to_bytes(2, "big") + b"\0\0")

    def _receive_control(self, kind: int, flags: int, value: bytes, now: float) -> None:
        life = self._life
        match kind:
            case ChunkType.FORWARD_TSN | ChunkType.RE_CONFIG:
                self._receive_extension(kind, value, now)
            case ChunkType.HEARTBEAT:
                life.send(wire.build_chunk(ChunkType.HEARTBEAT_ACK, 0, value))
            case ChunkType.COOKIE_ECHO:
                life.receive_cookie(value, life.tag, now)
            case ChunkType.COOKIE_ACK:
                life.receive_cookie_ack()
            case ChunkType.INIT_ACK:
                life.receive_init_ack(value, now)
            case ChunkType.SHUTDOWN:
                life.receive_shutdown(value, now)
            case ChunkType.SHUTDOWN_ACK:
                life.receive_shutdown_ack()
            case ChunkType.ABORT | ChunkType.SHUTDOWN_COMPLETE:
                if flags & FLAG_T:  # with the bit the tag would be the peer's (RFC 9260 section 8.5.1)
                    raise BadPacket("sctp_tag")
                life.finish("peer_abort" if kind == ChunkType.ABORT else "shutdown")
            case ChunkType.INIT:
                raise BadPacket("sctp_init_tag")  # RFC 9260 section 8.5.1, rule A: its tag is 0
            case _:
                pass  # ERROR tells nothing that a timer would not; HEARTBEAT ACK answers nothing of ours

    def _receive_extension(self, kind: int, value: bytes, now: float) -> None:
        life = self._life
        assert life.inbound is not None and life.reconfig is not None, "accepted in states that have them"
        if kind == ChunkType.FORWARD_TSN:
            life.inbound.receive_forward_tsn_untrusted(value)
            return
        life.reconfig.after_data()  # the DATA before it in this packet may be what a reset waits for
        done = life.reconfig.receive_untrusted(value, now)
        self._errors = 0
        if done is not None:
            life.events.append(done)

    def _receive_odd_tag(self, data: bytes, packet: Packet, now: float) -> None:
        """The packets whose tag need not be ours: RFC 9260 section 8.5.1."""
        life = self._life
        kind, flags, start, stop = packet.chunks[0]
        if life.state not in ACCEPTED.get(kind, ()):
            raise BadPacket("sctp_tag")
        if kind == ChunkType.INIT and not packet.tag and len(packet.chunks) == 1:
            life.receive_init(data[start:stop], now)
        elif kind == ChunkType.COOKIE_ECHO:
            life.receive_cookie(data[start:stop], packet.tag, now)
        elif (
            kind in (ChunkType.ABORT, ChunkType.SHUTDOWN_COMPLETE)
            and flags & FLAG_T
            and packet.tag == life.peer_tag != 0
        ):
            life.finish("peer_abort" if kind == ChunkType.ABORT else "shutdown")
        else:
            raise BadPacket("sctp_tag")

    def _refuse(self, data: bytes, kind: int, start: int, stop: int) -> None:
        """A chunk that is not for this state, or not known: its second bit says whether to report (RFC 9260
        section 3.2)."""
        if kind in (ChunkType.INIT_ACK, ChunkType.COOKIE_ACK) and self._life.inbound is not None:
            return  # handshakes that cross end like this (RFC 9260 sections 5.2.3 and 5.2.5)
        if kind in ACCEPTED:
            raise BadPacket("sctp_unexpected_chunk")
        if kind & 0x40 and self._life.inbound is not None:
            head = data[start - wire.CHUNK_HEADER : min(stop, start + MAX_REPORTED)]
            self._life.send_error(ErrorCause.UNRECOGNIZED_CHUNK, head)
        raise BadPacket("sctp_unknown_chunk")

    # --- housekeeping -----------------------------------------------------------------------------

    def _begin(self, now: float) -> None:
        self._now = now
        self._burst = 0

    def _after_input(self, now: float) -> None:
        life = self._life
        if life.state is State.CLOSED:
            return
        if life.reconfig is not None:
            life.reconfig.after_data()
        if life.state is not State.ESTABLISHED and life.outbound.idle:
            life.all_acked(now)
        if self._starved and life.outbound.queue.buffered <= SEND_BUFFER // 2:
            self._starved = False
            life.events.append(SendBufferDrained())

    def _count_error(self) -> None:
        """A timeout without an acknowledgement (RFC 9260 section 8.1)."""
        self._errors += 1
        if self._errors > MAX_RETRANSMITS:
            self._life.finish("unreachable")
