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

import hashlib
from collections import deque
from dataclasses import dataclass, field
from enum import Enum
from typing import Final, NamedTuple, TypeAlias

from voicegate.proto import dtls_guard as guard
from voicegate.proto import dtls_wire as wire
from voicegate.proto.dtls_openssl import (
    SERVER_SUITES,
    DtlsCertificate,
    HandshakeFailed,
    Machine,
    PeerClosed,
)
from voicegate.proto.dtls_outbox import Outbox
from voicegate.proto.dtls_wire import ContentType, HandshakeType, Record
from voicegate.proto.errors import BadPacket
from voicegate.proto.srtp import SrtpProfile

__all__ = ["DtlsCertificate", "DtlsClosed", "DtlsConnected", "DtlsData", "DtlsEndpoint", "DtlsEvent"]

FIRST_TIMEOUT: Final = 0.05  # libwebrtc's; the one second of RFC 6347 section 4.2.4.1 can be heard
LAST_TIMEOUT: Final = 1.0  # doubling stops here: a call that waits longer is given up by its user
HANDSHAKE_LIMIT: Final = 30.0  # RFC 7675 section 5.1: consent, and with it the path, is gone after 30 s
HELLO_VERIFY_PATIENCE: Final = 0.5  # two round trips of a bad mobile path
MIN_REPEAT: Final = 0.02  # a repetition is answered at most every 20 ms: no amplifier, no echo between two
MAX_CANDIDATES: Final = 8  # the real ClientHello and seven forged ones; an OpenSSL object takes 50 KB
CANDIDATE_LIFE: Final = 0.5  # a round trip of a bad mobile path, within which the client's answer comes
MAX_SEEN_HELLOS: Final = 512  # hashes, so that under a flood the client that repeats itself stands out
MAX_EARLY_RECORDS: Final = 4  # Finished and its repetitions, when they overtake the rest of the flight
MAX_EARLY_SIZE: Final = 256  # Finished is 40 bytes under GCM, 80 under CBC
MAX_EVENTS: Final = 256  # data messages that wait for the owner, who drains after every datagram
MAX_DATA: Final = 1135  # one datagram under the MTU: a record adds 37 bytes under GCM, up to 65 under CBC


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
    client_hellos: int


class _State(Enum):
    GATHERING = "the peer's plaintext flight is incomplete"
    FINISHING = "the flight was authentic; the peer's Finished is missing"
    CONNECTED = "keys are out"
    CLOSED = "nothing is left"


class _Candidate:
    """One OpenSSL object that may become the association, and what it said so far."""

    __slots__ = ("flight", "hello", "machine", "touched", "transcript")

    def __init__(
        self, machine: Machine, hello: bytes, flight: list[Record], transcript: bytes, now: float
    ) -> None:
        self.machine = machine
        self.hello = hello
        self.flight = flight
        self.transcript = transcript
        self.touched = now


