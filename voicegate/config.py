"""The configuration: one TOML file, every key of which can also be an environment variable.

`[section] key` is `VOICEGATE_SECTION_KEY`; the environment wins over the file, the file over the defaults.
Lists in the environment are separated by commas; a list of tables is JSON.
"""

from __future__ import annotations

import ipaddress
import math
import os
import re
import tomllib
from collections.abc import Collection, Iterator, Mapping
from pathlib import Path
from typing import Any, Literal

import msgspec

from voicegate.checks import pair_problem, redis_problem
from voicegate.proto.keys import ClusterKeys


class ConfigError(Exception):
    """The configuration cannot be used; the message tells a person which key, why, and what to write."""


class _Section(msgspec.Struct, frozen=True, forbid_unknown_fields=True, kw_only=True):
    pass


class LogConfig(_Section, frozen=True):
    level: Literal["debug", "info", "warning", "error"] = "info"
    format: Literal["auto", "json", "console"] = "auto"
    """auto: readable on a terminal, JSON lines elsewhere."""
    client_addresses: bool = False
    """Log client addresses in full. Off: only the network part."""


class KeysConfig(_Section, frozen=True):
    secrets: tuple[str, ...] = ()
    """`ID:SECRET`, ID 0 to 6, SECRET at least 32 characters; the first mints, the others still open. The same
    on every role of a cluster. May stay empty only when all roles run in one process."""


class StaticTransceiver(_Section, frozen=True):
    id: int
    link: str
    control: str
    capacity: int = 200


class RegistryConfig(_Section, frozen=True):
    cluster: int = 1
    redis: str = ""
    """`redis://host:port/db`; empty: the static table below, or in one process no table at all."""
    lease_seconds: float = 6.0
    transceivers: tuple[StaticTransceiver, ...] = ()


class RelayConfig(_Section, frozen=True):
    listen: tuple[str, ...] = ("127.0.0.1:3478",)
    """Public UDP addresses, IPv4 and IPv6."""
    link_listen: str = "127.0.0.1:0"
    """A concrete address (not 0.0.0.0) that the transceivers reach."""
    ops_listen: str = ""
    """HTTP for /healthz, /readyz, /metrics. Empty: none of its own (in one process signaling serves them)."""
    allowed_networks: tuple[str, ...] = ("127.0.0.0/8", "::1/128")
    """Where transceivers may live; a record outside is never sent to."""
    max_flows: int = 100_000
    flow_idle_seconds: float = 60.0
    pin_cpu: int = -1
    """CPU for the data plane's thread; -1: the last one this process may use; -2: not pinned."""


class TransceiverConfig(_Section, frozen=True):
    id: int = 0
    """1 to 1048575; 0: a random one, leased in the registry."""
    link_listen: str = "127.0.0.1:0"
    control_listen: str = "127.0.0.1:0"
    """Internal HTTP: call allocation by signaling, /healthz, /readyz, /metrics."""
    max_calls: int = 200
    max_call_seconds: float = 3600.0
    idle_seconds: float = 35.0
    """A call ends when this long no authenticated packet came (RFC 7675 asks for 30; a background Firefox
    checks every 20 to 30 s)."""
    drain_seconds: float = 0.0
    """How long SIGTERM waits for calls to end by themselves."""


class KeyConfig(_Section, frozen=True):
    """An API key that may do less than a full one."""

    name: str
    """Its name in logs, and what the `ek_` keys it issues refer to. Stays when `key` is changed."""
    key: str
    models: tuple[str, ...] = ("*",)
    """The models it may ask for; the first is taken when a client names none."""
    max_calls: int = 0
    """Calls at once, WebSockets to the agent among them, per signaling process; 0: no limit."""
    calls_per_minute: int = 0
    """Set-ups a minute, per signaling process; 0: no limit."""
    client_events: tuple[str, ...] = ("*",)
    """Realtime events that its clients may send: types, prefixes that end in `*`, or `*`. A sideband may send
    all."""
    server_events: tuple[str, ...] = ("*",)
    """Realtime events that its clients receive; `error` always. A sideband receives all."""


