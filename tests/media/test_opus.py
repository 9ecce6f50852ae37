"""voicegate.media.opus against libopus itself: round trips, concealment, redundancy, garbage."""

from __future__ import annotations

import random
import subprocess
import sys
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from tests.media.signals import best_match, frames, level, tone, voice_like
from voicegate.media import opus
from voicegate.media.codec import open_decoder, open_encoder
from voicegate.media.opus import Application, OpusDecoder, OpusEncoder, OpusUnavailable, opus_version
from voicegate.proto.errors import BadPacket


def test_the_library_says_its_version() -> None:
    assert opus_version().startswith("libopus 1.")


def test_pyav_is_not_imported() -> None:
    code = (
        "import sys; from voicegate.media.opus import OpusDecoder; OpusDecoder(); print('av' in sys.modules)"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout == "False\n"


def test_no_library_tells_what_to_do(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    broken = tmp_path / "libopus.so"
    broken.write_bytes(b"not a library")
    monkeypatch.setattr(opus, "_candidates", lambda: iter([str(broken)]))
    opus.library.cache_clear()
    with pytest.raises(OpusUnavailable, match="pip install"):
        opus.library()


def test_a_library_without_the_symbols_is_passed_over(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(opus, "_NEEDED_SYMBOLS", ("opus_of_next_year",))
    opus.library.cache_clear()
    with pytest.raises(OpusUnavailable):
        opus.library()


@pytest.mark.parametrize("application", list(Application))
def test_round_trip_sounds_the_same(application: Application) -> None:
    sent = voice_like(2.0)
    encoder, decoder = OpusEncoder(application=application), OpusDecoder()
    payloads = [encoder.encode(frame) for frame in frames(sent)]
    heard = b"".join(map(decoder.decode, payloads))
    assert len(heard) == len(sent)
    delay, correlation = best_match(sent, heard)
    assert correlation > (
        0.8 if application is Application.VOIP else 0.9
    )  # SILK keeps the sound, not the wave
    lookahead = 60 if application is Application.RESTRICTED_LOWDELAY else 156  # 2.5 or 6.5 ms
    assert delay == pytest.approx(lookahead, abs=6)
    assert level(heard) == pytest.approx(level(sent), rel=0.15)
    assert 8 * sum(map(len, payloads)) / 2.0 < 1.3 * 32_000


def test_bitrate_is_heard() -> None:
    sizes = [
        sum(len(encoder.encode(frame)) for frame in frames(voice_like(1.0)))
        for encoder in (OpusEncoder(bitrate=16_000), OpusEncoder(bitrate=64_000))
    ]
    assert sizes[1] > 2 * sizes[0]


def test_stereo_is_folded() -> None:
    # TOC with the stereo bit (RFC 6716 section 3.1): a CELT 20-ms stereo frame of nothing but noise bits.
    rng = random.Random(4)
    payload = bytes([0xFC]) + rng.randbytes(100)
    assert len(OpusDecoder().decode(payload)) == 960


@pytest.mark.parametrize(("milliseconds", "code"), [(2.5, 0xE0), (5, 0xE8), (10, 0xF0), (20, 0xF8)])
def test_every_celt_frame_length(milliseconds: float, code: int) -> None:
    assert len(OpusDecoder().decode(bytes([code]) + b"\x5a" * 30)) == int(48 * milliseconds)


def test_120_ms_in_a_packet() -> None:
    # RFC 6716 section 3.2.5: code 3, six constant frames of 20 ms.
    assert len(OpusDecoder().decode(bytes([0xFB, 6]) + b"\x5a" * 60)) == 2 * 2880
    with pytest.raises(BadPacket, match="opus_corrupt"):
        OpusDecoder().decode(bytes([0xFB, 7]) + b"\x5a" * 70)


@pytest.mark.parametrize(
    ("payload", "reason"),
    [
        (b"", "opus_empty"),
        (bytes(1501), "opus_oversized"),
        (b"\xfb", "opus_corrupt"),
        (b"\xfb\x00", "opus_corrupt"),
    ],
)
def test_what_is_no_packet(payload: bytes, reason: str) -> None:
    with pytest.raises(BadPacket) as caught:
        OpusDecoder().decode(payload)
    assert caught.value.reason == reason


def test_garbage_of_every_length_leaves_the_decoder_working() -> None:
    rng = random.Random(7)
    decoder, encoder = OpusDecoder(), OpusEncoder()
    for length in range(1501):
        payload = rng.randbytes(length)
        try:
            pcm = decoder.decode(payload)
        except BadPacket:
            pcm = b""
        assert len(pcm) % 120 == 0
        assert len(pcm) <= 5760
        decoder.fec_samples(payload)
    sent = voice_like(1.0)
    heard = b"".join(decoder.decode(encoder.encode(frame)) for frame in frames(sent))
    assert best_match(sent, heard)[1] > 0.8


@given(st.binary(max_size=1300))
def test_any_payload_decodes_or_is_bad(payload: bytes) -> None:
    decoder = OpusDecoder()
    try:
        pcm = decoder.decode(payload)
    except BadPacket:
        return
    assert 0 < len(pcm) <= 5760
    size = decoder.fec_samples(payload)
    if size:
        try:
            assert len(decoder.decode_fec(payload, size)) == 2 * size
        except BadPacket as error:
            assert error.reason == "opus_corrupt"


@pytest.mark.parametrize("count", [0, 1, 59, 60, 61, 480, 2880, 3000, 6000])
def test_concealment_is_exactly_as_long_as_asked(count: int) -> None:
    decoder, encoder = OpusDecoder(), OpusEncoder()
    assert len(decoder.conceal(count)) == 2 * count  # with nothing to go on from
    for frame in frames(tone(300, 0.4)):
        decoder.decode(encoder.encode(frame))
    assert len(decoder.conceal(count)) == 2 * count


def test_concealment_goes_on_and_fades() -> None:
    decoder, encoder = OpusDecoder(), OpusEncoder()
    heard = [decoder.decode(encoder.encode(frame)) for frame in frames(tone(300, 0.4))]
    concealed = frames(decoder.conceal(480 * 10))
    assert level(concealed[0]) > 0.3 * level(heard[-1])
    assert level(concealed[-1]) < 0.25 * level(heard[-1])


def test_in_band_fec_restores_the_lost_frame() -> None:
    sent = frames(voice_like(2.0))
    encoder = OpusEncoder(application=Application.VOIP)
    encoder.expect_loss(20)
    payloads = [encoder.encode(frame) for frame in sent]
    assert OpusDecoder().fec_samples(payloads[40]) == 480
    whole, lossy, concealing = OpusDecoder(), OpusDecoder(), OpusDecoder()
    want, restored, guessed = [], [], []
    for index, payload in enumerate(payloads):
        want.append(whole.decode(payload))
        if index % 10 == 5:
            restored.append(lossy.decode_fec(payloads[index + 1], 480))
            guessed.append(concealing.conceal(480))
        else:
            restored.append(lossy.decode(payload))
            guessed.append(concealing.decode(payload))
    lost = range(15, 100, 10)

    def likeness(heard: list[bytes]) -> float:
        return best_match(b"".join(want[i] for i in lost), b"".join(heard[i] for i in lost), longest_delay=1)[
            1
        ]

    assert likeness(restored) > 0.85
    assert likeness(restored) > likeness(guessed)


def test_redundancy_of_an_impossible_length_is_bad() -> None:
    payload = OpusEncoder(application=Application.VOIP).encode(voice_like(0.02))
    with pytest.raises(BadPacket, match="opus_corrupt"):
        OpusDecoder().decode_fec(payload, 7)


def test_settings_that_libopus_refuses_are_told() -> None:
    with pytest.raises(OpusUnavailable, match="refuses"):
        OpusEncoder(complexity=11)


def test_low_delay_has_no_fec_to_give() -> None:
    encoder = OpusEncoder()
    encoder.expect_loss(20)
    assert OpusDecoder().fec_samples([encoder.encode(frame) for frame in frames(voice_like(0.5))][-1]) == 0
    assert OpusDecoder().fec_samples(b"") == 0


def test_an_encoder_takes_whole_frames_only() -> None:
    with pytest.raises(AssertionError):
        OpusEncoder().encode(bytes(958))


def test_opened_by_name_and_closed() -> None:
    encoder, decoder = open_encoder("opus", bitrate=24_000), open_decoder("opus")
    assert encoder.clock_rate == decoder.clock_rate == 48_000
    assert len(decoder.decode(encoder.encode(bytes(960)))) == 960
    encoder.close()
    decoder.close()
    with pytest.raises(KeyError):
        open_encoder("G722")
    with pytest.raises(KeyError):
        open_decoder("G722")


@pytest.fixture(autouse=True)
def _fresh_library() -> object:
    """A test that hides the library must not hide it from the next."""
    yield
    opus.library.cache_clear()
