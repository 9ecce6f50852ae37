"""A turn that is open, and a pause in it."""

from __future__ import annotations

import math
from dataclasses import dataclass, field


@dataclass(slots=True)
class OpenPause:
    """A pause nobody knows yet to be the end."""

    id: int
    began: int
    """Sample at which the last voice ended."""
    ceiling_at: float
    """Real time at which it is over whatever comes, should frames come too slowly to tell."""
    asked: int = 0
    """How often the judge was asked."""
    hold: float = math.inf
    """The silence at which the last verdict lets the turn end."""
    reason: str = ""
    """The last verdict's."""
    eager: bool = False
    """A reply was asked for."""


@dataclass(slots=True)
class OpenTurn:
    """From its first voice until it is ended."""

    began: int
    """Sample at which its audio begins."""
    onset: int
    """Sample of its first voice."""
    pause: OpenPause | None = None
    transcript: str | None = None
    eager_ends: int = field(default=0)
    """Replies asked for in it before its end was certain."""
