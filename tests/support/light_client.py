"""A light WebRTC client for tests and attacks: the load tool's, with what a test wants to see and to spoil.

`LightCall` is a `LightClient` that keeps what it hears and says, and can be told to lie. `Fleet` drives any
number of them from one thread with one socket each.

    with Fleet() as fleet:
        call = fleet.call("http://127.0.0.1:8080/v1/realtime/calls", frames=opus_frames(say()))
        call.wait_for("connected", 5)
"""

from __future__ import annotations

import http.client
import json
import random
import socket
import sys
import threading
import time
import urllib.parse
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, NamedTuple, Self

import av
import numpy as np

from tests.support import speech
from tests.support.light_channel import LightChannel, Wanted
from tests.support.models import Event, client_event
from voicegate.load.channel import Wanted as WantedChannel
from voicegate.load.client import FRAME_SAMPLES, LightClient
from voicegate.load.driver import Driver
from voicegate.load.ice import CONSENT_INTERVAL as CONSENT_INTERVAL
from voicegate.load.offer import Address, build_offer
from voicegate.load.talk import OPUS_SILENCE
from voicegate.net.mmsg import SO_TIMESTAMPNS
from voicegate.proto import rtp, stun
from voicegate.proto.dtls import DtlsCertificate


class Heard(NamedTuple):
    """One received RTP packet."""

    at: float
    sequence: int
    timestamp: int
    marker: bool
    payload: bytes


