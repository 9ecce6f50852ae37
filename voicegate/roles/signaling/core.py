"""What signaling decides, without sockets or clock: whether it is an offer, who gets the call, which pages.

**Origins.** The Realtime contract is called from web pages of any origin, so CORS is `*`: with API keys
that gives nothing away, for a page has to hold a key and there are no cookies. Without keys the gateway
trusts whoever can reach loopback, and every web page that a developer visits can make the browser do
that. So without keys `*` means pages of this machine only (an `Origin` whose host is loopback), and the
`Host` header must be a loopback name too, which stops a foreign name that was re-bound to 127.0.0.1, and
a public reverse proxy in front of a gateway without keys. Whoever wants more sets a key, or names the
origins in `signaling.allowed_origins`.
"""

from __future__ import annotations

import ipaddress
from collections.abc import Iterable, Mapping, Sequence
from typing import Any, NamedTuple, Protocol, TypeVar
from urllib.parse import urlsplit

import msgspec

from voicegate.proto.client_secret import DEFAULT_SECONDS, MAX_SECONDS, MAX_SESSION_BYTES, MIN_SECONDS
from voicegate.proto.errors import BadOffer, BadPacket
from voicegate.proto.multipart import parse_multipart_untrusted

OFFER_LIMIT = 64 * 1024
"""Bytes. Chromium's largest audio-and-data offers are below 10 KB; the transceiver's parser has the same
limit."""
BODY_LIMIT = OFFER_LIMIT + MAX_SESSION_BYTES + 16 * 1024
"""Bytes of a request: an offer, a session, and what multipart puts around them."""
MAX_STREAM = 65_534
"""The highest data channel id (RFC 8832 section 4: 65535 is not one)."""
ALLOWED_HEADERS = frozenset(
    {
        "accept",
        "authorization",
        "content-type",
        "openai-beta",
        "openai-organization",
        "openai-project",
        "openai-safety-identifier",
        "x-openai-agents-sdk",
        "x-voicegate-record",
    }
)
ALLOWED_HEADER_PREFIX = "x-stainless-"
MAX_ALLOWED_HEADERS = 40
"""The OpenAI clients send about ten `x-stainless-*`; a preflight is not a place to store text."""


class Placeable(Protocol):
    """What placement needs to know of a transceiver (`voicegate.net.registry.TransceiverRecord` has it)."""

    @property
    def id(self) -> int: ...
    @property
    def cluster(self) -> int: ...
    @property
    def calls(self) -> int: ...
    @property
    def capacity(self) -> int: ...
    @property
    def draining(self) -> bool: ...


T = TypeVar("T", bound=Placeable)


def place(records: Iterable[T], cluster: int, first: int, second: int) -> tuple[T, ...]:
    """The transceivers to ask for a call, the better one first; none when no one takes calls.

    Loads may be stale (a static table's always are), so where all seem full two are asked all the same: a
    transceiver knows best, and its refusal is cheap.

    Power of two choices: `first` and `second` are random numbers of any size that pick two different
    ones, and the load ratio decides between them. That spreads calls nearly as well as always taking the
    least loaded, without every signaling instance running to the same one on the same stale number.
    """
    open_ones = sorted(
        (r for r in records if r.cluster == cluster and not r.draining), key=lambda record: record.id
    )
    free = [r for r in open_ones if r.calls < r.capacity] or open_ones
    if len(free) < 2:
        return tuple(free)
    at = first % len(free)
    other = second % (len(free) - 1)
    pair = (free[at], free[other + (other >= at)])
    return tuple(sorted(pair, key=lambda record: record.calls / max(record.capacity, 1)))


class CallOffer(NamedTuple):
    """The body of a request for a call."""

    sdp: str
    session: dict[str, Any] | None


def read_offer_untrusted(content_type: str, body: bytes) -> CallOffer:
    """SDP, or a form with a part `sdp` and perhaps a part `session`; the parts' own types do not matter, for
    clients send all kinds. BadOffer with the HTTP status that says what is wrong."""
    media_type = content_type.partition(";")[0].strip().lower()
    if media_type == "application/sdp":
        return CallOffer(_read_sdp(body, "body"), None)
    if media_type != "multipart/form-data":
        raise BadOffer(
            "unsupported_content_type",
            "Send the offer as application/sdp or in multipart/form-data,"
            f" not as {media_type[:80] or 'nothing'}.",
            param="content-type",
            status=415,
        )
    try:
        parts = parse_multipart_untrusted(content_type, body)
    except BadPacket as error:
        what = error.reason.removeprefix("multipart_")
        raise BadOffer(
            "invalid_multipart", f"The form cannot be read (its {what} is wrong).", param="body"
        ) from None
    if "sdp" not in parts:
        raise BadOffer("missing_sdp", "The form has no part named sdp.", param="sdp")
    session = None
    if "session" in parts and parts["session"].body.strip():
        session = _read_object(parts["session"].body, "session")
    return CallOffer(_read_sdp(parts["sdp"].body, "sdp"), session)


def read_stream_id_untrusted(text: str | None) -> int | None:
    """`?dcid=`, the id of a data channel that both sides know of beforehand."""
    if text is None:
        return None
    if not (text.isascii() and text.isdigit() and len(text) <= 5 and int(text) <= MAX_STREAM):
        raise BadOffer("invalid_dcid", f"dcid must be a number from 0 to {MAX_STREAM}.", param="dcid")
    return int(text)


