"""The unmodified PyPI `openai` client against voicegate and its parrot: one process, loopback."""

from __future__ import annotations

import base64
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from openai import AuthenticationError, BadRequestError, NotFoundError, OpenAI, PermissionDeniedError
from openai.types.realtime.client_secret_create_response import ClientSecretCreateResponse

from tests.e2e.conftest import assert_nothing_left
from tests.support.light_client import Fleet
from tests.support.servers import Gate, one_process

pytestmark = pytest.mark.e2e
KEY = "sk-of-this-test-only"


@pytest.fixture(scope="module")
def keyed(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Gate]:
    with one_process(tmp_path_factory.mktemp("keyed"), signaling_api_keys=KEY) as running:
        yield running


def client(gate: Gate, key: str = KEY) -> OpenAI:
    return OpenAI(api_key=key, base_url=f"{gate.url}/v1", max_retries=0, timeout=10)


def test_a_client_secret_and_what_it_is_good_for(keyed: Gate) -> None:
    made = client(keyed).realtime.client_secrets.create(
        expires_after={"anchor": "created_at", "seconds": 60},
        session={"type": "realtime", "model": "parrot", "instructions": "Say it back."},
    )
    ClientSecretCreateResponse.model_validate(made.model_dump())
    assert made.value.startswith("ek_")
    assert (made.session.type, made.session.model) == ("realtime", "parrot")
    assert made.session.instructions == "Say it back."
    browser = client(keyed, made.value)
    with pytest.raises(PermissionDeniedError, match="client secret"):
        browser.realtime.client_secrets.create()
    with browser.realtime.connect(model="parrot") as connection:
        kinds = [connection.recv() for _ in range(2)]
        assert [event.type for event in kinds] == ["session.created", "session.updated"]
        assert kinds[1].session.instructions == "Say it back."
    with pytest.raises(BadRequestError, match="seconds"):
        client(keyed).realtime.client_secrets.create(expires_after={"anchor": "created_at", "seconds": 9})
    with pytest.raises(AuthenticationError):
        client(keyed, "ek_" + "A" * 200).realtime.calls.create(sdp="v=0")
    with pytest.raises(AuthenticationError):
        client(keyed, KEY + "x").realtime.client_secrets.create()


@pytest.mark.parametrize(
    "session", [None, {"type": "realtime", "model": "parrot", "instructions": "ünïcode"}]
)
def test_calls_create_and_hangup(keyed: Gate, session: Any) -> None:
    api = client(keyed)
    with Fleet() as fleet:
        call, used = fleet.prepare()
        extra = {} if session is None else {"session": session}
        answer = api.realtime.calls.with_raw_response.create(sdp=call.offer(), **extra)
        assert answer.status_code == 201
        call_id = answer.headers["location"].rpartition("/")[2]
        fleet.start(call, used, answer.parse().text)
        call.wait_for("dtls", 10)
        api.realtime.calls.hangup(call_id)
        with pytest.raises(NotFoundError, match="no such call"):
            api.realtime.calls.hangup(call_id)
    assert_nothing_left(keyed)


def test_the_agents_websocket(keyed: Gate) -> None:
    """Text and audio both ways, an append of megabytes too."""
    with client(keyed).realtime.connect(model="parrot") as connection:
        assert connection.recv().type == "session.created"
        connection.session.update(
            session={"type": "realtime", "audio": {"input": {"turn_detection": None}}}, event_id="mine"
        )
        assert connection.recv().type == "session.updated"
        tone = bytes(range(256)) * 94 * 2 * 10
        connection.input_audio_buffer.append(audio=base64.b64encode(tone).decode())
        connection.input_audio_buffer.commit()
        connection.response.create()
        heard = 0
        while (event := connection.recv()).type != "response.done":
            if event.type == "response.output_audio.delta":
                heard += len(base64.b64decode(event.delta))
        assert heard == len(tone)
        connection.send({"type": "nonsense", "event_id": "mine-2"})  # type: ignore[typeddict-item]
        error = connection.recv()
        assert error.type == "error" and error.error.event_id == "mine-2"


def test_without_keys_any_key_and_any_secret_of_ours(tmp_path: Path) -> None:
    with one_process(tmp_path) as gate:
        made = client(gate, "anything").realtime.client_secrets.create()
        with client(gate, made.value).realtime.connect(model="parrot") as connection:
            assert connection.recv().type == "session.created"
        with pytest.raises(AuthenticationError):
            client(gate, made.value[:-1]).realtime.calls.create(sdp="v=0")
