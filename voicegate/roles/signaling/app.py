"""The public HTTP interface: who is let in, the routes, the demo page, and what operators look at.

`make_app` gives an ASGI application. What its requests do is in `calls` and `sockets`, which keys there are
in `keys`, every other rule in `core`.
"""

from __future__ import annotations

import mimetypes
import time
from collections.abc import Callable
from importlib.resources import files
from typing import Any

import trio
from quart import Response, g, request
from quart_trio import QuartTrio
from werkzeug.exceptions import HTTPException, MethodNotAllowed

from voicegate import logs, metrics
from voicegate.config import SignalingConfig
from voicegate.net.http import BODY_SECONDS, FIXED_PATHS, AsgiApp, error_body, read_body
from voicegate.net.websocket import ServerSocket
from voicegate.roles.signaling import core
from voicegate.roles.signaling.calls import CALLS, Signaling, denied_answer, empty_answer, error_answer
from voicegate.roles.signaling.keys import Caller, Denied, KeyRing, token_of
from voicegate.roles.signaling.sockets import REFUSAL_SECONDS, Sockets

PAGE_HEADERS = {
    "Content-Security-Policy": "default-src 'none'; script-src 'self'; style-src 'self'; connect-src 'self';"
    " img-src 'self' data:; media-src 'self' blob:; base-uri 'none'; form-action 'none';"
    " frame-ancestors 'none'",
    "Permissions-Policy": "microphone=(self)",
    "Referrer-Policy": "no-referrer",
    "X-Content-Type-Options": "nosniff",
    "Cache-Control": "no-cache",
}

_SAFETY_IDENTIFIER = "openai-safety-identifier"

_log = logs.get_logger(__name__)


class Door:
    """Who may come in: by where the request is from, and by its key."""

    def __init__(self, settings: SignalingConfig, ring: KeyRing) -> None:
        self._origins = settings.allowed_origins
        self._ring = ring

    def check_source(self, peer: str, host: str, origin: str, path: str = "") -> None:
        """Raises Denied (403)."""
        # HTTP/1.0 probes may name no host; no browser, whose DNS could be re-bound, does that.
        named_ours = core.host_is_loopback(host) or (not host and path in FIXED_PATHS)
        if not self._ring and not (core.is_loopback(peer) and named_ours):
            raise Denied(403, "loopback_only", "Without signaling.api_keys only this machine is served.")
        if not core.origin_is_allowed(origin, self._origins, bool(self._ring)):
            raise Denied(403, "origin_not_allowed", "Pages of this origin may not call here.", "origin")

    def admit(self, authorization: str, safety_identifier: str, subprotocols: tuple[str, ...] = ()) -> Caller:
        """Raises Denied (401)."""
        return self._ring.admit(token_of(authorization, subprotocols), time.time(), safety_identifier)

    def admit_socket(self, socket: ServerSocket) -> Caller:
        """A WebSocket knows no preflight, and a browser opens one to any address: all is asked here."""
        headers = socket.headers
        self.check_source(socket.peer, headers.get("host", ""), headers.get("origin", ""))
        return self.admit(
            headers.get("authorization", ""), headers.get(_SAFETY_IDENTIFIER, ""), socket.subprotocols
        )

    def cors_headers(self, origin: str) -> dict[str, str]:
        return core.cors_headers(origin, self._origins, bool(self._ring))

    def needs_key(self, path: str) -> bool:
        """The page and the probes are open. The numbers are not, to loopback neither: behind a reverse proxy
        on this machine every peer is loopback."""
        return path.startswith("/v1/") or (bool(self._ring) and path == "/metrics")


