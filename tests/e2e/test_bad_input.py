"""What strangers and broken clients send, over real sockets: each is refused, counted, and harms no call."""

from __future__ import annotations

import json
import random
import socket
import struct
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path

import pytest

from tests.e2e.conftest import assert_nothing_left
from tests.support import speech
from tests.support.light_client import Fleet, LightCall, listen, new_certificate, opus_frames, post, request
from tests.support.servers import Gate, one_process, wait_until
from voicegate.proto import stun
from voicegate.proto.keys import ClusterKeys

pytestmark = pytest.mark.e2e

SECRET = "0:0123456789abcdef0123456789abcdef0123456789abcdef"
CLUSTER, TRANSCEIVER = 1, 77
NONCE = b"\1\2\3\4\5"
QUIET = 0.25
"""How long nothing must come back: a hundred times what an answer on loopback takes."""


@pytest.fixture(scope="module")
def gate(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Gate]:
    """A gate whose keys and transceiver id the tests know, so that they can mint tickets of their own."""
    directory = tmp_path_factory.mktemp("bad")
    with one_process(directory, keys_secrets=SECRET, transceiver_id=str(TRANSCEIVER)) as running:
        yield running


@pytest.fixture(scope="module")
def fleet() -> Iterator[Fleet]:
    with Fleet(seed=7) as running:
        yield running


@pytest.fixture(autouse=True)
def no_call_is_left_to_the_next_test(fleet: Fleet) -> Iterator[None]:
    yield
    for call in fleet.calls:
        if not call.closed:
            fleet.close(call)


@pytest.fixture(scope="module")
def offer(fleet: Fleet) -> str:
    call, used = fleet.prepare()
    used.close()
    return call.offer()


# --------------------------------------------------------------------------------------------- offers


@dataclass(frozen=True, slots=True)
class BadRequest:
    change: Callable[[str], str]
    status: int
    mentions: str
    content_type: str = "application/sdp"


def _without(start: str) -> Callable[[str], str]:
    return lambda sdp: "".join(line for line in sdp.splitlines(True) if not line.startswith(start))


