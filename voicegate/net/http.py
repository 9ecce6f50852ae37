"""HTTP inside the cluster: the small server every role has, and the way every server here is run.

`InternalApp` is an ASGI application without a framework, so that a relay stays small: `/healthz`, `/readyz`
and `/metrics` for whoever watches, and control routes and WebSockets that want the cluster's bearer token.
`serve_http` runs it, or any other ASGI application, on Hypercorn's Trio worker.

    app = InternalApp(ready=lambda: None, routes={("POST", "/calls"): allocate},
                      accepts_token=keys.accepts_control_token)
    bound = await nursery.start(partial(serve_http, app, "127.0.0.1:0"))     # ["127.0.0.1:41234"]

Control traffic is plain HTTP: the token keeps strangers out, the network keeps listeners out. Run it only
where an operator would run Redis.
"""

from __future__ import annotations

import json
import logging
import os
import socket
import stat
import sys
from collections.abc import Awaitable, Callable, Mapping
from dataclasses import dataclass
from functools import partial
from typing import Any

import trio
from hypercorn.config import Config as HypercornConfig
from hypercorn.trio import serve

from voicegate import logs, metrics
from voicegate.config import parse_listen
from voicegate.net import websocket
from voicegate.net.websocket import GOING_AWAY, INTERNAL_ERROR, ServerSocket, SocketClosed

BODY_LIMIT = 256 * 1024
"""Bytes of a control request: an offer of 64 KiB, twice that as JSON text, and as much again for its
session."""
DISCARD_LIMIT = 1024 * 1024
"""Bytes of an oversized body that are read and thrown away, so that its sender reads the answer, not a
reset."""
BODY_SECONDS = 10.0
GRACE_SECONDS = 2.0
"""How long a stopping server waits for requests under way; set-ups are bounded by 5 s, most take
milliseconds. Who is not done by then is cut off."""
CUT_SECONDS = 0.1
"""How long after the grace what is left is cut off, and how often. What heeds a cancellation is gone then."""
KEEP_ALIVE_SECONDS = 15.0
STALLED_SECONDS = 10.0
"""A peer that takes nothing of what is sent to it for this long is cut off by the kernel."""

SOCKET_MESSAGE_LIMIT = 16 * 1024 * 1024
"""Bytes of a WebSocket's message: the largest Realtime event (15 MiB of base64 audio in one append)."""
SOCKET_QUEUE = 1
"""Messages, or pieces of a body, that wait for a handler: with the one being received and the one being
handled a WebSocket holds three of the largest at most."""
HEAD_LIMIT = 32 * 1024
"""Bytes of a request's head. A browser's WebSocket may carry an `ek_` of 8 kB twice."""
FIXED_PATHS = ("/healthz", "/readyz", "/metrics")

Scope = Mapping[str, Any]
Receive = Callable[[], Awaitable[Any]]
Send = Callable[[Any], Awaitable[None]]
AsgiApp = Callable[[Any, Any, Any], Awaitable[Any]]

_log = logs.get_logger(__name__)


@dataclass(frozen=True, slots=True)
class Request:
    """`tail` is what follows the route's prefix; `headers` have lower-case names."""

    method: str
    path: str
    tail: str
    query: str
    headers: Mapping[str, str]
    body: bytes


@dataclass(frozen=True, slots=True)
class Response:
    status: int = 200
    body: bytes = b""
    content_type: str = "application/json"
    headers: tuple[tuple[str, str], ...] = ()


Handler = Callable[[Request], Awaitable[Response]]
SocketHandler = Callable[[Request, ServerSocket], Awaitable[None]]
"""Accepts or refuses the socket, and serves it until it returns."""


def error_body(status: int, code: str, message: str, param: str | None = None) -> bytes:
    """The error body of the Realtime contract; its `type` follows from the status."""
    kind = {401: "authentication_error", 403: "permission_error", 429: "rate_limit_error"}.get(
        status, "server_error" if status >= 500 else "invalid_request_error"
    )
    return json.dumps({"error": {"type": kind, "code": code, "message": message, "param": param}}).encode()


_INVALID_TOKEN = error_body(401, "invalid_token", "The control token is missing or wrong.")


def error_response(
    status: int, code: str, message: str, param: str | None = None, headers: tuple[tuple[str, str], ...] = ()
) -> Response:
    return Response(status, error_body(status, code, message, param), headers=headers)


