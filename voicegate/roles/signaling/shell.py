"""Signaling as a running role."""

from __future__ import annotations

import secrets
from collections.abc import Callable
from functools import partial

import trio

from voicegate import logs, metrics
from voicegate.agents.dialing import check_settings
from voicegate.checks import geoip_problem
from voicegate.config import Config, ConfigError
from voicegate.net.http import serve_http
from voicegate.net.listen import ListenError, listen_problem
from voicegate.net.registry import SignalingRecord
from voicegate.roles.context import RoleContext
from voicegate.roles.signaling.app import Door, make_app
from voicegate.roles.signaling.calls import Signaling
from voicegate.roles.signaling.control import ControlClient
from voicegate.roles.signaling.keys import Key, KeyLimits, KeyRing, full_key
from voicegate.roles.signaling.location import Address, Locator
from voicegate.roles.signaling.sockets import Sockets
from voicegate.roles.signaling.steering import Place

_log = logs.get_logger(__name__)


async def run(
    config: Config, context: RoleContext, *, task_status: trio.TaskStatus[str] = trio.TASK_STATUS_IGNORED
) -> None:
    """Serve until cancelled; started with the URL to open. ConfigError when the address is not free, for an
    agent that cannot be dialled and a database of places that cannot be used."""
    settings = config.signaling
    check_settings(config.agent)
    door = Door(settings, KeyRing(_keys(config), context.keys.seal))
    limits = KeyLimits()
    look_up = _look_up(settings.geoip_database)
    locator = Locator(settings.trusted_proxies, settings.location_headers, look_up)
    async with ControlClient(context.keys) as control, trio.open_nursery() as nursery:
        signaling = Signaling(config, context, control, limits, locator)
        sockets = Sockets(
            config.agent,
            control,
            limits,
            settings.max_websockets,
            owner_of=signaling.owner_of,
            begin=signaling.begin,
            admit=door.admit_socket,
        )
        forget = [metrics.expose(signaling.samples), metrics.expose(sockets.samples)]
        try:
            serve = partial(
                serve_http,
                make_app(settings, door, signaling, sockets),
                settings.listen,
                certificate=settings.certificate,
                private_key=settings.private_key,
            )
            try:
                bound = (await nursery.start(serve))[0]
            except ListenError as error:
                problem = listen_problem("signaling", "listen", settings.listen, error)
                raise ConfigError(problem) from error
            url = f"{'https' if settings.certificate else 'http'}://{bound}/"
            # For `voicegate keys` alone: nobody looks for us by it, so it may outlive us by a lease.
            await context.registry.register(SignalingRecord(id=0, boot=secrets.token_hex(8)))
            _log.info("signaling is up", url=url, advertise=settings.advertise)
            task_status.started(url)
            await trio.sleep_forever()
        finally:
            sockets.close()
            for function in forget:
                function()


def _look_up(path: str) -> Callable[[Address], Place | None]:
    """How to find an address in the database at `path`, if there is one."""
    if not path:
        return lambda address: None
    if problem := geoip_problem(path):
        raise ConfigError(f"signaling.geoip_database {problem}")
    from voicegate.roles.signaling.geoip import GeoDatabase  # its package is optional

    database = GeoDatabase(path, trio.current_time())
    return lambda address: database.find(address, trio.current_time())


def _keys(config: Config) -> list[Key]:
    restricted = [
        Key(
            entry.name,
            entry.key,
            models=entry.models,
            max_calls=entry.max_calls,
            calls_per_minute=entry.calls_per_minute,
            client_events=entry.client_events,
            server_events=entry.server_events,
            record=entry.record,
        )
        for entry in config.signaling.keys
    ]
    return [*map(full_key, config.signaling.api_keys), *restricted]
