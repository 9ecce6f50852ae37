"""The labelled set on disk: made once, kept in tests/.cache.

python -m tests.turns.labelled        make both halves and say where they are
"""

from __future__ import annotations

import hashlib
import json
import multiprocessing
import os
import shutil
import sys
from pathlib import Path
from typing import Any, Final

import numpy as np

from tests.turns.overlap_rows import make_overlaps
from tests.turns.scripts import Half
from tests.turns.sounds import Beds
from tests.turns.turn_rows import DRAWN, WRITTEN, Manner, make_turns
from tests.turns.voices import OVERLAP_VOICES, TURN_VOICES, speakers

HALVES: Final[tuple[Half, ...]] = ("tune", "held")
_SEEDS: Final[dict[Half, int]] = {"tune": 20261, "held": 20262}
MANNERS: Final = (DRAWN, WRITTEN)
_TURN_SEEDS: Final[dict[Half, dict[str, int]]] = {
    "tune": {"drawn": 20261, "written": 20264},
    "held": {"drawn": 20263, "written": 20265},
}
_CACHE: Final = Path(__file__).parents[1] / ".cache"
_SOURCES: Final = ("espeak", "labelled", "overlap_rows", "scripts", "sounds", "turn_rows", "voices")


def labelled_set() -> dict[Half, Path]:
    """The folder of each half: `drawn.jsonl`, `written.jsonl`, `overlaps.jsonl` and the WAV files they name,
    24 kHz mono."""
    root = _CACHE / f"turns-{_version()}"
    missing = [half for half in HALVES if not (root / half).exists()]
    if missing:
        for older in _CACHE.glob("turns-*"):
            if older != root:
                shutil.rmtree(older)  # half a gigabyte each
        root.mkdir(parents=True, exist_ok=True)
        with multiprocessing.get_context("spawn").Pool(len(missing)) as pool:
            pool.starmap(_make, [(half, root / half) for half in missing])
    return {half: root / half for half in HALVES}


def _version() -> str:
    """Of what makes the set: another program makes another folder."""
    digest = hashlib.blake2s(digest_size=6)
    for name in _SOURCES:
        digest.update((Path(__file__).parent / f"{name}.py").read_bytes())
    return digest.hexdigest()


def _make(half: Half, folder: Path) -> None:
    made = folder.with_name(f"{half}.{os.getpid()}")
    made.mkdir()
    for manner in MANNERS:
        _write(made / f"{manner.name}.jsonl", _turns(half, manner, made))
    _write(made / "overlaps.jsonl", _overlaps(half, made))
    try:
        made.rename(folder)
    except OSError:  # another run was first
        shutil.rmtree(made)


def _turns(half: Half, manner: Manner, folder: Path) -> list[dict[str, Any]]:
    rng = np.random.default_rng(_TURN_SEEDS[half][manner.name])
    people = speakers(TURN_VOICES[half], 20, rng)
    return make_turns(half, manner, folder, people, Beds(people, rng), rng)


def _overlaps(half: Half, folder: Path) -> list[dict[str, Any]]:
    rng = np.random.default_rng(_SEEDS[half])
    people = speakers(OVERLAP_VOICES[half], 20, rng)
    beds = Beds(people, rng)
    apart = np.random.default_rng(_SEEDS[half] + 10)  # what people say is apart from who they are
    return make_overlaps(half, folder, people, beds, apart)


def _write(path: Path, rows: list[dict[str, Any]]) -> None:
    path.write_text("".join(json.dumps(row, ensure_ascii=False) + "\n" for row in rows))


if __name__ == "__main__":
    sys.stdout.writelines(f"{half}: {folder}\n" for half, folder in labelled_set().items())
