"""The relay as a role: what it starts, says, refuses and leaves behind."""

from __future__ import annotations

import socket
import sys
import time
from typing import Any

import msgspec
import pytest
import trio

from voicegate import logs, metrics
from voicegate.config import Config, ConfigError, LogConfig, NetConfig, RelayConfig
from voicegate.net.registry import MemoryRegistry, TransceiverRecord
from voicegate.proto import stun
from voicegate.proto.address import pack_address, split_host_port
from voicegate.proto.keys import ClusterKeys
from voicegate.proto.link import DATA, parse_frames_untrusted
from voicegate.roles.context import RoleContext
from voicegate.roles.relay import shell, worker

pytestmark = pytest.mark.anyio

KEYS = ClusterKeys.parse(["1:" + "k" * 32])


def config(*, batching: Any = "auto", **relay: Any) -> Config:
    return Config(
        relay=RelayConfig(**{"listen": ("127.0.0.1:0", "[::1]:0"), **relay}), net=NetConfig(batching=batching)
    )


@pytest.mark.parametrize("batching", ["auto", "off"])
async def test_it_relays_for_the_transceivers_of_the_registry_until_cancelled(batching: str) -> None:
    registry = MemoryRegistry()
    async with trio.open_nursery() as nursery:
        public = await nursery.start(shell.run, config(batching=batching), RoleContext(KEYS, registry))
        assert [split_host_port(text)[0] for text in public] == ["127.0.0.1", "::1"]
        with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as transceiver:
            transceiver.bind(("127.0.0.1", 0))
            link = "{}:{}".format(*transceiver.getsockname())
            record = TransceiverRecord(id=5, cluster=1, link=link, control="127.0.0.1:1", boot="b")
            await registry.register(record)
            ticket = KEYS.tickets.mint(1, 5, time.time() + 60, bytes(5)).encode()
            password = KEYS.tickets.password(ticket)
            request = stun.binding_request(b"T" * 12, ticket + b":abcd", password, priority=1, tie_breaker=1)
            with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as client:
                client.sendto(request, split_host_port(public[0]))
                while (datagram := await trio.to_thread.run_sync(transceiver.recv, 2000))[0] >> 4 != DATA:
                    pass  # the relay says hello
                client_address = pack_address("127.0.0.1", client.getsockname()[1])
                assert parse_frames_untrusted(datagram) == [(client_address, request)]
        page = metrics.render().decode()
        assert 'voicegate_relay_flows{state="provisional",worker="0"} 1.0' in page
        assert 'voicegate_relay_client_packets_total{worker="0"} 1.0' in page
        nursery.cancel_scope.cancel()
    assert "voicegate_relay_" not in metrics.render().decode()
    for text in public:  # the sockets are closed
        family = socket.AF_INET6 if text.startswith("[") else socket.AF_INET
        with socket.socket(family, socket.SOCK_DGRAM) as again:
            again.bind(split_host_port(text))


async def test_it_is_in_the_registry_while_it_runs() -> None:
    registry = MemoryRegistry()
    settings = config(
        listen=("127.0.0.1:0", "127.0.0.1:0/tcp"), ingress="fra", location="50.11, 8.68", max_flows=7
    )
    async with trio.open_nursery() as nursery:
        public = await nursery.start(shell.run, settings, RoleContext(KEYS, registry))
        with trio.fail_after(5):
            while not registry.relays:  # noqa: ASYNC110 - a task of its own registers it
                await trio.sleep(0.01)
        (record,) = registry.relays.values()
        assert record.id and record.boot
        assert (record.cluster, record.ingress, record.addresses) == (1, "fra", tuple(public))
        assert public[1].endswith("/tcp")
        assert (record.location, record.flows, record.capacity) == ((50.11, 8.68), 0, 7)
        assert [split_host_port(link)[0] for link in record.links] == ["127.0.0.1"]
        nursery.cancel_scope.cancel()
    assert not registry.relays


