"""The public HTTP interface: calls, the demo page, and what operators look at.

`make_app` gives an ASGI application; every rule it applies is in `core`. It keeps no state about calls: a
call id is a sealed token that names the transceiver, so any instance serves any request.
"""

from __future__ import annotations

import mimetypes
import random
from collections import Counter
from collections.abc import Awaitable, Callable, Iterable, Mapping
from importlib.resources import files
from typing import Any

import trio
from quart import Response, request
from quart_trio import QuartTrio
from werkzeug.exceptions import HTTPException, MethodNotAllowed

from voicegate import logs, metrics
from voicegate.config import Config
from voicegate.net.http import (
    BODY_SECONDS,
    FIXED_PATHS,
    AsgiApp,
    error_body,
    read_body,
    refuse_websocket,
)
from voicegate.net.registry import TransceiverRecord
from voicegate.proto.callid import open_call_id_untrusted
from voicegate.proto.errors import BadOffer, BadPacket
from voicegate.roles.context import RoleContext
from voicegate.roles.signaling import core
from voicegate.roles.signaling.control import Allocated, ControlClient, Refused, Unreachable

SETUP_SECONDS = 5.0
"""The most that a set-up request waits; by then a person has pressed the button again."""
NOT_FOUND_SECONDS = 0.02
"""When a 404 for a call is sent, counted from the request: a forged id, which asks nobody, takes as long
as one whose transceiver had to be asked (1 to 5 ms)."""
RETRY_AFTER_SECONDS = 2

PAGE_HEADERS = {
    "Content-Security-Policy": "default-src 'none'; script-src 'self'; style-src 'self'; connect-src 'self';"
    " img-src 'self' data:; media-src 'self' blob:; base-uri 'none'; form-action 'none';"
    " frame-ancestors 'none'",
    "Permissions-Policy": "microphone=(self)",
    "Referrer-Policy": "no-referrer",
    "X-Content-Type-Options": "nosniff",
    "Cache-Control": "no-cache",
}
_CALLS = "/v1/realtime/calls"

_log = logs.get_logger(__name__)


