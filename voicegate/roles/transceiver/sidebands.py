"""The sidebands of one worker: servers that watch and steer calls over a WebSocket of their own."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import trio

from voicegate.roles.transceiver.control import SidebandPort
from voicegate.roles.transceiver.core import TransceiverCore

MAX_PER_CALL = 8
"""A tool server, a monitor, a recorder, and room to reconnect before the old one is noticed to be gone."""

MAX_WAITING = 512
"""Events waiting for one sideband: several answers' worth. A slower one is let go, and may come back."""

MAX_UNREAD = 64
"""Messages of one sideband that wait for their turn; then its socket is not read."""

TRY_AGAIN_LATER = 1013
"""The WebSocket close code for that (RFC 6455 section 7.4.2, IANA)."""


@dataclass(slots=True, eq=False)
class _Sideband:
    port: SidebandPort
    events: trio.MemorySendChannel[str]


class Sidebands:
    """`changed` is called after each message of a sideband was given to the core."""

    def __init__(self, core: TransceiverCore, nursery: trio.Nursery, changed: Callable[[], None]) -> None:
        self._core = core
        self._nursery = nursery
        self._changed = changed
        self._by_call: dict[str, list[_Sideband]] = {}

    def attach(self, call_id: str, owner: str) -> SidebandPort | None:
        """Open a sideband of a call that lives and is the owner's; None for any other."""
        present = self._by_call.get(call_id, ())
        if len(present) >= MAX_PER_CALL:
            return None
        if not self._core.sideband_joined(call_id, owner, trio.current_time()):
            return None
        messages_in, messages = trio.open_memory_channel[str](MAX_UNREAD)
        events, events_out = trio.open_memory_channel[str](MAX_WAITING)
        sideband = _Sideband(SidebandPort(messages_in, events_out), events)
        greeting = self._core.greeting(call_id)
        if greeting is not None:
            events.send_nowait(greeting.decode())
        self._by_call.setdefault(call_id, []).append(sideband)
        self._nursery.start_soon(self._read, call_id, sideband, messages)
        self._changed()
        return sideband.port

    def deliver(self, call_id: str, event: bytes) -> None:
        """Give an event to every sideband of a call."""
        text = ""
        for sideband in tuple(self._by_call.get(call_id, ())):
            text = text or event.decode()
            try:
                sideband.events.send_nowait(text)
            except trio.WouldBlock:
                sideband.port.code, sideband.port.reason = TRY_AGAIN_LATER, "too slow"
                self._forget(call_id, sideband)
            except trio.BrokenResourceError:
                self._forget(call_id, sideband)

    def close(self, call_id: str) -> None:
        """The call has ended, and its sidebands with it."""
        for sideband in self._by_call.pop(call_id, ()):
            sideband.events.close()

    def __len__(self) -> int:
        return sum(map(len, self._by_call.values()))

    async def _read(
        self, call_id: str, sideband: _Sideband, messages: trio.MemoryReceiveChannel[str]
    ) -> None:
        with messages:
            async for text in messages:
                if sideband not in self._by_call.get(call_id, ()):
                    return
                self._core.receive_sideband_event(call_id, text, trio.current_time())
                self._changed()
        self._forget(call_id, sideband)

    def _forget(self, call_id: str, sideband: _Sideband) -> None:
        sideband.events.close()
        present = self._by_call.get(call_id, [])
        if sideband in present:
            present.remove(sideband)
            if not present:
                del self._by_call[call_id]
                self._core.sideband_left(call_id, trio.current_time())
