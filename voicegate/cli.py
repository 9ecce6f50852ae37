"""The command `voicegate`: reads the configuration, starts the roles, ends them cleanly.

Exit status: 0 after SIGTERM or Ctrl-C, 1 when something could not be started or failed, 2 for a configuration
that cannot be used. What a person can act on is one line on stderr, never a traceback.
"""

from __future__ import annotations

import argparse
import contextlib
import secrets
import signal
import sys
from collections.abc import Awaitable, Callable, Sequence
from functools import partial
from pathlib import Path
from typing import Any

import msgspec
import trio

from voicegate import __version__, logs
from voicegate.config import DEFAULT_ADVERTISE, ROLES, Config, ConfigError, Role, load_config, worker_count
from voicegate.config_checks import check
from voicegate.keyfile import KeyFileError, configured_secrets, valid_seconds, watch_key_file
from voicegate.net.registry import RegistryError, open_registry
from voicegate.processes.zygote import Zygote, start_zygote
from voicegate.proto.keys import ClusterKeys
from voicegate.roles.context import RoleContext

START_ORDER: tuple[Role, ...] = ("relay", "transceiver", "signaling")
"""Who is reached is there before who reaches: calls say goodbye through the relay, signaling asks
transceivers. Ended in the reverse order."""


_log = logs.get_logger(__name__)


def main(arguments: Sequence[str] | None = None) -> int:
    arguments = sys.argv[1:] if arguments is None else arguments
    if arguments[:1] == ["keys"]:
        from voicegate.keys_command import main as keys_command

        return keys_command(arguments[1:])
    if arguments[:1] == ["load"]:
        from voicegate.load.command import main as load_command

        return load_command(arguments[1:])
    if arguments[:1] == ["turns"]:
        from voicegate.turns.command import main as turns_command

        return turns_command(arguments[1:])
    options = _parse(arguments)
    roles: tuple[Role, ...] = tuple(dict.fromkeys(options.role)) or ROLES
    try:
        config = load_config(options.config)
        problems = check(config, roles)
    except ConfigError as error:
        problems = [str(error)]
    for problem in problems:
        print(f"voicegate: {problem}", file=sys.stderr)
    if problems:
        return 2
    if options.check_config:
        whom = ", ".join(roles) if options.role else "all roles in one process"
        print(f"voicegate: the configuration is usable for {whom}")
        return 0
    logs.configure(config.log)
    zygote = _start_zygote(config, roles)
    try:
        trio.run(_until_signalled, partial(_run_roles, config, roles, zygote))
    except KeyboardInterrupt:
        return 0
    except BaseException as error:
        return _report(error)
    finally:
        if zygote is not None:
            zygote.close()
    _log.info("stopped")
    return 0


def _parse(arguments: Sequence[str]) -> argparse.Namespace:
    parser = argparse.ArgumentParser(
        prog="voicegate",
        description="A WebRTC edge in front of any OpenAI Realtime WebSocket server. Without --role all three"
        " roles run in this process.",
        epilog="Every key of the configuration file is also an environment variable: [relay] listen is"
        " VOICEGATE_RELAY_LISTEN. `voicegate keys --help` tells how to rotate the secrets,"
        " `voicegate load --help` how to make many calls at once,"
        " `voicegate turns --help` how to measure judges of turns.",
    )
    parser.add_argument(
        "--role", action="append", choices=ROLES, default=[], help="run this role; repeatable"
    )
    parser.add_argument("--config", type=Path, metavar="FILE", help="a TOML file, see config/voicegate.toml")
    parser.add_argument("--check-config", action="store_true", help="say what is wrong and exit")
    parser.add_argument("--version", action="version", version=f"voicegate {__version__}")
    return parser.parse_args(arguments)


def _start_zygote(config: Config, roles: Sequence[Role]) -> Zygote | None:
    """What a role's workers are forked from, where it has any: before Trio runs and any thread is there."""
    if tuple(roles) == ("relay",) and worker_count(config.relay.workers):
        from voicegate.roles.relay.process import relay_process

        return start_zygote(relay_process(config))
    if tuple(roles) == ("transceiver",) and worker_count(config.transceiver.workers) > 1:
        from voicegate.roles.transceiver.process import transceiver_process

        return start_zygote(transceiver_process(config))
    return None


async def _until_signalled(run: Callable[[], Awaitable[None]]) -> None:
    for number in (signal.SIGTERM, signal.SIGINT):
        # What holds again behind the receiver, which delivers there what it was not asked for: people and
        # service managers signal twice, and that is to kill nobody who is about to end well.
        signal.signal(number, signal.SIG_IGN)
    with trio.open_signal_receiver(signal.SIGTERM, signal.SIGINT) as signals:
        async with trio.open_nursery() as nursery:

            async def watch() -> None:
                async for number in signals:
                    _log.info("stopping", signal=signal.Signals(number).name)
                    nursery.cancel_scope.cancel()

            nursery.start_soon(watch)
            await run()


