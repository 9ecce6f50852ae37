"""Turns in a real browser with a scripted microphone: a hesitation, an end, a cough and a barge-in.

Against an agent that detects no turns (mode gateway) and one that detects them itself (mode upstream), the
parrot both times: it says back what was committed, so what is heard shows what the agent took for a turn.
"""

from __future__ import annotations

import json
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from tests.e2e.conftest import artifact, assert_nothing_left, on_a_quiet_moment
from tests.support import speech
from tests.support.chromium import Chromium, Page, Recording
from tests.support.models import server_event
from tests.support.servers import Gate, one_process, parrot
from tests.support.speech import RATE, Sound
from voicegate.roles.transceiver.playback import CLIENT_DELAY

pytestmark = pytest.mark.e2e

LEAD = 1.2
HESITATION = {"gateway": 0.45, "upstream": 0.4}
"""Seconds, in the middle of a sentence. The parrot's own detection knows silence only; the adaptive judge
hears that the sentence goes on, and waits here for longer than at its end."""

NOISE_SECONDS = {"gateway": 0.2, "upstream": 0.03}
"""A cough; and a knock, for a parrot takes everything that is longer than 100 ms for speech, and its word
counts. Voice activity goes on for most of that after a knock."""

SILENCE_MS = 550
"""After which a turn is over for the parrot. What is left of ANSWER_SECONDS is for the way."""

ANSWER_SECONDS = 0.7
"""From the last voice at the gateway to the first sound of the answer there."""

TALK = '[data-testid="talk"]'
HANG_UP = '[data-testid="hang-up"]'

Timed = tuple[float, dict[str, Any]]

EVENTS = """
(() => {
  window.__events = [];
  const create = RTCPeerConnection.prototype.createDataChannel;
  RTCPeerConnection.prototype.createDataChannel = function (...args) {
    const channel = create.apply(this, args);
    channel.addEventListener("message", ({ data }) => window.__events.push([performance.now(), data]));
    return channel;
  };
})();
"""


@dataclass(frozen=True, slots=True)
class Script:
    """The microphone's sound, and when its parts begin and end, in seconds."""

    sound: Sound
    first: tuple[float, float]
    """A sentence with a hesitation in it."""
    cough: float
    second: tuple[float, float]
    third: tuple[float, float]
    """Spoken over the answer to the second."""
    end: float


def script(hesitation: float, noise: float) -> Script:
    """`noise`: seconds of it, over the first answer."""
    begun, ended = speech.say("I would like to, umm"), speech.say("book a small table.")
    second = speech.say("Peter Piper picked a peck of pickled peppers.")
    third = speech.say("Stop, I have another question.")
    parts: list[Sound | float] = [LEAD, begun, hesitation, ended]
    first = (LEAD, _seconds(parts))
    parts += [2.1, cough(noise)]
    coughed = _seconds(parts) - noise
    parts.append(first[1] - first[0])
    places = []
    for sound, pause in ((second, 2.0), (third, _seconds([third]) + 1.4)):
        at = _seconds(parts)
        parts.append(sound)
        places.append((at, _seconds(parts)))
        parts.append(pause)
    return Script(speech.conversation(*parts), first, coughed, places[0], places[1], _seconds(parts))


def cough(seconds: float) -> Sound:
    """A burst of noise that dies away."""
    n = round(seconds * RATE)
    noise = np.random.default_rng(7).standard_normal(n)
    return speech.at_level((noise * np.exp(-np.arange(n) / (0.05 * RATE))).astype(np.float32), 0.1)


def _seconds(parts: list[Sound | float]) -> float:
    return float(sum(part if isinstance(part, float) else len(part) / RATE for part in parts))


@pytest.fixture(scope="module", params=["gateway", "upstream"])
def deployment(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Gate]:
    directory = tmp_path_factory.mktemp("turns")
    own = request.param == "upstream"
    fixed = {"type": "server_vad", "silence_duration_ms": SILENCE_MS}
    detection = fixed if own else {"type": "semantic_vad"}
    session = json.dumps({"audio": {"input": {"turn_detection": detection}}})
    with (
        parrot(directory, *([] if own else ["--no-turn-detection"])) as url,
        one_process(
            directory,
            agent_url=url,
            agent_turn_detection="semantic" if own else "none",
            agent_session=session,
            turns_pause_upstream="true",
            log_level="debug",
        ) as running,
    ):
        yield running


def test_a_hesitation_an_end_a_cough_and_a_barge_in(deployment: Gate, tmp_path: Path) -> None:
    on_a_quiet_moment(lambda: _converse(deployment, tmp_path), deployment)


def _converse(deployment: Gate, tmp_path: Path) -> None:
    ability = deployment.servers["voicegate"].environment["VOICEGATE_AGENT_TURN_DETECTION"]
    own = ability == "semantic"
    kind = "upstream" if own else "gateway"
    spoken = script(HESITATION[kind], NOISE_SECONDS[kind])
    microphone = speech.write_wav(tmp_path / "microphone.wav", spoken.sound)
    with Chromium(microphone=microphone) as browser:
        page = browser.open("about:blank")
        page.send("Page.addScriptToEvaluateOnNewDocument", {"source": EVENTS})
        page.go(deployment.url + "/")
        page.click(TALK)
        page.wait("window.voicegate.state === 'connected'", 15)
        _screenshots(page, spoken, kind)
        said, heard = page.said(), page.heard()
        events = [(at / 1000, server_event(text)) for at, text in page.evaluate("__events")]
        page.click(HANG_UP)
        page.wait("window.voicegate.state === 'ended'", 5)
        assert_nothing_left(deployment)
        assert not page.exceptions, page.exceptions
    for name, recording in (("said", said), ("heard", heard)):
        speech.write_wav(artifact(f"turns-{kind}-{name}.wav"), recording.sound)
    artifact(f"turns-{kind}.jsonl").write_text("\n".join(map(json.dumps, events)))
    judge_events(events, own_detection=own)
    judge_sound(spoken, said, heard)


