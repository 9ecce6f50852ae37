"""The files of a recorded call, and the directory that bounds them all. For the recorder's thread only.

    20261128T044434Z_rtc_….ogg      Ogg/Opus, stereo: the user left, the agent right; zero is the allocation
    20261128T044434Z_rtc_….jsonl    a line per event, and at the end why the call ended, with its statistics

Both are playable and readable at every moment, under their final names: a process that is killed leaves what
was written up to some two seconds before. Nobody but their owner can read them.
"""

from __future__ import annotations

import contextlib
import errno
import os
import re
from datetime import UTC, datetime
from typing import Any, Final

import msgspec

from voicegate.media.ogg import OggOpus
from voicegate.media.recording import Block, StereoLine
from voicegate.roles.transceiver.strip import without_audio

SCAN_SECONDS: Final = 10.0
"""How often the directory is added up: other processes write into it, and people delete."""
MAX_LINE: Final = 64 * 1024
"""Bytes of an event; of a longer one only the type is kept. Without audio few are beyond a tenth of that."""
MAX_EVENT_BYTES: Final = 16 * 1024 * 1024
"""Of one call: ten events a second of 450 bytes for an hour."""
_NAME: Final = re.compile(r"[A-Za-z0-9_-]{1,200}")
"""What a call id is made of. Nothing in it can lead out of the directory."""
_SOUND: Final = frozenset(
    ("input_audio_buffer.append", "response.output_audio.delta", "response.audio.delta")
)


class DirectoryFull(OSError):
    """There are `max_bytes` in the directory."""


class Directory:
    """How much is in there, and may still be written."""

    def __init__(self, path: str, max_bytes: int) -> None:
        self._path = path
        self._max_bytes = max_bytes
        self._used = 0
        self._scanned: float | None = None

    @property
    def full(self) -> bool:
        return self._used >= self._max_bytes

    @property
    def used(self) -> int:
        return self._used

    def scan(self, now: float) -> None:
        """Add up what is there, from time to time."""
        if self._scanned is not None and now - self._scanned < SCAN_SECONDS:
            return
        self._scanned = now
        used = 0
        with contextlib.suppress(OSError), os.scandir(self._path) as entries:
            for entry in entries:
                with contextlib.suppress(OSError):  # deleted in this moment
                    used += entry.stat(follow_symlinks=False).st_size
        self._used = used

    def open(self, name: str) -> DirectoryFile:
        """Make a new file; OSError when that is not possible."""
        flags = os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_NOFOLLOW | os.O_CLOEXEC
        return DirectoryFile(self, os.open(os.path.join(self._path, name), flags, 0o600))

    def spend(self, size: int) -> None:
        if self._used + size > self._max_bytes:
            self._used = self._max_bytes  # full until the next scan: the rest is not for smaller pieces
            raise DirectoryFull(errno.EDQUOT, "the directory is full")
        self._used += size


class DirectoryFile:
    """One file in it, written without a buffer."""

    def __init__(self, directory: Directory, descriptor: int) -> None:
        self._directory = directory
        self._descriptor = descriptor

    def write(self, data: bytes) -> int:
        self._directory.spend(len(data))
        rest = memoryview(data)
        while rest:
            rest = rest[os.write(self._descriptor, rest) :]
        return len(data)

    def close(self) -> None:
        os.close(self._descriptor)


class CallFiles:
    """Sound and events of one call. Methods raise OSError when the disk does not take more."""

    def __init__(
        self, directory: Directory, call_id: str, *, wall: float, origin: float, clock_rate: int
    ) -> None:
        """`wall` and `origin`: the allocation by both clocks; `clock_rate`: of the agent's RTP.

        Nothing is opened before there is something to write.
        """
        assert _NAME.fullmatch(call_id), "a call id is made here, of these characters"
        start = datetime.fromtimestamp(wall, UTC)
        self.name = f"{start:%Y%m%dT%H%M%SZ}_{call_id}"
        self.line = StereoLine(origin, clock_rate)
        self.omitted_events = 0
        self._directory = directory
        self._call_id = call_id
        self._wall = wall
        self._origin = origin
        self._sound: tuple[DirectoryFile, OggOpus] | None = None
        self._events: DirectoryFile | None = None
        self._lines: list[bytes] = []
        self._event_bytes = 0

    def hear(self, pcm: bytes, at: float, missed: int) -> None:
        self._open_sound()
        self.line.put_user(pcm, at, missed)

    def say(self, pcm: bytes, timestamp: int, at: float) -> None:
        self._open_sound()
        self.line.put_agent(pcm, timestamp, at)

    def note(self, source: str, raw: bytes, at: float) -> None:
        """An event, on a line of its own and without base64 audio."""
        kind, event = readable_event(raw)
        if kind in _SOUND:
            return
        size = len(bytes(event)) if event is not None else 0
        if event is None or size > MAX_LINE or self._event_bytes + size > MAX_EVENT_BYTES:
            self.omitted_events += 1
            if self._event_bytes <= MAX_EVENT_BYTES:
                self._add(at, source, {"type": kind, "omitted_bytes": len(raw)})
            return
        self._add(at, source, {"event": event})

    def advance(self, now: float) -> None:
        """Write what is old enough."""
        self._write_lines()
        if self._sound is not None:
            while (block := self.line.take(now)) is not None:
                self._write(block)

    def finish(self, now: float, last: dict[str, Any]) -> None:
        """Write all that is left; `last` is for the last line of the events."""
        if self._sound is not None:
            while (block := self.line.finish(now)) is not None:
                self._write(block)
            self._sound[1].close()
        self._add(now, "voicegate", {"event": last})
        self._write_lines()
        self.abandon()

    def abandon(self) -> None:
        """Close what is open; what was written stays."""
        if self._sound is not None:
            self._sound[1].abandon()
            with contextlib.suppress(OSError):
                self._sound[0].close()
        if self._events is not None:
            with contextlib.suppress(OSError):
                self._events.close()
        self._sound = self._events = None

    def _open_sound(self) -> None:
        if self._sound is None:
            file = self._directory.open(f"{self.name}.ogg")
            self._sound = file, OggOpus(file, title=self._call_id)

    def _write(self, block: Block) -> None:
        assert self._sound is not None, "written only when open"
        self._sound[1].write(block.user, block.agent)

    def _add(self, at: float, source: str, fields: dict[str, Any]) -> None:
        wall = datetime.fromtimestamp(self._wall + at - self._origin, UTC)
        stamp = wall.isoformat(timespec="milliseconds").replace("+00:00", "Z")
        head = {"wall": stamp, "at": round(at - self._origin, 4), "from": source}
        line = msgspec.json.encode({**head, **fields}) + b"\n"
        self._event_bytes += len(line)
        self._lines.append(line)

    def _write_lines(self) -> None:
        if self._lines:
            if self._events is None:
                self._events = self._directory.open(f"{self.name}.jsonl")
            lines, self._lines = self._lines, []
            self._events.write(b"".join(lines))


def readable_event(raw: bytes) -> tuple[str, msgspec.Raw | None]:
    """The event's type, and its text on one line and without base64 audio; None when it is not JSON."""
    try:
        kind = _HEAD.decode(raw).type
        return kind, msgspec.Raw(msgspec.json.format(without_audio(kind, raw), indent=-1))
    except (msgspec.MsgspecError, UnicodeError, RecursionError):
        return "", None


class _Head(msgspec.Struct):
    type: str = ""


_HEAD = msgspec.json.Decoder(_Head)
