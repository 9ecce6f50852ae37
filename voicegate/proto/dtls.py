"""DTLS 1.2 of one call (RFC 6347, RFC 5763, RFC 5764): a handshake that forged packets cannot end, and its
keys.

Theory of operation. The peer's plaintext records are never OpenSSL's to judge: `dtls_guard` collects them
and releases a whole flight when its signature and the offer's fingerprint agree. ChangeCipherSpec carries
no information, so the peer's is ignored and OpenSSL gets one of ours in time. Alerts of epoch 0 are ignored
always. Records of epoch 1 authenticate themselves; OpenSSL drops what does not.

What we send is cached flight by flight and repeated on our own timer; when a peer repeats itself, we do
too. Repeated plaintext records get fresh record numbers, for a receiver drops a number it has seen (RFC
6347 section 4.1.2.6).

Roles. Active (we are client) is the normal one, one round trip shorter. A HelloVerifyRequest is a server's
right (RFC 6347 section 4.2.1) and anybody's forgery, and a server that did not send it dies of our answer
to it; so it is answered only after a ServerHello has failed to come for HELLO_VERIFY_PATIENCE.

Passive: a ClientHello proves nothing. Each distinct one gets its own OpenSSL object, MAX_CANDIDATES at
most, and the client's signed flight decides which of them was real; when there are more, only one that is
repeated takes the place of one that has been silent for CANDIDATE_LIFE. What remains: a forger who spoofs
the client's address makes us send the client a flight that it did not ask for, and what the client makes of
it is up to the client; and a flood of doubled ClientHellos competes with the real one.
"""

from __future__ import annotations

from collections import deque
from dataclasses import dataclass, field
from enum import Enum
from typing import Final, NamedTuple, TypeAlias

from voicegate.proto import dtls_wire as wire
from voicegate.proto.dtls_finished import FinishedRepeater
from voicegate.proto.dtls_gathering import Authentic, ClientGathering, ServerGathering
from voicegate.proto.dtls_guard import MAX_MESSAGE, MAX_SEQUENCE, Impostor, Trust
from voicegate.proto.dtls_openssl import DtlsCertificate, HandshakeFailed, Machine, PeerClosed
from voicegate.proto.dtls_outbox import Outbox
from voicegate.proto.dtls_wire import ContentType, Fragment, HandshakeType, Record
from voicegate.proto.errors import BadPacket
from voicegate.proto.srtp import SrtpProfile

__all__ = ["DtlsCertificate", "DtlsClosed", "DtlsConnected", "DtlsData", "DtlsEndpoint", "DtlsEvent"]

HANDSHAKE_LIMIT: Final = 30.0  # RFC 7675 section 5.1: consent, and with it the path, is gone after 30 s
MAX_EARLY_RECORDS: Final = 4  # Finished and its repetitions, when they overtake the rest of the flight
MAX_EARLY_SIZE: Final = 128  # Finished is 61 bytes under GCM
MAX_EVENTS: Final = 256  # data messages that wait for the owner, who drains after every datagram
MAX_DATA: Final = 1163  # one datagram under the MTU of 1200: a record adds 37 bytes under GCM


@dataclass(frozen=True, slots=True)
class DtlsConnected:
    """The handshake is complete and the peer is the offer's."""

    profile: SrtpProfile
    key_material: bytes = field(repr=False)
    """The exporter's bytes: SrtpSession splits them (RFC 5764 section 4.2)."""
    active: bool
    """We were the DTLS client."""


@dataclass(frozen=True, slots=True)
class DtlsData:
    """One message of authenticated application data (SCTP)."""

    data: bytes = field(repr=False)


@dataclass(frozen=True, slots=True)
class DtlsClosed:
    """The end, once: remote_close, local_close, fingerprint_mismatch, no_srtp_profile, handshake_failed or
    handshake_timeout."""

    reason: str


DtlsEvent: TypeAlias = DtlsConnected | DtlsData | DtlsClosed


