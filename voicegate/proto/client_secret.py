"""Client secrets: `ek_` and a sealed token that a browser may hold instead of a server's API key.

Everything that has to be known of one is inside: who issued it, until when it is good, the session that it
is for. So no server keeps a list of them. The issuer is named, not copied: what its key may do is looked up
when the secret is used, and a secret dies with the key that made it.
"""

from __future__ import annotations

import zlib
from typing import Any

import msgspec

from voicegate.proto.errors import BadPacket
from voicegate.proto.seal import MAX_PAYLOAD, SealKeys

PREFIX = "ek_"
MIN_SECONDS = 10
MAX_SECONDS = 7200
DEFAULT_SECONDS = 600
"""The lifetimes of the Realtime API (`POST /v1/realtime/client_secrets`)."""
MAX_SESSION_BYTES = 64 * 1024
"""JSON of one session's settings, as large as an offer. Sealed, it has to be small enough after compression:
about 6 kB, which is some 15 kB of instructions and tools."""

_LABEL = b"client secret"
_MAX_OPENED = 2 * MAX_SESSION_BYTES


class ClientSecret(msgspec.Struct, frozen=True, array_like=True):
    """What a client secret says."""

    id: str
    """`sess_...`: the session's name in the answer that handed it out."""
    issuer: str
    """The id of the API key that asked for it (never the key)."""
    expires_at: int
    """`wall` seconds; calls that are up then go on."""
    session: dict[str, Any] = {}
    """The session's settings; empty: the client's own."""
    safety_identifier: str = ""
    """Of the user it was made for, as the issuer's `OpenAI-Safety-Identifier` header said."""

    @property
    def model(self) -> str:
        """The model it is for; "" when it leaves that open."""
        model = self.session.get("model")
        return model if isinstance(model, str) else ""


def mint_client_secret(keys: SealKeys, secret: ClientSecret) -> str:
    """The `ek_` text. ValueError when the session is too large for one."""
    packed = zlib.compress(msgspec.json.encode(secret), 9)
    if len(packed) > MAX_PAYLOAD:
        raise ValueError(f"the session has {len(packed)} bytes when compressed; {MAX_PAYLOAD} fit into a key")
    return PREFIX + keys.seal(_LABEL, packed)


def open_client_secret_untrusted(keys: SealKeys, text: str) -> ClientSecret:
    """What an `ek_` says, expired or not; BadPacket(`client_secret`) when it is not one of ours."""
    if not text.startswith(PREFIX):
        raise BadPacket("client_secret")
    try:
        packed = keys.open_untrusted(_LABEL, text[len(PREFIX) :])
        # Only we seal, so this cannot be a bomb; the bound keeps that true of a future version too.
        opened = zlib.decompressobj().decompress(packed, _MAX_OPENED)
        return msgspec.json.decode(opened, type=ClientSecret)
    except (BadPacket, zlib.error, msgspec.DecodeError, RecursionError):
        raise BadPacket("client_secret") from None
