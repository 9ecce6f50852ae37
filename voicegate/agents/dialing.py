"""Where an agent is dialled, with what headers, settings and audio formats: from the configuration."""

from __future__ import annotations

import re
from typing import Any, Final
from urllib.parse import parse_qs, urlencode, urlsplit, urlunsplit

import msgspec

from voicegate import __version__
from voicegate.config import AgentConfig, ConfigError
from voicegate.proto import realtime

_TOKEN: Final = re.compile(r"[!#$%&'*+.^_`|~0-9A-Za-z-]+")  # RFC 9110 5.6.2


def check_settings(settings: AgentConfig) -> None:
    """Raises ConfigError with a sentence for a person. An empty URL is not judged here."""
    if settings.url:
        _address(settings.url, settings.model)
    _headers(settings)
    configured_session(settings)


def dial(settings: AgentConfig, model: str = "") -> tuple[str, list[tuple[str, str]]]:
    """The address and the headers with which the agent is dialled. Raises ConfigError."""
    return _address(settings.url, model or settings.model), _headers(settings)


def audio_formats(settings: AgentConfig) -> realtime.Formats:
    """What the agent hears and speaks."""
    return {
        "input": realtime.audio_format(settings.audio_format_in, settings.audio_rate_in),
        "output": realtime.audio_format(settings.audio_format_out, settings.audio_rate_out),
    }


def configured_session(settings: AgentConfig) -> dict[str, Any]:
    """`agent.session` as an object. Raises ConfigError."""
    if not settings.session.strip():
        return {}
    try:
        return msgspec.json.decode(settings.session, type=dict[str, Any])
    except (msgspec.MsgspecError, UnicodeError, RecursionError) as error:
        raise ConfigError(f"agent.session is not a JSON object: {error}") from None


def _address(url: str, model: str) -> str:
    try:
        parts = urlsplit(url)
        usable = parts.scheme in ("ws", "wss") and bool(parts.hostname) and parts.port != 0
        url.encode("ascii")
    except ValueError:
        usable = False
    if not usable or any(c <= " " or c == "\x7f" for c in url):
        raise ConfigError("agent.url is not usable: write ws://host:port/path or wss://host/path")
    if model and "model" not in parse_qs(parts.query):
        query = "&".join(filter(None, (parts.query, urlencode({"model": model}))))
        parts = parts._replace(query=query)
    return urlunsplit(parts)


def _headers(settings: AgentConfig) -> list[tuple[str, str]]:
    headers = [("User-Agent", f"voicegate/{__version__}")]
    if settings.api_key:
        headers.append(("Authorization", f"Bearer {settings.api_key}"))
    for line in settings.headers:
        name, colon, value = line.partition(":")
        if not colon or not _TOKEN.fullmatch(name):
            raise ConfigError("agent.headers: write each header as `Name: value`")
        headers.append((name, value.strip()))
    for _, value in headers:
        if not value.isascii() or not value.isprintable():
            raise ConfigError("agent.api_key or agent.headers hold characters that HTTP headers cannot")
    return headers
