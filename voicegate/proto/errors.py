"""The errors of the protocol floor: theirs, never ours.

A broken invariant of our own is an `assert` with its reason beside it; it is not in this file.
"""

from __future__ import annotations


class BadPacket(Exception):
    """Bytes from the network that break their protocol. Count `reason`, drop the packet, go on.

    `reason` is a short snake_case label, fixed in the code and never built from input, so that it can be
    a metrics label.
    """

    def __init__(self, reason: str) -> None:
        super().__init__(reason)
        self.reason = reason


class BadOffer(Exception):
    """An SDP offer that cannot be answered, in the words of the HTTP error that reports it.

    `status` is the HTTP status (400 for what is not SDP, 422 for SDP that lacks something), `code` a
    machine's word, `message` a sentence that says what is missing, `param` the SDP line it is about.
    """

    def __init__(self, code: str, message: str, *, param: str | None = None, status: int = 400) -> None:
        super().__init__(message)
        self.code = code
        self.message = message
        self.param = param
        self.status = status
