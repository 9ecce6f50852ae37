"""ICE as a client does it towards an ICE-lite server: full and controlling (RFC 8445), with consent. Pure."""

from __future__ import annotations

from collections import Counter, deque
from typing import Final, Protocol

from voicegate.load.offer import Address, Answer
from voicegate.proto import stun
from voicegate.proto.address import pack_address
from voicegate.proto.errors import BadPacket

CHECK_INTERVALS: Final = (0.05, 0.1, 0.2, 0.4, 0.5)
"""Between connectivity checks until one is answered."""
CONSENT_INTERVAL: Final = 2.5
"""What Chromium does."""
CONSENT_LIMIT: Final = 30.0
"""RFC 7675 section 5.1: consent expires 30 seconds after the last answered check."""
MAX_CHECKS: Final = 64
"""Checks that wait for an answer: half a minute of four candidates."""
PRIORITY: Final = 0x6E7F00FF
"""RFC 8445 section 5.1.2.1: a peer-reflexive candidate of component 1."""
NEVER: Final = float("inf")


class Randomness(Protocol):
    """`random.Random` has it. For load it need not be a secret."""

    def random(self) -> float: ...
    def getrandbits(self, k: int, /) -> int: ...
    def randbytes(self, n: int, /) -> bytes: ...


class ControllingIce:
    """One client's side of one call. `nominate_after` holds USE-CANDIDATE back that many seconds, as
    libwebrtc does on slow paths; `patience`: seconds until the first check must have been answered."""

    def __init__(
        self, random: Randomness, counts: Counter[str], *, nominate_after: float, patience: float
    ) -> None:
        """`counts` gets checks and checks_answered."""
        self.ufrag = _token(random, 4)
        self.password = _token(random, 24)
        self.remote: Address | None = None
        """Where packets go: the first candidate, then the one whose check was answered."""
        self.connected = False
        self._random = random
        self._tie_breaker = random.getrandbits(64)
        self._counts = counts
        self._nominate_after = nominate_after
        self._patience = patience
        self._answer: Answer | None = None
        self._begun = 0.0
        self._rounds = 0
        self._next_check = NEVER
        self._expires_at = NEVER
        self._pending: dict[bytes, Address] = {}
        self._transmits: deque[tuple[bytes, Address]] = deque()

    def begin(self, answer: Answer, now: float) -> None:
        """Check the answer's candidates; there is one at least."""
        self._answer = answer
        self.remote = answer.candidates[0]
        self._begun = self._next_check = now
        self._expires_at = now + self._patience

    def receive_untrusted(self, data: bytes, address: Address, now: float) -> bool:
        """Take a STUN message; True when by it a check is answered for the first time. Raises BadPacket."""
        if self._answer is None:
            raise BadPacket("stun_before_answer")
        if stun.is_binding_request(data):
            request = stun.parse_binding_request_untrusted(data)
            if not stun.verify_integrity(data, request.integrity_offset, self.password.encode()):
                raise BadPacket("stun_integrity")
            mapped = pack_address(*address)
            reply = stun.binding_success(request.transaction_id, mapped, self.password.encode())
            self._transmits.append((reply, address))
            return False
        if not stun.is_binding_success(data):
            raise BadPacket("stun_other")
        success = stun.parse_binding_success_untrusted(data)
        if not stun.verify_integrity(data, success.integrity_offset, self._answer.password.encode()):
            raise BadPacket("stun_integrity")
        candidate = self._pending.pop(success.transaction_id, None)
        if candidate is None:
            raise BadPacket("stun_unknown_transaction")
        self._counts["checks_answered"] += 1
        self._expires_at = now + CONSENT_LIMIT
        if self.connected:
            return False
        self.connected = True
        self.remote = candidate
        self._next_check = now + (CHECK_INTERVALS[0] if self._nominate_after else CONSENT_INTERVAL)
        return True

    def handle_timeout(self, now: float) -> None:
        """Send the checks that are due."""
        if now < self._next_check or self._answer is None or self.remote is None:
            return
        nominate = now - self._begun >= self._nominate_after
        for candidate in [self.remote] if self.connected else self._answer.candidates:
            self._check(self._answer, candidate, nominate)
        if self.connected and nominate:
            self._next_check = now + CONSENT_INTERVAL
        else:
            self._next_check = now + CHECK_INTERVALS[min(self._rounds, len(CHECK_INTERVALS) - 1)]
            self._rounds += 1

    def poll_transmit(self) -> tuple[bytes, Address] | None:
        return self._transmits.popleft() if self._transmits else None

    def next_deadline(self) -> float:
        return min(self._next_check, self._expires_at)

    def failure(self, now: float) -> str:
        """Why there is no path (any more); empty while there is hope."""
        if now < self._expires_at:
            return ""
        return "consent expired" if self.connected else "no connectivity check was answered"

    def _check(self, answer: Answer, candidate: Address, nominate: bool) -> None:
        transaction = self._random.randbytes(12)
        if len(self._pending) >= MAX_CHECKS:
            del self._pending[next(iter(self._pending))]
        self._pending[transaction] = candidate
        request = stun.binding_request(
            transaction,
            f"{answer.ufrag}:{self.ufrag}".encode(),
            answer.password.encode(),
            priority=PRIORITY,
            tie_breaker=self._tie_breaker,
            use_candidate=nominate,
        )
        self._transmits.append((request, candidate))
        self._counts["checks"] += 1


def _token(random: Randomness, length: int) -> str:
    """ICE characters, RFC 8839 section 5.4."""
    alphabet = "ABCDEFGHIJKLMNOPQRSTUVWXYZabcdefghijklmnopqrstuvwxyz0123456789+/"
    return "".join(alphabet[random.getrandbits(6)] for _ in range(length))
