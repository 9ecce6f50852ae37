"""What signaling decides, without sockets or clock: who may ask, whether it is an offer, who gets the call.

**Origins.** The Realtime contract is called from web pages of any origin, so CORS is `*`: with API keys
that gives nothing away, for a page has to hold a key and there are no cookies. Without keys the gateway
trusts whoever can reach loopback, and every web page that a developer visits can make the browser do
that. So without keys `*` means pages of this machine only (an `Origin` whose host is loopback), and the
`Host` header must be a loopback name too, which stops a foreign name that was re-bound to 127.0.0.1, and
a public reverse proxy in front of a gateway without keys. Whoever wants more sets a key, or names the
origins in `signaling.allowed_origins`.
"""

from __future__ import annotations

import hmac
import ipaddress
from collections.abc import Iterable, Mapping, Sequence
from typing import Protocol, TypeVar
from urllib.parse import urlsplit

from voicegate.proto.errors import BadOffer

OFFER_LIMIT = 64 * 1024
"""Bytes. Chromium's largest audio-and-data offers are below 10 KB; the transceiver's parser has the same
limit."""
ALLOWED_HEADERS = frozenset(
    {"accept", "authorization", "content-type", "openai-safety-identifier", "x-openai-agents-sdk"}
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


def read_offer_untrusted(content_type: str, body: bytes) -> str:
    """The SDP of a request, or BadOffer with the HTTP status that says what is wrong."""
    media_type = content_type.partition(";")[0].strip().lower()
    if media_type != "application/sdp":
        raise BadOffer(
            "unsupported_content_type",
            f"Send the offer as application/sdp, not as {media_type[:80] or 'nothing'}.",
            param="content-type",
            status=415,
        )
    if not body.strip():
        raise BadOffer("empty_offer", "The request has no body; it must be an SDP offer.", param="body")
    try:
        return body.decode()
    except UnicodeDecodeError:
        raise BadOffer("invalid_sdp", "The offer is not UTF-8 text.", param="body") from None


def key_is_known(authorization: str, api_keys: Sequence[str]) -> bool:
    """Whether `Authorization: Bearer` holds one of the keys; the time does not tell which, or how nearly."""
    scheme, _, given = authorization.partition(" ")
    token = given.strip().encode("utf-8", "replace")
    found = False
    for key in api_keys:
        found |= hmac.compare_digest(token, key.encode())
    return found and scheme.lower() == "bearer"


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
