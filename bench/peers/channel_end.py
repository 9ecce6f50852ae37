"""One end of data channels as a process: voicegate's protocol floor or aiortc.

    python -m bench.peers.channel_end ours|aiortc

The same work for both: ICE, DTLS, SCTP and DCEP on one UDP socket; whatever comes is sent back on its
channel. Each does it its own way: aiortc on asyncio, ours over batched I/O, as a transceiver has
it. It answers one offer, a line of JSON on standard input, with a line of JSON on standard output, and ends
with its standard input.
"""

from __future__ import annotations

import asyncio
import contextlib
import json
import re
import secrets
import select
import sys
import time
from collections import deque
from typing import Any

from voicegate.net.udp import open_udp
from voicegate.proto.address import pack_address, unpack_address
from voicegate.proto.datachannel import DataChannels, MessageReceived, SendResult
from voicegate.proto.dtls import DtlsCertificate, DtlsConnected, DtlsData, DtlsEndpoint
from voicegate.proto.errors import BadPacket
from voicegate.proto.ice import IceLite
from voicegate.proto.sctp import Association
from voicegate.proto.sctp.handshake import ENTROPY

UFRAG, PASSWORD = "bench", secrets.token_hex(16)


class Ours:
    """ICE-lite, DTLS as client, data channels: as a call of voicegate has them."""

    def __init__(self, offer: str) -> None:
        values = dict(re.findall(r"a=([\w-]+):([^\r]+)", offer))
        name, digest = values["fingerprint"].split()
        self.prints = ((name, bytes.fromhex(digest.replace(":", ""))),)
        self.ice = IceLite(UFRAG, PASSWORD.encode(), values["ice-ufrag"])
        self.certificate = DtlsCertificate.generate(time.time())
        self.socket = open_udp("127.0.0.1", 0)
        self.dtls: DtlsEndpoint | None = None
        self.channels: DataChannels | None = None
        self.client: tuple[str, int] = ("", 0)
        self.echoes: deque[tuple[int, str | bytes]] = deque()
        self.out: list[tuple[tuple[str, int], bytes]] = []

    def answer(self) -> str:
        host, port = self.socket.address()
        fingerprint = self.certificate.fingerprint.hex(":").upper()
        lines = ["v=0", "o=- 1 1 IN IP4 127.0.0.1", "s=-", "t=0 0", "a=group:BUNDLE 0", "a=ice-lite"]
        lines += ["m=application 9 UDP/DTLS/SCTP webrtc-datachannel", "c=IN IP4 0.0.0.0", "a=mid:0"]
        lines += [f"a=ice-ufrag:{UFRAG}", f"a=ice-pwd:{PASSWORD}", f"a=fingerprint:sha-256 {fingerprint}"]
        lines += ["a=setup:active", "a=sctp-port:5000", "a=max-message-size:262144"]
        lines += [f"a=candidate:1 1 udp 2130706431 {host} {port} typ host"]
        return "\r\n".join(lines) + "\r\n"

    def run(self) -> None:
        """Until standard input ends."""
        while True:
            deadlines = [part.next_deadline() for part in (self.dtls, self.channels) if part is not None]
            due = min((deadline for deadline in deadlines if deadline is not None), default=None)
            wait = None if due is None else max(0.0, due - time.monotonic())
            readable, _, _ = select.select([self.socket, sys.stdin], [], [], wait)
            if sys.stdin in readable:
                return
            now = time.monotonic()
            if due is not None and now >= due:
                for part in (self.dtls, self.channels):
                    if part is not None:
                        part.handle_timeout(now)
                self.work(now)
            for address, datagram in self.socket.recv_batch():
                self.receive(datagram, address, now)
            if self.out:
                self.socket.send_batch(self.out)
                self.out.clear()

    def receive(self, data: bytes, address: tuple[str, int], now: float) -> None:
        with contextlib.suppress(BadPacket):
            if data[0] < 4:
                self.ice.receive_datagram(data, pack_address(*address), now)
                while (reply := self.ice.poll_transmit()) is not None:
                    self.out.append((unpack_address(reply[0]), reply[1]))
                self.client = address
                if self.dtls is None:
                    self.dtls = DtlsEndpoint(
                        self.certificate, active=True, remote_fingerprints=self.prints, now=now
                    )
            elif 20 <= data[0] < 64 and self.dtls is not None:
                self.dtls.receive_datagram(data, now)
        self.work(now)

    def work(self, now: float) -> None:
        if self.dtls is None:
            return
        while (event := self.dtls.poll_event()) is not None:
            if isinstance(event, DtlsConnected):
                association = Association(secrets.token_bytes(ENTROPY), now)
                self.channels = DataChannels(association, dtls_client=True, max_message_size=262_144)
                self.channels.connect(now)
            elif isinstance(event, DtlsData) and self.channels is not None:
                with contextlib.suppress(BadPacket):
                    self.channels.receive_datagram(event.data, now)
        if self.channels is not None:
            while (happened := self.channels.poll_event()) is not None:
                if isinstance(happened, MessageReceived):
                    self.echoes.append((happened.id, happened.data))
            while self.echoes and self.channels.send(*self.echoes[0], now) is SendResult.QUEUED:
                self.echoes.popleft()
            while (packet := self.channels.poll_transmit()) is not None:
                self.dtls.send(packet)
        while (datagram := self.dtls.poll_transmit()) is not None:
            self.out.append((self.client, datagram))


async def aiortc(offer: str) -> None:
    from aiortc import RTCConfiguration, RTCPeerConnection, RTCSessionDescription

    from tests.support.aiortc_client import stay_on_loopback

    stay_on_loopback()
    peer = RTCPeerConnection(RTCConfiguration([]))

    @peer.on("datachannel")
    def _adopt(channel: Any) -> None:
        channel.on("message", channel.send)

    await peer.setRemoteDescription(RTCSessionDescription(offer, "offer"))
    await peer.setLocalDescription(await peer.createAnswer())
    print(json.dumps(peer.localDescription.sdp), flush=True)
    await asyncio.to_thread(sys.stdin.read)


def main() -> None:
    offer = json.loads(sys.stdin.readline())
    if sys.argv[1] == "aiortc":
        asyncio.run(aiortc(offer))
    else:
        ours = Ours(offer)
        print(json.dumps(ours.answer()), flush=True)
        ours.run()


if __name__ == "__main__":
    main()
