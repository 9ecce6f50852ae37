"""What a worker's data plane counts beside drops: packets, batches, bundles and the time that they waited.
Pure."""

from __future__ import annotations

from bisect import bisect_left

LATENCY_BUCKETS = (*(0.00002, 0.00005, 0.0001, 0.0002, 0.0005, 0.001, 0.002, 0.005, 0.01, 0.02, 0.05, 0.1),)
"""Seconds: from what one system call takes to what a jitter buffer cannot hide."""
SIZE_BUCKETS = (1, 2, 4, 8, 16, 32, 64, 128, 256)
HELP = {
    "client_packets": "Datagrams received from clients.",
    "client_bytes": "Bytes of clients' datagrams that were sent on.",
    "transceiver_packets": "Datagrams sent to clients.",
    "transceiver_bytes": "Bytes sent to clients.",
    "link_bytes_out": "Bytes sent to transceivers, link headers included.",
    "link_datagrams_out": "Link datagrams sent; each carries one or more client packets.",
    "link_datagrams_in": "Link datagrams received.",
    "dead_transceivers": "Times that ICMP said that nobody is at a transceiver's address.",
    "ticks": "Quarters of a second that the thread of packets has seen.",
}
"""What is counted, in words."""


class Sizes:
    """Whole numbers from 0 to `largest`, counted one by one. One thread counts; others may read."""

    __slots__ = ("counts",)

    def __init__(self, largest: int) -> None:
        self.counts = [0] * (largest + 1)

    @property
    def sum(self) -> int:
        return sum(size * count for size, count in enumerate(self.counts))

    def cumulative(self) -> list[tuple[str, int]]:
        """As `Histogram.cumulative`."""
        counts = list(self.counts)
        rows = [(str(bound), sum(counts[: bound + 1])) for bound in SIZE_BUCKETS if bound < len(counts)]
        return [*rows, ("+Inf", sum(counts))]


class Histogram:
    """Observations by bucket. One thread observes; others may read."""

    __slots__ = ("_bounds", "counts", "sum")

    def __init__(self, bounds: tuple[float, ...]) -> None:
        self._bounds = bounds
        self.counts = [0] * (len(bounds) + 1)
        self.sum = 0.0

    def observe(self, value: float) -> None:
        self.counts[bisect_left(self._bounds, value)] += 1
        self.sum += value

    def cumulative(self) -> list[tuple[str, int]]:
        """(upper bound as Prometheus writes it, observations up to it), the last one `+Inf`."""
        total, rows = 0, []
        for bound, count in zip((*map(str, self._bounds), "+Inf"), list(self.counts), strict=True):
            total += count
            rows.append((bound, total))
        return rows


class PlaneCounts:
    """The counters of one data plane."""

    __slots__ = ("batch", "bundle", "totals", "waited")

    def __init__(self, batch: int) -> None:
        """`batch`: datagrams that one receiving call takes at most."""
        self.totals = dict.fromkeys(HELP, 0)
        self.batch = Sizes(batch)
        """Datagrams per receiving call, of all sockets."""
        self.bundle = Sizes(batch)
        """Client packets per link datagram that was sent."""
        self.waited = Histogram(LATENCY_BUCKETS)
        """From a packet's arrival in the kernel to its leaving, for the one of each batch that waited
        longest."""
