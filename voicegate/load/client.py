"""A light WebRTC client without any I/O: bytes and `now` in, bytes out. Pure.

It offers, checks as a full and controlling ICE agent, does DTLS (passive unless the answer says otherwise),
says one Opus packet every 20 ms that was encoded before the call, and keeps no audio of what it hears. So a
packet costs little more than its SRTP.

    client = LightClient(certificate, random, talk)
    client.offer() -> post it -> client.accept_answer(answer, now)
    then the seven verbs, until `client.closed` says why it is over
"""

from __future__ import annotations

from collections import Counter, deque
from typing import Final, Protocol

from voicegate.load.channel import EventChannel, Wanted
from voicegate.load.figures import Figures
from voicegate.load.ice import CONSENT_LIMIT, NEVER, ControllingIce, Randomness
from voicegate.load.offer import (
    OPUS_TYPE,
    RED_TYPE,
    Address,
    Answer,
    build_offer,
    parse_answer_untrusted,
)
from voicegate.load.reception import Reception
from voicegate.media.redundancy import RedSender
from voicegate.proto import rtp
from voicegate.proto.dtls import DtlsCertificate, DtlsClosed, DtlsConnected, DtlsData, DtlsEndpoint
from voicegate.proto.errors import BadPacket
from voicegate.proto.rtcp import Bye, ReceiverReport, SenderReport
from voicegate.proto.rtcp_session import Quality, RtcpReporter
from voicegate.proto.srtp import SrtpSession

FRAME_SECONDS: Final = 0.02
FRAME_SAMPLES: Final = 960
CLOCK_RATE: Final = 48_000
MAX_LATE: Final = 0.2
"""Seconds that a client catches up, in a burst, after its process was held up; more than that is not said."""


class Talk(Protocol):
    """What a client says, one packet a place, the first place at the end of its set-up."""

    def payload(self, place: int) -> bytes | None:
        """20 ms of Opus; None: nothing is sent."""

    def ends_at(self, place: int) -> bool:
        """Whether this is the last packet of a turn."""


class Voice:
    """The outgoing RTP stream of one client."""

    def __init__(self, random: Randomness, talk: Talk) -> None:
        self.ssrc = random.getrandbits(32)
        self.talk = talk
        self.place = 0
        """Of the packet that is due next."""
        self.frame_samples = FRAME_SAMPLES
        """On the RTP clock of what the talk speaks."""
        self._next_sequence = random.getrandbits(15)  # RFC 3711 section 3.3.1, see srtp.MAX_FIRST_SEQUENCE
        self._timestamp = random.getrandbits(32)

    def packet(self, payload_type: int, payload: bytes) -> bytes:
        """The RTP packet of this place, which must then be sent."""
        return rtp.build_rtp(payload_type, self.place == 0, self.number(), self.timestamp, self.ssrc, payload)

    def number(self) -> int:
        """The next sequence number. They count what is sent (RFC 3550 section 5.1): a place that is not said
        is no loss of the network's."""
        sequence = self._next_sequence
        self._next_sequence = (sequence + 1) & 0xFFFF
        return sequence

    @property
    def timestamp(self) -> int:
        return (self._timestamp + self.place * self.frame_samples) & 0xFFFFFFFF


