"""Smart Turn (pipecat-ai, BSD-2), version 3: a small network that hears whether a turn sounds finished.

The weights are not ours to ship: whoever wants this judge downloads `smart-turn-v3.*.onnx` and names the
file. It is a Whisper-tiny encoder with one output, run by onnxruntime (the extra `smart-turn`) on the last
eight seconds of the turn, silence filled in before it where it is shorter. It takes some tens of
milliseconds, so it is asked in a thread.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from functools import lru_cache
from pathlib import Path
from typing import Any, Final

import numpy as np

from voicegate.media.codec import PCM_RATE
from voicegate.media.resample import Resampler
from voicegate.media.turns.log_mel import BANDS, FRAMES, RATE, SECONDS, Floats, log_mel
from voicegate.media.turns.plugins import Hop, Pause, Verdict

THRESHOLD: Final = 0.5
"""Of the network's output, as its makers use it."""
SURE_HOLD: Final = 0.2
"""Seconds of silence for which its makers wait before they ask it; when it says "finished", no longer."""
UNSURE_HOLD: Final = 3.0
"""Seconds after which its makers end a turn that it thinks unfinished (`stop_secs`)."""
_INPUT = (BANDS, FRAMES)

Network = Callable[[Floats], float]
"""The probability of the end, of one log-mel spectrogram."""


class SmartTurn:
    """`patience` multiplies what is waited for. Raises ValueError with a sentence where the file is of no
    use."""

    inline = False
    schedule: Sequence[float] = (0.2, 0.5, 1.0, 2.0)
    """Asked again, for silence is part of what it hears."""

    def __init__(self, path: str, patience: float = 1.0) -> None:
        self._network = load(path)
        self._patience = patience

    def listen(self, frame: bytes, hop: Hop) -> None:
        pass

    def judge(self, pause: Pause) -> Verdict:
        done = self._network(log_mel(_last_seconds(pause.audio())))
        finished = done >= THRESHOLD
        hold = self._patience * (SURE_HOLD if finished else UNSURE_HOLD)
        return Verdict(pause.id, done, hold, "finished" if finished else "unfinished", finished)

    def resumed(self, pause: Pause) -> None:
        pass

    def ended(self, pause: Pause) -> None:
        pass


@lru_cache(maxsize=4)
def load(path: str) -> Network:
    """One for all calls: it keeps no state, and may be run by several threads at once."""
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

    def network(spectrogram: Floats) -> float:
        return float(np.ravel(session.run(None, {name: spectrogram[None]})[0])[0])

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