class DtlsEndpoint:
    """One DTLS association with one peer address. ValueError if no fingerprint has a supported hash.

    An active endpoint has its ClientHello ready at once. `remote_fingerprints` are (hash name, digest)
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
        self._certificate = certificate
        self._active = active
        self._trust = guard.Trust(remote_fingerprints)
        self._state = _State.GATHERING
        self._gathering = _Gathering()
        self._candidates: list[_Candidate] = []
        self._early: deque[bytes] = deque(maxlen=MAX_EARLY_RECORDS)
        self._machine: Machine | None = None
        self._peer_flight: tuple[bytes, ...] = ()
        self._outbox = Outbox()
        self._timer = _Timer(now)
        self._events: deque[DtlsEvent] = deque()
        self._counts = _Counts()
        if active:
            self._start_client(now)

    def receive_datagram(self, data: bytes, now: float) -> None:
        """Take one datagram of the peer's address. BadPacket if nothing in it was of use; parts of a
        datagram that are dropped beside good ones are counted in `statistics` only."""
        if self._closed():
            raise BadPacket("dtls_closed")
        self._counts.received += 1
        records, problem = wire.split_records_untrusted(data)
        useful = False
        for record in records:
            try:
                self._receive_record(record, now)
                useful = True
            except BadPacket as error:
                problem = problem or error.reason
                self._counts.dropped_records += 1
            if self._closed():
                return
        if not useful:
            raise BadPacket(problem or "dtls_truncated_record")
        if self._state is _State.GATHERING and self._gathering.grown:
            self._gathering.grown = False
            self._judge(now)

    def handle_timeout(self, now: float) -> None:
        """Repeat the last flight if it is time; end a handshake that took too long."""
        if self._state not in (_State.GATHERING, _State.FINISHING) or now < self._timer.deadline():
            return
        if now >= self._timer.limit:
            self._end("handshake_timeout")
            return
        self._timer.back_off(now)
        if self._machine is not None:
            self._machine.handle_timeout()
            fresh = self._machine.take_output()
            if fresh:  # the same flight in records with fresh numbers in epoch 1 too
                self._outbox.flight(fresh, now)
                return
        elif self._active and now >= self._gathering.hello_verify_at:
            self._answer_hello_verify()
        if self._outbox.repeat(now):
            self._counts.repeated_flights += 1

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
        return self._timer.deadline() if self._outbox.has_flight else self._timer.limit

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
        counts, outbox = self._counts, self._outbox
        return DtlsStatistics(
            counts.received,
            outbox.sent,
            counts.repeated_flights,
            counts.dropped_records,
            outbox.dropped,
            counts.dropped_data,
            counts.client_hellos,
        )

    # --- records
    # -----------------------------------------------------------------------------------------------

    def _receive_record(self, record: Record, now: float) -> None:
        match record.epoch:
            case 0:
                self._receive_plaintext(record, now)
            case 1:
                self._receive_encrypted(record, now)
            case _:  # there is no renegotiation, so no epoch 2 (RFC 6347 section 4.1)
                raise BadPacket("dtls_future_epoch")

    def _receive_plaintext(self, record: Record, now: float) -> None:
        match record.content_type:
            case ContentType.HANDSHAKE:
                fragments = wire.split_fragments_untrusted(record.payload, guard.MAX_MESSAGE)
                if self._state is _State.GATHERING:
                    self._gather(fragments, now)
                elif not any(self._is_repetition(fragment) for fragment in fragments):
                    raise BadPacket("dtls_late_handshake")
                # RFC 6347 section 4.2.4: the peer repeats its flight, so it lacks our answer; but a server
                # that has sent its Finished lacks nothing any more.
                elif not (self._active and self._state is _State.CONNECTED) and self._outbox.repeat(
                    now, at_least_after=MIN_REPEAT
                ):
                    self._counts.repeated_flights += 1
            case ContentType.CHANGE_CIPHER_SPEC:
                pass  # see the theory of operation: it is made here when it is due
            case ContentType.ALERT:
                raise BadPacket("dtls_plaintext_alert")
            case ContentType.APPLICATION_DATA:
                raise BadPacket("dtls_plaintext_data")
            case _:
                raise BadPacket("dtls_content_type")

    def _receive_encrypted(self, record: Record, now: float) -> None:
        if self._machine is None:
            if self._active or len(record.raw) > MAX_EARLY_SIZE:
                raise BadPacket("dtls_early_record")
            self._early.append(record.raw)
        elif self._state is _State.FINISHING:
            self._finish(self._machine, record.raw, now)
        else:
            self._receive_data(self._machine, record.raw, now)

    def _receive_data(self, machine: Machine, raw: bytes, now: float) -> None:
        try:
            messages = machine.feed_encrypted(raw)
        except PeerClosed:
            self._end("remote_close")
            return
        # OpenSSL answers a repeated Finished with our last flight, and a wish to renegotiate with its
        # refusal.
        self._outbox.send(machine.take_output())
        for data in messages:
            if len(self._events) < MAX_EVENTS:
                self._events.append(DtlsData(data))
            else:
                self._counts.dropped_data += 1

    # --- the handshake
    # -----------------------------------------------------------------------------------------

    def _start_client(self, now: float) -> None:
        machine = Machine(self._certificate, active=True)
        flight = machine.take_output()
        hello = _join_flight(flight)
        self._candidates.append(_Candidate(machine, hello, flight, hello, now))
        self._outbox.flight(flight, now)

    def _gather(self, fragments: list[wire.Fragment], now: float) -> None:
        for fragment in fragments:
            if fragment.sequence > guard.MAX_SEQUENCE:
                raise BadPacket("dtls_bad_sequence")
            if self._active and fragment.kind == HandshakeType.HELLO_VERIFY_REQUEST:
                self._gathering.hello_verify(fragment, now)
            else:
                self._gathering.add(fragment, self._counts.received)

    def _judge(self, now: float) -> None:
        """Look for an authentic flight among what was gathered, and go on with it."""
        pool, budget = self._gathering.pool, self._gathering.budget
        for candidate in self._candidates:
            if not self._active:
                verdict = guard.client_flight(pool, candidate.transcript, self._trust, budget)
                self._proceed(candidate, verdict, (), now)
            else:
                client_random = wire.hello_random_untrusted(candidate.hello[wire.HANDSHAKE_HEADER :])
                verdict = guard.server_flight(pool, 0, client_random, self._trust, budget)
                cookie_request: tuple[bytes, ...] = ()
                if verdict is None and self._gathering.answered is not None:
                    cookie_request = (self._gathering.answered,)
                    verdict = guard.server_flight(pool, 1, client_random, self._trust, budget)
                self._proceed(candidate, verdict, cookie_request, now)
            if self._state is not _State.GATHERING:
                return
        if self._gathering.hello_seen and not self._active:
            self._gathering.hello_seen = False
            self._answer_hello(now)

    def _proceed(
        self,
        candidate: _Candidate,
        verdict: guard.Release | guard.Impostor | None,
        before: tuple[bytes, ...],
        now: float,
    ) -> None:
        """Give an authentic flight to OpenSSL and send what it answers."""
        if verdict is None:
            return
        if isinstance(verdict, guard.Impostor):
            self._end("fingerprint_mismatch")
            return
        machine = self._machine = candidate.machine
        try:
            if before:
                machine.feed_messages(before)
                if _join_flight(machine.take_output()) != self._hello_with_cookie(candidate, before[0]):
                    raise HandshakeFailed("OpenSSL's second ClientHello is not the one that was sent")
            machine.feed_messages(verdict.messages)
            machine.feed_change_cipher_spec()
        except HandshakeFailed:
            self._end("handshake_failed")
            return
        self._state = _State.FINISHING
        self._peer_flight = verdict.messages
        self._candidates.clear()
        self._gathering = _Gathering()
        flight = machine.take_output()
        if flight:  # the client's; the server has nothing to say before Finished
            self._outbox.flight(flight, now)
            self._timer.restart(now)
        while self._early and self._state is _State.FINISHING:
            self._finish(machine, self._early.popleft(), now)

    def _finish(self, machine: Machine, raw: bytes, now: float) -> None:
        """A record that may be the peer's Finished; a forged one changes nothing."""
        try:
            machine.feed_record(raw)
        except HandshakeFailed:
            self._end("handshake_failed")
            return
        if not machine.finished:
            return
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
            self._outbox.flight(machine.take_output(), now)
        self._events.append(DtlsConnected(keys[0], keys[1], self._active))

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

    # --- hellos
    # ------------------------------------------------------------------------------------------------

    def _answer_hello(self, now: float) -> None:
        """Passive: a candidate for a new ClientHello, the flight again for a repeated one."""
        versions = self._gathering.pool.messages(HandshakeType.CLIENT_HELLO, 0)
        if not versions:
            return
        hello = versions[0].raw
        repeated = self._gathering.was_seen(hello)
        for candidate in self._candidates:
            if candidate.hello == hello:
                candidate.touched = now
                if self._outbox.repeat(now, candidate.flight, at_least_after=MIN_REPEAT):
                    self._counts.repeated_flights += 1
                return
        if len(self._candidates) >= MAX_CANDIDATES:
            oldest = min(self._candidates, key=lambda candidate: candidate.touched)
            if not repeated or now < oldest.touched + CANDIDATE_LIFE:
                raise BadPacket("dtls_hello_flood")
            self._candidates.remove(oldest)
        candidate = self._new_candidate(versions[0], now)
        self._candidates.append(candidate)
        self._outbox.flight(candidate.flight, now)
        self._timer.restart(now)

    def _new_candidate(self, hello: guard.Message, now: float) -> _Candidate:
        wire.check_client_hello_untrusted(hello.body, SERVER_SUITES)
        self._counts.client_hellos += 1
        machine = Machine(self._certificate, active=False)
        try:
            machine.feed_messages((hello.raw,))
        except HandshakeFailed:  # its alert is never sent: the hello proved nothing
            raise BadPacket("dtls_bad_hello") from None
        flight = machine.take_output()
        return _Candidate(machine, hello.raw, flight, hello.raw + _join_flight(flight), now)

    def _answer_hello_verify(self) -> None:
        """Active: no ServerHello came, so the HelloVerifyRequest may be real. Say hello again with its
        cookie."""
        hello = self._hello_with_cookie(self._candidates[0], self._gathering.take_hello_verify())
        self._outbox.replace_flight([Record(ContentType.HANDSHAKE, 0, wire.record(0x16, 0, 0, hello))])

    def _hello_with_cookie(self, candidate: _Candidate, request: bytes) -> bytes:
        # RFC 6347 section 4.2.1: the same hello but for the cookie, so OpenSSL's own, made later, will be
        # the same.
        cookie = wire.hello_verify_cookie_untrusted(request[wire.HANDSHAKE_HEADER :])
        return wire.insert_cookie(candidate.hello, cookie)

    def _closed(self) -> bool:
        return self._state is _State.CLOSED

    def _end(self, reason: str) -> None:
        self._state = _State.CLOSED
        self._machine = None
        self._candidates.clear()
        self._early.clear()
        self._peer_flight = ()
        self._gathering = _Gathering()
        self._outbox.forget()
        self._events.append(DtlsClosed(reason))


