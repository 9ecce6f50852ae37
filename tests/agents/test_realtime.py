"""The Realtime client against servers that behave, and servers that do not. Real sockets, on loopback."""

from __future__ import annotations

import base64
import io
import json
import os
import socket
import ssl
import struct
from collections.abc import AsyncIterator, Awaitable, Callable, Mapping
from contextlib import asynccontextmanager
from functools import partial
from pathlib import Path
from typing import Any

import pytest
import trio
import trio.testing
from hypothesis import given, settings
from hypothesis import strategies as st
from openai.types.realtime import RealtimeClientEvent
from pydantic import TypeAdapter
from trio_websocket import ConnectionClosed, WebSocketConnection, WebSocketRequest, serve_websocket
from wsproto import ConnectionType
from wsproto.connection import Connection
from wsproto.events import TextMessage

from tests.media.signals import best_match, frames, level, tone
from tests.support import speech
from tests.support.models import official
from voicegate import logs
from voicegate.agents import realtime as client_module
from voicegate.agents import waiting
from voicegate.agents.dialing import check_settings
from voicegate.agents.frames import text_frame
from voicegate.agents.parrot.server import serve_parrot
from voicegate.agents.readers import Readers
from voicegate.agents.realtime import MAX_BAD_EVENTS, AgentEvent, AgentReady, RealtimeAgent
from voicegate.agents.waiting import (
    FLOOD_BYTES,
    FLOOD_EVENTS,
    MAX_WAITING_AUDIO,
    MAX_WAITING_EVENTS,
    FloodMeter,
)
from voicegate.agents.websocket import AgentLost
from voicegate.config import AgentConfig, ConfigError, LogConfig
from voicegate.media.convert import open_converter
from voicegate.media.sound import PCM, PCM_LINE, PCMA, PCMU, Line, Sound
from voicegate.proto import realtime
from voicegate.proto.realtime import (
    BYTES_PER_MS,
    AgentError,
    AudioDelta,
    AudioDone,
    OtherEvent,
    ResponseCreated,
    ResponseDone,
    SpeechStarted,
    SpeechStopped,
)

pytestmark = pytest.mark.anyio

CLIENT_EVENT: TypeAdapter[Any] = TypeAdapter(RealtimeClientEvent)
TIMEOUT = 20.0
KEY = "sk-very-secret-0123456789"

Script = Callable[["Peer"], Awaitable[None]]


class Peer:
    """The server's side of one connection, in the hands of a test."""

    def __init__(self, connection: WebSocketConnection, request: WebSocketRequest) -> None:
        self.connection = connection
        self.path = request.path
        self.headers = {name.lower(): value for name, value in request.headers}

    async def say(self, kind: str, **fields: Any) -> None:
        await self.connection.send_message(realtime.encode_event({"type": kind, **fields}).decode())

    async def hear(self) -> dict[str, Any]:
        """The client's next event; what the client says is always what the official models say."""
        text = await self.connection.get_message()
        event: dict[str, Any] = json.loads(text)
        assert not CLIENT_EVENT.validate_python(official(event)).model_extra
        return event

    async def hear_audio(self, size: int) -> bytes:
        pcm = b""
        while len(pcm) < size:
            event = await self.hear()
            assert event["type"] == "input_audio_buffer.append"
            pcm += base64.b64decode(event["audio"])
        return pcm

    async def welcome(self) -> dict[str, Any]:
        await self.say("session.created", session={})
        update = await self.hear()
        assert update["type"] == "session.update"
        await self.say("session.updated", session=update["session"])
        session: dict[str, Any] = update["session"]
        return session


def turns() -> Readers:
    """Readers, and somebody who takes turns for them until the end of the test."""
    readers = Readers()

    async def take() -> None:
        while True:
            if readers.unfinished:
                await trio.lowlevel.checkpoint()
            else:
                await trio.lowlevel.wait_readable(readers.fileno())
            readers.read(until=trio.current_time() + 1)
            await trio.lowlevel.checkpoint()

    trio.lowlevel.spawn_system_task(take)
    return readers


class Call:
    """The agent under test, with what it told."""

    def __init__(self, url: str, **options: Any) -> None:
        chosen = {"connect_seconds": 5.0, "stall_seconds": 5.0, **options.pop("settings", {})}
        self.events: list[AgentEvent] = []
        self._news = trio.Event()
        self.agent = RealtimeAgent(
            AgentConfig(url=url, **chosen), "rtc_test", on_event=self._on_event, readers=turns(), **options
        )

    def _on_event(self, event: AgentEvent) -> None:
        self.events.append(event)
        self._news.set()
        self._news = trio.Event()

    async def until(self, kind: type[Any], many: int = 1) -> Any:
        while True:
            found = [event for event in self.events if isinstance(event, kind)]
            if len(found) >= many:
                return found[many - 1]
            await self._news.wait()

    async def lost(self) -> AgentLost:
        with pytest.raises(AgentLost) as caught:
            await self.agent.run()
        return caught.value


@asynccontextmanager
async def serving(
    script: Script, *, tls: ssl.SSLContext | None = None
) -> AsyncIterator[tuple[str, trio.Nursery]]:
    """A Realtime server that does what `script` says to every connection; ends within the time limit."""

    async def on_request(request: WebSocketRequest) -> None:
        try:
            await script(Peer(await request.accept(), request))
        except ConnectionClosed:
            pass

    with trio.fail_after(TIMEOUT):
        async with trio.open_nursery() as nursery:
            serve = partial(
                serve_websocket,
                on_request,
                "127.0.0.1",
                0,
                tls,
                max_message_size=2**26,
                disconnect_timeout=0.2,
            )
            server = await nursery.start(serve)
            scheme, host = ("wss", "localhost") if tls else ("ws", "127.0.0.1")
            yield f"{scheme}://{host}:{server.port}/v1/realtime", nursery
            nursery.cancel_scope.cancel()


