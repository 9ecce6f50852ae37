"""A light WebRTC client on voicegate's own protocol floor, for many calls at once and for attacks.

`LightCall` is one call without any I/O: offer, ICE checks (full agent, controlling), DTLS (passive unless the
answer says otherwise), SRTP, one Opus frame every 20 ms. `Fleet` drives any number of them from one thread
with one socket each. What it says is Opus made before the call; what it hears is kept as it came, so that a
call costs a few microseconds a packet.

    with Fleet() as fleet:
        call = fleet.call("http://127.0.0.1:8080/v1/realtime/calls", frames=opus_frames(say()))
        call.wait_for("connected", 5)
"""

from __future__ import annotations

import contextlib
import heapq
import http.client
import json
import os
import random
import selectors
import socket
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
from voicegate.proto import rtcp, rtp, stun
from voicegate.proto.address import pack_address
from voicegate.proto.dtls import DtlsCertificate, DtlsClosed, DtlsConnected, DtlsData, DtlsEndpoint
from voicegate.proto.errors import BadPacket
from voicegate.proto.srtp import SrtpSession

FRAME_SECONDS = 0.02
FRAME_SAMPLES = 960
CHECK_INTERVALS = (0.05, 0.1, 0.2, 0.4, 0.5)
"""Between connectivity checks until one is answered."""
CONSENT_INTERVAL = 2.5  # what Chromium does
OPUS_SILENCE = b"\xf8\xff\xfe"  # 20 ms of CELT silence

Address = tuple[str, int]


class Heard(NamedTuple):
    """One received RTP packet."""

    at: float
    sequence: int
    timestamp: int
    marker: bool
    payload: bytes


@dataclass(slots=True)
class Answer:
    """What of the SDP answer this client uses."""

    ufrag: str
    password: str
    fingerprints: tuple[tuple[str, bytes], ...]
    setup: str
    candidates: list[Address]
    payload_type: int


