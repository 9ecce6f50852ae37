"""The configuration: one TOML file, every key of which can also be an environment variable.

`[section] key` is `VOICEGATE_SECTION_KEY`; the environment wins over the file, the file over the defaults. Lists
in the environment are separated by commas; a list of tables is JSON.
"""

from __future__ import annotations

import ipaddress
import os
import tomllib
from collections.abc import Mapping
from pathlib import Path
from typing import Any, Literal

import msgspec


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
    """`ID:SECRET`, ID 0 to 6, SECRET at least 32 characters; the first mints, the others still open. The same on
    every role of a cluster. May stay empty only when all roles run in one process."""


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


class SignalingConfig(_Section, frozen=True):
    listen: str = "127.0.0.1:8080"
    advertise: tuple[str, ...] = ("127.0.0.1:3478",)
    """The relay's public UDP addresses, in order of preference, exactly as they go into every answer."""
    api_keys: tuple[str, ...] = ()
    """Accepted as `Authorization: Bearer`. Empty: only loopback is served."""
    certificate: str = ""
    private_key: str = ""
    """PEM files; both set: HTTPS."""
    allowed_origins: tuple[str, ...] = ("*",)
    max_setups: int = 64
    """Set-ups under way at once; more get 503 with Retry-After."""
    demo_page: bool = True


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