@asynccontextmanager
async def raw_server(script: Callable[[trio.SocketStream], Awaitable[None]]) -> AsyncIterator[str]:
    async def on_stream(stream: trio.SocketStream) -> None:
        try:
            await script(stream)
        except (trio.BrokenResourceError, trio.ClosedResourceError):
            pass

    with trio.fail_after(TIMEOUT):
        async with trio.open_nursery() as nursery:
            (listener,) = await nursery.start(partial(trio.serve_tcp, on_stream, 0, host="127.0.0.1"))
            yield f"ws://127.0.0.1:{listener.socket.getsockname()[1]}"
            nursery.cancel_scope.cancel()


async def shake_hands(stream: trio.SocketStream) -> None:
    """The server's half of the handshake by hand (RFC 6455 4.2.2)."""
    from hashlib import sha1

    request = b""
    while b"\r\n\r\n" not in request:
        request += await stream.receive_some(4096)
    lines = dict(line.split(b": ", 1) for line in request.split(b"\r\n")[1:] if b": " in line)
    key = lines[b"Sec-WebSocket-Key"] + b"258EAFA5-E914-47DA-95CA-C5AB0DC85B11"
    accept = base64.b64encode(sha1(key).digest())
    await stream.send_all(
        b"HTTP/1.1 101 Switching Protocols\r\nUpgrade: websocket\r\nConnection: Upgrade\r\n"
        b"Sec-WebSocket-Accept: " + accept + b"\r\n\r\n"
    )


def server_frame(event: Mapping[str, Any] | bytes, opcode: int = 1) -> bytes:
    data = event if isinstance(event, bytes) else realtime.encode_event(event)
    size = bytes((len(data),)) if len(data) < 126 else b"\x7e" + struct.pack("!H", len(data))
    return bytes((0x80 | opcode,)) + size + data


# --- what works -----------------------------------------------------------------------------------


async def test_what_was_said_before_the_agent_came_is_heard_first_and_in_order() -> None:
    pcm = os.urandom(3000 * BYTES_PER_MS)
    heard = b""
    order = []

    async def script(peer: Peer) -> None:
        nonlocal heard
        assert peer.path == "/v1/realtime?model=gpt%2Fbig"
        assert peer.headers[b"authorization"] == f"Bearer {KEY}".encode()
        assert peer.headers[b"x-team"] == b"voice: gate"
        session = await peer.welcome()
        assert session["type"] == "realtime"
        assert session["instructions"] == "per call"
        assert session["audio"]["input"]["format"] == {"type": "audio/pcm", "rate": 24000}
        assert session["audio"]["output"] == {"voice": "v", "format": {"type": "audio/pcm", "rate": 24000}}
        while True:
            event = await peer.hear()
            order.append(event["type"])
            if event["type"] == "input_audio_buffer.append":
                heard += base64.b64decode(event["audio"])
            elif event["type"] == "response.create":
                await peer.say("response.created", response={"id": "r"})

    async with serving(script) as (url, nursery):
        call = Call(
            url,
            model="gpt/big",
            settings={
                "model": "other",
                "api_key": KEY,
                "headers": ("X-Team: voice: gate",),
                "session": '{"instructions":"config","audio":{"output":{"voice":"v"}}}',
            },
            session={"instructions": "per call"},
        )
        frames = [pcm[at : at + 960] for at in range(0, len(pcm), 960)]
        for frame in frames[:50]:
            call.agent.send_audio_nowait(frame)
        assert call.agent.send_event_nowait({"type": "input_audio_buffer.commit"})
        for frame in frames[50:100]:
            call.agent.send_audio_nowait(frame)
        await nursery.start(call.agent.run)
        assert await call.until(AgentReady) == AgentReady(configured=True)
        for frame in frames[100:]:
            call.agent.send_audio_nowait(frame)
        call.agent.send_event_nowait(realtime.encode_response_create())
        await call.until(ResponseCreated)
    assert heard == pcm
    # A second each of what waited is one append; later frames go as they come while the wire is clear.
    append = "input_audio_buffer.append"
    assert order[:3] == [append, "input_audio_buffer.commit", append]
    assert set(order[3:-1]) == {append}
    assert order[-1] == "response.create"
    assert [type(e) for e in call.events[:3]] == [OtherEvent, OtherEvent, AgentReady]


async def test_frames_go_one_by_one_as_they_are_said() -> None:
    sizes = []

    async def script(peer: Peer) -> None:
        await peer.welcome()
        while True:
            sizes.append(len(base64.b64decode((await peer.hear())["audio"])))
            await peer.say("input_audio_buffer.speech_started", audio_start_ms=len(sizes))

    async with serving(script) as (url, nursery):
        call = Call(url)
        await nursery.start(call.agent.run)
        for number in range(1, 6):
            call.agent.send_audio_nowait(bytes(960))
            assert (await call.until(SpeechStarted, number)).audio_start_ms == number
    assert sizes == [960] * 5


