"""What relays and transceivers say to each other on the link: how a restarted relay learns its flows.

Behind a link header of version 2 (`link.CONTROL`), as MessagePack arrays:

    relay ──── Hello ────► transceiver     "I serve these public addresses now; whom have you there?"
    relay ◄─── Clients ─── transceiver     the answer, in as many datagrams as it takes

and the same between a relay and the relays of other clusters, for clients that come by both.

A relay says hello to each transceiver that it begins to know, again and ever later until all of the answer
has come, and then every HELLO_SECONDS. The transceiver remembers which relay serves which ingress, so it can
tell the clients that came by a relay which is no more, and sends to them by its successor from then on.
"""

from __future__ import annotations

from collections.abc import Sequence

import msgspec

from voicegate.proto.address import IPV4_LENGTH, IPV6_LENGTH, ClientAddress
from voicegate.proto.errors import BadPacket
from voicegate.proto.link import LINK_HEADER_LENGTH, MAX_DATAGRAM
from voicegate.proto.ticket import TICKET_LENGTH

HELLO_RETRY_SECONDS = (0.02, 0.05, 0.1, 0.2, 0.4, 1.0)
"""Between hellos until one is answered; the last one repeats."""
HELLO_SECONDS = 10.0
"""Between hellos of which no answer is wanted: a transceiver forgets an ingress after three of them."""
MAX_INGRESS = 128
"""Characters of an ingress's name."""
CLIENTS_PER_DATAGRAM = (MAX_DATAGRAM - LINK_HEADER_LENGTH - 32) // (IPV6_LENGTH + 1 + TICKET_LENGTH + 5)


class Hello(msgspec.Struct, frozen=True, array_like=True, tag=1):
    """A relay's worker presents itself."""

    ingress: str
    """The public addresses that it serves, by name: the same for all relays and workers that share them."""
    boot: int
    """When its relay started, wall clock in milliseconds: the later of two is the successor."""
    number: int
    """Echoed in the answer; 0: no answer is wanted."""


class Clients(msgspec.Struct, frozen=True, array_like=True, tag=2):
    """Part `part` of `parts` of a transceiver's answer to hello `number`: whom it has at that ingress."""

    number: int
    part: int
    parts: int
    clients: tuple[tuple[bytes, bytes], ...]
    """(ClientAddress, ticket) each; empty only when there is nobody."""


def encode_control(message: Hello | Clients) -> bytes:
    """What stands behind the link header."""
    return _ENCODER.encode(message)


def answer_hello(number: int, clients: Sequence[tuple[ClientAddress, bytes]]) -> list[bytes]:
    """The encoded `Clients` that answer hello `number`; never an empty list."""
    step = CLIENTS_PER_DATAGRAM
    slices = [tuple(clients[start : start + step]) for start in range(0, len(clients), step)] or [()]
    return [encode_control(Clients(number, part, len(slices), rows)) for part, rows in enumerate(slices)]


def parse_control_untrusted(datagram: bytes) -> Hello | Clients:
    """The message of a whole datagram whose header was found genuine. BadPacket(`link_control`)."""
    try:
        message: Hello | Clients = _DECODER.decode(datagram[LINK_HEADER_LENGTH:])
    except (msgspec.DecodeError, RecursionError, UnicodeError):
        raise BadPacket("link_control") from None
    if isinstance(message, Hello):
        usable = len(message.ingress) <= MAX_INGRESS and message.number >= 0
    else:
        usable = 0 <= message.part < message.parts and all(
            len(client) in _CLIENT_LENGTHS and len(ticket) == TICKET_LENGTH
            for client, ticket in message.clients
        )
    if not usable:
        raise BadPacket("link_control")
    return message


_CLIENT_LENGTHS = (IPV4_LENGTH, IPV4_LENGTH + 1, IPV6_LENGTH, IPV6_LENGTH + 1)
_ENCODER = msgspec.msgpack.Encoder()
_DECODER = msgspec.msgpack.Decoder(Hello | Clients)
