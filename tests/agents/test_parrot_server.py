"""The parrot on its socket, met by the official Python client, which knows nothing of voicegate."""

from __future__ import annotations

import asyncio
import base64
import os
import signal
import socket
import subprocess
import sys
import threading
from collections.abc import AsyncIterator, Awaitable, Callable, Iterator
from contextlib import asynccontextmanager
from functools import partial
from typing import Any

import pytest
import trio
from openai import AsyncOpenAI

from tests.support import speech
from voicegate.agents.parrot.__main__ import main
from voicegate.agents.parrot.server import serve_parrot
from voicegate.proto import realtime
from voicegate.proto.realtime import BYTES_PER_MS

SILENCE = bytes(800 * BYTES_PER_MS)
TIMEOUT = 30.0


@pytest.fixture(scope="module")
def spoken() -> bytes:
    return speech.to_pcm(speech.say("The parrot has to say this.", 24_000))


class Parrot:
    """A parrot in a thread with a Trio of its own, for clients that live in asyncio."""

    def __init__(self, **options: Any) -> None:
        self._options = options
        self._running = threading.Event()
        self._thread = threading.Thread(target=trio.run, args=(self._run,))
        self.url = ""

    def __enter__(self) -> Parrot:
        self._thread.start()
        assert self._running.wait(TIMEOUT)
        return self

    def __exit__(self, *_: object) -> None:
        trio.from_thread.run_sync(self._scope.cancel, trio_token=self._token)
        self._thread.join(TIMEOUT)
        assert not self._thread.is_alive()

    async def _run(self) -> None:
        self._token = trio.lowlevel.current_trio_token()
        async with trio.open_nursery() as nursery:
            self._scope = nursery.cancel_scope
            self.url = await nursery.start(partial(serve_parrot, **self._options))
            self._running.set()


@pytest.fixture(scope="module")
def parrot() -> Iterator[Parrot]:
    with Parrot() as running:
        yield running


class Session:
    """A connection of the official client, with what it received."""

    def __init__(self, connection: Any) -> None:
        self.connection = connection
        self.log: list[Any] = []
        self.heard = bytearray()

    async def until(self, kind: str) -> Any:
        while True:
            event = await asyncio.wait_for(self.connection.recv(), TIMEOUT)
            self.log.append(event)
            if event.type == "response.output_audio.delta":
                self.heard += base64.b64decode(event.delta)
            if event.type == kind:
                return event

    async def speak(self, pcm: bytes, frame_ms: int = 100) -> None:
        """As fast as it goes: the parrot's clock is the audio."""
        for at in range(0, len(pcm), frame_ms * BYTES_PER_MS):
            piece = pcm[at : at + frame_ms * BYTES_PER_MS]
            await self.connection.input_audio_buffer.append(audio=base64.b64encode(piece).decode())


@asynccontextmanager
async def dial(url: str, key: str = "none") -> AsyncIterator[Session]:
    base = url.replace("ws://", "http://").removesuffix("/realtime")
    client = AsyncOpenAI(api_key=key, base_url=base, max_retries=0)
    async with client.realtime.connect(model="parrot") as connection:
        yield Session(connection)


def with_official_client(url: str, talk: Callable[[Session], Awaitable[None]], key: str = "none") -> None:
    async def go() -> None:
        async with dial(url, key) as session:
            created = await session.until("session.created")
            assert created.session.model == "parrot"
            await talk(session)

    asyncio.run(go())


def test_the_official_client_is_heard_and_answered(parrot: Parrot, spoken: bytes) -> None:
    async def talk(session: Session) -> None:
        await session.connection.session.update(
            session={"type": "realtime", "audio": {"input": {"turn_detection": {"type": "server_vad"}}}}
        )
        await session.until("session.updated")
        await session.speak(SILENCE + spoken + SILENCE)
        done = await session.until("response.done")
        assert done.response.status == "completed"
        sent = SILENCE + spoken + SILENCE
        start = next(e.audio_start_ms for e in session.log if e.type.endswith("speech_started"))
        at = start * BYTES_PER_MS
        assert bytes(session.heard) == sent[at : at + len(session.heard)]
        assert len(spoken) < len(session.heard) < len(spoken) + 700 * BYTES_PER_MS

    with_official_client(parrot.url, talk)


def test_the_official_client_interrupts(parrot: Parrot, spoken: bytes) -> None:
    async def talk(session: Session) -> None:
        await session.speak(SILENCE + spoken * 3 + SILENCE)
        await session.until("response.output_audio.delta")
        await session.speak(spoken)
        done = await session.until("response.done")
        assert done.response.status == "cancelled"
        assert done.response.status_details.reason == "turn_detected"
        assert len(session.heard) < 3 * len(spoken)
        item = done.response.output[0].id
        await session.connection.conversation.item.truncate(item_id=item, content_index=0, audio_end_ms=40)
        truncated = await session.until("conversation.item.truncated")
        assert truncated.audio_end_ms == 40
        await session.connection.conversation.item.retrieve(item_id=item)
        retrieved = await session.until("conversation.item.retrieved")
        assert base64.b64decode(retrieved.item.content[0].audio) == session.heard[: 40 * BYTES_PER_MS]

    with_official_client(parrot.url, talk)


def test_the_official_client_commits_by_hand(parrot: Parrot, spoken: bytes) -> None:
    async def talk(session: Session) -> None:
        await session.connection.session.update(
            session={"type": "realtime", "audio": {"input": {"turn_detection": None}}}
        )
        await session.speak(spoken)
        await session.connection.input_audio_buffer.commit()
        await session.until("input_audio_buffer.committed")
        await session.connection.response.create()
        done = await session.until("response.done")
        assert done.response.status == "completed"
        assert bytes(session.heard) == spoken
        await session.connection.response.cancel(event_id="too_late")
        error = await session.until("error")
        assert error.error.event_id == "too_late"

    with_official_client(parrot.url, talk)


