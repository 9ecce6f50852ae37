"""G.711 that stays what it is (voicegate.media.passthrough, sound, convert): to the bit, both ways."""

from __future__ import annotations

import random

import pytest
from hypothesis import given
from hypothesis import strategies as st

from tests.media.playouts import START, run
from tests.media.signals import best_match, frames, level, tone, voice_like
from voicegate.media.codec import open_decoder, open_encoder
from voicegate.media.companding import Law, compress, expand
from voicegate.media.convert import PcmTap, open_converter
from voicegate.media.g711 import G711Encoder
from voicegate.media.passthrough import MAX_PAYLOAD, PassingDecoder
from voicegate.media.playout import Playout
from voicegate.media.receive import ReceiveBuffer
from voicegate.media.sound import PCM, PCMA, PCMU, Line, Sound, line_between, sound_of
from voicegate.proto.errors import BadPacket
from voicegate.proto.realtime import audio_format
from voicegate.proto.rtp import RtpPacket

LAWS = [(Law.PCMU, PCMU), (Law.PCMA, PCMA)]
NOISE_TYPE, KEYS_TYPE = 13, 126


def noise(frames: int, seed: int = 1) -> list[bytes]:
    """Every code there is, in no order: what no decoding and encoding leaves as it is."""
    rng = random.Random(seed)
    return [rng.randbytes(160) for _ in range(frames)]


def packets(payloads: list[bytes], law: Law = Law.PCMU) -> list[RtpPacket]:
    return [RtpPacket(False, law, n, 160 * n, 1, payload) for n, payload in enumerate(payloads)]


def buffer(law: Law = Law.PCMU) -> ReceiveBuffer:
    return ReceiveBuffer(
        open_decoder(law.name, passes=True),
        law,
        cn_payload_type=NOISE_TYPE,
        event_payload_type=KEYS_TYPE,
    )


def carry(into: ReceiveBuffer, arriving: list[tuple[float, RtpPacket]], until: float) -> bytes:
    """Bring packets at their times; the whole line."""
    out = []
    for at, packet in [*arriving, (until, None)]:
        while (deadline := into.next_deadline()) is not None and deadline < at:
            into.handle_timeout(deadline)
        if packet is not None:
            into.push(packet, at)
        out += list(iter(into.poll_pcm, None))
    return b"".join(out)


