"""The relay's one thread of packets: batches in, batches out, nothing awaited and nothing copied.

Per turn: wait until a socket is readable; take up to 256 datagrams in one system call; write a frame
header in front of each payload where it lies; gather the frames of each transceiver into link datagrams
(whatever was ready at once, never waiting for more); send them all in one call. The way back is the
mirror of it. A packet of a known flow costs a look-up, two stores and a `pack_into`; everything else goes
through the rules in `core`.

Clients are reached by *ports*, ways out that are numbered: the public UDP sockets, then the TCP clients
(`net.streams`), then the relays of other clusters that clients came by. What lies off the common way, TCP,
packets between two relays, hellos and what Redis knew, is in `byways`.

The thread must survive anything: what goes wrong with one packet is counted, and the batch goes on.
"""

from __future__ import annotations

import os
import selectors
import struct
import sys
import threading
import time
from collections import deque
from collections.abc import Callable, Sequence

from voicegate.net.streams import Streams
from voicegate.net.udp import BATCH, FAMILY4, FAMILY6, Arena, UdpSocket
from voicegate.proto.address import IPV4_LENGTH, IPV6_LENGTH, ClientAddress
from voicegate.proto.link import (
    CONTROL,
    DATA,
    HOUR,
    IPV4_FRAME_HEADER_LENGTH,
    IPV6_FRAME_HEADER_LENGTH,
    LINK_HEADER_LENGTH,
    MAX_DATAGRAM,
    MAX_PAYLOAD,
)
from voicegate.roles.relay.byways import Answer, Byways, Directory, WaysOut
from voicegate.roles.relay.core import RelayCore
from voicegate.roles.relay.counts import PlaneCounts
from voicegate.roles.relay.hellos import Hellos
from voicegate.roles.relay.routes import Route

PRIORITY = -10
"""The nice value of the thread of packets: some ten times the share of what has none."""
TICK_SECONDS = 0.25
"""Between looks at expiry, the hour and the registry."""

_HEADER = struct.Struct(f"{LINK_HEADER_LENGTH}s")
_FRAMING4 = (
    IPV4_FRAME_HEADER_LENGTH,
    4,
    struct.Struct(f"!B{IPV4_LENGTH}sH").pack_into,
    struct.Struct(f"!{LINK_HEADER_LENGTH}sB{IPV4_LENGTH}sH").pack_into,
)
_FRAMING6 = (
    IPV6_FRAME_HEADER_LENGTH,
    6,
    struct.Struct(f"!B{IPV6_LENGTH}sH").pack_into,
    struct.Struct(f"!{LINK_HEADER_LENGTH}sB{IPV6_LENGTH}sH").pack_into,
)
_CLIENT4 = struct.Struct("!x4s2sH").unpack_from
_CLIENT6 = struct.Struct("!x16s2sH").unpack_from


