"""From what was sent and heard to figures: pure."""

from __future__ import annotations

from bisect import bisect_left
from collections.abc import Iterable, Sequence
from typing import Any

import numpy as np
from numpy.typing import NDArray

from tests.support.light_client import Heard

CLOCK_RATE = 48_000
FRAME_SAMPLES = 480
"""Of 24 kHz, a frame of 20 ms."""
GRID_SECONDS = 10.0
"""One grid for so long: 50 ppm of two clocks are half a millisecond then."""

Times = NDArray[np.float64]


def deviations(heard: Sequence[Heard], begun: float, ended: float) -> Times:
    """How far each packet that came in this time is from the 20-ms grid, in seconds.

    The grid is that of the RTP timestamps; where it lies is the median over GRID_SECONDS, so that no single
    packet decides. What comes late by a millisecond and what comes early by one deviate alike.
    """
    packets = [packet for packet in heard if begun <= packet.at <= ended]
    if len(packets) < 2:
        return np.empty(0)
    at = np.array([packet.at for packet in packets])
    stamps = np.unwrap([float(packet.timestamp) for packet in packets], period=2.0**32)
    offsets = at - stamps / CLOCK_RATE
    places = ((at - at[0]) // GRID_SECONDS).astype(int)
    parts = [offsets[places == place] for place in range(places.max() + 1)]
    return np.concatenate([np.abs(part - np.median(part)) for part in parts if len(part)])


def gaps(heard: Sequence[Heard], begun: float, ended: float) -> Times:
    """Seconds between packets that follow each other, in this time."""
    at = np.array([packet.at for packet in heard if begun <= packet.at <= ended])
    return np.diff(at)


def uplink(
    sent: Iterable[tuple[float, int]], appends: Sequence[Sequence[float]], begun: float, ended: float
) -> tuple[list[float], int]:
    """(seconds from a packet's way into the network to the append with its last sample, how many came late).

    `sent`: (when, number of the frame) of what reached the network; `appends`: (when, samples so far). The
    line of samples begins with the first frame. A packet that comes after something was made up in its place
    has no latency: it is late, and counted.
    """
    totals = [int(total) for _, total in appends]
    found: list[float] = []
    late = 0
    for at, number in sent:
        if not begun <= at <= ended:
            continue
        place = bisect_left(totals, (number + 1) * FRAME_SAMPLES)
        if place == len(totals) or place == 0:
            continue  # on its way when the notes ended, or noted before they began
        if appends[place][0] < at:
            late += 1
        else:
            found.append(appends[place][0] - at)
    return found, late


def listened(
    sent: Iterable[tuple[float, int]], frames: Sequence[Sequence[float]], begun: float, ended: float
) -> list[float]:
    """The same for an aiortc application: `frames` are (when, RTP time since the first)."""
    taken = {int(pts) // 960: at for at, pts in frames}
    return [taken[number] - at for at, number in sent if begun <= at <= ended and number in taken]


def first_after(heard: Sequence[Heard], times: Iterable[float]) -> list[float]:
    """Seconds from each of these times to the first packet of a talk spurt (RTP marker) after it."""
    marked = [packet.at for packet in heard if packet.marker]
    found = []
    for at in times:
        place = bisect_left(marked, at)
        if place < len(marked) and marked[place] - at < 0.5:
            found.append(marked[place] - at)
    return found


def last_before_pause(heard: Sequence[Heard], times: Iterable[float], pause: float = 0.2) -> list[float]:
    """Seconds from each of these times to the last packet that still came before a pause; 0: none came."""
    at = [packet.at for packet in heard]
    found = []
    for time in times:
        place = bisect_left(at, time)
        if place == 0 or time - at[place - 1] > pause or place == len(at):
            continue  # nothing was being said, or the notes end here
        last = time
        while place < len(at) and at[place] - last < pause:
            last = at[place]
            place += 1
        found.append(last - time)
    return found


def spectral_distance(
    clean: NDArray[Any], other: NDArray[Any], *, floor: float = 1e-4
) -> tuple[float, float]:
    """(mean log-spectral distance in dB over frames with speech, share of them further than 6 dB).

    Both are s16 at 24 kHz and on one line of samples. Frames of 20 ms, Hann, power spectra up to 8 kHz in
    bands of 200 Hz; a band is no quieter than `floor` of the clean frame's loudest, so that silence between
    harmonics does not count. Speech is what is within 35 dB of the loudest frame.
    """
    size = min(len(clean), len(other)) // FRAME_SAMPLES * FRAME_SAMPLES
    if not size:
        return float("nan"), float("nan")
    powers = []
    for sound in (clean, other):
        shaped = sound[:size].reshape(-1, FRAME_SAMPLES).astype(np.float64) * np.hanning(FRAME_SAMPLES)
        spectrum = np.abs(np.fft.rfft(shaped, axis=1)) ** 2
        powers.append(spectrum[:, :160].reshape(len(spectrum), 40, 4).sum(axis=2))  # 50 Hz a line
    energy = powers[0].sum(axis=1)
    speech = energy > energy.max() * 10**-3.5
    least = powers[0].max(axis=1, keepdims=True) * floor + 1.0
    levels = [10 * np.log10(np.maximum(power, least)) for power in powers]
    distance = np.sqrt(np.mean((levels[0] - levels[1]) ** 2, axis=1))[speech]
    return float(distance.mean()), float((distance > 6.0).mean())
