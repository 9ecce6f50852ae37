"""The official Python client: the example that makes a call for a page, keeps its tools and hangs up."""

from __future__ import annotations

import contextlib
import json
import os
import re
import signal
import subprocess
import sys
import threading
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path

import pytest
from openai import NotFoundError, OpenAI
from websockets.exceptions import InvalidStatus

from tests.e2e.conftest import artifact, assert_nothing_left
from tests.support import events, npm, speech
from tests.support.chromium import Chromium, Page
from tests.support.servers import Gate, cluster, one_process, wait_until
from tests.support.tool_agent import ToolAgent, tool_agent

pytestmark = pytest.mark.e2e

PROGRAM = npm.EXAMPLES / "python" / "sideband_tools.py"


@pytest.fixture(scope="module")
def agent() -> Iterator[ToolAgent]:
    with tool_agent() as running:
        yield running


@pytest.fixture(scope="module", params=["one process", "Procfile cluster"])
def gate(
    request: pytest.FixtureRequest, agent: ToolAgent, tmp_path_factory: pytest.TempPathFactory
) -> Iterator[Gate]:
    """In the cluster a sideband goes through signaling to the transceiver that has the call."""
    start = one_process if request.param == "one process" else cluster
    with start(tmp_path_factory.mktemp("openai-python"), agent_url=agent.url) as running:
        yield running


def test_the_sideband_keeps_the_tools(gate: Gate, agent: ToolAgent, tmp_path: Path) -> None:
    first, calls = len(agent.received), len(agent.paths)
    with _example(gate) as program, _page(program.url, tmp_path) as page:
        page.click("#talk")
        page.wait("document.getElementById('state').textContent === 'connected'", 10)
        wait_until(lambda: program.said("attached"), 5, "the sideband")
        # The sideband may be there before the agent is dialled.
        wait_until(lambda: len(agent.paths) > calls, 5, "the agent's connection")
        assert agent.paths[calls] == "/v1/realtime?model=gpt-realtime"

        _ask(page, 'What does get_time {"zone": "UTC"} say?')
        page.wait("document.getElementById('history').innerText.includes('it says')", 10)
        answer = re.search(r"it says (\d\d:\d\d)", page.text("#history"))
        assert answer, page.text("#history")
        page.screenshot(artifact("openai-python-sideband.png"))
        outputs = [
            event["item"]["output"]
            for event in events.of_type(agent.received[first:], "conversation.item.create")
            if event["item"]["type"] == "function_call_output"
        ]
        assert outputs == [answer[1]]
        sent = events.types(events.sent(page))
        assert sent == ["conversation.item.create", "response.create"], "the page did nothing for the tool"
        configured = events.of_type(events.received(page), "session.created")[-1]["session"]
        assert [tool["name"] for tool in configured["tools"]] == ["get_time", "hang_up"]

        page.wait("document.getElementById('state').textContent === 'listening'", 10)  # all of it is said
        _ask(page, "Goodbye, hang_up")
        page.wait("document.getElementById('state').textContent === 'ended by the other side'", 5)
        wait_until(lambda: program.said("ended"), 5, "the end of the sideband")
        assert_nothing_left(gate)
        seen = events.received(page)
        assert not page.exceptions, page.exceptions
        assert not [line for line in page.console if line.startswith("error")], page.console
    assert not program.said("Traceback"), program.lines
    events.assert_valid(seen, events.SERVER)
    events.assert_no_audio(seen)
    events.assert_valid(agent.received[first:], events.CLIENT)