class SignalingConfig(_Section, frozen=True):
    listen: str = "127.0.0.1:8080"
    advertise: tuple[str, ...] = ("127.0.0.1:3478",)
    """The relay's public UDP addresses, in order of preference, exactly as they go into every answer."""
    api_keys: tuple[str, ...] = ()
    """Accepted as `Authorization: Bearer`, without restrictions. Neither these nor `keys`: only loopback is
    served."""
    keys: tuple[KeyConfig, ...] = ()
    """Accepted as well, each with its own restrictions."""
    certificate: str = ""
    private_key: str = ""
    """PEM files; both set: HTTPS."""
    allowed_origins: tuple[str, ...] = ("*",)
    max_setups: int = 64
    """Set-ups under way at once; more get 503 with Retry-After."""
    max_websockets: int = 256
    """WebSockets at once, sidebands and those to the agent; more get 503. At worst some 100 MB each."""
    demo_page: bool = True

    @property
    def has_keys(self) -> bool:
        return bool(self.api_keys or self.keys)


class AgentConfig(_Section, frozen=True):
    url: str = ""
    """`ws://` or `wss://` of a Realtime server; empty: the embedded parrot (one process only)."""
    model: str = ""
    """Put on the URL as `?model=`; a client's `?model=` goes before it."""
    api_key: str = ""
    headers: tuple[str, ...] = ()
    """`Name: value`, sent with the WebSocket handshake."""
    session: str = ""
    """A JSON object sent as the first `session.update`, merged over the audio formats voicegate needs."""
    connect_seconds: float = 10.0
    stall_seconds: float = 20.0
    """A call ends when this long the agent takes nothing of what is sent to it."""


class NetConfig(_Section, frozen=True):
    batching: Literal["auto", "off"] = "auto"
    """auto: recvmmsg/sendmmsg on Linux; off: plain recvfrom/sendto as on every other system."""


class Config(_Section, frozen=True):
    log: LogConfig = LogConfig()
    keys: KeysConfig = KeysConfig()
    registry: RegistryConfig = RegistryConfig()
    relay: RelayConfig = RelayConfig()
    transceiver: TransceiverConfig = TransceiverConfig()
    signaling: SignalingConfig = SignalingConfig()
    agent: AgentConfig = AgentConfig()
    net: NetConfig = NetConfig()


Role = Literal["relay", "transceiver", "signaling"]

ROLES: tuple[Role, ...] = ("relay", "transceiver", "signaling")
DEFAULT_ADVERTISE = SignalingConfig().advertise

_PREFIX = "VOICEGATE_"
_NAME = re.compile(r"[A-Za-z0-9_.-]{1,64}")
_ID_LIMIT = 2**20
"""The ticket has 20 bits for the transceiver."""
_CLUSTER_LIMIT = 2**12
"""And 12 for the cluster."""
_CALL_SECONDS_LIMIT = 2**23 - 600
"""A ticket's expiry counts 2^20 units of 16 s, of which serial arithmetic (RFC 1982) can use half: 97 days,
less the ticket's grace of 300 s, the rounding, and as much again for clocks that differ."""


def load_config(path: Path | None, environ: Mapping[str, str] = os.environ) -> Config:
    """Defaults, overlaid by the file, overlaid by `VOICEGATE_SECTION_KEY`. ConfigError names the key."""
    data: dict[str, Any] = {}
    if path is not None:
        try:
            data = tomllib.loads(path.read_text(encoding="utf-8"))
        except OSError as error:
            raise ConfigError(f"cannot read {path}: {error.strerror}") from error
        except (tomllib.TOMLDecodeError, UnicodeDecodeError) as error:
            raise ConfigError(f"{path} is not TOML: {error}") from error
    _overlay(data, environ)
    for section in data:
        if section not in Config.__struct_fields__:
            known = ", ".join(Config.__struct_fields__)
            raise ConfigError(f"there is no section [{section}]; the sections are {known}")
    try:
        return msgspec.convert(data, type=Config)
    except msgspec.ValidationError as error:
        raise ConfigError(_in_words(str(error))) from error


