"""The plaintext part of DTLS 1.2: records, handshake fragments, and the five messages that the guard must
read.

Everything here is unauthenticated: any host that can spoof the client's address writes such bytes. So each
function either returns what it read or raises BadPacket, and nothing keeps state.
"""

from __future__ import annotations

from enum import IntEnum
from typing import Final, NamedTuple

from voicegate.proto.errors import BadPacket

RECORD_HEADER: Final = 13  # RFC 6347 section 4.1
HANDSHAKE_HEADER: Final = 12  # RFC 6347 section 4.2.2

# RFC 6347 section 4.1: DTLS 1.0 and 1.2. A first ClientHello may wear 1.0 on its record.
_RECORD_VERSIONS: Final = (b"\xfe\xff", b"\xfe\xfd")
VERSION_1_2: Final = b"\xfe\xfd"

_USE_SRTP: Final = 0x000E  # RFC 5764 section 9
_NAMED_CURVE: Final = 0x03  # RFC 8422 section 5.4


class ContentType(IntEnum):
    """RFC 5246 section 6.2.1."""

    CHANGE_CIPHER_SPEC = 0x14
    ALERT = 0x15
    HANDSHAKE = 0x16
    APPLICATION_DATA = 0x17


class HandshakeType(IntEnum):
    """RFC 5246 section 7.4, RFC 6347 section 4.3.2."""

    CLIENT_HELLO = 0x01
    SERVER_HELLO = 0x02
    HELLO_VERIFY_REQUEST = 0x03
    CERTIFICATE = 0x0B
    SERVER_KEY_EXCHANGE = 0x0C
    CERTIFICATE_REQUEST = 0x0D
    SERVER_HELLO_DONE = 0x0E
    CERTIFICATE_VERIFY = 0x0F
    CLIENT_KEY_EXCHANGE = 0x10
    FINISHED = 0x14


class Record(NamedTuple):
    """One record: `raw` is header and payload together."""

    content_type: int
    epoch: int
    raw: bytes

    @property
    def payload(self) -> bytes:
        return self.raw[RECORD_HEADER:]


class Fragment(NamedTuple):
    """One handshake fragment (RFC 6347 section 4.2.3); `length` is that of the whole message."""

    kind: int
    length: int
    sequence: int
    offset: int
    body: bytes


class SignedParameters(NamedTuple):
    """A ServerKeyExchange (RFC 8422 section 5.4) or CertificateVerify; `signed` is empty for the latter."""

    signed: bytes
    scheme: int
    signature: bytes


def split_records_untrusted(datagram: bytes) -> tuple[list[Record], str | None]:
    """The records of a datagram, and why the rest of it was no record, if it was not (RFC 6347 4.1.1,
    4.1.2.7)."""
    records: list[Record] = []
    position, end = 0, len(datagram)
    while position < end:
        if end - position < RECORD_HEADER:
            return records, "dtls_truncated_record"
        if datagram[position + 1 : position + 3] not in _RECORD_VERSIONS:
            return records, "dtls_record_version"
        epoch = int.from_bytes(datagram[position + 3 : position + 5], "big")
        after = position + RECORD_HEADER + int.from_bytes(datagram[position + 11 : position + 13], "big")
        if after > end:
            return records, "dtls_truncated_record"
        records.append(Record(datagram[position], epoch, datagram[position:after]))
        position = after
    return records, None if records else "dtls_truncated_record"


def split_fragments_untrusted(payload: bytes, max_length: int) -> list[Fragment]:
    """The fragments in one handshake record's payload; BadPacket for one that claims too much or overruns."""
    fragments: list[Fragment] = []
    position, end = 0, len(payload)
    while position < end:
        body_at = position + HANDSHAKE_HEADER
        if body_at > end:
            raise BadPacket("dtls_truncated_handshake")
        length = int.from_bytes(payload[position + 1 : position + 4], "big")
        if length > max_length:
            raise BadPacket("dtls_huge_handshake")
        offset = int.from_bytes(payload[position + 6 : position + 9], "big")
        size = int.from_bytes(payload[position + 9 : position + 12], "big")
        # An empty fragment of a message that is not empty could be repeated for ever without progress.
        if offset + size > length or (size == 0 and length > 0):
            raise BadPacket("dtls_bad_fragment")
        if body_at + size > end:
            raise BadPacket("dtls_truncated_handshake")
        sequence = int.from_bytes(payload[position + 4 : position + 6], "big")
        fragments.append(
            Fragment(payload[position], length, sequence, offset, payload[body_at : body_at + size])
        )
        position = body_at + size
    if not fragments:
        raise BadPacket("dtls_truncated_handshake")
    return fragments


def record(content_type: int, epoch: int, sequence: int, payload: bytes) -> bytes:
    """One DTLS 1.2 record; `sequence` has 48 bits."""
    return b"%c\xfe\xfd%b%b%b%b" % (
        content_type,
        epoch.to_bytes(2, "big"),
        sequence.to_bytes(6, "big"),
        len(payload).to_bytes(2, "big"),
        payload,
    )


