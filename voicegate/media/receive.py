"""The way in: RTP packets in any order to one sample-true line of PCM, with no playout delay.

There is no loudspeaker here, so nothing has to be smooth: an in-order frame is decoded and given out at once.
Only a gap waits. Rules:

* Gap: packets after it are held for as long as measured jitter says, MIN_WAIT to MAX_WAIT from the first of
  them, and at most MAX_HELD packets. A missing packet that comes in time is put in order.
* Redundancy (RED, RFC 2198): a copy of a missing frame takes its place at once. A gap with a copy for each
  frame never waits.
* A gap that is given up is filled to the sample: concealment for MAX_CONCEAL, then silence, and the last
  frame from the next packet's in-band FEC where it has any. Its packets are late from then on and dropped.
* The RTP timestamp is the timeline. A leap in time without missing packets is the client's silence (DTX,
  comfort noise, mute) and becomes silence of the same length, up to MAX_SILENCE at once. A leap that real
  time does not bear out, or one backwards, is a restarted clock: the line goes on from there and nothing is
  inserted.
* Telephone events (RFC 4733) come instead of sound: silence, as long as no sound comes. Their timestamps
  stand still while a key is down, so they say nothing about jitter and do not move the line.
* That silence is given out while it lasts, once it is clear that packets are not merely late: see `pause`.
* A jump in sequence numbers, or another SSRC, is believed when the next packet follows it (RFC 3550 appendix
  A.1), and both are played then.
* Output is bounded by an allowance that fills in real time, so no packet can make hours of audio.

The line follows the client's clock and has none of its own, so a client whose clock is fast or slow neither
starves it nor makes it grow.
"""

from __future__ import annotations

from collections import deque
from typing import Final, NamedTuple

from voicegate.media.codec import PCM_RATE, Decoder
from voicegate.media.jitter import MAX_WAIT, MIN_WAIT, Allowance, Jitter
from voicegate.media.pause import Pause
from voicegate.media.receive_counts import ReceiveCounts
from voicegate.media.red import RedBlock, parse_red_untrusted
from voicegate.proto.errors import BadPacket
from voicegate.proto.rtp import RtpPacket, sequence_delta, timestamp_delta

__all__ = ["MAX_WAIT", "MIN_WAIT", "ReceiveBuffer", "ReceiveCounts"]

MAX_HELD: Final = 50
"""Packets behind a gap: one second at 20 ms, far more than come in MAX_WAIT unless it is a flood."""
MAX_CONCEAL: Final = PCM_RATE * 120 // 1000
"""Samples concealed at once: six frames. More is a drone and no longer speech."""
MAX_SILENCE: Final = PCM_RATE * 5
"""Samples inserted at once: longer than a turn detector waits for. The rest is counted, not played."""
MAX_DROPOUT: Final = 3000
MAX_MISORDER: Final = 100
"""RFC 3550 appendix A.1, in packets."""
_JUMP_SLACK = 1.0
"""Seconds a timestamp may be ahead of real time: a stalled network that delivers all at once."""
MAX_UNREAD: Final = 1000
"""Pieces of PCM waiting for `poll_pcm`: a caller that drains after each call has a fraction of it."""
_RECENT = (1 << MAX_MISORDER) - 1
_TOLERANCE = 1e-6


class _Held(NamedTuple):
    """A packet behind a gap, and when it came."""

    packet: RtpPacket
    arrival: float
    copy: bool
    """Made from a redundant block of a later packet."""


