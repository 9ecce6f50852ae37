"""The state cookie (RFC 9260 section 5.1.3): what the side that answers an INIT would have to remember, given
to the other side to keep, so that a flood of INITs costs no memory."""

from __future__ import annotations

import hmac
import struct
from typing import Final, NamedTuple

from voicegate.proto.errors import BadPacket

COOKIE_LIFE: Final = 60.0
"""Seconds: Valid.Cookie.Life of RFC 9260 section 16."""
_FIELDS = struct.Struct(">IIHHIBIIIIQ")
_TAG: Final = 16  # bytes of HMAC-SHA256: 128 bits, against guesses that last a minute


class Cookie(NamedTuple):
    peer_tag: int
    peer_window: int
    peer_outbound: int
    peer_inbound: int
    peer_tsn: int
    extensions: int
    """Bit 0: forward TSN; bit 1: reconfiguration."""
    local_tag: int
    local_tsn: int
    tie_local: int
    """Our tag of the association that existed then, 0 if none (RFC 9260 section 5.2.2)."""
    tie_peer: int
    """The peer's tag of that association."""
    created: int
    """Milliseconds of `now`."""


def seal_cookie(key: bytes, cookie: Cookie) -> bytes:
    fields = _FIELDS.pack(*cookie)
    return fields + hmac.digest(key, fields, "sha256")[:_TAG]


def open_cookie_untrusted(key: bytes, data: bytes) -> Cookie:
    """BadPacket: sctp_cookie. Its age is the caller's to judge."""
    fields, tag = data[: _FIELDS.size], data[_FIELDS.size :]
    if len(data) != _FIELDS.size + _TAG or not hmac.compare_digest(
        hmac.digest(key, fields, "sha256")[:_TAG], tag
    ):
        raise BadPacket("sctp_cookie")
    return Cookie(*_FIELDS.unpack(fields))
