"""Sealed tokens: a value that only we can make and read, carried by somebody else as text.

AES-256-SIV (RFC 5297) is deterministic and cannot be misused by repeating a nonce, for it takes none: the
same value gives the same token, which is what an identifier wants. The label is associated data: a token made
for one purpose does not open for another. The text is base64url without padding of key id (1 byte) and
ciphertext.
"""

from __future__ import annotations

from base64 import urlsafe_b64decode, urlsafe_b64encode
from collections.abc import Mapping

from cryptography.exceptions import InvalidTag
from cryptography.hazmat.primitives.ciphers.aead import AESSIV

from voicegate.proto.errors import BadPacket

MAX_TOKEN_CHARACTERS = 8000
"""A token rides in a URL or a header; common servers stop at 8 KiB for the whole of either."""
MAX_PAYLOAD = 5980
"""Bytes that make a token of that length, with key id and authenticator."""

_SIV_LENGTH = 16


class SealKeys:
    """Seals with one key and opens with any of them."""

    __slots__ = ("_current",)

    def __init__(self, keys: Mapping[int, bytes], sealing: int) -> None:
        """`keys`: 64-byte AES-256-SIV keys by key id."""
        self.replace(keys, sealing)

    def replace(self, keys: Mapping[int, bytes], sealing: int) -> None:
        """Have these keys instead."""
        assert sealing in keys, "checked by ClusterKeys"
        # One assignment, so that a thread that seals meanwhile does it with the one or the other.
        self._current = sealing, {key_id: AESSIV(key) for key_id, key in keys.items()}

    def seal(self, label: bytes, payload: bytes) -> str:
        """The token for a payload of 1 to `MAX_PAYLOAD` bytes."""
        assert 0 < len(payload) <= MAX_PAYLOAD, "a token stays below MAX_TOKEN_CHARACTERS"
        sealing, ciphers = self._current
        sealed = ciphers[sealing].encrypt(payload, [label])
        return urlsafe_b64encode(bytes((sealing,)) + sealed).rstrip(b"=").decode("ascii")

    def open_untrusted(self, label: bytes, token: str) -> bytes:
        """The payload of a token that was sealed under this label; BadPacket(`seal`) for everything else."""
        if len(token) > MAX_TOKEN_CHARACTERS or not token.isascii():
            raise BadPacket("seal")
        try:
            raw = urlsafe_b64decode(token + "=" * (-len(token) % 4))
        except ValueError:
            raise BadPacket("seal") from None
        # One value has one token: spare bits and characters that the decoder skips are refused.
        if urlsafe_b64encode(raw).rstrip(b"=") != token.encode() or len(raw) <= 1 + _SIV_LENGTH:
            raise BadPacket("seal")
        cipher = self._current[1].get(raw[0])
        if cipher is None:
            raise BadPacket("seal")
        try:
            return cipher.decrypt(raw[1:], [label])
        except InvalidTag:
            raise BadPacket("seal") from None