def _screenshots(page: Page, spoken: Script, kind: str) -> None:
    """Follow the microphone to its end, with a picture where there is something to see."""
    page.evaluate("scrollTo(0, 0)")
    seconds = "__ears.microphone.reduce((sum, [, block]) => sum + block.length, 0) / 48000"
    for name, at in (
        ("hesitation", spoken.first[1]),
        ("cough", spoken.cough + 0.9),
        ("barge-in", spoken.third[0] + 1.2),
        ("end", spoken.end),
    ):
        page.wait(f"{seconds} > {at}", at + 20)
        page.screenshot(artifact(f"turns-{kind}-{name}.png"))


def judge_events(events: list[Timed], *, own_detection: bool) -> None:
    """What was decided, and when, on the page's clock."""

    def of(kind: str) -> list[Timed]:
        return [(at, event) for at, event in events if event["type"] == kind]

    started, stopped = of("output_audio_buffer.started"), of("output_audio_buffer.stopped")
    ended = of("voicegate.turn.ended")
    # The hesitation was a pause, and no end; each of the three turns was answered once, and in time.
    assert len(ended) == len(of("input_audio_buffer.committed")) == len(started) == 3
    assert of("voicegate.turn.resumed")[0][0] < ended[0][0]
    waits = [
        begun - (at - event["silence_ms"] / 1000)
        for (at, event), (begun, _) in zip(ended, started, strict=True)
    ]
    assert max(waits) <= ANSWER_SECONDS, f"answered {waits} s after the last voice"
    # The cough held the first answer, which then went on to its end.
    outputs = [
        (event["type"].removeprefix("voicegate.turn.output_"), event.get("reason"))
        for _, event in events
        if "turn.output_" in event["type"]
    ]
    paused, resumed = of("voicegate.turn.output_paused"), of("voicegate.turn.output_resumed")
    assert [what for what, _ in outputs[:2]] == ["paused", "resumed"], outputs
    assert started[0][0] < paused[0][0] < resumed[0][0] < stopped[0][0]
    # The barge-in held the second and stopped it; an agent that detects speech itself may be first, for a
    # soft [s] does not hold the output yet. The agent was told how much of it was heard.
    if outputs[2:] or not own_detection:
        assert [what for what, _ in outputs[2:]] == ["paused", "stopped"], outputs
        assert outputs[3][1] == ("upstream" if own_detection else "duration")
    (cleared,) = of("output_audio_buffer.cleared")
    (truncated,) = of("conversation.item.truncated")
    silenced = paused[1][0] if outputs[2:] else cleared[0]
    assert cleared[0] >= silenced
    heard = min(silenced, cleared[0] - CLIENT_DELAY) - started[1][0]
    assert truncated[1]["audio_end_ms"] / 1000 == pytest.approx(heard, abs=0.06)
    assert not of("error")


def judge_sound(spoken: Script, said: Recording, heard: Recording) -> None:
    # Both recordings are on the page's audio clock; what the microphone's WAV begins with is silence.
    lead = speech.find_by_envelope(spoken.sound[: RATE * 6], said.sound).lag
    offset = said.start + lead - heard.start

    def at(start: float, end: float) -> Sound:
        return heard.sound[max(0, round((offset + start) * RATE)) : max(0, round((offset + end) * RATE))]

    assert speech.rms(at(0.0, spoken.first[1])) < 0.002, "the agent spoke into the turn"
    # The first answer is all that was said, in order, with a hole where it was held: nothing lost, nothing
    # twice.
    first = said.sound[round((lead + spoken.first[0]) * RATE) : round((lead + spoken.first[1]) * RATE)]
    answer, half = at(spoken.first[1], spoken.second[0]), len(first) // 4
    begun, rest = speech.find(first[:half], answer), speech.find(first[-half:], answer)
    hole = rest.lag - begun.lag - (len(first) - half) / RATE
    assert min(begun.envelope, rest.envelope) > 0.75, (begun, rest)
    assert 0.3 < hole < 1.2, f"held for {hole:.2f} s"
    # The second was under way when it was spoken over, and stopped.
    speaking = speech.rms(at(spoken.third[0] - 0.4, spoken.third[0]))
    assert speaking > 0.01, "no answer was under way"
    assert speech.rms(at(spoken.third[0] + 0.8, spoken.third[1])) < 0.1 * speaking, "it went on"
    third = said.sound[round((lead + spoken.third[0]) * RATE) : round((lead + spoken.third[1]) * RATE)]
    match = speech.find(third, at(spoken.third[1], spoken.end))
    assert match.envelope > 0.85, f"the last answer is not what was said: {match}"
