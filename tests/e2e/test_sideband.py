"""The unmodified PyPI `openai` beside a call: `realtime.connect(call_id=...)`, as a tool server does it."""

from __future__ import annotations

import contextlib
import statistics
import threading
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from openai import NotFoundError, OpenAI
from openai.resources.realtime.realtime import RealtimeConnection
from websockets.exceptions import ConnectionClosed, InvalidStatus

from tests.e2e.conftest import assert_nothing_left
from tests.support.light_channel import Wanted
from tests.support.light_client import Fleet, LightCall
from tests.support.models import Event, server_event
from tests.support.script_agent import ScriptAgent, script_agent
from tests.support.servers import Gate, cluster, one_process, wait_until

pytestmark = pytest.mark.e2e

KEY = "sk-of-this-test-only"
ALICE, BOB = "sk-alice-of-this-test", "sk-bob-of-this-test"
KEYS = f'[{{"name":"alice","key":"{ALICE}"}},{{"name":"bob","key":"{BOB}"}}]'


@pytest.fixture(scope="module")
def agent() -> Iterator[ScriptAgent]:
    with script_agent() as running:
        yield running


@pytest.fixture(scope="module", params=["one process", "cluster"])
def gate(
    request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory, agent: ScriptAgent
) -> Iterator[Gate]:
    start = one_process if request.param == "one process" else cluster
    settings = {"signaling_api_keys": KEY, "signaling_keys": KEYS, "agent_url": agent.url}
    with start(tmp_path_factory.mktemp("sideband"), **settings) as running:
        yield running


@pytest.fixture
def fleet() -> Iterator[Fleet]:
    with Fleet(seed=5) as running:
        yield running


class Listener:
    """A sideband whose events are read as they come, in a thread."""

    def __init__(self, connection: RealtimeConnection) -> None:
        self.connection = connection
        self.events: list[Event] = []
        self.ended: ConnectionClosed | None = None
        self._thread = threading.Thread(target=self._read, daemon=True)
        self._thread.start()

    def _read(self) -> None:
        try:
            while True:
                self.events.append(server_event(self.connection.recv_bytes()))
        except ConnectionClosed as closed:
            self.ended = closed

    def types(self) -> list[str]:
        return [event["type"] for event in list(self.events)]

    def wait_for(self, kind: str, count: int = 1) -> Event:
        wait_until(lambda: self.types().count(kind) >= count, 5, f"{kind}; so far {self.types()}", every=0.01)
        return [event for event in self.events if event["type"] == kind][count - 1]


def api(gate: Gate, key: str = KEY) -> OpenAI:
    return OpenAI(api_key=key, base_url=f"{gate.url}/v1", max_retries=0, timeout=10)


@contextlib.contextmanager
def sideband(gate: Gate, call_id: str, key: str = KEY) -> Iterator[Listener]:
    with api(gate, key).realtime.connect(call_id=call_id) as connection:
        yield Listener(connection)


def begin(gate: Gate, fleet: Fleet, key: str = KEY) -> tuple[LightCall, str]:
    call = fleet.call(gate.calls_url, key=key, channel=Wanted())
    return call, fleet.locations[id(call)].rpartition("/")[2]


def test_attaches_right_after_the_201_and_steers_the_call(
    gate: Gate, fleet: Fleet, agent: ScriptAgent
) -> None:
    agent.events.clear()
    call, used = fleet.prepare(channel=Wanted())
    answer = api(gate).realtime.calls.with_raw_response.create(sdp=call.offer())
    call_id = answer.headers["location"].rpartition("/")[2]
    with sideband(gate, call_id) as side:  # before the client has even sent its first packet
        fleet.start(call, used, answer.parse().text)
        call.wait_for("channel", 10)
        call.wait_for("session.created", 5)
        side.wait_for("session.created")

        side.connection.session.update(
            session={"type": "realtime", "instructions": "Use the tools."}, event_id="side-1"
        )
        updated = side.wait_for("session.updated")
        assert updated["session"]["instructions"] == "Use the tools."
        call.wait_for("session.updated", 5)
        assert any(e["session"].get("instructions") == "Use the tools." for e in agent.told("session.update"))

        side.connection.response.create()
        call.wait_for("output_audio_buffer.started", 5)
        call.wait_for("heard", 5)
        side.wait_for("output_audio_buffer.started")
        time.sleep(0.5)
        cancelled = time.monotonic()
        side.connection.response.cancel()
        side.wait_for("output_audio_buffer.cleared")
        side.wait_for("response.done")
        time.sleep(0.3)
        assert call.heard[-1].at - cancelled < 0.15, "the voice went on after response.cancel"
        (told,) = agent.told("conversation.item.truncate")
        assert 300 <= told["audio_end_ms"] <= 900

        # The client steers too, and both see it.
        fleet.send_event(call, {"type": "response.create"})
        side.wait_for("response.created", 2)
        agent.finish()
        side.wait_for("response.done", 2)
        wait_until(lambda: call.channel is not None and len(call.channel.of("response.done")) == 2, 5, "both")
        assert call.channel is not None
        wait_until(lambda: call.channel.types() == side.types(), 3, "the same events at both")  # type: ignore[union-attr]

        api(gate).realtime.calls.hangup(call_id)
        call.wait_for("closed", 5)
        wait_until(lambda: side.ended is not None, 5, "the sideband's end")
        assert side.ended is not None and side.ended.rcvd is not None and side.ended.rcvd.code == 1000
        assert call.times["channel closed"] <= call.times["closed"]
    with pytest.raises(NotFoundError):
        api(gate).realtime.calls.hangup(call_id)
    assert_nothing_left(gate)


