"""Calls and client secrets over HTTP: what the public requests do. The routes are in `app`.

No state about calls is kept, but for the limits of keys that have some: a call id is a sealed token that
names the transceiver, an `ek_` key one that says what it is for, so any instance serves any request.
"""

from __future__ import annotations

import secrets
import time
from collections import Counter
from collections.abc import Awaitable, Callable, Iterable, Mapping
from typing import Any

import msgspec
import trio
from quart import Response, g, request

from voicegate import logs, metrics
from voicegate.config import Config
from voicegate.net.http import error_body
from voicegate.net.registry import TransceiverRecord
from voicegate.proto.allocate import AllocateRequest
from voicegate.proto.callid import open_call_id_untrusted
from voicegate.proto.client_secret import ClientSecret, mint_client_secret
from voicegate.proto.errors import BadOffer, BadPacket
from voicegate.roles.context import RoleContext
from voicegate.roles.signaling import core
from voicegate.roles.signaling.control import ControlClient, Refused, Unreachable
from voicegate.roles.signaling.keys import RECORD_HEADER, Caller, Denied, Key, KeyLimits
from voicegate.roles.signaling.location import Locator
from voicegate.roles.signaling.placement import NoPlace, Placement
from voicegate.roles.signaling.sockets import REFUSAL_SECONDS

CALLS = "/v1/realtime/calls"
SETUP_SECONDS = 5.0
"""The most that a set-up request waits; by then a person has pressed the button again."""
RETRY_AFTER_SECONDS = 2
ASK_AT_ONCE = 16
"""Calls of a key at its limit that are asked after at the same time."""

_log = logs.get_logger(__name__)


