"""Where UDP is blocked: calls over ICE-TCP, with a real Chromium and with many light clients."""

from __future__ import annotations

import socket
from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.e2e.conftest import artifact, assert_nothing_left, on_a_quiet_moment
from tests.support import speech
from tests.support.chromium import Chromium
from tests.support.light_client import Fleet, listen, opus_frames
from tests.support.servers import Gate, free_port, one_process, wait_until
from tests.support.tcp_pipe import TcpPipe

pytestmark = pytest.mark.e2e

SHORT = "Over the river and far away."
SAID = "The network lets no datagram through, and still we talk."
SELECTED = """(async () => {
  const [connection] = __ears.connections;
  const stats = await connection.getStats();
  const transport = [...stats.values()].find((s) => s.type === 'transport');
  const pair = stats.get(transport.selectedCandidatePairId);
  const local = stats.get(pair.localCandidateId), remote = stats.get(pair.remoteCandidateId);
  return {local: local.protocol, tcpType: local.tcpType, remote: remote.protocol, port: remote.port};
})()"""


@pytest.fixture(scope="module")
def blocked(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Gate]:
    """A gate whose UDP address takes every datagram and answers none; TCP is its second address."""
    tcp = f"127.0.0.1:{free_port()}/tcp"
    with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as silence:
        silence.bind(("127.0.0.1", 0))
        addresses = {
            "relay_listen": f"127.0.0.1:{free_port(socket.SOCK_DGRAM)},{tcp}",
            "signaling_advertise": f"127.0.0.1:{silence.getsockname()[1]},{tcp}",
        }
        with one_process(tmp_path_factory.mktemp("tcp"), **addresses) as gate:
            gate.media = tuple(addresses["relay_listen"].split(","))
            yield gate


def tcp_address(gate: Gate) -> tuple[str, int]:
    host, _, port = gate.media[1].removesuffix("/tcp").rpartition(":")
    return host, int(port)


def test_chromium_talks_over_tcp(blocked: Gate, tmp_path: Path) -> None:
    on_a_quiet_moment(lambda: _talk(blocked, tmp_path), blocked)


def _talk(gate: Gate, tmp_path: Path) -> None:
    said = speech.say(SAID)
    length = len(said) / speech.RATE
    microphone = speech.write_wav(tmp_path / "microphone.wav", speech.conversation(1.0, said, length + 4.0))
    with Chromium(microphone=microphone) as browser:
        page = browser.open(gate.url + "/")
        page.click('[data-testid="talk"]')
        page.wait("window.voicegate.state === 'connected'", 15)
        assert page.evaluate(SELECTED) == {
            "local": "tcp",
            "tcpType": "active",
            "remote": "tcp",
            "port": tcp_address(gate)[1],
        }
        heard_seconds = "__ears.microphone.reduce((sum, [, block]) => sum + block.length, 0) / 48000"
        page.wait(f"{heard_seconds} > {2 * length + 3.5}", 2 * length + 20)
        heard = page.heard()
        speech.write_wav(artifact("chromium-tcp-heard.wav"), heard.sound)
        milestones = page.evaluate("window.voicegate.milestones")
        page.click('[data-testid="hang-up"]')
        page.wait("window.voicegate.state === 'ended'", 5)
        assert not page.exceptions, page.exceptions
    match = speech.find(said, heard.sound)
    # As in the conversation over UDP: the browser stretches time and Opus keeps the sound, not the waveform.
    assert match.correlation > 0.35 and match.envelope > 0.85, match
    holes = speech.gaps(said, heard.sound[round(match.lag * speech.RATE) :], shortest=0.06)
    assert not holes, f"gaps in the answer at {holes}"
    # Both kinds of candidates are tried at once: nothing waits for UDP to fail.
    assert milestones["dtls"] - milestones["answer"] < 1500, milestones
    assert_nothing_left(gate)
    wait_until(lambda: not connections(gate), 5, "the TCP connection to be closed")


def test_twenty_light_clients_over_tcp(blocked: Gate) -> None:
    said = speech.say(SHORT)
    frames = opus_frames(speech.conversation(0.4, said, len(said) / speech.RATE + 2.0))
    with TcpPipe(tcp_address(blocked)) as pipe, Fleet() as fleet:
        fleet.redirect = pipe.address
        calls = [fleet.call(blocked.calls_url, frames) for _ in range(20)]
        for call in calls:
            call.wait_for("connected", 10)
        assert pipe.opened == connections(blocked) == 20
        speaking = len(frames) * 0.02
        wait_until(lambda: min(len(call.heard) for call in calls) > 50, speaking + 5, "all of them to hear")
        wait_until(lambda: min(len(call.sent) for call in calls) >= len(frames), speaking + 5, "the end")
        assert [call.lost() for call in calls] == [0] * 20, "packets were dropped on the way to a client"
        assert speech.understood(said, listen(calls[0].heard)) >= 0.6
        assert {fleet.hang_up(call) for call in calls} == {200}
        for call in calls:
            call.wait_for("closed", 10)
    assert_nothing_left(blocked)
    wait_until(lambda: not connections(blocked), 5, "the TCP connections to be closed")


def test_a_broken_connection_is_followed_by_another(blocked: Gate) -> None:
    said = speech.say(SHORT)
    frames = opus_frames(speech.conversation(0.1, said, len(said) / speech.RATE + 1.0))
    with TcpPipe(tcp_address(blocked)) as pipe, Fleet() as fleet:
        fleet.redirect = pipe.address
        call = fleet.call(blocked.calls_url, frames, loop=True)
        wait_until(lambda: len(call.heard) > 20, 10, "the answer")
        pipe.cut()
        wait_until(lambda: pipe.opened >= 2, 2, "the pipe to open another connection")
        before = len(call.heard)
        # The next check, 2.5 s at most, makes the flow of the new connection; then media moves there.
        wait_until(lambda: len(call.heard) > before + 20, 10, "the answer over the new connection")
        assert connections(blocked) == 1
        assert fleet.hang_up(call) == 200
        call.wait_for("closed", 10)
    assert_nothing_left(blocked)


def connections(gate: Gate) -> int:
    """TCP connections of clients, by the kernel's table: `st` 01 is ESTABLISHED."""
    port = f":{tcp_address(gate)[1]:04X}"
    lines = [line.split() for line in Path("/proc/net/tcp").read_text().splitlines()[1:]]
    return sum(1 for line in lines if line[1].endswith(port) and line[3] == "01")
