"""How a relay that has just started learns who is there: it asks transceivers and other clusters' relays.
Pure.

See `proto.link_control`. Each of them gets a hello when it becomes known, again and ever later until
every part of its answer has come, and from then on now and then, so that it knows which relay serves which
ingress.
"""

from __future__ import annotations

from collections.abc import Iterable

from voicegate.proto.link_control import HELLO_RETRY_SECONDS, HELLO_SECONDS, Clients, Hello
from voicegate.roles.relay.routes import Route


class _State:
    __slots__ = ("due", "number", "parts", "receiver", "tries")

    def __init__(self, receiver: str, number: int, now: float) -> None:
        self.receiver = receiver
        self.number = number
        """Of the hello whose answer is awaited; 0: it has come."""
        self.tries = 0
        self.due = now
        self.parts: set[int] = set()


class Hellos:
    """What was said to each transceiver."""

    def __init__(self, ingress: str, boot: int) -> None:
        self._ingress = ingress
        self._boot = boot
        self._number = boot & 0x7FFFFFFF
        """Continued from a number of this start, so that an answer to an earlier relay is not taken for
        ours."""
        self._states: dict[Route, _State] = {}

    def update(self, routes: Iterable[Route], now: float) -> None:
        """Take over who is there: who is new, or new at its address, is asked at once."""
        present = set(routes)
        for route in self._states.keys() - present:
            del self._states[route]
        for route in present:
            state = self._states.get(route)
            if state is None or state.receiver != route.receiver:
                self._number += 1
                self._states[route] = _State(route.receiver, self._number, now)

    def poll(self, now: float) -> list[tuple[Route, Hello]]:
        """The hellos that are due."""
        due = []
        for route, state in self._states.items():
            if now < state.due:
                continue
            if state.number:
                state.due = now + HELLO_RETRY_SECONDS[min(state.tries, len(HELLO_RETRY_SECONDS) - 1)]
                state.tries += 1
            else:
                state.due = now + HELLO_SECONDS
            due.append((route, Hello(self._ingress, self._boot, state.number)))
        return due

    def next_deadline(self) -> float | None:
        return min((state.due for state in self._states.values()), default=None)

    def answered(self, route: Route, message: Clients, now: float) -> bool:
        """Whether this is an answer that is awaited, so that it may be believed; it is taken note of."""
        state = self._states.get(route)
        if state is None or state.number == 0 or state.number != message.number:
            return False
        state.parts.add(message.part)
        if len(state.parts) >= message.parts:
            state.number = 0
            state.due = now + HELLO_SECONDS
        return True

    def waiting(self) -> int:
        """How many have not answered yet."""
        return sum(state.number != 0 for state in self._states.values())
