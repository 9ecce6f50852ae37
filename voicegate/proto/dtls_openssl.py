"""OpenSSL behind a clean edge: the certificate with its context, and one handshake as records in, records
out.

This is the one place of the pure floors that is not pure: OpenSSL draws its own randomness (keys, hello
randoms, nonces), keeps its own clock (a retransmission timer that starts at one second; it decides nothing
here unless a whole second was lost anyway), and `DtlsCertificate.generate` lets `cryptography` draw a key.
Everything else of DTLS takes bytes and `now`.

pyOpenSSL's memory BIO is a stream, not datagrams: records go in one at a time and come out drained to the
end.
"""

from __future__ import annotations

import datetime
import hashlib
from typing import Any, Final

from cryptography import x509
from cryptography.hazmat.primitives import hashes
from cryptography.hazmat.primitives.asymmetric import ec
from cryptography.hazmat.primitives.serialization import Encoding
from OpenSSL import SSL

from voicegate.proto import dtls_wire as wire
from voicegate.proto.dtls_finished import FinishedRepeater
from voicegate.proto.dtls_wire import ContentType, Record
from voicegate.proto.srtp import SrtpProfile

# Under the 1280 of IPv6 with IP and UDP headers (RFC 8200 section 5) and the link's 31 bytes; libwebrtc's
# number too.
MTU: Final = 1200

# Our certificate is ECDSA, so as server only half of these can be used; as client the peer's RSA is taken
# too. RFC 8827 section 6.5 demands the first, so every browser has it. No CBC suites: under them OpenSSL
# ends the association at a forged record that is too short, where an AEAD drops it.
CIPHER_SUITES: Final = {
    0xC02B: b"ECDHE-ECDSA-AES128-GCM-SHA256",
    0xC02F: b"ECDHE-RSA-AES128-GCM-SHA256",
    0xCCA9: b"ECDHE-ECDSA-CHACHA20-POLY1305",
    0xCCA8: b"ECDHE-RSA-CHACHA20-POLY1305",
    0xC02C: b"ECDHE-ECDSA-AES256-GCM-SHA384",
    0xC030: b"ECDHE-RSA-AES256-GCM-SHA384",
}
_AES_128_GCM_SUITES: Final = ("ECDHE-ECDSA-AES128-GCM-SHA256", "ECDHE-RSA-AES128-GCM-SHA256")
SERVER_SUITES: Final = frozenset({0xC02B, 0xCCA9, 0xC02C})

# GCM first: half the CPU of CM with HMAC-SHA1. OpenSSL's server takes its own order (RFC 5764 section 4.1.1).
_SRTP_PROFILES: Final = {
    b"SRTP_AEAD_AES_128_GCM": SrtpProfile.AEAD_AES_128_GCM,
    b"SRTP_AES128_CM_SHA1_80": SrtpProfile.AES128_CM_SHA1_80,
}

_EXPORTER_LABEL: Final = b"EXTRACTOR-dtls_srtp"  # RFC 5764 section 4.2


class DtlsCertificate:
    """The certificate of this process and the OpenSSL context made for it once; every call shares them.

    `fingerprint` is the SHA-256 of the certificate, 32 bytes, for `a=fingerprint` (RFC 8122).
    """

    __slots__ = ("context", "fingerprint")

    def __init__(self, private_key: Any, certificate: x509.Certificate) -> None:
        self.context = _context(private_key, certificate)
        self.fingerprint = hashlib.sha256(certificate.public_bytes(Encoding.DER)).digest()

    @classmethod
    def generate(cls, wall: float) -> DtlsCertificate:
        """A new self-signed ECDSA P-256 certificate, valid for a year around `wall` (calendar seconds).

        Nobody checks the dates (RFC 8827 section 6.5: the fingerprint is the identity); they are wide so
        that a wrong clock hurts nobody either.
        """
        key = ec.generate_private_key(ec.SECP256R1())
        name = x509.Name([x509.NameAttribute(x509.NameOID.COMMON_NAME, "voicegate")])
        today = datetime.datetime.fromtimestamp(wall, datetime.UTC)
        certificate = (
            x509.CertificateBuilder()
            .subject_name(name)
            .issuer_name(name)
            .public_key(key.public_key())
            .serial_number(x509.random_serial_number())
            .not_valid_before(today - datetime.timedelta(days=1))
            .not_valid_after(today + datetime.timedelta(days=365))
            .sign(key, hashes.SHA256())
        )
        return cls(key, certificate)


class HandshakeFailed(Exception):
    """OpenSSL refused what an authenticated peer sent; the handshake is over."""


class PeerClosed(Exception):
    """The peer sent an authenticated close_notify or fatal alert."""


