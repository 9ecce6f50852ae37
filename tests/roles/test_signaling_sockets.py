"""Client secrets, limits and WebSockets of signaling, on real sockets: sidebands to small transceivers,
sessions with the parrot."""

from __future__ import annotations

import json
import random
import time
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from functools import partial
from typing import Any

import httpcore
import pytest
import trio
import trio_websocket
from openai import OpenAI
from openai.types.realtime import RealtimeServerEvent
from pydantic import TypeAdapter
from trio_websocket import ConnectionClosed, ConnectionRejected, open_websocket_url, serve_websocket
from websockets.exceptions import InvalidStatus

from tests.roles.test_signaling import CALLS, KEYS, OTHER_KEYS, SDP, Gate, Transceiver, error, header, record
from voicegate.agents.parrot.server import serve_parrot
from voicegate.config import AgentConfig, Config, KeyConfig, SignalingConfig
from voicegate.net.http import InternalApp, serve_http
from voicegate.net.registry import MemoryRegistry
from voicegate.proto.callid import mint_call_id
from voicegate.proto.client_secret import ClientSecret, mint_client_secret
from voicegate.roles.context import RoleContext
from voicegate.roles.signaling.shell import run
from voicegate.roles.signaling.sockets import REFUSAL_SECONDS
from voicegate.roles.transceiver.control import SidebandPort, sockets

pytestmark = pytest.mark.anyio
FULL = "the-full-key-of-tests"
SHOP = KeyConfig(
    name="shop",
    key="the-key-of-the-shop",
    models=("parrot", "other"),
    client_events=("response.*", "input_audio_buffer.*"),
    server_events=("session.created", "response.*"),
)
SERVER_EVENT = TypeAdapter(RealtimeServerEvent)


class Owner(Transceiver):
    """A transceiver whose calls answer each sideband event with `["heard", event]`."""

    def app(self) -> InternalApp:
        routes = {
            ("POST", "/calls"): self.allocate,
            ("GET", "/calls/"): self.status,
            ("DELETE", "/calls/"): self.end,
        }
        return InternalApp(
            ready=lambda: None,
            routes=routes,
            sockets=sockets(self.attach),
            accepts_token=KEYS.accepts_control_token,
        )

    def attach(self, call_id: str, owner: str) -> SidebandPort | None:
        call = self.calls.get(call_id)
        if call is None or owner not in ("", call["key_id"]):
            return None
        to_call, said = trio.open_memory_channel[str](2)
        tell, to_sideband = trio.open_memory_channel[str](2)

        async def answer() -> None:
            async with said, tell:
                async for text in said:
                    if text == "end":
                        break
                    await tell.send(json.dumps(["heard", text]))

        self.nursery.start_soon(answer)
        return SidebandPort(to_call, to_sideband, 4001, "the call is over")

    nursery: trio.Nursery


@asynccontextmanager
async def gate(
    *transceivers: Transceiver, agent: str = "", instances: int = 1, **settings: Any
) -> AsyncIterator[Gate]:
    registry = MemoryRegistry()
    async with httpcore.AsyncConnectionPool() as pool, trio.open_nursery() as nursery:
        for transceiver in transceivers:
            transceiver.nursery = nursery  # type: ignore[attr-defined]
            control = (await nursery.start(serve_http, transceiver.app(), "127.0.0.1:0"))[0]
            await registry.register(record(transceiver.id, control, transceiver.capacity))
        if agent == "parrot":
            agent = await nursery.start(serve_parrot)
        config = Config(
            signaling=SignalingConfig(listen="127.0.0.1:0", **settings),
            agent=AgentConfig(url=agent, connect_seconds=1.0),
        )
        urls = [
            await nursery.start(partial(run, config, RoleContext(KEYS, registry))) for _ in range(instances)
        ]
        key = FULL if settings.get("api_keys") else ""
        at = Gate(urls[0].rstrip("/"), registry, pool, key)
        at.other = urls[-1].rstrip("/")  # type: ignore[attr-defined]
        yield at
        nursery.cancel_scope.cancel()


def keyed(**changes: Any) -> dict[str, Any]:
    return {"api_keys": (FULL,), "keys": (SHOP,), **changes}


