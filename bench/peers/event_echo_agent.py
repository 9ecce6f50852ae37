"""A Realtime server that answers each `conversation.item.create` at once with `conversation.item.added`, and
speaks without end after `response.create`.

    python -m bench.peers.event_echo_agent   # prints its URL and serves until its standard input ends
"""

from __future__ import annotations

import asyncio
import base64
import contextlib
import sys

import msgspec
from websockets.asyncio.server import ServerConnection, serve
from websockets.exceptions import ConnectionClosed

SECOND = base64.b64encode(b"\x10\x20" * 24_000).decode()
SECONDS = 10
"""Of an answer, sent at once."""


async def serve_one(connection: ServerConnection) -> None:
    with contextlib.suppress(ConnectionClosed):
        await converse(connection)


async def converse(connection: ServerConnection) -> None:
    async def say(kind: str, **fields: object) -> None:
        await connection.send(msgspec.json.encode({"type": kind, "event_id": "e", **fields}), text=True)

    session = {"id": "sess_echo", "object": "realtime.session", "type": "realtime"}
    await say("session.created", session=session)
    number = 0
    async for message in connection:
        event = msgspec.json.decode(message)
        match event["type"]:
            case "session.update":
                await say("session.updated", session=session)
            case "conversation.item.create":
                await say("conversation.item.added", previous_item_id=None, item=event["item"])
            case "response.create":
                number += 1
                await speak(say, f"r{number}", f"i{number}")


async def speak(say: object, response_id: str, item_id: str) -> None:
    assert callable(say)
    response = {"id": response_id, "object": "realtime.response", "status": "in_progress", "output": []}
    place = {"response_id": response_id, "item_id": item_id, "output_index": 0, "content_index": 0}
    await say("response.created", response=response)
    for _ in range(SECONDS):
        await say("response.output_audio.delta", delta=SECOND, **place)
    await say("response.output_audio.done", **place)
    await say("response.done", response={**response, "status": "completed"})


async def main() -> None:
    async with serve(serve_one, "127.0.0.1", 0, compression=None, max_size=1 << 24) as server:
        host, port = next(iter(server.sockets)).getsockname()
        print(f"ws://{host}:{port}/v1/realtime", flush=True)
        await asyncio.to_thread(sys.stdin.read)


if __name__ == "__main__":
    asyncio.run(main())
