"""How long a call hears nothing: many calls that talk both ways all the time, and when each packet came.

A *gap* is the longest time without an arrival within a window of time, of one call in one direction:

* down: RTP packets of the agent's voice, authenticated, at the client's socket;
* up: the microphone's audio, at the agent (`talking_agent`). After a loss the transceiver holds audio back
  for up to 60 ms in case the missing packet comes, and that is in this figure.

Clients send a packet every 20 ms and are sent one every 20 ms, in G.711, which costs the machine least. The
callers and the agent are processes of their own. Both note the monotonic clock, which all processes share.

    with TalkingAgent() as agent, cluster(tmp_path, agent_url=agent.url) as gate:
        with Callers(gate.calls_url, 100) as callers:
            ...                                  # something happens
        arrivals = callers.result(agent)         # stops both
    arrivals.gaps(start, end)

    python -m tests.support.gaps URL --calls 100 --seconds 30     # to a gateway that has a talking agent
"""

from __future__ import annotations

import argparse
import bisect
import itertools
import json
import sys
import time
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field
from typing import Any, NamedTuple, Self

from tests.support.child import Child, tell
from tests.support.light_client import Fleet, LightCall, request
from tests.support.talking_agent import TalkingAgent
from voicegate.proto import rtp
from voicegate.proto.errors import BadPacket

SET_UP_SECONDS = 60.0
"""For a hundred calls on two busy cores."""
_PCMU_SAMPLES = 160
_PCMU_SILENCE = b"\xff" * _PCMU_SAMPLES


@dataclass(frozen=True, slots=True)
class Gap:
    """One call's, in seconds."""

    call: str
    down: float
    up: float

    @property
    def longest(self) -> float:
        return max(self.down, self.up)


class Counts(NamedTuple):
    """One call's packets since its beginning; what is lost is told by gaps in the sequence numbers."""

    sent: int
    lost_up: int
    """By the transceiver's own count, from `GET /v1/realtime/calls/{id}`."""
    heard: int
    lost_down: int


@dataclass(slots=True)
class Arrivals:
    """When everything came, by call, in monotonic seconds and in order."""

    down: dict[str, list[float]]
    up: dict[str, list[float]]
    lost: dict[str, str]
    """Calls that did not live to the end: what ended them, or how long they had heard nothing by then."""

    def gaps(self, start: float, end: float) -> list[Gap]:
        """Of each call within this window, the longest first."""
        found = [
            Gap(call, longest_gap(times, start, end), longest_gap(self.up.get(call, []), start, end))
            for call, times in self.down.items()
        ]
        return sorted(found, key=lambda gap: gap.longest, reverse=True)


def longest_gap(times: Sequence[float], start: float, end: float) -> float:
    """The longest time without an arrival between `start` and `end`, the edges of the window included."""
    first, last = bisect.bisect_left(times, start), bisect.bisect_right(times, end)
    points = [start, *times[first:last], end]
    return max(later - earlier for earlier, later in itertools.pairwise(points))


