"""The way in: RTP packets in any order to one sample-true line of PCM, with no playout delay.

There is no loudspeaker here, so nothing has to be smooth: an in-order frame is decoded and given out at once.
Only a gap waits. Rules:

* Gap: packets after it are held for as long as measured jitter says, MIN_WAIT to MAX_WAIT from the first of
  them, and at most MAX_HELD packets. A missing packet that comes in time is put in order.
* A gap that is given up is filled to the sample: concealment for MAX_CONCEAL, then silence, and the last
  frame from the next packet's redundancy where it has any. Its packets are late from then on and dropped.
* The RTP timestamp is the timeline. A leap in time without missing packets is the client's silence (DTX,
  mute) and becomes silence of the same length, up to MAX_SILENCE at once. A leap that real time does not bear
  out, or one backwards, is a restarted clock: the line goes on from there and nothing is inserted.
* A jump in sequence numbers, or another SSRC, is believed when the next packet follows it (RFC 3550 appendix
  A.1), and both are played then.
* Output is bounded by an allowance that fills in real time, so no packet can make hours of audio.

The silence of DTX is given out when the first packet after it comes, not while it lasts.
"""

from __future__ import annotations

from collections import deque
from dataclasses import dataclass
from typing import Final

from voicegate.media.codec import PCM_RATE, Decoder
from voicegate.proto.errors import BadPacket
from voicegate.proto.rtp import RtpPacket, sequence_delta, timestamp_delta

MIN_WAIT: Final = 0.02
"""One frame: a pair of swapped packets is always put right."""
MAX_WAIT: Final = 0.06
"""What later packets may be held back: three frames, beyond which the wait hurts more than the loss."""
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
_ALLOWANCE_CAP = 10.0 * PCM_RATE
"""Samples that may be given out in one burst: a whole MAX_SILENCE twice over."""
_ALLOWANCE_RATE = 1.05 * PCM_RATE
"""Samples a second: real time, and more than any clock is wrong."""
MAX_UNREAD: Final = 1000
"""Pieces of PCM waiting for `poll_pcm`: a caller that drains after each call has a fraction of it."""
_RECENT = (1 << MAX_MISORDER) - 1
_TOLERANCE = 1e-6


@dataclass(slots=True)
class ReceiveCounts:
    """Counters since the start. All `*_samples` are of the 24 kHz output."""

    received: int = 0
    """Packets pushed."""
    played: int = 0
    """Packets decoded."""
    reordered: int = 0
    """Packets that closed a gap in time."""
    lost: int = 0
    """Packets given up."""
    late: int = 0
    duplicate: int = 0
    corrupt: int = 0
    """Payloads the codec refused."""
    skipped: int = 0
    """Packets without audio of ours: another payload type, or padding only."""
    stray: int = 0
    """Packets of another stream, or far out of sequence, that nothing followed."""
    resyncs: int = 0
    """Sequence jumps and SSRC changes that were believed."""
    clock_jumps: int = 0
    """Timestamp leaps that real time does not bear out."""
    flooded: int = 0
    """Packets refused because they carry more audio than time has passed."""
    held_overflow: int = 0
    """Gaps given up because MAX_HELD packets waited."""
    decoded_samples: int = 0
    concealed_samples: int = 0
    recovered_samples: int = 0
    """From in-band FEC."""
    silence_samples: int = 0
    omitted_samples: int = 0
    """Silence that should have been inserted but was beyond MAX_SILENCE or the allowance."""
    unread_samples: int = 0
    """Dropped because nobody polled."""


