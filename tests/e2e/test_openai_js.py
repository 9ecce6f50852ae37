"""The unmodified JavaScript clients in a real Chromium: the pages of examples/, built with npm, in front of
voicegate, with an agent behind it that hears, talks and calls tools.

Every event on the data channels and every event to the agent is judged by the models of the official Python
client at the end of each test.
"""

from __future__ import annotations

import contextlib
import re
import secrets
import time
from collections.abc import Iterator
from pathlib import Path
from urllib.parse import quote

import pytest

from tests.e2e.conftest import artifact, assert_nothing_left, assert_over, on_a_quiet_moment
from tests.e2e.scenario import Script, judge
from tests.support import events, npm, speech
from tests.support.chromium import Chromium, Page
from tests.support.light_client import request
from tests.support.servers import Gate, one_process
from tests.support.tool_agent import ANSWER, ToolAgent, tool_agent

pytestmark = pytest.mark.e2e

READY_SECONDS = 5.0
"""Less than the Agents SDK waits for `session.updated` before it goes on with a warning."""
CORRELATION = 0.35
"""Opus in its voice modes and a browser keep the sound rather than the waveform; strangers come to 0.05."""
MICROPHONE_SECONDS = "__ears.microphone.reduce((sum, [, block]) => sum + block.length, 0) / 48000"
ASK_TIME = 'What does get_time {"zone": "UTC"} say?'


@pytest.fixture(scope="module")
def agent() -> Iterator[ToolAgent]:
    with tool_agent() as running:
        yield running


@pytest.fixture(scope="module")
def gate(agent: ToolAgent, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Gate]:
    with one_process(tmp_path_factory.mktemp("openai-js"), agent_url=agent.url) as running:
        yield running


@pytest.fixture(scope="module")
def agents_page(gate: Gate) -> Iterator[str]:
    with npm.served(npm.example("agents-realtime")) as url:
        yield f"{url}/?gateway={quote(gate.url)}"


@pytest.fixture(scope="module")
def openai_page(gate: Gate) -> Iterator[str]:
    with npm.served(npm.example("openai-js")) as url:
        yield f"{url}/?calls={quote(gate.calls_url)}"


def test_agents_sdk_converses(
    gate: Gate, agent: ToolAgent, agents_page: str, conversation: Script, tmp_path: Path
) -> None:
    on_a_quiet_moment(lambda: _converse(gate, agent, agents_page, conversation, tmp_path), gate)


def _converse(gate: Gate, agent: ToolAgent, agents_page: str, conversation: Script, tmp_path: Path) -> None:
    microphone = speech.write_wav(tmp_path / "microphone.wav", conversation.sound)
    with _page(microphone, agents_page, agent) as page:
        _talk(page)
        call_id = page.evaluate("session.transport.callId")
        assert str(call_id).startswith("rtc_"), call_id
        page.wait(f"{MICROPHONE_SECONDS} > {conversation.end + 0.5}", conversation.end + 30)
        said, heard = page.said(), page.heard()
        for name, recording in (("said", said), ("heard", heard)):
            speech.write_wav(artifact(f"agents-sdk-{name}.wav"), recording.sound)
        history = page.evaluate("session.history")
        shown = page.evaluate("[...document.querySelectorAll('#history li')].map((line) => line.innerText)")
        page.screenshot(artifact("agents-sdk-conversation.png"))
        page.click("#talk")
        page.wait("document.getElementById('state').textContent === 'ended'", 5)
        assert_nothing_left(gate)
        assert_over(f"{gate.calls_url}/{call_id}")
        seen = events.received(page)

    lead = speech.find_by_envelope(conversation.sound[: speech.RATE * 6], said.sound).lag
    shift = round(lead * speech.RATE)
    judge(
        conversation,
        heard.sound,
        said.start + lead - heard.start,
        said=said.sound[shift:],
        correlation=CORRELATION,
        level=4.0,
        shortest_gap=0.06,
    )

    kinds = events.types(seen)
    assert kinds.count("input_audio_buffer.speech_started") == 3
    assert kinds.count("output_audio_buffer.started") == 3
    assert kinds.count("output_audio_buffer.cleared") == 1, "one answer was spoken over"
    cut = events.of_type(seen, "conversation.item.truncated")
    assert len(cut) == 1 and 300 < cut[0]["audio_end_ms"] < 4000, cut
    assert [item["role"] for item in history] == ["user", "assistant"] * 3, history
    answers = [item for item in history if item["role"] == "assistant"]
    assert [answer["itemId"] == cut[0]["item_id"] for answer in answers] == [False, True, False]
    assert all(answer["content"][0]["transcript"] for answer in answers), answers
    assert [line.endswith("— interrupted") for line in shown] == [False, False, False, True, False, False]
    # The SDK asks for what it was told is cut, and gets it without its sound.
    assert cut[0]["item_id"] in [e["item"]["id"] for e in events.of_type(seen, "conversation.item.retrieved")]


