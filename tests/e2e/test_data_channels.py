"""aiortc as a second stack: our data channels against its own, over sockets and a lossy path; and volume
through a whole gateway."""

from __future__ import annotations

import asyncio
import json
import random
import socket
import time
from collections.abc import Callable, Coroutine
from pathlib import Path
from typing import Any

import pytest

from tests.e2e.conftest import assert_nothing_left
from tests.support.channel_peer import OurPeer, aiortc_answers, until
from tests.support.delay_proxy import DelayProxy
from tests.support.light_channel import Wanted
from tests.support.light_client import Fleet
from tests.support.script_agent import script_agent
from tests.support.servers import free_port, one_process, rss_bytes, wait_until
from voicegate.proto.dcep import Open

pytestmark = pytest.mark.e2e

MESSAGES = 10_000
"""Each way."""


def run(test: Callable[[], Coroutine[Any, Any, None]], timeout: float) -> None:
    async def bounded() -> None:
        async with asyncio.timeout(timeout):
            await test()

    asyncio.run(bounded())


class Pair:
    """Ours and aiortc's, connected; every channel of ours and of theirs by label."""

    def __init__(self, ours: OurPeer, theirs: Any) -> None:
        self.ours = ours
        self.theirs = theirs
        self.remote: dict[str, Any] = {}
        """aiortc's ends of the channels that we opened."""
        self.received: dict[str, list[str | bytes]] = {}
        """What aiortc got, by label."""
        theirs.on("datachannel", self.adopt)

    def adopt(self, channel: Any) -> None:
        self.remote[channel.label] = channel
        got = self.received.setdefault(channel.label, [])
        channel.on("message", got.append)

    async def open(self, wanted: Open) -> tuple[int, Any]:
        """A channel of ours: its number here, its end there."""
        assert self.ours.channels is not None
        number = self.ours.channels.open(wanted, time.monotonic())
        assert number is not None
        self.ours.drain()
        await until(
            lambda: wanted.label in self.remote and number in self.ours.opened, 20, f"{wanted.label} open"
        )
        return number, self.remote[wanted.label]

    async def close(self) -> None:
        self.ours.close()
        await self.theirs.close()


async def connect(path: DelayProxy | None = None) -> Pair:
    """`path`, a proxy not started yet, is put in front of aiortc."""
    ours = OurPeer()
    await ours.open()
    theirs, answer = await aiortc_answers(ours.offer())
    if path is not None:
        line = next(
            line for line in answer.splitlines() if line.startswith("a=candidate") and " udp " in line
        )
        path.target = (line.split()[4], int(line.split()[5]))
        path.__enter__()
        ours._path = path.address
    pair = Pair(ours, theirs)
    ours.accept(answer)
    await until(lambda: ours.call.channels is not None, 20, "DTLS")
    ours.drain()
    assert ours.channels is not None
    return pair


# ------------------------------------------------------------------------------------------ kinds of channel


KINDS = {
    "ordered": Open("ordered"),
    "unordered": Open("unordered", ordered=False),
    "retransmits": Open("retransmits", max_retransmits=0),
    "lifetime, unordered": Open("a very ünusual läbel 🎧", "proto", ordered=False, lifetime=0.5),
    "no label": Open(""),
}