async def test_a_conversation_with_the_parrot() -> None:
    spoken = speech.to_pcm(speech.say("Good morning, agent.", 24_000))
    with trio.fail_after(TIMEOUT):
        async with trio.open_nursery() as nursery:
            call = Call(await nursery.start(serve_parrot))
            nursery.start_soon(call.agent.run)
            call.agent.send_audio_nowait(bytes(24_000) + spoken + bytes(40_000))
            start = (await call.until(SpeechStarted)).audio_start_ms * BYTES_PER_MS
            await call.until(SpeechStopped)
            done = await call.until(ResponseDone)
            assert done.status == "completed"
            heard = b"".join(e.pcm for e in call.events if isinstance(e, AudioDelta))
            assert len(heard) >= len(spoken)
            assert heard == (bytes(24_000) + spoken + bytes(40_000))[start : start + len(heard)]
            assert isinstance(await call.until(AudioDone), AudioDone)
            nursery.cancel_scope.cancel()


async def test_close_is_clean_and_run_returns() -> None:
    reasons = []

    async def script(peer: Peer) -> None:
        await peer.welcome()
        with pytest.raises(ConnectionClosed):
            await peer.hear()
        reasons.append(peer.connection.closed.code)

    async with serving(script) as (url, _):
        call = Call(url)
        async with trio.open_nursery() as calls:
            await calls.start(call.agent.run)
            call.agent.close()
        assert reasons == [1000]
        # A second close and late audio do nothing.
        call.agent.close()
        call.agent.send_audio_nowait(bytes(960))
        assert not call.agent.send_event_nowait({"type": "response.create"})
        assert call.agent.statistics()["waiting_audio_bytes"] == 0


async def test_close_before_and_during_the_connection() -> None:
    async def script(peer: Peer) -> None:
        await trio.sleep_forever()

    async with serving(script) as (url, _):
        early = Call(url)
        early.agent.close()
        await early.agent.run()
        during = Call(url)
        async with trio.open_nursery() as calls:
            calls.start_soon(during.agent.run)
            await trio.testing.wait_all_tasks_blocked(0.05)
            during.agent.close()


async def test_a_call_that_is_cancelled_says_goodbye() -> None:
    codes = []
    told = trio.Event()

    async def script(peer: Peer) -> None:
        await peer.welcome()
        with pytest.raises(ConnectionClosed):
            await peer.hear()
        codes.append(peer.connection.closed.code)
        told.set()

    async with serving(script) as (url, _):
        call = Call(url)
        async with trio.open_nursery() as calls:
            await calls.start(call.agent.run)
            calls.cancel_scope.cancel()
        await told.wait()
    assert codes == [1001]


async def test_tls(tmp_path: Path) -> None:
    server, trusting = certificates(tmp_path)
    pcm = os.urandom(200_000)
    heard = b""

    async def script(peer: Peer) -> None:
        nonlocal heard
        await peer.welcome()
        heard = await peer.hear_audio(len(pcm))
        await peer.say("response.output_audio.delta", delta=heard)
        await peer.say("response.done", response={})
        await trio.sleep_forever()

    async with serving(script, tls=server) as (url, nursery):
        call = Call(url, ssl_context=trusting)
        nursery.start_soon(call.agent.run)
        call.agent.send_audio_nowait(pcm)
        await call.until(ResponseDone)
        assert heard == b"".join(e.pcm for e in call.events if isinstance(e, AudioDelta)) == pcm
        stranger = await Call(url).lost()
        assert stranger.reason == "agent_unreachable"
        assert "certificate" in stranger.detail.lower()


# --- servers with manners of their own ------------------------------------------------------------


async def test_settings_that_the_agent_refuses_do_not_end_the_call() -> None:
    async def script(peer: Peer) -> None:
        await peer.say("session.created", session={})
        update = await peer.hear()
        await peer.say(
            "error", error={"type": "invalid", "message": "no such voice", "event_id": update["event_id"]}
        )
        await peer.hear_audio(960)
        await peer.say("response.done", response={"id": "r"})

    async with serving(script) as (url, nursery):
        call = Call(url)
        call.agent.send_audio_nowait(bytes(960))
        nursery.start_soon(call.lost)
        assert await call.until(AgentReady) == AgentReady(configured=False)
        assert (await call.until(AgentError)).message == "no such voice"
        await call.until(ResponseDone)