@asynccontextmanager
async def socket(
    url: str, query: str, key: str = "", protocols: tuple[str, ...] = (), **headers: str
) -> AsyncIterator[trio_websocket.WebSocketConnection]:
    sent = [(name.encode(), value.encode()) for name, value in headers.items()]
    if key:
        sent.append((b"authorization", f"Bearer {key}".encode()))
    address = f"{url.replace('http', 'ws', 1)}/v1/realtime{query}"
    with trio.fail_after(10):
        async with open_websocket_url(
            address, extra_headers=sent, subprotocols=protocols, max_message_size=2**25
        ) as ws:
            yield ws


async def refused(url: str, query: str, key: str = "", **headers: str) -> tuple[int, dict[str, Any]]:
    with pytest.raises(ConnectionRejected) as caught:
        async with socket(url, query, key, **headers):
            pass
    body = json.loads(caught.value.body or b"")["error"]
    assert set(body) == {"type", "code", "message", "param"}
    return caught.value.status_code, body


async def event(ws: trio_websocket.WebSocketConnection) -> dict[str, Any]:
    found = json.loads(await ws.get_message())
    SERVER_EVENT.validate_python(found)
    return found


def form(session: str = '{"type":"realtime"}', sdp: str = "v=0\r\n") -> bytes:
    return (
        f'--b\r\nContent-Disposition: form-data; name="session"; filename=""\r\n\r\n{session}\r\n'
        f'--b\r\nContent-Disposition: form-data; name="sdp"\r\n'
        f"Content-Type: application/sdp\r\n\r\n{sdp}\r\n--b--\r\n"
    ).encode()


FORM = {"content-type": "multipart/form-data; boundary=b"}


async def test_a_form_with_a_session_and_a_channel_id() -> None:
    transceiver = Transceiver(7)
    async with gate(transceiver, **keyed()) as at:
        session = {"type": "realtime", "model": "m-2", "audio": {"output": {"voice": "x"}}}
        made = await at.ask("POST", CALLS + "?dcid=65534", form(json.dumps(session)), **FORM)
        assert made.status == 201
        asked = next(iter(transceiver.calls.values()))
        assert asked["sdp"] == "v=0\r\n"
        assert (asked["session"], asked["model"], asked["dcid"]) == (session, "m-2", 65534)
        assert asked["key_id"].startswith("key_") and FULL not in json.dumps(asked)
        for dcid in ("65535", "-1", "x", "", "1e3", "%D9%A3", "0" * 4000):
            bad = await at.offer("v=0", CALLS + f"?dcid={dcid}")
            assert (bad.status, error(bad)["param"]) == (400, "dcid")


@pytest.mark.parametrize(
    ("body", "code", "param"),
    [
        (b"", "invalid_multipart", "body"),
        (form().replace(b"--b--", b""), "invalid_multipart", "body"),
        (form().replace(b'"sdp"', b'"sdq"'), "missing_sdp", "sdp"),
        (form(sdp=" "), "empty_offer", "sdp"),
        (form("[]"), "invalid_session", "session"),
        (form("{"), "invalid_session", "session"),
        (form("[" * 20_000), "invalid_session", "session"),
        (form('{"a":"' + "x" * 66_000 + '"}'), "session_too_large", "session"),
        (form(sdp="v" * 66_000), "offer_too_large", "sdp"),
    ],
)
async def test_bad_forms(body: bytes, code: str, param: str) -> None:
    async with gate(Transceiver(7)) as at:
        bad = await at.ask("POST", CALLS, body, **FORM)
        assert (bad.status, error(bad)["code"], error(bad)["param"]) == (400, code, param)
        assert (await at.ask("POST", CALLS, form(), **FORM)).status == 201


async def secret(at: Gate, key: str = "", **body: Any) -> dict[str, Any]:
    headers = {"authorization": f"Bearer {key}"} if key else {}
    made = await at.ask("POST", "/v1/realtime/client_secrets", json.dumps(body), **headers)
    assert made.status == 200, made.content
    return dict(json.loads(made.content))