@pytest.mark.parametrize("name", list(KINDS))
def test_channels_that_we_open(name: str) -> None:
    async def test() -> None:
        pair = await connect()
        wanted = KINDS[name]
        number, remote = await pair.open(wanted)
        assert (remote.label, remote.protocol, remote.ordered) == (
            wanted.label,
            wanted.protocol,
            wanted.ordered,
        )
        assert remote.maxRetransmits == wanted.max_retransmits
        assert remote.maxPacketLifeTime == (round(wanted.lifetime * 1000) if wanted.lifetime else None)
        for message in ("text", b"binary", "", b"", "ü" * 30_000, bytes(65_536)):
            pair.ours.send(number, message)
            remote.send(message)
        pair.ours.drain()
        expected = sorted(map(repr, ["text", b"binary", "", b"", "ü" * 30_000, bytes(65_536)]))
        await until(lambda: len(pair.received[wanted.label]) == len(expected), 10, "all there")
        await until(lambda: len(pair.ours.received[number]) == len(expected), 10, "all here")
        assert sorted(map(repr, pair.received[wanted.label])) == expected
        assert sorted(map(repr, pair.ours.received[number])) == expected
        assert pair.ours.channels is not None
        pair.ours.channels.close_channel(number, time.monotonic())
        pair.ours.drain()
        await until(lambda: remote.readyState == "closed" and number in pair.ours.closed, 5, "closed at both")
        await pair.close()

    run(test, 40)


@pytest.mark.parametrize("name", list(KINDS))
def test_channels_that_aiortc_opens(name: str) -> None:
    async def test() -> None:
        pair = await connect()
        wanted = KINDS[name]
        if not wanted.label.isascii():  # aiortc 1.16 counts characters where RFC 8832 counts bytes
            wanted = wanted._replace(label="a very unusual label")
        lifetime = round(wanted.lifetime * 1000) if wanted.lifetime else None
        there = pair.theirs.createDataChannel(
            wanted.label,
            protocol=wanted.protocol,
            ordered=wanted.ordered,
            maxRetransmits=wanted.max_retransmits,
            maxPacketLifeTime=lifetime,
        )
        pair.adopt(there)
        await until(lambda: there.readyState == "open" and len(pair.ours.opened) == 1, 10, "open")
        (opened,) = pair.ours.opened.values()
        assert (opened.label, opened.protocol, opened.ordered, opened.local) == (
            wanted.label,
            wanted.protocol,
            wanted.ordered,
            False,
        )
        there.send("question")
        await until(lambda: pair.ours.received[opened.id] == ["question"], 5, "the question")
        pair.ours.send(opened.id, "answer")
        pair.ours.drain()
        await until(lambda: pair.received[wanted.label] == ["answer"], 5, "the answer")
        there.close()
        await until(lambda: opened.id in pair.ours.closed, 5, "closed here")
        await pair.close()

    run(test, 40)


# ---------------------------------------------------------------------------------------------------- volume


def messages(seed: int, count: int) -> list[bytes]:
    """Of 1 B to 64 kB, each with its number where there is room: half of them of a few bytes, as events
    are, and both ends of the scale among them."""
    source = random.Random(seed)
    sizes = [round(10 ** source.uniform(0, 3)) for _ in range(count - 64)]
    sizes += [round(10 ** source.uniform(3, 4.8165)) for _ in range(56)] + [1] * 4 + [65_536] * 4
    source.shuffle(sizes)
    return [number.to_bytes(4, "big").ljust(size, b"\xa5")[:size] for number, size in enumerate(sizes)]