class TestWayIn:
    @pytest.mark.parametrize(("law", "sound"), LAWS)
    def test_every_bit_is_the_clients(self, law: Law, sound: Sound) -> None:
        payloads = noise(200)
        into = buffer(law)
        heard = carry(into, [(0.02 * n, p) for n, p in enumerate(packets(payloads, law))], 4.0)
        assert heard == b"".join(payloads)
        assert into.counts.decoded_samples == 200 * 480

    @given(st.lists(st.integers(1, MAX_PAYLOAD), min_size=1, max_size=10), st.integers(0, 2**32))
    def test_packets_of_any_length(self, sizes: list[int], seed: int) -> None:
        rng = random.Random(seed)
        payloads = [rng.randbytes(size) for size in sizes]
        arriving, timestamp = [], 0
        for n, payload in enumerate(payloads):
            arriving.append((timestamp / 8000, RtpPacket(False, 0, n, timestamp, 1, payload)))
            timestamp += len(payload)
        assert carry(buffer(), arriving, timestamp / 8000) == b"".join(payloads)

    @pytest.mark.parametrize(("law", "sound"), LAWS)
    def test_a_lost_packet_is_concealed_and_moves_nothing(self, law: Law, sound: Sound) -> None:
        encoder = G711Encoder(law)
        payloads = [encoder.encode(frame) for frame in frames(voice_like(0.4))]
        arriving = [(0.02 * n, p) for n, p in enumerate(packets(payloads, law)) if n not in (10, 11)]
        into = buffer(law)
        heard = list(frames_of(carry(into, arriving, 0.5), 160))
        assert heard[:10] == payloads[:10] and heard[12:20] == payloads[12:]
        loudness = [level(expand(law, each)) for each in heard]
        assert 0.4 * loudness[9] < loudness[10] < loudness[9] and 0 < loudness[11] < loudness[10]
        assert into.counts.lost == 2 and into.counts.concealed_samples == 960

    def test_a_long_loss_is_concealment_and_then_silence(self) -> None:
        payloads = noise(40)
        arriving = [(0.02 * n, p) for n, p in enumerate(packets(payloads)) if not 10 <= n < 30]
        into = buffer()
        heard = carry(into, arriving, 1.0)
        # Live silence has begun by then where 0.5 s pass without a packet; here they are 0.4.
        assert heard[: 160 * 10] == b"".join(payloads[:10])
        assert heard[160 * 30 : 160 * 40] == b"".join(payloads[30:])
        assert heard[160 * 13 : 160 * 30] == PCMU.silence * 160 * 17

    @pytest.mark.parametrize(("law", "sound"), LAWS)
    @pytest.mark.parametrize("announced", [True, False])
    def test_a_pause_is_silence_of_the_same_length(self, law: Law, sound: Sound, announced: bool) -> None:
        payloads = noise(100)
        arriving = [(0.02 * n, p) for n, p in enumerate(packets(payloads, law)) if n < 10 or n >= 70]
        arriving = [(at, p._replace(sequence=p.sequence - 59 * (p.sequence >= 70))) for at, p in arriving]
        if announced:
            arriving.insert(10, (0.2, RtpPacket(False, NOISE_TYPE, 10, 1600, 1, b"\x40")))
        else:
            arriving[10:] = [(at, p._replace(sequence=p.sequence - 1)) for at, p in arriving[10:]]
        into = buffer(law)
        heard = carry(into, arriving, 2.0)
        assert heard == b"".join([*payloads[:10], sound.silence * 160 * 60, *payloads[70:]])
        assert into.counts.live_silence_samples > 40 * 480

    def test_keys_are_silence_too(self) -> None:
        payloads = noise(30)
        arriving = [(0.02 * n, p) for n, p in enumerate(packets(payloads))]
        arriving[10:20] = [
            (at, p._replace(payload_type=KEYS_TYPE, timestamp=1600, payload=b"\1\x0a\0\xa0"))
            for at, p in arriving[10:20]
        ]
        heard = carry(buffer(), arriving, 0.6)
        assert heard == b"".join([*payloads[:10], PCMU.silence * 1600, *payloads[20:]])

    @given(st.integers(0, 2**32))
    def test_on_any_network_the_line_is_as_long_as_the_time(self, seed: int) -> None:
        """Loss, swaps, pauses: what comes is in its place, and nothing is cut in the middle of a sample."""
        rng = random.Random(seed)
        payloads = noise(60, seed)
        first, *others, last = ((0.02 * n, packet) for n, packet in enumerate(packets(payloads)))
        came = [(at + rng.uniform(0, 0.03), packet) for at, packet in others if rng.random() > 0.2]
        kept = [first, *came, (last[0] + 0.03, last[1])]
        into = buffer()
        heard = carry(into, sorted(kept, key=lambda pair: pair[0]), 1.3)
        assert len(heard) == 60 * 160 + into.counts.live_silence_samples // 3
        assert heard[:160] == payloads[0]

    @pytest.mark.parametrize("stall", [1.2, 1.20003, 1.20007])
    def test_silence_that_was_given_out_twice_is_paid_back_in_whole_bytes(self, stall: float) -> None:
        """A network that stalls and brings a second of speech at once; then the client pauses."""
        payloads = noise(62)
        told = packets(payloads)
        arriving = [(0.02 * n, told[n]) for n in range(10)] + [(stall, told[n]) for n in range(10, 60)]
        arriving.append((stall + 0.02, RtpPacket(False, NOISE_TYPE, 60, 160 * 60, 1, b"\x40")))
        arriving.append((5.22, told[61]._replace(timestamp=160 * 261)))
        into = buffer()
        heard = carry(into, arriving, 5.22)
        assert heard.endswith(payloads[61]) and all(payload in heard for payload in payloads[:60])
        assert 0 <= len(heard) - 262 * 160 <= 1, "what is left to pay is less than a byte"
        assert into.counts.repaid_samples > 20_000 and into.counts.repaid_samples % 3 == 0
        assert into.counts.silence_samples + into.counts.decoded_samples == 3 * len(heard)

    def test_also_when_the_client_pauses_before_it_has_caught_up(self) -> None:
        payloads = noise(32)
        told = packets(payloads)
        arriving = [(0.02 * n, told[n]) for n in range(10)]
        arriving += [(1.2 + 0.01003 * (n - 10), told[n]) for n in range(10, 30)]
        arriving.append((1.4106, RtpPacket(False, NOISE_TYPE, 30, 160 * 30, 1, b"\x40")))
        into = buffer()
        heard = carry(into, arriving, 5.0)
        assert all(payload in heard for payload in payloads[:30])
        assert 4_000 < into.counts.repaid_samples < 5_000
        assert into.counts.silence_samples + into.counts.decoded_samples == 3 * len(heard)
        assert into.counts.repaid_samples % 3 == 0, "the rest stays owed"


