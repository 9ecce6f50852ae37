"""What every role is started with beside its configuration."""

from __future__ import annotations

from dataclasses import dataclass

from voicegate.net.registry import Registry
from voicegate.processes.zygote import Zygote
from voicegate.proto.keys import ClusterKeys


@dataclass(frozen=True, slots=True)
class RoleContext:
    """One per process; the roles that share a process share it."""

    keys: ClusterKeys
    registry: Registry
    zygote: Zygote | None = None
    """Where the worker processes of this process's only role come from; None: it works in this process."""