def check(config: Config, roles: Collection[Role]) -> list[str]:
    """Everything that keeps these roles from starting, one sentence each. All three roles: one process."""
    together = set(roles) == set(ROLES)
    problems = list(_check_finite(config))
    if problems:
        return problems  # no comparison below says anything about a nan
    problems = [*_check_keys(config, together), *_check_registry(config, together)]
    if "relay" in roles:
        problems += _check_relay(config.relay)
    if "transceiver" in roles:
        problems += _check_transceiver(config)
        problems += _check_agent(config.agent, together)
    if "signaling" in roles:
        problems += _check_signaling(config.signaling)
        if "transceiver" not in roles:
            # Without an agent's URL it serves calls all the same, but no WebSocket to the agent.
            problems += _check_agent(config.agent, together=True)
    return problems


def parse_listen(text: str) -> tuple[str, int]:
    """`127.0.0.1:80` or `[::1]:80` -> (host, port); ValueError with a sentence when it is neither.

    The host is an IP address: a name would be looked up at a moment that nobody chose.
    """
    host, _, port = text.rpartition(":")
    if host.startswith("[") and host.endswith("]"):
        host = host[1:-1]
    elif ":" in host:
        raise ValueError(f"{text!r}: an IPv6 address needs brackets, as in [::1]:8080")
    if not host or not port.isascii() or not port.isdigit() or int(port) > 65535:
        raise ValueError(f"{text!r} is not of the form address:port")
    try:
        ipaddress.ip_address(host)
    except ValueError:
        raise ValueError(f"{text!r}: {host!r} is not an IP address") from None
    return host, int(port)


def _overlay(data: dict[str, Any], environ: Mapping[str, str]) -> None:
    """Put what the environment says into the file's data. An unknown variable is an error: it is a typo."""
    for variable in sorted(environ):
        if not variable.startswith(_PREFIX):
            continue
        section, _, key = variable.removeprefix(_PREFIX).lower().partition("_")
        kind = _key_types(section).get(key)
        if kind is None:
            raise ConfigError(f"{variable} names no key of the configuration")
        table = data.setdefault(section, {})
        if not isinstance(table, dict):
            raise ConfigError(f"[{section}] must be a table")
        table[key] = _from_text(variable, environ[variable], kind)


def _key_types(section: str) -> dict[str, Any]:
    for field in msgspec.structs.fields(Config):
        if field.name == section:
            return {key.name: key.type for key in msgspec.structs.fields(field.type)}
    return {}


def _from_text(variable: str, text: str, kind: Any) -> Any:
    if kind == tuple[str, ...]:
        return [item.strip() for item in text.split(",") if item.strip()]
    try:
        if kind in (tuple[StaticTransceiver, ...], tuple[KeyConfig, ...]):
            return msgspec.json.decode(text, type=list[dict[str, Any]])
        return msgspec.convert(text, type=kind, strict=False)
    except msgspec.DecodeError as error:
        raise ConfigError(f"{variable}: {error}") from error


def _in_words(error: str) -> str:
    """`Expected `int`, got `str` - at `$.relay.max_flows`` -> `relay.max_flows: Expected ...`."""
    message, _, path = error.partition(" - at `$.")
    return f"{path.rstrip('`')}: {message}" if path else message


def _check_finite(config: Config) -> Iterator[str]:
    for section in Config.__struct_fields__:
        for key, value in msgspec.structs.asdict(getattr(config, section)).items():
            if isinstance(value, float) and not math.isfinite(value):
                yield f"{section}.{key} must be a finite number, not {value}"


def _check_keys(config: Config, together: bool) -> Iterator[str]:
    if not config.keys.secrets and not together:
        yield "keys.secrets is empty: roles that run apart share one, as in 0:$(openssl rand -hex 32)"
    if config.keys.secrets:
        try:
            ClusterKeys.parse(config.keys.secrets)
        except ValueError as error:
            yield f"keys.secrets: {error}"


