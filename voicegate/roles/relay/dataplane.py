"""The relay's one thread of packets: batches in, batches out, nothing awaited and nothing copied.

Per turn: wait until a socket is readable; take up to 64 datagrams in one system call; write a frame
header in front of each payload where it lies; gather the frames of each transceiver into link datagrams
(whatever was ready at once, never waiting for more); send them all in one call. The way back is the
mirror of it. A packet of a known flow costs a look-up, two stores and a `pack_into`; everything else goes
through the rules in `core`.

The thread must survive anything: what goes wrong with one packet is counted, and the batch goes on.
"""

from __future__ import annotations

import os
import selectors
import struct
import time
from collections.abc import Callable, Mapping, Sequence
from typing import Protocol

from voicegate.net.udp import SLOT, Arena, UdpSocket
from voicegate.proto.address import IPV4_LENGTH, IPV6_LENGTH, ClientAddress
from voicegate.proto.link import (
    HOUR,
    IPV4_FRAME_HEADER_LENGTH,
    IPV6_FRAME_HEADER_LENGTH,
    LINK_HEADER_LENGTH,
    MAX_DATAGRAM,
    MAX_PAYLOAD,
)
from voicegate.roles.relay.core import RelayCore
from voicegate.roles.relay.routes import Backend, Route

TICK_SECONDS = 0.25
"""Between looks at expiry, the hour and the registry."""
SNAPSHOT_SECONDS = 0.02
"""The least time between two takeovers of the registry: any call of any transceiver changes it."""
COUNTS = (
    "client_packets",
    "transceiver_packets",
    "link_bytes_out",
    "link_datagrams_out",
    "link_datagrams_in",
)
"""What `statistics` counts. Packets are a client's datagrams: received from it, sent to it."""

_HEADER = struct.Struct(f"{LINK_HEADER_LENGTH}s")
_FRAMING4 = (
    IPV4_FRAME_HEADER_LENGTH,
    struct.Struct(f"!{1 + IPV4_LENGTH}sH").pack_into,
    struct.Struct(f"!{LINK_HEADER_LENGTH}s{1 + IPV4_LENGTH}sH").pack_into,
)
_FRAMING6 = (
    IPV6_FRAME_HEADER_LENGTH,
    struct.Struct(f"!{1 + IPV6_LENGTH}sH").pack_into,
    struct.Struct(f"!{LINK_HEADER_LENGTH}s{1 + IPV6_LENGTH}sH").pack_into,
)
_CLIENT4 = struct.Struct(f"!x{IPV4_LENGTH}sH")
_CLIENT6 = struct.Struct(f"!x{IPV6_LENGTH}sH")


class Record(Protocol):
    """What of a registry record is used here."""

    @property
    def cluster(self) -> int: ...
    @property
    def link(self) -> str: ...
    @property
    def boot(self) -> str: ...


