"""`python -m voicegate.agents.parrot`: the parrot as a process of its own."""

from __future__ import annotations

import argparse
import os
import signal
import sys
from collections.abc import Awaitable, Callable
from functools import partial

import trio

from voicegate import logs
from voicegate.agents.parrot.server import MAX_SESSIONS, serve_parrot
from voicegate.config import LogConfig


def main(arguments: list[str] | None = None) -> int:
    parser = argparse.ArgumentParser(
        prog="python -m voicegate.agents.parrot",
        description="A Realtime WebSocket server that says back what it hears.",
    )
    parser.add_argument("--listen", default="127.0.0.1:8765", metavar="HOST:PORT")
    parser.add_argument(
        "--api-key",
        default=os.environ.get("PARROT_API_KEY", ""),
        help="ask clients for `Authorization: Bearer KEY` (default: $PARROT_API_KEY; empty: ask for nothing)",
    )
    parser.add_argument("--max-sessions", type=int, default=MAX_SESSIONS)
    parser.add_argument(
        "--no-turn-detection", action="store_true", help="be a server that cannot tell when a turn ends"
    )
    parser.add_argument("--log-format", choices=["auto", "json", "console"], default="auto")
    options = parser.parse_args(arguments)
    logs.configure(LogConfig(format=options.log_format))
    serve = partial(
        serve_parrot,
        options.listen,
        api_key=options.api_key,
        turn_detection=not options.no_turn_detection,
        max_sessions=options.max_sessions,
    )
    failures: list[str] = []
    try:
        trio.run(_until_signalled, serve)
    except* (OSError, ValueError) as failed:
        failures = [_reason(failed)]
    if failures:
        sys.stderr.write(f"parrot: cannot listen on {options.listen}: {failures[0]}\n")
        return 1
    return 0


def _reason(failed: BaseException) -> str:
    error = logs.first_error(failed)
    return os.strerror(error.errno) if isinstance(error, OSError) and error.errno else str(error)


async def _until_signalled(serve: Callable[[], Awaitable[None]]) -> None:
    with trio.open_signal_receiver(signal.SIGTERM, signal.SIGINT) as signals:
        async with trio.open_nursery() as nursery:
            nursery.start_soon(serve)
            async for _ in signals:
                nursery.cancel_scope.cancel()
                break


if __name__ == "__main__":
    sys.exit(main())
