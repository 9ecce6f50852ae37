"""What was decided and not polled yet, and how often each was."""

from __future__ import annotations

from collections import deque
from typing import Final

from voicegate.media.turns.decisions import Decision, Judged

_MOST_COUNTS: Final = 128
"""Kinds and reasons counted apart: three times what ours make. A plug-in may make up reasons."""


class Ledger:
    """One call's."""

    __slots__ = ("_counts", "_decisions")

    def __init__(self) -> None:
        self._decisions: deque[Decision] = deque()  # a few from each input; whoever gave it drains them
        self._counts: dict[str, int] = {}

    def decide(self, decision: Decision) -> None:
        self._decisions.append(decision)
        kind = type(decision).__name__
        reason = (
            decision.verdict.reason if isinstance(decision, Judged) else getattr(decision, "reason", None)
        )
        self.count(kind if reason is None else f"{kind}.{reason}")

    def count(self, what: str) -> None:
        if what not in self._counts and len(self._counts) >= _MOST_COUNTS:
            what = "other"
        self._counts[what] = self._counts.get(what, 0) + 1

    def poll(self) -> Decision | None:
        return self._decisions.popleft() if self._decisions else None

    def counts(self) -> dict[str, int]:
        return dict(self._counts)
