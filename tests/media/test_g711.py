"""voicegate.media.g711: ITU-T G.711 values, exact lengths, delay, concealment."""

from __future__ import annotations

from array import array

import av
import pytest
from hypothesis import given
from hypothesis import strategies as st

from tests.media.signals import best_match, frames, level, tone, voice_like
from voicegate.media.codec import CLOCK_RATES, open_decoder, open_encoder
from voicegate.media.g711 import MAX_PAYLOAD, G711Decoder, G711Encoder, Law
from voicegate.proto.errors import BadPacket

DELAY = 96
"""2 ms of filter in each direction, at 24 kHz."""


@pytest.mark.parametrize("law", list(Law))
def test_every_code_means_what_ffmpeg_says(law: Law) -> None:
    """A foreign implementation, at its own 8 kHz; ours is compared where the signal is constant."""
    context = av.CodecContext.create({Law.PCMU: "pcm_mulaw", Law.PCMA: "pcm_alaw"}[law], "r")
    context.sample_rate = 8000
    context.layout = "mono"
    (frame,) = context.decode(av.Packet(bytes(range(256))))
    values = array("h", bytes(frame.planes[0])[:512])
    for code, value in enumerate(values):
        pcm = array("h", G711Decoder(law).decode(bytes([code]) * 400))
        assert pcm[-1] == pytest.approx(value, abs=2)


@pytest.mark.parametrize("law", list(Law))
def test_each_code_survives_decoding_and_encoding(law: Law) -> None:
    for code in range(256):
        pcm = G711Decoder(law).decode(bytes([code]) * 480)
        encoder = G711Encoder(law)
        again = [encoder.encode(frame) for frame in frames(pcm)][-2][100]
        if law is Law.PCMU and code == 0x7F:
            assert again == 0xFF  # negative zero: one of two codes of one value
        else:
            assert again == code


@pytest.mark.parametrize("law", list(Law))
def test_round_trip_sounds_the_same_4_ms_later(law: Law) -> None:
    sent = tone(440, 1.0)
    encoder, decoder = G711Encoder(law), G711Decoder(law)
    payloads = [encoder.encode(frame) for frame in frames(sent)]
    assert {len(payload) for payload in payloads} == {160}
    heard = b"".join(map(decoder.decode, payloads))
    assert len(heard) == len(sent)
    assert best_match(sent, heard, longest_delay=300) == (DELAY, pytest.approx(1, abs=0.001))
    assert level(heard) == pytest.approx(level(sent), rel=0.02)


def test_what_8_khz_cannot_carry_does_not_alias() -> None:
    encoder, decoder = G711Encoder(Law.PCMU), G711Decoder(Law.PCMU)
    sent = tone(5500, 1.0)
    heard = b"".join(decoder.decode(encoder.encode(frame)) for frame in frames(sent))
    assert level(heard[9600:]) < 0.01 * level(sent)


@given(st.lists(st.integers(1, MAX_PAYLOAD), min_size=1, max_size=8), st.sampled_from(list(Law)))
def test_every_payload_gives_three_times_its_samples(sizes: list[int], law: Law) -> None:
    decoder = G711Decoder(law)
    for size in sizes:
        assert len(decoder.decode(b"\xd5" * size)) == 2 * 3 * size


@given(st.binary(max_size=1000))
def test_any_payload_decodes_or_is_bad(payload: bytes) -> None:
    decoder = G711Decoder(Law.PCMA)
    try:
        pcm = decoder.decode(payload)
    except BadPacket as error:
        assert error.reason in ("g711_empty", "g711_oversized")
        return
    assert len(pcm) == 6 * len(payload)


def test_more_than_120_ms_is_bad() -> None:
    assert len(G711Decoder(Law.PCMU).decode(bytes(MAX_PAYLOAD))) == 2 * 2880
    with pytest.raises(BadPacket, match="g711_oversized"):
        G711Decoder(Law.PCMU).decode(bytes(MAX_PAYLOAD + 1))


@pytest.mark.parametrize("count", [0, 1, 2, 3, 479, 480, 2880])
def test_concealment_is_exactly_as_long_as_asked(count: int) -> None:
    decoder = G711Decoder(Law.PCMU)
    assert len(decoder.conceal(count)) == 2 * count


def test_concealment_repeats_and_fades_and_recovers() -> None:
    encoder, decoder = G711Encoder(Law.PCMU), G711Decoder(Law.PCMU)
    payloads = [encoder.encode(frame) for frame in frames(voice_like(1.0))]
    heard = [decoder.decode(payload) for payload in payloads[:13]]
    concealed = [decoder.conceal(480) for _ in range(6)]
    assert level(concealed[0]) > 0.5 * level(heard[-1])
    assert level(concealed[1]) < level(concealed[0])
    assert level(concealed[5]) == 0
    decoder.decode(payloads[13])
    assert level(decoder.conceal(480)) > 0


def test_there_is_no_redundancy() -> None:
    decoder = G711Decoder(Law.PCMU)
    assert decoder.fec_samples(bytes(160)) == 0
    with pytest.raises(BadPacket):
        decoder.decode_fec(bytes(160), 480)


@pytest.mark.parametrize("name", ["PCMU", "PCMA"])
def test_opened_by_name_and_closed(name: str) -> None:
    encoder, decoder = open_encoder(name), open_decoder(name)
    assert encoder.clock_rate == decoder.clock_rate == CLOCK_RATES[name] == 8000
    assert len(decoder.decode(encoder.encode(bytes(960)))) == 960
    encoder.close()
    decoder.close()


def test_an_encoder_takes_whole_frames_only() -> None:
    with pytest.raises(AssertionError):
        G711Encoder(Law.PCMU).encode(bytes(100))
