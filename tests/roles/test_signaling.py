"""Signaling on real sockets, in front of small transceivers that speak the agreed internal HTTP."""

from __future__ import annotations

import json
import time
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from dataclasses import dataclass, field
from functools import partial
from typing import Any

import httpcore
import msgspec
import pytest
import trio

from voicegate.config import Config, KeyConfig, SignalingConfig, parse_listen
from voicegate.net.http import InternalApp, Request, Response, error_response, serve_http
from voicegate.net.registry import MemoryRegistry, TransceiverRecord
from voicegate.proto.callid import mint_call_id
from voicegate.proto.keys import ClusterKeys
from voicegate.roles.context import RoleContext
from voicegate.roles.signaling import calls as signaling_calls
from voicegate.roles.signaling.core import OFFER_LIMIT
from voicegate.roles.signaling.shell import run

pytestmark = pytest.mark.anyio
KEYS = ClusterKeys.parse(["0:" + "k" * 32])
OTHER_KEYS = ClusterKeys.parse(["0:" + "x" * 32])
CALLS = "/v1/realtime/calls"
SDP = {"content-type": "application/sdp"}


@dataclass
class Transceiver:
    """Takes calls until it has `capacity`; an offer may say how it is to be refused."""

    id: int
    capacity: int = 10
    cluster: int = 1
    calls: dict[str, dict[str, Any]] = field(default_factory=dict)
    delay: float = 0.0

    async def allocate(self, request: Request) -> Response:
        await trio.sleep(self.delay)
        asked = json.loads(request.body)
        if asked["sdp"].startswith("status "):
            return error_response(
                int(asked["sdp"].split()[1]), "no_audio", "The offer has no audio.", "m=audio"
            )
        if len(self.calls) >= self.capacity:
            return error_response(503, "overloaded", "full")
        call_id = mint_call_id(KEYS.seal, self.cluster, self.id, len(self.calls).to_bytes(8, "big"))
        self.calls[call_id] = asked
        answer = {
            "call_id": call_id,
            "sdp": f"answer {self.id}",
            "calls": len(self.calls),
            "capacity": self.capacity,
        }
        return Response(201, json.dumps(answer).encode())

    async def status(self, request: Request) -> Response:
        if request.tail not in self.calls:
            return error_response(404, "call_not_found", "gone")
        return Response(200, b'{"state":"connected"}')

    async def end(self, request: Request) -> Response:
        known = self.calls.pop(request.tail, None)
        return Response(200, b"{}") if known else error_response(404, "call_not_found", "gone")

    def app(self) -> InternalApp:
        routes = {
            ("POST", "/calls"): self.allocate,
            ("GET", "/calls/"): self.status,
            ("DELETE", "/calls/"): self.end,
        }
        return InternalApp(ready=lambda: None, routes=routes, accepts_token=KEYS.accepts_control_token)


@dataclass
class Gate:
    url: str
    registry: MemoryRegistry
    pool: httpcore.AsyncConnectionPool
    key: str = ""

    async def ask(self, method: str, path: str, body: bytes | str = b"", **headers: str) -> httpcore.Response:
        sent = {name.replace("_", "-"): value for name, value in headers.items()}
        if self.key:
            sent.setdefault("authorization", f"Bearer {self.key}")
        content = body.encode() if isinstance(body, str) else body
        with trio.fail_after(10):
            return await self.pool.request(
                method, self.url + path, headers=list(sent.items()), content=content
            )

    async def offer(self, body: bytes | str = "v=0", path: str = CALLS, **headers: str) -> httpcore.Response:
        return await self.ask("POST", path, body, **{**SDP, **headers})