class InternalApp:
    """`/healthz`, `/readyz`, `/metrics`, and `routes`: (method, path) or (method, prefix ending in "/").

    `sockets`: WebSocket routes, a path with one `{}` for the segment that becomes the request's `tail`.

    `ready` returns None, or why this role cannot do its work (the answer is 503 then). Every route needs
    `Authorization: Bearer` with a token that `accepts_token` takes (its comparison must be in constant time);
    the three fixed paths need nothing, for probes carry no secrets.
    """

    def __init__(
        self,
        *,
        ready: Callable[[], str | None],
        routes: Mapping[tuple[str, str], Handler] | None = None,
        sockets: Mapping[str, SocketHandler] | None = None,
        accepts_token: Callable[[str], bool] = lambda token: False,
        body_limit: int = BODY_LIMIT,
    ) -> None:
        self._ready = ready
        self._routes = dict(routes or {})
        self._sockets = [(*path.partition("{}")[::2], handler) for path, handler in (sockets or {}).items()]
        self._accepts_token = accepts_token
        self._body_limit = body_limit

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] == "lifespan":
            await _answer_lifespan(receive, send)
        elif scope["type"] == "http":
            response = await self._respond(scope, receive)
            await _send_response(response, send)
        elif scope["type"] == "websocket":
            await self._serve_socket(ServerSocket(scope, receive, send))

    async def _serve_socket(self, socket: ServerSocket) -> None:
        if not self._is_authorized(socket.headers):
            await socket.refuse(401, _INVALID_TOKEN)
            return
        path = socket.path
        for prefix, suffix, handler in self._sockets:
            tail = path[len(prefix) : len(path) - len(suffix)]
            if tail and "/" not in tail and path == prefix + tail + suffix:
                request = Request("GET", path, tail, socket.query, socket.headers, b"")
                await serve_socket(socket, partial(handler, request))
                return
        await socket.refuse(404, error_body(404, "not_found", f"There is no WebSocket {path} here."))

    def _is_authorized(self, headers: Mapping[str, str]) -> bool:
        scheme, _, token = headers.get("authorization", "").partition(" ")
        return scheme.lower() == "bearer" and self._accepts_token(token.strip())

    async def _respond(self, scope: Scope, receive: Receive) -> Response:
        headers = {name.decode("latin1").lower(): value.decode("latin1") for name, value in scope["headers"]}
        try:
            with trio.fail_after(BODY_SECONDS):
                body = await read_body(receive, self._body_limit)
        except trio.TooSlowError:
            return error_response(408, "request_timeout", "The request's body did not arrive in time.")
        method, path = scope["method"], scope["path"]
        if method in ("GET", "HEAD") and (fixed := self._fixed(path)) is not None:
            return fixed
        if not self._is_authorized(headers):
            return Response(401, _INVALID_TOKEN)
        if body is None:
            return error_response(413, "body_too_large", f"The body has more than {self._body_limit} bytes.")
        prefix = path if (method, path) in self._routes else path[: path.rfind("/") + 1]
        handler = self._routes.get((method, prefix))
        if handler is None:
            known = sorted(verb for verb, route_path in self._routes if route_path in (path, prefix))
            if path in FIXED_PATHS:
                known = ["GET", "HEAD"]
            return _no_such_route(method, path, known)
        request = Request(
            method, path, path[len(prefix) :], scope["query_string"].decode("latin1"), headers, body
        )
        try:
            return await handler(request)
        except Exception:
            _log.exception("a control request failed", method=method, route=prefix)
            return error_response(500, "internal_error", "The request failed; the log says why.")

    def _fixed(self, path: str) -> Response | None:
        if path == "/healthz":
            return Response(200, b"ok\n", "text/plain")
        if path == "/readyz":
            reason = self._ready()
            return Response(200 if reason is None else 503, f"{reason or 'ready'}\n".encode(), "text/plain")
        if path == "/metrics":
            return Response(200, metrics.render(), metrics.CONTENT_TYPE)
        return None


async def serve_socket(socket: ServerSocket, handler: Callable[[ServerSocket], Awaitable[None]]) -> None:
    """Run a handler; its failure is an error for this peer and a line in the log. Cancelled: 1001."""
    try:
        await handler(socket)
    except SocketClosed:
        pass  # the peer went; that is how most of them end
    except trio.Cancelled:
        await socket.close(GOING_AWAY, "the server is stopping")
        raise
    except Exception:
        _log.exception("a WebSocket failed", path=socket.path)
        await socket.close(INTERNAL_ERROR, "internal error")


