"""An echo server on aiortc: POST an offer, get the answer; what comes in is decoded, encoded and sent back.

python -m bench.peers.aiortc_echo   # prints its URL and serves until its standard input ends

An offer that is posted with ?listen=NAME is not echoed: the application takes its frames, as one with an
agent behind it would, and notes when. GET answers {NAME: [[monotonic seconds, RTP time since the first],
...]}.
"""

from __future__ import annotations

import asyncio
import json
import sys
import time
from typing import Any
from urllib.parse import parse_qs, urlsplit

from aiortc import RTCConfiguration, RTCPeerConnection, RTCSessionDescription
from aiortc.mediastreams import MediaStreamError

from tests.support.aiortc_client import stay_on_loopback

peers: set[RTCPeerConnection] = set()
taken: dict[str, list[tuple[float, int]]] = {}
listeners: set[asyncio.Task[None]] = set()


async def listen(name: str, track: Any) -> None:
    noted = taken.setdefault(name, [])
    try:
        while True:
            frame = await track.recv()
            noted.append((time.monotonic(), frame.pts))
    except MediaStreamError:
        pass  # the call is over


async def answer(sdp: str, name: str) -> str:
    peer = RTCPeerConnection(RTCConfiguration([]))
    peers.add(peer)
    if name:

        @peer.on("track")
        def _listen(track: Any) -> None:
            task = asyncio.ensure_future(listen(name, track))
            listeners.add(task)
            task.add_done_callback(listeners.discard)

    else:
        peer.on("track", peer.addTrack)

    @peer.on("connectionstatechange")
    async def _changed() -> None:
        if peer.connectionState in ("failed", "closed"):
            peers.discard(peer)
            await peer.close()

    await peer.setRemoteDescription(RTCSessionDescription(sdp, "offer"))
    await peer.setLocalDescription(await peer.createAnswer())
    return peer.localDescription.sdp


async def serve(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
    try:
        head = (await reader.readuntil(b"\r\n\r\n")).decode().lower()
        method, target = head.split()[:2]
        if method == "get":
            body = json.dumps(taken).encode()
            taken.clear()
        else:
            length = next(int(line[15:]) for line in head.split("\r\n") if line.startswith("content-length:"))
            name = parse_qs(urlsplit(target).query).get("listen", [""])[0]
            body = (await answer((await reader.readexactly(length)).decode(), name)).encode()
        writer.write(
            b"HTTP/1.1 201 Created\r\nContent-Type: application/sdp\r\nConnection: close\r\n"
            b"Content-Length: %d\r\n\r\n" % len(body) + body
        )
        await writer.drain()
    finally:
        writer.close()


async def main() -> None:
    stay_on_loopback()
    server = await asyncio.start_server(serve, "127.0.0.1", 0)
    host, port = server.sockets[0].getsockname()
    print(f"http://{host}:{port}/", flush=True)
    await asyncio.to_thread(sys.stdin.read)
    for peer in list(peers):
        await peer.close()


if __name__ == "__main__":
    asyncio.run(main())
