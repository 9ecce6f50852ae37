"""What keeps a configuration from being used, one sentence for a person each; all of them at once."""

from __future__ import annotations

import ipaddress
import math
import os
import re
import sys
from collections.abc import Collection, Iterator
from typing import Any

import msgspec

from voicegate.checks import directory_problem, geoip_problem, pair_problem, redis_problem
from voicegate.config import (
    ROLES,
    AgentConfig,
    Config,
    RegistryConfig,
    RelayConfig,
    Role,
    SignalingConfig,
    parse_listen,
    parse_location,
    parse_public,
    worker_count,
)
from voicegate.keyfile import BOTH_SET, KeyFileError, read_key_file
from voicegate.proto.keys import parse_secrets

_NAME = re.compile(r"[A-Za-z0-9_.-]{1,64}")
_ID_LIMIT = 2**20
"""The ticket has 20 bits for the transceiver."""
_MAX_WORKERS = 256
"""More than the CPUs of any machine that one relay is run on."""
_AGENT_RATES = (24_000, 16_000, 8_000)
"""What servers of the Realtime protocol speak: OpenAI's own, most speech recognisers', the telephone's."""
_CLUSTER_LIMIT = 2**12
"""And 12 for the cluster."""
_CALL_SECONDS_LIMIT = 2**23 - 600
"""A ticket's expiry counts 2^20 units of 16 s, of which serial arithmetic (RFC 1982) can use half: 97 days,
less the ticket's grace of 300 s, the rounding, and as much again for clocks that differ."""


def check(config: Config, roles: Collection[Role]) -> list[str]:
    """Everything that keeps these roles from starting, one sentence each. All three roles: one process."""
    together = set(roles) == set(ROLES)
    problems = list(_check_finite(config))
    if problems:
        return problems  # no comparison below says anything about a nan
    problems = [*_check_keys(config, together), *_check_registry(config, together)]
    if "relay" in roles:
        problems += _check_relay(config.relay, alone=tuple(roles) == ("relay",))
    if "transceiver" in roles:
        problems += _check_transceiver(config, alone=tuple(roles) == ("transceiver",))
        problems += _check_recording(config)
        problems += _check_agent(config.agent, together)
        problems += _check_turns(config)
    if "signaling" in roles:
        problems += _check_signaling(config.signaling)
        if together and not config.recording.directory:
            problems += [
                f"signaling.keys {key.name!r}: record is {key.record}, but recording.directory is empty"
                for key in config.signaling.keys
                if key.record != "never"
            ]
        if "transceiver" not in roles:
            # Without an agent's URL it serves calls all the same, but no WebSocket to the agent.
            problems += _check_agent(config.agent, together=True)
    return problems


def _check_finite(config: Config) -> Iterator[str]:
    for section in Config.__struct_fields__:
        for key, value in msgspec.structs.asdict(getattr(config, section)).items():
            if isinstance(value, float) and not math.isfinite(value):
                yield f"{section}.{key} must be a finite number, not {value}"


def _check_keys(config: Config, together: bool) -> Iterator[str]:
    keys = config.keys
    if keys.file and keys.secrets:
        yield BOTH_SET
    elif not keys.file and not keys.secrets and not together:
        yield (
            "keys.secrets is empty and keys.file too: roles that run apart share one of them,"
            ' as in VOICEGATE_KEYS_SECRETS="0:$(openssl rand -hex 32)"'
        )
    try:
        if keys.file:
            read_key_file(keys.file)
        elif keys.secrets:
            parse_secrets(keys.secrets)
    except KeyFileError as error:
        yield f"keys.file: {error}"
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
    yield from _check_static_relays(registry)


def _check_static_relays(registry: RegistryConfig) -> Iterator[str]:
    for entry in registry.relays:
        name = f"registry.relays {entry.ingress or entry.cluster}"
        if not 0 <= entry.cluster < _CLUSTER_LIMIT:
            yield f"{name}: cluster must be from 0 to {_CLUSTER_LIMIT - 1}"
        if not entry.links:
            yield f"{name}: links is empty; write its link sockets"
        for link in entry.links:
            yield from _check_concrete(f"{name}: links", link, fixed_port=True)
        for address in entry.addresses:
            yield from _check_public(f"{name}: addresses", address, concrete=True)
        yield from _check_location(f"{name}: location", entry.location)