class ReceiveBuffer:
    """One call's way in. `payload_type` is the negotiated audio; others only use up a sequence number."""

    def __init__(self, decoder: Decoder, payload_type: int) -> None:
        self.counts = ReceiveCounts()
        self._decoder = decoder
        self._payload_type = payload_type
        self._pcm: deque[bytes] = deque()
        self._ssrc: int | None = None
        self._sequence = 0  # the next in order
        self._timestamp = 0  # where the line of samples ends, on the RTP clock
        self._missing = 0  # packets since the last one decoded
        self._recent = 0  # bit i: the packet i + 1 before the next in order was here
        self._heard_at = 0.0  # when the last packet in order came
        self._held: dict[int, tuple[RtpPacket, float]] = {}  # by sequence, in order of arrival
        self._candidate: RtpPacket | None = None  # may be the first of another stream
        self._jitter = _Jitter(decoder.clock_rate)
        self._allowance = _Allowance()

    def push(self, packet: RtpPacket, now: float) -> None:
        """Take one authenticated packet. Never raises: what cannot be used is counted. Then `poll_pcm`."""
        self.counts.received += 1
        if self._ssrc is None:
            self._restart_at(packet)
        delta = sequence_delta(packet.sequence, self._sequence)
        if packet.ssrc != self._ssrc or delta > MAX_DROPOUT or delta < -MAX_MISORDER:
            self._push_stray(packet, now)
            return
        self._jitter.update(packet.timestamp, now)
        if delta == 0:
            if self._held:
                self.counts.reordered += 1
            self._accept(packet, now)
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
            self._hold(packet, now)

    def poll_pcm(self) -> bytes | None:
        """The next piece of the line, any whole number of samples, or None."""
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
        """Give up the gaps whose wait is over."""
        while True:
            deadline = self.next_deadline()
            if deadline is None or deadline > now + _TOLERANCE:
                return
            self._give_up_gap(now)

    def next_deadline(self) -> float | None:
        """When the oldest gap is given up, or None while there is none."""
        for _packet, arrival in self._held.values():  # the first one came first
            return arrival + self._jitter.wait()
        return None

    def statistics(self) -> ReceiveCounts:
        return self.counts

    def close(self) -> None:
        """Free the decoder. What is held is not worth playing any more."""
        self._held.clear()
        self._pcm.clear()
        self._decoder.close()

    def _hold(self, packet: RtpPacket, now: float) -> None:
        self._held[packet.sequence] = (packet, now)
        if len(self._held) > MAX_HELD:
            self.counts.held_overflow += 1
            self._give_up_gap(now)

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
            self._accept(held[0], now)

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
                self._restart_at(first)
                self._accept(first, now)
                self.counts.received -= 1  # it was counted on its way here
                self.push(packet, now)
                return
            self.counts.stray += 1
        self._candidate = packet

    def _restart_at(self, packet: RtpPacket) -> None:
        self._ssrc = packet.ssrc
        self._sequence = packet.sequence
        self._timestamp = packet.timestamp
        self._missing = 0
        self._recent = 0
        self._jitter.forget()

    def _accept(self, packet: RtpPacket, now: float) -> None:
        """Play the packet that is next in order."""
        self._sequence = (packet.sequence + 1) & 0xFFFF
        self._recent = (self._recent << 1 | 1) & _RECENT
        if packet.payload_type != self._payload_type or not packet.payload:
            self.counts.skipped += 1
            return
        if not self._allowance.refill(now):
            self.counts.flooded += 1
            self._missing += 1
            return
        gap = timestamp_delta(packet.timestamp, self._timestamp)
        if gap:
            self._bridge(packet.payload, gap, now)
        self._heard_at = now
        try:
            pcm = self._decoder.decode(packet.payload)
        except BadPacket:
            self.counts.corrupt += 1
            self._missing = 1
            self._timestamp = packet.timestamp
            return
        self.counts.played += 1
        self.counts.decoded_samples += self._emit(pcm)
        self._missing = 0
        units = len(pcm) // 2 * self._decoder.clock_rate // PCM_RATE
        self._timestamp = (packet.timestamp + units) & 0xFFFFFFFF

    def _bridge(self, payload: bytes, gap: int, now: float) -> None:
        """Fill `gap` units of the RTP clock before this payload, or see that the clock has been restarted."""
        clock_rate = self._decoder.clock_rate
        if gap < 0 or gap / clock_rate > now - self._heard_at + _JUMP_SLACK:
            self.counts.clock_jumps += 1
            return
        wanted = gap * PCM_RATE // clock_rate
        samples = min(wanted, MAX_SILENCE, self._allowance.samples())
        self.counts.omitted_samples += wanted - samples
        recovered = b""
        if self._missing:
            size = self._decoder.fec_samples(payload)
            usable = size if 0 < size <= samples else 0
            concealed = min(samples - usable, MAX_CONCEAL)
            self.counts.concealed_samples += self._emit(self._decoder.conceal(concealed))
            samples -= concealed
            if usable:
                recovered, samples = self._recover(payload, usable), samples - usable
        self.counts.silence_samples += self._emit(bytes(2 * samples))
        self._emit(recovered)

    def _recover(self, payload: bytes, samples: int) -> bytes:
        try:
            pcm = self._decoder.decode_fec(payload, samples)
        except BadPacket:
            self.counts.concealed_samples += samples
            return self._decoder.conceal(samples)
        self.counts.recovered_samples += samples
        return pcm

    def _emit(self, pcm: bytes) -> int:
        samples = len(pcm) // 2
        if samples:
            self._allowance.spend(samples)
            if len(self._pcm) < MAX_UNREAD:
                self._pcm.append(pcm)
            else:
                self.counts.unread_samples += samples
        return samples


class _Jitter:
    """How far packets stray from their timestamps: the largest recent deviation, halving in 34 packets."""

    __slots__ = ("_at", "_clock_rate", "_deviation", "_timestamp")

    def __init__(self, clock_rate: int) -> None:
        self._clock_rate = clock_rate
        self._deviation = 0.0
        self._timestamp = 0
        self._at: float | None = None

    def update(self, timestamp: int, now: float) -> None:
        """RFC 3550 section 6.4.1: D(i-1,i), here in seconds and as a decaying peak instead of a mean."""
        if self._at is not None:
            spread = abs(now - self._at - timestamp_delta(timestamp, self._timestamp) / self._clock_rate)
            self._deviation = max(min(spread, MAX_WAIT), self._deviation * 0.98)
        self._timestamp = timestamp
        self._at = now

    def forget(self) -> None:
        """The next packet is of another clock."""
        self._at = None

    def wait(self) -> float:
        return max(MIN_WAIT, self._deviation)


class _Allowance:
    """A bucket of samples that fills in real time: what may still be given out."""

    __slots__ = ("_at", "_samples")

    def __init__(self) -> None:
        self._samples = _ALLOWANCE_CAP
        self._at: float | None = None

    def refill(self, now: float) -> bool:
        """Add the time that has passed; whether anything may be given out."""
        if self._at is not None:
            self._samples = min(_ALLOWANCE_CAP, self._samples + (now - self._at) * _ALLOWANCE_RATE)
        self._at = now
        return self._samples > 0

    def samples(self) -> int:
        return max(0, int(self._samples))

    def spend(self, samples: int) -> None:
        self._samples -= samples