def _no_such_route(method: str, path: str, known: list[str]) -> Response:
    message = f"There is no {method} {path} here."
    if not known:
        return error_response(404, "not_found", message)
    # RFC 9110 section 15.5.6: a 405 says which methods there are.
    return error_response(405, "method_not_allowed", message, headers=(("Allow", ", ".join(known)),))


async def read_body(receive: Receive, limit: int) -> bytes | None:
    """The request's body, never holding more than `limit` bytes of it; None when it is longer."""
    body = bytearray()
    discarded = 0
    while True:
        message = await receive()
        if message["type"] != "http.request":
            return bytes(body)  # the peer is gone; what it asked no longer matters
        if discarded or len(body) + len(message["body"]) > limit:
            discarded += len(message["body"])
        else:
            body += message["body"]
        if not message["more_body"] or discarded > DISCARD_LIMIT:
            return None if discarded else bytes(body)


async def serve_http(
    app: AsgiApp,
    listen: str,
    *,
    certificate: str = "",
    private_key: str = "",
    task_status: trio.TaskStatus[list[str]] = trio.TASK_STATUS_IGNORED,
) -> None:
    """Serve an ASGI application until cancelled, then let requests under way finish for `GRACE_SECONDS`; who
    is still connected soon after that is cut off, so that the end is never later than a peer's patience.

    `listen` is `host:port`, `[v6]:port`; port 0 takes a free one. Started with the addresses really bound, in
    the same form. Both PEM files given: HTTPS. Raises OSError whose message names the address (or the
    certificate).
    """
    with _listen(listen) as listener:
        host, port = listener.getsockname()[:2]
        config = _hypercorn_config(certificate, private_key)
        try:
            config.create_ssl_context()  # a bad certificate is told before anything is started
        except OSError as error:
            message = f"cannot use certificate {certificate} with key {private_key}: {error}"
            raise OSError(error.errno, message) from error
        config.bind = [f"fd://{listener.detach()}"]
    stop, up = trio.Event(), _Up()
    sends: set[trio.CancelScope] = set()

    async def serve_shielded() -> None:
        # Hypercorn stops gracefully only on its own trigger, which cancellation must not overtake.
        finishing = _finishing_sends(app, sends)
        with trio.CancelScope(shield=True):
            async with trio.open_nursery() as nursery:
                nursery.start_soon(cut_off)
                await serve(finishing, config, shutdown_trigger=stop.wait, task_status=up, mode="asgi")
                nursery.cancel_scope.cancel()

    async def cut_off() -> None:
        # Hypercorn's deadline reaches neither its own sends nor ours: both are shielded, and last as long as
        # a peer that does not read.
        await stop.wait()
        await trio.sleep(GRACE_SECONDS)
        while True:
            await trio.sleep(CUT_SECONDS)
            for scope in sends:
                scope.cancel()
            _shut_connections(host, port)

    async with trio.open_nursery() as nursery:
        # Not `nursery.start`: cancelled while it starts, that would wait for the end of a shielded task.
        nursery.start_soon(serve_shielded)
        try:
            await up.event.wait()
            task_status.started([format_listen(host, port)])
            await trio.sleep_forever()
        finally:
            stop.set()


class _Up(trio.TaskStatus[list[str]]):
    """Takes Hypercorn's word that it is listening."""

    def __init__(self) -> None:
        self.event = trio.Event()

    def started(self, value: list[str] | None = None) -> None:
        self.event.set()


def format_listen(host: str, port: int) -> str:
    return f"[{host}]:{port}" if ":" in host else f"{host}:{port}"


def _listen(listen: str) -> socket.socket:
    host, port = parse_listen(listen)
    try:
        family, kind, protocol, _, address = socket.getaddrinfo(
            host, port, type=socket.SOCK_STREAM, flags=socket.AI_PASSIVE
        )[0]
        listener = socket.socket(family, kind, protocol)
    except OSError as error:
        raise OSError(error.errno, f"cannot listen on {listen}: {error.strerror}") from error
    try:
        listener.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        listener.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
        if sys.platform == "linux":
            # Inherited by what is accepted. Hypercorn shields its sends, so that a peer which stops reading
            # would hold up the end of the process for ever.
            listener.setsockopt(socket.IPPROTO_TCP, socket.TCP_USER_TIMEOUT, int(STALLED_SECONDS * 1000))
        if family == socket.AF_INET6:
            listener.setsockopt(socket.IPPROTO_IPV6, socket.IPV6_V6ONLY, 1)
        listener.bind(address)
    except OSError as error:
        listener.close()
        raise OSError(error.errno, f"cannot listen on {listen}: {error.strerror}") from error
    return listener


