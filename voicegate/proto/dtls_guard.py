"""What stands before OpenSSL during a handshake: only a flight that authenticates gets through.

The problem. Until both sides have keys, DTLS is plaintext, and OpenSSL treats a forged record as the
peer's: one bad ClientHello, alert or early ChangeCipherSpec ends the handshake, and a dead SSL object
cannot be replayed into a new one, because its random is lost with it. (RFC 8826, CVE-2023-49786 and its
kin.)

The theory. The peer's flight carries its own proof, a signature over both randoms:

    we are client:  ServerHello, Certificate, ServerKeyExchange, CertificateRequest, ServerHelloDone.
                    ServerKeyExchange is signed over client random, server random and the ECDHE parameters.
    we are server:  Certificate, ClientKeyExchange, CertificateVerify.
                    CertificateVerify is signed over every handshake message so far.

So fragments are collected here, several versions of one message side by side, and a combination is released
to OpenSSL only when its certificate has the fingerprint of the offer and the signature verifies. Whoever
has not seen our random cannot make one. A signature that verifies under another certificate is an impostor
who does see our packets: the call must end (RFC 5763 section 5). With several versions of the Certificate
in hand that conclusion waits: one of them may be the real one with a byte changed outside its key.

What remains. CertificateRequest is covered by no signature before Finished. It is taken from a datagram
that also carried a piece of the signed messages, where there is one; only when a peer sends it in a
datagram of its own could a forger on the same path, who guesses the moment, put another one in its place.
And a ClientHello proves nothing: see `voicegate.proto.dtls`.

All of it is bounded: a message to MAX_MESSAGE bytes, everything held to MAX_HELD bytes and MAX_FRAGMENTS
fragments, oldest out first, so a flood costs the peer a retransmission and nothing else.
"""

from __future__ import annotations

import hashlib
from collections.abc import Iterator
from typing import Final, NamedTuple

from cryptography import x509
from cryptography.exceptions import InvalidSignature, UnsupportedAlgorithm
from cryptography.hazmat.primitives import hashes
from cryptography.hazmat.primitives.asymmetric import ec, ed25519, padding, rsa

from voicegate.proto import dtls_wire as wire
from voicegate.proto.dtls_wire import Fragment, HandshakeType
from voicegate.proto.errors import BadPacket

# An RSA-4096 certificate with an intermediate is 3 KB; a browser's is 0.3 KB.
MAX_MESSAGE: Final = 8192
# Three of the largest messages; a real flight is 0.7 KB (ECDSA) to 2.5 KB (RSA-4096).
MAX_HELD: Final = 24576
# 2.5 KB in the smallest fragments seen (BoringSSL, MTU 256) are a dozen; four versions of that.
MAX_FRAGMENTS: Final = 48
# The peer's messages before Finished have numbers 0 to 5 (5: server's flight after a HelloVerifyRequest).
MAX_SEQUENCE: Final = 5
# Versions of one message that are tried; the peer's is the newest one at the latest when it retransmits.
MAX_VERSIONS: Final = 8
# Checks of a signature under a certificate that is not the offer's: one proves the impostor, the rest is a
# flood.
MAX_FOREIGN_CHECKS: Final = 8

# Strongest first. RFC 8122 section 5 also knows sha-1 and weaker ones: refused.
SUPPORTED_HASHES: Final = ("sha-512", "sha-384", "sha-256")

_HASHES: Final[dict[int, type[hashes.HashAlgorithm]]] = {
    0x04: hashes.SHA256,
    0x05: hashes.SHA384,
    0x06: hashes.SHA512,
}
_PSS_HASHES: Final[dict[int, type[hashes.HashAlgorithm]]] = {
    0x0804: hashes.SHA256,
    0x0805: hashes.SHA384,
    0x0806: hashes.SHA512,
}


class Trust:
    """The certificate fingerprints that the offer names.

    RFC 8122 section 5: of several hashes the strongest counts, and the certificate must match one of its
    values. ValueError if none of them is of SUPPORTED_HASHES.
    """

    __slots__ = ("_hash", "_values")

    def __init__(self, fingerprints: tuple[tuple[str, bytes], ...]) -> None:
        for name in SUPPORTED_HASHES:
            values = frozenset(value for algorithm, value in fingerprints if algorithm.lower() == name)
            if values:
                self._hash = name.replace("-", "")
                self._values = values
                return
        raise ValueError("a fingerprint with sha-256, sha-384 or sha-512 is needed")

    def accepts(self, certificate: bytes) -> bool:
        """Whether this DER certificate is one of the offer's."""
        return hashlib.new(self._hash, certificate).digest() in self._values


