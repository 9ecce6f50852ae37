"""Finding a transceiver that takes a call: steering's routes are tried in order, with two tries a cluster."""

from __future__ import annotations

import random
from collections import Counter
from collections.abc import Iterable

import msgspec

from voicegate import logs, metrics
from voicegate.config import Config
from voicegate.net.registry import Records, Registry
from voicegate.proto.allocate import AllocateReply, AllocateRequest
from voicegate.roles.signaling import core, steering
from voicegate.roles.signaling.control import ControlClient, Refused, Unreachable

MAX_STEERED = 1024
"""Different pairs of ingress and cluster that are counted; a relay without a name that gets a new address at
each start makes new ones."""

_log = logs.get_logger(__name__)


class NoPlace(Exception):
    """Nobody takes the call now; the message is for the client, `code` too, `result` for the metrics."""

    def __init__(self, result: str, message: str, code: str = "overloaded") -> None:
        super().__init__(message)
        self.result = result
        self.code = code


class Placement:
    """Places calls by what the registry says at that moment. One per process."""

    def __init__(self, config: Config, registry: Registry, control: ControlClient) -> None:
        self._advertise = config.signaling.advertise
        self._own = config.registry.cluster
        self._allowed = config.signaling.clusters or (self._own,)
        self._registry = registry
        self._control = control
        self._random = random.SystemRandom()
        self._unreachable = 0
        self._steered: Counter[tuple[str, str]] = Counter()

    def not_ready(self) -> str | None:
        """Why no call could be placed now. An old registry is no reason: calls are placed by what it last
        said."""
        return self._no_transceiver() or (None if self._routes(None) else self._no_relay())

    async def place(self, wanted: AllocateRequest, client: steering.Place | None) -> AllocateReply | Refused:
        """Have the call taken, with candidates that are near to the client; NoPlace when nobody takes it.
        Refused: for what is wrong with the offer."""
        routes = self._routes(client)
        if not routes:
            what = "transceiver" if self._no_transceiver() else "relay"
            raise NoPlace(f"no_{what}", f"No {what} takes calls; signaling's /readyz says why.", f"no_{what}")
        answered = False
        for route in routes:
            outcome = await self._ask_cluster(route, wanted)
            if isinstance(outcome, AllocateReply):
                self._count(route)
                return outcome
            if outcome is not None and outcome.status != 503:
                return outcome
            answered = answered or outcome is not None
        if answered:
            raise NoPlace("no_room", "Every transceiver is full at this moment; try again.")
        raise NoPlace("no_answer", "No transceiver answers; the server's log has more.", "no_transceiver")

    def samples(self) -> Iterable[metrics.Sample]:
        name = "voicegate_signaling_steered_total"
        for (ingress, cluster), count in self._steered.items():
            labels = {"ingress": ingress, "cluster": cluster}
            yield metrics.Sample(
                name, "counter", "Calls by where they enter and who has them.", labels, count
            )
        name = "voicegate_signaling_unreachable_total"
        yield metrics.Sample(name, "counter", "Transceivers that did not answer.", {}, self._unreachable)

    async def _ask_cluster(
        self, route: steering.Route, wanted: AllocateRequest
    ) -> AllocateReply | Refused | None:
        """Ask two of its transceivers at most; None when none of them answers."""
        draw = self._random.getrandbits
        records = self._registry.clusters.get(route.cluster, {}).values()
        wanted = msgspec.structs.replace(wanted, candidates=route.ingress.addresses)
        refusal: Refused | None = None
        for record in core.place(records, route.cluster, draw(32), draw(32)):
            try:
                outcome = await self._control.allocate(record.control, wanted)
            except Unreachable as error:
                self._unreachable += 1
                _log.warning(
                    "a transceiver does not answer",
                    transceiver=record.id,
                    cluster=route.cluster,
                    error=str(error),
                )
                continue
            if isinstance(outcome, AllocateReply):
                self._registry.observe_load_nowait(record.id, outcome.calls, outcome.capacity, route.cluster)
                _log.info(
                    "call set up",
                    call=outcome.call_id,
                    transceiver=record.id,
                    cluster=route.cluster,
                    ingress=route.ingress.name,
                    key_id=wanted.key_id,
                )
                return outcome
            refusal = outcome
            if outcome.status != 503:
                break
            # Full sooner than the registry said; remember it until it says otherwise.
            self._registry.observe_load_nowait(record.id, record.capacity, record.capacity, route.cluster)
        return refusal

    def _clusters(self) -> dict[int, Records]:
        """Those that may be given calls, with their transceivers."""
        known = self._registry.clusters
        return {number: known[number] for number in self._allowed if number in known}

    def _routes(self, client: steering.Place | None) -> list[steering.Route]:
        return steering.find_routes(
            client,
            self._own,
            {number: records.values() for number, records in self._clusters().items()},
            self._registry.relays.values(),
            self._advertise,
        )

    def _no_transceiver(self) -> str | None:
        records = [record for known in self._clusters().values() for record in known.values()]
        if not records:
            return self._registry.absence()
        if all(record.draining for record in records):
            return "every transceiver is draining"
        return None

    def _no_relay(self) -> str:
        relays = self._registry.relays.values()
        if not relays:
            return "no relay is registered, and signaling.advertise names no address"
        if not steering.open_ingresses(relays):
            return "every relay is draining, full or without a public address"
        return "no relay is registered in the transceivers' cluster"

    def _count(self, route: steering.Route) -> None:
        pair = (route.ingress.name, str(route.cluster))
        if pair not in self._steered and len(self._steered) >= MAX_STEERED:
            pair = ("other", "other")
        self._steered[pair] += 1
