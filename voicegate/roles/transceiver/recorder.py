"""Recordings of calls: what the media loop leaves here, a thread encodes and writes.

    tap = recorder.start(call_id, ...)      # the call's `media.recording.Tap`; None: see `poll_failure`
    recorder.finish(call_id, now, status)   # the call has ended

Theory of operation. The media loop appends pieces to one bounded queue and does nothing else: no lock, no
waking of anybody. The thread looks into it every TICK_SECONDS, puts the pieces in their places, and encodes;
libopus runs without the interpreter's lock. What a full queue does not take is counted and is silence in the
recording, which stays aligned. Whatever goes wrong with a recording ends that recording, never its call, and
is told: in the log, in the metrics, in the call's status, and to sidebands.
"""

from __future__ import annotations

import errno
import threading
import time
from collections import Counter, OrderedDict, deque
from collections.abc import Callable, Iterable
from enum import IntEnum
from typing import Any, Final, NamedTuple

from voicegate import logs, metrics
from voicegate.config import RecordingConfig
from voicegate.roles.transceiver.recording_files import CallFiles, Directory, DirectoryFull

TICK_SECONDS: Final = 0.1
"""How often the thread looks: half a block. Waking it for each piece would take the interpreter's lock from
the media loop thousands of times a second."""
BREATH_SECONDS: Final = 0.0001
BREATH_ITEMS: Final = 64
"""The thread sleeps for a moment after each recording, and after so many pieces (0.1 ms): the media loop then
gets the interpreter's lock, for which it would wait up to 5 ms (`sys.getswitchinterval`)."""
MAX_WAITING_BYTES: Final = 64 * 1024 * 1024
"""In the queue: three seconds of two hundred calls, both ways; a disk that stalls longer costs samples."""
MAX_REMEMBERED: Final = 256
"""Recordings that ended whose state can still be asked for, as many as ended calls (`core`)."""
CLOSE_SECONDS: Final = 5.0
"""What the end of the process waits for the last pages."""

_STARTED: Final = b'{"type":"recording.started","channels":["user","agent"]}'

_logger = logs.get_logger(__name__)


class _Kind(IntEnum):
    """What an item of the queue is, and what goes with it."""

    HEARD = 0
    """PCM; the user's samples that got lost before it."""
    SAID = 1
    """PCM; its RTP timestamp."""
    NOTED = 2
    """An event; who brought it."""
    ENDED = 3
    """The call's status."""


class Failure(NamedTuple):
    """A recording that ended before its call."""

    call_id: str
    reason: str


