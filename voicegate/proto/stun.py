"""STUN Binding messages with short-term credentials, as ICE uses them (RFC 8489, RFC 8445 section 7).

A message is a 20-byte header (type, length, magic cookie, transaction id) and attributes of type, length,
value and padding to four bytes. Three rules hold for everything that comes in:

1. **The whole message is checked before a word of it is used.** The length field is the datagram's, every
   attribute lies inside, FINGERPRINT (when there) is last and right. Whatever breaks this is `BadPacket`.
2. **Nothing after MESSAGE-INTEGRITY is read** except FINGERPRINT: a USE-CANDIDATE appended by somebody on the
   path has no effect (RFC 8489 section 14.5).
3. **A parsed message is still a claim.** It is true once `verify_integrity` has said so.

A relay looks at the first packet of a client with `peek_username_untrusted` and `verify_integrity`, no more;
the owner of the call parses the rest with `parse_binding_request_untrusted`. What ends in `_untrusted` takes
`bytes` (not a memoryview: these slices are keys of dictionaries) and raises `BadPacket` only.
"""

from __future__ import annotations

import hmac
import struct
import zlib
from enum import IntEnum
from typing import NamedTuple

from voicegate.proto.address import ClientAddress, without_transport
from voicegate.proto.errors import BadPacket


class MessageType(IntEnum):
    """Method Binding in the three classes ICE uses (RFC 8489 section 5)."""

    BINDING_REQUEST = 0x0001
    BINDING_SUCCESS = 0x0101
    BINDING_ERROR = 0x0111


class AttributeType(IntEnum):
    """The attributes read or written here, of the IANA registry "STUN Attributes"."""

    MAPPED_ADDRESS = 0x0001
    USERNAME = 0x0006
    MESSAGE_INTEGRITY = 0x0008
    ERROR_CODE = 0x0009
    UNKNOWN_ATTRIBUTES = 0x000A
    MESSAGE_INTEGRITY_SHA256 = 0x001C
    XOR_MAPPED_ADDRESS = 0x0020
    PRIORITY = 0x0024
    USE_CANDIDATE = 0x0025
    SOFTWARE = 0x8022
    FINGERPRINT = 0x8028
    ICE_CONTROLLED = 0x8029
    ICE_CONTROLLING = 0x802A


class ErrorCode(IntEnum):
    """The errors a Binding request with valid integrity can get (RFC 8489 section 14.8, RFC 8445 section
    7.3.1.1)."""

    UNKNOWN_ATTRIBUTE = 420
    ROLE_CONFLICT = 487


HEADER_SIZE = 20
MAX_MESSAGE = 1_500
"""Bytes. One Ethernet frame: RFC 8489 section 6.1 asks for less than the path MTU."""
MAX_ATTRIBUTES = 32
"""Attributes of one message. Chromium 156 sends seven, eight with DTLS in STUN; 32 bounds the walk."""
MAX_USERNAME = 513
"""Bytes. RFC 8489 section 14.3 says fewer than 509; RFC 5389 section 15.3 said fewer than 513, and clients
hold that."""

COOKIE = b"\x21\x12\xa4\x42"
_COOKIE_INT = 0x2112A442
_FINGERPRINT_XOR = 0x5354554E  # RFC 8489 section 14.7
_HEADER = struct.Struct(">HHI")
_ATTRIBUTE = struct.Struct(">HH")
_U32 = struct.Struct(">I")
_U64 = struct.Struct(">Q")
_INTEGRITY_SIZE = 20  # HMAC-SHA1
_FINGERPRINT_SIZE = 4
_FAMILY_IPV4 = 0x01
_FAMILY_IPV6 = 0x02
_KNOWN_REQUIRED = frozenset(int(attribute) for attribute in AttributeType if attribute < 0x8000)

# Plain integers for the walk: an IntEnum member costs an attribute look-up on every comparison.
_USERNAME = int(AttributeType.USERNAME)
_INTEGRITY = int(AttributeType.MESSAGE_INTEGRITY)
_FINGERPRINT = int(AttributeType.FINGERPRINT)
_REQUEST_PREFIX = b"\x00\x01"
_SUCCESS_PREFIX = b"\x01\x01"


