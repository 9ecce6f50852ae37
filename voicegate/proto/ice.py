"""ICE-lite: the side of ICE that is publicly reachable and only answers (RFC 8445 sections 2.5 and 7.3).

Theory of operation. The client is the full, controlling agent: it sends checks, we answer. Every check with
our ufrag, the offer's ufrag and valid integrity is answered for as long as the call lives, with or without
USE-CANDIDATE: browsers take an unanswered check for a lost path, and keep checking as consent (RFC 7675).
There are no candidates of the client's to know: where a valid check comes from is an address the client has,
and it is reported once as `Validated`. Which of them media uses is the call's decision; it says so with
`select`.

A valid check proves that its sender holds the password, not that it sits at the address the datagram claims.
The owner of the call must not move media there on a check alone. Nor does it prove that it was made now: the
last transaction ids are kept with the address each came from, and `receive_datagram` says of a check whether
it was seen before. It is answered all the same, for a client may repeat one (RFC 8489 section 6.2.1), but
proves no life. Repeated from an address that sent no check of its own it is somebody's who saw it go by, and
is not answered: a relay refuses most of these, but only the call sees what came by all relays and workers.
(From one that did it is answered, or who overtakes a client's checks would spoil them.) Who recorded
more than MAX_TRANSACTIONS checks ago can still show an old one as new: until the client's next packet.

Nothing that is not a valid check is answered, so a stranger learns nothing and nothing can be reflected. The
answer has 64 bytes (76 over IPv6). With our ufrag of 23 characters and the client's of at least 4 (RFC 8839
section 5.4) a check that can be valid has at least 76: an answer is never larger. Chromium's are about 120.
Over TCP nothing changes but the two bytes of framing (RFC 4571), on both; the answer names address and port.

One mutation (`receive_datagram`), then drain `poll_transmit` and `poll_event`. There are no timers here.
"""

from __future__ import annotations

from collections import Counter, deque
from collections.abc import Mapping
from dataclasses import dataclass
from types import MappingProxyType
from typing import NoReturn

from voicegate.proto.address import ClientAddress
from voicegate.proto.errors import BadPacket
from voicegate.proto.stun import (
    ErrorCode,
    binding_error,
    binding_success,
    parse_binding_request_untrusted,
    verify_integrity,
)

MAX_ADDRESSES = 8
"""Client addresses remembered for a call: a client has a few interfaces and IP versions, and one NAT port
for each; mediasoup keeps as many."""
MAX_TRANSACTIONS = 128
"""Transaction ids remembered: five minutes of consent checks of one address, every 2.5 s in Chromium."""
MAX_WAITING = 16
"""Responses, and events, that may wait for their poll: several times what one datagram can cause."""


@dataclass(frozen=True, slots=True)
class Validated:
    """A valid check came from an address that was not in the table."""

    client: ClientAddress


@dataclass(frozen=True, slots=True)
class Nominated:
    """A valid check with USE-CANDIDATE came from an address other than the one nominated before."""

    client: ClientAddress


@dataclass(frozen=True, slots=True)
class IceStatistics:
    answered: int
    """Checks answered with success."""
    refused: int
    """Checks with valid integrity answered with an error: an unknown attribute or a role conflict."""
    evicted: int
    """Addresses pushed out of the full table."""
    overflowed: int
    """Responses and events lost because nobody drained them."""
    dropped: Mapping[str, int]
    """Datagrams answered with silence, by reason of `BadPacket`."""


