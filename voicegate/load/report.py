"""What a run came to: a table for people, JSON for later, and a line a second while it goes on."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, Final

from voicegate.load.figures import Histogram
from voicegate.load.run import Plan, Result

PERCENTILES: Final = (0.5, 0.95, 0.99)
LATE: Final = 0.005
"""Seconds. When one in a hundred of the tool's own turns is later, it is at the end of its core."""


def as_json(plan: Plan, result: Result) -> dict[str, Any]:
    """Everything that was measured; times in milliseconds, shares of 1, None where nothing was there."""
    figures, traffic = result.figures, result.traffic
    counts = figures.counts
    return {
        "plan": {
            "calls": plan.calls,
            "ramp_per_second": plan.ramp,
            "seconds": plan.seconds,
            "network": plan.network._asdict(),
            "interrupt_after_seconds": plan.interrupt_after,
            "seed": plan.seed,
        },
        "calls": {
            "started": result.started,
            "answered": result.answered,
            "connected": result.connected,
            "most_at_once": result.most_up,
            "failed": dict(result.failures.most_common()),
            "ended_early": dict(result.ends.most_common()),
            "lost": result.lost_calls,
        },
        "setup_ms": {"answer": _summary(figures.answer), "connect": _summary(figures.connect)},
        "up": {
            "packets": traffic.sent,
            "lost": traffic.reported_lost,
            "loss": _share(traffic.reported_lost, traffic.sent),
            "calls_without_report": traffic.unreported,
        },
        "down": {
            "packets": traffic.received,
            "lost": traffic.lost,
            "loss": _share(traffic.lost, traffic.received + traffic.lost),
            "jitter_ms": _summary(traffic.jitter),
            "longest_gap_ms": _summary(traffic.gaps),
            "deviation_ms": _summary(figures.deviation),
            "talk_spurts": counts["spurts"],
        },
        "turns": {
            "said": counts["turns"],
            "answered": figures.reply.count,
            "unanswered": counts["unanswered"],
            "overlapped": counts["overlapped"],
            "reply_ms": _summary(figures.reply),
        },
        "interruptions": {
            "sent": counts["interruptions"],
            "last_packet_ms": _summary(figures.stop),
            "silence_ms": _summary(figures.silence),
        },
        "events": dict(result.events.most_common()),
        "tool": {
            "seconds": result.seconds,
            "stopped": result.stopped,
            "cpu_seconds": result.cpu,
            "cpu_ms_per_call_second": result.cpu * 1000 / result.call_seconds
            if result.call_seconds
            else None,
            "lateness_ms": _summary(result.lateness),
            "drops": dict(result.drops),
        },
    }


def as_table(plan: Plan, result: Result) -> list[str]:
    """The lines of the table."""
    figures, traffic, counts = result.figures, result.traffic, result.figures.counts
    rows = [
        _row("POST to answer", figures.answer),
        _row("answer to connected", figures.connect),
        _row("downlink jitter (RFC 3550), of each call", traffic.jitter),
        _row("longest gap in a talk spurt, of each call", traffic.gaps),
        _row("deviation from the 20-ms grid, of each packet", figures.deviation),
        _row("end of speech to first packet of the reply", figures.reply),
    ]
    if plan.interrupt_after is not None:
        rows.append(_row("interruption to last packet", figures.stop))
        rows.append(_row("interruption to silence", figures.silence))
    rows.append(_row("lateness of this tool", result.lateness))
    lines = [
        f"{result.connected} of {result.started} calls came up, {result.most_up} at once,"
        f" in {result.seconds:.1f} s",
        "",
        *_aligned([["milliseconds", "p50", "p95", "p99", "max"], *rows]),
        "",
        f"up    {traffic.sent} packets, the server reports {_loss(traffic.reported_lost, traffic.sent)} lost"
        + (f" ({traffic.unreported} calls without a report)" if traffic.unreported else ""),
        f"down  {traffic.received} packets, lost {_loss(traffic.lost, traffic.received + traffic.lost)}",
        f"turns {counts['turns']} said, {figures.reply.count} answered",
    ]
    if result.call_seconds:
        lines.append(f"tool  {result.cpu * 1000 / result.call_seconds:.2f} ms of CPU per call-second")
    lines += [
        f"lost  {count} calls before they came up: {why}" for why, count in result.failures.most_common()
    ]
    lines += [f"lost  {count} calls that were up: {why}" for why, count in result.ends.most_common()]
    late = result.lateness.percentile(0.99)
    if late is not None and late > LATE:
        lines.append(
            "note  this machine is too busy for that many calls: the tool itself was late, which makes"
            " latencies longer (arrivals are timed by the kernel)"
        )
    return lines


def progress_line(
    seconds: float, up: int, calls: int, setups: float, received: int, lost: int, p99: float | None, gone: int
) -> str:
    """`setups` a second; `p99` is that of the deviation, in seconds; `gone` calls are lost."""
    deviation = "-" if p99 is None else f"{p99 * 1000:.1f} ms"
    return (
        f"{seconds:4.0f} s  {up}/{calls} calls up  {setups:.0f} set-ups/s  down {received} packets,"
        f" lost {_loss(lost, received + lost)}  deviation p99 {deviation}"
        + (f"  LOST {gone}" if gone else "")
    )


def _summary(values: Histogram) -> dict[str, float | int | None]:
    summary: dict[str, float | int | None] = {"count": values.count}
    for share in PERCENTILES:
        value = values.percentile(share)
        summary[f"p{share * 100:.0f}"] = None if value is None else round(value * 1000, 3)
    summary["max"] = round(values.largest * 1000, 3) if values.count else None
    return summary


def _share(part: int, whole: int) -> float | None:
    return part / whole if whole else None


def _loss(lost: int, whole: int) -> str:
    return f"{lost} ({lost / whole * 100:.2f} %)" if whole else str(lost)


def _row(name: str, values: Histogram) -> list[str]:
    cells = [values.percentile(share) for share in PERCENTILES]
    cells.append(values.largest if values.count else None)
    return [name, *("-" if cell is None else f"{cell * 1000:.1f}" for cell in cells)]


def _aligned(rows: Sequence[Sequence[str]]) -> list[str]:
    widths = [max(len(row[place]) for row in rows) for place in range(len(rows[0]))]
    return [
        "  ".join([row[0].ljust(widths[0]), *(c.rjust(w) for c, w in zip(row[1:], widths[1:], strict=True))])
        for row in rows
    ]
