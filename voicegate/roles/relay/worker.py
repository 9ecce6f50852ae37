"""What forwards for one slot, in whichever process: the rules, the thread of packets, what it tells."""

from __future__ import annotations

import sys
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

import trio

from voicegate.config import Config, ConfigError
from voicegate.logs import get_logger
from voicegate.metrics import Sample, histogram_samples
from voicegate.net.names import socket_name
from voicegate.net.registry import Registry
from voicegate.net.streams import Streams
from voicegate.net.udp import Arena, uses_mmsg, wrap_udp
from voicegate.proto.address import pack_address
from voicegate.proto.keys import ClusterKeys
from voicegate.proto.link import HOUR
from voicegate.roles.relay.byways import Answer, Directory
from voicegate.roles.relay.core import RelayCore
from voicegate.roles.relay.counts import HELP
from voicegate.roles.relay.dataplane import DataPlane
from voicegate.roles.relay.hellos import Hellos
from voicegate.roles.relay.routes import RouteTable
from voicegate.roles.relay.sockets import Sockets

if TYPE_CHECKING:
    from voicegate.roles.relay.notes import NoteKeeper

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


@dataclass(frozen=True, slots=True)
class Identity:
    """How a relay's workers present themselves to transceivers; see `link_control.Hello`."""

    ingress: str
    boot: int