def _check_registry(config: Config, together: bool) -> Iterator[str]:
    registry = config.registry
    if not 0 <= registry.cluster < _CLUSTER_LIMIT:
        yield f"registry.cluster must be from 0 to {_CLUSTER_LIMIT - 1}"
    if registry.redis and (problem := redis_problem(registry.redis)):
        yield f"registry.redis {problem}"
    if not 1.0 <= registry.lease_seconds <= 60.0:
        yield "registry.lease_seconds must be from 1 to 60"
    if not registry.redis and not registry.transceivers and not together:
        yield "set registry.redis or list registry.transceivers: roles that run apart find each other there"
    seen = set()
    for entry in registry.transceivers:
        name = f"registry.transceivers id {entry.id}"
        if not 1 <= entry.id < _ID_LIMIT or entry.id in seen:
            yield f"{name}: ids are different numbers from 1 to {_ID_LIMIT - 1}"
        seen.add(entry.id)
        yield from _check_concrete(f"{name}: link", entry.link, fixed_port=True)
        yield from _check_concrete(f"{name}: control", entry.control, fixed_port=True)
        if entry.capacity < 1:
            yield f"{name}: capacity must be at least 1"


def _check_relay(relay: RelayConfig) -> Iterator[str]:
    if not relay.listen:
        yield "relay.listen is empty: it needs at least one address:port"
    for listen in relay.listen:
        yield from _check_listen("relay.listen", listen)
    yield from _check_concrete("relay.link_listen", relay.link_listen)
    if relay.ops_listen:
        yield from _check_listen("relay.ops_listen", relay.ops_listen)
    for network in relay.allowed_networks:
        try:
            ipaddress.ip_network(network)
        except ValueError as error:
            yield f"relay.allowed_networks: {error}"
    if relay.max_flows < 1:
        yield "relay.max_flows must be at least 1"
    if relay.flow_idle_seconds <= 0:
        yield "relay.flow_idle_seconds must be more than 0"
    if relay.pin_cpu < -2:
        yield "relay.pin_cpu must be a CPU number, -1 (the last one) or -2 (not pinned)"


def _check_transceiver(config: Config) -> Iterator[str]:
    settings, registry = config.transceiver, config.registry
    if not 0 <= settings.id < _ID_LIMIT:
        yield f"transceiver.id must be from 1 to {_ID_LIMIT - 1}, or 0 for a random one"
    yield from _check_concrete("transceiver.link_listen", settings.link_listen)
    yield from _check_concrete("transceiver.control_listen", settings.control_listen)
    if (
        registry.transceivers
        and not registry.redis
        and all(e.id != settings.id for e in registry.transceivers)
    ):
        yield f"transceiver.id {settings.id} is not in registry.transceivers"
    if settings.max_calls < 1:
        yield "transceiver.max_calls must be at least 1"
    for key in ("max_call_seconds", "idle_seconds"):
        if getattr(settings, key) <= 0:
            yield f"transceiver.{key} must be more than 0"
    if settings.max_call_seconds > _CALL_SECONDS_LIMIT:
        yield f"transceiver.max_call_seconds must be at most {_CALL_SECONDS_LIMIT}, which is 97 days"
    if settings.drain_seconds < 0:
        yield "transceiver.drain_seconds must not be negative"


def _check_agent(agent: AgentConfig, together: bool) -> Iterator[str]:
    if not agent.url and not together:
        yield "agent.url is empty: the embedded parrot lives only where all roles run in one process"
    if agent.url and not agent.url.startswith(("ws://", "wss://")):
        yield "agent.url must begin with ws:// or wss://"
    for header in agent.headers:
        name, colon, _ = header.partition(":")
        if not colon or not name.strip() or "\n" in header or "\r" in header:
            yield "agent.headers: each must be of the form Name: value"
    if agent.session:
        try:
            msgspec.json.decode(agent.session, type=dict[str, Any])
        except msgspec.DecodeError as error:
            yield f"agent.session must be a JSON object: {error}"
    for key in ("connect_seconds", "stall_seconds"):
        if getattr(agent, key) <= 0:
            yield f"agent.{key} must be more than 0"