class _Gathering:
    """The peer's plaintext, not yet believed."""

    __slots__ = (
        "_hellos",
        "_request",
        "answered",
        "budget",
        "grown",
        "hello_seen",
        "hello_verify_at",
        "pool",
    )

    def __init__(self) -> None:
        self.pool = guard.FragmentPool()
        self.budget = guard.SignatureBudget()
        self.grown = False
        self.hello_seen = False
        self.hello_verify_at = float("inf")
        self.answered: bytes | None = None
        self._request: bytes | None = None
        self._hellos: dict[bytes, None] = {}

    def add(self, fragment: wire.Fragment, datagram: int) -> None:
        """Keep a fragment. Any ServerHello shows that the server asks for no cookie."""
        if self.pool.add(fragment, datagram):
            self.grown = True
        if fragment.kind == HandshakeType.CLIENT_HELLO:
            self.grown = self.hello_seen = True  # also a repeated one: it asks for the flight again
        elif fragment.kind == HandshakeType.SERVER_HELLO and fragment.sequence == 0:
            self.hello_verify_at = float("inf")

    def was_seen(self, hello: bytes) -> bool:
        """Whether this ClientHello came before."""
        key = hashlib.blake2b(hello, digest_size=8).digest()
        seen = key in self._hellos
        self._hellos[key] = None
        if len(self._hellos) > MAX_SEEN_HELLOS:
            del self._hellos[next(iter(self._hellos))]
        return seen

    def hello_verify(self, fragment: wire.Fragment, now: float) -> None:
        """Note a HelloVerifyRequest; it becomes due unless a ServerHello comes first."""
        wire.hello_verify_cookie_untrusted(fragment.body)
        if fragment.sequence != 0 or fragment.length != len(fragment.body):
            raise BadPacket("dtls_bad_hello_verify")
        self._request = wire.whole_message(fragment.kind, 0, fragment.body)
        if self.hello_verify_at == float("inf"):
            self.hello_verify_at = now + HELLO_VERIFY_PATIENCE

    def take_hello_verify(self) -> bytes:
        assert self._request is not None, "hello_verify_at is set with the request"
        self.answered = self._request
        self.hello_verify_at = float("inf")
        return self._request


