"""One call: ICE-lite, DTLS and SRTP around its audio, and the rules of its life.

A packet's way in: `receive_datagram` looks at the first byte (RFC 7983) and hands it to ICE, DTLS or,
unprotected by SRTP, to `CallAudio`. What leaves comes out of `poll_transmit`; what the outside must know out
of `poll_event`; the microphone's PCM out of `poll_audio`.

Who is believed: a client address counts once a check from it carried our password (`IceLite`). No DTLS leaves
before that, and media goes to the address of the handshake until a packet that SRTP or DTLS authenticated
comes from another validated one: a STUN check alone must not aim a stream at somebody else (threat: voice
hammer).

It ends once, for the first `EndReason` that happens; after that every input is ignored (`life`).
"""

from __future__ import annotations

import math
from collections import Counter, deque
from enum import Enum

from voicegate.proto.address import ClientAddress
from voicegate.proto.datachannel import MessageRejected
from voicegate.proto.demux import Kind, is_rtcp, kind
from voicegate.proto.dtls import DtlsCertificate, DtlsClosed, DtlsConnected, DtlsData, DtlsEndpoint
from voicegate.proto.errors import BadPacket
from voicegate.proto.ice import IceLite
from voicegate.proto.srtp import SrtpSession
from voicegate.roles.transceiver.audio import CallAudio
from voicegate.roles.transceiver.call_sound import CallSound
from voicegate.roles.transceiver.channel import ChannelParameters, EventsChannel, Notice
from voicegate.roles.transceiver.life import (
    CLOSE_SECONDS,
    UNHURRIED,
    CallEvent,
    CallLimits,
    CallState,
    Connected,
    Ended,
    EndReason,
    Life,
    end_of_dtls,
)

MAX_TRANSMITS = 512
"""Datagrams waiting to be taken. One input makes a few; only a driver that does not drain reaches this."""


class Proof(Enum):
    """What a packet of the client's proves, and so what may be learned from where it came."""

    NONE = "nothing: dropped, or of a handshake that is not done"
    REPEATED = "a valid check that was seen before: from anybody who can see the client's packets"
    NEW = "a check, SRTP packet or DTLS record that was not seen before: from the client"