class Signaling:
    """The handlers, and what they count. One per process."""

    def __init__(self, config: Config, context: RoleContext, control: ControlClient) -> None:
        self._config = config.signaling
        self._cluster = config.registry.cluster
        self._context = context
        self._control = control
        self._random = random.SystemRandom()
        self._setups = 0
        self._results: Counter[str] = Counter()
        self._seconds = metrics.histogram(
            "voicegate_signaling_setup_seconds", "From an accepted offer to its answer."
        )

    def not_ready(self) -> str | None:
        """Why no call could be set up now. An old registry is no reason: calls are placed by what it last
        said."""
        records = self._context.registry.records.values()
        if any(record.cluster == self._cluster and not record.draining for record in records):
            return None
        return "no transceiver takes calls"

    async def create_call(self) -> Response:
        try:
            body = await request.get_data()
            assert isinstance(body, bytes), "text only when asked for as text"
            sdp = core.read_offer_untrusted(request.headers.get("Content-Type", ""), body)
        except BadOffer as error:
            self._results["bad_request"] += 1
            return _error(error.status, error.code, str(error), error.param)
        if self._setups >= self._config.max_setups:
            self._results["too_many_setups"] += 1
            return _busy("Too many calls are being set up at this moment; try again.")
        self._setups += 1
        began = trio.current_time()
        try:
            with trio.move_on_after(SETUP_SECONDS):
                response = await self._place_call(sdp)
                if response.status_code == 201:
                    self._seconds.observe(trio.current_time() - began)
                return response
            self._results["timeout"] += 1
            return _busy("No transceiver answered in time; try again.")
        finally:
            self._setups -= 1

    async def _place_call(self, sdp: str) -> Response:
        registry = self._context.registry
        draw = self._random.getrandbits
        for record in core.place(registry.records.values(), self._cluster, draw(32), draw(32)):
            try:
                outcome = await self._control.allocate(
                    record.control,
                    sdp=sdp,
                    candidates=self._config.advertise,
                    model=request.args.get("model", "")[:256],
                )
            except Unreachable as error:
                self._results["unreachable"] += 1
                _log.warning("a transceiver does not answer", transceiver=record.id, error=str(error))
                continue
            if isinstance(outcome, Allocated):
                registry.observe_load_nowait(record.id, outcome.calls, outcome.capacity)
                self._results["created"] += 1
                _log.info("call set up", call=outcome.call_id, transceiver=record.id)
                location = {"Location": f"{_CALLS}/{outcome.call_id}"}
                return Response(outcome.sdp, 201, location, content_type="application/sdp")
            if outcome.status != 503:
                self._results["refused"] += 1
                return _passed_on(outcome)
            # Full sooner than the registry said; remember it until it says otherwise.
            registry.observe_load_nowait(record.id, record.capacity, record.capacity)
        self._results["no_room"] += 1
        return _busy("There is no room for another call at this moment; try again.")

    async def hang_up(self, call_id: str) -> Response:
        async def ask(record: TransceiverRecord) -> Response | None:
            if not await self._control.hang_up(record.control, call_id):
                return None
            _log.info("call hung up by its client", call=call_id)
            return _empty(200)

        return await self._about_call(call_id, ask)

    async def call_status(self, call_id: str) -> Response:
        async def ask(record: TransceiverRecord) -> Response | None:
            status = await self._control.status(record.control, call_id)
            no_store = {"Cache-Control": "no-store"}
            return (
                None if status is None else Response(status, 200, no_store, content_type="application/json")
            )

        return await self._about_call(call_id, ask)

    async def _about_call(
        self, call_id: str, ask: Callable[[TransceiverRecord], Awaitable[Response | None]]
    ) -> Response:
        not_before = trio.current_time() + NOT_FOUND_SECONDS
        record = self._owner(call_id)
        try:
            response = None if record is None else await ask(record)
        except Unreachable as error:
            assert record is not None, "only a transceiver that was asked cannot answer"
            _log.warning("a transceiver does not answer", transceiver=record.id, error=str(error))
            return _busy("The call's transceiver does not answer; try again.")
        if response is not None:
            return response
        await trio.sleep_until(not_before)
        return _error(404, "call_id_not_found", "There is no such call; it may have ended.", "call_id")

    def _owner(self, call_id: str) -> TransceiverRecord | None:
        try:
            cluster, transceiver = open_call_id_untrusted(self._context.keys.seal, call_id)
        except BadPacket:
            return None
        record = self._context.registry.records.get(transceiver)
        return record if record is not None and cluster == self._cluster else None

    def samples(self) -> Iterable[metrics.Sample]:
        name = "voicegate_signaling_setups_total"
        for result, count in self._results.items():
            yield metrics.Sample(name, "counter", "Set-up requests by outcome.", {"result": result}, count)
        name = "voicegate_signaling_setups_under_way"
        yield metrics.Sample(name, "gauge", "Set-ups that wait for a transceiver.", {}, self._setups)
        for number, value in self._context.registry.statistics().items():
            name = f"voicegate_signaling_registry_{number}"
            yield metrics.Sample(name, "gauge", "The registry as signaling sees it.", {}, value)


