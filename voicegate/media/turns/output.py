"""The agent's output, as the machine is told of it: speaking or not, held or not, and how much is left."""

from __future__ import annotations

from voicegate.media.codec import PCM_RATE


class AgentOutput:
    """One call's. Places are samples of the microphone; `held` implies `speaking`."""

    __slots__ = ("_ends_at", "_held_at", "began", "ended", "held_since", "speaking")

    def __init__(self) -> None:
        self.speaking = False
        self.held_since: float | None = None
        """Real time since which it is held; None where it is not."""
        self.began: int | None = None
        """Where the microphone was at its first sound, the last answer's once it is over."""
        self.ended: int | None = None
        """Where the microphone was when it was over; None while it speaks, and before it ever has."""
        self._ends_at: float | None = None
        self._held_at = 0.0

    @property
    def held(self) -> bool:
        return self.held_since is not None

    def begin(self, position: int) -> None:
        self.speaking = True
        self.began = position
        self.ended = None
        self.held_since = None
        self._ends_at = None

    def ending(self, remaining: float, now: float) -> None:
        self._ends_at = now + remaining
        self._held_at = now if self.held else self._held_at

    def hold(self, now: float) -> None:
        self.held_since = self._held_at = now

    def release(self, now: float) -> None:
        self.held_since = None
        if self._ends_at is not None:
            self._ends_at += now - self._held_at

    def over(self, position: int) -> None:
        self.speaking = False
        self.held_since = None
        self.ended = position

    def spoken(self, position: int) -> float:
        """Seconds since its first sound."""
        return (position - self.began) / PCM_RATE if self.began is not None else 0.0

    def remaining(self, now: float) -> float | None:
        """Seconds that it still lasts; None while the agent may add to it."""
        if self._ends_at is None:
            return None
        return max(0.0, self._ends_at - (self._held_at if self.held else now))