BAD_REQUESTS = {
    "empty": BadRequest(lambda _: "", 400, "sdp"),
    "not SDP": BadRequest(lambda _: "hello, is anybody there?", 400, "sdp"),
    "binary": BadRequest(lambda _: "\0\x01\x02" * 50, 400, "sdp"),
    "truncated": BadRequest(lambda sdp: sdp[: len(sdp) // 4], 422, "audio"),
    "oversized": BadRequest(lambda sdp: sdp + "a=x:" + "y" * 300_000 + "\r\n", 400, "65536"),
    "wrong content type": BadRequest(lambda sdp: sdp, 415, "application/sdp", "text/plain"),
    "no content type": BadRequest(lambda sdp: sdp, 415, "application/sdp", ""),
    "no audio": BadRequest(lambda sdp: sdp.replace("m=audio", "m=video"), 422, "audio"),
    "no fingerprint": BadRequest(_without("a=fingerprint"), 422, "fingerprint"),
    "no rtcp-mux": BadRequest(_without("a=rtcp-mux"), 422, "rtcp-mux"),
    "no ufrag": BadRequest(_without("a=ice-ufrag"), 422, "ice-ufrag"),
    "no usable codec": BadRequest(
        lambda sdp: (
            sdp.replace("111 0 8", "96")
            .replace("rtpmap:111 opus/48000/2", "rtpmap:96 speex/8000")
            .replace("a=rtpmap:0 PCMU/8000\r\n", "")
            .replace("a=rtpmap:8 PCMA/8000\r\n", "")
        ),
        422,
        "opus",
    ),
}


@pytest.mark.parametrize("name", list(BAD_REQUESTS))
def test_an_offer_that_cannot_be_answered(gate: Gate, offer: str, name: str) -> None:
    bad = BAD_REQUESTS[name]
    answer = post(gate.calls_url, bad.change(offer), content_type=bad.content_type)
    assert answer.status == bad.status, answer
    error = json.loads(answer.body)["error"]
    assert set(error) == {"type", "code", "message", "param"}
    assert error["type"] and error["code"]
    assert bad.mentions in f"{error['message']} {error['param']}".lower(), error


def test_an_unknown_call(gate: Gate) -> None:
    for call_id in ("rtc_nothing", "rtc_" + "A" * 64, "..%2f..%2fetc", "%00"):
        for method, tail in (("GET", ""), ("DELETE", ""), ("POST", "/hangup")):
            answer = request(method, f"{gate.calls_url}/{call_id}{tail}")
            assert answer.status == 404, (method, call_id, answer)


def test_more_calls_than_there_is_room_for(tmp_path: Path, fleet: Fleet, offer: str) -> None:
    with one_process(tmp_path, transceiver_max_calls="1") as small:
        first = fleet.call(small.calls_url)
        first.wait_for("connected", 10)
        refused = post(small.calls_url, offer)
        assert refused.status == 503
        assert int(refused.headers["retry-after"]) > 0
        assert json.loads(refused.body)["error"]["code"]
        assert fleet.hang_up(first) == 200
        wait_until(lambda: post(small.calls_url, offer).status == 201, 10, "room for a call again")


# ---------------------------------------------------------------------------- STUN from strangers


def _check(ufrag: str, password: bytes, client: str = "abcd") -> bytes:
    username = f"{ufrag}:{client}".encode()
    return stun.binding_request(b"transaction!", username, password, priority=1, tie_breaker=2)


def _own(
    expires: float = 600, cluster: int = CLUSTER, transceiver: int = TRANSCEIVER, secret: str = SECRET
) -> bytes:
    keys = ClusterKeys.parse([secret]).tickets
    ufrag = keys.mint(cluster, transceiver, time.time() + expires, NONCE)
    return _check(ufrag, keys.password(ufrag.encode()))


def _other_spelling() -> bytes:
    """The same block with a spare bit set in the last base64 character."""
    keys = ClusterKeys.parse([SECRET]).tickets
    ufrag = keys.mint(CLUSTER, TRANSCEIVER, time.time() + 600, NONCE)
    alphabet = "ABCDEFGHIJKLMNOPQRSTUVWXYZabcdefghijklmnopqrstuvwxyz0123456789+/"
    other = ufrag[:-1] + alphabet[alphabet.index(ufrag[-1]) ^ 1]
    return _check(other, keys.password(other.encode()))


def _forged() -> bytes:
    keys = ClusterKeys.parse([SECRET]).tickets
    ufrag = keys.mint(CLUSTER, TRANSCEIVER, time.time() + 600, NONCE)
    forged = ufrag[:5] + ("A" if ufrag[5] != "A" else "B") + ufrag[6:]
    return _check(forged, keys.password(forged.encode()))


def _overrun() -> bytes:
    data = bytearray(_own())
    struct.pack_into(">H", data, 22, 0x7000)  # USERNAME says it is longer than the message
    return bytes(data)


def _no_integrity() -> bytes:
    data = _own()
    _, offset = stun.peek_username_untrusted(data)
    return data[:2] + struct.pack(">H", offset - 20) + data[4:offset]


def _broken_integrity() -> bytes:
    """Its FINGERPRINT is left out, so that integrity is what is wrong with it."""
    data = _own()
    _, offset = stun.peek_username_untrusted(data)
    cut = data[:2] + struct.pack(">H", offset + 24 - 20) + data[4 : offset + 24]
    return cut[:-1] + bytes([cut[-1] ^ 1])


STRANGERS: dict[str, tuple[Callable[[], bytes], str]] = {
    "a forged ticket": (_forged, "ticket_forged"),
    "a ticket of other keys": (lambda: _own(secret="0:" + "f" * 48), "ticket_forged"),
    "a ticket of an unknown key": (lambda: _own(secret="5:" + "f" * 48), "ticket_key"),
    "a ticket of another cluster": (lambda: _own(cluster=9), "ticket_cluster"),
    "a ticket of a transceiver that is not there": (lambda: _own(transceiver=78), "transceiver_unknown"),
    "an expired ticket": (lambda: _own(expires=-600), "ticket_expired"),
    "another spelling of a ticket": (_other_spelling, "ticket_form"),
    "no ticket": (lambda: _check("abcd", b"x" * 24), "ticket_form"),
    "broken integrity": (_broken_integrity, "stun_integrity"),
    "no integrity": (_no_integrity, "stun_no_integrity"),
    "truncated": (lambda: _own()[:-9], "stun_length"),
    "an attribute that overruns": (_overrun, "stun_attribute_overrun"),
    "DTLS without a flow": (lambda: b"\x16\xfe\xfd" + bytes(60), "no_flow"),
    "SRTP without a flow": (lambda: b"\x80\x6f" + bytes(60), "no_flow"),
}


@pytest.mark.parametrize("name", list(STRANGERS))
def test_a_stranger_gets_no_answer(gate: Gate, name: str) -> None:
    make, reason = STRANGERS[name]
    before = gate.metrics()
    with _stranger(gate) as used:
        for _ in range(3):
            used.send(make())
        assert _silent(used), f"{name} was answered"
    wait_until(
        lambda: _dropped(gate, reason) - before.total("voicegate_relay_drops_total", reason=reason) >= 3,
        3,
        f"three drops of {reason}; the relay has {gate.metrics().like('voicegate_relay_drops')}",
    )


def test_what_follows_the_integrity_is_not_read(gate: Gate, fleet: Fleet) -> None:
    """USE-CANDIDATE appended by somebody on the path changes nothing, and the check is still answered."""
    call = fleet.call(gate.calls_url)
    call.wait_for("connected", 10)
    assert call.answer is not None
    plain = _check(call.answer.ufrag, call.answer.password.encode(), call.ufrag)
    _, offset = stun.peek_username_untrusted(plain)
    cut = bytearray(plain[: offset + 24] + struct.pack(">HH", stun.AttributeType.USE_CANDIDATE, 0))
    struct.pack_into(">H", cut, 2, len(cut) - 20)
    answered = call.counts.get("stun_unknown_transaction", 0)
    fleet.send_raw(call, bytes(cut))  # it comes back for a transaction that the client does not know
    wait_until(lambda: call.counts.get("stun_unknown_transaction", 0) > answered, 3, "the answer")
    assert not call.closed
    assert fleet.hang_up(call) == 200


# ------------------------------------------------------------- forged DTLS, broken SRTP in a call


def _record(kind: int, payload: bytes, epoch: int = 0, sequence: int = 0) -> bytes:
    head = struct.pack(">B2sH", kind, b"\xfe\xfd", epoch) + sequence.to_bytes(6, "big")
    return head + struct.pack(">H", len(payload)) + payload


def _handshake(kind: int, body: bytes, *, claim: int | None = None, sequence: int = 0) -> bytes:
    length = (len(body) if claim is None else claim).to_bytes(3, "big")
    part = bytes([kind]) + length + sequence.to_bytes(2, "big") + bytes(3) + len(body).to_bytes(3, "big")
    return _record(22, part + body)


FORGED = {
    "fatal alert": _record(21, b"\x02\x28"),
    "close_notify": _record(21, b"\x01\x00"),
    "early ChangeCipherSpec": _record(20, b"\x01"),
    "ClientHello without ciphers": _handshake(1, b"\xfe\xfd" + bytes(32) + b"\0\0\0\x02\0\0\x01\0"),
    "ClientHello of nothing": _handshake(1, b""),
    "ServerHello with no cipher": _handshake(2, b"\xfe\xfd" + bytes(32) + b"\0\0\0\0\0\0"),
    "ServerHello of nothing": _handshake(2, b""),
    "HelloVerifyRequest": _handshake(3, b"\xfe\xff\x14" + bytes(20)),
    "huge length claim": _handshake(11, b"\0" * 100, claim=0xFFFFFF, sequence=1),
    "garbage certificate": _handshake(11, b"\0\0\x32" + b"\0\0\x2f" + b"\x30" * 47, sequence=1),
    "early Finished": _handshake(20, bytes(12), sequence=4),
    "application data": _record(23, bytes(40)),
    "epoch 1 garbage": _record(22, bytes(48), epoch=1),
    "record that overruns": _record(22, bytes(8))[:-4],
    "version of something else": b"\x16\x03\x03\0\0\0\0\0\0\0\0\0\4abcd",
    "only a header": b"\x16\xfe\xfd",
}


@pytest.mark.parametrize("setup", ["actpass", "active"])
@pytest.mark.parametrize("stage", ["answered", "ice", "hello", "connected"])
def test_forged_dtls_does_not_keep_the_client_out(gate: Gate, fleet: Fleet, stage: str, setup: str) -> None:
    """Sent from the client's own address: before the first check, with a flow, in and after the handshake."""
    said = speech.say("I am the real one.")
    frames = opus_frames(speech.conversation(0.2, said, 0.2))
    call = fleet.call(
        gate.calls_url,
        frames,
        setup=setup,
        inject=lambda now: list(FORGED.values()) if now == stage else [],
    )
    with _stranger(gate) as used:
        for forged in FORGED.values():
            used.send(forged)
        call.wait_for("connected", 10)
        _expect_answer(call, said)
        assert _silent(used, 0.05)
    assert fleet.hang_up(call) == 200


def test_broken_srtp_does_not_end_a_call(gate: Gate, fleet: Fleet) -> None:
    """Replayed, truncated, bit-flipped, forged: dropped, and the call goes on."""
    source = random.Random(11)
    call = fleet.call(gate.calls_url, opus_frames(speech.conversation(4.0)))
    call.wait_for("connected", 10)
    before = gate.metrics()
    wait_until(lambda: len(call.sent) > 20, 5, "some packets sent")
    for _ in range(40):
        good = call.last_protected
        flipped = bytearray(good)
        flipped[source.randrange(12, len(good))] ^= 1 << source.randrange(8)
        fleet.send_raw(
            call,
            good,
            good[: source.randrange(13, len(good))],
            bytes(flipped),
            good[:12] + source.randbytes(40),
        )
        time.sleep(0.01)
    said = speech.say("Still here, thank you.")
    with_voice = opus_frames(speech.conversation(0.1, said, 0.2))
    call.say(with_voice)
    _expect_answer(call, said)
    assert not call.closed
    assert call.reported_lost in (None, 0)
    assert fleet.hang_up(call) == 200
    call.wait_for("closed", 5)
    srtp_drops = sum(
        value - before.get(key, 0.0)
        for key, value in gate.metrics().items()
        if key[0] == "voicegate_transceiver_drops_total"
    )
    assert srtp_drops >= 140, gate.metrics().like("transceiver_drops")


def _flip(fingerprint: str) -> str:
    return ("0" if fingerprint[0] != "0" else "1") + fingerprint[1:]


def test_a_wrong_fingerprint_ends_the_call(gate: Gate, fleet: Fleet) -> None:
    true = fleet.certificate.fingerprint.hex(":").upper()
    _expect_refused(gate, fleet, fleet.call(gate.calls_url, fingerprint=_flip(true)))


def test_another_certificate_ends_the_call(gate: Gate, fleet: Fleet) -> None:
    call, used = fleet.prepare()
    sdp = call.offer()
    call.certificate = new_certificate()  # what the offer names is not what the handshake shows
    call.times["post"] = time.monotonic()
    posted = post(gate.calls_url, sdp)
    assert posted.status == 201
    fleet.locations[id(call)] = gate.url + posted.headers["location"]
    fleet.start(call, used, posted.body)
    _expect_refused(gate, fleet, call)


# ------------------------------------------------------------------------------------------- helpers


def _expect_refused(gate: Gate, fleet: Fleet, call: LightCall) -> None:
    location = fleet.locations[id(call)]
    wait_until(lambda: '"ended"' in request("GET", location).body, 10, "the call to end")
    status = json.loads(request("GET", location).body)
    assert status["reason"] == "fingerprint_mismatch", status
    assert not call.heard, "media went to a client that is not the offer's"
    assert gate.metrics().total("voicegate_transceiver_ends_total", reason="fingerprint_mismatch") >= 1
    fleet.close(call)
    assert_nothing_left(gate)


def _expect_answer(call: LightCall, said: speech.Sound) -> None:
    """The parrot's answer is what was said."""
    call.wait_for("heard", 15)
    wait_until(lambda: time.monotonic() - call.heard[-1].at > 0.5, 15, "the end of the answer")
    assert not call.closed, call.closed
    assert speech.understood(said, listen(call.heard)) >= 0.6


def _stranger(gate: Gate) -> socket.socket:
    host, _, port = gate.media[0].rpartition(":")
    used = socket.socket(socket.AF_INET, socket.SOCK_DGRAM)
    used.bind(("127.0.0.1", 0))
    used.connect((host, int(port)))
    return used


def _silent(used: socket.socket, seconds: float = QUIET) -> bool:
    used.settimeout(seconds)
    try:
        used.recv(2048)
    except TimeoutError:
        return True
    return False


def _dropped(gate: Gate, reason: str) -> float:
    return gate.metrics().total("voicegate_relay_drops_total", reason=reason)
