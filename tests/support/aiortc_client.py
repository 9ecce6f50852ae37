"""A second, independent WebRTC client: aiortc calls voicegate, plays a WAV as its microphone, keeps what it
hears.

aiortc runs on asyncio, so it lives in a process of its own:

    call = start_call(gate.calls_url, said=Path("in.wav"), heard=Path("out.wav"), seconds=9)
    result = call.wait()

It speaks on loopback only: aiortc would leave exactly these addresses out and ask a public STUN server.
"""

from __future__ import annotations

import argparse
import asyncio
import contextlib
import fractions
import json
import subprocess
import sys
import time
import urllib.parse
import urllib.request
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

import numpy as np

from tests.support import speech

ROOT = Path(__file__).resolve().parents[2]
FRAME = 960
"""Samples of 20 ms at 48 kHz."""


@dataclass(slots=True)
class AiortcResult:
    """What one call of the aiortc client came to. Times are seconds since the POST began."""

    status: int = 0
    location: str = ""
    answer: str = ""
    answered: float = 0.0
    ice: float | None = None
    """ICE completed."""
    connected: float | None = None
    """DTLS done at this end."""
    states: list[str] = field(default_factory=list)
    profile: str = ""
    hangup_status: int = 0
    packets_sent: int = 0
    packets_received: int = 0
    packets_lost: int = 0
    arrivals: list[tuple[float, int]] = field(default_factory=list)
    """(seconds since the POST, media timestamp in samples) of each frame heard."""
    spoke_at: float = 0.0
    """When the first microphone frame was taken, seconds since the POST."""
    heard_start: int | None = None
    """Media timestamp of the first sample of the recording."""
    error: str = ""


@dataclass(slots=True)
class AiortcCall:
    """A call that runs in its process."""

    process: subprocess.Popen[str]

    def wait(self, timeout: float = 90.0) -> AiortcResult:
        """Until it has hung up. RuntimeError with its last words when the process failed."""
        try:
            out, err = self.process.communicate(timeout=timeout)
        except subprocess.TimeoutExpired:
            self.process.kill()
            out, err = self.process.communicate()
            raise RuntimeError(f"the aiortc client did not end: {err[-2000:]}") from None
        if self.process.returncode != 0:
            raise RuntimeError(f"the aiortc client failed: {err[-2000:]}")
        return AiortcResult(**json.loads(out))


def start_call(
    url: str,
    *,
    said: Path,
    heard: Path,
    seconds: float,
    profile: str = "any",
    hangup: bool = True,
    key: str = "",
) -> AiortcCall:
    """Begin a call; `profile` is "gcm", "cm" or "any" (aiortc's own preference)."""
    command = [sys.executable, "-m", "tests.support.aiortc_client", "--url", url]
    command += ["--said", str(said), "--heard", str(heard), "--seconds", str(seconds), "--profile", profile]
    command += ["--key", key] if key else []
    command += [] if hangup else ["--no-hangup"]
    return AiortcCall(
        subprocess.Popen(command, cwd=ROOT, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True)
    )


def stay_on_loopback() -> None:
    """Make aiortc gather the loopback addresses and nothing else."""
    import aioice.ice

    def loopback(use_ipv4: bool, use_ipv6: bool) -> list[str]:
        return ["127.0.0.1"] * use_ipv4 + ["::1"] * use_ipv6

    aioice.ice.get_host_addresses = loopback


def use_srtp_profile(name: str) -> None:
    """Offer one SRTP profile in the DTLS handshake: "gcm" (AEAD_AES_128_GCM) or "cm" (AES128_CM_SHA1_80)."""
    import aiortc.rtcdtlstransport as dtls

    only = {"gcm": dtls.SRTP_AEAD_AES_128_GCM, "cm": dtls.SRTP_AES128_CM_SHA1_80}.get(name)
    if only is not None:
        dtls.SRTP_PROFILES[:] = [only]


def post_offer(url: str, sdp: str, key: str = "") -> tuple[int, str, str]:
    """(status, Location, body) of the SDP exchange."""
    headers = {"Content-Type": "application/sdp"} | ({"Authorization": f"Bearer {key}"} if key else {})
    request = urllib.request.Request(url, sdp.encode(), headers, method="POST")
    with urllib.request.urlopen(request, timeout=20) as response:
        return response.status, response.headers.get("Location", ""), response.read().decode()


def _hang_up(url: str, location: str, key: str) -> int:
    request = urllib.request.Request(urllib.parse.urljoin(url, location), method="DELETE")
    if key:
        request.add_header("Authorization", f"Bearer {key}")
    with contextlib.suppress(OSError), urllib.request.urlopen(request, timeout=10) as response:
        return int(response.status)
    return 0


