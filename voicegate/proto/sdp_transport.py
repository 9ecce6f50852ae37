"""How an SDP offer says who will connect: ICE credentials, certificate fingerprints, the DTLS role."""

from __future__ import annotations

import re
from dataclasses import dataclass

from voicegate.proto.sdp_lines import TOKEN, Block, malformed, unanswerable

MAX_FINGERPRINTS = 8
"""Fingerprints noted: there are three hash functions that count, and a certificate roll-over doubles them."""


@dataclass(frozen=True, slots=True)
class Transport:
    """How the client is recognised. Its ICE password is checked for presence and forgotten: lite sends no
    checks."""

    ufrag: str
    fingerprints: tuple[tuple[str, bytes], ...]
    """(hash name in lower case, digest) of the certificates it may show; never SHA-1 or MD5, never empty."""
    dtls_active: bool
    """We are the DTLS client. So it is unless the offer insists on that role (RFC 8842 section 5.3)."""


_UFRAG = re.compile(r"[A-Za-z0-9+/]{4,256}")  # RFC 8839 section 5.4
_PASSWORD = re.compile(r"[A-Za-z0-9+/]{22,256}")
_HEX_PAIRS = re.compile(r"[0-9A-Fa-f]{2}(?::[0-9A-Fa-f]{2}){0,127}")
_DIGEST_SIZES = {"sha-256": 32, "sha-384": 48, "sha-512": 64}  # RFC 8122 section 5, without the broken ones


def read_transport(holders: list[Block]) -> Transport:
    """From the blocks that may say it, nearest first."""
    ufrag = _first_of(holders, "ice-ufrag")
    password = _first_of(holders, "ice-pwd")
    if ufrag is None or password is None:
        missing = "a=ice-ufrag" if ufrag is None else "a=ice-pwd"
        raise unanswerable("no_ice_credentials", f"The audio section lacks {missing}.", missing)
    if not _UFRAG.fullmatch(ufrag):
        raise malformed("a=ice-ufrag is not 4 to 256 of A-Z a-z 0-9 + /.", "a=ice-ufrag")
    if not _PASSWORD.fullmatch(password):
        raise malformed("a=ice-pwd is not 22 to 256 of A-Z a-z 0-9 + /.", "a=ice-pwd")
    values = next((block.all("fingerprint") for block in holders if block.all("fingerprint")), [])
    return Transport(ufrag, _fingerprints(values), _dtls_active(_first_of(holders, "setup")))


def _fingerprints(values: list[str]) -> tuple[tuple[str, bytes], ...]:
    if not values:
        raise unanswerable(
            "no_fingerprint", "The audio section lacks a=fingerprint; media needs DTLS-SRTP.", "a=fingerprint"
        )
    found: dict[tuple[str, bytes], None] = {}
    for value in values:
        name, _, pairs = value.partition(" ")
        name = name.lower()
        size = _DIGEST_SIZES.get(name)
        if not TOKEN.fullmatch(name) or not _HEX_PAIRS.fullmatch(pairs.strip(" ")):
            raise malformed("a=fingerprint is not <hash> <hexadecimal pairs>.", "a=fingerprint")
        digest = bytes.fromhex(pairs.replace(":", ""))
        if size is not None and len(digest) != size:
            raise malformed("a=fingerprint has a digest of the wrong length.", "a=fingerprint")
        if size is not None:
            found[name, digest] = None
    if not found:
        raise unanswerable(
            "weak_fingerprint",
            "No a=fingerprint uses sha-256, sha-384 or sha-512; add sha-256.",
            "a=fingerprint",
        )
    return tuple(found)[:MAX_FINGERPRINTS]


def _dtls_active(setup: str | None) -> bool:
    if setup in ("actpass", "passive"):
        return True
    if setup in ("active", None):  # RFC 4145 section 4: an offer that says nothing means active
        return False
    raise unanswerable("unsupported_setup", "a=setup must be actpass, active or passive.", "a=setup")


def _first_of(holders: list[Block], name: str) -> str | None:
    return next((value for block in holders if (value := block.first(name)) is not None), None)
