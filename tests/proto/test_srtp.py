"""SRTP: the RFCs' numbers, a second implementation by the book, and everything hostile."""

from __future__ import annotations

import hmac
import random

import pytest
from cryptography.hazmat.primitives.ciphers import Cipher, algorithms, modes
from cryptography.hazmat.primitives.ciphers.aead import AESGCM
from hypothesis import given
from hypothesis import strategies as st

from voicegate.proto.errors import BadPacket
from voicegate.proto.srtp import (
    HISTORY,
    MAX_FIRST_SEQUENCE,
    MAX_PLAIN_PACKET,
    MAX_SSRCS,
    REPLAY_WINDOW,
    SrtpProfile,
    SrtpSession,
    split_key_material,
)

GCM = SrtpProfile.AEAD_AES_128_GCM
CM = SrtpProfile.AES128_CM_SHA1_80
SSRC = 0xCAFEBABE


def sessions(profile: SrtpProfile, max_ssrcs: int = MAX_SSRCS) -> tuple[SrtpSession, SrtpSession]:
    """(client's, server's) session of one call."""
    material = random.Random(profile).randbytes(profile.material_length)
    return SrtpSession(profile, material, True), SrtpSession(profile, material, False, max_ssrcs)


def rtp(sequence: int, payload: bytes = b"voice", ssrc: int = SSRC) -> bytes:
    return b"\x80\x6f%b\xde\xca\xfb\xad%b%b" % (
        sequence.to_bytes(2, "big"),
        ssrc.to_bytes(4, "big"),
        payload,
    )


def rtcp(ssrc: int = SSRC) -> bytes:
    """A receiver report without blocks, RFC 3550 section 6.4.2."""
    return b"\x80\xc9\x00\x01" + ssrc.to_bytes(4, "big")


def reason(session: SrtpSession, data: bytes, *, control: bool = False) -> str | None:
    """Why the packet is refused; None if it is not."""
    try:
        (session.unprotect_rtcp_untrusted if control else session.unprotect_rtp_untrusted)(data)
    except BadPacket as error:
        return error.reason
    return None


# --- vectors --------------------------------------------------------------------------------------

# RFC 3711 appendix B.3: the master key and salt of its key derivation, and the keys that follow from them.
MASTER_KEY = bytes.fromhex("E1F97A0D3E018BE0D64FA32C06DE4139")
MASTER_SALT = bytes.fromhex("0EC675AD498AFEEBB6960B3AABE6")


def test_the_book_s_key_derivation_is_that_of_rfc_3711() -> None:
    assert derive(MASTER_KEY, MASTER_SALT, 0, 16).hex().upper() == "C61E7A93744F39EE10734AFE3FF7A087"
    assert derive(MASTER_KEY, MASTER_SALT, 2, 14).hex().upper() == "30CBBC08863D8C85D49DB34A9AE1"
    auth_key = derive(MASTER_KEY, MASTER_SALT, 1, 20)
    assert auth_key.hex().upper() == "CEBE321F6FF7716B6FD4AB49AF256A156D38BAA4"


def test_the_book_s_gcm_is_that_of_rfc_7714() -> None:
    """Section 16.1.1: the session key and salt are given there."""
    packet = bytes.fromhex(
        "8040f17b8041f8d35501a0b247616c6c696120657374206f6d6e69732064697669736120696e207061727465732074726573"
    )
    expected = (
        "8040f17b8041f8d35501a0b2f24de3a3fb34de6cacba861c9d7e4bcabe633bd50d294e6f42a5f47a51c7d19b"
        "36de3adf8833899d7f27beb16a9152cf765ee4390cce"
    )
    key = bytes(range(16))
    salt = bytes.fromhex("517569642070726f2071756f")
    assert gcm_protect(key, salt, packet, 0).hex() == expected


def test_libsrtp_and_the_book_agree_under_cm() -> None:
    session = client_with(CM, MASTER_KEY, MASTER_SALT)
    packet = rtp(0x1234, b"\xab" * 16)
    labels = ((0, 16), (1, 20), (2, 14))
    cipher_key, auth_key, salt = (derive(MASTER_KEY, MASTER_SALT, *label) for label in labels)
    assert session.protect_rtp(packet) == cm_protect(cipher_key, auth_key, salt, packet, 0)