class LightCall(LightClient):
    """One call. It is its own talk."""

    channel: LightChannel | None

    def __init__(
        self,
        certificate: DtlsCertificate,
        source: random.Random,
        frames: Sequence[bytes] = (),
        *,
        local: Address = ("127.0.0.1", 9),
        candidate_in_offer: bool = False,
        loop: bool = False,
        fingerprint: str | None = None,
        setup: str = "actpass",
        nominate_after: float = 0.0,
        inject: Callable[[str], Sequence[bytes]] | None = None,
        channel: Wanted | None = None,
        red: bool = False,
    ) -> None:
        """`frames` are 20-ms Opus packets said once (or for ever with `loop`), silence follows.

        `fingerprint` replaces the true one; `inject(stage)` gives datagrams to send from this client's socket
        at "answered" (before the first check), "ice" (the path works, no DTLS came yet), "hello" (before the
        first DTLS output), "connected".
        """
        super().__init__(certificate, source, self, channel=channel, nominate_after=nominate_after, red=red)
        self.frames = frames
        self.loop = loop
        self.speak = True
        self.local = local
        self.fingerprint = fingerprint or certificate.fingerprint.hex(":").upper()
        self.setup = setup
        self.candidate_in_offer = candidate_in_offer
        self.inject = inject or (lambda _stage: ())
        self.heard: list[Heard] = []
        self.sent: list[tuple[float, int]] = []
        """(when, RTP timestamp) of each frame."""
        self.last_protected = b""
        self.last_check = b""
        self._changed = threading.Condition()

    def offer(self) -> str:
        return build_offer(
            session=self.random.getrandbits(62),
            ufrag=self.ice.ufrag,
            password=self.ice.password,
            fingerprint=self.fingerprint,
            ssrc=self.voice.ssrc,
            setup=self.setup,
            candidate=self.local if self.candidate_in_offer else None,
            max_message_size=self.wanted.max_message_size if self.wanted else None,
            red=self.red is not None,
        )

    def accept_answer(self, text: str, now: float, *, ipv6: bool | None = None) -> None:
        super().accept_answer(text, now, ipv6=":" in self.local[0] if ipv6 is None else ipv6)

    def payload(self, place: int) -> bytes | None:
        if not self.speak:
            return None
        if self.loop and self.frames:
            return self.frames[place % len(self.frames)]
        return self.frames[place] if place < len(self.frames) else OPUS_SILENCE

    def ends_at(self, place: int) -> bool:
        return False

    def say(self, frames: Sequence[bytes]) -> None:
        """Say these packets next, after whatever was said until now."""
        self.frames = [OPUS_SILENCE] * (self.voice.place + 2) + list(frames)

    def send_event(self, event: Event | str | bytes, now: float) -> None:
        """Send an event (held against the official models) or any other message as it is."""
        if isinstance(event, dict):
            event = json.dumps(event)
            if isinstance(self.wanted, Wanted) and self.wanted.validate:
                client_event(event)
        super().send_event(event, now)

    def send_sctp(self, *packets: bytes) -> None:
        """Send SCTP packets as they are, inside DTLS."""
        assert self.dtls is not None
        for packet in packets:
            self.dtls.send(packet)
        self._drain_dtls_transmits()

    def send_raw(self, *datagrams: bytes) -> None:
        """Send to where its media goes."""
        assert self.remote is not None
        self._transmits += [(data, self.remote) for data in datagrams]

    def poll_transmit(self) -> tuple[bytes, Address] | None:
        out = super().poll_transmit()
        if out is not None and stun.is_binding_request(out[0]):
            self.last_check = out[0]
        return out

    def wait_for(self, stage: str, timeout: float) -> float:
        """Wait for one of "ice", "connected", "channel", "heard", "closed", or the first event of a type;
        return when it was (monotonic seconds)."""
        with self._changed:
            if not self._changed.wait_for(lambda: stage in self.times, timeout):
                raise AssertionError(
                    f"no {stage!r} in {timeout} s; so far {self.times}, counts {self.counts}"
                )
        return self.times[stage]

    def since_post(self, stage: str) -> float:
        """Seconds between the start of the POST and the stage."""
        return self.times[stage] - self.times["post"]

    @property
    def ufrag(self) -> str:
        return self.ice.ufrag

    @property
    def ssrc(self) -> int:
        return self.voice.ssrc

    @property
    def reported_lost(self) -> int | None:
        """Packets of ours that the far end missed, by its last reception report."""
        quality = self.statistics()
        return quality.sent_lost if quality is not None and self.counts["reports_about_us"] else None

    def lost(self) -> int:
        """Packets that did not come, of the sequence numbers between the first and the last."""
        if not self.heard:
            return 0
        numbers = np.unwrap([packet.sequence for packet in self.heard], period=65536).astype(int)
        return int(numbers.max() - numbers.min() + 1 - len(set(numbers.tolist())))

    def _say(self, payload: bytes, now: float) -> bytes:
        self.last_protected = super()._say(payload, now)
        self.sent.append((now, self.voice.timestamp))
        return self.last_protected

    def _heard(self, packet: rtp.RtpPacket, now: float) -> None:
        self.heard.append(
            Heard(now, packet.sequence, packet.timestamp, bool(packet.marker), bytes(packet.payload))
        )
        super()._heard(packet, now)

    def _open_channel(self, wanted: WantedChannel, dtls_client: bool, now: float) -> LightChannel:
        assert isinstance(wanted, Wanted)
        return LightChannel(wanted, self.random, dtls_client=dtls_client, now=now)

    def _receive_sctp(self, packet: bytes, now: float) -> None:
        seen = len(self.channel.events) if self.channel is not None else 0
        super()._receive_sctp(packet, now)
        if self.channel is not None:
            for event in self.channel.events[seen:]:
                self._mark(event["type"], now)
            if self.channel.closed:
                self._mark("channel closed", now)

    def _mark(self, stage: str, now: float) -> None:
        if stage not in self.times:
            with self._changed:
                super()._mark(stage, now)
                self._changed.notify_all()
            if injected := self.inject(stage):
                self.send_raw(*injected)


@dataclass(slots=True)
class Posted:
    """What the SDP exchange came to."""

    status: int
    headers: dict[str, str]
    body: str


