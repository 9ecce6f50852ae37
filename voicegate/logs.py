"""Structured logs on stderr: JSON lines off a terminal, readable text on one.

    log = get_logger(__name__).bind(call=call_id)
    log.info("call ended", reason="hangup", seconds=12.5)

Three promises, kept by one processor (`_clean`) that every line passes, ours and those of the libraries that
log through the standard library's `logging`:

* what a field's name calls a secret (keys, passwords, tickets, SDP, ...) never leaves the process, and
  neither does what looks like one inside free text;
* a client's address is cut to its network part unless `log.client_addresses` is set: fields whose name says
  `client`, `peer` or `remote`, and every address in a library's free text;
* one event is one line: control characters (a forged line, a terminal escape) are escaped, and long values
  cut.
"""

from __future__ import annotations

import ipaddress
import json
import logging
import re
import sys
from collections.abc import Mapping, MutableMapping
from typing import Any, TextIO, cast

import structlog
from structlog.typing import FilteringBoundLogger, Processor

from voicegate.config import LogConfig

REDACTED = "[redacted]"
MAX_TEXT = 2_000
"""Characters of one value; an SDP or an event that slips into a message is cut here, a usual reason is
not."""
MAX_TRACEBACK = 16_000
"""Some 150 lines: an exception group with a handful of causes."""
MAX_DEPTH = 4
"""Nesting that is shown; an event or a header table is two or three deep."""

_SECRET_NAME = re.compile(
    r"secret|key|pass(word|wd)|pwd|authorization|cookie|credential|token|ufrag|ticket|sdp", re.IGNORECASE
)
_NOT_SECRET = frozenset({"key_id"})  # the number of a key is not the key
_CLIENT_NAME = re.compile(r"client|peer|remote", re.IGNORECASE)
_SECRET_TEXT = re.compile(
    r"(?P<label>\bbearer\s+|\bek_|\bsk-|ice-pwd:|ice-ufrag:|\binline:|://[^\s/@:]*:(?=[^\s/@]+@))[^\s\"'@,;]+",
    re.IGNORECASE,
)
_ADDRESS_TEXT = re.compile(
    r"(?<![\w.:])(?:\d{1,3}(?:\.\d{1,3}){3}|(?=[0-9a-f:]*:[0-9a-f:]*:)[0-9a-f:]{3,39})(?![\w.])",
    re.IGNORECASE,
)


def first_error(error: BaseException) -> BaseException:
    """What is to be told of an error that nurseries may have wrapped in groups: the first in them."""
    while isinstance(error, BaseExceptionGroup):
        error = error.exceptions[0]
    return error


def configure(config: LogConfig, stream: TextIO | None = None) -> None:
    """Set up this process's logs; `stream` is stderr unless a test gives another."""
    target = stream if stream is not None else sys.stderr
    readable = config.format == "console" or (config.format == "auto" and target.isatty())
    level = getattr(logging, config.level.upper())
    clean = _Cleaner(config.client_addresses)
    render: list[Processor] = (
        [structlog.dev.ConsoleRenderer(colors=target.isatty())] if readable else [_json_line]
    )
    shared: list[Processor] = [
        structlog.contextvars.merge_contextvars,
        structlog.processors.add_log_level,
        structlog.processors.TimeStamper(fmt="iso", utc=True),
        structlog.processors.format_exc_info,
    ]
    structlog.configure(
        processors=[_add_name, *shared, clean, *render],
        wrapper_class=structlog.make_filtering_bound_logger(level),
        logger_factory=lambda *names: _LineWriter(target, *names),
        cache_logger_on_first_use=False,
    )
    handler = logging.StreamHandler(target)
    handler.setFormatter(
        structlog.stdlib.ProcessorFormatter(
            foreign_pre_chain=[*shared, structlog.stdlib.add_logger_name, _mark_foreign],
            processors=[structlog.stdlib.ProcessorFormatter.remove_processors_meta, clean, *render],
        )
    )
    root = logging.getLogger()
    root.handlers[:] = [handler]
    # Libraries are heard from warnings up: their debug lines hold whole headers and frames.
    root.setLevel(max(level, logging.WARNING))


def get_logger(name: str) -> FilteringBoundLogger:
    """A logger that carries `logger=name`; `.bind(call=call_id)` gives one that carries the call too."""
    return cast(FilteringBoundLogger, structlog.get_logger(name))


