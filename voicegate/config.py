"""The configuration: one TOML file, every key of which can also be an environment variable.

`[section] key` is `VOICEGATE_SECTION_KEY`; the environment wins over the file, the file over the defaults.
Lists in the environment are separated by commas; a list of tables is JSON.
"""

from __future__ import annotations

import ipaddress
import os
import tomllib
from collections.abc import Mapping
from pathlib import Path
from typing import Any, Literal

import msgspec

from voicegate.config_words import did_you_mean, in_words, remedy
from voicegate.proto.address import split_transport


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
    file: str = ""
    """A file with one `ID:SECRET` a line instead of `secrets`; read again when it changes, so that keys
    rotate without a restart."""


class StaticTransceiver(_Section, frozen=True):
    id: int
    link: str
    control: str
    capacity: int = 200


class StaticRelay(_Section, frozen=True):
    """A relay of this or another cluster, where no Redis tells of it."""

    cluster: int
    links: tuple[str, ...]
    """Its link sockets, one per worker."""
    addresses: tuple[str, ...] = ()
    """Its public addresses, as in `relay.advertise`."""
    ingress: str = ""
    location: str = ""


class RegistryConfig(_Section, frozen=True):
    cluster: int = 1
    redis: str = ""
    """`redis://host:port/db`; empty: the static table below, or in one process no table at all."""
    lease_seconds: float = 6.0
    transceivers: tuple[StaticTransceiver, ...] = ()
    relays: tuple[StaticRelay, ...] = ()
    snapshot: str = "auto"
    """A file in which the last good table is kept, so that a process can start while Redis is down. auto: one
    in the directory for temporary files; empty: none."""


class RelayConfig(_Section, frozen=True):
    listen: tuple[str, ...] = ("127.0.0.1:3478", "127.0.0.1:8443/tcp")
    """Public addresses, IPv4 and IPv6: UDP, or ICE-TCP with `/tcp` behind the port."""
    advertise: tuple[str, ...] = ()
    """The same as clients reach them, for the registry; empty: `listen`."""
    ingress: str = ""
    """The name of these public addresses; relays that share them share it. Empty: the first address."""
    location: str = ""
    """`latitude, longitude` in degrees, for steering clients to the nearest; empty: nowhere."""
    link_listen: str = "127.0.0.1:0"
    """A concrete address (not 0.0.0.0) that the transceivers reach. Worker n has its port plus n."""
    workers: int | Literal["auto"] = "auto"
    """Worker processes; auto: one per usable CPU where the relay is alone in its process, else none, as with
    0: the packets are forwarded in this process."""
    ops_listen: str = ""
    """HTTP for /healthz, /readyz, /metrics of all workers. Empty: none of its own (in one process signaling
    serves them)."""
    allowed_networks: tuple[str, ...] = ("127.0.0.0/8", "::1/128")
    """Where transceivers may live; a record outside is never sent to."""
    max_flows: int = 100_000
    """Client addresses at once, for each worker."""
    max_connections: int = 1_000
    """TCP connections at once, for each worker."""
    flow_idle_seconds: float = 60.0
    pin_cpu: int = -1
    """CPU for the data plane's thread; -1: the last one this process may use; -2: not pinned. With workers:
    -2 or each its own."""


class TransceiverConfig(_Section, frozen=True):
    id: int = 0
    """1 to 1048575; 0: a random one, leased in the registry."""
    link_listen: str = "127.0.0.1:0"
    control_listen: str = "127.0.0.1:0"
    """Internal HTTP: call allocation by signaling; /healthz, /readyz, /metrics of this transceiver."""
    ops_listen: str = ""
    """HTTP for /healthz, /readyz, /metrics of all workers. Empty: none but those of each worker above."""
    workers: int | Literal["auto"] = 1
    """Processes, where the transceiver is alone in its own; auto: one per usable CPU. Each is a transceiver
    of its own: worker n has the id, where one is given, and both ports plus n."""
    pin_cpus: bool = True
    """Each worker, where there are several, stays on a CPU of its own."""
    max_calls: int = 200
    """At once, for each worker."""
    max_call_seconds: float = 3600.0
    idle_seconds: float = 35.0
    """A call ends when this long no authenticated packet came (RFC 7675 asks for 30; a background Firefox
    checks every 20 to 30 s)."""
    drain_seconds: float = 0.0
    """How long SIGTERM waits for calls to end by themselves."""
    silence: Literal["none", "dtx"] = "none"
    """What a client is sent while the agent says nothing. none: nothing, the RTP timestamps jump; browsers
    are content with it, and their consent checks keep every NAT open. dtx: a frame of silence every 400 ms,
    for clients that take a stream without packets for a broken one."""


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
    record: Literal["never", "allowed", "always"] = "never"
    """Whether its calls are recorded; allowed: those whose request asks for it."""


