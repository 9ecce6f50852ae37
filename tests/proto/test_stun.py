"""STUN: the RFC's vectors, round trips, every way to be wrong, and arbitrary bytes."""

from __future__ import annotations

import struct
import zlib
from pathlib import Path

import aioice.stun
import pytest
from hypothesis import given
from hypothesis import strategies as st

from voicegate.proto import stun
from voicegate.proto.address import ClientAddress, pack_address
from voicegate.proto.errors import BadPacket

DATA = Path(__file__).parent.parent / "data"
TRANSACTION = bytes(range(12))
PASSWORD = b"a-password-of-24-letters"
USERNAME = b"RsyneX9nYRgVbgDJNgLsu3g:Ab+/"

# RFC 5769 section 2.1 to 2.3.
RFC_PASSWORD = b"VOkJxbRl1RmTxUk/WvJxBt"
RFC_TRANSACTION = bytes.fromhex("b7e7a701bc34d686fa87dfae")
RFC_REQUEST = bytes.fromhex(
    "000100582112a442b7e7a701bc34d686fa87dfae"
    "802200105354554e207465737420636c69656e74"
    "002400046e0001ff"
    "80290008932ff9b151263b36"
    "000600096576746a3a68367659202020"
    "000800149aeaa70cbfd8cb56781ef2b5b2d3f249c1b571a2"
    "80280004e57a3bcf"
)
RFC_RESPONSE_IPV4 = bytes.fromhex(
    "0101003c2112a442b7e7a701bc34d686fa87dfae"
    "8022000b7465737420766563746f7220"
    "002000080001a147e112a643"
    "000800142b91f599fd9e90c38c7489f92af9ba53f06be7d7"
    "80280004c07d4c96"
)
RFC_RESPONSE_IPV6 = bytes.fromhex(
    "010100482112a442b7e7a701bc34d686fa87dfae"
    "8022000b7465737420766563746f7220"
    "002000140002a1470113a9faa5d3f179bc25f4b5bed2b9d9"
    "00080014a382954e4be67bf11784c97c8292c275bfe3ed41"
    "80280004c8fb0b4c"
)


def test_rfc5769_request() -> None:
    request = stun.parse_binding_request_untrusted(RFC_REQUEST)
    assert request.transaction_id == RFC_TRANSACTION
    assert request.username == b"evtj:h6vY"
    assert request.priority == 0x6E0001FF
    assert request.controlling is False
    assert request.use_candidate is False
    assert request.unknown_required == ()
    assert stun.verify_integrity(RFC_REQUEST, request.integrity_offset, RFC_PASSWORD)
    assert not stun.verify_integrity(RFC_REQUEST, request.integrity_offset, RFC_PASSWORD + b"x")
    assert stun.peek_username_untrusted(RFC_REQUEST) == (request.username, request.integrity_offset)


@pytest.mark.parametrize(
    ("data", "host"),
    [(RFC_RESPONSE_IPV4, "192.0.2.1"), (RFC_RESPONSE_IPV6, "2001:db8:1234:5678:11:2233:4455:6677")],
)
def test_rfc5769_responses(data: bytes, host: str) -> None:
    response = stun.parse_binding_success_untrusted(data)
    assert response.mapped == pack_address(host, 32853)
    assert response.transaction_id == RFC_TRANSACTION == stun.transaction_id(data)
    assert stun.verify_integrity(data, response.integrity_offset, RFC_PASSWORD)


@pytest.mark.parametrize("path", sorted(DATA.glob("check-*.stun")), ids=lambda path: path.stem)
def test_checks_of_real_clients(path: Path) -> None:
    """Captured on loopback: Chromium 156 (also with its DTLS-in-STUN experiment) and aioice 0.13."""
    data = path.read_bytes()
    request = stun.parse_binding_request_untrusted(data)
    assert stun.is_binding_request(data)
    assert request.controlling
    assert request.unknown_required == ()
    assert request.username.count(b":") == 1
    assert stun.verify_integrity(data, request.integrity_offset, PASSWORD)


def test_request_is_understood_by_another_implementation() -> None:
    data = make_request(use_candidate=True)
    message = aioice.stun.parse_message(data)
    assert message.check_message_integrity(PASSWORD)
    assert message.attributes["USERNAME"] == USERNAME.decode()
    assert message.attributes["PRIORITY"] == 1845501695
    assert message.attributes["ICE-CONTROLLING"] == 2**63 + 5
    assert "USE-CANDIDATE" in message.attributes