@asynccontextmanager
async def gate(
    *transceivers: Transceiver,
    keys: ClusterKeys = KEYS,
    registry: MemoryRegistry | None = None,
    restricted: tuple[KeyConfig, ...] = (),
    **settings: Any,
) -> AsyncIterator[Gate]:
    registry = registry or MemoryRegistry()
    if restricted:
        settings["keys"] = restricted
    config = Config(signaling=SignalingConfig(listen="127.0.0.1:0", **settings))
    key = settings.get("api_keys", ("",))[0]
    async with httpcore.AsyncConnectionPool() as pool, trio.open_nursery() as nursery:
        for transceiver in transceivers:
            control = (await nursery.start(serve_http, transceiver.app(), "127.0.0.1:0"))[0]
            await registry.register(
                record(transceiver.id, control, transceiver.capacity, cluster=transceiver.cluster)
            )
        url = await nursery.start(partial(run, config, RoleContext(keys, registry)))
        yield Gate(url.rstrip("/"), registry, pool, key)
        nursery.cancel_scope.cancel()


async def raw(at: Gate, request: str) -> bytes:
    """All that comes back, to the end of the connection."""
    stream = await trio.open_tcp_stream(*parse_listen(at.url.removeprefix("http://")))
    await stream.send_all(request.encode())
    received = b""
    with trio.fail_after(5):
        while data := await stream.receive_some():
            received += data
    await stream.aclose()
    return received


def record(id: int, control: str, capacity: int = 10, calls: int = 0, cluster: int = 1) -> TransceiverRecord:
    return TransceiverRecord(
        id=id, cluster=cluster, link="127.0.0.1:1", control=control, boot="b", capacity=capacity, calls=calls
    )


def header(response: httpcore.Response, name: str) -> str:
    return ", ".join(v.decode() for n, v in response.headers if n.decode().lower() == name.lower())


def error(response: httpcore.Response) -> dict[str, Any]:
    body = json.loads(response.content)["error"]
    assert set(body) == {"type", "code", "message", "param"}
    return body


async def test_a_call_from_offer_to_end() -> None:
    transceiver = Transceiver(7)
    async with gate(transceiver, advertise=("203.0.113.1:3478", "[2001:db8::1]:3478")) as at:
        made = await at.offer("v=0\r\n", CALLS + "?model=m-1")
        assert (made.status, made.content, header(made, "content-type")) == (
            201,
            b"answer 7",
            "application/sdp",
        )
        location = header(made, "location")
        call_id = location.removeprefix(CALLS + "/")
        assert call_id.startswith("rtc_")
        assert transceiver.calls[call_id] == {
            "sdp": "v=0\r\n",
            "candidates": ["203.0.113.1:3478", "[2001:db8::1]:3478"],
            "model": "m-1",
            "session": None,
            "dcid": None,
            "client_events": ["*"],
            "server_events": ["*"],
            "key_id": "loopback",
            "record": False,
            "safety_identifier": "",
        }
        assert at.registry.records[7].calls == 1, "the answer's load is known before the registry says so"
        status = await at.ask("GET", location)
        assert (status.status, json.loads(status.content)) == (200, {"state": "connected"})
        ended = await at.ask("POST", location + "/hangup", content_type="application/json")
        assert (ended.status, ended.content, header(ended, "content-length")) == (200, b"", "0")
        assert header(ended, "content-type") == "", "clients parse what they are told to be JSON"
        assert transceiver.calls == {}
        for method, path in (("POST", "/hangup"), ("DELETE", ""), ("GET", "")):
            gone = await at.ask(method, location + path)
            assert (gone.status, error(gone)["code"]) == (404, "call_id_not_found")
        again = header(await at.offer(), "location")
        assert (await at.ask("DELETE", again)).status == 200


@pytest.mark.parametrize(
    ("headers", "body", "status", "code"),
    [
        ({"content-type": "text/plain"}, b"v=0", 415, "unsupported_content_type"),
        ({}, b"v=0", 415, "unsupported_content_type"),
        (SDP, b"", 400, "empty_offer"),
        (SDP, b"\xff\xfe", 400, "invalid_sdp"),
        (SDP, b"x" * (OFFER_LIMIT + 1), 400, "offer_too_large"),
        (SDP, b"x" * 900_000, 400, "offer_too_large"),
        (SDP, b"status 422", 422, "no_audio"),
        (SDP, b"status 400", 400, "no_audio"),
    ],
)
async def test_bad_offers(headers: dict[str, str], body: bytes, status: int, code: str) -> None:
    async with gate(Transceiver(7)) as at:
        origin = "http://localhost:3000"
        response = await at.ask("POST", CALLS, body, origin=origin, **headers)
        assert (response.status, error(response)["code"]) == (status, code)
        assert header(response, "access-control-allow-origin") == origin, "a page must be able to read why"
        assert (await at.offer(b"x" * OFFER_LIMIT)).status == 201