class TestConcealment:
    @pytest.mark.parametrize(("law", "sound"), LAWS)
    def test_begins_with_what_was_last_and_fades_to_silence(self, law: Law, sound: Sound) -> None:
        decoder = PassingDecoder(law)
        (last,) = noise(1)
        decoder.decode(last)
        concealed = b"".join(decoder.conceal(480) for _ in range(6))
        assert expand(law, concealed[:1]) == expand(law, last[:1])
        levels = [level(expand(law, concealed[at : at + 160])) for at in range(0, 960, 160)]
        assert levels[0] > levels[1] > levels[2] > 0
        assert concealed[480:] == sound.silence * 480
        decoder.decode(last)
        assert level(expand(law, decoder.conceal(480))) > 0

    @pytest.mark.parametrize("samples", [0, 3, 480, 2880])
    def test_is_exactly_as_long_as_asked(self, samples: int) -> None:
        assert len(PassingDecoder(Law.PCMA).conceal(samples)) == samples // 3

    @given(st.binary(max_size=1000))
    def test_any_payload_passes_or_is_bad(self, payload: bytes) -> None:
        decoder = PassingDecoder(Law.PCMA)
        try:
            assert decoder.decode(payload) == payload
        except BadPacket as error:
            assert error.reason in ("g711_empty", "g711_oversized")
        assert len(decoder.conceal(480)) == 160


class TestWayOut:
    @pytest.mark.parametrize(("law", "sound"), LAWS)
    @given(st.lists(st.integers(0, 500), max_size=20), st.integers(0, 2**32))
    def test_every_bit_is_the_agents(self, law: Law, sound: Sound, sizes: list[int], seed: int) -> None:
        pieces = [random.Random(seed).randbytes(size) for size in sizes]
        playout = Playout(0, 8000, sound=sound)
        encoder = open_encoder(law.name, passes=True)
        sent = []
        for piece in pieces:
            playout.push(piece, START)
            if (frame := playout.poll_frame()) is not None:
                sent.append((START, frame))
        playout.end_of_audio(START)
        if (frame := playout.poll_frame()) is not None:
            sent.append((START, frame))
        sent += run(playout, START + 10)
        said = b"".join(pieces)
        assert {len(frame.pcm) for _, frame in sent} <= {160}
        heard = b"".join(encoder.encode(frame.pcm) for _, frame in sent)
        assert heard == said + sound.silence * (-len(said) % 160)
        assert playout.played_samples == 3 * len(said)
        assert [frame.timestamp for _, frame in sent] == [160 * n for n in range(len(sent))]
        assert playout.counts.odd_bytes == 0

    def test_pause_and_resume_go_on_from_the_same_byte(self) -> None:
        said = b"".join(noise(20))
        playout = Playout(0, 8000, sound=PCMU)
        playout.push(said, START)
        sent = [playout.poll_frame(), *(frame for _, frame in run(playout, START + 0.1))]
        assert playout.played_samples == 6 * 480 and playout.queued_samples == 14 * 480
        playout.pause(START + 0.11)
        assert run(playout, START + 1) == []
        playout.resume(START + 1)
        sent += [playout.poll_frame(), *(frame for _, frame in run(playout, START + 2))]
        assert b"".join(frame.pcm for frame in sent if frame) == said
        assert playout.queued_samples == 0

    def test_what_is_cut_is_counted_at_24_khz(self) -> None:
        playout = Playout(0, 8000, sound=PCMA)
        playout.push(bytes(1000), START)
        playout.poll_frame()
        assert playout.clear(START + 0.01) == (480, 3 * 840)

    def test_the_queue_is_bounded_in_seconds(self) -> None:
        playout = Playout(0, 8000, sound=PCMU, limit_seconds=1)
        playout.push(bytes(10_000), START)
        assert playout.counts.overflow_samples == 3 * 2000

    @pytest.mark.parametrize("sound", [PCMU, PCMA])
    def test_silence_that_keeps_a_path_warm_is_silence(self, sound: Sound) -> None:
        playout = Playout(0, 8000, sound=sound)
        playout.keep_warm(START)
        sent = run(playout, START + 1)
        assert [frame.pcm for _, frame in sent] == [sound.silence * 160] * 2
        assert playout.played_samples == playout.queued_samples == 0