@pytest.mark.parametrize(("host", "size"), [("203.0.113.7", 64), ("2001:db8::7", 76)])
def test_success_is_understood_by_another_implementation(host: str, size: int) -> None:
    data = stun.binding_success(TRANSACTION, pack_address(host, 50_001), PASSWORD)
    message = aioice.stun.parse_message(data)
    assert message.check_message_integrity(PASSWORD)
    assert message.attributes["XOR-MAPPED-ADDRESS"] == (host, 50_001)
    assert stun.is_binding_success(data)
    assert not stun.is_binding_request(data)
    assert len(data) == size


def test_error_is_understood_by_another_implementation() -> None:
    data = stun.binding_error(
        TRANSACTION, stun.ErrorCode.UNKNOWN_ATTRIBUTE, PASSWORD, (0x7001, 0x7002, 0x7003)
    )
    message = aioice.stun.parse_message(data)
    assert message.check_message_integrity(PASSWORD)
    assert message.message_class == aioice.stun.Class.ERROR
    assert message.attributes["ERROR-CODE"] == (420, "")
    # aioice does not know UNKNOWN-ATTRIBUTES: type, length 6, three numbers, padding.
    assert bytes.fromhex("000a0006 7001 7002 7003 0000") in data


def test_reads_checks_of_another_implementation() -> None:
    message = aioice.stun.Message(
        aioice.stun.Method.BINDING, aioice.stun.Class.REQUEST, transaction_id=TRANSACTION
    )
    message.attributes["USERNAME"] = USERNAME.decode()
    message.attributes["PRIORITY"] = 77
    message.attributes["ICE-CONTROLLED"] = 1
    message.add_message_integrity(PASSWORD)
    data = bytes(message)
    request = stun.parse_binding_request_untrusted(data)
    assert request == (TRANSACTION, USERNAME, request.integrity_offset, False, 77, False, ())
    assert stun.verify_integrity(data, request.integrity_offset, PASSWORD)


def test_integrity_covers_every_byte_before_it() -> None:
    data = make_request(fingerprint=False)
    _, offset = stun.peek_username_untrusted(data)
    for index in [*range(2), *range(4, len(data))]:
        if offset <= index < offset + 4:
            continue  # the attribute's own header decides where it is, not whether it holds
        flipped = bytearray(data)
        flipped[index] ^= 0x01
        assert not stun.verify_integrity(bytes(flipped), offset, PASSWORD), index


def test_attributes_after_integrity_have_no_effect() -> None:
    late = attribute(stun.AttributeType.USE_CANDIDATE, b"") + attribute(stun.AttributeType.USERNAME, b"x:y")
    late += attribute(0x7FFF, b"") + attribute(stun.AttributeType.MESSAGE_INTEGRITY, bytes(20))
    late += attribute(stun.AttributeType.MESSAGE_INTEGRITY_SHA256, bytes(32))
    data = with_fingerprint(append(make_request(fingerprint=False), late))
    request = stun.parse_binding_request_untrusted(data)
    assert request.username == USERNAME
    assert not request.use_candidate
    assert request.unknown_required == ()
    assert stun.verify_integrity(data, request.integrity_offset, PASSWORD)


def test_unknown_required_attributes_are_named_once_and_optional_ones_are_not() -> None:
    data = make_request(extra=((0x7001, b"a"), (0xC057, b"net"), (0x7001, b""), (0x0001, bytes(8))))
    assert stun.parse_binding_request_untrusted(data).unknown_required == (0x7001,)


def test_cheap_looks_need_a_whole_header() -> None:
    data = make_request()
    assert stun.is_binding_request(data)
    assert not stun.is_binding_request(data[:19])
    assert not stun.is_binding_request(data[:4] + bytes(4) + data[8:])
    assert not stun.is_binding_success(RFC_RESPONSE_IPV4[:19])


def test_username_of_513_bytes_is_the_longest() -> None:
    assert stun.peek_username_untrusted(make_request(username=b"u" * 513))[0] == b"u" * 513


def test_fingerprint_may_be_missing() -> None:
    assert stun.peek_username_untrusted(make_request(fingerprint=False))[0] == USERNAME