async def _call(arguments: argparse.Namespace) -> AiortcResult:
    from aiortc import MediaStreamTrack, RTCConfiguration, RTCPeerConnection, RTCSessionDescription
    from av import AudioFrame

    sound, rate = speech.read_wav(Path(arguments.said))
    microphone = np.frombuffer(speech.to_pcm(speech.resample(sound, rate, speech.RATE)), dtype="<i2")
    result = AiortcResult()
    start = time.monotonic()
    done = asyncio.Event()

    class Microphone(MediaStreamTrack):
        kind = "audio"
        taken = 0
        first = 0.0

        async def recv(self) -> AudioFrame:
            if not self.taken:
                self.first = time.monotonic()
                result.spoke_at = self.first - start
            await asyncio.sleep(max(0.0, self.first + self.taken / speech.RATE - time.monotonic()))
            block = microphone[self.taken : self.taken + FRAME]
            block = np.concatenate([block, np.zeros(FRAME - len(block), dtype="<i2")])
            # Stereo, the same on both sides: FFmpeg would take 3 dB off on the way from mono.
            frame = AudioFrame(format="s16", layout="stereo", samples=FRAME)
            frame.planes[0].update(np.repeat(block, 2).tobytes())
            frame.sample_rate = speech.RATE
            frame.pts = self.taken
            frame.time_base = fractions.Fraction(1, speech.RATE)
            self.taken += FRAME
            return frame

    peer = RTCPeerConnection(RTCConfiguration([]))
    frames: list[tuple[int, Any]] = []

    async def listen(track: MediaStreamTrack) -> None:
        with contextlib.suppress(Exception):  # MediaStreamError at the end of the track
            while True:
                frame = await track.recv()
                heard = frame.to_ndarray()[0]
                channels = len(frame.layout.channels)
                frames.append((frame.pts, heard[::channels].copy()))
                result.arrivals.append((round(time.monotonic() - start, 4), frame.pts))

    listeners: list[asyncio.Task[None]] = []
    peer.on("track", lambda track: listeners.append(asyncio.create_task(listen(track))))

    @peer.on("iceconnectionstatechange")
    def _ice() -> None:
        if peer.iceConnectionState == "completed" and result.ice is None:
            result.ice = time.monotonic() - start

    @peer.on("connectionstatechange")
    def _connection() -> None:
        result.states.append(peer.connectionState)
        if peer.connectionState == "connected":
            result.connected = time.monotonic() - start
        if peer.connectionState in ("failed", "closed"):
            done.set()

    peer.addTrack(Microphone())
    await peer.setLocalDescription(await peer.createOffer())
    start = time.monotonic()
    result.status, result.location, result.answer = await asyncio.to_thread(
        post_offer, arguments.url, peer.localDescription.sdp, arguments.key
    )
    result.answered = time.monotonic() - start
    await peer.setRemoteDescription(RTCSessionDescription(result.answer, "answer"))
    with contextlib.suppress(TimeoutError):
        await asyncio.wait_for(done.wait(), arguments.seconds)

    await _read_statistics(peer, result)
    if arguments.hangup and result.location:
        result.hangup_status = await asyncio.to_thread(
            _hang_up, arguments.url, result.location, arguments.key
        )
        with contextlib.suppress(TimeoutError):  # the far end closes DTLS
            await asyncio.wait_for(done.wait(), 3)
    await peer.close()
    for listener in listeners:
        listener.cancel()
    _write_recording(Path(arguments.heard), frames, result)
    return result


async def _read_statistics(peer: Any, result: AiortcResult) -> None:
    for transceiver in peer.getTransceivers():
        connection = transceiver.receiver.transport._ssl  # not told in public
        result.profile = connection.get_selected_srtp_profile().decode() if connection else ""
    for report in (await peer.getStats()).values():
        if report.type == "inbound-rtp":
            result.packets_received, result.packets_lost = report.packetsReceived, report.packetsLost
        elif report.type == "outbound-rtp":
            result.packets_sent = report.packetsSent


def _write_recording(path: Path, frames: list[tuple[int, Any]], result: AiortcResult) -> None:
    """Put each frame at its media timestamp: a silence in which nothing was sent stays as long as it was."""
    if not frames:
        speech.write_wav(path, speech.silence(0.02))
        return
    first = result.heard_start = min(pts for pts, _ in frames)
    last = max(pts + len(block) for pts, block in frames)
    assert last - first < 600 * speech.RATE, "media timestamps that run away"
    timeline = np.zeros(last - first, dtype="<i2")
    for pts, block in frames:
        timeline[pts - first : pts - first + len(block)] = block
    speech.write_wav(path, speech.from_pcm(timeline.tobytes()))


def main() -> None:
    parser = argparse.ArgumentParser()
    parser.add_argument("--url", required=True)
    parser.add_argument("--said", required=True)
    parser.add_argument("--heard", required=True)
    parser.add_argument("--seconds", type=float, required=True)
    parser.add_argument("--profile", choices=["gcm", "cm", "any"], default="any")
    parser.add_argument("--key", default="")
    parser.add_argument("--no-hangup", dest="hangup", action="store_false")
    arguments = parser.parse_args()
    stay_on_loopback()
    use_srtp_profile(arguments.profile)
    sys.stdout.write(json.dumps(asdict(asyncio.run(_call(arguments)))))


if __name__ == "__main__":
    main()