class Call:
    """One client's transport and audio. One mutation, then drain the polls, then read the deadline."""

    def __init__(
        self,
        call_id: str,
        *,
        ice: IceLite,
        certificate: DtlsCertificate,
        dtls_active: bool,
        remote_fingerprints: tuple[tuple[str, bytes], ...],
        audio: CallAudio,
        channel: ChannelParameters | None,
        limits: CallLimits,
        now: float,
    ) -> None:
        """`channel`: None when the client asked for no data channel."""
        self.call_id = call_id
        self.state = CallState.CONNECTING
        self.audio = audio
        self.media = CallSound(audio, self._send_audio)
        """What a conversation has of this call."""
        self.client: ClientAddress | None = None
        """Where our output goes."""
        self.milestones: dict[str, float] = {"allocated": now}
        """First time of each step, on the clock of `now`."""
        self.drops: Counter[str] = Counter()
        self.ended: Ended | None = None

        self._ice = ice
        self._dtls: DtlsEndpoint | None = None
        self._dtls_parameters = (certificate, dtls_active, remote_fingerprints)
        self._srtp: SrtpSession | None = None
        self._channel_parameters = channel
        self._channel: EventsChannel | None = None
        self._life = Life(limits, now)
        self._transmits: deque[tuple[ClientAddress, bytes]] = deque()
        self._events: deque[CallEvent] = deque()
        self._rearm()

    def receive_datagram(self, data: bytes, client: ClientAddress, now: float) -> Proof:
        """Take one datagram of the client, and say what it proves.

        Raises BadPacket for what is dropped, after counting it.
        """
        if self.state is CallState.ENDED:
            return Proof.NONE
        which = kind(data[0]) if data else Kind.UNKNOWN
        try:
            if which is Kind.RTP:
                return self._receive_srtp(data, client, now)
            if which is Kind.STUN:
                proof = self._receive_stun(data, client, now)
            elif which is Kind.DTLS:
                proof = self._receive_dtls(data, client, now)
            else:
                raise BadPacket("unknown_kind")
        except BadPacket as error:
            self.drops[error.reason] += 1
            self._rearm()
            raise
        self._rearm()
        return proof

    def handle_timeout(self, now: float) -> None:
        """Do what is due at `now`: retransmit, conceal, send the next frame or report, or end the call."""
        if now >= self._chores_at:
            self._do_chores(now)
        if self.state is CallState.ACTIVE:
            self.audio.handle_timeout(now)
            if self.audio.packets:
                self._drain_audio()

    def send_due_frame(self, now: float) -> None:
        """`handle_timeout` while nothing but a frame of the agent's is due."""
        if self.state is CallState.ACTIVE:
            self.audio.send_due_frame(now)
            if self.audio.packets:
                self._drain_audio()

    def poll_transmit(self) -> tuple[ClientAddress, bytes] | None:
        return self._transmits.popleft() if self._transmits else None

    def poll_event(self) -> CallEvent | None:
        return self._events.popleft() if self._events else None

    def poll_audio(self) -> bytes | None:
        """The next stretch of the microphone, as `audio.line.heard`: any whole number of samples."""
        return self.audio.poll_audio()

    def poll_message(self) -> Notice | str | bytes | MessageRejected | None:
        """The next thing that the events channel brought."""
        return None if self._channel is None else self._channel.poll_message()

    def send_event(self, event: bytes, now: float) -> None:
        """Send a Realtime event, JSON text, over the events channel; dropped and counted without one."""
        if self._channel is not None:
            self._channel.send(event, now)
            self._drain_channel(now)
            self._rearm()

    def next_deadline(self) -> float | None:
        deadline = self.others_deadline()
        return deadline if deadline is None else min(deadline, self.frame_deadline())

    def frame_deadline(self) -> float:
        """When the next frame of the agent's is due; infinite without one."""
        return self.audio.frame_deadline() if self.state is CallState.ACTIVE else math.inf

    def others_deadline(self) -> float | None:
        """When something other than a frame of the agent's is due. A frame does not change it."""
        if self.state is not CallState.ACTIVE:
            return None if self.state is CallState.ENDED else self._chores_at
        audio = self.audio.others_deadline()
        return audio if audio < self._chores_at else self._chores_at

    def close(self, now: float, reason: EndReason, detail: str = "") -> None:
        """End the call: RTCP BYE, the data channel's close and close_notify go out, and all is freed.

        The first reason counts; with a data channel the end takes up to CLOSE_SECONDS.
        """
        if self.ended is not None:
            return
        self.ended = Ended(reason, detail)
        self.media.close()
        self.milestones["ended"] = now
        if self._srtp is not None:
            self.audio.say_bye(now)
            self._drain_audio()
        if self._channel is not None and self._channel.open and reason in UNHURRIED:
            self.state = CallState.CLOSING
            self._life.close_deadline = now + CLOSE_SECONDS
            self._channel.shutdown(now)
            self._drain_channel(now)
        elif self.state is CallState.CONNECTING and self._dtls is not None and reason in UNHURRIED:
            # The client may be through its half of the handshake: it hears close_notify only after ours.
            self.state = CallState.CLOSING
            self._life.close_deadline = now + CLOSE_SECONDS
        else:
            self._finish(now)
        self._rearm()

    def _finish(self, now: float) -> None:
        assert self.ended is not None, "finished only after `close`"
        if self.state is CallState.ENDED:
            return
        if self._dtls is not None:
            self._dtls.close(now)
            while self._dtls.poll_event() is not None:
                pass  # what a closed call would still hear is of no use to anybody
            self._drain_dtls_transmits()
        self.state = CallState.ENDED
        self._dtls = None
        self._srtp = None
        self._channel = None
        self.audio.close()
        self._events.append(self.ended)

    def silent_for(self, now: float) -> float:
        """Seconds since the last authenticated packet."""
        return now - self._life.last_authenticated

    def statistics(self) -> dict[str, object]:
        """A snapshot for a person: state, counters, milestones in ms since allocation."""
        start = self.milestones["allocated"]
        return {
            "state": self.state.value,
            "milestones": {name: round((at - start) * 1000, 1) for name, at in self.milestones.items()},
            "audio": self.audio.statistics(),
            "channel": None if self._channel is None else self._channel.statistics(),
            "drops": dict(self.drops),
        }

    # What is not sound

    def _do_chores(self, now: float) -> None:
        if self.state is CallState.ENDED:
            return
        if now >= self._life.deadline(self.state) and not self._fell_back(now):
            if self.ended is None:
                self.close(now, self._life.reason(self.state, now))
            else:
                self._finish(now)
            return
        if self._dtls is not None:
            self._dtls.handle_timeout(now)
            self._drain_dtls(now)
        if self._channel is not None:
            self._channel.handle_timeout(now)
            self._drain_channel(now)
        self._rearm()

    def _rearm(self) -> None:
        """Note when the next of the chores is due: after whatever may have brought it forward.

        Sound only puts off the end of an idle call; it looks at most once in `idle_seconds` in vain.
        """
        deadline = self._life.deadline(self.state)
        for part in (self._dtls, self._channel):
            if part is not None and (due := part.next_deadline()) is not None and due < deadline:
                deadline = due
        self._chores_at = deadline

    # Inputs, one per kind of packet

    def _receive_stun(self, data: bytes, client: ClientAddress, now: float) -> Proof:
        new = self._ice.receive_datagram(data, client, now)
        if new:
            self._note_authentic(client, now)
        while (reply := self._ice.poll_transmit()) is not None:
            self._transmit(*reply)
        while self._ice.poll_event() is not None:
            self._client_checked(client, now)
        return Proof.NEW if new else Proof.REPEATED

    def _client_checked(self, client: ClientAddress, now: float) -> None:
        """A check from a new address, or the first that nominates one."""
        # Until the handshake is done the newest such address is the best guess; after it only an
        # authenticated SRTP packet moves media.
        if self.state is CallState.CONNECTING:
            self._send_to(client)
            self._life.client_heard = now
        if self._dtls is None:
            # On the first check, not on USE-CANDIDATE: libwebrtc nominates up to 1.2 s later on slow paths.
            self.milestones["ice"] = now
            certificate, active, fingerprints = self._dtls_parameters
            self._dtls = DtlsEndpoint(certificate, active=active, remote_fingerprints=fingerprints, now=now)
            self._drain_dtls(now)

    def _receive_dtls(self, data: bytes, client: ClientAddress, now: float) -> Proof:
        if self._dtls is None or client not in self._ice.validated:
            raise BadPacket("dtls_unvalidated_address")
        self._dtls.receive_datagram(data, now)
        if self.state is CallState.CONNECTING:
            self._send_to(client)
            self._drain_dtls(now)
            return Proof.NONE
        # Authentic or a repetition of what was: enough to say that the client lives, not where.
        self._note_authentic(client, now)
        return Proof.NEW if self._drain_dtls(now, sender=client) else Proof.NONE

    def _receive_srtp(self, data: bytes, client: ClientAddress, now: float) -> Proof:
        if self._srtp is None:
            raise BadPacket("srtp_before_handshake")
        if self.state is CallState.CLOSING:
            return Proof.NONE
        if client not in self._ice.validated:
            raise BadPacket("srtp_unvalidated_address")
        if is_rtcp(data):
            plain = self._srtp.unprotect_rtcp_untrusted(data)
            self._authenticated_from(client, now)
            if self.audio.receive_rtcp(plain, now):
                self.close(now, EndReason.BYE)
            else:
                self._send_again()
        else:
            plain = self._srtp.unprotect_rtp_untrusted(data)
            self._authenticated_from(client, now)
            self.milestones.setdefault("first_packet_in", now)
            self.audio.receive_rtp(plain, now)
            if self.audio.packets:
                self._drain_audio()
        return Proof.NEW

    def _authenticated_from(self, client: ClientAddress, now: float) -> None:
        if client != self.client:
            self._send_to(client)
        self._life.last_authenticated = self._life.client_heard = now

    def _note_authentic(self, client: ClientAddress, now: float) -> None:
        self._life.last_authenticated = now
        if client == self.client:
            self._life.client_heard = now

    def _send_to(self, client: ClientAddress) -> None:
        self.client = client
        self._ice.select(client)

    def _fell_back(self, now: float) -> bool:
        """Whether only the address that media goes to fell silent: then another that checks gets it."""
        if self.state is not CallState.ACTIVE or self._life.reason(self.state, now) is not EndReason.IDLE:
            return False
        freshest = max(self._ice.validated, key=self._ice.validated.__getitem__)
        if not self._life.moved_to(self._ice.validated[freshest], now):
            return False
        self._send_to(freshest)
        return True

    # Outputs

    def _drain_dtls(self, now: float, *, sender: ClientAddress | None = None) -> bool:
        """Act on what DTLS brought. True when that was data from `sender`: OpenSSL takes each record once
        (RFC 6347 section 4.1.2.6), so it came from the client. Unlike SRTP, it shows the way of a client that
        has a data channel and says nothing."""
        assert self._dtls is not None, "drained only where it exists"
        proven = False
        self._drain_dtls_transmits()
        while self._dtls is not None and (event := self._dtls.poll_event()) is not None:
            if isinstance(event, DtlsConnected) and self.ended is not None:
                self._finish(now)
            elif isinstance(event, DtlsConnected):
                self._srtp = SrtpSession(
                    event.profile, event.key_material, event.active, resends=self.audio.resends
                )
                self.state = CallState.ACTIVE
                self.milestones["dtls"] = now
                self.audio.start(now)
                self._events.append(Connected())
                self._drain_audio()
                self._open_channel(event.active, now)
            elif isinstance(event, DtlsData):
                if sender is not None:
                    proven = True
                    self._authenticated_from(sender, now)
                self._receive_sctp(event.data, now)
            elif isinstance(event, DtlsClosed):
                if self.state is CallState.CLOSING:
                    self._finish(now)
                else:
                    self.close(now, *end_of_dtls(event.reason))
        return proven

    def _open_channel(self, dtls_client: bool, now: float) -> None:
        if self._channel_parameters is not None:
            self._channel = EventsChannel(self._channel_parameters, dtls_client=dtls_client, now=now)

    def _receive_sctp(self, packet: bytes, now: float) -> None:
        if self._channel is None:
            self.drops["sctp_not_offered"] += 1
            return
        try:
            self._channel.receive_datagram(packet, now)
        except BadPacket as error:
            self.drops[error.reason] += 1
        self._drain_channel(now)

    def _drain_channel(self, now: float) -> None:
        assert self._channel is not None and self._dtls is not None, "the channel lives inside DTLS"
        while (packet := self._channel.poll_transmit()) is not None:
            self._dtls.send(packet)
        self._drain_dtls_transmits()
        if self._channel.ended and self.state is CallState.CLOSING:
            self._finish(now)

    def _drain_dtls_transmits(self) -> None:
        assert self._dtls is not None, "drained only where it exists"
        while (datagram := self._dtls.poll_transmit()) is not None:
            if self.client is not None:
                self._transmit(self.client, datagram)

    def _send_audio(self) -> None:
        if self._srtp is not None:
            self._drain_audio()

    def _drain_audio(self) -> None:
        assert self._srtp is not None and self.client is not None, "audio is drained only when active"
        while (packet := self.audio.poll_packet()) is not None:
            is_rtcp, plain = packet
            protected = self._srtp.protect_rtcp(plain) if is_rtcp else self._srtp.protect_rtp(plain)
            self._transmit(self.client, protected)

    def _send_again(self) -> None:
        assert self._srtp is not None and self.client is not None, "asked for by the client, over SRTP"
        for sequence in self.audio.poll_nacked() or ():
            packet = self._srtp.take_sent(sequence)
            if packet is not None:
                self._transmit(self.client, packet)
                self.audio.resent()

    def _transmit(self, client: ClientAddress, datagram: bytes) -> None:
        if len(self._transmits) >= MAX_TRANSMITS:
            self.drops["transmit_queue_full"] += 1
            return
        self._transmits.append((client, datagram))
