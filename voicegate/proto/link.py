"""The link: frames between relay and transceiver, each with the address of its client.

One datagram, in network order (a format of our own; the Simple Proxy Protocol for UDP is its model):

    version 4 bits | hops 4 bits | key id 1 byte | tag 8 bytes        the link header
    then one or more frames:
    family 1 byte (4 or 6) | client address 4|16 | client port 2 | length 2 | payload
    family 1 byte (68 or 70) | the same | 6, for TCP | length 2 | payload         a client of ICE-TCP

An empty payload is a *release*: a transceiver tells the relay that its call with this client is over, so that
the client's address is free for another call at once. It goes that way only.

`hops` counts the relays that a client's packet has passed before the sender: 0 from the relay that it came
to. A second relay, of the cluster that the ticket names, gives it to a transceiver or drops it. Of version 2
are the datagrams that relays and transceivers have for each other: see `link_control`.

The tag is a keyed BLAKE2s over sender, receiver and the hour. It keeps strangers on the internal network out,
and a receiver whose address was recycled (its boot id is in its name) from taking packets meant for the one
before. It is the same for an hour, so it costs nothing per packet. It does not protect the payload: that is
protected end to end by STUN integrity, DTLS and SRTP.
"""

from __future__ import annotations

import struct
from collections.abc import Iterable, Mapping
from hashlib import blake2s

from voicegate.proto.address import IPV4_LENGTH, IPV6_LENGTH, TCP_SUFFIX, ClientAddress
from voicegate.proto.errors import BadPacket

LINK_HEADER_LENGTH = 10
IPV4_FRAME_HEADER_LENGTH = 1 + IPV4_LENGTH + 2
IPV6_FRAME_HEADER_LENGTH = 1 + IPV6_LENGTH + 2
MAX_DATAGRAM = 1400
"""Bytes of a bundle: with IPv6 and UDP headers it stays below 1,500 also inside the tunnels of a cluster
network."""
MAX_PAYLOAD = 1400
"""Bytes of one client datagram. Browsers stay at or below 1,280. One that fills this goes alone in its
datagram, which is then 1,479 bytes with all headers over IPv6."""
HOUR = 3600
"""Seconds of calendar time per `hour` number."""

DATA = 1
CONTROL = 2
"""Versions, the high four bits of the first byte."""
_TAG_LENGTH = 8
_PERSON = b"vg-link1"
_LENGTH = struct.Struct("!H")
_FAMILIES = {IPV4_LENGTH: b"\x04", IPV6_LENGTH: b"\x06", IPV4_LENGTH + 1: b"\x44", IPV6_LENGTH + 1: b"\x46"}
_FRAME4 = struct.Struct(f"!x{IPV4_LENGTH}sH")
_FRAME6 = struct.Struct(f"!x{IPV6_LENGTH}sH")
_FORMS = {
    0x04: (_FRAME4, IPV4_FRAME_HEADER_LENGTH),
    0x06: (_FRAME6, IPV6_FRAME_HEADER_LENGTH),
    0x44: (struct.Struct(f"!x{IPV4_LENGTH + 1}sH"), IPV4_FRAME_HEADER_LENGTH + 1),
    0x46: (struct.Struct(f"!x{IPV6_LENGTH + 1}sH"), IPV6_FRAME_HEADER_LENGTH + 1),
}


def link_header(
    key: bytes, key_id: int, sender: str, receiver: str, hour: int, *, hops: int = 0, version: int = DATA
) -> bytes:
    """The 10 bytes that begin every datagram from `sender` to `receiver` in this hour.

    A sender is named by the `ip:port` its datagrams come from; a relay by `ip:port`, a transceiver by
    `ip:port#boot` when it receives. `hour` is calendar seconds divided by 3600.
    """
    assert 0 <= hops <= 15, "four bits"
    return bytes((version << 4 | hops, key_id)) + _tag(key, sender, receiver, hour)


def frame_header(client: ClientAddress) -> bytes:
    """The frame header of a client without its length, the same for every packet of a flow: 7 or 19 bytes,
    one more for TCP."""
    return _FAMILIES[len(client)] + client