class LightClient:
    """One call. Not to be used from two threads at once."""

    def __init__(
        self,
        certificate: DtlsCertificate,
        random: Randomness,
        talk: Talk,
        *,
        figures: Figures | None = None,
        channel: Wanted | None = None,
        interrupt_after: float | None = None,
        nominate_after: float = 0.0,
        red: bool = False,
        setup_seconds: float = CONSENT_LIMIT,
        wall_offset: float = 0.0,
    ) -> None:
        """`channel`: offer data channels and open this one; it is in `self.channel` from "connected" on.
        `interrupt_after`: interrupt each reply that many seconds in (needs the channel). `nominate_after`
        holds USE-CANDIDATE back that long, as libwebrtc does on slow paths. `red`: offer redundant audio, and
        say every frame twice where the answer takes it. `setup_seconds`: give up when no
        check is answered so long. `wall_offset`: calendar time less `now`.
        """
        self.certificate = certificate
        self.random = random
        self.voice = Voice(random, talk)
        self.reception = Reception(figures or Figures(), interrupt_after)
        self.wanted = channel
        self.red = RedSender(OPUS_TYPE) if red else None
        self.channel: EventChannel | None = None
        self.counts: Counter[str] = Counter()
        self.ice = ControllingIce(random, self.counts, nominate_after=nominate_after, patience=setup_seconds)
        self.answer: Answer | None = None
        self.dtls: DtlsEndpoint | None = None
        self.srtp: SrtpSession | None = None
        self.reporter: RtcpReporter | None = None
        self.times: dict[str, float] = {}
        """When each stage was reached: answered, ice, hello, dtls, connected, heard, channel, bye, closed."""
        self.closed = ""
        """Why it is over; empty while it is not."""
        self.next_frame = NEVER
        """When the next packet is to be said."""
        self._wall_offset = wall_offset
        self._transmits: deque[tuple[bytes, Address]] = deque()
        self._chores_at = NEVER

    @property
    def remote(self) -> Address | None:
        """Where packets go; None before the answer."""
        return self.ice.remote

    def offer(self) -> str:
        return build_offer(
            session=self.random.getrandbits(62),
            ufrag=self.ice.ufrag,
            password=self.ice.password,
            fingerprint=self.certificate.fingerprint.hex(":").upper(),
            ssrc=self.voice.ssrc,
            max_message_size=self.wanted.max_message_size if self.wanted else None,
            red=self.red is not None,
        )

    def accept_answer(self, text: str, now: float, *, ipv6: bool | None = None) -> None:
        """Begin: the first check goes out at once. Raises BadPacket for an answer that is of no use.

        `ipv6`: which candidates the client's socket reaches; None: those of the first one's kind.
        """
        answer = parse_answer_untrusted(text)
        if ipv6 is None:
            ipv6 = bool(answer.candidates) and ":" in answer.candidates[0][0]
        answer.candidates = [candidate for candidate in answer.candidates if (":" in candidate[0]) is ipv6]
        if not answer.candidates:
            raise BadPacket("answer_without_candidates")
        self.answer = answer
        active = answer.setup == "passive"
        try:
            self.dtls = DtlsEndpoint(
                self.certificate, active=active, remote_fingerprints=answer.fingerprints, now=now
            )
        except ValueError:
            raise BadPacket("answer_fingerprint") from None
        self.ice.begin(answer, now)
        self._chores_at = now
        self._mark("answered", now)

    # --------------------------------------------------------- the seven verbs

    def receive_datagram(self, data: bytes, address: Address, now: float) -> None:
        """Take what came; a bad packet is counted."""
        try:
            if data and 128 <= data[0] < 192 and self.srtp is not None:
                # RFC 5761 section 4: 192 to 223 in the second byte is RTCP.
                if len(data) > 1 and 192 <= data[1] < 224:
                    self._receive_rtcp(self.srtp.unprotect_rtcp_untrusted(data), now)
                else:
                    self._receive_rtp(self.srtp.unprotect_rtp_untrusted(data), now)
            else:
                self._receive_other(data, address, now)
                self._rearm()
        except BadPacket as bad:
            self.counts[bad.reason] += 1

    def handle_timeout(self, now: float) -> None:
        """What is due: the next packet, checks, DTLS, SCTP, RTCP."""
        if self.closed:
            return
        while now >= self.next_frame:
            self._send_frame(now)
        if now >= self._chores_at:
            self._do_chores(now)

    def poll_transmit(self) -> tuple[bytes, Address] | None:
        return self._transmits.popleft() if self._transmits else self.ice.poll_transmit()

    def next_deadline(self) -> float:
        return NEVER if self.closed else min(self.next_frame, self._chores_at)

    def close(self, now: float) -> None:
        """Close DTLS from this side."""
        if self.dtls is not None and not self.closed:
            self.dtls.close(now)
            self._drain_dtls(now)
        self._end("here", now)

    def statistics(self) -> Quality | None:
        """Both ways of the audio, as RTCP tells it; None before the call was connected."""
        return self.reporter.statistics() if self.reporter is not None else None

    def send_event(self, text: str | bytes, now: float) -> None:
        """Send a message over the data channel, which must be wanted and connected."""
        assert self.channel is not None, "no data channel"
        self.channel.send(text, now)
        self._drain_channel()

    # ------------------------------------------------------------ what comes in

    def _receive_rtp(self, data: bytes, now: float) -> None:
        self._heard(rtp.parse_rtp_untrusted(data), now)

    def _heard(self, packet: rtp.RtpPacket, now: float) -> None:
        assert self.reporter is not None, "there from the same moment as SRTP"
        self.reporter.received(packet, now)
        self.reception.packet(packet.sequence, packet.timestamp, now)
        if "heard" not in self.times:
            self._mark("heard", now)

    def _receive_rtcp(self, data: bytes, now: float) -> None:
        assert self.reporter is not None, "there from the same moment as SRTP"
        for report in self.reporter.receive_untrusted(data, now):
            self.counts[type(report).__name__] += 1
            blocks = report.blocks if isinstance(report, SenderReport | ReceiverReport) else ()
            self.counts["reports_about_us"] += any(block.ssrc == self.voice.ssrc for block in blocks)
            if isinstance(report, Bye):
                self._mark("bye", now)

    def _receive_other(self, data: bytes, address: Address, now: float) -> None:
        if data and data[0] < 4:
            if self.ice.receive_untrusted(data, address, now):
                self._mark("ice", now)
                if self.dtls is not None:
                    self._drain_dtls(now)
        elif data and 20 <= data[0] < 64 and self.dtls is not None:
            self.ice.remote = address
            self._mark("dtls", now)
            self.dtls.receive_datagram(data, now)
            self._drain_dtls(now)
        else:
            raise BadPacket("unexpected")

    def _receive_sctp(self, packet: bytes, now: float) -> None:
        if self.channel is None:
            self.counts["sctp_not_offered"] += 1
            return
        try:
            self.channel.receive(packet, now)
        except BadPacket as bad:
            self.counts[bad.reason] += 1
        if self.channel.opened:
            self._mark("channel", now)
        self._drain_channel()

    # ------------------------------------------------------------- what goes out

    def _send_frame(self, now: float) -> None:
        voice = self.voice
        payload = voice.talk.payload(voice.place)
        if now - self.next_frame > MAX_LATE:
            self.counts["frames_not_said"] += 1
        elif payload is not None:
            self._say(payload, now)
        if voice.talk.ends_at(voice.place):
            self.reception.speech_ended(now)
        voice.place += 1
        self.next_frame += FRAME_SECONDS
        if self.reception.should_interrupt(now) and self.channel is not None:
            self._interrupt(self.channel, now)

    def _say(self, payload: bytes, now: float) -> bytes:
        """Send one packet now; what was sent."""
        assert self.srtp is not None and self.reporter is not None, "nothing is due before they are there"
        assert self.answer is not None and self.ice.remote is not None
        if self.red is not None and self.answer.payload_type == RED_TYPE:
            payload = self.red.wrap(payload, self.voice.timestamp)
        protected = self.srtp.protect_rtp(self.voice.packet(self.answer.payload_type, payload))
        self._transmits.append((protected, self.ice.remote))
        self.reporter.sent(self.voice.timestamp, len(payload), now)
        return protected

    def _interrupt(self, channel: EventChannel, now: float) -> None:
        """As the Realtime API wants it of a WebRTC client: the response, if it is still being made, then what
        is on its way."""
        if channel.kinds["response.created"] > channel.kinds["response.done"]:
            self.send_event('{"type":"response.cancel"}', now)
        self.send_event('{"type":"output_audio_buffer.clear"}', now)
        self.reception.interrupted(now)

    def _do_chores(self, now: float) -> None:
        if failure := self.ice.failure(now):
            self._end(failure, now)
            return
        self.ice.handle_timeout(now)
        if self.dtls is not None:
            deadline = self.dtls.next_deadline()
            if deadline is not None and now >= deadline:
                self.counts["dtls_timeouts"] += 1
                self.dtls.handle_timeout(now)
                self._drain_dtls(now)
        if self.channel is not None:
            self.channel.handle_timeout(now)
            self._drain_channel()
        if self.reporter is not None and self.srtp is not None and self.ice.remote is not None:
            self.reporter.handle_timeout(now, now + self._wall_offset)
            while (report := self.reporter.poll_transmit()) is not None:
                self._transmits.append((self.srtp.protect_rtcp(report), self.ice.remote))
        self._rearm()

    def _drain_channel(self) -> None:
        assert self.channel is not None and self.dtls is not None
        while (packet := self.channel.poll_transmit()) is not None:
            self.dtls.send(packet)
        self._drain_dtls_transmits()
        self._rearm()

    def _drain_dtls_transmits(self) -> None:
        assert self.dtls is not None and self.ice.remote is not None
        while (data := self.dtls.poll_transmit()) is not None:
            self.counts["dtls_sent"] += 1
            self._transmits.append((data, self.ice.remote))

    def _drain_dtls(self, now: float) -> None:
        assert self.dtls is not None and self.ice.remote is not None
        if "hello" not in self.times and (first := self.dtls.poll_transmit()) is not None:
            self._mark("hello", now)
            self.counts["dtls_sent"] += 1
            self._transmits.append((first, self.ice.remote))
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
        self.reporter = RtcpReporter(self.voice.ssrc, "light", CLOCK_RATE, self.random.random, now)
        if self.wanted is not None:
            # RFC 8832 section 6: the DTLS client's streams are even, the server's odd.
            self.channel = self._open_channel(self.wanted, event.active, now)
            self._drain_channel()
        self._mark("connected", now)
        self.next_frame = now

    def _open_channel(self, wanted: Wanted, dtls_client: bool, now: float) -> EventChannel:
        return EventChannel(wanted, self.random, dtls_client=dtls_client, now=now)

    # ------------------------------------------------------------------ its state

    def _rearm(self) -> None:
        deadline = self.ice.next_deadline()
        for part in (self.dtls, self.channel, self.reporter):
            due = part.next_deadline() if part is not None else None
            if due is not None and due < deadline:
                deadline = due
        self._chores_at = deadline

    def _end(self, reason: str, now: float) -> None:
        if not self.closed:
            self.closed = reason
            self._mark("closed", now)

    def _mark(self, stage: str, now: float) -> None:
        self.times.setdefault(stage, now)
