"""A Realtime server that keeps up with hundreds of calls on part of a core, and knows when what came.

    python -m bench.peers.lean_agent   # prints its URL and serves until its standard input ends

One thread, one epoll, sockets and RFC 6455 by hand: what `websockets` takes for a message would be what is
measured. A connection is named by its `?model=`. It takes commands, a line of JSON each, and answers with a
line:

    {"behave": "echo", "ahead": 0.2}   how all connections behave from now on, new ones too (see BEHAVIOURS)
    {"behave": "stuck", "only": "c7"}  the same for that one
    {"forget": true}                   drop what was noted
    {"dump": "/path"}                  write it there: {name: {"appends": [[at, samples], ...], ...}}

Times are monotonic seconds. An append is timed by the kernel, when its last byte was there; `samples` is what
the connection has got in all by then.
"""

from __future__ import annotations

import base64
import hashlib
import heapq
import json
import os
import random
import selectors
import socket
import struct
import sys
import time
from collections.abc import Callable
from typing import Any
from urllib.parse import parse_qs, urlsplit

from voicegate.load.talk import synthetic_speech
from voicegate.net.mmsg import SO_TIMESTAMPNS

RATE = 24_000
DELTA_SECONDS = 0.2
FASTER = 10
"""How much faster than real time an answer comes, as speech models send it."""
TALK, TURN = 4.0, 10.0
"""`turns`: the agent talks so long in each turn of so long."""
PROMPT_SECONDS, PROMPT_EVERY = 0.2, 1.0
LONG_SECONDS, LONG_EVERY = 4.0, 2.4
_STAMP = struct.Struct("@QQ")
_ANCILLARY = socket.CMSG_SPACE(_STAMP.size)
_APPEND = b'{"type":"input_audio_buffer.append"'
_AUDIO = b'"audio":"'


