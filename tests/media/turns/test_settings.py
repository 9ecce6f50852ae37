"""voicegate.media.turns.settings: `turn_detection` of the Realtime API."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from voicegate.media.turns.settings import EAGERNESS_CEILING, TurnSettings, from_turn_detection

DEFAULTS = TurnSettings(max_turn=60.0, user_idle=30.0, eager=True)


def test_server_vad_means_what_it_means_there() -> None:
    wanted = {
        "type": "server_vad",
        "threshold": 0.7,
        "prefix_padding_ms": 200,
        "silence_duration_ms": 800,
        "idle_timeout_ms": 6000,
        "create_response": False,
        "interrupt_response": False,
    }
    assert from_turn_detection(wanted, DEFAULTS) == replace(
        DEFAULTS,
        judge="fixed",
        threshold=0.7,
        prefix_padding=0.2,
        silence_duration=0.8,
        idle_timeout=6.0,
        create_response=False,
        interrupts=False,
    )


def test_what_is_left_out_is_as_it_was() -> None:
    assert from_turn_detection({}, DEFAULTS) == DEFAULTS
    fixed = replace(DEFAULTS, judge="fixed", silence_duration=0.9)
    assert from_turn_detection({}, fixed) == fixed
    assert from_turn_detection({"type": "semantic_vad"}, DEFAULTS) == DEFAULTS
    assert from_turn_detection({"type": "server_vad", "idle_timeout_ms": None}, DEFAULTS).idle_timeout is None


@pytest.mark.parametrize("eagerness, ceiling", EAGERNESS_CEILING.items())
def test_eagerness_sets_the_ceiling(eagerness: str, ceiling: float) -> None:
    settings = from_turn_detection({"type": "semantic_vad", "eagerness": eagerness}, DEFAULTS)
    assert (settings.judge, settings.eagerness, settings.max_silence) == ("adaptive", eagerness, ceiling)


def test_semantic_vad_is_for_the_judge_that_is_configured() -> None:
    smart = replace(DEFAULTS, judge="smart-turn")
    assert from_turn_detection({"type": "semantic_vad"}, smart).judge == "smart-turn"
    assert from_turn_detection({"type": "semantic_vad"}, replace(smart, judge="fixed")).judge == "adaptive"


def test_a_silence_longer_than_the_ceiling_lifts_it() -> None:
    settings = from_turn_detection({"type": "server_vad", "silence_duration_ms": 6000}, DEFAULTS)
    assert settings.max_silence == settings.silence_duration == 6.0


@pytest.mark.parametrize(
    "wanted, words",
    [
        ({"type": "psychic_vad"}, "server_vad or semantic_vad"),
        ({"type": None}, "server_vad or semantic_vad"),
        ({"type": "semantic_vad", "eagerness": "very"}, "low, medium, auto, high"),
        ({"type": "semantic_vad", "eagerness": 3}, "low, medium, auto, high"),
        ({"type": "server_vad", "threshold": 1.5}, "threshold is a number from 0 to 1"),
        ({"type": "server_vad", "threshold": True}, "threshold is a number from 0 to 1"),
        ({"type": "server_vad", "silence_duration_ms": -1}, "silence_duration_ms is 0 to 10000"),
        ({"type": "server_vad", "prefix_padding_ms": "300"}, "prefix_padding_ms is 0 to 2000"),
        ({"type": "server_vad", "idle_timeout_ms": 10}, "idle_timeout_ms is 1000 to 120000"),
        ({"create_response": "yes"}, "create_response is true or false"),
        ({"interrupt_response": 1}, "interrupt_response is true or false"),
    ],
)
def test_what_cannot_be_is_a_sentence(wanted: dict[str, Any], words: str) -> None:
    with pytest.raises(ValueError, match=words):
        from_turn_detection(wanted, DEFAULTS)


FIELDS = ["type", "eagerness", "threshold", "silence_duration_ms", "prefix_padding_ms", "idle_timeout_ms"]
ANYTHING = st.none() | st.booleans() | st.integers() | st.floats() | st.text() | st.lists(st.integers())


@given(st.dictionaries(st.sampled_from([*FIELDS, "create_response", "interrupt_response"]), ANYTHING))
def test_whatever_a_client_sends(wanted: dict[str, Any]) -> None:
    try:
        settings = from_turn_detection(wanted, DEFAULTS)
    except ValueError:
        return
    assert 0 <= settings.silence_duration <= settings.max_silence <= 10
    assert settings.idle_timeout is None or 1 <= settings.idle_timeout <= 120