class ReceiveBuffer:
    """One call's way in.

    `payload_type` is the negotiated audio, `red_payload_type` RED over it (RFC 2198), `cn_payload_type`
    comfort noise (RFC 3389) and `event_payload_type` telephone events (RFC 4733); packets of others only use
    up a sequence number.
    """

    def __init__(
        self,
        decoder: Decoder,
        payload_type: int,
        *,
        red_payload_type: int | None = None,
        cn_payload_type: int | None = None,
        event_payload_type: int | None = None,
    ) -> None:
        self.counts = ReceiveCounts()
        self._decoder = decoder
        self._samples_per_byte = decoder.sound.samples_per_byte
        self._payload_type = payload_type
        self._red_payload_type = red_payload_type
        self._cn_payload_type = cn_payload_type
        self._event_payload_type = event_payload_type
        self._pcm: deque[bytes] = deque()
        self._ssrc: int | None = None
        self._sequence = 0  # the next in order
        self._timestamp = 0  # where the line of samples ends, on the RTP clock
        self._missing = 0  # packets since the last one decoded
        self._recent = 0  # bit i: the packet i + 1 before the next in order was here
        self._held: dict[int, _Held] = {}  # by sequence, in order of arrival
        self._candidate: RtpPacket | None = None  # may be the first of another stream
        self._jitter = Jitter(decoder.clock_rate)
        self._pause = Pause(decoder.clock_rate)
        self._allowance = Allowance()

    def push(self, packet: RtpPacket, now: float) -> None:
        """Take one authenticated packet. Never raises: what cannot be used is counted. Then `poll_pcm`."""
        self.counts.received += 1
        blocks: tuple[RedBlock, ...] = ()
        if packet.payload_type == self._red_payload_type:
            packet, blocks = self._open_red(packet)
        if self._ssrc is None:
            self._restart_at(packet, now)
        delta = 0 if packet.sequence == self._sequence else sequence_delta(packet.sequence, self._sequence)
        if packet.ssrc != self._ssrc or delta > MAX_DROPOUT or delta < -MAX_MISORDER:
            self._push_stray(packet, now)
            return
        if packet.payload_type != self._event_payload_type:
            self._jitter.update(packet.timestamp, now)
        if delta == 0:
            if self._held:
                self.counts.reordered += 1
            self._accept(packet, now, now)
            if self._held:
                self._release_in_order(now)
        elif delta < 0:
            if self._recent >> (-delta - 1) & 1:
                self.counts.duplicate += 1
            else:
                self.counts.late += 1
        elif packet.sequence in self._held:
            self.counts.duplicate += 1
        else:
            self._hold(packet, blocks, now)

    def poll_pcm(self) -> bytes | None:
        """The next piece of the line, any whole number of samples of `decoder.sound`, or None."""
        return self._pcm.popleft() if self._pcm else None

    def flush(self, now: float) -> None:
        """Give up all gaps, so that everything that has come can be polled. The line goes on behind it."""
        while self._held:
            self._give_up_gap(now)

    def drop(self, now: float) -> None:
        """Forget everything that has come and is not polled. The line goes on behind it."""
        self.flush(now)
        self._pcm.clear()

    def handle_timeout(self, now: float) -> None:
        """Give up the gaps whose wait is over, and give out the silence of a pause."""
        while self._held and self._gap_deadline() <= now + _TOLERANCE:
            self._give_up_gap(now)
        if not self._held and now + _TOLERANCE >= self._pause.next_deadline(self._jitter.wait):
            self._give_live_silence(now)

    def next_deadline(self) -> float | None:
        """When the oldest gap is given up or, without one, when silence is given out; None before the first
        packet."""
        if self._held:
            return self._gap_deadline()
        return None if self._ssrc is None else self._pause.next_deadline(self._jitter.wait)

    def statistics(self) -> ReceiveCounts:
        return self.counts

    def close(self) -> None:
        """Free the decoder. What is held is not worth playing any more."""
        self._held.clear()
        self._pcm.clear()
        self._ssrc = None
        self._decoder.close()

    # Order

    def _gap_deadline(self) -> float:
        return next(iter(self._held.values())).arrival + self._jitter.wait  # the first one came first

    def _hold(self, packet: RtpPacket, blocks: tuple[RedBlock, ...], now: float) -> None:
        self._held[packet.sequence] = _Held(packet, now, False)
        if blocks:
            self._hold_copies(packet, blocks, now)
            self._release_in_order(now)
        while len(self._held) > MAX_HELD:
            self.counts.held_overflow += 1
            self._give_up_gap(now)

    def _open_red(self, packet: RtpPacket) -> tuple[RtpPacket, tuple[RedBlock, ...]]:
        """The packet as if it had come without redundancy, and its blocks. A lying one stays RED."""
        try:
            red = parse_red_untrusted(packet.payload)
        except BadPacket:
            return packet, ()
        inner = RtpPacket(
            packet.marker, red.payload_type, packet.sequence, packet.timestamp, packet.ssrc, red.payload
        )
        return inner, red.blocks

    def _hold_copies(self, packet: RtpPacket, blocks: tuple[RedBlock, ...], now: float) -> None:
        """Put redundant blocks where packets before this one are missing.

        A block names its time and not its sequence number. It belongs to the packet before where it ends when
        the other one begins, or where only one packet is missing there: then a pause lies between.
        """
        decoder, units = self._decoder, self._decoder.clock_rate / PCM_RATE
        sequence, begin = packet.sequence, 0  # of the packet walked back to; times relative to this packet
        line_end = timestamp_delta(self._timestamp, packet.timestamp) - self._pause.given * units
        for block in sorted(blocks, key=lambda block: block.offset):  # from the newest back
            start = -block.offset
            end = start + decoder.duration(block.payload) * units
            while (held := self._held.get((sequence - 1) & 0xFFFF)) is not None:
                held_begin = timestamp_delta(held.packet.timestamp, packet.timestamp)
                if held_begin < end:
                    break
                sequence, begin = held.packet.sequence, held_begin
            missing = (sequence - self._sequence) & 0xFFFF
            if not missing or start < line_end:
                return  # the rest is of what has been played
            fits = start < end == begin or (start < end < begin and missing == 1)
            if block.payload_type != self._payload_type or not fits:
                self.counts.unplaced_red += 1
                continue
            sequence, begin = (sequence - 1) & 0xFFFF, start
            if sequence not in self._held:
                copy = packet._replace(
                    sequence=sequence,
                    timestamp=(packet.timestamp + start) & 0xFFFFFFFF,
                    payload=block.payload,
                    payload_type=self._payload_type,
                )
                self._held[sequence] = _Held(copy, now, True)

    def _give_up_gap(self, now: float) -> None:
        """Go on with the next packet that is there."""
        sequence = min(self._held, key=lambda held: (held - self._sequence) & 0xFFFF)
        lost = (sequence - self._sequence) & 0xFFFF
        self.counts.lost += lost
        self._missing += lost
        self._recent = (self._recent << lost) & _RECENT
        self._sequence = sequence
        self._release_in_order(now)

    def _release_in_order(self, now: float) -> None:
        while (held := self._held.pop(self._sequence, None)) is not None:
            before = self.counts.decoded_samples
            self._accept(held.packet, held.arrival, now)
            if held.copy and self.counts.decoded_samples > before:
                self.counts.recovered_red += 1
                self.counts.recovered_red_samples += self.counts.decoded_samples - before

    def _push_stray(self, packet: RtpPacket, now: float) -> None:
        """Another SSRC or a jump: follow it once a second packet agrees, RFC 3550 appendix A.1."""
        first = self._candidate
        if first is not None:
            self._candidate = None
            if (
                first.ssrc == packet.ssrc
                and 0 < sequence_delta(packet.sequence, first.sequence) <= MAX_MISORDER
            ):
                self.flush(now)
                self.counts.resyncs += 1
                self._restart_at(first, now)
                self._accept(first, now, now)
                self.counts.received -= 1  # it was counted on its way here
                self.push(packet, now)
                return
            self.counts.stray += 1
        self._candidate = packet

    def _restart_at(self, packet: RtpPacket, now: float) -> None:
        self._ssrc = packet.ssrc
        self._sequence = packet.sequence
        self._timestamp = packet.timestamp
        self._missing = 0
        self._recent = 0
        self._jitter.forget()
        self._pause.restart(now)

    # Time

    def _accept(self, packet: RtpPacket, arrival: float, now: float) -> None:
        """Play the packet that is next in order."""
        self._sequence = (packet.sequence + 1) & 0xFFFF
        self._recent = (self._recent << 1 | 1) & _RECENT
        payload = packet.payload
        if packet.payload_type != self._payload_type or not payload:
            self._accept_other(packet, arrival, now)
            return
        if not self._reach(packet, payload, arrival, now):
            return
        decoder = self._decoder
        try:
            pcm = decoder.decode(payload)
        except BadPacket:
            self.counts.corrupt += 1
            self._missing = 1
            self._pause.heard(arrival, False)
            return
        self.counts.played += 1
        self.counts.decoded_samples += self._emit(pcm)
        self._missing = 0
        samples = int(len(pcm) * self._samples_per_byte)
        self._timestamp = (packet.timestamp + samples * decoder.clock_rate // PCM_RATE) & 0xFFFFFFFF
        self._pause.heard(arrival + samples / PCM_RATE, len(payload) <= decoder.dtx_bytes)

    def _accept_other(self, packet: RtpPacket, arrival: float, now: float) -> None:
        """The packet that is next in order, without audio in it."""
        if packet.payload_type == self._cn_payload_type:
            self.counts.comfort_noise += 1
            if self._reach(packet, b"", arrival, now):
                self._missing = 0
                self._pause.heard(arrival, True)
        elif packet.payload_type == self._event_payload_type:
            self.counts.telephone_events += 1
            self._pause.announce()
        elif packet.payload_type == self._red_payload_type:  # lying lengths, or RED within RED
            self.counts.corrupt += 1
            self._missing += 1
        else:
            self.counts.skipped += 1
            if packet.payload_type == self._payload_type:
                self._pause.announce()

    def _reach(self, packet: RtpPacket, payload: bytes, arrival: float, now: float) -> bool:
        """Take the line of samples to where this packet begins. False: it comes in a flood."""
        if not self._allowance.refill(now):
            self.counts.flooded += 1
            self._missing += 1
            return False
        if packet.timestamp != self._timestamp:
            gap = timestamp_delta(packet.timestamp, self._timestamp)
            self._bridge(packet.timestamp, payload, gap, arrival, now)
            self._timestamp = packet.timestamp
        return True

    def _bridge(self, timestamp: int, payload: bytes, gap: int, arrival: float, now: float) -> None:
        """Fill `gap` units of the RTP clock before this payload, or see that the clock has been restarted."""
        wanted = gap * PCM_RATE // self._decoder.clock_rate
        if 0 < -wanted <= self._pause.given:
            self._pause.doubled(-wanted, arrival, timestamp, self._timestamp)
            return
        if gap < 0 or wanted / PCM_RATE > self._pause.seconds_since(now) + _JUMP_SLACK:
            self.counts.clock_jumps += 1
            self._pause.forget_late()
            return
        samples = min(wanted, MAX_SILENCE, self._allowance.samples())
        self.counts.omitted_samples += wanted - samples
        recovered = b""
        if self._missing:
            size = self._decoder.fec_samples(payload)
            usable = size if 0 < size <= samples else 0
            # After silence there is nothing to continue.
            concealed = 0 if self._pause.given else min(samples - usable, MAX_CONCEAL)
            self.counts.concealed_samples += self._emit(self._decoder.conceal(concealed))
            samples -= concealed
            if usable:
                recovered, samples = self._recover(payload, usable), samples - usable
        self._emit_silence(samples)
        self._emit(recovered)

    def _give_live_silence(self, now: float) -> None:
        """The client's pause while it lasts."""
        due = self._pause.due(now, self._jitter.wait)
        if due:
            self._allowance.refill(now)
            samples = min(due, MAX_SILENCE, self._allowance.samples())
            self.counts.omitted_samples += due - samples
            self.counts.live_silence_samples += self._emit_silence(samples)
            self._pause.give(due)
            self._timestamp = (self._timestamp + due * self._decoder.clock_rate // PCM_RATE) & 0xFFFFFFFF

    def _emit_silence(self, samples: int) -> int:
        repaid = self._pause.repay(samples, self._timestamp)
        self.counts.repaid_samples += repaid
        emitted = self._emit(self._decoder.sound.silent(samples - repaid))
        self.counts.silence_samples += emitted
        return emitted

    def _recover(self, payload: bytes, samples: int) -> bytes:
        try:
            pcm = self._decoder.decode_fec(payload, samples)
        except BadPacket:
            self.counts.concealed_samples += samples
            return self._decoder.conceal(samples)
        self.counts.recovered_fec_samples += samples
        return pcm

    def _emit(self, pcm: bytes) -> int:
        samples = int(len(pcm) * self._samples_per_byte)
        if samples:
            self._allowance.spend(samples)
            if len(self._pcm) < MAX_UNREAD:
                self._pcm.append(pcm)
            else:
                self.counts.unread_samples += samples
        return samples