class LightCall:
    """One call: bytes and `now` in, bytes out. Not to be called from two threads at once."""

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
    ) -> None:
        """`frames` are 20-ms Opus packets said once (or for ever with `loop`), silence follows.

        `channel`: offer data channels and open this one; it is in `self.channel` from "connected" on.

        `fingerprint` replaces the true one; `nominate_after` holds USE-CANDIDATE back that many seconds;
        `inject(stage)` gives datagrams to send from this client's socket at "answer" (before the first
        check), "ice" (the path works, no DTLS came yet), "hello" (before the first DTLS output), "connected".
        """
        self.certificate = certificate
        self.random = source
        self.frames = frames
        self.loop = loop
        self.local = local
        self.fingerprint = fingerprint or certificate.fingerprint.hex(":").upper()
        self.setup = setup
        self.candidate_in_offer = candidate_in_offer
        self.nominate_after = nominate_after
        self.inject = inject or (lambda _stage: ())
        self.wanted = channel
        self.channel: LightChannel | None = None
        self.ufrag = _token(source, 4)
        self.password = _token(source, 24)
        self.ssrc = source.getrandbits(32)
        self.tie_breaker = source.getrandbits(64)
        self.answer: Answer | None = None
        self.remote: Address | None = None
        self.dtls: DtlsEndpoint | None = None
        self.srtp: SrtpSession | None = None
        self.times: dict[str, float] = {}
        self.heard: list[Heard] = []
        self.sent: list[tuple[float, int]] = []
        """(when, RTP timestamp) of each frame."""
        self.counts: dict[str, int] = {}
        self.closed = ""
        self.last_protected: bytes = b""
        self.last_check: bytes = b""
        self.reported_lost: int | None = None
        """Packets of ours that the far end missed, by its last reception report."""
        self.speak = True
        self.armed = 0.0
        """The deadline its driver has set a timer for."""
        self._said = 0
        self._sequence = source.getrandbits(15)
        self._timestamp = source.getrandbits(32)
        self._out: list[tuple[bytes, Address]] = []
        self._checks: dict[bytes, Address] = {}
        self._check_count = 0
        self._next_check = 0.0
        self._next_frame = float("inf")
        self._changed = threading.Condition()

    # ------------------------------------------------------------------ set-up

    def offer(self) -> str:
        """The SDP offer, in the shape Chromium gives it."""
        lines = [
            "v=0",
            f"o=- {self.random.getrandbits(62)} 2 IN IP4 127.0.0.1",
            "s=-",
            "t=0 0",
            "a=group:BUNDLE 0" + (" 1" if self.wanted else ""),
            "a=extmap-allow-mixed",
            "a=msid-semantic: WMS stream",
            "m=audio 9 UDP/TLS/RTP/SAVPF 111 0 8",
            "c=IN IP4 0.0.0.0",
            "a=rtcp:9 IN IP4 0.0.0.0",
            f"a=ice-ufrag:{self.ufrag}",
            f"a=ice-pwd:{self.password}",
            "a=ice-options:trickle",
            f"a=fingerprint:sha-256 {self.fingerprint}",
            f"a=setup:{self.setup}",
            "a=mid:0",
            "a=extmap:1 urn:ietf:params:rtp-hdrext:ssrc-audio-level",
            "a=extmap:4 urn:ietf:params:rtp-hdrext:sdes:mid",
            "a=sendrecv",
            "a=msid:stream track",
            "a=rtcp-mux",
            "a=rtcp-rsize",
            "a=rtpmap:111 opus/48000/2",
            "a=rtcp-fb:111 transport-cc",
            "a=fmtp:111 minptime=10;useinbandfec=1",
            "a=rtpmap:0 PCMU/8000",
            "a=rtpmap:8 PCMA/8000",
            f"a=ssrc:{self.ssrc} cname:light",
            f"a=ssrc:{self.ssrc} msid:stream track",
        ]
        if self.candidate_in_offer:
            host, port = self.local
            lines += [f"a=candidate:1 1 udp 2130706431 {host} {port} typ host", "a=end-of-candidates"]
        if self.wanted is not None:
            lines += [
                "m=application 9 UDP/DTLS/SCTP webrtc-datachannel",
                "c=IN IP4 0.0.0.0",
                f"a=ice-ufrag:{self.ufrag}",
                f"a=ice-pwd:{self.password}",
                "a=ice-options:trickle",
                f"a=fingerprint:sha-256 {self.fingerprint}",
                f"a=setup:{self.setup}",
                "a=mid:1",
                "a=sctp-port:5000",
                f"a=max-message-size:{self.wanted.max_message_size}",
            ]
        return "\r\n".join(lines) + "\r\n"

    def accept_answer(self, text: str, now: float) -> None:
        """Begin: the first check goes out at once."""
        self.answer = parse_answer(text)
        of_our_ip = [c for c in self.answer.candidates if (":" in c[0]) == (":" in self.local[0])]
        self.answer.candidates[:] = of_our_ip
        assert of_our_ip, f"no candidate of this socket's family in the answer:\n{text}"
        self.remote = of_our_ip[0]
        self.dtls = DtlsEndpoint(
            self.certificate,
            active=self.answer.setup == "passive",
            remote_fingerprints=self.answer.fingerprints,
            now=now,
        )
        self._mark("answered", now)
        self._inject("answer")
        self._next_check = now

    # --------------------------------------------------------- the seven verbs

    def receive_datagram(self, data: bytes, address: Address, now: float) -> None:
        """Take what came; a bad packet is counted."""
        try:
            self._receive(data, address, now)
        except BadPacket as bad:
            self._count(bad.reason)

    def handle_timeout(self, now: float) -> None:
        """Checks, DTLS retransmission, the next frame."""
        if self.closed or self.answer is None:
            return
        if now >= self._next_check:
            self._send_checks(now)
        if self.dtls is not None:
            deadline = self.dtls.next_deadline()
            if deadline is not None and now >= deadline:
                self._count("dtls_timeouts")
                self.dtls.handle_timeout(now)
                self._drain_dtls(now)
        if self.channel is not None:
            self.channel.handle_timeout(now)
            self._drain_channel()
        while now >= self._next_frame:
            self._send_frame(now)

    def poll_transmit(self) -> tuple[bytes, Address] | None:
        return self._out.pop(0) if self._out else None

    def next_deadline(self) -> float:
        if self.closed or self.answer is None:
            return float("inf")
        deadline = min(self._next_check, self._next_frame)
        for part in (self.dtls, self.channel):
            due = part.next_deadline() if part is not None else None
            deadline = deadline if due is None else min(deadline, due)
        return deadline

    def close(self, now: float) -> None:
        """Close DTLS from this side."""
        if self.dtls is not None and not self.closed:
            self.dtls.close(now)
            self._drain_dtls(now)
        self._end("here", now)

    def send_event(self, event: Event | str | bytes, now: float) -> None:
        """Send an event (held against the official models) or any other message as it is."""
        assert self.channel is not None, "no data channel"
        if isinstance(event, dict):
            event = json.dumps(event)
            if self.wanted is not None and self.wanted.validate:
                client_event(event)
        self.channel.send(event, now)
        self._drain_channel()

    def send_sctp(self, *packets: bytes) -> None:
        """Send SCTP packets as they are, inside DTLS."""
        assert self.dtls is not None
        for packet in packets:
            self.dtls.send(packet)
        self._drain_dtls_transmits()

    # -------------------------------------------------------------- for a test

    def say(self, frames: Sequence[bytes]) -> None:
        """Say these packets next, after whatever was said until now."""
        self.frames = [OPUS_SILENCE] * (self._said + 2) + list(frames)

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

    def lost(self) -> int:
        """Packets that did not come, of the sequence numbers between the first and the last."""
        if not self.heard:
            return 0
        numbers = np.unwrap([packet.sequence for packet in self.heard], period=65536).astype(int)
        return int(numbers.max() - numbers.min() + 1 - len(set(numbers.tolist())))

    # ------------------------------------------------------------------- inside

    def _receive(self, data: bytes, address: Address, now: float) -> None:
        if not data:
            return
        first = data[0]
        if first < 4:
            self._receive_stun(data, address, now)
        elif 20 <= first < 64 and self.dtls is not None:
            self.remote = address
            self._mark("dtls", now)
            self.dtls.receive_datagram(data, now)
            self._drain_dtls(now)
        elif 128 <= first < 192 and self.srtp is not None:
            # RFC 5761 section 4: 192 to 223 in the second byte is RTCP.
            if 192 <= data[1] < 224:
                self._receive_rtcp(self.srtp.unprotect_rtcp_untrusted(data), now)
            else:
                packet = rtp.parse_rtp_untrusted(self.srtp.unprotect_rtp_untrusted(data))
                self.heard.append(
                    Heard(now, packet.sequence, packet.timestamp, bool(packet.marker), bytes(packet.payload))
                )
                if len(self.heard) == 1:
                    self._mark("heard", now)
        else:
            self._count("unexpected")

    def _receive_stun(self, data: bytes, address: Address, now: float) -> None:
        if self.answer is None:
            raise BadPacket("stun_before_answer")
        if stun.is_binding_request(data):
            request = stun.parse_binding_request_untrusted(data)
            if not stun.verify_integrity(data, request.integrity_offset, self.password.encode()):
                raise BadPacket("stun_integrity")
            mapped = pack_address(*address)
            reply = stun.binding_success(request.transaction_id, mapped, self.password.encode())
            self._out.append((reply, address))
        elif stun.is_binding_success(data):
            success = stun.parse_binding_success_untrusted(data)
            if not stun.verify_integrity(data, success.integrity_offset, self.answer.password.encode()):
                raise BadPacket("stun_integrity")
            candidate = self._checks.pop(success.transaction_id, None)
            if candidate is None:
                raise BadPacket("stun_unknown_transaction")
            self._count("checks_answered")
            if "ice" not in self.times:
                self.remote = candidate
                self._mark("ice", now)
                self._inject("ice")
                self._next_check = now + (0.05 if self.nominate_after else CONSENT_INTERVAL)
                if self.dtls is not None and self.answer.setup == "passive":
                    self._drain_dtls(now)
        else:
            self._count("stun_other")

    def _send_checks(self, now: float) -> None:
        assert self.answer is not None
        begun = self.times["answered"]
        nominate = now - begun >= self.nominate_after
        username = f"{self.answer.ufrag}:{self.ufrag}".encode()
        for candidate in self.answer.candidates if "ice" not in self.times else [self.remote]:
            assert candidate is not None
            transaction = self.random.randbytes(12)
            if len(self._checks) > 64:
                self._checks.pop(next(iter(self._checks)))
            self._checks[transaction] = candidate
            request = stun.binding_request(
                transaction,
                username,
                self.answer.password.encode(),
                priority=0x6E7F00FF,
                tie_breaker=self.tie_breaker,
                use_candidate=nominate,
            )
            self.last_check = request
            self._out.append((request, candidate))
            self._count("checks")
        if "ice" in self.times and nominate:
            self._next_check = now + CONSENT_INTERVAL
        else:
            self._next_check = now + CHECK_INTERVALS[min(self._check_count, len(CHECK_INTERVALS) - 1)]
            self._check_count += 1

    def _drain_channel(self) -> None:
        assert self.channel is not None and self.dtls is not None
        while (packet := self.channel.poll_transmit()) is not None:
            self.dtls.send(packet)
        self._drain_dtls_transmits()

    def _drain_dtls_transmits(self) -> None:
        assert self.dtls is not None and self.remote is not None
        while (data := self.dtls.poll_transmit()) is not None:
            self._count("dtls_sent")
            self._out.append((data, self.remote))

    def _receive_sctp(self, packet: bytes, now: float) -> None:
        if self.channel is None:
            self._count("sctp_not_offered")
            return
        seen = len(self.channel.events)
        try:
            self.channel.receive(packet, now)
        except BadPacket as bad:
            self._count(bad.reason)
        if self.channel.opened:
            self._mark("channel", now)
        for event in self.channel.events[seen:]:
            self._mark(event["type"], now)
        if self.channel.closed:
            self._mark("channel closed", now)
        self._drain_channel()

    def _drain_dtls(self, now: float) -> None:
        assert self.dtls is not None
        if "hello" not in self.times and (first := self.dtls.poll_transmit()) is not None:
            self._mark("hello", now)
            self._inject("hello")
            assert self.remote is not None
            self._count("dtls_sent")
            self._out.append((first, self.remote))
        self._drain_dtls_transmits()
        while (event := self.dtls.poll_event()) is not None:
            match event:
                case DtlsConnected():
                    self._connected(event, now)
                case DtlsData():
                    self._receive_sctp(event.data, now)
                case DtlsClosed():
                    self._end(f"far: {event.reason}", now)

    def _connected(self, event: DtlsConnected, now: float) -> None:
        self.srtp = SrtpSession(event.profile, event.key_material, event.active)
        if self.wanted is not None:
            # RFC 8832 section 6: the DTLS client's streams are even, the server's odd.
            self.channel = LightChannel(self.wanted, self.random, dtls_client=event.active, now=now)
            self._drain_channel()
        self._mark("connected", now)
        self._inject("connected")
        self._next_frame = now

    def _send_frame(self, now: float) -> None:
        self._next_frame += FRAME_SECONDS
        place = self._said
        self._said += 1
        self._sequence = (self._sequence + 1) & 0xFFFF
        timestamp = (self._timestamp + place * FRAME_SAMPLES) & 0xFFFFFFFF
        if not self.speak or self.srtp is None or self.answer is None or self.remote is None:
            return
        if self.loop and self.frames:
            payload = self.frames[place % len(self.frames)]
        else:
            payload = self.frames[place] if place < len(self.frames) else OPUS_SILENCE
        packet = rtp.build_rtp(
            payload_type=self.answer.payload_type,
            sequence=self._sequence,
            timestamp=timestamp,
            ssrc=self.ssrc,
            payload=payload,
            marker=place == 0,
        )
        self.last_protected = self.srtp.protect_rtp(packet)
        self.sent.append((now, timestamp))
        self._out.append((self.last_protected, self.remote))

    def _receive_rtcp(self, data: bytes, now: float) -> None:
        for report in rtcp.parse_rtcp_untrusted(data):
            self._count(type(report).__name__)
            for block in getattr(report, "blocks", ()):
                if block.ssrc == self.ssrc:
                    self.reported_lost = block.cumulative_lost
            if isinstance(report, rtcp.Bye):
                self._mark("bye", now)

    def _inject(self, stage: str) -> None:
        assert self.remote is not None
        self._out += [(data, self.remote) for data in self.inject(stage)]

    def _end(self, reason: str, now: float) -> None:
        if not self.closed:
            self.closed = reason
            self._mark("closed", now)

    def _mark(self, stage: str, now: float) -> None:
        if stage not in self.times:
            with self._changed:
                self.times[stage] = now
                self._changed.notify_all()

    def _count(self, name: str) -> None:
        self.counts[name] = self.counts.get(name, 0) + 1


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

    def __enter__(self) -> Self:
        self._random = random.Random(self.seed)
        self.certificate = new_certificate()
        self._selector = selectors.DefaultSelector()
        self._wake_read, self._wake_write = os.pipe()
        os.set_blocking(self._wake_read, False)
        self._selector.register(self._wake_read, selectors.EVENT_READ)
        self._inbox: list[Callable[[], None]] = []
        self._sockets: dict[int, socket.socket] = {}
        self._timers: list[tuple[float, int, LightCall]] = []
        self._order = 0
        self._running = True
        self._failure: BaseException | None = None
        self._thread = threading.Thread(target=self._run, name="fleet", daemon=True)
        self._thread.start()
        return self

    def __exit__(self, *_: object) -> None:
        for call in self.calls:
            if not call.closed:
                self.close(call)
        self._running = False
        os.write(self._wake_write, b"x")
        self._thread.join(10)
        for used in self._sockets.values():
            used.close()
        self._selector.close()
        os.close(self._wake_read)
        os.close(self._wake_write)
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
            self._sockets[id(call)] = used
            self._selector.register(used, selectors.EVENT_READ, call)
            self._flush(call)

        self._do(begin)

    def send_raw(self, call: LightCall, *datagrams: bytes) -> None:
        """Send from the call's own socket to where its media goes."""

        def send() -> None:
            assert call.remote is not None
            call._out += [(data, call.remote) for data in datagrams]
            self._flush(call)

        self._do(send)

    def send_event(self, call: LightCall, *events: Event | str | bytes) -> float:
        """Send over the call's data channel; when that was (monotonic seconds)."""
        at = 0.0

        def send() -> None:
            nonlocal at
            at = time.monotonic()
            for event in events:
                call.send_event(event, at)
            self._flush(call)

        self._do(send)
        return at

    def send_sctp(self, call: LightCall, *packets: bytes) -> None:
        """Send SCTP packets as they are, inside the call's DTLS."""

        def send() -> None:
            call.send_sctp(*packets)
            self._flush(call)

        self._do(send)

    def close(self, call: LightCall) -> None:
        """Close DTLS and the socket."""

        def end() -> None:
            call.close(time.monotonic())
            self._flush(call)
            used = self._sockets.pop(id(call), None)
            if used is not None:
                self._selector.unregister(used)
                used.close()

        self._do(end)

    def hang_up(self, call: LightCall, *, key: str = "") -> int:
        """DELETE the call; the HTTP status."""
        return request("DELETE", self.locations[id(call)], key=key).status

    def _do(self, action: Callable[[], None]) -> None:
        """Run it in the thread and wait for it; its exception is raised here."""
        done = threading.Event()
        failed: list[BaseException] = []

        def run() -> None:
            try:
                action()
            except BaseException as error:
                failed.append(error)
            finally:
                done.set()

        self._inbox.append(run)
        os.write(self._wake_write, b"x")
        if not done.wait(10):
            raise AssertionError(f"the fleet's thread does not answer: {self._failure!r}")
        if failed:
            raise failed[0]

    def _run(self) -> None:
        try:
            while self._running:
                self._turn()
        except BaseException as error:
            self._failure = error
            raise

    def _turn(self) -> None:
        wait = max(0.0, self._timers[0][0] - time.monotonic()) if self._timers else 1.0
        for key, _ in self._selector.select(min(wait, 1.0)):
            if key.data is None:
                with contextlib.suppress(BlockingIOError):
                    os.read(self._wake_read, 4096)
                while self._inbox:
                    self._inbox.pop(0)()
            else:
                self._receive(key.data, key.fileobj)  # type: ignore[arg-type]
        now = time.monotonic()
        while self._timers and self._timers[0][0] <= now:
            _, _, call = heapq.heappop(self._timers)
            call.armed = 0.0
            if id(call) in self._sockets:
                call.handle_timeout(now)
                self._flush(call)

    def _receive(self, call: LightCall, used: socket.socket) -> None:
        for _ in range(16):
            try:
                data, address = used.recvfrom(4096)
            except (BlockingIOError, ConnectionRefusedError):
                break
            except OSError:
                return  # closed in this turn
            call.receive_datagram(data, address[:2], time.monotonic())
        self._flush(call)

    def _flush(self, call: LightCall) -> None:
        used = self._sockets.get(id(call))
        while (sending := call.poll_transmit()) is not None:
            if used is not None:
                with contextlib.suppress(BlockingIOError, ConnectionRefusedError):
                    used.sendto(*sending)
        self._arm(call)

    def _arm(self, call: LightCall) -> None:
        deadline = call.next_deadline()
        # An entry that has become too early costs one empty turn; one that is too late does not arise, for
        # every change comes through here.
        if deadline not in (float("inf"), call.armed):
            call.armed = deadline
            self._order += 1
            heapq.heappush(self._timers, (deadline, self._order, call))