def _check_relay(relay: RelayConfig, *, alone: bool) -> Iterator[str]:
    if not relay.listen:
        yield "relay.listen is empty: it needs at least one address:port"
    for listen in relay.listen:
        yield from _check_public("relay.listen", listen)
    if relay.listen and all(listen.endswith("/tcp") for listen in relay.listen):
        yield "relay.listen has only TCP: add a UDP address"
    for address in relay.advertise:
        yield from _check_public("relay.advertise", address, concrete=True)
    yield from _check_location("relay.location", relay.location)
    yield from _check_workers("relay", relay.workers, none=0, alone=alone)
    yield from _check_concrete("relay.link_listen", relay.link_listen)
    if relay.ops_listen:
        yield from _check_listen("relay.ops_listen", relay.ops_listen)
    for network in relay.allowed_networks:
        try:
            ipaddress.ip_network(network)
        except ValueError as error:
            yield f"relay.allowed_networks: {error}"
    for key in ("max_flows", "max_connections"):
        if getattr(relay, key) < 1:
            yield f"relay.{key} must be at least 1"
    if relay.flow_idle_seconds <= 0:
        yield "relay.flow_idle_seconds must be more than 0"
    if relay.pin_cpu < -2:
        yield "relay.pin_cpu must be a CPU number, -1 (the last one) or -2 (not pinned)"


def _check_workers(role: Role, workers: int | str, *, none: int, alone: bool) -> Iterator[str]:
    """`none`: the number at which a role has no processes of its own."""
    if workers != "auto" and not none <= int(workers) <= _MAX_WORKERS:
        yield f"{role}.workers must be from {none} to {_MAX_WORKERS}, or auto"
    elif workers not in ("auto", none) and not alone:
        yield f"{role}.workers is {workers}: processes are for a {role} by itself; write auto or {none}"
    elif workers not in ("auto", none) and sys.platform != "linux":
        yield f"{role}.workers is {workers}: processes need Linux; write auto or {none}"


def _check_transceiver(config: Config, *, alone: bool) -> Iterator[str]:
    settings, registry = config.transceiver, config.registry
    yield from _check_workers("transceiver", settings.workers, none=1, alone=alone)
    count = worker_count(settings.workers) if alone else 1
    last = settings.id + count - 1
    if not 0 <= settings.id < _ID_LIMIT:
        yield f"transceiver.id must be from 1 to {_ID_LIMIT - 1}, or 0 for a random one"
    elif settings.id and last >= _ID_LIMIT:
        yield f"transceiver.id {settings.id}: with {count} workers the last one's is {last}; take a lower one"
    for key in ("link_listen", "control_listen"):
        listen = getattr(settings, key)
        problems = list(_check_concrete(f"transceiver.{key}", listen))
        yield from problems
        if not problems and count > 1 and (port := parse_listen(listen)[1]) and port + count - 1 > 65535:
            yield f"transceiver.{key} is {listen}: {count} workers need as many ports from there on"
    if settings.ops_listen:
        yield from _check_listen("transceiver.ops_listen", settings.ops_listen)
    if registry.transceivers and not registry.redis:
        known = {entry.id for entry in registry.transceivers}
        for id in range(settings.id, last + 1):
            if id not in known:
                yield f"transceiver.id {id} is not in registry.transceivers"
    if settings.max_calls < 1:
        yield "transceiver.max_calls must be at least 1"
    for key in ("max_call_seconds", "idle_seconds"):
        if getattr(settings, key) <= 0:
            yield f"transceiver.{key} must be more than 0"
    if settings.max_call_seconds > _CALL_SECONDS_LIMIT:
        yield f"transceiver.max_call_seconds must be at most {_CALL_SECONDS_LIMIT}, which is 97 days"
    if settings.drain_seconds < 0:
        yield "transceiver.drain_seconds must not be negative"


def _check_recording(config: Config) -> Iterator[str]:
    recording = config.recording
    if recording.directory and (problem := directory_problem(recording.directory)):
        yield f"recording.directory {problem}"
    for key in ("max_bytes", "max_seconds"):
        if getattr(recording, key) <= 0:
            yield f"recording.{key} must be more than 0"


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
    for side in ("in", "out"):
        yield from _check_agent_audio(agent, side)
    for key in ("connect_seconds", "stall_seconds"):
        if getattr(agent, key) <= 0:
            yield f"agent.{key} must be more than 0"


