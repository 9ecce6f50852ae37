"""Signaling as a running role."""

from __future__ import annotations

from functools import partial

import trio

from voicegate import logs, metrics
from voicegate.config import Config
from voicegate.net.http import serve_http
from voicegate.roles.context import RoleContext
from voicegate.roles.signaling.app import Signaling, make_app
from voicegate.roles.signaling.control import ControlClient

_log = logs.get_logger(__name__)


async def run(
    config: Config, context: RoleContext, *, task_status: trio.TaskStatus[str] = trio.TASK_STATUS_IGNORED
) -> None:
    """Serve until cancelled; started with the URL to open. OSError when the address is not free."""
    settings = config.signaling
    async with ControlClient(context.keys.control_token) as control, trio.open_nursery() as nursery:
        signaling = Signaling(config, context, control)
        forget = metrics.expose(signaling.samples)
        try:
            serve = partial(
                serve_http,
                make_app(config, signaling),
                settings.listen,
                certificate=settings.certificate,
                private_key=settings.private_key,
            )
            bound = (await nursery.start(serve))[0]
            url = f"{'https' if settings.certificate else 'http'}://{bound}/"
            _log.info("signaling is up", url=url, advertise=settings.advertise)
            task_status.started(url)
            await trio.sleep_forever()
        finally:
            forget()