async def test_a_secret_carries_its_session_to_any_instance() -> None:
    transceiver = Transceiver(7)
    async with gate(transceiver, instances=2, **keyed()) as at:
        session = {"type": "realtime", "model": "parrot", "instructions": "Be kind.", "tools": []}
        made = await at.ask(
            "POST",
            "/v1/realtime/client_secrets",
            json.dumps({"session": session, "expires_after": {"seconds": 10}}),
            authorization=f"Bearer {SHOP.key}",
            openai_safety_identifier="user-7",
        )
        answer = json.loads(made.content)
        assert made.status == 200 and header(made, "cache-control") == "no-store"
        assert abs(answer["expires_at"] - time.time() - 10) < 3
        assert answer["session"]["id"].startswith("sess_")
        assert {**session, "object": "realtime.session"}.items() <= answer["session"].items()
        at.url, at.key = at.other, answer["value"]  # type: ignore[attr-defined]
        assert (await at.offer()).status == 201
        asked = next(iter(transceiver.calls.values()))
        assert (asked["session"], asked["model"]) == (session, "parrot")
        assert (asked["key_id"], asked["safety_identifier"]) == ("shop", "user-7")
        assert asked["client_events"] == list(SHOP.client_events)
        assert asked["server_events"] == list(SHOP.server_events)
        # What the browser adds to its offer does not count, a model that the key is not for is refused.
        assert (await at.ask("POST", CALLS, form('{"instructions":"Be rude."}'), **FORM)).status == 201
        assert list(transceiver.calls.values())[-1]["session"] == session
        other = await at.offer("v=0", CALLS + "?model=other")
        assert (other.status, error(other)["code"]) == (403, "model_not_allowed")
        again = await at.ask("POST", "/v1/realtime/client_secrets")
        assert (again.status, error(again)["code"]) == (403, "standard_key_required")


@pytest.mark.parametrize(
    ("body", "param"),
    [
        ("{", "body"), ("[]", "body"), ('{"session":3}', "session"), ('{"session":{"model":3}}', "session"),
        ('{"expires_after":{"seconds":9}}', "expires_after.seconds"),
        ('{"expires_after":{"seconds":7201}}', "expires_after.seconds"),
        ('{"expires_after":{"seconds":true}}', "expires_after.seconds"),
        ('{"expires_after":{"seconds":"60"}}', "expires_after.seconds"),
        ('{"expires_after":{"anchor":"now"}}', "expires_after.anchor"),
        ('{"expires_after":1}', "expires_after.anchor"),
        (json.dumps({"session": {"instructions": random.Random(1).randbytes(7000).hex()}}), "session"),
        (json.dumps({"session": {"instructions": "x" * 70_000}}), "body"),
    ],
)  # fmt: skip
async def test_bad_requests_for_a_secret(body: str, param: str) -> None:
    async with gate() as at:
        bad = await at.ask("POST", "/v1/realtime/client_secrets", body)
        assert (bad.status, error(bad)["param"]) == (400, param)
        assert (await secret(at))["value"].startswith("ek_")


async def test_wrong_secrets_are_401_after_the_same_time() -> None:
    now = int(time.time())
    wrong = [
        mint_client_secret(KEYS.seal, ClientSecret("sess_1", "shop", now - 1)),
        mint_client_secret(OTHER_KEYS.seal, ClientSecret("sess_1", "shop", now + 60)),
        mint_client_secret(KEYS.seal, ClientSecret("sess_1", "a key that is gone", now + 60)),
        "ek_forged", "ek_", "ek_" + "A" * 7000,
    ]  # fmt: skip
    async with gate(Transceiver(7), **keyed()) as at:
        for token in wrong:
            began = time.monotonic()
            response = await at.offer(authorization=f"Bearer {token}")
            assert (response.status, error(response)["type"]) == (401, "authentication_error"), token
            assert time.monotonic() - began >= REFUSAL_SECONDS
            began = time.monotonic()
            assert (await refused(at.url, "?model=parrot", token))[0] == 401
            assert time.monotonic() - began >= REFUSAL_SECONDS


async def test_the_models_of_a_key() -> None:
    transceiver = Transceiver(7)
    async with gate(transceiver, **keyed()) as at:
        at.key = SHOP.key
        bad = await at.offer("v=0", CALLS + "?model=gold")
        assert (bad.status, error(bad)["code"]) == (403, "model_not_allowed")
        assert (await at.ask("POST", CALLS, form('{"model":"gold"}'), **FORM)).status == 403
        assert (await at.offer()).status == 201
        assert next(iter(transceiver.calls.values()))["model"] == "parrot"