class Machine:
    """One OpenSSL connection. What it wants to send is in `take_output`, whole records in order."""

    __slots__ = ("_connection", "_fed", "finished")

    def __init__(self, certificate: DtlsCertificate, *, active: bool) -> None:
        self._connection = SSL.Connection(certificate.context)
        # OpenSSL fails with "Unexpected EOF" when the MTU is neither asked for nor set.
        self._connection.set_ciphertext_mtu(MTU)
        if active:
            self._connection.set_connect_state()
        else:
            self._connection.set_accept_state()
        self._fed = 0
        self.finished = False
        if active:
            self.advance()

    def feed_messages(self, messages: tuple[bytes, ...]) -> None:
        """Authenticated plaintext handshake messages, in order. HandshakeFailed if OpenSSL refuses one."""
        for message in messages:
            self.feed_record(wire.record(ContentType.HANDSHAKE, 0, self._next_sequence(), message))

    def feed_change_cipher_spec(self) -> None:
        """The ChangeCipherSpec of the peer: it carries nothing, so ours is as good as theirs and comes in
        time."""
        self.feed_record(wire.record(ContentType.CHANGE_CIPHER_SPEC, 0, self._next_sequence(), b"\x01"))

    def feed_record(self, record: bytes) -> None:
        """One record during the handshake; one of epoch 1 that does not authenticate is silently ignored."""
        self._connection.bio_write(record)
        self.advance()

    def advance(self) -> None:
        """Let OpenSSL do what it can; `finished` tells when the handshake is complete."""
        try:
            self._connection.do_handshake()
        except SSL.WantReadError:
            return
        except SSL.Error as error:
            raise HandshakeFailed(str(error)) from None
        self.finished = True

    def feed_encrypted(self, record: bytes) -> list[bytes]:
        """One epoch-1 record after the handshake: the application data in it. PeerClosed ends the
        association."""
        messages: list[bytes] = []
        self._connection.bio_write(record)
        try:
            while True:
                messages.append(self._connection.recv(16384))
        except SSL.WantReadError:
            return messages
        except (SSL.ZeroReturnError, SSL.Error):
            # OpenSSL drops what does not authenticate (RFC 6347 section 4.1.2.7), so an error is the peer's
            # will.
            raise PeerClosed from None

    def write(self, data: bytes) -> bool:
        """Encrypt application data, at most one record; False if OpenSSL cannot take it."""
        try:
            self._connection.send(data)
        except SSL.Error:
            return False
        return True

    def shutdown(self) -> None:
        """Queue a close_notify."""
        try:
            self._connection.shutdown()
        except SSL.Error:
            pass  # the handshake is not complete: there is nobody to tell

    def handle_timeout(self) -> None:
        """OpenSSL's own timer, by its own clock: after a second it repeats its flight in fresh records."""
        try:
            self._connection.DTLSv1_handle_timeout()
        except SSL.Error:
            pass  # it gave up counting; our own deadline decides

    def take_output(self) -> list[Record]:
        """Everything OpenSSL wrote since the last call, as whole records."""
        chunks: list[bytes] = []
        try:
            while not chunks or len(chunks[-1]) == 65536:  # less than was asked for: there is no more
                chunks.append(self._connection.bio_read(65536))
        except SSL.Error:  # WantReadError: drained
            pass
        if not chunks:
            return []
        records, problem = wire.split_records_untrusted(b"".join(chunks))
        assert problem is None, "OpenSSL writes whole records"
        return records

    def finished_repeater(self, flight: list[Record]) -> FinishedRepeater | None:
        """What repeats this flight of ours, a client's, in fresh records; None under rarer cipher suites."""
        if self._connection.get_cipher_name() not in _AES_128_GCM_SUITES:
            return None
        master_secret = self._connection.master_key()
        client, server = self._connection.client_random(), self._connection.server_random()
        assert master_secret and client and server, "the client has sent its Finished"
        return FinishedRepeater(flight, master_secret, (client, server))

    def skip_records(self, used: int) -> None:
        """Make OpenSSL's next record of epoch 1 have a higher number than `used`, which were made elsewhere.

        It encrypts one byte for each number; these records are thrown away, their nonces with them.
        """
        self.take_output()
        number = 0
        while number < used and self.write(b"\0"):
            number = int.from_bytes(self.take_output()[-1].raw[5:11], "big")

    def peer_certificate(self) -> bytes | None:
        """DER of the certificate the peer proved to own."""
        certificate = self._connection.get_peer_certificate(as_cryptography=True)
        return None if certificate is None else certificate.public_bytes(Encoding.DER)

    def srtp_keys(self) -> tuple[SrtpProfile, bytes] | None:
        """The negotiated profile and the exporter's key material, or None if no profile was agreed."""
        profile = _SRTP_PROFILES.get(self._connection.get_selected_srtp_profile())
        if profile is None:
            return None
        return profile, self._connection.export_keying_material(_EXPORTER_LABEL, profile.material_length)

    def _next_sequence(self) -> int:
        self._fed += 1
        return self._fed - 1


def _context(private_key: Any, certificate: x509.Certificate) -> SSL.Context:
    context = SSL.Context(SSL.DTLS_METHOD)
    # The guard reads a plaintext flight, which DTLS 1.3 no longer has; every browser speaks 1.2.
    context.set_min_proto_version(_DTLS_1_2)
    context.set_max_proto_version(_DTLS_1_2)
    context.set_options(
        SSL.OP_NO_QUERY_MTU
        | SSL.OP_NO_RENEGOTIATION
        | SSL.OP_NO_TICKET
        | SSL.OP_NO_COMPRESSION
        | SSL.OP_CIPHER_SERVER_PREFERENCE
    )
    context.set_mode(SSL.MODE_RELEASE_BUFFERS)
    context.set_session_cache_mode(SSL.SESS_CACHE_OFF)
    # RFC 8827 section 6.5: self-signed certificates, identity by fingerprint. The callback accepts whatever
    # chain; who the peer is decides the guard before and the endpoint after the handshake, not an exception
    # in here.
    context.set_verify(SSL.VERIFY_PEER | SSL.VERIFY_FAIL_IF_NO_PEER_CERT, _accept_any_chain)
    context.use_certificate(certificate)
    context.use_privatekey(private_key)
    context.check_privatekey()
    context.set_cipher_list(b":".join(CIPHER_SUITES.values()))
    context.set_tlsext_use_srtp(b":".join(_SRTP_PROFILES))
    return context


_DTLS_1_2: Final = 0xFEFD


def _accept_any_chain(*_: object) -> bool:
    return True