def test_libsrtp_and_the_book_agree_under_gcm() -> None:
    master_key, master_salt = bytes(range(16)), bytes(range(0xA0, 0xAC))
    session = client_with(GCM, master_key, master_salt)
    packet = rtp(0x1234, b"\xab" * 16)
    # RFC 7714 section 11: RFC 3711's derivation, the salt filled up with two zero bytes on the right.
    key, salt = (derive(master_key, master_salt + b"\0\0", *p) for p in ((0, 16), (2, 12)))
    assert session.protect_rtp(packet) == gcm_protect(key, salt, packet, 0)


def client_with(profile: SrtpProfile, key: bytes, salt: bytes) -> SrtpSession:
    return SrtpSession(profile, key + bytes(16) + salt + bytes(len(salt)), True)


def derive(master_key: bytes, master_salt: bytes, label: int, length: int) -> bytes:
    """RFC 3711 section 4.3.1 and 4.3.3 with a key derivation rate of 0."""
    x = int.from_bytes(master_salt, "big") ^ (label << 48)
    return aes_ctr(master_key, (x << 16).to_bytes(16, "big"), bytes(length))


def cm_protect(key: bytes, auth_key: bytes, salt: bytes, packet: bytes, roc: int) -> bytes:
    """RFC 3711 sections 4.1.1 and 4.2."""
    header, payload = packet[:12], packet[12:]
    index = roc << 16 | int.from_bytes(header[2:4], "big")
    ssrc = int.from_bytes(header[8:12], "big")
    iv = int.from_bytes(salt, "big") << 16 ^ ssrc << 64 ^ index << 16
    sealed = header + aes_ctr(key, iv.to_bytes(16, "big"), payload)
    return sealed + hmac.digest(auth_key, sealed + roc.to_bytes(4, "big"), "sha1")[:10]


def gcm_protect(key: bytes, salt: bytes, packet: bytes, roc: int) -> bytes:
    """RFC 7714 section 8.1."""
    header, payload = packet[:12], packet[12:]
    plain = b"\0\0" + header[8:12] + roc.to_bytes(4, "big") + header[2:4]
    nonce = bytes(a ^ b for a, b in zip(plain, salt, strict=True))
    return header + AESGCM(key).encrypt(nonce, payload, header)


def aes_ctr(key: bytes, counter: bytes, data: bytes) -> bytes:
    return Cipher(algorithms.AES(key), modes.CTR(counter)).encryptor().update(data)


# --- keys -----------------------------------------------------------------------------------------


@pytest.mark.parametrize(("profile", "salt"), [(GCM, 12), (CM, 14)])
def test_the_exporter_s_bytes_are_split_as_rfc_5764_4_2_says(profile: SrtpProfile, salt: int) -> None:
    material = b"C" * 16 + b"S" * 16 + b"c" * salt + b"s" * salt
    assert profile.material_length == len(material)
    assert split_key_material(profile, material) == (b"C" * 16 + b"c" * salt, b"S" * 16 + b"s" * salt)
    for wrong in (material[:-1], material + b"x", b""):
        with pytest.raises(ValueError, match="key material"):
            SrtpSession(profile, wrong, True)


@pytest.mark.parametrize("profile", SrtpProfile)
def test_both_ways_and_not_back(profile: SrtpProfile) -> None:
    client, server = sessions(profile)
    up, down = client.protect_rtp(rtp(1)), server.protect_rtp(rtp(1))
    assert up != down and len(up) == len(rtp(1)) + profile.tag_length
    assert server.unprotect_rtp_untrusted(up) == rtp(1)
    assert client.unprotect_rtp_untrusted(down) == rtp(1)
    assert reason(server, server.protect_rtp(rtp(2))) == "srtp_auth"
    up, down = client.protect_rtcp(rtcp()), server.protect_rtcp(rtcp())
    assert server.unprotect_rtcp_untrusted(up) == rtcp()
    assert client.unprotect_rtcp_untrusted(down) == rtcp()
    assert server.statistics() == (3, 2, 1, 1, 0)


