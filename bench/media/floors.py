"""What no program in a call's place can do without, each measured by itself on the transceiver's CPU.

For a second of a call that talks both ways all the time, 50 times each:

* Opus: decode a packet, encode a frame, with the gateway's settings, through ctypes.
* SRTP: unprotect a packet and protect one (AES-CM and HMAC-SHA1, what is negotiated), through libsrtp.
* System calls: one frame's share of a recvmmsg and of a sendmmsg, in the datagrams that a turn of 2 ms has at
  100 calls (10 frames, 7 of them in a link datagram); one send and one recv on the agent's connection.
* WebSocket: base64 and JSON of an append and its mask; JSON and base64 of a delta.

Time is CPU time of this thread; the best of several rounds, for a floor is not to hold anybody's noise.
"""

from __future__ import annotations

import binascii
import os
import secrets
import socket
import time
from collections.abc import Callable

import msgspec

from voicegate.load.talk import make_talk, synthetic_speech
from voicegate.media.codec import FRAME_BYTES
from voicegate.media.opus import OpusDecoder, OpusEncoder
from voicegate.net.udp import BATCH, open_udp
from voicegate.proto.rtp import build_rtp
from voicegate.proto.srtp import SrtpProfile, SrtpSession

FRAMES = 50
"""A second, each way."""
ROUNDS, TIMES = 9, 200
TURN_FRAMES = 10
"""Frames in one turn: 100 calls, 5,000 packets a second, 2 ms."""
BUNDLE = 7
"""Of 160-byte packets in a link datagram of 1,400 bytes."""
FRAME_ON_LINK = 180


class _Delta(msgspec.Struct):
    type: str
    response_id: str
    item_id: str
    content_index: int
    delta: bytes


def measure(cpu: int) -> dict[str, float]:
    """Milliseconds a call-second, by name; "sum" is all of them."""
    before = os.sched_getaffinity(0)
    os.sched_setaffinity(0, {cpu})
    try:
        parts = {**_opus(), **_srtp(), **_udp(), **_stream(), **_websocket()}
    finally:
        os.sched_setaffinity(0, before)
    found = {name: seconds * FRAMES * 1000 for name, seconds in parts.items()}
    return {**found, "sum": sum(found.values())}


def _best(action: Callable[[int], object], times: int = TIMES) -> float:
    """Seconds of CPU of one call of it, the best round."""
    rounds = []
    for _ in range(ROUNDS):
        begun = time.thread_time_ns()
        for number in range(times):
            action(number)
        rounds.append((time.thread_time_ns() - begun) / times)
    return min(rounds) / 1e9


def _opus() -> dict[str, float]:
    pcm = synthetic_speech(1.6)
    talk = make_talk(pcm, pause=0.0)
    frames = [pcm[at : at + FRAME_BYTES] for at in range(0, len(pcm) - FRAME_BYTES + 1, FRAME_BYTES)]
    decoder, encoder = OpusDecoder(), OpusEncoder()
    return {
        "Opus decode": _best(lambda n: decoder.decode(talk.frames[n % len(talk.frames)])),
        "Opus encode": _best(lambda n: encoder.encode(frames[n % len(frames)])),
    }


def _srtp() -> dict[str, float]:
    profile = SrtpProfile.AES128_CM_SHA1_80
    key = secrets.token_bytes(profile.material_length)
    ours, theirs = SrtpSession(profile, key, True), SrtpSession(profile, key, False)
    payload = secrets.token_bytes(80)
    numbers = iter(range(1 << 15))
    plain = [build_rtp(111, False, next(numbers), n * 960, 7, payload) for n in range(ROUNDS * TIMES)]
    protected: list[bytes] = []
    packets = iter(plain)
    protect = _best(lambda _: protected.append(ours.protect_rtp(next(packets))))
    arrived = iter(protected)
    return {
        "SRTP protect": protect,
        "SRTP unprotect": _best(lambda _: theirs.unprotect_rtp_untrusted(next(arrived))),
    }


def _udp() -> dict[str, float]:
    """Shares of a frame, in datagrams that hold a turn's frames."""
    sender, receiver = open_udp("127.0.0.1", 0), open_udp("127.0.0.1", 0)
    sizes = [FRAME_ON_LINK * BUNDLE, FRAME_ON_LINK * (TURN_FRAMES - BUNDLE)]
    out = [(receiver.address(), bytes(size)) for size in sizes]
    send: list[float] = []
    receive: list[float] = []
    for _ in range(ROUNDS):
        sent = received = 0
        for _ in range(TIMES):
            begun = time.thread_time_ns()
            sender.send_batch(out)
            between = time.thread_time_ns()
            count = receiver.receive()
            received += time.thread_time_ns() - between
            sent += between - begun
            assert count == len(out) < BATCH
        send.append(sent / TIMES / TURN_FRAMES)
        receive.append(received / TIMES / TURN_FRAMES)
    sender.close()
    receiver.close()
    return {"sendmmsg, a frame's share": min(send) / 1e9, "recvmmsg, a frame's share": min(receive) / 1e9}


def _stream() -> dict[str, float]:
    """One message each way over a TCP connection on loopback; what the other end does is not counted."""
    with socket.create_server(("127.0.0.1", 0)) as listener:
        ours = socket.create_connection(listener.getsockname())
        theirs, _ = listener.accept()
    message, answer = bytes(1330), bytes(1440)
    for end in (ours, theirs):
        end.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
    send: list[float] = []
    receive: list[float] = []
    with ours, theirs:
        for _ in range(ROUNDS):
            sent = received = 0
            for _ in range(TIMES):
                begun = time.thread_time_ns()
                ours.send(message)
                sent += time.thread_time_ns() - begun
                theirs.recv(65_536)
                theirs.send(answer)
                begun = time.thread_time_ns()
                ours.recv(65_536)
                received += time.thread_time_ns() - begun
            send.append(sent / TIMES)
            receive.append(received / TIMES)
    return {"send to the agent": min(send) / 1e9, "recv from the agent": min(receive) / 1e9}


def _websocket() -> dict[str, float]:
    pcm = synthetic_speech(0.02)
    key = secrets.token_bytes(4)

    def append(_: int) -> bytes:
        audio = binascii.b2a_base64(pcm, newline=False)
        text = b'{"type":"input_audio_buffer.append","audio":"' + audio + b'"}'
        size = len(text)
        mask = int.from_bytes((key * (size // 4 + 1))[:size], "little")
        masked = (int.from_bytes(text, "little") ^ mask).to_bytes(size, "little")
        return b"\x81\xfe" + size.to_bytes(2) + key + masked

    delta = (
        b'{"type":"response.output_audio.delta","event_id":"e","response_id":"r","item_id":"i",'
        b'"output_index":0,"content_index":0,"delta":"' + binascii.b2a_base64(pcm, newline=False) + b'"}'
    )
    decoder = msgspec.json.Decoder(_Delta)
    return {
        "append: base64, JSON, mask": _best(append),
        "delta: JSON, base64": _best(lambda _: decoder.decode(delta)),
    }