def _check_signaling(signaling: SignalingConfig) -> Iterator[str]:
    problems = list(_check_listen("signaling.listen", signaling.listen))
    yield from problems
    if not problems and not signaling.has_keys:
        host, _ = parse_listen(signaling.listen)
        if not ipaddress.ip_address(host).is_loopback:
            yield f"signaling.listen {signaling.listen} is not loopback: that needs signaling.api_keys"
    if any(not key.strip() or len(key) < 16 for key in signaling.api_keys):
        yield "signaling.api_keys: a key must have at least 16 characters"
    yield from _check_key_tables(signaling)
    # What an Authorization header can carry (RFC 6750 section 2.1 is stricter still).
    if any(not "!" <= character <= "~" for key in signaling.api_keys for character in key):
        yield "signaling.api_keys: a key must be of ASCII letters, digits and signs, without spaces"
    if not signaling.advertise:
        yield "signaling.advertise is empty: clients would have no address to send media to"
    for address in signaling.advertise:
        yield from _check_concrete("signaling.advertise", address, fixed_port=True)
    yield from _check_certificate(signaling)
    for origin in signaling.allowed_origins:
        if origin != "*" and not origin.startswith(("http://", "https://")):
            yield f"signaling.allowed_origins: {origin!r} is neither * nor like https://example.com"
    for key in ("max_setups", "max_websockets"):
        if getattr(signaling, key) < 1:
            yield f"signaling.{key} must be at least 1"


def _check_key_tables(signaling: SignalingConfig) -> Iterator[str]:
    names: set[str] = set()
    for entry in signaling.keys:
        name = f"signaling.keys {entry.name!r}"
        if not _NAME.fullmatch(entry.name) or entry.name in names:
            yield f"{name}: names are different words of up to 64 letters, digits, '_', '-' or '.'"
        names.add(entry.name)
        if not entry.key.strip() or len(entry.key) < 16:
            yield f"{name}: a key must have at least 16 characters"
        if not entry.models:
            yield f'{name}: models is empty; write the models, or ["*"] for all'
        if entry.max_calls < 0 or entry.calls_per_minute < 0:
            yield f"{name}: max_calls and calls_per_minute must not be negative"
    given = [*signaling.api_keys, *(entry.key for entry in signaling.keys)]
    if len(set(given)) != len(given):
        yield "signaling.keys: a key is there twice"
    if any(key.startswith("ek_") for key in given):
        yield "signaling.api_keys and signaling.keys: ek_ is for the keys that voicegate makes"


def _check_certificate(signaling: SignalingConfig) -> Iterator[str]:
    usable = 0
    for key, other in (("certificate", "private_key"), ("private_key", "certificate")):
        path = getattr(signaling, key)
        if path and not getattr(signaling, other):
            yield f"signaling.{key} is set without signaling.{other}: HTTPS needs both"
        if path and not (os.path.exists(path) and os.access(path, os.R_OK)):
            yield f"signaling.{key}: cannot read {path}"
        elif path and not os.path.isfile(path):
            yield f"signaling.{key}: {path} is not a file"
        elif path:
            usable += 1
    if usable == 2 and (problem := pair_problem(signaling.certificate, signaling.private_key)):
        yield problem


def _check_listen(key: str, text: str) -> Iterator[str]:
    try:
        parse_listen(text)
    except ValueError as error:
        yield f"{key}: {error}"


def _check_concrete(key: str, text: str, fixed_port: bool = False) -> Iterator[str]:
    """An address that others are told, so it must be one that they can send to."""
    problems = list(_check_listen(key, text))
    yield from problems
    if not problems:
        host, port = parse_listen(text)
        if ipaddress.ip_address(host).is_unspecified:
            yield f"{key}: {text} names no machine; write the address that the others reach"
        if fixed_port and port == 0:
            yield f"{key}: {text} needs a port"
