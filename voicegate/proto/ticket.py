"""The ticket: a server ICE ufrag that tells a relay, and nobody else, which transceiver owns the call.

23 of the 32 characters that RFC 8839 section 5.4 allows to be sent, all of them ice-char (`A-Z a-z 0-9 + /`):

    character 0       key id (3 bits; 7 is never minted) and format (3 bits; 1)
    characters 1-22   base64, unpadded, of one AES-128 block of
                      cluster 12 | transceiver 20 | expiry 20 | nonce 36 | zero 40   (bits)

One block-cipher call gives secrecy and authenticity at once, as in the single-pass encryption of QUIC-LB: a
forger must hit 40 zero bits *and* a live transceiver *and* an expiry that has not passed, to gain one packet
that then fails MESSAGE-INTEGRITY. The expiry counts units of 16 s modulo 2^20 and is compared by serial
arithmetic (RFC 1982). It gates the making of a flow, never one that exists.

The ICE password is HMAC-SHA256 of the ticket under a second key: 24 characters, 144 bits (RFC 8445 section
5.3 asks for 128), so that a relay checks the integrity of a first packet with no look-up and no state.
"""

from __future__ import annotations

import hmac
from base64 import b64encode
from binascii import Error as Base64Error
from binascii import a2b_base64, b2a_base64
from collections.abc import Mapping
from types import MappingProxyType
from typing import NamedTuple

from cryptography.hazmat.primitives.ciphers import Cipher
from cryptography.hazmat.primitives.ciphers.algorithms import AES
from cryptography.hazmat.primitives.ciphers.modes import ECB

from voicegate.proto.errors import BadPacket

TICKET_LENGTH = 23
PASSWORD_LENGTH = 24
NONCE_LENGTH = 5
"""Bytes of randomness that `mint` takes; 36 of the 40 bits are used."""
MAX_KEY_ID = 6
MAX_CLUSTER = (1 << 12) - 1
MAX_TRANSCEIVER = (1 << 20) - 1
EXPIRY_UNIT = 16
"""Seconds: 2^20 units are 194 days, so serial arithmetic tells the past from the future for 97."""
GRACE_SECONDS = 300.0
"""A ticket outlives the longest call, so that a restarted relay can still open it."""

NO_KEYS: Mapping[int, bytes] = MappingProxyType({})

_FORMAT = 1
_EXPIRY_MASK = (1 << 20) - 1
_EXPIRY_HALF = 1 << 19
_NONCE_MASK = (1 << 36) - 1
_AUTHENTICATOR = bytes(5)
_ALPHABET = b"ABCDEFGHIJKLMNOPQRSTUVWXYZabcdefghijklmnopqrstuvwxyz0123456789+/"
_VALUES = [_ALPHABET.find(octet) for octet in range(256)]


class Ticket(NamedTuple):
    """What an opened ticket says."""

    config_id: int
    cluster: int
    transceiver: int
    expiry: int
    """Units of 16 s of calendar time, modulo 2^20; see `expired`."""
    nonce: int


