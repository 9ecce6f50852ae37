"""The relay as a role: owns the sockets, starts the thread that forwards, and tells how it fares."""

from __future__ import annotations

import os
import sys
import time
from collections.abc import Iterator, Sequence
from contextlib import ExitStack

import trio

from voicegate import metrics
from voicegate.config import Config, ConfigError
from voicegate.logs import get_logger
from voicegate.net.http import InternalApp, serve_http
from voicegate.net.listen import listen_problem
from voicegate.net.names import socket_name
from voicegate.net.registry import Registry
from voicegate.net.udp import Arena, Batching, UdpSocket, open_udp, uses_mmsg
from voicegate.proto.address import join_host_port, pack_address, parse_ip, split_host_port
from voicegate.proto.link import HOUR
from voicegate.roles.context import RoleContext
from voicegate.roles.relay.byways import Directory
from voicegate.roles.relay.core import RelayCore
from voicegate.roles.relay.counts import HELP
from voicegate.roles.relay.dataplane import DataPlane
from voicegate.roles.relay.hellos import Hellos
from voicegate.roles.relay.routes import RouteTable

SWITCH_SECONDS = 0.0005
"""How long another thread may keep the interpreter from the data plane. Python's 5 ms would be a quarter
of an audio frame, in the process where the transceiver computes beside it."""

TELL_SECONDS = 1.0
"""How often refused transceivers are looked for: soon enough for who has just started one."""
_REMEDIES = {
    "transceiver_network": "relay.allowed_networks does not hold its link address: add its network there",
    "transceiver_address": "its link address cannot be reached from relay.link_listen:"
    " both must be IPv4 or both IPv6",
    "transceiver_cluster": "it is of another registry.cluster",
}

_log = get_logger(__name__)


async def run(
    config: Config,
    context: RoleContext,
    *,
    task_status: trio.TaskStatus[list[str]] = trio.TASK_STATUS_IGNORED,
) -> None:
    """Relay until cancelled. Started with the public addresses really bound, in the order of `listen`.

    ConfigError, with a sentence for a person, when an address cannot be bound or a network cannot be read.
    """
    with ExitStack() as stack:
        arena = Arena(addresses=uses_mmsg(config.net.batching))
        batching = config.net.batching
        link = _listen("link_listen", config.relay.link_listen, batching, arena)
        stack.callback(link.close)
        public = []
        for listen in (text for text in config.relay.listen if not text.endswith("/tcp")):
            public.append(_listen("listen", listen, batching, arena))
            stack.callback(public[-1].close)
        cpu = _cpu(config.relay.pin_cpu)
        core = _make_core(config, context, link, public)
        boot = time.time_ns() // 1_000_000
        plane = DataPlane(
            core,
            public,
            link,
            arena,
            streams=None,
            hellos=Hellos(config.relay.ingress or config.relay.listen[0], boot),
            directory=lambda: Directory(context.registry.records, {}),
            report=_report_failure,
            asked=lambda: None,
        )
        stack.callback(plane.close)
        stack.callback(metrics.expose(lambda: _samples(core, plane, public, link)))
        sys.setswitchinterval(min(sys.getswitchinterval(), SWITCH_SECONDS))
        failure: ConfigError | None = None
        async with trio.open_nursery() as nursery:
            nursery.start_soon(_run_plane, plane, cpu)
            nursery.start_soon(_tell_refused, core.routes, context.registry)
            try:
                if config.relay.ops_listen:
                    await _serve_ops(nursery, core, context.registry, config.relay.ops_listen)
                bound = [join_host_port(*sock.address()) for sock in public]
                _log.info(
                    "relay is up",
                    listen=bound,
                    link=join_host_port(*link.address()),
                    batching="recvmmsg" if uses_mmsg(config.net.batching) else "plain",
                )
                task_status.started(bound)
                await trio.sleep_forever()
            except ConfigError as error:
                failure = error  # told on its own, not in the nursery's group
                nursery.cancel_scope.cancel()
            finally:
                plane.stop()
                _log.info("relay is going down", **plane.statistics())
        if failure is not None:
            raise failure


async def _run_plane(plane: DataPlane, cpu: int | None) -> None:
    # Not abandoned on cancellation: the sockets close only when nobody uses them. `stop` ends it in a moment.
    await trio.to_thread.run_sync(plane.run, cpu, limiter=trio.CapacityLimiter(1))


async def _tell_refused(routes: RouteTable, registry: Registry) -> None:
    """Say once of each transceiver that no call will get to it by this relay, and what to change."""
    told: dict[int, str] = {}
    while True:
        records = registry.records
        told = {id: link for id, link in told.items() if id in records}
        # A copy of a dict is one step of the interpreter: the data plane cannot change it under way.
        for id, reason in dict(routes.refused).items():
            if id in records and told.get(id) != records[id].link:
                told[id] = records[id].link
                remedy = _REMEDIES.get(reason, reason)
                _log.warning("a transceiver is not used", transceiver=id, link=told[id], remedy=remedy)
        await trio.sleep(TELL_SECONDS)