class SignalingConfig(_Section, frozen=True):
    listen: str = "127.0.0.1:8080"
    advertise: tuple[str, ...] = ("127.0.0.1:3478", "127.0.0.1:8443/tcp")
    """The relay's public addresses, in order of preference, exactly as they go into every answer; empty:
    those of the relay that is nearest to the client, from the registry."""
    clusters: tuple[int, ...] = ()
    """The clusters whose transceivers are given calls; empty: `registry.cluster`."""
    trusted_proxies: tuple[str, ...] = ()
    """Networks of the proxies in front, whose headers about the client are believed."""
    location_headers: tuple[str, ...] = ("x-client-latitude", "x-client-longitude")
    """Where such a proxy puts the client's coordinates, besides Cloudflare's own names."""
    geoip_database: str = ""
    """A MaxMind database file (GeoLite2-City or like it), for clients without such headers."""
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
    audio_format_in: Literal["audio/pcm", "audio/pcmu", "audio/pcma"] = "audio/pcm"
    audio_format_out: Literal["audio/pcm", "audio/pcmu", "audio/pcma"] = "audio/pcm"
    """What the agent hears and what it speaks. G.711 from a client that speaks it too goes through
    untouched."""
    audio_rate_in: int = 24_000
    audio_rate_out: int = 24_000
    """The same in Hz, for audio/pcm: 24000, 16000 or 8000. G.711 is always 8000."""
    connect_seconds: float = 10.0
    stall_seconds: float = 20.0
    """A call ends when this long the agent takes nothing of what is sent to it."""
    turn_detection: Literal["none", "silence", "semantic"] = "semantic"
    """What the agent can: none: it waits for a commit; silence: it commits after a silence; semantic: it can
    tell when somebody is finished, so that everything is left to it."""


class TurnsConfig(_Section, frozen=True):
    """When a person is finished and when one interrupts, where the agent does not decide it
    (docs/turns.md)."""

    judge: str = "adaptive"
    """Who decides that a pause is the end, for `semantic_vad` and where nobody says anything: adaptive,
    smart-turn, upstream (the agent's own commit), fixed (silence alone), or the name of an installed
    plug-in."""
    eagerness: Literal["low", "medium", "high", "auto"] = "auto"
    """Where the session names none: answers after 8, 4, 2, 4 seconds of silence at the latest."""
    smart_turn_model: str = ""
    """The ONNX file of the judge smart-turn."""
    eager: bool = False
    """Ask for replies when a turn is probably over, and drop them unheard when it was not."""
    max_turn_seconds: float = 0.0
    """A turn that is longer is ended; 0: none is."""
    user_idle_seconds: float = 0.0
    """After so much silence of both sides clients and sidebands get `voicegate.turn.user_idle`; 0: never."""
    pause_upstream: bool = False
    """Hold the voice of an agent that detects turns itself at the first sound of a person, until it has
    decided. It costs a fifth of a call's CPU, and needs clients that cancel the echo of their loudspeaker."""
    pause_after_seconds: float = 0.04
    """So much voice over the agent's holds it."""
    stop_after_seconds: float = 0.72
    """So much voice is an interruption."""
    resume_after_seconds: float = 0.4
    """So much silence behind less voice lets the agent go on."""
    grace_seconds: float = 0.25
    """At an answer's first words nothing holds it."""
    activity: str = "webrtc"
    """What hears whether somebody speaks: webrtc, or the name of an installed plug-in."""
    policy: str = "default"
    """What takes a sound for an interruption: default, or the name of an installed plug-in."""


class RecordingConfig(_Section, frozen=True):
    directory: str = ""
    """Where a transceiver writes the calls that are to be recorded; empty: nothing is."""
    max_bytes: int = 10_000_000_000
    """For all that is in the directory. When it is full nothing more is recorded; nothing is ever deleted."""
    max_seconds: float = 3600.0
    """Of one call; the call goes on without."""


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
    turns: TurnsConfig = TurnsConfig()
    recording: RecordingConfig = RecordingConfig()
    net: NetConfig = NetConfig()


Role = Literal["relay", "transceiver", "signaling"]

ROLES: tuple[Role, ...] = ("relay", "transceiver", "signaling")
DEFAULT_ADVERTISE = SignalingConfig().advertise

_PREFIX = "VOICEGATE_"


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
            known = Config.__struct_fields__
            problem = f"there is no section [{section}]; the sections are {', '.join(known)}"
            raise ConfigError(problem + did_you_mean(section, known))
    try:
        return msgspec.convert(data, type=Config)
    except msgspec.ValidationError as error:
        raise ConfigError(in_words(str(error), Config)) from error


def parse_public(text: str) -> tuple[str, int, bool]:
    """A public address: `parse_listen` and whether it is TCP, as in `203.0.113.10:443/tcp`."""
    address, is_tcp = split_transport(text)
    return *parse_listen(address), is_tcp


def parse_location(text: str) -> tuple[float, float] | None:
    """`52.37, 4.90` in degrees; None when empty; ValueError when it is no place."""
    if not text.strip():
        return None
    latitude, _, longitude = text.partition(",")
    try:
        place = float(latitude), float(longitude)
    except ValueError:
        raise ValueError(f"{text!r} is not of the form latitude, longitude") from None
    if not (abs(place[0]) <= 90 and abs(place[1]) <= 180):
        raise ValueError(f"{text!r} is no place: latitude is from -90 to 90, longitude from -180 to 180")
    return place


def worker_count(workers: int | Literal["auto"]) -> int:
    """How many worker processes a role has that is the only one of its process; 0: it has none."""
    if not hasattr(os, "sched_getaffinity"):
        return 0
    return len(os.sched_getaffinity(0)) if workers == "auto" else workers


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
            known = [f"{name}_{key}".upper() for name in Config.__struct_fields__ for key in _key_types(name)]
            near = did_you_mean(variable.removeprefix(_PREFIX), known, _PREFIX)
            raise ConfigError(f"{variable} names no key of the configuration{near}")
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
        if kind == tuple[int, ...]:
            return [int(item) for item in text.split(",") if item.strip()]
        if kind in (tuple[StaticTransceiver, ...], tuple[StaticRelay, ...], tuple[KeyConfig, ...]):
            return msgspec.json.decode(text, type=list[dict[str, Any]])
        return msgspec.convert(text, type=kind, strict=False)
    except (ValueError, msgspec.DecodeError) as error:
        raise ConfigError(f"{variable}: {error}{remedy(str(error), kind)}") from error
