"""A relay's processes: one dies and nobody else notices; all of them end with the one that was started.

The transceiver here speaks the link's own protocol, and tells workers apart by the link socket that a packet
came from. The clients send valid connectivity checks, each of which the relay routes by its ticket.
"""

from __future__ import annotations

import contextlib
import itertools
import os
import signal
import socket
import sys
import threading
import time
from collections import defaultdict
from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.support.light_client import request
from tests.support.servers import Server, free_port, parse_metrics, wait_until, with_children
from voicegate.proto import stun
from voicegate.proto.keys import ClusterKeys
from voicegate.proto.link import DATA, parse_frames_untrusted

pytestmark = [
    pytest.mark.e2e,
    pytest.mark.skipif(sys.platform != "linux", reason="worker processes need Linux"),
]

SECRET = "1:" + "w" * 32
CLIENTS = 12
TICKET = ClusterKeys.parse([SECRET]).tickets.mint(1, 7, time.time() + 600, bytes(5)).encode()
PASSWORD = ClusterKeys.parse([SECRET]).tickets.password(TICKET)


class Relay(Server):
    """A relay by itself with two workers, and one transceiver in its table."""

    @classmethod
    def launch(cls, directory: Path, media: str, link: str, **settings: str) -> Relay:
        ops = f"127.0.0.1:{free_port()}"
        settings = {
            "log_format": "json",
            "keys_secrets": SECRET,
            "registry_transceivers": f'[{{"id": 7, "link": "{link}", "control": "127.0.0.1:9"}}]',
            "relay_listen": f"{media},{media}/tcp",
            "relay_workers": "2",
            "relay_ops_listen": ops,
            **settings,
        }
        environment = {key: value for key, value in os.environ.items() if not key.startswith("VOICEGATE_")}
        environment |= {f"VOICEGATE_{key.upper()}": value for key, value in settings.items()}
        log = directory / f"relay-{time.monotonic_ns()}.log"
        command = [sys.executable, "-m", "voicegate", "--role", "relay"]
        relay = cls("relay", command, environment, log, f"http://{ops}", own_group=True)
        try:
            wait_until(lambda: relay.readiness() == "ready\n", 20, "the relay to be ready", every=0.01)
        except BaseException:
            relay.kill()
            raise
        return relay

    def kill(self) -> None:
        """All of its processes."""
        with contextlib.suppress(ProcessLookupError):
            os.killpg(self.process.pid, signal.SIGKILL)
        self.process.wait(5)

    def readiness(self) -> str:
        with contextlib.suppress(OSError):
            return request("GET", f"{self.ops}/readyz", timeout=5).body
        return ""

    def total(self, name: str, **labels: str) -> float:
        return parse_metrics(request("GET", f"{self.ops}/metrics").body).total(name, **labels)

    def pids(self) -> dict[str, int]:
        """The processes by name: vg-zygote, vg-relay-0, ..."""
        names = {}
        for pid in with_children(self.process.pid):
            with contextlib.suppress(OSError):
                names[Path(f"/proc/{pid}/comm").read_text().strip()] = pid
        return names

    def told(self, event: str) -> list[dict[str, object]]:
        return [line for line in self.lines() if str(line["event"]).startswith(event)]


@pytest.fixture
def media() -> str:
    return f"127.0.0.1:{free_port()}"


@pytest.fixture
def transceiver() -> Iterator[socket.socket]:
    with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as sock:
        sock.bind(("127.0.0.1", 0))
        sock.settimeout(0.2)
        yield sock


@pytest.fixture
def relay(tmp_path: Path, media: str, transceiver: socket.socket) -> Iterator[Relay]:
    relay = Relay.launch(tmp_path, media, "{}:{}".format(*transceiver.getsockname()))
    try:
        yield relay
    finally:
        relay.kill()


class Traffic:
    """Checks from many clients, and what of them came to the transceiver by which link socket."""

    def __init__(self, media: str, transceiver: socket.socket) -> None:
        self.sent: dict[int, set[bytes]] = defaultdict(set)
        """Transaction ids by client port."""
        self.arrived: dict[int, list[tuple[float, bytes, int]]] = defaultdict(list)
        """(time, transaction id, port of the relay's link socket) by client port."""
        self._transceiver = transceiver
        host, port = media.rsplit(":", 1)
        self._media = host, int(port)
        self._sockets = [socket.socket(socket.AF_INET, socket.SOCK_DGRAM) for _ in range(CLIENTS)]
        for sock in self._sockets:
            sock.connect(self._media)
        self._ending = threading.Event()
        self._threads = [threading.Thread(target=work) for work in (self._send, self._receive)]

    def __enter__(self) -> Traffic:
        for thread in self._threads:
            thread.start()
        return self

    def __exit__(self, *_: object) -> None:
        self._ending.set()
        for thread in self._threads:
            thread.join()
        for sock in self._sockets:
            sock.close()

    def served_by(self) -> dict[int, set[int]]:
        return {client: {link for _, _, link in rows} for client, rows in dict(self.arrived).items()}

    def longest_gap(self, client: int) -> float:
        times = [at for at, _, _ in self.arrived[client]]
        return max(after - before for before, after in itertools.pairwise(times))

    def _send(self) -> None:
        number = 0
        while not self._ending.wait(0.02):
            for sock in self._sockets:
                number += 1
                transaction = number.to_bytes(12, "big")
                check = stun.binding_request(
                    transaction, TICKET + b":abcd", PASSWORD, priority=1, tie_breaker=1
                )
                self.sent[sock.getsockname()[1]].add(transaction)
                with contextlib.suppress(ConnectionRefusedError):  # told by ICMP of an earlier one
                    sock.send(check)

    def _receive(self) -> None:
        while True:
            try:
                datagram, (_, link) = self._transceiver.recvfrom(4096)
            except TimeoutError:
                if self._ending.is_set():
                    return
                continue
            now = time.monotonic()
            if datagram[0] >> 4 == DATA:
                for client, payload in parse_frames_untrusted(datagram):
                    port = int.from_bytes(client[4:6], "big")
                    self.arrived[port].append((now, stun.transaction_id(payload), link))


