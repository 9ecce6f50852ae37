"""The keys of a cluster, all derived from one configured secret per key id.

`keys.file` or `keys.secrets` lists `ID:SECRET`. The first mints; the others still open what they minted,
which is how keys rotate: every process learns the new one, then it moves to the front everywhere, and the
old one stays for the longest call (`voicegate.rotation` has the rules). From each secret HKDF derives
independent keys, one per purpose, so that no key serves twice.
"""

from __future__ import annotations

import hmac
from collections.abc import Iterable, Mapping

from cryptography.hazmat.primitives.hashes import SHA256
from cryptography.hazmat.primitives.kdf.hkdf import HKDF

from voicegate.proto.link import DATA, link_header
from voicegate.proto.seal import SealKeys
from voicegate.proto.ticket import MAX_KEY_ID, TicketKeys

MIN_SECRET_CHARACTERS = 32
"""128 bits even when somebody writes hexadecimal digits: the least that RFC 8445 section 5.3 asks of an ICE
password, which is derived from it."""


def derive(secret: bytes, label: str, length: int) -> bytes:
    """HKDF-SHA256 (RFC 5869) without salt; the label is the info, so each label has a key of its own."""
    return HKDF(algorithm=SHA256(), length=length, salt=None, info=label.encode()).derive(secret)


def mark(key_id: int, secret: bytes) -> str:
    """`ID:FINGERPRINT`, which names a secret without telling it."""
    return f"{key_id}:{derive(secret, 'voicegate mark', 4).hex()}"


class ClusterKeys:
    """Every key a role needs. Printing one shows no secret.

    One per process. `replace` changes it, and its parts, in place, so whoever holds them has the new keys
    at once. Only the thread that owns it replaces. Another thread may read `link`, `link_header` and
    `version` and take a `tickets.clone()`; when `version` is another one, what it made of the keys is to be
    made anew.
    """

    __slots__ = (
        "_link_minting",
        "control_token",
        "control_tokens",
        "entries",
        "link",
        "link_id",
        "marks",
        "seal",
        "tickets",
        "version",
    )

    tickets: TicketKeys
    link: dict[int, bytes]
    """BLAKE2s keys of the link's tags, by key id."""
    link_id: int
    """The key id that marks outgoing link datagrams."""
    seal: SealKeys
    control_token: str
    """The bearer token to send on internal HTTP."""
    control_tokens: tuple[str, ...]
    """The bearer tokens to accept there: one per key, so that a rotation refuses nobody."""
    entries: tuple[str, ...]
    """The `ID:SECRET` that all of it is made from, for a process of our own that needs the same."""
    marks: tuple[str, ...]
    """See `mark`; the minting one first."""
    version: int
    """Counts the replacements."""

    def __init__(self, secrets: Mapping[int, bytes]) -> None:
        """`secrets` by key id, not empty; the first one mints. See `parse`."""
        self.link = {}
        self.version = -1
        self._take(secrets)

    @classmethod
    def parse(cls, secrets: Iterable[str]) -> ClusterKeys:
        """Read `ID:SECRET` entries, the minting one first. ValueError tells a person what to write."""
        return cls(parse_secrets(secrets))

    def replace(self, secrets: Iterable[str]) -> None:
        """Have these entries instead, everywhere. ValueError, as of `parse`, changes nothing."""
        self._take(parse_secrets(secrets))

    def link_header(
        self, sender: str, receiver: str, hour: int, *, hops: int = 0, version: int = DATA
    ) -> bytes:
        """See `link.link_header`, with the minting key."""
        key_id, key = self._link_minting
        return link_header(key, key_id, sender, receiver, hour, hops=hops, version=version)

    def accepts_control_token(self, token: str) -> bool:
        """Whether a bearer token on internal HTTP is one of ours, compared in constant time."""
        given = token.encode("utf-8", "replace")
        return any(hmac.compare_digest(given, known.encode()) for known in self.control_tokens)

    def __repr__(self) -> str:
        return f"ClusterKeys({', '.join(self.marks)})"

    def _take(self, secrets: Mapping[int, bytes]) -> None:
        minting = next(iter(secrets))
        tickets = {
            key_id: (derive(secret, "voicegate ticket", 16), derive(secret, "voicegate password", 32))
            for key_id, secret in secrets.items()
        }
        seals = {key_id: derive(secret, "voicegate seal", 64) for key_id, secret in secrets.items()}
        tokens = {key_id: derive(secret, "voicegate control", 32).hex() for key_id, secret in secrets.items()}
        if self.version < 0:
            self.tickets = TicketKeys(tickets, minting)
            self.seal = SealKeys(seals, minting)
        else:
            self.tickets.replace(tickets, minting)
            self.seal.replace(seals, minting)
        # First all that opens, then what mints, then what opens no more: another thread may look in between.
        self.link.update({key_id: derive(secret, "voicegate link", 32) for key_id, secret in secrets.items()})
        self.link_id = minting
        self._link_minting = minting, self.link[minting]
        for key_id in self.link.keys() - secrets.keys():
            del self.link[key_id]
        self.control_token = tokens[minting]
        self.control_tokens = tuple(tokens.values())
        self.entries = tuple(f"{key_id}:{secret.decode()}" for key_id, secret in secrets.items())
        self.marks = tuple(mark(key_id, secret) for key_id, secret in secrets.items())
        self.version += 1  # the last: who sees it sees all of the above


def parse_secrets(entries: Iterable[str]) -> dict[int, bytes]:
    """Secrets by key id, in the order of their `ID:SECRET` entries. ValueError as of `ClusterKeys.parse`."""
    by_id: dict[int, bytes] = {}
    for entry in entries:
        key_id, secret = _parse_entry(entry)
        if key_id in by_id:
            raise ValueError(f"key id {key_id} is there twice; give each secret its own id")
        by_id[key_id] = secret
    if not by_id:
        raise ValueError("there is no secret; write at least one as ID:SECRET")
    return by_id


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
