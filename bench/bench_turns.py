"""What it costs to know whose turn it is: voice activity and the default judge, CPU per frame and per
call-second.

    python -m bench.bench_turns [--turns MANIFEST]

A call is played as fast as it goes: turns of a person with their pauses, then as much silence as speech, in
which the agent would talk. The sound is made here (syllables of a buzz with a gliding pitch, in noise) or
comes from a manifest of `voicegate turns eval`. Per call-second: voice activity of every frame, the judge's
listening to it, and its judgements; beside it the whole turn machine with both. Times are the fastest of some
runs, in one thread.
"""

from __future__ import annotations

import argparse
import time
from collections.abc import Callable
from pathlib import Path

import numpy as np

from bench.report import save, table
from voicegate.media.codec import FRAME_BYTES, FRAME_SECONDS, PCM_RATE
from voicegate.media.turns.activity import WebrtcActivity
from voicegate.media.turns.adaptive import AdaptivePause
from voicegate.media.turns.fixed import FixedSilence
from voicegate.media.turns.interruption import DefaultPolicy
from voicegate.media.turns.machine import TurnMachine
from voicegate.media.turns.plugins import Hop, Pause, TurnJudge, Verdict
from voicegate.media.turns.settings import TurnSettings
from voicegate.turns.manifest import read_turns
from voicegate.turns.sound import read_frames

RUNS = 5
TURNS = 40


class Watched:
    """A judge whose judgements are timed. The clock's own cost is in it: 0.3 us."""

    inline = True

    def __init__(self, judge: TurnJudge) -> None:
        self._judge = judge
        self.schedule = judge.schedule
        self.listen = judge.listen
        self.resumed = judge.resumed
        self.ended = judge.ended
        self.pauses = 0
        self.seconds = 0.0

    def judge(self, pause: Pause) -> Verdict:
        self.pauses += pause.asked == 0
        began = time.process_time()
        verdict = self._judge.judge(pause)
        self.seconds += time.process_time() - began
        return verdict


def made_turns() -> list[list[bytes]]:
    """Turns of two to four pieces of speech with pauses of 0.2 to 1 s between them."""
    rng = np.random.default_rng(1)
    turns = []
    for _ in range(TURNS):
        parts = [np.zeros(PCM_RATE // 2)]
        for _ in range(int(rng.integers(2, 5))):
            parts += [_speech(rng.uniform(0.6, 2.0), rng), np.zeros(int(rng.uniform(0.2, 1.0) * PCM_RATE))]
        line = np.concatenate([*parts, np.zeros(2 * PCM_RATE)])
        pcm = (line + 30 * rng.standard_normal(len(line))).clip(-32768, 32767).astype("<i2").tobytes()
        turns.append([pcm[at : at + FRAME_BYTES] for at in range(0, len(pcm) - FRAME_BYTES + 1, FRAME_BYTES)])
    return turns


def _speech(seconds: float, rng: np.random.Generator) -> np.ndarray:
    t = np.arange(int(seconds * PCM_RATE)) / PCM_RATE
    phase = 2 * np.pi * np.cumsum(130 * 2 ** (rng.uniform(-0.4, 0.4) * t / seconds)) / PCM_RATE
    buzz = sum(np.sin(n * phase) / n for n in range(1, 20))
    return np.asarray(3000 * np.clip(np.sin(2 * np.pi * 4 * t), 0.1, 1) * buzz)


def with_answers(turns: list[list[bytes]]) -> list[list[bytes]]:
    """After each turn as long a silence: the person listens."""
    rng = np.random.default_rng(2)
    room = [(8 * rng.standard_normal(480)).astype("<i2").tobytes() for _ in range(50)]
    return [[*turn, *(room[place % 50] for place in range(len(turn)))] for turn in turns]


def fastest(run: Callable[[], object]) -> float:
    times = []
    for _ in range(RUNS):
        began = time.process_time()
        run()
        times.append(time.process_time() - began)
    return min(times)


def measure(turns: list[list[bytes]]) -> dict[str, float]:
    line = [frame for turn in turns for frame in turn]
    seconds = len(line) * FRAME_SECONDS
    hops: list[Hop] = []

    def activity() -> None:
        voice = WebrtcActivity()
        hops[:] = [voice.push(frame) for frame in line]

    def listening() -> None:
        judge = AdaptivePause()
        for frame, hop in zip(line, hops, strict=True):
            judge.listen(frame, hop)

    watched: list[Watched] = []

    def machine(judge: TurnJudge) -> None:
        turn_machine = TurnMachine(TurnSettings(), WebrtcActivity(), judge, DefaultPolicy())
        for place, frame in enumerate(line):
            turn_machine.push(frame, place * FRAME_SECONDS)
            while turn_machine.poll_decision() is not None:
                pass

    def with_adaptive() -> None:
        watched.append(Watched(AdaptivePause()))
        machine(watched[-1])

    found = {"activity": fastest(activity), "listening": fastest(listening)}
    found["machine, adaptive"] = fastest(with_adaptive)
    found["machine, fixed"] = fastest(lambda: machine(FixedSilence()))
    best = min(watched, key=lambda each: each.seconds)
    found["judging"] = best.seconds
    found["activity and judge"] = found["activity"] + found["listening"] + best.seconds
    result = {name: 1000 * cost / seconds for name, cost in found.items()}  # ms per call-second
    result["us per frame, activity"] = 1e6 * found["activity"] / len(line)
    result["us per pause, judging"] = 1e6 * best.seconds / max(1, best.pauses)
    result["pauses per call-second"] = best.pauses / seconds
    result["call-seconds"] = seconds
    return result


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--turns", type=Path, metavar="MANIFEST", help="recordings instead of made sound")
    options = parser.parse_args()
    if options.turns:
        folder = options.turns.parent
        turns = [read_frames(folder / turn.file) for turn in read_turns(options.turns)[:TURNS]]
    else:
        turns = made_turns()
    results = {"turns only": measure(turns), "with as much listening": measure(with_answers(turns))}
    names = list(results["turns only"])
    rows = [[name, *(f"{result[name]:.3f}" for result in results.values())] for name in names]
    table("ms of CPU per call-second, unless it says otherwise", ["", *results], rows)
    print(f"\n  {save('turns', results)}")


if __name__ == "__main__":
    main()
