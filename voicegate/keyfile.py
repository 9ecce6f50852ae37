"""`keys.file`: a file with one `ID:SECRET` a line, read at the start and again whenever it changes.

    # blank lines and comments may stand anywhere
    1:9f86d081884c7d659a2feaa0c55ad015a3bf4f1b2b0b822cd15d6c15b0f00a08
    0:60303ae22b998861bce3b28f33eec1be758a213c86c93c076dbe9f558c11c752

The first entry mints, the others still open. No message here repeats what stands in the file.
"""

from __future__ import annotations

import contextlib
import os
import stat
import tempfile
from collections.abc import Sequence
from pathlib import Path

import trio

from voicegate import logs
from voicegate.config import Config, KeysConfig
from voicegate.proto.client_secret import MAX_SECONDS
from voicegate.proto.keys import ClusterKeys, parse_secrets
from voicegate.proto.ticket import EXPIRY_UNIT, GRACE_SECONDS

POLL_SECONDS = 0.5
"""Between two readings. Content is compared and not the time of a change: a mounted Kubernetes Secret
changes by a symbolic link, and reading a file of a few hundred bytes costs as little as asking when it
changed."""
MAX_BYTES = 64 * 1024
"""Seven secrets with comments; more is another file."""
BOTH_SET = "keys.file and keys.secrets are both set: keep the secrets in one of them"

_log = logs.get_logger(__name__)


class KeyFileError(Exception):
    """The file cannot be used; the message is a sentence for a person."""


def configured_secrets(config: KeysConfig) -> tuple[str, ...]:
    """The `ID:SECRET` entries of `keys.file` or `keys.secrets`; empty when neither is set. KeyFileError."""
    return entries_of(read_key_file(config.file)) if config.file else config.secrets


def valid_seconds(config: Config) -> float:
    """How long something that is minted now may be in use: a ticket, or an `ek_` that makes a ticket."""
    call = config.transceiver.max_call_seconds + GRACE_SECONDS + EXPIRY_UNIT
    return max(call, float(MAX_SECONDS))


def read_key_file(path: str) -> str:
    """The text of a usable key file; KeyFileError for any other."""
    try:
        with open(path, "rb") as file:
            raw = file.read(MAX_BYTES + 1)
    except OSError as error:
        raise KeyFileError(f"cannot read {path}: {error.strerror}") from None
    if len(raw) > MAX_BYTES:
        raise KeyFileError(f"{path} has more than {MAX_BYTES} bytes: it should have one ID:SECRET a line")
    try:
        text = raw.decode("utf-8")
        parse_secrets(entries_of(text))
    except UnicodeDecodeError:
        raise KeyFileError(f"{path} is not text") from None
    except ValueError as error:
        raise KeyFileError(f"{path}: {error}") from None
    return text


def entries_of(text: str) -> tuple[str, ...]:
    """The lines that are neither blank nor comments."""
    return tuple(line.strip() for line in text.splitlines() if _is_entry(line))


def edit(text: str, entries: Sequence[str]) -> str:
    """The text of a file with these entries in this order: comments stay where they are, the entries take the
    places that there are, and more of them follow at the end."""
    left = list(entries)
    lines = []
    for line in text.splitlines():
        if not _is_entry(line):
            lines.append(line)
        elif left:
            lines.append(left.pop(0))
    return "".join(f"{line}\n" for line in (*lines, *left))


def write_key_file(path: str, text: str, *, instead_of: str) -> None:
    """Replace the file at once, with the rights and the owner it has; a new one is its owner's alone.

    KeyFileError when its text is not `instead_of` ("" for none) any more, or it cannot be written.
    """
    real = os.path.realpath(path)
    try:
        old = os.stat(real) if os.path.exists(real) else None
        present = Path(real).read_text(encoding="utf-8") if old is not None else ""
        if present != instead_of:
            raise KeyFileError(f"{path} was changed by somebody else just now: look, and try again")
        handle, temporary = tempfile.mkstemp(dir=os.path.dirname(real), prefix=".voicegate-keys-")
        try:
            with open(handle, "w", encoding="utf-8") as file:
                file.write(text)
                file.flush()
                os.fsync(file.fileno())
            if old is not None:
                os.chmod(temporary, stat.S_IMODE(old.st_mode))
                os.chown(temporary, old.st_uid, old.st_gid)
            os.replace(temporary, real)
        except BaseException:
            with contextlib.suppress(OSError):
                os.unlink(temporary)
            raise
    except OSError as error:
        raise KeyFileError(
            f"cannot write {path}: {error.strerror}; where it comes from elsewhere, as a Kubernetes"
            " Secret does, change it there, and ask `voicegate keys check NEWFILE` before"
        ) from None


class KeyFile:
    """Keeps keys as a file says. `poll` may be called by whoever owns the keys, as often as wanted."""

    def __init__(self, path: str, keys: ClusterKeys) -> None:
        self._path = path
        self._keys = keys
        self._taken: str | None = None
        self._seen: str | None = None
        self._problem = ""

    def poll(self) -> None:
        """Look at the file; blocks for as long as that takes."""
        self.consider(*self.read())

    def read(self) -> tuple[str, str]:
        """(text, problem), one of them empty; for a thread, where a file system may hang."""
        try:
            return read_key_file(self._path), ""
        except KeyFileError as error:
            return "", str(error)

    def consider(self, text: str, problem: str) -> None:
        """Take over what was read, once it was the same twice: a file that is being written is seen half."""
        seen, self._seen = self._seen, problem or text
        if self._seen != seen:
            return
        if problem:
            if problem != self._problem:
                _log.error(f"the last good secrets stay in use: {problem}")
        elif text != self._taken:
            self._take(text)
        self._problem = problem

    def _take(self, text: str) -> None:
        before = dict.fromkeys(self._keys.marks)
        self._keys.replace(entries_of(text))
        self._taken = text
        marks = self._keys.marks
        if marks == tuple(before):
            return
        _log.info("the key file was read again", mints=marks[0], opens=list(marks))
        ids = {entry.partition(":")[0] for entry in before}
        for entry in marks:
            if entry not in before and entry.partition(":")[0] in ids:
                _log.warning(
                    f"key id {entry.partition(':')[0]} has another secret now: what it minted is void"
                )


async def watch_key_file(path: str, keys: ClusterKeys) -> None:
    """Keep `keys` as the file says until cancelled."""
    file = KeyFile(path, keys)
    while True:
        # Abandoned when it hangs: the thread holds nothing of ours.
        file.consider(*await trio.to_thread.run_sync(file.read, abandon_on_cancel=True))
        await trio.sleep(POLL_SECONDS)


def _is_entry(line: str) -> bool:
    return bool(line.strip()) and not line.strip().startswith("#")