class TestLine:
    @pytest.mark.parametrize("codec", ["opus", "PCMU", "PCMA"])
    @pytest.mark.parametrize("hears", ["audio/pcm", "audio/pcmu", "audio/pcma"])
    @pytest.mark.parametrize("speaks", ["audio/pcm", "audio/pcmu", "audio/pcma"])
    def test_is_the_clients_g711_where_the_agent_has_any(self, codec: str, hears: str, speaks: str) -> None:
        own = {"opus": PCM, "PCMU": PCMU, "PCMA": PCMA}[codec]
        agent = {"input": audio_format(hears, 8000), "output": audio_format(speaks, 16_000)}
        expected = Line(PCM if hears == PCM.type else own, PCM if speaks == PCM.type else own)
        assert line_between(codec, agent) == expected

    def test_formats_of_the_api(self) -> None:
        assert sound_of({"type": "audio/pcm", "rate": 24_000}) == sound_of({"type": "audio/pcm"}) == PCM
        assert sound_of({"type": "audio/pcm", "rate": 8_000}).bytes_per_second == 16_000
        assert sound_of({"type": "audio/pcmu"}) is PCMU
        with pytest.raises(KeyError):
            sound_of({"type": "audio/aac"})

    @pytest.mark.parametrize(("law", "sound"), LAWS)
    def test_silence_and_time(self, law: Law, sound: Sound) -> None:
        assert abs(int.from_bytes(expand(law, sound.silence), "little", signed=True)) <= 8
        assert compress(law, bytes(2)) == sound.silence
        assert (sound.frame_bytes, sound.samples(bytes(160)), sound.silent(480)) == (
            160,
            480,
            sound.silence * 160,
        )
        assert (PCM.frame_bytes, PCM.samples(bytes(960)), PCM.silent(480)) == (960, 480, bytes(960))


class TestConverter:
    def test_the_same_needs_none(self) -> None:
        assert open_converter(PCMU, PCMU) is open_converter(PCM, PCM._replace()) is None

    @pytest.mark.parametrize(("law", "sound"), LAWS)
    def test_pcm_there_and_back(self, law: Law, sound: Sound) -> None:
        there, back = open_converter(PCM, sound), open_converter(sound, PCM)
        assert there is not None and back is not None
        sent = tone(440, 1.0)
        coded = b"".join(there.convert(frame) for frame in frames(sent))
        assert len(coded) == 8000
        heard = b"".join(back.convert(coded[at : at + 160]) for at in range(0, 8000, 160))
        assert best_match(sent, heard, longest_delay=300) == (96, pytest.approx(1, abs=0.001))

    def test_pcm_at_8_khz_needs_no_filter(self) -> None:
        narrow = sound_of({"type": "audio/pcm", "rate": 8_000})
        there, back = open_converter(narrow, PCMA), open_converter(PCMA, narrow)
        assert there is not None and back is not None
        codes = bytes(range(256))
        assert there.convert(back.convert(codes)) == codes
        there.begin()

    def test_one_law_to_the_other_is_the_nearest_code(self) -> None:
        over = open_converter(PCMU, PCMA)
        assert over is not None
        converted = over.convert(bytes(range(256)))
        linear = [
            int.from_bytes(v, "little", signed=True)
            for v in frames_of(expand(Law.PCMU, bytes(range(256))), 2)
        ]
        near = [int.from_bytes(v, "little", signed=True) for v in frames_of(expand(Law.PCMA, converted), 2)]
        assert all(abs(a - b) <= max(8, abs(a) / 32) for a, b in zip(linear, near, strict=True))

    def test_a_recording_is_pcm(self) -> None:
        class Kept:
            def __init__(self) -> None:
                self.heard = self.said = b""
                self.rest: list[object] = []

            def hear(self, pcm: bytes, at: float) -> None:
                self.heard += pcm

            def say(self, pcm: bytes, timestamp: int, at: float) -> None:
                self.said += pcm
                self.rest.append((timestamp, at))

            def note(self, source: str, event: bytes) -> None:
                self.rest.append((source, event))

        kept = Kept()
        tap = PcmTap(kept, Line(PCMU, PCM))
        encoder = G711Encoder(Law.PCMU)
        sent = tone(440, 0.5)
        for frame in frames(sent):
            tap.hear(encoder.encode(frame), 1.0)
        tap.say(sent[:960], 7, 2.0)
        tap.note("agent", b"{}")
        assert best_match(sent, kept.heard, longest_delay=300) == (96, pytest.approx(1, abs=0.001))
        assert kept.said == sent[:960]
        assert kept.rest == [(7, 2.0), ("agent", b"{}")]


def frames_of(data: bytes, size: int) -> list[bytes]:
    return [data[at : at + size] for at in range(0, len(data), size)]