def test_the_key_is_asked_for(spoken: bytes) -> None:
    from openai import AuthenticationError
    from websockets.exceptions import InvalidStatus

    async def nothing(session: Session) -> None:
        pass

    with Parrot(api_key="sk-parrot") as parrot:
        with_official_client(parrot.url, nothing, key="sk-parrot")
        for wrong in ("sk-other", "sk-parrot2"):
            with pytest.raises((InvalidStatus, AuthenticationError)) as caught:
                with_official_client(parrot.url, nothing, key=wrong)
            assert "401" in str(caught.value)


pytestmark_trio = pytest.mark.anyio


def address(url: str) -> tuple[str, int]:
    host, _, port = url.split("/")[2].rpartition(":")
    return host, int(port)


async def ask(url: str, request: bytes) -> bytes:
    """What comes back for raw bytes, up to a pause or the end."""
    stream = await trio.open_tcp_stream(*address(url))
    answer = b""
    async with stream:
        await stream.send_all(request)
        with trio.move_on_after(TIMEOUT):
            while piece := await stream.receive_some(65_536):
                answer += piece
                if b"\r\n\r\n" in answer:
                    break
    return answer


def upgrade(path: str, extra: str = "") -> bytes:
    return (
        f"GET {path} HTTP/1.1\r\nHost: parrot\r\nUpgrade: websocket\r\nConnection: Upgrade\r\n"
        f"Sec-WebSocket-Key: AAAAAAAAAAAAAAAAAAAAAA==\r\nSec-WebSocket-Version: 13\r\n{extra}\r\n"
    ).encode()


@pytestmark_trio
async def test_what_is_no_realtime_client_is_turned_away_and_the_parrot_lives() -> None:
    async with trio.open_nursery() as nursery:
        url = await nursery.start(partial(serve_parrot, max_sessions=1))
        assert b" 404 " in await ask(url, upgrade("/elsewhere"))
        for nonsense in (b"\x16\x03\x01\x02\x00" + os.urandom(64), b"GET / HTTP/1.1\r\n\r\n", b"\r\n" * 9):
            stream = await trio.open_tcp_stream(*address(url))
            await stream.send_all(nonsense)
            await stream.aclose()
        first = await trio.open_tcp_stream(*address(url))
        await first.send_all(
            upgrade("/v1/realtime", "Sec-WebSocket-Protocol: realtime, openai-insecure-api-key.x\r\n")
        )
        answer = bytes(await first.receive_some(65_536))
        assert answer.startswith(b"HTTP/1.1 101 ")
        assert b"\r\nsec-websocket-protocol: realtime\r\n" in answer.lower()
        assert b" 503 " in await ask(url, upgrade("/v1/realtime"))
        # A frame without a mask is a protocol error (RFC 6455 5.1); the session ends and its place is free.
        await first.send_all(b"\x81\x02{}")
        await first.aclose()
        answer = b""
        with trio.fail_after(TIMEOUT):
            while b" 101 " not in answer:  # the parrot learns of it in its own time
                answer = await ask(url, upgrade("/v1/realtime"))
        nursery.cancel_scope.cancel()


@pytest.mark.parametrize("listen", ["", "127.0.0.1", "127.0.0.1:x", ":80", "127.0.0.1:99999"])
@pytestmark_trio
async def test_an_address_that_is_none(listen: str) -> None:
    with pytest.raises(ValueError, match="host:port"):
        await serve_parrot(listen)


@pytestmark_trio
async def test_ipv6() -> None:
    async with trio.open_nursery() as nursery:
        url = await nursery.start(serve_parrot, "[::1]:0")
        assert url.startswith("ws://[::1]:")
        nursery.cancel_scope.cancel()


def test_as_a_process_it_serves_and_ends_on_sigterm() -> None:
    with socket.create_server(("127.0.0.1", 0)) as probe:
        port = probe.getsockname()[1]
    command = [sys.executable, "-m", "voicegate.agents.parrot", "--listen", f"127.0.0.1:{port}"]
    process = subprocess.Popen(command, stderr=subprocess.PIPE)
    try:
        assert process.stderr is not None
        assert b"parrot listens" in process.stderr.readline()
        with_official_client(f"ws://127.0.0.1:{port}/v1/realtime", _say_nothing)
        process.send_signal(signal.SIGTERM)
        assert process.wait(TIMEOUT) == 0
    finally:
        process.kill()
        process.communicate()


def test_as_a_process_it_says_why_it_cannot(capsys: pytest.CaptureFixture[str]) -> None:
    with socket.create_server(("127.0.0.1", 0)) as taken:
        port = taken.getsockname()[1]
        assert main(["--listen", f"127.0.0.1:{port}"]) == 1
    assert f"cannot listen on 127.0.0.1:{port}: Address already in use\n" in capsys.readouterr().err
    assert main(["--listen", "nowhere"]) == 1


async def _say_nothing(session: Session) -> None:
    await session.connection.send({"type": "input_audio_buffer.clear", "event_id": "e"})
    await session.until("input_audio_buffer.cleared")


def test_the_events_of_our_own_encoders_are_understood(parrot: Parrot) -> None:
    async def talk(session: Session) -> None:
        await session.connection.send_raw(realtime.encode_clear("e").decode())
        await session.until("input_audio_buffer.cleared")

    with_official_client(parrot.url, talk)
