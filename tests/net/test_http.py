"""The internal HTTP server: its routes, its token, its limits, and that it lets go of every connection."""

from __future__ import annotations

import json
import os
import stat
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager
from functools import partial
from pathlib import Path

import httpcore
import pytest
import trio
from h2.config import H2Configuration
from h2.connection import H2Connection
from quart import request
from quart_trio import QuartTrio

from voicegate import metrics
from voicegate.config import parse_listen
from voicegate.net import http
from voicegate.net.http import InternalApp, Request, Response, serve_http

pytestmark = pytest.mark.anyio
TOKEN = "t" * 32
BIG = bytes(20_000_000)
"""More than the sockets of a connection take while nobody reads."""


async def test_probes_need_no_token_and_say_why_not_ready() -> None:
    reason: list[str | None] = [None]
    async with serving(InternalApp(ready=lambda: reason[0])) as address, client() as ask:
        assert (await ask("GET", address, "/healthz")).content == b"ok\n"
        assert (await ask("GET", address, "/readyz")).status == 200
        reason[0] = "the registry is out of date"
        response = await ask("GET", address, "/readyz")
        assert (response.status, response.content) == (503, b"the registry is out of date\n")
        assert (await ask("HEAD", address, "/healthz")).status == 200


async def test_metrics_page_shows_what_is_exposed() -> None:
    sample = metrics.Sample("voicegate_test_things_total", "counter", "Things.", {"kind": "a"}, 3)
    forget = metrics.expose(lambda: [sample])
    async with serving(InternalApp(ready=lambda: None)) as address, client() as ask:
        response = await ask("GET", address, "/metrics")
        assert b'voicegate_test_things_total{kind="a"} 3.0' in response.content
        assert (b"content-type", metrics.CONTENT_TYPE.encode()) in response.headers
        forget()
        assert b"voicegate_test_things" not in (await ask("GET", address, "/metrics")).content


async def test_control_routes_by_exact_path_and_by_prefix() -> None:
    async with serving(echo_app()) as address, client(TOKEN) as ask:
        made = await ask("POST", address, "/calls?model=x", b"offer")
        assert json.loads(made.content) == ["POST", "", "model=x", "offer"]
        ended = await ask("DELETE", address, "/calls/rtc_1")
        assert json.loads(ended.content) == ["DELETE", "rtc_1", "", ""]
        for method, path, allow in (
            ("DELETE", "/calls", b"POST"),
            ("GET", "/calls/rtc_1", b"DELETE"),
            ("POST", "/healthz", b"GET, HEAD"),
        ):
            refused = await ask(method, address, path)
            assert refused.status == 405 and (b"Allow", allow) in refused.headers
        assert (await ask("DELETE", address, "/calls/rtc_1/more")).status == 404
        assert (await ask("GET", address, "/elsewhere")).status == 404


@pytest.mark.parametrize("token", ["", "wrong", TOKEN + "x", TOKEN[:-1], "\u00e9"])
async def test_control_routes_refuse_other_tokens(token: str) -> None:
    async with serving(echo_app()) as address, client(token) as ask:
        response = await ask("POST", address, "/calls", b"offer")
        assert response.status == 401
        error = json.loads(response.content)["error"]
        assert (error["type"], error["code"]) == ("authentication_error", "invalid_token")


async def test_control_routes_are_closed_unless_a_token_is_accepted() -> None:
    app = InternalApp(ready=lambda: None, routes={("POST", "/calls"): echo})
    async with serving(app) as address, client(TOKEN) as ask:
        assert (await ask("POST", address, "/calls")).status == 401


@pytest.mark.parametrize("size", [1001, 70_000, 900_000])
async def test_oversized_body_is_refused_and_the_server_goes_on(size: int) -> None:
    async with serving(echo_app(body_limit=1000)) as address, client(TOKEN) as ask:
        assert (await ask("POST", address, "/calls", b"x" * 1000)).status == 200
        response = await ask("POST", address, "/calls", b"x" * size)
        assert response.status == 413
        assert (await ask("POST", address, "/calls", b"x")).status == 200


