"""What a client that holds a valid call can do with its data channel: each is dropped, counted or answered;
the call and its neighbour go on, and memory stays bounded."""

from __future__ import annotations

import itertools
import json
import random
import struct
import time
from collections.abc import Callable, Iterator

import pytest

from tests.e2e.conftest import assert_nothing_left
from tests.support import speech
from tests.support.light_channel import LightChannel, Wanted
from tests.support.light_client import Fleet, LightCall, opus_frames, post, request
from tests.support.script_agent import ScriptAgent, script_agent
from tests.support.servers import Gate, cpu_seconds, one_process, rss_bytes, wait_until
from voicegate.proto.dcep import Open, build_open
from voicegate.proto.sctp import wire
from voicegate.proto.sctp.parameters import Init, build_init
from voicegate.proto.sctp.wire import ChunkType

pytestmark = pytest.mark.e2e

KEY = "sk-of-this-test-only"
RATE, FLOOD_SECONDS = 100_000, 3
MEMORY = 24 << 20
"""What one call may take at its worst: SCTP's buffers both ways, the backlog, the queue to the agent."""


@pytest.fixture(scope="module")
def agent() -> Iterator[ScriptAgent]:
    with script_agent() as running:
        yield running


@pytest.fixture(scope="module")
def gate(tmp_path_factory: pytest.TempPathFactory, agent: ScriptAgent) -> Iterator[Gate]:
    directory = tmp_path_factory.mktemp("bad-events")
    with one_process(directory, agent_url=agent.url, signaling_api_keys=KEY) as running:
        yield running


@pytest.fixture
def fleet() -> Iterator[Fleet]:
    with Fleet(seed=11) as running:
        yield running


@pytest.fixture
def voice() -> list[bytes]:
    return opus_frames(speech.silence(0.5))


class Witness:
    """A neighbour on the same transceiver: it talks all the time, and its events are answered."""

    def __init__(self, gate: Gate, fleet: Fleet, voice: list[bytes]) -> None:
        self.gate = gate
        self.fleet = fleet
        self.call = fleet.call(gate.calls_url, voice, key=KEY, loop=True, channel=Wanted())
        self.call.wait_for("session.created", 10)
        self.before = rss_bytes(gate.pids())

    def check(self) -> None:
        assert_alive(self.fleet, self.call)
        grown = rss_bytes(self.gate.pids()) - self.before
        assert grown < MEMORY, f"{grown / 1e6:.1f} MB more"


@pytest.fixture
def witness(gate: Gate, fleet: Fleet, voice: list[bytes]) -> Witness:
    return Witness(gate, fleet, voice)


def begin(gate: Gate, fleet: Fleet, voice: list[bytes], **wanted: object) -> tuple[LightCall, LightChannel]:
    call = fleet.call(gate.calls_url, voice, key=KEY, loop=True, channel=Wanted(**wanted))  # type: ignore[arg-type]
    call.wait_for("connected", 10)
    assert call.channel is not None
    if not wanted.get("raw"):
        call.wait_for("session.created", 10)
    return call, call.channel


def assert_alive(fleet: Fleet, call: LightCall, within: float = 5.0) -> None:
    """It is answered over its data channel, and its sound still arrives."""
    assert call.channel is not None and not call.closed, call.closed
    item = f"alive-{time.monotonic_ns()}"
    text = [{"type": "input_text", "text": "?"}]
    fleet.send_event(
        call,
        {
            "type": "conversation.item.create",
            "item": {"id": item, "type": "message", "role": "user", "content": text},
        },
    )
    channel = call.channel
    wait_until(
        lambda: any(e["item"]["id"] == item for e in channel.of("conversation.item.added")),
        within,
        f"an answer; last events {channel.types()[-3:]}",
        every=0.01,
    )


