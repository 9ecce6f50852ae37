"""Who may ask, and how much: API keys, the `ek_` keys made from them, and the limits of both. Pure.

A *full* key (`signaling.api_keys`) may do everything. A restricted one (`[[signaling.keys]]`) has its models,
limits and event filters, and opens a sideband only to its own calls. An `ek_` key is for one browser: it
inherits what its issuer is restricted to, makes calls for the session inside it, and neither issues keys
nor opens sidebands. Without any key configured, whoever reaches loopback is a full key.

The limits are this process's own, for signaling shares no state: two instances let through twice as much.
The tables have a row per configured key, and of calls no more than the key's limit.
"""

from __future__ import annotations

import hashlib
import hmac
from collections import Counter
from collections.abc import Iterable
from dataclasses import dataclass, field
from typing import Any, Literal

from voicegate.proto.client_secret import PREFIX, ClientSecret, open_client_secret_untrusted
from voicegate.proto.errors import BadPacket
from voicegate.proto.event_filter import EVERYTHING, EventFilter
from voicegate.proto.seal import SealKeys

MAX_MODEL = 256
MAX_SAFETY_IDENTIFIER = 128
"""Characters; the API asks for a hash of the user's name, which has 64."""
KEY_PROTOCOL = "openai-insecure-api-key."
"""The WebSocket subprotocol that carries a browser's key."""
RECORD_HEADER = "x-voicegate-record"
"""`true` in a request for a call: record it."""
SWEEP_SECONDS = 1.0
"""A key that is at its limit asks after its calls no more often than this."""


class Denied(Exception):
    """A request that is not granted, in the words of the HTTP error that says so."""

    def __init__(
        self, status: int, code: str, message: str, param: str | None = None, *, retry_after: int = 0
    ) -> None:
        super().__init__(message)
        self.status = status
        self.code = code
        self.param = param
        self.retry_after = retry_after

    def headers(self) -> dict[str, str]:
        """Of the answer that says so."""
        headers = {"Retry-After": str(self.retry_after)} if self.retry_after else {}
        if self.status == 401:
            headers["WWW-Authenticate"] = "Bearer"
        return headers


@dataclass(frozen=True, slots=True)
class Key:
    """A configured key, and what it is restricted to."""

    id: str
    """For logs, and for the `ek_` keys it issues."""
    secret: str = field(repr=False)
    full: bool = False
    models: tuple[str, ...] = EVERYTHING
    max_calls: int = 0
    calls_per_minute: int = 0
    client_events: tuple[str, ...] = EVERYTHING
    server_events: tuple[str, ...] = EVERYTHING
    record: Literal["never", "allowed", "always"] = "never"

    @property
    def owner(self) -> str:
        """Whose calls a sideband may be opened to: "" for everybody's."""
        return "" if self.full else self.id


LOOPBACK = Key("loopback", "", full=True, record="allowed")


def full_key(secret: str) -> Key:
    """A key of `signaling.api_keys`; its id is a few bits of a hash, which tells keys apart and gives nothing
    away."""
    digest = hashlib.blake2s(secret.encode(), digest_size=4).hexdigest()
    return Key(f"key_{digest}", secret, full=True, record="allowed")


@dataclass(frozen=True, slots=True)
class Caller:
    """Whoever made a request: a key, or an `ek_` key that it issued."""

    key: Key
    client_secret: ClientSecret | None = None
    safety_identifier: str = ""

    def standard_key(self, purpose: str) -> Key:
        """The key, where an `ek_` is not enough."""
        if self.client_secret is not None:
            raise Denied(403, "standard_key_required", f"A client secret cannot {purpose}.", "authorization")
        return self.key

    def model(self, asked: str) -> str:
        """The model to use when the request asks for `asked` ("": for none). Denied when it may not."""
        bound = self.client_secret.model if self.client_secret is not None else ""
        if bound and asked and asked != bound:
            raise Denied(403, "model_not_allowed", "This client secret is for another model.", "model")
        model = (bound or asked)[:MAX_MODEL]
        allowed = self.key.models
        if not model:
            return "" if "*" in allowed else allowed[0]
        if "*" in allowed or model in allowed:
            return model
        raise Denied(403, "model_not_allowed", "This API key may not use that model.", "model")

    def session(self, asked: dict[str, Any] | None) -> dict[str, Any] | None:
        """The session's settings: those of an `ek_`, or else the request's.

        A browser whose client may not send `session.update` may not do the same with its offer either.
        """
        if self.client_secret is None:
            return asked
        if self.client_secret.session:
            return self.client_secret.session
        return asked if EventFilter(self.key.client_events).allows("session.update") else None

    def record(self, asked: bool) -> bool:
        """Whether to record a call whose request asks for it or not. Denied when it may not ask."""
        if asked and self.key.record == "never":
            raise Denied(
                403, "recording_not_allowed", "This API key may not have calls recorded.", RECORD_HEADER
            )
        return asked or self.key.record == "always"