def make_app(config: Config, signaling: Signaling) -> AsgiApp:
    """The ASGI application, with its body limit."""
    settings = config.signaling
    has_keys = bool(settings.api_keys)
    app = QuartTrio("voicegate.roles.signaling", static_folder=None)
    app.config.update(PROVIDE_AUTOMATIC_OPTIONS=False, MAX_CONTENT_LENGTH=core.OFFER_LIMIT)

    @app.before_request
    async def admit() -> Response | None:
        """Who may ask what. The order matters: a preflight never carries the key."""
        peer = request.remote_addr or ""
        origin = request.headers.get("Origin", "")
        # HTTP/1.0 probes may name no host; no browser, whose DNS could be re-bound, does that.
        named_ours = core.host_is_loopback(request.host) or (
            not request.headers.get("Host") and request.path in FIXED_PATHS
        )
        if not has_keys and not (core.is_loopback(peer) and named_ours):
            return _error(403, "loopback_only", "Without signaling.api_keys only this machine is served.")
        if not core.origin_is_allowed(origin, settings.allowed_origins, has_keys):
            return _error(403, "origin_not_allowed", "Pages of this origin may not call here.", "origin")
        if request.method == "OPTIONS":
            asked = request.headers.get("Access-Control-Request-Headers", "")
            return _empty(204, core.preflight_headers(asked))
        if not has_keys or not _needs_key(request.path):
            return None
        if core.key_is_known(request.headers.get("Authorization", ""), settings.api_keys):
            return None
        refusal = _error(401, "invalid_api_key", "The API key is missing or wrong.", "authorization")
        refusal.headers["WWW-Authenticate"] = "Bearer"
        return refusal

    @app.after_request
    async def let_pages_read(response: Response) -> Response:
        origin = request.headers.get("Origin", "")
        response.headers.update(core.cors_headers(origin, settings.allowed_origins, has_keys))
        return response

    app.add_url_rule(_CALLS, "create", signaling.create_call, methods=["POST"])
    app.add_url_rule(f"{_CALLS}/<call_id>", "status", signaling.call_status, methods=["GET"])
    app.add_url_rule(f"{_CALLS}/<call_id>", "delete", signaling.hang_up, methods=["DELETE"])
    app.add_url_rule(f"{_CALLS}/<call_id>/hangup", "hangup", signaling.hang_up, methods=["POST"])
    _add_operations(app, signaling)
    if settings.demo_page:
        _add_page(app)

    @app.errorhandler(HTTPException)
    async def http_error(error: HTTPException) -> Response:
        name = (error.name or "error").lower().replace(" ", "_")
        response = _error(error.code or 500, name, f"{error.name}: {request.method} {request.path[:200]}")
        if isinstance(error, MethodNotAllowed) and error.valid_methods:
            response.headers["Allow"] = ", ".join(sorted({*error.valid_methods, "OPTIONS"}))
        return response

    @app.errorhandler(Exception)
    async def our_error(error: Exception) -> Response:
        _log.error("a request failed", route=str(request.url_rule), exc_info=error)
        return _error(500, "internal_error", "The request failed; the server's log says why.")

    def refusal_headers(origin: str) -> dict[str, str]:
        return core.cors_headers(origin, settings.allowed_origins, has_keys)

    return _limit_body(app, refusal_headers)


def _needs_key(path: str) -> bool:
    """The page and the probes are open. The numbers are not, to loopback neither: behind a reverse proxy on
    this machine every peer is loopback."""
    return path.startswith("/v1/") or path == "/metrics"


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
            return _error(404, "not_found", "There is no such page.")
        body, content_type = assets[name]
        return Response(body, 200, PAGE_HEADERS, content_type=content_type)

    app.add_url_rule("/", "index", page)
    app.add_url_rule("/<name>", "asset", page)


def _limit_body(app: AsgiApp, refusal_headers: Callable[[str], dict[str, str]]) -> AsgiApp:
    """Read a request's body before the application sees it, at most `core.OFFER_LIMIT` bytes of it."""

    async def limited(scope: Any, receive: Any, send: Any) -> None:
        if scope["type"] == "websocket":
            await refuse_websocket(receive, send)
            return
        if scope["type"] != "http":
            await app(scope, receive, send)
            return
        body, late = None, True
        with trio.move_on_after(BODY_SECONDS):
            body, late = await read_body(receive, core.OFFER_LIMIT), False
        if body is None:
            origin = next((v.decode("latin1") for n, v in scope["headers"] if n.lower() == b"origin"), "")
            too_large = ("offer_too_large", f"The request has more than {core.OFFER_LIMIT} bytes.")
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


def _error(status: int, code: str, message: str, param: str | None = None) -> Response:
    return Response(error_body(status, code, message, param), status, content_type="application/json")


def _empty(status: int, headers: Mapping[str, str] | None = None) -> Response:
    """An answer without content and so without a type: clients that parse JSON by its name do not try to."""
    response = Response(b"", status, dict(headers or {}))
    response.headers.pop("Content-Type", None)
    return response


def _busy(message: str) -> Response:
    response = _error(503, "overloaded", message)
    response.headers["Retry-After"] = str(RETRY_AFTER_SECONDS)
    return response


def _passed_on(refusal: Refused) -> Response:
    return Response(refusal.body, refusal.status, content_type="application/json")