def assert_media_alive(gate: Gate, fleet: Fleet, call: LightCall) -> None:
    """The data channel may be gone; the call is not."""
    location = fleet.locations[id(call)]
    before = json.loads(request("GET", location, key=KEY).body)
    time.sleep(0.5)
    after = json.loads(request("GET", location, key=KEY).body)
    assert after["status"] == "active", after
    heard = [page["statistics"]["audio"] for page in (before, after)]
    assert heard[0] != heard[1], "its sound no longer arrives"
    assert not call.closed


# ------------------------------------------------------------------------------------------------ raw SCTP


def packet(tag: int, *chunks: bytes) -> bytes:
    return wire.build_packet(5000, 5000, tag, list(chunks))


def raw_packet(tag: int, body: bytes) -> bytes:
    """A right checksum over whatever the chunks are."""
    return wire.build_packet(5000, 5000, tag, [body])


def data(
    tsn: int, stream: int = 0, ppid: int = 51, payload: bytes = b"{}", flags: int = 3, ssn: int = 0
) -> bytes:
    return wire.build_data(flags, tsn, stream, ssn, ppid, payload)


def known(channel: LightChannel) -> tuple[int, int]:
    """(the gateway's tag, our next TSN) of an association that stands."""
    life = channel.association._life
    return life.peer_tag, life.outbound._next


BEFORE_HANDSHAKE: dict[str, Callable[[random.Random], list[bytes]]] = {
    "data": lambda r: [packet(r.getrandbits(32), data(r.getrandbits(32))) for _ in range(50)],
    "data with tag 0": lambda r: [packet(0, data(1)) for _ in range(50)],
    "a SACK": lambda r: [packet(r.getrandbits(32), wire.build_sack(5, 1 << 20, [], []))] * 20,
    "a cookie of nobody": lambda r: [
        packet(r.getrandbits(32), wire.build_chunk(ChunkType.COOKIE_ECHO, 0, r.randbytes(100)))
        for _ in range(50)
    ],
    "an INIT ACK of nobody": lambda r: (
        [
            packet(
                r.getrandbits(32), build_init(ChunkType.INIT_ACK, Init(7, 1 << 20, 9, 9, 1, cookie=b"c" * 40))
            )
        ]
        * 20
    ),
    "an ABORT of nobody": lambda r: (
        [packet(r.getrandbits(32), wire.build_chunk(ChunkType.ABORT, 0, b""))] * 20
    ),
    "a SHUTDOWN of nobody": lambda r: [packet(r.getrandbits(32), wire.build_shutdown(5))] * 20,
    "an INIT flood": lambda r: [
        packet(
            0,
            build_init(ChunkType.INIT, Init(r.getrandbits(32) | 1, 1 << 20, 65535, 65535, r.getrandbits(32))),
        )
        for _ in range(2000)
    ],
    "noise": lambda r: [r.randbytes(r.randrange(1, 1100)) for _ in range(200)],
    "wrong checksums": lambda r: [packet(0, data(1))[:8] + b"\1\2\3\4" + data(1)] * 50,
    "other ports": lambda r: [wire.build_packet(1, 2, 0, [data(1)])] * 50,
}


@pytest.mark.parametrize("name", list(BEFORE_HANDSHAKE))
def test_before_the_association_stands(
    gate: Gate, fleet: Fleet, voice: list[bytes], witness: Witness, name: str
) -> None:
    call, _ = begin(gate, fleet, voice, raw=True)
    packets = BEFORE_HANDSHAKE[name](random.Random(1))
    for place in range(0, len(packets), 25):
        fleet.send_sctp(call, *packets[place : place + 25])
        time.sleep(0.002)
    assert_media_alive(gate, fleet, call)
    # And the real handshake still succeeds.
    fleet._do(lambda: _make_real(call))
    fleet.send_sctp(call)
    wait_until(lambda: call.channel is not None and call.channel.opened, 10, "the channel")
    assert_alive(fleet, call)
    witness.check()
    assert fleet.hang_up(call, key=KEY) == 200


