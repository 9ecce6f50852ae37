"""A transceiver core and its clients on virtual time, with the link between them played by the rig.

`Rig.run(seconds)` moves time from deadline to deadline, carrying datagrams with a fixed one-way delay.
Nothing sleeps and nothing is random but what the seed says.
"""

from __future__ import annotations

import base64
import heapq
import json
import random
from collections.abc import Callable, Mapping
from typing import Any

from tests.support.light_client import LightCall
from tests.support.models import Event, client_event, server_event
from voicegate.load.client import LightClient
from voicegate.proto import link, link_control, realtime
from voicegate.proto.address import ClientAddress, pack_address, unpack_address
from voicegate.proto.dtls import DtlsCertificate
from voicegate.proto.keys import ClusterKeys
from voicegate.roles.transceiver.allocation import ENTROPY_LENGTH, Identity, Wishes
from voicegate.roles.transceiver.core import TransceiverCore
from voicegate.roles.transceiver.life import (
    CallEvent,
    CallLimits,
)

RELAY = "127.0.0.1:7000"
PUBLIC = ("127.0.0.1", 3478)
KEYS = ClusterKeys.parse(["0:" + "rig secret " * 4])
CERTIFICATE = DtlsCertificate.generate(1.8e9)
CLIENT_CERTIFICATE = DtlsCertificate.generate(1.8e9)