class Recorder:
    """All recordings of one process. The methods are for the media loop's thread."""

    def __init__(self, settings: RecordingConfig, clock: Callable[[], float]) -> None:
        """`clock`: the call's, as any thread may read it. `settings.directory` is set."""
        self.directory = Directory(settings.directory, settings.max_bytes)
        self.totals: Counter[str] = Counter()
        """Of recordings: started, finished, and failed by reason."""
        self._clock = clock
        self._max_seconds = settings.max_seconds
        self._queue = _Queue()
        self._recordings: dict[str, _Recording] = {}
        self._ended: OrderedDict[str, _Recording] = OrderedDict()
        self._writer = _Writer(self._queue, self.directory, clock)
        self.directory.scan(clock())
        self._writer.start()

    def start(self, call_id: str, *, wall: float, now: float, clock_rate: int) -> CallTap | None:
        """Record a call from its allocation on: `wall` and `now` by both clocks. None when that cannot be."""
        files = CallFiles(self.directory, call_id, wall=wall, origin=now, clock_rate=clock_rate)
        recording = self._recordings[call_id] = _Recording(call_id, files, now + self._max_seconds)
        if self.directory.full:
            recording.live, recording.reason = False, "directory_full"
            self._writer.failures.append(Failure(call_id, recording.reason))
            return None
        self.totals["started"] += 1
        tap = CallTap(recording, self._queue, self._clock)
        tap.note("voicegate", _STARTED)
        return tap

    def finish(self, call_id: str, now: float, status: dict[str, Any]) -> None:
        """The call has ended; `status` is what is known of it."""
        recording = self._recordings.pop(call_id, None)
        if recording is None:
            return
        self._queue.put_always((recording, _Kind.ENDED, status, now, 0))
        self._ended[call_id] = recording
        if len(self._ended) > MAX_REMEMBERED:
            self._ended.popitem(last=False)

    def status(self, call_id: str) -> dict[str, object] | None:
        """A call's recording, for a person; None when there is none."""
        recording = self._recordings.get(call_id) or self._ended.get(call_id)
        return None if recording is None else recording.status()

    def poll_failure(self) -> Failure | None:
        """A recording that has ended early."""
        failures = self._writer.failures
        if not failures:
            return None
        failure = failures.popleft()
        self.totals[failure.reason] += 1
        return failure

    def close(self) -> None:
        """Write what has come, end all files, and end the thread. Blocks for CLOSE_SECONDS at most."""
        self._writer.stop.set()
        self._writer.join(CLOSE_SECONDS)

    def samples(self, labels: dict[str, str]) -> Iterable[metrics.Sample]:
        name = "voicegate_transceiver_recordings"
        yield metrics.Sample(name, "gauge", "Calls being recorded.", labels, len(self._recordings))
        for outcome, count in self.totals.items():
            name, help = (
                "voicegate_transceiver_recordings_total",
                "Recordings: started, and failed by reason.",
            )
            yield metrics.Sample(name, "counter", help, {**labels, "outcome": outcome}, count)
        name, help = "voicegate_transceiver_recording_directory_bytes", "What is in the directory."
        yield metrics.Sample(name, "gauge", help, labels, self.directory.used)
        name, help = "voicegate_transceiver_recording_dropped_total", "Pieces that a full queue did not take."
        yield metrics.Sample(name, "counter", help, labels, self._queue.dropped)


class CallTap:
    """One call's end of the queue (`media.recording.Tap`)."""

    __slots__ = ("_clock", "_missed", "_queue", "_recording")

    def __init__(self, recording: _Recording, queue: _Queue, clock: Callable[[], float]) -> None:
        self._recording = recording
        self._queue = queue
        self._clock = clock
        self._missed = 0
        """The user's samples that the queue had no room for since the last one it took."""

    def hear(self, pcm: bytes, at: float) -> None:
        if not self._recording.live:
            return
        if self._queue.put((self._recording, _Kind.HEARD, pcm, at, self._missed)):
            self._missed = 0
        else:
            self._missed += len(pcm) // 2

    def say(self, pcm: bytes, timestamp: int, at: float) -> None:
        if self._recording.live:
            self._queue.put((self._recording, _Kind.SAID, pcm, at, timestamp))

    def note(self, source: str, event: bytes) -> None:
        if self._recording.live:
            self._queue.put((self._recording, _Kind.NOTED, event, self._clock(), source))


class _Recording:
    """One call's recording. `live`, `reason` and `files` are set by the thread, and read anywhere."""

    def __init__(self, call_id: str, files: CallFiles, until: float) -> None:
        self.call_id = call_id
        self.files = files
        self.until = until
        self.live = True
        self.reason = ""
        """Why it ended before its call."""

    def status(self) -> dict[str, object]:
        files = self.files
        counts = files.line.counts
        return {
            "status": "recording" if self.live else "stopped" if self.reason else "finished",
            "reason": self.reason or None,
            "name": files.name,
            "seconds": round(files.line.seconds, 1),
            "padded_samples": counts.padded,
            "skipped_samples": counts.skipped,
            "dropped_samples": counts.dropped + counts.missed,
            "omitted_events": files.omitted_events,
        }


_Item = tuple[_Recording, int, Any, float, Any]
"""(recording, `_Kind`, payload, when, what goes with it)"""