@dataclass
class Fleet:
    """A thread that drives light calls. A context manager; what is still up at the end is closed."""

    seed: int = 1
    redirect: Address | None = None
    """Where calls send to instead of the answer's candidates: a `TcpPipe`."""
    calls: list[LightCall] = field(default_factory=list)
    locations: dict[int, str] = field(default_factory=dict)
    """The call's absolute URL by `id(call)`."""
    make_driver: Callable[[], Driver] = Driver

    def __enter__(self) -> Self:
        self._random = random.Random(self.seed)
        self.certificate = new_certificate()
        self._driver = self.make_driver()
        self._running = True
        self._failure: BaseException | None = None
        self._thread = threading.Thread(target=self._run, name="fleet", daemon=True)
        self._thread.start()
        return self

    def __exit__(self, *_: object) -> None:
        self._running = False
        self._driver.call_soon(lambda: None)
        self._thread.join(10)
        self._driver.close()
        if self._failure is not None:
            raise self._failure

    def call(
        self,
        url: str,
        frames: Sequence[bytes] = (),
        *,
        key: str = "",
        family: socket.AddressFamily = socket.AF_INET,
        headers: Mapping[str, str] | None = None,
        **options: Any,
    ) -> LightCall:
        """POST an offer and start the call; AssertionError when the answer is not 201. Thread-safe."""
        call, used = self.prepare(frames, family=family, **options)
        offer = call.offer()
        call.times["post"] = time.monotonic()
        posted = post(url, offer, key=key, headers=headers)
        assert posted.status == 201, f"{posted.status}: {posted.body[:300]}"
        self.locations[id(call)] = urllib.parse.urljoin(url, posted.headers.get("location", ""))
        self.start(call, used, posted.body)
        return call

    def prepare(
        self,
        frames: Sequence[bytes] = (),
        *,
        family: socket.AddressFamily = socket.AF_INET,
        kind: type[LightCall] | None = None,
        host: str = "",
        **options: Any,
    ) -> tuple[LightCall, socket.socket]:
        """A call (of this `kind`) and its socket (on this host), before any offer was sent."""
        used = socket.socket(family, socket.SOCK_DGRAM)
        used.setblocking(False)
        if sys.platform == "linux":
            used.setsockopt(socket.SOL_SOCKET, SO_TIMESTAMPNS, 1)  # so the driver times what comes
        used.bind((host or ("::1" if family == socket.AF_INET6 else "127.0.0.1"), 0))
        source = random.Random(self._random.getrandbits(64))
        options.setdefault("local", used.getsockname()[:2])
        return (kind or LightCall)(self.certificate, source, frames, **options), used

    def start(self, call: LightCall, used: socket.socket, answer: str) -> None:
        def begin() -> None:
            call.accept_answer(answer, time.monotonic())
            if self.redirect is not None and call.answer is not None:
                call.answer.candidates = [self.redirect]
            self.calls.append(call)
            self._driver.add(call, used)

        self._do(begin)

    def send_raw(self, call: LightCall, *datagrams: bytes) -> None:
        """Send from the call's own socket to where its media goes."""
        self._do(lambda: call.send_raw(*datagrams), call)

    def send_rtp(self, call: LightCall, *packets: bytes) -> None:
        """Send RTP and RTCP packets as they are, protected with the keys of a call that is connected."""

        def protect(packet: bytes) -> bytes:
            assert call.srtp is not None
            is_rtcp = 192 <= packet[1] < 224  # RFC 5761 section 4
            return (call.srtp.protect_rtcp if is_rtcp else call.srtp.protect_rtp)(packet)

        self._do(lambda: call.send_raw(*map(protect, packets)), call)

    def send_event(self, call: LightCall, *events: Event | str | bytes) -> float:
        """Send over the call's data channel; when that was (monotonic seconds)."""
        at = 0.0

        def send() -> None:
            nonlocal at
            at = time.monotonic()
            for event in events:
                call.send_event(event, at)

        self._do(send, call)
        return at

    def send_sctp(self, call: LightCall, *packets: bytes) -> None:
        """Send SCTP packets as they are, inside the call's DTLS."""
        self._do(lambda: call.send_sctp(*packets), call)

    def close(self, call: LightCall) -> None:
        """Close DTLS and the socket."""
        self._do(lambda: self._driver.remove(call))

    def hang_up(self, call: LightCall, *, key: str = "") -> int:
        """DELETE the call; the HTTP status."""
        return request("DELETE", self.locations[id(call)], key=key).status

    def _do(self, action: Callable[[], None], call: LightCall | None = None) -> None:
        """Run it in the thread, send what the call has then, and wait for it; its exception is raised."""
        done = threading.Event()
        failed: list[BaseException] = []

        def run() -> None:
            try:
                action()
                if call is not None:
                    self._driver.flush(call)
            except BaseException as error:
                failed.append(error)
            finally:
                done.set()

        self._driver.call_soon(run)
        if not done.wait(10):
            raise AssertionError(f"the fleet's thread does not answer: {self._failure!r}")
        if failed:
            raise failed[0]

    def _run(self) -> None:
        try:
            while self._running:
                self._driver.turn(time.monotonic() + 1.0)
        except BaseException as error:
            self._failure = error
            raise