def test_several_sidebands_and_one_that_leaves(gate: Gate, fleet: Fleet, agent: ScriptAgent) -> None:
    call, call_id = begin(gate, fleet)
    call.wait_for("session.created", 10)
    with sideband(gate, call_id) as first:
        with sideband(gate, call_id) as second:
            first.wait_for("session.created")
            second.wait_for("session.created")
            second.connection.session.update(session={"type": "realtime", "instructions": "Two."})
            first.wait_for("session.updated")
        second.connection.close()
        first.connection.session.update(session={"type": "realtime", "instructions": "One."})
        first.wait_for("session.updated", 2)
        assert not call.closed
        # An error is for the one that caused it.
        first.connection.send({"type": "response.cancel", "event_id": "x", "response_id": 5})  # type: ignore[typeddict-item]
        first.connection.send({"event_id": "no type"})  # type: ignore[typeddict-item,misc]
        error = first.wait_for("error")
        assert error["error"]["event_id"] in ("x", "no type")
        assert call.channel is not None and not call.channel.of("error")
    assert not call.closed
    agent.faults.clear()  # a response_id that is no string went through, as the client wrote it
    assert fleet.hang_up(call, key=KEY) == 200
    assert_nothing_left(gate)


def test_an_agent_that_is_lost_ends_the_sideband(gate: Gate, fleet: Fleet, agent: ScriptAgent) -> None:
    call, call_id = begin(gate, fleet)
    call.wait_for("session.created", 10)
    with sideband(gate, call_id) as side:
        side.wait_for("session.created")
        side.connection.response.create()
        side.wait_for("response.created")
        agent.hang_up()
        assert side.wait_for("error")["error"]["code"] == "agent_lost"
        side.wait_for("response.done")
        wait_until(lambda: side.ended is not None, 5, "the sideband's end")
    call.wait_for("closed", 5)
    assert call.channel is not None and call.channel.closed
    assert call.channel.types()[-1] == "error"
    assert_nothing_left(gate)


# ------------------------------------------------------------------------------------------ strangers


def refused(gate: Gate, call_id: str, key: str) -> tuple[int, bytes]:
    with pytest.raises(InvalidStatus) as caught, api(gate, key).realtime.connect(call_id=call_id):
        pass
    return caught.value.response.status_code, bytes(caught.value.response.body or b"")


def test_a_strangers_call_is_unknown(gate: Gate, fleet: Fleet) -> None:
    """The same status, body and time as for a call that never was."""
    call, call_id = begin(gate, fleet, ALICE)
    call.wait_for("session.created", 10)
    forged = call_id[:-4] + ("AAAA" if call_id[-4:] != "AAAA" else "BBBB")
    answers: dict[str, tuple[int, Any]] = {}
    taken: dict[str, list[float]] = {"foreign": [], "unknown": [], "never": []}
    never = call_id_like(gate, fleet)
    for _ in range(25):
        for name, wanted in (("foreign", call_id), ("unknown", forged), ("never", never)):
            begun = time.perf_counter()
            status, body = refused(gate, wanted, BOB)
            taken[name].append(time.perf_counter() - begun)
            answers[name] = status, body
    assert set(answers.values()) == {answers["foreign"]} and answers["foreign"][0] == 404, answers
    assert b"call_id_not_found" in answers["foreign"][1]
    medians = {name: statistics.median(times) for name, times in taken.items()}
    assert max(medians.values()) - min(medians.values()) < 0.006, medians
    with sideband(gate, call_id, ALICE) as own:
        own.wait_for("session.created")
    with sideband(gate, call_id, KEY) as full:
        full.wait_for("session.created")
    assert fleet.hang_up(call, key=ALICE) == 200


def call_id_like(gate: Gate, fleet: Fleet) -> str:
    """The id of a call that is over and forgotten: sealed by us, and nobody's."""
    call, call_id = begin(gate, fleet, KEY)
    call.wait_for("connected", 10)
    assert fleet.hang_up(call, key=KEY) == 200
    call.wait_for("closed", 5)
    return call_id


def test_a_client_secret_opens_no_sideband(gate: Gate, fleet: Fleet) -> None:
    call, call_id = begin(gate, fleet)
    call.wait_for("connected", 10)
    secret = api(gate).realtime.client_secrets.create().value
    assert refused(gate, call_id, secret)[0] == 403
    assert refused(gate, call_id, "sk-nobody")[0] == 401
    assert refused(gate, "rtc_" + "A" * 60, KEY)[0] == 404
    assert fleet.hang_up(call, key=KEY) == 200


def test_without_keys(tmp_path: Path, fleet: Fleet) -> None:
    """On loopback, with the parrot: any key is a full one."""
    with one_process(tmp_path) as open_gate:
        call, call_id = begin(open_gate, fleet, "anything")
        call.wait_for("session.created", 10)
        with sideband(open_gate, call_id, "anything else") as side:
            side.wait_for("session.created")
        assert fleet.hang_up(call, key="anything") == 200
