"""The keys of a cluster, all derived from one configured secret per key id.

`[keys] secrets` lists `ID:SECRET`. The first mints; the others still open what they minted, which is how keys
rotate: every relay learns the new one, then it moves to the front everywhere, and the old one stays for the
longest call. From each secret HKDF derives independent keys, one per purpose, so that no key serves twice.
"""

from __future__ import annotations

import hmac
from collections.abc import Iterable
from dataclasses import dataclass, field

from cryptography.hazmat.primitives.hashes import SHA256
from cryptography.hazmat.primitives.kdf.hkdf import HKDF

from voicegate.proto.seal import SealKeys
from voicegate.proto.ticket import MAX_KEY_ID, TicketKeys

MIN_SECRET_CHARACTERS = 32
"""128 bits even when somebody writes hexadecimal digits: the least that RFC 8445 section 5.3 asks of an ICE
password, which is derived from it."""


def derive(secret: bytes, label: str, length: int) -> bytes:
    """HKDF-SHA256 (RFC 5869) without salt; the label is the info, so each label has a key of its own."""
    return HKDF(algorithm=SHA256(), length=length, salt=None, info=label.encode()).derive(secret)


@dataclass(frozen=True, slots=True)
class ClusterKeys:
    """Every key a role needs. Printing one shows no secret."""

    tickets: TicketKeys = field(repr=False)
    link: dict[int, bytes] = field(repr=False)
    """BLAKE2s keys of the link's tags, by key id."""
    link_id: int
    """The key id that marks outgoing link datagrams."""
    seal: SealKeys = field(repr=False)
    control_token: str = field(repr=False)
    """The bearer token to send on internal HTTP."""
    control_tokens: tuple[str, ...] = field(repr=False)
    """The bearer tokens to accept there: one per key, so that a rotation refuses nobody."""
    marks: tuple[str, ...]
    """`ID:FINGERPRINT` of each key, the minting one first: what others may know of them."""

    @classmethod
    def parse(cls, secrets: Iterable[str]) -> ClusterKeys:
        """Read `ID:SECRET` entries, the minting one first. ValueError tells a person what to write."""
        by_id: dict[int, bytes] = {}
        for entry in secrets:
            key_id, secret = _parse_entry(entry)
            if key_id in by_id:
                raise ValueError(f"key id {key_id} is there twice; give each secret its own id")
            by_id[key_id] = secret
        if not by_id:
            raise ValueError("there is no secret; write at least one as ID:SECRET")
        minting = next(iter(by_id))
        tokens = {key_id: derive(secret, "voicegate control", 32).hex() for key_id, secret in by_id.items()}
        return cls(
            tickets=TicketKeys(
                {
                    key_id: (
                        derive(secret, "voicegate ticket", 16),
                        derive(secret, "voicegate password", 32),
                    )
                    for key_id, secret in by_id.items()
                },
                minting,
            ),
            link={key_id: derive(secret, "voicegate link", 32) for key_id, secret in by_id.items()},
            link_id=minting,
            seal=SealKeys(
                {key_id: derive(secret, "voicegate seal", 64) for key_id, secret in by_id.items()}, minting
            ),
            control_token=tokens[minting],
            control_tokens=tuple(tokens.values()),
            marks=tuple(
                f"{key_id}:{derive(secret, 'voicegate mark', 4).hex()}" for key_id, secret in by_id.items()
            ),
        )

    def accepts_control_token(self, token: str) -> bool:
        """Whether a bearer token on internal HTTP is one of ours, compared in constant time."""
        given = token.encode("utf-8", "replace")
        return any(hmac.compare_digest(given, known.encode()) for known in self.control_tokens)


def _parse_entry(entry: str) -> tuple[int, bytes]:
    # The entry itself is never put into a message: it holds the secret.
    id_text, colon, secret = entry.strip().partition(":")
    if not colon or len(id_text) != 1 or not "0" <= id_text <= str(MAX_KEY_ID):
        raise ValueError(f"a secret must be written as ID:SECRET with an ID from 0 to {MAX_KEY_ID}")
    if len(secret) < MIN_SECRET_CHARACTERS:
        raise ValueError(
            f"the secret of key id {id_text} has {len(secret)} characters; "
            f"it needs at least {MIN_SECRET_CHARACTERS}, for example from `openssl rand -hex 32`"
        )
    return int(id_text), secret.encode()