def redact_host(host: str) -> str:
    """`203.0.113.7` -> `203.0.113.x`, an IPv6 address to its first 48 bits, anything else to `[redacted]`."""
    try:
        address = ipaddress.ip_address(host.strip("[]").partition("%")[0])
    except ValueError:
        return REDACTED
    if isinstance(address, ipaddress.IPv6Address) and address.ipv4_mapped is not None:
        address = address.ipv4_mapped
    if isinstance(address, ipaddress.IPv4Address):
        return str(address).rpartition(".")[0] + ".x"
    return ":".join(address.exploded.split(":")[:3]) + "::x"


class _LineWriter:
    """One line per event; a log that cannot be written (a closed pipe) must not end a call."""

    def __init__(self, target: TextIO, name: str = "") -> None:
        self._target = target
        self.name = name

    def msg(self, line: str) -> None:
        try:
            self._target.write(line + "\n")
            self._target.flush()
        except (OSError, ValueError):
            pass  # nowhere left to say so

    debug = info = warning = warn = error = err = critical = exception = fatal = log = msg


class _Cleaner:
    """The processor behind the module's three promises; what it returns is JSON-safe."""

    def __init__(self, client_addresses: bool) -> None:
        self._client_addresses = client_addresses

    def __call__(self, _: Any, __: str, event: MutableMapping[str, Any]) -> MutableMapping[str, Any]:
        foreign = event.pop("_foreign", False) and not self._client_addresses
        clean: dict[str, Any] = {}
        for name, value in event.items():
            cleaned = self._value(str(name), value, 0)
            if isinstance(cleaned, str) and (foreign or name == "exception") and name != "timestamp":
                cleaned = cleaned if self._client_addresses else _ADDRESS_TEXT.sub(_cut_address, cleaned)
            clean[str(name)] = cleaned
        return clean

    def _value(self, name: str, value: Any, depth: int) -> Any:
        if value is None or isinstance(value, bool):
            return value
        if _SECRET_NAME.search(name) and name not in _NOT_SECRET:
            return REDACTED
        if _CLIENT_NAME.search(name):
            return self._address(value)
        if isinstance(value, int | float):
            return value
        if isinstance(value, bytes | bytearray | memoryview):
            return bytes(value[:64]).hex()
        if isinstance(value, Mapping | list | tuple | set | frozenset) and depth >= MAX_DEPTH:
            return "…"
        if isinstance(value, Mapping):
            return {str(k): self._value(str(k), v, depth + 1) for k, v in value.items()}
        if isinstance(value, list | tuple | set | frozenset):
            return [self._value(name, item, depth + 1) for item in value]
        return _clean_text(value if isinstance(value, str) else repr(value), keep_lines=name == "exception")

    def _address(self, value: Any) -> Any:
        """Addresses come as text (`host`, `host:port`), as (host, port) or packed (`proto.address`)."""
        if isinstance(value, bytes) and len(value) in (6, 18):
            host, port = str(ipaddress.ip_address(value[:-2])), str(int.from_bytes(value[-2:], "big"))
        elif isinstance(value, tuple | list) and value:
            host, port = str(value[0]), ":".join(str(item) for item in value[1:2])
        elif isinstance(value, int | float):
            return value  # a count of clients
        else:
            host, port = _split_port(str(value))
        if not self._client_addresses:
            return redact_host(host)
        return _clean_text(f"[{host}]:{port}" if port and ":" in host else f"{host}:{port}" if port else host)


def _split_port(text: str) -> tuple[str, str]:
    if text.startswith("[") and "]" in text:
        host, _, rest = text[1:].partition("]")
        return host, rest.lstrip(":")
    if text.count(":") == 1:
        host, _, port = text.partition(":")
        return host, port
    return text, ""


def _cut_address(match: re.Match[str]) -> str:
    cut = redact_host(match[0])
    return match[0] if cut == REDACTED else cut  # a time of day or a version is no address


def _clean_text(text: str, keep_lines: bool = False) -> str:
    text = _SECRET_TEXT.sub(lambda match: match["label"] + REDACTED, text)
    limit = MAX_TRACEBACK if keep_lines else MAX_TEXT
    if len(text) > limit:
        text = text[:limit] + "…"
    if text.isprintable():
        return text
    return "".join(
        char
        if char.isprintable() or (keep_lines and char == "\n")
        else char.encode("unicode_escape").decode()
        for char in text
    )


def _json_line(_: Any, __: str, event: MutableMapping[str, Any]) -> str:
    return json.dumps(event, separators=(",", ":"))


def _add_name(logger: Any, __: str, event: MutableMapping[str, Any]) -> MutableMapping[str, Any]:
    event["logger"] = logger.name
    return event


def _mark_foreign(_: Any, __: str, event: MutableMapping[str, Any]) -> MutableMapping[str, Any]:
    event["_foreign"] = True
    return event