async def test_no_room_and_nobody_there() -> None:
    async with gate(Transceiver(7, capacity=1)) as at:
        assert (await at.ask("GET", "/readyz")).status == 200
        assert (await at.offer()).status == 201
        full = await at.offer()
        assert (full.status, error(full)["code"]) == (503, "overloaded")
        assert "full" in error(full)["message"]
        assert int(header(full, "retry-after")) > 0
    async with gate() as at:
        absent = await at.offer()
        assert (absent.status, error(absent)["code"]) == (503, "no_transceiver")
        assert int(header(absent, "retry-after")) > 0
        ready = await at.ask("GET", "/readyz")
        assert (ready.status, ready.content) == (503, b"no transceiver is registered\n")
        at.registry.unreadable = 2
        assert b"our keys.secrets, 2 with others" in (await at.ask("GET", "/readyz")).content
        draining = msgspec.structs.replace(record(8, "127.0.0.1:1"), draining=True)
        await at.registry.register(draining)
        assert (await at.ask("GET", "/readyz")).content == b"every transceiver is draining\n"
        assert (await at.offer()).status == 503
        assert (await at.ask("GET", "/healthz")).status == 200


async def test_a_dead_transceiver_costs_a_second_try_not_the_call() -> None:
    async with gate(Transceiver(7)) as at:
        await at.registry.register(record(8, "127.0.0.1:1"))
        for _ in range(6):
            assert (await at.offer()).content == b"answer 7"
        page = (await at.ask("GET", "/metrics")).content.decode()
        assert 'voicegate_signaling_setups_total{result="created"}' in page
        await at.registry.withdraw()
        await at.registry.register(record(8, "127.0.0.1:1"))
        silent = await at.offer()
        assert (silent.status, error(silent)["code"]) == (503, "no_transceiver")
        dead = mint_call_id(KEYS.seal, 1, 8, bytes(8))
        assert (await at.ask("GET", f"{CALLS}/{dead}")).status == 503


async def test_full_sooner_than_the_registry_knew() -> None:
    async with gate(Transceiver(7), Transceiver(8, capacity=0)) as at:
        at.registry.publish_nowait(record(8, at.registry.records[8].control, capacity=10))
        for _ in range(6):
            assert (await at.offer()).content == b"answer 7"


