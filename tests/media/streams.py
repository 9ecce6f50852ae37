"""A client's RTP over a bad network, in virtual time, into a ReceiveBuffer, and what it did to the speech."""

from __future__ import annotations

import random
from collections.abc import Iterable
from dataclasses import dataclass

import numpy as np

from tests.media.signals import frames, samples
from voicegate.media.opus import Application, OpusDecoder, OpusEncoder
from voicegate.media.receive import ReceiveBuffer, ReceiveCounts
from voicegate.proto.rtp import RtpPacket

PT, RED, CN = 111, 63, 13
START = 500.0


def red(primary: bytes, *copies: tuple[int, bytes], payload_type: int = PT) -> bytes:
    """A payload of RFC 2198 with copies as (timestamp offset, payload), the oldest first."""
    headers = b"".join(
        ((0x80 | payload_type) << 24 | offset << 10 | len(copy)).to_bytes(4, "big") for offset, copy in copies
    )
    return headers + bytes((payload_type,)) + b"".join(copy for _, copy in copies) + primary


def stream(pcm: bytes, *, redundancy: str) -> list[RtpPacket]:
    """20-ms packets of speech with `redundancy` "fec", "red" (one copy) or "none"."""
    encoder = OpusEncoder(application=Application.VOIP)
    encoder.expect_loss(10 if redundancy == "fec" else 0)
    payloads = [encoder.encode(frame) for frame in frames(pcm)]
    packets = []
    for index, payload in enumerate(payloads):
        kind = PT
        if redundancy == "red":
            kind = RED
            payload = red(payload, (960, payloads[index - 1])) if index else red(payload)
        packets.append(RtpPacket(False, kind, index & 0xFFFF, 960 * index, 1, payload))
    return packets


def random_loss(count: int, share: float, rng: random.Random) -> list[float | None]:
    """The delay of each packet; None: lost. The first and the last always come, so that lengths compare."""
    return [None if 0 < i < count - 1 and rng.random() < share else 0.0 for i in range(count)]


def burst_loss(count: int, rng: random.Random) -> list[float | None]:
    """Five packets in a row, once in two seconds."""
    delays: list[float | None] = [0.0] * count
    for start in range(50, count - 10, 100):
        at = start + rng.randrange(40)
        delays[at : at + 5] = [None] * 5
    return delays


def jittered(count: int, spread: float, rng: random.Random) -> list[float | None]:
    """Each packet delayed on its own, 0 to `spread` seconds: neighbours overtake each other."""
    return [rng.uniform(0, spread) for _ in range(count)]


def reordered(count: int, share: float, rng: random.Random) -> list[float | None]:
    """A share of the packets comes one to two frames late."""
    return [rng.uniform(0.021, 0.04) if rng.random() < share else 0.0 for _ in range(count)]


@dataclass(frozen=True)
class Heard:
    pcm: bytes
    counts: ReceiveCounts
    waits: list[float]
    """For each packet that was played, seconds from its arrival to its sound."""

    def wait(self, quantile: float) -> float:
        return float(np.quantile(self.waits, quantile))

    @property
    def concealed(self) -> float:
        return self.counts.concealed_samples * 2 / len(self.pcm)


def carry(packets: list[RtpPacket], delays: Iterable[float | None]) -> Heard:
    """Bring the packets through, and say how long each was kept."""
    buffer = ReceiveBuffer(OpusDecoder(), PT, red_payload_type=RED, cn_payload_type=CN)
    arrivals = sorted(
        (START + 0.02 * index + delay, index) for index, delay in enumerate(delays) if delay is not None
    )
    heard: list[bytes] = []
    waits: list[float] = []
    pending: dict[int, float] = {}

    def look(now: float) -> None:
        heard.extend(iter(buffer.poll_pcm, None))
        next_in_order = buffer._sequence
        played = [index for index in pending if index < next_in_order]
        waits.extend(now - pending.pop(index) for index in played)

    for at, index in arrivals:
        while (deadline := buffer.next_deadline()) is not None and deadline < at:
            buffer.handle_timeout(deadline)
            look(deadline)
        late = buffer.counts.late + buffer.counts.duplicate
        buffer.push(packets[index], at)
        if buffer.counts.late + buffer.counts.duplicate == late:
            pending[index] = at
        look(at)
    buffer.flush(arrivals[-1][0])
    look(arrivals[-1][0])
    return Heard(b"".join(heard), buffer.counts, waits)


def segmental_snr(clean: bytes, heard: bytes) -> float:
    """Mean over the 20-ms frames with speech of the ratio to the difference, each -10 to 35 dB (the same)."""
    a, b = (
        samples(pcm)[: min(len(clean), len(heard)) // 960 * 480].reshape(-1, 480) for pcm in (clean, heard)
    )
    power, error = np.mean(a**2, axis=1), np.mean((a - b) ** 2, axis=1)
    loud = power > 0.01 * power.mean()
    ratio = 10 * np.log10(power[loud] / np.maximum(error[loud], 1e-3))
    return float(np.clip(ratio, -10, 35).mean())


def spectral_distance(clean: bytes, heard: bytes) -> float:
    """Mean log-spectral distance of 20-ms frames with speech, in dB; 0: the same."""
    a, b = (
        samples(pcm)[: min(len(clean), len(heard)) // 960 * 480].reshape(-1, 480) for pcm in (clean, heard)
    )
    loud = np.mean(a**2, axis=1) > 0.01 * np.mean(a**2)
    window = np.hanning(480)
    spectra = [20 * np.log10(np.abs(np.fft.rfft(x[loud] * window, axis=1)) + 100) for x in (a, b)]
    return float(np.sqrt(np.mean((spectra[0] - spectra[1]) ** 2, axis=1)).mean())