def _make_real(call: LightCall) -> None:
    """The client begins the association that it did not begin."""
    call.wanted = Wanted()
    call.channel = LightChannel(
        call.wanted, call.random, dtls_client=call.answer.setup == "passive", now=time.monotonic()
    )  # type: ignore[union-attr]
    call._drain_channel()


ESTABLISHED: dict[str, Callable[[int, int, random.Random], list[bytes]]] = {
    "wrong verification tag": lambda tag, tsn, r: [packet(tag ^ 1, data(tsn))] * 100,
    "a zero-length chunk": lambda tag, tsn, r: (
        [raw_packet(tag, struct.pack(">BBH", 0, 3, 0) + bytes(16))] * 20
    ),
    "a chunk of 3 bytes": lambda tag, tsn, r: [raw_packet(tag, struct.pack(">BBH", 6, 0, 3) + bytes(4))] * 20,
    "a chunk that overruns": lambda tag, tsn, r: (
        [raw_packet(tag, struct.pack(">BBH", 0, 3, 900) + bytes(50))] * 20
    ),
    "DATA too short for its header": lambda tag, tsn, r: [packet(tag, wire.build_chunk(0, 3, b"abc"))] * 20,
    "an INIT flood": lambda tag, tsn, r: [
        packet(
            0,
            build_init(ChunkType.INIT, Init(r.getrandbits(32) | 1, 1 << 20, 65535, 65535, r.getrandbits(32))),
        )
        for _ in range(2000)
    ],
    "INITs with parameters without end": lambda tag, tsn, r: (
        [
            packet(
                0, build_init(ChunkType.INIT, Init(7, 1 << 20, 9, 9, 1)) + struct.pack(">HH", 0xC123, 4) * 200
            )
        ]
        * 50
    ),
    "SACKs for what was never sent": lambda tag, tsn, r: [
        packet(tag, wire.build_sack(r.getrandbits(32), 1 << 20, [], [])) for _ in range(50)
    ],
    "SACKs whose gaps overlap": lambda tag, tsn, r: (
        [packet(tag, wire.build_sack(1, 1 << 20, [5, 3, 2, 900], []))] * 50
    ),
    "a forward-TSN far ahead": lambda tag, tsn, r: (
        [
            packet(tag, wire.build_forward_tsn(tsn + 0x7000_0000, {0: 7})),
            packet(tag, wire.build_forward_tsn(tsn + 0x10_0000, {n: n for n in range(200)})),
        ]
        * 20
    ),
    "DATA far ahead": lambda tag, tsn, r: [
        packet(tag, data(tsn + ahead, payload=bytes(1000))) for ahead in range(1_000_000, 1_000_100)
    ],
    "heartbeats": lambda tag, tsn, r: (
        [packet(tag, wire.build_chunk(ChunkType.HEARTBEAT, 0, bytes(1000)))] * 200
    ),
    "unknown chunks that want to be reported": lambda tag, tsn, r: (
        [packet(tag, *[wire.build_chunk(0x7F, 0, b"x" * 20)] * 20)] * 50
    ),
    "a stale cookie": lambda tag, tsn, r: (
        [packet(tag, wire.build_chunk(ChunkType.COOKIE_ECHO, 0, bytes(120)))] * 50
    ),
    "resets of streams without end": lambda tag, tsn, r: [
        packet(
            tag,
            wire.build_chunk(
                ChunkType.RE_CONFIG,
                0,
                struct.pack(">HHIII", 13, 16 + 2 * 100, n, n, tsn - 1)
                + struct.pack(">100H", *range(100, 200)),
            ),
        )
        for n in range(200)
    ],
    "noise": lambda tag, tsn, r: [
        packet(tag, wire.build_chunk(r.randrange(16, 255), 0, r.randbytes(30))) for _ in range(200)
    ],
}


