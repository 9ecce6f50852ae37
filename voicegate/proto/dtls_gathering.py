"""The first half of a handshake: plaintext is collected until a flight of the peer authenticates.

Two forms, by role, of one idea: an OpenSSL object waits behind the guard, and `judge` says when its peer's
flight is here. `ClientGathering` has one object; its ClientHello is the start of the call.
`ServerGathering` has one for every ClientHello that might be the peer's.
"""

from __future__ import annotations

import hashlib
from typing import Final, NamedTuple, TypeAlias

from voicegate.proto import dtls_guard as guard
from voicegate.proto import dtls_wire as wire
from voicegate.proto.dtls_guard import FragmentPool, Impostor, SignatureBudget, Trust
from voicegate.proto.dtls_openssl import SERVER_SUITES, DtlsCertificate, HandshakeFailed, Machine
from voicegate.proto.dtls_outbox import Outbox
from voicegate.proto.dtls_wire import ContentType, Fragment, HandshakeType, Record
from voicegate.proto.errors import BadPacket

HELLO_VERIFY_PATIENCE: Final = 0.5  # more than a round trip of a bad mobile path
MAX_CANDIDATES: Final = 8  # the real ClientHello and seven forged ones; an OpenSSL object takes 70 KB
CANDIDATE_LIFE: Final = 0.5  # as above: within a round trip the client's answer comes
MAX_SEEN_HELLOS: Final = 512  # hashes, so that under a flood the client that repeats itself stands out


class Authentic(NamedTuple):
    """The peer's flight, whole messages in order, and the OpenSSL object that it belongs to."""

    machine: Machine
    messages: tuple[bytes, ...]


Verdict: TypeAlias = Authentic | Impostor | None


class ClientGathering:
    """We are client: wait for ServerHello to ServerHelloDone."""

    __slots__ = ("_answered", "_budget", "_hello", "_machine", "_outbox", "_pool", "_request", "_request_due")

    def __init__(self, certificate: DtlsCertificate, outbox: Outbox, now: float) -> None:
        self._pool = FragmentPool()
        self._budget = SignatureBudget()
        self._machine = Machine(certificate, active=True)
        self._outbox = outbox
        flight = self._machine.take_output()
        self._hello = join_flight(flight)
        # A HelloVerifyRequest, when it becomes due, and the one that was answered.
        self._request: bytes | None = None
        self._request_due = float("inf")
        self._answered: bytes | None = None
        outbox.flight(flight, now)

    def add(self, fragment: Fragment, datagram: int, now: float) -> bool:
        """Take a fragment; True if `judge` should look."""
        if fragment.kind == HandshakeType.HELLO_VERIFY_REQUEST:
            self._add_hello_verify(fragment, now)
            return False
        if fragment.kind == HandshakeType.SERVER_HELLO and fragment.sequence == 0:
            self._request_due = float("inf")  # this server asks for no cookie
        return self._pool.add(fragment, datagram)

    def judge(self, trust: Trust, now: float) -> Verdict:
        """The server's flight, if it is here. HandshakeFailed if OpenSSL does not do what was promised for
        it."""
        client_random = wire.hello_random_untrusted(self._hello[wire.HANDSHAKE_HEADER :])
        verdict = guard.server_flight(self._pool, 0, client_random, trust, self._budget)
        if verdict is None and self._answered is not None:
            verdict = guard.server_flight(self._pool, 1, client_random, trust, self._budget)
            if isinstance(verdict, guard.Release):
                self._tell_openssl_of_cookie(self._answered)
        if isinstance(verdict, guard.Release):
            return Authentic(self._machine, verdict.messages)
        return verdict

    def handle_timeout(self, now: float) -> None:
        """Before a repetition. If no ServerHello came, a HelloVerifyRequest may be real: hello with its
        cookie."""
        if now >= self._request_due and self._request is not None:
            self._answered = self._request
            self._request_due = float("inf")
            hello = self._hello_with_cookie(self._request)
            raw = wire.record(ContentType.HANDSHAKE, 0, 0, hello)
            self._outbox.keep([Record(ContentType.HANDSHAKE, 0, raw)])

    def _add_hello_verify(self, fragment: Fragment, now: float) -> None:
        wire.hello_verify_cookie_untrusted(fragment.body)
        if fragment.sequence != 0 or fragment.length != len(fragment.body):
            raise BadPacket("dtls_bad_hello_verify")
        self._request = wire.whole_message(fragment.kind, 0, fragment.body)
        if self._request_due == float("inf"):
            self._request_due = now + HELLO_VERIFY_PATIENCE

    def _hello_with_cookie(self, request: bytes) -> bytes:
        # RFC 6347 section 4.2.1: the same hello but for the cookie, so OpenSSL's own, made later, is the
        # same.
        return wire.insert_cookie(
            self._hello, wire.hello_verify_cookie_untrusted(request[wire.HANDSHAKE_HEADER :])
        )

    def _tell_openssl_of_cookie(self, request: bytes) -> None:
        self._machine.feed_messages((request,))
        if join_flight(self._machine.take_output(), first=1) != self._hello_with_cookie(request):
            raise HandshakeFailed("OpenSSL's second ClientHello is not the one that was sent")


