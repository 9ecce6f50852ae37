"""The lines of an SDP offer: text in, a session block and one block per `m=` line out (RFC 8866 section 9).

Nothing is known here of what an attribute means. Messages never repeat the client's text.
"""

from __future__ import annotations

import re
from dataclasses import dataclass, field

from voicegate.proto.errors import BadOffer

MAX_TEXT = 65_536
"""Characters. Chromium with audio, video and data makes 6 kB, with twenty candidates 8 kB: eight times
that."""
MAX_LINES = 2_000
"""Chromium with audio, video and data has 190 lines: ten times that."""
MAX_SECTIONS = 32
"""`m=` lines. A call has three; every one more costs an `m=` line in the answer."""

TOKEN = re.compile(r"[!#$%&'*+\-.0-9A-Z^_`a-z{|}~]{1,256}")
"""RFC 8866 section 9, with a bound."""
_DIGITS = re.compile(r"[0-9]{1,20}")
_CONTROL = re.compile(r"[\x00-\x08\x0a-\x1f\x7f\x85\u2028\u2029]")
_REQUIRED = frozenset("ost")  # RFC 8866 section 5


@dataclass(slots=True)
class Block:
    """The session part, or an `m=` line with what belongs to it."""

    media: str = ""
    attributes: dict[str, list[str]] = field(default_factory=dict)

    def all(self, name: str) -> list[str]:
        """The values of every `a=<name>`, in order; empty strings for flags."""
        return self.attributes.get(name, [])

    def first(self, name: str) -> str | None:
        values = self.attributes.get(name)
        return values[0] if values else None


def split_untrusted(text: str) -> tuple[Block, list[Block]]:
    """The session block and the media blocks, each with its attributes by name. Raises `BadOffer` only."""
    if len(text) > MAX_TEXT:
        raise BadOffer("sdp_too_large", f"The offer is longer than {MAX_TEXT} characters.", status=400)
    lines = text.rstrip("\r\n").split("\n")
    if len(lines) > MAX_LINES:
        raise BadOffer("sdp_too_large", f"The offer has more than {MAX_LINES} lines.", status=400)
    if lines[0].rstrip("\r") != "v=0":
        raise malformed("The body is not SDP: it does not begin with v=0.", "v=")
    session = block = Block()
    blocks: list[Block] = []
    missing = set(_REQUIRED)
    for position, line in enumerate(lines[1:], start=2):
        kind, equals, value = line.removesuffix("\r").partition("=")
        if not equals or len(kind) != 1 or not "a" <= kind <= "z" or _CONTROL.search(value):
            raise malformed(f"Line {position} of the offer is not of the form x=value.", None)
        if kind == "m":
            block = Block(value)
            blocks.append(block)
        elif kind == "a":
            name, _, rest = value.partition(":")
            block.attributes.setdefault(name, []).append(rest)
        elif not blocks:
            missing.discard(kind)
    if missing:
        raise malformed(f"The offer lacks its {min(missing)}= line.", f"{min(missing)}=")
    if len(blocks) > MAX_SECTIONS:
        raise BadOffer(
            "sdp_too_large", f"The offer has more than {MAX_SECTIONS} m= lines.", param="m=", status=400
        )
    return session, blocks


def number(text: str, limit: int, param: str) -> int:
    """A decimal number from 0 to `limit`; `param` names the line that it is from."""
    value = int(text) if _DIGITS.fullmatch(text) else limit + 1
    if value > limit:
        raise malformed(f"A number in a line {param} is malformed or out of range.", param)
    return value


def malformed(message: str, param: str | None) -> BadOffer:
    """The error for what is not SDP."""
    return BadOffer("invalid_sdp", message, param=param, status=400)


def unanswerable(code: str, message: str, param: str) -> BadOffer:
    """The error for SDP that no answer is possible to."""
    return BadOffer(code, message, param=param, status=422)