def test_agents_sdk_calls_a_tool_and_is_interrupted(
    gate: Gate, agent: ToolAgent, agents_page: str, tmp_path: Path
) -> None:
    on_a_quiet_moment(lambda: _call_a_tool(gate, agent, agents_page, tmp_path), gate)


def _call_a_tool(gate: Gate, agent: ToolAgent, agents_page: str, tmp_path: Path) -> None:
    microphone = speech.write_wav(tmp_path / "microphone.wav", speech.silence(0.5))
    told = len(agent.received)
    with _page(microphone, agents_page, agent) as page:
        _talk(page)
        _ask(page, ASK_TIME)
        page.wait("session.history.some((item) => item.type === 'function_call' && item.output)", 10)
        page.wait(_event_count("output_audio_buffer.stopped", 1), 15)
        history = page.evaluate("session.history")
        page.screenshot(artifact("agents-sdk-tool.png"))
        assert [item.get("role", item["type"]) for item in history] == ["user", "function_call", "assistant"]
        assert history[1]["name"] == "get_time" and history[1]["status"] == "completed"
        clock = history[1]["output"]
        assert re.fullmatch(r"\d\d:\d\d", clock)
        assert history[2]["content"][0]["transcript"] == ANSWER.format(clock)
        outputs = [
            event["item"]
            for event in events.of_type(agent.received[told:], "conversation.item.create")
            if event["item"]["type"] == "function_call_output"
        ]
        assert [item["output"] for item in outputs] == [clock]
        heard = page.heard().sound
        match = speech.find(speech.say(ANSWER.format(clock)), heard)
        assert match.correlation > CORRELATION and match.envelope > 0.85, f"the answer was not heard: {match}"

        _ask(page, ASK_TIME)
        page.wait(_event_count("output_audio_buffer.started", 2), 10)
        time.sleep(0.8)  # something of it is heard: what nobody has heard is deleted, not truncated
        page.click("#interrupt")
        page.wait(_event_count("output_audio_buffer.cleared", 1), 2)
        page.wait(_event_count("conversation.item.truncated", 1), 5)
        page.wait("session.history.length === 6", 5)
        time.sleep(0.5)  # what is in the browser's own buffer is played
        before = len(page.heard().sound)
        time.sleep(0.5)
        after = page.heard().sound[before:]
        assert len(after) > 0.3 * speech.RATE and speech.rms(after) < 0.001, "the voice went on"
        page.screenshot(artifact("agents-sdk-interrupted.png"))
        page.click("#talk")
        page.wait("document.getElementById('state').textContent === 'ended'", 5)
        seen = events.received(page)
        assert_nothing_left(gate)

    kinds = events.types(seen)
    assert kinds[0] == "session.created" and kinds[1:3] == ["session.updated"] * 2
    assert kinds.count("response.created") == kinds.count("response.done") == 4
    # Sound is over on both occasions: once played to its end, once cut.
    assert [kind for kind in kinds if kind.startswith("output_audio_buffer.")] == [
        "output_audio_buffer.started",
        "output_audio_buffer.stopped",
        "output_audio_buffer.started",
        "output_audio_buffer.cleared",
    ]


def test_agents_sdk_opens_a_gate_with_keys_by_its_ek_key(agent: ToolAgent, tmp_path: Path) -> None:
    microphone = speech.write_wav(tmp_path / "microphone.wav", speech.silence(0.5))
    key = secrets.token_hex(24)
    with (
        one_process(tmp_path, agent_url=agent.url, signaling_api_keys=key) as gate,
        npm.served(npm.example("agents-realtime")) as url,
        _page(microphone, f"{url}/?gateway={quote(gate.url)}", agent, quiet=False) as page,
    ):
        page.click("#talk")
        page.wait("document.getElementById('state').textContent === 'error'", 5)
        assert "API key" in page.text("#problem"), page.text("#problem")
        page.screenshot(artifact("agents-sdk-no-key.png"))
        page.evaluate(f"document.getElementById('key').value = '{key}'")
        _talk(page)
        _ask(page, "Good morning")
        page.wait("session.history.length === 2 && session.history[1].status === 'completed'", 10)
        assert page.evaluate("session.history[1].content[0].text") == "Good morning"
        page.click("#talk")
        page.wait("document.getElementById('state').textContent === 'ended'", 5)
        assert_nothing_left(gate)


