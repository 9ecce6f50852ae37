"""Agents that are not there, take nothing or speak nonsense: the call stays bounded and says why it ended."""

from __future__ import annotations

import base64
import contextlib
import hashlib
import json
import socket
import threading
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest
from websockets.exceptions import ConnectionClosed
from websockets.sync.server import ServerConnection, serve

from tests.e2e.conftest import assert_nothing_left
from tests.support import speech
from tests.support.light_client import Fleet, opus_frames, request
from tests.support.servers import Gate, free_port, one_process, rss_bytes, wait_until

pytestmark = pytest.mark.e2e


@contextlib.contextmanager
def _agent(behave: Callable[[ServerConnection], None]) -> Iterator[str]:
    """A WebSocket server whose connections do what `behave` says; its URL."""

    def handle(connection: ServerConnection) -> None:
        with contextlib.suppress(ConnectionClosed, OSError):
            behave(connection)

    with serve(handle, "127.0.0.1", 0, compression=None) as server:
        thread = threading.Thread(target=server.serve_forever, daemon=True)
        thread.start()
        yield f"ws://127.0.0.1:{server.socket.getsockname()[1]}/v1/realtime"
        server.shutdown()
        thread.join(5)


@contextlib.contextmanager
def _mute_listener() -> Iterator[str]:
    """A TCP server that accepts (in the kernel) and never says anything."""
    with socket.socket() as listener:
        listener.bind(("127.0.0.1", 0))
        listener.listen(16)
        yield f"ws://127.0.0.1:{listener.getsockname()[1]}/v1/realtime"


def _ends(gate: Gate, fleet: Fleet, within: float) -> dict[str, object]:
    """Start a call, wait for its end, return its last status. Client, log and metrics must agree."""
    call = fleet.call(gate.calls_url, opus_frames(speech.say("Hello?")), loop=True)
    location = fleet.locations[id(call)]
    wait_until(lambda: '"ended"' in request("GET", location).body, within, "the call to end", every=0.2)
    status = json.loads(request("GET", location).body)
    assert status["reason"] == "agent_lost", status
    assert status["detail"], "the end has no words"
    if "connected" in call.times:
        call.wait_for("closed", 5)
    ends = gate.metrics().total("voicegate_transceiver_ends_total", reason=str(status["detail"]))
    assert ends == 1, gate.metrics().like("transceiver_ends")
    call_id = location.rpartition("/")[2]
    assert [line for line in gate.log_lines(call=call_id) if line.get("reason") == "agent_lost"]
    if not call.closed:
        fleet.close(call)
    assert_nothing_left(gate)
    assert isinstance(status, dict)
    return status


def test_an_agent_that_is_not_there(tmp_path: Path) -> None:
    url = f"ws://127.0.0.1:{free_port()}/v1/realtime"
    with one_process(tmp_path, agent_url=url, agent_connect_seconds="2") as gate, Fleet() as fleet:
        _ends(gate, fleet, 10)


def test_an_agent_that_never_answers(tmp_path: Path) -> None:
    with (
        _mute_listener() as url,
        one_process(tmp_path, agent_url=url, agent_connect_seconds="2") as gate,
        Fleet() as fleet,
    ):
        begun = time.monotonic()
        _ends(gate, fleet, 12)
        assert time.monotonic() - begun > 1.5, "it did not even wait"


def test_an_agent_that_takes_nothing(tmp_path: Path) -> None:
    """It finishes the handshake and never reads again: what waits for it stays bounded."""
    with (
        _stuck_agent() as url,
        one_process(tmp_path, agent_url=url, agent_connect_seconds="2", agent_stall_seconds="3") as gate,
        Fleet() as fleet,
    ):
        before = rss_bytes(gate.pids())
        _ends(gate, fleet, 60)
        assert rss_bytes(gate.pids()) - before < 64 << 20


