"""How long what was minted with a key may still be in use, kept in Redis, so that it survives every
process.

    voicegate:keys:alive:<mark>     there until all tickets and tokens minted with that secret are void
    voicegate:keys:noted-since      calendar seconds of the first note: in a Redis that was emptied nobody
                                    can know what was before

Every process writes the note of the secret that it mints with, once a minute and when it changes to
another. It is for the person who rotates keys (`voicegate keys`): nothing here opens or refuses a call, so
the notes are not sealed. Somebody who can write to Redis can make a retirement wait, or say that it need
not.
"""

from __future__ import annotations

import re
import time
from functools import partial
from typing import Any

import trio

from voicegate import logs
from voicegate.net.board import FAILURES, ask, open_client
from voicegate.net.registry import RegistryError
from voicegate.proto.keys import ClusterKeys

NOTE_SECONDS = 60.0
"""Between two notes of one process; what it mints meanwhile is covered by as much more."""
LOOK_SECONDS = 0.5
"""How soon a change of the minting secret is noticed."""
SLACK_SECONDS = 2 * NOTE_SECONDS
"""Added to every note: one that failed, and what was minted since the last."""
TELL_SECONDS = 30.0
"""How often an outage that goes on is put into the log."""
MAX_WAITING = 7
"""Notes kept while Redis is down: as many as there are key ids."""

_PREFIX = "voicegate:keys:"
_MARK = re.compile(r"[0-6]:[0-9a-f]{8}")
_LENGTHEN = """
if redis.call('PTTL', KEYS[1]) < tonumber(ARGV[1]) then redis.call('SET', KEYS[1], '1', 'PX', ARGV[1]) end
redis.call('SET', KEYS[2], ARGV[2], 'NX')
"""
"""Let KEYS[1] live ARGV[1] ms unless it lives longer already: processes are configured differently."""

_log = logs.get_logger(__name__)


class KeyNotes:
    """Writes this process's notes (`run`), and reads everybody's (`read`)."""

    def __init__(self, url: str) -> None:
        """`url`: `registry.redis`. RegistryError when it cannot be one."""
        self._client, self._name = open_client(url)
        self._limiter = trio.CapacityLimiter(1)

    async def run(self, keys: ClusterKeys, seconds: float) -> None:
        """Note the minting key until cancelled. What is minted with it is good for `seconds`. Failures of
        Redis are told, and tried again: a note then says what it would have said in time."""
        used: dict[
            str, float
        ] = {}  # mark -> when it was last minted with, monotonic, for notes to be written
        minting, due, told_at = keys.marks[0], 0.0, float("-inf")
        while True:
            now = trio.current_time()
            if keys.marks[0] != minting:
                used[minting] = now
                minting, due = keys.marks[0], now
            if now >= due:
                used[minting] = now
                due = now + NOTE_SECONDS
            try:
                while len(used) > MAX_WAITING:
                    del used[next(iter(used))]
                for mark, at in list(used.items()):
                    await self._call(self._write, mark, seconds + SLACK_SECONDS - (now - at))
                    del used[mark]
            except FAILURES as error:
                if now - told_at > TELL_SECONDS:
                    told_at = now
                    _log.warning("cannot note in Redis which secret is in use", error=str(error))
            await trio.sleep(LOOK_SECONDS if not used else 4 * LOOK_SECONDS)

    async def read(self) -> tuple[dict[str, float], float | None]:
        """By mark, the seconds for which something minted with it may be in use; and for how many seconds
        notes have been made, None when there are none. RegistryError when Redis does not answer."""
        try:
            found: tuple[dict[str, float], float | None] = await self._call(self._read)
            return found
        except FAILURES as error:
            raise RegistryError(f"cannot use Redis at {self._name}: {error}") from error

    async def _call(self, function: Any, *arguments: Any) -> Any:
        return await ask(partial(function, *arguments), self._limiter)

    def _write(self, mark: str, seconds: float) -> None:
        if seconds > 0:
            names = f"{_PREFIX}alive:{mark}", f"{_PREFIX}noted-since"
            self._client.eval(_LENGTHEN, 2, *names, int(seconds * 1000), int(time.time()))

    def _read(self) -> tuple[dict[str, float], float | None]:
        left = {}
        # Through all names, flow notes too: 0.08 s for 200,000 of them, for a person who waits.
        for name in self._client.scan_iter(match=f"{_PREFIX}alive:*", count=1000):
            mark = name.decode("ascii", "replace").removeprefix(f"{_PREFIX}alive:")
            if _MARK.fullmatch(mark) and (seconds := self._client.pttl(name) / 1000) > 0:
                left[mark] = seconds
        since = self._client.get(f"{_PREFIX}noted-since")
        noted = time.time() - int(since) if since is not None and since.isdigit() else None
        return left, noted