def _check_agent_audio(agent: AgentConfig, side: str) -> Iterator[str]:
    key, rate = f"agent.audio_rate_{side}", getattr(agent, f"audio_rate_{side}")
    kind = getattr(agent, f"audio_format_{side}")
    if kind != "audio/pcm":
        if rate not in (AgentConfig().audio_rate_in, 8_000):
            yield f"{key}: {kind} is always 8000 Hz; leave the key out, or write 8000"
        if not agent.url:
            yield f"agent.audio_format_{side}: the embedded parrot (agent.url is empty) knows only audio/pcm"
    elif rate not in _AGENT_RATES:
        yield f"{key} must be one of {', '.join(map(str, _AGENT_RATES))} (Hz)"
    elif not agent.url and rate != _AGENT_RATES[0]:
        yield f"{key}: the embedded parrot (agent.url is empty) knows only {_AGENT_RATES[0]}"


def _check_turns(config: Config) -> Iterator[str]:
    turns = config.turns
    for key in ("max_turn_seconds", "user_idle_seconds", "grace_seconds"):
        if getattr(turns, key) < 0:
            yield f"turns.{key} must not be negative"
    for key in ("pause_after_seconds", "stop_after_seconds", "resume_after_seconds"):
        if getattr(turns, key) <= 0:
            yield f"turns.{key} must be more than 0"
    if turns.stop_after_seconds < turns.pause_after_seconds:
        yield "turns.stop_after_seconds must not be less than turns.pause_after_seconds"
    if turns.judge == "upstream" and config.agent.turn_detection == "none":
        yield "turns.judge is upstream, but agent.turn_detection is none: there is no commit to wait for"
    model = turns.smart_turn_model
    if turns.judge == "smart-turn" and not model:
        yield "turns.smart_turn_model is empty: the judge smart-turn needs its ONNX file"
        return
    if turns.judge == "smart-turn" and not os.path.isfile(model):
        yield f"turns.smart_turn_model: {model} is not a file; the judge smart-turn reads it"
        return
    if turns.judge != "smart-turn" and model:
        yield f"turns.smart_turn_model is set, but turns.judge is {turns.judge}: write smart-turn"
    from voicegate.turn_config import turn_plugins  # brings numpy in

    try:
        turn_plugins(turns)
    except ValueError as error:
        yield f"turns: {error}"


def _check_signaling(signaling: SignalingConfig) -> Iterator[str]:
    problems = list(_check_listen("signaling.listen", signaling.listen))
    yield from problems
    if not problems and not signaling.has_keys:
        host, _ = parse_listen(signaling.listen)
        if not ipaddress.ip_address(host).is_loopback:
            needs = "signaling.api_keys or signaling.keys"
            yield f"signaling.listen {signaling.listen} is not loopback: that needs {needs}"
    if any(not key.strip() or len(key) < 16 for key in signaling.api_keys):
        yield "signaling.api_keys: a key must have at least 16 characters"
    yield from _check_key_tables(signaling)
    # What an Authorization header can carry (RFC 6750 section 2.1 is stricter still).
    if any(not "!" <= character <= "~" for key in signaling.api_keys for character in key):
        yield "signaling.api_keys: a key must be of ASCII letters, digits and signs, without spaces"
    for address in signaling.advertise:
        yield from _check_public("signaling.advertise", address, concrete=True)
    yield from _check_steering(signaling)
    yield from _check_certificate(signaling)
    for origin in signaling.allowed_origins:
        if origin != "*" and not origin.startswith(("http://", "https://")):
            yield f"signaling.allowed_origins: {origin!r} is neither * nor like https://example.com"
    for key in ("max_setups", "max_websockets"):
        if getattr(signaling, key) < 1:
            yield f"signaling.{key} must be at least 1"


def _check_steering(signaling: SignalingConfig) -> Iterator[str]:
    for cluster in signaling.clusters:
        if not 0 <= cluster < _CLUSTER_LIMIT:
            yield f"signaling.clusters: {cluster} is not from 0 to {_CLUSTER_LIMIT - 1}"
    for network in signaling.trusted_proxies:
        try:
            ipaddress.ip_network(network)
        except ValueError as error:
            yield f"signaling.trusted_proxies: {error}"
    if len(signaling.location_headers) not in (0, 2):
        yield "signaling.location_headers: name two, for latitude and longitude, or none"
    if signaling.geoip_database and (problem := geoip_problem(signaling.geoip_database)):
        yield f"signaling.geoip_database {problem}"


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


def _check_public(key: str, text: str, concrete: bool = False) -> Iterator[str]:
    """`concrete`: others are told it, with its port."""
    try:
        parse_public(text)
    except ValueError as error:
        yield f"{key}: {error}"
        return
    if concrete:
        yield from _check_concrete(key, text.partition("/")[0], fixed_port=True)


def _check_location(key: str, text: str) -> Iterator[str]:
    try:
        parse_location(text)
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