async def test_a_key_at_its_limit_finds_that_calls_have_ended() -> None:
    transceiver = Transceiver(7)
    shop = KeyConfig(name="shop", key=SHOP.key, max_calls=2)
    async with gate(transceiver, **keyed(keys=(shop,))) as at:
        at.key = SHOP.key
        for _ in range(2):
            assert (await at.offer()).status == 201
        full = await at.offer()
        assert (full.status, error(full)["type"], error(full)["code"]) == (
            429,
            "rate_limit_error",
            "call_limit_reached",
        )
        assert int(header(full, "retry-after")) > 0
        at.key = FULL
        assert (await at.offer()).status == 201, "one key's limit is not another's"
        at.key = SHOP.key
        transceiver.calls.clear()
        assert (await at.offer()).status == 429, "not asked again within a second"
        await trio.sleep(1.0)
        location = header(await at.offer(), "location")
        assert (await at.offer()).status == 201
        assert (await at.ask("DELETE", location)).status == 200
        assert (await at.offer()).status == 201


async def test_the_rate_of_a_key() -> None:
    shop = KeyConfig(name="shop", key=SHOP.key, calls_per_minute=3)
    async with gate(Transceiver(7), agent="parrot", **keyed(keys=(shop,))) as at:
        at.key = SHOP.key
        assert [(await at.offer()).status for _ in range(4)] == [201, 201, 201, 429]
        assert (await refused(at.url, "?model=parrot", SHOP.key))[0] == 429


async def test_a_sideband_through_any_instance() -> None:
    async with gate(Owner(7), Owner(8), instances=2, **keyed()) as at:
        for _ in range(4):
            call_id = header(await at.offer(), "location").rpartition("/")[2]
            protocols = ("realtime", f"openai-insecure-api-key.{FULL}")
            async with socket(at.other, f"?call_id={call_id}", protocols=protocols) as ws:  # type: ignore[attr-defined]
                assert ws.subprotocol == "realtime"
                for text in ('{"type":"response.create"}', "ü" * 300_000, "x" * 8_000_000):
                    await ws.send_message(text)
                    assert json.loads(await ws.get_message()) == ["heard", text]
                await ws.send_message("end")
                with pytest.raises(ConnectionClosed) as caught:
                    await ws.get_message()
                assert (caught.value.reason.code, caught.value.reason.reason) == (4001, "the call is over")


async def test_sidebands_to_calls_that_are_not_ones_own_are_404_after_the_same_time() -> None:
    async with gate(Owner(7), **keyed()) as at:
        call_id = header(await at.offer(), "location").rpartition("/")[2]
        ids = [
            call_id,  # the full key's, asked for by the shop
            mint_call_id(KEYS.seal, 1, 7, b"unknown!"),
            mint_call_id(KEYS.seal, 1, 99, bytes(8)),
            mint_call_id(OTHER_KEYS.seal, 1, 7, bytes(8)),
            call_id[:-1] + ("A" if call_id[-1] != "A" else "B"),
            "rtc_", "", "x" * 3000, "%ff%00", "..%2f..",
        ]  # fmt: skip
        for id in ids:
            began = time.monotonic()
            status, body = await refused(at.url, f"?call_id={id}", SHOP.key)
            assert (status, body["code"], body["param"]) == (404, "call_id_not_found", "call_id"), id
            assert time.monotonic() - began >= REFUSAL_SECONDS
        at.key = SHOP.key
        own = header(await at.offer(), "location").rpartition("/")[2]
        for key in (SHOP.key, FULL):
            async with socket(at.url, f"?call_id={own}", key) as ws:
                await ws.send_message("a")
                assert json.loads(await ws.get_message()) == ["heard", "a"]
        browser = (await secret(at))["value"]
        status, body = await refused(at.url, f"?call_id={own}", browser)
        assert (status, body["code"]) == (403, "standard_key_required")