class _Timer:
    """When to repeat the flight, and when to give up."""

    __slots__ = ("_at", "_timeout", "limit")

    def __init__(self, now: float) -> None:
        self.limit = now + HANDSHAKE_LIMIT
        self.restart(now)

    def restart(self, now: float) -> None:
        self._timeout = FIRST_TIMEOUT
        self._at = now + FIRST_TIMEOUT

    def back_off(self, now: float) -> None:
        self._timeout = min(2 * self._timeout, LAST_TIMEOUT)
        self._at = now + self._timeout

    def deadline(self) -> float:
        return min(self._at, self.limit)


class _Counts:
    __slots__ = ("client_hellos", "dropped_data", "dropped_records", "received", "repeated_flights")

    def __init__(self) -> None:
        self.received = 0
        self.repeated_flights = 0
        self.dropped_records = 0
        self.dropped_data = 0
        self.client_hellos = 0


def _join_flight(flight: list[Record]) -> bytes:
    """The whole messages of a flight of ours as they are hashed (RFC 6347 section 4.2.6)."""
    bodies: dict[tuple[int, int], bytearray] = {}
    for record in flight:
        for fragment in wire.split_fragments_untrusted(record.payload, 1 << 24):
            body = bodies.setdefault((fragment.sequence, fragment.kind), bytearray())
            assert len(body) == fragment.offset, "OpenSSL writes fragments in order"
            body += fragment.body
    return b"".join(wire.whole_message(kind, sequence, bytes(b)) for (sequence, kind), b in bodies.items())