class _Queue:
    """From the media loop's thread to the writer's. Its steps are atomic; each count has one writer."""

    def __init__(self) -> None:
        self.dropped = 0
        self._items: deque[_Item] = deque()
        self._put_bytes = 0
        self._taken_bytes = 0

    def put(self, item: _Item) -> bool:
        size = len(item[2])
        if self._put_bytes - self._taken_bytes + size > MAX_WAITING_BYTES:
            self.dropped += 1
            return False
        self._put_bytes += size
        self._items.append(item)
        return True

    def put_always(self, item: _Item) -> None:
        """What must arrive and is small: one for each call."""
        self._items.append(item)

    def take(self) -> list[_Item]:
        """All that is there now."""
        items = [self._items.popleft() for _ in range(len(self._items))]
        self._taken_bytes += sum(len(item[2]) for item in items if item[1] != _Kind.ENDED)
        return items


class _Writer(threading.Thread):
    """The thread. Whatever goes wrong with a recording ends that recording."""

    def __init__(self, queue: _Queue, directory: Directory, clock: Callable[[], float]) -> None:
        super().__init__(name="recorder", daemon=True)
        self.stop = threading.Event()
        self.failures: deque[Failure] = deque(maxlen=MAX_REMEMBERED)
        self._queue = queue
        self._directory = directory
        self._clock = clock
        self._open: set[_Recording] = set()

    def run(self) -> None:
        stopping = False
        while not stopping:
            stopping = self.stop.wait(TICK_SECONDS)
            self._directory.scan(self._clock())
            for number, (recording, kind, payload, at, extra) in enumerate(self._queue.take(), 1):
                if recording.live:
                    self._guard(recording, self._take, kind, payload, at, extra)
                if not number % BREATH_ITEMS:
                    time.sleep(BREATH_SECONDS)
            for recording in tuple(self._open):
                self._guard(recording, self._advance)
                time.sleep(BREATH_SECONDS)
        for recording in tuple(self._open):
            self._guard(
                recording, self._end, self._clock(), {"type": "recording.ended", "reason": "shutdown"}
            )

    def _take(self, recording: _Recording, kind: int, payload: Any, at: float, extra: Any) -> None:
        self._open.add(recording)
        match kind:
            case _Kind.HEARD:
                recording.files.hear(payload, at, extra)
            case _Kind.SAID:
                recording.files.say(payload, extra, at)
            case _Kind.NOTED:
                recording.files.note(extra, payload, at)
            case _Kind.ENDED:
                self._end(recording, at, {"type": "recording.ended", "reason": "call_ended", "call": payload})

    def _advance(self, recording: _Recording) -> None:
        now = self._clock()
        if now < recording.until:
            recording.files.advance(now)
            return
        self._end(recording, recording.until, {"type": "recording.ended", "reason": "max_seconds"})
        self._fail(recording, "max_seconds")

    def _end(self, recording: _Recording, at: float, last: dict[str, Any]) -> None:
        recording.files.finish(at, last)
        recording.live = False
        self._open.discard(recording)

    def _guard(self, recording: _Recording, action: Callable[..., None], *arguments: Any) -> None:
        try:
            action(recording, *arguments)
        except DirectoryFull:
            self._fail(recording, "directory_full")
        except OSError as error:
            reason = "disk_full" if error.errno in (errno.ENOSPC, errno.EDQUOT) else "disk_error"
            self._fail(recording, reason)
            if reason == "disk_error":
                _logger.warning("a recording cannot be written", call=recording.call_id, error=str(error))
        except Exception:
            self._fail(recording, "internal_error")
            _logger.exception("a recording met a bug", call=recording.call_id)

    def _fail(self, recording: _Recording, reason: str) -> None:
        recording.reason = reason
        recording.live = False
        self._open.discard(recording)
        self.failures.append(Failure(recording.call_id, reason))
        recording.files.abandon()
