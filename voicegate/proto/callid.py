"""Call ids: `rtc_` and a sealed token that names the transceiver: any signaling instance serves any call."""

from __future__ import annotations

import struct

from voicegate.proto.errors import BadPacket
from voicegate.proto.seal import SealKeys

PREFIX = "rtc_"
NONCE_LENGTH = 8
"""Random bytes in an id: two calls of one transceiver collide after about 2^32 of them."""

_LABEL = b"call"
_FORM = struct.Struct(f"!HI{NONCE_LENGTH}s")


def mint_call_id(keys: SealKeys, cluster: int, transceiver: int, nonce: bytes) -> str:
    """A new call id; `nonce` is 8 random bytes."""
    assert len(nonce) == NONCE_LENGTH, "a short nonce would make ids collide"
    return PREFIX + keys.seal(_LABEL, _FORM.pack(cluster, transceiver, nonce))


def open_call_id_untrusted(keys: SealKeys, text: str) -> tuple[int, int]:
    """Cluster and transceiver of a call id; BadPacket(`call_id`) when it is not one of ours."""
    if not text.startswith(PREFIX):
        raise BadPacket("call_id")
    try:
        payload = keys.open_untrusted(_LABEL, text[len(PREFIX) :])
    except BadPacket:
        raise BadPacket("call_id") from None
    if len(payload) != _FORM.size:
        raise BadPacket("call_id")
    cluster, transceiver, _ = _FORM.unpack(payload)
    return cluster, transceiver
