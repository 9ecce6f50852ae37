"""Why an address cannot be listened on, and what to do about it: one sentence that names the key."""

from __future__ import annotations

import errno
import os


class ListenError(OSError):
    """An address that cannot be listened on; the message names it."""


def listen_problem(section: str, key: str, listen: str, error: OSError) -> str:
    """The sentence for `[section] key`; `listen` is the address as it was asked for."""
    choose = f"choose another address (VOICEGATE_{section.upper()}_{key.upper()})"
    reason, remedy = os.strerror(error.errno) if error.errno else str(error), choose
    if error.errno == errno.EADDRINUSE:
        remedy = f"stop what uses that port, or {choose}"
    elif error.errno == errno.EADDRNOTAVAIL:
        reason = "this machine has no such address"
    elif error.errno == errno.EACCES:
        remedy = f"ports below 1024 need a permission; {choose}"
    return f"[{section}] {key}: cannot listen on {listen}: {reason}; {remedy}"