async def test_a_set_up_has_an_end(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(signaling_calls, "SETUP_SECONDS", 0.2)
    async with gate(Transceiver(7, delay=60)) as at:
        began = time.monotonic()
        response = await at.offer()
        assert response.status == 503 and header(response, "retry-after")
        assert time.monotonic() - began < 2


async def test_too_many_set_ups_at_once() -> None:
    statuses: list[int] = []
    async with gate(Transceiver(7, delay=0.3), max_setups=2) as at, trio.open_nursery() as nursery:

        async def offer() -> None:
            statuses.append((await at.offer()).status)

        for _ in range(5):
            nursery.start_soon(offer)
    assert sorted(statuses) == [201, 201, 503, 503, 503]


async def test_a_transceiver_with_another_secret_is_not_the_clients_fault() -> None:
    async with gate(Transceiver(7), keys=OTHER_KEYS) as at:
        response = await at.offer()
        assert (response.status, error(response)["type"]) == (503, "server_error")


async def test_forged_foreign_and_unknown_calls_are_404_after_the_same_time() -> None:
    async with gate(Transceiver(7)) as at:
        ids = [
            mint_call_id(KEYS.seal, 1, 7, b"unknown!"),
            mint_call_id(KEYS.seal, 1, 99, bytes(8)),
            mint_call_id(KEYS.seal, 2, 7, bytes(8)),
            mint_call_id(OTHER_KEYS.seal, 1, 7, bytes(8)),
            "rtc_", "rtc_x", "x" * 3000, "%ff%00",
        ]  # fmt: skip
        for id in ids:
            for method, path in (("POST", "/hangup"), ("DELETE", ""), ("GET", "")):
                began = time.monotonic()
                response = await at.ask(method, f"{CALLS}/{id}{path}")
                assert (response.status, error(response)["param"]) == (404, "call_id"), id
                assert time.monotonic() - began >= signaling_calls.REFUSAL_SECONDS


async def test_recording_is_asked_for_and_granted_by_the_key() -> None:
    shop = KeyConfig(name="shop", key="key-of-the-shop-1")
    owner = KeyConfig(name="owner", key="key-of-the-owner-1", record="allowed")
    monitor = KeyConfig(name="monitor", key="key-of-the-monitor", record="always")
    transceiver = Transceiver(7)
    async with gate(transceiver, restricted=(shop, owner, monitor)) as at:

        async def recorded(key: KeyConfig, **headers: str) -> object:
            answer = await at.offer(authorization=f"Bearer {key.key}", **headers)
            if answer.status != 201:
                return answer.status, error(answer)["code"]
            return list(transceiver.calls.values())[-1]["record"]

        asking = {"x_voicegate_record": "true"}
        assert await recorded(shop) is False and await recorded(shop, x_voicegate_record="false") is False
        assert await recorded(shop, **asking) == (403, "recording_not_allowed")
        assert await recorded(owner) is False and await recorded(owner, **asking) is True
        assert await recorded(monitor) is True and await recorded(monitor, x_voicegate_record="false") is True
        assert await recorded(owner, x_voicegate_record="yes please") == (400, "invalid_header")
        preflight = await at.ask(
            "OPTIONS", CALLS, origin="https://a.example", access_control_request_headers="x-voicegate-record"
        )
        assert b"x-voicegate-record" in dict(preflight.headers)[b"access-control-allow-headers"]


async def test_keys_are_asked_for() -> None:
    async with gate(Transceiver(7), api_keys=("key-number-one-1", "key-number-two-2")) as at:
        assert (await at.offer()).status == 201
        assert (await at.offer(authorization="Bearer key-number-two-2")).status == 201
        location = header(await at.offer(), "location")
        for wrong in ("Bearer key-number-one-2", "Bearer", "", "Basic key-number-one-1"):
            for method, path in (("POST", CALLS), ("GET", location), ("DELETE", location)):
                response = await at.ask(method, path, "v=0", authorization=wrong, **SDP)
                assert (response.status, error(response)["type"]) == (401, "authentication_error")
                assert header(response, "www-authenticate") == "Bearer"
        at.key = ""
        for path in ("/", "/healthz", "/readyz"):
            assert (await at.ask("GET", path)).status == 200
        page = await at.ask("GET", "/metrics")
        assert (page.status, error(page)["code"]) == (401, "invalid_api_key"), (
            "a proxy's peer is loopback too"
        )
        assert (await at.ask("GET", "/metrics", authorization="Bearer key-number-two-2")).status == 200
        assert (await at.offer(host="voice.example", origin="https://pages.example")).status == 401


async def test_preflight_and_exposed_location() -> None:
    page = "https://pages.example"
    async with gate(Transceiver(7), api_keys=("key-number-one-1",)) as at:
        asked = "authorization,content-type,x-openai-agents-sdk,x-stainless-os"
        at.key = ""
        preflight = await at.ask(
            "OPTIONS",
            CALLS,
            origin=page,
            access_control_request_method="POST",
            access_control_request_headers=asked,
        )
        assert preflight.status == 204
        assert header(preflight, "access-control-allow-origin") == "*"
        assert set(asked.split(",")) <= set(header(preflight, "access-control-allow-headers").split(", "))
        assert "DELETE" in header(preflight, "access-control-allow-methods")
        at.key = "key-number-one-1"
        made = await at.offer(origin=page)
        assert "Location" in header(made, "access-control-expose-headers")
        assert header(made, "access-control-allow-origin") == "*"


async def test_without_keys_only_pages_of_this_machine() -> None:
    async with gate(Transceiver(7)) as at:
        assert (await at.offer(origin="http://localhost:3000")).status == 201
        for headers in (
            {"origin": "https://evil.example"},
            {"origin": "null"},
            {"host": "evil.example"},
            {"host": "evil.example", "origin": "http://evil.example"},
        ):
            response = await at.offer(**headers)
            assert response.status == 403 and error(response)["type"] == "permission_error"
            assert header(response, "access-control-allow-origin") == ""
        evil = await at.ask(
            "OPTIONS", CALLS, origin="https://evil.example", access_control_request_method="POST"
        )
        assert evil.status == 403


async def test_the_page_and_its_assets() -> None:
    async with gate() as at:
        page = await at.ask("GET", "/")
        assert page.status == 200 and header(page, "content-type").startswith("text/html")
        assert "default-src 'none'" in header(page, "content-security-policy")
        assert "unsafe" not in header(page, "content-security-policy")
        assert header(await at.ask("GET", "/app.js"), "content-type").startswith("text/javascript")
        assert header(await at.ask("GET", "/style.css"), "content-type").startswith("text/css")
        for path in (
            "/config.py",
            "/../config.py",
            "/..%2fconfig.py",
            "/%2e%2e/config.py",
            "/__init__.py",
            "/nope",
        ):
            response = await at.ask("GET", path)
            assert response.status == 404 and error(response)["type"] == "invalid_request_error"
    async with gate(demo_page=False) as at:
        assert (await at.ask("GET", "/")).status == 404


async def test_methods_that_are_not_there() -> None:
    async with gate(Transceiver(7)) as at:
        for method, path, allow in (
            ("GET", CALLS, "OPTIONS, POST"),
            ("PUT", CALLS, "OPTIONS, POST"),
            ("GET", f"{CALLS}/rtc_x/hangup", "OPTIONS, POST"),
            ("POST", "/healthz", "GET, HEAD, OPTIONS"),
            ("PUT", f"{CALLS}/rtc_x", "DELETE, GET, HEAD, OPTIONS"),
        ):
            response = await at.ask(method, path)
            assert (response.status, error(response)["code"]) == (405, "method_not_allowed")
            assert header(response, "allow") == allow


async def test_a_probe_of_http_1_0_names_no_host() -> None:
    async with gate(Transceiver(7)) as at:
        for path, status in (
            ("/healthz", b"200"),
            ("/readyz", b"200"),
            ("/metrics", b"200"),
            (CALLS, b"403"),
        ):
            assert (await raw(at, f"GET {path} HTTP/1.0\r\n\r\n")).startswith(b"HTTP/1.1 " + status), path
        named = await raw(at, "GET /healthz HTTP/1.0\r\nHost: evil.example\r\n\r\n")
        assert named.startswith(b"HTTP/1.1 403")


@pytest.mark.parametrize("keys", [(), ("key-number-one-1",)])
async def test_a_websocket_where_there_is_none(
    keys: tuple[str, ...], caplog: pytest.LogCaptureFixture
) -> None:
    handshake = (
        "Host: 127.0.0.1\r\nConnection: Upgrade\r\nUpgrade: websocket\r\nSec-WebSocket-Version: 13\r\n"
        "Sec-WebSocket-Key: dGhlIHNhbXBsZSBub25jZQ==\r\n\r\n"
    )
    async with gate(Transceiver(7), **({"api_keys": keys} if keys else {})) as at:
        for path in ("/", "/nope", CALLS, "/v2/elsewhere?model=m"):
            answer = await raw(at, f"GET {path} HTTP/1.1\r\n{handshake}")
            assert answer.startswith((b"HTTP/1.1 404", b"HTTP/1.1 401")), path
        assert (await at.ask("GET", "/healthz")).status == 200
    assert [r for r in caplog.records if r.exc_info or r.levelname in ("ERROR", "CRITICAL")] == []


async def test_a_failure_of_ours_is_an_error_body(monkeypatch: pytest.MonkeyPatch) -> None:
    def broken(*_: object) -> None:
        raise ZeroDivisionError

    async with gate(Transceiver(7)) as at:
        monkeypatch.setattr(signaling_calls.core, "place", broken)
        response = await at.offer()
        assert (response.status, error(response)["code"]) == (500, "internal_error")
        monkeypatch.undo()
        assert (await at.offer()).status == 201