class IceLite:
    """One call's ICE. `ufrag` and `remote_ufrag` as in the SDP, `password` ours (RFC 8445 section 7.2.2:
    short-term credentials of the side that receives the check)."""

    __slots__ = (
        "_answered",
        "_dropped",
        "_events",
        "_evicted",
        "_nominated",
        "_overflowed",
        "_password",
        "_refused",
        "_selected",
        "_transactions",
        "_transmits",
        "_username",
        "_validated",
        "validated",
    )

    def __init__(self, ufrag: str, password: bytes, remote_ufrag: str) -> None:
        self._username = f"{ufrag}:{remote_ufrag}".encode()
        self._password = password
        self._validated: dict[ClientAddress, float] = {}
        self.validated: Mapping[ClientAddress, float] = MappingProxyType(self._validated)
        """Client addresses with the time of their last valid check, at most `MAX_ADDRESSES`. A live view."""
        self._selected: ClientAddress | None = None
        self._nominated: ClientAddress | None = None
        self._transactions: dict[bytes, ClientAddress] = {}
        """The ids of the last valid checks, oldest first, and where each came from first."""
        self._transmits: deque[tuple[ClientAddress, bytes]] = deque()
        self._events: deque[Validated | Nominated] = deque()
        self._dropped: Counter[str] = Counter()
        self._answered = 0
        self._refused = 0
        self._evicted = 0
        self._overflowed = 0

    @property
    def nominated(self) -> ClientAddress | None:
        """The address whose check had USE-CANDIDATE last (RFC 8445 section 7.3.1.5)."""
        return self._nominated

    def select(self, client: ClientAddress) -> None:
        """Say that media uses this validated address, so that it is never pushed out of the table."""
        assert client in self._validated, "only an address with a valid check can be selected"
        self._selected = client

    def receive_datagram(self, data: bytes, client: ClientAddress, now: float) -> bool:
        """Take a datagram that looks like STUN; False when this check was seen before. Raises `BadPacket`
        (counted here) when it is not a valid check of this call: besides the reasons of `stun`,
        `ice_username`, `ice_integrity` and `ice_replay`."""
        try:
            request = parse_binding_request_untrusted(data)
        except BadPacket as error:
            self._drop(error.reason)
        # RFC 8445 section 7.2.2: the receiver's ufrag, a colon, the sender's. As bytes: no case folding, no
        # trimming.
        if request.username != self._username:
            self._drop("ice_username")
        if not verify_integrity(data, request.integrity_offset, self._password):
            self._drop("ice_integrity")
        transaction_id = request.transaction_id
        new = self._is_new(transaction_id, client)
        if request.unknown_required:  # RFC 8489 section 6.3.1
            self._refuse(client, transaction_id, ErrorCode.UNKNOWN_ATTRIBUTE, request.unknown_required)
            return new
        if not request.controlling:  # RFC 8445 section 7.3.1.1; we never control, so the client has to
            self._refuse(client, transaction_id, ErrorCode.ROLE_CONFLICT, ())
            return new
        self._answered += 1
        self._transmit(client, binding_success(transaction_id, client, self._password))
        if new or client not in self._validated:
            self._note(client, now)
        if request.use_candidate and client != self._nominated:
            self._nominated = client
            self._emit(Nominated(client))
        return new

    def poll_transmit(self) -> tuple[ClientAddress, bytes] | None:
        """The next response and where it goes, or None."""
        return self._transmits.popleft() if self._transmits else None

    def poll_event(self) -> Validated | Nominated | None:
        """The next event, or None."""
        return self._events.popleft() if self._events else None

    def statistics(self) -> IceStatistics:
        return IceStatistics(
            self._answered, self._refused, self._evicted, self._overflowed, MappingProxyType(self._dropped)
        )

    def _is_new(self, transaction_id: bytes, client: ClientAddress) -> bool:
        first = self._transactions.get(transaction_id)
        if first is not None:
            if first != client and client not in self._validated:
                self._drop("ice_replay")
            return False
        if len(self._transactions) >= MAX_TRANSACTIONS:
            del self._transactions[next(iter(self._transactions))]
        self._transactions[transaction_id] = client
        return True

    def _note(self, client: ClientAddress, now: float) -> None:
        if client not in self._validated:
            if len(self._validated) >= MAX_ADDRESSES:
                self._evict_stalest()
            self._emit(Validated(client))
        self._validated[client] = now

    def _evict_stalest(self) -> None:
        stalest = min((a for a in self._validated if a != self._selected), key=self._validated.__getitem__)
        del self._validated[stalest]
        self._evicted += 1

    def _drop(self, reason: str) -> NoReturn:
        self._dropped[reason] += 1
        raise BadPacket(reason) from None

    def _refuse(
        self, client: ClientAddress, transaction_id: bytes, code: ErrorCode, unknown: tuple[int, ...]
    ) -> None:
        self._refused += 1
        self._transmit(client, binding_error(transaction_id, code, self._password, unknown))

    def _transmit(self, client: ClientAddress, data: bytes) -> None:
        if len(self._transmits) >= MAX_WAITING:
            self._overflowed += 1
            return
        self._transmits.append((client, data))

    def _emit(self, event: Validated | Nominated) -> None:
        if len(self._events) >= MAX_WAITING:
            self._overflowed += 1
            return
        self._events.append(event)