def new_certificate() -> DtlsCertificate:
    return DtlsCertificate.generate(time.time())


def parse_answer(text: str) -> Answer:
    """The lines of an SDP answer that a client needs. AssertionError when one is missing."""
    values: dict[str, list[str]] = {}
    media = ""
    for line in text.splitlines():
        if line.startswith("m=audio ") or (line.startswith("m=application ") and not media):
            media = line
        elif line.startswith("a="):
            name, _, value = line[2:].partition(":")
            values.setdefault(name, []).append(value)
    assert media and media.split()[1] != "0", f"nothing accepted in the answer:\n{text}"
    fingerprints = []
    for value in values["fingerprint"]:
        algorithm, digest = value.split()
        fingerprints.append((algorithm.lower(), bytes.fromhex(digest.replace(":", ""))))
    fields = [candidate.split() for candidate in values.get("candidate", [])]
    candidates = [(field[4], int(field[5])) for field in fields if field[2].lower() == "udp"]
    return Answer(
        ufrag=values["ice-ufrag"][0],
        password=values["ice-pwd"][0],
        fingerprints=tuple(fingerprints),
        setup=values["setup"][0],
        candidates=candidates,
        payload_type=int(media.split()[3]) if media.startswith("m=audio") else 0,
    )


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


def _token(source: random.Random, length: int) -> str:
    alphabet = "ABCDEFGHIJKLMNOPQRSTUVWXYZabcdefghijklmnopqrstuvwxyz0123456789+/"
    return "".join(source.choice(alphabet) for _ in range(length))
