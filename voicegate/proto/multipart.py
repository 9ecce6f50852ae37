"""`multipart/form-data` (RFC 7578 over RFC 2046 section 5.1) of a few small parts, held in memory.

Clients differ in everything but the essentials: parts with and without Content-Type, with a file name, an
empty one or none, in any order, with text around them, some with bare line feeds. All that is read; what is
ambiguous (a name twice, no closing delimiter, a transfer encoding) is refused.
"""

from __future__ import annotations

import re
from typing import NamedTuple

from voicegate.proto.errors import BadPacket

MAX_PARTS = 16
"""The calls of the Realtime API have two; the clients let a user add fields."""
MAX_PART_HEADER = 4096
"""Bytes of one part's header fields; real ones have about a hundred."""
MAX_BOUNDARY = 200
"""RFC 2046 5.1.1 allows 70; some clients write longer ones."""

_PARAMETER = re.compile(r';\s*([!#$%&\'*+.^_`|~0-9A-Za-z-]+)\s*=\s*(?:"((?:[^"\\]|\\.)*)"|([^\s;"]*))')


class Part(NamedTuple):
    content_type: str
    """The media type in lower case, without parameters; "" when the part names none."""
    body: bytes


def parse_multipart_untrusted(content_type: str, body: bytes) -> dict[str, Part]:
    """The parts by name. `content_type` is the request's header.

    Raises BadPacket: multipart_boundary, multipart_delimiter (no part, or no end), multipart_parts (too
    many), multipart_header, multipart_name (none, or twice), multipart_encoding.
    """
    boundary = _parameters(content_type).get("boundary", "")
    if not 0 < len(boundary) <= MAX_BOUNDARY or not boundary.isascii():
        raise BadPacket("multipart_boundary")
    parts: dict[str, Part] = {}
    for piece in _pieces(body, b"--" + boundary.encode()):
        if len(parts) == MAX_PARTS:
            raise BadPacket("multipart_parts")
        name, part = _part(piece)
        if name in parts:
            raise BadPacket("multipart_name")
        parts[name] = part
    return parts


def _pieces(body: bytes, delimiter: bytes) -> list[bytes]:
    """What stands between the delimiter lines; preamble and epilogue left out (RFC 2046 5.1.1)."""
    pieces: list[bytes] = []
    # A delimiter stands at the beginning of a line, and the line break before it belongs to it. What follows
    # is blanks and a line break, or `--` for the last one.
    pattern = re.compile(rb"(?:\A|\r?\n)" + re.escape(delimiter) + rb"(?:(--)|[ \t]*(?=\r?\n))")
    begin = -1
    for found in pattern.finditer(body):
        if begin >= 0:
            pieces.append(body[begin : found.start()])
            if len(pieces) > MAX_PARTS:
                raise BadPacket("multipart_parts")
        if found[1] is not None:
            if begin < 0:
                break
            return pieces
        # The line break at the end of the delimiter's line is left there: it may be the one that belongs to
        # the next delimiter, and a part without header fields begins with it.
        begin = found.end()
    raise BadPacket("multipart_delimiter")


def _part(piece: bytes) -> tuple[str, Part]:
    rest = piece[2:] if piece.startswith(b"\r\n") else piece[1:]
    # The header ends at the first empty line; it may be empty itself, and then nothing names the part.
    end = re.compile(rb"\r?\n\r?\n").search(rest, 0, MAX_PART_HEADER)
    if end is None:
        raise BadPacket("multipart_header")
    fields: dict[str, str] = {}
    for line in rest[: end.start()].decode("utf-8", "replace").splitlines():
        field, colon, value = line.partition(":")
        if colon:
            fields[field.strip().lower()] = value.strip()
    if fields.get("content-transfer-encoding", "binary").lower() not in ("binary", "7bit", "8bit"):
        raise BadPacket("multipart_encoding")  # RFC 7578 4.7: deprecated; nobody sends one
    disposition = fields.get("content-disposition", "")
    name = _parameters(disposition).get("name", "")
    if not disposition.lower().startswith("form-data") or not name:
        raise BadPacket("multipart_name")
    media_type = fields.get("content-type", "").partition(";")[0].strip().lower()
    return name, Part(media_type, rest[end.end() :])


def _parameters(header: str) -> dict[str, str]:
    """The parameters of a header field; the first of a name counts."""
    found: dict[str, str] = {}
    for name, quoted, plain in _PARAMETER.findall(header[:MAX_PART_HEADER]):
        found.setdefault(name.lower(), re.sub(r"\\(.)", r"\1", quoted) or plain)
    return found
