"""SRTP and SRTCP of one call (RFC 3711, RFC 7714), on libsrtp, with keys from the DTLS handshake (RFC 5764).

A session has two halves: what we protect and what we unprotect, each with its own master key. libsrtp
keeps, per SSRC, the rollover counter and the replay window; its list of streams is linear and it never
forgets one, so the number of inbound sources is capped here. A new source is let in only by a packet that
authenticates: first it is tried in libsrtp, which makes a stream only after the tag was right, and the cap
is asked before that.

The first sequence number of a stream must be below 2**15 (RFC 3711 section 3.3.1 leaves the receiver to
guess the rollover counter: a stream that starts at 65535 and whose first packet is lost never
authenticates). That is the duty of whoever starts a stream; `MAX_FIRST_SEQUENCE` is the number.
"""

from __future__ import annotations

from collections.abc import Callable
from enum import IntEnum
from typing import Any, Final, NamedTuple

import pylibsrtp
from pylibsrtp._binding import ffi, lib

from voicegate.proto.errors import BadPacket

MAX_FIRST_SEQUENCE: Final = 0x7FFF

# Ten seconds of 20-ms packets fit twice over; the memory is 128 bytes a stream.
REPLAY_WINDOW: Final = 1024

# One microphone, its retransmission stream and a renegotiated successor of each, twice over for good measure;
# libsrtp searches its streams one after the other for every packet.
MAX_SSRCS: Final = 8

MAX_PROTECTED_PACKET: Final = 1500
_MAX_TRAILER: Final = 148
"""SRTP_MAX_SRTCP_TRAILER_LEN of libsrtp, which writes it without asking for room."""
MAX_PLAIN_PACKET: Final = MAX_PROTECTED_PACKET - _MAX_TRAILER

HISTORY: Final = 32
"""Packets that can be sent again, a power of two: 0.6 s of 20-ms frames, far more than a jitter buffer
holds."""
_HISTORY_MASK = HISTORY - 1

RTP_HEADER: Final = 12  # RFC 3550 section 5.1
RTCP_HEADER: Final = 8  # RFC 3711 section 3.4: header and sender SSRC stay in the clear
SRTCP_INDEX: Final = 4  # RFC 3711 section 3.4: E flag and 31-bit index


class SrtpProfile(IntEnum):
    """DTLS-SRTP protection profiles, numbered by IANA (RFC 5764 section 4.1.2, RFC 7714 section 14.2)."""

    AES128_CM_SHA1_80 = 0x0001
    AEAD_AES_128_GCM = 0x0007

    @property
    def key_length(self) -> int:
        """Bytes of one master key."""
        return 16

    @property
    def salt_length(self) -> int:
        """Bytes of one master salt: 14 for counter mode (RFC 5764 4.1.2), 12 for GCM (RFC 7714 14.2)."""
        return 12 if self is SrtpProfile.AEAD_AES_128_GCM else 14

    @property
    def tag_length(self) -> int:
        """Bytes the authentication tag adds to a packet."""
        return 16 if self is SrtpProfile.AEAD_AES_128_GCM else 10

    @property
    def material_length(self) -> int:
        """Bytes to ask of the DTLS exporter: both keys and both salts (RFC 5764 section 4.2)."""
        return 2 * (self.key_length + self.salt_length)


_LIBSRTP_PROFILES: Final = {
    SrtpProfile.AES128_CM_SHA1_80: pylibsrtp.Policy.SRTP_PROFILE_AES128_CM_SHA1_80,
    SrtpProfile.AEAD_AES_128_GCM: pylibsrtp.Policy.SRTP_PROFILE_AEAD_AES_128_GCM,
}

_Function = Callable[[Any, Any, Any], int]
"""Of libsrtp: session, packet in place, length in place; the status."""

# libsrtp's words for a failure (of the binding, where they stand by status) and ours.
_REASONS: Final = {
    "authentication failure": "srtp_auth",
    "unable to perform desired validation": "srtp_auth",  # SRTCP whose E flag says that it is not encrypted
    "replay check failed (bad index)": "srtp_replay",
    "replay check failed (index too old)": "srtp_replay",
    "packet index is too old to consider": "srtp_replay",
    "can't use key any more": "srtp_key_expired",
    "error parsing data": "srtp_malformed",
    "unsupported parameter": "srtp_malformed",
    "no appropriate context found": "srtp_no_context",
}


class SrtpStatistics(NamedTuple):
    """Counters of one session since its start."""

    protected: int
    unprotected: int
    dropped: int
    ssrcs: int
    ssrcs_refused: int