@pytest.mark.parametrize("name", list(ESTABLISHED))
def test_in_an_association(gate: Gate, fleet: Fleet, voice: list[bytes], witness: Witness, name: str) -> None:
    call, channel = begin(gate, fleet, voice)
    tag, tsn = known(channel)
    for attack in _pieces(ESTABLISHED[name](tag, tsn, random.Random(2)), 25):
        fleet.send_sctp(call, *attack)
        time.sleep(0.002)
    assert_media_alive(gate, fleet, call)
    if not channel.ended:
        assert_alive(fleet, call)
    witness.check()
    assert fleet.hang_up(call, key=KEY) == 200
    call.wait_for("closed", 5)


def test_an_abort_ends_the_channel_and_not_the_call(
    gate: Gate, fleet: Fleet, voice: list[bytes], witness: Witness
) -> None:
    call, channel = begin(gate, fleet, voice)
    tag, _ = known(channel)
    fleet.send_sctp(call, packet(tag, wire.build_chunk(ChunkType.ABORT, 0, b"")))
    assert_media_alive(gate, fleet, call)
    witness.check()
    assert fleet.hang_up(call, key=KEY) == 200
    call.wait_for("closed", 5)


@pytest.mark.parametrize("how", ["one message", "many messages", "on many streams", "with gaps"])
def test_half_messages_without_end(
    gate: Gate, fleet: Fleet, voice: list[bytes], witness: Witness, how: str
) -> None:
    """Fragments whose ends never come: what is kept of them is bounded, and their sender is told."""
    call, channel = begin(gate, fleet, voice, raw=False)
    tag, tsn = known(channel)
    piece = bytes(1000)
    stream = channel.id or 0  # its SSN 0 was the OPEN
    packets = []
    for n in range(4000):
        match how:
            case "one message":
                flags = 2 if n == 0 else 0
                packets.append(packet(tag, data(tsn + n, stream, payload=piece, flags=flags, ssn=1)))
            case "many messages":  # the same place in the order, begun again and again
                packets.append(packet(tag, data(tsn + n, payload=piece, flags=2 | 4)))
            case "on many streams":
                packets.append(packet(tag, data(tsn + n, n % 5000, payload=piece, flags=2)))
            case "with gaps":
                packets.append(packet(tag, data(tsn + 2 * n + 1, payload=piece, flags=3, ssn=n + 5)))
    for attack in _pieces(packets, 40):
        fleet.send_sctp(call, *attack)
        time.sleep(0.01)  # each is to arrive: what the socket's buffer loses proves nothing
    assert_media_alive(gate, fleet, call)
    witness.check()
    if how == "one message" and not channel.ended:
        # The end of it: 4 MB is more than anybody takes, and the client hears so.
        fleet.send_sctp(call, packet(tag, data(tsn + 4000, stream, payload=piece, flags=1, ssn=1)))
        wait_until(
            lambda: channel.of("error") or channel.ended, 5, "an error event, or the end of the channel"
        )
    assert fleet.hang_up(call, key=KEY) == 200
    call.wait_for("closed", 5)
    assert_alive(fleet, witness.call)


# ------------------------------------------------------------------------------------------ DCEP, messages


def test_wrong_parity_and_bad_opens(gate: Gate, fleet: Fleet, voice: list[bytes], witness: Witness) -> None:
    call, channel = begin(gate, fleet, voice)
    own = 0 if call.answer.setup == "passive" else 1  # type: ignore[union-attr]

    def send(stream: int, ppid: int, payload: bytes) -> None:
        channel.association.send(stream, ppid, payload, time.monotonic())
        call._drain_channel()

    def attack() -> None:
        for stream in range(10 + (1 - own), 30, 2):
            send(stream, 50, build_open(Open("of the wrong parity")))
        for stream in range(40 + own, 400, 2):
            send(stream, 50, build_open(Open(f"one of many {stream}")))
        send(402 + own, 50, b"\x03\x00")
        send(404 + own, 50, b"\x99" * 20)
        send(406 + own, 50, build_open(Open("x" * 60_000)))
        send(408 + own, 50, b"\x03\x7f" + build_open(Open("kind"))[2:])
        send(410 + own, 50, b"\x02")
        send(500, 51, b'{"type":"response.create"}')  # no such channel

    fleet._do(attack)
    fleet.send_sctp(call)
    time.sleep(0.3)
    assert_alive(fleet, call)
    witness.check()
    assert fleet.hang_up(call, key=KEY) == 200


