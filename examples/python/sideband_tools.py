"""Your own server beside the call: it makes the call, keeps the tools, and hangs up.

    browser ── offer ──► this program ── offer, session ──► voicegate
       ▲                     │  sideband (WebSocket)            ▲
       └──── sound and events, straight to voicegate ───────────┘

A browser posts its WebRTC offer to /calls. The call is made with the official client and an API key that
the browser never sees; then a second connection to the same call, the sideband, answers its tool calls. In
front of OpenAI the same program needs no other line: leave --base-url out.

    pip install 'openai[realtime]'
    python sideband_tools.py --base-url http://127.0.0.1:8080/v1
"""

from __future__ import annotations

import argparse
import datetime
import json
import os
import threading
import time
import zoneinfo
from functools import partial
from http.server import SimpleHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any

from openai import APIStatusError, NotFoundError, OpenAI
from openai.resources.realtime.realtime import RealtimeConnection
from websockets.exceptions import InvalidStatus

INSTRUCTIONS = "You are brief and friendly. For the time you use the tool. When people say goodbye, hang up."
TOOLS: list[dict[str, Any]] = [
    {
        "type": "function",
        "name": "get_time",
        "description": "The time of day in a time zone.",
        "parameters": {
            "type": "object",
            "properties": {"zone": {"type": "string", "description": "IANA name, such as Europe/Berlin"}},
            "required": ["zone"],
        },
    },
    {"type": "function", "name": "hang_up", "description": "End the call.", "parameters": {"type": "object"}},
]
PAGE = Path(__file__).resolve().parents[1] / "openai-js"
MAX_OFFER_BYTES = 65_536
ATTACH_ATTEMPTS = 8
"""voicegate has a sideband from the moment of the answer; OpenAI only once the sound flows."""


def make_call(client: OpenAI, model: str, offer: str) -> tuple[str, str]:
    """(call id, SDP answer)."""
    answer = client.realtime.calls.create(
        sdp=offer,
        session={"type": "realtime", "model": model, "instructions": INSTRUCTIONS, "tools": TOOLS},  # type: ignore[typeddict-item]
    )
    return answer.response.headers["Location"].rsplit("/", 1)[-1], answer.text


def attend(client: OpenAI, call_id: str) -> None:
    """Answer the call's tool calls until it ends."""
    for attempt in range(ATTACH_ATTEMPTS):
        try:
            with client.realtime.connect(call_id=call_id, max_retries=0) as sideband:
                print(f"{call_id}: attached", flush=True)
                for event in sideband:
                    if event.type == "response.function_call_arguments.done":
                        answer_tool_call(client, sideband, call_id, event)
                    elif event.type == "error":
                        print(f"{call_id}: {event.error.message}", flush=True)
            break
        except InvalidStatus as error:
            if error.response.status_code != 404 or attempt == ATTACH_ATTEMPTS - 1:
                raise
            time.sleep(0.25 * 2**attempt)
    print(f"{call_id}: ended", flush=True)


def answer_tool_call(client: OpenAI, sideband: RealtimeConnection, call_id: str, event: Any) -> None:
    print(f"{call_id}: {event.name}({event.arguments})", flush=True)
    if event.name == "hang_up":
        hang_up(client, call_id)
        return
    sideband.conversation.item.create(
        item={"type": "function_call_output", "call_id": event.call_id, "output": get_time(event.arguments)}
    )
    sideband.response.create()


def get_time(arguments: str) -> str:
    """What the tool says, an error included: the model can tell the person what is missing."""
    try:
        zone = zoneinfo.ZoneInfo(json.loads(arguments)["zone"])
    except (ValueError, KeyError, TypeError, zoneinfo.ZoneInfoNotFoundError) as error:
        return f"no such time zone: {error}"
    return datetime.datetime.now(zone).strftime("%H:%M")


def hang_up(client: OpenAI, call_id: str) -> None:
    try:
        client.realtime.calls.hangup(call_id)
    except NotFoundError:
        pass  # the person was faster


class Handler(SimpleHTTPRequestHandler):
    """POST /calls makes a call; everything else is a file of the page."""

    client: OpenAI
    model: str

    def do_POST(self) -> None:
        length = int(self.headers.get("Content-Length") or 0)
        if self.path != "/calls" or not 0 < length <= MAX_OFFER_BYTES:
            self.send_error(404 if self.path != "/calls" else 413)
            return
        offer = self.rfile.read(length).decode()
        try:
            call_id, answer = make_call(self.client, self.model, offer)
        except APIStatusError as error:
            self.send_error(error.status_code, explain=error.message)
            return
        threading.Thread(target=attend, args=(self.client, call_id), name=call_id, daemon=True).start()
        body = answer.encode()
        self.send_response(201)
        self.send_header("Content-Type", "application/sdp")
        self.send_header("Content-Length", str(len(body)))
        self.end_headers()
        self.wfile.write(body)


def main() -> None:
    parser = argparse.ArgumentParser(description="Make calls for a page, and answer their tools.")
    parser.add_argument("--base-url", help="http://127.0.0.1:8080/v1 of a voicegate; else OpenAI's")
    parser.add_argument("--model", default="gpt-realtime")
    parser.add_argument("--listen", type=int, default=5174, metavar="PORT")
    parser.add_argument("--page", default=PAGE, metavar="DIRECTORY", help="a built page")
    options = parser.parse_args()
    # A voicegate without keys takes any.
    Handler.client = OpenAI(
        api_key=os.environ.get("OPENAI_API_KEY", "none"), base_url=options.base_url, max_retries=0
    )
    Handler.model = options.model
    with ThreadingHTTPServer(
        ("127.0.0.1", options.listen), partial(Handler, directory=options.page)
    ) as server:
        print(f"http://127.0.0.1:{server.server_port}/?calls=/calls", flush=True)
        try:
            server.serve_forever()
        except KeyboardInterrupt:
            pass


if __name__ == "__main__":
    main()