@pytest.mark.parametrize("lossy", [False, True], ids=["clean path", "lossy path"])
def test_ten_thousand_messages_each_way(lossy: bool) -> None:
    """Half of them ordered, half unordered, both ways at once."""
    way = DelayProxy(("", 0), rtt=0.004, loss=0.05, duplicate=0.05, reorder=0.05) if lossy else None

    async def test() -> None:
        pair = await connect(way)
        lanes = []
        for seed, wanted in enumerate([Open("in order"), Open("as it comes", ordered=False)]):
            number, remote = await pair.open(wanted)
            up, down = messages(seed, MESSAGES // 2), messages(seed + 10, MESSAGES // 2)
            lanes.append((wanted, number, remote, up, down))
            for message in up:
                pair.ours.send(number, message)
        pair.ours.drain()
        feeders = [asyncio.create_task(feed(remote, down)) for _, _, remote, _, down in lanes]
        begun = time.monotonic()
        await until(
            lambda: all(
                len(pair.received[w.label]) >= len(up) and len(pair.ours.received[n]) >= len(down)
                for w, n, _, up, down in lanes
            ),
            150,
            "every message at both ends",
        )
        taken = time.monotonic() - begun
        await asyncio.gather(*feeders)
        await asyncio.sleep(0.2)  # what would come twice comes now
        for wanted, number, _, up, down in lanes:
            for came, sent in ((pair.received[wanted.label], up), (pair.ours.received[number], down)):
                if wanted.ordered:
                    assert came == sent
                else:
                    assert sorted(came) == sorted(sent)  # type: ignore[type-var]
        statistics = pair.ours.channels.statistics().association  # type: ignore[union-attr]
        if lossy:
            assert statistics.outbound.retransmitted > 100, "the path was not lossy at all"
        assert not statistics.dropped_chunks and not statistics.dropped_messages, statistics
        assert taken < 150
        await pair.close()

    try:
        run(test, 200)
    finally:
        if way is not None:
            way.__exit__()


async def feed(channel: Any, wanted: list[bytes]) -> None:
    """aiortc's buffer has no bound: wait where a page would."""
    for message in wanted:
        while channel.bufferedAmount > 1 << 18:  # noqa: ASYNC110 - aiortc tells a low mark only of itself
            await asyncio.sleep(0.005)
        channel.send(message)


# ------------------------------------------------------------------------------------ through a whole gateway


def test_two_thousand_events_through_the_gateway(tmp_path: Path) -> None:
    """Of all sizes, over a lossy path: the agent gets each once and in order, and so come its answers."""
    count = 2_000
    source = random.Random(3)
    with script_agent() as agent, Fleet() as fleet:
        proxy = DelayProxy(("", 0), rtt=0.01, loss=0.02, duplicate=0.02, reorder=0.02)
        media = f"127.0.0.1:{free_port(socket.SOCK_DGRAM)}"
        proxy.target = ("127.0.0.1", int(media.rpartition(":")[2]))
        with (
            proxy,
            one_process(
                tmp_path, media=media, advertise="{}:{}".format(*proxy.address), agent_url=agent.url
            ) as gate,
        ):
            call = fleet.call(gate.calls_url, channel=Wanted())
            call.wait_for("session.created", 20)
            channel = call.channel
            assert channel is not None
            before = rss_bytes(gate.pids())
            sizes = [source.choice((1, 30, 300, 3_000)) for _ in range(count)]
            for place in range(0, count, 100):
                sizes[place] = 64_000
            begun = time.monotonic()
            for number, size in enumerate(sizes):
                text = [{"type": "input_text", "text": "x" * size}]
                item = {"id": f"c{number}", "type": "message", "role": "user", "content": text}
                event = {"type": "conversation.item.create", "event_id": f"e{number}", "item": item}
                if number % 500 == 250:
                    fleet.send_event(
                        call,
                        {
                            "type": "session.update",
                            "session": {"type": "realtime", "instructions": "y" * 60_000},
                        },
                    )
                fleet.send_event(call, event)
                while channel.waiting > 32 or number - len(channel.events) > 800:
                    time.sleep(0.005)
            wait_until(lambda: len(channel.of("conversation.item.added")) == count, 60, "every answer")
            taken = time.monotonic() - begun
            created = agent.told("conversation.item.create")
            assert [event["item"]["id"] for event in created] == [f"c{n}" for n in range(count)]
            assert [len(event["item"]["content"][0]["text"]) for event in created] == sizes
            added = channel.of("conversation.item.added")
            assert [event["item"]["id"] for event in added] == [f"c{n}" for n in range(count)]
            updated = channel.of("session.updated")
            assert len(updated) == 4 and len(updated[0]["session"]["instructions"]) == 60_000
            assert not channel.of("error"), channel.of("error")[:2]
            assert rss_bytes(gate.pids()) - before < 32 << 20
            assert fleet.hang_up(call) == 200
            call.wait_for("closed", 5)
            assert channel.closed
            assert_nothing_left(gate)
            assert taken < 60, json.dumps({"seconds": taken})
