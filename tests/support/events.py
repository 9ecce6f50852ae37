"""Every event on a call's data channels, judged by the models of the official Python client.

page = open_tapped(browser, url)
...
server, client = events(page)
assert_valid(server, SERVER); assert_valid(client, CLIENT)
"""

from __future__ import annotations

import json
from collections.abc import Iterable
from typing import Any, Final

from openai.types.realtime import RealtimeClientEvent, RealtimeServerEvent
from pydantic import TypeAdapter, ValidationError

from tests.support.chromium import Chromium, Page

Event = dict[str, Any]

CLIENT: Final[TypeAdapter[Any]] = TypeAdapter(RealtimeClientEvent)
SERVER: Final[TypeAdapter[Any]] = TypeAdapter(RealtimeServerEvent)

# In front of the page's own scripts: what comes in by an early listener, what goes out by a wrapped `send`.
TAP = """
(() => {
  if (window.__events) return;
  const seen = window.__events = {received: [], sent: [], states: []};
  const note = (data) => typeof data === 'string' ? data : `\\u0000binary ${data.byteLength ?? data.size}`;
  const watch = (channel) => {
    channel.addEventListener('message', (event) => seen.received.push(note(event.data)));
    for (const kind of ['open', 'closing', 'close', 'error'])
      channel.addEventListener(kind, () => seen.states.push(`${channel.label} ${kind}`));
    return channel;
  };
  const create = RTCPeerConnection.prototype.createDataChannel;
  RTCPeerConnection.prototype.createDataChannel = function (...args) {
    const connection = this;
    connection.addEventListener('datachannel', (event) => watch(event.channel));
    connection.addEventListener('connectionstatechange',
                                () => seen.states.push(`connection ${connection.connectionState}`));
    return watch(create.apply(connection, args));
  };
  const send = RTCDataChannel.prototype.send;
  RTCDataChannel.prototype.send = function (data) {
    send.call(this, data);
    seen.sent.push(note(data));
  };
})();
"""


def open_tapped(browser: Chromium, url: str) -> Page:
    """A new tab with the page loaded, whose data channels are listened in on."""
    page = browser.open("about:blank")
    page.send("Page.addScriptToEvaluateOnNewDocument", {"source": TAP})
    page.go(url)
    return page


def received(page: Page) -> list[Event]:
    """What came to the page so far."""
    return [json.loads(text) for text in page.evaluate("window.__events.received")]


def sent(page: Page) -> list[Event]:
    return [json.loads(text) for text in page.evaluate("window.__events.sent")]


def types(seen: Iterable[Event]) -> list[str]:
    return [event["type"] for event in seen]


def of_type(seen: Iterable[Event], kind: str) -> list[Event]:
    return [event for event in seen if event["type"] == kind]


def assert_valid(seen: Iterable[Event], model: TypeAdapter[Any]) -> None:
    """AssertionError with each event that does not fit the model exactly, and why."""
    problems = []
    for event in seen:
        try:
            model.validate_python(event, strict=True)
        except ValidationError as error:
            problems.append(_reason(event, model, error))
    assert not problems, "\n".join(problems)


def assert_no_audio(seen: Iterable[Event]) -> None:
    """No event carries sound: neither deltas nor audio inside an item."""
    for event in seen:
        assert event["type"] != "response.output_audio.delta", "an audio delta reached the client"
        holders = [event.get("item") or {}, *(event.get("response") or {}).get("output", [])]
        parts = [event.get("part") or {}, *(part for item in holders for part in item.get("content") or [])]
        assert not [part for part in parts if part.get("audio")], f"audio in {json.dumps(event)[:300]}"


def _reason(event: Event, model: TypeAdapter[Any], error: ValidationError) -> str:
    """What is wrong by the one variant that has this type; the union's own list names all 46."""
    variants = {v.model_fields["type"].annotation.__args__[0]: v for v in model._type.__args__[0].__args__}
    variant = variants.get(event.get("type"))
    problems = ["no such event"]
    if variant is not None:
        try:
            variant.model_validate(event, strict=True)
            problems = [f"{error.error_count()} problems of the union"]
        except ValidationError as closer:
            problems = [f"{'.'.join(map(str, e['loc']))}: {e['msg']}" for e in closer.errors()]
    return f"{event.get('type')}: {'; '.join(problems)} in {json.dumps(event)[:600]}"