class Rig:
    """One core, any number of `LightCall`s, and relays that forward everything."""

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
        self.clients: dict[ClientAddress, LightClient] = {}
        self.audio: dict[str, bytearray] = {}
        self.upstream: list[Event] = []
        """What agents got, in order: events, with {"type": "audio", "samples": n} between them."""
        self.to_sidebands: list[Event] = []
        self.events: list[tuple[str, CallEvent]] = []
        self.to_client: Callable[[bytes], bool] = lambda data: True
        """Whether a datagram passes; a test puts loss here."""
        self.to_core: Callable[[bytes], bool] = lambda data: True
        self.jitter = 0.0
        """Added to the way of each datagram, 0 to this, so that they overtake each other."""
        self.relay_of: Callable[[ClientAddress], str] = lambda client: RELAY
        """Which relay brings the packets of a client."""
        self.replied_by: dict[ClientAddress, str] = {}
        """Which relay got the last packet for a client."""
        self.control: list[tuple[str, link_control.Clients]] = []
        """(relay, message): the answers to hellos."""
        self._in_flight: list[tuple[float, int, Callable[[], None]]] = []
        self._serial = 0

    def header(self, relay: str = RELAY, *, hops: int = 0, version: int = link.DATA) -> bytes:
        """The link header of what comes from a relay."""
        receiver = f"{self.core.identity.link}#{self.core.identity.boot}"
        hour = int((self.now + self.core.wall_offset) // 3600)
        return link.link_header(KEYS.link[0], 0, relay, receiver, hour, hops=hops, version=version)

    def hello(self, relay: str, ingress: str, boot: int, number: int = 0) -> None:
        """A relay presents itself, now."""
        message = link_control.encode_control(link_control.Hello(ingress, boot, number))
        self.core.receive_datagram(self.header(relay, version=link.CONTROL) + message, relay, self.now)
        self._drain()

    def call(
        self,
        port: int = 5000,
        *,
        edit: Callable[[str], str] = lambda offer: offer,
        wishes: Mapping[str, Any] | None = None,
        **options: object,
    ) -> tuple[LightCall, str]:
        """A client at 192.0.2.1:`port` that has posted its (edited) offer and holds the answer; `wishes` are
        further fields of `Wishes`."""
        client = LightCall(CLIENT_CERTIFICATE, self.random, local=("192.0.2.1", port), **options)  # type: ignore[arg-type]
        return client, self.join(client, port, edit=edit, wishes=wishes)

    def join(
        self,
        client: LightClient,
        port: int = 5000,
        *,
        edit: Callable[[str], str] = lambda offer: offer,
        wishes: Mapping[str, Any] | None = None,
    ) -> str:
        """Post the offer of a client at 192.0.2.1:`port` and give it the answer; the call's id."""
        wanted = Wishes(edit(client.offer()), ("127.0.0.1:3478",), **(wishes or {}))
        entropy = self.random.randbytes(ENTROPY_LENGTH)
        call_id, answer = self.core.allocate(wanted, now=self.now, entropy=entropy)
        self.clients[pack_address("192.0.2.1", port)] = client
        client.accept_answer(answer, self.now)
        self._drain()
        return call_id

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
        call.media.play(pcm, self.now)
        self.changed(call_id)

    def agent(self, call_id: str, kind: str, **fields: Any) -> None:
        """One event of a call's scripted agent, now."""
        text = json.dumps({"type": kind, "event_id": f"up_{len(self.upstream)}", **fields})
        self.core.receive_agent_event(call_id, realtime.decode_server_event_untrusted(text), self.now)
        self._drain()

    def agent_ready(self, call_id: str, *, configured: bool = True) -> None:
        """The agent has greeted and taken the settings it was dialled with."""
        self.agent(call_id, "session.created", session={"type": "realtime"})
        self.core.agent_ready(call_id, configured, self.now)
        self._drain()

    def agent_begins(self, call_id: str, response_id: str = "r1", item_id: str = "i1") -> None:
        response = {"id": response_id, "object": "realtime.response", "status": "in_progress", "output": []}
        self.agent(call_id, "response.created", response=response)
        place = {"response_id": response_id, "item_id": item_id, "output_index": 0, "content_index": 0}
        self.agent(call_id, "response.content_part.added", part={"type": "audio", "transcript": ""}, **place)

    def agent_says(self, call_id: str, pcm: bytes, response_id: str = "r1", item_id: str = "i1") -> None:
        """A delta of the agent's voice, 24 kHz s16le."""
        place = {"response_id": response_id, "item_id": item_id, "output_index": 0, "content_index": 0}
        delta = base64.b64encode(pcm).decode()
        self.agent(call_id, "response.output_audio.delta", delta=delta, **place)

    def agent_ends(self, call_id: str, response_id: str = "r1", item_id: str = "i1") -> None:
        place = {"response_id": response_id, "item_id": item_id, "output_index": 0, "content_index": 0}
        self.agent(call_id, "response.output_audio.done", **place)
        response = {"id": response_id, "object": "realtime.response", "status": "completed", "output": []}
        self.agent(call_id, "response.done", response=response)

    def send_event(self, client: LightCall, kind: str, **fields: Any) -> None:
        """One event of a client, now."""
        client.send_event({"type": kind, **fields}, self.now)
        self._drain()

    def sideband(self, call_id: str, kind: str, **fields: Any) -> None:
        """One event of a sideband, now."""
        text = json.dumps({"type": kind, **fields})
        client_event(text)
        self.core.receive_sideband_event(call_id, text, self.now)
        self._drain()

    def asked(self, kind: str) -> list[Event]:
        """The events of this type that agents got."""
        return [event for event in self.upstream if event["type"] == kind]

    def changed(self, call_id: str) -> None:
        """Take what a call that was mutated from outside produced."""
        self.core._drain(self.core._calls[call_id], self.now)
        self._drain()

    def inject(
        self, payload: bytes, client: ClientAddress, *, relay: str = RELAY, header: bytes = b""
    ) -> None:
        """Bring a datagram to the core now, as if from this client."""
        self.core.receive_datagram(
            (header or self.header(relay)) + link.encode_frame(client, payload), relay, self.now
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
                if self.to_core(out[0]):
                    self._later(self._forward_to_core(source, out[0]))
        for relay, datagram in self.core.poll_transmits(self.now):
            if datagram[0] >> 4 == link.CONTROL:
                message = link_control.parse_control_untrusted(datagram)
                assert isinstance(message, link_control.Clients) and len(datagram) <= link.MAX_DATAGRAM
                self.control.append((relay, message))
                continue
            for target, payload in link.parse_frames_untrusted(datagram):
                self.replied_by[target] = relay
                if target in self.clients and self.to_client(payload):
                    self._later(self._forward_to_client(target, payload))
        while (item := self.core.poll_upstream()) is not None:
            if item.is_audio:
                self.audio.setdefault(item.call_id, bytearray()).extend(item.data)
                self.upstream.append({"type": "audio", "samples": len(item.data) // 2})
            else:
                self.upstream.append(client_event(item.data))
        while (addressed := self.core.poll_sideband()) is not None:
            self.to_sidebands.append(server_event(addressed[1]))
        while (event := self.core.poll_event()) is not None:
            self.events.append(event)

    def _forward_to_core(self, source: ClientAddress, data: bytes) -> Callable[[], None]:
        relay = self.relay_of(source)
        datagram = self.header(relay) + link.encode_frame(source, data)
        return lambda: self.core.receive_datagram(datagram, relay, self.now)

    def _forward_to_client(self, target: ClientAddress, data: bytes) -> Callable[[], None]:
        return lambda: self.clients[target].receive_datagram(data, PUBLIC, self.now)

    def _later(self, action: Callable[[], None]) -> None:
        self._serial += 1
        delay = self.one_way + (self.random.random() * self.jitter if self.jitter else 0.0)
        heapq.heappush(self._in_flight, (self.now + delay, self._serial, action))


def address_of(client: LightCall) -> ClientAddress:
    """Where the rig's packets of this client come from."""
    address = pack_address(*client.local)
    assert unpack_address(address) == client.local
    return address