async def test_endless_body_is_cut_off() -> None:
    baseline = task_count()
    async with serving(echo_app(body_limit=1000)) as address:
        idle = task_count()
        stream = await trio.open_tcp_stream(*parse_listen(address))
        head = f"POST /calls HTTP/1.1\r\nhost: x\r\nauthorization: Bearer {TOKEN}\r\n"
        await stream.send_all(f"{head}content-length: 100000000\r\n\r\n".encode())
        with pytest.raises(trio.BrokenResourceError):
            for _ in range(1000):
                await stream.send_all(b"x" * 100_000)
        await stream.aclose()
        await settles(lambda: task_count() <= idle)
    assert task_count() == baseline


async def test_a_failing_handler_is_an_error_body_not_the_end() -> None:
    async def fail(_: Request) -> Response:
        raise ZeroDivisionError

    app = InternalApp(ready=lambda: None, routes={("POST", "/fail"): fail}, accepts_token=TOKEN.__eq__)
    async with serving(app) as address, client(TOKEN) as ask:
        for _ in range(2):
            response = await ask("POST", address, "/fail")
            assert response.status == 500
            assert json.loads(response.content)["error"]["type"] == "server_error"


async def test_junk_does_not_end_the_server(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(http, "STALLED_SECONDS", 0.2)
    junk = [
        b"\x16\x03\x01\x02\x00\x01" * 50,
        b"\x00" * 100,
        b"GET / HTTP/9.9\r\n\r\n",
        b"GET \xff\xfe HTTP/1.1\r\nhost: x\r\n\r\n",
        b"GET /%ff%fe HTTP/1.1\r\nhost: x\r\n\r\n",
        b"GET / HTTP/1.1\r\n" + b"a: " + b"x" * 100_000 + b"\r\n\r\n",
        b"POST /calls HTTP/1.1\r\nhost: x\r\ncontent-length: -5\r\n\r\n",
        b"POST /calls HTTP/1.1\r\nhost: x\r\ntransfer-encoding: chunked\r\n\r\nZZZ\r\n",
        b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n",
        b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n" + b"\xff" * 200,
        b"GET / HTTP/1.1\r\nhost: x\r\nupgrade: h2c\r\nconnection: upgrade\r\n\r\n",
        b"GET / HTTP/1.1\r\nhost: x\r\nupgrade: websocket\r\nconnection: upgrade\r\n\r\n",
    ]
    async with serving(echo_app()) as address, client() as ask:
        for data in junk:
            stream = await trio.open_tcp_stream(*parse_listen(address))
            with trio.move_on_after(0.05):
                await stream.send_all(data)
                await stream.receive_some()
            await stream.aclose()
            assert (await ask("GET", address, "/healthz")).status == 200, data


@pytest.mark.parametrize("kind", ["internal", "quart"])
async def test_connection_close_leaves_nothing_behind(kind: str) -> None:
    """quart-trio 0.12 on Hypercorn 0.18 kept 19 of 20 connections without the shield around `send`."""
    async with serving(app_of(kind)) as address:
        tasks, sockets = task_count(), socket_count()
        for _ in range(20):
            assert await raw_get(address, close=True)
        await settles(lambda: (task_count(), socket_count()) == (tasks, sockets))


@pytest.mark.parametrize("kind", ["internal", "quart"])
async def test_keep_alive_expires(kind: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(http, "KEEP_ALIVE_SECONDS", 0.05)
    async with serving(app_of(kind)) as address:
        tasks, sockets = task_count(), socket_count()
        streams = [await trio.open_tcp_stream(*parse_listen(address)) for _ in range(5)]
        for stream in streams:
            await stream.send_all(b"GET /healthz HTTP/1.1\r\nhost: x\r\n\r\n")
        with trio.fail_after(5):
            for stream in streams:
                while await stream.receive_some():
                    pass
                await stream.aclose()
        await settles(lambda: (task_count(), socket_count()) == (tasks, sockets))


async def test_cancelling_lets_a_request_finish_but_not_for_ever(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(http, "GRACE_SECONDS", 0.3)
    started, release = trio.Event(), trio.Event()

    async def slow(request: Request) -> Response:
        started.set()
        if request.body == b"ends":
            await release.wait()
        else:
            await trio.sleep_forever()
        return Response(200, b"{}")

    app = InternalApp(ready=lambda: None, routes={("POST", "/slow"): slow}, accepts_token=TOKEN.__eq__)
    statuses: list[int] = []
    async with client(TOKEN) as ask, trio.open_nursery() as nursery:
        server = await nursery.start(running, app)

        async def post(body: bytes) -> None:
            try:
                statuses.append((await ask("POST", server.address, "/slow", body)).status)
            except httpcore.RemoteProtocolError:
                statuses.append(0)

        nursery.start_soon(post, b"ends")
        nursery.start_soon(post, b"never")
        await started.wait()
        server.scope.cancel()
        await trio.testing.wait_all_tasks_blocked()
        release.set()
        with trio.fail_after(5):
            await server.ended.wait()
        with trio.fail_after(5):
            while len(statuses) < 2:
                await trio.lowlevel.checkpoint()
    assert sorted(statuses) in ([0, 200], [200, 500])


@pytest.mark.parametrize("kind", ["internal", "quart"])
async def test_stalled_peers_do_not_hold_up_the_end(kind: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """Peers that read nothing, by the socket's window and by HTTP/2's, that stop in a request's head or in
    its body."""
    monkeypatch.setattr(http, "GRACE_SECONDS", 0.3)
    head = f"HTTP/1.1\r\nhost: x\r\nauthorization: Bearer {TOKEN}\r\n".encode()
    peers = [
        *[b"GET /big " + head + b"\r\n"] * 4,
        b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n" + h2_get("/big"),
        b"GET /big HT",
        b"POST /big " + head + b"content-length: 100\r\n\r\nabc",
    ]
    async with trio.open_nursery() as nursery:
        server = await nursery.start(running, app_of(kind))
        bystander = await trio.open_tcp_listeners(0, host="127.0.0.1")
        mine = await trio.open_tcp_stream(*bystander[0].socket.getsockname()[:2])
        theirs = await bystander[0].accept()
        streams = [await trio.open_tcp_stream(*parse_listen(server.address)) for _ in peers]
        for stream, data in zip(streams, peers, strict=True):
            await stream.send_all(data)
        for stream in streams[:4]:
            assert await stream.receive_some(1)
        await trio.sleep(0.1)
        server.scope.cancel()
        with trio.fail_after(2):  # the kernel's own limit is 10 s
            await server.ended.wait()
        await mine.send_all(b"x")
        assert await theirs.receive_some() == b"x", "connections that are not the server's stay"
        for each in (*streams, mine, theirs, *bystander):
            await each.aclose()


async def test_a_bad_certificate_is_named(tmp_path: Path) -> None:
    certificate, _ = self_signed(tmp_path)
    with pytest.raises(OSError, match=f"cannot use certificate {certificate} with key {certificate}"):
        await serve_http(echo_app(), "127.0.0.1:0", certificate=certificate, private_key=certificate)


async def test_a_taken_port_is_named() -> None:
    async with serving(echo_app()) as address:
        with pytest.raises(OSError, match=f"cannot listen on {address}: Address already in use"):
            await serve_http(echo_app(), address)


async def test_ipv6_and_https(tmp_path: Path) -> None:
    certificate, key = self_signed(tmp_path)
    async with serving(echo_app(), "[::1]:0", certificate=certificate, private_key=key) as address:
        assert address.startswith("[::1]:")
        plain = await trio.open_tcp_stream(*parse_listen(address))
        await plain.send_all(b"GET / HTTP/1.1\r\n\r\n")
        await plain.aclose()
        context = httpcore.default_ssl_context()
        context.load_verify_locations(certificate)
        async with httpcore.AsyncConnectionPool(ssl_context=context) as pool:
            named = {"sni_hostname": "localhost"}
            response = await pool.request("GET", f"https://{address}/healthz", extensions=named)
            assert response.content == b"ok\n"


async def echo(request: Request) -> Response:
    values = [request.method, request.tail, request.query, request.body.decode()]
    return Response(200, json.dumps(values).encode())


async def big(_: Request) -> Response:
    return Response(200, BIG)


def h2_get(path: str) -> bytes:
    connection = H2Connection(H2Configuration(client_side=True))
    connection.initiate_connection()
    head = {":method": "GET", ":path": path, ":scheme": "http", ":authority": "x"}
    connection.send_headers(1, [*head.items(), ("authorization", f"Bearer {TOKEN}")], end_stream=True)
    return connection.data_to_send().removeprefix(b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n")


def echo_app(body_limit: int = http.BODY_LIMIT) -> InternalApp:
    return InternalApp(
        ready=lambda: None,
        routes={
            ("POST", "/calls"): echo,
            ("DELETE", "/calls/"): echo,
            ("GET", "/big"): big,
            ("POST", "/big"): big,
        },
        accepts_token=TOKEN.__eq__,
        body_limit=body_limit,
    )


def app_of(kind: str) -> http.AsgiApp:
    if kind == "internal":
        return echo_app()
    app = QuartTrio(__name__)

    @app.get("/healthz")
    async def healthz() -> str:
        return "ok\n"

    @app.get("/big")
    async def get_big() -> bytes:
        return BIG

    @app.post("/big")
    async def post_big() -> bytes:
        await request.get_data()
        return BIG

    return app


class Server:
    def __init__(self, address: str, scope: trio.CancelScope, ended: trio.Event) -> None:
        self.address, self.scope, self.ended = address, scope, ended


async def running(
    app: http.AsgiApp,
    listen: str = "127.0.0.1:0",
    certificate: str = "",
    private_key: str = "",
    *,
    task_status: trio.TaskStatus[Server],
) -> None:
    ended = trio.Event()
    with trio.CancelScope() as scope:
        async with trio.open_nursery() as nursery:
            serve = partial(serve_http, app, listen, certificate=certificate, private_key=private_key)
            bound = await nursery.start(serve)
            task_status.started(Server(bound[0], scope, ended))
    ended.set()


@asynccontextmanager
async def serving(
    app: http.AsgiApp, listen: str = "127.0.0.1:0", certificate: str = "", private_key: str = ""
) -> AsyncIterator[str]:
    async with trio.open_nursery() as nursery:
        server = await nursery.start(running, app, listen, certificate, private_key)
        yield server.address
        server.scope.cancel()


@asynccontextmanager
async def client(token: str = "") -> AsyncIterator[Callable[..., object]]:
    async with httpcore.AsyncConnectionPool() as pool:

        async def ask(method: str, address: str, target: str, body: bytes = b"") -> httpcore.Response:
            headers = [(b"authorization", f"Bearer {token}".encode())] if token else []
            with trio.fail_after(10):
                return await pool.request(method, f"http://{address}{target}", headers=headers, content=body)

        yield ask


async def raw_get(address: str, close: bool) -> bytes:
    stream = await trio.open_tcp_stream(*parse_listen(address))
    connection = "close" if close else "keep-alive"
    await stream.send_all(f"GET /healthz HTTP/1.1\r\nhost: x\r\nconnection: {connection}\r\n\r\n".encode())
    received = b""
    with trio.fail_after(5):
        while data := await stream.receive_some():
            received += data
    await stream.aclose()
    return received


async def settles(condition: Callable[[], bool]) -> None:
    """Connections close within a few turns of the loop and of the kernel; a leak never does."""
    with trio.fail_after(5):
        while not condition():  # noqa: ASYNC110  (nothing tells when the kernel is done)
            await trio.sleep(0.01)


def task_count() -> int:
    def below(task: trio.lowlevel.Task) -> int:
        return 1 + sum(below(child) for nursery in task.child_nurseries for child in nursery.child_tasks)

    root = trio.lowlevel.current_root_task()
    assert root is not None
    return below(root)


def socket_count() -> int:
    count = 0
    for descriptor in range(256):
        try:
            count += stat.S_ISSOCK(os.fstat(descriptor).st_mode)
        except OSError:
            continue
    return count


def self_signed(directory: Path) -> tuple[str, str]:
    import datetime

    from cryptography import x509
    from cryptography.hazmat.primitives import hashes, serialization
    from cryptography.hazmat.primitives.asymmetric import ec

    key = ec.generate_private_key(ec.SECP256R1())
    name = x509.Name([x509.NameAttribute(x509.NameOID.COMMON_NAME, "localhost")])
    start = datetime.datetime(2020, 1, 1)
    certificate = (
        x509.CertificateBuilder()
        .subject_name(name)
        .issuer_name(name)
        .public_key(key.public_key())
        .serial_number(1)
        .not_valid_before(start)
        .not_valid_after(start.replace(year=2100))
        .add_extension(x509.SubjectAlternativeName([x509.DNSName("localhost")]), critical=False)
        .add_extension(x509.BasicConstraints(ca=True, path_length=None), critical=True)
        .sign(key, hashes.SHA256())
    )
    paths = directory / "certificate.pem", directory / "key.pem"
    paths[0].write_bytes(certificate.public_bytes(serialization.Encoding.PEM))
    paths[1].write_bytes(
        key.private_bytes(
            serialization.Encoding.PEM, serialization.PrivateFormat.PKCS8, serialization.NoEncryption()
        )
    )
    return str(paths[0]), str(paths[1])