class TicketKeys:
    """Mints and opens tickets. Not for use by two threads at once: each thread takes its own `clone`."""

    __slots__ = ("_decrypt", "_encrypt", "_given", "_macs", "_minting")

    def __init__(
        self, keys: Mapping[int, tuple[bytes, bytes]], minting: int, former: Mapping[int, bytes] = NO_KEYS
    ) -> None:
        """`keys`: by key id, the AES-128 key of tickets and the HMAC key of passwords; `former`: HMAC keys of
        tickets that open no more."""
        self._given: tuple[Mapping[int, tuple[bytes, bytes]], int, Mapping[int, bytes]] = {}, minting, former
        self.replace(keys, minting)

    def replace(self, keys: Mapping[int, tuple[bytes, bytes]], minting: int) -> None:
        """Have these keys instead, for all but the passwords of earlier tickets: a call that is up is checked
        to its end, whatever happens to the key. By the thread whose it is."""
        assert minting in keys and all(0 <= key_id <= MAX_KEY_ID for key_id in keys), "checked by ClusterKeys"
        earlier, _, former = self._given
        passwords = {**former, **{key_id: pair[1] for key_id, pair in {**earlier, **keys}.items()}}
        # One assignment: another thread may `clone` meanwhile.
        self._given = dict(keys), minting, passwords
        self._minting = minting
        # ECB is right here and nowhere else: one message is exactly one block, and no two are alike.
        self._encrypt = {key_id: Cipher(AES(pair[0]), ECB()).encryptor() for key_id, pair in keys.items()}
        # Copying a keyed HMAC costs half of keying one.
        self._macs = {key_id: hmac.new(key, digestmod="sha256") for key_id, key in passwords.items()}
        self._decrypt = {key_id: Cipher(AES(pair[0]), ECB()).decryptor() for key_id, pair in keys.items()}

    def clone(self) -> TicketKeys:
        """The same keys with cipher contexts of their own. Any thread may ask for one."""
        return TicketKeys(*self._given)

    def mint(self, cluster: int, transceiver: int, expires_wall: float, nonce: bytes) -> str:
        """A new ticket. `expires_wall` is calendar seconds, rounded up to 16; `nonce` is 5 random bytes."""
        assert 0 <= cluster <= MAX_CLUSTER and 0 <= transceiver <= MAX_TRANSCEIVER, "checked by the registry"
        assert len(nonce) == NONCE_LENGTH, "36 bits of the nonce are needed"
        expiry = -int(-expires_wall // EXPIRY_UNIT) & _EXPIRY_MASK
        value = (cluster << 20 | transceiver) << 20 | expiry
        value = value << 36 | (int.from_bytes(nonce, "big") & _NONCE_MASK)
        block = self._encrypt[self._minting].update(value.to_bytes(11, "big") + _AUTHENTICATOR)
        first = _ALPHABET[self._minting << 3 | _FORMAT]
        return chr(first) + b64encode(block)[:22].decode("ascii")

    def open_untrusted(self, ufrag: bytes) -> Ticket:
        """Open a ticket from the network: authenticity and canonical form only, not expiry, not existence.

        BadPacket: `ticket_form` (not a ticket, or another spelling of one), `ticket_key` (no such key id),
        `ticket_forged` (not minted with that key).
        """
        if len(ufrag) != TICKET_LENGTH:
            raise BadPacket("ticket_form")
        head = _VALUES[ufrag[0]]
        if head & 7 != _FORMAT:  # -1, not in the alphabet, gives 7
            raise BadPacket("ticket_form")
        decrypt = self._decrypt.get(head >> 3)
        if decrypt is None:
            raise BadPacket("ticket_key")
        body = ufrag[1:]
        try:
            block = a2b_base64(body + b"==")
        except Base64Error:
            raise BadPacket("ticket_form") from None
        # The last character carries four spare bits: without this, one ticket would have 16 spellings, and
        # each of them its own password and its own place in the flow table.
        if b2a_base64(block, newline=False)[:22] != body:
            raise BadPacket("ticket_form")
        plain = decrypt.update(block)
        if plain[11:] != _AUTHENTICATOR:
            raise BadPacket("ticket_forged")
        value = int.from_bytes(plain[:11], "big")
        return Ticket(
            head >> 3,
            value >> 76,
            value >> 56 & MAX_TRANSCEIVER,
            value >> 36 & _EXPIRY_MASK,
            value & _NONCE_MASK,
        )

    def password(self, ufrag: bytes) -> bytes:
        """The ICE password of a ticket (24 characters), also of one that opens no more.

        BadPacket(`ticket_key`) when its key was never known.
        """
        keyed = self._macs.get(_VALUES[ufrag[0]] >> 3) if ufrag else None
        if keyed is None:
            raise BadPacket("ticket_key")
        mac = keyed.copy()
        mac.update(ufrag)
        return b2a_base64(mac.digest(), newline=False)[:PASSWORD_LENGTH]


def expired(ticket: Ticket, wall: float) -> bool:
    """Whether the ticket's time has passed, by serial arithmetic (RFC 1982); `wall` is calendar seconds."""
    return (ticket.expiry - int(wall // EXPIRY_UNIT)) & _EXPIRY_MASK >= _EXPIRY_HALF
