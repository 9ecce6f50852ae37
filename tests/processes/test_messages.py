"""The channel between a supervisor and its workers."""

from __future__ import annotations

import os
import socket
import sys

import pytest

from voicegate.metrics import Sample
from voicegate.processes.messages import (
    Channel,
    FromWorker,
    Keys,
    Report,
    Serve,
    ToWorker,
    supervisor_end,
    worker_end,
)
from voicegate.processes.worker import report

pytestmark = [
    pytest.mark.anyio,
    pytest.mark.skipif(sys.platform != "linux", reason="worker processes need Linux"),
]


def pair() -> tuple[Channel[FromWorker], Channel[ToWorker]]:
    ours, its = socket.socketpair(socket.AF_UNIX, socket.SOCK_SEQPACKET)
    return supervisor_end(ours), worker_end(its)


async def test_messages_keep_their_bounds_and_bring_descriptors() -> None:
    supervisor, worker = pair()
    with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as sock:
        sock.bind(("127.0.0.1", 0))
        assert supervisor.send_nowait(Keys(("1:a", "2:b")))
        assert supervisor.send_nowait(Serve(3, None, "b00t", b"fra"), [sock.fileno(), sock.fileno()])
        assert await worker.receive() == (Keys(("1:a", "2:b")), [])
        received = await worker.receive()
        assert received is not None and received[0] == Serve(3, None, "b00t", b"fra")
        first, second = received[1]
        assert not os.get_inheritable(first)
        with socket.socket(fileno=first) as taken:
            assert taken.getsockname() == sock.getsockname()
        os.close(second)
    samples = [Sample("n_total", "counter", "Help.", {"reason": str(n)}, n / 3) for n in range(300)]
    assert worker.send_nowait(Report(1, samples, None))
    assert await supervisor.receive() == (Report(1, samples, None), [])
    worker.close()
    assert await supervisor.receive() is None
    assert not supervisor.send_nowait(Keys(()))
    supervisor.close()


async def test_the_end_of_one_that_left_messages_unread_is_its_end() -> None:
    supervisor, worker = pair()
    assert supervisor.send_nowait(Keys(("1:a",)))
    worker.close()
    assert await supervisor.receive() is None
    supervisor.close()


async def test_who_reads_nothing_is_not_waited_for() -> None:
    supervisor, worker = pair()
    told = Report(1, [Sample("n", "gauge", "H" * 1000, {}, 1.0)], None)
    while worker.send_nowait(told):
        pass
    assert await supervisor.receive() == (told, [])
    assert worker.send_nowait(told), "and goes on when there is room again"
    worker.close()
    supervisor.close()


async def test_a_report_that_is_too_large_says_at_least_that_all_is_well() -> None:
    class Talkative:
        def progress(self) -> int:
            return 7

        def samples(self) -> list[Sample]:
            return [Sample("n", "gauge", "H" * 1000, {}, 1.0)] * 1000

        def unready(self) -> str | None:
            return "draining"

    supervisor, worker = pair()
    report(Talkative(), worker)
    assert await supervisor.receive() == (Report(7, [], "draining"), [])
    worker.close()
    supervisor.close()