class Connection:
    """One call's WebSocket."""

    def __init__(self, agent: Agent, sock: socket.socket) -> None:
        self.agent = agent
        self.sock = sock
        self.name = ""
        self.appends: list[tuple[float, int]] = []
        self.said: list[float] = []
        """When the first delta of an answer, or `speech_started`, was given to the socket."""
        self.audio: bytearray | None = None
        """What came, while `listen` keeps it."""
        self.samples = 0
        self.open = True
        self._in = bytearray()
        self._out = bytearray()
        self._greeted = False
        self._answers = 0

    def readable(self) -> None:
        try:
            data, ancillary, _, _ = self.sock.recvmsg(262_144, _ANCILLARY)
        except BlockingIOError:
            return
        except OSError:
            data = b""
        if not data:
            self.agent.drop(self)
            return
        at = time.monotonic()
        if ancillary and len(ancillary[0][2]) >= _STAMP.size:
            seconds, nanoseconds = _STAMP.unpack_from(ancillary[0][2])
            at = min(at, seconds + nanoseconds * 1e-9 + at - time.time())
        self._in += data
        if not self._greeted:
            self._greet()
        if self._greeted:
            self._frames(at)

    def flush(self) -> None:
        try:
            del self._out[: self.sock.send(self._out)]
        except BlockingIOError:
            pass
        except OSError:
            self.agent.drop(self)
        else:
            if not self._out:
                self.agent.selector.modify(self.sock, selectors.EVENT_READ, self.readable)

    def send(self, text: bytes, opcode: int = 0x81) -> None:
        size = len(text)
        if size < 126:
            head = bytes((opcode, size))
        elif size < 65_536:
            head = struct.pack("!BBH", opcode, 126, size)
        else:
            head = struct.pack("!BBQ", opcode, 127, size)
        self._send_raw(head + text)

    def event(self, kind: str, **fields: Any) -> None:
        self.send(json.dumps({"type": kind, "event_id": "e", **fields}).encode())

    def delta(self, audio: bytes) -> None:
        """Base64 of the answer under way."""
        number = self._answers
        head = b'{"type":"response.output_audio.delta","event_id":"e","response_id":"r%d","item_id":"i%d",'
        self.send(head % (number, number) + b'"output_index":0,"content_index":0,"delta":"' + audio + b'"}')

    def begin_answer(self) -> None:
        self._answers += 1
        response = {"id": f"r{self._answers}", "object": "realtime.response", "status": "in_progress"}
        self.event("response.created", response={**response, "output": []})
        part = {"type": "audio", "transcript": ""}
        self.event("response.content_part.added", part=part, **self._place())

    def end_answer(self) -> None:
        self.event("response.output_audio.done", **self._place())
        response = {"id": f"r{self._answers}", "object": "realtime.response", "status": "completed"}
        self.event("response.done", response={**response, "output": []})

    def _place(self) -> dict[str, Any]:
        number = self._answers
        return {"response_id": f"r{number}", "item_id": f"i{number}", "output_index": 0, "content_index": 0}

    def _send_raw(self, data: bytes) -> None:
        if not self.open:
            return
        if self._out:
            self._out += data
            return
        try:
            sent = self.sock.send(data)
        except BlockingIOError:
            sent = 0
        except OSError:
            self.agent.drop(self)
            return
        if sent < len(data):
            self._out += data[sent:]
            events = selectors.EVENT_READ | selectors.EVENT_WRITE
            self.agent.selector.modify(self.sock, events, self.readable)

    def _greet(self) -> None:
        end = self._in.find(b"\r\n\r\n")
        if end < 0:
            return
        lines = bytes(self._in[:end]).decode("latin-1").split("\r\n")
        del self._in[: end + 4]
        headers = {name.lower(): value.strip() for name, _, value in (line.partition(":") for line in lines)}
        self.name = parse_qs(urlsplit(lines[0].split()[1]).query).get("model", [""])[0]
        key = headers["sec-websocket-key"].encode() + b"258EAFA5-E914-47DA-95CA-C5AB0DC85B11"
        accept = base64.b64encode(hashlib.sha1(key).digest()).decode()
        protocol = "Sec-WebSocket-Protocol: realtime\r\n" if "sec-websocket-protocol" in headers else ""
        self._send_raw(
            "HTTP/1.1 101 Switching Protocols\r\nUpgrade: websocket\r\nConnection: Upgrade\r\n"
            f"Sec-WebSocket-Accept: {accept}\r\n{protocol}\r\n".encode()
        )
        self._greeted = True
        self.event("session.created", session={"type": "realtime", "object": "realtime.session", "id": "s"})
        self.agent.greeted(self)

    def _frames(self, at: float) -> None:
        data = self._in
        place, end = 0, len(data)
        while end - place >= 6:
            opcode, size = data[place], data[place + 1] & 0x7F
            start = place + 6
            if size == 126:
                size = int.from_bytes(data[place + 2 : place + 4], "big")
                start += 2
            elif size == 127:
                size = int.from_bytes(data[place + 2 : place + 10], "big")
                start += 8
            if start + size > end:
                break
            key = data[start - 4 : start]
            # One wide XOR: a fifth of what a loop over translated slices takes.
            mask = int.from_bytes((key * (size // 4 + 1))[:size], "little")
            text = (int.from_bytes(data[start : start + size], "little") ^ mask).to_bytes(size, "little")
            place = start + size
            self._message(opcode, text, at)
        del data[:place]

    def _message(self, opcode: int, text: bytes, at: float) -> None:
        if opcode == 0x81 and text.startswith(_APPEND):
            begin = text.index(_AUDIO) + len(_AUDIO)
            audio = text[begin : text.index(b'"', begin)]
            self.samples += (len(audio) // 4 * 3 - audio[-2:].count(b"=")) // 2
            self.appends.append((at, self.samples))
            if self.audio is not None:
                self.audio += base64.b64decode(audio)
            self.agent.behaviour_of(self).heard(self, audio)
        elif opcode == 0x81:
            event = json.loads(text)
            if event["type"] == "session.update":
                self.event("session.updated", session=event["session"])
        elif opcode == 0x89:
            self.send(text, 0x8A)
        elif opcode == 0x88:
            self.send(text[:2], 0x88)
            self.agent.drop(self)


class Behaviour:
    """What a connection does with what it hears, and by itself. This one only listens."""

    def __init__(self, agent: Agent, options: dict[str, Any]) -> None:
        self.agent = agent
        self.keep = bool(options.get("keep"))
        """Keep the audio that comes."""
        self.ahead = float(options.get("ahead", 0.0))

    def begin(self, connection: Connection) -> None:
        """The connection is there, or the behaviour is new."""
        connection.audio = bytearray() if self.keep else None

    def heard(self, connection: Connection, audio: bytes) -> None:
        """An append came, this base64."""


class Echo(Behaviour):
    """Say everything back at once, `ahead` seconds of silence before it."""

    def __init__(self, agent: Agent, options: dict[str, Any]) -> None:
        super().__init__(agent, options)
        self._silence = base64.b64encode(bytes(2 * round(self.ahead * RATE)))
        self._begun: set[Connection] = set()

    def heard(self, connection: Connection, audio: bytes) -> None:
        if self._silence and connection not in self._begun:
            self._begun.add(connection)
            connection.delta(self._silence)
        connection.delta(audio)


class Turns(Behaviour):
    """Talk TALK of every TURN seconds, each connection at a time of its own."""

    def begin(self, connection: Connection) -> None:
        super().begin(connection)
        self.agent.after(self.agent.random.random() * TURN, lambda: self._answer(connection))

    def _answer(self, connection: Connection) -> None:
        if not connection.open or self.agent.behaviour_of(connection) is not self:
            return
        self.agent.after(TURN, lambda: self._answer(connection))
        connection.begin_answer()
        self._go_on(connection, round(TALK / DELTA_SECONDS))

    def _go_on(self, connection: Connection, left: int) -> None:
        connection.delta(self.agent.voice)
        if left > 1:
            self.agent.after(DELTA_SECONDS / FASTER, lambda: self._go_on(connection, left - 1))
        else:
            connection.end_answer()


class Prompts(Behaviour):
    """A short answer about every second, noted when its delta was given to the socket."""

    def begin(self, connection: Connection) -> None:
        super().begin(connection)
        self.agent.after(self.agent.random.random() * PROMPT_EVERY, lambda: self._answer(connection))

    def _answer(self, connection: Connection) -> None:
        if not connection.open or self.agent.behaviour_of(connection) is not self:
            return
        # Not on the beat of the frames: a little more or less, evenly.
        every = PROMPT_EVERY + 0.04 * self.agent.random.random()
        self.agent.after(every, lambda: self._answer(connection))
        connection.begin_answer()
        connection.said.append(time.monotonic())
        connection.delta(self.agent.voice)
        connection.end_answer()


class Interrupted(Behaviour):
    """A long answer at once, and after a while `speech_started`, noted when it was given to the socket."""

    def begin(self, connection: Connection) -> None:
        super().begin(connection)
        self.agent.after(self.agent.random.random() * LONG_EVERY, lambda: self._answer(connection))

    def _answer(self, connection: Connection) -> None:
        if not connection.open or self.agent.behaviour_of(connection) is not self:
            return
        self.agent.after(LONG_EVERY, lambda: self._answer(connection))
        connection.begin_answer()
        for _ in range(round(LONG_SECONDS / DELTA_SECONDS)):
            connection.delta(self.agent.voice)
        connection.end_answer()
        self.agent.after(0.8 + 0.6 * self.agent.random.random(), lambda: self._interrupt(connection))

    def _interrupt(self, connection: Connection) -> None:
        if connection.open:
            connection.said.append(time.monotonic())
            connection.event("input_audio_buffer.speech_started", audio_start_ms=0, item_id="u")


class Stuck(Behaviour):
    """Read nothing more, and say nothing."""

    def begin(self, connection: Connection) -> None:
        if connection.open:
            self.agent.selector.unregister(connection.sock)
            self.agent.stuck.append(connection)


class Flood(Behaviour):
    """Say `seconds` at once, in deltas of a second."""

    def __init__(self, agent: Agent, options: dict[str, Any]) -> None:
        super().__init__(agent, options)
        self._seconds = int(options["seconds"])

    def begin(self, connection: Connection) -> None:
        super().begin(connection)
        second = base64.b64encode(bytes(2 * RATE))
        connection.begin_answer()
        for _ in range(self._seconds):
            connection.delta(second)
        connection.end_answer()


BEHAVIOURS: dict[str, type[Behaviour]] = {
    "listen": Behaviour,
    "echo": Echo,
    "turns": Turns,
    "prompts": Prompts,
    "interrupted": Interrupted,
    "stuck": Stuck,
    "flood": Flood,
}


class Agent:
    """The server: its connections, its timers, its commands."""

    def __init__(self) -> None:
        self.selector = selectors.DefaultSelector()
        self.random = random.Random(1)
        pcm = synthetic_speech(1.6)
        self.voice = base64.b64encode(pcm[: 2 * round(DELTA_SECONDS * RATE)])
        """DELTA_SECONDS of speech."""
        self._behaviour: Behaviour = Behaviour(self, {})
        self._others: dict[str, Behaviour] = {}
        """Of connections by name."""
        self.stuck: list[Connection] = []
        self._connections: set[Connection] = set()
        self._timers: list[tuple[float, int, Callable[[], None]]] = []
        self._order = 0
        self._commands = b""
        self._listener = socket.create_server(("127.0.0.1", 0), backlog=512)
        self._listener.setblocking(False)

    def run(self) -> None:
        """Serve until standard input ends."""
        self.selector.register(self._listener, selectors.EVENT_READ, self._accept)
        os.set_blocking(0, False)
        self.selector.register(0, selectors.EVENT_READ, self._command)
        print(f"ws://127.0.0.1:{self._listener.getsockname()[1]}/v1/realtime", flush=True)
        self._running = True
        while self._running:
            wait = max(0.0, self._timers[0][0] - time.monotonic()) if self._timers else None
            for key, events in self.selector.select(wait):
                if events & selectors.EVENT_WRITE:
                    key.data.__self__.flush()
                if events & selectors.EVENT_READ:
                    key.data()
            while self._timers and self._timers[0][0] <= time.monotonic():
                heapq.heappop(self._timers)[2]()

    def behaviour_of(self, connection: Connection) -> Behaviour:
        return self._others.get(connection.name, self._behaviour)

    def after(self, seconds: float, action: Callable[[], None]) -> None:
        self._order += 1
        heapq.heappush(self._timers, (time.monotonic() + seconds, self._order, action))

    def greeted(self, connection: Connection) -> None:
        self._connections.add(connection)
        self.behaviour_of(connection).begin(connection)

    def drop(self, connection: Connection) -> None:
        if connection.open:
            connection.open = False
            self._connections.discard(connection)
            if connection not in self.stuck:
                self.selector.unregister(connection.sock)
            connection.sock.close()

    def _accept(self) -> None:
        try:
            sock, _ = self._listener.accept()
        except BlockingIOError:
            return
        sock.setblocking(False)
        sock.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
        sock.setsockopt(socket.SOL_SOCKET, SO_TIMESTAMPNS, 1)
        connection = Connection(self, sock)
        self.selector.register(sock, selectors.EVENT_READ, connection.readable)

    def _command(self) -> None:
        data = os.read(0, 65_536)
        if not data:
            self._running = False
            return
        self._commands += data
        while b"\n" in self._commands:
            line, _, self._commands = self._commands.partition(b"\n")
            self._obey(json.loads(line))
            print("{}", flush=True)

    def _obey(self, command: dict[str, Any]) -> None:
        if "behave" in command:
            behaviour = BEHAVIOURS[command["behave"]](self, command)
            if "only" in command:
                self._others[command["only"]] = behaviour
            else:
                self._behaviour = behaviour
            for connection in list(self._connections):
                if self.behaviour_of(connection) is behaviour:
                    behaviour.begin(connection)
        elif "forget" in command:
            for connection in self._connections:
                connection.appends.clear()
                connection.said.clear()
        elif "dump" in command:
            noted = {
                connection.name: {
                    "appends": connection.appends,
                    "said": connection.said,
                    "audio": base64.b64encode(connection.audio or b"").decode(),
                }
                for connection in self._connections
            }
            with open(command["dump"], "w") as out:
                json.dump(noted, out)


if __name__ == "__main__":
    import gc

    gc.disable()
    sys.exit(Agent().run())
