"""Mode hybrid: an agent that commits by itself, and turns whose ends are decided here. Pure.

A turn with a pause in it is two commits of the agent's and one reply. The reply is asked for when the turn is
over and what was said has been committed, whichever is later.
"""

from __future__ import annotations

from typing import Final, Literal

COMMIT_SECONDS: Final = 1.0
"""How long after a turn's end its commit is waited for, longer than an agent's silence. Then it is made here,
where the agent has heard somebody begin; where it has not there is nothing to answer."""

MAX_WORDS: Final = 4000
"""Characters of a turn's transcript that a judge is shown."""


class AgentCommits:
    """One call's."""

    def __init__(self) -> None:
        self.deadline: float | None = None
        """When a commit has been waited for long enough."""
        self._speaking = False
        """The agent hears somebody."""
        self._committed = False
        """Something has been committed that was not answered."""
        self._words = ""

    def speech_started(self) -> None:
        """The agent's word."""
        self._speaking = True

    def committed(self) -> bool:
        """The agent's word; whether a reply was waiting for it."""
        self._speaking = False
        if self.deadline is None:
            self._committed = True
            return False
        self._answered()
        return True

    def understood(self, words: str) -> str:
        """The transcript of the turn with some more words."""
        self._words = (self._words + words)[-MAX_WORDS:]
        return self._words

    def turn_began(self) -> None:
        """By our word: a reply that waits is not wanted any more, and what it was to answer is still
        there."""
        self.deadline = None
        self._words = ""

    def turn_ended(self, now: float) -> bool:
        """By our word; whether the reply can be asked for now."""
        if self._committed and not self._speaking:
            self._answered()
            return True
        self.deadline = now + COMMIT_SECONDS
        return False

    def handle_timeout(self, now: float) -> Literal["commit", "unheard"] | None:
        """What to do about a commit that did not come."""
        if self.deadline is None or now < self.deadline:
            return None
        heard = self._speaking or self._committed
        self._answered()
        self._speaking = False
        return "commit" if heard else "unheard"

    def _answered(self) -> None:
        self.deadline = None
        self._committed = False
        self._words = ""