def test_an_open_on_a_channel_that_is_open(gate: Gate, fleet: Fleet, voice: list[bytes]) -> None:
    """RFC 8832 section 6: that channel is closed; a new one may be opened."""
    call, channel = begin(gate, fleet, voice)

    def again() -> None:
        channel.association.send(channel.id or 0, 50, build_open(Open("again")), time.monotonic())
        call._drain_channel()

    fleet._do(again)
    fleet.send_sctp(call)
    wait_until(lambda: channel.closed, 5, "the channel's end")

    def anew() -> None:
        channel.id = channel.channels.open(Open("oai-events"), time.monotonic())
        channel.opened = channel.closed = False
        call._drain_channel()

    fleet._do(anew)
    fleet.send_sctp(call)
    wait_until(lambda: channel.opened, 5, "a new channel")
    assert_alive(fleet, call)
    assert fleet.hang_up(call, key=KEY) == 200


DEEP = '{"type":"session.update","session":' + '{"a":' * 30_000 + "1" + "}" * 30_000 + "}"
MESSAGES: dict[str, tuple[int, bytes, str]] = {
    "wrong PPID": (99, b'{"type":"response.create"}', "unknown_ppid"),
    "deprecated partial PPID": (54, b'{"type":"response.create"}', "unknown_ppid"),
    "invalid UTF-8": (51, b'{"type":"\xff\xfe"}', "invalid_utf8"),
    "invalid UTF-8, binary": (53, b'{"type":"\xff\xfe"}', ""),
    "not JSON": (51, b"hello", ""),
    "cut JSON": (51, b'{"type":"response.create"', ""),
    "a list": (51, b"[1,2,3]", ""),
    "no type": (51, b'{"event_id":"mine"}', "invalid_type"),
    "a type that is a number": (51, b'{"type":5,"event_id":"mine"}', ""),
    "deep JSON": (51, DEEP.encode(), "client_event_json"),
    "quite deep JSON": (
        51,
        b'{"type":"session.update","session":' + b'{"a":' * 100 + b"1" + b"}" * 101,
        "client_event_depth",
    ),
    "deep brackets": (51, b"[" * 60_000, ""),
    "a session that is a list": (51, b'{"type":"session.update","session":[]}', "missing_required_parameter"),
    "NaN": (51, b'{"type":"response.create","x":NaN}', ""),
    "a lone surrogate": (51, b'{"type":"\\ud800"}', ""),
    "empty": (56, b"\0", ""),
    "empty binary": (57, b"\0", ""),
}


@pytest.mark.parametrize("name", list(MESSAGES))
def test_a_message_that_cannot_be_read_is_answered(
    gate: Gate, fleet: Fleet, voice: list[bytes], agent: ScriptAgent, name: str
) -> None:
    call, channel = begin(gate, fleet, voice)
    ppid, payload, code = MESSAGES[name]
    told = len(agent.events)

    def send() -> None:
        assert channel.id is not None
        channel.association.send(channel.id, ppid, payload, time.monotonic())
        call._drain_channel()

    fleet._do(send)
    fleet.send_sctp(call)
    wait_until(lambda: channel.of("error"), 5, "an error event", every=0.01)
    (error,) = channel.of("error")
    assert error["error"]["type"] == "invalid_request_error"
    assert not code or error["error"]["code"] == code, error
    if b'"event_id":"mine"' in payload:
        assert error["error"]["event_id"] == "mine"
    assert_alive(fleet, call)
    reached = [e["type"] for e in agent.events[told:]]
    assert set(reached) <= {"session.update", "conversation.item.create"}, reached
    assert fleet.hang_up(call, key=KEY) == 200