def make_app(settings: SignalingConfig, door: Door, signaling: Signaling, sockets: Sockets) -> AsgiApp:
    """The ASGI application, with its body limit."""
    app = QuartTrio("voicegate.roles.signaling", static_folder=None)
    app.config.update(PROVIDE_AUTOMATIC_OPTIONS=False, MAX_CONTENT_LENGTH=core.BODY_LIMIT)

    @app.before_request
    async def admit() -> Response | None:
        """Who may ask what. The order matters: a preflight never carries the key."""
        peer, headers = request.remote_addr or "", request.headers
        not_before = trio.current_time() + REFUSAL_SECONDS
        try:
            door.check_source(peer, headers.get("Host", ""), headers.get("Origin", ""), request.path)
            if request.method == "OPTIONS":
                asked = headers.get("Access-Control-Request-Headers", "")
                return empty_answer(204, core.preflight_headers(asked))
            if door.needs_key(request.path):
                g.caller = door.admit(headers.get("Authorization", ""), headers.get(_SAFETY_IDENTIFIER, ""))
        except Denied as denied:
            if denied.status == 401:
                await trio.sleep_until(not_before)
            return denied_answer(denied)
        return None

    @app.after_request
    async def let_pages_read(response: Response) -> Response:
        response.headers.update(door.cors_headers(request.headers.get("Origin", "")))
        return response

    app.add_url_rule(CALLS, "create", signaling.create_call, methods=["POST"])
    app.add_url_rule(f"{CALLS}/<call_id>", "status", signaling.call_status, methods=["GET"])
    app.add_url_rule(f"{CALLS}/<call_id>", "delete", signaling.hang_up, methods=["DELETE"])
    app.add_url_rule(f"{CALLS}/<call_id>/hangup", "hangup", signaling.hang_up, methods=["POST"])
    app.add_url_rule(
        "/v1/realtime/client_secrets", "secrets", signaling.create_client_secret, methods=["POST"]
    )
    app.add_url_rule("/v1/realtime", "beta", _beta, methods=["POST"])
    _add_operations(app, signaling)
    if settings.demo_page:
        _add_page(app)

    @app.errorhandler(HTTPException)
    async def http_error(error: HTTPException) -> Response:
        name = (error.name or "error").lower().replace(" ", "_")
        response = error_answer(
            error.code or 500, name, f"{error.name}: {request.method} {request.path[:200]}"
        )
        if isinstance(error, MethodNotAllowed) and error.valid_methods:
            response.headers["Allow"] = ", ".join(sorted({*error.valid_methods, "OPTIONS"}))
        return response

    @app.errorhandler(Exception)
    async def our_error(error: Exception) -> Response:
        _log.error("a request failed", route=str(request.url_rule), exc_info=error)
        return error_answer(500, "internal_error", "The request failed; the server's log says why.")

    limited = _limit_body(app, door.cors_headers)

    async def serve(scope: Any, receive: Any, send: Any) -> None:
        if scope["type"] == "websocket":
            await sockets.serve(ServerSocket(scope, receive, send))
        else:
            await limited(scope, receive, send)

    return serve


async def _beta() -> Response:
    """Where the beta clients posted their offer. That interface is withdrawn, and its events are not ours."""
    return error_answer(400, "beta_withdrawn", f"The beta interface is withdrawn: post to {CALLS}.")


def _add_operations(app: QuartTrio, signaling: Signaling) -> None:
    async def healthz() -> Response:
        return Response("ok\n", content_type="text/plain")

    async def readyz() -> Response:
        reason = signaling.not_ready()
        return Response(f"{reason or 'ready'}\n", 503 if reason else 200, content_type="text/plain")

    async def show_metrics() -> Response:
        return Response(metrics.render(), content_type=metrics.CONTENT_TYPE)

    app.add_url_rule("/healthz", "healthz", healthz)
    app.add_url_rule("/readyz", "readyz", readyz)
    app.add_url_rule("/metrics", "metrics", show_metrics)


def _add_page(app: QuartTrio) -> None:
    """The demo page from inside the package, read once: a request can only name what was there at the
    start."""
    assets = {
        asset.name: (asset.read_bytes(), mimetypes.guess_type(asset.name)[0] or "application/octet-stream")
        for asset in files("voicegate.web").iterdir()
        if asset.is_file() and not asset.name.startswith((".", "_"))
    }

    async def page(name: str = "index.html") -> Response:
        if name not in assets:
            return error_answer(404, "not_found", "There is no such page.")
        body, content_type = assets[name]
        return Response(body, 200, PAGE_HEADERS, content_type=content_type)

    app.add_url_rule("/", "index", page)
    app.add_url_rule("/<name>", "asset", page)


def _limit_body(app: AsgiApp, refusal_headers: Callable[[str], dict[str, str]]) -> AsgiApp:
    """Read a request's body before the application sees it, at most `core.BODY_LIMIT` bytes of it."""

    async def limited(scope: Any, receive: Any, send: Any) -> None:
        if scope["type"] != "http":
            await app(scope, receive, send)
            return
        body, late = None, True
        with trio.move_on_after(BODY_SECONDS):
            body, late = await read_body(receive, core.BODY_LIMIT), False
        if body is None:
            origin = next((v.decode("latin1") for n, v in scope["headers"] if n.lower() == b"origin"), "")
            too_large = (
                "offer_too_large",
                f"An offer may have {core.OFFER_LIMIT} bytes, a whole request {core.BODY_LIMIT}.",
            )
            reason = ("request_timeout", "The request did not arrive in time.") if late else too_large
            await _send_refusal(send, error_body(400, *reason, "body"), refusal_headers(origin))
            return
        unread = [{"type": "http.request", "body": body, "more_body": False}]

        async def replay() -> Any:
            return unread.pop() if unread else await receive()

        await app(scope, replay, send)

    return limited


async def _send_refusal(send: Any, body: bytes, headers: dict[str, str]) -> None:
    encoded = [(name.lower().encode(), value.encode()) for name, value in headers.items()]
    encoded += [(b"content-type", b"application/json"), (b"content-length", str(len(body)).encode())]
    await send({"type": "http.response.start", "status": 400, "headers": encoded})
    await send({"type": "http.response.body", "body": body, "more_body": False})
