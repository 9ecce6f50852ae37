"""The transceiver's end of the link: what goes to which relay, and which relay serves what. Pure.

    Call ─► send ─► frames, gathered per relay ─► link datagrams
    Hello ─► who serves which ingress ─► paths of a relay that is no more move to its successor
                                     └─► Clients: whom we have at that ingress, for the relay that asked

A relay that starts again may have another link address than before, and has lost its flows. Its hello has the
same ingress with a later boot, and that tells which paths were its predecessor's. They move at once, when the
hello is the relay's first or asks for an answer, and only then: two relays that live behind one anycast
address greet every few seconds, and each keeps the clients that it brings.
"""

from __future__ import annotations

from collections import Counter
from dataclasses import dataclass

from voicegate.proto import link
from voicegate.proto.address import ClientAddress
from voicegate.proto.errors import BadPacket
from voicegate.proto.keys import ClusterKeys
from voicegate.proto.link_control import HELLO_SECONDS, Hello, answer_hello, parse_control_untrusted
from voicegate.roles.transceiver.allocation import Identity
from voicegate.roles.transceiver.paths import Paths

MAX_RELAYS = 1024
"""Relay workers whose ingress is remembered, and whose header is kept: far above any fleet's."""

FORGET_SECONDS = 3 * HELLO_SECONDS

HELLOS_PER_SECOND = 10
"""Of one relay. One that gets no answer says six in its first second (`HELLO_RETRY_SECONDS`); each may cost a
look at all paths, some 0.1 ms for 1,600."""

MAX_ANSWERS = 1024
"""Datagrams of answers that wait for their poll: 200 calls with all eight paths each, for 18 relays in one
turn."""


@dataclass(slots=True)
class _Served:
    """What a relay's last hello said."""

    ingress: str
    boot: int
    heard: float
    since: float
    """When its hellos began to be counted, and how many there were: anew each second."""
    hellos: int


class Relays:
    """All relays that one transceiver talks with. `send` and `receive_untrusted`, then drain
    `poll_transmits`."""

    def __init__(
        self,
        identity: Identity,
        keys: ClusterKeys,
        paths: Paths,
        *,
        drops: Counter[str],
        totals: Counter[str],
    ) -> None:
        """`drops` and `totals`: where is counted."""
        self._identity = identity
        self._keys = keys
        self._paths = paths
        self._guard = link.LinkGuard(keys.link, f"{identity.link}#{identity.boot}")
        self._drops = drops
        self._totals = totals
        self._served: dict[str, _Served] = {}
        """By relay, the one heard longest ago first."""
        self._frames: dict[str, list[tuple[ClientAddress, bytes]]] = {}
        self._answers: list[tuple[str, bytes]] = []
        self._seen: tuple[bytes, str, int, int] | None = None
        """Header, relay, hour and version of the keys of the datagram accepted last."""
        self._headers: dict[str, bytes] = {}
        self._headers_of = (-1, -1)
        """The hour, and the version of the keys, that they were made for."""

    def send(self, relay: str, client: ClientAddress, payload: bytes) -> None:
        """Queue a packet for a client behind this relay; an empty one is the release of `proto.link`."""
        frames = self._frames.get(relay)
        if frames is None:
            frames = self._frames[relay] = []
        frames.append((client, payload))

    def receive_untrusted(
        self, datagram: bytes, relay: str, hour: int, now: float
    ) -> list[tuple[ClientAddress, bytes]]:
        """Take a link datagram that came from `relay` (`ip:port`). Returns the frames in it; none are in a
        hello, which is dealt with.

        BadPacket: `link_stranger`, `link_frame`, `link_control`, `link_clients` (that is a message for
        relays) or `hello_too_often`.
        """
        seen = (datagram[: link.LINK_HEADER_LENGTH], relay, hour, self._keys.version)
        if seen != self._seen:  # of the datagrams of one turn most have the same
            if not self._guard.accepts(relay, seen[0], hour):
                raise BadPacket("link_stranger")
            self._seen = seen
        if datagram[0] >> 4 == link.DATA:
            return link.parse_frames_untrusted(datagram)
        self._receive_control_untrusted(datagram, relay, now)
        return []

    def poll_transmits(self, hour: int) -> list[tuple[str, bytes]]:
        """All link datagrams that are ready, as (relay, datagram). Answers to hellos go first: a relay should
        know a client before it gets something for it."""
        if not self._frames and not self._answers:
            return []
        datagrams = [
            (relay, self._keys.link_header(self._identity.link, relay, hour, version=link.CONTROL) + answer)
            for relay, answer in self._answers
        ]
        for relay, frames in self._frames.items():
            self._totals["frames_out"] += len(frames)
            header = self._header(relay, hour)
            datagrams.extend((relay, datagram) for datagram in link.pack_frames(header, frames))
        self._totals["link_datagrams_out"] += len(datagrams)
        self._frames = {}
        self._answers = []
        return datagrams

    def _receive_control_untrusted(self, datagram: bytes, relay: str, now: float) -> None:
        hello = parse_control_untrusted(datagram)
        if not isinstance(hello, Hello):
            raise BadPacket("link_clients")
        news = self._note(hello, relay, now)
        if not news and not hello.number:
            return
        peers = {
            name: served.boot for name, served in self._served.items() if served.ingress == hello.ingress
        }
        predecessors = {name for name, boot in peers.items() if boot < hello.boot}
        if predecessors:
            self._totals["paths_moved"] += self._paths.move(predecessors, relay)
        if hello.number:
            self._answer(hello.number, relay, self._paths.reached_by(peers.keys()))

    def _note(self, hello: Hello, relay: str, now: float) -> bool:
        """Remember what a hello says; True when that was not known. BadPacket when there are too many."""
        known = self._served.pop(relay, None)
        if known is None or now - known.since >= 1.0:
            since, hellos = now, 1
        else:
            since, hellos = known.since, known.hellos + 1
            if known.hellos >= HELLOS_PER_SECOND:
                self._served[relay] = known
                raise BadPacket("hello_too_often")
        self._forget(now)
        self._served[relay] = _Served(hello.ingress, hello.boot, now, since, hellos)
        return known is None or (known.ingress, known.boot) != (hello.ingress, hello.boot)

    def _forget(self, now: float) -> None:
        """Drop the relays that fell silent, and make room for one more."""
        while self._served:
            stalest = next(iter(self._served))
            if now - self._served[stalest].heard <= FORGET_SECONDS:
                if len(self._served) < MAX_RELAYS:
                    return
                self._drops["relays_full"] += 1
            del self._served[stalest]

    def _answer(self, number: int, relay: str, clients: list[tuple[ClientAddress, bytes]]) -> None:
        answers = answer_hello(number, clients)
        if len(self._answers) + len(answers) > MAX_ANSWERS:
            self._drops["hello_answers_full"] += 1  # it asks again
            return
        self._totals["hellos_answered"] += 1
        self._answers += [(relay, answer) for answer in answers]

    def _header(self, relay: str, hour: int) -> bytes:
        """The link header for frames to a relay, made once per hour and change of keys."""
        wanted_for = (hour, self._keys.version)
        if wanted_for != self._headers_of or len(self._headers) > MAX_RELAYS:
            self._headers = {}
            self._headers_of = wanted_for
        header = self._headers.get(relay)
        if header is None:
            header = self._headers[relay] = self._keys.link_header(self._identity.link, relay, hour)
        return header