async def test_an_agent_that_confirms_nothing_is_used_as_it_is(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(client_module, "CONFIGURE_SECONDS", 0.05)

    async def script(peer: Peer) -> None:
        await peer.say("session.created", session={})
        await peer.hear()
        await peer.hear_audio(960)
        await peer.say("response.done", response={"id": "r"})

    async with serving(script) as (url, nursery):
        call = Call(url)
        call.agent.send_audio_nowait(bytes(960))
        nursery.start_soon(call.lost)
        await call.until(ResponseDone)
        assert AgentReady(configured=False) in call.events


async def test_audio_cut_anywhere_is_put_together() -> None:
    pcm = os.urandom(1000)

    async def script(peer: Peer) -> None:
        await peer.welcome()
        for start, end in ((0, 333), (333, 334), (334, 334), (334, 777), (777, 1000)):
            await peer.say("response.output_audio.delta", item_id="i", delta=pcm[start:end])
        await peer.say("response.output_audio.delta", item_id="j", delta=b"\1\2\3")
        await peer.say("response.output_audio.delta", item_id="k", delta=b"\4\5")
        await peer.say("response.done", response={})

    async with serving(script) as (url, nursery):
        call = Call(url)
        nursery.start_soon(call.lost)
        await call.until(ResponseDone)
    deltas = [event for event in call.events if isinstance(event, AudioDelta)]
    assert b"".join(d.pcm for d in deltas if d.item_id == "i") == pcm
    assert all(len(d.pcm) % 2 == 0 and d.pcm for d in deltas)
    assert [d.pcm for d in deltas if d.item_id != "i"] == [b"\1\2", b"\4\5"]
    assert call.agent.statistics()["audio_empty"] == 1
    assert call.agent.statistics()["audio_odd"] == 3


async def test_an_agent_with_other_rates_hears_and_speaks_them() -> None:
    """Told in its session, resampled both ways; each item on its own, and the samples exactly counted."""
    spoken = tone(500, 1.0, rate=8000)
    asked: dict[str, Any] = {}
    heard = bytearray()

    async def script(peer: Peer) -> None:
        asked.update((await peer.welcome())["audio"])
        for start in range(0, len(spoken), 333):
            await peer.say("response.output_audio.delta", item_id="i", delta=spoken[start : start + 333])
        await peer.say("response.output_audio.delta", item_id="j", delta=bytes(2000))
        heard.extend(await peer.hear_audio(2 * 16_000))
        await peer.say("response.done", response={})

    async with serving(script) as (url, nursery):
        call = Call(url, settings={"audio_rate_in": 16_000, "audio_rate_out": 8_000})
        nursery.start_soon(call.lost)
        for frame in frames(tone(500, 1.0)):
            call.agent.send_audio_nowait(frame)
        await call.until(ResponseDone)
    assert asked["input"]["format"] == {"type": "audio/pcm", "rate": 16_000}
    assert asked["output"]["format"] == {"type": "audio/pcm", "rate": 8_000}
    deltas = [event for event in call.events if isinstance(event, AudioDelta)]
    first = b"".join(event.pcm for event in deltas if event.item_id == "i")
    assert len(first) == 3 * len(spoken)
    assert best_match(tone(500, 1.0), first, longest_delay=60) == (48, pytest.approx(1, abs=0.001))
    second = b"".join(event.pcm for event in deltas if event.item_id == "j")
    assert len(second) == 6000
    assert level(second) == 0
    assert best_match(tone(500, 1.0, rate=16_000), bytes(heard), longest_delay=40)[1] > 0.999


@pytest.mark.parametrize(
    ("line", "law"),
    [(Line(PCMU, PCMU), PCMU), (Line(PCMA, PCMA), PCMA), (Line(PCMU, PCMU), PCMA), (PCM_LINE, PCMU)],
    ids=["PCMU", "PCMA", "PCMU for PCMA", "Opus for PCMU"],
)
async def test_an_agent_that_speaks_g711(line: Line, law: Sound) -> None:
    """What the call's line has too goes through to the bit; all else is converted, byte by byte in step."""
    spoken, heard = os.urandom(8000), bytearray()
    asked: dict[str, Any] = {}
    said = os.urandom(24_000) if line != PCM_LINE else tone(500, 1.0)[:24_000]
    same = line.said == law

    async def script(peer: Peer) -> None:
        asked.update((await peer.welcome())["audio"])
        for start in range(0, len(spoken), 333):
            await peer.say("response.output_audio.delta", item_id="i", delta=spoken[start : start + 333])
        heard.extend(await peer.hear_audio(len(said) if line != PCM_LINE else len(said) // 6))
        await peer.say("response.done", response={})

    settings = {"audio_format_in": law.type, "audio_format_out": law.type}
    async with serving(script) as (url, nursery):
        call = Call(url, settings=settings, line=line)
        nursery.start_soon(call.lost)
        frame = line.heard.frame_bytes
        for at in range(0, len(said), frame):
            call.agent.send_audio_nowait(said[at : at + frame])
        await call.until(ResponseDone)
    assert asked["input"]["format"] == asked["output"]["format"] == {"type": law.type}
    deltas = [event for event in call.events if isinstance(event, AudioDelta)]
    came = b"".join(event.pcm for event in deltas)
    assert line.said.samples(came) == 3 * len(spoken)
    assert (came == spoken) is same and (bytes(heard) == said) is same
    assert "audio_odd" not in call.agent.statistics(), "a byte is a sample"
    if not same:
        back = open_converter(law, line.heard)
        assert back is not None
        again = back.convert(bytes(heard))
        if line == PCM_LINE:
            assert best_match(said, again, longest_delay=200)[1] > 0.999
        else:
            near = (open_converter(each, PCM) for each in (line.heard, line.heard))
            a, b = (each.convert(data) for each, data in zip(near, (said, again), strict=True) if each)
            assert best_match(a, b, longest_delay=10)[1] > 0.999


async def test_more_than_a_second_of_g711_is_handed_on_in_seconds() -> None:
    async def script(peer: Peer) -> None:
        await peer.welcome()
        await peer.say("response.output_audio.delta", item_id="i", delta=bytes(150 * 8_000))
        await peer.say("response.output_audio.delta", item_id="i", delta=b"")
        await peer.say("response.done", response={})

    async with serving(script) as (url, nursery):
        call = Call(url, settings={"audio_format_out": "audio/pcmu"}, line=Line(PCM, PCMU))
        nursery.start_soon(call.lost)
        await call.until(ResponseDone)
    sizes = [len(event.pcm) for event in call.events if isinstance(event, AudioDelta)]
    assert sum(sizes) == 150 * 8_000 and set(sizes) == {8_000}


async def test_bad_events_are_counted_and_the_call_goes_on() -> None:
    seconds = os.urandom(90_000 * BYTES_PER_MS)

    async def script(peer: Peer) -> None:
        await peer.welcome()
        for text in ("", "nonsense", "[]", "[" * 99_999, '{"type":5}', '{"type":"error"}', "\x00"):
            await peer.connection.send_message(text)
        await peer.connection.send_message(b"\xff\x00")
        await peer.say("response.output_audio.delta", delta="*bad*")
        await peer.say("response.output_audio.delta", delta=bytes(600_000 * BYTES_PER_MS))  # ten minutes
        await peer.say("response.output_audio.delta", delta=seconds)
        await peer.connection.send_message(b'{"type":"binary.but.fine"}')
        await peer.hear_audio(960)
        await peer.say("response.done", response={})

    async with serving(script) as (url, nursery):
        call = Call(url)
        nursery.start_soon(call.lost)
        call.agent.send_audio_nowait(bytes(960))
        await call.until(ResponseDone)
    statistics = call.agent.statistics()
    assert statistics["bad_agent_event_json"] == 4
    assert statistics["bad_agent_event_fields"] == 5
    assert statistics["messages_oversized"] == 1
    assert b"".join(event.pcm for event in call.events if isinstance(event, AudioDelta)) == seconds
    assert OtherEvent("binary.but.fine", b'{"type":"binary.but.fine"}') in call.events


async def test_a_large_delta_comes_in_seconds_and_others_have_their_turn() -> None:
    pcm = os.urandom(60_000 * BYTES_PER_MS + 7)
    turns = 0

    async def script(peer: Peer) -> None:
        await peer.welcome()
        ids = {"response_id": "r", "item_id": "i", "content_index": 3}
        await peer.say("response.output_audio.delta", **ids, delta=pcm[:3])
        await peer.say("response.output_audio.delta", **ids, delta=pcm[3:])
        await peer.say("response.output_audio.done", response_id="r", item_id="i")
        await peer.say("response.done", response={})

    async def neighbour() -> None:
        nonlocal turns
        while True:
            await trio.lowlevel.checkpoint()
            turns += any(isinstance(event, AudioDelta) for event in call.events)

    async with serving(script) as (url, nursery):
        call = Call(url)
        nursery.start_soon(call.lost)
        await call.until(AgentReady)
        nursery.start_soon(neighbour)
        await call.until(AudioDone)
        seen = turns
        await call.until(ResponseDone)
    kinds = [type(event) for event in call.events]
    deltas = [event for event in call.events if isinstance(event, AudioDelta)]
    assert b"".join(event.pcm for event in deltas) == pcm[:-1]
    assert {(e.response_id, e.item_id, e.content_index) for e in deltas} == {("r", "i", 3)}
    assert max(len(event.pcm) for event in deltas) == 1000 * BYTES_PER_MS
    assert kinds.index(AudioDone) > max(n for n, kind in enumerate(kinds) if kind is AudioDelta)
    assert kinds[-1] is ResponseDone
    assert seen >= len(deltas) // client_module.TURN_EVENTS


async def test_a_burst_is_handed_on_in_order_and_in_bounded_turns() -> None:
    many = 2000
    order: list[int] = []
    longest = run = 0

    async def script(stream: trio.SocketStream) -> None:
        await shake_hands(stream)
        out = server_frame({"type": "session.created"}) + server_frame({"type": "session.updated"})
        for number in range(many):
            out += server_frame({"type": "input_audio_buffer.speech_started", "audio_start_ms": number})
        await stream.send_all(out)
        await trio.sleep_forever()

    def handler(event: AgentEvent) -> None:
        nonlocal run, longest
        if isinstance(event, SpeechStarted):
            order.append(event.audio_start_ms)
            run += 1
            longest = max(longest, run)

    async with raw_server(script) as url, trio.open_nursery() as nursery:
        agent = RealtimeAgent(AgentConfig(url=url), "rtc", on_event=handler, readers=turns())
        await nursery.start(agent.run)
        while len(order) < many:
            run = 0
            await trio.lowlevel.checkpoint()
        nursery.cancel_scope.cancel()
    assert order == list(range(many))
    # Two tasks of one scheduler run in either order within a round: two turns may follow each other.
    assert longest <= 2 * client_module.TURN_EVENTS


async def test_what_came_is_not_lost_when_configuring_takes_too_long(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(client_module, "CONFIGURE_SECONDS", 0.05)
    many = 3000
    order: list[int] = []
    ready_at = -1
    everything = trio.Event()

    async def script(stream: trio.SocketStream) -> None:
        await shake_hands(stream)
        await stream.send_all(server_frame({"type": "session.created"}))
        for number in range(many):
            await stream.send_all(
                server_frame({"type": "input_audio_buffer.speech_started", "audio_start_ms": number})
            )
        await trio.sleep_forever()

    def handler(event: AgentEvent) -> None:
        nonlocal ready_at
        if isinstance(event, SpeechStarted):
            order.append(event.audio_start_ms)
            if len(order) == many:
                everything.set()
        elif isinstance(event, AgentReady):
            ready_at = len(order)

    async with raw_server(script) as url, trio.open_nursery() as nursery:
        agent = RealtimeAgent(AgentConfig(url=url), "rtc", on_event=handler, readers=turns())
        await nursery.start(agent.run)
        await everything.wait()
        nursery.cancel_scope.cancel()
    assert order == list(range(many))
    assert ready_at >= 0


async def test_messages_in_a_thousand_fragments() -> None:
    async def script(stream: trio.SocketStream) -> None:
        await shake_hands(stream)
        text = realtime.encode_event({"type": "session.created", "note": "é" * 5000})
        pieces = [text[at : at + 7] for at in range(0, len(text), 7)]
        out = b""
        for number, piece in enumerate(pieces):
            last = number == len(pieces) - 1
            out += bytes(((0x80 if last else 0) | (1 if number == 0 else 0), len(piece))) + piece
            out += b"\x00\x00"  # and an empty one between
            if number == 3:
                out += b"\x89\x02hi"  # a ping in the middle of it
            if last:
                out = out[: -len(b"\x00\x00")]
        await stream.send_all(out)
        await stream.send_all(server_frame({"type": "session.updated"}))
        await trio.sleep_forever()

    async with raw_server(script) as url, trio.open_nursery() as nursery:
        call = Call(url)
        nursery.start_soon(call.agent.run)
        assert (await call.until(AgentReady)).configured
        created = await call.until(OtherEvent)
        assert json.loads(created.raw)["note"] == "é" * 5000
        nursery.cancel_scope.cancel()


# --- the ends of an agent -------------------------------------------------------------------------


async def test_unreachable() -> None:
    with socket.create_server(("127.0.0.1", 0)) as probe:
        port = probe.getsockname()[1]
    with trio.fail_after(TIMEOUT):
        assert (await Call(f"ws://127.0.0.1:{port}").lost()).reason == "agent_unreachable"
        for host in ("no-such-host.invalid", "a" * 300, "a..b"):
            assert (await Call(f"ws://{host}").lost()).reason == "agent_unreachable"


async def test_refused_and_the_key_is_in_no_log() -> None:
    out = io.StringIO()
    logs.configure(LogConfig(level="debug", format="json"), out)

    async def refuse(stream: trio.SocketStream) -> None:
        await stream.receive_some(4096)
        body = f"bad key {KEY}".encode()
        head = f"HTTP/1.1 401 Unauthorized\r\nX-Key: {KEY}\r\nContent-Length: {len(body)}\r\n\r\n"
        await stream.send_all(head.encode() + body)
        await trio.sleep_forever()

    async with raw_server(refuse) as url:
        call = Call(f"{url}?api_key=1", settings={"api_key": KEY})
        lost = await call.lost()
    assert lost.reason == "agent_refused"
    assert "401" in lost.detail
    assert "rtc_test" in out.getvalue()
    assert KEY not in out.getvalue() + str(lost) + repr(call.agent)


async def silent(stream: trio.SocketStream) -> None:
    await trio.sleep_forever()


async def handshake_only(stream: trio.SocketStream) -> None:
    await shake_hands(stream)
    await trio.sleep_forever()


async def other_events(stream: trio.SocketStream) -> None:
    await shake_hands(stream)
    while True:
        await stream.send_all(server_frame({"type": "rate_limits.updated"}))
        await trio.sleep(0.01)


@pytest.mark.parametrize("script", [silent, handshake_only, other_events])
async def test_no_session_in_time(script: Callable[[trio.SocketStream], Awaitable[None]]) -> None:
    async with raw_server(script) as url:
        lost = await Call(url, settings={"connect_seconds": 0.2}).lost()
    assert lost.reason == "agent_timeout"


async def test_a_tls_handshake_that_never_ends_is_a_timeout() -> None:
    async with raw_server(silent) as url:
        lost = await Call(url.replace("ws:", "wss:"), settings={"connect_seconds": 0.2}).lost()
    assert lost.reason == "agent_timeout"


async def test_closed_after_the_last_words_were_heard() -> None:
    async def script(peer: Peer) -> None:
        await peer.welcome()
        await peer.say("error", error={"type": "t", "code": "session_expired", "message": "an hour"})

    async with serving(script) as (url, _):
        call = Call(url)
        lost = await call.lost()
    assert lost.reason == "agent_closed"
    assert (await call.until(AgentError)).code == "session_expired"


@pytest.mark.parametrize("abrupt", [True, False], ids=["reset", "end"])
async def test_closed_without_a_word(abrupt: bool) -> None:
    async def script(stream: trio.SocketStream) -> None:
        await shake_hands(stream)
        await stream.send_all(server_frame({"type": "session.created"}))
        await stream.receive_some(4096)
        if abrupt:
            stream.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))
        await stream.aclose()

    async with raw_server(script) as url:
        assert (await Call(url).lost()).reason == "agent_closed"


async def test_nonsense_beyond_a_bound() -> None:
    async def script(peer: Peer) -> None:
        await peer.welcome()
        for _ in range(MAX_BAD_EVENTS + 1):
            await peer.connection.send_message("nonsense")
        await trio.sleep_forever()

    async with serving(script) as (url, _):
        call = Call(url)
        assert (await call.lost()).reason == "agent_protocol"
    assert call.agent.statistics()["bad_agent_event_json"] == MAX_BAD_EVENTS + 1


TINY_DELTA = {"type": "response.output_audio.delta", "delta": b"\1\0"}


@pytest.mark.parametrize(
    "event", [TINY_DELTA, {"type": "rate_limits.updated"}, {"type": "response.audio.done"}]
)
async def test_a_flood_of_events_ends_the_call(event: Mapping[str, Any]) -> None:
    async def script(stream: trio.SocketStream) -> None:
        await shake_hands(stream)
        await stream.send_all(server_frame({"type": "session.created"}))
        while True:
            await stream.send_all(server_frame(event) * 500)

    async with raw_server(script) as url:
        call = Call(url)
        assert (await call.lost()).reason == "agent_flood"
    # One turn at most beyond the bound.
    assert 0 <= len(call.events) - FLOOD_EVENTS <= client_module.TURN_EVENTS


async def test_a_flood_of_audio_ends_the_call(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(waiting, "FLOOD_BYTES", 4 * 1024 * 1024)
    pcm = bytes(10_000 * BYTES_PER_MS)

    async def script(peer: Peer) -> None:
        await peer.welcome()
        while True:
            await peer.say("response.output_audio.delta", delta=pcm)

    async with serving(script) as (url, _):
        call = Call(url)
        assert (await call.lost()).reason == "agent_flood"
    heard = sum(len(event.pcm) for event in call.events if isinstance(event, AudioDelta))
    assert 4 * 1024 * 1024 * 3 // 4 - 480_000 * 2 < heard <= 4 * 1024 * 1024 * 3 // 4 + 480_000


def test_a_flood_is_what_comes_in_one_window() -> None:
    meter = FloodMeter()
    for second in range(1000):  # exactly the bound, for a long time
        at = float(second)
        assert not meter.exceeded(FLOOD_EVENTS // 10, FLOOD_BYTES // 10, at)
    assert not meter.exceeded(FLOOD_EVENTS, FLOOD_BYTES, 2000.0)
    assert meter.exceeded(1, 0, 2009.9)
    assert not meter.exceeded(1, 0, 2010.0)
    assert meter.exceeded(0, FLOOD_BYTES + 1, 2010.1)


@pytest.mark.parametrize(
    "frames",
    [
        b"\x83\x01x",  # a reserved opcode
        b"\x81\x81keys!",  # a server masks (RFC 6455 5.1)
        b"\xc1\x01x",  # a reserved bit
        b"\x81\x02\xff\xff",  # not UTF-8
        b"\x80\x01x",  # a continuation of nothing
        b"\x89\xfe\x00\x00",  # a long ping
    ],
)
async def test_what_is_no_websocket(frames: bytes) -> None:
    async def script(stream: trio.SocketStream) -> None:
        await shake_hands(stream)
        await stream.send_all(server_frame({"type": "session.created"}) + frames)
        await trio.sleep_forever()

    async with raw_server(script) as url:
        assert (await Call(url).lost()).reason == "agent_protocol"


@pytest.mark.parametrize(
    "answer",
    [
        b"SSH-2.0-OpenSSH_9\r\n\r\n",
        b"HTTP/1.1 101 Switching Protocols\r\nUpgrade: websocket\r\nConnection: Upgrade\r\n"
        b"Sec-WebSocket-Accept: bm90IHRoZSBhbnN3ZXI=\r\n\r\n",
        b"HTTP/1.1 101 Switching Protocols\r\nX: " + b"x" * 100_000,
    ],
)
async def test_what_is_no_handshake(answer: bytes) -> None:
    async def script(stream: trio.SocketStream) -> None:
        await stream.receive_some(4096)
        await stream.send_all(answer)
        await trio.sleep_forever()

    async with raw_server(script) as url:
        assert (await Call(url).lost()).reason == "agent_protocol"


async def test_an_agent_that_takes_nothing_is_given_up_and_memory_is_bounded() -> None:
    async def script(stream: trio.SocketStream) -> None:
        stream.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, 4096)
        await shake_hands(stream)
        await stream.send_all(server_frame({"type": "session.created"}))
        await stream.send_all(server_frame({"type": "session.updated"}) * 2)
        await trio.sleep_forever()

    async with raw_server(script) as url, trio.open_nursery() as nursery:
        call = Call(url, settings={"stall_seconds": 0.4})
        second = bytes(1000 * BYTES_PER_MS)

        async def speak() -> None:
            await call.until(AgentReady)
            for _ in range(200):
                call.agent.send_audio_nowait(second)
                assert call.agent.statistics()["waiting_audio_bytes"] <= MAX_WAITING_AUDIO
            # What waits is the last that was said, and everything is accounted for.
            assert call.agent.statistics()["audio_bytes_dropped"] > 100 * len(second)
            accepted = 0
            while call.agent.send_event_nowait({"type": "response.create"}):
                accepted += 1
            assert accepted == MAX_WAITING_EVENTS
            assert call.agent.statistics()["events_dropped"] == 1

        nursery.start_soon(speak)
        assert (await call.lost()).reason == "agent_stalled"


async def test_an_agent_that_takes_and_never_answers_a_ping_is_given_up() -> None:
    async def script(stream: trio.SocketStream) -> None:
        await shake_hands(stream)
        await stream.send_all(server_frame({"type": "session.created"}))
        await stream.send_all(server_frame({"type": "session.updated"}))
        while await stream.receive_some(65_536):
            pass

    async with raw_server(script) as url:
        lost = await Call(url, settings={"stall_seconds": 0.2}).lost()
    assert lost.reason == "agent_stalled"


async def test_a_quiet_agent_that_answers_pings_is_kept() -> None:
    async def script(peer: Peer) -> None:
        await peer.welcome()
        await trio.sleep_forever()  # the library answers pings

    async with serving(script) as (url, _):
        call = Call(url, settings={"stall_seconds": 0.2})
        with trio.move_on_after(1.0) as scope:
            await call.agent.run()
        assert scope.cancelled_caught


async def test_a_slow_agent_gets_everything_in_the_end() -> None:
    pcm = os.urandom(20_000 * BYTES_PER_MS)
    heard = b""

    async def script(peer: Peer) -> None:
        nonlocal heard
        await peer.welcome()
        await trio.sleep(0.3)
        heard = await peer.hear_audio(len(pcm))
        await peer.say("response.done", response={})

    async with serving(script) as (url, nursery):
        call = Call(url)
        nursery.start_soon(call.lost)
        await call.until(AgentReady)
        for at in range(0, len(pcm), 960):
            call.agent.send_audio_nowait(pcm[at : at + 960])
        await call.until(ResponseDone)
    assert heard == pcm


async def test_what_a_handler_raises_ends_the_run() -> None:
    async def script(peer: Peer) -> None:
        await peer.welcome()
        await trio.sleep_forever()

    def handler(event: AgentEvent) -> None:
        if isinstance(event, AgentReady):
            raise RuntimeError("ours")

    async with serving(script) as (url, _):
        agent = RealtimeAgent(AgentConfig(url=url), "rtc", on_event=handler, readers=turns())
        with pytest.RaisesGroup(pytest.RaisesExc(RuntimeError, match="ours")):
            await agent.run()


# --- settings and frames --------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("settings", "says"),
    [
        ({"url": "http://host"}, "agent.url"),
        ({"url": "ws://"}, "agent.url"),
        ({"url": "ws://host:99999"}, "agent.url"),
        ({"url": "ws://ho st/"}, "agent.url"),
        ({"url": "ws://[::1"}, "agent.url"),
        ({"url": "ws://hôte/"}, "agent.url"),
        ({"url": "ws://host/\r\nX: y"}, "agent.url"),
        ({"headers": ("no colon",)}, "agent.headers"),
        ({"headers": ("X: a\r\nY: b",)}, "agent.headers"),
        ({"headers": ("X y: b",)}, "agent.headers"),
        ({"api_key": "sk-\n"}, "agent.api_key"),
        ({"session": "[]"}, "agent.session"),
        ({"session": "{"}, "agent.session"),
        ({"session": "[" * 100_000}, "agent.session"),
    ],
)
async def test_settings_that_cannot_be_used(settings: dict[str, Any], says: str) -> None:
    with pytest.raises(ConfigError, match=says):
        check_settings(AgentConfig(**settings))


async def test_settings_that_can() -> None:
    check_settings(AgentConfig())
    check_settings(AgentConfig(url="wss://[::1]:443/x?model=y", model="z", session=" ", headers=("A:",)))
    agent = RealtimeAgent(
        AgentConfig(url="ws://h/p?model=y", model="z"), "c", on_event=lambda _: None, readers=Readers()
    )
    assert agent._url == "ws://h/p?model=y"


@given(text=st.text(max_size=300) | st.integers(0, 70_000).map(lambda n: "x" * n))
async def test_our_frames_are_what_wsproto_reads(text: str) -> None:
    server = Connection(ConnectionType.SERVER)
    server.receive_data(text_frame(text.encode()))
    events = list(server.events())
    assert all(isinstance(event, TextMessage) for event in events)
    assert "".join(event.data for event in events) == text  # type: ignore[attr-defined]
    assert events[-1].message_finished  # type: ignore[attr-defined]


@settings(max_examples=40, deadline=None)
@given(data=st.binary(max_size=300), handshaken=st.booleans(), sized=st.booleans())
def test_any_bytes_end_in_agent_lost(data: bytes, handshaken: bool, sized: bool) -> None:
    async def main() -> None:
        async def script(stream: trio.SocketStream) -> None:
            if handshaken:
                await shake_hands(stream)
                await stream.send_all(server_frame({"type": "session.created"}))
            await stream.send_all(server_frame(data) if sized else data)
            await stream.aclose()

        async with raw_server(script) as url:
            lost = await Call(url).lost()
            assert lost.reason in ("agent_closed", "agent_protocol", "agent_refused")

    trio.run(main)


def certificates(folder: Path) -> tuple[ssl.SSLContext, ssl.SSLContext]:
    """A server's TLS context for localhost, and a client's that trusts it and nobody else."""
    import datetime

    from cryptography import x509
    from cryptography.hazmat.primitives import hashes, serialization
    from cryptography.hazmat.primitives.asymmetric import ec

    key = ec.generate_private_key(ec.SECP256R1())
    name = x509.Name([x509.NameAttribute(x509.NameOID.COMMON_NAME, "localhost")])
    now = datetime.datetime.now(datetime.UTC)
    certificate = (
        x509.CertificateBuilder()
        .subject_name(name)
        .issuer_name(name)
        .public_key(key.public_key())
        .serial_number(1)
        .not_valid_before(now - datetime.timedelta(days=1))
        .not_valid_after(now + datetime.timedelta(days=1))
        .add_extension(x509.SubjectAlternativeName([x509.DNSName("localhost")]), critical=False)
        .add_extension(x509.BasicConstraints(ca=True, path_length=None), critical=True)
        .sign(key, hashes.SHA256())
    )
    chain, private = folder / "cert.pem", folder / "key.pem"
    chain.write_bytes(certificate.public_bytes(serialization.Encoding.PEM))
    private.write_bytes(
        key.private_bytes(
            serialization.Encoding.PEM,
            serialization.PrivateFormat.PKCS8,
            serialization.NoEncryption(),
        )
    )
    server = ssl.create_default_context(ssl.Purpose.CLIENT_AUTH)
    server.load_cert_chain(chain, private)
    return server, ssl.create_default_context(cafile=str(chain))
