"""Allow-lists of event types."""

from __future__ import annotations

from voicegate.proto.event_filter import EventFilter


def test_types_prefixes_and_everything() -> None:
    some = EventFilter(("response.create", "input_audio_buffer.*"))
    assert not some.is_open
    for kind in ("response.create", "input_audio_buffer.append", "input_audio_buffer.clear", "error"):
        assert some.allows(kind)
    for kind in ("response.created", "response", "input_audio_buffer", "session.update", "", "*"):
        assert not some.allows(kind)
    assert EventFilter().is_open and EventFilter(("a", "*")).is_open and EventFilter().allows("")
    assert not EventFilter(()).allows("session.update") and EventFilter(()).allows("error")