def test_a_sideband_sees_and_sends_the_same_events(gate: Gate, agent: ToolAgent, tmp_path: Path) -> None:
    client = OpenAI(api_key="none", base_url=f"{gate.url}/v1", max_retries=0)
    first = len(agent.received)
    with (
        npm.served(npm.example("openai-js")) as url,
        _page(f"{url}/?calls={gate.calls_url}", tmp_path) as page,
    ):
        page.click("#talk")
        page.wait("document.getElementById('state').textContent === 'connected'", 10)
        call_id = str(gate.log_lines(event="call set up")[-1]["call"])
        seen: list[events.Event] = []
        with client.realtime.connect(call_id=call_id, max_retries=0) as sideband:
            content = [{"type": "input_text", "text": "Said from the side"}]
            sideband.conversation.item.create(item={"type": "message", "role": "user", "content": content})  # type: ignore[typeddict-item]
            sideband.response.create()
            while not (seen and seen[-1]["type"] == "response.done"):
                seen.append(json.loads(sideband.recv_bytes()))
            page.wait("document.getElementById('history').innerText.includes('Said from the side')", 5)
            client.realtime.calls.hangup(call_id)
            with contextlib.suppress(Exception):  # the end of the connection
                while True:
                    seen.append(json.loads(sideband.recv_bytes()))
        page.wait("document.getElementById('state').textContent === 'ended by the other side'", 5)
        assert_nothing_left(gate)
        on_page = events.received(page)
    theirs = [event["event_id"] for event in seen if event["type"].startswith(("response.", "conversation."))]
    assert theirs, "the sideband saw nothing of the conversation"
    assert set(theirs) <= {event["event_id"] for event in on_page}, "both see the same events"
    for side in (seen, on_page):
        events.assert_valid(side, events.SERVER)
        events.assert_no_audio(side)
    events.assert_valid(agent.received[first:], events.CLIENT)


def test_a_strangers_call_is_not_found(gate: Gate) -> None:
    client = OpenAI(api_key="none", base_url=f"{gate.url}/v1", max_retries=0)
    with pytest.raises(NotFoundError) as refused:
        client.realtime.calls.hangup("rtc_nothing")
    assert refused.value.code == "call_id_not_found"
    with (
        pytest.raises(InvalidStatus) as unknown,
        client.realtime.connect(call_id="rtc_nothing", max_retries=0),
    ):
        pass
    assert unknown.value.response.status_code == 404


@dataclass
class Program:
    """The example's process and what it has printed."""

    process: subprocess.Popen[str]
    url: str = ""
    lines: list[str] = field(default_factory=list)

    def said(self, text: str) -> bool:
        return any(text in line for line in self.lines)


@contextlib.contextmanager
def _example(gate: Gate) -> Iterator[Program]:
    page = npm.example("openai-js")
    command = [
        sys.executable,
        str(PROGRAM),
        "--base-url",
        f"{gate.url}/v1",
        "--listen",
        "0",
        "--page",
        str(page),
    ]
    process = subprocess.Popen(
        command,
        stdin=subprocess.DEVNULL,
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
        env={key: value for key, value in os.environ.items() if key != "OPENAI_API_KEY"},
    )
    program = Program(process)
    assert process.stdout is not None

    def read() -> None:
        assert process.stdout is not None
        program.lines.extend(iter(process.stdout.readline, ""))

    threading.Thread(target=read, name="example", daemon=True).start()
    try:
        wait_until(lambda: program.said("http://") or process.poll() is not None, 20, "the example's address")
        program.url = next((line.strip() for line in program.lines if line.startswith("http://")), "")
        assert program.url, program.lines
        yield program
        process.send_signal(signal.SIGINT)
        assert process.wait(5) == 0, program.lines
    finally:
        if process.poll() is None:
            process.kill()
            process.wait()


@contextlib.contextmanager
def _page(url: str, directory: Path) -> Iterator[Page]:
    microphone = speech.write_wav(directory / "microphone.wav", speech.silence(0.5))
    with Chromium(microphone=microphone) as browser:
        page = events.open_tapped(browser, url)
        try:
            yield page
        except BaseException:
            page.go("about:blank")  # the browser says goodbye for the page; killed, it would not
            raise


def _ask(page: Page, text: str) -> None:
    page.evaluate(f"document.getElementById('text').value = {json.dumps(text)}")
    page.click("#send")
