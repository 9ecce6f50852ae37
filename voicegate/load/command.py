"""`voicegate load`: the command line of the load tool.

Exit status: 0 when every call came up and stayed, 1 when one was lost, 2 for arguments that cannot be used.
"""

from __future__ import annotations

import argparse
import json
import resource
import signal
import sys
import time
from collections.abc import Sequence

from voicegate.load.exchange import BadUrl, Endpoint, parse_endpoint, why_ended
from voicegate.load.impairment import Quality
from voicegate.load.report import as_json, as_table, progress_line
from voicegate.load.run import Plan, Run
from voicegate.load.talk import SpeechError, TurnTalk, make_talk, read_speech, synthetic_speech

SPARE_DESCRIPTORS = 100
"""Beside a socket a call: offers on their way, the process's own."""


def main(arguments: Sequence[str]) -> int:
    """Run the command; returns the exit status."""
    options = _parser().parse_args(arguments)
    try:
        endpoint = _endpoint(options)
        talk = _talk(options)
        _allow_descriptors(options.calls)
        plan = Plan(
            endpoint,
            calls=options.calls,
            ramp=options.ramp,
            seconds=options.seconds,
            network=Quality(options.loss / 100, options.burst, options.jitter / 1000, options.reorder / 100),
            interrupt_after=options.barge_in,
            seed=options.seed,
        )
        return _run(plan, talk, options.json)
    except (BadUrl, SpeechError, _Unusable) as error:
        print(f"voicegate load: {error}", file=sys.stderr)
        return 2


class _Unusable(Exception):
    """The message is a sentence for a person."""


def _run(plan: Plan, talk: TurnTalk, json_path: str) -> int:
    progress = _Progress(plan.calls)
    run = Run(plan, talk, progress.show)

    def stop(*_: object) -> None:
        for number in (signal.SIGINT, signal.SIGTERM):
            signal.signal(number, signal.SIG_DFL)  # the second one does not ask
        run.stop()

    for number in (signal.SIGINT, signal.SIGTERM):
        signal.signal(number, stop)
    result = run.run()
    progress.end()
    if not result.connected and result.failures:
        reason, count = result.failures.most_common(1)[0]
        ended = why_ended(plan.endpoint, result.location) if result.location else ""
        advice = f". The server has ended the call: {ended}" if ended else _advice(reason)
        print(f"voicegate load: no call came up: {reason}{advice} ({count} calls)", file=sys.stderr)
    else:
        print("\n".join(as_table(plan, result)))
    if json_path:
        text = json.dumps(as_json(plan, result), indent=2)
        if json_path == "-":
            print(text)
        else:
            try:
                with open(json_path, "w") as out:
                    out.write(text + "\n")
            except OSError as error:
                raise _Unusable(f"{json_path} cannot be written: {error.strerror}") from None
    return 1 if result.lost_calls or (not result.connected and not result.stopped) else 0


def _advice(reason: str) -> str:
    if reason.startswith(("HTTP 401", "HTTP 403")):
        return f"{'' if reason.endswith('.') else '.'} Give a key of the server with --key"
    if "connectivity check" in reason:
        return ". UDP to that address does not come through, or nobody listens there"
    return ""