@pytest.mark.parametrize("profile", SrtpProfile)
def test_the_largest_packet(profile: SrtpProfile) -> None:
    client, server = sessions(profile)
    packet = rtp(1, bytes(MAX_PLAIN_PACKET - 12))
    assert server.unprotect_rtp_untrusted(client.protect_rtp(packet)) == packet


# --- hostile packets ------------------------------------------------------------------------------


@pytest.mark.parametrize("control", [False, True])
@pytest.mark.parametrize("profile", SrtpProfile)
def test_every_flipped_bit_is_noticed_and_harms_nothing(profile: SrtpProfile, control: bool) -> None:
    client, server = sessions(profile)
    good = client.protect_rtcp(rtcp()) if control else client.protect_rtp(rtp(1))
    for position in range(len(good)):
        for bit in range(8):
            forged = bytearray(good)
            forged[position] ^= 1 << bit
            assert reason(server, bytes(forged), control=control) in (
                "srtp_auth",
                "srtp_malformed",
                "srtp_no_context",
            )
    assert reason(server, good, control=control) is None


@pytest.mark.parametrize("control", [False, True])
@pytest.mark.parametrize("profile", SrtpProfile)
def test_every_truncation_is_noticed_and_harms_nothing(profile: SrtpProfile, control: bool) -> None:
    client, server = sessions(profile)
    good = client.protect_rtcp(rtcp()) if control else client.protect_rtp(rtp(1))
    for length in range(len(good)):
        expected = ("srtp_short", "srtp_auth", "srtp_malformed")
        assert reason(server, good[:length], control=control) in expected
    assert reason(server, good + b"\0", control=control) == "srtp_auth"
    assert reason(server, bytes([0x80]) * 1501, control=control) == "srtp_long"
    assert reason(server, good, control=control) is None


@pytest.mark.parametrize("profile", SrtpProfile)
def test_a_replay_is_dropped_within_the_window_and_before_it(profile: SrtpProfile) -> None:
    client, server = sessions(profile)
    protected = [client.protect_rtp(rtp(n)) for n in range(1, REPLAY_WINDOW + 300)]
    late = protected.pop(REPLAY_WINDOW)
    for packet in protected:
        assert reason(server, packet) is None
    assert reason(server, late) is None  # reordering by less than the window is no replay
    assert {reason(server, packet) for packet in [*protected, late]} == {"srtp_replay"}
    control = client.protect_rtcp(rtcp())
    assert reason(server, control, control=True) is None
    assert reason(server, control, control=True) == "srtp_replay"


@pytest.mark.parametrize("profile", SrtpProfile)
def test_a_packet_is_sent_again_as_it_was_and_once(profile: SrtpProfile) -> None:
    material = bytes(range(profile.material_length))
    ours = SrtpSession(profile, material, is_client=True, resends=True)
    theirs = SrtpSession(profile, material, is_client=False)
    first = [ours.protect_rtp(rtp((65_530 + index) & 0xFFFF)) for index in range(HISTORY + 10)]
    sequences = [(65_530 + index) & 0xFFFF for index in range(HISTORY + 10)]
    assert [ours.take_sent(sequence) for sequence in sequences] == [None] * 10 + first[10:]
    assert [ours.take_sent(sequence) for sequence in sequences] == [None] * (HISTORY + 10)
    assert ours.take_sent(5) is None and ours.take_sent(0xFFFF) is None
    for index, data in enumerate(first):
        if index != 7:
            theirs.unprotect_rtp_untrusted(data)
    assert theirs.unprotect_rtp_untrusted(first[7]) == rtp(sequences[7]), "authentic, and not a replay"
    plain = SrtpSession(profile, material, is_client=True)
    plain.protect_rtp(rtp(1))
    assert plain.take_sent(1) is None