BAD_REQUESTS = {
    "empty": (lambda: b"", "stun_not_a_request"),
    "one_byte": (lambda: b"\x00", "stun_not_a_request"),
    "header_cut": (lambda: make_request()[:19], "stun_too_short"),
    "cut_by_one": (lambda: make_request()[:-1], "stun_length"),
    "cut_by_four": (lambda: make_request()[:-4], "stun_length"),
    "one_byte_more": (lambda: make_request() + b"\x00", "stun_length"),
    "four_bytes_more": (lambda: make_request() + bytes(4), "stun_length"),
    "length_not_a_multiple_of_four": (lambda: set_length(make_request() + b"\x00"), "stun_length"),
    "cookie": (lambda: make_request()[:4] + bytes(4) + make_request()[8:], "stun_cookie"),
    "indication": (lambda: b"\x00\x11" + make_request()[2:], "stun_not_a_request"),
    "success": (lambda: RFC_RESPONSE_IPV4, "stun_not_a_request"),
    "too_long": (lambda: make_request(extra=((0xC000, bytes(1_480)),)), "stun_too_long"),
    "no_attributes": (lambda: set_length(make_request()[:20]), "stun_no_integrity"),
    "overrun": (
        lambda: append(make_request(fingerprint=False), b"\x80\x22\x00\x08abcd"),
        "stun_attribute_overrun",
    ),
    "overrun_by_padding": (
        lambda: append(make_request(fingerprint=False), b"\x80\x22\xff\xff"),
        "stun_attribute_overrun",
    ),
    "username_twice": (lambda: make_request(extra=((6, b"x:y"),)), "stun_username_twice"),
    "same_username_twice": (lambda: make_request(extra=((6, USERNAME),)), "stun_username_twice"),
    "username_empty": (lambda: make_request(username=b""), "stun_username_length"),
    "username_514": (lambda: make_request(username=b"u" * 514), "stun_username_length"),
    "no_username": (lambda: strip_username(make_request(fingerprint=False)), "stun_no_username"),
    "username_after_integrity": (
        lambda: append(strip_username(make_request(fingerprint=False)), attribute(6, USERNAME)),
        "stun_no_username",
    ),
    "integrity_missing": (lambda: set_length(make_request(fingerprint=False)[:-24]), "stun_no_integrity"),
    "integrity_sha256_only": (
        lambda: append(set_length(make_request(fingerprint=False)[:-24]), attribute(0x1C, bytes(32))),
        "stun_no_integrity",
    ),
    "integrity_of_16": (
        lambda: append(set_length(make_request(fingerprint=False)[:-24]), attribute(8, bytes(16))),
        "stun_integrity_length",
    ),
    "fingerprint_wrong": (lambda: make_request()[:-1] + b"\x00", "stun_fingerprint"),
    "fingerprint_not_last": (lambda: append(make_request(), attribute(0xC000, b"")), "stun_fingerprint"),
    "fingerprint_of_8": (
        lambda: append(make_request(fingerprint=False), attribute(0x8028, bytes(8))),
        "stun_fingerprint",
    ),
    "fingerprint_before_integrity": (lambda: make_request(extra=((0x8028, bytes(4)),)), "stun_fingerprint"),
    "many_attributes": (lambda: make_request(extra=((0xC000, b""),) * 33), "stun_too_many_attributes"),
    "priority_of_3": (lambda: make_request(extra=((0x24, b"abc"),)), "stun_attribute_length"),
    "use_candidate_with_value": (lambda: make_request(extra=((0x25, b"a"),)), "stun_attribute_length"),
    "controlling_of_4": (lambda: make_request(extra=((0x802A, b"abcd"),)), "stun_attribute_length"),
    "controlled_of_9": (lambda: make_request(extra=((0x8029, b"123456789"),)), "stun_attribute_length"),
}


@pytest.mark.parametrize("name", BAD_REQUESTS)
def test_bad_requests(name: str) -> None:
    make, reason = BAD_REQUESTS[name]
    with pytest.raises(BadPacket) as caught:
        stun.parse_binding_request_untrusted(make())
    assert caught.value.reason == reason


BAD_RESPONSES = {
    "request": (lambda: make_request(), "stun_not_a_success"),
    "no_address": (lambda: make_response(b""), "stun_no_mapped_address"),
    "empty_address": (lambda: make_response(attribute(0x20, b"")), "stun_address"),
    "family_3": (lambda: make_response(attribute(0x20, b"\x00\x03" + bytes(6))), "stun_address"),
    "ipv6_of_4": (lambda: make_response(attribute(0x20, b"\x00\x02" + bytes(6))), "stun_address"),
    "ipv4_of_16": (lambda: make_response(attribute(0x20, b"\x00\x01" + bytes(18))), "stun_address"),
}


@pytest.mark.parametrize("name", BAD_RESPONSES)
def test_bad_responses(name: str) -> None:
    make, reason = BAD_RESPONSES[name]
    with pytest.raises(BadPacket) as caught:
        stun.parse_binding_success_untrusted(make())
    assert caught.value.reason == reason


@given(
    st.binary(max_size=200), st.sampled_from([b"", RFC_REQUEST[:20], RFC_RESPONSE_IPV4[:20]]), st.booleans()
)
def test_arbitrary_bytes_raise_only_bad_packet(tail: bytes, header: bytes, right_length: bool) -> None:
    data = set_length(header + tail) if header and right_length else header + tail
    for parse in (
        stun.parse_binding_request_untrusted,
        stun.peek_username_untrusted,
        stun.parse_binding_success_untrusted,
    ):
        try:
            parse(data)
        except BadPacket:
            pass