def test_agents_sdk_connects_to_an_agent_that_refuses_its_settings(tmp_path: Path) -> None:
    microphone = speech.write_wav(tmp_path / "microphone.wav", speech.silence(0.5))
    with (
        tool_agent(picky=True) as picky,
        one_process(tmp_path, agent_url=picky.url) as gate,
        npm.served(npm.example("agents-realtime")) as url,
        _page(microphone, f"{url}/?gateway={quote(gate.url)}", picky, quiet=False) as page,
    ):
        _talk(page)
        _ask(page, ASK_TIME)
        page.wait("session.history.some((item) => item.type === 'function_call' && item.output)", 10)
        page.screenshot(artifact("agents-sdk-picky.png"))
        seen = events.received(page)
        page.click("#talk")
        page.wait("document.getElementById('state').textContent === 'ended'", 5)
        assert_nothing_left(gate)
    # The SDK asks twice, for its settings and for tracing. Both are answered, and what was left out is said.
    settled = events.of_type(seen, "session.updated")
    assert len(settled) == 2
    for one in settled:  # the SDK is ready on the first of them
        assert [tool["name"] for tool in one["session"]["tools"]] == ["get_time"]
    assert settled[-1]["session"]["audio"]["input"]["turn_detection"]["type"] == "server_vad"
    left_out = sorted(event["error"]["message"] for event in events.of_type(seen, "error"))
    assert len(left_out) == 2, left_out
    for setting in ("turn_detection", "noise_reduction", "transcription", "model"):
        assert setting in left_out[0], left_out
    assert "tracing" in left_out[1], left_out


def test_openai_class_exchanges_messages(
    gate: Gate, agent: ToolAgent, openai_page: str, tmp_path: Path
) -> None:
    microphone = speech.write_wav(tmp_path / "microphone.wav", speech.conversation(0.5, speech.say(), 1.0))
    with _page(microphone, openai_page, agent) as page:
        _talk(page)
        _note_ends(page)
        page.wait(_event_count("output_audio_buffer.stopped", 1), 20)
        _ask(page, "Good morning")
        page.wait(_event_count("response.done", 2), 10)
        page.wait("document.querySelectorAll('#history li').length === 4", 5)
        page.screenshot(artifact("openai-js.png"))
        assert "Good morning" in page.text("#history li:nth-child(3)")
        assert "Good morning" in page.text("#history li:nth-child(4)"), "the parrot says text back"
        page.click("#talk")
        page.wait("document.getElementById('state').textContent === 'ended'", 5)
        assert page.evaluate("window.ends") == ["local"]
        assert_nothing_left(gate)


def test_openai_class_sees_a_clean_remote_end(
    gate: Gate, agent: ToolAgent, openai_page: str, tmp_path: Path
) -> None:
    microphone = speech.write_wav(tmp_path / "microphone.wav", speech.silence(0.5))
    with _page(microphone, openai_page, agent) as page:
        _talk(page)
        _note_ends(page)
        call_id = gate.log_lines(event="call set up")[-1]["call"]
        assert request("POST", f"{gate.calls_url}/{call_id}/hangup").status == 200
        page.wait("window.ends.length > 0", 5)
        assert page.evaluate("window.ends") == ["remote"], "a hang-up is a clean end, not a failure"
        assert page.text("#state") == "ended by the other side"
        page.screenshot(artifact("openai-js-remote-end.png"))
        assert_nothing_left(gate)


@contextlib.contextmanager
def _page(microphone: Path, url: str, agent: ToolAgent, *, quiet: bool = True) -> Iterator[Page]:
    """The page in a browser with that microphone; afterwards what was said on every side is judged.

    `quiet`: there is no `error` event, and the console has no warning and no error.
    """
    first = len(agent.received)
    with Chromium(microphone=microphone) as browser:
        page = events.open_tapped(browser, url)
        try:
            yield page
        except BaseException:
            page.go("about:blank")  # the browser says goodbye for the page; killed, it would not
            raise
        seen, sent = events.received(page), events.sent(page)
        assert not page.exceptions, page.exceptions
        loud = [line for line in page.console if line.startswith(("error", "warning"))]
        loud = [line for line in loud if "ScriptProcessorNode" not in line]  # the tests' own ears
        assert not (loud and quiet), loud
        assert not [line for line in loud if "session.updated" in line], loud
    events.assert_valid(seen, events.SERVER)
    events.assert_no_audio(seen)
    events.assert_valid(sent, events.CLIENT)
    events.assert_valid(agent.received[first:], events.CLIENT)
    refused = events.of_type(seen, "error")
    assert not (refused and quiet), refused


def _talk(page: Page) -> None:
    """Press the button; connected within the time that the SDK gives."""
    began = time.monotonic()
    page.click("#talk")
    state = page.wait(
        "(() => { const s = document.getElementById('state').textContent;"
        " return !['idle', 'connecting'].includes(s) && s; })()",
        READY_SECONDS + 5,
    )
    assert state in {"connected", "speaking", "listening"}, f"{state}: {page.text('#problem')}"
    assert time.monotonic() - began < READY_SECONDS, "connected, but only after the SDK gave up waiting"


def _ask(page: Page, text: str) -> None:
    page.evaluate(f"document.getElementById('text').value = {text!r}")
    page.click("#send")


def _note_ends(page: Page) -> None:
    page.evaluate(
        "window.ends = []; connection.onConnectionEvent((event) => {"
        " if (event.type === 'closed') ends.push(event.reason);"
        " if (event.type === 'error') ends.push(String(event.error)); }); undefined"
    )


def _event_count(kind: str, count: int) -> str:
    return f"window.__events.received.filter((t) => JSON.parse(t).type === '{kind}').length >= {count}"
