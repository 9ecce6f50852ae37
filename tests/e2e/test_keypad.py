"""A real Chromium presses keys (RTCDTMFSender): each one arrives on its data channel as one event."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from tests.support import events, speech
from tests.support.chromium import Chromium
from tests.support.light_client import request
from tests.support.servers import Gate

pytestmark = pytest.mark.e2e

KIND = "input_audio_buffer.dtmf_event_received"
CALL = """
(async () => {
  const connection = window.connection = new RTCPeerConnection();
  window.channel = connection.createDataChannel('oai-events');
  const stream = await navigator.mediaDevices.getUserMedia({audio: true});
  connection.addTrack(stream.getAudioTracks()[0], stream);
  CODECS
  await connection.setLocalDescription();
  const answer = await fetch('/v1/realtime/calls', {
    method: 'POST', body: connection.localDescription.sdp, headers: {'Content-Type': 'application/sdp'},
  });
  await connection.setRemoteDescription({type: 'answer', sdp: await answer.text()});
  return answer.headers.get('Location');
})()
"""
G711 = """
  const codecs = RTCRtpReceiver.getCapabilities('audio').codecs;
  connection.getTransceivers()[0].setCodecPreferences(
    codecs.filter((codec) => ['audio/PCMU', 'audio/telephone-event'].includes(codec.mimeType)));
"""
PRESS = "connection.getSenders()[0].dtmf.insertDTMF(%s, %d, 60)"
"""Keys, milliseconds of each, and the pause between them."""


@pytest.mark.parametrize(("codecs", "clock_rate"), [("", 48_000), (G711, 8_000)], ids=["Opus", "PCMU"])
def test_keys_become_events(gate: Gate, tmp_path: Path, codecs: str, clock_rate: int) -> None:
    microphone = speech.write_wav(tmp_path / "microphone.wav", speech.say())
    with Chromium(microphone=microphone) as browser:
        page = events.open_tapped(browser, gate.url + "/")
        location = page.evaluate(CALL.replace("CODECS", codecs))
        page.wait("channel.readyState === 'open' && connection.getSenders()[0].dtmf.canInsertDTMF", 15)
        assert f"telephone-event/{clock_rate}" in page.evaluate("connection.remoteDescription.sdp")
        page.evaluate(PRESS % (json.dumps("12#"), 100))
        page.wait(f"__events.received.filter((text) => text.includes('{KIND}')).length === 3", 10)
        # Longer than the 16 bits of a duration hold at 48 kHz: still one press.
        page.evaluate(PRESS % (json.dumps("9"), 2000))
        page.wait("connection.getSenders()[0].dtmf.toneBuffer === ''", 5)
        page.evaluate("new Promise((resolve) => setTimeout(resolve, 2300))")
        page.evaluate(PRESS % (json.dumps("D"), 70))
        page.wait(f"__events.received.filter((text) => text.includes('{KIND}')).length >= 5", 10)
        told = events.of_type(events.received(page), KIND)
        status = json.loads(request("GET", gate.url + location).body)
        page.evaluate("connection.close()")
    assert [event["event"] for event in told] == ["1", "2", "#", "9", "D"]
    events.assert_valid(told, events.SERVER)
    keypad = status["statistics"]["audio"]["keypad"]
    assert keypad["presses"] == 5 and keypad["malformed"] == keypad["other_events"] == 0, keypad
    if clock_rate == 48_000:
        assert keypad["segments"] == 1, keypad
    received = status["statistics"]["audio"]["receive"]
    assert received["telephone_events"] > 100 and received["clock_jumps"] == 0, received