def describe(gaps: Sequence[Gap]) -> str:
    """One line for people, in milliseconds."""
    parts = []
    for way in ("down", "up"):
        values = sorted(getattr(gap, way) * 1000 for gap in gaps)
        middle = values[len(values) // 2] if values else float("nan")
        parts.append(f"{way} median {middle:.0f} worst {values[-1] if values else float('nan'):.0f} ms")
    return ", ".join(parts)


@dataclass
class Callers:
    """A context manager around the callers' process; inside it all calls talk and hear."""

    url: str
    calls: int
    key: str = ""
    ports: dict[str, int] = field(default_factory=dict)
    """Each call's local UDP port."""
    _child: Child | None = None

    def __enter__(self) -> Self:
        arguments = [self.url, "--calls", str(self.calls), "--key", self.key, "--json"]
        self._child = Child("tests.support.gaps", *arguments)
        self.ports = self._child.first
        return self

    def __exit__(self, *_: object) -> None:
        self.stop()

    def count(self) -> dict[str, Counts]:
        """Each call's packets so far."""
        assert self._child is not None, "a context manager"
        return {call: Counts(*row) for call, row in self._child.ask("count").items()}

    def stop(self) -> dict[str, Any]:
        """Hang up, and read what was noted."""
        assert self._child is not None, "a context manager"
        noted: dict[str, Any] = self._child.stop()
        return noted

    def result(self, agent: TalkingAgent) -> Arrivals:
        """What came at the clients and at the agent; stops both."""
        noted = self.stop()
        agent.stop()
        up = {call: agent.arrivals.get(call, []) for call in noted["down"]}
        return Arrivals(noted["down"], up, noted["lost"])


class PlainCall(LightCall):
    """A call in G.711 that says silence and keeps of what it hears when it came."""

    def __init__(self, *args: Any, **options: Any) -> None:
        super().__init__(*args, **options)
        self.arrivals: list[float] = []
        self.sequences: list[int] = []
        self.last_heard = b""
        """The sound of the last packet."""

    def offer(self) -> str:
        return super().offer().replace("UDP/TLS/RTP/SAVPF 111 0 8", "UDP/TLS/RTP/SAVPF 0")

    def receive_datagram(self, data: bytes, address: tuple[str, int], now: float) -> None:
        if self.srtp is not None and len(data) > 12 and data[0] >> 6 == 2 and not 192 <= data[1] < 224:
            try:
                self.last_heard = self.srtp.unprotect_rtp_untrusted(data)[-_PCMU_SAMPLES:]
            except BadPacket as bad:
                self._count(bad.reason)
                return
            self.sequences.append(int.from_bytes(data[2:4], "big"))
            self.arrivals.append(now)
            if len(self.arrivals) == 1:
                self._mark("heard", now)
        else:
            super().receive_datagram(data, address, now)

    def _send_frame(self, now: float) -> None:
        self._next_frame += 0.02
        self._said += 1
        if not self.speak or self.srtp is None or self.remote is None:
            return
        packet = rtp.build_rtp(
            payload_type=0,
            sequence=(self._sequence + self._said) & 0xFFFF,
            timestamp=(self._timestamp + self._said * _PCMU_SAMPLES) & 0xFFFFFFFF,
            ssrc=self.ssrc,
            payload=_PCMU_SILENCE,
            marker=self._said == 1,
        )
        self.last_protected = self.srtp.protect_rtp(packet)
        self._out.append((self.last_protected, self.remote))

    @property
    def said(self) -> int:
        """Packets sent."""
        return self._said

    def tone(self) -> bool:
        """Whether it hears the talking agent: a square wave has two values and, filtered, what is between."""
        return len(set(self.last_heard)) > 1 and self.last_heard != _PCMU_SILENCE

    def missing(self) -> int:
        """Packets that did not come, of those between the first and the last."""
        seen, last, total = len(set(self.sequences)), None, 0
        for sequence in self.sequences:
            step = 0 if last is None else ((sequence - last + 0x8000) & 0xFFFF) - 0x8000
            if last is None or step > 0:
                total += step
                last = sequence
        return total + 1 - seen if self.sequences else 0


def plain_calls(fleet: Fleet, url: str, count: int, *, key: str = "", name: str = "call") -> list[PlainCall]:
    """Calls that talk and hear; `name`_0 and so on are their models, in order."""

    def one(number: int) -> PlainCall:
        call = fleet.call(f"{url}?model={name}_{number}", key=key, kind=PlainCall)
        assert isinstance(call, PlainCall)
        return call

    with ThreadPoolExecutor(8) as pool:
        calls = list(pool.map(one, range(count)))
    for call in calls:
        call.wait_for("heard", SET_UP_SECONDS)
    return calls


def count(fleet: Fleet, call: PlainCall, key: str = "") -> Counts:
    """A call's packets so far."""
    told = json.loads(request("GET", fleet.locations[id(call)], key=key).body)
    return Counts(
        call.said, told["statistics"]["audio"]["receive"]["lost"], len(call.arrivals), call.missing()
    )


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("url", help="where calls are posted: http://127.0.0.1:8080/v1/realtime/calls")
    parser.add_argument("--calls", type=int, default=100)
    parser.add_argument("--seconds", type=float, default=30.0)
    parser.add_argument("--key", default="", help="the API key")
    parser.add_argument("--json", action="store_true", help="until standard input ends, for `Callers`")
    args = parser.parse_args()
    with Fleet() as fleet:
        calls = plain_calls(fleet, args.url, args.calls, key=args.key)
        named = {f"call_{number}": call for number, call in enumerate(calls)}
        start = time.monotonic()
        if args.json:
            tell({name: call.local[1] for name, call in named.items()})
            for _ in sys.stdin:
                tell({name: count(fleet, call, args.key) for name, call in named.items()})
        else:
            time.sleep(args.seconds)
        end = time.monotonic()
        down = {name: [round(at, 5) for at in call.arrivals] for name, call in named.items()}
        lost = {name: why for name, call in named.items() if (why := _why_lost(call, end))}
    if args.json:
        tell({"down": down, "lost": lost})
    else:
        values = sorted(longest_gap(times, start, end) * 1000 for times in down.values())
        sys.stdout.write(
            f"{args.calls} calls, {args.seconds:g} s: longest gap down, median {values[len(values) // 2]:.0f}"
            f" worst {values[-1]:.0f} ms; calls lost: {lost or 'none'}\n"
        )


def _why_lost(call: PlainCall, now: float) -> str:
    """Empty for a call that lives."""
    silent = now - call.arrivals[-1]
    return call.closed or (f"heard nothing for {silent:.1f} s" if silent > 1.0 else "")


if __name__ == "__main__":
    main()
