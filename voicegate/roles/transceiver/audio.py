"""A call's audio: RTP and RTCP (in the clear) on one side, 24 kHz PCM on the other, or G.711 (`Line`). Pure.

in    RTP ─► ReceiveBuffer ─► PCM at once when in order; only a gap waits; silence while the client pauses
out   PCM ─► Playout ─► one frame on each absolute deadline ─► encoder ─► RTP
keys  telephone events ─► Keypad ─► `presses`
RTCP  reports about both, every 5 s or so; BYE at the end
"""

from __future__ import annotations

import math
from collections import deque
from collections.abc import Callable, Mapping
from dataclasses import asdict
from typing import NamedTuple

from voicegate.media.codec import open_decoder
from voicegate.media.dtmf import Keypad
from voicegate.media.playout import Playout
from voicegate.media.receive import ReceiveBuffer
from voicegate.media.recording import Tap
from voicegate.media.sending import PayloadTypes, RtpSender
from voicegate.media.sound import PCM, PCM_LINE, Line
from voicegate.proto.rtcp import Bye
from voicegate.proto.rtcp_session import PLAIN, RtcpOptions, RtcpReporter
from voicegate.proto.rtp import RtpPacket, parse_rtp_untrusted
from voicegate.proto.sdp import AudioFormat, TelephoneEventFormat

MAX_EARLY_BYTES = 30 * PCM.bytes_per_second
"""30 s of the agent's audio, kept until the client is connected: as long as a set-up may take."""


class Press(NamedTuple):
    """A key of the client's keypad."""

    key: str
    """0 to 9, *, #, A to D."""
    wall: float
    """When it came, in seconds since 1970."""


