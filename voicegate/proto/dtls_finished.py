"""The client's Finished again in a record with a fresh number (RFC 6347 section 4.2.4), without waiting for
OpenSSL.

When a server's Finished is lost, the client must repeat its own, and the server, which has seen that
record, drops a copy of it as a replay: BoringSSL and OpenSSL answer only a Finished in a record they have
not seen. OpenSSL makes such a record only when its own clock has run for a second, which a caller hears as
silence. So it is made here, for the cipher suite that browsers choose; under the others OpenSSL's second
has to pass.

A GCM nonce must never be used twice under one key (RFC 5288 section 3). OpenSSL's explicit nonces count up
from the random one in its Finished; ours count down from it.
"""

from __future__ import annotations

import hmac
from typing import Final

from cryptography.hazmat.primitives.ciphers.aead import AESGCM

from voicegate.proto import dtls_wire as wire
from voicegate.proto.dtls_wire import ContentType, Record

# Two a second in the 30 s of a handshake, which is what a server that asks all the time can bring about.
MAX_REPETITIONS: Final = 64

_EXPLICIT_NONCE: Final = 8  # RFC 5288 section 3
_TAG: Final = 16


class FinishedRepeater:
    """Makes the client's flight with a new Finished record each time; for TLS_ECDHE_*_AES_128_GCM_SHA256."""

    __slots__ = ("_aead", "_explicit", "_flight", "_message", "_salt", "used")

    def __init__(self, flight: list[Record], master_secret: bytes, randoms: tuple[bytes, bytes]) -> None:
        """`flight` is OpenSSL's, its Finished last; `randoms` are the client's and the server's."""
        client_random, server_random = randoms
        # RFC 5246 section 6.3: client key, server key, client salt, server salt; no MAC keys with an AEAD.
        block = _prf_sha256(master_secret, b"key expansion" + server_random + client_random, 40)
        self._aead = AESGCM(block[:16])
        self._salt = block[32:36]
        self._flight = flight[:-1]
        finished = flight[-1]
        assert finished.epoch == 1, "the client's flight ends with Finished"
        explicit = finished.payload[:_EXPLICIT_NONCE]
        self._explicit = int.from_bytes(explicit, "big")
        sealed = finished.payload[_EXPLICIT_NONCE:]
        header = _additional_data(finished.raw[3:11], len(sealed) - _TAG)
        self._message = self._aead.decrypt(self._salt + explicit, sealed, header)
        self.used = 0

    def next_flight(self) -> list[Record]:
        """The flight once more; the last form of it when MAX_REPETITIONS are spent."""
        if self.used < MAX_REPETITIONS:
            self.used += 1
        number = (1).to_bytes(2, "big") + self.used.to_bytes(6, "big")
        explicit = ((self._explicit - self.used) % (1 << 64)).to_bytes(_EXPLICIT_NONCE, "big")
        header = _additional_data(number, len(self._message))
        sealed = self._aead.encrypt(self._salt + explicit, self._message, header)
        raw = wire.record(ContentType.HANDSHAKE, 1, self.used, explicit + sealed)
        return [*self._flight, Record(ContentType.HANDSHAKE, 1, raw)]


def _additional_data(number: bytes, length: int) -> bytes:
    # RFC 5246 section 6.2.3.3 with the epoch and sequence number of RFC 6347 section 4.1.2.1.
    return number + bytes((ContentType.HANDSHAKE,)) + wire.VERSION_1_2 + length.to_bytes(2, "big")


def _prf_sha256(secret: bytes, seed: bytes, length: int) -> bytes:
    """P_SHA256 of RFC 5246 section 5; `seed` begins with the label."""
    output, a = b"", seed
    while len(output) < length:
        a = hmac.digest(secret, a, "sha256")
        output += hmac.digest(secret, a + seed, "sha256")
    return output[:length]