class Worker:
    """Takes the sockets of one slot over, and closes them in `close`."""

    def __init__(
        self,
        config: Config,
        keys: ClusterKeys,
        registry: Registry,
        sockets: Sockets,
        identity: Identity,
        slot: int,
        cpu: int | None,
    ) -> None:
        """`cpu`: the one that the thread of packets is pinned to. ConfigError, with a sentence for a person,
        when a network cannot be read. Within Trio."""
        self._slot = slot
        self._cpu = cpu
        self._registry = registry
        self._sockets = sockets
        arena = Arena(addresses=uses_mmsg(config.net.batching))
        self._link = wrap_udp(sockets.link, batching=config.net.batching, arena=arena)
        self._public = [wrap_udp(sock, batching=config.net.batching, arena=arena) for sock in sockets.public]
        self._streams = _open_streams(config, sockets)
        self._core = self._make_core(config, keys)
        self._notes = _open_notes(config, keys, self._core, lambda answers: self._plane.post(answers))
        self._plane = DataPlane(
            self._core,
            self._public,
            self._link,
            arena,
            streams=self._streams,
            hellos=Hellos(identity.ingress, identity.boot),
            directory=lambda: Directory(registry.records, registry.relays),
            report=_report_failure,
            asked=self._notes.wake if self._notes is not None else lambda: None,
        )

    async def run(self, *, task_status: trio.TaskStatus[None] = trio.TASK_STATUS_IGNORED) -> None:
        """Relay until cancelled; what transceivers sent before is delivered first."""
        sys.setswitchinterval(min(sys.getswitchinterval(), SWITCH_SECONDS))
        async with trio.open_nursery() as nursery:
            nursery.start_soon(self._run_plane)
            nursery.start_soon(self._tell_refused)
            if self._notes is not None:
                nursery.start_soon(self._notes.run)
            task_status.started()
            try:
                await trio.sleep_forever()
            finally:
                self._plane.stop()
                _log.info("relay is going down", **self._plane.statistics())

    def close(self) -> None:
        """After `run`."""
        self._plane.close()
        if self._streams is not None:
            self._streams.close()
        self._sockets.close()

    def progress(self) -> int:
        """Grows as long as the thread of packets turns."""
        return self._plane.statistics()["ticks"]

    def unready(self) -> str | None:
        """Why no call would get through, for a person; None: it would."""
        if self._core.routes.listed():
            return None
        if not self._registry.records:
            return self._registry.absence()
        refused = dict(self._core.routes.refused)
        reasons = "; ".join(sorted({_REMEDIES.get(reason, reason) for reason in refused.values()}))
        return f"{len(refused)} registered transceivers are not used: {reasons}" if refused else "starting"

    def samples(self) -> list[Sample]:
        """For the metrics page; the label `worker` tells them from those of the others."""
        worker = {"worker": str(self._slot)}
        return [
            sample._replace(name=f"voicegate_relay_{sample.name}", labels={**sample.labels, **worker})
            for sample in self._samples()
        ]

    def _samples(self) -> Iterator[Sample]:
        core, counts = self._core, self._plane.counts
        for name, value in self._plane.statistics().items():
            yield Sample(f"{name}_total", "counter", HELP[name], {}, value)
        for state, flows in core.statistics().items():
            yield Sample("flows", "gauge", "Flows by state.", {"state": state}, flows)
        help = "Transceivers that can get calls."
        yield Sample("transceivers", "gauge", help, {}, core.routes.listed())
        for name, number in self._registry.statistics().items():
            yield Sample(f"registry_{name}", "gauge", "The registry as this worker sees it.", {}, number)
        for name, help, histogram in (
            ("batch_packets", "Datagrams per receiving call.", counts.batch),
            ("bundle_packets", "Client packets per link datagram.", counts.bundle),
            ("added_latency_seconds", "From a packet's arrival in the kernel to its leaving.", counts.waited),
        ):
            yield from histogram_samples(name, help, {}, histogram.cumulative(), histogram.sum)
        for name, help, counter in (
            ("drops", "Packets and frames dropped, by reason.", core.drops),
            ("recovery", "Clients without a flow that were asked after, by outcome.", core.recovery.counts),
            ("flows_ended", "Flows that ended, by reason.", core.table.evicted),
            ("socket_drops", "Datagrams the sockets could not take or give.", self._socket_drops()),
            ("notes", "Flows in Redis, by outcome.", self._notes.statistics() if self._notes else {}),
            *self._stream_counters(),
        ):
            # A copy of a dict is one step of the interpreter: the data plane cannot change it under way.
            for reason, count in dict(counter).items():
                yield Sample(f"{name}_total", "counter", help, {"reason": reason}, count)

    def _stream_counters(self) -> Iterator[tuple[str, str, Mapping[str, int]]]:
        if self._streams is None:
            return
        yield "tcp_drops", "Packets not given on to or by TCP, by reason.", self._streams.drops
        yield "tcp_closed", "TCP connections that ended or were refused, by reason.", self._streams.closed

    def _socket_drops(self) -> Mapping[str, int]:
        total: dict[str, int] = {}
        for sock in (self._link, *self._public):
            for reason, count in sock.statistics().items():
                total[reason] = total.get(reason, 0) + count
        return total

    def _make_core(self, config: Config, keys: ClusterKeys) -> RelayCore:
        try:
            routes = RouteTable(
                keys,
                cluster=config.registry.cluster,
                link=self._sockets.link_address(),
                allowed_networks=config.relay.allowed_networks,
                name_of=socket_name,
                hour=int(time.time() // HOUR),
                first_sink=len(self._public) + 1,
            )
        except ValueError as error:
            raise ConfigError(
                f"[relay] allowed_networks: {error}; write networks as 10.0.0.0/8 or fd00::/8"
            ) from None
        return RelayCore(
            keys,
            routes,
            cluster=config.registry.cluster,
            public=[pack_address(*sock.address()) for sock in self._public],
            max_flows=config.relay.max_flows,
            idle_seconds=config.relay.flow_idle_seconds,
        )

    async def _run_plane(self) -> None:
        # Not abandoned on cancellation: the sockets close only when nobody uses them. `stop` ends it in a
        # moment.
        await trio.to_thread.run_sync(self._plane.run, self._cpu, limiter=trio.CapacityLimiter(1))

    async def _tell_refused(self) -> None:
        """Say once of each transceiver that no call will get to it by this relay, and what to change."""
        told: dict[int, str] = {}
        while True:
            records = self._registry.records
            told = {id: link for id, link in told.items() if id in records}
            # A copy of a dict is one step of the interpreter: the data plane cannot change it under way.
            for id, reason in dict(self._core.routes.refused).items():
                if id in records and told.get(id) != records[id].link:
                    told[id] = records[id].link
                    remedy = _REMEDIES.get(reason, reason)
                    _log.warning("a transceiver is not used", transceiver=id, link=told[id], remedy=remedy)
            await trio.sleep(TELL_SECONDS)


def _report_failure(error: Exception) -> None:
    _log.error("a packet could not be handled", exc_info=error)


def _open_streams(config: Config, sockets: Sockets) -> Streams | None:
    if not sockets.listeners:
        return None
    return Streams(
        sockets.listeners,
        max_connections=config.relay.max_connections,
        idle_seconds=config.relay.flow_idle_seconds,
    )


def _open_notes(
    config: Config, keys: ClusterKeys, core: RelayCore, post: Callable[[Sequence[Answer]], None]
) -> NoteKeeper | None:
    """The flows in Redis, where there is one."""
    if not config.registry.redis:
        return None
    from voicegate.net.flow_store import open_flow_store  # redis-py is loaded only where it is used
    from voicegate.roles.relay.notes import NoteKeeper

    store = open_flow_store(config, keys)
    assert store is not None, "there is a Redis"
    return NoteKeeper(core.recovery, store, post)