def test_one_worker_of_two_is_killed(relay: Relay, media: str, transceiver: socket.socket) -> None:
    with Traffic(media, transceiver) as traffic:
        wait_until(lambda: len(traffic.served_by()) == CLIENTS, 5, "every client to be served")
        before = relay.pids()
        links = relay.told("relay is up")[0]["link"]
        assert isinstance(links, list)
        dead = int(links[0].rsplit(":", 1)[1])
        time.sleep(0.3)
        os.kill(before["vg-relay-0"], signal.SIGKILL)
        time.sleep(0.7)
    own = {client for client, by in traffic.served_by().items() if dead in by}
    others = set(traffic.arrived) - own
    assert own and others, f"the kernel gave all to one worker: {traffic.served_by()}"
    assert all(len(by) == 1 for by in traffic.served_by().values()), "nobody was moved to another worker"
    for client in others:
        assert {transaction for _, transaction, _ in traffic.arrived[client]} == traffic.sent[client]
    pause = max(map(traffic.longest_gap, others))
    assert max(map(traffic.longest_gap, own)) <= 0.2 + pause
    for client in own:
        # What the worker had taken from its socket is lost with it: a batch at most.
        arrived = {transaction for _, transaction, _ in traffic.arrived[client]}
        assert len(traffic.sent[client] - arrived) <= 2
    after = relay.pids()
    assert after["vg-relay-0"] == before["vg-relay-spare"]
    assert after["vg-relay-1"] == before["vg-relay-1"]
    assert relay.total("voicegate_relay_worker_deaths_total", worker="0") == 1
    assert relay.told("a worker ended")[0]["status"] == -signal.SIGKILL


def test_a_crash_loop_backs_off_and_is_loud(relay: Relay) -> None:
    untouched = relay.pids()["vg-relay-1"]
    ends = 5
    for death in range(1, ends + 1):
        wait_until(lambda: "vg-relay-0" in relay.pids(), 5, "the slot to be served", every=0.005)
        os.kill(relay.pids()["vg-relay-0"], signal.SIGKILL)
        wait_until(lambda n=death: len(relay.told("a worker ended")) == n, 5, "it to be told", every=0.005)
    assert relay.readiness().startswith("worker 0 of 2 is down: it died 5 times in a row")
    assert relay.total("voicegate_relay_workers") == 1
    told = relay.told("a worker ended")
    assert [line["deaths"] for line in told] == [1, 2, 3, 4, 5]
    assert [line["pause"] for line in told] == [0.0, 0.1, 0.2, 0.4, 0.8]
    assert all((line["level"], line["worker"]) == ("error", "0") for line in told)
    wait_until(lambda: relay.readiness() == "ready\n", 5, "the relay to be whole again")
    assert relay.total("voicegate_relay_workers") == 2
    assert relay.pids()["vg-relay-1"] == untouched


def test_a_worker_that_hangs_is_replaced(relay: Relay) -> None:
    hung = relay.pids()["vg-relay-1"]
    os.kill(hung, signal.SIGSTOP)
    wait_until(lambda: relay.pids().get("vg-relay-1") not in (hung, None), 9, "the worker to be replaced")
    wait_until(lambda: not Path(f"/proc/{hung}").exists(), 2, "the old one to be gone")
    assert relay.told("a worker makes no progress")[0]["worker"] == "1"
    wait_until(lambda: relay.readiness() == "ready\n", 5, "the relay to be whole again")


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT])
def test_a_signal_to_all_ends_all_cleanly(relay: Relay, number: signal.Signals) -> None:
    """As a terminal's Ctrl-C and service managers send it: to the whole group."""
    pids = relay.pids()
    assert len(pids) == 5, pids
    os.killpg(relay.process.pid, number)
    assert relay.process.wait(5) == 0
    assert not [name for name, pid in pids.items() if Path(f"/proc/{pid}").exists()]
    assert len(relay.told("relay is going down")) == 2
    assert "Traceback" not in relay.log.read_text()


@pytest.mark.parametrize("first", ["", "vg-zygote"])
def test_nothing_outlives_a_killed_supervisor(
    relay: Relay, media: str, transceiver: socket.socket, tmp_path: Path, first: str
) -> None:
    """Also when the process that would kill the workers was killed before."""
    pids = relay.pids()
    if first:
        os.kill(pids[first], signal.SIGKILL)
        wait_until(lambda: relay.told("the process that starts workers has ended"), 2, "it to be told")
        assert relay.readiness() == "ready\n", "it forwards all the same"
    relay.process.kill()
    relay.process.wait()
    wait_until(lambda: not _running(pids), 1, "every process to end", every=0.005)
    again = Relay.launch(tmp_path, media, "{}:{}".format(*transceiver.getsockname()))
    again.process.terminate()
    assert again.process.wait(5) == 0


def _running(pids: dict[str, int]) -> list[str]:
    """Those that hold a socket still: a zombie that nobody reaps does not."""
    running = []
    for name, pid in pids.items():
        with contextlib.suppress(OSError):
            if Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0] != "Z":
                running.append(name)
    return running
