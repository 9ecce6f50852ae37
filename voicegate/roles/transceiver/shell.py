"""The transceiver on Trio: its sockets, its lease in the registry, and its `Worker` until cancelled."""

from __future__ import annotations

import secrets
from contextlib import closing

import trio

from voicegate.agents.dialing import check_settings
from voicegate.agents.readers import Readers
from voicegate.config import Config, ConfigError
from voicegate.net import udp
from voicegate.net.http import InternalApp, serve_http
from voicegate.net.listen import ListenError, listen_problem
from voicegate.net.registry import TransceiverRecord
from voicegate.proto.address import join_host_port, split_host_port
from voicegate.proto.allocate import AllocateReply, AllocateRequest
from voicegate.roles.context import RoleContext
from voicegate.roles.transceiver.control import routes, sockets
from voicegate.roles.transceiver.core import Overloaded
from voicegate.roles.transceiver.listening import turn_plan
from voicegate.roles.transceiver.worker import Worker


async def run(
    config: Config,
    context: RoleContext,
    *,
    boot: str = "",
    task_status: trio.TaskStatus[None] = trio.TASK_STATUS_IGNORED,
) -> None:
    """Run one transceiver until cancelled; started when it is registered and can be given calls. `boot`: its
    boot id, never used before; empty: a random one.

    Raises RegistryError when no lease can be had, ConfigError when an address cannot be bound or for an agent
    that cannot be dialled.
    """
    check_settings(config.agent)
    turns = turn_plan(config)
    settings = config.transceiver
    worker: Worker | None = None

    def ready() -> str | None:
        return "starting" if worker is None else worker.not_ready()

    def allocate(request: AllocateRequest) -> AllocateReply:
        if worker is None:
            raise Overloaded
        return worker.allocate(request)

    app = InternalApp(
        ready=ready,
        routes=routes(
            allocate=allocate,
            status=lambda call_id: None if worker is None else worker.status(call_id),
            hang_up=lambda call_id: worker is not None and worker.hang_up(call_id),
        ),
        sockets=sockets(lambda call_id, owner: None if worker is None else worker.attach(call_id, owner)),
        accepts_token=context.keys.accepts_control_token,
    )
    stop = trio.Event()

    started = trio.Event()

    async def serve() -> None:
        nonlocal worker
        with (
            closing(_open_link(config)) as socket,
            closing(Readers(socket)) as readers,
            trio.CancelScope() as scope,
        ):
            async with trio.open_nursery() as nursery:
                try:
                    control = await nursery.start(serve_http, app, settings.control_listen)
                except ListenError as error:
                    problem = listen_problem("transceiver", "control_listen", settings.control_listen, error)
                    raise ConfigError(problem) from error
                record = await context.registry.register(
                    TransceiverRecord(
                        id=settings.id,
                        cluster=config.registry.cluster,
                        link=join_host_port(*socket.address()),
                        control=control[0],
                        boot=boot or secrets.token_hex(8),
                        capacity=settings.max_calls,
                    )
                )
                worker = Worker(config, context, record, socket, readers, nursery, turns)
                # From here on calls may be going on: cancellation only asks for the end, see `shut_down`.
                scope.shield = True
                worker.start()
                started.set()
                await stop.wait()
                await worker.shut_down()
                nursery.cancel_scope.cancel()

    async with trio.open_nursery() as nursery:
        # Not `nursery.start`: it would wait for ever for a child that shields itself while we are cancelled.
        nursery.start_soon(serve)
        try:
            await started.wait()
            task_status.started()
            await trio.sleep_forever()
        finally:
            stop.set()


def _open_link(config: Config) -> udp.UdpSocket:
    listen = config.transceiver.link_listen
    host, port = split_host_port(listen)
    try:
        return udp.open_udp(host, port, batching=config.net.batching)
    except OSError as error:
        raise ConfigError(listen_problem("transceiver", "link_listen", f"{listen}/udp", error)) from error