@contextlib.contextmanager
def _stuck_agent() -> Iterator[str]:
    """A WebSocket handshake by hand, then nothing is read any more."""
    listener = socket.socket()
    listener.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, 4096)
    listener.bind(("127.0.0.1", 0))
    listener.listen(4)
    held: list[socket.socket] = []

    def accept() -> None:
        with contextlib.suppress(OSError):
            while True:
                connection, _ = listener.accept()
                held.append(connection)
                head = b""
                while b"\r\n\r\n" not in head:
                    head += connection.recv(4096)
                key = next(
                    line.split(b":", 1)[1].strip()
                    for line in head.split(b"\r\n")
                    if line.lower().startswith(b"sec-websocket-key:")
                )
                accepted = base64.b64encode(
                    hashlib.sha1(key + b"258EAFA5-E914-47DA-95CA-C5AB0DC85B11").digest()
                )
                text = json.dumps({"type": "session.created", "event_id": "e1", "session": {}}).encode()
                asked = b"sec-websocket-protocol" in head.lower()
                protocol = b"Sec-WebSocket-Protocol: realtime\r\n" if asked else b""
                connection.sendall(
                    b"HTTP/1.1 101 Switching Protocols\r\nUpgrade: websocket\r\nConnection: Upgrade\r\n"
                    b"Sec-WebSocket-Accept: " + accepted + b"\r\n" + protocol + b"\r\n"
                    b"\x81" + bytes([len(text)]) + text
                )

    thread = threading.Thread(target=accept, daemon=True)
    thread.start()
    try:
        yield f"ws://127.0.0.1:{listener.getsockname()[1]}/v1/realtime"
    finally:
        listener.shutdown(socket.SHUT_RDWR)
        listener.close()
        for connection in held:
            connection.close()
        thread.join(5)


NONSENSE: list[str | bytes] = [
    "not JSON",
    "[]",
    "{}",
    '{"type": 5}',
    '{"type": "response.output_audio.delta"}',
    '{"type": "response.output_audio.delta", "delta": "***"}',
    '{"type": "response.output_audio.delta", "delta": 7}',
    '{"type": "response.output_audio.delta", "delta": "AAA="}',
    '{"type": "' + "x" * 5000 + '"}',
    b"\x00\x01\x02",
    '{"type": "error", "error": null}',
    '{"type": "\\ud800"}',
    "[" * 2000,
]


def test_an_agent_that_speaks_nonsense_without_end(tmp_path: Path) -> None:
    def behave(connection: ServerConnection) -> None:
        while True:
            for piece in NONSENSE:
                connection.send(piece)
            time.sleep(0.01)

    with (
        _agent(behave) as url,
        one_process(tmp_path, agent_url=url, agent_connect_seconds="3") as gate,
        Fleet() as fleet,
    ):
        _ends(gate, fleet, 20)


def test_an_agent_that_slips_once_keeps_its_call(tmp_path: Path) -> None:
    """A few events that cannot be read are dropped; the audio among them is heard."""
    tone = (speech.say("One word.", 24_000) * 32767).astype("<i2").tobytes()

    def behave(connection: ServerConnection) -> None:
        connection.send(json.dumps({"type": "session.created", "event_id": "e1", "session": {}}))
        connection.send(json.dumps({"type": "session.updated", "event_id": "e2", "session": {}}))
        for piece in NONSENSE:
            connection.send(piece)
        common = {"response_id": "r", "item_id": "i", "output_index": 0, "content_index": 0}
        for place in range(0, len(tone), 9600):
            delta = base64.b64encode(tone[place : place + 9600]).decode()
            event = {"type": "response.output_audio.delta", "event_id": f"d{place}", "delta": delta, **common}
            connection.send(json.dumps(event))
        for _ in connection:
            pass

    with (
        _agent(behave) as url,
        one_process(tmp_path, agent_url=url, agent_connect_seconds="3") as gate,
        Fleet() as fleet,
    ):
        call = fleet.call(gate.calls_url)
        call.wait_for("connected", 10)
        call.wait_for("heard", 10)
        assert not call.closed
        assert fleet.hang_up(call) == 200
        assert_nothing_left(gate)
