"""The page of a whole process for probes and Prometheus: `ops_listen` of the roles that have one."""

from __future__ import annotations

from collections.abc import Callable

import trio

from voicegate.config import ConfigError
from voicegate.net.http import InternalApp, serve_http
from voicegate.net.listen import listen_problem


async def serve_ops(
    role: str,
    listen: str,
    unready: Callable[[], str | None],
    *,
    task_status: trio.TaskStatus[list[str]] = trio.TASK_STATUS_IGNORED,
) -> None:
    """Serve `/healthz`, `/readyz` (503 with what `unready` says) and `/metrics` until cancelled.

    ConfigError, with a sentence for a person, when the address cannot be had.
    """
    try:
        await serve_http(InternalApp(ready=unready), listen, task_status=task_status)
    except OSError as error:
        raise ConfigError(listen_problem(role, "ops_listen", listen, error)) from error
    except ValueError as error:
        raise ConfigError(
            f"[{role}] ops_listen: {error}; choose another address or leave it empty"
        ) from error
