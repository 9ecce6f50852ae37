"""A recording ready to be played to a machine, and the voice activity it is played with."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import NamedTuple

from voicegate.media.codec import FRAME_SECONDS
from voicegate.media.turns.plugins import Hop, VoiceActivity
from voicegate.turns.manifest import ManifestError, Turn
from voicegate.turns.sound import read_frames


class Recording(NamedTuple):
    """One turn with its sound."""

    turn: Turn
    frames: list[bytes]
    hops: list[Hop]

    @property
    def seconds(self) -> float:
        return len(self.frames) * FRAME_SECONDS


def load_calls(
    turns: Sequence[Turn], folder: Path, activity: Callable[[], VoiceActivity]
) -> list[list[Recording]]:
    """Each call's recordings, in order. One voice activity hears a whole call, as it would.

    What it says of each frame does not depend on the judge: it is asked once and not at every operating
    point.
    """
    calls: dict[str, list[Turn]] = {}
    for place, turn in enumerate(turns):
        calls.setdefault(turn.call or f"turn {place}", []).append(turn)
    return [_load_call(call, folder, activity()) for call in calls.values()]


def _load_call(call: Sequence[Turn], folder: Path, activity: VoiceActivity) -> list[Recording]:
    recordings = []
    for turn in call:
        frames = read_frames(folder / turn.file)
        if not turn.end <= len(frames) * FRAME_SECONDS:
            raise ManifestError(f"{folder / turn.file} is over before the turn's end at {turn.end} s")
        recordings.append(Recording(turn, frames, [activity.push(frame) for frame in frames]))
    return recordings


class Replay:
    """A voice activity that says what another one said of the same frames."""

    def __init__(self) -> None:
        self._hops: Iterator[Hop] = iter(())

    def begin(self, recording: Recording) -> None:
        """Its first frame comes next."""
        self._hops = iter(recording.hops)

    def push(self, frame: bytes) -> Hop:
        return next(self._hops)

    def reset(self) -> None:
        """The other one was not reset at this place either."""