async def test_readiness_is_told_over_http() -> None:
    registry = MemoryRegistry()
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        ops = f"127.0.0.1:{free.getsockname()[1]}"
    async with trio.open_nursery() as nursery:
        await nursery.start(shell.run, config(ops_listen=ops), RoleContext(KEYS, registry))
        answer = await get(ops, "/readyz")
        assert b" 503 " in answer and b"no transceiver is registered\n" in answer
        record = TransceiverRecord(id=5, cluster=1, link="127.0.0.1:9", control="127.0.0.1:1", boot="b")
        await registry.register(record)
        with trio.fail_after(5):
            while b" 200 " not in await get(ops, "/readyz"):  # noqa: ASYNC110 - asked as a probe asks
                await trio.sleep(0.02)
        assert b'voicegate_relay_transceivers{worker="0"} 1.0' in await get(ops, "/metrics")
        nursery.cancel_scope.cancel()


async def test_a_transceiver_outside_the_allowed_networks_is_told_once(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(worker, "TELL_SECONDS", 0.01)
    logs.configure(LogConfig(format="json"))
    registry = MemoryRegistry()
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        ops = f"127.0.0.1:{free.getsockname()[1]}"
    settings = config(ops_listen=ops, allowed_networks=("10.0.0.0/8",))
    async with trio.open_nursery() as nursery:
        await nursery.start(shell.run, settings, RoleContext(KEYS, registry))
        record = TransceiverRecord(id=5, cluster=1, link="127.0.0.1:9", control="127.0.0.1:1", boot="b")
        await registry.register(record)
        with trio.fail_after(5):
            while b"relay.allowed_networks" not in await get(ops, "/readyz"):  # noqa: ASYNC110 - as a probe
                await trio.sleep(0.02)
        registry.publish_nowait(msgspec.structs.replace(record, calls=1))
        await trio.sleep(0.3)
        nursery.cancel_scope.cancel()
    told = [line for line in capsys.readouterr().err.splitlines() if "is not used" in line]
    assert len(told) == 1
    assert all(words in told[0] for words in ('"transceiver":5', "127.0.0.1:9", "relay.allowed_networks"))


@pytest.mark.parametrize(
    ("settings", "words"),
    [
        ({"listen": ("localhost:1",)}, ["listen", "localhost", "127.0.0.1:3478"]),
        ({"listen": ("127.0.0.1",)}, ["listen", "host:port"]),
        (
            {"listen": ("192.0.2.1:3478",)},
            ["192.0.2.1:3478/udp", "no such address", "VOICEGATE_RELAY_LISTEN"],
        ),
        ({"link_listen": "0.0.0.0:0"}, ["link_listen", "every address"]),
        ({"allowed_networks": ("10.0.0.1/8",)}, ["allowed_networks", "10.0.0.0/8"]),
        pytest.param(
            {"pin_cpu": 4095},
            ["pin_cpu", "4095"],
            marks=pytest.mark.skipif(sys.platform != "linux", reason="no pinning"),
        ),
    ],
)
async def test_a_setting_that_cannot_work_is_explained(settings: dict[str, Any], words: list[str]) -> None:
    with pytest.raises(ConfigError) as caught:
        await shell.run(config(**settings), RoleContext(KEYS, MemoryRegistry()))
    assert all(word in str(caught.value) for word in words), str(caught.value)


async def test_a_taken_port_is_named() -> None:
    with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as holder:
        holder.bind(("127.0.0.1", 0))
        taken = f"127.0.0.1:{holder.getsockname()[1]}"
        with pytest.raises(ConfigError, match=f"{taken}/udp.*in use.*another address"):
            await shell.run(config(listen=(taken,)), RoleContext(KEYS, MemoryRegistry()))


async def test_a_taken_ops_port_is_named() -> None:
    with socket.socket() as holder:
        holder.bind(("127.0.0.1", 0))
        taken = f"127.0.0.1:{holder.getsockname()[1]}"
        holder.listen()
        with pytest.raises(ConfigError, match=f"ops_listen.*{taken}"):
            await shell.run(config(ops_listen=taken), RoleContext(KEYS, MemoryRegistry()))


async def get(address: str, path: str) -> bytes:
    stream = await trio.open_tcp_stream(*split_host_port(address))
    async with stream:
        await stream.send_all(f"GET {path} HTTP/1.1\r\nHost: x\r\nConnection: close\r\n\r\n".encode())
        received = b""
        with trio.fail_after(5):
            async for part in stream:
                received += part
    return received
