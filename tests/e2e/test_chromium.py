"""The main job, with a real browser: open the page, talk, hear the answer, speak over it, hang up."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.e2e.conftest import artifact, assert_nothing_left, assert_over, on_a_quiet_moment
from tests.e2e.scenario import Script, judge
from tests.support import speech
from tests.support.chromium import Chromium
from tests.support.servers import Gate, cluster, free_port, one_process

pytestmark = pytest.mark.e2e

TALK = '[data-testid="talk"]'
HANG_UP = '[data-testid="hang-up"]'
MUTE = '[data-testid="mute"]'


@pytest.fixture(scope="module", params=["one process", "Procfile cluster"])
def deployment(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Gate]:
    directory = tmp_path_factory.mktemp("chromium")
    with (one_process if request.param == "one process" else cluster)(directory) as running:
        yield running


def test_a_conversation(deployment: Gate, conversation: Script, tmp_path: Path) -> None:
    on_a_quiet_moment(lambda: _converse(deployment, conversation, tmp_path), deployment)


def _converse(deployment: Gate, conversation: Script, tmp_path: Path) -> None:
    microphone = speech.write_wav(tmp_path / "microphone.wav", conversation.sound)
    kind = "cluster" if len(deployment.servers) > 1 else "one-process"
    with Chromium(microphone=microphone) as browser:
        page = browser.open(deployment.url + "/")
        assert page.evaluate("window.voicegate.state") == "idle"
        page.click(TALK)
        page.wait("window.voicegate.state === 'connected'", 15)
        call_id = page.evaluate("window.voicegate.callId")
        assert str(call_id).startswith("rtc_")
        microphone_seconds = "__ears.microphone.reduce((sum, [, block]) => sum + block.length, 0) / 48000"
        page.wait(f"{microphone_seconds} > {conversation.third[0]}", conversation.third[0] + 20)
        page.screenshot(artifact(f"chromium-{kind}-talking.png"))
        page.wait(f"{microphone_seconds} > {conversation.end + 0.5}", conversation.end + 20)

        said, heard = page.said(), page.heard()
        for name, recording in (("said", said), ("heard", heard)):
            speech.write_wav(artifact(f"chromium-{kind}-{name}.wav"), recording.sound)
        line = page.evaluate("window.voicegate.line")
        milestones = page.evaluate("window.voicegate.milestones")
        page.click(HANG_UP)
        page.wait("window.voicegate.state === 'ended'", 5)
        page.screenshot(artifact(f"chromium-{kind}-ended.png"))
        assert page.evaluate("window.voicegate.reason") == "you"
        assert page.text("#numbers-title") == "The line at the end"
        assert page.text('[data-testid="number-packets"]') != "–", "the last values stay"
        cut = (
            "(e => (e.scrollTop - [...e.children].findLast(r => r.offsetTop - e.offsetTop <= e.scrollTop + 1)"
        )
        assert abs(page.evaluate(f"{cut}.offsetTop + e.offsetTop))(document.querySelector('#log'))")) < 3
        assert_nothing_left(deployment)
        assert_over(f"{deployment.calls_url}/{call_id}")
        assert not page.exceptions, page.exceptions
        assert not [line for line in page.console if line.startswith("error")], page.console
        outside = [url for url in page.requests if not url.startswith((deployment.url, "data:", "blob:"))]
        assert not outside, "the page asks for something from elsewhere"

    # Both recordings are on the page's audio clock; what the microphone's WAV begins with is silence.
    lead = speech.find_by_envelope(conversation.sound[: speech.RATE * 6], said.sound).lag
    shift = round(lead * speech.RATE)
    judge(
        conversation,
        heard.sound,
        said.start + lead - heard.start,
        said=said.sound[shift:],
        # Opus in its voice modes keeps the sound rather than the waveform, and the browser stretches time;
        # two sounds that have nothing to do with each other come to 0.05.
        correlation=0.35,
        level=4.0,
        shortest_gap=0.06,
    )
    assert line["packetsIn"] > 100
    assert 0 <= milestones["answer"] <= milestones["ice"] <= milestones["dtls"]
    assert milestones["first_packet"] < (conversation.first[1] + 3) * 1000, milestones


def test_mute_and_a_second_call(deployment: Gate, tmp_path: Path) -> None:
    microphone = speech.write_wav(tmp_path / "microphone.wav", speech.conversation(0.3, speech.say()))
    with Chromium(microphone=microphone, loop=True) as browser:
        page = browser.open(deployment.url + "/")
        for _ in range(2):
            page.click(TALK)
            page.wait("window.voicegate.state === 'connected'", 15)
            page.wait("window.voicegate.levels.you > 0.005", 10)
            page.click(MUTE)
            page.wait("window.voicegate.levels.you < 0.001", 5)
            page.click(HANG_UP)
            page.wait("window.voicegate.state === 'ended'", 5)
        assert_nothing_left(deployment)
        assert not page.exceptions, page.exceptions


def test_a_refused_microphone_is_explained(deployment: Gate) -> None:
    with Chromium(flags=("--deny-permission-prompts",), viewport=(390, 844)) as browser:
        page = browser.open(deployment.url + "/")
        page.click(TALK)
        page.wait("window.voicegate.state === 'error'", 10)
        assert str(page.evaluate("window.voicegate.error")).startswith("microphone")
        assert "microphone" in page.text('[data-testid="problem"]').lower()
        assert page.evaluate("document.documentElement.scrollWidth <= window.innerWidth"), (
            "it scrolls sideways"
        )
        page.screenshot(artifact("chromium-refused.png"))


def test_a_closed_tab_leaves_nothing(deployment: Gate, tmp_path: Path) -> None:
    microphone = speech.write_wav(tmp_path / "microphone.wav", speech.say())
    with Chromium(microphone=microphone) as browser:
        page = browser.open(deployment.url + "/")
        page.click(TALK)
        page.wait("window.voicegate.state === 'connected'", 15)
        page.go("about:blank")
        assert_nothing_left(deployment)


def test_an_agent_that_cannot_be_reached_is_explained(tmp_path: Path) -> None:
    microphone = speech.write_wav(tmp_path / "microphone.wav", speech.say())
    absent = {"agent_url": f"ws://127.0.0.1:{free_port()}/v1/realtime", "agent_connect_seconds": "0.5"}
    with one_process(tmp_path, **absent) as gate, Chromium(microphone=microphone) as browser:
        page = browser.open(gate.url + "/")
        page.click(TALK)
        page.wait("window.voicegate.state === 'ended'", 15)
        assert page.text('[data-testid="problem"] h1') == "The agent cannot be reached"
        said = page.text('[data-testid="problem"]')
        assert "VOICEGATE_AGENT_URL" in said and "agent_unreachable" not in said