class SrtpSession:
    """Both directions of one call's media.

    `key_material` is the exporter's output, `profile.material_length` bytes, in the order client key, server
    key, client salt, server salt (RFC 5764 section 4.2); `is_client` says that we are the DTLS client.
    ValueError if its length is another. `resends`: what we protect is kept for `take_sent`.
    """

    def __init__(
        self,
        profile: SrtpProfile,
        key_material: bytes,
        is_client: bool,
        max_ssrcs: int = MAX_SSRCS,
        *,
        resends: bool = False,
    ) -> None:
        client, server = split_key_material(profile, key_material)
        self._outbound = _Half(profile, client if is_client else server, pylibsrtp.Policy.SSRC_ANY_OUTBOUND)
        self._inbound = _Half(profile, server if is_client else client, pylibsrtp.Policy.SSRC_ANY_INBOUND)
        # SRTCP of GCM carries the whole 16-byte tag, of the CM profile 10 bytes (RFC 5764 4.1.2).
        self._min_rtp = RTP_HEADER + profile.tag_length
        self._min_rtcp = RTCP_HEADER + SRTCP_INDEX + profile.tag_length
        self._max_ssrcs = max_ssrcs
        self._ssrcs: set[bytes] = set()
        self._history: list[bytes] | None = [b""] * HISTORY if resends else None
        self._protected = 0
        self._unprotected = 0
        self._dropped = 0
        self._ssrcs_refused = 0

    def protect_rtp(self, packet: bytes) -> bytes:
        """SRTP of one RTP packet of ours, at most MAX_PLAIN_PACKET bytes. A wrong packet is our bug: it
        raises."""
        self._protected += 1
        protected = self._outbound.transform(packet, lib.srtp_protect)
        if self._history is not None:
            self._history[packet[3] & _HISTORY_MASK] = protected
        return protected

    def take_sent(self, sequence: int) -> bytes | None:
        """The protected packet with this sequence number, to be sent again as it was: once, and only while it
        is one of the last HISTORY. Protecting it anew would use its index twice (RFC 3711 section 9.1)."""
        if self._history is None:
            return None
        slot = sequence & _HISTORY_MASK
        kept = self._history[slot]
        if kept[2:4] != sequence.to_bytes(2, "big"):
            return None
        self._history[slot] = b""
        return kept

    def protect_rtcp(self, packet: bytes) -> bytes:
        """SRTCP of one compound (or reduced-size) RTCP packet of ours."""
        self._protected += 1
        return self._outbound.transform(packet, lib.srtp_protect_rtcp)

    def unprotect_rtp_untrusted(self, data: bytes) -> bytes:
        """The RTP packet in an SRTP packet, or BadPacket: srtp_short, srtp_long, srtp_auth, srtp_replay,
        ..."""
        if len(data) < self._min_rtp:
            raise self._drop("srtp_short")
        # RFC 3550 section 5.1: version 2. The binding would otherwise call a stray packet malformed.
        if data[0] >> 6 != 2:
            raise self._drop("srtp_malformed")
        return self._unprotect(data, data[8:12], lib.srtp_unprotect)

    def unprotect_rtcp_untrusted(self, data: bytes) -> bytes:
        """The RTCP packet in an SRTCP packet, or BadPacket, with the same reasons."""
        if len(data) < self._min_rtcp:
            raise self._drop("srtp_short")
        if data[0] >> 6 != 2:
            raise self._drop("srtp_malformed")
        return self._unprotect(data, data[4:8], lib.srtp_unprotect_rtcp)

    def statistics(self) -> SrtpStatistics:
        """The counters so far."""
        return SrtpStatistics(
            self._protected, self._unprotected, self._dropped, len(self._ssrcs), self._ssrcs_refused
        )

    def _unprotect(self, data: bytes, ssrc: bytes, unprotect: _Function) -> bytes:
        if len(data) > MAX_PROTECTED_PACKET:
            raise self._drop("srtp_long")
        known = ssrc in self._ssrcs
        if not known and len(self._ssrcs) >= self._max_ssrcs:
            self._ssrcs_refused += 1
            raise self._drop("srtp_ssrc_limit")
        try:
            packet = self._inbound.transform(data, unprotect)
        except pylibsrtp.Error as error:
            raise self._drop(_REASONS.get(str(error), "srtp_failed")) from None
        if not known:
            self._ssrcs.add(ssrc)
        self._unprotected += 1
        return packet

    def _drop(self, reason: str) -> BadPacket:
        self._dropped += 1
        return BadPacket(reason)


def split_key_material(profile: SrtpProfile, material: bytes) -> tuple[bytes, bytes]:
    """(client's, server's) master key followed by master salt, from the exporter's bytes (RFC 5764 section
    4.2)."""
    if len(material) != profile.material_length:
        raise ValueError(f"{profile.name} needs {profile.material_length} bytes of key material")
    key, salt = profile.key_length, profile.salt_length
    salts = 2 * key
    return (
        material[:key] + material[salts : salts + salt],
        material[key:salts] + material[salts + salt :],
    )


class _Half:
    """libsrtp for one direction: what `pylibsrtp.Session` does, without allocating for each packet."""

    __slots__ = ("_handle", "_length", "_memory", "_session", "_view")

    def __init__(self, profile: SrtpProfile, key: bytes, direction: int) -> None:
        policy = pylibsrtp.Policy(key=key, ssrc_type=direction, srtp_profile=_LIBSRTP_PROFILES[profile])
        policy.window_size = REPLAY_WINDOW
        handle = ffi.new("srtp_t *")
        status = lib.srtp_create(handle, policy._policy)
        if status:
            raise pylibsrtp.Error(pylibsrtp.ERRORS[status])
        self._handle = ffi.gc(handle, lambda handle: lib.srtp_dealloc(handle[0]))
        self._session = handle[0]
        self._memory = ffi.new("char[]", MAX_PROTECTED_PACKET + _MAX_TRAILER)
        self._view = ffi.buffer(self._memory, MAX_PROTECTED_PACKET)
        self._length = ffi.new("int *")

    def transform(self, packet: bytes, function: _Function) -> bytes:
        """What one of libsrtp's four functions makes of a packet. Raises pylibsrtp.Error; ValueError for one
        of more than MAX_PROTECTED_PACKET bytes."""
        length, view = self._length, self._view
        size = length[0] = len(packet)
        view[:size] = packet
        status = function(self._session, self._memory, length)
        if status:
            raise pylibsrtp.Error(pylibsrtp.ERRORS[status])
        made: bytes = view[: length[0]]
        return made