async def test_the_openai_clients_sideband() -> None:
    def talk(url: str, call_id: str) -> object:
        client = OpenAI(api_key=FULL, base_url=f"{url}/v1")
        with client.realtime.connect(call_id=call_id) as connection:
            connection.response.create(event_id="e1")
            return json.loads(connection.recv_bytes())

    def find(url: str, call_id: str) -> object:
        client = OpenAI(api_key=FULL, base_url=f"{url}/v1")
        with pytest.raises(InvalidStatus) as caught, client.realtime.connect(call_id=call_id):
            pass
        return caught.value.response.status_code

    async with gate(Owner(7), **keyed()) as at:
        call_id = header(await at.offer(), "location").rpartition("/")[2]
        heard = await trio.to_thread.run_sync(talk, at.url, call_id)
        assert isinstance(heard, list)
        assert json.loads(heard[1]) == {"type": "response.create", "event_id": "e1"}
        assert await trio.to_thread.run_sync(find, at.url, "rtc_none") == 404


async def test_a_slow_reader_slows_its_writer() -> None:
    """Neither side's messages pile up here, whichever of the two does not read."""
    sent = {"agent": 0, "client": 0}
    text = "x" * 1_000_000

    async def agent(request: trio_websocket.WebSocketRequest) -> None:
        ws = await request.accept()
        try:
            while "model=talks" in request.path:
                await ws.send_message(text)
                sent["agent"] += 1
            await trio.sleep_forever()
        except ConnectionClosed:
            pass

    async with trio.open_nursery() as nursery:
        server = await nursery.start(
            partial(serve_websocket, message_queue_size=0, receive_buffer_size=4096),
            agent,
            "127.0.0.1",
            0,
            None,
        )
        async with gate(agent=f"ws://127.0.0.1:{server.port}/") as at:
            stream = await trio.open_tcp_stream("127.0.0.1", int(at.url.rpartition(":")[2]))
            await stream.send_all(
                b"GET /v1/realtime?model=talks HTTP/1.1\r\nhost: 127.0.0.1\r\nconnection: upgrade\r\n"
                b"upgrade: websocket\r\nsec-websocket-version: 13\r\n"
                b"sec-websocket-key: AAAAAAAAAAAAAAAAAAAAAA==\r\n\r\n"
            )
            await trio.sleep(0.5)
            assert 0 < sent["agent"] < 40
            before = sent["agent"]
            await trio.sleep(0.2)
            assert sent["agent"] == before
            await stream.aclose()
            with trio.move_on_after(0.5):
                async with socket(at.url, "?model=listens") as ws:
                    while True:
                        await ws.send_message(text)
                        sent["client"] += 1
            assert 0 < sent["client"] < 40
            nursery.cancel_scope.cancel()


async def test_a_dead_transceiver_is_503() -> None:
    async with gate() as at:
        await at.registry.register(record(8, "127.0.0.1:1"))
        status, body = await refused(at.url, f"?call_id={mint_call_id(KEYS.seal, 1, 8, bytes(8))}")
        assert (status, body["type"]) == (503, "server_error")


async def test_the_agents_websocket_whole() -> None:
    async with gate(agent="parrot", **keyed()) as at, socket(at.url, "?model=m", FULL, ("realtime",)) as ws:
        assert ws.subprotocol == "realtime"
        created = await event(ws)
        assert (created["type"], created["session"]["model"]) == ("session.created", "m")
        await ws.send_message('{"type":"session.update","event_id":"e1","session":{"type":"nonsense"}}')
        answer = await event(ws)
        assert (answer["type"], answer["error"]["event_id"]) == ("error", "e1")


async def test_a_secrets_session_is_set_and_its_filters_hold() -> None:
    async with gate(agent="parrot", **keyed()) as at:
        browser = (await secret(at, session={"type": "realtime", "instructions": "Hush."}))["value"]
        async with socket(at.url, "?model=m", browser) as ws:
            assert (await event(ws))["type"] == "session.created"
            updated = await event(ws)
            assert (updated["type"], updated["session"]["instructions"]) == ("session.updated", "Hush.")
        browser = (await secret(at, SHOP.key, session={"instructions": "Hush."}))["value"]
        async with socket(at.url, "", browser) as ws:
            assert (await event(ws))["session"]["model"] == "parrot"
            for text in (
                '{"type":"session.update","event_id":"e1","session":{"type":"realtime"}}',
                '{"type":"response.create","type":"session.update","event_id":"e1"}',
                '{"type":3,"event_id":"e1"}',
                '{"type":"session.update","x":NaN}',
                "[" * 100_000,
                "",
            ):
                await ws.send_message(text)
                answer = await event(ws)
                assert answer["type"] == "error" and answer["error"]["type"] == "invalid_request_error"
                assert answer["error"]["event_id"] in ("e1", None)
            await ws.send_message('{"type":"response.create","event_id":"e2"}')
            assert (await event(ws))["type"] in ("response.created", "error"), "no session.updated came"


