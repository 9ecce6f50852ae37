"""What every role is started with beside its configuration."""

from __future__ import annotations

from dataclasses import dataclass

from voicegate.net.registry import Registry
from voicegate.net.zygote import Zygote
from voicegate.proto.keys import ClusterKeys


@dataclass(frozen=True, slots=True)
class RoleContext:
    """One per process; the roles that share a process share it."""

    keys: ClusterKeys
    registry: Registry
    zygote: Zygote | None = None
    """Where a relay's worker processes come from; None: it forwards in this process."""