async def _run_roles(config: Config, roles: Sequence[Role], zygote: Zygote | None) -> None:
    """Start the roles, back to front, and run until cancelled."""
    keys = ClusterKeys.parse(configured_secrets(config.keys) or (f"0:{secrets.token_hex(32)}",))
    context = RoleContext(keys, open_registry(config, keys), zygote)
    async with trio.open_nursery() as nursery, _Stages(nursery) as stages:
        await stages.start(context.registry.run)
        if config.keys.file:
            nursery.start_soon(watch_key_file, config.keys.file, keys)
        if config.registry.redis:
            from voicegate.net.key_notes import KeyNotes  # redis-py is loaded only where it is used

            nursery.start_soon(KeyNotes(config.registry.redis).run, keys, valid_seconds(config))
        if "transceiver" in roles and not config.agent.url:
            config = await _with_parrot(config, stages)
        ready: dict[str, Any] = {}
        for role in START_ORDER:
            if role not in roles:
                continue
            try:
                ready[role] = await stages.start(partial(_load(role), config, context))
            except* OSError as group:
                cause = logs.first_error(group)
                reason = cause.strerror if isinstance(cause, OSError) and cause.strerror else cause
                raise StartError(f"{role} cannot start: {reason}") from None
            if role == "relay" and config.signaling.advertise == DEFAULT_ADVERTISE:
                config = _replace(config, "signaling", advertise=tuple(ready["relay"]))
        _announce(roles, ready)
        if "signaling" in ready and config.signaling.demo_page:
            _invite(config, ready["signaling"])
        await trio.sleep_forever()


class _Stages:
    """Tasks that are ended one after the other, the last one started first."""

    def __init__(self, nursery: trio.Nursery) -> None:
        self._nursery = nursery
        self._running: list[tuple[trio.CancelScope, trio.Event]] = []

    async def start(self, task: Callable[..., Awaitable[Any]]) -> Any:
        """As `nursery.start`; from its start on only the end of the stages cancels the task."""
        scope, ended = trio.CancelScope(), trio.Event()

        async def stage(*, task_status: trio.TaskStatus[Any]) -> None:
            try:
                with scope:
                    await task(task_status=task_status)
            finally:
                ended.set()

        value = await self._nursery.start(stage)
        scope.shield = True
        self._running.append((scope, ended))
        return value

    async def __aenter__(self) -> _Stages:
        return self

    async def __aexit__(self, *_: object) -> None:
        with trio.CancelScope(shield=True):
            for scope, ended in reversed(self._running):
                scope.cancel()
                await ended.wait()


class StartError(Exception):
    """A role could not be started; the message is a sentence for a person."""


def _load(role: Role) -> Callable[..., Awaitable[Any]]:
    """A role's `run`, imported here: a relay starts without a codec, a TLS library or a web framework."""
    if role == "relay":
        from voicegate.roles.relay.shell import run as run_relay

        return run_relay
    if role == "transceiver":
        from voicegate.roles.transceiver.process import run as run_transceiver

        return run_transceiver
    from voicegate.roles.signaling.shell import run as run_signaling

    return run_signaling


async def _with_parrot(config: Config, stages: _Stages) -> Config:
    from voicegate.agents.parrot.server import serve_parrot

    url = await stages.start(partial(serve_parrot, "127.0.0.1:0"))
    return _replace(config, "agent", url=url)


def _replace(config: Config, section: str, **keys: object) -> Config:
    return msgspec.structs.replace(
        config, **{section: msgspec.structs.replace(getattr(config, section), **keys)}
    )


def _announce(roles: Sequence[Role], ready: dict[str, Any]) -> None:
    details = {role: value for role, value in ready.items() if value is not None and role != "signaling"}
    if "signaling" in ready:
        details["open"] = ready["signaling"]
    _log.info(f"voicegate is ready: {', '.join(roles)}", version=__version__, **details)


def _invite(config: Config, url: str) -> None:
    """Tell a person at a terminal, or one who reads console logs, where to go now."""
    stream = sys.stdout if sys.stdout.isatty() else sys.stderr
    if not (stream.isatty() or config.log.format == "console"):
        return
    # Bound to every address: of this machine's names localhost is the one that a microphone works on.
    url = url.replace("//0.0.0.0:", "//localhost:").replace("//[::]:", "//localhost:")
    with contextlib.suppress(OSError):
        print(f"\n  Open {url} and press Talk. Ctrl-C ends it.\n", file=stream, flush=True)


def _report(error: BaseException) -> int:
    """One line for what a person can act on; for anything else the log has the traceback."""
    cause = logs.first_error(error)
    if isinstance(cause, StartError | RegistryError | ConfigError | KeyFileError):
        print(f"voicegate: {cause}", file=sys.stderr)
        return 1
    if isinstance(cause, KeyboardInterrupt):
        return 0
    _log.error("voicegate failed", exc_info=error)
    print(f"voicegate: failed: {type(cause).__name__}: {cause}", file=sys.stderr)
    return 1