def encode_frame(client: ClientAddress, payload: bytes) -> bytes:
    """One frame: header, length, payload."""
    return frame_header(client) + _LENGTH.pack(len(payload)) + payload


def pack_frames(
    header: bytes, frames: Iterable[tuple[ClientAddress, bytes]], limit: int = MAX_DATAGRAM
) -> list[bytes]:
    """Bundle frames into as few datagrams as their order allows, none above `limit` unless one frame alone
    is."""
    datagrams: list[bytes] = []
    parts: list[bytes] = [header]
    size = len(header)
    for client, payload in frames:
        frame = encode_frame(client, payload)
        if len(parts) > 1 and size + len(frame) > limit:
            datagrams.append(b"".join(parts))
            parts = [header]
            size = len(header)
        parts.append(frame)
        size += len(frame)
    if len(parts) > 1:
        datagrams.append(b"".join(parts))
    return datagrams


def parse_frames_untrusted(datagram: bytes) -> list[tuple[ClientAddress, bytes]]:
    """The frames of a whole datagram, link header included (check that one with `LinkGuard` first).

    BadPacket(`link_frame`) when anything in it is not a whole frame: a bundle is all right or all wrong.
    """
    frames: list[tuple[ClientAddress, bytes]] = []
    position = LINK_HEADER_LENGTH
    end = len(datagram)
    while position < end:
        client, start, position = parse_frame_untrusted(datagram, position, end)
        frames.append((client, datagram[start:position]))
    if not frames:
        raise BadPacket("link_frame")
    return frames


def parse_frame_untrusted(
    data: bytes | memoryview, position: int, end: int
) -> tuple[ClientAddress, int, int]:
    """The frame that begins at `position` < `end`: its client, and where its payload begins and ends.
    BadPacket(`link_frame`) when it is not whole before `end`."""
    known = _FORMS.get(data[position])
    if known is None or end - position < known[1]:
        raise BadPacket("link_frame")
    form, header_length = known
    client, length = form.unpack_from(data, position)
    start = position + header_length
    if start + length > end or (header_length & 1 == 0 and client[-1:] != TCP_SUFFIX):
        raise BadPacket("link_frame")
    return client, start, start + length


class LinkGuard:
    """Accepts the link headers that a peer who has the key writes for us, in this hour or a neighbouring
    one."""

    __slots__ = ("_cache", "_keys", "_own_name")

    _MAX_CACHED = 4096
    """Senders remembered, of which only those with the key are: far above any cluster's number of peers."""

    def __init__(self, keys: Mapping[int, bytes], own_name: str) -> None:
        """`keys`: `ClusterKeys.link`, which may change; `own_name`: the receiver's name that peers put into
        the tag."""
        self._keys = keys
        self._own_name = own_name
        # sender -> (hour it was checked in, key id and tag, key)
        self._cache: dict[str, tuple[int, bytes, bytes]] = {}

    def accepts(self, sender: str, header: bytes, hour: int) -> bool:
        """Whether these first 10 bytes of a datagram that came from `sender` (`ip:port`) are genuine.
        Of which version it is, is the caller's to look at: `header[0] >> 4`."""
        if len(header) < LINK_HEADER_LENGTH or header[0] >> 4 not in (DATA, CONTROL):
            return False
        marked = bytes(header[1:LINK_HEADER_LENGTH])
        key = self._keys.get(marked[0])
        if key is None:
            return False
        if self._cache.get(sender) == (hour, marked, key):
            return True
        # The clocks of two machines never agree to the second: the hours on both sides are accepted. A set
        # look-up goes by hash and so tells a guesser nothing about how much of a tag was right.
        if marked[1:] not in {_tag(key, sender, self._own_name, hour + skew) for skew in (-1, 0, 1)}:
            return False
        if len(self._cache) >= self._MAX_CACHED:
            self._cache.clear()
        self._cache[sender] = (hour, marked, key)
        return True


def _tag(key: bytes, sender: str, receiver: str, hour: int) -> bytes:
    text = f"{sender}\0{receiver}\0{hour}".encode()
    return blake2s(text, digest_size=_TAG_LENGTH, key=key, person=_PERSON).digest()
