"""Signaling's side of the transceivers' internal HTTP (the other side:
`voicegate.roles.transceiver.control`)."""

from __future__ import annotations

from dataclasses import dataclass
from urllib.parse import urlencode

import msgspec
import trio

from voicegate.agents.websocket import AgentLost, WebSocket
from voicegate.net.http_client import HttpClient, HttpError, HttpResponse
from voicegate.proto import realtime
from voicegate.proto.allocate import AllocateReply, AllocateRequest
from voicegate.proto.keys import ClusterKeys

ATTEMPT_SECONDS = 2.0
"""Allocating takes about a millisecond. Two tries stay well within the 5 s that a caller is made to wait at
most."""
CONNECT_SECONDS = 1.0
KEEP_SECONDS = 10.0
"""Idle connections; less than the server's 15 s, so that it is us who close them."""
MAX_EVENT = realtime.MAX_EVENT_BYTES


class Unreachable(Exception):
    """The transceiver did not answer in time, or not in the words that were agreed."""


@dataclass(frozen=True, slots=True)
class Refused:
    """A transceiver's refusal: the status and the error body of the public contract."""

    status: int
    body: bytes


class ControlClient:
    """Kept connections to all transceivers. An async context manager; leave it to close them."""

    def __init__(self, keys: ClusterKeys) -> None:
        self._keys = keys
        self._http = HttpClient(connect_seconds=CONNECT_SECONDS, keep_seconds=KEEP_SECONDS)

    async def __aenter__(self) -> ControlClient:
        return self

    async def __aexit__(self, *_: object) -> None:
        self._http.close()

    async def allocate(self, control: str, wanted: AllocateRequest) -> AllocateReply | Refused:
        """Ask the transceiver at `control` (`ip:port`) for a call. Raises Unreachable."""
        response = await self._ask("POST", control, "/calls", msgspec.json.encode(wanted))
        if response.status == 201:
            try:
                return msgspec.json.decode(response.content, type=AllocateReply)
            except msgspec.DecodeError as error:
                raise Unreachable(f"an answer that is not understood: {error}") from error
        return _refused(response)

    async def status(self, control: str, call_id: str) -> bytes | None:
        """The call's status as JSON, or None when the transceiver does not know it. Raises Unreachable."""
        response = await self._ask("GET", control, f"/calls/{call_id}")
        return None if response.status == 404 else _expect_200(response).content

    async def hang_up(self, control: str, call_id: str) -> bool:
        """End a call; False when the transceiver does not know it. Raises Unreachable."""
        response = await self._ask("DELETE", control, f"/calls/{call_id}")
        return response.status != 404 and bool(_expect_200(response))

    async def sideband(self, control: str, call_id: str, owner: str) -> WebSocket | None:
        """A WebSocket to the call's events, or None when the transceiver has no such call of that owner
        ("": anybody's). Raises Unreachable."""
        url = f"ws://{control}/calls/{call_id}/events?{urlencode({'owner': owner})}"
        try:
            with trio.fail_after(ATTEMPT_SECONDS):
                return await WebSocket.open(url, [("Authorization", self._bearer())], max_message=MAX_EVENT)
        except AgentLost as error:
            if error.status == 404:
                return None
            raise Unreachable(str(error)) from error
        except trio.TooSlowError:
            raise Unreachable(f"no answer in {ATTEMPT_SECONDS:g} s") from None

    async def _ask(self, method: str, control: str, path: str, body: bytes = b"") -> HttpResponse:
        headers = [("Authorization", self._bearer()), ("Content-Type", "application/json")]
        try:
            with trio.fail_after(ATTEMPT_SECONDS):
                return await self._http.request(method, control, path, headers, body)
        except trio.TooSlowError:
            raise Unreachable(f"no answer in {ATTEMPT_SECONDS:g} s") from None
        except HttpError as error:
            raise Unreachable(str(error)) from error

    def _bearer(self) -> str:
        return f"Bearer {self._keys.control_token}"  # of this moment: keys rotate


def _refused(response: HttpResponse) -> Refused:
    """Only what the contract has an error for goes on to a client: a 401 here is between us and the
    transceiver."""
    if response.status in (400, 413, 422, 503):
        return Refused(response.status, response.content)
    raise Unreachable(f"status {response.status}")


def _expect_200(response: HttpResponse) -> HttpResponse:
    if response.status != 200:
        raise Unreachable(f"status {response.status}")
    return response