class _Progress:
    """A line a second on standard error; on a terminal always the same one."""

    def __init__(self, calls: int) -> None:
        self._calls = calls
        self._connected = 0
        self._at = time.monotonic()
        self._in_place = sys.stderr.isatty()

    def show(self, run: Run) -> None:
        now = time.monotonic()
        result = run.result
        received, lost = result.traffic.received, result.traffic.lost
        for client in run.clients:
            quality = client.statistics()
            if quality is not None:
                received += quality.received_packets
                lost += quality.received_lost
        line = progress_line(
            now - run.begun,
            run.up,
            self._calls,
            (result.connected - self._connected) / (now - self._at),
            received,
            lost,
            run.figures.deviation.percentile(0.99),
            result.lost_calls,
        )
        self._connected, self._at = result.connected, now
        print(
            f"\r\x1b[K{line}" if self._in_place else line, end="" if self._in_place else "\n", file=sys.stderr
        )
        sys.stderr.flush()

    def end(self) -> None:
        if self._in_place:
            print(file=sys.stderr)


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        prog="voicegate load",
        description="Make many calls at once to a WebRTC endpoint that takes an offer by POST and answers it,"
        " and measure them. The clients talk in turns and listen; what they hear is judged by its packets.",
        epilog="Exit status: 0 when every call came up and stayed, 1 when one was lost, 2 for bad arguments.",
    )
    parser.add_argument(
        "url",
        help="where offers are posted; without a path it is that of the Realtime API, /v1/realtime/calls",
    )
    calls = parser.add_argument_group("the calls")
    calls.add_argument("--calls", type=_count, default=10, metavar="N", help="how many (10)")
    calls.add_argument("--ramp", type=_positive, default=10.0, metavar="R", help="started a second (10)")
    calls.add_argument(
        "--seconds", type=_seconds, default=30.0, metavar="S", help="kept up after the last was started (30)"
    )
    calls.add_argument("--key", default="", help="API key, sent as Authorization: Bearer")
    calls.add_argument("--model", default="", help="?model= of the offer")
    calls.add_argument(
        "--header", action="append", default=[], metavar="NAME:VALUE", help="HTTP header; repeatable"
    )
    calls.add_argument(
        "--timeout",
        type=_positive,
        default=10.0,
        metavar="S",
        help="for the answer, and for the first check (10)",
    )
    talk = parser.add_argument_group("what they say")
    talk.add_argument(
        "--speech", metavar="FILE", help="a recording (anything FFmpeg reads) instead of syllables"
    )
    talk.add_argument(
        "--talk",
        type=_turns,
        default=(None, None),
        metavar="SPEECH:PAUSE",
        help="seconds of speech and of silence, in turns (the recording once, then as long and 2 s);"
        " a pause of 0: all the time",
    )
    talk.add_argument(
        "--barge-in",
        type=_seconds,
        metavar="S",
        help="interrupt each reply S seconds in, over the data channel, and measure how fast it stops",
    )
    network = parser.add_argument_group("a bad network, in both directions, made by the clients")
    network.add_argument("--loss", type=_percent, default=0.0, metavar="PERCENT")
    network.add_argument("--burst", type=_burst, default=1.0, metavar="N", help="packets lost in a row (1)")
    network.add_argument("--jitter", type=_seconds, default=0.0, metavar="MS", help="late by up to this")
    network.add_argument(
        "--reorder", type=_percent, default=0.0, metavar="PERCENT", help="overtaken by the next"
    )
    network.add_argument("--seed", type=int, default=1, metavar="N", help="the same losses again (1)")
    parser.add_argument(
        "--json", default="", metavar="FILE", help="write everything there; - for standard output"
    )
    return parser


def _endpoint(options: argparse.Namespace) -> Endpoint:
    headers = {}
    for header in options.header:
        name, colon, value = header.partition(":")
        if not colon or not name.strip().isascii() or not (name + value).isprintable():
            raise _Unusable(f"--header {header}: it has the form NAME:VALUE")
        headers[name.strip()] = value.strip()
    if not (options.key + options.model).isascii() or not options.key.isprintable():
        raise _Unusable("--key and --model have ASCII characters only")
    return parse_endpoint(
        options.url, model=options.model, key=options.key, headers=headers, timeout=options.timeout
    )


def _talk(options: argparse.Namespace) -> TurnTalk:
    pcm = read_speech(options.speech) if options.speech else synthetic_speech()
    return make_talk(pcm, *options.talk)


def _allow_descriptors(calls: int) -> None:
    """Raise the process's limit as far as it may itself."""
    wanted = calls + SPARE_DESCRIPTORS
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    if soft == resource.RLIM_INFINITY or soft >= wanted:
        return
    if hard != resource.RLIM_INFINITY and hard < wanted:
        raise _Unusable(f"{calls} calls need {wanted} open files, allowed are {hard}: see ulimit -n")
    resource.setrlimit(resource.RLIMIT_NOFILE, (wanted, hard))


def _number(text: str, least: float, most: float, what: str) -> float:
    try:
        value = float(text)
    except ValueError:
        value = float("nan")
    if not least <= value <= most:
        raise argparse.ArgumentTypeError(f"{text} is not {what}")
    return value


def _count(text: str) -> int:
    if not text.isascii() or not text.isdigit() or not 1 <= int(text) <= 50_000:
        raise argparse.ArgumentTypeError(f"{text} is not a number from 1 to 50000")
    return int(text)


def _positive(text: str) -> float:
    return _number(text, 0.001, 1e6, "a number above 0")


def _seconds(text: str) -> float:
    return _number(text, 0, 1e6, "a number, 0 or more")


def _percent(text: str) -> float:
    return _number(text, 0, 100, "a percentage from 0 to 100")


def _burst(text: str) -> float:
    return _number(text, 1, 1000, "a number from 1 to 1000")


def _turns(text: str) -> tuple[float, float]:
    speech, colon, pause = text.partition(":")
    if not colon:
        raise argparse.ArgumentTypeError(f"{text} is not SPEECH:PAUSE in seconds, such as 2:3")
    return _number(speech, 0.02, 600, "0.02 to 600 s of speech"), _number(
        pause, 0, 3600, "0 to 3600 s of silence"
    )
