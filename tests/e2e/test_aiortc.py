"""aiortc calls: a WebRTC stack that is neither ours nor a browser's, over both IPs and both SRTP profiles."""

from __future__ import annotations

import urllib.parse
from pathlib import Path

import numpy as np
import pytest

from tests.e2e.conftest import artifact, assert_nothing_left, assert_over, on_a_quiet_moment
from tests.e2e.scenario import Script, judge
from tests.support import speech
from tests.support.aiortc_client import AiortcCall, AiortcResult, start_call
from tests.support.servers import Gate, one_process

pytestmark = pytest.mark.e2e

Results = dict[tuple[str, str], tuple[AiortcResult, speech.Sound]]
"""By IP and SRTP profile."""
PROFILES = {"gcm": "SRTP_AEAD_AES_128_GCM", "cm": "SRTP_AES128_CM_SHA1_80"}


@pytest.fixture(scope="module")
def results(tmp_path_factory: pytest.TempPathFactory, conversation: Script) -> Results:
    def attempt() -> Results:
        found = _four_calls(tmp_path_factory.mktemp("aiortc"), conversation)
        for result, heard in found.values():
            judge(conversation, heard, _offset(result))
        return found

    return on_a_quiet_moment(attempt)


def _four_calls(directory: Path, conversation: Script) -> Results:
    """Four calls at once, to two gates: each takes as long as the conversation, so they share that time."""
    said = speech.write_wav(directory / "said.wav", conversation.sound)
    found: Results = {}
    with (
        one_process(_sub(directory, "four")) as four,
        one_process(_sub(directory, "six"), ipv6=True, ipv4=False) as six,
    ):
        calls: dict[tuple[str, str], tuple[AiortcCall, Path, Gate]] = {}
        for ip, gate in (("ipv4", four), ("ipv6", six)):
            for profile in PROFILES:
                heard = artifact(f"aiortc-{ip}-{profile}.wav")
                heard.unlink(missing_ok=True)
                call = start_call(
                    gate.calls_url, said=said, heard=heard, seconds=conversation.end + 2, profile=profile
                )
                calls[ip, profile] = call, heard, gate
        for name, (call, heard, gate) in calls.items():
            result = call.wait()
            found[name] = result, speech.read_wav(heard)[0] if heard.exists() else speech.silence(0)
            assert_over(urllib.parse.urljoin(gate.url, result.location))
        for gate in (four, six):
            assert_nothing_left(gate)
    return found


def _sub(directory: Path, name: str) -> Path:
    made = directory / name
    made.mkdir()
    return made


@pytest.mark.parametrize("ip", ["ipv4", "ipv6"])
@pytest.mark.parametrize("profile", list(PROFILES))
def test_a_conversation(
    results: Results,
    conversation: Script,
    ip: str,
    profile: str,
) -> None:
    result, heard = results[ip, profile]
    assert result.status == 201
    assert result.location.startswith("/v1/realtime/calls/rtc_")
    assert result.connected is not None and result.connected < 5, result.states
    assert result.profile == PROFILES[profile]
    candidates = [line.split()[4] for line in result.answer.splitlines() if line.startswith("a=candidate:")]
    assert candidates == ["::1" if ip == "ipv6" else "127.0.0.1"]
    assert result.packets_lost == 0
    assert "failed" not in result.states
    judge(conversation, heard, _offset(result))


@pytest.mark.parametrize("ip", ["ipv4", "ipv6"])
@pytest.mark.parametrize("profile", list(PROFILES))
def test_the_hang_up(results: Results, ip: str, profile: str) -> None:
    result, _ = results[ip, profile]
    assert result.hangup_status == 200
    assert result.states[-1] == "closed", "the far end did not close the call"


def _offset(result: AiortcResult) -> float:
    """Where on the recording the first microphone sample was said.

    A frame's media time is put on the wall clock by the earliest arrivals: what came later waited on the way.
    """
    assert result.heard_start is not None, "nothing was heard"
    delays = [at - (pts - result.heard_start) / speech.RATE for at, pts in result.arrivals]
    return result.spoke_at - float(np.percentile(delays, 10))
