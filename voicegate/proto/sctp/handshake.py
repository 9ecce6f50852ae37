"""The four-way handshake (RFC 9260 section 5): what goes into INIT, INIT ACK and cookie, and what a cookie
that comes back means. The state is `lifecycle`'s.

Our tag is one value until an association stands: only one peer is on the other end of the DTLS connection. An
INIT that comes later gets an INIT ACK with another tag (section 5.2.2), made from the cookie key, so that
nothing random has to be at hand.
"""

from __future__ import annotations

import hmac
from enum import Enum
from typing import Final

from voicegate.proto.errors import BadPacket
from voicegate.proto.sctp.cookie import COOKIE_LIFE, Cookie, open_cookie_untrusted, seal_cookie
from voicegate.proto.sctp.inbound import RECEIVE_BUFFER
from voicegate.proto.sctp.parameters import MAX_STREAMS, Init, build_init
from voicegate.proto.sctp.wire import ChunkType

ENTROPY: Final = 40
"""Random bytes an association needs: tag 4, first TSN 4, cookie key 32."""


class CookieAction(Enum):
    """What a valid cookie asks for: the table of RFC 9260 section 5.2.4."""

    RESTART = "A: the peer began anew"
    ESTABLISH = "B, or the normal case: take the peer's values from the cookie"
    IGNORE = "C: it comes too late"
    REPEAT = "D: the association of the cookie stands; answer again"
    STALE = "too old"


class Handshake:
    """The secrets and constants of one association. `entropy`: ENTROPY random bytes."""

    __slots__ = ("_key", "tag", "tsn")

    def __init__(self, entropy: bytes) -> None:
        if len(entropy) != ENTROPY:
            raise ValueError(f"an SCTP association needs {ENTROPY} random bytes")
        self.tag = int.from_bytes(entropy[:4], "big") or 1  # RFC 9260 section 3.3.2: not 0
        self.tsn = int.from_bytes(entropy[4:8], "big")
        self._key = entropy[8:]

    def init_chunk(self) -> bytes:
        return build_init(ChunkType.INIT, Init(self.tag, RECEIVE_BUFFER, MAX_STREAMS, MAX_STREAMS, self.tsn))

    def init_ack_chunk(self, init: Init, tag: int, tie_peer: int, now: float) -> bytes:
        """The answer to an INIT. `tag`: ours for it; `tie_peer`: the peer's in the association that stands, 0
        without one."""
        tie_local = self.tag if tie_peer else 0
        cookie = Cookie(
            init.tag,
            init.window,
            init.outbound,
            init.inbound,
            init.tsn,
            init.forward_tsn | init.reconfig << 1,
            tag,
            self.tsn,
            tie_local,
            tie_peer,
            int(now * 1000),
        )
        return build_init(
            ChunkType.INIT_ACK,
            Init(
                tag,
                RECEIVE_BUFFER,
                MAX_STREAMS,
                MAX_STREAMS,
                self.tsn,
                cookie=seal_cookie(self._key, cookie),
                unrecognized=init.unrecognized,
            ),
        )

    def other_tag(self, init: Init) -> int:
        """A tag for an INIT that comes while an association stands."""
        digest = hmac.digest(self._key, b"restart" + init.tag.to_bytes(4, "big"), "sha256")
        tag = int.from_bytes(digest[:4], "big")
        return tag if tag not in (0, self.tag) else (self.tag ^ 1) or 2

    def judge_cookie_untrusted(
        self, data: bytes, packet_tag: int, peer_tag: int, now: float
    ) -> tuple[CookieAction, Init, float]:
        """What to do, the peer's values, and the cookie's age in seconds. `packet_tag`: of the packet's
        header; `peer_tag`: what we know, 0 if nothing. BadPacket: sctp_cookie, sctp_tag."""
        cookie = open_cookie_untrusted(self._key, data)
        if packet_tag != cookie.local_tag:  # RFC 9260 section 5.1.5, rule 3
            raise BadPacket("sctp_tag")
        init = Init(
            cookie.peer_tag,
            cookie.peer_window,
            cookie.peer_outbound,
            cookie.peer_inbound,
            cookie.peer_tsn,
            bool(cookie.extensions & 1),
            bool(cookie.extensions & 2),
        )
        age = max(now - cookie.created / 1000, 0.0)
        ours, theirs = cookie.local_tag == self.tag, cookie.peer_tag == peer_tag
        if ours and theirs:
            return CookieAction.REPEAT, init, age  # also an old one: section 5.2.4, rule 3
        if age > COOKIE_LIFE:
            return CookieAction.STALE, init, age
        if ours:
            return CookieAction.ESTABLISH, init, age
        if peer_tag and (cookie.tie_local, cookie.tie_peer) == (self.tag, peer_tag):
            return CookieAction.RESTART, init, age
        return CookieAction.IGNORE, init, age
