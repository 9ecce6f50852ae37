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
from voicegate.net.ops import serve_ops
from voicegate.net.registry import TransceiverRecord
from voicegate.proto.address import join_host_port, split_host_port
from voicegate.proto.allocate import AllocateReply, AllocateRequest
from voicegate.roles.context import RoleContext
from voicegate.roles.transceiver.control import routes, sockets
from voicegate.roles.transceiver.core import Overloaded
from voicegate.roles.transceiver.listening import turn_plan
from voicegate.roles.transceiver.worker import Worker


class Transceiver:
    """One transceiver, in whichever process."""

    def __init__(self, config: Config, context: RoleContext, boot: str = "") -> None:
        """`boot`: its boot id, never used before; empty: a random one. ConfigError for settings of the agent
        or of turns that cannot be used."""
        check_settings(config.agent)
        self._turns = turn_plan(config)
        self._config = config
        self._context = context
        self._boot = boot or secrets.token_hex(8)
        self._worker: Worker | None = None
        """None: not registered yet."""
        self._started = trio.Event()
        self._stop = trio.Event()

    async def run(self, *, task_status: trio.TaskStatus[None] = trio.TASK_STATUS_IGNORED) -> None:
        """Run until cancelled; started when it is registered and can be given calls.

        Raises RegistryError when no lease can be had, ConfigError when an address cannot be bound.
        """
        async with trio.open_nursery() as nursery:
            # Not `nursery.start`: it would wait for ever for a child that shields itself while we are
            # cancelled.
            nursery.start_soon(self._serve)
            try:
                await self._started.wait()
                task_status.started()
                await trio.sleep_forever()
            finally:
                self._stop.set()

    def unready(self) -> str | None:
        """Why it takes no calls, for a person."""
        return "starting" if self._worker is None else self._worker.not_ready()

    async def _serve(self) -> None:
        settings = self._config.transceiver
        with (
            closing(_open_link(self._config)) as socket,
            closing(Readers(socket)) as readers,
            trio.CancelScope() as scope,
        ):
            async with trio.open_nursery() as nursery:
                control = await self._listen(nursery)
                record = await self._context.registry.register(
                    TransceiverRecord(
                        id=settings.id,
                        cluster=self._config.registry.cluster,
                        link=join_host_port(*socket.address()),
                        control=control,
                        boot=self._boot,
                        capacity=settings.max_calls,
                    )
                )
                self._worker = worker = Worker(
                    self._config, self._context, record, socket, readers, nursery, self._turns
                )
                # From here on calls may be going on: cancellation only asks for the end, see `shut_down`.
                scope.shield = True
                worker.start()
                self._started.set()
                await self._stop.wait()
                await worker.shut_down()
                nursery.cancel_scope.cancel()

    async def _listen(self, nursery: trio.Nursery) -> str:
        """Serve HTTP; the address of the control API."""
        settings = self._config.transceiver
        try:
            control: list[str] = await nursery.start(serve_http, self._control(), settings.control_listen)
        except ListenError as error:
            problem = listen_problem("transceiver", "control_listen", settings.control_listen, error)
            raise ConfigError(problem) from error
        if settings.ops_listen:
            await nursery.start(serve_ops, "transceiver", settings.ops_listen, self.unready)
        return control[0]

    def _control(self) -> InternalApp:
        def allocate(request: AllocateRequest) -> AllocateReply:
            if self._worker is None:
                raise Overloaded
            return self._worker.allocate(request)

        return InternalApp(
            ready=self.unready,
            routes=routes(
                allocate=allocate,
                status=lambda call_id: None if self._worker is None else self._worker.status(call_id),
                hang_up=lambda call_id: self._worker is not None and self._worker.hang_up(call_id),
            ),
            sockets=sockets(
                lambda call_id, owner: None if self._worker is None else self._worker.attach(call_id, owner)
            ),
            accepts_token=self._context.keys.accepts_control_token,
        )


def _open_link(config: Config) -> udp.UdpSocket:
    listen = config.transceiver.link_listen
    host, port = split_host_port(listen)
    try:
        return udp.open_udp(host, port, batching=config.net.batching)
    except OSError as error:
        raise ConfigError(listen_problem("transceiver", "link_listen", f"{listen}/udp", error)) from error