def test_a_message_that_is_too_long_is_answered(
    gate: Gate, fleet: Fleet, voice: list[bytes], witness: Witness
) -> None:
    """Longer than `a=max-message-size` of the answer, which a client should not send."""
    call, channel = begin(gate, fleet, voice)
    for size in (262_145, 400_000):
        text = b'{"type":"session.update","session":{"x":"' + b"x" * size + b'"}}'
        seen = len(channel.of("error"))

        def send(text: bytes = text) -> None:
            assert channel.id is not None
            assert channel.association.send(channel.id, 51, text, time.monotonic())
            call._drain_channel()

        fleet._do(send)
        fleet.send_sctp(call)
        wait_until(lambda seen=seen: len(channel.of("error")) > seen, 10, "an error event", every=0.01)  # type: ignore[misc]
        assert channel.of("error")[-1]["error"]["code"] == "too_large"
    longest = '{"type":"session.update","session":{"type":"realtime","instructions":"%s"}}'
    fleet.send_event(call, longest % ("y" * (262_144 - len(longest) + 2)))
    wait_until(lambda: channel.of("session.updated"), 10, "an answer to the longest that is allowed")
    assert_alive(fleet, call)
    witness.check()
    assert fleet.hang_up(call, key=KEY) == 200


# ------------------------------------------------------------------------------------------------- floods


def test_a_hundred_thousand_messages_a_second(
    gate: Gate, fleet: Fleet, voice: list[bytes], witness: Witness
) -> None:
    """Small events for 3 s as fast as the path takes them, some 50 to a packet: what is too much is refused
    with an error, ten a second at most; the neighbour's sound has no hole."""
    call, channel = begin(gate, fleet, voice)
    event = '{"type":"input_audio_buffer.clear"}'
    begun = time.monotonic()
    offered = 0
    lost_before = witness.call.lost()
    while time.monotonic() - begun < 3.0:
        offered += 1000
        fleet.send_event(call, *[event] * 1000)
        while channel.waiting > 20_000 and time.monotonic() - begun < 3.0:
            time.sleep(0.01)
    fleet._do(channel._waiting.clear)
    wait_until(lambda: channel.of("error"), 5, "an error event")
    assert {e["error"]["code"] for e in channel.of("error")} == {"rate_limit_exceeded"}
    taken = time.monotonic() - begun
    assert len(channel.of("error")) <= 20 + 10 * taken + 5
    wait_until(lambda: channel.association.waiting(channel.id or 0) == 0, 20, "what was queued to leave")
    time.sleep(0.5)
    assert_alive(fleet, call)
    witness.check()
    assert witness.call.lost() == lost_before
    location = fleet.locations[id(witness.call)]
    audio = json.loads(request("GET", location, key=KEY).body)["statistics"]["audio"]
    assert audio, audio
    status = json.loads(request("GET", fleet.locations[id(call)], key=KEY).body)
    received = status["statistics"]["channel"]["received"]
    assert received > 5_000, f"only {received} of {offered} arrived: no flood at all"
    assert fleet.hang_up(call, key=KEY) == 200
    assert fleet.hang_up(witness.call, key=KEY) == 200
    assert_nothing_left(gate)