class _Candidate:
    """One OpenSSL object that may become the association, and what it said so far."""

    __slots__ = ("flight", "hello", "machine", "touched", "transcript")

    def __init__(self, machine: Machine, hello: bytes, now: float) -> None:
        self.machine = machine
        self.hello = hello
        self.flight = machine.take_output()
        self.transcript = hello + join_flight(self.flight)
        self.touched = now


class ServerGathering:
    """We are server: answer ClientHellos, wait for Certificate to CertificateVerify."""

    __slots__ = ("_budget", "_candidates", "_certificate", "_hello_came", "_hellos", "_outbox", "_pool")

    def __init__(self, certificate: DtlsCertificate, outbox: Outbox) -> None:
        self._pool = FragmentPool()
        self._budget = SignatureBudget()
        self._certificate = certificate
        self._outbox = outbox
        self._candidates: list[_Candidate] = []
        self._hellos: dict[bytes, None] = {}
        self._hello_came = False

    def add(self, fragment: Fragment, datagram: int, now: float) -> bool:
        """Take a fragment; True if `judge` should look: also at a repeated ClientHello, which asks for an
        answer."""
        new = self._pool.add(fragment, datagram)
        if fragment.kind == HandshakeType.CLIENT_HELLO:
            self._hello_came = True
        return new or self._hello_came

    def judge(self, trust: Trust, now: float) -> Verdict:
        """The client's signed flight, if it is here; else answer the newest ClientHello. BadPacket if that
        is none."""
        for candidate in self._candidates:
            verdict = guard.client_flight(self._pool, candidate.transcript, trust, self._budget)
            if isinstance(verdict, guard.Release):
                return Authentic(candidate.machine, verdict.messages)
            if verdict is not None:
                return verdict
        if self._hello_came:
            self._hello_came = False
            versions = self._pool.messages(HandshakeType.CLIENT_HELLO, 0)
            if versions:
                self._answer(versions[0].raw, now)
        return None

    def handle_timeout(self, now: float) -> None:
        """Before a repetition: nothing to do as server."""

    def _answer(self, hello: bytes, now: float) -> None:
        repeated = self._was_seen(hello)
        for candidate in self._candidates:
            if candidate.hello == hello:
                candidate.touched = now
                self._outbox.keep(candidate.flight)
                if self._outbox.may_echo(now):
                    self._outbox.repeat(now)
                return
        if len(self._candidates) >= MAX_CANDIDATES:
            oldest = min(self._candidates, key=lambda candidate: candidate.touched)
            if not repeated or now < oldest.touched + CANDIDATE_LIFE:
                raise BadPacket("dtls_hello_flood")
            self._candidates.remove(oldest)
        candidate = self._new_candidate(hello, now)
        self._candidates.append(candidate)
        self._outbox.flight(candidate.flight, now)

    def _new_candidate(self, hello: bytes, now: float) -> _Candidate:
        wire.check_client_hello_untrusted(hello[wire.HANDSHAKE_HEADER :], SERVER_SUITES)
        machine = Machine(self._certificate, active=False)
        try:
            machine.feed_messages((hello,))
        except HandshakeFailed:  # its alert is never sent: the hello proved nothing
            raise BadPacket("dtls_bad_hello") from None
        return _Candidate(machine, hello, now)

    def _was_seen(self, hello: bytes) -> bool:
        key = hashlib.blake2b(hello, digest_size=8).digest()
        seen = key in self._hellos
        self._hellos[key] = None
        if len(self._hellos) > MAX_SEEN_HELLOS:
            del self._hellos[next(iter(self._hellos))]
        return seen


def join_flight(flight: list[Record], first: int = 0) -> bytes:
    """The whole messages of a flight of ours, from number `first`, as they are hashed (RFC 6347 section
    4.2.6)."""
    bodies: dict[tuple[int, int], bytearray] = {}
    for record in flight:
        for fragment in wire.split_fragments_untrusted(record.payload, 1 << 24):
            if fragment.sequence < first:
                continue
            body = bodies.setdefault((fragment.sequence, fragment.kind), bytearray())
            assert len(body) == fragment.offset, "OpenSSL writes fragments in order"
            body += fragment.body
    return b"".join(wire.whole_message(kind, sequence, bytes(b)) for (sequence, kind), b in bodies.items())