class Message(NamedTuple):
    """A complete handshake message in the form that is hashed, and the datagrams that its pieces came in."""

    raw: bytes
    datagrams: frozenset[int]

    @property
    def body(self) -> bytes:
        return self.raw[wire.HANDSHAKE_HEADER :]


class FragmentPool:
    """Reassembles handshake messages, keeping rival versions of the same message apart."""

    __slots__ = ("_fragments", "held")

    def __init__(self) -> None:
        self._fragments: dict[Fragment, set[int]] = {}
        self.held = 0

    def add(self, fragment: Fragment, datagram: int) -> bool:
        """Keep a fragment; False if the same bytes were here before (the peer retransmits, or a network
        doubles)."""
        known = self._fragments.pop(fragment, None)
        if known is not None:
            known.add(datagram)
            if len(known) > 4:  # enough to find it beside the other messages of one flight
                known.remove(min(known))
            self._fragments[fragment] = known  # the newest again: what the peer repeats outlives a flood
            return False
        self._fragments[fragment] = {datagram}
        self.held += len(fragment.body)
        while self.held > MAX_HELD or len(self._fragments) > MAX_FRAGMENTS:
            oldest = next(iter(self._fragments))
            del self._fragments[oldest]
            self.held -= len(oldest.body)
        return True

    def messages(self, kind: HandshakeType, sequence: int) -> list[Message]:
        """The versions of this message that the fragments can make: the newest first, at most
        MAX_VERSIONS."""
        parts = [f for f in reversed(self._fragments) if f.kind == kind and f.sequence == sequence]
        found: list[Message] = []
        for length in dict.fromkeys(f.length for f in parts):
            same = [f for f in parts if f.length == length]
            for body, used in _assemblies(same, length):
                datagrams = frozenset(number for f in used for number in self._fragments[f])
                found.append(Message(wire.whole_message(kind, sequence, body), datagrams))
                if len(found) == MAX_VERSIONS:
                    return found
        return found


class Release(NamedTuple):
    """An authenticated flight: whole messages in order."""

    messages: tuple[bytes, ...]


class Impostor(NamedTuple):
    """The peer proved that it owns a certificate, and it is not the offer's."""


class SignatureBudget:
    """Remembers what was checked, so that each combination costs one verification, and foreign ones are
    few."""

    __slots__ = ("_failed", "_foreign")

    def __init__(self) -> None:
        self._failed: dict[bytes, None] = {}
        self._foreign = 0

    def verify(
        self, certificate: bytes, trusted: bool, parameters: wire.SignedParameters, signed: bytes
    ) -> bool:
        key = hashlib.blake2b(
            b"%b%b%b" % (certificate, parameters.signature, signed), digest_size=16
        ).digest()
        if key in self._failed:
            return False
        if not trusted:
            if self._foreign >= MAX_FOREIGN_CHECKS:
                return False
            self._foreign += 1
        if verify_signature(certificate, parameters, signed):
            return True
        self._failed[key] = None
        if len(self._failed) > 256:  # the combinations of MAX_VERSIONS hellos and key exchanges, and some
            del self._failed[next(iter(self._failed))]
        return False


def server_flight(
    pool: FragmentPool, base: int, client_random: bytes, trust: Trust, budget: SignatureBudget
) -> Release | Impostor | None:
    """The server's flight, if an authentic one is complete in the pool. `base` is the ServerHello's
    number."""
    verdict: Impostor | None = None
    requests = pool.messages(HandshakeType.CERTIFICATE_REQUEST, base + 3)
    dones = [m for m in pool.messages(HandshakeType.SERVER_HELLO_DONE, base + 4) if not m.body]
    if not requests or not dones:
        return None
    certificates = _certificates(pool, base + 1, trust)
    for certificate, leaf, trusted in certificates:
        for hello in pool.messages(HandshakeType.SERVER_HELLO, base):
            for exchange in pool.messages(HandshakeType.SERVER_KEY_EXCHANGE, base + 2):
                try:
                    server_random = wire.hello_random_untrusted(hello.body)
                    parameters = wire.server_key_exchange_untrusted(exchange.body)
                except BadPacket:
                    continue
                signed = client_random + server_random + parameters.signed  # RFC 8422 section 5.4
                if not budget.verify(leaf, trusted, parameters, signed):
                    continue
                if not trusted:
                    verdict = Impostor() if len(certificates) == 1 else None
                    continue
                proven = hello.datagrams | certificate.datagrams | exchange.datagrams
                request = max(requests, key=lambda m: len(m.datagrams & proven))
                return Release((hello.raw, certificate.raw, exchange.raw, request.raw, dones[0].raw))
    return verdict


