"""Our data channels against aiortc's, over a bad network on virtual time and without a socket."""

from __future__ import annotations

import asyncio
import random
import selectors
from collections.abc import Callable, Iterator
from types import SimpleNamespace
from typing import Any

import pytest
from aiortc import RTCDataChannel, RTCSctpTransport, rtcsctptransport
from aiortc.rtcdatachannel import RTCDataChannelParameters
from aiortc.rtcsctptransport import RTCSctpCapabilities

from tests.proto.sctp_network import Path, association
from voicegate.proto.datachannel import (
    ChannelClosed,
    ChannelOpened,
    DataChannels,
    MessageReceived,
    SendBufferDrained,
    SendResult,
)
from voicegate.proto.dcep import Open
from voicegate.proto.errors import BadPacket

GOOD = Path(rtt=0.04)
TERRIBLE = Path(rtt=0.04, loss=0.05, duplicate=0.05, jitter=0.02, seed=7)


class VirtualSelector(selectors.DefaultSelector):
    """Time passes when there is nothing to do."""

    now = 0.0

    def select(self, timeout: float | None = None) -> Any:
        if timeout is None:
            raise AssertionError("nothing is left to happen")
        self.now += max(timeout, 0.0)
        return super().select(0)


class VirtualLoop(asyncio.SelectorEventLoop):
    def __init__(self) -> None:
        self.clock = VirtualSelector()
        super().__init__(self.clock)

    def time(self) -> float:
        return self.clock.now


class Link:
    """aiortc's DTLS transport as its SCTP sees it, the lossy path, and our side, driven on the same loop."""

    state = "connected"

    def __init__(self, loop: VirtualLoop, path: Path, *, aiortc_is_client: bool) -> None:
        self.loop = loop
        self.path = path
        self.chance = random.Random(path.seed)
        self._role = "client" if aiortc_is_client else "server"
        self.receiver: Any = None
        self.ours = DataChannels(association(1), dtls_client=not aiortc_is_client, max_message_size=65536)
        self.events: list[Any] = []
        self.dropped: list[str] = []
        self.timer: asyncio.TimerHandle | None = None
        self.tasks: set[asyncio.Task[None]] = set()
        self.on_event: Callable[[Any], None] = self.events.append

    def _register_data_receiver(self, receiver: Any) -> None:
        self.receiver = receiver

    def _unregister_data_receiver(self, _receiver: Any) -> None:
        self.receiver = None

    async def _send_data(self, data: bytes) -> None:
        self.carry(data, self.receive_ours)

    def carry(self, data: bytes, deliver: Callable[[bytes], None]) -> None:
        for _ in range(2 if self.chance.random() < self.path.duplicate else 1):
            if self.chance.random() >= self.path.loss:
                delay = self.path.rtt / 2 + self.chance.random() * self.path.jitter
                self.loop.call_later(delay, deliver, data)

    def receive_ours(self, data: bytes) -> None:
        try:
            self.ours.receive_datagram(data, self.loop.time())
        except BadPacket as error:
            self.dropped.append(error.reason)
        self.drain()

    def receive_theirs(self, data: bytes) -> None:
        if self.receiver is not None:
            task = self.loop.create_task(self.receiver._handle_data(data))
            self.tasks.add(task)
            task.add_done_callback(self.tasks.discard)

    def expire(self) -> None:
        self.ours.handle_timeout(self.loop.time())
        self.drain()

    def drain(self) -> None:
        while (event := self.ours.poll_event()) is not None:
            self.on_event(event)
        while (data := self.ours.poll_transmit()) is not None:
            self.carry(data, self.receive_theirs)
        if self.timer is not None:
            self.timer.cancel()
        deadline = self.ours.next_deadline()
        self.timer = None if deadline is None else self.loop.call_at(deadline, self.expire)


@pytest.fixture
def loop(monkeypatch: pytest.MonkeyPatch) -> Iterator[VirtualLoop]:
    loop = VirtualLoop()
    asyncio.set_event_loop(loop)
    monkeypatch.setattr(rtcsctptransport, "time", SimpleNamespace(time=loop.time))
    yield loop
    asyncio.set_event_loop(None)
    loop.close()


async def until(condition: Callable[[], bool], limit: float = 600.0) -> None:
    for _ in range(int(limit / 0.02)):
        if condition():
            return
        await asyncio.sleep(0.02)  # virtual
    raise AssertionError("it did not happen")


