"""The relay in the registry: where it is, what it listens on, how full it is."""

from __future__ import annotations

from collections.abc import Callable, Sequence

import msgspec
import trio

from voicegate.config import Config, parse_location
from voicegate.net.registry import Registry, RelayRecord
from voicegate.roles.relay.sockets import Sockets
from voicegate.roles.relay.worker import Identity

PUBLISH_SECONDS = 1.0
"""Between two looks at the load: steering needs no more, and an unchanged record is not published."""


class Presence:
    """Registers a relay (`run`), and takes it away (`withdraw`)."""

    def __init__(
        self, config: Config, registry: Registry, identity: Identity, slots: Sequence[Sockets]
    ) -> None:
        relay = config.relay
        self._registry = registry
        self._withdrawn = False
        self._record = RelayRecord(
            id=0,
            cluster=config.registry.cluster,
            ingress=identity.ingress,
            boot=f"{identity.boot:x}",
            links=tuple(sockets.link_address() for sockets in slots),
            addresses=relay.advertise or tuple(slots[0].addresses()),
            location=parse_location(relay.location),
            capacity=relay.max_flows * len(slots),
        )

    async def run(self, flows: Callable[[], int]) -> None:
        """Be registered, with the number of flows, until cancelled."""
        self._record = await self._registry.register(msgspec.structs.replace(self._record, flows=flows()))
        while not self._withdrawn:
            record = msgspec.structs.replace(self._record, flows=flows())
            if record != self._record:
                self._record = record
                self._registry.publish_nowait(record)
            await trio.sleep(PUBLISH_SECONDS)

    async def withdraw(self) -> None:
        """Let nobody be sent here any more. Bounded in time; done also where the caller was cancelled."""
        self._withdrawn = True
        with trio.CancelScope(shield=True):
            await self._registry.withdraw()
