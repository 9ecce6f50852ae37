"""By which relay each client is reached: the addresses of all calls, and who brought their packets. Pure.

A path is a call's client address and the relay (`ip:port`) that brought an *authenticated* packet from it
last. So a client that anycast or a re-hash moves to another relay is answered there from its first packet on,
and nobody can point its replies elsewhere without a packet that he could not make: a forged one is not
authenticated, and neither a repeated SRTP packet (libsrtp), a repeated DTLS record (OpenSSL) nor a repeated
STUN check (`IceLite`, which knows the last 128 of a call) is new.

A relay of the second tier is no different: it brought the packet, so it gets the reply.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Set

from voicegate.proto.address import ClientAddress
from voicegate.roles.transceiver.call import Proof
from voicegate.roles.transceiver.entry import Entry

MAX_PATHS = 8
"""Client addresses of one call, as `IceLite` keeps: host, VPN and cellular interfaces with room to roam."""

TAKEOVER_SECONDS = 5.0
"""A client address passes to another call only when its call was silent this long: the relay's own rule."""


class Paths:
    """The paths of all calls. An address belongs to one call at a time; `Entry.paths` has the relays."""

    def __init__(self, drops: Counter[str]) -> None:
        """`drops`: where `client_taken` is counted."""
        self._drops = drops
        self._owners: dict[ClientAddress, Entry] = {}
        self.owner: Callable[[ClientAddress], Entry | None] = self._owners.get
        """The call that what is no STUN belongs to when it comes from this address."""

    def learn(self, entry: Entry, client: ClientAddress, relay: str, proof: Proof, now: float) -> None:
        """Believe that `entry`'s client is at this address behind this relay, as far as `proof` goes."""
        known = entry.paths.get(client)
        if known == relay and self._owners.get(client) is entry:
            return
        if proof is Proof.NONE or (proof is Proof.REPEATED and known is not None):
            return
        owner = self._owners.get(client)
        if (
            owner is not None
            and owner is not entry
            and owner.call.client == client
            and owner.call.silent_for(now) < TAKEOVER_SECONDS
        ):
            # Integrity does not cover the source address: the holder of one valid ticket could spoof another
            # client's and take its media away. An address that its owner only ever checked from is not kept.
            self._drops["client_taken"] += 1
            return
        if known is None and len(entry.paths) >= MAX_PATHS:
            stalest = next(path for path in entry.paths if path != entry.call.client)
            del entry.paths[stalest]
            if self._owners.get(stalest) is entry:
                del self._owners[stalest]
        entry.paths[client] = relay
        self._owners[client] = entry

    def move(self, predecessors: Set[str], successor: str) -> int:
        """Point what goes by these relays to another one. Returns how many paths that were."""
        moved = 0
        for client, entry in self._owners.items():
            if entry.paths[client] in predecessors:
                entry.paths[client] = successor
                moved += 1
        return moved

    def reached_by(self, relays: Set[str]) -> list[tuple[ClientAddress, bytes]]:
        """(client address, ticket) of every path by one of these relays."""
        return [
            (client, entry.ufrag) for client, entry in self._owners.items() if entry.paths[client] in relays
        ]

    def forget(self, entry: Entry) -> list[tuple[ClientAddress, str]]:
        """Drop an ended call. Returns its paths that no other call has taken."""
        own = [(client, relay) for client, relay in entry.paths.items() if self._owners.get(client) is entry]
        for client, _ in own:
            del self._owners[client]
        return own

    def __len__(self) -> int:
        return len(self._owners)
