"""What one round says of one relay, and what the rounds say together.

CPU per packet is the machine's busy time while packets go through the relay, less that of the generator which
sends and receives the same datagrams at the same rate with no relay between; per packet that arrived, both
ways together. The relay's own CPU time (user and system) stands beside it: it holds the relay's system calls
and, on loopback, the delivery of what it sends, but not the delivery of what is sent to it.

Latency is from just before the system call that sends until the packet is in the receiver's socket, less the
median without a relay; at saturation it is little but the time in the relay's queue. Towards clients packets
come in bursts, as transceivers send them; all relays get the same bursts.
"""

from __future__ import annotations

import os
from collections.abc import Sequence
from dataclasses import dataclass
from math import nan
from pathlib import Path
from statistics import median
from typing import Any

from bench.relay.contenders import Running
from bench.relay.load import generate

IN_FLIGHT = 1024
"""Packets under way at saturation: five times what the fastest relay forwards between two looks of the
generator, and half of what coturn's own socket buffers hold before they drop."""
FOREIGN_SHARE = 0.15
"""Of one CPU: a run with more beside it that is neither relay nor generator is made once more. On a quiet
machine it is 4 to 8 %: what the kernel does on its way into and out of idleness."""
Figures = dict[str, float]


@dataclass
class Contender:
    """A relay and how its transceivers talk to it."""

    label: str
    relay: str
    bundled: bool = False
    """Several frames to a datagram from the transceiver."""


@dataclass
class Bench:
    """The parameters of a whole run."""

    directory: Path
    seconds: float
    bundle: float
    """Packets that a transceiver sends at once."""
    generator_cpu: int | None

    def saturate(self, contender: Contender, relay: Running) -> Figures:
        """The rate at which the relay is full, and what a packet costs then."""
        full = self._run(contender, relay, "window", IN_FLIGHT)
        rate = full["packets"] / full["seconds"]
        # The same datagrams: as many as came out of the relay and went into it on average, since the
        # generator without a relay receives what it sends.
        frames = 1.0
        if contender.relay == "voicegate":
            link_datagrams = (full["link_in"] + full["link_out"]) / 2
            frames = max(1.0, full["packets"] / 2 / link_datagrams)
        alone = self._run(contender, relay, "ticks", rate, direct=True, frames=frames)
        # The clients and transceivers that look every 200 us are no yardstick of latency: here it is whole.
        return self._figures(full, alone, direct_p50=0.0)

    def load(self, contender: Contender, relay: Running, rate: float) -> Figures:
        """What a packet costs, and how late it is, at this rate. The generator never sleeps, so that it is
        not what is measured."""
        loaded = self._run(contender, relay, "spin", rate)
        alone = self._run(contender, relay, "spin", rate, direct=True)
        return self._figures(loaded, alone, direct_p50=alone["p50"])

    def _run(
        self,
        contender: Contender,
        relay: Running,
        mode: str,
        amount: float,
        *,
        direct: bool = False,
        frames: float = 0.0,
    ) -> Figures:
        runs: list[Figures] = []
        for _ in range(2):
            raw = generate(
                self.directory / "generator",
                relay.plan,
                relay.ends,
                mode=mode,
                amount=amount,
                seconds=self.seconds,
                bundle=frames or self.bundle,
                bundled=contender.bundled or frames > 1,
                direct=direct,
                pids=relay.pids(),
                cpu=self.generator_cpu,
            )
            runs.append(_flatten(raw))
            if runs[-1]["foreign"] <= FOREIGN_SHARE * self.seconds:
                break
        return min(runs, key=lambda run: run["foreign"])

    def _figures(self, through: Figures, alone: Figures, direct_p50: float) -> Figures:
        if not through["packets"] or not alone["packets"]:
            raise RuntimeError("no packet came through")
        machine = through["busy"] / through["packets"] - alone["busy"] / alone["packets"]
        return {
            "cpu_us": machine * 1e6,
            "own_cpu_us": through["relay"] / through["packets"] * 1e6,
            "generator_cpu_us": alone["busy"] / alone["packets"] * 1e6,
            "packets_per_second": through["packets"] / through["seconds"],
            "core": through["relay"] / through["seconds"],
            "lost": through["lost"] / through["sent"],
            "frames_up": through["packets_up"] / max(1.0, through["link_in"]),
            "frames_down": through["sent_down"] / max(1.0, through["link_out"]),
            "added_p50_us": through["p50"] - direct_p50,
            "added_p99_us": through["p99"] - direct_p50,
            "direct_p50_us": direct_p50,
            "foreign": max(through["foreign"] / through["seconds"], alone["foreign"] / alone["seconds"]),
        }


def _flatten(raw: dict[str, Any]) -> Figures:
    up, down = raw["up"], raw["down"]
    busy = raw["seconds"] * (os.cpu_count() or 1) - raw["idle"]
    return {
        "seconds": raw["seconds"],
        "busy": busy,
        "relay": raw["relay"],
        "foreign": busy - raw["relay"] - raw["generator"],
        "packets": up["received"] + down["received"],
        "packets_up": up["received"],
        "sent": up["sent"] + down["sent"],
        "lost": raw["lost"],
        "sent_down": down["sent"],
        "link_in": up["datagrams_in"],
        "link_out": down["datagrams_out"],
        "p50": raw["latency"]["p50"],
        "p99": raw["latency"]["p99"],
    }


def medians(rounds: Sequence[Figures]) -> Figures:
    """Each figure's median over the rounds."""
    return {name: median(one[name] for one in rounds) for name in rounds[0]}


def ratio(ours: Sequence[Figures], theirs: Sequence[Figures], name: str) -> float:
    """The median of the ratios of a figure, round by round; NaN where theirs was too little to measure.

    A moment's light load costs less than the clock of CPU time resolves: the difference to the generator
    alone can then be nothing.
    """
    pairs = zip(ours, theirs, strict=True)
    return median(a[name] / b[name] if b[name] > 0 else nan for a, b in pairs)
