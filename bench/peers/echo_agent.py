"""A Realtime server that says every bit of microphone audio back at once.

With it voicegate decodes and encodes all the time, which is the work the aiortc echo server does: the parrot
answers only between turns.

    python -m bench.peers.echo_agent   # prints its URL and serves until its standard input ends
"""

from __future__ import annotations

import asyncio
import contextlib
import json
import sys

from websockets.asyncio.server import ServerConnection, serve
from websockets.exceptions import ConnectionClosed

HEAD = (
    '{"type":"response.output_audio.delta","event_id":"e","response_id":"r","item_id":"i","output_index":0,'
)


async def serve_one(connection: ServerConnection) -> None:
    with contextlib.suppress(ConnectionClosed):
        await echo(connection)


async def echo(connection: ServerConnection) -> None:
    session = {"id": "sess_echo", "object": "realtime.session", "type": "realtime"}
    await connection.send(json.dumps({"type": "session.created", "event_id": "e0", "session": session}))
    async for message in connection:
        event = json.loads(message)
        if event["type"] == "session.update":
            reply = {"type": "session.updated", "event_id": "e1", "session": session}
            await connection.send(json.dumps(reply))
        elif event["type"] == "input_audio_buffer.append":
            await connection.send(f'{HEAD}"content_index":0,"delta":"{event["audio"]}"}}')


async def main() -> None:
    async with serve(serve_one, "127.0.0.1", 0, compression=None) as server:
        host, port = next(iter(server.sockets)).getsockname()
        print(f"ws://{host}:{port}/v1/realtime", flush=True)
        await asyncio.to_thread(sys.stdin.read)


if __name__ == "__main__":
    asyncio.run(main())
