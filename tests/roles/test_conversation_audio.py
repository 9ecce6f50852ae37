"""What an agent may send as audio: whatever it is, the answer ends and the call goes on."""

from __future__ import annotations

import base64

import pytest

from tests.support.scene import Scene
from voicegate.media.playout import DEFAULT_LIMIT_SECONDS


def say(scene: Scene, pcm: bytes) -> None:
    place = {"response_id": "r1", "item_id": "i1", "output_index": 0, "content_index": 0}
    scene.agent("response.output_audio.delta", delta=base64.b64encode(pcm).decode(), **place)


@pytest.mark.parametrize(
    "sizes",
    [[0], [1], [1, 1, 1], [0, 959, 0, 961, 1], [3] * 50, [960] * 5 + [1], [2], [48_001, 0, 48_001]],
    ids=str,
)
def test_odd_and_empty_deltas_end_like_any_other(sizes: list[int]) -> None:
    scene = Scene()
    scene.begin()
    for size in sizes:
        say(scene, bytes(size))
        scene.run(0.005)
    scene.finish()
    scene.run(5)
    assert scene.audio.played_samples == sum(size // 2 for size in sizes)
    assert scene.audio.queued_samples == 0
    kinds = [kind for kind in scene.types() if kind.startswith("output_audio_buffer.")]
    heard = ["output_audio_buffer.started", "output_audio_buffer.stopped"]
    assert kinds == (heard if scene.audio.played_samples else [])
    assert scene.types()[-1] in (heard[-1], "response.done")
    scene.begin("r2", "i2")
    scene.delta(0.1, "r2", "i2")
    scene.finish("r2", "i2")
    scene.run(1)
    assert scene.of("output_audio_buffer.stopped")[-1]["response_id"] == "r2"


def test_more_than_ten_minutes_at_once_are_cut_and_can_be_interrupted() -> None:
    scene = Scene()
    scene.begin()
    for _ in range(11):
        say(scene, bytes(60 * 48_000))
    assert scene.audio.queued_samples <= DEFAULT_LIMIT_SECONDS * 24_000
    playout = scene.audio.statistics()["playout"]
    assert isinstance(playout, dict)
    assert playout["overflow_samples"] == pytest.approx(60 * 24_000, abs=480)
    [error] = scene.of("error")
    assert error["error"]["code"] == "agent_audio_overflow" and "600 s" in error["error"]["message"]
    scene.run(1.0)
    scene.speech()
    assert scene.audio.queued_samples == 0
    scene.finish(status="cancelled")
    (truncate,) = scene.asked("conversation.item.truncate")
    assert 800 <= truncate["audio_end_ms"] <= 1000
    scene.begin("r2", "i2")
    scene.delta(0.2, "r2", "i2")
    scene.finish("r2", "i2")
    scene.run(1)
    assert scene.of("output_audio_buffer.stopped")[-1]["response_id"] == "r2"


def test_an_agent_in_fits_is_truncated_where_it_was_heard() -> None:
    """Held back or not, what was heard is what was sent a client's delay ago."""
    scene = Scene()
    for response in ("r1", "r2"):
        scene.begin(response, f"i{response}")
        for _ in range(10):
            scene.delta(0.1, response, f"i{response}")
            scene.run(0.13 if response == "r1" else 0.1)
        if response == "r1":
            scene.finish(response, f"i{response}")
            scene.run(2)
    playout = scene.audio.statistics()["playout"]
    assert isinstance(playout, dict)
    assert playout["held_back"] >= 1
    played = scene.audio.played_samples
    scene.speech()
    assert scene.audio.played_samples == played
    scene.finish("r2", "ir2", "cancelled")
    (truncate,) = scene.asked("conversation.item.truncate")
    sent = (played - 24_000) / 24
    assert sent - 110 <= truncate["audio_end_ms"] <= sent - 70