class BindingRequest(NamedTuple):
    """A connectivity check. Believe it only after `verify_integrity(data, integrity_offset, password)`."""

    transaction_id: bytes
    """12 bytes."""
    username: bytes
    """`receiver's ufrag:sender's ufrag`, raw."""
    integrity_offset: int
    """Where MESSAGE-INTEGRITY begins."""
    use_candidate: bool
    priority: int | None
    """PRIORITY, unsigned 32 bits (RFC 8445 section 7.1.1)."""
    controlling: bool
    """False when the sender says ICE-CONTROLLED, which towards a lite agent is a role conflict."""
    unknown_required: tuple[int, ...]
    """Comprehension-required attributes nobody here knows, in order, each once (RFC 8489 section 6.3.1:
    420)."""


class BindingSuccess(NamedTuple):
    """The answer to a check. Believe it only after `verify_integrity(data, integrity_offset, password)`."""

    transaction_id: bytes
    integrity_offset: int
    mapped: ClientAddress
    """XOR-MAPPED-ADDRESS: how the answering side saw the sender of the request."""


def is_binding_request(data: bytes) -> bool:
    """A cheap look at type and cookie; says nothing about the rest."""
    return data[:2] == _REQUEST_PREFIX and data[4:8] == COOKIE and len(data) >= HEADER_SIZE


def is_binding_success(data: bytes) -> bool:
    """A cheap look at type and cookie; says nothing about the rest."""
    return data[:2] == _SUCCESS_PREFIX and data[4:8] == COOKIE and len(data) >= HEADER_SIZE


def transaction_id(data: bytes) -> bytes:
    """The 12 bytes that pair a response with its request, of a message one of the looks above has
    accepted."""
    return data[8:20]


def peek_username_untrusted(data: bytes) -> tuple[bytes, int]:
    """Check a Binding request whole and return its username and the offset of MESSAGE-INTEGRITY.

    Raises `BadPacket`: besides the reasons of the walk, `stun_not_a_request`, `stun_no_username`.
    """
    if data[:2] != _REQUEST_PREFIX:
        raise BadPacket("stun_not_a_request")
    username, integrity_offset = _walk_untrusted(data)
    if username is None:
        raise BadPacket("stun_no_username")
    return username, integrity_offset


def verify_integrity(data: bytes, integrity_offset: int, password: bytes) -> bool:
    """Whether MESSAGE-INTEGRITY at that offset is the HMAC-SHA1 under this password, in constant time.

    The HMAC covers what goes before the attribute, with a length field that ends at it (RFC 8489 section
    14.5).
    """
    # The header's length leaves out its own 20 bytes and takes in the attribute's 24.
    covered = data[:2] + (integrity_offset + 4).to_bytes(2, "big") + data[4:integrity_offset]
    expected = hmac.digest(password, covered, "sha1")
    return hmac.compare_digest(expected, data[integrity_offset + 4 : integrity_offset + 24])


def parse_binding_request_untrusted(data: bytes) -> BindingRequest:
    """Check a Binding request whole and read what ICE needs. Raises `BadPacket`, also for
    `stun_attribute_length`."""
    username, integrity_offset = peek_username_untrusted(data)
    use_candidate = False
    controlling = True
    priority: int | None = None
    unknown: dict[int, None] = {}
    offset = HEADER_SIZE
    while offset < integrity_offset:
        kind, length = _ATTRIBUTE.unpack_from(data, offset)
        if kind == AttributeType.PRIORITY:
            _require_length(length, 4)
            (priority,) = _U32.unpack_from(data, offset + 4)
        elif kind == AttributeType.USE_CANDIDATE:
            _require_length(length, 0)
            use_candidate = True
        elif kind == AttributeType.ICE_CONTROLLING:
            _require_length(length, 8)
        elif kind == AttributeType.ICE_CONTROLLED:
            _require_length(length, 8)
            controlling = False
        elif kind < 0x8000 and kind not in _KNOWN_REQUIRED:
            unknown[kind] = None
        offset += 4 + (length + 3 & ~3)
    return BindingRequest(
        data[8:20], username, integrity_offset, use_candidate, priority, controlling, tuple(unknown)
    )


