"""The last good tables in a file, so that a process can start while Redis is down.

The file holds sealed tokens only, a line each behind its table's name. Whoever can write to it can withhold
records or put old ones back, as in Redis itself, and no more.
"""

from __future__ import annotations

import hashlib
import os
import stat
import tempfile
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path

from voicegate import logs
from voicegate.proto.seal import MAX_TOKEN_CHARACTERS

MAX_BYTES = 16 << 20
"""4096 transceivers and 4096 relays are 4 MB; a file that is larger is none of ours."""
_FIRST_LINE = "voicegate registry 1"

_log = logs.get_logger(__name__)


def open_snapshot(setting: str, redis: str, clusters: Iterable[int]) -> Snapshot | None:
    """The file that `registry.snapshot` names. Processes with the same Redis and clusters share theirs."""
    if not setting:
        return None
    if setting != "auto":
        return Snapshot(Path(setting))
    name = hashlib.blake2s(f"{redis} {sorted(clusters)}".encode(), digest_size=12).hexdigest()
    return Snapshot(Path(tempfile.gettempdir(), f"voicegate-{os.getuid()}", name), own_directory=True)


class Snapshot:
    """One such file. `load` and `save` block: `load` for the start only, `save` belongs in a thread."""

    def __init__(self, path: Path, *, own_directory: bool = False) -> None:
        """`own_directory`: its directory is made, and must be closed to everybody else."""
        self.path = path
        self._own_directory = own_directory

    def load(self) -> dict[str, list[str]]:
        """The tokens by table; none, and a line in the log, when there is a file that cannot be used."""
        try:
            return _parse_untrusted(self._read())
        except FileNotFoundError:
            return {}
        except (OSError, ValueError) as error:
            self._tell(str(error))
            return {}

    def save(self, tables: Mapping[str, Sequence[str]]) -> None:
        """Replace the file, as a whole or not at all. OSError when that is not possible."""
        directory = self.path.parent
        if self._own_directory:
            directory.mkdir(mode=0o700, exist_ok=True)
            self._check_directory()
        lines = [f"{name} {token}" for name, tokens in tables.items() for token in tokens]
        handle, temporary = tempfile.mkstemp(dir=directory, prefix=f".{self.path.name}.")  # mode 0600
        try:
            with open(handle, "w", encoding="ascii") as file:
                file.write("\n".join([_FIRST_LINE, *lines, ""]))
            os.replace(temporary, self.path)
        except BaseException:
            os.unlink(temporary)
            raise

    def _tell(self, problem: str) -> None:
        _log.warning(
            "the registry's snapshot is not used; set registry.snapshot to another file or remove this one",
            file=str(self.path),
            error=problem,
        )

    def _read(self) -> bytes:
        if self._own_directory:
            self._check_directory()
        handle = os.open(self.path, os.O_RDONLY | os.O_NOFOLLOW | os.O_CLOEXEC | os.O_NONBLOCK)
        with open(handle, "rb") as file:
            if not stat.S_ISREG(os.fstat(handle).st_mode):
                raise ValueError("it is not a file")
            return file.read(MAX_BYTES + 1)

    def _check_directory(self) -> None:
        state = os.lstat(self.path.parent)
        if not stat.S_ISDIR(state.st_mode) or state.st_uid != os.getuid() or state.st_mode & 0o077:
            raise PermissionError(f"{self.path.parent} is not a directory of ours alone")


def _parse_untrusted(data: bytes) -> dict[str, list[str]]:
    """ValueError for what `save` did not write."""
    if len(data) > MAX_BYTES:
        raise ValueError(f"it is larger than {MAX_BYTES} bytes")
    first, *lines = data.decode("ascii").split("\n")
    if first != _FIRST_LINE or (lines and lines[-1]):
        raise ValueError(f"it does not begin with {_FIRST_LINE!r}, or was cut short")
    tables: dict[str, list[str]] = {}
    for line in lines[:-1]:
        name, space, token = line.partition(" ")
        if not space or len(token) > MAX_TOKEN_CHARACTERS:
            raise ValueError("a line of it has no name or no token")
        tables.setdefault(name, []).append(token)
    return tables