class DataPlane:
    """Runs in a thread of its own: `run`; any thread may call `stop`, `post` and `statistics`."""

    def __init__(
        self,
        core: RelayCore,
        public: Sequence[UdpSocket],
        link: UdpSocket,
        arena: Arena,
        *,
        streams: Streams | None,
        hellos: Hellos,
        directory: Callable[[], Directory],
        report: Callable[[Exception], None],
        asked: Callable[[], None],
    ) -> None:
        """All sockets share `arena`. `directory`: the registry's snapshot, new objects when it changed;
        `report`: told of unexpected exceptions, in this thread, at most once per tick; `asked`: there are
        questions in `core.recovery`."""
        self.counts = PlaneCounts(BATCH)
        self._core = core
        self._public = tuple(public)
        self._link = link
        self._arena = arena
        self._streams = streams
        self._ways_out = WaysOut(public, core.routes.backs)
        self._byways = Byways(
            core, link, streams, self._ways_out, hellos, directory, asked, self.counts, self._failed
        )
        self._report = report
        self._posted: deque[Answer] = deque()
        self._wall = time.time()
        self._coarse = time.monotonic()
        """`now` as of the last tick: flows share the object, which makes them a fourth smaller."""
        self._stopping = False
        self._wake_reader, self._wake_writer = os.pipe()
        os.set_blocking(self._wake_reader, False)
        os.set_blocking(self._wake_writer, False)
        self._error: Exception | None = None

    def run(self, cpu: int | None = None) -> None:
        """Forward until `stop`. `cpu`: the one this thread is pinned to."""
        _set_priority(PRIORITY)
        affinity = None
        if cpu is not None and hasattr(os, "sched_setaffinity"):
            affinity = os.sched_getaffinity(0)
            os.sched_setaffinity(0, {cpu})
        selector = selectors.DefaultSelector()
        selector.register(self._wake_reader, selectors.EVENT_READ, self._take_posted)
        selector.register(self._link.fileno(), selectors.EVENT_READ, self._serve_link)
        for index, sock in enumerate(self._public):
            selector.register(sock.fileno(), selectors.EVENT_READ, _bind(self._serve_public, index))
        if self._streams is not None:
            selector.register(self._streams.fileno(), selectors.EVENT_READ, self._serve_streams)
        try:
            self._turn(selector)
        finally:
            selector.close()
            if affinity is not None:
                os.sched_setaffinity(0, affinity)  # the thread goes back to a pool
            _set_priority(0)

    def stop(self) -> None:
        """Let `run` return; also before it began."""
        self._stopping = True
        self._wake()

    def post(self, answers: Sequence[Answer]) -> None:
        """Redis has answered questions of `core.recovery`."""
        self._posted.extend(answers)
        self._wake()

    def close(self) -> None:
        """Free what `stop` needs; the sockets are the owner's. After `run` has returned."""
        os.close(self._wake_reader)
        os.close(self._wake_writer)

    def statistics(self) -> dict[str, int]:
        """Packets and datagrams by direction, since the start."""
        return dict(self.counts.totals)

    def _wake(self) -> None:
        try:
            os.write(self._wake_writer, b"x")
        except BlockingIOError:
            pass  # it is full of calls to wake up

    def _turn(self, selector: selectors.BaseSelector) -> None:
        tick_due = 0.0
        while not self._stopping:
            try:
                now = time.monotonic()
                if now >= tick_due:  # before the first packets: a worker that takes over finds some waiting
                    tick_due = now + TICK_SECONDS
                    self._tick(now)
                if now >= self._byways.due:
                    self._byways.handle_timeout(now)
                for key, _ in selector.select(max(0.0, min(tick_due, self._byways.due) - time.monotonic())):
                    key.data()
            except Exception as error:  # a turn that fails must not end the calls of everybody
                self._failed(error)
                time.sleep(0.001)  # and one that fails every time must not take the processor
        self._serve_link()  # transceivers that ended before us have said goodbye to their clients

    def _tick(self, now: float) -> None:
        self._wall = time.time()
        self._coarse = now
        self._core.routes.begin_hour(int(self._wall // HOUR))
        self._byways.refresh(now)
        self._core.tick(now)
        self._byways.tick(now)
        self.counts.totals["ticks"] += 1
        if self._error is not None:
            error, self._error = self._error, None
            self._report(error)

    def _serve_public(self, index: int) -> None:
        """From clients to transceivers."""
        sock = self._public[index]
        count = sock.receive()
        if not count:
            return
        now = self._coarse
        frame_length, family, pack, pack_first = _FRAMING6 if sock.is_ipv6 else _FRAMING4
        first_length = frame_length + LINK_HEADER_LENGTH
        flow_of, view, base = self._core.flows.get, self._arena.view, self._arena.base
        touched: list[Route] = []
        datagrams: list[tuple[bytes, list[int]]] = []
        link_bytes = 0
        for offset, (port, ip), (length,) in zip(
            self._arena.offsets, sock.names(count), sock.lengths(count), strict=False
        ):
            try:
                client = ip + port
                flow = flow_of(client)
                if flow is None or view[offset] < 4 or flow.port != index or not 0 < length <= MAX_PAYLOAD:
                    # A new client, one that comes another way, or STUN (first byte 0 to 3): the rules decide.
                    flow = self._byways.from_client(
                        bytes(view[offset : offset + length]), ClientAddress(client), index, self._wall
                    )
                    if flow is None:
                        continue
                else:
                    flow.client_seen = now
                route = flow.route
                size = route.size + frame_length + length
                if size <= MAX_DATAGRAM and route.size:
                    pack(view, offset - frame_length, family, client, length)
                    route.spans += (base + offset - frame_length, frame_length + length)
                    route.size = size
                    continue
                pack_first(view, offset - first_length, route.header, family, client, length)
                if route.size:
                    datagrams.append((route.name, route.spans))
                    link_bytes += route.size
                else:
                    touched.append(route)
                route.spans = [base + offset - first_length, first_length + length]
                route.size = first_length + length
            except Exception as error:  # one packet never ends the batch
                self._failed(error)
        for route in touched:
            datagrams.append((route.name, route.spans))
            link_bytes += route.size
            route.size = 0
            if route.dead:
                datagrams = self._byways.without_dead(route, datagrams)
        self._link.send_gathered(datagrams)
        counts = self.counts
        totals, bundles, frames = counts.totals, counts.bundle.counts, 0
        for _, spans in datagrams:
            bundled = len(spans) >> 1
            bundles[bundled] += 1
            frames += bundled
        totals["client_packets"] += count
        totals["client_bytes"] += link_bytes - LINK_HEADER_LENGTH * len(datagrams) - frame_length * frames
        totals["link_bytes_out"] += link_bytes
        totals["link_datagrams_out"] += len(datagrams)
        counts.batch.counts[count] += 1
        if (stamp := sock.stamp()) is not None:
            counts.waited.observe(time.time() - stamp)

    def _serve_link(self) -> None:
        """From transceivers to clients."""
        link = self._link
        count = link.receive()
        if not count:
            self._byways.take_refused(self._coarse)
            return
        now = self._coarse
        routes, view = self._core.routes, self._arena.view
        for offset, (port, ip), (length,) in zip(
            self._arena.offsets, link.names(count), link.lengths(count), strict=False
        ):
            try:
                route = routes.by_address.get(ip + port)
                if route is None:
                    self._core.drops["link_stranger"] += 1
                    continue
                (header,) = _HEADER.unpack_from(view, offset)
                if header == route.peer_header:
                    self._fan_out(route, offset + LINK_HEADER_LENGTH, offset + length, now)
                else:
                    self._examine(route, header, offset, length, now)
            except Exception as error:  # one datagram never ends the batch
                self._failed(error)
        outgoing = self._ways_out.outgoing
        sent = 0
        for index, sock in enumerate(self._public):
            if entries := outgoing[index]:
                sock.send_each(entries)
                sent += len(entries) // 5
                self.counts.totals["transceiver_bytes"] += sum(entries[4::5])  # type: ignore[arg-type]
                entries.clear()
        self.counts.totals["transceiver_packets"] += sent
        self.counts.totals["link_datagrams_in"] += count
        self.counts.batch.counts[count] += 1
        if len(outgoing) > len(self._public) + 1:
            self._byways.flush_relays(view, self._arena.base)
        if (stamp := link.stamp()) is not None:
            self.counts.waited.observe(time.time() - stamp)

    def _examine(self, route: Route, header: bytes, offset: int, length: int, now: float) -> None:
        """A link datagram with a header that is not the usual one of its sender."""
        if length < LINK_HEADER_LENGTH or not self._core.routes.genuine(route, header):
            self._core.drops["link_header"] += 1
            return
        route.dead = False
        version, hops = header[0] >> 4, header[0] & 15
        if version == DATA and hops == 0:
            route.peer_header = header
            self._fan_out(route, offset + LINK_HEADER_LENGTH, offset + length, now)
        elif version == DATA and hops == 1 and route.back is not None:
            self._byways.from_relay(route, bytes(self._arena.view[offset : offset + length]), self._wall)
        elif version == CONTROL:
            self._byways.control(route, bytes(self._arena.view[offset : offset + length]))
        else:
            self._core.drops["hop_limit"] += 1

    def _fan_out(self, route: Route, position: int, end: int, now: float) -> None:
        """Queue the frames of one link datagram, which lies from `position` to `end`, for their clients."""
        core, view, base, outgoing = self._core, self._arena.view, self._arena.base, self._ways_out.outgoing
        flow_of = core.flows.get
        if position >= end:
            core.drops["link_frame"] += 1
        while position < end:
            # A header that reaches beyond the end reads what lies behind it: then `stop` is beyond the
            # end too.
            family = view[position]
            if family == 4:
                ip, port, length = _CLIENT4(view, position)
                position += IPV4_FRAME_HEADER_LENGTH
            elif family == 6:
                ip, port, length = _CLIENT6(view, position)
                position += IPV6_FRAME_HEADER_LENGTH
            else:
                position = self._byways.to_tcp(route, view, position, end)
                if position < 0:
                    core.drops["link_frame"] += 1
                    return
                continue
            stop = position + length
            if stop > end:
                core.drops["link_frame"] += 1
                return
            client = ip + port
            if not length:
                self._byways.release(route, client)
                continue
            flow = flow_of(client)
            if flow is None or flow.route is not route or not flow.settled:
                flow = core.to_client(route, client, bytes(view[position:stop]), now)
            else:
                flow.transceiver_seen = now
            if flow is not None:
                entries = outgoing[flow.port]
                entries += (FAMILY4 if family == 4 else FAMILY6, port, ip, base + position, length)
            position = stop

    def _serve_streams(self) -> None:
        assert self._streams is not None, "registered only when there are streams"
        self._byways.serve_streams(self._wall)

    def _take_posted(self) -> None:
        os.read(self._wake_reader, 4096)
        while self._posted:
            self._byways.answered(self._posted.popleft(), time.monotonic())

    def _failed(self, error: Exception) -> None:
        self._core.drops["internal_error"] += 1
        self._error = error


def _set_priority(nice: int) -> None:
    """With PRIORITY let this thread go before what else the machine computes, where that is allowed (root,
    CAP_SYS_NICE): a packet costs microseconds, and waiting for a turn behind others milliseconds."""
    if sys.platform == "linux":
        try:
            os.setpriority(os.PRIO_PROCESS, threading.get_native_id(), nice)
        except PermissionError:
            pass


def _bind(serve: Callable[[int], None], index: int) -> Callable[[], None]:
    return lambda: serve(index)