async def test_close_codes_and_losses_of_an_agent() -> None:
    ended: list[int | None] = []

    async def agent(request: trio_websocket.WebSocketRequest) -> None:
        ws = await request.accept()
        try:
            if "model=close" in request.path:
                await ws.aclose(4444, "enough")
            elif "model=drop" in request.path:
                await ws._stream.aclose()
            await ws.get_message()
        except ConnectionClosed as closed:
            ended.append(closed.reason.code if closed.reason else None)

    async with trio.open_nursery() as nursery:
        server = await nursery.start(serve_websocket, agent, "127.0.0.1", 0, None)
        async with gate(agent=f"ws://127.0.0.1:{server.port}/") as at:
            for model, code in (("close", 4444), ("drop", 1011)):
                async with socket(at.url, f"?model={model}") as ws:
                    with pytest.raises(ConnectionClosed) as caught:
                        await ws.get_message()
                    assert caught.value.reason.code == code
            ended.clear()
            async with socket(at.url, "?model=wait") as ws:
                await ws.aclose(3210)
            with trio.fail_after(5):
                while not ended:  # noqa: ASYNC110
                    await trio.sleep(0.01)
            assert ended == [3210]
        nursery.cancel_scope.cancel()


async def test_no_agent_and_an_agent_that_is_not_there() -> None:
    async with gate() as at:
        status, body = await refused(at.url, "?model=m")
        assert (status, body["code"]) == (503, "agent_not_configured")
    async with gate(agent="ws://127.0.0.1:1/") as at:
        status, body = await refused(at.url, "?model=m")
        assert (status, body["code"]) == (502, "agent_unreachable")


async def test_pages_and_hosts_that_may_not() -> None:
    """No preflight protects a WebSocket: without keys any page could open one to this machine."""
    async with gate(agent="parrot") as at:
        for headers in ({"origin": "https://evil.example"}, {"origin": "null"}):
            assert (await refused(at.url, "?model=m", **headers))[0] == 403
        async with socket(at.url, "?model=m", origin="http://localhost:3000") as ws:
            assert (await event(ws))["type"] == "session.created"
    async with gate(agent="parrot", **keyed()) as at:
        for key in ("", "wrong", "ek_"):
            status, body = await refused(at.url, "?model=m", key)
            assert (status, body["type"]) == (401, "authentication_error")
        with pytest.raises(ConnectionRejected):
            async with open_websocket_url(at.url.replace("http", "ws") + "/v1/other"):
                pass


async def test_as_many_websockets_as_configured() -> None:
    async with gate(agent="parrot", max_websockets=2) as at:
        async with socket(at.url, "?model=m"), socket(at.url, "?model=m"):
            assert (await refused(at.url, "?model=m", "ek_of_a_stranger"))[0] == 401
            assert (await refused(at.url, "?model=m"))[0] == 503
            page = (await at.ask("GET", "/metrics")).content
            assert b"voicegate_signaling_websockets 2.0" in page
        with trio.fail_after(5):
            while b"voicegate_signaling_websockets 0.0" not in page:
                await trio.sleep(0.01)
                page = (await at.ask("GET", "/metrics")).content


async def test_stopping_says_going_away_at_once() -> None:
    codes: list[int] = []

    async def watch(url: str) -> None:
        async with socket(url, "?model=m") as ws:
            await ws.get_message()
            up.set()
            with pytest.raises(ConnectionClosed) as caught:
                await ws.get_message()
            codes.append(caught.value.reason.code)

    up = trio.Event()
    async with trio.open_nursery() as nursery:
        async with gate(agent="parrot") as at:
            nursery.start_soon(watch, at.url)
            await up.wait()
            began = time.monotonic()
        assert time.monotonic() - began < 1.5
    assert codes in ([1001], [1011]), "the parrot may have stopped first"


async def test_the_beta_clients_are_told() -> None:
    async with gate(Transceiver(7)) as at:
        response = await at.ask("POST", "/v1/realtime?model=x", "v=0", **SDP)
        assert (response.status, error(response)["code"]) == (400, "beta_withdrawn")
