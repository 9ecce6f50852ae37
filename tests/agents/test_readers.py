"""The agents' sockets as the worker's turns read them."""

from __future__ import annotations

import socket

import pytest
import trio
from trio.testing import wait_all_tasks_blocked

from voicegate.agents.readers import Readers

pytestmark = pytest.mark.anyio

LONG = float("inf")


class Wire:
    """One end of a socket pair, read a byte at a time; b"!" is the end of it."""

    def __init__(self) -> None:
        self.near, self.far = socket.socketpair()
        self.heard = b""
        self.lost = ""

    async def run(self, readers: Readers) -> None:
        try:
            await readers.read_until_failure(self.near, self.read)
        except ConnectionError as error:
            self.lost = str(error)
        finally:
            self.near.close()

    def read(self) -> bool:
        data = self.near.recv(1)
        if data == b"!":
            raise ConnectionError("told to")
        self.heard += data
        return data == b"+"


async def test_each_socket_is_read_once_a_turn_and_a_failure_is_its_own() -> None:
    other = Wire()
    readers = Readers(other.near)
    wires = [Wire() for _ in range(3)]
    async with trio.open_nursery() as nursery:
        for wire in wires:
            nursery.start_soon(wire.run, readers)
        await wait_all_tasks_blocked()
        assert not readers.read(LONG)
        other.far.send(b"x")
        await trio.lowlevel.wait_readable(readers.fileno())
        assert not readers.read(LONG)  # it wakes, and is not ours to read
        for wire, said in zip(wires, (b"ab", b"!", b"c"), strict=True):
            wire.far.send(said)
        assert readers.read(LONG)
        assert [wire.heard for wire in wires] == [b"a", b"", b"c"]
        await wait_all_tasks_blocked()
        assert [wire.lost for wire in wires] == ["", "told to", ""]
        assert readers.read(LONG) and wires[0].heard == b"ab"
        nursery.cancel_scope.cancel()
    assert not readers.read(LONG)  # all of them have let go
    readers.close()


async def test_what_is_not_finished_has_its_next_turn_without_a_byte_from_the_socket() -> None:
    readers, wire = Readers(), Wire()
    async with trio.open_nursery() as nursery:
        nursery.start_soon(wire.run, readers)
        await wait_all_tasks_blocked()
        wire.far.send(b"+")
        readers.read(LONG)
        assert readers.unfinished
        wire.far.send(b"z")
        assert readers.read(LONG) and not readers.unfinished
        wire.far.send(b"y")
        assert readers.read(until=-LONG) and readers.unfinished and wire.heard == b"+z"  # no time is left
        assert readers.read(LONG) and wire.heard == b"+zy"
        nursery.cancel_scope.cancel()
    readers.close()