def test_a_hundred_thousand_messages_a_second_past_any_window(
    gate: Gate, fleet: Fleet, voice: list[bytes], witness: Witness
) -> None:
    """As DATA, twenty a packet, at a rate that no congestion control would allow: what there is no room or
    allowance for is dropped, and the neighbour hears its agent without a hole."""
    call, channel = begin(gate, fleet, voice)
    tag, tsn = known(channel)
    stream = channel.id or 0
    payload = b'{"type":"input_audio_buffer.clear"}'
    chunks = [data(tsn + n, stream, payload=payload, flags=3 | 4) for n in range(RATE * FLOOD_SECONDS)]
    packets = [packet(tag, *chunks[at : at + 20]) for at in range(0, len(chunks), 20)]
    del chunks
    fleet.send_event(witness.call, {"type": "response.create"})
    witness.call.wait_for("heard", 5)
    cpu = cpu_seconds(gate.pids())
    begun = time.monotonic()
    sent = 0
    while sent < len(packets):
        due = min(len(packets), int((time.monotonic() - begun) * RATE / 20) + 1)
        if due > sent:
            fleet.send_sctp(call, *packets[sent : min(due, sent + 50)])
            sent = min(due, sent + 50)
        else:
            time.sleep(0.001)
    ended = time.monotonic()
    heard = [at for at, *_ in witness.call.heard if begun < at < ended]
    gaps = [later - earlier for earlier, later in itertools.pairwise(heard)]
    status = json.loads(request("GET", fleet.locations[id(call)], key=KEY).body)
    figures = {
        "offered a second": round(len(packets) * 20 / (ended - begun)),
        "received": status["statistics"]["channel"]["received"],
        "refused": status["statistics"]["events"].get("refused_rate_limit_exceeded", 0),
        "gateway's CPU": round((cpu_seconds(gate.pids()) - cpu) / (ended - begun), 2),
        "widest gap ms": round(max(gaps) * 1000),
    }
    assert max(gaps) < 0.4, figures  # what a browser's jitter buffer stretches over
    assert witness.call.lost() == 0, figures
    assert figures["offered a second"] > 30_000, figures
    time.sleep(0.5)
    assert_media_alive(gate, fleet, call)
    witness.check()
    assert fleet.hang_up(call, key=KEY) == 200
    assert fleet.hang_up(witness.call, key=KEY) == 200


# --------------------------------------------------------------------------------------------------- keys


def test_keys_that_are_none(gate: Gate, fleet: Fleet) -> None:
    """Expired, forged, of another installation, cut, and none at all: 401, with the contract's body."""
    made = post(
        f"{gate.url}/v1/realtime/client_secrets",
        '{"expires_after":{"anchor":"created_at","seconds":10}}',
        content_type="application/json",
        key=KEY,
    )
    assert made.status == 200, made
    secret = json.loads(made.body)["value"]
    flipped = secret[:-5] + ("A" if secret[-5] != "A" else "B") + secret[-4:]
    call, used = fleet.prepare(channel=Wanted())
    offer = call.offer()
    used.close()
    bad = {
        "forged": flipped,
        "cut": secret[:-1],
        "foreign": "ek_" + "Q" * (len(secret) - 3),
        "unknown": "sk-unknown",
        "none": "",
        "long": "ek_" + "A" * 60_000,
    }
    for name, key in bad.items():
        answer = post(gate.calls_url, offer, key=key)
        if name == "long":
            assert answer.status in (400, 401, 431), answer
            continue
        _assert_401(answer.status, answer.body, name)
    assert post(gate.calls_url, offer, key=secret).status == 201
    expires = json.loads(made.body)["expires_at"]
    time.sleep(max(0.0, expires - time.time()) + 1.2)
    answer = post(gate.calls_url, offer, key=secret)
    _assert_401(answer.status, answer.body, "expired")


def _assert_401(status: int, body: str, name: str) -> None:
    assert status == 401, (name, status, body)
    error = json.loads(body)["error"]
    assert set(error) == {"type", "code", "message", "param"}, name
    assert error["code"] and error["message"], name


def _pieces(packets: list[bytes], size: int) -> Iterator[list[bytes]]:
    for place in range(0, len(packets), size):
        yield packets[place : place + size]