async def start(link: Link, *, we_connect: bool) -> RTCSctpTransport:
    theirs = RTCSctpTransport(link)  # type: ignore[arg-type]
    if we_connect:
        link.ours.connect(link.loop.time())
        link.drain()
    await theirs.start(RTCSctpCapabilities(maxMessageSize=262144), 5000)
    await until(lambda: theirs.state == "connected")
    return theirs


@pytest.mark.parametrize("we_connect", [False, True])
@pytest.mark.parametrize("aiortc_is_client", [False, True])
@pytest.mark.parametrize("path", [GOOD, TERRIBLE], ids=["good", "terrible"])
def test_either_side_opens_talks_and_closes(
    loop: VirtualLoop, we_connect: bool, aiortc_is_client: bool, path: Path
) -> None:
    link = Link(loop, path, aiortc_is_client=aiortc_is_client)
    events = link.events

    async def main() -> None:
        theirs = await start(link, we_connect=we_connect)
        incoming: list[RTCDataChannel] = []
        theirs.on("datachannel", incoming.append)
        channel = RTCDataChannel(theirs, RTCDataChannelParameters(label="oai-events", protocol="x"))
        heard: list[Any] = []
        channel.on("message", heard.append)
        await until(lambda: channel.readyState == "open")
        number = 0 if aiortc_is_client else 1
        assert ChannelOpened(number, "oai-events", "x", True, False) in events
        for data in ("text", "", b"binary", b"", "é" * 30_000):
            channel.send(data)
            assert link.ours.send(number, data, loop.time()) is SendResult.QUEUED
        link.drain()
        await until(lambda: len(heard) == 5)
        await until(lambda: len([e for e in events if isinstance(e, MessageReceived)]) == 5)
        sent = ["text", "", b"binary", b"", "é" * 30_000]
        assert heard == sent
        assert [e.data for e in events if isinstance(e, MessageReceived)] == sent

        mine = link.ours.open(Open("mine", ordered=False, max_retransmits=3), loop.time())
        link.drain()
        assert mine is not None and mine % 2 != number % 2
        await until(lambda: ChannelOpened(mine, "mine", "", False, True) in events)
        assert (incoming[0].label, incoming[0].ordered, incoming[0].maxRetransmits) == ("mine", False, 3)
        channel.close()
        link.ours.close_channel(mine, loop.time())
        link.drain()
        await until(lambda: ChannelClosed(number) in events and ChannelClosed(mine) in events)
        await until(lambda: channel.readyState == incoming[0].readyState == "closed")
        await until(lambda: link.ours.statistics().channels == 0)  # both numbers are free again
        await theirs.stop()

    loop.run_until_complete(main())
    assert set(link.dropped) <= {"sctp_unexpected_chunk"}  # DATA that overtook the end of the handshake


@pytest.mark.parametrize("ordered", [True, False])
def test_many_messages_of_all_sizes_each_way(loop: VirtualLoop, ordered: bool) -> None:
    """Over 5 % loss, duplication and reordering all arrive, in order where promised."""
    total = 10_000
    link = Link(loop, TERRIBLE, aiortc_is_client=True)
    chance = random.Random(5)
    sizes = [chance.choice([1, 20, 300, 1104, 1105, 5000]) for _ in range(total - 40)] + [65_536] * 40
    chance.shuffle(sizes)
    plan = [index.to_bytes(2, "big") + chance.randbytes(size) for index, size in enumerate(sizes)]
    plan = [data[: max(size, 2)] for data, size in zip(plan, sizes, strict=True)]
    heard: list[Any] = []
    ours: list[Any] = []

    async def main() -> None:
        theirs = await start(link, we_connect=False)
        channel = RTCDataChannel(theirs, RTCDataChannelParameters(label="bulk", ordered=ordered))
        channel.on("message", heard.append)
        await until(lambda: channel.readyState == "open")
        position = 0

        def more(event: Any) -> None:
            nonlocal position
            if isinstance(event, MessageReceived):
                ours.append(event.data)
            elif isinstance(event, SendBufferDrained):
                while (
                    position < total and link.ours.send(0, plan[position], loop.time()) is SendResult.QUEUED
                ):
                    position += 1

        link.on_event = more
        more(SendBufferDrained())
        link.drain()
        for data in plan:
            channel.send(data)
        await until(lambda: len(heard) >= total and len(ours) >= total, limit=3600)
        await theirs.stop()

    loop.run_until_complete(main())
    if ordered:
        assert heard == plan
        assert ours == plan
    else:
        assert sorted(heard) == sorted(plan)
        assert sorted(ours) == sorted(plan)
