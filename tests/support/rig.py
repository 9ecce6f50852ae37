"""A transceiver core and its clients on virtual time, with the link between them played by the rig.

`Rig.run(seconds)` moves time from deadline to deadline, carrying datagrams with a fixed one-way delay.
Nothing sleeps and nothing is random but what the seed says.
"""

from __future__ import annotations

import heapq
import random
from collections.abc import Callable

from tests.support.light_client import LightCall
from voicegate.proto import link
from voicegate.proto.address import ClientAddress, pack_address, unpack_address
from voicegate.proto.dtls import DtlsCertificate
from voicegate.proto.keys import ClusterKeys
from voicegate.roles.transceiver.allocation import ENTROPY_LENGTH, Identity, Wishes
from voicegate.roles.transceiver.call import CallEvent, CallLimits
from voicegate.roles.transceiver.core import TransceiverCore

RELAY = "127.0.0.1:7000"
PUBLIC = ("127.0.0.1", 3478)
KEYS = ClusterKeys.parse(["0:" + "rig secret " * 4])
CERTIFICATE = DtlsCertificate.generate(1.8e9)
CLIENT_CERTIFICATE = DtlsCertificate.generate(1.8e9)


class Rig:
    """One core, any number of `LightCall`s, one relay that forwards everything."""

    def __init__(
        self,
        *,
        one_way: float = 0.01,
        max_calls: int = 10,
        limits: CallLimits | None = None,
        seed: int = 1,
    ) -> None:
        self.random = random.Random(seed)
        self.now = 1000.0
        self.one_way = one_way
        identity = Identity(cluster=1, transceiver=7, boot="b00t", link="127.0.0.1:9000")
        self.core = TransceiverCore(
            identity,
            KEYS,
            CERTIFICATE,
            limits or CallLimits(max_seconds=3600, idle_seconds=35),
            max_calls=max_calls,
            wall_offset=1.8e9,
            random=self.random.random,
        )
        self.clients: dict[ClientAddress, LightCall] = {}
        self.audio: dict[str, bytearray] = {}
        self.to_agent: list[bytes] = []
        self.to_sidebands: list[bytes] = []
        self.events: list[tuple[str, CallEvent]] = []
        self.to_client: Callable[[bytes], bool] = lambda data: True
        """Whether a datagram passes; a test puts loss here."""
        self._in_flight: list[tuple[float, int, Callable[[], None]]] = []
        self._serial = 0
        self._header = link.link_header(
            KEYS.link[0], 0, RELAY, f"{identity.link}#{identity.boot}", int((1000 + 1.8e9) // 3600)
        )

    def call(
        self, port: int = 5000, *, edit: Callable[[str], str] = lambda offer: offer, **options: object
    ) -> tuple[LightCall, str]:
        """A client at 192.0.2.1:`port` that has posted its (edited) offer and holds the answer."""
        client = LightCall(CLIENT_CERTIFICATE, self.random, local=("192.0.2.1", port), **options)  # type: ignore[arg-type]
        wishes = Wishes(edit(client.offer()), ("127.0.0.1:3478",))
        entropy = self.random.randbytes(ENTROPY_LENGTH)
        call_id, answer = self.core.allocate(wishes, now=self.now, entropy=entropy)
        self.clients[pack_address(*client.local)] = client
        client.accept_answer(answer, self.now)
        self._drain()
        return client, call_id

    def run(self, seconds: float) -> None:
        """Let this much time pass."""
        end = self.now + seconds
        while (deadline := self._next()) <= end:
            self.now = max(self.now, deadline)
            while self._in_flight and self._in_flight[0][0] <= self.now:
                heapq.heappop(self._in_flight)[2]()
            for client in self.clients.values():
                if client.next_deadline() <= self.now:
                    client.handle_timeout(self.now)
            self.core.handle_timeout(self.now)
            self._drain()
        self.now = end

    def play(self, call_id: str, pcm: bytes) -> None:
        """Let the agent say this now."""
        call = self.core.call(call_id)
        assert call is not None
        call.play(pcm, self.now)
        self.changed(call_id)

    def changed(self, call_id: str) -> None:
        """Take what a call that was mutated from outside produced."""
        self.core._drain(self.core._calls[call_id], self.now)
        self._drain()

    def inject(
        self, payload: bytes, client: ClientAddress, *, relay: str = RELAY, header: bytes = b""
    ) -> None:
        """Bring a datagram to the core now, as if from this client."""
        self.core.receive_datagram(
            (header or self._header) + link.encode_frame(client, payload), relay, self.now
        )
        self._drain()

    def _next(self) -> float:
        flight = self._in_flight[0][0] if self._in_flight else float("inf")
        core = self.core.next_deadline()
        clients = min((c.next_deadline() for c in self.clients.values()), default=float("inf"))
        return min(flight, clients, float("inf") if core is None else core)

    def _drain(self) -> None:
        for source, client in self.clients.items():
            while (out := client.poll_transmit()) is not None:
                self._later(self._forward_to_core(source, out[0]))
        for relay, datagram in self.core.poll_transmits(self.now):
            assert relay == RELAY
            for target, payload in link.parse_frames_untrusted(datagram):
                if target in self.clients and self.to_client(payload):
                    self._later(self._forward_to_client(target, payload))
        while (item := self.core.poll_upstream()) is not None:
            if item.is_audio:
                self.audio.setdefault(item.call_id, bytearray()).extend(item.data)
            else:
                self.to_agent.append(item.data)
        while (addressed := self.core.poll_sideband()) is not None:
            self.to_sidebands.append(addressed[1])
        while (event := self.core.poll_event()) is not None:
            self.events.append(event)

    def _forward_to_core(self, source: ClientAddress, data: bytes) -> Callable[[], None]:
        return lambda: self.core.receive_datagram(
            self._header + link.encode_frame(source, data), RELAY, self.now
        )

    def _forward_to_client(self, target: ClientAddress, data: bytes) -> Callable[[], None]:
        return lambda: self.clients[target].receive_datagram(data, PUBLIC, self.now)

    def _later(self, action: Callable[[], None]) -> None:
        self._serial += 1
        heapq.heappush(self._in_flight, (self.now + self.one_way, self._serial, action))


def address_of(client: LightCall) -> ClientAddress:
    """Where the rig's packets of this client come from."""
    address = pack_address(*client.local)
    assert unpack_address(address) == client.local
    return address
