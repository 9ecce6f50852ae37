"""A Realtime server that never stops talking and notes when each piece of the microphone's audio comes.

It is there to load many calls both ways at the cost of almost nothing: it sends a second of sound that was
encoded once, and of what it is sent it unmasks the first few bytes. In a process of its own:

    with TalkingAgent() as agent, cluster(tmp_path, agent_url=agent.url) as gate:
        ...                      # calls posted to gate.calls_url + "?model=NAME"
    agent.arrivals["NAME"]       # monotonic seconds of each append of that call, in order
"""

from __future__ import annotations

import asyncio
import base64
import hashlib
import re
import time
from array import array
from dataclasses import dataclass, field
from typing import Self

from tests.support.child import Child, tell, when_over

AHEAD = 3
"""Seconds of sound sent before they are due: longer than any pause that is measured here."""
_PLACE = '"response_id":"r1","item_id":"i1","output_index":0,"content_index":0'
_TONE = array("h", [3000 if place // 30 % 2 else -3000 for place in range(24_000)]).tobytes()
"""A second of a square wave of 400 Hz."""
_GUID = b"258EAFA5-E914-47DA-95CA-C5AB0DC85B11"  # RFC 6455 section 1.3
_TEXT, _CLOSE, _PING, _PONG = 1, 8, 9, 10
_APPEND = b'"input_audio_buffer.append"'
_LOOK = 48
"""Bytes of a message that tell its type."""


@dataclass
class TalkingAgent:
    """A context manager around the agent's process."""

    url: str = ""
    arrivals: dict[str, list[float]] = field(default_factory=dict)
    """By the call's `?model=`; filled by `stop`."""
    _child: Child | None = None

    def __enter__(self) -> Self:
        self._child = Child("tests.support.talking_agent")
        self.url = self._child.first
        return self

    def __exit__(self, *_: object) -> None:
        self.stop()

    def stop(self) -> None:
        """End it and read what it noted."""
        assert self._child is not None, "a context manager"
        self.arrivals = self._child.stop()


class _Connection(asyncio.Protocol):
    """One call's WebSocket, of which only as much is read as is needed (RFC 6455 section 5.2)."""

    def __init__(self, arrivals: dict[str, list[float]]) -> None:
        self.all = arrivals
        self.mine: list[float] | None = None
        self.buffer = bytearray()
        self.talking = False

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        assert isinstance(transport, asyncio.Transport)
        self.transport = transport

    def data_received(self, data: bytes) -> None:
        now = time.monotonic()
        self.buffer += data
        if self.mine is None and not self._upgrade():
            return
        place = 0
        while (end := self._frame(place, now)) is not None:
            place = end
        del self.buffer[:place]

    def _upgrade(self) -> bool:
        end = self.buffer.find(b"\r\n\r\n")
        if end < 0:
            return False
        head = bytes(self.buffer[:end])
        del self.buffer[: end + 4]
        model = re.search(rb"[?&]model=([^& ]*)", head.partition(b"\r\n")[0])
        key = re.search(rb"(?i)\r\nsec-websocket-key: *(\S+)", head)
        assert key, head
        self.mine = self.all.setdefault(model[1].decode() if model else "", [])
        accept = base64.b64encode(hashlib.sha1(key[1] + _GUID).digest()).decode()
        self.transport.write(
            b"HTTP/1.1 101 Switching Protocols\r\nUpgrade: websocket\r\nConnection: Upgrade\r\n"
            + f"Sec-WebSocket-Accept: {accept}\r\n\r\n".encode()
        )
        self._send('{"type":"session.created","event_id":"e0","session":{"type":"realtime","id":"s1"}}')
        return True

    def _frame(self, place: int, now: float) -> int | None:
        """Take the frame that begins there; where the next one does, None when it is not whole."""
        data = self.buffer
        if len(data) - place < 6:
            return None
        size, at = data[place + 1] & 127, place + 2
        if size > 125:
            wide = 2 if size == 126 else 8
            size, at = int.from_bytes(data[at : at + wide], "big"), at + wide
        body = at + 4
        if len(data) < body + size:
            return None
        mask = bytes(data[at:body])
        self._take(data[place] & 15, _unmask(bytes(data[body : body + min(size, _LOOK)]), mask), now)
        return body + size

    def _take(self, opcode: int, head: bytes, now: float) -> None:
        assert self.mine is not None, "upgraded"
        if opcode == _TEXT and _APPEND in head:
            self.mine.append(now)
        elif opcode == _TEXT and b'"session.update"' in head:
            self._send('{"type":"session.updated","event_id":"e1","session":{"type":"realtime","id":"s1"}}')
            if not self.talking:
                self.talking = True
                response = '{"id":"r1","object":"realtime.response","status":"in_progress","output":[]}'
                self._send(f'{{"type":"response.created","event_id":"e2","response":{response}}}')
                for _ in range(AHEAD):
                    self.transport.write(_SECOND)
                self._talk()
        elif opcode == _PING:
            self.transport.write(_encode(_PONG, head))
        elif opcode == _CLOSE:
            self.transport.write(_encode(_CLOSE, head))
            self.transport.close()

    def _talk(self) -> None:
        if not self.transport.is_closing():
            self.transport.write(_SECOND)
            asyncio.get_running_loop().call_later(1.0, self._talk)

    def _send(self, text: str) -> None:
        self.transport.write(_encode(_TEXT, text.encode()))


def _unmask(data: bytes, mask: bytes) -> bytes:
    whole = (mask * (len(data) // 4 + 1))[: len(data)]
    return (int.from_bytes(data, "big") ^ int.from_bytes(whole, "big")).to_bytes(len(data), "big")


def _encode(opcode: int, payload: bytes) -> bytes:
    """A server's frame: whole and not masked."""
    size = len(payload)
    if size < 126:
        return bytes((128 | opcode, size)) + payload
    if size < 65536:
        return bytes((128 | opcode, 126)) + size.to_bytes(2, "big") + payload
    return bytes((128 | opcode, 127)) + size.to_bytes(8, "big") + payload


_SECOND = _encode(
    _TEXT,
    f'{{"type":"response.output_audio.delta","event_id":"e",{_PLACE},"delta":"'.encode()
    + base64.b64encode(_TONE)
    + b'"}',
)


async def main() -> None:
    arrivals: dict[str, list[float]] = {}
    loop = asyncio.get_running_loop()
    server = await loop.create_server(lambda: _Connection(arrivals), "127.0.0.1", 0, backlog=512)
    tell(f"ws://127.0.0.1:{server.sockets[0].getsockname()[1]}/v1/realtime")
    await asyncio.to_thread(when_over().wait)
    tell({name: [round(at, 5) for at in times] for name, times in arrivals.items()})


if __name__ == "__main__":
    asyncio.run(main())