class CallAudio:
    """Both directions of one call's audio. `start` when the client is connected, `close` at the end."""

    def __init__(
        self,
        format: AudioFormat,
        line: Line = PCM_LINE,
        *,
        listening: bool,
        rtcp: RtcpOptions = PLAIN,
        ssrc: int,
        cname: str,
        first_sequence: int,
        first_timestamp: int,
        random: Callable[[], float],
        wall_offset: float,
        now: float,
        red_payload_type: int | None = None,
        cn_payload_type: int | None = None,
        telephone_event: TelephoneEventFormat | None = None,
        keep_warm: bool = False,
    ) -> None:
        """`line`: what is polled, and what is played.

        `red_payload_type`, `cn_payload_type`: under which both sides may send RED of this format (RFC
        2198), and the client comfort noise (RFC 3389). `telephone_event`: how it may send keys (RFC 4733).

        `keep_warm`: send a little silence whenever the agent says nothing (`Playout.keep_warm`).
        """
        self.listening = listening
        """The client takes audio: its direction is not sendonly or inactive (RFC 3264 section 6.1)."""
        self.line = line
        self.clock_rate = format.clock_rate
        """Of RTP timestamps."""
        self.tap: Tap | None = None
        """Where what is said is recorded."""
        self._ssrc = ssrc
        self._sender = RtpSender(
            format.codec.value,
            PayloadTypes(format.payload_type, red_payload_type),
            ssrc=ssrc,
            first_sequence=first_sequence,
            passes=line.said != PCM,
        )
        self.presses: deque[Press] = deque()
        """Keys pressed, to be taken by whoever drains; as many as the last packet told of."""
        self._event_payload_type = None if telephone_event is None else telephone_event.payload_type
        event_clock_rate = format.clock_rate if telephone_event is None else telephone_event.clock_rate
        self._keypad = Keypad(format.clock_rate, event_clock_rate)
        self._receive = ReceiveBuffer(
            open_decoder(format.codec.value, passes=line.heard != PCM),
            format.payload_type,
            red_payload_type=red_payload_type,
            cn_payload_type=cn_payload_type,
            event_payload_type=self._event_payload_type,
        )
        self._playout = Playout(first_timestamp, format.clock_rate, sound=line.said)
        self._keep_warm = keep_warm and listening
        self._early: bytearray | None = bytearray()
        """The agent's audio before `start`; None afterwards."""
        self._early_ended = False
        self._reporter = RtcpReporter(ssrc, cname, format.clock_rate, random, now, rtcp)
        self.resends = rtcp.nack
        """The client may ask for packets again."""
        self._listener: Callable[[bytes, float], None] | None = None
        """What hears the agent's audio as it is sent."""
        self._wall_offset = wall_offset
        self.packets: deque[tuple[bool, bytes]] = deque()
        """To be looked at; taken with `poll_packet`."""

    def start(self, now: float) -> None:
        """The client is connected: play what the agent said so far."""
        early, self._early = self._early, None
        if self._keep_warm:
            self._playout.keep_warm(now)
        if early:
            self.play(bytes(early), now)
        if self._early_ended:
            self.end_of_audio(now)

    # The microphone

    def receive_rtp(self, data: bytes, now: float) -> None:
        """Take one decrypted RTP packet. Raises BadPacket."""
        packet = parse_rtp_untrusted(data)
        self._reporter.received(packet, now)
        if packet.payload_type == self._event_payload_type:
            self._receive_keys(packet, now)
        self._receive.push(packet, now)
        if self._reporter.outgoing:
            self._send_reports()

    def _receive_keys(self, packet: RtpPacket, now: float) -> None:
        self._keypad.push(packet)
        while (key := self._keypad.poll_key()) is not None:
            self.presses.append(Press(key, now + self._wall_offset))

    def poll_audio(self) -> bytes | None:
        """The next stretch of the microphone: `line.heard`, any whole number of samples."""
        return self._receive.poll_pcm()

    def flush_microphone(self, now: float) -> None:
        """Let `poll_audio` give out all that has come; gaps in it are given up."""
        self._receive.flush(now)

    def drop_microphone(self, now: float) -> None:
        """Forget what has come and was not polled."""
        self._receive.drop(now)

    # The loudspeaker

    @property
    def played_samples(self) -> int:
        """Samples of the agent's audio sent since the start."""
        return self._playout.played_samples

    @property
    def queued_samples(self) -> int:
        """Samples neither sent nor dropped, early ones included."""
        queued = self._playout.queued_samples
        return queued + self.line.said.samples(self._early) if self._early else queued

    def heard_until(self) -> float | None:
        """When the last frame sent has been spoken to its end, seen from here; None before the first."""
        return self._playout.heard_until()

    def play(self, pcm: bytes, now: float) -> None:
        """Queue audio for the client, as `line.said`, any length."""
        if not self.listening:
            return
        if self._early is not None:
            self._keep_early(pcm)
            return
        self._playout.push(pcm, now)
        self._take_frame(now)

    def end_of_audio(self, now: float) -> None:
        """Nothing more belongs to this response: a last partial frame may go."""
        if self._early is not None:
            self._early_ended = True
            return
        self._playout.end_of_audio(now)
        self._take_frame(now)

    def stop_playing(self, now: float) -> bool:
        """Drop what is queued, and a pause with it. True when there was something."""
        if self._early is not None:
            was_speaking = bool(self._early)
            self._early.clear()
            return was_speaking
        dropped = self._playout.clear(now).dropped_samples
        self._playout.resume(now)
        return dropped > 0

    def pause_playing(self, now: float) -> None:
        """Send no more of the agent's audio, from the next frame on; nothing is lost."""
        self._playout.pause(now)

    def resume_playing(self, now: float) -> None:
        """Go on from the next sample."""
        self._playout.resume(now)
        self._take_frame(now)

    def listen_to_output(self, listener: Callable[[bytes, float], None] | None) -> None:
        """Give each frame that is sent, and the time, to this one; None: to nobody."""
        self._listener = listener

    def _keep_early(self, pcm: bytes) -> None:
        """Whole samples while there is room; the rest is counted as the playout counts it."""
        assert self._early is not None, "only before the start"
        counts, said = self._playout.counts, self.line.said
        odd = len(pcm) % said.sample_bytes
        counts.odd_bytes += odd
        room = MAX_EARLY_BYTES - len(self._early)
        pcm = pcm[: len(pcm) - odd]
        counts.overflow_samples += said.samples(pcm[room:])
        self._early += pcm[:room]

    def poll_packet(self) -> tuple[bool, bytes] | None:
        """(is RTCP, packet in the clear), or None."""
        return self.packets.popleft() if self.packets else None

    def _take_frame(self, now: float) -> None:
        frame = self._playout.poll_frame()
        if frame is None:
            return
        packet, octets = self._sender.packet(frame)
        self.packets.append((False, packet))
        if self.tap is not None:
            self.tap.say(frame.pcm, frame.timestamp, now)
        if self._listener is not None:
            self._listener(frame.pcm, now)
        self._reporter.sent(frame.timestamp, octets, now)

    # RTCP

    def receive_rtcp(self, data: bytes, now: float) -> bool:
        """Take one decrypted RTCP packet. True when the client said BYE. Raises BadPacket."""
        packets = self._reporter.receive_untrusted(data, now)
        while (feedback := self._reporter.poll_feedback()) is not None:
            self._sender.receive_loss(feedback.fraction_lost)
        return any(isinstance(packet, Bye) for packet in packets)

    def poll_nacked(self) -> tuple[int, ...] | None:
        """Sequence numbers that the client asks for again and that can still help it; then `resent`."""
        return self._reporter.poll_nacked()

    def resent(self) -> None:
        """One packet that `poll_nacked` named has left again."""
        self._reporter.resent()

    @property
    def rtcp_counts(self) -> Mapping[str, int]:
        """Feedback and retransmissions so far, by kind."""
        return self._reporter.counts

    def say_bye(self, now: float) -> None:
        """Tell the client that the stream ends (RFC 3550 section 6.6)."""
        self._reporter.close(now, now + self._wall_offset)
        self._send_reports()

    def _send_reports(self) -> None:
        while (report := self._reporter.poll_transmit()) is not None:
            self.packets.append((True, report))

    # Time

    def send_due_frame(self, now: float) -> None:
        """`handle_timeout` while nothing else is due."""
        self._playout.handle_timeout(now)
        self._take_frame(now)

    def handle_timeout(self, now: float) -> None:
        self._receive.handle_timeout(now)
        self.send_due_frame(now)
        self._reporter.handle_timeout(now, now + self._wall_offset)
        if self._reporter.outgoing:
            self._send_reports()

    def next_deadline(self) -> float | None:
        """The earliest of the next frame, the next gap, or silence, and the next report."""
        deadline = min(self.frame_deadline(), self.others_deadline())
        return None if deadline == math.inf else deadline

    def frame_deadline(self) -> float:
        """When the next frame of the agent's is due; infinite without one."""
        deadline = self._playout.next_deadline()
        return math.inf if deadline is None else deadline

    def others_deadline(self) -> float:
        """When anything else is: a frame that is sent does not change it."""
        gap, report = self._receive.next_deadline(), self._reporter.next_deadline()
        if gap is None or (report is not None and report < gap):
            gap = report
        return math.inf if gap is None else gap

    def statistics(self) -> dict[str, object]:
        return {
            "receive": asdict(self._receive.statistics()),
            "keypad": asdict(self._keypad.statistics()),
            "playout": asdict(self._playout.statistics()),
            "sending": self._sender.statistics(),
            "quality": self._reporter.statistics()._asdict(),
        }

    def close(self) -> None:
        """Free the codecs' memory."""
        self._sender.close()
        self._receive.close()