class DtlsStatistics(NamedTuple):
    """Counters since the start."""

    received: int
    sent: int
    repeated_flights: int
    dropped_records: int
    dropped_output: int
    dropped_data: int


class _State(Enum):
    GATHERING = "the peer's plaintext flight is incomplete"
    FINISHING = "the flight was authentic; the peer's Finished is missing"
    CONNECTED = "keys are out"
    CLOSED = "nothing is left"


class DtlsEndpoint:
    """One DTLS association with one peer address. ValueError if no fingerprint has a supported hash.

    An active endpoint has its ClientHello ready at once. `remote_fingerprints` are the (hash name, digest)
    pairs of the offer.
    """

    def __init__(
        self,
        certificate: DtlsCertificate,
        *,
        active: bool,
        remote_fingerprints: tuple[tuple[str, bytes], ...],
        now: float,
    ) -> None:
        self._active = active
        self._trust = Trust(remote_fingerprints)
        self._limit = now + HANDSHAKE_LIMIT
        self._state = _State.GATHERING
        self._outbox = Outbox()
        self._gathering: ClientGathering | ServerGathering | None = (
            ClientGathering(certificate, self._outbox, now)
            if active
            else ServerGathering(certificate, self._outbox)
        )
        self._early: deque[bytes] = deque(maxlen=MAX_EARLY_RECORDS)
        self._machine: Machine | None = None
        self._repeater: FinishedRepeater | None = None
        self._peer_flight: tuple[bytes, ...] = ()
        self._events: deque[DtlsEvent] = deque()
        self._received = 0
        self._dropped_records = 0
        self._dropped_data = 0

    def receive_datagram(self, data: bytes, now: float) -> None:
        """Take one datagram of the peer's address.

        BadPacket if nothing in it was of use, and then nothing new is there to poll. Parts that are dropped
        beside good ones are counted in `statistics` only. Before DtlsConnected no BadPacket is no proof of
        anything; after it, something in the datagram was authentic or the repetition of what was.
        """
        if self._closed():
            raise BadPacket("dtls_closed")
        self._received += 1
        records, problem = wire.split_records_untrusted(data)
        useful = look = False
        for record in records:
            try:
                look = self._receive_record(record, now) or look
                useful = True
            except BadPacket as error:
                problem = problem or error.reason
                self._dropped_records += 1
            if self._closed():
                return
        if not useful:
            raise BadPacket(problem or "dtls_truncated_record")
        if look and self._gathering is not None:
            self._judge(self._gathering, now)

    def handle_timeout(self, now: float) -> None:
        """Repeat the last flight if it is time; end a handshake that took too long."""
        if self._state not in (_State.GATHERING, _State.FINISHING):
            return
        if now >= self._limit:
            self._end("handshake_timeout")
        elif now >= self._outbox.deadline():
            if self._gathering is not None:
                self._gathering.handle_timeout(now)
            self._refresh_flight()
            self._outbox.repeat(now)

    def poll_transmit(self) -> bytes | None:
        """The next datagram to send."""
        return self._outbox.poll()

    def poll_event(self) -> DtlsEvent | None:
        """The next event."""
        return self._events.popleft() if self._events else None

    def next_deadline(self) -> float | None:
        """When to call `handle_timeout` next."""
        if self._state not in (_State.GATHERING, _State.FINISHING):
            return None
        return min(self._outbox.deadline(), self._limit)

    def send(self, data: bytes) -> None:
        """Send application data, at most MAX_DATA bytes; silently nothing unless connected: DTLS promises
        nothing."""
        if len(data) > MAX_DATA:
            raise ValueError(f"DTLS data is limited to {MAX_DATA} bytes")
        if self._state is _State.CONNECTED and data:
            assert self._machine is not None, "a connected endpoint has its machine"
            if self._machine.write(data):
                self._outbox.send(self._machine.take_output())

    def close(self, now: float) -> None:
        """End the association; a connected peer gets a close_notify. What is queued can still be polled."""
        if self._state is _State.CLOSED:
            return
        if self._state is _State.CONNECTED:
            assert self._machine is not None, "a connected endpoint has its machine"
            self._machine.shutdown()
            self._outbox.send(self._machine.take_output())
        self._end("local_close")

    def statistics(self) -> DtlsStatistics:
        """Counters since the start."""
        outbox = self._outbox
        return DtlsStatistics(
            self._received,
            outbox.sent,
            outbox.repeated,
            self._dropped_records,
            outbox.dropped,
            self._dropped_data,
        )

    # --- records ----------------------------------------------------------------------------------

    def _receive_record(self, record: Record, now: float) -> bool:
        """True if what is gathered deserves another look."""
        match record.epoch:
            case 0:
                return self._receive_plaintext(record, now)
            case 1:
                self._receive_encrypted(record, now)
                return False
            case _:  # there is no renegotiation, so no epoch 2 (RFC 6347 section 4.1)
                raise BadPacket("dtls_future_epoch")

    def _receive_plaintext(self, record: Record, now: float) -> bool:
        match record.content_type:
            case ContentType.HANDSHAKE:
                fragments = wire.split_fragments_untrusted(record.payload, MAX_MESSAGE)
                if self._gathering is not None:
                    return self._gather(self._gathering, fragments, now)
                self._receive_late(fragments, now)
            case ContentType.CHANGE_CIPHER_SPEC:
                # See the theory of operation: it is made here when it is due.
                if self._state is _State.CONNECTED:
                    raise BadPacket("dtls_late_change")
            case ContentType.ALERT:
                raise BadPacket("dtls_plaintext_alert")
            case ContentType.APPLICATION_DATA:
                raise BadPacket("dtls_plaintext_data")
            case _:
                raise BadPacket("dtls_content_type")
        return False

    def _gather(
        self, gathering: ClientGathering | ServerGathering, fragments: list[Fragment], now: float
    ) -> bool:
        look = False
        for fragment in fragments:
            if fragment.sequence > MAX_SEQUENCE:
                raise BadPacket("dtls_bad_sequence")
            look = gathering.add(fragment, self._received, now) or look
        return look

    def _receive_late(self, fragments: list[Fragment], now: float) -> None:
        """Plaintext after the peer's flight: a repetition of it asks for our answer, anything else is
        nothing."""
        if not any(self._is_repetition(fragment) for fragment in fragments):
            raise BadPacket("dtls_late_handshake")
        # A server whose Finished we have lacks nothing any more.
        if not (self._active and self._state is _State.CONNECTED) and self._outbox.may_echo(now):
            self._refresh_flight()
            self._outbox.repeat(now)

    def _receive_encrypted(self, record: Record, now: float) -> None:
        if self._machine is None:
            if self._active or len(record.raw) > MAX_EARLY_SIZE:
                raise BadPacket("dtls_early_record")
            self._early.append(record.raw)
        elif self._state is _State.FINISHING:
            self._finish(self._machine, record.raw, now)
        else:
            self._receive_data(self._machine, record.raw)

    def _receive_data(self, machine: Machine, raw: bytes) -> None:
        try:
            messages = machine.feed_encrypted(raw)
        except PeerClosed:
            self._end("remote_close")
            return
        # OpenSSL answers a repeated Finished with our last flight, a wish to renegotiate with its refusal,
        # and what is forged or replayed with nothing (RFC 6347 section 4.1.2.7).
        output = machine.take_output()
        if not messages and not output:
            raise BadPacket("dtls_bad_record")
        self._outbox.send(output)
        for data in messages:
            if len(self._events) < MAX_EVENTS:
                self._events.append(DtlsData(data))
            else:
                self._dropped_data += 1

    # --- the handshake ----------------------------------------------------------------------------

    def _judge(self, gathering: ClientGathering | ServerGathering, now: float) -> None:
        """Give an authentic flight to OpenSSL and send what it answers."""
        try:
            match gathering.judge(self._trust, now):
                case Authentic() as authentic:
                    machine = authentic.machine
                    machine.feed_messages(authentic.messages)
                    machine.feed_change_cipher_spec()
                case Impostor():
                    self._end("fingerprint_mismatch")
                    return
                case None:
                    return
        except HandshakeFailed:
            self._end("handshake_failed")
            return
        self._state = _State.FINISHING
        self._gathering = None
        self._machine = machine
        self._peer_flight = authentic.messages
        if self._active:  # the server has nothing to say before the client's Finished
            flight = _after_hello(machine.take_output())
            self._repeater = machine.finished_repeater(flight)
            self._outbox.flight(flight, now)
        while self._early and self._state is _State.FINISHING:
            try:
                self._finish(machine, self._early.popleft(), now)
            except BadPacket:
                self._dropped_records += 1

    def _finish(self, machine: Machine, raw: bytes, now: float) -> None:
        """A record that may be the peer's Finished; a forged one changes nothing."""
        try:
            machine.feed_record(raw)
        except HandshakeFailed:
            self._end("handshake_failed")
            return
        if not machine.finished:
            self._take_fresh_flight(machine)
            raise BadPacket("dtls_bad_record")
        self._early.clear()
        certificate = machine.peer_certificate()
        if certificate is None or not self._trust.accepts(certificate):
            self._end("fingerprint_mismatch")
            return
        keys = machine.srtp_keys()
        if keys is None:
            self._end("no_srtp_profile")
            return
        self._state = _State.CONNECTED
        if not self._active:
            self._outbox.flight(_after_plaintext(machine.take_output()), now)
        elif self._repeater is not None:
            machine.skip_records(self._repeater.used)
            self._repeater = None
        self._events.append(DtlsConnected(keys[0], keys[1], self._active))

    def _refresh_flight(self) -> None:
        """Before the client's last flight is repeated: a Finished that the server has not seen."""
        if self._repeater is not None:
            self._outbox.keep(self._repeater.next_flight())
        elif self._machine is not None and self._state is _State.FINISHING:
            self._machine.handle_timeout()
            self._take_fresh_flight(self._machine)

    def _take_fresh_flight(self, machine: Machine) -> None:
        """OpenSSL repeats by its own clock, also when it is only given a record. As client under a rare
        cipher suite we need that for its fresh Finished; else it is one repetition too many."""
        fresh = _after_hello(machine.take_output())
        if fresh and self._active and self._repeater is None:
            self._outbox.keep(fresh)

    def _is_repetition(self, fragment: wire.Fragment) -> bool:
        """Whether the fragment is of the authentic flight we have answered: then the peer lacks the
        answer."""
        end = wire.HANDSHAKE_HEADER + fragment.offset + len(fragment.body)
        return any(
            message[0] == fragment.kind
            and message[4:6] == fragment.sequence.to_bytes(2, "big")
            and message[wire.HANDSHAKE_HEADER + fragment.offset : end] == fragment.body
            for message in self._peer_flight
        )

    def _closed(self) -> bool:
        return self._state is _State.CLOSED

    def _end(self, reason: str) -> None:
        self._state = _State.CLOSED
        self._gathering = None
        self._machine = None
        self._repeater = None
        self._peer_flight = ()
        self._early.clear()
        self._outbox.forget()
        self._events.append(DtlsClosed(reason))


def _after_hello(flight: list[Record]) -> list[Record]:
    """A client's flight without the ClientHello that OpenSSL repeats in it when a second has passed."""
    return [
        record
        for record in flight
        if record.epoch
        or record.content_type != ContentType.HANDSHAKE
        or record.payload[0] != HandshakeType.CLIENT_HELLO
    ]


def _after_plaintext(flight: list[Record]) -> list[Record]:
    """A server's last flight, ChangeCipherSpec and Finished, without the one before it, likewise repeated."""
    return [record for record in flight if record.epoch or record.content_type != ContentType.HANDSHAKE]