async def _serve_ops(nursery: trio.Nursery, core: RelayCore, registry: Registry, listen: str) -> None:
    try:
        await nursery.start(serve_http, InternalApp(ready=lambda: _ready(core, registry)), listen)
    except OSError as error:
        raise ConfigError(listen_problem("relay", "ops_listen", listen, error)) from error
    except ValueError as error:
        raise ConfigError(f"[relay] ops_listen: {error}; choose another address or leave it empty") from error


def _make_core(
    config: Config, context: RoleContext, link: UdpSocket, public: Sequence[UdpSocket]
) -> RelayCore:
    try:
        routes = RouteTable(
            context.keys,
            cluster=config.registry.cluster,
            link=join_host_port(*link.address()),
            allowed_networks=config.relay.allowed_networks,
            name_of=socket_name,
            hour=int(time.time() // HOUR),
            first_sink=len(public) + 1,
        )
    except ValueError as error:
        raise ConfigError(
            f"[relay] allowed_networks: {error}; write networks as 10.0.0.0/8 or fd00::/8"
        ) from None
    return RelayCore(
        context.keys,
        routes,
        cluster=config.registry.cluster,
        public=[pack_address(*sock.address()) for sock in public],
        max_flows=config.relay.max_flows,
        idle_seconds=config.relay.flow_idle_seconds,
    )


def _listen(key: str, listen: str, batching: Batching, arena: Arena) -> UdpSocket:
    """The UDP socket for a `[relay]` key; errors name the key and the remedy."""
    try:
        host, port = split_host_port(listen)
        ip = parse_ip(host)
    except ValueError as error:
        raise ConfigError(f"[relay] {key}: {error}; write 127.0.0.1:3478 or [::1]:3478") from None
    if key == "link_listen" and ip.is_unspecified:
        raise ConfigError(
            f"[relay] link_listen: {listen} is every address of this machine; write the one that the "
            "transceivers reach"
        )
    try:
        return open_udp(str(ip), port, batching=batching, arena=arena)
    except OSError as error:
        raise ConfigError(listen_problem("relay", key, f"{listen}/udp", error)) from error


def _cpu(setting: int) -> int | None:
    """The CPU to pin to, by `[relay] pin_cpu`; None on one-CPU machines and systems without pinning."""
    if setting == -2 or not hasattr(os, "sched_getaffinity"):
        return None
    usable = sorted(os.sched_getaffinity(0))
    if setting == -1:
        return usable[-1] if len(usable) > 1 else None
    if setting not in usable:
        raise ConfigError(f"[relay] pin_cpu: CPU {setting} is not among those this process may use: {usable}")
    return setting


def _ready(core: RelayCore, registry: Registry) -> str | None:
    if core.routes.listed():
        return None
    if not registry.records:
        return registry.absence()
    refused = dict(core.routes.refused)
    reasons = "; ".join(sorted({_REMEDIES.get(reason, reason) for reason in refused.values()}))
    return f"{len(refused)} registered transceivers are not used: {reasons}" if refused else "starting"


def _report_failure(error: Exception) -> None:
    _log.error("a packet could not be handled", exc_info=error)


def _samples(
    core: RelayCore, plane: DataPlane, public: Sequence[UdpSocket], link: UdpSocket
) -> Iterator[metrics.Sample]:
    prefix = "voicegate_relay_"
    for name, value in plane.statistics().items():
        yield metrics.Sample(f"{prefix}{name}_total", "counter", HELP[name], {}, value)
    for state, flows in core.statistics().items():
        yield metrics.Sample(f"{prefix}flows", "gauge", "Flows by state.", {"state": state}, flows)
    yield metrics.Sample(
        f"{prefix}transceivers", "gauge", "Transceivers that can get calls.", {}, core.routes.listed()
    )
    for name, help, counter in (
        ("drops", "Packets and frames dropped, by reason.", core.drops),
        ("flows_ended", "Flows that ended, by reason.", core.table.evicted),
        ("socket_drops", "Datagrams the sockets could not take or give.", _sum(link, *public)),
    ):
        # A copy of a dict is one step of the interpreter: the data plane cannot change it under way.
        for reason, count in dict(counter).items():
            yield metrics.Sample(f"{prefix}{name}_total", "counter", help, {"reason": reason}, count)


def _sum(*sockets: UdpSocket) -> dict[str, int]:
    total: dict[str, int] = {}
    for sock in sockets:
        for reason, count in sock.statistics().items():
            total[reason] = total.get(reason, 0) + count
    return total