def _shut_connections(host: str, port: int) -> None:
    """Shut every connection that was accepted on this address, which ends whatever waits to write to it.

    Hypercorn gives nobody its sockets, so they are found among the open files. Where those cannot be listed
    the kernel's time limit is what is left.
    """
    try:
        descriptors = [int(name) for name in os.listdir("/dev/fd")]
    except OSError:
        return
    for descriptor in descriptors:
        try:
            copy = os.dup(descriptor)
        except OSError:
            continue
        if not stat.S_ISSOCK(os.fstat(copy).st_mode):
            os.close(copy)
            continue
        with socket.socket(fileno=copy) as connection:
            if connection.type != socket.SOCK_STREAM or connection.family not in (
                socket.AF_INET,
                socket.AF_INET6,
            ):
                continue
            own_host, own_port = connection.getsockname()[:2]
            if own_port == port and host in (own_host, "0.0.0.0", "::"):
                try:
                    connection.shutdown(socket.SHUT_RDWR)
                except OSError:
                    pass  # gone already


def _hypercorn_config(certificate: str, private_key: str) -> HypercornConfig:
    websocket.install()
    config = HypercornConfig()
    config.certfile = certificate or None
    config.keyfile = private_key or None
    config.keyfile_password = ""  # with None, OpenSSL asks at the terminal for that of an encrypted key
    config.alpn_protocols = ["http/1.1"]
    config.errorlog = logging.getLogger("hypercorn.error")
    config.accesslog = None
    config.include_server_header = False
    config.graceful_timeout = GRACE_SECONDS
    config.shutdown_timeout = GRACE_SECONDS
    config.ssl_handshake_timeout = BODY_SECONDS
    config.keep_alive_timeout = KEEP_ALIVE_SECONDS
    # A WebSocket peer answers pings, so silence for three of them means that it is gone.
    config.websocket_ping_interval = 20.0
    config.websocket_max_message_size = SOCKET_MESSAGE_LIMIT
    config.max_app_queue_size = SOCKET_QUEUE
    config.h11_max_incomplete_size = HEAD_LIMIT
    config.read_timeout = 60
    return config


def _finishing_sends(app: AsgiApp, sends: set[trio.CancelScope]) -> AsgiApp:
    """Let every message an application sends be sent whole, whatever happens to the task that sends it.
    `sends` holds the scopes of those under way.

    Hypercorn closes or recycles a connection inside the `send` of a response's last message, and tells the
    application `http.disconnect` in the middle of that. quart-trio (0.12) answers by cancelling the request's
    nursery, and with it the rest of the `send`: the connection is neither closed nor ever timed out. The
    shield cures that; it has an end because Hypercorn waits for ever to drain a stream whose HTTP/2 peer
    is gone. While an answer goes out before the request was read to its end, somebody must go on reading:
    Hypercorn waits for room in the request's queue to say the `http.disconnect`.
    """

    async def wrapped(scope: Any, receive: Receive, send: Send) -> None:
        if scope["type"] != "http":
            await app(scope, receive, send)
            return
        unread = True

        async def counting_receive() -> Any:
            nonlocal unread
            message = await receive()
            unread = message.get("more_body", False)
            return message

        async def whole_send(message: Any) -> None:
            with trio.move_on_after(STALLED_SECONDS, shield=True) as scope:
                sends.add(scope)
                try:
                    await send_and_read(message)
                finally:
                    sends.discard(scope)

        async def send_and_read(message: Any) -> None:
            if not unread or message.get("more_body", False) or message["type"] != "http.response.body":
                await send(message)
                return
            async with trio.open_nursery() as nursery:
                nursery.start_soon(_discard, receive)
                await send(message)
                nursery.cancel_scope.cancel()

        await app(scope, counting_receive, whole_send)

    return wrapped


async def _discard(receive: Receive) -> None:
    while (await receive())["type"] == "http.request":
        pass


async def _answer_lifespan(receive: Receive, send: Send) -> None:
    while True:
        message = await receive()
        await send({"type": f"{message['type']}.complete"})
        if message["type"] == "lifespan.shutdown":
            return


async def _send_response(response: Response, send: Send) -> None:
    headers = [
        (b"content-type", response.content_type.encode()),
        (b"content-length", str(len(response.body)).encode()),
        *((name.encode(), value.encode()) for name, value in response.headers),
    ]
    await send({"type": "http.response.start", "status": response.status, "headers": headers})
    await send({"type": "http.response.body", "body": response.body, "more_body": False})
