"""The recorder on real files: what is in them, what bounds them, and what a killed process leaves."""

from __future__ import annotations

import errno
import json
import os
import signal
import stat
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import av
import numpy as np
import pytest

from tests.media.signals import lag, noise
from tests.support.light_channel import Wanted
from tests.support.rig import Rig
from voicegate.config import RecordingConfig
from voicegate.media.codec import FRAME_SAMPLES, PCM_RATE
from voicegate.roles.transceiver import recorder as recorder_module
from voicegate.roles.transceiver import recording_files
from voicegate.roles.transceiver.recorder import CallTap, Failure, Recorder
from voicegate.roles.transceiver.recording_files import CallFiles, readable_event

WALL = 1_795_841_074.25  # 2026-11-28T04:44:34.250Z
FRAME = FRAME_SAMPLES / PCM_RATE


class Clock:
    """The call's time, which stands still until it is moved."""

    def __init__(self) -> None:
        self.now = 1000.0

    def __call__(self) -> float:
        return self.now


class Desk:
    """A recorder in a directory."""

    def __init__(self, directory: Path, **settings: Any) -> None:
        self.directory = directory
        self.clock = Clock()
        self.recorder = Recorder(RecordingConfig(directory=str(directory), **settings), self.clock)

    def start(self, call_id: str = "rtc_A-1_z") -> CallTap:
        tap = self.recorder.start(call_id, wall=WALL, now=self.clock.now, clock_rate=48_000)
        assert tap is not None
        return tap

    def talk(self, tap: CallTap, user: np.ndarray, agent: np.ndarray) -> None:
        """Both talk, a frame at a time, from now on."""
        for number in range(len(user) // FRAME_SAMPLES):
            part = slice(number * FRAME_SAMPLES, (number + 1) * FRAME_SAMPLES)
            tap.hear(user[part].tobytes(), self.clock.now)
            tap.say(agent[part].tobytes(), 960 * number, self.clock.now)
            self.clock.now += FRAME

    def failures(self) -> list[Failure]:
        found = []
        while (failure := self.recorder.poll_failure()) is not None:
            found.append(failure)
        return found

    def file(self, kind: str) -> Path:
        (found,) = self.directory.glob(f"*.{kind}")
        return found

    def events(self) -> list[dict[str, Any]]:
        return [json.loads(line) for line in self.file("jsonl").read_bytes().splitlines()]


def decoded(path: Path) -> np.ndarray:
    with av.open(str(path)) as container:
        return np.concatenate([frame.to_ndarray() for frame in container.decode(audio=0)], axis=1)


def test_a_call_from_its_allocation_to_its_end(tmp_path: Path) -> None:
    desk = Desk(tmp_path)
    tap = desk.start()
    desk.clock.now += 0.25  # the set-up
    user, agent = noise(1, 2 * PCM_RATE), noise(2, 2 * PCM_RATE)
    desk.talk(tap, user, agent)
    tap.note("agent", b'{\n "type": "response.done",\n "response": {"id": "r1"}\n}')
    desk.recorder.finish("rtc_A-1_z", desk.clock.now, {"status": "ended", "reason": "hangup"})
    desk.recorder.close()

    name = "20261128T044434Z_rtc_A-1_z"
    assert sorted(os.listdir(tmp_path)) == [f"{name}.jsonl", f"{name}.ogg"]
    assert {stat.S_IMODE(path.stat().st_mode) for path in tmp_path.iterdir()} == {0o600}
    sound = decoded(desk.file("ogg"))
    assert sound.shape == (2, 2 * 2.25 * PCM_RATE)
    for heard, said in zip(sound, (user, agent), strict=True):
        behind, likeness = lag(heard[::2], said)
        assert behind == PCM_RATE // 4 and likeness > 0.9, (behind, likeness)

    started, done, ended = desk.events()
    assert started == {
        "wall": "2026-11-28T04:44:34.250Z",
        "at": 0.0,
        "from": "voicegate",
        "event": {"type": "recording.started", "channels": ["user", "agent"]},
    }
    assert (done["at"], done["from"], done["event"]["response"]) == (2.25, "agent", {"id": "r1"})
    assert done["wall"] == "2026-11-28T04:44:36.500Z"
    assert ended["event"]["call"] == {"status": "ended", "reason": "hangup"}
    status = desk.recorder.status("rtc_A-1_z")
    assert status is not None and status["status"] == "finished" and status["name"] == name
    assert status["seconds"] == 2.2 and desk.failures() == []


def test_a_call_without_sound_leaves_its_events_only(tmp_path: Path) -> None:
    desk = Desk(tmp_path)
    desk.start()
    desk.recorder.finish("rtc_A-1_z", desk.clock.now, {})
    desk.recorder.close()
    assert [path.suffix for path in tmp_path.iterdir()] == [".jsonl"]
    desk.recorder.finish("rtc_A-1_z", desk.clock.now, {})  # a second end is none
    assert desk.recorder.status("rtc_other") is None


def test_audio_in_events_is_left_out_and_long_ones_are_named(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(recording_files, "MAX_EVENT_BYTES", 100_000)
    desk = Desk(tmp_path)
    tap = desk.start()
    audio = {"type": "input_audio", "audio": "UklGRg" * 1000}
    item = {"type": "message", "content": [audio]}
    tap.note("client", json.dumps({"type": "conversation.item.create", "item": item}).encode())
    tap.note("client", json.dumps({"type": "response.create", "response": {"input": [item]}}).encode())
    tap.note("client", json.dumps({"type": "input_audio_buffer.append", "audio": "AAAA"}).encode())
    tap.note("sideband", json.dumps({"type": "session.update", "x": "y" * 70_000}).encode())
    tap.note("agent", b'{"type": "lost')
    for _ in range(5):
        tap.note("agent", json.dumps({"type": "many", "x": "y" * 30_000}).encode())
    desk.recorder.close()
    events = desk.events()
    assert "UklGRg" not in desk.file("jsonl").read_text()
    assert events[1]["event"] == {
        "type": "conversation.item.create",
        "item": {"type": "message", "content": [{"type": "input_audio"}]},
    }
    assert events[2]["event"]["response"]["input"][0]["content"] == [{"type": "input_audio"}]
    assert events[3] | {"wall": ""} == {
        "wall": "", "at": 0.0, "from": "sideband", "type": "session.update", "omitted_bytes": 70_035
    }  # fmt: skip
    assert (events[4]["type"], events[4]["omitted_bytes"]) == ("", 14)
    kept = [event for event in events if event.get("event", {}).get("type") == "many"]
    assert len(kept) == 3 and events[-1]["event"]["type"] == "recording.ended"
    assert desk.file("jsonl").stat().st_size < 101_000


@pytest.mark.parametrize("raw", [b"", b"[]", b"\xff", b'{"type": 3}', b"[" * 100_000, b'{"type": "x"} {}'])
def test_what_is_no_event_is_nothing(raw: bytes) -> None:
    assert readable_event(raw) == ("", None)


class TestBounds:
    def test_of_one_call(self, tmp_path: Path) -> None:
        desk = Desk(tmp_path, max_seconds=1.0)
        tap = desk.start()
        desk.talk(tap, noise(1, 3 * PCM_RATE), noise(2, 3 * PCM_RATE))
        desk.recorder.close()
        assert desk.failures() == [Failure("rtc_A-1_z", "max_seconds")]
        status = desk.recorder.status("rtc_A-1_z")
        assert status is not None and (status["status"], status["reason"]) == ("stopped", "max_seconds")
        assert desk.events()[-1]["event"]["reason"] == "max_seconds"
        tap.hear(bytes(960), desk.clock.now)  # goes nowhere

    def test_of_the_directory_ends_what_is_written_and_begins_nothing_more(self, tmp_path: Path) -> None:
        (tmp_path / "older.ogg").write_bytes(bytes(50_000))
        desk = Desk(tmp_path, max_bytes=70_000)
        tap = desk.start()
        desk.talk(tap, noise(1, 10 * PCM_RATE), noise(2, 10 * PCM_RATE))
        wait_until(lambda: not tap._recording.live)
        assert desk.recorder.start("rtc_2", wall=WALL, now=desk.clock.now, clock_rate=48_000) is None
        assert desk.failures() == [Failure("rtc_A-1_z", "directory_full"), Failure("rtc_2", "directory_full")]
        desk.recorder.finish("rtc_A-1_z", desk.clock.now, {})
        desk.recorder.close()
        assert sum(path.stat().st_size for path in tmp_path.iterdir()) <= 70_000
        assert decoded(next(tmp_path.glob("2*.ogg"))).shape[1] > 48_000, "what was written is played"
        assert dict(desk.recorder.totals) == {"started": 1, "directory_full": 2}

    def test_there_is_room_again_when_somebody_deleted(self, tmp_path: Path) -> None:
        old = tmp_path / "older.ogg"
        old.write_bytes(bytes(50_000))
        desk = Desk(tmp_path, max_bytes=50_000)
        assert desk.recorder.start("rtc_1", wall=WALL, now=desk.clock.now, clock_rate=48_000) is None
        old.unlink()
        desk.clock.now += recording_files.SCAN_SECONDS
        wait_until(lambda: not desk.recorder.directory.full)
        desk.start("rtc_2")
        desk.recorder.close()

    def test_of_the_queue_is_silence_and_counted(
        self, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        monkeypatch.setattr(recorder_module, "TICK_SECONDS", 30.0)  # a writer that stalls
        monkeypatch.setattr(recorder_module, "MAX_WAITING_BYTES", 96_000)
        desk = Desk(tmp_path)
        tap = desk.start()
        user = noise(1, 2 * PCM_RATE)
        desk.talk(tap, user, np.zeros_like(user))
        desk.recorder.close()
        sound = decoded(desk.file("ogg"))[0][::2]
        assert lag(sound, user[: len(user) // 2])[0] == 0 and not sound[PCM_RATE * 3 // 2 :].any()
        (dropped,) = (s.value for s in desk.recorder.samples({}) if s.name.endswith("dropped_total"))
        assert 95 <= dropped <= 105


@pytest.mark.parametrize(
    ("number", "reason"), [(errno.ENOSPC, "disk_full"), (errno.EIO, "disk_error"), (None, "internal_error")]
)
def test_a_broken_disk_ends_that_recording_and_no_other(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, number: int | None, reason: str
) -> None:
    error = ValueError("a bug") if number is None else OSError(number, os.strerror(number))
    advance = CallFiles.advance

    def fail_for_one(files: CallFiles, now: float) -> None:
        if files.name.endswith("rtc_bad"):
            raise error
        advance(files, now)

    monkeypatch.setattr(CallFiles, "advance", fail_for_one)
    desk = Desk(tmp_path)
    good, bad = desk.start("rtc_good"), desk.start("rtc_bad")
    bad.hear(bytes(960), desk.clock.now)
    desk.talk(good, noise(1, PCM_RATE), noise(2, PCM_RATE))
    desk.recorder.close()
    assert desk.failures() == [Failure("rtc_bad", reason)]
    assert decoded(next(tmp_path.glob("*_rtc_good.ogg"))).shape[1] == 48_000


def test_a_file_that_is_there_is_never_written_over(tmp_path: Path) -> None:
    desk = Desk(tmp_path)
    there = tmp_path / "20261128T044434Z_rtc_A-1_z.ogg"
    there.symlink_to(tmp_path / "elsewhere")
    desk.talk(desk.start(), noise(1, PCM_RATE), noise(2, PCM_RATE))
    desk.recorder.close()
    assert [failure.reason for failure in desk.failures()] == ["disk_error"]
    assert not (tmp_path / "elsewhere").exists()


CRASH = """
import sys, time
import numpy as np
from voicegate.config import RecordingConfig
from voicegate.roles.transceiver.recorder import Recorder

sound = np.random.default_rng(1).normal(0, 3000, 480).astype("<i2").tobytes()
recorder = Recorder(RecordingConfig(directory=sys.argv[1]), time.monotonic)
start = time.monotonic()
tap = recorder.start("rtc_crash", wall=time.time(), now=start, clock_rate=48_000)
n = 0
while True:
    time.sleep(max(0, start + n * 0.02 - time.monotonic()))
    tap.hear(sound, time.monotonic())
    tap.say(sound, n * 960, time.monotonic())
    tap.note("agent", b'{"type":"tick"}')
    n += 1
    print(f"{time.monotonic() - start:.3f}", flush=True)
"""


def test_a_killed_process_leaves_a_file_that_ends_within_two_seconds_of_it(tmp_path: Path) -> None:
    with subprocess.Popen([sys.executable, "-c", CRASH, str(tmp_path)], stdout=subprocess.PIPE) as process:
        assert process.stdout is not None
        for line in process.stdout:
            if float(line) > 2.5:
                process.send_signal(signal.SIGKILL)
                break
        process.wait(10)
    (ogg,) = tmp_path.glob("*.ogg")
    sound = decoded(ogg)
    assert sound.shape[1] / 48_000 > float(line) - 2.0
    assert min(np.abs(side[24_000:]).max() for side in sound) > 0.05, "both are there"
    (events,) = tmp_path.glob("*.jsonl")
    lines = events.read_bytes().splitlines()
    assert len(lines) > 50 and all(json.loads(line) for line in lines[:-1])


class Taken:
    """A tap that keeps all."""

    def __init__(self) -> None:
        self.heard = bytearray()
        self.said: list[tuple[bytes, int, float]] = []
        self.noted: list[tuple[str, str]] = []

    def hear(self, pcm: bytes, at: float) -> None:
        self.heard += pcm

    def say(self, pcm: bytes, timestamp: int, at: float) -> None:
        self.said.append((pcm, timestamp, at))

    def note(self, source: str, event: bytes) -> None:
        self.noted.append((source, json.loads(event)["type"]))


def test_what_a_call_leaves_is_what_passed() -> None:
    rig = Rig()
    client, call_id = rig.call(channel=Wanted())
    tap = Taken()
    rig.core.record(call_id, tap)
    rig.run(1.0)
    rig.agent_ready(call_id)
    assert bytes(tap.heard) == bytes(rig.audio[call_id]) != b""
    rig.agent_begins(call_id)
    voice = noise(1, PCM_RATE).tobytes()
    rig.agent_says(call_id, voice)
    rig.run(0.5)
    rig.send_event(client, "response.cancel")
    client.send_event("no JSON", rig.now)
    rig.run(1.0)
    rig.agent_ends(call_id)
    sent = b"".join(pcm for pcm, _, _ in tap.said)
    assert voice.startswith(sent) and 0.4 < len(sent) / 48_000 < 0.6, "what was cut off was not said"
    assert [stamp - tap.said[0][1] for _, stamp, _ in tap.said] == [960 * n for n in range(len(tap.said))]
    assert ("agent", "response.created") in tap.noted and ("client", "response.cancel") in tap.noted
    assert ("voicegate", "output_audio_buffer.cleared") in tap.noted
    assert ("voicegate", "conversation.item.truncate") in tap.noted
    assert ("voicegate", "error") in tap.noted, "what was wrong with the client's"
    assert not [kind for _, kind in tap.noted if "delta" in kind]


def test_a_recording_that_stopped_is_told_to_sidebands() -> None:
    rig = Rig()
    _, call_id = rig.call()
    rig.run(1.0)
    rig.core.sideband_joined(call_id, "", rig.now)
    rig.core.report(call_id, "recording_stopped", "The recording has stopped.", rig.now)
    rig.core.report("rtc_unknown", "recording_stopped", "", rig.now)
    rig.run(0.1)
    (event,) = [event for event in rig.to_sidebands if event["type"] == "error"]
    assert event["error"]["code"] == "recording_stopped"


def wait_until(condition: Any) -> None:
    """For the writer's thread, which looks ten times a second."""
    deadline = time.monotonic() + 10
    while not condition():
        assert time.monotonic() < deadline
        time.sleep(0.01)