def read_flag_untrusted(text: str | None, name: str) -> bool:
    """A header that is `true`, `false` or not there."""
    word = (text or "false").strip().lower()
    if word not in ("true", "false"):
        raise BadOffer("invalid_header", f"{name} must be true or false.", param=name)
    return word == "true"


class SecretRequest(NamedTuple):
    """The body of `POST /v1/realtime/client_secrets`."""

    seconds: int
    session: dict[str, Any]


def read_secret_request_untrusted(body: bytes) -> SecretRequest:
    """An empty body asks for the defaults. BadOffer for what is not such a request."""
    wanted = _read_object(body, "body") if body.strip() else {}
    session = wanted.get("session")
    if session is None:
        session = {}
    if not isinstance(session, dict):
        raise BadOffer("invalid_session", "session must be an object.", param="session")
    if not isinstance(session.get("type", ""), str) or not isinstance(session.get("model", ""), str):
        raise BadOffer("invalid_session", "The session's type and model must be strings.", param="session")
    after = wanted.get("expires_after")
    after = {} if after is None else after
    if not isinstance(after, dict) or after.get("anchor", "created_at") != "created_at":
        raise BadOffer(
            "invalid_expires_after",
            'expires_after must be an object with the anchor "created_at".',
            param="expires_after.anchor",
        )
    seconds = after.get("seconds", DEFAULT_SECONDS)
    if type(seconds) is not int or not MIN_SECONDS <= seconds <= MAX_SECONDS:
        raise BadOffer(
            "invalid_expires_after",
            f"seconds must be a number from {MIN_SECONDS} to {MAX_SECONDS}.",
            param="expires_after.seconds",
        )
    return SecretRequest(seconds, session)


def _read_sdp(data: bytes, param: str) -> str:
    if len(data) > OFFER_LIMIT:
        raise BadOffer("offer_too_large", f"The offer has more than {OFFER_LIMIT} bytes.", param=param)
    if not data.strip():
        raise BadOffer("empty_offer", "There is no SDP offer in the request.", param=param)
    try:
        return data.decode()
    except UnicodeDecodeError:
        raise BadOffer("invalid_sdp", "The offer is not UTF-8 text.", param=param) from None


def _read_object(data: bytes, param: str) -> dict[str, Any]:
    if len(data) > MAX_SESSION_BYTES:
        raise BadOffer(
            "session_too_large", f"The session has more than {MAX_SESSION_BYTES} bytes.", param=param
        )
    try:
        return _OBJECT.decode(data)
    except (msgspec.DecodeError, UnicodeError, RecursionError):
        code = "invalid_session" if param == "session" else "invalid_json"
        raise BadOffer(code, f"The {param} must be a JSON object.", param=param) from None


def is_loopback(host: str) -> bool:
    """An IP address of this machine's loopback, IPv4-mapped too, or a name that means it (RFC 6761)."""
    host = host.strip("[]").lower().rstrip(".")
    if host == "localhost" or host.endswith(".localhost"):
        return True
    try:
        address = ipaddress.ip_address(host)
    except ValueError:
        return False
    if isinstance(address, ipaddress.IPv6Address) and address.ipv4_mapped is not None:
        address = address.ipv4_mapped
    return address.is_loopback


def host_is_loopback(header: str) -> bool:
    """The same for a `Host` header, which may have a port."""
    return is_loopback(_host_of(f"//{header}"))


def origin_is_allowed(origin: str, allowed: Sequence[str], has_keys: bool) -> bool:
    """Whether a page of this origin may call us. No `Origin`: not a page of another origin."""
    if not origin or origin in allowed:
        return True
    return "*" in allowed and (has_keys or is_loopback(_host_of(origin)))


def cors_headers(origin: str, allowed: Sequence[str], has_keys: bool) -> dict[str, str]:
    """The headers that let a page read our answer; none for a foreign origin."""
    if not origin or not origin_is_allowed(origin, allowed, has_keys):
        return {"Vary": "Origin"}
    public = "*" in allowed and has_keys
    return {
        "Access-Control-Allow-Origin": "*" if public else origin,
        # Without it a browser hides Location, and the clients' call id with it.
        "Access-Control-Expose-Headers": "Location, Retry-After",
        "Vary": "Origin",
    }


def preflight_headers(asked: str) -> Mapping[str, str]:
    """The answer to a preflight that asks for these headers (`*` would not cover Authorization)."""
    names = [name.strip().lower() for name in asked[:4096].split(",")]
    granted = [
        name
        for name in names
        if name in ALLOWED_HEADERS
        or (name.startswith(ALLOWED_HEADER_PREFIX) and name.replace("-", "").isalnum())
    ]
    return {
        "Access-Control-Allow-Methods": "GET, POST, DELETE",
        "Access-Control-Allow-Headers": ", ".join(
            sorted(ALLOWED_HEADERS | set(granted[:MAX_ALLOWED_HEADERS]))
        ),
        "Access-Control-Max-Age": "7200",
    }


def _host_of(url: str) -> str:
    try:
        return urlsplit(url).hostname or ""
    except ValueError:
        return ""


_OBJECT = msgspec.json.Decoder(dict[str, Any])
