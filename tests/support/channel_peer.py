"""aiortc's data channels and ours, peer to peer over real sockets: a second stack for the whole of ICE, DTLS,
SCTP and DCEP.

`OurPeer` is voicegate's protocol floor (`LightCall`) on an asyncio socket; `AiortcPeer` an unmodified
RTCPeerConnection that answers it. Both are driven on one loop; a path with loss may be between them.
"""

from __future__ import annotations

import asyncio
import random
import re
import time
from typing import Any

from tests.support.aiortc_client import stay_on_loopback
from tests.support.light_client import Address, LightCall, new_certificate
from voicegate.proto.datachannel import (
    ChannelClosed,
    ChannelOpened,
    DataChannels,
    MessageReceived,
    SendResult,
)
from voicegate.proto.dtls import DtlsConnected
from voicegate.proto.errors import BadPacket
from voicegate.proto.sctp import Association
from voicegate.proto.sctp.handshake import ENTROPY


class OurPeer(asyncio.DatagramProtocol):
    """Our side. `path`: where packets go instead of the address in the answer (a proxy's)."""

    def __init__(self, *, seed: int = 1, path: Address | None = None) -> None:
        self.channels: DataChannels | None = None
        self.opened: dict[int, ChannelOpened] = {}
        self.closed: set[int] = set()
        self.received: dict[int, list[str | bytes]] = {}
        self.dropped: dict[str, int] = {}
        self.spent = 0.0
        """CPU seconds in here."""
        self._random = random.Random(seed)
        self._path = path
        self._waiting: dict[int, list[str | bytes]] = {}
        self._timer: asyncio.TimerHandle | None = None
        self._transport: asyncio.DatagramTransport | None = None

    async def open(self) -> None:
        loop = asyncio.get_running_loop()
        self._transport, _ = await loop.create_datagram_endpoint(lambda: self, local_addr=("127.0.0.1", 0))
        local = self._transport.get_extra_info("sockname")
        self.call = _Channels(new_certificate(), self._random, local=local, candidate_in_offer=True)

    def offer(self) -> str:
        return self.call.offer()

    def accept(self, answer: str) -> None:
        if self._path is not None:
            host, port = self._path
            answer = re.sub(r"(a=candidate:\S+ 1 udp \d+) \S+ \d+", rf"\1 {host} {port}", answer)
        self.call.accept_answer(answer, time.monotonic())
        self.drain()

    def send(self, number: int, message: str | bytes) -> None:
        """Queue without bound."""
        self._waiting.setdefault(number, []).append(message)

    @property
    def waiting(self) -> int:
        return sum(map(len, self._waiting.values()))

    def close(self) -> None:
        self.call.close(time.monotonic())
        self._flush()
        if self._timer is not None:
            self._timer.cancel()
        if self._transport is not None:
            self._transport.close()

    def datagram_received(self, data: bytes, addr: Any) -> None:
        begun = time.process_time()
        self.call.receive_datagram(data, addr[:2], time.monotonic())
        self._work()
        self.spent += time.process_time() - begun
        self._flush()

    def drain(self) -> None:
        begun = time.process_time()
        self._work()
        self.spent += time.process_time() - begun
        self._flush()

    def _work(self) -> None:
        now = time.monotonic()
        call = self.call
        if call.channels is not None:
            self.channels = call.channels
            self._send_waiting(now)
            while (event := call.channels.poll_event()) is not None:
                match event:
                    case ChannelOpened():
                        self.opened[event.id] = event
                        self.received.setdefault(event.id, [])
                    case MessageReceived(number, message):
                        self.received[number].append(message)
                    case ChannelClosed():
                        self.closed.add(event.id)
                    case _:
                        pass
            self._send_waiting(now)
            call.carry()

    def _send_waiting(self, now: float) -> None:
        assert self.channels is not None
        for number, queue in self._waiting.items():
            taken = 0
            for message in queue:
                if self.channels.send(number, message, now) is SendResult.FULL:
                    break
                taken += 1
            del queue[:taken]

    def _flush(self) -> None:
        while (out := self.call.poll_transmit()) is not None:
            assert self._transport is not None
            self._transport.sendto(*out)
        deadline = self.call.next_deadline()
        if self._timer is not None:
            self._timer.cancel()
        if deadline != float("inf"):
            wait = max(0.0, deadline - time.monotonic())
            self._timer = asyncio.get_running_loop().call_later(wait, self._expire)

    def _expire(self) -> None:
        begun = time.process_time()
        self.call.handle_timeout(time.monotonic())
        self._work()
        self.spent += time.process_time() - begun
        self._flush()


class _Channels(LightCall):
    """A light call without sound, whose data channels are the owner's."""

    channels: DataChannels | None = None

    def offer(self) -> str:
        head, _, rest = super().offer().partition("m=audio")
        audio = "m=audio" + rest
        keep = ("a=ice-", "a=fingerprint", "a=setup", "a=candidate", "a=end-of")
        lines = [line for line in audio.splitlines() if line.startswith(keep)]
        section = [
            "m=application 9 UDP/DTLS/SCTP webrtc-datachannel",
            "c=IN IP4 0.0.0.0",
            "a=mid:0",
            "a=sctp-port:5000",
            "a=max-message-size:262144",
        ]
        return head + "\r\n".join([*section, *lines]) + "\r\n"

    def next_deadline(self) -> float:
        deadline = super().next_deadline()
        due = self.channels.next_deadline() if self.channels is not None else None
        return deadline if due is None else min(deadline, due)

    def handle_timeout(self, now: float) -> None:
        self.speak = False
        super().handle_timeout(now)
        if self.channels is not None and not self.closed:
            self.channels.handle_timeout(now)
            self.carry()

    def carry(self) -> None:
        assert self.channels is not None and self.dtls is not None
        while (packet := self.channels.poll_transmit()) is not None:
            self.dtls.send(packet)
        self._drain_dtls_transmits()

    def _connected(self, event: DtlsConnected, now: float) -> None:
        super()._connected(event, now)
        association = Association(self.random.randbytes(ENTROPY), now)
        self.channels = DataChannels(association, dtls_client=event.active, max_message_size=65_536)
        self.channels.connect(now)
        self.carry()

    def _receive_sctp(self, packet: bytes, now: float) -> None:
        assert self.channels is not None, "DTLS data comes after the handshake"
        try:
            self.channels.receive_datagram(packet, now)
        except BadPacket as bad:
            self.counts[bad.reason] += 1
        self.carry()


async def aiortc_answers(offer: str) -> tuple[Any, str]:
    """(RTCPeerConnection, its answer)."""
    from aiortc import RTCConfiguration, RTCPeerConnection, RTCSessionDescription

    stay_on_loopback()
    peer = RTCPeerConnection(RTCConfiguration([]))
    await peer.setRemoteDescription(RTCSessionDescription(offer, "offer"))
    await peer.setLocalDescription(await peer.createAnswer())
    return peer, peer.localDescription.sdp


async def until(condition: Any, within: float, what: str) -> None:
    deadline = time.monotonic() + within
    while not condition():
        assert time.monotonic() < deadline, f"not within {within} s: {what}"
        await asyncio.sleep(0.01)
