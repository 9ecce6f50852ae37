"""The parrot's one exception."""

from __future__ import annotations


class Refused(Exception):
    """A client event that is not carried out, in the words of the `error` event that says so."""

    def __init__(self, code: str, message: str, param: str | None = None) -> None:
        super().__init__(message)
        self.code = code
        self.message = message
        self.param = param