class DataPlane:
    """Runs in a thread of its own: `run`; any thread may call `stop` and `statistics`."""

    def __init__(
        self,
        core: RelayCore,
        public: Sequence[UdpSocket],
        link: UdpSocket,
        arena: Arena,
        *,
        records: Callable[[], Mapping[int, Record]],
        report: Callable[[Exception], None],
    ) -> None:
        """All sockets share `arena`. `records`: the registry's snapshot, a new object when it changed;
        `report`: told of unexpected exceptions, in this thread, at most once per tick."""
        self._core = core
        self._public = tuple(public)
        self._link = link
        self._arena = arena
        self._records = records
        self._report = report
        self._snapshot: Mapping[int, Record] | None = None
        self._snapshot_due = 0.0
        self._wall = time.time()
        self._stopping = False
        self._wake_reader, self._wake_writer = os.pipe()
        self._outgoing: tuple[list[bytes | int], ...] = tuple([] for _ in self._public)
        self._counts = dict.fromkeys(COUNTS, 0)
        self._error: Exception | None = None

    def run(self, cpu: int | None = None) -> None:
        """Forward until `stop`. `cpu`: the one this thread is pinned to."""
        affinity = None
        if cpu is not None and hasattr(os, "sched_setaffinity"):
            affinity = os.sched_getaffinity(0)
            os.sched_setaffinity(0, {cpu})
        selector = selectors.DefaultSelector()
        selector.register(self._wake_reader, selectors.EVENT_READ, None)
        selector.register(self._link.fileno(), selectors.EVENT_READ, self._serve_link)
        for index, sock in enumerate(self._public):
            selector.register(sock.fileno(), selectors.EVENT_READ, _bind(self._serve_public, index))
        try:
            self._turn(selector)
        finally:
            selector.close()
            if affinity is not None:
                os.sched_setaffinity(0, affinity)  # the thread goes back to a pool

    def stop(self) -> None:
        """Let `run` return; also before it began."""
        self._stopping = True
        os.write(self._wake_writer, b"x")

    def close(self) -> None:
        """Free what `stop` needs; the sockets are the owner's. After `run` has returned."""
        os.close(self._wake_reader)
        os.close(self._wake_writer)

    def statistics(self) -> dict[str, int]:
        """Packets and datagrams by direction, since the start."""
        return dict(self._counts)

    def _turn(self, selector: selectors.BaseSelector) -> None:
        tick_due = 0.0
        while not self._stopping:
            try:
                for key, _ in selector.select(TICK_SECONDS):
                    if key.data is not None:
                        key.data()
                now = time.monotonic()
                if now >= tick_due:
                    tick_due = now + TICK_SECONDS
                    self._tick(now)
            except Exception as error:  # a turn that fails must not end the calls of everybody
                self._failed(error)
                time.sleep(0.001)  # and one that fails every time must not take the processor
        self._serve_link()  # transceivers that ended before us have said goodbye to their clients

    def _tick(self, now: float) -> None:
        self._wall = time.time()
        self._core.routes.begin_hour(int(self._wall // HOUR))
        self._refresh(now)
        self._core.expire(now)
        if self._error is not None:
            error, self._error = self._error, None
            self._report(error)

    def _refresh(self, now: float) -> None:
        records = self._records()
        if records is self._snapshot or now < self._snapshot_due:
            return
        self._snapshot = records
        self._snapshot_due = now + SNAPSHOT_SECONDS
        self._core.routes.update(
            {id: Backend(record.cluster, record.link, record.boot) for id, record in records.items()}
        )

    def _serve_public(self, index: int) -> None:
        """From clients to transceivers."""
        sock = self._public[index]
        count = sock.receive()
        if not count:
            return
        now = time.monotonic()
        frame_length, pack, pack_first = _FRAMING6 if sock.is_ipv6 else _FRAMING4
        first_length = frame_length + LINK_HEADER_LENGTH
        flow_of, view, base = self._core.flows.get, self._arena.view, self._arena.base
        touched: list[Route] = []
        datagrams: list[tuple[bytes, list[int]]] = []
        total = 0
        for offset, (port, ip), (length,) in zip(
            self._arena.offsets, sock.names(count), sock.lengths(count), strict=False
        ):
            try:
                flow = flow_of(ip + port)
                if flow is None or view[offset] < 4 or not 0 < length <= MAX_PAYLOAD:
                    # A new client or STUN (first byte 0 to 3): the rules decide.
                    self._refresh(now)
                    flow = self._core.from_client(
                        bytes(view[offset : offset + length]),
                        ClientAddress(ip + port),
                        sock.name(offset // SLOT),
                        index,
                        now,
                        self._wall,
                    )
                    if flow is None:
                        continue
                else:
                    flow.client_seen = now
                route = flow.route
                size = route.size + frame_length + length
                if size <= MAX_DATAGRAM and route.size:
                    pack(view, offset - frame_length, flow.frame_header, length)
                    route.spans += (base + offset - frame_length, frame_length + length)
                    route.size = size
                    continue
                pack_first(view, offset - first_length, route.header, flow.frame_header, length)
                if route.size:
                    datagrams.append((route.name, route.spans))
                    total += route.size
                else:
                    touched.append(route)
                route.spans = [base + offset - first_length, first_length + length]
                route.size = first_length + length
            except Exception as error:  # one packet never ends the batch
                self._failed(error)
        for route in touched:
            datagrams.append((route.name, route.spans))
            total += route.size
            route.size = 0
        self._link.send_gathered(datagrams)
        self._counts["client_packets"] += count
        self._counts["link_bytes_out"] += total
        self._counts["link_datagrams_out"] += len(datagrams)

    def _serve_link(self) -> None:
        """From transceivers to clients."""
        link = self._link
        count = link.receive()
        if not count:
            return
        now = time.monotonic()
        routes, view = self._core.routes, self._arena.view
        for offset, (port, ip), (length,) in zip(
            self._arena.offsets, link.names(count), link.lengths(count), strict=False
        ):
            try:
                route = routes.by_address.get(ip + port)
                if route is None:
                    self._core.drops["link_stranger"] += 1
                elif not routes.accepts(route, _HEADER.unpack_from(view, offset)[0]):
                    self._core.drops["link_header"] += 1
                else:
                    self._fan_out(route, offset + LINK_HEADER_LENGTH, offset + length, now)
            except Exception as error:  # one datagram never ends the batch
                self._failed(error)
        for sock, entries in zip(self._public, self._outgoing, strict=True):
            if entries:
                sock.send_each(entries)
                self._counts["transceiver_packets"] += len(entries) // 3
                entries.clear()
        self._counts["link_datagrams_in"] += count

    def _fan_out(self, route: Route, position: int, end: int, now: float) -> None:
        """Queue the frames of one link datagram, which lies from `position` to `end`, for their clients."""
        core, view, base, outgoing = self._core, self._arena.view, self._arena.base, self._outgoing
        flow_of = core.flows.get
        if position >= end:
            core.drops["link_frame"] += 1
        while position < end:
            # A header that reaches beyond the end reads what lies behind it: then `stop` is beyond the
            # end too.
            if view[position] == 4:
                client, length = _CLIENT4.unpack_from(view, position)
                position += IPV4_FRAME_HEADER_LENGTH
            elif view[position] == 6:
                client, length = _CLIENT6.unpack_from(view, position)
                position += IPV6_FRAME_HEADER_LENGTH
            else:
                core.drops["link_frame"] += 1
                return
            stop = position + length
            if stop > end:
                core.drops["link_frame"] += 1
                return
            if not length:
                core.release(route, client)
                continue
            flow = flow_of(client)
            if flow is None or flow.route is not route or not flow.settled:
                flow = core.to_client(route, client, bytes(view[position:stop]), now)
            else:
                flow.transceiver_seen = now
            if flow is not None:
                entries = outgoing[flow.port]
                entries += (flow.name, base + position, length)
            position = stop

    def _failed(self, error: Exception) -> None:
        self._core.drops["internal_error"] += 1
        self._error = error


def _bind(serve: Callable[[int], None], index: int) -> Callable[[], None]:
    return lambda: serve(index)
