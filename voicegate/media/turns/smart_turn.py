"""Smart Turn (pipecat-ai, BSD-2), version 3: a small network that hears whether a turn sounds finished.

The weights are not ours to ship: whoever wants this judge downloads `smart-turn-v3.*.onnx` and names the
file. It is a Whisper-tiny encoder with one output, run by onnxruntime (the extra `smart-turn`) on the last
eight seconds of the turn, silence filled in before it where it is shorter. It takes some tens of
milliseconds, so it is asked in a thread.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from functools import lru_cache
from hashlib import blake2b
from math import log
from pathlib import Path
from typing import Any, Final

import numpy as np

from voicegate.media.codec import PCM_RATE
from voicegate.media.resample import Resampler
from voicegate.media.turns.log_mel import BANDS, FRAMES, RATE, SECONDS, Floats, log_mel
from voicegate.media.turns.pauses import CEILING, Pauses
from voicegate.media.turns.plugins import Hop, Pause, Verdict

THRESHOLD: Final = 0.5
"""Of the network's output, as its makers use it: above it the turn is called finished."""
TRUST: Final = 0.3
"""What a unit of the network's log odds is worth: it is much surer than it is right. Its makers end a
finished turn after 0.2 s and an unfinished one after 3 s; on 158 human turns (docs/turns-evaluation.md) that
cut into 33 % of them at a mean wait of 0.67 s, and odds that are trusted like this into 19 % at 0.6 s."""
PRIOR: Final = -0.4
"""Log odds of the end where the network says one half."""
_SUREST: Final = 0.99
"""Beyond this it is not to be told apart from certainty."""
_REMEMBERED: Final = 10_000
"""Answers: an evaluation asks about the same sounds at every operating point. A megabyte or two."""
_INPUT = (BANDS, FRAMES)

Network = Callable[[Floats], float]
"""The probability of the end, of one log-mel spectrogram."""


class SmartTurn:
    """`patience`: about by what the waits are multiplied. `ceiling`: no pause is waited out for longer, in
    seconds. Raises ValueError with a sentence where the file is of no use."""

    inline = False
    schedule: Sequence[float] = (0.2, 0.5, 1.0, 2.0)
    """Its makers ask it after 0.2 s. Asked again, for silence is part of what it hears."""

    def __init__(self, path: str, patience: float = 1.0, *, ceiling: float = CEILING) -> None:
        self._network = load(path)
        self._pauses = Pauses(patience)
        self._ceiling = ceiling

    def listen(self, frame: bytes, hop: Hop) -> None:
        pass

    def judge(self, pause: Pause) -> Verdict:
        done = self._network(log_mel(_last_seconds(pause.audio())))
        if not 0 <= done <= 1:
            done = THRESHOLD  # a network that says nothing of this sound
        sure = max(1 - _SUREST, min(_SUREST, done))
        hold = self._pauses.worth_waiting(PRIOR + TRUST * log(sure / (1 - sure)))
        finished = done >= THRESHOLD
        reason = "finished" if finished else "unfinished"
        return Verdict(pause.id, done, min(self._ceiling, hold), reason, finished)

    def resumed(self, pause: Pause) -> None:
        self._pauses.learn(pause.silence)

    def ended(self, pause: Pause) -> None:
        pass


@lru_cache(maxsize=4)
def load(path: str) -> Network:
    """One for all calls: it may be run by several threads at once."""
    try:
        import onnxruntime
    except ImportError as error:
        raise ValueError(
            "the turn judge smart-turn needs onnxruntime: pip install 'voicegate[smart-turn]'"
        ) from error
    if not Path(path).is_file():
        raise ValueError(
            f"there is no file {path}: name one with the weights of Smart Turn version 3 (.onnx)"
        )
    options = onnxruntime.SessionOptions()
    options.intra_op_num_threads = options.inter_op_num_threads = (
        1  # as many pauses at once as there are cores
    )
    options.log_severity_level = 3
    try:
        session = onnxruntime.InferenceSession(path, options, providers=["CPUExecutionProvider"])
    except Exception as error:  # onnxruntime's own kinds have no common parent
        raise ValueError(f"{path} is no ONNX file that onnxruntime can load: {error}") from error
    inputs = session.get_inputs()
    if len(inputs) != 1 or inputs[0].type != "tensor(float)" or not _fits(inputs[0].shape):
        found = ", ".join(f"{each.name} {each.type} {each.shape}" for each in inputs)
        raise ValueError(f"{path} is not Smart Turn version 3: it takes {found}, not float [1, 80, 800]")
    name = inputs[0].name
    answers: dict[bytes, float] = {}

    def network(spectrogram: Floats) -> float:
        heard = blake2b(spectrogram.tobytes(), digest_size=16).digest()
        answer = answers.get(heard)
        if answer is None:
            if len(answers) >= _REMEMBERED:
                answers.clear()
            answer = answers[heard] = float(np.ravel(session.run(None, {name: spectrogram[None]})[0])[0])
        return answer

    silence = network(log_mel(np.zeros(SECONDS * RATE, np.float32)))
    if not 0 <= silence <= 1:
        raise ValueError(
            f"{path} is not Smart Turn version 3: it answers {silence:.3g}, which is no probability"
        )
    return network


def _fits(shape: Sequence[Any]) -> bool:
    """Whether a batch of one fits; a dimension left open is a name or None."""
    return len(shape) == 3 and all(
        not isinstance(has, int) or has == wanted for has, wanted in zip(shape, (1, *_INPUT), strict=True)
    )


def _last_seconds(pcm: bytes) -> Floats:
    """Eight seconds at 16 kHz that end where `pcm` (24 kHz s16le) does, 1 = full scale."""
    narrow = Resampler(PCM_RATE, RATE).convert(pcm[-SECONDS * PCM_RATE * 2 :])
    samples = np.frombuffer(narrow, "<i2")[-SECONDS * RATE :]
    line = np.zeros(SECONDS * RATE, np.float32)
    line[len(line) - len(samples) :] = samples / np.float32(32768)
    return line
