"""The session's settings between a client and its agent. Pure.

The client asks (`session.update`), the agent decides, and the client always gets its `session.updated`:

* Formats are pinned: the agent is told the formats that are configured for it, and the client is shown the
  formats that it asked for. When the agent then says otherwise, the clients are told, once.
* So is turn detection, where it is done here (`detection`): the client is shown its own.
* An agent that refuses is asked again with less (`downgrade`), until it agrees, nothing is left, or
  ANSWER_SECONDS are over; then the answer is made here from what is known to be in force. What was left out
  is said in an `error` that carries the id of the client's event.
* Updates go out at once, so that they keep their place among other events, and are answered in that order:
  `session.updated` names no event. Two updates get two answers, also from an agent that makes one of them.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Mapping
from copy import deepcopy
from dataclasses import dataclass, field
from typing import Any, Final, NamedTuple

from voicegate.media.turns.settings import TurnSettings
from voicegate.proto import realtime
from voicegate.roles.transceiver.detection import (
    Ability,
    Detection,
    Mode,
    detection_for,
    mentions,
    with_detection,
    without_detection,
)
from voicegate.roles.transceiver.downgrade import downgrade
from voicegate.roles.transceiver.outbox import EVERYONE, Audience

ANSWER_SECONDS: Final = 3.0
"""From the agent having the update to our answer at the latest; the official client warns after 5 s."""

MAX_PENDING: Final = 32
"""Updates without an answer; an interface that sends one at each touch of a slider makes a few."""

INTERNAL_ID: Final = "voicegate_"
"""How the ids of events begin that the gateway sends to the agent on its own account."""


class SendUpdate(NamedTuple):
    data: bytes


class Updated(NamedTuple):
    """`session.updated` with this session, as the client is to see it. `quiet`: nobody asked."""

    session: dict[str, Any]
    quiet: bool


class Problem(NamedTuple):
    """An `error` about an update, for whoever sent it."""

    code: str
    message: str
    param: str | None
    event_id: str
    source: Audience


SessionOutput = SendUpdate | Updated | Problem


class SessionUpdates:
    """`wanted`: the settings the call was made with; the agent is asked for `first` by its dialler.

    `ability` is the agent's, `defaults` what holds of turn detection where a session says nothing.
    """

    def __init__(
        self,
        wanted: Mapping[str, Any],
        formats: realtime.Formats = realtime.PCM_FORMATS,
        ability: Ability = "semantic",
        defaults: TurnSettings | None = None,
    ) -> None:
        self._ability = ability
        self._defaults = defaults or TurnSettings()
        self.detection = self._first_detection(wanted)
        """What is in force."""
        self.effective: dict[str, Any] = {}
        """The session as the agent last described it."""
        self._formats = formats
        self._mismatched: set[str] = set()
        self.first = self._pinned(wanted, self.detection)
        """What the agent's first `session.update` asks for."""
        self._shown_formats = _formats_of(wanted)
        self._pending: deque[_Update] = deque()
        """Those out with the agent, in the order in which it will answer them."""
        self._asked: deque[_Update] = deque()
        """Those whose client waits, in the order asked: a refused one is sent again behind later ones, and
        those must not be answered as if it were in force already."""
        self._ready = False
        self._serial = 0

    @property
    def interrupts(self) -> bool:
        """Whether a person that the agent hears stops it: OpenAI's default, unless switched off."""
        audio = self.effective.get("audio")
        heard = audio.get("input") if isinstance(audio, dict) else self.effective  # the beta's place
        if not isinstance(heard, dict) or "turn_detection" not in heard:
            return True
        detection = heard["turn_detection"]
        return isinstance(detection, dict) and detection.get("interrupt_response", True) is not False

    def view(self) -> dict[str, Any]:
        """The session as the client is to see it."""
        session = deepcopy(self.effective)
        session.setdefault("type", "realtime")
        # Not the agent's own format: no client takes audio in it, and most know only one rate of PCM.
        own = dict.fromkeys(_formats_of(self.effective), realtime.PCM_FORMAT)
        for side, shown in {**own, **self._shown_formats}.items():
            audio = session.setdefault("audio", {})
            if isinstance(audio, dict) and isinstance(audio.setdefault(side, {}), dict):
                audio[side]["format"] = dict(shown)
        return with_detection(session, self.detection.shown) if self.detection.ours else session

    def takes_appends(self) -> bool:
        """Whether what a client appends is in the format that the agent is told."""
        shown, told = self._shown_formats.get("input", realtime.PCM_FORMAT), self._formats["input"]
        return shown.get("type") == told["type"] and told.get("rate", 24_000) == realtime.SAMPLE_RATE

    def agent_ready(self, configured: bool, now: float) -> list[SessionOutput]:
        """The agent listens. Not `configured`: it refused `first`, which is now offered bit by bit."""
        self._ready = True
        for update in self._pending:
            update.deadline = now + ANSWER_SECONDS
        if configured or self.first.keys() <= {"type"}:
            return []
        # What the client has asked for meanwhile lies on top: its events have already gone out.
        asked = [update.session for update in self._pending]
        merged = realtime.session_settings(self.first, *asked, formats=self._formats)
        update = _Update(merged, "", None, now + ANSWER_SECONDS, None)
        self._asked.append(update)
        self._pending.append(update)
        return [self._send(update)]

    def asked(
        self, session: dict[str, Any], event_id: str, source: Audience, now: float
    ) -> list[SessionOutput]:
        """A client's `session.update`. Raises ValueError, with a sentence, for turn detection that is
        none."""
        detection = detection_for(session, self._ability, self._defaults) if mentions(session) else None
        if len(self._asked) >= MAX_PENDING:
            problem = "Too many session updates are waiting for the agent."
            return [Problem("rate_limit_exceeded", problem, None, event_id, source)]
        self._shown_formats.update(_formats_of(session))
        deadline = now + ANSWER_SECONDS if self._ready else None
        update = _Update(self._pinned(session, detection), event_id, source, deadline, detection)
        self._asked.append(update)
        self._pending.append(update)
        return [self._send(update)]

    def agent_says(self, session: dict[str, Any], now: float, *, updated: bool) -> list[SessionOutput]:
        """The agent's `session.created` or (`updated`) `session.updated`."""
        self.effective = {**self.effective, **session}  # some servers tell only what is new
        if not updated:
            return []
        problems = self._check_formats(session)
        if not self._ready or not self._pending:
            return [Updated(self.view(), quiet=not self._ready), *problems]
        return self._answer(self._pending.popleft()) + problems

    def owns(self, event_id: str, about: str) -> bool:
        """Whether an error that carries `event_id` answers one of our updates.

        A server that carries none is judged by what its error is `about`: its param, code and message.
        """
        if event_id:
            return any(update.sent_id == event_id for update in self._pending)
        return self._ready and bool(self._pending) and "session" in about

    def refused(self, event_id: str, param: str, message: str, now: float) -> list[SessionOutput]:
        """The agent's error about the update it `owns`."""
        update = next((u for u in self._pending if u.sent_id == event_id), self._pending[0])
        self._pending.remove(update)
        changed = downgrade(update.session, param, message)
        if changed is None or update.session.keys() <= {"type"}:
            update.dropped.append(changed or "everything")
            return self._answer(update)
        update.dropped.append(changed)
        self._pending.append(update)  # it is asked again behind those that are out
        return [self._send(update)]

    def handle_timeout(self, now: float) -> list[SessionOutput]:
        outputs: list[SessionOutput] = []
        for update in [u for u in self._pending if u.deadline is not None and u.deadline <= now]:
            self._pending.remove(update)
            # Nobody knows whether it was taken. An agent that does not answer mostly has.
            self.effective = realtime.merged(self.effective, update.session)
            update.unconfirmed = True
            outputs += self._answer(update)
        return outputs

    def next_deadline(self) -> float | None:
        if not self._pending:  # nearly always, and it is asked for each packet
            return None
        return min((u.deadline for u in self._pending if u.deadline is not None), default=None)

    def agent_lost(self, code: str, message: str) -> list[SessionOutput]:
        """Updates that will get no answer."""
        lost = [Problem(code, message, None, u.event_id, u.source) for u in self._asked if u.source]
        self._pending.clear()
        self._asked.clear()
        return list(lost)

    def _check_formats(self, session: Mapping[str, Any]) -> list[SessionOutput]:
        """What the agent says it speaks and hears, against what it was told; said once a side."""
        problems: list[SessionOutput] = []
        for side, said in _formats_of(session).items():
            told = self._formats[side]
            if side in self._mismatched or all(said.get(key, told[key]) == told[key] for key in told):
                continue
            self._mismatched.add(side)
            what = "rate" if said.get("type") == told["type"] else "format"
            key = f"audio_{what}_{side.removesuffix('put')}"
            words = (
                f"The agent's {side} audio is {_in_words(said)}, but {_in_words(told)} was asked for. "
                f"It sounds wrong unless agent.{key} is what the agent speaks."
            )
            param = f"session.audio.{side}.format"
            problems.append(Problem("agent_audio_format", words, param, "", EVERYONE))
        return problems

    def _first_detection(self, wanted: Mapping[str, Any]) -> Detection:
        try:
            return detection_for(wanted, self._ability, self._defaults)
        except (
            ValueError
        ):  # signaling does not read sessions; what is no detection is as if it were not there
            return detection_for({}, self._ability, self._defaults)

    def _pinned(self, session: Mapping[str, Any], detection: Detection | None) -> dict[str, Any]:
        pinned = deepcopy(dict(session))
        if detection is not None and detection.mode is not Mode.UPSTREAM:
            pinned = with_detection(pinned, detection.told)
        pinned.setdefault("type", "realtime")
        for side in _formats_of(session):
            pinned["audio"][side]["format"] = dict(self._formats[side])
        return pinned

    def _send(self, update: _Update) -> SendUpdate:
        self._serial += 1
        update.sent_id = f"{INTERNAL_ID}session_{self._serial}"
        return SendUpdate(realtime.encode_session_update(update.session, update.sent_id))

    def _answer(self, update: _Update) -> list[SessionOutput]:
        """The answers that can now be given: this update's, if all that were asked before it are answered."""
        update.settled = True
        outputs: list[SessionOutput] = []
        while self._asked and self._asked[0].settled:
            outputs += self._describe(self._asked.popleft())
        return outputs

    def _describe(self, update: _Update) -> list[SessionOutput]:
        if update.detection is not None:
            self.detection = update.detection
        if self.detection.mode is Mode.HYBRID and any("turn_detection" in what for what in update.dropped):
            # It would answer by itself, and so would we: it is left to the agent.
            self.detection = detection_for(without_detection(update.session), "semantic", self._defaults)
        outputs: list[SessionOutput] = [Updated(self.view(), quiet=update.source is None)]
        if update.source is None:
            return outputs
        if update.dropped:
            param = "session." + update.dropped[0].partition(" ")[0]
            words = "The agent does not take all of these settings: " + ", ".join(update.dropped) + "."
            outputs.append(Problem("session_settings_dropped", words, param, update.event_id, update.source))
        elif update.unconfirmed:
            words = "The agent has not confirmed these settings."
            outputs.append(Problem("session_update_unconfirmed", words, None, update.event_id, update.source))
        return outputs


@dataclass(slots=True, eq=False)
class _Update:
    session: dict[str, Any]
    event_id: str
    """The client's."""
    source: Audience | None
    """None: the call's own settings."""
    deadline: float | None
    detection: Detection | None
    """None: it says nothing of it."""
    sent_id: str = ""
    dropped: list[str] = field(default_factory=list)
    unconfirmed: bool = False
    settled: bool = False
    """The agent has taken what it takes of it."""


def _in_words(format: Mapping[str, Any]) -> str:
    """A format for a person. The agent's own words in it are cut short."""
    rate = f" at {format['rate']!s:.16} Hz" if "rate" in format else ""
    return f"{format.get('type')!s:.32}{rate}"


def _formats_of(session: Mapping[str, Any]) -> dict[str, Mapping[str, Any]]:
    """The audio formats that a session names, by side."""
    audio = session.get("audio")
    formats: dict[str, Mapping[str, Any]] = {}
    for side in ("input", "output"):
        settings = audio.get(side) if isinstance(audio, Mapping) else None
        if isinstance(settings, Mapping) and isinstance(settings.get("format"), Mapping):
            formats[side] = settings["format"]
    return formats