@pytest.mark.parametrize("profile", SrtpProfile)
def test_sources_are_capped_and_forged_ones_take_no_place(profile: SrtpProfile) -> None:
    client, server = sessions(profile)
    for ssrc in range(1000):  # forged: none authenticates
        assert reason(server, rtp(1, bytes(40), ssrc)) in ("srtp_auth", "srtp_no_context")
    assert server.statistics().ssrcs == 0
    results = [reason(server, client.protect_rtp(rtp(1, ssrc=ssrc))) for ssrc in range(1000, 2000)]
    assert results == [None] * MAX_SSRCS + ["srtp_ssrc_limit"] * (1000 - MAX_SSRCS)
    assert reason(server, client.protect_rtp(rtp(2, ssrc=1000))) is None  # the known ones go on
    statistics = server.statistics()
    assert (statistics.ssrcs, statistics.ssrcs_refused) == (MAX_SSRCS, 1000 - MAX_SSRCS)
    assert reason(server, client.protect_rtcp(rtcp(5)), control=True) == "srtp_ssrc_limit"


@pytest.mark.parametrize("profile", SrtpProfile)
@pytest.mark.parametrize("seed", range(3))
def test_the_sequence_number_wraps_under_loss_and_reordering(profile: SrtpProfile, seed: int) -> None:
    """Three times around, 20 % lost, shuffled by 50; the stream begins where streams must begin."""
    client, server = sessions(profile)
    chance = random.Random(seed)
    first = chance.randint(0, MAX_FIRST_SEQUENCE)
    sent = received = 0
    batch: list[bytes] = []
    for number in range(3 * 65536):
        # Only the surroundings of the wrap are interesting; between, 50 steps of 16 fit the window.
        position = (first + number) % 65536
        if 300 < position < 65236 and position % 16:
            continue
        packet = client.protect_rtp(rtp(position, number.to_bytes(4, "big")))
        sent += 1
        if chance.random() < 0.2:
            continue
        batch.append(packet)
        if len(batch) == 50:
            chance.shuffle(batch)
            received += sum(reason(server, packet) is None for packet in batch)
            batch.clear()
    assert received > 0.75 * sent
    assert server.statistics().dropped < 0.02 * received


@pytest.mark.parametrize("profile", SrtpProfile)
def test_a_stream_that_starts_too_high_shows_why_it_must_not(profile: SrtpProfile) -> None:
    """Its first packet lost, the receiver guesses the wrong rollover counter for ever."""
    client, server = sessions(profile)
    client.protect_rtp(rtp(65535))
    assert reason(server, client.protect_rtp(rtp(0))) == "srtp_auth"
    client, server = sessions(profile)
    client.protect_rtp(rtp(MAX_FIRST_SEQUENCE))
    assert reason(server, client.protect_rtp(rtp(MAX_FIRST_SEQUENCE + 1))) is None


def test_a_thousand_bad_packets_do_not_end_the_stream() -> None:
    """CVE-2021-41105: never hang up on bad packets."""
    client, server = sessions(GCM)
    chance = random.Random(1)
    for number in range(1000):
        reason(server, rtp(number, chance.randbytes(40)))
    assert server.statistics().dropped == 1000
    assert reason(server, client.protect_rtp(rtp(1))) is None


@pytest.mark.parametrize("profile", SrtpProfile)
@given(data=st.binary(max_size=1600))
def test_anything_at_all_is_refused(profile: SrtpProfile, data: bytes) -> None:
    _, server = sessions(profile)
    assert reason(server, data) is not None
    assert reason(server, b"\x80" + data, control=True) is not None


@pytest.mark.parametrize("profile", SrtpProfile)
@given(
    payload=st.binary(max_size=1200),
    sequence=st.integers(0, MAX_FIRST_SEQUENCE),
    ssrc=st.integers(0, 2**32 - 1),
)
def test_round_trip(profile: SrtpProfile, payload: bytes, sequence: int, ssrc: int) -> None:
    client, server = sessions(profile)
    packet = rtp(sequence, payload, ssrc)
    assert server.unprotect_rtp_untrusted(client.protect_rtp(packet)) == packet