def new_certificate() -> DtlsCertificate:
    return DtlsCertificate.generate(time.time())


def post(
    url: str,
    body: str | bytes,
    *,
    content_type: str = "application/sdp",
    key: str = "",
    headers: Mapping[str, str] | None = None,
) -> Posted:
    return request("POST", url, body, content_type=content_type, key=key, headers=headers)


def request(
    method: str,
    url: str,
    body: str | bytes = b"",
    *,
    content_type: str = "",
    key: str = "",
    timeout: float = 20,
    headers: Mapping[str, str] | None = None,
    source: str = "",
) -> Posted:
    """One HTTP request on a connection of its own (from this address); every status is an answer, none an
    exception."""
    parts = urllib.parse.urlsplit(url)
    connection = http.client.HTTPConnection(
        parts.hostname or "", parts.port, timeout=timeout, source_address=(source, 0) if source else None
    )
    sent = dict(headers or {})
    if content_type:
        sent["Content-Type"] = content_type
    if key:
        sent["Authorization"] = f"Bearer {key}"
    try:
        path = parts.path + (f"?{parts.query}" if parts.query else "")
        connection.request(method, path, body.encode() if isinstance(body, str) else body, sent)
        response = connection.getresponse()
        text = response.read().decode(errors="replace")
        return Posted(response.status, {name.lower(): value for name, value in response.getheaders()}, text)
    finally:
        connection.close()


def opus_frames(sound: speech.Sound, *, bitrate: int = 32_000) -> list[bytes]:
    """20-ms Opus packets of a sound at 48 kHz, by FFmpeg's libopus (not the encoder under test)."""
    encoder = av.CodecContext.create("libopus", "w")
    encoder.bit_rate = bitrate
    encoder.format = "s16"
    encoder.layout = "mono"
    encoder.sample_rate = speech.RATE
    encoder.options = {"application": "audio", "frame_duration": "20"}
    packets: list[bytes] = []
    pcm = np.frombuffer(speech.to_pcm(sound), dtype="<i2")
    for place in range(0, len(pcm) - FRAME_SAMPLES + 1, FRAME_SAMPLES):
        frame = av.AudioFrame.from_ndarray(
            pcm[place : place + FRAME_SAMPLES].reshape(1, -1), format="s16", layout="mono"
        )
        frame.sample_rate = speech.RATE
        frame.pts = place
        packets += [bytes(packet) for packet in encoder.encode(frame)]
    return packets


def listen(heard: Sequence[Heard]) -> speech.Sound:
    """What was heard, as sound at 48 kHz with each packet at its media timestamp."""
    heard = tuple(heard)  # it may grow meanwhile
    if not heard:
        return speech.silence(0)
    decoder = av.CodecContext.create("libopus", "r")
    decoder.format = "s16"
    decoder.layout = "mono"
    decoder.sample_rate = speech.RATE
    stamps = np.unwrap([packet.timestamp for packet in heard], period=1 << 32).astype(int)
    first = int(stamps.min())
    timeline = np.zeros(int(stamps.max()) - first + 6 * FRAME_SAMPLES, dtype=np.float32)
    for place, packet in sorted(zip((stamps - first).tolist(), heard, strict=True)):
        for frame in decoder.decode(av.Packet(packet.payload)):
            samples = frame.to_ndarray()
            channels = len(frame.layout.channels)
            block = samples.reshape(-1)[::channels] if samples.shape[0] == 1 else samples[0]
            block = block.astype(np.float32) / (32768 if samples.dtype == np.int16 else 1)
            timeline[place : place + len(block)] = block[: len(timeline) - place]
    return timeline