class KeyRing:
    """All configured keys."""

    def __init__(self, keys: Iterable[Key], seal: SealKeys) -> None:
        self._keys = tuple(keys)
        self._by_id = {key.id: key for key in self._keys or (LOOPBACK,)}
        self._seal = seal

    def __bool__(self) -> bool:
        return bool(self._keys)

    def admit(self, token: str, wall: float, safety_identifier: str = "") -> Caller:
        """Whose token this is. Denied (401) when nobody's; how nearly it was somebody's does not show."""
        if token.startswith(PREFIX):
            return self._admit_client_secret(token, wall)
        found: Key | None = None if self._keys else LOOPBACK
        given = token.encode("utf-8", "replace")
        for key in self._keys:
            if hmac.compare_digest(given, key.secret.encode()):
                found = key
        if found is None:
            raise _unknown_key()
        return Caller(found, safety_identifier=safety_identifier[:MAX_SAFETY_IDENTIFIER])

    def _admit_client_secret(self, token: str, wall: float) -> Caller:
        try:
            secret = open_client_secret_untrusted(self._seal, token)
        except BadPacket:
            raise _unknown_key() from None
        key = self._by_id.get(secret.issuer)
        if key is None:
            raise _unknown_key()
        if wall >= secret.expires_at:
            raise Denied(401, "client_secret_expired", "The client secret has expired.", "authorization")
        return Caller(key, secret, secret.safety_identifier)


class KeyLimits:
    """What each key has used of its limits, in this process."""

    def __init__(self) -> None:
        self._tokens: dict[str, tuple[float, float]] = {}
        """Key id -> set-ups left, and when that was."""
        self._calls: dict[str, set[str]] = {}
        self._reserved: Counter[str] = Counter()
        """Set-ups under way and open WebSockets."""
        self._swept: dict[str, float] = {}

    def is_full(self, key: Key) -> bool:
        return 0 < key.max_calls <= len(self._calls.get(key.id, ())) + self._reserved[key.id]

    def calls_to_ask_after(self, key: Key, now: float) -> tuple[str, ...]:
        """The calls of a key that is at its limit: some may have ended. None when that was asked just now."""
        if now - self._swept.get(key.id, float("-inf")) < SWEEP_SECONDS:
            return ()
        self._swept[key.id] = now
        return tuple(self._calls.get(key.id, ()))

    def begin(self, key: Key, now: float) -> None:
        """A set-up or a WebSocket begins. Denied (429) when that is too many, or too many a minute."""
        if self.is_full(key):
            raise Denied(
                429, "call_limit_reached", "This API key has as many calls as it may have.", retry_after=5
            )
        if key.calls_per_minute:
            rate = key.calls_per_minute / 60.0
            left, at = self._tokens.get(key.id, (float(key.calls_per_minute), now))
            left = min(float(key.calls_per_minute), left + (now - at) * rate)
            if left < 1.0:
                wait = int((1.0 - left) / rate) + 1
                raise Denied(
                    429,
                    "rate_limit_exceeded",
                    f"This API key may set up {key.calls_per_minute} calls a minute.",
                    retry_after=wait,
                )
            self._tokens[key.id] = (left - 1.0, now)
        self._reserved[key.id] += 1

    def end(self, key: Key, call_id: str = "") -> None:
        """What `begin` began is over; with `call_id` it became that call."""
        self._reserved[key.id] -= 1
        if call_id and key.max_calls:
            self._calls.setdefault(key.id, set()).add(call_id)

    def forget(self, call_id: str) -> None:
        """That call has ended."""
        for calls in self._calls.values():
            calls.discard(call_id)


def token_of(authorization: str, subprotocols: Iterable[str] = ()) -> str:
    """The token of an `Authorization: Bearer` header, else of a WebSocket's subprotocols; "" when none."""
    scheme, _, token = authorization.partition(" ")
    if scheme.lower() == "bearer":
        return token.strip()
    for protocol in subprotocols:
        if protocol.startswith(KEY_PROTOCOL):
            return protocol[len(KEY_PROTOCOL) :]
    return ""


def _unknown_key() -> Denied:
    return Denied(401, "invalid_api_key", "The API key is missing or wrong.", "authorization")