def client_flight(
    pool: FragmentPool, transcript: bytes, trust: Trust, budget: SignatureBudget
) -> Release | Impostor | None:
    """The client's second flight, if an authentic one is complete. `transcript` is every message before
    it."""
    verdict: Impostor | None = None
    verifies = pool.messages(HandshakeType.CERTIFICATE_VERIFY, 3)
    if not verifies:
        return None
    certificates = _certificates(pool, 1, trust)
    for certificate, leaf, trusted in certificates:
        for exchange in pool.messages(HandshakeType.CLIENT_KEY_EXCHANGE, 2):
            for verify in verifies:
                try:
                    parameters = wire.certificate_verify_untrusted(verify.body)
                except BadPacket:
                    continue
                # RFC 5246 section 7.4.8: over all handshake messages up to here.
                if not budget.verify(leaf, trusted, parameters, transcript + certificate.raw + exchange.raw):
                    continue
                if trusted:
                    return Release((certificate.raw, exchange.raw, verify.raw))
                verdict = Impostor() if len(certificates) == 1 else None
    return verdict


def verify_signature(certificate: bytes, parameters: wire.SignedParameters, signed: bytes) -> bool:
    """Whether the signature is the certificate's over `signed`; False also for keys and schemes we do not
    speak.

    Signature schemes: RFC 5246 section 7.4.1.4.1, RFC 8446 section 4.2.3, RFC 8422 section 5.1.3.
    """
    scheme, signature = parameters.scheme, parameters.signature
    try:
        key = x509.load_der_x509_certificate(certificate).public_key()
        if isinstance(key, ec.EllipticCurvePublicKey) and scheme & 0xFF == 0x03:
            key.verify(signature, signed, ec.ECDSA(_HASHES[scheme >> 8]()))
        elif isinstance(key, rsa.RSAPublicKey) and scheme & 0xFF == 0x01:
            key.verify(signature, signed, padding.PKCS1v15(), _HASHES[scheme >> 8]())
        elif isinstance(key, rsa.RSAPublicKey) and scheme in _PSS_HASHES:
            digest = _PSS_HASHES[scheme]()
            key.verify(signature, signed, padding.PSS(padding.MGF1(digest), digest.digest_size), digest)
        elif isinstance(key, ed25519.Ed25519PublicKey) and scheme == 0x0807:
            key.verify(signature, signed)
        else:
            return False
    except (InvalidSignature, ValueError, KeyError, UnsupportedAlgorithm, TypeError):
        return False  # cryptography's words for a certificate or signature that is none
    return True


def _certificates(pool: FragmentPool, sequence: int, trust: Trust) -> list[tuple[Message, bytes, bool]]:
    """(message, leaf, is the offer's) for each Certificate, those of the offer first."""
    found: list[tuple[Message, bytes, bool]] = []
    for message in pool.messages(HandshakeType.CERTIFICATE, sequence):
        try:
            leaf = wire.leaf_certificate_untrusted(message.body)
        except BadPacket:
            continue
        trusted = trust.accepts(leaf)
        found.append((message, leaf, trusted))
    found.sort(key=lambda entry: not entry[2])
    return found


def _assemblies(parts: list[Fragment], length: int) -> Iterator[tuple[bytes, tuple[Fragment, ...]]]:
    """Every way to cover 0..length, in the order of `parts`: rivals of one fragment give rival messages."""
    pieces: list[Fragment] = []
    for part in parts:
        if len(part.body) == length:
            yield part.body, (part,)
        else:
            pieces.append(part)
    stack: list[tuple[bytes, tuple[Fragment, ...]]] = [(b"", ())] if pieces else []
    steps = 0
    while stack and steps < 256:  # a real message takes one step per fragment, a dozen at most
        steps += 1
        body, used = stack.pop()
        if len(body) == length:
            yield body, used
            continue
        stack.extend(  # the last pushed is tried first
            (body + part.body[len(body) - part.offset :], (*used, part))
            for part in reversed(pieces)
            if part.offset <= len(body) < part.offset + len(part.body)
        )