def parse_binding_success_untrusted(data: bytes) -> BindingSuccess:
    """Check a Binding success response whole and read XOR-MAPPED-ADDRESS. Raises `BadPacket`."""
    if data[:2] != _SUCCESS_PREFIX:
        raise BadPacket("stun_not_a_success")
    _, integrity_offset = _walk_untrusted(data)
    offset = HEADER_SIZE
    while offset < integrity_offset:
        kind, length = _ATTRIBUTE.unpack_from(data, offset)
        if kind == AttributeType.XOR_MAPPED_ADDRESS:
            mapped = _xor_address_untrusted(data[offset + 4 : offset + 4 + length], data[8:20])
            return BindingSuccess(data[8:20], integrity_offset, mapped)
        offset += 4 + (length + 3 & ~3)
    raise BadPacket("stun_no_mapped_address")


def binding_success(transaction_id: bytes, mapped: ClientAddress, password: bytes) -> bytes:
    """The answer to a valid check: XOR-MAPPED-ADDRESS, MESSAGE-INTEGRITY, FINGERPRINT. 64 bytes, 76 for
    IPv6."""
    body = _attribute(AttributeType.XOR_MAPPED_ADDRESS, _xor_address(mapped, transaction_id))
    return _seal(MessageType.BINDING_SUCCESS, transaction_id, body, password)


