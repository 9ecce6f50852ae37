"""Turns in a real browser with a scripted microphone: a hesitation, an end, a cough and a barge-in.

Against an agent that detects no turns (mode gateway) and one that detects them itself (mode upstream), the parrot
both times: it says back what was committed, so what is heard shows what the agent took for a turn.
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

pytestmark = pytest.mark.e2e

LEAD = 1.2
HESITATION = {"gateway": 0.6, "upstream": 0.3}
"""Seconds. The parrot's own detection knows silence only, so its pauses have to be short."""

TALK = '[data-testid="talk"]'
HANG_UP = '[data-testid="hang-up"]'

EVENTS = """
(() => {
  window.__events = [];
  const create = RTCPeerConnection.prototype.createDataChannel;
  RTCPeerConnection.prototype.createDataChannel = function (...args) {
    const channel = create.apply(this, args);
    channel.addEventListener("message", ({ data }) => window.__events.push(data));
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


def script(hesitation: float) -> Script:
    begun, ended = speech.say("I would like to go to, umm"), speech.say("the river bank tomorrow.")
    second = speech.say("Peter Piper picked a peck of pickled peppers on the way home.")
    third = speech.say("Stop, please, I have another question.")
    parts: list[Sound | float] = [LEAD, begun, hesitation, ended]
    first = (LEAD, _seconds(parts))
    parts += [1.6, cough()]
    coughed = _seconds(parts) - _seconds([cough()])
    parts.append(first[1] - first[0] + 0.4)
    places = []
    for sound, pause in ((second, 2.0), (third, _seconds([third]) + 1.4)):
        at = _seconds(parts)
        parts.append(sound)
        places.append((at, _seconds(parts)))
        parts.append(pause)
    return Script(speech.conversation(*parts), first, coughed, places[0], places[1], _seconds(parts))


def cough() -> Sound:
    """A burst of noise that dies away."""
    n = round(0.2 * RATE)
    noise = np.random.default_rng(7).standard_normal(n)
    return speech.at_level((noise * np.exp(-np.arange(n) / (0.05 * RATE))).astype(np.float32), 0.1)


def _seconds(parts: list[Sound | float]) -> float:
    return float(sum(part if isinstance(part, float) else len(part) / RATE for part in parts))


@pytest.fixture(scope="module", params=["gateway", "upstream"])
def deployment(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Gate]:
    directory = tmp_path_factory.mktemp("turns")
    own = request.param == "upstream"
    detection = {"type": "server_vad", "silence_duration_ms": 450} if own else {"type": "semantic_vad"}
    session = json.dumps({"audio": {"input": {"turn_detection": detection}}})
    with (
        parrot(directory, *([] if own else ["--no-turn-detection"])) as url,
        one_process(
            directory,
            agent_url=url,
            agent_turn_detection="semantic" if own else "none",
            agent_session=session,
            log_level="debug",
        ) as running,
    ):
        yield running


def test_a_hesitation_an_end_a_cough_and_a_barge_in(deployment: Gate, tmp_path: Path) -> None:
    on_a_quiet_moment(lambda: _converse(deployment, tmp_path))


def _converse(deployment: Gate, tmp_path: Path) -> None:
    ability = deployment.servers["voicegate"].environment["VOICEGATE_AGENT_TURN_DETECTION"]
    kind = "gateway" if ability == "none" else "upstream"
    spoken = script(HESITATION[kind])
    microphone = speech.write_wav(tmp_path / "microphone.wav", spoken.sound)
    with Chromium(microphone=microphone) as browser:
        page = browser.open("about:blank")
        page.send("Page.addScriptToEvaluateOnNewDocument", {"source": EVENTS})
        page.go(deployment.url + "/")
        page.click(TALK)
        page.wait("window.voicegate.state === 'connected'", 15)
        _screenshots(page, spoken, kind)
        said, heard = page.said(), page.heard()
        events = [server_event(text) for text in page.evaluate("__events")]
        status = page.evaluate("window.voicegate.server")
        page.click(HANG_UP)
        page.wait("window.voicegate.state === 'ended'", 5)
        assert_nothing_left(deployment)
        assert not page.exceptions, page.exceptions
    for name, recording in (("said", said), ("heard", heard)):
        speech.write_wav(artifact(f"turns-{kind}-{name}.wav"), recording.sound)
    artifact(f"turns-{kind}.jsonl").write_text("\n".join(map(json.dumps, events)))
    judge(spoken, said, heard, events, status)


def _screenshots(page: Page, spoken: Script, kind: str) -> None:
    """Follow the microphone to its end, with a picture where there is something to see."""
    seconds = "__ears.microphone.reduce((sum, [, block]) => sum + block.length, 0) / 48000"
    for name, at in (
        ("hesitation", spoken.first[1]),
        ("cough", spoken.cough + 0.9),
        ("barge-in", spoken.third[0] + 1.2),
        ("end", spoken.end),
    ):
        page.wait(f"{seconds} > {at}", at + 20)
        page.screenshot(artifact(f"turns-{kind}-{name}.png"))


def judge(
    spoken: Script, said: Recording, heard: Recording, events: list[dict[str, Any]], status: dict[str, Any]
) -> None:
    # Both recordings are on the page's audio clock; what the microphone's WAV begins with is silence.
    lead = speech.find_by_envelope(spoken.sound[: RATE * 6], said.sound).lag
    offset = said.start + lead - heard.start

    def at(start: float, end: float) -> Sound:
        return heard.sound[max(0, round((offset + start) * RATE)) : max(0, round((offset + end) * RATE))]

    # 1. The hesitation is waited out, and the end is answered.
    before = at(0.0, spoken.first[1])
    assert speech.rms(before) < 0.002, "the agent spoke before the turn was over"
    answer = at(spoken.first[1], spoken.second[0])
    waited = _onset(answer)
    print(f"first answer heard {waited:.3f} s after the turn")
    decided = [(e["type"], e.get("reason"), e) for e in events if e["type"].startswith("voicegate.turn.")]
    for d in decided:
        print(d[0], d[1], {k: v for k, v in d[2].items() if k not in ("type", "reason", "event_id")})
    print([e["type"] for e in events if not e["type"].startswith("voicegate.turn.")])
    print(status["statistics"]["audio"]["playout"], status["statistics"]["events"])
    answer = at(spoken.third[1], spoken.end)
    print("last", _onset(answer))


def _onset(sound: Sound) -> float:
    """Seconds to the first sound in it."""
    loud = np.flatnonzero(np.abs(sound) > 0.01)
    assert len(loud), "nothing was heard"
    return float(loud[0]) / RATE
