"""Nobody speaks: the two timers for it."""

from __future__ import annotations

import math


class Silence:
    """How long neither side has spoken, and what is due for that. Times are `now`; infinite is never."""

    __slots__ = ("_idle_armed", "_since", "_user_armed", "from_sample")

    def __init__(self) -> None:
        self._since = math.inf
        self._idle_armed = False
        self._user_armed = True
        self.from_sample = 0
        """Where the microphone was when it began."""

    def began(self, now: float, sample: int, *, after_answer: bool) -> None:
        """The last of the two has ended. `after_answer`: it was the agent, and it had all been said."""
        self._since = now
        self._idle_armed = after_answer
        self._user_armed = True
        self.from_sample = sample

    def broken(self) -> None:
        """Somebody speaks."""
        self._since = math.inf

    def idle_at(self, idle_timeout: float | None) -> float:
        return math.inf if idle_timeout is None or not self._idle_armed else self._since + idle_timeout

    def user_at(self, user_idle: float | None) -> float:
        return math.inf if user_idle is None or not self._user_armed else self._since + user_idle

    def idle_told(self) -> None:
        self._idle_armed = False

    def user_told(self) -> None:
        self._user_armed = False
