"""The SDP exchange: one POST of an offer, and what it came to in words for a person. Blocks: for a thread."""

from __future__ import annotations

import http.client
import json
import socket
import ssl
import time
import urllib.parse
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Final

CALLS_PATH: Final = "/v1/realtime/calls"
STATE_SECONDS: Final = 2.0
"""For the state of one call."""
MAX_ANSWER: Final = 256 * 1024
"""Bytes; an answer has two or three KiB."""


class BadUrl(Exception):
    """The message is a sentence for a person."""


class NotAnswered(Exception):
    """There is no answer to this offer; the message says why, and is the same for the same cause."""


@dataclass(frozen=True, slots=True)
class Endpoint:
    """Where offers are posted. `headers` go with each of them."""

    host: str
    port: int | None
    secure: bool
    path: str
    headers: Mapping[str, str]
    timeout: float
    """Seconds for the connection and for each read."""


@dataclass(frozen=True, slots=True)
class Answered:
    sdp: str
    location: str
    """Of the call, as the server names it; empty where it does not."""
    seconds: float
    """From the start of the request, connection included, to the end of the answer."""


def parse_endpoint(url: str, *, model: str, key: str, headers: Mapping[str, str], timeout: float) -> Endpoint:
    """An endpoint of a URL as a person gives it; without a path it is that of the Realtime API. BadUrl."""
    parts = urllib.parse.urlsplit(url)
    try:
        port = parts.port
    except ValueError:
        raise BadUrl(f"{url}: the port is not a number below 65536") from None
    if parts.scheme not in ("http", "https") or not parts.hostname:
        raise BadUrl(f"{url} is no http:// or https:// address, such as http://127.0.0.1:8080{CALLS_PATH}")
    query = urllib.parse.parse_qsl(parts.query)
    if model:
        query.append(("model", model))
    path = parts.path if parts.path.strip("/") else CALLS_PATH
    own = {"Content-Type": "application/sdp"}
    if key:
        own["Authorization"] = f"Bearer {key}"
    return Endpoint(
        parts.hostname,
        port,
        parts.scheme == "https",
        path + (f"?{urllib.parse.urlencode(query)}" if query else ""),
        own | dict(headers),
        timeout,
    )


def post_offer(endpoint: Endpoint, offer: str) -> Answered:
    """POST on a connection of its own, as a new client does. Raises NotAnswered."""
    begun = time.monotonic()
    kind = http.client.HTTPSConnection if endpoint.secure else http.client.HTTPConnection
    connection = kind(endpoint.host, endpoint.port, timeout=endpoint.timeout)
    try:
        connection.request("POST", endpoint.path, offer.encode(), dict(endpoint.headers))
        response = connection.getresponse()
        body = response.read(MAX_ANSWER).decode(errors="replace")
    except TimeoutError:
        raise NotAnswered(f"no HTTP answer within {endpoint.timeout:g} s") from None
    except ssl.SSLError as error:
        raise NotAnswered(f"TLS fails: {error.reason or error}") from None
    except socket.gaierror:
        raise NotAnswered(f"the name {endpoint.host} is not known") from None
    except OSError as error:
        raise NotAnswered(f"no connection: {error.strerror or error}") from None
    except http.client.HTTPException as error:
        raise NotAnswered(f"this is no HTTP: {type(error).__name__}") from None
    finally:
        connection.close()
    if response.status not in (200, 201):
        raise NotAnswered(f"HTTP {response.status}{_explained(body)}")
    return Answered(body, response.headers.get("Location", ""), time.monotonic() - begun)


def why_ended(endpoint: Endpoint, location: str) -> str:
    """What a voicegate says of a call that it has ended: reason and detail. Empty where nothing is to be
    learned.

    Asks the endpoint's own host and nobody else, whatever `location` says.
    """
    kind = http.client.HTTPSConnection if endpoint.secure else http.client.HTTPConnection
    connection = kind(endpoint.host, endpoint.port, timeout=STATE_SECONDS)
    headers = {name: value for name, value in endpoint.headers.items() if name != "Content-Type"}
    try:
        connection.request("GET", urllib.parse.urlsplit(location).path, headers=headers)
        state = json.loads(connection.getresponse().read(MAX_ANSWER))
        reason, detail = state["reason"], state["detail"]
    except (OSError, http.client.HTTPException, ValueError, KeyError, TypeError, RecursionError):
        return ""
    finally:
        connection.close()
    return _printable(": ".join(str(part) for part in (reason, detail) if part))


def _explained(body: str) -> str:
    """The message of the Realtime API's error body, when it is one."""
    try:
        message = json.loads(body)["error"]["message"]
    except (ValueError, KeyError, TypeError, RecursionError):
        return ""
    return f": {_printable(str(message))}"


def _printable(text: str) -> str:
    """One line of 200 characters, and nothing that a terminal would obey."""
    return "".join(letter if letter.isprintable() else " " for letter in text)[:200]