def whole_message(kind: int, sequence: int, body: bytes) -> bytes:
    """A handshake message as one fragment: also the form that is hashed and signed (RFC 6347 section
    4.2.6)."""
    length = len(body).to_bytes(3, "big")
    return b"%c%b%b\x00\x00\x00%b%b" % (kind, length, sequence.to_bytes(2, "big"), length, body)


def hello_random_untrusted(body: bytes) -> bytes:
    """The 32 random bytes of a ClientHello or ServerHello body."""
    # RFC 5246 section 7.4.1.3: version, random, session id (one length byte, up to 32), suite, compression.
    if len(body) < 38 or body[:2] != VERSION_1_2 or body[34] > 32:
        raise BadPacket("dtls_bad_hello")
    return body[2:34]


def check_client_hello_untrusted(body: bytes, suites: frozenset[int]) -> None:
    """BadPacket unless the ClientHello could lead to a DTLS-SRTP call with one of our cipher suites.

    RFC 6347 section 4.2.1 for the shape, RFC 5764 section 4.1 for use_srtp.
    """
    hello_random_untrusted(body)
    reader = _Reader(body, 34, "dtls_bad_hello")
    reader.vector(1, 32)  # session id
    reader.vector(1, 255)  # cookie
    offered = reader.vector(2, 512)
    if len(offered) % 2 or not any(
        int.from_bytes(offered[i : i + 2], "big") in suites for i in range(0, len(offered), 2)
    ):
        raise BadPacket("dtls_no_common_suite")
    if b"\x00" not in reader.vector(1, 255):
        raise BadPacket("dtls_bad_hello")
    extensions = _Reader(reader.vector(2, len(body)), 0, "dtls_bad_hello")
    reader.done()
    has_srtp = False
    while extensions.left():
        kind = extensions.number(2)
        extensions.vector(2, len(body))
        has_srtp = has_srtp or kind == _USE_SRTP
    if not has_srtp:
        raise BadPacket("dtls_no_use_srtp")


def insert_cookie(client_hello: bytes, cookie: bytes) -> bytes:
    """Our own first ClientHello (a whole message) as it is sent after a HelloVerifyRequest (RFC 6347
    4.2.1)."""
    body = client_hello[HANDSHAKE_HEADER:]
    cookie_at = 35 + body[34]
    assert body[cookie_at] == 0, "the first ClientHello has no cookie"
    return whole_message(
        HandshakeType.CLIENT_HELLO,
        1,
        b"%b%c%b%b" % (body[:cookie_at], len(cookie), cookie, body[cookie_at + 1 :]),
    )


def hello_verify_cookie_untrusted(body: bytes) -> bytes:
    """The cookie of a HelloVerifyRequest (RFC 6347 section 4.2.1)."""
    reader = _Reader(body, 2, "dtls_bad_hello_verify")
    cookie = reader.vector(1, 255)
    reader.done()
    if not cookie:
        raise BadPacket("dtls_bad_hello_verify")
    return cookie


def leaf_certificate_untrusted(body: bytes) -> bytes:
    """The first certificate, DER, of a Certificate message (RFC 5246 section 7.4.2)."""
    outer = _Reader(body, 0, "dtls_bad_certificate")
    chain = _Reader(outer.vector(3, len(body)), 0, "dtls_bad_certificate")
    outer.done()
    leaf = chain.vector(3, len(body))
    if not leaf:
        raise BadPacket("dtls_bad_certificate")
    return leaf


def server_key_exchange_untrusted(body: bytes) -> SignedParameters:
    """The ECDHE parameters and their signature (RFC 8422 section 5.4, RFC 5246 section 4.7)."""
    reader = _Reader(body, 0, "dtls_bad_key_exchange")
    if reader.number(1) != _NAMED_CURVE:
        raise BadPacket("dtls_bad_key_exchange")
    reader.number(2)
    reader.vector(1, 255)
    return _signature(reader, body[: reader.position])


def certificate_verify_untrusted(body: bytes) -> SignedParameters:
    """The signature of a CertificateVerify (RFC 5246 section 7.4.8)."""
    return _signature(_Reader(body, 0, "dtls_bad_certificate_verify"), b"")


def _signature(reader: _Reader, signed: bytes) -> SignedParameters:
    scheme = reader.number(2)
    signature = reader.vector(2, 1024)  # RSA-8192
    reader.done()
    return SignedParameters(signed, scheme, signature)


class _Reader:
    """Walks TLS vectors (RFC 5246 section 4.3); every overrun is BadPacket(reason)."""

    __slots__ = ("_data", "_reason", "position")

    def __init__(self, data: bytes, position: int, reason: str) -> None:
        self._data = data
        self._reason = reason
        self.position = position

    def number(self, size: int) -> int:
        return int.from_bytes(self._take(size), "big")

    def vector(self, length_size: int, limit: int) -> bytes:
        length = self.number(length_size)
        if length > limit:
            raise BadPacket(self._reason)
        return self._take(length)

    def left(self) -> int:
        return len(self._data) - self.position

    def done(self) -> None:
        if self.left():
            raise BadPacket(self._reason)

    def _take(self, size: int) -> bytes:
        if self.left() < size:
            raise BadPacket(self._reason)
        start = self.position
        self.position = start + size
        return self._data[start : self.position]