@given(
    st.lists(st.tuples(st.integers(0, 119), st.integers(0, 255)), max_size=6),
    st.integers(0, 120),
    st.booleans(),
)
def test_mutated_messages_raise_only_bad_packet(
    edits: list[tuple[int, int]], cut: int, right_length: bool
) -> None:
    for original in (RFC_REQUEST, RFC_RESPONSE_IPV4, RFC_RESPONSE_IPV6, make_request(fingerprint=False)):
        data = bytearray(original)
        for index, value in edits:
            data[index % len(data)] = value
        data = data[:cut] if cut < 100 else data
        changed = set_length(bytes(data)) if right_length and len(data) >= 4 else bytes(data)
        for parse in (stun.parse_binding_request_untrusted, stun.parse_binding_success_untrusted):
            try:
                parse(changed)
            except BadPacket:
                pass


@given(
    st.binary(min_size=12, max_size=12),
    st.binary(min_size=1, max_size=513),
    st.binary(min_size=1, max_size=64),
    st.integers(0, 2**32 - 1),
    st.integers(0, 2**64 - 1),
    st.booleans(),
    st.booleans(),
)
def test_requests_round_trip(
    transaction: bytes,
    username: bytes,
    password: bytes,
    priority: int,
    tie: int,
    controlling: bool,
    nominate: bool,
) -> None:
    data = stun.binding_request(
        transaction,
        username,
        password,
        priority=priority,
        tie_breaker=tie,
        controlling=controlling,
        use_candidate=nominate,
    )
    request = stun.parse_binding_request_untrusted(data)
    assert request == (transaction, username, request.integrity_offset, nominate, priority, controlling, ())
    assert stun.verify_integrity(data, request.integrity_offset, password)


@given(
    st.binary(min_size=12, max_size=12),
    st.binary(min_size=6, max_size=6) | st.binary(min_size=18, max_size=18),
)
def test_success_round_trips(transaction: bytes, address: bytes) -> None:
    data = stun.binding_success(transaction, ClientAddress(address), PASSWORD)
    response = stun.parse_binding_success_untrusted(data)
    assert response == (transaction, response.integrity_offset, address)
    assert stun.verify_integrity(data, response.integrity_offset, PASSWORD)


def test_attribute_numbers_are_those_of_the_registry() -> None:
    """Name and number as IANA prints them ("STUN Attributes")."""
    assert {attribute.name: int(attribute) for attribute in stun.AttributeType} == {
        "MAPPED_ADDRESS": 0x0001,
        "USERNAME": 0x0006,
        "MESSAGE_INTEGRITY": 0x0008,
        "ERROR_CODE": 0x0009,
        "UNKNOWN_ATTRIBUTES": 0x000A,
        "MESSAGE_INTEGRITY_SHA256": 0x001C,
        "XOR_MAPPED_ADDRESS": 0x0020,
        "PRIORITY": 0x0024,
        "USE_CANDIDATE": 0x0025,
        "SOFTWARE": 0x8022,
        "FINGERPRINT": 0x8028,
        "ICE_CONTROLLED": 0x8029,
        "ICE_CONTROLLING": 0x802A,
    }


def make_request(
    *,
    username: bytes = USERNAME,
    fingerprint: bool = True,
    use_candidate: bool = False,
    extra: tuple[tuple[int, bytes], ...] = (),
) -> bytes:
    data = stun.binding_request(
        TRANSACTION,
        username,
        PASSWORD,
        priority=1845501695,
        tie_breaker=2**63 + 5,
        use_candidate=use_candidate,
        extra=extra,
    )
    return data if fingerprint else set_length(data[:-8])


def make_response(body: bytes) -> bytes:
    return set_length(RFC_RESPONSE_IPV4[:20] + body + attribute(8, bytes(20)))


def attribute(kind: int, value: bytes) -> bytes:
    return struct.pack(">HH", kind, len(value)) + value + bytes(-len(value) % 4)


def set_length(data: bytes) -> bytes:
    return data[:2] + (len(data) - 20 & 0xFFFF).to_bytes(2, "big") + data[4:]


def append(data: bytes, tail: bytes) -> bytes:
    return set_length(data + tail)


def with_fingerprint(data: bytes) -> bytes:
    covered = set_length(data + bytes(8))[:-8]
    return covered + attribute(0x8028, struct.pack(">I", zlib.crc32(covered) ^ 0x5354554E))


def strip_username(data: bytes) -> bytes:
    """Without its first attribute, the username."""
    return set_length(data[:20] + data[20 + 4 + (len(USERNAME) + 3 & ~3) :])