def binding_error(
    transaction_id: bytes, code: ErrorCode, password: bytes, unknown: tuple[int, ...] = ()
) -> bytes:
    """An error response, protected like a success one (RFC 8489 sections 9.1.3, 14.8, 14.9).

    The reason phrase stays empty and `unknown` is answered with two bytes for at least four that were asked,
    so that the response is not larger than its request.
    """
    body = _attribute(AttributeType.ERROR_CODE, bytes((0, 0, code // 100, code % 100)))
    if unknown:
        body += _attribute(AttributeType.UNKNOWN_ATTRIBUTES, struct.pack(f">{len(unknown)}H", *unknown))
    return _seal(MessageType.BINDING_ERROR, transaction_id, body, password)


def binding_request(
    transaction_id: bytes,
    username: bytes,
    password: bytes,
    *,
    priority: int,
    tie_breaker: int,
    controlling: bool = True,
    use_candidate: bool = False,
    extra: tuple[tuple[int, bytes], ...] = (),
) -> bytes:
    """A connectivity check as a full ICE agent sends it (RFC 8445 section 7.1), for our own light clients.

    `transaction_id` is 12 bytes, `tie_breaker` 64 bits, both from the caller's randomness. `extra` goes
    before MESSAGE-INTEGRITY as (type, value).
    """
    role = AttributeType.ICE_CONTROLLING if controlling else AttributeType.ICE_CONTROLLED
    body = _attribute(AttributeType.USERNAME, username)
    body += _attribute(role, _U64.pack(tie_breaker))
    if use_candidate:
        body += _attribute(AttributeType.USE_CANDIDATE, b"")
    body += _attribute(AttributeType.PRIORITY, _U32.pack(priority))
    for kind, value in extra:
        body += _attribute(kind, value)
    return _seal(MessageType.BINDING_REQUEST, transaction_id, body, password)


def _walk_untrusted(data: bytes) -> tuple[bytes | None, int]:
    """Check a message of any type; return USERNAME (None when missing) and the offset of MESSAGE-INTEGRITY.

    Raises `BadPacket`: `stun_too_short`, `stun_too_long`, `stun_length`, `stun_cookie`,
    `stun_attribute_overrun`, `stun_too_many_attributes`, `stun_username_twice`, `stun_username_length`,
    `stun_integrity_length`, `stun_no_integrity`, `stun_fingerprint`.
    """
    size = len(data)
    _check_header(data, size)
    username: bytes | None = None
    integrity_offset = 0
    offset = HEADER_SIZE
    attributes = 0
    # Sizes are multiples of four, so an attribute header that begins inside the message also ends inside.
    while offset < size:
        kind, length = _ATTRIBUTE.unpack_from(data, offset)
        following = offset + 4 + (length + 3 & ~3)
        attributes += 1
        if following > size:
            raise BadPacket("stun_attribute_overrun")
        if attributes > MAX_ATTRIBUTES:
            raise BadPacket("stun_too_many_attributes")
        if kind == _FINGERPRINT:
            _check_fingerprint(data, offset, length)
        elif integrity_offset:
            pass  # RFC 8489 section 14.5: with FINGERPRINT excepted, what comes after MUST be ignored.
        elif kind == _USERNAME:
            if username is not None:
                raise BadPacket("stun_username_twice")
            if not 0 < length <= MAX_USERNAME:
                raise BadPacket("stun_username_length")
            username = data[offset + 4 : offset + 4 + length]
        elif kind == _INTEGRITY:
            if length != _INTEGRITY_SIZE:
                raise BadPacket("stun_integrity_length")
            integrity_offset = offset
        offset = following
    if not integrity_offset:
        raise BadPacket("stun_no_integrity")
    return username, integrity_offset


def _check_header(data: bytes, size: int) -> None:
    if size < HEADER_SIZE:
        raise BadPacket("stun_too_short")
    if size > MAX_MESSAGE:
        raise BadPacket("stun_too_long")
    _, length, cookie = _HEADER.unpack_from(data, 0)
    # RFC 8489 section 5: the length is without the header and always a multiple of four.
    if length + HEADER_SIZE != size or size & 3:
        raise BadPacket("stun_length")
    if cookie != _COOKIE_INT:
        raise BadPacket("stun_cookie")


def _check_fingerprint(data: bytes, offset: int, length: int) -> None:
    # RFC 8489 section 14.7: MUST be the last attribute; CRC-32 of all that goes before, XOR'd.
    if length != _FINGERPRINT_SIZE or offset + 8 != len(data):
        raise BadPacket("stun_fingerprint")
    if _U32.unpack_from(data, offset + 4)[0] != zlib.crc32(data[:offset]) ^ _FINGERPRINT_XOR:
        raise BadPacket("stun_fingerprint")


def _require_length(length: int, expected: int) -> None:
    if length != expected:
        raise BadPacket("stun_attribute_length")


def _xor_address_untrusted(value: bytes, transaction_id: bytes) -> ClientAddress:
    """XOR-MAPPED-ADDRESS (RFC 8489 section 14.2) to packed IP and port."""
    family = value[1] if len(value) > 1 else 0
    if (family, len(value)) not in ((_FAMILY_IPV4, 8), (_FAMILY_IPV6, 20)):
        raise BadPacket("stun_address")
    return ClientAddress(_xor(value[4:] + value[2:4], transaction_id))


def _xor_address(client: ClientAddress, transaction_id: bytes) -> bytes:
    address = without_transport(client)
    mixed = _xor(address, transaction_id)
    family = _FAMILY_IPV4 if len(address) == 6 else _FAMILY_IPV6
    return bytes((0, family)) + mixed[-2:] + mixed[:-2]


def _xor(address: bytes, transaction_id: bytes) -> bytes:
    """IP and port, each XOR'd with the beginning of cookie and transaction id."""
    mask = (COOKIE if len(address) == 6 else COOKIE + transaction_id) + COOKIE[:2]
    return (int.from_bytes(address, "big") ^ int.from_bytes(mask, "big")).to_bytes(len(address), "big")


def _attribute(kind: int, value: bytes) -> bytes:
    return _ATTRIBUTE.pack(kind, len(value)) + value + bytes(-len(value) & 3)


def _seal(message_type: MessageType, transaction_id: bytes, body: bytes, password: bytes) -> bytes:
    """Header, body, MESSAGE-INTEGRITY and FINGERPRINT; each is computed over a length that ends with
    itself."""
    covered = _HEADER.pack(message_type, len(body) + 24, _COOKIE_INT) + transaction_id + body
    body += _attribute(AttributeType.MESSAGE_INTEGRITY, hmac.digest(password, covered, "sha1"))
    covered = _HEADER.pack(message_type, len(body) + 8, _COOKIE_INT) + transaction_id + body
    crc = zlib.crc32(covered) ^ _FINGERPRINT_XOR
    return covered + _attribute(AttributeType.FINGERPRINT, _U32.pack(crc))