class Signaling:
    """The handlers, and what they count. One per process. Quart's `g.caller` is whoever asks."""

    def __init__(
        self,
        config: Config,
        context: RoleContext,
        control: ControlClient,
        limits: KeyLimits,
        locator: Locator,
    ) -> None:
        self._max_setups = config.signaling.max_setups
        self._agent_model = config.agent.model
        self._context = context
        self._control = control
        self._limits = limits
        self._locator = locator
        self._placement = Placement(config, context.registry, control)
        self._setups = 0
        self._results: Counter[str] = Counter()
        self._seconds = metrics.histogram(
            "voicegate_signaling_setup_seconds", "From an accepted offer to its answer."
        )

    def not_ready(self) -> str | None:
        """Why no call could be set up now."""
        return self._placement.not_ready()

    async def create_call(self) -> Response:
        caller: Caller = g.caller
        try:
            wanted = self._call_request(caller, await _body())
        except BadOffer as error:
            self._results["bad_request"] += 1
            return error_answer(error.status, error.code, str(error), error.param)
        except Denied as denied:
            self._results[denied.code] += 1
            return denied_answer(denied)
        if self._setups >= self._max_setups:
            self._results["too_many_setups"] += 1
            return busy_answer("Too many calls are being set up at this moment; try again.")
        self._setups += 1
        try:
            with trio.move_on_after(SETUP_SECONDS):
                return await self._set_up(caller.key, wanted)
            self._results["timeout"] += 1
            return busy_answer("No transceiver answered in time; try again.")
        finally:
            self._setups -= 1

    def _call_request(self, caller: Caller, body: bytes) -> AllocateRequest:
        """What to ask a transceiver for, but for the candidates. Raises BadOffer, Denied."""
        offer = core.read_offer_untrusted(request.headers.get("Content-Type", ""), body)
        named = (offer.session or {}).get("model")
        model = caller.model(request.args.get("model", "") or (named if isinstance(named, str) else ""))
        session = caller.session(offer.session)
        if session is not None and model:
            session = {**session, "model": model}
        return AllocateRequest(
            sdp=offer.sdp,
            candidates=(),
            model=model,
            session=session,
            dcid=core.read_stream_id_untrusted(request.args.get("dcid")),
            client_events=caller.key.client_events,
            server_events=caller.key.server_events,
            key_id=caller.key.id,
            safety_identifier=caller.safety_identifier,
            record=caller.record(core.read_flag_untrusted(request.headers.get(RECORD_HEADER), RECORD_HEADER)),
        )

    async def _set_up(self, key: Key, wanted: AllocateRequest) -> Response:
        began = trio.current_time()
        try:
            await self.begin(key)
        except Denied as denied:
            self._results[denied.code] += 1
            return denied_answer(denied)
        call_id = ""
        try:
            client = self._locator.locate(request.remote_addr or "", request.headers.getlist)
            outcome = await self._placement.place(wanted, client)
            if isinstance(outcome, Refused):
                self._results["refused"] += 1
                return _passed_on(outcome)
            call_id = outcome.call_id
            self._results["created"] += 1
            self._seconds.observe(trio.current_time() - began)
            location = {"Location": f"{CALLS}/{call_id}"}
            return Response(outcome.sdp, 201, location, content_type="application/sdp")
        except NoPlace as error:
            self._results[error.result] += 1
            return busy_answer(str(error), error.code)
        finally:
            self._limits.end(key, call_id)

    async def begin(self, key: Key) -> None:
        """A set-up or a session begins, if the key's limits allow it; Denied (429) if not.

        `KeyLimits.end` ends it.
        """
        if self._limits.is_full(key):
            await self._forget_ended(key)
        self._limits.begin(key, trio.current_time())

    async def _forget_ended(self, key: Key) -> None:
        """Calls end without a word to signaling, so a key at its limit has its calls asked after."""
        limiter = trio.CapacityLimiter(ASK_AT_ONCE)

        async def ask(call_id: str) -> None:
            async with limiter:
                record = self.owner_of(call_id)
                try:
                    status = None if record is None else await self._control.status(record.control, call_id)
                except Unreachable:
                    return  # it may still be there
            if status is None or _has_ended(status):
                self._limits.forget(call_id)

        async with trio.open_nursery() as nursery:
            for call_id in self._limits.calls_to_ask_after(key, trio.current_time()):
                nursery.start_soon(ask, call_id)

    async def create_client_secret(self) -> Response:
        caller: Caller = g.caller
        try:
            key = caller.standard_key("make client secrets")
            wanted = core.read_secret_request_untrusted(await _body())
            model = caller.model(wanted.session.get("model", ""))
            session = {**wanted.session, "model": model} if model else wanted.session
            secret = ClientSecret(
                id=f"sess_{secrets.token_hex(12)}",
                issuer=key.id,
                expires_at=int(time.time()) + wanted.seconds,
                session=session,
                safety_identifier=caller.safety_identifier,
            )
            value = mint_client_secret(self._context.keys.seal, secret)
        except BadOffer as error:
            return error_answer(error.status, error.code, str(error), error.param)
        except Denied as denied:
            return denied_answer(denied)
        except ValueError as error:
            return error_answer(400, "session_too_large", f"The session is too large: {error}.", "session")
        _log.info("client secret made", key_id=key.id, session=secret.id, seconds=wanted.seconds)
        shown = {"type": "realtime", "model": self._agent_model, **session}
        if not shown["model"]:
            del shown["model"]
        kind = "session" if shown["type"] == "realtime" else "transcription_session"
        answer = {
            "value": value,
            "expires_at": secret.expires_at,
            "session": {**shown, "id": secret.id, "object": f"realtime.{kind}"},
        }
        no_store = {"Cache-Control": "no-store"}
        return Response(msgspec.json.encode(answer), 200, no_store, content_type="application/json")

    async def hang_up(self, call_id: str) -> Response:
        async def ask(record: TransceiverRecord) -> Response | None:
            if not await self._control.hang_up(record.control, call_id):
                return None
            self._limits.forget(call_id)
            _log.info("call hung up by its client", call=call_id)
            return empty_answer(200)

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
        not_before = trio.current_time() + REFUSAL_SECONDS
        record = self.owner_of(call_id)
        try:
            response = None if record is None else await ask(record)
        except Unreachable as error:
            assert record is not None, "only a transceiver that was asked cannot answer"
            _log.warning("a transceiver does not answer", transceiver=record.id, error=str(error))
            return busy_answer("The call's transceiver does not answer; try again.")
        if response is not None:
            return response
        await trio.sleep_until(not_before)
        return error_answer(404, "call_id_not_found", "There is no such call; it may have ended.", "call_id")

    def owner_of(self, call_id: str) -> TransceiverRecord | None:
        """The transceiver of a call id that is ours, if it is still there."""
        try:
            cluster, transceiver = open_call_id_untrusted(self._context.keys.seal, call_id)
        except BadPacket:
            return None
        return self._context.registry.clusters.get(cluster, {}).get(transceiver)

    def samples(self) -> Iterable[metrics.Sample]:
        name = "voicegate_signaling_setups_total"
        for result, count in self._results.items():
            yield metrics.Sample(name, "counter", "Set-up requests by outcome.", {"result": result}, count)
        name = "voicegate_signaling_setups_under_way"
        yield metrics.Sample(name, "gauge", "Set-ups that wait for a transceiver.", {}, self._setups)
        for number, value in self._context.registry.statistics().items():
            name = f"voicegate_signaling_registry_{number}"
            yield metrics.Sample(name, "gauge", "The registry as signaling sees it.", {}, value)
        name = "voicegate_signaling_located_total"
        for source, count in self._locator.sources.items():
            yield metrics.Sample(
                name, "counter", "Callers by what told their place.", {"source": source}, count
            )
        name = "voicegate_signaling_location_headers_ignored_total"
        for reason, count in self._locator.ignored.items():
            yield metrics.Sample(name, "counter", "Headers not believed.", {"reason": reason}, count)
        yield from self._placement.samples()


def error_answer(status: int, code: str, message: str, param: str | None = None) -> Response:
    return Response(error_body(status, code, message, param), status, content_type="application/json")


def empty_answer(status: int, headers: Mapping[str, str] | None = None) -> Response:
    """An answer without content and so without a type: clients that parse JSON by its name do not try to."""
    response = Response(b"", status, dict(headers or {}))
    response.headers.pop("Content-Type", None)
    return response


def denied_answer(denied: Denied) -> Response:
    response = error_answer(denied.status, denied.code, str(denied), denied.param)
    response.headers.update(denied.headers())
    return response


def busy_answer(message: str, code: str = "overloaded") -> Response:
    response = error_answer(503, code, message)
    response.headers["Retry-After"] = str(RETRY_AFTER_SECONDS)
    return response


def _passed_on(refusal: Refused) -> Response:
    return Response(refusal.body, refusal.status, content_type="application/json")


def _has_ended(status: bytes) -> bool:
    try:
        known: Any = msgspec.json.decode(status)
    except msgspec.DecodeError:
        return False
    return isinstance(known, dict) and known.get("status") == "ended"


async def _body() -> bytes:
    body = await request.get_data()
    assert isinstance(body, bytes), "text only when asked for as text"
    return body
